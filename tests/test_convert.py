"""`proxies convert`: what other tools read is what the store and the committed tables hold."""

import json
import pathlib
import struct
import sys

import numpy as np
import pandas as pd
import pytest

from proxies_lib import cli, config
from proxies_lib.config import UserError
from proxies_lib.runs import formats, parameters, tables
from proxies_lib.science import bisection, convert, notebooks, protocol

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def committed(tmp_path, monkeypatch):
    """A reader's world: the committed tables, and an empty store."""
    monkeypatch.setenv("PROXIES_PAPERMILL_RUNS", str(ROOT / "papermill_runs"))
    monkeypatch.setenv("PROXIES_STORE", str(tmp_path / "store"))


def wanted(section: str) -> convert.Wanted:
    study = protocol.study("smoke")
    return convert.wanted(notebooks.choose([section], study), study, {})


def converted(format: str, tmp_path, *arguments: str, section: str = "01") -> pathlib.Path:
    into = tmp_path / "deep" / format
    command = ["convert", format, section, "--scale", "smoke", "--into", str(into), *arguments]
    assert cli.main(command) == 0
    return into


def committed_curves(key: str) -> pd.DataFrame:
    curves = pd.read_parquet(ROOT / "papermill_runs/smoke/curves.parquet")
    return curves[curves["key"] == key].sort_values("step")


# ------------------------------------------------------------------ tables


def test_csv_and_parquet_hold_the_runs_of_the_section_and_their_curves(tmp_path, capsys):
    text, binary = (converted(name, tmp_path) for name in ("csv", "parquet"))
    runs = pd.read_csv(text / "runs.csv", keep_default_na=False)
    grid = notebooks.grid_of(notebooks.sections()["01"], notebooks.reading("smoke"))
    assert runs["method"].value_counts().to_dict() == {m: len(of) for m, of in grid.items()}
    assert set(config.FIELDS) <= set(runs) and runs["key"].is_unique
    assert "24 of 24 runs are stored, and now in" in capsys.readouterr().out
    key = runs["key"][0]
    curves = pd.read_csv(text / "curves.csv")
    assert set(curves["key"]) == set(runs["key"])
    mine = curves[curves["key"] == key].sort_values("step")
    for name, values in committed_curves(key).items():
        if name in mine and name != "key":
            np.testing.assert_allclose(mine[name], values, rtol=1e-6, err_msg=name)
    same = pd.read_parquet(binary / "runs.parquet")
    assert same["key"].tolist() == runs["key"].tolist()
    np.testing.assert_array_equal(same["final_loss"], runs["final_loss"])
    assert len(pd.read_parquet(binary / "curves.parquet")) == len(curves)
    assert sorted(p.name for p in text.parent.iterdir()) == ["csv", "parquet"]


def test_a_run_of_several_methods_has_a_row_in_each(tmp_path):
    runs = pd.read_csv(converted("csv", tmp_path, section="06") / "runs.csv")
    grid = notebooks.grid_of(notebooks.sections()["06"], notebooks.reading("smoke"))
    assert len(runs) == sum(len(set(of_method)) for of_method in grid.values())
    assert runs["key"].nunique() < len(runs)
    assert not runs.duplicated(["method", "key"]).any()


def test_held_out_and_bisected_runs_go_out_too(monkeypatch):
    assert max(found.run.model.n_params for found in wanted("07").found) == 12 * 24**2
    grid = notebooks.grids_of(notebooks.sections()["11"], notebooks.reading("smoke")).bisected
    first = wanted("11").methods
    assert set(grid) < set(first)  # it has a grid of its own, too
    bisected = {name: set(first[name]) - set(runs) for name, runs in grid.items()}
    assert any(bisected.values())  # some arms fail at an LR even there
    method, runs = next(iter(grid.items()))
    between = config.replace(runs[0], lr=0.02)
    rounds = bisection.Bisected(grid | {method: [*runs, between]}, None, None)
    monkeypatch.setattr(bisection, "rounds", lambda *_, **__: rounds)
    assert wanted("11").methods[method] == [*runs, between]

    def nothing_is_there(*_, **__):
        raise UserError("bisection: 3 of 3 runs are not stored")

    monkeypatch.setattr(bisection, "rounds", nothing_is_there)
    alone = wanted("11").methods
    assert {name: alone[name] for name in grid} == grid and set(alone) == set(first)


