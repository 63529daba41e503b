"""Checkpoints of runs under way, by Orbax: sharded, in the background, whole or not at all.

A group of lanes (or one sharded run) has a folder of its own, named after the keys of its runs:

    <root>/<hash of keys>/group.json     keys and layout, so that they train together again
    <root>/<hash of keys>/steps/<step>   state, first losses and logged points at that step

It can be resumed on other devices: bit for bit on equal ones, up to rounding on others. Runs of
less than an interval leave none behind, unless they are interrupted by SIGTERM, which clouds send
before they take a machine away.

Orbax's files hold arrays without checksums, so sums of them stand in its metadata and are compared
on restoring. What cannot be read, a group or a step, is told in a line and passed over: an earlier
step is taken, or the beginning.
"""

import contextlib
import dataclasses
import gc
import json
import logging
import os
import pathlib
import signal
import sys
import threading
import warnings
from typing import TYPE_CHECKING

import jax
import numpy as np

from proxies_lib import config, paths
from proxies_lib.config import Run, UserError
from proxies_lib.layout import Layout
from proxies_lib.settings import first_line
from proxies_lib.train import Progress

if TYPE_CHECKING:
    import orbax.checkpoint as ocp

# FLOPs of a device between two checkpoints, by its kind: about five minutes of a laptop's core, of
# an H200, or ten of a v5e chip.
FLOPS_BETWEEN = {"cpu": 1e13}

FLOPS_BETWEEN_ON_ACCELERATORS = 1e17

KEEP = 2  # the last ones of a group

_terminated = threading.Event()

_chunks = 0  # that this process has trained: processes in step count alike


def root():
    """The folder of checkpoints.

    PROXIES_CHECKPOINTS may name a bucket (gs://…), which hosts that share nothing need.
    """
    from etils import epath

    named = os.environ.get("PROXIES_CHECKPOINTS", "")
    if "://" in named:
        return epath.Path(named)
    return epath.Path(os.path.abspath(named) if named else paths.folder("store") / "checkpoints")


def interval(run: Run, layout: Layout) -> int:
    """Steps between checkpoints, a multiple of `log_every`.

    A function of program and layout, so the same on every host.
    """
    devices = layout.run * layout.data
    budget = FLOPS_BETWEEN.get(jax.default_backend(), FLOPS_BETWEEN_ON_ACCELERATORS) * devices
    flops_of_step = run.flops / run.hparams.steps
    chunk = flops_of_step * run.train.log_every * max(layout.lanes, 1)
    return run.train.log_every * max(1, round(budget / chunk))


# ------------------------------------------------------------------ being stopped


class Preempted(UserError):
    """Training was asked to stop; what it had done is in a checkpoint."""

    status = 128 + signal.SIGTERM


