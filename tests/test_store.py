import errno
import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from proxies_lib import cli, config, paths
from proxies_lib.config import UserError, replace
from proxies_lib.runs import packs, store, sweep, tables


def meta(run, fingerprint="f1", loss=1.5):
    result = {
        "final_loss": loss,
        "init_loss": 4.0,
        "diverged": False,
        "diverged_step": -1,
        "train_seconds": 1.0,
    }
    return {
        "key": config.key(run, fingerprint),
        "config": config.flat(run),
        "result": result,
        "provenance": {"fingerprint": fingerprint, "jax": "0"},
    }


CURVES = {
    "step": np.arange(3, dtype=np.int32),
    "update_norm/a": np.array([1, 2, np.nan], np.float32),
}


def find(runs, folder, layer=None, fingerprint="f1"):
    return tables.locate(runs, {("synthetic", 64): fingerprint}, folder, layer)


def test_a_record_comes_back_as_written_and_nothing_else_is_left(tmp_path, smoke):
    path = store.write(tmp_path, meta(smoke), CURVES)
    found, curves = store.read(tmp_path, meta(smoke)["key"])
    assert found == meta(smoke) and [p for p in tmp_path.rglob("*") if p.is_file()] == [path]
    for name, values in CURVES.items():
        np.testing.assert_array_equal(curves[name], values)


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b[:200] + b"X" + b[201:], lambda b: b""]
)
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
            tables.table(find(runs, tmp_path), tmp_path)
        store.write(tmp_path, meta(run, loss=float(i)), CURVES)
    table, curves = tables.table(find(runs, tmp_path), tmp_path)
    assert table["seed"].tolist() == [3, 1, 2] and table["final_loss"].tolist() == [0.0, 1.0, 2.0]
    assert len(curves) == 9 and set(curves["key"]) == set(table["key"])


def test_an_exported_table_is_a_layer_below_matched_by_key_then_by_recipe(tmp_path, smoke):
    runs, there = [smoke, replace(smoke, seed=1)], tmp_path / "exported"
    for run in runs:
        store.write(tmp_path / "store", meta(run), CURVES)
    tables.export(*tables.table(find(runs, tmp_path / "store"), tmp_path / "store"), there)
    empty = tmp_path / "empty"
    assert [f.layer for f in find(runs, empty, there)] == ["table", "table"]
    assert [f.layer for f in find(runs, empty, there, "f2")] == ["table, other corpus"] * 2
    assert [f.layer for f in find(runs, empty, there, None)] == ["table, other corpus"] * 2
    assert [f.layer for f in find([replace(smoke, lr=0.5)], empty, there)] == [""]
    before, _ = tables.table(find(runs, tmp_path / "store"), tmp_path / "store")
    after, curves = tables.table(find(runs, empty, there, "f2"), empty, there)
    assert before.to_dict("records") == after.to_dict("records") and len(curves) == 6
    assert not empty.exists()


def test_export_replaces_equal_recipes_and_keeps_other_runs(tmp_path, smoke):
    for fingerprint, run in (("f1", smoke), ("f1", replace(smoke, seed=1)), ("f2", smoke)):
        folder = tmp_path / fingerprint / str(run.order.seed)
        store.write(folder, meta(run, fingerprint), CURVES)
        for _ in range(2):
            found = find([run], folder, fingerprint=fingerprint)
            tables.export(*tables.table(found, folder), tmp_path / "out")
    runs, curves = tables.exported(tmp_path / "out")
    assert sorted(zip(runs["seed"], runs["fingerprint"])) == [(0, "f2"), (1, "f1")]
    assert len(curves) == 6


