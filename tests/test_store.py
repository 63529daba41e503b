import numpy as np
import pandas as pd
import pytest

from proxies_lib import cli, config, store
from proxies_lib.config import UserError, replace


def meta(run, fingerprint="f1", loss=1.5):
    result = {"final_loss": loss, "init_loss": 4.0, "diverged": False, "diverged_step": -1, "train_seconds": 1.0}
    return {"key": config.key(run, fingerprint), "config": config.flat(run), "result": result,
            "provenance": {"fingerprint": fingerprint, "jax": "0"}}  # fmt: skip


CURVES = {"step": np.arange(3, dtype=np.int32), "grad_rms/a": np.array([1, 2, np.nan], np.float32)}


def find(runs, folder, layer=None, fingerprint="f1"):
    return store.locate(runs, {("synthetic", 64): fingerprint}, folder, layer)


def test_a_record_comes_back_as_written_and_nothing_else_is_left(tmp_path, smoke):
    path = store.write(tmp_path, meta(smoke), CURVES)
    found, curves = store.read(tmp_path, meta(smoke)["key"])
    assert found == meta(smoke) and [p for p in tmp_path.rglob("*") if p.is_file()] == [path]
    for name, values in CURVES.items():
        np.testing.assert_array_equal(curves[name], values)


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b[:200] + b"X" + b[201:], lambda b: b""])
def test_a_damaged_record_counts_as_missing(tmp_path, smoke, damage):
    path = store.write(tmp_path, meta(smoke), CURVES)
    path.write_bytes(damage(path.read_bytes()))
    assert store.read(tmp_path, meta(smoke)["key"]) is None
    assert find([smoke], tmp_path)[0].layer == ""


def test_a_record_under_another_name_is_not_believed(tmp_path, smoke):
    path = store.write(tmp_path, meta(smoke), CURVES)
    other = meta(replace(smoke, seed=1))["key"]
    target = tmp_path / other[:2] / f"{other}.npz"
    target.parent.mkdir(exist_ok=True)
    path.rename(target)
    assert store.read(tmp_path, other) is None


def test_the_table_raises_on_holes_and_keeps_the_order_of_the_runs(tmp_path, smoke):
    runs = [replace(smoke, seed=s) for s in (3, 1, 2)]
    for i, run in enumerate(runs):
        with pytest.raises(UserError, match=f"{3 - i} of 3 runs are not stored"):
            store.table(find(runs, tmp_path), tmp_path)
        store.write(tmp_path, meta(run, loss=float(i)), CURVES)
    table, curves = store.table(find(runs, tmp_path), tmp_path)
    assert table["seed"].tolist() == [3, 1, 2] and table["final_loss"].tolist() == [0.0, 1.0, 2.0]
    assert len(curves) == 9 and set(curves["key"]) == set(table["key"])


def test_an_exported_table_is_a_layer_below_matched_by_key_then_by_recipe(tmp_path, smoke):
    runs, there = [smoke, replace(smoke, seed=1)], tmp_path / "exported"
    for run in runs:
        store.write(tmp_path / "store", meta(run), CURVES)
    store.export(*store.table(find(runs, tmp_path / "store"), tmp_path / "store"), there)
    empty = tmp_path / "empty"
    assert [f.layer for f in find(runs, empty, there)] == ["table", "table"]
    assert [f.layer for f in find(runs, empty, there, "f2")] == ["table, other corpus"] * 2
    assert [f.layer for f in find(runs, empty, there, None)] == ["table, other corpus"] * 2
    assert [f.layer for f in find([replace(smoke, lr=0.5)], empty, there)] == [""]
    before, _ = store.table(find(runs, tmp_path / "store"), tmp_path / "store")
    after, curves = store.table(find(runs, empty, there, "f2"), empty, there)
    assert before.to_dict("records") == after.to_dict("records") and len(curves) == 6
    assert not empty.exists()


def test_export_replaces_equal_recipes_and_keeps_other_runs(tmp_path, smoke):
    for fingerprint, run in (("f1", smoke), ("f1", replace(smoke, seed=1)), ("f2", smoke)):
        folder = tmp_path / fingerprint / str(run.order.seed)
        store.write(folder, meta(run, fingerprint), CURVES)
        store.export(*store.table(find([run], folder, fingerprint=fingerprint), folder), tmp_path / "out")
        store.export(*store.table(find([run], folder, fingerprint=fingerprint), folder), tmp_path / "out")  # and again
    runs, curves = store.exported(tmp_path / "out")
    assert sorted(zip(runs["seed"], runs["fingerprint"])) == [(0, "f2"), (1, "f1")] and len(curves) == 6


