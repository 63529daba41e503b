"""Checkpoints of runs under way, by Orbax: sharded, written in the background, whole or not at all.

A group of lanes (or one sharded run) has a folder of its own, named after the keys of its runs. It can be resumed on
other devices: bit for bit on equal ones, up to rounding on others. Runs of less than an interval leave none behind,
unless they are interrupted by SIGTERM, which clouds send before they take a machine away.
"""

import contextlib
import dataclasses
import json
import logging
import os
import signal
import threading
from operator import itemgetter

import jax
import numpy as np

from proxies_lib import config
from proxies_lib.config import Run, UserError

# FLOPs of a device between two checkpoints: about five minutes of an H200 or ten of a v5e chip; five of a laptop.
FLOPS_BETWEEN = {"cpu": 1e13}
FLOPS_BETWEEN_ON_ACCELERATORS = 1e17
KEEP = 2  # the last ones of a group

_terminated = threading.Event()
_chunks = 0  # that this process has trained: processes in step count alike


class Preempted(UserError):
    """Training was asked to stop; what it had done is in a checkpoint."""

    status = 128 + signal.SIGTERM


def root():
    """The folder of checkpoints: PROXIES_CHECKPOINTS, also a bucket (gs://…), which hosts that share nothing need."""
    from etils import epath

    return epath.Path(os.environ.get("PROXIES_CHECKPOINTS") or config.folder("store") / "checkpoints")


def interval(run: Run, layout) -> int:
    """Steps between checkpoints, a multiple of `log_every`: a function of program and layout, the same on every host."""
    devices = layout.run * layout.data
    budget = FLOPS_BETWEEN.get(jax.default_backend(), FLOPS_BETWEEN_ON_ACCELERATORS) * devices
    chunk = run.flops / run.hparams.steps * run.train.log_every * max(layout.lanes, 1)
    return run.train.log_every * max(1, round(budget / chunk))


@contextlib.contextmanager
def until_terminated():
    """Within, SIGTERM ends training at the next chunk, with a checkpoint. Of several processes JAX hears it itself."""
    mine = jax.process_count() == 1 and threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGTERM, lambda *_: _terminated.set()) if mine else None
    try:
        yield
    finally:
        if mine:
            signal.signal(signal.SIGTERM, previous)
            _terminated.clear()


def _asked_to_stop() -> bool:
    """Whether to stop after this chunk. All processes answer alike, at the same chunk."""
    global _chunks
    _chunks += 1
    if jax.process_count() == 1:
        return _terminated.is_set()
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(_chunks)


def pending(missing) -> list[dict]:
    """Groups that have a checkpoint, all their runs among the keys `missing`: their `keys`, and `layout` by field."""
    if not root().exists():
        return []
    files = [folder / "group.json" for folder in sorted(root().iterdir())]
    groups = [json.loads(file.read_text()) for file in files if file.exists()]
    return [group for group in groups if set(group["keys"]) <= set(missing)]


class Group:
    """The checkpoints of runs that train together. `layout` is stored with them, so that they find together again."""

    def __init__(self, runs: list[Run], keys: list[str], layout):
        self.keys, self.layout, self.manager = keys, layout, None
        self.folder = root() / config.digest({"keys": keys})
        self.every = interval(runs[0], layout)
        self.steps = runs[0].hparams.steps

    def _open(self):
        if self.manager is None:
            import orbax.checkpoint as ocp

            logging.getLogger("absl").setLevel(logging.ERROR)
            if jax.process_index() == 0:
                self.folder.mkdir(parents=True, exist_ok=True)
                group = {"keys": self.keys, "layout": dataclasses.asdict(self.layout)}
                (self.folder / "group.json").write_text(json.dumps(group))
            options = ocp.CheckpointManagerOptions(max_to_keep=KEEP, create=True)
            self.manager = ocp.CheckpointManager(self.folder / "steps", options=options)
        return self.manager

    def restore(self, state, metrics, step: int | None = None):
        """State, first losses and points of the checkpoint at `step`, or of the last one; None where there is none.
        `state` is abstract, with the shardings it is wanted in; `metrics` are those of a chunk (Trainer.abstract)."""
        if not (self.folder / "group.json").exists():
            return None
        kept = self._open()
        step = kept.latest_step() if step is None else step
        if step is None or step not in kept.all_steps():
            return None
        import orbax.checkpoint as ocp

        n = step // metrics["loss"].shape[-1]
        points = jax.tree.map(lambda x: np.empty((n, *x.shape), x.dtype), metrics)
        first = np.empty(metrics["loss"].shape[:-1] or 1, np.float32)
        wanted = {"state": state, "first": first, "points": points}
        found = kept.restore(step, args=ocp.args.StandardRestore(wanted))
        points = jax.tree.map(np.asarray, found["points"])
        return found["state"], np.asarray(found["first"]), [jax.tree.map(itemgetter(i), points) for i in range(n)]

    def after(self, step: int, state, first: np.ndarray, points: list):
        """Save where it is time, `step` steps being done. Raises Preempted, all saved, when asked to stop."""
        stop = _asked_to_stop()
        if step >= self.steps or not (stop or step % self.every == 0):
            return
        import orbax.checkpoint as ocp

        stacked = jax.tree.map(lambda *x: np.stack(x), *points)
        args = ocp.args.StandardSave({"state": state, "first": first, "points": stacked})
        self._open().save(step, args=args, force=True)
        if stop:
            self.manager.wait_until_finished()
            raise Preempted(f"stopped by SIGTERM at step {step} of {self.steps}; start again to go on from there")

    def close(self, finished: bool):
        """End what is being written; when the runs are `finished` and stored, remove the folder."""
        if self.manager is not None:
            self.manager.close()
            if finished and jax.process_index() == 0:
                self.folder.rmtree()
