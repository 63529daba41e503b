"""The engine of accelerators: runs of one program train together, as vmapped lanes.

All devices of this process take part, or, under `jax.distributed`, those of all processes, in step.
Runs that do not fit a device are sharded over all of them instead (`layout`).
"""

import contextlib
from collections.abc import Iterator

import jax
import numpy as np

from proxies_lib import config, settings
from proxies_lib.config import UserError
from proxies_lib.data import Dataset
from proxies_lib.layout import Layout, layout_for
from proxies_lib.runs import checkpoint, datasets, engines, executables, provenance, tables
from proxies_lib.train import Trainer


def train(plan, quiet: bool):
    """Train what `plan` misses. Of several processes the first one's store says what that is, and
    it alone writes."""
    settings.platform_of_jax()  # refuses, in a line, where there is no such device
    executables.use_cache()
    provenance.commit()  # of the code that is loaded, whatever is checked out while it trains
    is_first = jax.process_index() == 0
    missing = _missing_at_first(plan)
    devices, trainers = jax.devices(), {}
    progress = engines.ProgressBar(missing, plan.seconds, quiet or not is_first)
    with contextlib.closing(progress), checkpoint.until_terminated():
        for layout, members in _groups(missing, devices):
            program = members[0].run.program
            dataset = _open_as_planned(members[0])
            if (program, layout) not in trainers:
                trainers[program, layout] = Trainer(*program, layout, devices)
            trainer = trainers[program, layout]
            runs, keys = [found.run for found in members], [found.known_key for found in members]
            for run, result in engines.train_all(trainer, runs, dataset, keys):
                if is_first:
                    provenance.record(plan.folder, run, dataset, result)
                progress.add(run, f"d {run.model.d_model}")


def _missing_at_first(plan) -> list[tables.Found]:
    """What the first process's plan misses: all processes must train the same runs."""
    if jax.process_count() == 1:
        return plan.missing
    from jax.experimental import multihost_utils

    mine = np.array([not found.layer for found in plan.found])
    is_missing = multihost_utils.broadcast_one_to_all(mine)
    return [found for found, missing in zip(plan.found, is_missing, strict=True) if missing]


def _groups(missing: list[tables.Found], devices) -> Iterator[tuple[Layout, list[tables.Found]]]:
    """Layouts, and the runs that train in them: first groups that have a checkpoint, then the
    others by program."""
    left = {found.key: found for found in missing}
    for group in checkpoint.pending(left):
        members = [left.pop(key) for key in group["keys"]]
        # It was saved on other devices, perhaps.
        yield Layout(**group["layout"]).on(len(devices), members[0].run.train), members
    for members in engines.groups_of(left.values()):
        yield layout_for(*members[0].run.program, devices), members


def _open_as_planned(found: tables.Found) -> Dataset:
    """The dataset of a run. Raises UserError where it is another one than when the run's key was
    made, which names its checkpoints."""
    run = found.run
    dataset = datasets.open_dataset(run.data, run.model.vocab_size)
    if config.key(run, dataset.fingerprint) != found.key:
        again = "was prepared again since the sweep was planned; start again"
        raise UserError(f"data={run.data!r}: {again}")
    return dataset