def test_an_export_appends_so_that_git_stores_what_it_adds(tmp_path, smoke, monkeypatch):
    """The full groups of rows of the table before are in the next one, byte for byte."""
    monkeypatch.setattr(tables, "ROWS_OF_A_GROUP", 2 * len(CURVES["step"]))
    folder, out = tmp_path / "store", tmp_path / "out"
    fill(folder, seeds(smoke, 9))
    path = out / "curves.parquet"
    exported(folder, seeds(smoke, 5), out)
    before, keys = path.read_bytes(), tables.exported(out)[0]["key"].tolist()
    metadata = pq.ParquetFile(path).metadata
    end_of_full = metadata.row_group(2).column(0).data_page_offset
    assert metadata.num_row_groups == 3 and end_of_full > 500

    exported(folder, seeds(smoke, 9)[::-1], out)
    assert path.read_bytes()[:end_of_full] == before[:end_of_full]
    after = tables.exported(out)[0]["key"].tolist()
    assert after[:5] == keys == sorted(keys) and after[5:] == sorted(after[5:])
    assert len(after) == 9

    state = path.stat()
    exported(folder, seeds(smoke, 2), out)  # nothing new: nothing is written
    assert path.stat() == state


def test_export_drops_rows_of_another_schema_and_reads_rows_older_than_a_field(tmp_path, smoke):
    store.write(tmp_path, meta(smoke), CURVES)
    runs, curves = tables.table(find([smoke], tmp_path), tmp_path)
    older = runs.drop(columns=["kappa"])  # written before the field existed
    stale = runs.assign(recipe="of another schema", key="other")
    paths.write_atomically(
        tmp_path / "out" / "runs.parquet",
        pd.concat([older, stale.drop(columns=["kappa"])]).to_parquet(),
    )
    paths.write_atomically(tmp_path / "out" / "curves.parquet", curves.to_parquet())
    assert find([smoke], tmp_path / "empty", tmp_path / "out")[0].layer == "table"
    other = replace(smoke, seed=5)
    store.write(tmp_path, meta(other), CURVES)
    tables.export(*tables.table(find([other], tmp_path), tmp_path), tmp_path / "out")
    kept, _ = tables.exported(tmp_path / "out")
    assert sorted(kept["seed"]) == [0, 5] and kept["kappa"].tolist() == [1.0, 1.0]


def test_of_a_run_only_the_curves_that_are_read_go_out_and_the_loss():
    names = ["loss", "q_norm/0", "q_norm/1", "k_norm/0", "mean_log_z"]
    numbers = np.arange(20, dtype=np.float32).reshape(4, 5)
    curves = pd.DataFrame(numbers, columns=names).assign(key=[*"aabc"], step=[0, 1, 0, 0])
    left = tables.only_read(curves, {"a": {"q_norm/"}, "b": {"k_norm/0"}, "c": ()})
    there = left.set_index("key")[names[:-1]].notna()
    assert "mean_log_z" not in left and len(left) == 4 and left["loss"].equals(curves["loss"])
    assert there.loc["a"].to_numpy().tolist() == [[True, True, True, False]] * 2
    assert there.loc["b"].tolist() == [True, False, False, True]
    assert there.loc["c"].tolist() == [True, False, False, False]
    whole = tables.only_read(curves, dict.fromkeys("abc"))
    assert whole[list(curves)].equals(curves)


def test_exported_curves_have_four_digits_and_keep_what_is_not_finite(tmp_path, smoke):
    values = np.array([np.pi, -1e-30, np.nan, np.inf, 0.0], np.float32)
    curves = {
        "step": np.arange(5, dtype=np.int32),
        "loss": values,
        "param_rms/a": values,
        "grad_rms/n/scale": values,
    }
    store.write(tmp_path, meta(smoke), curves)
    tables.export(*tables.table(find([smoke], tmp_path), tmp_path), tmp_path / "out")
    _, exported = tables.exported(tmp_path / "out")
    assert set(exported) == {"step", "loss", "key"}
    np.testing.assert_allclose(exported["loss"], values, rtol=1.3e-4)


def fill(folder, runs, **options):
    for run in runs:
        i = run.order.seed
        curves = CURVES | (
            {"update_norm/b": np.array([-0.0, np.inf, i], np.float32)} if i % 2 else {}
        )
        store.write(folder, meta(run, loss=float("nan") if i == 1 else float(i), **options), curves)
    return {
        meta(run, **options)["key"]: store.read(folder, meta(run, **options)["key"]) for run in runs
    }


def seeds(smoke, n):
    return [replace(smoke, seed=s) for s in range(n)]


