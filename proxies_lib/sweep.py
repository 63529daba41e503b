"""A sweep: plan what runs, is stored and compiles; then train only what is missing.

On a CPU one single-threaded worker process per core trains a run at a time; on an accelerator runs of one program
train together as vmapped lanes. A worker writes each finished run to the store itself, so a killed sweep loses
only the runs in flight.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import importlib.metadata
import json
import os
import pathlib
import platform
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback

import numpy as np
import pandas as pd
from tqdm import tqdm

from proxies_lib import config, data, outputs, settings, store
from proxies_lib.config import Run, Study, UserError

FLOPS_PER_SECOND = 35e9  # per core, where no stored run of the program tells
COMPILE_SECONDS = 15.0
ENGINES = ("auto", "processes", "lanes", "ray")
MOST_WORKERS = 100_000  # of a cluster; more is a slip of the keyboard
GO_ON = "finished runs are kept, start again to go on"


@dataclasses.dataclass(frozen=True)
class Plan:
    """Distinct runs, where each one is, and the seconds a missing one should take on one core."""

    found: tuple[store.Found, ...]
    seconds: dict
    folder: pathlib.Path
    requested: int

    @property
    def missing(self) -> list[store.Found]:
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


def plan(runs: list[Run], folder=None, layer=None, prepare=True, shard: tuple[int, int] = (1, 1), say=print) -> Plan:
    """Locate `runs` (duplicates counted once), keeping part `shard` = (i, n) of them, i from 1.

    A pure function of runs, store and shard: shards on several machines agree without talking.
    """
    folder = pathlib.Path(folder or config.folder("store"))
    distinct = list(dict.fromkeys(runs))
    corpora = {(r.data, r.model.vocab_size) for r in distinct}
    fingerprints = {}
    for name, vocab_size in sorted(corpora):
        dataset = data.open_dataset(name, vocab_size, prepare_missing=prepare, say=say)
        fingerprints[name, vocab_size] = dataset.fingerprint if dataset else None
    found = store.locate(distinct, fingerprints, folder, layer, say)
    i, n = shard
    found = [f for j, f in enumerate(found) if j % n == i - 1]
    return Plan(tuple(found), _estimates(found, folder), folder, len(runs))


def _estimates(found: list[store.Found], folder: pathlib.Path) -> dict:
    """Seconds a run on one core, per program: measured on a stored run if there is one, else from its FLOPs."""
    one = {f.run.program: f for f in sorted(found, key=lambda f: f.layer == "store")}  # a stored one, where there is one
    records = {program: store.read(folder, f.key, columns=()) for program, f in one.items() if f.layer == "store"}
    measured = {program: record[0]["result"]["train_seconds"] for program, record in records.items() if record}
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
        from proxies_lib import cluster

        cluster.run(plan, workers=workers or ("PROXIES_WORKERS" in os.environ and cores()), quiet=quiet)
    elif engine == "processes":
        _run_processes(plan, min(workers or cores(), len(plan.missing)), quiet)
    else:
        _run_lanes(plan, quiet)


def chosen_engine(engine: str = "auto") -> str:
    """`engine`, else the one that PROXIES_ENGINE names, else "auto". Raises UserError on others."""
    named = engine if engine != "auto" else os.environ.get("PROXIES_ENGINE") or "auto"
    if named not in ENGINES:
        field = "engine" if named == engine else "PROXIES_ENGINE"
        config.refuse(field, named, f"must be one of {', '.join(ENGINES)}")
    return named


def collect(runs: dict[str, list[Run]], study: Study, columns=None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What notebooks call: print the plan, train what is missing if `study.train`, return runs and curves.

    `runs` maps the name of a method to its runs; the table has a row per method and run (a run may serve several),
    in that order, and only the curves that begin with one of `columns`. Reading (train=False) also looks into the
    committed table of the label or else of the scale; training never does.
    """
    layer = None if study.train else _published_table(study)
    if study.publish:
        outputs.claim(study, commit())
    everything = [one for each in runs.values() for one in each]
    the_plan = plan(everything, layer=layer, prepare=study.train)
    print(the_plan.describe(cores()))
    if study.train:
        run(the_plan)
        the_plan = plan(everything)
    table, curves = store.table(list(the_plan.found), the_plan.folder, layer, columns)
    position = {f.run: i for i, f in enumerate(the_plan.found)}
    rows = [table.iloc[[position[one] for one in dict.fromkeys(each)]].assign(method=m) for m, each in runs.items()]
    return pd.concat(rows, ignore_index=True), curves


def _published_table(study: Study) -> pathlib.Path:
    """The folder of the committed table that a study reads where its store lacks a run."""
    published = config.folder("papermill_runs")
    own = published / study.label
    return own if (own / "curves.parquet").exists() else published / study.scale


def cores() -> int:
    """Worker processes used by default: PROXIES_WORKERS, or the cores this process may use."""
    chosen = os.environ.get("PROXIES_WORKERS")
    if not chosen:
        return settings.threads()
    digits = len(str(MOST_WORKERS))
    if not re.fullmatch(f"[0-9]{{1,{digits}}}", chosen) or not 1 <= int(chosen) <= MOST_WORKERS:
        allowed = f"must be a whole number from 1 to {MOST_WORKERS:,}"
        config.refuse("PROXIES_WORKERS", f"{chosen[:20]}…" if len(chosen) > 20 else chosen, allowed)
    return int(chosen)


