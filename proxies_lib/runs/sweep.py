"""A sweep: plan what runs, is stored and compiles; then train only what is missing.

plan(runs)   where each run is: stored, in a committed table, or missing (`tables.locate`)
run(plan)    the missing ones, by one of three engines (`processes`, `lanes`, `cluster`)
plan(runs)   again: now nothing is missing, and `tables.table` makes frames of it
"""

import collections
import dataclasses
import math
import os
import pathlib
import statistics

from proxies_lib import interventions, paths, settings
from proxies_lib.config import Run
from proxies_lib.runs import datasets, store, tables, texts
from proxies_lib.runs.engines import chosen_engine, cores, is_distributed
from proxies_lib.runs.tables import Layer

FLOPS_PER_SECOND = 35e9  # per core, where no stored run of the program tells

TIMED_RUNS = 3  # of a program, at most: what its next one takes is the median of theirs

COMPILE_SECONDS = 15.0  # of a program; no stored run tells


@dataclasses.dataclass(frozen=True)
class Plan:
    """Distinct runs and where each one is.

    `seconds` is what a run of each program should take on one core; `folder` is the store, `layer`
    the folder of exported tables below it; `requested` counts runs as asked for, equal ones too.
    """

    found: tuple[tables.Found, ...]
    seconds: dict
    folder: pathlib.Path
    requested: int
    layer: pathlib.Path | None = None

    @property
    def missing(self) -> list[tables.Found]:
        return [found for found in self.found if not found.layer]

    def describe(self, workers: int | None = 1) -> str:
        """The plan in words: per program what is stored and what will train, and the time
        expected of so many `workers`; None: no time is known."""
        missing = len(self.missing)
        lines = [
            f"plan: {self.requested} runs requested, {len(self.found)} distinct, "
            f"{len(self.found) - missing} stored, {missing} to train"
        ]
        lines += [self._describe_program(members) for members in self._by_program()]
        if any(found.layer == Layer.COMMITTED_OTHER_CORPUS for found in self.found):
            lines.append(
                "  note: the committed table was trained on another corpus than this "
                "interpreter's (or it is not prepared here); runs are matched by configuration. "
                "train=True trains on yours."
            )
        if missing:
            lines.append(self._describe_time(workers))
        return "\n".join(lines)

    def summary(self, workers: int | None = 1) -> dict:
        """The plan in numbers: what `describe` says, for programs to read."""
        missing = len(self.missing)
        return {
            "requested": self.requested,
            "distinct": len(self.found),
            "stored": len(self.found) - missing,
            "to_train": missing,
            "workers": workers,
            "seconds": self._seconds(workers),
            "programs": [self._summary_of(members) for members in self._by_program()],
        }

    def _summary_of(self, members: list[tables.Found]) -> dict:
        program = members[0].run.program
        layers = collections.Counter(found.layer for found in members)
        to_train = layers.pop(Layer.MISSING, 0)
        return {
            **dataclasses.asdict(program[0]),
            **dataclasses.asdict(program[1]),
            "n_params": program[0].n_params,
            "stored": {str(layer): n for layer, n in layers.items()},
            "to_train": to_train,
            "seconds_a_run": self.seconds[program],
        }

    def _by_program(self) -> list[list[tables.Found]]:
        groups = collections.defaultdict(list)
        for found in self.found:
            groups[found.run.program].append(found)
        return list(groups.values())

    def _describe_program(self, members: list[tables.Found]) -> str:
        """A line on the runs of one program."""
        program = members[0].run.program
        layers = collections.Counter(found.layer for found in members)
        to_train = layers.pop(Layer.MISSING, 0)
        parts = []
        if layers:
            parts.append(", ".join(f"{n} in {layer}" for layer, n in layers.items()))
        if to_train:
            seconds = _duration(self.seconds[program])
            parts.append(f"{to_train} to train (1 program, {seconds} a run)")
        model = program[0]
        size = f"d {model.d_model}, {model.n_layers} layers"
        return f"  {size}, {_kind(program)}, N {model.n_params:,}: {'; '.join(parts)}"

    def _describe_time(self, workers: int | None) -> str:
        """A line on how long the missing runs take."""
        seconds = self._seconds(workers)
        if seconds is None:
            return "  how long is not known: times are those of runs that train on a core each"
        return (
            f"  about {_duration(seconds)} with {workers} worker(s), {self._programs()} program(s) "
            "to compile; time a run as measured on stored runs of its program, else its FLOPs at "
            f"{FLOPS_PER_SECOND / 1e9:.0f} GFLOP/s a core"
        )

    def _programs(self) -> int:
        """How many programs the missing runs compile."""
        return len({found.run.program for found in self.missing})

    def _seconds(self, workers: int | None) -> float | None:
        """How long the missing runs take, compilation included; None where nobody knows."""
        if workers is None:
            return None
        training = sum(self.seconds[found.run.program] for found in self.missing)
        return (training + COMPILE_SECONDS * self._programs()) / max(workers, 1)


