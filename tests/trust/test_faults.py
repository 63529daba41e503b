"""Full disks, read-only folders and damaged files: one clear line, and after the repair the
same numbers."""

import os
import pathlib
import random
import shutil
import signal
import subprocess

import pytest
from worlds import (
    SEED,
    SMOKE,
    TARGETS,
    VOCABULARY,
    World,
    digest,
    kill,
    preparation,
    runs_asked,
    stored,
)

# ------------------------------------------------------------------ disks


class Disk:
    """A folder of the world that is a small disk, or cannot be written. Needs the right to
    mount."""

    def __init__(self, folder: pathlib.Path):
        self.folder, self.filler, self.mounted = folder, folder / "filler", False
        folder.mkdir(parents=True, exist_ok=True)

    def _mount(self, *arguments: str):
        done = subprocess.run(
            ["mount", *arguments, str(self.folder)], capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")
        self.mounted = True

    def small(self, mebibytes: int):
        self._mount("-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs")

    def fill(self, leave: int):
        """Take all room but `leave` bytes."""
        size = 0
        with open(self.filler, "wb", buffering=0) as file:
            try:
                while True:
                    size += file.write(bytes(4096))
            except OSError:
                file.truncate(max(0, size - leave))

    def free(self):
        self.filler.unlink()

    def read_only(self):
        self._mount("--bind", str(self.folder))
        self._mount("-o", "remount,bind,ro")

    def release(self):
        if self.mounted:
            subprocess.run(["umount", str(self.folder)], check=True)
            self.mounted = False


@pytest.fixture
def disk_at():
    disks = []

    def make(folder: pathlib.Path) -> Disk:
        disks.append(Disk(folder))
        return disks[-1]

    yield make
    for disk in disks:
        disk.release()


WRITTEN = (  # target, the folder that it writes
    ("training", "store"),
    ("data prepare", "cache/data"),
    ("publishing", "figures"),
    ("publishing", "papermill_runs"),
    ("merge", "store"),
)
DISPENSABLE = (  # target, the folder that it would write, whether it must say that it cannot
    ("plan", "store", False),
    ("training, nothing compiled", "cache/executables", True),
    ("lanes with checkpoints", "checkpoints", True),
)


@pytest.mark.parametrize(("name", "kind"), WRITTEN, ids=str)
def test_a_full_disk_is_one_line_and_nothing_is_half_written(
    references, world, disk_at, ledger, name, kind
):
    target, (expected, _) = TARGETS[name], references.of(name)
    draw = random.Random(f"{SEED} full {name} {kind}")
    disk = disk_at(world.path(kind))
    disk.small(256)
    target.before(world, references.first)
    disk.fill(leave=4096 * draw.choice((0, 1, 4)))
    ledger(name, f"full disk under {kind}")
    ended = target.run(world)
    world.wait_until_empty()
    assert not ended.said_one_line(), ended.said_one_line()
    disk.free()
    _comes_out(target, world, expected)


@pytest.mark.parametrize(("name", "kind"), WRITTEN, ids=str)
def test_a_read_only_folder_is_one_line(references, world, disk_at, ledger, name, kind):
    target, (expected, _) = TARGETS[name], references.of(name)
    target.before(world, references.first)
    disk = disk_at(world.path(kind))
    disk.read_only()
    ledger(name, f"read-only under {kind}")
    ended = target.run(world)
    world.wait_until_empty()
    assert not ended.said_one_line(), ended.said_one_line()
    disk.release()
    _comes_out(target, world, expected)


@pytest.mark.parametrize("fault", ("full disk", "read-only"))
@pytest.mark.parametrize(("name", "kind", "says"), DISPENSABLE, ids=str)
def test_a_command_does_without_what_it_need_not_write(
    references, world, disk_at, ledger, name, kind, says, fault
):
    target, (expected, _) = TARGETS[name], references.of(name)
    disk = disk_at(world.path(kind))
    if fault == "full disk":
        disk.small(256)
    target.before(world, references.first)
    if fault == "full disk":
        disk.fill(leave=0)
    else:
        disk.read_only()
    ledger(name, f"{fault} under {kind}")
    ended = target.run(world)
    assert ended.status == 0 and "Traceback" not in ended.err, ended.err
    assert not says or any(
        words in ended.out + ended.err for words in ("not written", "cannot write")
    )
    assert target.after(world) == expected


def _comes_out(target, world, expected):
    again = target.run(world)
    assert again.status == 0, (again.out, again.err)
    assert target.after(world) == expected
    assert world.strays() == []


# ------------------------------------------------------------------ damage


def flip(path: pathlib.Path, draw: random.Random):
    """Another value for one byte."""
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= draw.randint(1, 255)
    path.write_bytes(content)


def truncate(path: pathlib.Path, draw: random.Random):
    os.truncate(path, draw.randrange(1, path.stat().st_size))


def empty(path: pathlib.Path, draw: random.Random):
    os.truncate(path, 0)


def zero(path: pathlib.Path, draw: random.Random):
    """Zeros for 16 KiB, or for half of a smaller file: blocks that never reached the disk."""
    content = bytearray(path.read_bytes())
    length = min(16 * 1024, len(content) // 2)
    begin = draw.randrange(len(content) - length)
    content[begin : begin + length] = bytes(length)
    path.write_bytes(content)


def replace_by_a_folder(path: pathlib.Path, draw: random.Random):
    path.unlink()
    path.mkdir()


WAYS = (flip, truncate, empty, zero, replace_by_a_folder)
NOTICED = ("damaged", "unreadable", "cannot be read", "could not be read", "not readable")


def by_name(value):
    return getattr(value, "__name__", str(value))


def _said(ended) -> bool:
    """Whether the command told of the damage, in plain lines."""
    assert "Traceback" not in ended.err + ended.out, ended.err[-3000:]
    return any(word in ended.out + ended.err for word in NOTICED)


def _trained(references, world, name="training"):
    target = TARGETS[name]
    target.before(world, references.first)
    ended = target.run(world)
    assert ended.status == 0, ended
    return target, references.of(name)[0]


def test_damaged_records_are_trained_again_and_only_these(references, world, ledger):
    target, expected = _trained(references, world)
    draw = random.Random(f"{SEED} records")
    before = world.records()
    damaged = draw.sample(sorted(before), 2 * len(WAYS))
    for path, way in zip(damaged, 2 * WAYS):
        way(path, draw)
    ledger("records", ", ".join(way.__name__ for way in WAYS), times=len(damaged))
    ended = target.run(world)
    assert ended.status == 0, ended.err
    assert _said(ended), "no line says that records are damaged"
    assert target.after(world) == expected
    now = world.records()
    assert all(now[path] == before[path] for path in before.keys() - set(damaged))
    again = target.run(world)
    assert "0 to train" in again.out and not _said(again), (again.out, again.err)


@pytest.mark.parametrize("way", WAYS, ids=by_name)
def test_a_damaged_pack_is_trained_again(references, world, ledger, way):
    target, expected = _trained(references, world)
    assert world.run(("merge",)).status == 0
    (pack,) = world.path("store").glob("packs/*")
    way(pack, random.Random(f"{SEED} pack"))
    ledger("packs", way.__name__)
    ended = target.run(world)
    assert ended.status == 0, ended.err
    assert _said(ended), "no line says that the pack is damaged"
    assert target.after(world) == expected


EXPORTS = [
    (file, way)
    for file in ("runs.parquet", "curves.parquet", "claims.csv")
    for way in (flip, truncate, empty)
]


@pytest.mark.parametrize(("file", "way"), EXPORTS, ids=by_name)
def test_damaged_exports_are_rebuilt_from_the_store(references, world, ledger, file, way):
    """The store is whole, so the tables and verdicts made from it come back."""
    world.share_compiled_programs(references.first)
    for kind in ("store", "figures", "papermill_runs"):
        world.copy(kind, references.first)
    path = world.label("papermill_runs") / file
    way(path, random.Random(f"{SEED} {file} {way.__name__}"))
    ledger(file, way.__name__)
    target, (expected, _) = TARGETS["publishing"], references.of("publishing")
    ended = target.run(world)
    assert ended.status == 0, ended.err
    assert "Traceback" not in ended.err
    assert target.after(world) == expected


@pytest.mark.parametrize("way", (truncate, empty, zero, replace_by_a_folder), ids=by_name)
def test_damaged_verdicts_are_one_line_to_who_reads_them(references, world, ledger, way):
    world.copy("papermill_runs", references.first)
    way(
        world.label("papermill_runs") / "claims.csv", random.Random(f"{SEED} claims {way.__name__}")
    )
    ledger("claims.csv, read", way.__name__)
    ended = world.run(("claims", *SMOKE))
    assert not ended.said_one_line(), ended.said_one_line()


@pytest.mark.parametrize("way", (truncate, empty, zero), ids=by_name)
def test_a_damaged_prediction_is_never_taken_for_one(references, world, ledger, way):
    """A prediction is written before its runs are trained, once. A damaged one is refused, or made
    again with the count of runs that had been trained by then: never silently another."""
    target, (expected, _) = TARGETS["predicting"], references.of("predicting")
    predicting = references.folder / "predicted"
    if not predicting.exists():
        predicting.mkdir()
        target.before(World(predicting), references.first)
        assert target.run(World(predicting)).status == 0
    world.share_compiled_programs(references.first)
    for kind in ("store", "figures", "papermill_runs"):
        world.copy(kind, World(predicting))
    path = world.label("papermill_runs") / "prediction.csv"
    good = path.read_bytes()
    way(path, random.Random(f"{SEED} prediction {way.__name__}"))
    ledger("prediction.csv", way.__name__)
    ended = target.run(world)
    if ended.status == 0:
        made_again = path.read_text("utf-8").splitlines()
        assert made_again != good.decode().splitlines(), (
            "held_out_stored must tell that its runs were known"
        )
        assert made_again[0] == good.decode().splitlines()[0]
    else:
        assert not ended.said_one_line(), ended.said_one_line()
        path.write_bytes(good)
        assert target.run(world).status == 0
        assert target.after(world) == expected


# ------------------------------------------------------------------ prepared tokens


TOKENS = [
    ("train.bin", zero),
    ("train.bin", flip),
    ("train.bin", truncate),
    ("validation.bin", flip),
    ("manifest.json", truncate),
    ("manifest.json", empty),
]
ON_NOVEL = (
    "run",
    "01",
    *SMOKE,
    "--set",
    "data=novel",
    "--set",
    f"vocab_size={VOCABULARY}",
    "--shard",
    "1/12",
)


@pytest.fixture(scope="module")
def novel(references, tmp_path_factory):
    """A world with a prepared corpus, kept beside it as `prepared`, and the numbers of two
    runs on it."""
    world = World(tmp_path_factory.mktemp("novel"))
    target = TARGETS["data prepare"]
    target.before(world, references.first)
    assert target.run(world).status == 0
    shutil.copytree(world.path("cache") / "data", world.folder / "prepared")
    assert world.run(ON_NOVEL).status == 0
    return world, _on_novel(world)


def _on_novel(world: World) -> dict[str, str]:
    return stored(world, runs_asked("01", data="novel", vocab_size=VOCABULARY), (1, 12))


@pytest.mark.parametrize(("file", "way"), TOKENS, ids=by_name)
def test_no_run_is_stored_that_read_damaged_tokens(novel, ledger, file, way):
    world, expected = novel
    shutil.rmtree(world.path("store"), ignore_errors=True)
    shutil.rmtree(world.path("cache") / "data")
    shutil.copytree(world.folder / "prepared", world.path("cache") / "data")
    (path,) = (world.path("cache") / "data").rglob(file)
    way(path, random.Random(f"{SEED} {file} {way.__name__}"))
    ledger(f"prepared {file}", way.__name__)
    ended = world.run(ON_NOVEL)
    assert not ended.said_one_line(), ended.said_one_line()
    assert not world.records()
    repaired = world.run(preparation(world.folder / "corpora" / "corpus-2.txt"))
    assert repaired.status == 0, repaired.err
    again = world.run(ON_NOVEL)
    assert again.status == 0, again.err
    assert _on_novel(world) == expected


# ------------------------------------------------------------------ checkpoints


@pytest.fixture(scope="module")
def stopped(references, tmp_path_factory):
    """A world whose lanes were stopped by SIGTERM when they had checkpoints."""
    target, (_, seconds) = (
        TARGETS["lanes with checkpoints"],
        references.of("lanes with checkpoints"),
    )
    for share in (0.6, 0.5, 0.7, 0.4, 0.8):
        world = World(tmp_path_factory.mktemp("stopped"))
        target.before(world, references.first)
        command = target.start(world)
        kill(command, "command", signal.SIGTERM, seconds * share)
        ended = command.end()
        if (
            ended.status == 128 + signal.SIGTERM
            and len(list(world.path("checkpoints").glob("*/steps/[0-9]*"))) == 2
        ):
            return world
    pytest.fail("the lanes could not be stopped between two checkpoints")


def last_step(world: World) -> pathlib.Path:
    return max(world.path("checkpoints").glob("*/steps/[0-9]*"), key=lambda path: int(path.name))


def largest_file(folder: pathlib.Path) -> pathlib.Path:
    return max(
        (path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )


CHECKPOINTS = [("group.json", empty), ("group.json", truncate), ("group.json", replace_by_a_folder)]
CHECKPOINTS += [
    ("the last step", truncate),
    ("the last step", empty),
    ("the last step", flip),
    ("every step", empty),
]


@pytest.mark.parametrize(("what", "way"), CHECKPOINTS, ids=by_name)
def test_a_damaged_checkpoint_costs_time_only(references, stopped, world, ledger, what, way):
    target, (expected, _) = (
        TARGETS["lanes with checkpoints"],
        references.of("lanes with checkpoints"),
    )
    world.share_compiled_programs(references.first)
    for kind in ("store", "checkpoints"):
        world.copy(kind, stopped)
    draw = random.Random(f"{SEED} {what} {way.__name__}")
    if what == "group.json":
        paths = world.path("checkpoints").glob("*/group.json")
    elif what == "the last step":
        paths = [largest_file(last_step(world))]
    else:
        paths = [path for path in world.path("checkpoints").glob("*/steps/**/*") if path.is_file()]
    for path in list(paths):
        way(path, draw)
    ledger(f"checkpoints, {what}", way.__name__)
    ended = target.run(world)
    assert ended.status == 0, ended.err[-3000:]
    assert _said(ended), "no line says that a checkpoint is damaged"
    assert target.after(world) == expected


# ------------------------------------------------------------------ compiled programs


@pytest.mark.parametrize("way", (flip, truncate, empty), ids=by_name)
def test_damaged_compiled_programs_are_replaced(references, world, ledger, way):
    """They are compiled again once, with a word about it; the next process finds them whole."""
    target, expected = _trained(references, world, "training, nothing compiled")
    shutil.rmtree(world.path("store"))
    draw = random.Random(f"{SEED} executables {way.__name__}")
    entries = [path for path in world.path("cache").glob("executables/**/*") if path.is_file()]
    assert len(entries) > 4
    for path in entries:
        way(path, draw)
    damaged = {path: digest(path.read_bytes()) for path in entries}
    ledger("compiled programs", way.__name__, times=len(entries))
    ended = target.run(world)
    assert ended.status == 0, ended.err
    assert "Traceback" not in ended.err
    assert target.after(world) == expected
    shutil.rmtree(world.path("store"))
    again = target.run(world)
    assert again.status == 0 and not _said(again)
    assert target.after(world) == expected
    used = [
        path for path in entries if not path.exists() or digest(path.read_bytes()) != damaged[path]
    ]
    assert used, "no damaged entry was replaced or removed"
    assert _said(ended), "no line says that compiled programs were damaged"
