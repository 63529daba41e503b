"""The engine of CPUs: a worker process per core, each trains a run at a time on one thread.

This is the side of the sweep; `worker` is the other one. A worker writes each finished run to the
store itself, so a killed sweep loses only the runs in flight.
"""

import concurrent.futures
import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading

from proxies_lib import config, paths, settings
from proxies_lib.config import Run, UserError
from proxies_lib.runs.engines import GO_ON, Job, Jobs, ProgressBar


def train(plan, workers: int, quiet: bool):
    """Train what `plan` misses, `workers` runs at a time. Raises UserError where a worker fails.

    An interrupt or an exit, as SIGTERM makes it, ends every worker at once: the runs that they are
    at may take hours.
    """
    jobs = Jobs(plan, 1)
    progress = ProgressBar(plan.missing, plan.seconds, quiet)
    # The lock guards jobs, progress and the list of working processes.
    lock, stop = threading.Lock(), threading.Event()
    working: list[WorkerProcess] = []

    def next_job(program) -> Job | None:
        with lock:
            return None if stop.is_set() or not jobs else jobs.take(program)

    def serve(core: int):
        """Start a worker and hand it one run after another; a thread for each worker."""
        with WorkerProcess(core, plan.folder) as worker:
            with lock:
                working.append(worker)
            job = next_job(None)
            while job:
                run = job[0].run
                worker.train(run)
                with lock:
                    progress.add(run, f"d {run.model.d_model} lr {run.hparams.lr:g}")
                job = next_job(run.program)

    failure: BaseException | None = None
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        try:
            futures = [pool.submit(serve, core) for core in range(workers)]
            for future in concurrent.futures.as_completed(futures):
                failure = failure or future.exception()
                if failure:
                    stop.set()  # the others end after the runs they are at
        except (KeyboardInterrupt, SystemExit):
            stop.set()  # first: a worker that starts only now gets no run
            with lock:
                for worker in working:
                    worker.process.kill()
            raise
        finally:
            stop.set()
            progress.close()
    if failure:
        raise failure


class WorkerProcess:
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
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None and stdout is not None  # they are pipes
        try:
            stdin.write(json.dumps(config.flat(run)) + "\n")
            stdin.flush()
            line = stdout.readline()
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
        last_words = (self.log.read().strip().splitlines() or [""])[-1]
        if -status == signal.SIGKILL:
            return "was killed by SIGKILL, which the system does where memory runs out"
        if status < 0:
            name = signal.Signals(-status).name
            return f"was killed by {name} ({last_words or 'it said nothing'})"
        return f"stopped ({last_words or f'status {status}'})"

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
        for stream in (self.process.stdin, self.process.stdout, self.log):
            with contextlib.suppress(BrokenPipeError):  # of what it has not read
                stream.close()