def test_export_drops_rows_of_another_schema_and_reads_rows_older_than_a_field(tmp_path, smoke):
    store.write(tmp_path, meta(smoke), CURVES)
    runs, curves = store.table(find([smoke], tmp_path), tmp_path)
    older = runs.drop(columns=["kappa"])  # written before the field existed
    stale = runs.assign(recipe="of another schema", key="other")
    store.write_atomically(
        tmp_path / "out" / "runs.parquet", pd.concat([older, stale.drop(columns=["kappa"])]).to_parquet()
    )
    store.write_atomically(tmp_path / "out" / "curves.parquet", curves.to_parquet())
    assert find([smoke], tmp_path / "empty", tmp_path / "out")[0].layer == "table"
    other = replace(smoke, seed=5)
    store.write(tmp_path, meta(other), CURVES)
    store.export(*store.table(find([other], tmp_path), tmp_path), tmp_path / "out")
    kept, _ = store.exported(tmp_path / "out")
    assert sorted(kept["seed"]) == [0, 5] and kept["kappa"].tolist() == [1.0, 1.0]


def test_exported_curves_have_four_digits_and_keep_what_is_not_finite(tmp_path, smoke):
    values = np.array([np.pi, -1e-30, np.nan, np.inf, 0.0], np.float32)
    curves = {"step": np.arange(5, dtype=np.int32), "loss": values, "param_rms/a": values, "grad_rms/n/scale": values}
    store.write(tmp_path, meta(smoke), curves)
    store.export(*store.table(find([smoke], tmp_path), tmp_path), tmp_path / "out")
    _, exported = store.exported(tmp_path / "out")
    assert set(exported) == {"step", "loss", "key"}
    np.testing.assert_allclose(exported["loss"], values, rtol=1.3e-4)


def fill(folder, runs, **options):
    for run in runs:
        i = run.order.seed
        curves = CURVES | ({"grad_rms/b": np.array([-0.0, np.inf, i], np.float32)} if i % 2 else {})
        store.write(folder, meta(run, loss=float("nan") if i == 1 else float(i), **options), curves)
    return {meta(run, **options)["key"]: store.read(folder, meta(run, **options)["key"]) for run in runs}


def seeds(smoke, n):
    return [replace(smoke, seed=s) for s in range(n)]


def packs(folder):
    return sorted((folder / "packs").glob("*.parquet"))


def loose(folder):
    return sorted(folder.glob("??/*.npz"))


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def merged(*arguments) -> str:
    lines = []
    store.merge(*arguments, say=lines.append)
    return "\n".join(lines)


def assert_same(folder, records):
    for k, (written, curves) in records.items():
        again, packed = store.read(folder, k)
        assert repr(again) == repr(written) and packed.keys() == curves.keys()
        for name, values in curves.items():
            assert packed[name].dtype == values.dtype and packed[name].tobytes() == values.tobytes()


def test_packed_records_and_tables_equal_loose_ones_bit_for_bit(tmp_path, smoke):
    runs = seeds(smoke, 5)
    records = fill(tmp_path, runs)
    plain = store.table(find(runs, tmp_path), tmp_path)
    assert "5 of its own packed" in merged([], tmp_path)
    assert not loose(tmp_path) and len(packs(tmp_path)) == 1
    assert_same(tmp_path, records)
    new = replace(smoke, seed=9)
    store.write(tmp_path, meta(new), CURVES)
    packed = store.table(find(runs, tmp_path), tmp_path)
    pd.testing.assert_frame_equal(plain[0], packed[0])
    pd.testing.assert_frame_equal(plain[1], packed[1][list(plain[1])])
    both, curves = store.table(find([runs[3], new, runs[0]], tmp_path), tmp_path)
    assert both["seed"].tolist() == [3, 9, 0] and list(dict.fromkeys(curves["key"])) == both["key"].tolist()


def test_a_table_of_some_curves_holds_only_these(tmp_path, smoke):
    runs = seeds(smoke, 3)
    fill(tmp_path, runs)
    for _ in range(2):  # loose, then packed
        whole = store.table(find(runs, tmp_path), tmp_path)[1]
        for columns, names in (
            ((), []),
            (("grad_rms/b",), ["grad_rms/b"]),
            (["grad_rms"], ["grad_rms/a", "grad_rms/b"]),
        ):
            some = store.table(find(runs, tmp_path), tmp_path, columns=columns)[1]
            assert set(some) == {"step", "key", *names}
            pd.testing.assert_frame_equal(some, whole[list(some)])
            assert set(store.read(tmp_path, meta(runs[1])["key"], columns)[1]) == {"step", *names}
        merged([], tmp_path)


def test_a_merge_brings_stores_and_packs_together_once(tmp_path, smoke):
    runs = seeds(smoke, 6)
    records = fill(tmp_path / "a", runs[:3]) | fill(tmp_path / "b", runs[2:5]) | fill(tmp_path / "here", runs[5:])
    merged([], tmp_path / "b")
    (pack,) = packs(tmp_path / "b")
    sources, here = [tmp_path / "a", pack], tmp_path / "here"
    before = {p: p.read_bytes() for s in ("a", "b") for p in (tmp_path / s).rglob("*") if p.is_file()}
    assert "5 runs merged, 1 already there, 1 of its own packed, 0 damaged; the store has 1 packs" in merged(
        sources, here
    )
    (first,) = packs(here)
    assert "0 runs merged, 6 already there, 0 of its own packed" in merged(sources, here)
    assert packs(here) == [first] and not loose(here)
    assert_same(here, records)
    assert before == {p: p.read_bytes() for p in before}


