"""Worlds to be killed and damaged: folders of their own, commands in them, and what has to come
out.

A *target* is a command with what it finds and what it must leave. It is run once undisturbed,
which gives the reference; every disturbed run of it is repeated to its end and has to leave the
same, bit for bit."""

import dataclasses
import functools
import hashlib
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import psutil

from proxies_lib import config, paths
from proxies_lib.runs import datasets, store, sweep, tables
from proxies_lib.science import notebooks, protocol

SEED = int(os.environ.get("TRUST_SEED", "17"))  # of delays and damages
TIMEOUT = 300  # seconds; no command of this suite takes a fifth of it
KINDS = ("cache", "store", "figures", "papermill_runs", "checkpoints")
TIMES = ["train_seconds", "commit"]  # columns that say when and by which commit, not what

PROXIES = (sys.executable, "-m", "proxies_lib.cli")
# The same with a checkpoint after every logged point: smoke runs are shorter than an interval.
CHECKPOINTS_OFTEN = (
    sys.executable,
    "-c",
    "import sys; from proxies_lib import cli; from proxies_lib.runs import checkpoint; "
    "checkpoint.FLOPS_BETWEEN = {'cpu': 1.0}; "
    "sys.exit(cli.main(sys.argv[1:]))",
)

SMOKE = ("--scale", "smoke")
HALF = (*SMOKE, "--shard", "1/2")  # trains 12 of section 01's 24 runs, and publishes nothing
VOCABULARY = 300


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a command ended: its status (−9: by SIGKILL), what it said, the seconds it took."""

    status: int
    out: str
    err: str
    seconds: float

    def said_one_line(self) -> str:
        """What is wrong with the way this command failed; "" if it failed as it should."""
        if self.status == 0:
            return f"status 0\n{self.out}\n{self.err}"
        if self.status < 0:
            return f"ended by signal {-self.status}"
        lines = self.err.splitlines()
        if "Traceback" in self.err + self.out:
            return f"a traceback\n{self.err[-3000:]}"
        if len(lines) != 1 or not lines[0].startswith("proxies: "):
            return f"{len(lines)} lines on stderr instead of one\n{self.err[-3000:]}"
        return ""


class Command:
    """A command under way, in a session of its own; its output goes to files, which orphans
    cannot block."""

    def __init__(
        self, world: "World", arguments: tuple[str, ...], program: tuple[str, ...] = PROXIES
    ):
        logs = world.folder / "logs"
        logs.mkdir(exist_ok=True)
        number = len(list(logs.iterdir())) // 2
        self.out, self.err = logs / f"{number}.out", logs / f"{number}.err"
        self.started = time.monotonic()
        with open(self.out, "w") as out, open(self.err, "w") as err:
            self.process = subprocess.Popen(
                [*program, *arguments],
                env=world.environment,
                cwd=paths.root(),
                stdout=out,
                stderr=err,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def running(self) -> bool:
        return self.process.poll() is None

    def family(self) -> list[psutil.Process]:
        """This process and its descendants: workers, and the kernel with its own."""
        try:
            parent = psutil.Process(self.process.pid)
            return [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def end(self) -> Ended:
        try:
            status = self.process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            for process in self.family():
                process.kill()
            raise
        return Ended(
            status, self.out.read_text(), self.err.read_text(), time.monotonic() - self.started
        )


@dataclasses.dataclass(frozen=True)
class World:
    """A cache, a store, outputs and checkpoints of its own, all in `folder`."""

    folder: pathlib.Path

    def path(self, kind: str) -> pathlib.Path:
        return self.folder / kind

    @property
    def environment(self) -> dict[str, str]:
        own = {f"PROXIES_{kind.upper()}": str(self.path(kind)) for kind in KINDS}
        return os.environ | own | {"PROXIES_WORKERS": "2"}

    def run(self, arguments: tuple[str, ...], program: tuple[str, ...] = PROXIES) -> Ended:
        return Command(self, arguments, program).end()

    def copy(self, kind: str, other: "World"):
        """Take over what another world has of a `kind`."""
        if other.path(kind).exists():
            shutil.copytree(other.path(kind), self.path(kind), dirs_exist_ok=True)

    def share_compiled_programs(self, other: "World"):
        """Use another world's cache. A copy would not do: JAX's names of programs depend on
        the cache's own path."""
        self.path("cache").symlink_to(other.path("cache"))

    def records(self) -> dict[pathlib.Path, int]:
        """When each record was written."""
        return {path: path.stat().st_mtime_ns for path in self.path("store").glob("??/*.npz")}

    def label(self, kind: str) -> pathlib.Path:
        """The folder of the smoke scale's outputs, wherever a plain run puts them."""
        (found,) = (p for p in self.path(kind).rglob("smoke") if p.is_dir())
        return found

    def inhabitants(self) -> list[psutil.Process]:
        """Processes that work in this world, whoever started them."""
        mine, found = str(self.path("store")), []
        for process in psutil.process_iter():
            try:
                if (
                    process.environ().get("PROXIES_STORE") == mine
                    and process.status() != psutil.STATUS_ZOMBIE
                ):
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
        return found

    def wait_until_empty(self) -> list[str]:
        """Processes that outlive their command by 20 seconds."""
        deadline = time.monotonic() + 20
        while (left := self.inhabitants()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return [" ".join(process.cmdline()) for process in left]

    def strays(self) -> list[str]:
        """Files that a command should not leave: hidden scratch files, failed notebooks,
        checkpoints."""
        stray = [
            path
            for kind in KINDS
            for path in self.path(kind).rglob("*")
            if path.name.startswith((".", "part-"))
            or ".failed." in path.name
            or ".orbax" in path.name
        ]
        stray += self.path("checkpoints").glob("*")
        return sorted(
            str(path.relative_to(self.folder)) for path in stray if path.name not in DOCUMENTED
        )


DOCUMENTED = (".lock",)  # scratch that may stay: the lock of a node's corpora


# ------------------------------------------------------------------ what has to come out


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def frame(table: pd.DataFrame) -> str:
    """A table's values, in every digit; its times aside."""
    return table.drop(columns=[name for name in TIMES if name in table]).to_csv()


def bits(table: pd.DataFrame) -> dict[str, str]:
    """Every bit of each column, as a digest: NaNs included."""
    columns = {name: table[name].to_numpy() for name in table}
    texts = {
        name: "\n".join(values).encode()
        for name, values in columns.items()
        if values.dtype == object
    }
    return {name: digest(texts.get(name, values.tobytes())) for name, values in columns.items()}


def runs_asked(section: str, **overrides) -> list:
    """The runs that a section asks for at smoke scale."""
    parameters = {"scale": "smoke", "train": True, "publish": True, "overrides": overrides}
    return notebooks.runs_of(notebooks.sections()[section], parameters)[0]


def stored(world: World, runs: list, shard=(1, 1)) -> dict[str, str]:
    """Numbers of the stored runs, of all that were asked for."""
    with paths.environment("PROXIES_CACHE", str(world.path("cache"))):
        found = sweep.plan(runs, world.path("store"), shard=shard, prepare=False).found
    table, curves = tables.table(list(found), world.path("store"))
    return {"stored runs": frame(table)} | bits(curves)


def published(world: World) -> dict[str, str]:
    """Everything published: the numbers of figures, the verdicts, a prediction, the exported
    tables."""
    files = [path for kind in ("figures", "papermill_runs") for path in world.label(kind).iterdir()]
    texts = {path.name: path.read_text("utf-8") for path in files if path.suffix == ".csv"}
    tables = {
        path.name: frame(pd.read_parquet(path)) for path in files if path.suffix == ".parquet"
    }
    names = {"files": " ".join(sorted(path.name for path in files))}
    return texts | tables | names


def prepared(world: World) -> dict[str, str]:
    """Every file of every prepared dataset."""
    folder = world.path("cache") / "data"
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in DOCUMENTED]
    return {str(path.relative_to(folder)): digest(path.read_bytes()) for path in files}


