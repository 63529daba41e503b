"""Checkpoints: resumed runs are the runs, bit for bit on equal devices; SIGTERM loses nothing."""

import errno
import json
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from test_layout import TOLERANCE, environment

from proxies_lib import config, paths
from proxies_lib.config import replace
from proxies_lib.layout import Layout
from proxies_lib.runs import checkpoint, datasets, engines, sweep, tables
from proxies_lib.science import notebooks, protocol
from proxies_lib.train import Trainer


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PROXIES_CHECKPOINTS", str(tmp_path / "checkpoints"))
    return tmp_path / "checkpoints"


@pytest.fixture
def often(monkeypatch):
    """A checkpoint after every chunk."""
    monkeypatch.setattr(checkpoint, "FLOPS_BETWEEN", {"cpu": 1.0})


def same(a: dict, b: dict) -> bool:
    scalars = all(a[name] == b[name] for name in ("final_loss", "init_loss", "diverged_step"))
    return scalars and all(
        np.array_equal(a["curves"][k], b["curves"][k], equal_nan=True) for k in a["curves"]
    )


def test_a_folder_of_checkpoints_may_be_named_from_where_one_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PROXIES_CHECKPOINTS", "kept/here")
    assert str(checkpoint.root()) == str(tmp_path / "kept/here"), "Orbax takes whole paths only"
    monkeypatch.setenv("PROXIES_CHECKPOINTS", "gs://bucket/here")
    assert str(checkpoint.root()) == "gs://bucket/here"


@pytest.mark.parametrize("lanes", (0, 4))
def test_a_run_killed_anywhere_resumes_bit_for_bit(smoke, often, folder, monkeypatch, lanes):
    runs = [replace(smoke, seed=seed) for seed in range(3 if lanes else 1)]
    keys = [str(run.order.seed) for run in runs]
    corpus = datasets.open_dataset(smoke.data, smoke.model.vocab_size)
    trainer = Trainer(*smoke.program, Layout(lanes=lanes))
    whole = trainer.train(runs, corpus)
    after, chunks = checkpoint.Group.after, len(whole[0]["curves"]["step"])
    assert chunks > 3

    def die_at_the_third(group, step, *rest):
        after(group, step, *rest)
        if step == 3 * smoke.train.log_every:
            group.manager.wait_until_finished()
            raise MemoryError

    monkeypatch.setattr(checkpoint.Group, "after", die_at_the_third)
    with pytest.raises(MemoryError):
        list(engines.train_all(trainer, runs, corpus, keys))
    (group,) = checkpoint.pending(keys)
    assert group["keys"] == keys and Layout(**group["layout"]) == trainer.layout
    steps = sorted(int(path.name) for path in folder.glob("*/steps/*"))
    assert steps == [2 * smoke.train.log_every, 3 * smoke.train.log_every], "the last two are kept"
    seen = []
    monkeypatch.setattr(checkpoint.Group, "after", lambda group, step, *rest: seen.append(step))
    resumed = [result for _, result in engines.train_all(trainer, runs, corpus, keys)]
    assert seen[0] == 4 * smoke.train.log_every
    assert all(same(a, b) for a, b in zip(whole, resumed, strict=True))
    assert not checkpoint.pending(keys) and not list(folder.iterdir()), (
        "a finished group leaves nothing"
    )


def test_rewinding_and_skipping_is_a_run_that_never_saw_the_batches(smoke, often, monkeypatch):
    """PaLM's remedy: from a checkpoint before the spike, the batches that made it left out."""
    run = replace(smoke, rare_batch=17, rare_batches=3, histograms=8)
    skipping = replace(run, skip_step=15, skip_batches=5)
    corpus = datasets.open_dataset(run.data, run.model.vocab_size)
    trainer = Trainer(*run.program)
    group = checkpoint.Group([run], ["key"], trainer.layout)
    monkeypatch.setattr(checkpoint, "KEEP", 99)
    spiked = trainer.train([run], corpus, group)[0]
    begin = group.restore(*trainer.abstract(), step=15)
    assert len(begin[2]) == 3 and group.restore(*trainer.abstract(), step=16) is None
    (rewound,) = trainer.train([skipping], corpus, begin=begin)
    (never,) = trainer.train([skipping], corpus)
    assert same(rewound, never) and not same(rewound, spiked)
    assert np.array_equal(rewound["curves"]["loss"][:3], spiked["curves"]["loss"][:3])