def pack_files(folder):
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
    plain = tables.table(find(runs, tmp_path), tmp_path)
    assert "5 of its own packed" in merged([], tmp_path)
    assert not loose(tmp_path) and len(pack_files(tmp_path)) == 1
    assert_same(tmp_path, records)
    new = replace(smoke, seed=9)
    store.write(tmp_path, meta(new), CURVES)
    packed = tables.table(find(runs, tmp_path), tmp_path)
    pd.testing.assert_frame_equal(plain[0], packed[0])
    pd.testing.assert_frame_equal(plain[1], packed[1][list(plain[1])])
    both, curves = tables.table(find([runs[3], new, runs[0]], tmp_path), tmp_path)
    assert both["seed"].tolist() == [3, 9, 0]
    assert list(dict.fromkeys(curves["key"])) == both["key"].tolist()


def test_a_table_of_some_curves_holds_only_these(tmp_path, smoke):
    runs = seeds(smoke, 3)
    fill(tmp_path, runs)
    for _ in range(2):  # loose, then packed
        whole = tables.table(find(runs, tmp_path), tmp_path)[1]
        for columns, names in (
            ((), []),
            (("update_norm/b",), ["update_norm/b"]),
            (["update_norm"], ["update_norm/a", "update_norm/b"]),
        ):
            some = tables.table(find(runs, tmp_path), tmp_path, columns=columns)[1]
            assert set(some) == {"step", "key", *names}
            pd.testing.assert_frame_equal(some, whole[list(some)])
            assert set(store.read(tmp_path, meta(runs[1])["key"], columns)[1]) == {"step", *names}
        merged([], tmp_path)


def test_a_merge_brings_stores_and_packs_together_once(tmp_path, smoke):
    runs = seeds(smoke, 6)
    records = (
        fill(tmp_path / "a", runs[:3])
        | fill(tmp_path / "b", runs[2:5])
        | fill(tmp_path / "here", runs[5:])
    )
    merged([], tmp_path / "b")
    (pack,) = pack_files(tmp_path / "b")
    sources, here = [tmp_path / "a", pack], tmp_path / "here"
    before = {
        p: p.read_bytes() for s in ("a", "b") for p in (tmp_path / s).rglob("*") if p.is_file()
    }
    line = "5 runs merged, 1 already there, 1 of its own packed, 0 damaged; the store has 1 packs"
    assert line in merged(sources, here)
    (first,) = pack_files(here)
    assert "0 runs merged, 6 already there, 0 of its own packed" in merged(sources, here)
    assert pack_files(here) == [first] and not loose(here)
    assert_same(here, records)
    assert before == {p: p.read_bytes() for p in before}


def test_a_merge_that_was_killed_counts_every_run_once_and_can_go_on(tmp_path, smoke, monkeypatch):
    runs = seeds(smoke, 4)
    records = fill(tmp_path, runs)
    with monkeypatch.context() as killed:
        killed.setattr(pathlib.Path, "unlink", lambda *_, **__: None)
        merged([], tmp_path)
    assert len(loose(tmp_path)) == 4 and len(pack_files(tmp_path)) == 1
    table, curves = tables.table(find(runs, tmp_path), tmp_path)
    assert len(table) == 4 and len(curves) == 12
    merged([], tmp_path)
    assert not loose(tmp_path) and len(pack_files(tmp_path)) == 1
    assert_same(tmp_path, records)

    def stop(*_):
        raise KeyboardInterrupt

    records |= fill(tmp_path, [replace(smoke, seed=7)])
    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(packs, "write_pack", stop)
        merged([], tmp_path)
    assert_same(tmp_path, records)


def test_a_damaged_pack_is_one_line_and_its_runs_are_missing(tmp_path, smoke, capsys):
    runs = seeds(smoke, 3)
    fill(tmp_path, runs)
    merged([], tmp_path)
    found, (pack,) = find(runs, tmp_path), pack_files(tmp_path)
    flip(pack)
    assert [f.layer for f in find(runs, tmp_path)] == [""] * 3
    line = f"store: pack {pack.name} is damaged or renamed; its runs count as missing\n"
    assert capsys.readouterr().out == line
    assert store.read(tmp_path, found[0].key) is None
    with pytest.raises(UserError, match="3 of 3 runs were lost or damaged"):
        tables.table(found, tmp_path)
    line = "0 runs merged, 0 already there, 0 of its own packed, 1 damaged"
    assert line in merged([pack], tmp_path / "other")
    records = fill(tmp_path, runs)  # trained again
    assert "3 of its own packed, 1 damaged" in merged([], tmp_path)
    assert pack_files(tmp_path) == [pack] and not loose(tmp_path)
    assert_same(tmp_path, records)