@contextlib.contextmanager
def until_terminated():
    """Within, SIGTERM ends training at the next chunk, with a checkpoint.

    Of several processes JAX hears the signal itself, and tells all of them.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    listens = jax.process_count() == 1 and in_main_thread
    if listens:
        previous = signal.signal(signal.SIGTERM, lambda *_: _terminated.set())
    try:
        yield
    finally:
        if listens:
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


# ------------------------------------------------------------------ groups on the disk


def pending(missing, say=print) -> list[dict]:
    """Groups that have a checkpoint, all their runs among the keys `missing`: their `keys`, and
    `layout` by field.

    A run is in one of them at most. A group that cannot be read is passed over, with a line.
    """
    if not root().is_dir():
        return []
    groups, left = [], set(missing)
    for folder in sorted(root().iterdir()):
        if not (folder / "group.json").exists():
            continue
        group = _read_group(folder)
        if group is None:
            lost = "cannot be read; its runs start from the beginning"
            say(f"checkpoint: group {folder.name} {lost}")
        elif left.issuperset(group["keys"]):
            groups.append(group)
            left.difference_update(group["keys"])
    return groups


def _read_group(folder) -> dict | None:
    """The group of a folder of checkpoints, None where its file is damaged or of other fields."""
    try:
        if not (folder / "group.json").is_file():  # a pipe would wait for ever
            return None
        group = json.loads((folder / "group.json").read_text())
        return group if _is_whole(group, folder.name) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _is_whole(group: dict, name: str) -> bool:
    """Whether a group is as `Group` writes it into the folder `name`.

    Raises what a wrong type or an unknown field raises.
    """
    keys, layout = group["keys"], group["layout"]
    types = {field.name: field.type for field in dataclasses.fields(Layout)}
    least = {"lanes": 0, "scan": False}  # of all other fields 1
    return (
        name == _folder_name(keys)
        and len(set(keys)) == len(keys) > 0
        and all(type(value) is types[field] for field, value in layout.items())
        and all(value >= least.get(field, 1) for field, value in layout.items())
        and group.get("digest") in (None, _digest(keys, layout))  # older ones have none
    )


def _folder_name(keys: list[str]) -> str:
    return config.digest({"keys": keys})


def _digest(keys: list[str], layout: dict) -> str:
    return config.digest({"keys": keys, "layout": layout})


# ------------------------------------------------------------------ sums


def _sums(tree) -> list[int]:
    """A checksum of each array of `tree`: its words added up, modulo 2³².

    So it is the same however an array lies on devices and processes.
    """
    sums = np.array([_sum_here(array) % 2**32 for array in jax.tree.leaves(tree)], np.uint32)
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        sums = multihost_utils.process_allgather(sums).sum(axis=0, dtype=np.uint64) % 2**32
    return sums.tolist()


def _sum_here(array) -> int:
    """The sum of what this process holds of an array, each part of it once over all processes."""
    if isinstance(array, jax.Array):
        parts = [shard.data for shard in array.addressable_shards if shard.replica_id == 0]
    else:  # of NumPy, the same on every process
        parts = [array] if jax.process_index() == 0 else []
    total = 0
    for part in parts:
        values = np.ascontiguousarray(part)
        words = values.view(f"u{values.itemsize}")
        total += int(words.sum(dtype=np.uint64))
    return total


def _everywhere(fine: bool) -> bool:
    """Whether all processes say so: they go on from the same step."""
    if jax.process_count() == 1:
        return fine
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.array(fine)).all())


# ------------------------------------------------------------------ a group under way


class Group:
    """The checkpoints of runs that train together.

    `say` is told what is damaged, and what a full disk did not take: training goes on without.
    """

    def __init__(self, runs: list[Run], keys: list[str], layout: Layout, say=print):
        self.keys, self.layout, self.say = keys, layout, say
        self.folder = root() / _folder_name(keys)
        self.every = interval(runs[0], layout)
        self.steps = runs[0].hparams.steps
        self.manager: ocp.CheckpointManager | None = None  # from the first save or restore on
        self.damaged: list[int] = []  # steps that could not be restored
        self.failed = False  # a save has

    def restore(self, state, metrics, step: int | None = None) -> Progress | None:
        """The checkpoint at `step`, or the last whole one; None where there is none.

        `state` is abstract, with the shardings it is wanted in; `metrics` are those of a chunk
        (Trainer.abstract).
        """
        if not (self.folder / "group.json").exists():
            return None
        steps = sorted(self._open().all_steps(), reverse=True)
        if step is not None:
            steps = [step] if step in steps else []
        for candidate in steps:
            saved = self._read_everywhere(candidate, state, metrics)
            if saved is not None:
                stacked = jax.tree.map(np.asarray, saved["points"])
                points = [
                    jax.tree.map(lambda values, i=i: values[i], stacked)
                    for i in range(_points_until(candidate, metrics))
                ]
                return Progress(saved["state"], np.asarray(saved["first"]), points)
            self.damaged.append(candidate)
            if jax.process_index() == 0:
                name = self.folder.name
                self.say(f"checkpoint: step {candidate} of group {name} is damaged and passed over")
        return None

    def after(self, step: int, state, first: np.ndarray, points: list):
        """Save where it is time, `step` steps being done.

        Raises Preempted, all saved, when asked to stop.
        """
        stop = _asked_to_stop()
        if step >= self.steps or not (stop or step % self.every == 0):
            return
        stacked = jax.tree.map(lambda *values: np.stack(values), *points)
        tree = {"state": state, "first": first, "points": stacked}
        self._settled()
        saved = self._tried(lambda: self._save(step, tree))
        if stop:
            saved = self._settled() and saved
            then = "start again to go on from there" if saved else "no checkpoint could be written"
            raise Preempted(f"stopped by SIGTERM at step {step} of {self.steps}; {then}")

    def close(self, finished: bool):
        """End what is being written; when the runs are `finished` and stored, remove the folder."""
        if self.manager is not None:
            self._settled()
            self.manager.close()
        wrote = self.manager is not None or self.failed
        if finished and wrote and jax.process_index() == 0:
            self.folder.rmtree(missing_ok=True)

    def _read_everywhere(self, step: int, state, metrics) -> dict | None:
        """What was saved at `step`, None unless every process reads it, and unchanged."""
        saved = self._read(step, state, metrics)
        if not _everywhere(saved is not None):
            return None
        assert saved is not None  # here as everywhere
        return saved if _everywhere(self._is_unchanged(step, saved)) else None

    def _read(self, step: int, state, metrics) -> dict | None:
        """What was saved at `step`, None where it cannot be read."""
        import orbax.checkpoint as ocp

        count = _points_until(step, metrics)
        points = jax.tree.map(lambda x: np.empty((count, *x.shape), x.dtype), metrics)
        first = np.empty(metrics["loss"].shape[:-1] or 1, np.float32)
        wanted = {"state": state, "first": first, "points": points}
        with _quietly():
            try:
                return self._open().restore(step, args=ocp.args.StandardRestore(wanted))
            except Exception:  # Orbax and TensorStore raise almost anything on damaged files
                pass
            gc.collect()  # coroutines that it left behind would complain later
        return None

    def _is_unchanged(self, step: int, saved: dict) -> bool:
        """Whether arrays have the sums that they were saved with. Older checkpoints have none."""
        sums = (self._open().metadata(step).custom_metadata or {}).get("sums")
        found = _sums(saved)  # all processes take part, whatever they read
        return found == (sums or found)

    def _save(self, step: int, tree: dict):
        import orbax.checkpoint as ocp

        manager = self._open()
        while self.damaged:  # deleted only now, with something newer to keep
            manager.delete(self.damaged.pop())
        args, sums = ocp.args.StandardSave(tree), {"sums": _sums(tree)}
        manager.save(step, args=args, force=True, custom_metadata=sums)

    def _settled(self) -> bool:
        """Wait for what is being written in the background; whether it was written."""
        return self.manager is None or self._tried(self.manager.wait_until_finished)

    def _tried(self, write) -> bool:
        """Whether `write()` worked. If not, a line, the first time, and no remains.

        Where there are several processes all would have to know of it, so there it raises.
        """
        try:
            write()
        except Exception as error:  # Orbax and TensorStore raise almost anything on a full disk
            if jax.process_count() > 1:
                raise
            if not self.failed:
                why = first_line(error)[:100]
                name = self.folder.name
                self.say(f"checkpoint: {name} was not written ({why}); training goes on")
            self.failed = True
            for remains in (self.folder / "steps").glob("*.orbax-checkpoint-tmp"):
                remains.rmtree(missing_ok=True)
            return False
        return True

    def _open(self) -> "ocp.CheckpointManager":
        """Orbax's manager of the group's folder, which is made."""
        if self.manager is None:
            import orbax.checkpoint as ocp

            for chatty in ("absl", "asyncio"):  # pages about a damaged step, of which a line tells
                logging.getLogger(chatty).setLevel(logging.CRITICAL)
            if jax.process_index() == 0:
                self._write_group()
            options = ocp.CheckpointManagerOptions(max_to_keep=KEEP, create=True)
            # Said, though deprecated: with a registry of handlers Orbax takes from the last step
            # on disk, even a damaged one, whether a step is one unnamed item.
            handler = ocp.StandardCheckpointHandler()
            self.manager = ocp.CheckpointManager(
                self.folder / "steps", options=options, item_handlers=handler
            )
        return self.manager

    def _write_group(self):
        layout = dataclasses.asdict(self.layout)
        group = {"keys": self.keys, "layout": layout, "digest": _digest(self.keys, layout)}
        if _read_group(self.folder) == group:
            return
        content, file = json.dumps(group).encode(), self.folder / "group.json"
        self.folder.mkdir(parents=True, exist_ok=True)
        if "://" in os.fspath(file):  # a bucket writes objects whole
            file.write_bytes(content)
        else:
            paths.write_atomically(pathlib.Path(file), content)


def _points_until(step: int, metrics) -> int:
    """Logged points of `step` steps; the last axis of a chunk's losses is that of its steps."""
    return step // metrics["loss"].shape[-1]


@contextlib.contextmanager
def _quietly():
    """Within, nothing is printed about exceptions and coroutines that nobody waits for."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.unraisablehook = hook