def _distributed() -> bool:
    """Whether this process is one of several under `jax.distributed` (which must not start JAX just to find out)."""
    return bool(os.environ.get("PROXIES_DISTRIBUTED"))


# ------------------------------------------------------------------ provenance


@functools.cache
def commit() -> str:
    try:
        git = functools.partial(subprocess.run, cwd=config.root(), capture_output=True, text=True, check=True)
        head = git(["git", "rev-parse", "--short=12", "HEAD"]).stdout.strip()
        code = ["git", "status", "--porcelain", "--", "proxies_lib", "notebooks"]
        return head + (outputs.CHANGED if git(code).stdout.strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return outputs.UNKNOWN


@functools.cache
def provenance() -> dict[str, str]:
    """Software, device, commit and unpinned settings of this process, stored with every run."""
    import jax

    from proxies_lib import executables

    device = executables.cpu("model name") or platform.processor()
    if settings.platform_of_jax() != "cpu":
        device = jax.devices()[0].device_kind
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax", "numpy")}
    return {
        "device": device,
        "python": platform.python_version(),
        **versions,
        "commit": commit(),
        "settings": settings.unpinned(),
    }


def record(folder, run: Run, dataset: data.Dataset, result: dict):
    """Store a result of `Trainer.train` with its configuration and the provenance of this process."""
    result = dict(result)
    curves = result.pop("curves")
    meta = {
        "key": config.key(run, dataset.fingerprint),
        "config": config.flat(run),
        "result": result,
        "provenance": {"fingerprint": dataset.fingerprint, **provenance()},
    }
    store.write(folder, meta, curves)


# ------------------------------------------------------------------ progress


class Progress:
    """Runs done and time left: a bar on a terminal, a line per tenth elsewhere."""

    def __init__(self, total: int, weight: float, quiet: bool):
        self.total, self.weight, self.done, self.finished, self.started = total, weight, 0, 0.0, time.monotonic()
        self.quiet = quiet
        self.bar = tqdm(total=total, unit="run", smoothing=0.1) if sys.stderr.isatty() and not quiet else None

    def add(self, weight: float, note: str):
        before, self.done, self.finished = self.done, self.done + 1, self.finished + weight
        left = max(0.0, (time.monotonic() - self.started) * (self.weight - self.finished) / self.finished)
        if self.bar is not None:
            self.bar.set_postfix_str(f"{note}, {left:.0f} s left")
            self.bar.update()
        elif not self.quiet and self.done * 10 // self.total > before * 10 // self.total:
            print(f"  {self.done}/{self.total} runs, {left:.0f} s left", flush=True)

    def close(self):
        if self.bar is not None:
            self.bar.close()


# ------------------------------------------------------------------ engines


def _run_lanes(plan: Plan, quiet: bool):
    """Train on this process's accelerators, or, under `jax.distributed`, on those of all processes, in step: the first
    one's store says what is missing, and it alone writes."""
    import jax

    from proxies_lib import checkpoint, executables
    from proxies_lib.train import Trainer

    settings.platform_of_jax()  # refuses, in a line, where there is no such device
    executables.use_cache()
    first = jax.process_index() == 0
    missing = plan.missing
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        todo = multihost_utils.broadcast_one_to_all(np.array([not f.layer for f in plan.found]))
        missing = [f for f, train in zip(plan.found, todo, strict=True) if train]
    devices, trainers = jax.devices(), {}
    progress = Progress(len(missing), sum(plan.seconds[f.run.program] for f in missing), quiet or not first)
    with checkpoint.until_terminated():
        for layout, members in _lane_jobs(missing, devices):
            program, name = members[0].run.program, members[0].run.data
            runs, keys = [f.run for f in members], [f.key for f in members]
            dataset = data.open_dataset(name, program[0].vocab_size)
            if config.key(runs[0], dataset.fingerprint) != keys[0]:  # the name of checkpoints
                again = "was prepared again since the sweep was planned; start again"
                raise UserError(f"data={name!r}: {again}")
            if (program, layout) not in trainers:
                trainers[program, layout] = Trainer(*program, layout, devices)
            for one, result in trainers[program, layout].train_all(runs, dataset, keys):
                if first:
                    record(plan.folder, one, dataset, result)
                progress.add(plan.seconds[program], f"d {program[0].d_model}")
    progress.close()


def _lane_jobs(missing: list[store.Found], devices):
    """Layouts, and the runs that train in them: first groups that have a checkpoint, then the rest by program."""
    from proxies_lib import checkpoint
    from proxies_lib.train import Layout, layout_for

    left = {f.key: f for f in missing}
    for group in checkpoint.pending(left):
        members = [left.pop(key) for key in group["keys"]]
        yield Layout(**group["layout"]).on(len(devices), members[0].run.train), members
    groups = collections.defaultdict(list)
    for f in left.values():
        groups[f.run.program, f.run.data, f.run.hparams.steps].append(f)
    for (program, *_), members in groups.items():
        yield layout_for(*program, devices), members


def _run_processes(plan: Plan, workers: int, quiet: bool):
    groups = collections.defaultdict(collections.deque)
    for f in plan.missing:
        groups[f.run.program].append(f)
    lock, stop = threading.Lock(), threading.Event()
    progress = Progress(len(plan.missing), sum(plan.seconds[f.run.program] for f in plan.missing), quiet)
    started = set()

    def next_job(current):
        """Stay with the current program; else open the costliest unopened one; else help where most is left."""
        with lock:
            left = {p: len(g) * plan.seconds[p] for p, g in groups.items() if g}
            if not left or stop.is_set():
                return None
            fresh = {p: cost for p, cost in left.items() if p not in started}
            program = current if current in left else max(fresh or left, key=(fresh or left).get)
            started.add(program)
            return groups[program].popleft()

    def serve(core: int):
        current = None
        with _Worker(core, plan.folder) as worker:
            while (f := next_job(current)) is not None:
                current = f.run.program
                worker.train(f.run)
                with lock:
                    progress.add(plan.seconds[current], f"d {f.run.model.d_model} lr {f.run.hparams.lr:g}")

    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(serve, i) for i in range(workers)]
        try:
            for future in concurrent.futures.as_completed(futures):
                future.result()
        finally:
            stop.set()
            progress.close()