def test_a_merge_leaves_damaged_records_and_small_packs_it_cannot_replace(tmp_path, smoke):
    fill(tmp_path, seeds(smoke, 3))
    flip(loose(tmp_path)[1])
    lines = merged([], tmp_path)
    assert "record" in lines and "2 of its own packed, 1 damaged" in lines
    assert len(loose(tmp_path)) == 1


def test_packs_stay_below_their_limit_and_small_ones_are_combined(tmp_path, smoke, monkeypatch):
    monkeypatch.setattr(packs, "PACK_BYTES", 20_000)
    runs, noise = seeds(smoke, 30), np.random.default_rng(0)
    for run in runs:
        store.write(
            tmp_path, meta(run), CURVES | {"noise": noise.standard_normal(3).astype(np.float32)}
        )
        if run.order.seed % 5 == 4:
            merged([], tmp_path)
    sizes = [p.stat().st_size for p in pack_files(tmp_path)]
    assert 1 < len(sizes) < 6 and max(sizes) <= 20_000
    assert {f.layer for f in find(runs, tmp_path)} == {"store"}
    before = pack_files(tmp_path)
    merged([], tmp_path)
    assert pack_files(tmp_path) == before


def test_a_record_of_other_fields_is_left_as_it_is(tmp_path, smoke):
    other = meta(smoke) | {"key": "of another schema"}
    other["config"] = other["config"] | {"no_such_field": 1}
    store.write(tmp_path, other, CURVES)
    records = {"of another schema": store.read(tmp_path, "of another schema")}
    assert "is of another version; it is left alone" in merged([], tmp_path)
    assert_same(tmp_path, records)


def test_the_command_merges_and_refuses_what_is_no_store(tmp_path, smoke, capsys):
    fill(tmp_path / "a", [smoke])
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.parquet").write_bytes(b"x")
    for source, words in (
        ("nowhere", "no such file or folder"),
        ("empty", "is neither a store nor a pack"),
        ("x.parquet", "is neither a store nor a pack"),
    ):
        assert cli.main(["merge", str(tmp_path / source), "--store", str(tmp_path / "target")]) == 2
        out, err = capsys.readouterr()
        assert (
            not out and err.count("\n") == 1 and words in err and not (tmp_path / "target").exists()
        )
    assert cli.main(["merge", "--store", str(tmp_path / "target")]) == 2
    assert "store=" in capsys.readouterr().err
    assert cli.main(["merge", str(tmp_path / "a"), "--store", str(tmp_path / "target")]) == 0
    assert capsys.readouterr().out.startswith("1 runs merged, 0 already there")


def rewrite(path, meta_text=None, **arrays):
    """A record with other parts, its checksums whole."""
    with np.load(path) as file:
        parts = {name: file[name] for name in ("meta", "columns", "points")} | arrays
    if meta_text is not None:
        parts["meta"] = np.array(meta_text)
    with open(path, "wb") as file:
        np.savez_compressed(file, **parts)


DEEP = "[" * 100_000
LIE = {"final_loss": "low"}
WRONG_META = {
    "a list": lambda m: [],
    "null": lambda m: None,
    "no result": lambda m: {k: v for k, v in m.items() if k != "result"},
    "no config": lambda m: {k: v for k, v in m.items() if k != "config"},
    "no provenance": lambda m: {k: v for k, v in m.items() if k != "provenance"},
    "no fingerprint": lambda m: m | {"provenance": {}},
    "a nested config": lambda m: m | {"config": m["config"] | {"lr": {"a": 1}}},
    "a text for a loss": lambda m: m | {"result": m["result"] | LIE},
    "no seconds": lambda m: m | {"result": m["result"] | {"train_seconds": None}},
    "a provenance in a run's column": lambda m: m | {"provenance": m["provenance"] | {"lr": 1}},
}


