"""Training as pure functions: init, chunk, evaluate; and `Trainer`, which compiles each once.

The configuration's static part (`Run.program`) makes the graph; hyperparameters `h`, seed and
tokens are its inputs. A `Layout` says how a program lies on devices.

    steps           0 1 2 3 4   5 6 7 8 9   10 …       here log_every = 5
    chunk           └───────┘   └───────┘   └─ …       log_every steps, a loop on the device
    logged point            ●           ●              loss of each step; taps and RMS of the last
    call            └───────────────────┘   └─ …       of Layout.points chunks, here 2: then the
                                                       host reads their points

Axes are those of `model`, and C steps of a chunk, P logged points of a call, A microbatches,
E batches of an evaluation. A sequence has T + 1 tokens: T inputs, and T labels one further on.
"""

import functools
import time
from collections.abc import Callable
from operator import itemgetter
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, SingleDeviceSharding

from proxies_lib import interventions, model, ops, optim, settings
from proxies_lib.config import DataOrder, ModelConfig, Run, TrainConfig
from proxies_lib.data import Dataset
from proxies_lib.layout import PLAIN, Layout, Shardings
from proxies_lib.ops import anywhere


def cross_entropy(logits_NV: jax.Array, labels_N: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean cross-entropy in nats per token, and mean log² Z, the z-loss of P1 (section 3.1.2)."""
    log_z_N = jax.nn.logsumexp(logits_NV, axis=-1)
    label_N = jnp.take_along_axis(logits_NV, labels_N[:, None], axis=-1)[:, 0]
    return jnp.mean(log_z_N - label_N), jnp.mean(jnp.square(log_z_N))


def gradients(
    config: ModelConfig,
    h: dict,
    params,
    tokens_BT,
    probe,
    layout: Layout = PLAIN,
    pin=anywhere,
):
    """Gradient of cross-entropy + z-loss over sequences (B, T + 1), the cross-entropy, the taps.

    The loss also has what interventions add to it.
    """
    places = interventions.places(config.intervention)

    def loss(params, tokens_BT):
        used = places.through("reparametrize", params, h)
        logits_NV, taps = model.apply(config, used, tokens_BT[:, :-1], probe, h, pin)
        labels_N = tokens_BT[:, 1:].reshape(-1)
        ce, log2_z = cross_entropy(logits_NV, labels_N)
        total = ce + h["z_loss"] * log2_z
        added = places.added_loss(logits_NV, labels_N, used, h)
        return total if added is None else total + added, (ce, taps)

    gradient = jax.grad(loss, has_aux=True)
    if layout.accumulate == 1:
        grads, (ce, taps) = gradient(params, tokens_BT)
        return grads, ce, taps
    return _accumulated(gradient, params, tokens_BT, layout.accumulate)


def _accumulated(gradient, params, tokens_BT, A: int):
    """What `gradients` returns, of a batch in A microbatches one after another.

    They are equal, so means of means are means; the taps' largest values are the largest of all.
    """

    def add(total, tokens_BT):
        grads, aux = gradient(params, tokens_BT)
        return jax.tree.map(jnp.add, total, grads), aux

    # Every A-th row: a device's rows of a sharded batch are then rows of each microbatch.
    parts_ABT = tokens_BT.reshape(-1, A, tokens_BT.shape[-1]).swapaxes(0, 1)
    zeros = jax.tree.map(jnp.zeros_like, params)
    total, (ce_A, taps_A) = jax.lax.scan(add, zeros, parts_ABT)
    taps = {}
    for name, values in taps_A.items():
        taps[name] = values.max(0) if name.startswith("max") else values.mean(0)
    if "block_rms" in taps:  # a root of a mean is no mean
        taps["block_rms"] = jnp.sqrt(jnp.square(taps_A["block_rms"]).mean(0))
    return jax.tree.map(lambda g: g / A, total), ce_A.mean(), taps


def init(program: tuple, h: dict, seed, layout: Layout = PLAIN) -> dict:
    """The state before step 0.

    Parameters (stacked over layers where the layout scans), Adam's moments, the step; and, where
    histograms are logged, the last gradient of the tensors that are observed.
    """
    config, train = program
    params = model.init(config, jax.random.key(seed), h)
    params = model.stack(params) if layout.scan else params
    opt = optim.transformation(config, h).init(params)
    state = {"params": params, "opt": opt, "step": jnp.zeros((), jnp.int32)}
    if train.histograms:
        observed = optim.observed_tensors(params, config.n_layers)
        state["last"] = jax.tree.map(jnp.zeros_like, observed)
    return state


def step(
    program: tuple,
    h: dict,
    state: dict,
    tokens_BT,
    probe,
    layout: Layout = PLAIN,
    pin=anywhere,
) -> tuple[dict, dict]:
    """One optimizer step on sequences (B, T + 1): the next state, and its metrics.

    Metrics are loss, gradient norm, taps and tensor RMS. Gradient RMS and norm are taken before
    the embedding's factor and before clipping; update RMS is Adam's output before LR and decay
    (P1's unscaled update).
    """
    config, train = program
    params = state["params"]
    grads, ce, taps = gradients(config, h, params, tokens_BT, probe, layout, pin)
    if train.gradient_dtype != "float32":
        grads = optim.rounded(grads, train.gradient_dtype, h["loss_scale"])
    of_embedding = jax.tree.map(lambda g: g * h["embedding_gradient"], grads["embed"])
    optimizer = optim.transformation(config, h, state["step"])
    delta, opt = optimizer.update(grads | {"embed": of_embedding}, state["opt"], params)
    stepped = optim.advance(config, params, delta, state["step"], h)
    following = {"params": stepped, "opt": opt}
    # What is logged, of the parameters before the step.
    tensors = {"grad_rms": grads, "update_rms": delta, "param_rms": params}
    metrics = {
        "loss": ce,
        "tensors": ops.zeros_unless(probe, _rms_of_tensors, tensors),
        "gradient_norm": jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads))),
        "taps": taps,
    }
    places = interventions.places(config.intervention)
    if places.has("after"):
        seen = {"gradient_norm": metrics["gradient_norm"]}
        seen["max_attention_logit_of_head"] = taps["max_attention_logit_of_head"]
        following["params"] = places.through("after", stepped, seen, h)
    following["step"] = state["step"] + 1
    if train.histograms:
        pick = functools.partial(optim.observed_tensors, n_layers=config.n_layers)
        moments = opt[1]  # of the chain (clip, Adam)
        observed = (
            pick(grads),
            state["last"],
            pick(delta),
            (moments.count, pick(moments.mu), pick(moments.nu)),
            h,
        )
        observe = functools.partial(optim.observe, train.histograms)
        metrics["taps"] = taps | ops.zeros_unless(probe, observe, *observed)
        following["last"] = pick(grads)
    return following, metrics


def _rms_of_tensors(trees: dict) -> dict:
    return {name: model.tensor_rms(tree) for name, tree in trees.items()}


def chunk(
    program: tuple, h: dict, state: dict, tokens_CBT, layout: Layout = PLAIN, pin=anywhere
) -> tuple[dict, dict]:
    """C steps in one program: the state behind them, and the metrics of a logged point.

    Loss and gradient norm are those of each step (C,); taps and tensor RMS of the last step only.
    With several points P in a call, tokens are (P, C, B, T + 1), and metrics have a first axis of
    points.
    """
    if tokens_CBT.ndim > 3:
        of_point = functools.partial(chunk, program, h, layout=layout, pin=pin)
        return jax.lax.scan(of_point, state, tokens_CBT)

    def one_step(state, inputs):
        tokens_BT, probe = inputs
        return step(program, h, state, tokens_BT, probe, layout, pin)

    # Taps cost; the last step of a chunk stands for all.
    C = len(tokens_CBT)
    is_last_C = jnp.arange(C) == C - 1
    state, metrics = jax.lax.scan(one_step, state, (tokens_CBT, is_last_C))
    for name in ("taps", "tensors"):
        metrics[name] = jax.tree.map(lambda x_C: x_C[-1], metrics[name])
    return state, metrics


def evaluate(
    config: ModelConfig, h: dict, params: dict, tokens_EBT: jax.Array, pin=anywhere
) -> jax.Array:
    """Mean cross-entropy in nats per token over E batches of sequences (B, T + 1)."""
    params = interventions.places(config.intervention).through("reparametrize", params, h)

    def add(total, tokens_BT):
        logits_NV, _ = model.apply(config, params, tokens_BT[:, :-1], False, h, pin)
        return total + cross_entropy(logits_NV, tokens_BT[:, 1:].reshape(-1))[0], None

    total, _ = jax.lax.scan(add, jnp.zeros(()), tokens_EBT)
    return total / len(tokens_EBT)


# ------------------------------------------------------------------ programs


def trace(config: ModelConfig, train: TrainConfig, layout: Layout = PLAIN, devices=None) -> tuple:
    """The programs `init`, `chunk` and `evaluate`, traced; and their shardings.

    They are traced for `devices`, which may be a mere topology, or for the default one. Raises
    UserError on a layout that does not divide.
    """
    layout.check(config, train)
    mesh = None if devices is None else _mesh(layout, devices)
    shardings = Shardings(mesh, layout)
    pin = anywhere
    if mesh:
        constrain = jax.lax.with_sharding_constraint
        pin = functools.partial(constrain, shardings=shardings.shared("data"))

    program = (config, train)
    init_ = _over_lanes(functools.partial(init, program, layout=layout), layout, mesh)
    chunk_ = functools.partial(chunk, program, layout=layout, pin=pin)
    chunk_ = _over_lanes(chunk_, layout, mesh)
    evaluate_ = functools.partial(evaluate, config, pin=pin)
    evaluate_ = _over_lanes(evaluate_, layout, mesh, in_axes=(0, 0, None))  # on the same tokens

    # Inputs by their shapes: hyperparameters, seed, tokens of a call, tokens of an evaluation.
    lanes = (layout.lanes,) if layout.lanes else ()
    points = (layout.points,) if layout.points > 1 else ()
    batch = (train.batch_size, config.seq_len + 1)
    names = [*optim.inputs(Run().hparams), *interventions.defaults(config.intervention)]
    h = {name: jax.ShapeDtypeStruct(lanes, jnp.float32) for name in names}
    seed = jax.ShapeDtypeStruct(lanes, jnp.int32)
    tokens = jax.ShapeDtypeStruct((*lanes, *points, train.log_every, *batch), jnp.int32)
    validation = jax.ShapeDtypeStruct((train.eval_batches, *batch), jnp.int32)
    state = jax.eval_shape(init_, h, seed)

    # Where inputs and outputs lie.
    everywhere = shardings()
    of_state = shardings.state(state)
    into_chunk = mesh and (everywhere, of_state, shardings(None, "data"))
    from_chunk = mesh and (of_state, everywhere)
    into_evaluate = mesh and (everywhere, of_state["params"], shardings.shared(None, "data"))

    start = jax.jit(init_, in_shardings=everywhere, out_shardings=of_state)
    # A chunk overwrites the state it was given: one copy in memory.
    advance = jax.jit(chunk_, donate_argnums=1, in_shardings=into_chunk, out_shardings=from_chunk)
    judge = jax.jit(evaluate_, in_shardings=into_evaluate, out_shardings=everywhere)
    return (
        start.trace(h, seed),
        advance.trace(h, state, tokens),
        judge.trace(h, state["params"], validation),
        shardings,
    )


def _mesh(layout: Layout, devices) -> Mesh:
    grid = np.asarray(devices[: layout.run * layout.data]).reshape(layout.run, layout.data)
    return Mesh(grid, ("run", "data"), axis_types=(AxisType.Auto,) * 2)


def _over_lanes(function, layout: Layout, mesh: Mesh | None, in_axes=0):
    """`function` of one run as that of all lanes, or itself without lanes."""
    if not layout.lanes:
        return function
    return jax.vmap(function, in_axes, spmd_axis_name="run" if mesh else None)


class Progress(NamedTuple):
    """Where a training stands: a checkpoint holds it, and training goes on from there."""

    state: dict  # on devices
    first: np.ndarray  # (lanes,), the validation loss before step 0
    points: list  # metrics of each logged point so far


class Trainer:
    """One program's `init`, `chunk` and `evaluate`, compiled once for a layout.

    On `devices`, or on the default one. A lane's numbers do not depend on its neighbours: the
    number of lanes is fixed, and short groups are padded.
    """

    def __init__(
        self, config: ModelConfig, train: TrainConfig, layout: Layout = PLAIN, devices=None
    ):
        self.config, self.train_config = config, train
        self.layout, self.lanes = layout, layout.lanes
        settings.pin_jax()
        on_cpu = settings.platform_of_jax() == "cpu"
        started = time.perf_counter()
        *traced, self.shardings = trace(config, train, layout, devices)
        self.outputs = traced[1].out_info  # abstract state and metrics
        init, chunk, evaluate = (program.lower() for program in traced)
        # `init` runs once a run: quick to compile is what counts.
        quick = {"xla_backend_optimization_level": 0} if on_cpu else None
        self.init = init.compile(compiler_options=quick)
        self.chunk = chunk.compile()
        self.evaluate = evaluate.compile()
        self.compile_seconds = time.perf_counter() - started

    def train(
        self,
        runs: list[Run],
        dataset: Dataset,
        group=None,
        begin: tuple | None = None,
        keep: Callable[[dict], object] | None = None,
    ) -> list[dict]:
        """Train runs of this program: one, or up to `lanes`. Returns a result per run.

        They go on from the last checkpoint of `group`, a checkpoint.Group, or from `begin`, what
        its `restore` gives: a run that differs from then on *rewinds* another. For example,
        `begin = group.restore(*trainer.abstract(), step=15)` of a run that spiked at step 17, and
        `trainer.train([run_with_skipped_batches], dataset, begin=begin)`.

        A result holds
            init_loss, final_loss    of the evaluation, nats per token; NaN if it diverged
            diverged                 whether any loss is not finite
            diverged_step            the first step with such a loss, or -1
            train_seconds            of all runs, divided by their number
            curves                   arrays (points,): `step`, the last of a point's log_every;
                                     `loss`, their mean; `gradient_norm`, their largest; taps and
                                     tensor RMS of the last
        Losses that are not finite are data: they stop the run, never the sweep. `keep` is called
        with the state behind the last step, whose parameters the final loss is of.

        Raises checkpoint.Preempted when `group` was asked to stop.
        """
        if len({run.hparams.steps for run in runs}) > 1 or len(runs) > max(self.lanes, 1):
            raise ValueError("lanes train runs of equal steps, at most as many as there are lanes")
        settings.pin_jax()  # who imports this library may have set jax.config since
        started = time.perf_counter()
        padded = runs + runs[-1:] * (self.lanes - len(runs))
        h = self._hyperparameters(padded)
        validation = self._validation(dataset)
        if group and not begin:
            begin = group.restore(*self.abstract())
        begin = Progress(*begin) if begin else self._begin(h, padded, validation)
        end = self._go_on(begin, h, padded, dataset, group)
        last = self._losses(h, end.state, validation)
        if keep:
            keep(end.state)
        seconds = (time.perf_counter() - started) / len(runs)
        results = []
        for lane in range(len(runs)):
            losses = float(end.first[lane]), float(last[lane])
            points = self._points_of(lane, end.points)
            results.append(_result(points, *losses, seconds, self.train_config.log_every))
        return results

    def _begin(self, h: dict, runs: list[Run], validation) -> Progress:
        seeds = self._of_lanes([run.order.seed for run in runs], np.int32)
        state = self.init(h, seeds)
        return Progress(state, self._losses(h, state, validation), [])

    def _go_on(self, begin: Progress, h, runs: list[Run], dataset: Dataset, group) -> Progress:
        """Call after call, until the last step or until no lane has finite losses."""
        state, first, points = begin
        P, C, steps = self.layout.points, self.train_config.log_every, runs[0].hparams.steps
        if P > 1 and (group or (steps // C - len(points)) % P):
            raise ValueError(
                f"{P} points a call need runs of a multiple of them, without checkpoints"
            )
        orders = [run.order for run in runs]
        for done in range(len(points) * C, steps, P * C):
            state, metrics = self.chunk(h, state, self.tokens(dataset, orders, done))
            metrics = fetch(metrics)
            if P > 1:
                points += [jax.tree.map(itemgetter(i), metrics) for i in range(P)]
            else:
                points.append(metrics)
            # A lane that diverged goes on as long as a neighbour is well; `_result` cuts its curve.
            finite = np.isfinite(np.atleast_2d(points[-1]["loss"]))
            if not finite.all(axis=-1).any():
                break
            if group:
                group.after(done + C, state, first, points)
        return Progress(state, first, points)

    def _losses(self, h: dict, state: dict, validation) -> np.ndarray:
        """Validation loss of each lane, (1,) without lanes."""
        return np.atleast_1d(fetch(self.evaluate(h, state["params"], validation)))

    def _points_of(self, lane: int, points: list[dict]) -> list[dict]:
        if not self.lanes:
            return points
        return [jax.tree.map(itemgetter(lane), point) for point in points]

    # -------------------------------------------------------------- inputs

    def put(self, value, sharding):
        """A host array as an input: each process hands over what its own devices hold."""
        if sharding is None:
            return value
        return jax.make_array_from_callback(np.shape(value), sharding, value.__getitem__)

    def _of_lanes(self, values: list, dtype):
        """A number per lane as an input; without lanes, the number of the one run."""
        numbers = np.asarray(values if self.lanes else values[0])
        return self.put(numbers.astype(dtype), self.shardings())

    def _hyperparameters(self, runs: list[Run]) -> dict:
        numbers = [optim.inputs(run.hparams) for run in runs]
        return {name: self._of_lanes([n[name] for n in numbers], np.float32) for name in numbers[0]}

    def _validation(self, dataset: Dataset):
        tokens_EBT = validation_tokens(self.config, self.train_config, dataset)
        return self.put(tokens_EBT, self.shardings.shared(None, "data"))

    def tokens(self, dataset: Dataset, orders: list[DataOrder], begin: int):
        """The sequences of the call that begins at step `begin`: (lanes or points, C, B, T + 1).

        With a mesh, only the rows of this process's devices are read.
        """
        train, T = self.train_config, self.config.seq_len
        B, C = train.batch_size, train.log_every
        if self.layout.points > 1:
            steps = range(begin, begin + self.layout.points * C, C)
            return np.stack([dataset.chunk(orders[0], step, train, T) for step in steps])

        def rows(index):
            """The part of the array at `index`, a slice per axis, as JAX asks for it."""
            # The rows first … end of each batch are one of n_shards equal parts.
            first, end, _ = index[-2].indices(B)
            shard, n_shards = first // (end - first), B // (end - first)
            lanes = orders[index[0]] if self.lanes else orders
            chunks = [dataset.chunk(order, begin, train, T, shard, n_shards) for order in lanes]
            return np.stack(chunks) if self.lanes else chunks[0]

        shape: tuple[int, ...] = (C, B, T + 1)
        if self.lanes:
            shape = (self.lanes, *shape)
        if self.shardings.mesh is None:
            return rows((slice(None),) * len(shape))
        return jax.make_array_from_callback(shape, self.shardings(None, "data"), rows)

    def abstract(self) -> tuple:
        """What a call returns, state and metrics; the state with the shardings it has here."""
        state, metrics = self.outputs
        shardings = self.shardings.state(state)
        if shardings is None:
            default = SingleDeviceSharding(jax.devices()[0])
            shardings = jax.tree.map(lambda _: default, state)

        def with_sharding(x, sharding):
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

        return jax.tree.map(with_sharding, state, shardings), metrics


def validation_tokens(config: ModelConfig, train: TrainConfig, dataset: Dataset) -> np.ndarray:
    """The sequences that every run is judged on, (E, B, T + 1)."""
    batch = (train.batch_size, config.seq_len)
    batches = range(train.eval_batches)
    return np.stack([dataset.batch("validation", 0, i, *batch) for i in batches])


def fetch(values):
    """Device values as NumPy arrays, on every process."""
    if jax.process_count() == 1:
        return jax.device_get(values)
    from jax.experimental import multihost_utils

    return jax.tree.map(np.asarray, multihost_utils.process_allgather(values, tiled=True))


# ------------------------------------------------------------------ results


def _result(points: list[dict], first: float, last: float, seconds: float, log_every: int) -> dict:
    """The result of one run, as `Trainer.train` describes it."""
    losses = np.concatenate([point["loss"] for point in points])
    broken = np.flatnonzero(~np.isfinite(losses))
    diverged = bool(len(broken)) or not np.isfinite(last)
    if len(broken):  # the same curve whether or not other lanes went on
        points = points[: broken[0] // log_every + 1]
    rows = [_named(point) for point in points]
    curves: dict[str, np.ndarray] = {}
    for name in rows[0]:
        curves[name] = np.array([row[name] for row in rows], np.float32)
    curves["step"] = np.arange(1, len(points) + 1, dtype=np.int32) * log_every - 1
    return {
        "final_loss": last if not diverged else float("nan"),
        "init_loss": first,
        "diverged": diverged,
        "diverged_step": int(broken[0]) if len(broken) else -1,
        "train_seconds": seconds,
        "curves": curves,
    }


def _named(point: dict) -> dict[str, float]:
    """One logged point as flat, slash-named numbers.

    For example loss, max_attention_logit/0 (of a block), max_attention_logit_of_head/0/3 (of a
    block's head), grad_rms/blocks/0/mlp_in/kernel.
    """
    numbers = {"loss": point["loss"].mean(), "gradient_norm": point["gradient_norm"].max()}
    for name, value in point["taps"].items():
        for index in np.ndindex(np.shape(value)):
            numbers["/".join([name, *map(str, index)])] = value[index]
    for path, value in jax.tree_util.tree_flatten_with_path(point["tensors"])[0]:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if not np.ndim(value):
            numbers[name] = value
            continue
        for i, entry in enumerate(value):  # of stacked layers
            numbers[name.replace("blocks/", f"blocks/{i}/", 1)] = entry
    return numbers