class _Worker:
    """A single-threaded training process on one core: a JSON line per run in, one per reply out."""

    def __init__(self, core: int, folder: pathlib.Path):
        self.log = tempfile.TemporaryFile("w+", errors="replace")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "proxies_lib.worker", str(folder), str(core)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=os.environ | settings.ONE_THREAD_AT_START,
            cwd=config.root(),
        )

    def train(self, run: Run):
        """Have `run` trained and stored. Raises UserError where that fails or the process dies."""
        try:
            self.process.stdin.write(json.dumps(config.flat(run)) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise UserError(f"worker: a training process {self._end()}; {GO_ON}")
        reply = json.loads(line)
        for note in reply["notes"]:
            print(note, file=sys.stderr, flush=True)
        if reply["refused"]:
            raise UserError(reply["refused"])
        if reply["failed"]:
            raise UserError(f"worker: {reply['failed']}{self._keep_log()}; {GO_ON}")

    def _end(self) -> str:
        """How the process ended, in words."""
        status = self.process.wait()
        self.log.seek(0)
        said = (self.log.read().strip().splitlines() or [""])[-1]
        if -status == signal.SIGKILL:
            return "was killed by SIGKILL, which the system does where memory runs out"
        if status < 0:
            return f"was killed by {signal.Signals(-status).name} ({said or 'it said nothing'})"
        return f"stopped ({said or f'status {status}'})"

    def _keep_log(self) -> str:
        """Where the process's log, with the whole traceback, is kept; "" where it cannot be."""
        self.log.seek(0)
        try:
            handle, kept = tempfile.mkstemp(prefix="proxies-worker-", suffix=".log")
            with open(handle, "w") as file:
                file.write(self.log.read())
        except OSError:
            return ""
        return f" (the whole traceback: {kept})"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.log.close()


def what_failed(error: BaseException) -> str:
    """An exception in one line: path and reason of the system's, else its type and first line."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return f"{type(error).__name__}: {settings.first_line(error)}"


def work(folder: str, core: int):
    """The loop of a worker process. It ends when its parent does, even in the middle of a run.

    A reply holds `notes`, lines for the user, and why there is no result, if so: `refused`, the
    whole line to say, or `failed`, an error whose traceback is in the log.
    """
    settings.use_one_thread()
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print must not reach the protocol
    if hasattr(os, "sched_setaffinity"):
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {allowed[core % len(allowed)]})
    jobs: queue.Queue = queue.Queue()

    def listen():
        for line in sys.stdin:
            jobs.put(line)
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    trainers, notes = {}, []
    while True:
        reply = {"refused": "", "failed": ""}
        try:
            _train_alone(config.from_flat(json.loads(jobs.get())), folder, trainers, notes.append)
        except UserError as error:
            reply["refused"] = str(error)
        except OSError as error:
            reply["refused"] = f"worker: {what_failed(error)}; {GO_ON}"
        except Exception as error:
            traceback.print_exc()
            reply["failed"] = what_failed(error)
        print(json.dumps(reply | {"notes": notes}), file=replies, flush=True)
        notes.clear()


def _train_alone(run: Run, folder: str, trainers: dict, say):
    """Train `run` on one core and store it. `trainers` holds what is compiled already."""
    from proxies_lib import executables
    from proxies_lib.train import Trainer, layout_alone

    executables.use_cache(say)
    dataset = data.open_dataset(run.data, run.model.vocab_size)
    compiled = (*run.program, layout_alone(run))
    if compiled not in trainers:
        trainers[compiled] = Trainer(*compiled)
    record(folder, run, dataset, trainers[compiled].train([run], dataset)[0])
