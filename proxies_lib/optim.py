"""The optimizer of P1 (section 2.1): clip, AdamW with independent or coupled decay, warm-up and cosine.

Every hyperparameter is a traced input, so one executable serves a whole sweep.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from proxies_lib.config import HyperParams
from proxies_lib.model import tensor_rms, when

RMS_FLOOR = 1e-3  # of RMS-scaled learning rates (P1, Fig. E.14)


def inputs(h: HyperParams) -> dict[str, float]:
    """The hyperparameters a compiled step reads, as numbers."""
    numbers = {f.name: float(getattr(h, f.name)) for f in dataclasses.fields(h) if f.type in (int, float)}
    del numbers["seed"]
    return numbers | {"coupled": float(h.decay == "coupled"), "rms_scaled": float(h.lr_scaling == "rms")}


def schedule(step, h: dict) -> jax.Array:
    """s_t: linear from 0 over `warmup_steps`, then a cosine to min_lr/lr at `steps`. The LR is lr·s_t."""
    warmup = step / jnp.maximum(h["warmup_steps"], 1.0)
    progress = jnp.clip((step - h["warmup_steps"]) / (h["steps"] - h["warmup_steps"]), 0.0, 1.0)
    floor = h["min_lr"] / h["lr"]
    cosine = floor + (1.0 - floor) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
    return jnp.where(step < h["warmup_steps"], warmup, cosine)


def adam(h: dict) -> optax.GradientTransformation:
    """Gradient → Δ = v/(√u + ε), the unscaled update of P1 (bias-corrected), after clipping by global norm."""
    return optax.chain(
        optax.clip_by_global_norm(h["clip_norm"]),
        optax.scale_by_adam(b1=h["b1"], b2=h["b2"], eps=h["eps"]),
    )


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
        size = size.reshape(*size.shape, *(1,) * (p.ndim - size.ndim))  # a layer's own where layers are stacked
        factor *= jnp.where(scaled, jnp.maximum(size, RMS_FLOOR), 1.0)
        return p - (s * h["lr"] * factor) * d - shrink * p

    return jax.tree.map_with_path(one, params, delta, sizes)
