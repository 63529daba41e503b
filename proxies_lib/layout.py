"""How a program lies on devices.

A layout changes rounding, never what is computed, and is no part of a run. It is a function of
the program and the hardware alone, so that equal runs on equal hardware give equal bits.
"""

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
    """How a program lies on a mesh of devices with the axes ("run", "data")."""

    # Runs trained at once by vmap, spread over the axis "run". 0: one, without vmap.
    lanes: int = 0
    # Devices along "run".
    run: int = 1
    # Devices along "data". They share a run's batch, parameters and optimizer state (FSDP).
    data: int = 1
    # Scan over layers, and compute each again in the backward pass.
    scan: bool = False
    # Microbatches that a step's batch is split into.
    accumulate: int = 1
    # Logged points that a call trains, of a run alone: without lanes, without checkpoints.
    points: int = 1

    def on(self, devices: int, train: TrainConfig) -> "Layout":
        """The same state on another number of devices.

        A microbatch holds as many rows of a device, or fewer.
        """
        if self.lanes:
            return dataclasses.replace(self, run=math.gcd(self.lanes, devices))
        shards = _shards(devices, train.batch_size)
        rows = train.batch_size // shards
        wanted = self.accumulate * self.data
        parts = next(n for n in range(1, rows + 1) if rows % n == 0 and n * shards >= wanted)
        return dataclasses.replace(self, data=shards, accumulate=parts)

    def check(self, config: ModelConfig, train: TrainConfig):
        """Raises UserError where lanes, batch or layers cannot be laid out so."""
        if self.lanes % self.run or (self.run > 1 and not self.lanes):
            refuse("lanes", self.lanes, f"must be a multiple of run={self.run}")
        parts = self.data * self.accumulate
        if train.batch_size % parts:
            allowed = f"must be a multiple of data × accumulate = {parts}"
            refuse("batch_size", train.batch_size, allowed)
        if self.points > 1 and self.lanes:
            refuse("points", self.points, "must be 1 with lanes")
        if self.scan and not config.n_layers:
            refuse("n_layers", config.n_layers, "must be above 0 to scan over layers")


PLAIN = Layout()  # one run on one device


def _shards(devices: int, batch_size: int) -> int:
    """Over how many of the devices a batch can be split."""
    return next(n for n in range(devices, 0, -1) if batch_size % n == 0)


# ------------------------------------------------------------------ choosing one


def layout_alone(run: Run) -> Layout:
    """The layout of `run` on one CPU core: as many points a call as a small run needs.

    Between calls the host reads the points, which costs milliseconds; a step of the smallest
    models takes two. The number is a power of two that divides the run's points.
    """
    points_of_run = run.hparams.steps // run.train.log_every
    flops_of_point = run.flops / run.hparams.steps * run.train.log_every
    most = max(1, min(MAX_POINTS, FLOPS_OF_CALL / flops_of_point))
    power_of_two = 1 << int(math.log2(most))
    return Layout(points=math.gcd(points_of_run, power_of_two))


def layout_for(
    config: ModelConfig, train: TrainConfig, devices, limit: float | None = None
) -> Layout:
    """The layout of a program on `devices` with `limit` bytes each.

    Runs that fit one device are lanes, spread over all of them, as many as memory holds. Others
    are sharded over all devices, scanned, and accumulated over the fewest microbatches that fit.
    """
    usable = MEMORY_SHARE * (_memory_of(devices) if limit is None else limit)
    alone = Layout(scan=config.n_layers > DEEP)
    fitting = int(usable // memory(config, train, alone))
    if fitting:
        power_of_two = 1 << (fitting.bit_length() - 1)
        lanes = min(power_of_two, MAX_LANES) * len(devices)
        return dataclasses.replace(alone, lanes=lanes, run=len(devices))
    shards = _shards(len(devices), train.batch_size)
    layout = Layout(data=shards, scan=config.n_layers > 0)
    while memory(config, train, layout) > usable:
        if train.batch_size % (2 * shards * layout.accumulate):
            break
        layout = dataclasses.replace(layout, accumulate=2 * layout.accumulate)
    return layout


def _memory_of(devices) -> float:
    """Bytes of a device. Only its own tell a process; a CPU does not."""
    own = next(d for d in devices if d.process_index == jax.process_index())
    return (own.memory_stats() or {}).get("bytes_limit", CPU_MEMORY)


def memory(config: ModelConfig, train: TrainConfig, layout: Layout = PLAIN) -> float:
    """Bytes one lane needs on each of its devices, estimated."""
    bytes_of_number = 2 if config.compute_dtype == "bfloat16" else 4
    # Activations of a layer: twenty of the width, and logits and weights of attention.
    N = train.batch_size * config.seq_len / layout.data / layout.accumulate
    pairs = 0 if ops.fused(config) else config.n_heads * config.seq_len
    layer = N * (20 * config.d_model * bytes_of_number + pairs * (8 + bytes_of_number))
    if layout.scan:  # those of one layer, beside the residual stream of all
        layers = layer + config.n_layers * N * config.d_model * bytes_of_number
    else:
        layers = config.n_layers * layer
    logits = N * config.vocab_size * 10
    # Parameters, two moments and gradients in float32, the gradients' sum over microbatches, and
    # a copy of the parameters in the compute dtype.
    params = config.n_params + 2 * config.vocab_size * config.d_model
    in_float32 = 20 if layout.accumulate > 1 else 16
    state = params * (in_float32 + bytes_of_number) / layout.data
    return state + layers + logits


# ------------------------------------------------------------------ shardings


@dataclasses.dataclass(frozen=True)
class Shardings:
    """Where inputs and outputs of a program lie on a mesh; all None on the default device."""

    mesh: Mesh | None
    layout: Layout

    def __call__(self, *axes):
        """Of what each lane has its own of, with `axes` behind that of the lanes."""
        lanes = ("run",) if self.layout.lanes else ()
        return self.shared(*lanes, *axes)

    def shared(self, *axes):
        """Of what all lanes share."""
        return self.mesh and NamedSharding(self.mesh, P(*axes))

    def state(self, state):
        """Every tensor is split along its largest axis that divides.

        Layers of stacked ones are left alone: each is scanned as a whole.
        """
        if not self.mesh:
            return None
        return jax.tree.map_with_path(self._of_tensor, state)

    def _of_tensor(self, path, leaf):
        shape = leaf.shape[1:] if self.layout.lanes else leaf.shape
        in_blocks = any(getattr(part, "key", None) == "blocks" for part in path)
        first = 1 if self.layout.scan and in_blocks else 0
        splits = [i for i in range(first, len(shape)) if shape[i] % self.layout.data == 0]
        axes = [None] * len(shape)
        if splits and self.layout.data > 1:
            axes[max(splits, key=shape.__getitem__)] = "data"
        return self(*axes)
