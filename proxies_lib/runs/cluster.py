"""The engine of clusters, over Ray: the driver hands out small jobs and stores what workers send.

Nodes share nothing but the code and the corpora. A worker holds one slot of a node: a CPU core,
where it trains a run at a time on one thread, or one chip of an accelerator, where runs of one
program train as vmapped lanes. A finished job is in the driver's store at once and never handed out
again. A node that dies loses only its jobs in flight, which other nodes train; a node that joins is
used.
"""

import collections
import fcntl
import os
import pathlib
import platform
import re
import socket
import tempfile
from typing import TYPE_CHECKING, Any

from proxies_lib import config, paths, settings
from proxies_lib.config import Run, UserError, refuse
from proxies_lib.runs import datasets, engines, provenance, store

if TYPE_CHECKING:
    from proxies_lib.train import Trainer

LANES = 16  # runs of a job on an accelerator

LOSSES = 5  # a job that took more workers than this with it ends the sweep

# What a worker asks of Ray. One chip, also on a slice of several hosts: Ray bounds the process to
# it, so that hosts do not wait for each other.
SLOTS: dict[str, dict[str, Any]] = {
    "TPU": {"num_cpus": 0, "resources": {"TPU": 1}},
    "GPU": {"num_cpus": 0, "num_gpus": 1},
    "CPU": {"num_cpus": 1},
}


# ------------------------------------------------------------------ on a node