# ------------------------------------------------------------------ corpora


def corpus(folder: pathlib.Path, seed: int, documents: int) -> pathlib.Path:
    """A file of `documents` documents of made-up words, the same for the same `seed`."""
    draw = random.Random(seed)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(2, 9))) for _ in range(2000)]
    ranks = [1 / (1 + rank) for rank in range(len(words))]
    lines = (" ".join(draw.choices(words, ranks, k=12)) for _ in range(documents * 60))
    texts = ("\n".join(next(lines) for _ in range(60)) for _ in range(documents))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"corpus-{seed}.txt"
    path.write_text("\n\f\n".join(texts))
    return path


def preparation(path: pathlib.Path) -> tuple[str, ...]:
    return (
        "data",
        "prepare",
        "text",
        "--path",
        str(path),
        "--name",
        "novel",
        "--vocab-size",
        str(VOCABULARY),
    )


# ------------------------------------------------------------------ targets


@dataclasses.dataclass(frozen=True)
class Target:
    """A command, what it finds (`before`), what it must leave (`after`), when it is disturbed.

    `window` is the part of an undisturbed run in which it is killed: from the end of the imports
    to the end."""

    name: str
    arguments: tuple[str, ...]
    before: Callable[[World, World], None]  # given the new world and the session's first one
    after: Callable[[World], dict[str, str]]
    window: tuple[float, float] = (0.2, 0.97)
    program: tuple[str, ...] = PROXIES

    def start(self, world: World) -> Command:
        return Command(world, self.command(world), self.program)

    def run(self, world: World) -> Ended:
        return self.start(world).end()

    def command(self, world: World) -> tuple[str, ...]:
        return tuple(word.replace("{world}", str(world.folder)) for word in self.arguments)


def _compiled(world: World, first: World):
    world.share_compiled_programs(first)


def _trained(world: World, first: World):
    world.share_compiled_programs(first)
    world.copy("store", first)


