"""Operations of the transformer that are written out, each for a reason that it states.

The axes in the suffixes of array names are those of `model`; I and O are a dense layer's input
and output width.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from proxies_lib import interventions
from proxies_lib.config import ModelConfig

LAYER_NORM_EPS = 1e-6

ROPE_BASE = 10_000.0


def anywhere(x):
    """`x` itself: the `pin` of a program that pins no array to devices."""
    return x


def zeros_unless(condition, function, *inputs):
    """`function(*inputs)` where `condition` holds, else zeros of its shapes. No gradient passes.

    A condition that is the plain True costs nothing. A traced one becomes a branch, which is paid
    for only when taken.
    """
    inputs = jax.lax.stop_gradient(inputs)
    if condition is True:
        return function(*inputs)
    shapes = jax.eval_shape(function, *inputs)
    zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
    return jax.lax.cond(condition, function, lambda *_: zeros, *inputs)


def rms(x: jax.Array) -> jax.Array:
    """√mean(x²) over all entries, in float32."""
    return jnp.sqrt(jnp.mean(jnp.square(x.astype(jnp.float32))))


@jax.custom_jvp
def rounded_to_bfloat16(x: jax.Array) -> jax.Array:
    """float32 `x`, each entry rounded to the nearest bfloat16. The gradient passes unchanged."""
    # XLA may drop a pair of conversions; this operation it may not.
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)


@rounded_to_bfloat16.defjvp
def _rounded_jvp(primals, tangents):
    return rounded_to_bfloat16(*primals), tangents[0]


# ------------------------------------------------------------------ LayerNorm


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def layer_norm(x: jax.Array, scale: jax.Array, axis: int = -1) -> jax.Array:
    """LayerNorm over one axis (negative), without bias, ε 1e-6. `scale` is (D,).

    Its gradient is written in closed form (P1, appendix C): a tenth of a step faster on a CPU
    than differentiating through the statistics.
    """
    return _layer_norm_forward(x, scale, axis)[0]


def _layer_norm_forward(x, scale, axis):
    # Statistics are in float32, whatever x is in.
    centered = (x - x.mean(axis, keepdims=True, dtype=jnp.float32)).astype(jnp.float32)
    variance = jnp.square(centered).mean(axis, keepdims=True)
    inverse_std = jax.lax.rsqrt(variance + LAYER_NORM_EPS)
    normalized = (centered * inverse_std).astype(x.dtype)
    return normalized * _along(scale, axis), (normalized, inverse_std, scale)


def _layer_norm_backward(axis, residuals, g):
    normalized, inverse_std, scale = residuals
    g_normalized = (g * _along(scale, axis)).astype(jnp.float32)
    # What moves the mean or the length of x moves nothing behind the norm: both parts go.
    radial = (g_normalized * normalized).mean(axis, keepdims=True)
    common = g_normalized.mean(axis, keepdims=True)
    dx = inverse_std * (g_normalized - common - normalized * radial)
    summed = tuple(i for i in range(g.ndim) if i != g.ndim + axis)
    dscale = jnp.sum(g * normalized, axis=summed, dtype=jnp.float32)
    return dx.astype(g.dtype), dscale.astype(scale.dtype)


def _along(scale, axis: int):
    """`scale` (D,), shaped to multiply an array whose axis `axis` has D entries."""
    return scale.reshape(-1, *(1,) * (-1 - axis))


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


# ------------------------------------------------------------------ dense layers


@jax.custom_vjp
def dense(x_NI: jax.Array, kernel_IO: jax.Array) -> jax.Array:
    """x·W, (N, O).

    Its weight gradient is taken with the narrow side first: XLA:CPU is twice as fast that way.
    """
    return x_NI @ kernel_IO


def _dense_forward(x_NI, kernel_IO):
    return x_NI @ kernel_IO, (x_NI, kernel_IO)


def _dense_backward(residuals, g_NO):
    x_NI, kernel_IO = residuals
    wide_input = kernel_IO.shape[0] > kernel_IO.shape[1]
    if wide_input:
        # The barrier keeps XLA from turning the product round again.
        dkernel_IO = jax.lax.optimization_barrier(g_NO.T @ x_NI).T
    else:
        dkernel_IO = x_NI.T @ g_NO
    return g_NO @ kernel_IO.T, dkernel_IO


dense.defvjp(_dense_forward, _dense_backward)


# ------------------------------------------------------------------ attention


def rope(x_BHKT: jax.Array) -> jax.Array:
    """Rotary position embedding (Su et al. 2021), base 10000, channels paired (i, i + K/2)."""
    K, T = x_BHKT.shape[-2:]
    # NumPy, so that the tables are constants of the program: XLA would compute them again for
    # every head and row.
    frequency_K = ROPE_BASE ** (-np.arange(0, K, 2) / K)
    angle_KT = frequency_K[:, None] * np.arange(T)
    cos = np.cos(angle_KT).astype(x_BHKT.dtype)
    sin = np.sin(angle_KT).astype(x_BHKT.dtype)
    a, b = jnp.split(x_BHKT, 2, axis=-2)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-2)


def kappa_map(z_BHKT: jax.Array, kappa) -> jax.Array:
    """√κ·z/√(mean(z²) + 1e-6) over the channels of a head (P1, Fig. 10).

    Logits at scale 1/√K are then at most κ·√K. What is added keeps a z of zeros finite.
    """
    mean_square = jnp.square(z_BHKT.astype(jnp.float32)).mean(-2, keepdims=True)
    return (z_BHKT * jnp.sqrt(kappa / (mean_square + LAYER_NORM_EPS))).astype(z_BHKT.dtype)


def attention_logits(q_BHKT: jax.Array, k_BHKS: jax.Array, scale) -> jax.Array:
    """scale · k·q for every key S and query T, (B, H, S, T) in float32."""
    product = jnp.einsum("BHKS,BHKT->BHST", k_BHKS, q_BHKT, preferred_element_type=jnp.float32)
    return product * scale


def causal(logits_BHST: jax.Array) -> np.ndarray:
    """(S, T), true where key S is at or before query T."""
    return np.triu(np.ones(logits_BHST.shape[-2:], bool))


def fused(config: ModelConfig) -> bool:
    """Whether attention is one kernel that never writes its logits.

    It is for softmax in bfloat16 on a GPU, with heads of at most 128 channels; and never where an
    intervention changes the logits, or asks for the largest one after every step.
    """
    places = interventions.places(config.intervention)
    if places.has("attention_logits") or places.has("after"):
        return False
    if config.attention != "softmax" or config.compute_dtype != "bfloat16":
        return False
    if config.d_head % 8 or config.d_head > 128:
        return False
    return jax.default_backend() == "gpu"


def fused_attention(q_BHKT, k_BHKS, v_BHKS, scale, implementation="cudnn") -> jax.Array:
    """Causal softmax attention (B, H, K, T) without its logits in memory."""
    q_BHKT = (q_BHKT * scale).astype(q_BHKT.dtype)
    # The kernel wants (B, T, H, K).
    q, k, v = (z.transpose(0, 3, 1, 2) for z in (q_BHKT, k_BHKS, v_BHKS))
    mixed_BTHK = jax.nn.dot_product_attention(
        q, k, v, is_causal=True, scale=1.0, implementation=implementation
    )
    return mixed_BTHK.transpose(0, 2, 3, 1)
