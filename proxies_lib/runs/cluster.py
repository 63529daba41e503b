"""A sweep over a Ray cluster: the driver hands out small jobs, workers send records back, the driver stores them.

Nodes share nothing but the code and the corpora. A worker holds one slot of a node: a CPU core, where it trains a run
at a time on one thread, or one chip of an accelerator, where runs of one program train as vmapped lanes. A finished job
is in the driver's store at once and never handed out again. A node that dies loses only its jobs in flight, which other
nodes train; a node that joins is used.
"""

import collections
import fcntl
import os
import platform
import re
import socket
import tempfile

from proxies_lib import config, paths, settings
from proxies_lib.config import Run, UserError, refuse
from proxies_lib.runs import datasets, engines, provenance, store

LANES = 16  # runs of a job on an accelerator

LOSSES = 5  # a job that took more workers than this with it ends the sweep

# One chip also on a slice of several hosts: Ray bounds the process to it, so that hosts do not wait for each other.
SLOTS = {
    "TPU": {"num_cpus": 0, "resources": {"TPU": 1}},
    "GPU": {"num_cpus": 0, "num_gpus": 1},
    "CPU": {"num_cpus": 1},
}


class Worker:
    """An actor of Ray that trains jobs on its node, `lanes` runs at once (0: one run, no vmap)."""

    def __init__(self, lanes: int):
        if not lanes:
            settings.use_one_thread()
        from proxies_lib.runs import (
            executables,
        )  # jax only now: its threads are counted as it starts

        executables.use_cache()
        self.lanes, self.trainers = lanes, {}

    def check(self, fingerprints: dict[tuple[str, int], str]) -> str:
        """What makes this node unfit, in one line, or "". Its corpora must be the driver's; `stdlib` prepares itself."""
        node, cache = f"node {platform.node()}", paths.folder("cache")
        if self.lanes and settings.platform_of_jax() == "cpu":
            return f"{node}: Ray counts accelerators here, but jax finds none; install jax for them"
        cache.mkdir(parents=True, exist_ok=True)
        with open(cache / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for corpus, expected in fingerprints.items():
                try:
                    found = datasets.open_dataset(*corpus, say=lambda line: None).fingerprint
                except UserError as error:
                    return f"{node}: {error}"
                if found != expected:
                    why = " (it depends on Python's version)" if corpus[0] == "stdlib" else ""
                    return f"{node}: data={corpus[0]!r}: fingerprint {found}, but {expected} where the sweep began{why}"
        return ""

    def train(self, runs: list[Run], keys: list[str]) -> list[tuple]:
        """Metadata and curves of runs of one program, which must have the same `keys` on this node."""
        import jax

        from proxies_lib.layout import layout_alone, layout_for
        from proxies_lib.train import Trainer

        program, dataset = (
            runs[0].program,
            datasets.open_dataset(runs[0].data, runs[0].model.vocab_size),
        )
        if [config.key(one, dataset.fingerprint) for one in runs] != keys:
            raise UserError(
                f"node {platform.node()}: has another version of proxies_lib; install the same everywhere"
            )
        devices = jax.devices() if self.lanes else None
        compiled = (*program, layout_for(*program, devices) if devices else layout_alone(runs[0]))
        if compiled not in self.trainers:
            self.trainers[compiled] = Trainer(*compiled, devices)
        with tempfile.TemporaryDirectory() as scratch:
            for one, result in engines.train_all(self.trainers[compiled], runs, dataset):
                provenance.record(scratch, one, dataset, result)
            return [store.read(scratch, key) for key in keys]


def run(plan, address: str | None = None, workers: int = 0, quiet: bool = False):
    """Train what `plan` misses on the Ray cluster at `address`, else RAY_ADDRESS, else one that runs here or is started.

    `workers` slots are asked for, which makes an autoscaling cluster grow; 0: all that the cluster has, now or later.
    """
    try:
        import ray
    except ImportError:
        refuse("engine", "ray", "needs the optional extra: pip install 'proxies-lib[ray]'")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if ray.is_initialized():
        return _serve(ray, plan, workers, quiet)
    where = address or os.environ.get("RAY_ADDRESS") or "auto"
    try:
        if match := re.fullmatch(
            r"(?:ray://)?([^/]+):(\d+)", where
        ):  # Ray itself tries for many minutes
            socket.create_connection((match[1], int(match[2])), timeout=10).close()
        ray.init(address, log_to_driver=False, logging_level="ERROR")
    except (OSError, OverflowError, ValueError, RuntimeError, ImportError) as error:
        refuse("RAY_ADDRESS", where, f"no Ray cluster answers there ({_last_line(error)})")
    try:
        _serve(ray, plan, workers, quiet)
    finally:
        ray.shutdown()


def _serve(ray, plan, workers: int, quiet: bool):
    kind = next((k for k in SLOTS if ray.cluster_resources().get(k)), "CPU")
    lanes, options = 0 if kind == "CPU" else LANES, dict(SLOTS[kind])
    if kind == "CPU":
        options["runtime_env"] = {"env_vars": settings.ONE_THREAD_AT_START}
    corpora = {(f.run.data, f.run.model.vocab_size) for f in plan.missing}
    fingerprints = {
        corpus: datasets.open_dataset(*corpus).fingerprint for corpus in sorted(corpora)
    }
    jobs, lost, awaited = (
        engines.Jobs(plan, max(lanes, 1)),
        collections.Counter(),
        {},
    )  # an answer: (worker, job or None)
    progress = engines.Progress(
        len(plan.missing), sum(plan.seconds[f.run.program] for f in plan.missing), quiet
    )
    actor = ray.remote(Worker).options(**options)

    def accept(answer, worker, job: engines.Job | None):
        """Store what a worker sends, or put its job back where it is gone; hand it the next job."""
        try:
            sent = ray.get(answer)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from None
            raise UserError(f"ray: {engines.what_failed(error.cause)}; {engines.GO_ON}") from error
        except ray.exceptions.RayError as error:
            ray.kill(worker)
            lost[job] += 1
            if lost[job] > LOSSES * (1 if job else 1 + len(awaited)):
                raise UserError(
                    f"ray: workers keep dying ({_last_line(error)}); finished runs are kept"
                ) from None
            if job:
                jobs.put_back(job)
            return
        if job is None and sent:
            raise UserError(sent)
        lost.pop(None, None)
        for f, (meta, curves) in zip(job or (), sent):
            store.write(plan.folder, meta, curves)
            progress.add(
                plan.seconds[f.run.program], f"d {f.run.model.d_model} lr {f.run.hparams.lr:g}"
            )
        if jobs:
            job = jobs.take(job and job[0].run.program)
            awaited[worker.train.remote([f.run for f in job], [f.key for f in job])] = worker, job

    try:
        while busy := len(jobs) + sum(job is not None for _, job in awaited.values()):
            for _ in range(
                min(workers or int(ray.cluster_resources().get(kind, 0)), busy) - len(awaited)
            ):
                worker = actor.remote(lanes)
                awaited[worker.check.remote(fingerprints)] = worker, None
            if not awaited:
                raise UserError(
                    "ray: the cluster has no CPU, GPU or TPU to train on; add a node, or ask with --workers"
                )
            for answer in ray.wait(list(awaited), timeout=5)[0]:
                accept(answer, *awaited.pop(answer))
    finally:
        progress.close()
        for worker, _ in awaited.values():
            ray.kill(worker)


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