def test_a_merge_that_was_killed_counts_every_run_once_and_can_go_on(tmp_path, smoke, monkeypatch):
    runs = seeds(smoke, 4)
    records = fill(tmp_path, runs)
    with monkeypatch.context() as killed:
        killed.setattr(store.pathlib.Path, "unlink", lambda *_, **__: None)
        merged([], tmp_path)
    assert len(loose(tmp_path)) == 4 and len(packs(tmp_path)) == 1
    table, curves = store.table(find(runs, tmp_path), tmp_path)
    assert len(table) == 4 and len(curves) == 12
    merged([], tmp_path)
    assert not loose(tmp_path) and len(packs(tmp_path)) == 1
    assert_same(tmp_path, records)

    def stop(*_):
        raise KeyboardInterrupt

    records |= fill(tmp_path, [replace(smoke, seed=7)])
    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(store, "_write_pack", stop)
        merged([], tmp_path)
    assert_same(tmp_path, records)


def test_a_damaged_pack_is_one_line_and_its_runs_are_missing(tmp_path, smoke, capsys):
    runs = seeds(smoke, 3)
    fill(tmp_path, runs)
    merged([], tmp_path)
    found, (pack,) = find(runs, tmp_path), packs(tmp_path)
    flip(pack)
    assert [f.layer for f in find(runs, tmp_path)] == [""] * 3
    assert capsys.readouterr().out == f"store: pack {pack.name} is damaged or renamed; its runs count as missing\n"
    assert store.read(tmp_path, found[0].key) is None
    with pytest.raises(UserError, match="3 of 3 runs were lost or damaged"):
        store.table(found, tmp_path)
    assert "0 runs merged, 0 already there, 0 of its own packed, 1 damaged" in merged([pack], tmp_path / "other")
    records = fill(tmp_path, runs)  # trained again
    assert "3 of its own packed, 1 damaged" in merged([], tmp_path)
    assert packs(tmp_path) == [pack] and not loose(tmp_path)
    assert_same(tmp_path, records)


def test_a_merge_leaves_damaged_records_and_small_packs_it_cannot_replace(tmp_path, smoke):
    fill(tmp_path, seeds(smoke, 3))
    flip(loose(tmp_path)[1])
    lines = merged([], tmp_path)
    assert "record" in lines and "2 of its own packed, 1 damaged" in lines and len(loose(tmp_path)) == 1


def test_packs_stay_below_their_limit_and_small_ones_are_combined(tmp_path, smoke, monkeypatch):
    monkeypatch.setattr(store, "PACK_BYTES", 20_000)
    runs, noise = seeds(smoke, 30), np.random.default_rng(0)
    for run in runs:
        store.write(tmp_path, meta(run), CURVES | {"noise": noise.standard_normal(3).astype(np.float32)})
        if run.order.seed % 5 == 4:
            merged([], tmp_path)
    sizes = [p.stat().st_size for p in packs(tmp_path)]
    assert 1 < len(sizes) < 6 and max(sizes) <= 20_000
    assert {f.layer for f in find(runs, tmp_path)} == {"store"}
    before = packs(tmp_path)
    merged([], tmp_path)
    assert packs(tmp_path) == before


def test_a_record_of_other_fields_is_packed_as_it_is(tmp_path, smoke):
    other = meta(smoke) | {"key": "of another schema"}
    other["config"] = other["config"] | {"no_such_field": 1}
    store.write(tmp_path, other, CURVES)
    records = {"of another schema": store.read(tmp_path, "of another schema")}
    merged([], tmp_path)
    assert_same(tmp_path, records)


def test_the_command_merges_and_refuses_what_is_no_store(tmp_path, smoke, capsys):
    fill(tmp_path / "a", [smoke])
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.parquet").write_bytes(b"x")
    for source, words in (("nowhere", "no such file or folder"), ("empty", "is neither a store nor a pack"),
                          ("x.parquet", "is neither a store nor a pack")):  # fmt: skip
        assert cli.main(["merge", str(tmp_path / source), "--store", str(tmp_path / "target")]) == 2
        out, err = capsys.readouterr()
        assert not out and err.count("\n") == 1 and words in err and not (tmp_path / "target").exists()
    assert cli.main(["merge", "--store", str(tmp_path / "target")]) == 2
    assert "store=" in capsys.readouterr().err
    assert cli.main(["merge", str(tmp_path / "a"), "--store", str(tmp_path / "target")]) == 0
    assert capsys.readouterr().out.startswith("1 runs merged, 0 already there")
