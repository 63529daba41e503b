"""Engines: what trains the missing runs of a plan, by processes or by lanes."""

import collections
import concurrent.futures
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np
from tqdm import tqdm

from proxies_lib import config, data, paths, settings
from proxies_lib.config import Run, UserError
from proxies_lib.runs import datasets, tables
from proxies_lib.runs.provenance import record

ENGINES = ("auto", "processes", "lanes", "ray")

MOST_WORKERS = 100_000  # of a cluster; more is a slip of the keyboard

GO_ON = "finished runs are kept, start again to go on"


def chosen_engine(engine: str = "auto") -> str:
    """`engine`, else the one that PROXIES_ENGINE names, else "auto". Raises UserError on others."""
    named = engine if engine != "auto" else os.environ.get("PROXIES_ENGINE") or "auto"
    if named not in ENGINES:
        field = "engine" if named == engine else "PROXIES_ENGINE"
        config.refuse(field, named, f"must be one of {', '.join(ENGINES)}")
    return named


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


# ------------------------------------------------------------------ progress


class Progress:
    """Runs done and time left: a bar on a terminal, a line per tenth elsewhere."""

    def __init__(self, total: int, weight: float, quiet: bool):
        self.total, self.weight, self.done, self.finished, self.started = (
            total,
            weight,
            0,
            0.0,
            time.monotonic(),
        )
        self.quiet = quiet
        self.bar = (
            tqdm(total=total, unit="run", smoothing=0.1)
            if sys.stderr.isatty() and not quiet
            else None
        )

    def add(self, weight: float, note: str):
        before, self.done, self.finished = self.done, self.done + 1, self.finished + weight
        left = max(
            0.0, (time.monotonic() - self.started) * (self.weight - self.finished) / self.finished
        )
        if self.bar is not None:
            self.bar.set_postfix_str(f"{note}, {left:.0f} s left")
            self.bar.update()
        elif not self.quiet and self.done * 10 // self.total > before * 10 // self.total:
            print(f"  {self.done}/{self.total} runs, {left:.0f} s left", flush=True)

    def close(self):
        if self.bar is not None:
            self.bar.close()


# ------------------------------------------------------------------ engines


Job = tuple[tables.Found, ...]  # runs that train together


class Jobs:
    """What a plan leaves to train, handed out job by job."""

    def __init__(self, plan, size: int):
        """`size` runs a job at most, of equal program, corpus and steps."""
        self.seconds, self.opened = plan.seconds, set()
        self.left = collections.defaultdict(collections.deque)
        groups = collections.defaultdict(list)
        for f in plan.missing:
            groups[f.run.program, f.run.data, f.run.hparams.steps].append(f)
        for (program, *_), members in groups.items():
            for first in range(0, len(members), size):
                self.left[program].append(tuple(members[first : first + size]))

    def __len__(self):
        return sum(map(len, self.left.values()))

    def take(self, program=None) -> Job:
        """The next job for a worker that holds `program`, which costs time to compile.

        It stays with its program; else opens the costliest unopened one; else helps where most is left.
        """
        cost = {p: len(jobs) * self.seconds[p] for p, jobs in self.left.items() if jobs}
        unopened = {p: seconds for p, seconds in cost.items() if p not in self.opened}
        if program not in cost:
            program = max(unopened or cost, key=cost.get)
        self.opened.add(program)
        return self.left[program].popleft()

    def put_back(self, job: Job):
        self.left[job[0].run.program].appendleft(job)


def train_all(trainer, runs: list[Run], dataset: data.Dataset, keys: list[str] | None = None):
    """Pairs of run and result for any number of runs of equal steps, as many at once as `trainer` has lanes.

    With `keys` there are checkpoints, resumed from where they exist, removed once the caller asks for more.
    """
    from proxies_lib.runs import checkpoint

    width = max(trainer.lanes, 1)
    for begin in range(0, len(runs), width):
        members, group, finished = runs[begin : begin + width], None, False
        if keys:
            group = checkpoint.Group(members, keys[begin : begin + width], trainer.layout)
        try:
            yield from zip(members, trainer.train(members, dataset, group), strict=True)
            finished = True
        finally:
            if group:
                group.close(finished)


def _run_lanes(plan, quiet: bool):
    """Train on this process's accelerators, or, under `jax.distributed`, on those of all processes, in step: the first
    one's store says what is missing, and it alone writes."""
    import jax

    from proxies_lib.runs import checkpoint, executables
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
    progress = Progress(
        len(missing), sum(plan.seconds[f.run.program] for f in missing), quiet or not first
    )
    with checkpoint.until_terminated():
        for layout, members in _lane_jobs(missing, devices):
            program, name = members[0].run.program, members[0].run.data
            runs, keys = [f.run for f in members], [f.key for f in members]
            dataset = datasets.open_dataset(name, program[0].vocab_size)
            if config.key(runs[0], dataset.fingerprint) != keys[0]:  # the name of checkpoints
                again = "was prepared again since the sweep was planned; start again"
                raise UserError(f"data={name!r}: {again}")
            if (program, layout) not in trainers:
                trainers[program, layout] = Trainer(*program, layout, devices)
            for one, result in train_all(trainers[program, layout], runs, dataset, keys):
                if first:
                    record(plan.folder, one, dataset, result)
                progress.add(plan.seconds[program], f"d {program[0].d_model}")
    progress.close()


def _lane_jobs(missing: list[tables.Found], devices):
    """Layouts, and the runs that train in them: first groups that have a checkpoint, then the rest by program."""
    from proxies_lib.layout import Layout, layout_for
    from proxies_lib.runs import checkpoint

    left = {f.key: f for f in missing}
    for group in checkpoint.pending(left):
        members = [left.pop(key) for key in group["keys"]]
        yield Layout(**group["layout"]).on(len(devices), members[0].run.train), members
    groups = collections.defaultdict(list)
    for f in left.values():
        groups[f.run.program, f.run.data, f.run.hparams.steps].append(f)
    for (program, *_), members in groups.items():
        yield layout_for(*program, devices), members


def _run_processes(plan, workers: int, quiet: bool):
    jobs, lock, stop = Jobs(plan, 1), threading.Lock(), threading.Event()
    progress = Progress(
        len(plan.missing), sum(plan.seconds[f.run.program] for f in plan.missing), quiet
    )

    def take(program) -> Job | None:
        with lock:
            return None if stop.is_set() or not jobs else jobs.take(program)

    def serve(core: int):
        current = None
        with _Worker(core, plan.folder) as worker:
            while job := take(current):
                (f,) = job
                current = f.run.program
                worker.train(f.run)
                with lock:
                    progress.add(
                        plan.seconds[current], f"d {f.run.model.d_model} lr {f.run.hparams.lr:g}"
                    )

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
            [sys.executable, "-m", "proxies_lib.runs.worker", str(folder), str(core)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=os.environ | settings.ONE_THREAD_AT_START,
            cwd=paths.root(),
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
