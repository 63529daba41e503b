"""Training as pure functions: init, chunk, evaluate; and `Trainer`, which compiles them once per program.

The configuration's static part (`Run.program`) makes the graph; hyperparameters, seed and tokens are inputs.
"""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

from proxies_lib import data, model, optim
from proxies_lib.config import ModelConfig, Run, TrainConfig


def cross_entropy(logits_NV: jax.Array, labels_N: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean cross-entropy in nats per token, and mean log² Z, the z-loss of P1 (section 3.1.2)."""
    log_z_N = jax.nn.logsumexp(logits_NV, axis=-1)
    label_N = jnp.take_along_axis(logits_NV, labels_N[:, None], axis=-1)[:, 0]
    return jnp.mean(log_z_N - label_N), jnp.mean(jnp.square(log_z_N))


def init(config: ModelConfig, h: dict, seed) -> dict:
    """The state before step 0: parameters, Adam's moments, the step number."""
    params = model.init(config, jax.random.key(seed), h)
    opt = optim.adam(dict.fromkeys(("clip_norm", "b1", "b2", "eps"), 1.0)).init(params)
    return {"params": params, "opt": opt, "step": jnp.zeros((), jnp.int32)}


def step(config: ModelConfig, h: dict, state: dict, tokens_BT: jax.Array, probe) -> tuple[dict, dict]:
    """One optimizer step on windows (B, T + 1): the next state, and its loss, gradient norm, taps and tensor RMS.

    Gradient RMS and norm are taken before the embedding's factor and before clipping; update RMS is Adam's output before LR and decay (P1's unscaled update).
    """

    def loss_fn(params):
        logits_NV, taps = model.apply(config, params, tokens_BT[:, :-1], probe, h)
        ce, log2_z = cross_entropy(logits_NV, tokens_BT[:, 1:].reshape(-1))
        return ce + h["z_loss"] * log2_z, (ce, taps)

    (_, (ce, taps)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state["params"])
    scaled = grads | {"embed": jax.tree.map(lambda g: g * h["embedding_gradient"], grads["embed"])}
    delta, opt = optim.adam(h).update(scaled, state["opt"])
    params = optim.descend(state["params"], delta, state["step"], h)
    tensors = {"grad_rms": grads, "update_rms": delta, "param_rms": state["params"]}
    observed = model.when(probe, lambda t: jax.tree.map(model.rms, t), tensors)
    gradient_norm = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)))
    return (
        {"params": params, "opt": opt, "step": state["step"] + 1},
        {"loss": ce, "gradient_norm": gradient_norm, "taps": taps, "tensors": observed},
    )


def chunk(config: ModelConfig, h: dict, state: dict, tokens_CBT: jax.Array) -> tuple[dict, dict]:
    """C steps in one program. Loss and gradient norm of each step (C,); taps and tensor RMS of the last step only."""
    C = len(tokens_CBT)
    state, metrics = jax.lax.scan(lambda s, x: step(config, h, s, *x), state, (tokens_CBT, jnp.arange(C) == C - 1))
    last = jax.tree.map(lambda x: x[-1], {name: metrics.pop(name) for name in ("taps", "tensors")})
    return state, metrics | last


def evaluate(config: ModelConfig, h: dict, params: dict, tokens_EBT: jax.Array) -> jax.Array:
    """Mean cross-entropy in nats per token over E batches of windows (B, T + 1)."""

    def one(total, tokens_BT):
        logits_NV, _ = model.apply(config, params, tokens_BT[:, :-1], False, h)
        return total + cross_entropy(logits_NV, tokens_BT[:, 1:].reshape(-1))[0], None

    total, _ = jax.lax.scan(one, jnp.zeros(()), tokens_EBT)
    return total / len(tokens_EBT)


class Trainer:
    """The three executables of one program, compiled once; `lanes` runs are trained at once (0: one run, no vmap).

    A lane's numbers do not depend on its neighbours: the width is fixed, and short groups are padded.
    """

    def __init__(self, config: ModelConfig, train: TrainConfig, lanes: int = 0):
        self.config, self.shape, self.lanes = config, train, lanes
        started = time.perf_counter()
        each = jax.vmap if lanes else lambda f, **_: f
        batch = (train.batch_size, config.seq_len + 1)
        lead = (lanes,) if lanes else ()
        spec = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.int32)
        h = {name: jax.ShapeDtypeStruct(lead, jnp.float32) for name in optim.inputs(Run().hparams)}
        start = jax.jit(each(functools.partial(init, config)))
        state = jax.eval_shape(start, h, spec(lead))
        advance = jax.jit(each(functools.partial(chunk, config)), donate_argnums=1)
        judge = jax.jit(each(functools.partial(evaluate, config), in_axes=(0, 0, None)))
        once = {"xla_backend_optimization_level": 0}  # drawn once a run: quick to compile is what counts
        self.start = start.lower(h, spec(lead)).compile(compiler_options=once)
        self.advance = advance.lower(h, state, spec((*lead, train.log_every, *batch))).compile()
        self.judge = judge.lower(h, state["params"], spec((train.eval_batches, *batch))).compile()
        self.compile_seconds = time.perf_counter() - started

    def train(self, runs: list[Run], dataset: "data.Dataset") -> list[dict]:
        """Train runs of this program: one, or up to `lanes`. Returns a result per run.

        A result holds `final_loss` and `init_loss` (evaluation, nats per token), `diverged`, `diverged_step` (the
        first step with a loss that is not finite, or -1), `train_seconds`, and `curves` of (points,) arrays: `step` is the
        last of the point's `log_every` steps, `loss` their mean, `gradient_norm` their largest. Losses
        that are not finite are data: they stop the run, never the sweep.
        """
        if len({r.hparams.steps for r in runs}) > 1 or len(runs) > max(self.lanes, 1):
            raise ValueError("lanes train runs of equal steps, at most as many as there are lanes")
        padded = (runs + runs[-1:] * (self.lanes - len(runs))) if self.lanes else runs
        seeds = [r.hparams.seed for r in padded]
        started = time.perf_counter()
        stack = np.asarray if self.lanes else (lambda values: np.asarray(values[0]))
        numbers = [optim.inputs(r.hparams) for r in padded]
        h = {name: stack([n[name] for n in numbers]).astype(np.float32) for name in numbers[0]}
        held_out = np.stack(
            [dataset.batch("validation", 0, i, self.shape.batch_size, self.config.seq_len)
             for i in range(self.shape.eval_batches)]
        )  # fmt: skip
        state = self.start(h, stack(seeds).astype(np.int32))
        first = np.atleast_1d(self.judge(h, state["params"], held_out))
        points = []
        for begin in range(0, runs[0].hparams.steps, self.shape.log_every):
            tokens = stack([dataset.chunk(s, begin, self.shape, self.config.seq_len) for s in seeds])
            state, metrics = self.advance(h, state, tokens)
            points.append(jax.device_get(metrics))
            if not np.isfinite(np.atleast_2d(points[-1]["loss"])).all(axis=-1).any():
                break
        last = np.atleast_1d(self.judge(h, state["params"], held_out))
        seconds = (time.perf_counter() - started) / len(runs)
        lanes = range(len(runs))
        pick = (lambda i: [jax.tree.map(lambda x: x[i], p) for p in points]) if self.lanes else (lambda i: points)
        return [_result(pick(i), float(first[i]), float(last[i]), seconds, self.shape.log_every) for i in lanes]


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
        flat[jax.tree_util.keystr(path, simple=True, separator="/")] = value
    return flat
