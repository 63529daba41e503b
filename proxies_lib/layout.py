"""How a program lies on devices. A layout changes rounding, never what is computed, and is no part of a run."""

import dataclasses
import math

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from proxies_lib import ops
from proxies_lib.config import ModelConfig, Run, TrainConfig, refuse

MAX_LANES = 16  # on one device

MAX_POINTS = 16  # of one call

FLOPS_OF_CALL = 2e11  # at most, where a call trains several points: seconds of a core

DEEP = 24  # more layers are scanned, whatever the memory: unrolled, compilation grows with them

MEMORY_SHARE = 0.8  # of a device's memory, for what `memory` counts

CPU_MEMORY = 2 << 30  # of a device that does not tell


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a program lies on devices: a mesh ("run", "data"), lanes over the first, one run's batch, parameters and
    optimizer state over the second (FSDP). `lanes` runs are trained at once by vmap (0: one, without). `scan` scans over
    layers and computes each again in the backward pass. `accumulate` splits a step's batch into microbatches. One call
    trains `points` logged points of a run alone (without lanes, without checkpoints)."""

    lanes: int = 0
    run: int = 1
    data: int = 1
    scan: bool = False
    accumulate: int = 1
    points: int = 1

    def on(self, devices: int, train: TrainConfig) -> "Layout":
        """The same state on another number of devices: a microbatch holds as many rows of a device, or fewer."""
        if self.lanes:
            return dataclasses.replace(self, run=math.gcd(self.lanes, devices))
        shards = _shards(devices, train.batch_size)
        rows = train.batch_size // shards
        parts = next(
            a
            for a in range(1, rows + 1)
            if rows % a == 0 and a * shards >= self.accumulate * self.data
        )
        return dataclasses.replace(self, data=shards, accumulate=parts)

    def check(self, config: ModelConfig, train: TrainConfig):
        """Raises UserError where lanes, batch or layers cannot be laid out so."""
        if self.lanes % self.run or (self.run > 1 and not self.lanes):
            refuse("lanes", self.lanes, f"must be a multiple of run={self.run}")
        if train.batch_size % (self.data * self.accumulate):
            refuse(
                "batch_size",
                train.batch_size,
                f"must be a multiple of data × accumulate = {self.data * self.accumulate}",
            )
        if self.points > 1 and self.lanes:
            refuse("points", self.points, "must be 1 with lanes")
        if self.scan and not config.n_layers:
            refuse("n_layers", config.n_layers, "must be above 0 to scan over layers")


def _shards(devices: int, batch_size: int) -> int:
    """Over how many of the devices a batch can be split."""
    return next(n for n in range(devices, 0, -1) if batch_size % n == 0)


def memory(config: ModelConfig, train: TrainConfig, layout: Layout = Layout()) -> float:
    """Bytes one lane needs on each of its devices, estimated: parameters, moments and gradients (and their sum over
    microbatches) in float32, with a copy in the compute dtype; activations of all layers (of one, beside the residual
    stream, when scanned); logits."""
    width = 2 if config.compute_dtype == "bfloat16" else 4
    params = config.n_params + 2 * config.vocab_size * config.d_model
    N = train.batch_size * config.seq_len / layout.data / layout.accumulate
    heads = 0 if ops.fused(config) else config.n_heads * config.seq_len
    layer = N * (20 * config.d_model * width + heads * (8 + width))
    layers = (
        layer + config.n_layers * N * config.d_model * width
        if layout.scan
        else config.n_layers * layer
    )
    state = params * (20 + width if layout.accumulate > 1 else 16 + width) / layout.data
    return state + layers + N * config.vocab_size * 10


def layout_alone(run: Run) -> Layout:
    """The layout of `run` on one CPU core: as many points a call as a small run needs for calls to cost nothing (a call
    costs milliseconds, a step of the smallest models two), a power of two that divides the run's."""
    most = min(MAX_POINTS, FLOPS_OF_CALL / (run.flops / run.hparams.steps * run.train.log_every))
    return Layout(
        points=math.gcd(run.hparams.steps // run.train.log_every, 1 << int(math.log2(max(1, most))))
    )


def layout_for(
    config: ModelConfig, train: TrainConfig, devices, limit: float | None = None
) -> Layout:
    """The layout of a program on `devices` with `limit` bytes each: a function of both alone, so that equal runs on equal
    hardware give equal bits. Runs that fit one device are lanes, spread over all of them, as many as memory holds; others
    are sharded over all devices, scanned, and accumulated over the fewest microbatches that fit."""
    if limit is None:
        own = next(
            d for d in devices if d.process_index == jax.process_index()
        )  # only its own tell a process
        limit = (own.memory_stats() or {}).get("bytes_limit", CPU_MEMORY)
    one = Layout(scan=config.n_layers > DEEP)
    fit = int(MEMORY_SHARE * limit // memory(config, train, one))
    if fit:
        each = min(1 << (fit.bit_length() - 1), MAX_LANES)
        return dataclasses.replace(one, lanes=each * len(devices), run=len(devices))
    shards = _shards(len(devices), train.batch_size)
    layout = Layout(data=shards, scan=config.n_layers > 0)
    while (
        memory(config, train, layout) > MEMORY_SHARE * limit
        and train.batch_size % (2 * shards * layout.accumulate) == 0
    ):
        layout = dataclasses.replace(layout, accumulate=2 * layout.accumulate)
    return layout


@dataclasses.dataclass(frozen=True)
class Shardings:
    """Where inputs and outputs of a program lie on a mesh; all None on the default device."""

    mesh: Mesh | None
    layout: Layout

    def __call__(self, *axes):
        lead = ("run",) if self.layout.lanes else ()
        return self.mesh and NamedSharding(self.mesh, P(*lead, *axes))

    def shared(self, *axes):
        """Of what all lanes share."""
        return self.mesh and NamedSharding(self.mesh, P(*axes))

    def state(self, state):
        """Every tensor is split along its largest axis that divides, layers of stacked ones left alone."""

        def one(path, leaf):
            shape = leaf.shape[1:] if self.layout.lanes else leaf.shape
            first = int(
                self.layout.scan and any(getattr(part, "key", None) == "blocks" for part in path)
            )
            splits = [i for i in range(first, len(shape)) if shape[i] % self.layout.data == 0]
            axes = [None] * len(shape)
            if splits and self.layout.data > 1:
                axes[max(splits, key=shape.__getitem__)] = "data"
            return self(*axes)

        return jax.tree.map_with_path(one, state) if self.mesh else None
