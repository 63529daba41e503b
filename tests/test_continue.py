"""`--continue`: what the committed table of a label has need not be trained."""

import dataclasses
import os
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from proxies_lib import cli, config, paths
from proxies_lib.config import UserError, grid, replace
from proxies_lib.runs import datasets, provenance, store, sweep, tables
from proxies_lib.science import notebooks, outputs, protocol, report

OWN = {"z_loss": 0.5}  # a protocol of one's own; an input of the programs that others compiled
PARAMETERS = {"scale": "smoke", "train": True, "publish": True, "overrides": {}}


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Folders of its own, and what commands leave in the environment taken back."""
    for kind in ("store", "figures", "papermill_runs"):
        monkeypatch.setenv(f"PROXIES_{kind.upper()}", str(tmp_path / kind))
    for variable in (outputs.CONTINUE, outputs.PUBLISH):
        monkeypatch.setenv(variable, "")
    return tmp_path


def call(arguments: str):
    command = [sys.executable, "-m", "proxies_lib.cli", *arguments.split()]
    done = subprocess.run(command, capture_output=True, text=True, cwd=paths.root())
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def records(world) -> set[str]:
    return {path.stem for path in (world / "store").glob("??/*.npz")}


def of_keys(frame: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """The rows of `frame` whose keys `other` has, with the columns of `other`."""
    return frame[frame["key"].isin(other["key"])][list(other)].reset_index(drop=True)


def fingerprint(run) -> str:
    return datasets.open_dataset(run.data, run.model.vocab_size).fingerprint


def commit_table(world, runs: list, commit: str = "abc"):
    """A table of runs that nobody trained, exported where committed ones of `smoke` stand."""
    for run in runs:
        numbers = {"final_loss": 1.5, "init_loss": 4.0, "train_seconds": 1.0}
        meta = {
            "key": config.key(run, fingerprint(run)),
            "config": config.flat(run),
            "result": numbers | {"diverged": False, "diverged_step": -1},
            "provenance": {"fingerprint": fingerprint(run), "commit": commit},
        }
        loss = np.full(3, 1.5, np.float32)
        store.write(world / "elsewhere", meta, {"step": np.arange(3), "loss": loss})
    found = locate(runs, world / "elsewhere", None)
    tables.export(*tables.table(found, world / "elsewhere"), world / "papermill_runs/smoke")


def locate(runs, folder, layer, known=None, say=print):
    known = known or fingerprint(runs[0])
    fingerprints = {(runs[0].data, runs[0].model.vocab_size): known}
    return tables.locate(runs, fingerprints, folder, layer, say, exact=True)


def test_a_section_that_was_stopped_half_way_is_exported_as_far_as_it_came(world, capsys):
    assert cli.main(["export", "01", "--scale", "smoke"]) == 2
    assert "has none of these runs" in capsys.readouterr().err
    runs, _ = notebooks.runs_of(notebooks.sections()["01"], PARAMETERS)
    short = [run for run in runs if run.model.d_model == 8][:3]
    sweep.run(sweep.plan(short, world / "store"), workers=1, quiet=True)
    assert cli.main(["export", "01", "--scale", "smoke"]) == 0
    assert f"exported 3 of {len(runs)} runs" in capsys.readouterr().out
    shutil.rmtree(world / "store")
    assert cli.main(["plan", "01", "--scale", "smoke", "--continue"]) == 0
    assert f"3 stored, {len(runs) - 3} to train" in capsys.readouterr().out


def test_a_section_goes_on_from_the_committed_table_on_a_machine_without_its_store(world, capsys):
    """Held-out runs count as known, too, where section 07 writes its prediction."""

    def plan(arguments: str) -> str:
        assert cli.main(["plan", *arguments.split()]) == 0
        return capsys.readouterr().out

    overrides = OWN | {"seeds": [0], "label": "pieces"}
    path = notebooks.sections()["07"]
    parameters = PARAMETERS | {"overrides": overrides}
    runs, held_out = notebooks.runs_of(path, parameters)
    first = [run for run in runs if run.model.qk_norm == "none"] + held_out
    sweep.run(sweep.plan(first), workers=2, engine="processes", quiet=True)
    label = world / "papermill_runs/smoke-pieces"
    tables.export(*tables.table(list(sweep.plan(first).found), world / "store"), label)
    before, trained = tables.exported(label), records(world)
    shutil.rmtree(world / "store")

    arguments = "07 --scale smoke --label pieces --seeds 0"
    arguments += "".join(f" --set {name}={value}" for name, value in OWN.items())
    assert "13 distinct, 0 stored, 13 to train" in plan(arguments)
    planned = plan(f"{arguments} --continue")
    assert "6 stored, 7 to train" in planned and "in table" in planned
    assert "6 stored, 7 to train" in call(f"run {arguments} --continue")
    assert len(records(world)) == 7 and not records(world) & trained
    after = tables.exported(label)
    assert set(after[0]["key"]) == set(after[1]["key"]) == trained | records(world)
    pd.testing.assert_frame_equal(before[0], of_keys(after[0], before[0]))
    # Of each run's curves those stay that a section reads, and the loss.
    read = notebooks.curves_read(list(notebooks.sections().values()), parameters)
    of_key = {config.key(run, fingerprint(run)): read[run] for run in first}
    thin = tables.only_read(before[1], of_key)
    assert "max_attention_logit/0" in thin and thin.shape[1] < before[1].shape[1]
    pd.testing.assert_frame_equal(thin, of_keys(after[1], thin))
    assert set(pd.read_csv(label / "prediction.csv")["held_out_stored"]) == {len(held_out)} == {3}


def test_a_seed_more_trains_only_its_own_runs_and_notebooks_read_both(world, monkeypatch, capsys):
    study = protocol.study("smoke", OWN, train=True)
    study = dataclasses.replace(study, overrides=())  # the label `smoke` itself
    one, two = (
        {"a method": grid(study.base, {"lr": study.lrs, "seed": seeds})} for seeds in ((0,), (0, 1))
    )
    label = world / "papermill_runs/smoke"
    tables.export(*report.collect(one, study), label)
    before = tables.exported(label)
    shutil.rmtree(world / "store")
    capsys.readouterr()
    assert report.count_stored(two["a method"]) == 0
    monkeypatch.setenv(outputs.CONTINUE, "smoke")
    assert report.count_stored(two["a method"]) == 3
    runs, curves = report.collect(two, study)
    assert "6 distinct, 3 stored, 3 to train" in capsys.readouterr().out
    assert len(records(world)) == 3 and report.count_stored(two["a method"]) == 6
    assert runs["seed"].tolist() == [0, 1] * 3, "in the order of the grid, wherever they come from"
    tables.export(runs, curves, label)
    for frame, again in zip(before, tables.exported(label), strict=True):
        pd.testing.assert_frame_equal(frame, of_keys(again, frame))

    monkeypatch.setenv(outputs.CONTINUE, "")
    whole, curves_of_whole = report.collect(two, study)
    assert len(records(world)) == 6, "without it training never looks at a committed table"
    assert runs["final_loss"].tolist() == whole["final_loss"].tolist()
    by = ["key", "step"]
    both = curves.merge(curves_of_whole, on=by, suffixes=("", "_whole"), validate="1:1")
    assert len(both) == len(curves) == len(curves_of_whole)
    np.testing.assert_allclose(both["loss"], both["loss_whole"], rtol=1.3e-4)


def test_a_run_on_another_corpus_is_not_taken_for_the_same(world, smoke):
    runs, said = grid(smoke, {"seed": (0, 1, 2)}), []
    commit_table(world, runs[:2])
    label, empty = world / "papermill_runs/smoke", world / "store"
    assert [f.layer for f in locate(runs, empty, label)] == ["table", "table", ""]
    found = locate(runs, empty, label, known="another", say=said.append)
    assert [f.layer for f in found] == [""] * 3
    assert len(said) == 1 and said[0].startswith("table: 2 of these runs are there with another")
    assert locate(runs, empty, world / "none")[0].layer == "", "nothing is committed yet"


def without_curves(label):
    (label / "curves.parquet").unlink()


def cut(label):
    path = label / "runs.parquet"
    path.write_bytes(path.read_bytes()[:-100])


def conflict(label):
    (label / "curves.parquet").write_bytes(b"<<<<<<< HEAD\n")


def written_again(change):
    def damage(label):
        frame = pd.read_parquet(label / "runs.parquet")
        change(frame).to_parquet(label / "runs.parquet")

    return damage


DAMAGE = {
    "smoke/curves.parquet is missing": without_curves,
    "smoke/runs.parquet is damaged": cut,
    "smoke/curves.parquet is damaged": conflict,
    "has another run under the key": written_again(lambda rows: rows.assign(lr=0.5)),
    "has another run under the key .*": written_again(lambda rows: pd.concat([rows, rows])),
    "is not as it was exported": written_again(lambda rows: rows.drop(columns="lr")),
    "is not as it was exported.*": written_again(lambda rows: rows.drop(columns="fingerprint")),
}


@pytest.mark.parametrize("line", DAMAGE)
def test_a_damaged_table_is_one_line_and_nothing_is_trained(world, smoke, capsys, line):
    commit_table(world, [replace(smoke, qk_norm="none", lr=1e-2)])
    DAMAGE[line](world / "papermill_runs/smoke")
    before = sorted(world.rglob("*"))
    for command in ("plan", "run"):
        assert cli.main([command, "01", "--scale", "smoke", "--continue"]) == 2
        out, err = capsys.readouterr()
        assert not out and err.count("\n") == 1 and "leave out --continue" in err
        with pytest.raises(UserError, match=line):
            raise UserError(err)
    assert sorted(world.rglob("*")) == before


def test_rows_by_code_that_is_not_committed_are_not_published(world, monkeypatch, capsys):
    runs, _ = notebooks.runs_of(notebooks.sections()["01"], PARAMETERS)
    commit_table(world, list(dict.fromkeys(runs)), "abc" + provenance.CHANGED)
    monkeypatch.setattr(provenance, "commit", lambda: "abc")
    command = ["run", "01", "--scale", "smoke", "--continue", "--publish"]
    assert cli.main(command) == 2
    assert "publish: 24 of 24 runs were trained by code that is not" in capsys.readouterr().err
    assert not records(world) and not list(world.rglob("*.ipynb"))


def test_an_environment_that_names_no_label_is_one_line(world, monkeypatch):
    assert outputs.continued() is None
    monkeypatch.setenv(outputs.CONTINUE, os.pardir)
    with pytest.raises(UserError, match=r"PROXIES_CONTINUE='\.\.': must be 1 to 100 letters"):
        outputs.continued()