def test_only_the_asked_runs_and_curves(tmp_path):
    keys = [found.row_key for found in wanted("01").found][:2]
    begun = [keys[0][:12], *keys[1:], keys[0]]  # a beginning will do, and a run goes out once
    into = converted("csv", tmp_path, "--runs", *begun, "--curves", "loss", "max_attention_logit/")
    assert set(pd.read_csv(into / "runs.csv")["key"]) == set(keys)
    curves = pd.read_csv(into / "curves.csv")
    assert set(curves) == {"key", "step", "loss", "max_attention_logit/0"}


# ------------------------------------------------------------------ TensorBoard


def test_tensorboard_reads_every_curve_and_the_fields_of_each_run(tmp_path):
    pytest.importorskip("tensorboard", reason="needs the extra share")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata

    into = converted("tensorboard", tmp_path)
    folders = sorted(path.parent for path in into.rglob(formats.EVENTS))
    assert len(folders) == 24
    assert {f.parent.name for f in folders} == {"with-qk-layernorm", "without-qk-layernorm"}
    runs = pd.read_parquet(ROOT / "papermill_runs/smoke/runs.parquet").set_index("key")
    read = EventAccumulator(str(folders[0]), size_guidance={"scalars": 0}).Reload()
    content = read.summary_metadata[metadata.SESSION_START_INFO_TAG].plugin_data.content
    begun = metadata.parse_session_start_info_plugin_data(content)
    key, row = begun.group_name, runs.loc[begun.group_name]
    fields = {name: value for name, value in begun.hparams.items()}
    assert set(config.FIELDS) | {"method", "n_params"} == set(fields)
    assert fields["lr"].number_value == row["lr"]
    assert fields["qk_norm"].string_value == row["qk_norm"] == "per_head"
    assert folders[0].name == f"N{row['n_params']}_lr{row['lr']:g}_seed{row['seed']}_{key[:8]}"
    for name, values in committed_curves(key).drop(columns=["key", "step"]).items():
        if not values.isna().all():
            scalars = read.Scalars(name)
            np.testing.assert_allclose([s.value for s in scalars], values, rtol=1e-6, err_msg=name)
    assert [s.step for s in read.Scalars("loss")] == committed_curves(key)["step"].tolist()
    assert read.Scalars("loss")[-1].wall_time == pytest.approx(row["train_seconds"])
    (final,) = read.Scalars("final_loss")
    assert final.value == pytest.approx(row["final_loss"], nan_ok=True)
    assert metadata.SESSION_END_INFO_TAG in read.summary_metadata


def test_names_of_methods_become_folders_that_differ():
    names = ["λ = 0.1", "λ: 0.1", "a/b", "a b", "..", "κ"]
    slugs = [formats._slug(name) for name in names]
    assert len(set(slugs)) == len(names) and all(s and "/" not in s and s[0] != "." for s in slugs)
    assert formats._slug("with qk-layernorm") == "with-qk-layernorm"


# ------------------------------------------------------------------ Weights & Biases


def log_of(path: pathlib.Path) -> list[bytes]:
    """The records of a W&B file: a header of 7 bytes, then LevelDB's log format, checksums aside.

    A block has 32 KiB. A record is whole (1), or its first (2), middle (3) and last (4) parts.
    """
    content, records = path.read_bytes(), []
    assert content[:4] == b":W&B"
    place = 7
    while place < len(content):
        left = 2**15 - place % 2**15
        if left < 7:  # too little for the head of a part
            place += left
            continue
        length, kind = struct.unpack_from("<HB", content, place + 4)
        part = content[place + 7 : place + 7 + length]
        if kind in (1, 2):
            records.append(b"")
        records[-1] += part
        place += 7 + length
    return records


