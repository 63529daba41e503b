"""What the engines share. An engine trains the missing runs of a plan and stores each one.

    processes   a single-threaded worker process per core, each a run at a time
    lanes       runs of one program as vmapped lanes, in this process, on all its devices
    cluster     workers of a Ray cluster, each a core or a chip of some node

`sweep.run` chooses one. All of them leave a finished run in the store at once, and none is handed
out twice.
"""

import collections
import html
import os
import re
import sys
import time
from collections.abc import Iterable

from tqdm import tqdm

from proxies_lib import config, data, settings
from proxies_lib.config import Run
from proxies_lib.runs import tables

ENGINES = ("auto", "processes", "lanes", "ray")

MOST_WORKERS = 100_000  # of a cluster; more is a slip of the keyboard

GO_ON = "finished runs are kept, start again to go on"


# ------------------------------------------------------------------ what the user chose


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
    # Digits are counted first: Python refuses to read a number of thousands of them.
    digits = len(str(MOST_WORKERS))
    is_number = re.fullmatch(f"[0-9]{{1,{digits}}}", chosen)
    if not is_number or not 1 <= int(chosen) <= MOST_WORKERS:
        allowed = f"must be a whole number from 1 to {MOST_WORKERS:,}"
        shown = f"{chosen[:20]}…" if len(chosen) > 20 else chosen
        config.refuse("PROXIES_WORKERS", shown, allowed)
    return int(chosen)


def is_distributed() -> bool:
    """Whether this process is one of several under `jax.distributed`.

    JAX, which knows, must not be started just to find out.
    """
    return bool(os.environ.get("PROXIES_DISTRIBUTED"))


# ------------------------------------------------------------------ handing out


Job = tuple[tables.Found, ...]  # runs that train together


def groups_of(missing: Iterable[tables.Found]) -> list[list[tables.Found]]:
    """Runs that can train together: of equal program, corpus and steps."""
    groups = collections.defaultdict(list)
    for found in missing:
        run = found.run
        groups[run.program, run.data, run.hparams.steps].append(found)
    return list(groups.values())


class Jobs:
    """What a plan leaves to train, handed out job by job, `size` runs a job at most."""

    def __init__(self, plan, size: int):
        self.seconds = plan.seconds
        self.opened: set[tuple] = set()  # programs that some worker has compiled
        # Jobs by program.
        self.left: dict[tuple, collections.deque[Job]] = collections.defaultdict(collections.deque)
        for group in groups_of(plan.missing):
            for first in range(0, len(group), size):
                job = tuple(group[first : first + size])
                self.left[job[0].run.program].append(job)

    def __len__(self):
        return sum(map(len, self.left.values()))

    def take(self, program=None) -> Job:
        """The next job for a worker that holds `program`, which costs time to compile.

        It stays with its program; else opens the costliest unopened one; else helps where most is
        left.
        """
        costs = {p: len(jobs) * self.seconds[p] for p, jobs in self.left.items() if jobs}
        unopened = {p: cost for p, cost in costs.items() if p not in self.opened}
        if program not in costs:
            program = max(unopened or costs, key=costs.__getitem__)
        self.opened.add(program)
        return self.left[program].popleft()

    def put_back(self, job: Job):
        self.left[job[0].run.program].appendleft(job)


def train_all(trainer, runs: list[Run], dataset: data.Dataset, keys: list[str] | None = None):
    """Yield run and result for any number of runs of equal steps, lane by lane of `trainer`.

    With `keys` there are checkpoints, resumed from where they exist, removed once the caller asks
    for more.
    """
    from proxies_lib.runs import checkpoint

    width = max(trainer.lanes, 1)
    for begin in range(0, len(runs), width):
        members = runs[begin : begin + width]
        group, finished = None, False
        if keys:
            group = checkpoint.Group(members, keys[begin : begin + width], trainer.layout)
        try:
            # The caller stores each run before it asks for the next: then the group may go.
            yield from zip(members, trainer.train(members, dataset, group), strict=True)
            finished = True
        finally:
            if group:
                group.close(finished)


# ------------------------------------------------------------------ telling


class ProgressBar:
    """Runs done and time left: a bar on a terminal, one line that changes in a notebook, a line per
    tenth elsewhere.

    `seconds` is what a run of each program should take: runs weigh as much.
    """

    def __init__(self, missing: list[tables.Found], seconds: dict, quiet: bool):
        self.seconds, self.quiet = seconds, quiet
        self.total, self.done = len(missing), 0
        self.weight = sum(seconds[found.run.program] for found in missing)
        self.weight_done = 0.0
        self.started = time.monotonic()
        self.bar = self.line = None
        if quiet:
            return
        if sys.stderr.isatty():
            self.bar = tqdm(total=self.total, unit="run", smoothing=0.1)
        elif in_a_kernel():
            self.line = NotebookLine(self.total)

    def add(self, run: Run, note: str):
        """One run more is done; `note` says which, on the bar."""
        before = self.done
        self.done += 1
        self.weight_done += self.seconds[run.program]
        elapsed = time.monotonic() - self.started
        left = max(0.0, elapsed * (self.weight - self.weight_done) / self.weight_done)
        if self.bar is not None:
            self.bar.set_postfix_str(f"{note}, {left:.0f} s left")
            self.bar.update()
        elif self.line is not None:
            self.line.show(self.done, f"{left:.0f} s left, {note}")
        elif not self.quiet and self.done * 10 // self.total > before * 10 // self.total:
            print(f"  {self.done}/{self.total} runs, {left:.0f} s left", flush=True)

    def close(self):
        if self.bar is not None:
            self.bar.close()
        if self.line is not None:
            self.line.close(self.done)


def in_a_kernel() -> bool:
    """Whether this process is the kernel of a notebook."""
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython

    return hasattr(get_ipython(), "kernel")


class NotebookLine:
    """A bar in the output of a cell, drawn over itself.

    What is saved with the notebook, by papermill too, is its last state: one line of plain text
    without times, which differ from machine to machine.
    """

    SECONDS = 0.25  # between two drawings: a frontend is slower than a sweep of tiny runs

    def __init__(self, total: int):
        from IPython.display import display

        self.total, self.drawn = total, time.monotonic()
        first = {"text/plain": f"  0/{total} runs"}
        self.handle = display(first, raw=True, display_id=True)

    def show(self, done: int, words: str):
        """Draw that so many runs are done, unless it was drawn a moment ago."""
        if time.monotonic() - self.drawn < self.SECONDS:
            return
        self.drawn = time.monotonic()
        text = f"{done}/{self.total} runs, {words}"
        bar = f'<progress max="{self.total}" value="{done}"></progress> {html.escape(text)}'
        self.handle.update({"text/plain": f"  {text}", "text/html": bar}, raw=True)

    def close(self, done: int):
        self.handle.update({"text/plain": f"  {done}/{self.total} runs"}, raw=True)


def what_failed(error: BaseException) -> str:
    """An exception in one line: path and reason of the system's, else its type and first line."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return f"{type(error).__name__}: {settings.first_line(error)}"