def test_runs_shorter_than_an_interval_leave_nothing(smoke, folder):
    corpus = datasets.open_dataset(smoke.data, smoke.model.vocab_size)
    list(engines.train_all(Trainer(*smoke.program), [smoke], corpus, ["key"]))
    assert not folder.exists()


def test_intervals_follow_the_flops_of_a_chunk(monkeypatch):
    big = replace(protocol.scales()["paper"].base, d_model=4096, n_layers=24)
    monkeypatch.setattr("jax.default_backend", lambda: "tpu")
    one, more = (checkpoint.interval(big, Layout(data=n)) for n in (16, 64))
    assert one % big.train.log_every == 0 and more == pytest.approx(4 * one, rel=0.2)
    assert one * big.flops / big.hparams.steps == pytest.approx(16e17, rel=0.2)


def test_a_layout_moves_to_other_devices(smoke):
    batch = smoke.train.batch_size
    assert batch % 4 == 0
    assert Layout(lanes=16, run=8).on(2, smoke.train) == Layout(lanes=16, run=2)
    assert Layout(lanes=16, run=1).on(6, smoke.train) == Layout(lanes=16, run=2)
    for devices in (1, 2, 3, 4):
        moved = Layout(data=2, scan=True, accumulate=2).on(devices, smoke.train)
        moved.check(*smoke.program)
        assert moved.scan and moved.data <= devices and moved.data * moved.accumulate >= 4
    same = Layout(data=4, accumulate=1)
    assert same.on(4, smoke.train) == same


SHARDED = """
import json, sys, jax
from proxies_lib import config
from proxies_lib.layout import Layout
from proxies_lib.runs import checkpoint, datasets, engines
from proxies_lib.train import Trainer
run = config.from_flat(json.loads(sys.argv[1]))
corpus = datasets.open_dataset("synthetic", run.model.vocab_size)
trainers, stop, kept = {}, 2 * run.train.log_every, checkpoint.Group.after

def train(devices, after=kept):
    checkpoint.Group.after = after
    layout = Layout(data=8, scan=True)
    for group in checkpoint.pending(["key"]):
        layout = Layout(**group["layout"]).on(devices, run.train)
    if layout not in trainers:
        trainers[layout] = Trainer(*run.program, layout, jax.devices())
    ((_, result),) = engines.train_all(trainers[layout], [run], corpus, ["key"])
    curve = result["curves"]["loss"].tolist()
    return {"data": layout.data, "loss": result["final_loss"], "curve": curve}

def die(group, step, *rest):
    group.every = stop
    kept(group, step, *rest)
    if step == stop:
        raise MemoryError

print(json.dumps(train(8)))
for devices in (8, 4, 1):
    try:
        train(8, die)
    except MemoryError:
        print(json.dumps(train(devices)))
"""


