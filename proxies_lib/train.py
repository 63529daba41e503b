"""Training as pure functions: init, chunk, evaluate; and `Trainer`, which compiles them once per program.

The configuration's static part (`Run.program`) makes the graph; hyperparameters, seed and tokens are inputs. A
`Layout` says how a program lies on devices: it changes rounding, never what is computed, and is no part of a run.
"""

import functools
import time
from operator import itemgetter

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, SingleDeviceSharding

from proxies_lib import model, ops, optim, settings
from proxies_lib.config import DataOrder, ModelConfig, Run, TrainConfig
from proxies_lib.data import Dataset
from proxies_lib.layout import Layout, Shardings


def cross_entropy(logits_NV: jax.Array, labels_N: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean cross-entropy in nats per token, and mean log² Z, the z-loss of P1 (section 3.1.2)."""
    log_z_N = jax.nn.logsumexp(logits_NV, axis=-1)
    label_N = jnp.take_along_axis(logits_NV, labels_N[:, None], axis=-1)[:, 0]
    return jnp.mean(log_z_N - label_N), jnp.mean(jnp.square(log_z_N))


def init(program: tuple, h: dict, seed, layout: Layout = Layout()) -> dict:
    """The state before step 0: parameters (stacked over layers where the layout scans), Adam's moments, the step."""
    config, train = program
    params = model.init(config, jax.random.key(seed), h)
    params = model.stack(params) if layout.scan else params
    opt = optim.adam(h).init(params)
    state = {"params": params, "opt": opt, "step": jnp.zeros((), jnp.int32)}
    if train.histograms:
        state["last"] = jax.tree.map(
            jnp.zeros_like, optim.observed_tensors(params, config.n_layers)
        )
    return state


def gradients(
    config: ModelConfig,
    h: dict,
    params,
    tokens_BT,
    probe,
    layout: Layout = Layout(),
    place=lambda x: x,
):
    """Gradient of cross-entropy + z-loss over windows (B, T + 1), the cross-entropy, and the taps.

    Microbatches are equal, so means of means are means; the taps' largest values are the largest of all.
    """

    def loss_fn(params, tokens_BT):
        logits_NV, taps = model.apply(config, params, tokens_BT[:, :-1], probe, h, place)
        ce, log2_z = cross_entropy(logits_NV, tokens_BT[:, 1:].reshape(-1))
        return ce + h["z_loss"] * log2_z, (ce, taps)

    gradient = jax.grad(loss_fn, has_aux=True)
    A = layout.accumulate
    if A == 1:
        grads, (ce, taps) = gradient(params, tokens_BT)
        return grads, ce, taps

    def one(total, tokens_BT):
        grads, aux = gradient(params, tokens_BT)
        return jax.tree.map(jnp.add, total, grads), aux

    # Every A-th row: a device's rows of a sharded batch are then rows of each microbatch.
    parts_ABT = tokens_BT.reshape(-1, A, tokens_BT.shape[-1]).swapaxes(0, 1)
    total, (ce_A, taps_A) = jax.lax.scan(one, jax.tree.map(jnp.zeros_like, params), parts_ABT)
    taps = {
        name: each.max(0) if name.startswith("max") else each.mean(0)
        for name, each in taps_A.items()
    }
    if "block_rms" in taps:
        taps["block_rms"] = jnp.sqrt(jnp.square(taps_A["block_rms"]).mean(0))
    return jax.tree.map(lambda g: g / A, total), ce_A.mean(), taps


def step(
    program: tuple,
    h: dict,
    state: dict,
    tokens_BT,
    probe,
    layout: Layout = Layout(),
    place=lambda x: x,
) -> tuple[dict, dict]:
    """One optimizer step on windows (B, T + 1): the next state, and its loss, gradient norm, taps and tensor RMS.

    Gradient RMS and norm are taken before the embedding's factor and before clipping; update RMS is Adam's output
    before LR and decay (P1's unscaled update).
    """
    config, train = program
    grads, ce, taps = gradients(config, h, state["params"], tokens_BT, probe, layout, place)
    if train.gradient_dtype != "float32":
        grads = optim.rounded(grads, train.gradient_dtype, h["loss_scale"])
    scaled = grads | {"embed": jax.tree.map(lambda g: g * h["embedding_gradient"], grads["embed"])}
    delta, opt = optim.adam(h, state["step"]).update(scaled, state["opt"])
    params = optim.descend(state["params"], delta, state["step"], h)
    tensors = {"grad_rms": grads, "update_rms": delta, "param_rms": state["params"]}
    observed = ops.zeros_unless(
        probe, lambda t: {name: model.tensor_rms(tree) for name, tree in t.items()}, tensors
    )
    gradient_norm = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)))
    after = {"params": params, "opt": opt, "step": state["step"] + 1}
    if train.histograms:
        pick = functools.partial(optim.observed_tensors, n_layers=config.n_layers)
        adam = opt[1]
        seen = (
            pick(grads),
            state["last"],
            pick(delta),
            (adam.count, pick(adam.mu), pick(adam.nu)),
            h,
        )
        taps |= ops.zeros_unless(probe, functools.partial(optim.observe, train.histograms), *seen)
        after["last"] = pick(grads)
    return (
        after,
        {"loss": ce, "gradient_norm": gradient_norm, "taps": taps, "tensors": observed},
    )


