import numpy as np
import pandas as pd
import pytest

from proxies_lib import config, store
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
        folder = tmp_path / fingerprint / str(run.hparams.seed)
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