@pytest.mark.parametrize("wrong", [*WRONG_META.values(), lambda m: DEEP], ids=[*WRONG_META, "deep"])
def test_a_record_of_a_wrong_shape_counts_as_missing(tmp_path, smoke, capsys, wrong):
    path = store.write(tmp_path, meta(smoke), CURVES)
    text = wrong(meta(smoke))
    rewrite(path, text if text is DEEP else json.dumps(text))
    assert store.read(tmp_path, meta(smoke)["key"]) is None
    assert [f.layer for f in sweep_plan(smoke, tmp_path).found] == [""]
    said = f"store: record {path.name} is damaged; its run counts as missing\n"
    assert capsys.readouterr().out == said


def sweep_plan(run, folder):
    """A plan on a corpus whose fingerprint is `meta`'s."""
    found = tuple(find([run], folder))
    return sweep.Plan(found, sweep.estimates(found, folder), folder, 1)


def test_a_run_that_was_paused_or_diverged_does_not_set_the_time_of_its_program(tmp_path, smoke):
    runs = [replace(smoke, seed=seed) for seed in range(4)]
    for run, seconds in zip(runs, (3.0, 4466.0, 2.0), strict=False):
        stored = meta(run)
        stored["result"]["train_seconds"] = seconds
        store.write(tmp_path, stored, CURVES)
    found = find(runs, tmp_path)
    assert sweep.estimates(found, tmp_path) == {smoke.program: 3.0}
    expected = smoke.flops / sweep.FLOPS_PER_SECOND
    assert sweep.estimates(found[3:], tmp_path) == {smoke.program: expected}


@pytest.mark.parametrize(
    "arrays",
    [
        {"points": np.zeros((3, 2))},
        {"points": np.zeros(3, np.float32)},
        {"points": np.full((3, 2), np.nan, np.float32)},
        {"columns": np.array(["update_norm/a", "update_norm/b"])},
        {"columns": np.array(["step", "step"])},
        {"columns": np.array(["step", "key"])},
        {"columns": np.array([1, 2])},
        {"meta": np.zeros(3)},
    ],
)
def test_curves_of_a_wrong_shape_count_as_missing(tmp_path, smoke, arrays):
    rewrite(store.write(tmp_path, meta(smoke), CURVES), **arrays)
    assert store.read(tmp_path, meta(smoke)["key"]) is None and not find([smoke], tmp_path)[0].layer


def put_aside(path):
    """A file's name and content, the file gone."""
    content = path.read_bytes()
    path.unlink()
    return content


STAND_INS = {
    "a folder": lambda path: path.mkdir(),
    "a pipe": lambda path: os.mkfifo(path),
    "a dangling link": lambda path: path.symlink_to("nowhere"),
    "a link to itself": lambda path: path.symlink_to(path.name),
}


@pytest.mark.parametrize("stand_in", STAND_INS.values(), ids=STAND_INS)
def test_what_stands_in_a_records_place_is_a_line_and_gives_way(tmp_path, smoke, capsys, stand_in):
    path = store.write(tmp_path, meta(smoke), CURVES)
    put_aside(path)
    stand_in(path)
    assert not find([smoke], tmp_path)[0].layer and store.read(tmp_path, path.stem) is None
    assert f"record {path.name} is damaged" in capsys.readouterr().out
    assert "1 damaged" in merged([], tmp_path)
    store.write(tmp_path, meta(smoke), CURVES)
    assert find([smoke], tmp_path)[0].layer == "store"


@pytest.mark.parametrize("stand_in", STAND_INS.values(), ids=STAND_INS)
def test_what_stands_in_a_packs_place_is_a_line_and_gives_way(tmp_path, smoke, capsys, stand_in):
    fill(tmp_path, [smoke])
    merged([], tmp_path)
    (path,) = pack_files(tmp_path)
    put_aside(path)
    stand_in(path)
    assert not find([smoke], tmp_path)[0].layer and store.read(tmp_path, meta(smoke)["key"]) is None
    lines = capsys.readouterr().out
    assert path.is_symlink() or f"pack {path.name} is damaged or renamed" in lines
    records = fill(tmp_path, [smoke])
    merged([], tmp_path)
    assert find([smoke], tmp_path)[0].layer == "store"
    assert_same(tmp_path, records)