def chunk(
    program: tuple, h: dict, state: dict, tokens_CBT, layout: Layout = Layout(), place=lambda x: x
) -> tuple[dict, dict]:
    """C steps in one program. Loss and gradient norm of each step (C,); taps and tensor RMS of the last step only.

    With several points P in a call, tokens are (P, C, B, T + 1), and metrics have a first axis of points.
    """
    if tokens_CBT.ndim > 3:
        one = functools.partial(chunk, program, h, layout=layout, place=place)
        return jax.lax.scan(one, state, tokens_CBT)
    C = len(tokens_CBT)
    one = functools.partial(step, program, h, layout=layout, place=place)
    state, metrics = jax.lax.scan(
        lambda s, x: one(s, *x), state, (tokens_CBT, jnp.arange(C) == C - 1)
    )
    last = jax.tree.map(lambda x: x[-1], {name: metrics.pop(name) for name in ("taps", "tensors")})
    return state, metrics | last


def evaluate(
    config: ModelConfig, h: dict, params: dict, tokens_EBT: jax.Array, place=lambda x: x
) -> jax.Array:
    """Mean cross-entropy in nats per token over E batches of windows (B, T + 1)."""

    def one(total, tokens_BT):
        logits_NV, _ = model.apply(config, params, tokens_BT[:, :-1], False, h, place)
        return total + cross_entropy(logits_NV, tokens_BT[:, 1:].reshape(-1))[0], None

    total, _ = jax.lax.scan(one, jnp.zeros(()), tokens_EBT)
    return total / len(tokens_EBT)


def trace(
    config: ModelConfig, train: TrainConfig, layout: Layout = Layout(), devices=None
) -> tuple:
    """The programs `start`, `advance` and `judge` (init, chunk, evaluate), traced for `devices`, which may be a mere
    topology, or for the default one; and their shardings. Raises UserError on a layout that does not divide."""
    layout.check(config, train)
    mesh = None
    if devices is not None:
        grid = np.asarray(devices[: layout.run * layout.data]).reshape(layout.run, layout.data)
        mesh = Mesh(grid, ("run", "data"), axis_types=(AxisType.Auto,) * 2)
    shardings = Shardings(mesh, layout)
    place = lambda x: x  # noqa: E731
    if mesh is not None:
        place = functools.partial(
            jax.lax.with_sharding_constraint, shardings=shardings.shared("data")
        )
    each = (
        functools.partial(jax.vmap, spmd_axis_name="run" if mesh else None)
        if layout.lanes
        else lambda f, **_: f
    )
    batch = (train.batch_size, config.seq_len + 1)
    lead = (layout.lanes,) if layout.lanes else ()
    points = (layout.points,) if layout.points > 1 else ()
    spec = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.int32)
    h = {name: jax.ShapeDtypeStruct(lead, jnp.float32) for name in optim.inputs(Run().hparams)}
    init_ = each(functools.partial(init, (config, train), layout=layout))
    state = jax.eval_shape(init_, h, spec(lead))
    at = shardings.state(state)
    start = jax.jit(init_, in_shardings=shardings(), out_shardings=at)
    advance = jax.jit(
        each(functools.partial(chunk, (config, train), layout=layout, place=place)),
        donate_argnums=1,
        in_shardings=mesh and (shardings(), at, shardings(None, "data")),
        out_shardings=mesh and (at, shardings()),
    )
    judge = jax.jit(
        each(functools.partial(evaluate, config, place=place), in_axes=(0, 0, None)),
        in_shardings=mesh and (shardings(), at["params"], shardings.shared(None, "data")),
        out_shardings=shardings(),
    )
    return (
        start.trace(h, spec(lead)),
        advance.trace(h, state, spec((*lead, *points, train.log_every, *batch))),
        judge.trace(h, state["params"], spec((train.eval_batches, *batch))),
        shardings,
    )


