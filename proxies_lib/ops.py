"""Operations of the transformer that are written out: rotary positions, LayerNorm, dense layers, attention."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from proxies_lib.config import ModelConfig

LAYER_NORM_EPS = 1e-6

ROPE_BASE = 10_000.0


def rope(x_BHKT: jax.Array) -> jax.Array:
    """Rotary position embedding (Su et al. 2021), base 10000, channels paired (i, i + K/2)."""
    K, T = x_BHKT.shape[-2:]
    # NumPy, so that the tables are constants of the program: XLA would compute them again for every head and row.
    angle_KT = ROPE_BASE ** (-np.arange(0, K, 2) / K)[:, None] * np.arange(T)
    cos, sin = np.cos(angle_KT).astype(x_BHKT.dtype), np.sin(angle_KT).astype(x_BHKT.dtype)
    a, b = jnp.split(x_BHKT, 2, axis=-2)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-2)


def rms(x: jax.Array) -> jax.Array:
    """√mean(x²) over all entries, in float32."""
    return jnp.sqrt(jnp.mean(jnp.square(x.astype(jnp.float32))))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def layer_norm(x: jax.Array, scale: jax.Array, axis: int = -1) -> jax.Array:
    """LayerNorm over one axis, without bias, ε 1e-6; its gradient in closed form (P1, appendix C). `scale` is (D,).

    The closed form is a tenth of a step faster on a CPU than differentiating through the statistics.
    """
    return _layer_norm_forward(x, scale, axis)[0]


def _along(scale, axis: int):
    return scale.reshape(-1, *(1,) * (-1 - axis))


def _layer_norm_forward(x, scale, axis):
    centered = (x - x.mean(axis, keepdims=True, dtype=jnp.float32)).astype(jnp.float32)
    inverse_std = jax.lax.rsqrt(jnp.square(centered).mean(axis, keepdims=True) + LAYER_NORM_EPS)
    normalized = (centered * inverse_std).astype(x.dtype)
    return normalized * _along(scale, axis), (normalized, inverse_std, scale)


def _layer_norm_backward(axis, residuals, g):
    normalized, inverse_std, scale = residuals
    into = (g * _along(scale, axis)).astype(jnp.float32)
    along = (into * normalized).mean(axis, keepdims=True)
    dx = inverse_std * (into - into.mean(axis, keepdims=True) - normalized * along)
    others = tuple(i for i in range(g.ndim) if i != g.ndim + axis)
    dscale = jnp.sum(g * normalized, axis=others, dtype=jnp.float32)
    return dx.astype(g.dtype), dscale.astype(scale.dtype)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


@jax.custom_vjp
def dense(x_NI: jax.Array, kernel_IO: jax.Array) -> jax.Array:
    """x·W. Its weight gradient is taken with the narrow side first: XLA:CPU is twice as fast that way round."""
    return x_NI @ kernel_IO


def _dense_backward(residuals, g_NO):
    x_NI, kernel_IO = residuals
    if (
        kernel_IO.shape[0] > kernel_IO.shape[1]
    ):  # the barrier keeps XLA from turning the product round again
        dkernel_IO = jax.lax.optimization_barrier(g_NO.T @ x_NI).T
    else:
        dkernel_IO = x_NI.T @ g_NO
    return g_NO @ kernel_IO.T, dkernel_IO


dense.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), _dense_backward)


def when(probe, observe, *observed):
    """`observe(*observed)` where `probe` holds, else zeros of its shapes. Never part of the gradient.

    A probe that is a plain bool costs nothing; a traced one becomes a branch, paid for only when taken.
    """
    observed = jax.lax.stop_gradient(observed)
    if probe is True:
        return observe(*observed)
    blank = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(observe, *observed))
    return jax.lax.cond(probe, observe, lambda *_: blank, *observed)


def causal(logits_BHST: jax.Array) -> np.ndarray:
    """(S, T), true where key S is at or before query T."""
    return np.triu(np.ones(logits_BHST.shape[-2:], bool))


def kappa_map(z: jax.Array, kappa) -> jax.Array:
    """√κ·z/√mean(z²) over the channels of a head (P1, Fig. 10); logits are then at most κ·√K at scale 1/√K."""
    mean_square = jnp.square(z.astype(jnp.float32)).mean(-2, keepdims=True)
    return (z * jnp.sqrt(kappa / (mean_square + LAYER_NORM_EPS))).astype(z.dtype)


def attention_logits(q_BHKT: jax.Array, k_BHKS: jax.Array, scale) -> jax.Array:
    """(B, H, S, T) in float32."""
    return jnp.einsum("BHKS,BHKT->BHST", k_BHKS, q_BHKT, preferred_element_type=jnp.float32) * scale


def fused(config: ModelConfig) -> bool:
    """Whether attention is one kernel that never writes its logits: softmax in bfloat16 on a GPU, heads of at most 128."""
    kernel = (
        config.attention == "softmax"
        and config.compute_dtype == "bfloat16"
        and config.d_head % 8 == 0
    )
    return kernel and config.d_head <= 128 and jax.default_backend() == "gpu"


def fused_attention(q_BHKT, k_BHKS, v_BHKS, scale, implementation="cudnn") -> jax.Array:
    """Causal softmax attention (B, H, K, T) without its logits in memory. The taps, which need them, compute them from
    the same q and k in their own branch, once per `log_every`: they stay exact."""
    q, k, v = (
        z.transpose(0, 3, 1, 2) for z in ((q_BHKT * scale).astype(q_BHKT.dtype), k_BHKS, v_BHKS)
    )
    mixed_BTHK = jax.nn.dot_product_attention(
        q, k, v, is_causal=True, scale=1.0, implementation=implementation
    )
    return mixed_BTHK.transpose(0, 2, 3, 1)