def test_many_damaged_records_are_a_few_lines(tmp_path, smoke, capsys):
    runs = seeds(smoke, 20)
    fill(tmp_path, runs)
    for path in loose(tmp_path):
        path.write_bytes(b"")
    assert {f.layer for f in find(runs, tmp_path)} == {""}
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and lines[-1] == "store: and 15 more files are damaged"


def test_a_record_of_another_run_is_not_believed_whatever_it_says(tmp_path, smoke, capsys):
    other = replace(smoke, seed=1)
    lie = meta(other) | {"key": meta(smoke)["key"]}
    store.write(tmp_path, lie, CURVES)
    elsewhere = meta(other) | {"provenance": {"fingerprint": "f2"}}
    store.write(tmp_path, elsewhere, CURVES)
    assert [f.layer for f in find([smoke, other], tmp_path)] == ["", ""]
    assert capsys.readouterr().out.count("is damaged") == 2
    assert "0 of its own packed, 2 damaged" in merged([], tmp_path) and len(loose(tmp_path)) == 2
    with pytest.raises(UserError, match="does not follow"):
        store.pack(tmp_path, [(lie, CURVES)])


def test_a_record_of_other_fields_is_no_run_of_today(tmp_path, smoke):
    other = meta(smoke)
    other["config"] = other["config"] | {"no_such_field": 1}
    path = store.write(tmp_path, other, CURVES)
    assert not find([smoke], tmp_path)[0].layer
    merged([], tmp_path)
    assert loose(tmp_path) == [path] and not pack_files(tmp_path)
    store.write(tmp_path, meta(smoke), CURVES)
    merged([], tmp_path)
    assert find([smoke], tmp_path)[0].layer == "store" and not loose(tmp_path)


def test_a_pack_with_rows_under_a_wrong_key_is_a_line_and_stays(
    tmp_path, smoke, monkeypatch, capsys
):
    runs = seeds(smoke, 2)
    lie = meta(runs[1]) | {"key": meta(runs[0])["key"]}
    with monkeypatch.context() as older:  # a version that believed names
        older.setattr(packs, "_keys_by_worth", lambda rows: packs.Keys(frozenset()))
        older.setattr(packs, "CHECKED", None)
        (pack,) = store.pack(tmp_path, [(lie, CURVES), (meta(runs[1]), CURVES)])
    assert [f.layer for f in find(runs, tmp_path)] == ["", "store"]
    assert capsys.readouterr().out == (
        f"store: pack {pack.name} has 1 rows under a wrong key; they count as missing\n"
    )
    records = fill(tmp_path, runs[:1])  # trained again
    merged([], tmp_path)
    merged([pack], tmp_path / "elsewhere")
    assert pack.exists() and [f.layer for f in find(runs, tmp_path)] == ["store", "store"]
    assert [f.layer for f in find(runs, tmp_path / "elsewhere")] == ["", "store"]
    assert_same(tmp_path, records)


def test_rows_of_other_fields_stay_in_the_pack_of_an_older_version(tmp_path, smoke, monkeypatch):
    other = meta(smoke)
    other["config"] = other["config"] | {"no_such_field": 1}
    with monkeypatch.context() as older:
        older.setattr(packs, "_keys_by_worth", lambda rows: packs.Keys(frozenset()))
        older.setattr(packs, "CHECKED", None)
        (pack,) = store.pack(tmp_path, [(other, CURVES)])
    assert not find([smoke], tmp_path)[0].layer
    assert "1 rows of another version; they stay" in merged([pack], tmp_path / "elsewhere")
    records = fill(tmp_path, [smoke])
    merged([], tmp_path)
    assert pack.exists() and find([smoke], tmp_path)[0].layer == "store" and not loose(tmp_path)
    assert len(tables.table(find([smoke], tmp_path), tmp_path)[0]) == 1
    assert_same(tmp_path, records)