def test_wandb_runs_are_whole_and_nothing_is_sent(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="needs the extra share")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # whoever asked it would fail
    keys = [found.row_key for found in wanted("01").found][:2]
    into = converted("wandb", tmp_path, "--runs", *keys)
    files = sorted(path for path in into.rglob("*") if not path.is_dir())
    assert len(files) == 2 and all(path.match("offline-run-*/run-*.wandb") for path in files)
    assert not (tmp_path / "home").exists() and b"proxies_lib" not in files[0].read_bytes()
    records = [wandb_internal_pb2.Record.FromString(text) for text in log_of(files[0])]
    (begun,) = [r.run for r in records if r.WhichOneof("record_type") == "run"]
    settings = {item.key: json.loads(item.value_json) for item in begun.config.update}
    assert begun.run_group == settings["method"] and settings["vocab_size"] == 64
    key = begun.run_id[:24]
    assert key in keys
    history = [r.history for r in records if r.WhichOneof("record_type") == "history"]
    logged = [
        {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in h.item} for h in history
    ]
    losses = [entry["loss"] for entry in logged]
    np.testing.assert_allclose(losses, committed_curves(key)["loss"], rtol=1e-6)
    assert [h.step.num for h in history] == committed_curves(key)["step"].tolist()


# ------------------------------------------------------------------ parameters


def test_parameters_of_a_run_by_its_key(tmp_path, capsys):
    pytest.importorskip("safetensors", reason="needs the extra share")
    key = wanted("01").found[0].row_key
    into = converted("safetensors", tmp_path, "--runs", key)
    loaded = parameters.load(into / f"{key}.safetensors")
    assert loaded.key == key and loaded.run == wanted("01").found[0].run
    assert "the parameters of 1 runs are in" in capsys.readouterr().out


def test_a_run_of_another_corpus_is_not_trained_again_under_its_key(tmp_path):
    study = protocol.study("laptop")
    chosen = convert.wanted(notebooks.choose(["03"], study), study, {})
    found = chosen.found[0]
    if found.layer != tables.Layer.COMMITTED_OTHER_CORPUS:
        pytest.skip("this Python's standard library is the committed corpus")
    with pytest.raises(UserError, match="was trained on another corpus than this machine's"):
        convert.convert("safetensors", chosen, tmp_path / "new", [found.row_key])
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------ refused


@pytest.mark.parametrize(
    "arguments, words",
    [
        ("png 01", "format='png': must be one of csv, parquet, tensorboard, wandb, safetensors"),
        ("csv 99", "section='99': must be one of 00, 01"),
        ("csv 01 --runs xyz", "runs='xyz': begins no key of a stored run of these sections"),
        ("csv 01 --runs 0 1 2 3 4 5 6 7 8 9", "begins several keys: "),
        ("csv 01 --curves nosuch", "curves='nosuch': names no curve of these runs"),
        ("safetensors 01", "name the keys of a few with --runs"),
        ("csv 01 --seeds 77", "none of these runs is stored; train them first"),
        ("csv 01 --set lr=1", "lr=1: is swept by the notebooks"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(tmp_path, capsys, arguments, words):
    command = [*arguments.split(), "--scale", "smoke", "--into", str(tmp_path / "out" / "new")]
    assert cli.main(["convert", *command]) == 2
    error = capsys.readouterr().err
    assert error.startswith("proxies: ") and error.count("\n") == 1 and words in error
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_taken_stays_as_it_is(tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    for name in ("mine", "link", "mine/file"):
        command = ["convert", "csv", "01", "--scale", "smoke", "--into", str(tmp_path / name)]
        assert cli.main(command) == 2, name
        assert "into=" in capsys.readouterr().err
    assert (tmp_path / "mine/file").read_text() == "kept"
    (tmp_path / "mine/file").unlink()
    command = ["convert", "csv", "01", "--scale", "smoke", "--into", str(tmp_path / "mine")]
    assert cli.main(command) == 0 and (tmp_path / "mine/runs.csv").exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), MemoryError()])
def test_what_fails_half_way_leaves_nothing(tmp_path, monkeypatch, error):
    def fill(runs, curves, folder):
        (folder / "runs.csv").write_text("half")
        raise error

    monkeypatch.setitem(formats.FORMATS, "csv", fill)
    expected = UserError if isinstance(error, OSError) else MemoryError
    with pytest.raises(expected):
        convert.convert("csv", wanted("01"), tmp_path / "out" / "new")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("format", ["tensorboard", "wandb"])
def test_a_library_that_is_not_installed_is_named(tmp_path, monkeypatch, capsys, format):
    monkeypatch.setitem(sys.modules, format, None)
    command = ["convert", format, "01", "--scale", "smoke", "--into", str(tmp_path / "new")]
    assert cli.main(command) == 2
    assert f"{format}: is not installed; pip install" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