def test_a_sharded_run_is_restored_on_other_devices(smoke, folder):
    run = replace(smoke, d_model=16, batch_size=8)
    command = [sys.executable, "-c", SHARDED, json.dumps(config.flat(run))]
    done = subprocess.run(command, env=environment(8), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    whole, *resumed = map(json.loads, done.stdout.splitlines())
    assert [r["data"] for r in resumed] == [8, 4, 1]
    assert resumed[0] == whole, "bit for bit on the same topology"
    for each in resumed:
        assert each["loss"] == pytest.approx(whole["loss"], rel=TOLERANCE)
        assert each["curve"][:2] == whole["curve"][:2] and len(each["curve"]) == len(whole["curve"])


STOPPED = """
import sys
from proxies_lib import cli
from proxies_lib.runs import checkpoint
checkpoint.FLOPS_BETWEEN = {"cpu": 1.0}
sys.exit(cli.main("run 00 --scale smoke --engine lanes --seeds 5 --set steps=300".split()))
"""


def test_sigterm_loses_nothing(tmp_path, folder, monkeypatch):
    """The command stops with a checkpoint and status 143; the next training of these runs goes on
    from there."""
    for name in ("store", "figures", "papermill_runs"):
        monkeypatch.setenv(f"PROXIES_{name.upper()}", str(tmp_path / name))
    stopped = subprocess.Popen(
        [sys.executable, "-c", STOPPED], stderr=subprocess.PIPE, text=True, cwd=paths.root()
    )
    while not list(folder.glob("*/steps/[0-9]*")) and stopped.poll() is None:
        time.sleep(0.05)
    stopped.send_signal(signal.SIGTERM)
    err = stopped.communicate(timeout=120)[1]
    assert stopped.returncode == 143 and "stopped by SIGTERM at step" in err.splitlines()[-1], err
    (group,) = [json.loads(path.read_text()) for path in folder.glob("*/group.json")]
    step = max(int(path.name) for path in folder.glob("*/steps/*"))
    assert 0 < step < 300
    parameters = {
        "scale": "smoke",
        "train": True,
        "publish": False,
        "overrides": {"seeds": [5], "steps": 300},
    }
    runs, _ = notebooks.runs_of(notebooks.sections()["00"], parameters)
    begun, texts = [], []
    restore = checkpoint.Group.restore

    def spy(*arguments):
        found = restore(*arguments)
        begun.append(found and len(found[2]))
        return found

    monkeypatch.setattr(checkpoint.Group, "restore", spy)
    for place in ("store", "whole"):
        sweep.run(sweep.plan(runs, tmp_path / place), engine="lanes")
        done = sweep.plan(runs, tmp_path / place)
        assert not done.missing
        table, curves = tables.table(list(done.found), tmp_path / place)
        texts.append((table.drop(columns="train_seconds").to_csv(), curves.to_csv()))
    assert set(group["keys"]) == {f.key for f in done.found} and not list(folder.iterdir())
    assert begun == [step // runs[0].train.log_every, None]
    assert texts[0] == texts[1]


def group_of(run, keys=("a", "b"), **layout):
    """A group with its file on the disk, and that file."""
    group = checkpoint.Group([run], list(keys), Layout(**{"lanes": 4} | layout))
    group._open()
    group.close(finished=False)
    return group, group.folder / "group.json"


def edited(**changes):
    return lambda text: json.dumps(json.loads(text) | changes)


BROKEN_GROUPS = {
    "nothing": lambda text: "",
    "half": lambda text: text[: len(text) // 2],
    "a list": lambda text: "[]",
    "deep": lambda text: "[" * 100_000,
    "no keys": edited(keys=[]),
    "other keys": edited(keys=["c"]),
    "keys of a wrong type": edited(keys=3),
    "an unknown field": edited(layout={"lanes": 4, "tensor": 2}, digest=None),
    "a wrong type": edited(layout={"lanes": "4"}, digest=None),
    "a wrong value": edited(layout={"run": 0}, digest=None),
    "another digit": lambda text: text.replace('"lanes": 4', '"lanes": 8'),
}


@pytest.mark.parametrize("damage", BROKEN_GROUPS.values(), ids=BROKEN_GROUPS)
def test_a_group_that_cannot_be_read_is_a_line_and_blocks_nothing(smoke, damage, capsys):
    whole, _ = group_of(smoke)
    broken, file = group_of(smoke, ["c", "d"])
    file.write_text(damage(file.read_text()))
    (found,) = checkpoint.pending(["a", "b", "c", "d"])
    assert found["keys"] == ["a", "b"] and whole.folder.exists()
    line = f"group {broken.folder.name} cannot be read; its runs start from the beginning"
    assert capsys.readouterr().out == f"checkpoint: {line}\n"


def test_a_group_file_of_an_older_version_is_read(smoke):
    _, file = group_of(smoke)
    group = json.loads(file.read_text())
    group.pop("digest", None)
    del group["layout"]["points"]
    file.write_text(json.dumps(group))
    assert checkpoint.pending(["a", "b"]) == [group]


def test_a_run_is_in_one_pending_group_at_most(smoke):
    group_of(smoke, ["a", "b"])
    group_of(smoke, ["b", "c"])
    group_of(smoke, ["d"])
    keys = [key for group in checkpoint.pending("abcd") for key in group["keys"]]
    assert len(keys) == len(set(keys)) == 3 and "d" in keys


def test_a_folder_of_checkpoints_that_is_a_file_holds_none(folder):
    folder.write_text("")
    assert checkpoint.pending(["a"]) == []


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def trained():
    """A trainer of lanes, runs, corpus, and the results of an undisturbed training."""
    runs = [replace(protocol.scales()["smoke"].base, seed=seed) for seed in range(2)]
    corpus = datasets.open_dataset(runs[0].data, runs[0].model.vocab_size)
    trainer = Trainer(*runs[0].program, Layout(lanes=2))
    return trainer, runs, corpus, trainer.train(runs, corpus)


def killed_after_three(trained, monkeypatch):
    """Train until three chunks are saved; the folders of the two steps that are kept."""
    trainer, runs, corpus, _ = trained
    after = checkpoint.Group.after

    def die(group, step, *rest):
        after(group, step, *rest)
        if step == 3 * runs[0].train.log_every:
            group.manager.wait_until_finished()
            raise Killed

    with monkeypatch.context() as dying, pytest.raises(Killed):
        dying.setattr(checkpoint.Group, "after", die)
        list(engines.train_all(trainer, runs, corpus, ["a", "b"]))
    steps = pathlib.Path(checkpoint.root()).glob("*/steps/*")
    return sorted(steps, key=lambda path: int(path.name))


def goes_on(trained, monkeypatch) -> int:
    """Train to the end; the chunks it began with. Results must be the undisturbed training's."""
    trainer, runs, corpus, whole = trained
    begun, restore = [], checkpoint.Group.restore

    def spy(*arguments):
        found = restore(*arguments)
        begun.append(len(found[2]) if found else 0)
        return found

    with monkeypatch.context() as spying:
        spying.setattr(checkpoint.Group, "restore", spy)
        results = [result for _, result in engines.train_all(trainer, runs, corpus, ["a", "b"])]
    assert all(same(a, b) for a, b in zip(whole, results, strict=True))
    assert not list(checkpoint.root().iterdir())
    return begun[0]


def largest(step):
    """The file of a step that holds the arrays."""
    return max((p for p in step.rglob("*") if p.is_file()), key=lambda path: path.stat().st_size)


def cut(step):
    for path in step.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:20])


def flip(step):
    content = bytearray(largest(step).read_bytes())
    for part in range(1, 9):  # a single one may hit a byte that means nothing
        content[len(content) * part // 9] ^= 4
    largest(step).write_bytes(content)


BROKEN_STEPS = {
    "cut": cut,
    "empty": lambda step: largest(step).write_bytes(b""),
    "without arrays": lambda step: largest(step).unlink(),
    "without anything": lambda step: [shutil.rmtree(step), step.mkdir()],
    "flipped": flip,
}


@pytest.mark.parametrize("damage", BROKEN_STEPS.values(), ids=BROKEN_STEPS)
def test_a_damaged_last_step_is_a_line_and_an_earlier_one_is_taken(
    trained, often, monkeypatch, capfd, damage
):
    _, last = killed_after_three(trained, monkeypatch)
    damage(last)
    capfd.readouterr()
    assert goes_on(trained, monkeypatch) == 2
    out, err = capfd.readouterr()
    group = last.parent.parent.name
    assert out == f"checkpoint: step {last.name} of group {group} is damaged and passed over\n"
    assert not err


def test_with_every_step_damaged_training_starts_from_the_beginning(
    trained, often, monkeypatch, capsys
):
    for step in killed_after_three(trained, monkeypatch):
        flip(step)
    assert goes_on(trained, monkeypatch) == 0
    assert capsys.readouterr().out.count("is damaged and passed over") == 2


def test_a_checkpoint_outlives_its_damaged_group_file(trained, often, monkeypatch):
    killed_after_three(trained, monkeypatch)
    (file,) = checkpoint.root().glob("*/group.json")
    file.write_text("")
    assert goes_on(trained, monkeypatch) == 3


def test_a_checkpoint_without_sums_is_read(trained, often, monkeypatch, capsys):
    with monkeypatch.context() as older:
        older.setattr(checkpoint, "_sums", lambda tree: [])
        killed_after_three(trained, monkeypatch)
    assert goes_on(trained, monkeypatch) == 3 and not capsys.readouterr().out


def test_a_full_disk_ends_no_training(trained, often, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(paths, "write_atomically", full)
        goes_on(trained, monkeypatch)
    (line,) = capsys.readouterr().out.splitlines()
    assert "was not written ([Errno 28] No space left on device); training goes on" in line


def test_sums_are_of_words_however_an_array_lies():
    tree = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.int32(-1)}
    assert checkpoint._sums(tree) == checkpoint._sums(jax.tree.map(jax.numpy.asarray, tree))
    assert checkpoint._sums(tree) == [
        int(np.arange(6, dtype=np.float32).view(np.uint32).sum(dtype=np.uint64) % 2**32),
        2**32 - 1,
    ]