def test_packs_of_an_older_version_are_read_as_ever(tmp_path, smoke, monkeypatch):
    runs = seeds(smoke, 3)
    records = fill(tmp_path, runs)
    with monkeypatch.context() as older:
        older.setattr(packs, "CHECKED", {b"keys": b"not yet"})
        merged([], tmp_path)
    packs._keys_of.cache_clear()
    assert {f.layer for f in find(runs, tmp_path)} == {"store"} and len(pack_files(tmp_path)) == 1
    assert_same(tmp_path, records)
    merged([], tmp_path)
    assert len(pack_files(tmp_path)) == 1
    assert_same(tmp_path, records)


def test_files_get_the_users_umask(tmp_path):
    before = os.umask(0o027)
    try:
        paths.write_atomically(tmp_path / "new" / "file", b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "new" / "file").stat().st_mode & 0o777 == 0o640


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file"
    paths.write_atomically(path, b"old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as broken, pytest.raises(OSError, match="No space"):
            broken.setattr(os, name, full)
            paths.write_atomically(path, b"new")
        assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_merge_on_a_full_disk_is_one_line_and_loses_nothing(tmp_path, smoke, monkeypatch, capsys):
    runs = seeds(smoke, 4)
    fill(tmp_path / "source", runs[:2])
    fill(tmp_path / "here", runs[2:])
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}

    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr("proxies_lib.runs.records.write_atomically", full)
        arguments = ["merge", str(tmp_path / "source"), "--store", str(tmp_path / "here")]
        assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and "No space left on device" in err
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}


def test_a_store_is_no_source_of_its_own(tmp_path, smoke):
    fill(tmp_path / "store", [smoke])
    merged([], tmp_path / "store")
    (pack,) = pack_files(tmp_path / "store")
    (tmp_path / "link").symlink_to("store")
    here = tmp_path / "store"
    for source in (here, tmp_path / "link", here / ".." / "store", pack):
        with pytest.raises(UserError, match="is the store itself"):
            store.merge([source], tmp_path / "store")
    assert find([smoke], tmp_path / "store")[0].layer == "store"


def test_a_merge_removes_what_killed_writers_left_days_ago_and_nothing_else(tmp_path, smoke):
    path = store.write(tmp_path, meta(smoke), CURVES)
    abandoned = (f".{path.name}-0123abcd", f".{path.name}-x_9zq1kk")
    names = (*abandoned, f"._{path.name}", ".notes", "notes.npz-x")
    for name in names:
        path.with_name(name).write_bytes(path.read_bytes())
        os.utime(path.with_name(name), (0, 0))
    fresh = path.with_name(f".{path.name}-4567abcd")
    fresh.write_bytes(b"under way")
    merged([], tmp_path)
    assert {p.name for p in path.parent.iterdir()} == {*names[2:], fresh.name}


