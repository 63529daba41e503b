"""The optimizer of P1 (section 2.1): clip, AdamW, warm-up and cosine.

Every hyperparameter is a traced input, so one executable serves a whole sweep. `h` holds them by
name (`inputs`).

The two papers name Adam's moments differently:

    gradient's running mean m, of its square v    P2, and `observe`
    gradient's running mean v, of its square u    P1, and `adam`
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from proxies_lib import interventions
from proxies_lib.config import HISTOGRAM_RANGE, HyperParams, ModelConfig
from proxies_lib.model import stacked, tensor_rms
from proxies_lib.ops import zeros_unless

RMS_FLOOR = 1e-3  # of RMS-scaled learning rates (P1, Fig. E.14)


def inputs(h: HyperParams) -> dict[str, float]:
    """The hyperparameters a compiled step reads, as numbers."""
    fields = dataclasses.fields(h)
    numbers = {f.name: float(getattr(h, f.name)) for f in fields if f.type in (int, float)}
    switches = {
        "coupled": float(h.decay == "coupled"),
        "rms_scaled": float(h.lr_scaling == "rms"),
    }
    return numbers | switches | interventions.numbers_of(h.intervention_numbers)


# ------------------------------------------------------------------ a step


def schedule(step, h: dict) -> jax.Array:
    """s_t: linear from 0 over `warmup_steps`, then a cosine to min_lr/lr at `steps`.

    The learning rate of a step is lr·s_t.
    """
    warmup = step / jnp.maximum(h["warmup_steps"], 1.0)
    progress = jnp.clip((step - h["warmup_steps"]) / (h["steps"] - h["warmup_steps"]), 0.0, 1.0)
    floor = h["min_lr"] / h["lr"]
    cosine = floor + (1.0 - floor) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
    return jnp.where(step < h["warmup_steps"], warmup, cosine)


def adam(h: dict, step=0) -> optax.GradientTransformation:
    """Gradient → Δ = v/(√u + ε), the unscaled update of P1, after clipping by global norm.

    v and u are bias-corrected, and ε is that of `step`. Without ε, Δ is 0 where no gradient was
    seen yet (u = 0).
    """
    eps = h["eps"] * h["eps_decay"] ** (step / h["steps"])
    inner = optax.scale_by_adam(b1=h["b1"], b2=h["b2"], eps=eps)

    def update(gradients, state, params=None):
        delta, state = inner.update(gradients, state)
        # 0/0 is what scale_by_adam gives there.
        defined = jax.tree.map(lambda d, u: jnp.where((u > 0) | (eps > 0), d, 0.0), delta, state.nu)
        return defined, state

    clip = optax.clip_by_global_norm(h["clip_norm"])
    return optax.chain(clip, optax.GradientTransformation(inner.init, update))


def transformation(config: ModelConfig, h: dict, step=0) -> optax.GradientTransformation:
    """Gradient → Δ: `adam`, or the optimizer of an intervention behind the same clipping.

    A *complete* one makes the whole update, Δ = θ' − θ, without clipping.
    """
    places = interventions.places(config.intervention)
    own = places.only("optimizer")
    if own is None:
        return adam(h, step)
    if places.complete:
        return own(h, step)
    return optax.chain(optax.clip_by_global_norm(h["clip_norm"]), own(h, step))


def advance(config: ModelConfig, params, delta, step, h: dict):
    """The parameters after a step: `descend`, or θ + Δ where an intervention's Δ is complete."""
    if interventions.places(config.intervention).complete:
        return optax.apply_updates(params, delta)
    return descend(params, delta, step, h)


def descend(params, delta, step, h: dict):
    """θ − s_t(η·Δ + λθ), or θ − s_t·η(Δ + λθ) when coupled (P1, section 3.3).

    Decay applies to every tensor. A tensor's own factor (`linear_lr`, RMS scaling) multiplies η·Δ
    alone, never the decay.
    """
    s = schedule(step, h)
    shrink = s * h["weight_decay"] * jnp.where(h["coupled"] > 0, h["lr"], 1.0)
    rms_scaled = h["rms_scaled"] > 0
    sizes = zeros_unless(rms_scaled, tensor_rms, params)

    def descended(path, p, d, size):
        is_linear = path[-1].key == "kernel"  # the other tensors are an embedding or a scale
        factor = h["linear_lr"] if is_linear else 1.0
        # Where layers are stacked, a layer has a size of its own, (L,) beside (L, …).
        size = size.reshape(*size.shape, *(1,) * (p.ndim - size.ndim))
        factor *= jnp.where(rms_scaled, jnp.maximum(size, RMS_FLOOR), 1.0)
        return p - (s * h["lr"] * factor) * d - shrink * p

    return jax.tree.map_with_path(descended, params, delta, sizes)


# ------------------------------------------------------------------ what P2 looks at


def rounded(gradients, dtype: str, loss_scale):
    """Gradients as they arrive through `dtype`, computed times `loss_scale`.

    The small ones underflow to 0.
    """

    def through(g):
        return (g * loss_scale).astype(dtype).astype(g.dtype) / loss_scale

    return jax.tree.map(through, gradients)


def observed_tensors(tree: dict, n_layers: int) -> dict:
    """The tensors that `observe` looks at, by name.

    They are the embedding, and the first MLP layer of the first and of the last block.
    """
    blocks = tree["blocks"]
    tensors = {"embed": tree["embed"]["embedding"]}
    for i in dict.fromkeys((0, n_layers - 1)):  # once, where the first block is the last
        if stacked(tree):
            kernel = blocks["mlp_in"]["kernel"][i]
        else:
            # Blocks are keyed by their number: Flax's own key, or its text.
            kernel = blocks[i if i in blocks else str(i)]["mlp_in"]["kernel"]
        tensors[f"blocks/{i}/mlp_in"] = kernel
    return tensors


def observe(bins: int, gradients: dict, last: dict, delta: dict, moments: tuple, h: dict) -> dict:
    """What P2 looks at in Adam, of each tensor of `observed_tensors`.

    ratio, update      histograms of r = m̂/√v̂ and of Δ: `bins` shares over ±HISTOGRAM_RANGE,
                       the outer ones taking what is beyond
    gradient_cosine    of the gradient with the `last` step's
    zero_gradients     the share of the gradient that is exactly 0

    `moments` are (count, m, v) after the step.
    """
    count, first, second = moments
    edges = jnp.linspace(-HISTOGRAM_RANGE, HISTOGRAM_RANGE, bins + 1)[1:-1]

    def histogram(x):
        below = (x.reshape(-1, 1) < edges).mean(0)
        return jnp.diff(below, prepend=0.0, append=1.0)

    found = {}
    for name, g in gradients.items():
        m = first[name] / (1 - h["b1"] ** count)
        v = second[name] / (1 - h["b2"] ** count)
        # The inner where keeps 0/0 out of the branch that is not taken.
        ratio = jnp.where(v > 0, m / jnp.sqrt(jnp.where(v > 0, v, 1.0)), 0.0)
        lengths = jnp.linalg.norm(g) * jnp.linalg.norm(last[name])
        found[f"ratio/{name}"] = histogram(ratio)
        found[f"update/{name}"] = histogram(delta[name])
        cosine = jnp.vdot(g, last[name]) / jnp.maximum(lengths, jnp.finfo(jnp.float32).tiny)
        found[f"gradient_cosine/{name}"] = cosine
        found[f"zero_gradients/{name}"] = (g == 0).mean()
    return found
