"""The optimizer of P1 (section 2.1): clip, AdamW with independent or coupled decay, warm-up and cosine.

Every hyperparameter is a traced input, so one executable serves a whole sweep.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from proxies_lib.config import HyperParams
from proxies_lib.model import stacked, tensor_rms
from proxies_lib.ops import when

RMS_FLOOR = 1e-3  # of RMS-scaled learning rates (P1, Fig. E.14)

HISTOGRAM_RANGE = 1.5  # |r| of Adam is at most 1.2 with β (0.9, 0.95)


def inputs(h: HyperParams) -> dict[str, float]:
    """The hyperparameters a compiled step reads, as numbers."""
    numbers = [f.name for f in dataclasses.fields(h) if f.type in (int, float)]
    switches = {"coupled": h.decay == "coupled", "rms_scaled": h.lr_scaling == "rms"}
    return {name: float(getattr(h, name)) for name in numbers} | {
        name: float(on) for name, on in switches.items()
    }


def schedule(step, h: dict) -> jax.Array:
    """s_t: linear from 0 over `warmup_steps`, then a cosine to min_lr/lr at `steps`. The LR is lr·s_t."""
    warmup = step / jnp.maximum(h["warmup_steps"], 1.0)
    progress = jnp.clip((step - h["warmup_steps"]) / (h["steps"] - h["warmup_steps"]), 0.0, 1.0)
    floor = h["min_lr"] / h["lr"]
    cosine = floor + (1.0 - floor) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
    return jnp.where(step < h["warmup_steps"], warmup, cosine)


def adam(h: dict, step=0) -> optax.GradientTransformation:
    """Gradient → Δ = v/(√u + ε), the unscaled update of P1 (bias-corrected), after clipping by global norm.

    ε is that of `step`. Without ε, Δ is 0 where no gradient was seen yet (u = 0).
    """
    eps = h["eps"] * h["eps_decay"] ** (step / h["steps"])
    inner = optax.scale_by_adam(b1=h["b1"], b2=h["b2"], eps=eps)

    def update(gradients, state, params=None):
        delta, state = inner.update(gradients, state)
        return jax.tree.map(
            lambda d, u: jnp.where((u > 0) | (eps > 0), d, 0.0), delta, state.nu
        ), state

    return optax.chain(
        optax.clip_by_global_norm(h["clip_norm"]), optax.GradientTransformation(inner.init, update)
    )


def rounded(gradients, dtype: str, loss_scale):
    """Gradients as they arrive through `dtype`, computed times `loss_scale`: the small ones underflow to 0."""
    return jax.tree.map(
        lambda g: (g * loss_scale).astype(dtype).astype(g.dtype) / loss_scale, gradients
    )


def observed_tensors(tree: dict, n_layers: int) -> dict:
    """The tensors that `observe` looks at: the embedding, and the first MLP layer of the first and of the last block."""
    blocks, ends = tree["blocks"], dict.fromkeys((0, n_layers - 1))
    if stacked(tree):
        kernels = {i: blocks["mlp_in"]["kernel"][i] for i in ends}
    else:
        kernels = {i: blocks[i if i in blocks else str(i)]["mlp_in"]["kernel"] for i in ends}
    return {"embed": tree["embed"]["embedding"]} | {
        f"blocks/{i}/mlp_in": kernel for i, kernel in kernels.items()
    }


def observe(bins: int, gradients: dict, last: dict, delta: dict, moments: tuple, h: dict) -> dict:
    """Of each tensor of `observed_tensors`: histograms, `bins` shares over ±HISTOGRAM_RANGE (the outer ones take what is
    beyond), of the `ratio` r = m̂/√v̂ and of the `update` Δ (P2); `gradient_cosine`, of the gradient with the `last`
    step's; and `zero_gradients`, the share that is exactly 0. `moments` are (count, m, v) after the step."""
    count, first, second = moments
    edges = jnp.linspace(-HISTOGRAM_RANGE, HISTOGRAM_RANGE, bins + 1)[1:-1]

    def histogram(x):
        below = (x.reshape(-1, 1) < edges).mean(0)
        return jnp.diff(below, prepend=0.0, append=1.0)

    found = {}
    for name, g in gradients.items():
        m, v = first[name] / (1 - h["b1"] ** count), second[name] / (1 - h["b2"] ** count)
        ratio = jnp.where(v > 0, m / jnp.sqrt(jnp.where(v > 0, v, 1.0)), 0.0)
        norms = jnp.linalg.norm(g) * jnp.linalg.norm(last[name])
        found |= {
            f"ratio/{name}": histogram(ratio),
            f"update/{name}": histogram(delta[name]),
            f"gradient_cosine/{name}": jnp.vdot(g, last[name])
            / jnp.maximum(norms, jnp.finfo(jnp.float32).tiny),
            f"zero_gradients/{name}": (g == 0).mean(),
        }
    return found


def descend(params, delta, step, h: dict):
    """θ − s_t(η·Δ + λθ), or θ − s_t·η(Δ + λθ) when coupled (P1, section 3.3). Decay applies to every tensor.

    A tensor's own factor (`linear_lr`, RMS scaling) multiplies η·Δ alone, never the decay.
    """
    s = schedule(step, h)
    shrink = s * h["weight_decay"] * jnp.where(h["coupled"] > 0, h["lr"], 1.0)
    scaled = h["rms_scaled"] > 0
    sizes = when(scaled, tensor_rms, params)

    def one(path, p, d, size):
        factor = h["linear_lr"] if path[-1].key == "kernel" else 1.0
        size = size.reshape(
            *size.shape, *(1,) * (p.ndim - size.ndim)
        )  # a layer's own where layers are stacked
        factor *= jnp.where(scaled, jnp.maximum(size, RMS_FLOOR), 1.0)
        return p - (s * h["lr"] * factor) * d - shrink * p

    return jax.tree.map_with_path(one, params, delta, sizes)