def _two_sources_and_a_target(world: World, first: World):
    """Section 01's runs in three stores: one of records, one of packs, and the target's own;
    some are in two."""
    records = sorted(first.records())
    for place, part in (
        ("store", records[:10]),
        ("loose", records[5:15]),
        ("packed", records[15:]),
    ):
        for path in part:
            target = world.folder / place / path.parent.name / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)
    shutil.copytree(_large_packs(first) / "packs", world.folder / "packed" / "packs")


@functools.cache
def _large_packs(first: World) -> pathlib.Path:
    """A store of runs that nobody trained, large enough that a merge takes a while."""
    folder = first.folder / "large"
    meta, curves = store.read(first.path("store"), min(first.records()).stem)
    curves = {name: np.tile(values, 30) for name, values in curves.items()}
    fingerprint = meta["provenance"]["fingerprint"]
    store.pack(
        folder,
        (
            (meta | {"key": config.key(run, fingerprint), "config": config.flat(run)}, curves)
            for run in _more_runs()
        ),
    )
    return folder


def _more_runs() -> list:
    return [config.replace(protocol.scales()["smoke"].base, seed=1000 + i) for i in range(2000)]


def _an_older_dataset(world: World, first: World):
    """Another corpus, prepared under the same name."""
    shutil.copytree(_corpora(first), world.folder / "corpora")
    with paths.environment("PROXIES_CACHE", str(world.path("cache"))):
        older = str(world.folder / "corpora" / "corpus-1.txt")
        datasets.prepare("text", "novel", [older], vocab_size=VOCABULARY, say=lambda line: None)


@functools.cache
def _corpora(first: World) -> pathlib.Path:
    folder = first.folder / "corpora"
    corpus(folder, 1, documents=40)
    corpus(folder, 2, documents=2000)
    return folder


def _output(world: World) -> dict[str, str]:
    """What the last command printed."""
    last = max(world.path("logs").glob("*.out"), key=lambda path: int(path.stem))
    return {"printed": last.read_text()}


def _after_training(world: World) -> dict[str, str]:
    return stored(world, runs_asked("01"), (1, 2))


def _after_lanes(world: World) -> dict[str, str]:
    return stored(world, runs_asked("01", steps=80), (1, 2))


def _after_publishing(world: World) -> dict[str, str]:
    return stored(world, runs_asked("01")) | published(world)


def _after_predicting(world: World) -> dict[str, str]:
    return stored(world, runs_asked("07")) | published(world)


def _after_merging(world: World) -> dict[str, str]:
    sources = (world.folder / "loose", world.folder / "packed")
    untouched = {
        str(path.relative_to(world.folder)): digest(path.read_bytes())
        for source in sources
        for path in source.rglob("*")
        if path.is_file()
    }
    return stored(world, runs_asked("01") + _more_runs()) | untouched


_section, _half_section = ("run", "01", *SMOKE), ("run", "01", *HALF)
TARGETS = {
    target.name: target
    for target in (
        Target("plan", ("plan", "01", *SMOKE), _trained, _output, (0.1, 0.95)),
        Target("training", _half_section, _compiled, _after_training),
        Target(
            "training, nothing compiled", _half_section, lambda world, first: None, _after_training
        ),
        Target("publishing", _section, _trained, _after_publishing, (0.4, 0.97)),
        Target("predicting", ("run", "07", *SMOKE), _compiled, _after_predicting, (0.3, 0.97)),
        Target(
            "merge",
            ("merge", "{world}/loose", "{world}/packed", "--store", "{world}/store"),
            _two_sources_and_a_target,
            _after_merging,
            (0.4, 0.99),
        ),
        Target(
            "data prepare",
            preparation(pathlib.Path("{world}/corpora/corpus-2.txt")),
            _an_older_dataset,
            prepared,
            (0.2, 0.99),
        ),
        Target(
            "lanes with checkpoints",
            (*_half_section, "--engine", "lanes", "--set", "steps=80"),
            _compiled,
            _after_lanes,
            (0.3, 0.97),
            CHECKPOINTS_OFTEN,
        ),
    )
}


# ------------------------------------------------------------------ killing


def victims(command: Command, who: str) -> list[psutil.Process]:
    """The processes of a command that are to be killed; none where there is no such one at
    the moment."""
    family, found = command.family(), []
    for process in family:
        try:
            words = " ".join(process.cmdline())
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        wanted = {
            "command": process.pid == command.process.pid,
            "worker": "proxies_lib.runs.worker" in words,
            "kernel": "ipykernel" in words,
            "all": True,
        }
        found += [process] * wanted[who]
    return found[:1] if who in ("worker", "kernel") else found


def kill(command: Command, who: str, signal_number: signal.Signals, after: float) -> float | None:
    """Kill `who` when the command has run for `after` seconds, or as soon as there is one. Returns
    the second in which that was; None where the command ended before."""
    time.sleep(max(0.0, command.started + after - time.monotonic()))
    while command.running():
        chosen = victims(command, who)
        for process in chosen:
            try:
                process.send_signal(signal_number)
            except psutil.NoSuchProcess:
                continue
        if chosen:
            return time.monotonic() - command.started
        time.sleep(0.02)
    return None
