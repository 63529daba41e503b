"""A sweep: plan what runs, is stored and compiles; then train only what is missing.

On a CPU one single-threaded worker process per core trains a run at a time; on an accelerator runs of one program
train together as vmapped lanes. A worker writes each finished run to the store itself, so a killed sweep loses
only the runs in flight.
"""

import collections
import dataclasses
import os
import pathlib

from proxies_lib import paths, settings
from proxies_lib.config import Run
from proxies_lib.runs import datasets, store, tables
from proxies_lib.runs.engines import _distributed, _run_lanes, _run_processes, chosen_engine, cores

FLOPS_PER_SECOND = 35e9  # per core, where no stored run of the program tells

COMPILE_SECONDS = 15.0


@dataclasses.dataclass(frozen=True)
class Plan:
    """Distinct runs, where each one is, and the seconds a missing one should take on one core."""

    found: tuple[tables.Found, ...]
    seconds: dict
    folder: pathlib.Path
    requested: int

    @property
    def missing(self) -> list[tables.Found]:
        return [f for f in self.found if not f.layer]

    def describe(self, workers: int = 1) -> str:
        """The plan in words: per program what is stored and what will train, and the time expected."""
        groups = collections.defaultdict(list)
        for f in self.found:
            groups[f.run.program].append(f)
        lines = [
            f"plan: {self.requested} runs requested, {len(self.found)} distinct, "
            f"{len(self.found) - len(self.missing)} stored, {len(self.missing)} to train"
        ]
        for program, members in groups.items():
            model = program[0]
            todo = [f for f in members if not f.layer]
            layers = collections.Counter(f.layer for f in members if f.layer)
            have = ", ".join(f"{n} in {layer}" for layer, n in layers.items())
            need = (
                f"{len(todo)} to train (1 program, {_duration(self.seconds[members[0].run.program])} a run)"
                if todo
                else ""
            )
            lines.append(
                f"  d {model.d_model}, {model.n_layers} layers, {_kind(program)}, N {model.n_params:,}: "
                + "; ".join(part for part in (have, need) if part)
            )
        if any(f.layer == "table, other corpus" for f in self.found):
            lines.append(
                "  note: the committed table was trained on another corpus than this interpreter's (or it is not "
                "prepared here); runs are matched by configuration. train=True trains on yours."
            )
        if self.missing:
            total = sum(self.seconds[f.run.program] for f in self.missing)
            programs = len({f.run.program for f in self.missing})
            seconds = (total + COMPILE_SECONDS * programs) / max(workers, 1)
            lines.append(
                f"  about {_duration(seconds)} with {workers} worker(s), {programs} program(s) to compile; time a run as "
                f"measured on stored runs of its program, else its FLOPs at {FLOPS_PER_SECOND / 1e9:.0f} GFLOP/s a core"
            )
        return "\n".join(lines)


def _kind(program: tuple) -> str:
    """What tells programs of one size apart, in words."""
    model, train = program
    odd = "" if model.attention == "softmax" else f", {model.attention} attention"
    dtype = "" if model.compute_dtype == "float32" else f", {model.compute_dtype}"
    return f"qk_norm {model.qk_norm}{odd}, batch {train.batch_size}, vocabulary {model.vocab_size}{dtype}"


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
) -> Plan:
    """Locate `runs` (duplicates counted once), keeping part `shard` = (i, n) of them, i from 1.

    A pure function of runs, store and shard: shards on several machines agree without talking.
    """
    folder = pathlib.Path(folder or paths.folder("store"))
    distinct = list(dict.fromkeys(runs))
    corpora = {(r.data, r.model.vocab_size) for r in distinct}
    fingerprints = {}
    for name, vocab_size in sorted(corpora):
        dataset = datasets.open_dataset(name, vocab_size, prepare_missing=prepare, say=say)
        fingerprints[name, vocab_size] = dataset.fingerprint if dataset else None
    found = tables.locate(distinct, fingerprints, folder, layer, say)
    i, n = shard
    found = [f for j, f in enumerate(found) if j % n == i - 1]
    return Plan(tuple(found), _estimates(found, folder), folder, len(runs))


def _estimates(found: list[tables.Found], folder: pathlib.Path) -> dict:
    """Seconds a run on one core, per program: measured on a stored run if there is one, else from its FLOPs."""
    one = {
        f.run.program: f for f in sorted(found, key=lambda f: f.layer == "store")
    }  # a stored one, where there is one
    records = {
        program: store.read(folder, f.key, columns=())
        for program, f in one.items()
        if f.layer == "store"
    }
    measured = {
        program: record[0]["result"]["train_seconds"]
        for program, record in records.items()
        if record
    }
    return {program: f.run.flops / FLOPS_PER_SECOND for program, f in one.items()} | measured


def run(plan: Plan, workers: int = 0, engine: str = "auto", quiet: bool = False):
    """Train what `plan` misses. `engine`: "processes" (one core a run), "lanes" (vmap in this process), "ray" (over a
    cluster, see `cluster`), or "auto": the one that PROXIES_ENGINE names, else by this machine's device."""
    engine = chosen_engine(engine)
    if not plan.missing and not _distributed():
        return
    if engine == "auto":
        engine = "processes" if settings.platform_of_jax() == "cpu" else "lanes"
    if engine == "ray":
        from proxies_lib.runs import cluster

        cluster.run(
            plan, workers=workers or ("PROXIES_WORKERS" in os.environ and cores()), quiet=quiet
        )
    elif engine == "processes":
        _run_processes(plan, min(workers or cores(), len(plan.missing)), quiet)
    else:
        _run_lanes(plan, quiet)