class Trainer:
    """The three executables of one program, compiled once for a layout (and devices; else the default one).

    A lane's numbers do not depend on its neighbours: the width is fixed, and short groups are padded.
    """

    def __init__(
        self, config: ModelConfig, train: TrainConfig, layout: Layout = Layout(), devices=None
    ):
        self.config, self.shape, self.layout, self.lanes = config, train, layout, layout.lanes
        settings.pin_jax()
        on_cpu = settings.platform_of_jax() == "cpu"
        started = time.perf_counter()
        *programs, self.shardings = trace(config, train, layout, devices)
        self.outputs = programs[1].out_info  # abstract state and metrics
        start, advance, judge = (program.lower() for program in programs)
        once = {
            "xla_backend_optimization_level": 0
        }  # drawn once a run: quick to compile is what counts
        self.start = start.compile(compiler_options=once if on_cpu else None)
        self.advance, self.judge = advance.compile(), judge.compile()
        self.compile_seconds = time.perf_counter() - started

    def put(self, value, sharding):
        """A host array as an input: each process hands over what its own devices hold."""
        return (
            value
            if sharding is None
            else jax.make_array_from_callback(np.shape(value), sharding, value.__getitem__)
        )

    def abstract(self) -> tuple:
        """What a chunk returns, state and metrics; the state with the shardings it has here."""
        state, metrics = self.outputs
        lie = self.shardings.state(state) or jax.tree.map(
            lambda _: SingleDeviceSharding(jax.devices()[0]), state
        )
        return jax.tree.map(
            lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), state, lie
        ), metrics

    def tokens(self, dataset: Dataset, orders: list[DataOrder], begin: int):
        """The next call's windows (lanes or points, C, B, T + 1); with a mesh only the rows of this process's devices are
        read."""
        B, T, C = self.shape.batch_size, self.config.seq_len, self.shape.log_every
        if self.layout.points > 1:
            starts = range(begin, begin + self.layout.points * C, C)
            return np.stack([dataset.chunk(orders[0], start, self.shape, T) for start in starts])

        def rows(index):
            first, last, _ = index[-2].indices(B)
            part = (first // (last - first), B // (last - first))
            mine = orders[index[0]] if self.lanes else orders
            chunks = [dataset.chunk(each, begin, self.shape, T, *part) for each in mine]
            return np.stack(chunks) if self.lanes else chunks[0]

        whole = (slice(None),) * (4 if self.lanes else 3)
        if self.shardings.mesh is None:
            return rows(whole)
        shape = (*((self.lanes,) if self.lanes else ()), C, B, T + 1)
        return jax.make_array_from_callback(shape, self.shardings(None, "data"), rows)

    def train(
        self, runs: list[Run], dataset: Dataset, group=None, begin: tuple | None = None
    ) -> list[dict]:
        """Train runs of this program: one, or up to `lanes`. They go on from the last checkpoint of `group`, a
        checkpoint.Group, or from `begin`, what its `restore` gives: a run that differs from then on *rewinds* another.
        Returns a result per run. Raises checkpoint.Preempted when `group` was asked to stop.

        A result holds `final_loss` and `init_loss` (evaluation, nats per token), `diverged`, `diverged_step` (the
        first step with a loss that is not finite, or -1), `train_seconds`, and `curves` of (points,) arrays: `step` is the
        last of the point's `log_every` steps, `loss` their mean, `gradient_norm` their largest. Losses
        that are not finite are data: they stop the run, never the sweep.
        """
        if len({r.hparams.steps for r in runs}) > 1 or len(runs) > max(self.lanes, 1):
            raise ValueError("lanes train runs of equal steps, at most as many as there are lanes")
        settings.pin_jax()
        padded = (runs + runs[-1:] * (self.lanes - len(runs))) if self.lanes else runs
        seeds = [r.order.seed for r in padded]
        started = time.perf_counter()
        stack = np.asarray if self.lanes else (lambda values: np.asarray(values[0]))
        numbers = [optim.inputs(r.hparams) for r in padded]
        at = self.shardings
        h = {
            k: self.put(stack([n[k] for n in numbers]).astype(np.float32), at()) for k in numbers[0]
        }
        held_out = np.stack(
            [
                dataset.batch("validation", 0, i, self.shape.batch_size, self.config.seq_len)
                for i in range(self.shape.eval_batches)
            ]
        )
        held_out = self.put(held_out, at.shared(None, "data"))
        if group and not begin:
            begin = group.restore(*self.abstract())
        if begin:
            state, first, points = begin
        else:
            state, points = self.start(h, self.put(stack(seeds).astype(np.int32), at())), []
            first = np.atleast_1d(fetch(self.judge(h, state["params"], held_out)))
        P, steps = self.layout.points, runs[0].hparams.steps
        if P > 1 and (group or (steps // self.shape.log_every - len(points)) % P):
            raise ValueError(
                f"{P} points a call need runs of a multiple of them, without checkpoints"
            )
        for done in range(len(points) * self.shape.log_every, steps, P * self.shape.log_every):
            state, metrics = self.advance(
                h, state, self.tokens(dataset, [r.order for r in padded], done)
            )
            metrics = fetch(metrics)
            points += (
                [jax.tree.map(itemgetter(i), metrics) for i in range(P)] if P > 1 else [metrics]
            )
            if not np.isfinite(np.atleast_2d(points[-1]["loss"])).all(axis=-1).any():
                break
            if group:
                group.after(done + self.shape.log_every, state, first, points)
        last = np.atleast_1d(fetch(self.judge(h, state["params"], held_out)))
        seconds = (time.perf_counter() - started) / len(runs)
        lanes = range(len(runs))
        pick = (
            (lambda i: [jax.tree.map(lambda x: x[i], p) for p in points])
            if self.lanes
            else (lambda i: points)
        )
        return [
            _result(pick(i), float(first[i]), float(last[i]), seconds, self.shape.log_every)
            for i in lanes
        ]


def fetch(values):
    """Device values as NumPy arrays, on every process."""
    if jax.process_count() == 1:
        return jax.device_get(values)
    from jax.experimental import multihost_utils

    return jax.tree.map(np.asarray, multihost_utils.process_allgather(values, tiled=True))


def _result(points: list[dict], first: float, last: float, seconds: float, log_every: int) -> dict:
    losses = np.concatenate([p["loss"] for p in points])
    broken = np.flatnonzero(~np.isfinite(losses))
    diverged = bool(len(broken)) or not np.isfinite(last)
    if len(broken):  # the same curve whether or not other lanes went on
        points = points[: broken[0] // log_every + 1]
    rows = [_names(p) for p in points]
    curves = {name: np.array([row[name] for row in rows], np.float32) for name in rows[0]}
    curves["step"] = np.arange(1, len(points) + 1, dtype=np.int32) * log_every - 1
    return {
        "final_loss": last if not diverged else float("nan"),
        "init_loss": first,
        "diverged": diverged,
        "diverged_step": int(broken[0]) if len(broken) else -1,
        "train_seconds": seconds,
        "curves": curves,
    }


def _names(point: dict) -> dict[str, float]:
    """One logged point as flat, slash-named numbers: loss, max_attention_logit/0, grad_rms/blocks/0/mlp_in/kernel."""
    flat = {"loss": point["loss"].mean(), "gradient_norm": point["gradient_norm"].max()}
    for name, value in point["taps"].items():
        flat |= {f"{name}/{i}": v for i, v in enumerate(value)} if np.ndim(value) else {name: value}
    for path, value in jax.tree_util.tree_flatten_with_path(point["tensors"])[0]:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        layers = (
            {name.replace("blocks/", f"blocks/{i}/", 1): v for i, v in enumerate(value)}
            if np.ndim(value)
            else None
        )
        flat |= layers or {name: value}
    return flat