class Worker:
    """An actor of Ray that trains jobs on its node, `lanes` runs at once (0: one run, no vmap)."""

    def __init__(self, lanes: int):
        if not lanes:
            settings.use_one_thread()
        # JAX is imported only now: its threads are counted as it starts.
        from proxies_lib.runs import executables

        executables.use_cache()
        provenance.commit()  # of the code that is loaded, whatever is checked out later
        self.lanes = lanes
        self.trainers: dict[tuple, Trainer] = {}

    def check(self, fingerprints: dict[tuple[str, int], str]) -> str:
        """What makes this node unfit, in one line, or "".

        Its corpora must be the driver's; `stdlib` prepares itself.
        """
        node, cache = f"node {platform.node()}", paths.folder("cache")
        if self.lanes and settings.platform_of_jax() == "cpu":
            return f"{node}: Ray counts accelerators here, but jax finds none; install jax for them"
        cache.mkdir(parents=True, exist_ok=True)
        with open(cache / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # one worker of a node prepares, the others wait
            for (name, vocab_size), expected in fingerprints.items():
                try:
                    dataset = datasets.open_dataset(name, vocab_size, say=lambda line: None)
                except UserError as error:
                    return f"{node}: {error}"
                found = dataset.fingerprint
                if found != expected:
                    why = " (it depends on Python's version)" if name == "stdlib" else ""
                    unlike = f"fingerprint {found}, but {expected} where the sweep began{why}"
                    return f"{node}: data={name!r}: {unlike}"
        return ""

    def train(self, runs: list[Run], keys: list[str]) -> list[store.Record]:
        """Metadata and curves of runs of one program.

        They must have the same `keys` on this node; raises UserError where they have not.
        """
        dataset = datasets.open_dataset(runs[0].data, runs[0].model.vocab_size)
        if [config.key(run, dataset.fingerprint) for run in runs] != keys:
            another = "has another version of proxies_lib; install the same everywhere"
            raise UserError(f"node {platform.node()}: {another}")
        trainer = self._trainer_for(runs[0])
        with tempfile.TemporaryDirectory() as scratch:
            for run, result in engines.train_all(trainer, runs, dataset):
                provenance.record(scratch, run, dataset, result)
            return [_read_back(scratch, key) for key in keys]

    def _trainer_for(self, run: Run):
        """The trainer of a run's program, compiled at most once."""
        import jax

        from proxies_lib.layout import layout_alone, layout_for
        from proxies_lib.train import Trainer

        devices = jax.devices() if self.lanes else None
        layout = layout_for(*run.program, devices) if devices else layout_alone(run)
        compiled = (*run.program, layout)
        if compiled not in self.trainers:
            self.trainers[compiled] = Trainer(*compiled, devices)
        return self.trainers[compiled]


def _read_back(folder: str, run_key: str) -> store.Record:
    """A record that this process has written."""
    record = store.read(pathlib.Path(folder), run_key)
    assert record is not None
    return record


# ------------------------------------------------------------------ the driver


def train(plan, workers: int = 0, quiet: bool = False):
    """Train what `plan` misses on the Ray cluster at RAY_ADDRESS, else one that runs here or is
    started.

    `workers` slots are asked for, which makes an autoscaling cluster grow; 0: all that the cluster
    has, now or later.
    """
    try:
        import ray
    except ImportError:
        refuse(
            "engine", "ray", "needs the optional extra: pip install -c constraints.txt -e '.[ray]'"
        )
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if ray.is_initialized():
        _Driver(ray, plan, workers, quiet).serve()
        return
    address = os.environ.get("RAY_ADDRESS") or "auto"
    try:
        _knock(address)
        ray.init(log_to_driver=False, logging_level="ERROR")
    except (OSError, OverflowError, ValueError, RuntimeError, ImportError) as error:
        refuse("RAY_ADDRESS", address, f"no Ray cluster answers there ({_last_line(error)})")
    try:
        _Driver(ray, plan, workers, quiet).serve()
    finally:
        ray.shutdown()


def _knock(address: str):
    """Raise OSError where nobody answers at `host:port`: Ray itself tries for many minutes."""
    place = re.fullmatch(r"(?:ray://)?([^/]+):(\d+)", address)
    if place:
        socket.create_connection((place[1], int(place[2])), timeout=10).close()


class _Driver:
    """Hands jobs to workers and stores what they send.

    `awaited` are the answers that are to come: from which worker, and to which job. A worker's
    first answer is that of `check`; its job is None.
    """

    def __init__(self, ray, plan, workers: int, quiet: bool):
        self.ray, self.plan, self.workers = ray, plan, workers
        resources = ray.cluster_resources()
        self.kind = next((kind for kind in SLOTS if resources.get(kind)), "CPU")
        self.lanes = 0 if self.kind == "CPU" else LANES
        self.fingerprints = _fingerprints(plan)
        self.jobs = engines.Jobs(plan, max(self.lanes, 1))
        self.awaited: dict[Any, tuple[Any, engines.Job | None]] = {}
        # Workers that died, by the job that they had.
        self.losses: collections.Counter[engines.Job | None] = collections.Counter()
        self.progress = engines.ProgressBar(plan.missing, plan.seconds, quiet)
        slot = dict(SLOTS[self.kind])
        if self.kind == "CPU":
            slot["runtime_env"] = {"env_vars": settings.ONE_THREAD_AT_START}
        self.actor = ray.remote(Worker).options(**slot)

    def serve(self):
        """Until nothing is left to train. Raises UserError where that cannot be."""
        try:
            while self._unfinished():
                self._start_workers()
                if not self.awaited:
                    none = "the cluster has no CPU, GPU or TPU to train on"
                    raise UserError(f"ray: {none}; add a node, or ask with --workers")
                answers, _ = self.ray.wait(list(self.awaited), timeout=5)
                for answer in answers:
                    worker, job = self.awaited.pop(answer)
                    self._accept(answer, worker, job)
        finally:
            self.progress.close()
            for worker, _ in self.awaited.values():
                self.ray.kill(worker)

    def _unfinished(self) -> int:
        """Jobs that are to be handed out or in flight."""
        return len(self.jobs) + sum(job is not None for _, job in self.awaited.values())

    def _start_workers(self):
        """As many as are wanted or have a slot, and have something to do."""
        slots = self.workers or int(self.ray.cluster_resources().get(self.kind, 0))
        for _ in range(min(slots, self._unfinished()) - len(self.awaited)):
            worker = self.actor.remote(self.lanes)
            self.awaited[worker.check.remote(self.fingerprints)] = worker, None

    def _accept(self, answer, worker, job: engines.Job | None):
        """Store what a worker sends, or put its job back where it is gone; hand it the next job."""
        exceptions = self.ray.exceptions
        try:
            sent = self.ray.get(answer)
        except exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from None
            raise UserError(f"ray: {engines.what_failed(error.cause)}; {engines.GO_ON}") from error
        except exceptions.RayError as error:
            self._lose(worker, job, error)
            return
        if job is None and sent:
            raise UserError(sent)  # an unfit node
        self.losses.pop(None, None)  # some worker lives: start counting anew
        if job is not None:
            self._store(job, sent)
        if self.jobs:
            # It has compiled the program of its last job.
            following = self.jobs.take(job and job[0].run.program)
            runs, keys = [found.run for found in following], [found.key for found in following]
            self.awaited[worker.train.remote(runs, keys)] = worker, following

    def _store(self, job: engines.Job, records: list[store.Record]):
        for found, (meta, curves) in zip(job, records):
            store.write(self.plan.folder, meta, curves)
            run = found.run
            self.progress.add(run, f"d {run.model.d_model} lr {run.hparams.lr:g}")

    def _lose(self, worker, job: engines.Job | None, error: Exception):
        """Put the job of a dead worker back. Raises UserError where workers keep dying of it."""
        self.ray.kill(worker)
        self.losses[job] += 1
        # Before their first job all workers that are awaited may die of one cause.
        most = LOSSES if job else LOSSES * (1 + len(self.awaited))
        if self.losses[job] > most:
            dying = f"workers keep dying ({_last_line(error)})"
            raise UserError(f"ray: {dying}; finished runs are kept") from None
        if job:
            self.jobs.put_back(job)


def _fingerprints(plan) -> dict[tuple[str, int], str]:
    """Fingerprint of each corpus that missing runs read, by name and vocabulary."""
    corpora = {(found.run.data, found.run.model.vocab_size) for found in plan.missing}
    return {corpus: datasets.open_dataset(*corpus).fingerprint for corpus in sorted(corpora)}


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
