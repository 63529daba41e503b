"""Fifty commands killed at random moments; each, run again to its end, leaves what one never
killed leaves."""

import json
import random
import shutil
import signal

import pytest
from worlds import SEED, TARGETS, World, digest, kill

from proxies_lib import prepared

KILLS = (  # target, who is killed, by which signal, how often
    ("plan", "command", "SIGKILL", 3),
    ("plan", "command", "SIGTERM", 1),
    ("training", "command", "SIGKILL", 4),
    ("training", "worker", "SIGKILL", 3),
    ("training", "all", "SIGKILL", 2),
    ("training", "command", "SIGTERM", 2),
    ("training, nothing compiled", "command", "SIGKILL", 2),
    ("training, nothing compiled", "all", "SIGKILL", 2),
    ("publishing", "command", "SIGKILL", 3),
    ("publishing", "kernel", "SIGKILL", 4),
    ("publishing", "all", "SIGKILL", 2),
    ("publishing", "command", "SIGTERM", 1),
    ("predicting", "kernel", "SIGKILL", 2),
    ("predicting", "command", "SIGKILL", 2),
    ("merge", "command", "SIGKILL", 5),
    ("data prepare", "command", "SIGKILL", 4),
    ("data prepare", "command", "SIGTERM", 2),
    ("lanes with checkpoints", "command", "SIGKILL", 4),
    ("lanes with checkpoints", "command", "SIGTERM", 2),
)
CASES = [(target, who, name, i) for target, who, name, times in KILLS for i in range(times)]
assert len(CASES) == 50
TRAINING = ("training", "training, nothing compiled", "predicting", "lanes with checkpoints")


@pytest.mark.parametrize(
    ("name", "who", "signal_name", "number"), CASES, ids=lambda value: str(value)
)
def test_a_killed_command_run_again_leaves_what_one_never_killed_leaves(
    references, tmp_path, ledger, name, who, signal_name, number
):
    target, (expected, seconds) = TARGETS[name], references.of(name)
    draw = random.Random(f"{SEED} {name} {who} {signal_name} {number}")
    for attempt in range(5):  # a command that ends before it is killed is not counted
        world = World(tmp_path / f"world-{attempt}")
        world.folder.mkdir()
        target.before(world, references.first)
        there_before = world.records()
        command = target.start(world)
        at = kill(
            command,
            who,
            signal.Signals[signal_name],
            seconds * draw.uniform(*target.window) * 0.85**attempt,
        )
        ended = command.end()
        if at is not None and ended.status != 0:
            break
        shutil.rmtree(world.folder)
    else:
        pytest.fail("the command ended each time before it could be killed")

    outlived = world.wait_until_empty()
    finished = world.records()
    kept = {"kept": len(finished.keys() - there_before.keys())} if name in TRAINING else {}
    ledger(name, f"{signal_name} of {who}", at=at, **kept)
    assert not outlived, "processes outlive their command"
    assert (
        all(finished.get(path) == written for path, written in there_before.items())
        or name == "merge"
    )
    _ended_as_it_should(ended, who, signal_name)
    if name == "data prepare":
        _one_dataset_or_the_other_is_whole(world, expected)

    again = target.run(world)
    assert again.status == 0, (again.out, again.err)
    assert target.after(world) == expected
    if name != "merge":  # which packs records
        now = world.records()
        assert all(now.get(path) == written for path, written in finished.items()), (
            "a finished run was trained again"
        )
    assert world.strays() == []


def _ended_as_it_should(ended, who: str, signal_name: str):
    if who in ("worker", "kernel"):
        assert not ended.said_one_line(), ended.said_one_line()
    elif signal_name == "SIGKILL":
        assert ended.status == -signal.SIGKILL
    else:
        assert ended.status in (-signal.SIGTERM, 128 + signal.SIGTERM)
        assert "Traceback" not in ended.err and len(ended.err.splitlines()) <= 1, ended.err


def _one_dataset_or_the_other_is_whole(world: World, expected: dict[str, str]):
    """The old one until the new one is complete: never a mixture, never nothing."""
    listed = world.run(("data", "list"))
    assert listed.status == 0 and len(listed.out.splitlines()) == 1, (listed.out, listed.err)
    manifests = sorted((world.path("cache") / "data").rglob("manifest.json"))
    assert any(_is_whole(path) for path in manifests)


def _is_whole(manifest) -> bool:
    promised = json.loads(manifest.read_text())
    tokens = {split: manifest.parent / f"{split}.bin" for split in prepared.SPLITS}
    return all(
        digest(path.read_bytes()) == promised[split]["sha256"] for split, path in tokens.items()
    )