STOPPED = """
import os, pathlib, sys, time
from proxies_lib.runs import store

def stop(*files):
    print("stopped", flush=True)
    time.sleep(600)

os.replace = stop
store.merge([], pathlib.Path(sys.argv[1]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells which host a process is of")
def test_a_merge_removes_at_once_what_a_killed_one_left_and_not_what_a_living_one_writes(
    tmp_path, smoke
):
    """The killed one has written its pack, and stands before the rename."""
    records = fill(tmp_path, seeds(smoke, 3))

    def scratch():
        return sorted(tmp_path.glob("packs/.*"))

    command = [sys.executable, "-c", STOPPED, str(tmp_path)]
    with subprocess.Popen(command, cwd=paths.root(), stdout=subprocess.PIPE, text=True) as writer:
        try:
            assert writer.stdout.readline() == "stopped\n"
            merged([], tmp_path)
            (left,) = scratch()  # it lives
        finally:
            writer.kill()
    of_another_host = left.with_name(re.sub("-[0-9a-f]{12}-", f"-{'0' * 12}-", left.name))
    of_another_host.write_bytes(left.read_bytes())
    merged([], tmp_path)
    assert scratch() == [of_another_host] != [left]
    os.utime(of_another_host, (0, 0))
    merged([], tmp_path)
    assert not scratch()
    assert_same(tmp_path, records)


def exported(folder, runs, out):
    tables.export(*tables.table(find(runs, folder), folder), out, folder)


DAMAGE = {
    "nothing": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "text": lambda content: b"<<<<<<< HEAD\n",
    "another table": lambda content: pd.DataFrame({"x": [1]}).to_parquet(),
    "flipped": lambda content: content[:40] + bytes([content[40] ^ 1]) + content[41:],
}


@pytest.mark.parametrize("name", ("runs", "curves"))
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_export_is_rebuilt_from_the_store(tmp_path, smoke, capsys, name, damage):
    """Also the part of runs that are not exported this time."""
    runs, folder, out = seeds(smoke, 4), tmp_path / "store", tmp_path / "label"
    fill(folder, runs)
    exported(folder, runs, out)
    before = tables.exported(out)
    path = out / f"{name}.parquet"
    path.write_bytes(damage(path.read_bytes()))
    assert {f.layer for f in find(runs, tmp_path / "empty", out)} == {""}
    line = f"table: label/{name}.parquet is damaged; `proxies run` writes it anew from the store\n"
    assert capsys.readouterr().out == line
    exported(folder, runs[:1], out)
    assert capsys.readouterr().out == line
    for frame, again in zip(before, tables.exported(out), strict=True):
        pd.testing.assert_frame_equal(frame, again[list(frame)])


def test_both_exports_damaged_are_written_anew(tmp_path, smoke):
    runs, out = seeds(smoke, 2), tmp_path / "out"
    fill(tmp_path / "store", runs)
    for name in ("runs", "curves"):
        paths.write_atomically(out / f"{name}.parquet", b"PAR1")
    exported(tmp_path / "store", runs, out)
    assert tables.exported(out)[0]["seed"].tolist() in ([0, 1], [1, 0])


def test_a_table_without_curves_is_read_and_a_damaged_one_is_one_line(
    tmp_path, smoke, monkeypatch, capsys
):
    fill(tmp_path / "store", [smoke])
    out = tmp_path / "papermill_runs" / "laptop"
    exported(tmp_path / "store", [smoke], out)
    monkeypatch.setenv("PROXIES_PAPERMILL_RUNS", str(tmp_path / "papermill_runs"))
    (out / "curves.parquet").unlink()
    assert cli.main(["table", "--scale", "laptop"]) == 0
    assert capsys.readouterr().out.count("\n") == 2
    assert not find([smoke], tmp_path / "empty", out)[0].layer, "figures need curves"
    (out / "runs.parquet").write_bytes(b"PAR1")
    assert cli.main(["table", "--scale", "laptop"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_exported_curves_hold_no_columns_of_other_runs(tmp_path, smoke):
    one, other = seeds(smoke, 2)
    store.write(tmp_path, meta(one), CURVES)
    store.write(tmp_path, meta(other), CURVES | {"update_norm/other": CURVES["update_norm/a"]})
    merged([], tmp_path)
    exported(tmp_path, [one], tmp_path / "out")
    assert set(tables.exported(tmp_path / "out")[1]) == {"key", "step", "update_norm/a"}
    exported(tmp_path, [other], tmp_path / "both")
    exported(tmp_path, [one], tmp_path / "both")
    runs, curves = tables.exported(tmp_path / "both")
    assert len(runs) == 2 and curves["update_norm/other"].notna().sum() == 2


@pytest.mark.parametrize("label", ("smoke", "laptop"))
def test_the_committed_tables_come_out_again_as_they_are(tmp_path, label):
    committed = pathlib.Path(__file__).parents[1] / "papermill_runs" / label
    runs, curves = (frame.copy() for frame in tables.exported(committed))
    for row in runs.to_dict("records"):
        identity = {name: row[name] for name in config.FIELDS}
        assert config.key_of(identity, row["fingerprint"]) == row["key"]
    tables.export(runs, curves, tmp_path)
    for frame, again in zip((runs, curves), tables.exported(tmp_path), strict=True):
        pd.testing.assert_frame_equal(frame, again)