def _kind(program: tuple) -> str:
    """What tells programs of one size apart, in words."""
    model, train = program
    parts = [f"qk_norm {model.qk_norm}"]
    if model.attention != "softmax":
        parts.append(f"{model.attention} attention")
    parts.append(f"batch {train.batch_size}")
    parts.append(f"vocabulary {model.vocab_size}")
    if model.compute_dtype != "float32":
        parts.append(model.compute_dtype)
    if model.intervention:
        parts.append(interventions.titles(model.intervention))
    return ", ".join(parts)


def _duration(seconds: float) -> str:
    for unit, word in ((86400 * 365, "years"), (86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 1.5 * unit:
            return f"{seconds / unit:.1f} {word}"
    return f"{seconds:.2g} seconds" if seconds < 10 else f"{seconds:.0f} seconds"


def plan(
    runs: list[Run],
    folder=None,
    layer=None,
    prepare=True,
    shard: tuple[int, int] = (1, 1),
    say=print,
    exact=False,
) -> Plan:
    """Locate `runs` (duplicates counted once), keeping part `shard` = (i, n) of them, i from 1.

    They are looked for in the store `folder` (default: the usual one), then in the exported tables
    of the folder `layer`, if any; with `exact` by key alone, as what counts as trained must be
    (`tables.locate`, which raises UserError then). `prepare` prepares the standard library's corpus
    where it is missing. A pure function of runs, store, layer and shard: shards on several machines
    agree without talking.
    """
    folder = pathlib.Path(folder or paths.folder("store"))
    distinct = list(dict.fromkeys(runs))
    texts.check(distinct, folder)
    # A corpus is opened once, however many runs read it, and always in the same order.
    fingerprints = {}
    for name, vocab_size in sorted({(run.data, run.model.vocab_size) for run in distinct}):
        dataset = datasets.open_dataset(name, vocab_size, prepare_missing=prepare, say=say)
        fingerprints[name, vocab_size] = dataset.fingerprint if dataset else None
    found = tables.locate(distinct, fingerprints, folder, layer, say, exact)
    part, parts = shard
    # Every n-th run: neighbours cost alike, so shards end at about the same time.
    found = found[part - 1 :: parts]
    return Plan(tuple(found), estimates(found, folder), folder, len(runs), layer)


def estimates(found: list[tables.Found], folder: pathlib.Path) -> dict:
    """Seconds a run on one core, per program: the median of a few stored runs of it if there are
    any, else from its FLOPs."""
    seconds, to_train = {}, set()
    stored = collections.defaultdict(list)
    for f in found:
        program = f.run.program
        seconds[program] = f.run.flops / FLOPS_PER_SECOND
        if f.layer == Layer.STORED:
            stored[program].append(f.known_key)
        if f.layer == Layer.MISSING:
            to_train.add(program)
    for program, keys in stored.items():
        # Records cost time to read: one will do where nothing waits for the answer.
        times = _train_seconds(keys, TIMED_RUNS if program in to_train else 1, folder)
        if times:
            seconds[program] = statistics.median(times)
    return seconds


def _train_seconds(keys: list[str], at_most: int, folder: pathlib.Path) -> list[float]:
    """What a few stored runs took; those that cannot be read are left out.

    They are spread over the grid, as runs that diverge stop early. More than one says more, as the
    time of a process that was paused includes the pause.
    """
    every = math.ceil(len(keys) / at_most)
    # Their times are wanted, and no curve.
    records = [store.read(folder, key, columns=()) for key in keys[::every]]
    return [meta["result"]["train_seconds"] for meta, _ in filter(None, records)]


def run(plan: Plan, workers: int = 0, engine: str = "auto", quiet: bool = False):
    """Train what `plan` misses.

    `engine`: "processes" (one core a run), "lanes" (vmap in this process), "ray" (over a cluster),
    or "auto": the one that PROXIES_ENGINE names, else by this machine's device. `workers`: how many
    processes, or slots of the cluster; 0: PROXIES_WORKERS, else as many as there are.
    """
    engine = chosen_engine(engine)
    # Of several processes each one must take part, whatever it has itself.
    if not plan.missing and not is_distributed():
        return
    texts.remember([found.run for found in plan.missing], plan.folder)
    if engine == "auto":
        engine = "processes" if settings.platform_of_jax() == "cpu" else "lanes"
    # Only what is chosen is imported: JAX and Ray take seconds.
    if engine == "ray":
        from proxies_lib.runs import cluster

        # Without a number all slots of the cluster are used, not as many as here are cores.
        if not workers and "PROXIES_WORKERS" in os.environ:
            workers = cores()
        cluster.train(plan, workers, quiet)
    elif engine == "processes":
        from proxies_lib.runs import processes

        processes.train(plan, min(workers or cores(), len(plan.missing)), quiet)
    else:
        from proxies_lib.runs import lanes

        lanes.train(plan, quiet)
