"""Does an intervention do what it says, before a sweep? Seconds on a tiny model.

    verify(softcap, cap=5.0)

prints a line per question and returns the answers; what is wrong is an error.

It asks whether identities at the same places give the base run bit for bit; whether loss and
parameters stay finite; whether anything changes, and from which step on; whether every parameter
of its own gets a gradient; whether runs side by side (lanes) agree with one alone.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from proxies_lib import interventions, optim, settings, train
from proxies_lib.config import Run, UserError, replace
from proxies_lib.data import Dataset
from proxies_lib.interventions import Intervention
from proxies_lib.ops import rms

STEPS = 8

# Of a tiny model; without qk-layernorm, so that logits can grow.
BASE = replace(
    Run(),
    data="synthetic",
    d_model=16,
    n_layers=2,
    d_head=8,
    vocab_size=64,
    seq_len=16,
    batch_size=4,
    qk_norm="none",
    compute_dtype="float32",
    steps=STEPS,
    warmup_steps=2,
    log_every=1,
    eval_batches=1,
    lr=0.1,
)

# Functions that change nothing, by place. `block` and `optimizer` are those of the base run.
IDENTITIES = {
    "reparametrize": "def reparametrize(params, h): return params",
    "block": "def block(config, linear, norm): return model.Block(config, linear, norm)",
    "qk": "def qk(q, k, h): return q, k",
    "attention_logits": "def attention_logits(z, h): return z",
    "branch": "def branch(y, h): return y",
    "output_logits": "def output_logits(z, h): return z",
    "loss": "def loss(z, labels, params, h): return 0.0",
    "optimizer": "def optimizer(h, step): return optax.scale_by_adam(h['b1'], h['b2'], h['eps'])",
    "after": "def after(params, seen, h): return params",
}

LANES_AGREE = 1e-4  # relative: a batched product adds in another order


@dataclasses.dataclass(frozen=True)
class Verified:
    """What `verify` found. `first_change` is the first step with another loss, or None."""

    intervention: str
    first_change: int | None
    loss_change: float  # of the last step, nats
    parameter_change: float  # RMS of the difference at the end, over the base's RMS
    own_parameters: tuple[str, ...]
    lines: tuple[str, ...]


def verify(intervention: Intervention, base: Run = BASE, **numbers: float) -> Verified:
    """Ask the questions above of `intervention` with its `numbers`, on a run like `base`.

    Raises UserError where an identity changes the base run, a number is not finite, a parameter of
    the intervention's own gets no gradient, or lanes disagree with a run alone.
    """
    run = intervention(base, **numbers)
    title = interventions.titles(intervention.text)
    places = intervention.declared.places
    said = [f"{title} at {', '.join(places)}"]

    plain = _trained(base)
    _check_identities(base, places, plain)
    said.append("identities at these places give the base run bit for bit")

    changed = _Trained(run)
    _check_finite(changed, title)
    own = changed.names - plain.names
    _check_gradients(run, sorted(own), title)
    if own:
        said.append(f"parameters of its own: {', '.join(sorted(own))}; each gets a gradient")

    first = _first_difference(plain.losses, changed.losses)
    difference = _relative_difference(plain, changed)
    said.append(_words_on_effect(first, difference, plain.losses[-1], changed.losses[-1]))
    _check_lanes(run, changed, title)
    said.append("lanes agree with a run alone")
    if {"attention_logits", "after"} & set(places):
        said.append("fused attention is off: it would skip this place")
    print("\n".join(said))
    loss_change = float(changed.losses[-1] - plain.losses[-1])
    return Verified(title, first, loss_change, difference, tuple(sorted(own)), tuple(said))


class _Trained:
    """A tiny run after STEPS steps: its losses, and its parameters by name."""

    def __init__(self, run: Run, lanes: int = 0):
        h = _inputs(run)
        tokens_CBT = np.stack([_batch(run, step) for step in range(STEPS)])
        begin = functools.partial(train.init, run.program)
        steps = functools.partial(train.chunk, run.program)
        if lanes:
            h, tokens_CBT = jax.tree.map(lambda x: np.stack([x] * lanes), (h, tokens_CBT))
            begin, steps = jax.vmap(begin, (0, None)), jax.vmap(steps)
        state = _compiled(begin, h, run.order.seed)(h, run.order.seed)
        state, metrics = _compiled(steps, h, state, tokens_CBT)(h, state, tokens_CBT)
        one = (lambda x: x[0]) if lanes else (lambda x: x)
        self.losses = np.asarray(one(metrics["loss"]))
        self.parameters = _by_name(jax.tree.map(one, state["params"]))
        self.names = set(self.parameters)


# Several interventions in a row are held against the same base.
_trained = functools.lru_cache(maxsize=4)(_Trained)


def _compiled(function, *inputs):
    """`function` for such inputs; on a CPU unoptimized, which is quick to compile."""
    on_cpu = settings.platform_of_jax() == "cpu"
    options = {"xla_backend_optimization_level": 0} if on_cpu else None
    return jax.jit(function).lower(*inputs).compile(compiler_options=options)


def _inputs(run: Run) -> dict:
    return {name: np.float32(value) for name, value in optim.inputs(run.hparams).items()}


def _batch(run: Run, step: int) -> np.ndarray:
    dataset = Dataset("synthetic", run.model.vocab_size, "verify")
    return dataset.batch("train", 0, step, run.train.batch_size, run.model.seq_len)


def _by_name(params: dict) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    separated = {jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in leaves}
    return {name: np.asarray(value) for name, value in separated.items()}


def _check_identities(base: Run, places: tuple[str, ...], plain: _Trained):
    own = interventions.places(base.model.intervention)
    # A block or an optimizer that the base has of its own leaves no place for a second one.
    free = [place for place in places if place not in interventions.ALONE or not own.has(place)]
    if not free:
        return
    body = "\n    ".join(IDENTITIES[place] for place in free)
    text = f"@intervention(version=1)\nclass identity:\n    {body}"
    text = interventions.join(base.model.intervention, text)
    same = _Trained(replace(base, intervention=text))
    if not _equal(plain, same):
        where = ", ".join(places)
        raise UserError(f"verify: an identity at {where} changes the base run; this is our fault")


def _equal(one: _Trained, other: _Trained) -> bool:
    return np.array_equal(one.losses, other.losses) and all(
        np.array_equal(value, other.parameters[name]) for name, value in one.parameters.items()
    )


def _check_finite(trained: _Trained, title: str):
    broken = np.flatnonzero(~np.isfinite(trained.losses))
    if len(broken):
        raise UserError(f"verify: {title}: the loss is not finite at step {broken[0]}")
    for name, value in trained.parameters.items():
        if not np.isfinite(value).all():
            raise UserError(f"verify: {title}: {name} is not finite after {STEPS} steps")


def _check_gradients(run: Run, own: list[str], title: str):
    """A parameter that no number depends on was built and never called."""
    if not own:
        return
    h = _inputs(run)
    state = train.init(run.program, h, 0)
    # Away from the initial values, where a gradient may vanish by symmetry.
    params = jax.tree.map(
        lambda p: p + 0.1 * jax.random.normal(jax.random.key(p.size), p.shape), state["params"]
    )
    tokens_BT = _batch(run, 0)
    gradients = functools.partial(train.gradients, run.model, h)
    of_params = functools.partial(gradients, tokens_BT=tokens_BT, probe=False)
    grads, _, _ = _compiled(of_params, params)(params)
    for name, gradient in _by_name(grads).items():
        if name in own and not np.any(gradient):
            raise UserError(f"verify: {title}: {name} gets no gradient; is it built, never called?")


def _first_difference(one: np.ndarray, other: np.ndarray) -> int | None:
    different = np.flatnonzero(one != other)
    return int(different[0]) if len(different) else None


def _relative_difference(plain: _Trained, changed: _Trained) -> float:
    """Largest over the tensors of both: RMS of the difference over the base's RMS."""
    shares = [0.0]
    for name, value in plain.parameters.items():
        if name in changed.parameters and changed.parameters[name].shape == value.shape:
            difference = float(rms(jnp.asarray(changed.parameters[name] - value)))
            shares.append(difference / max(float(rms(jnp.asarray(value))), 1e-30))
    return max(shares)


def _words_on_effect(first: int | None, difference: float, plain: float, changed: float) -> str:
    if first is None and not difference:
        return (
            f"no effect yet: {STEPS} steps give the base run bit for bit; is a threshold not "
            "reached? Try numbers that must bite"
        )
    if first is None:
        return f"the loss is still the base's, parameters differ by {difference:.1%}"
    return (
        f"changes the loss from step {first} on; after {STEPS} steps {changed:.4f} against "
        f"{plain:.4f}, parameters differ by {difference:.1%}"
    )


def _check_lanes(run: Run, alone: _Trained, title: str):
    lanes = _Trained(run, lanes=2)
    if not np.allclose(lanes.losses, alone.losses, rtol=LANES_AGREE):
        worst = float(np.abs(lanes.losses - alone.losses).max())
        raise UserError(f"verify: {title}: lanes differ from a run alone by {worst:.2g} nats")
