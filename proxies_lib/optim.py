"""The optimizer of P1 (section 2.1): clip, AdamW with independent or coupled decay, warm-up and cosine.

Every hyperparameter is a traced input, so one executable serves a whole sweep.
"""

import jax
import jax.numpy as jnp
import optax

from proxies_lib.config import HyperParams


def inputs(h: HyperParams) -> dict[str, float]:
    """The hyperparameters a compiled step reads, as numbers."""
    names = ("steps", "warmup_steps", "lr", "min_lr", "weight_decay", "z_loss", "b1", "b2", "eps", "clip_norm")
    return {name: float(getattr(h, name)) for name in names} | {"coupled": float(h.decay == "coupled")}


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
    """θ − s_t(η·Δ + λθ), or θ − s_t·η(Δ + λθ) when coupled (P1, section 3.3). Decay applies to every tensor."""
    s = schedule(step, h)
    shrink = s * h["weight_decay"] * jnp.where(h["coupled"] > 0, h["lr"], 1.0)
    return jax.tree.map(lambda p, d: p - (s * h["lr"]) * d - shrink * p, params, delta)
