"""The transformer of P1 (section 2.1): Flax NNX modules behind two pure functions, `init` and `apply`.

Axes, as suffixes of array names:
    B batch    T query position    S key position    N = B·T flattened tokens
    D model width    H heads    K width of a head    V vocabulary

Queries, keys and values have positions on their last axis, (B, H, K, T), and attention logits the queries, (B, H, S,
T): every reduction of qk-layernorm and softmax then runs along vectors, which halves attention's time on a CPU.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from proxies_lib import ops
from proxies_lib.config import ModelConfig
from proxies_lib.ops import (
    attention_logits,
    causal,
    dense,
    fused,
    fused_attention,
    kappa_map,
    layer_norm,
    rms,
    rope,
)

PAPER = {
    "attention_power": 0.5,
    "kappa": 1.0,
    "head_init": 1.0,
    "query_init": 1.0,
}  # the defaults of P1

_kernel_init = nnx.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", batch_axis=0)

_embedding_init = nnx.initializers.variance_scaling(
    1.0, "fan_out", "normal", batch_axis=0
)  # of (V, D): std 1/√D


class Linear(nnx.Linear):
    """Without bias, on flattened tokens."""

    def __call__(self, x_NI):
        return dense(x_NI, self.kernel[...].astype(x_NI.dtype))


class LayerNorm(nnx.LayerNorm):
    """Without bias."""

    def __call__(self, x, axis: int = -1):
        return layer_norm(x, self.scale[...].astype(x.dtype), axis)


class Attention(nnx.Module):
    """Causal multi-head attention with rotary positions; qk-layernorm and its alternatives (P1, section 3.1.1)."""

    def __init__(self, config: ModelConfig, linear, norm):
        self.config = config
        self.query, self.key, self.value, self.out = (
            linear(config.d_model, config.d_model) for _ in range(4)
        )
        if config.qk_norm in ("per_head", "whole"):
            width = config.d_head if config.qk_norm == "per_head" else config.d_model
            self.query_norm, self.key_norm = norm(width), norm(width)

    def __call__(self, x_ND: jax.Array, batch: int, probe, h: dict):
        # One product for q, k and v: three narrow ones cost more on every backend.
        kernel = jnp.concatenate(
            [w.kernel[...] for w in (self.query, self.key, self.value)], axis=1
        )
        q, k, v = jnp.split(dense(x_ND, kernel.astype(x_ND.dtype)), 3, axis=1)
        if self.config.qk_norm == "whole":
            q, k = self.query_norm(q), self.key_norm(k)
        heads = (batch, -1, self.config.n_heads, self.config.d_head)
        q, k, v = (z.reshape(heads).transpose(0, 2, 3, 1) for z in (q, k, v))
        if self.config.qk_norm == "per_head":
            q, k = self.query_norm(q, axis=-2), self.key_norm(k, axis=-2)
        if self.config.qk_norm == "kappa":
            q, k = kappa_map(q, h["kappa"]), kappa_map(k, h["kappa"])
        q, k = rope(q), rope(k)
        scale = self.config.d_head ** -h["attention_power"]
        if fused(self.config):
            mixed_BHKT = fused_attention(q, k, v, scale)
            out_ND = self.out(mixed_BHKT.transpose(0, 3, 1, 2).reshape(x_ND.shape))
            return out_ND, ops.when(
                probe, lambda q, k: self._observe(q, k, attention_logits(q, k, scale)), q, k
            )
        logits_BHST = attention_logits(q, k, scale)
        if self.config.attention == "softmax":
            weights_BHST = jax.nn.softmax(
                jnp.where(causal(logits_BHST), logits_BHST, -jnp.inf), axis=-2
            )
        else:
            weights_BHST = jnp.square(jax.nn.relu(jnp.where(causal(logits_BHST), logits_BHST, 0.0)))
            weights_BHST *= logits_BHST.shape[-1] ** -0.5
        mixed_BHKT = jnp.einsum("BHKS,BHST->BHKT", v, weights_BHST.astype(v.dtype))
        out_ND = self.out(mixed_BHKT.transpose(0, 3, 1, 2).reshape(x_ND.shape))
        return out_ND, ops.when(probe, self._observe, q, k, logits_BHST)

    def _observe(self, q, k, logits_BHST):
        q_BHT, k_BHS = (jnp.linalg.norm(z.astype(jnp.float32), axis=-2) for z in (q, k))
        last_BHS = jnp.einsum("BHK,BHKS->BHS", q[..., -1], k, preferred_element_type=jnp.float32)
        last_cosine_BHS = last_BHS / jnp.maximum(
            q_BHT[..., -1:] * k_BHS, jnp.finfo(jnp.float32).tiny
        )
        return {
            "max_attention_logit": jnp.where(causal(logits_BHST), jnp.abs(logits_BHST), 0.0).max(),
            "q_norm": q_BHT.mean(),
            "k_norm": k_BHS.mean(),
            "qk_cosine": jnp.abs(last_cosine_BHS).mean(),
        }


class Block(nnx.Module):
    """Pre-LayerNorm residual block: attention, then a GELU MLP of hidden width 4·D."""

    def __init__(self, config: ModelConfig, linear, norm):
        self.attention_norm, self.mlp_norm = norm(config.d_model), norm(config.d_model)
        self.attention = Attention(config, linear, norm)
        self.mlp_in = linear(config.d_model, 4 * config.d_model)
        self.mlp_out = linear(4 * config.d_model, config.d_model)

    def __call__(self, x_ND: jax.Array, batch: int, probe, h: dict):
        mixed_ND, taps = self.attention(self.attention_norm(x_ND), batch, probe, h)
        x_ND = x_ND + mixed_ND
        x_ND = x_ND + self.mlp_out(jax.nn.gelu(self.mlp_in(self.mlp_norm(x_ND))))
        return x_ND, taps | {"block_rms": ops.when(probe, rms, x_ND)}


class Transformer(nnx.Module):
    """Embedding, blocks, final LayerNorm, untied head; no biases anywhere.

    Dense layers see flattened tokens (N, D): XLA:CPU takes the weight gradient of a 3-D activation much slower.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.compute_dtype)
        linear = functools.partial(Linear, use_bias=False, rngs=rngs)
        norm = functools.partial(LayerNorm, use_bias=False, rngs=rngs)
        self.embed = nnx.Embed(config.vocab_size, config.d_model, dtype=dtype, rngs=rngs)
        self.blocks = nnx.List([Block(config, linear, norm) for _ in range(config.n_layers)])
        self.final_norm = norm(config.d_model)
        self.head = linear(config.d_model, config.vocab_size)

    def __call__(self, tokens_BT: jax.Array, probe, h: dict, layers=None, place=lambda x: x):
        x_ND = place(self.embed(tokens_BT.reshape(-1)))
        if layers is not None:
            x_ND, taps = layers(x_ND)
        else:
            per_block = []
            for block in self.blocks:
                x_ND, taps = block(x_ND, tokens_BT.shape[0], probe, h)
                x_ND = place(x_ND)
                per_block.append(taps)
            taps = jax.tree.map(lambda *each: jnp.stack(each), *per_block) if per_block else {}
        logits_NV = self.head(self.final_norm(x_ND)).astype(jnp.float32)
        output = ops.when(
            probe, lambda z: {"mean_output_logit": z.mean(), "max_output_logit": z.max()}, logits_NV
        )
        return logits_NV, taps | output


def init(config: ModelConfig, key: jax.Array, h: dict = PAPER) -> dict:
    """Parameters as a nested dict of float32 arrays: embedding normal with std 1/√D, norms 1, every other weight
    truncated normal with std 1/√fan_in; head and queries times `h["head_init"]` and `h["query_init"]`.

    Tensors of one kind and shape are one draw, stacked: every draw is half a second of compilation on a CPU.
    """
    kinds = {
        "embedding": _embedding_init,
        "kernel": _kernel_init,
        "scale": nnx.initializers.ones_init(),
    }
    leaves, tree = jax.tree.flatten_with_path(nnx.to_pure_dict(_skeleton(config)[1]))
    groups: dict[tuple, list[int]] = {}
    for i, (path, leaf) in enumerate(leaves):
        groups.setdefault((path[-1].key, leaf.shape), []).append(i)
    drawn = {}
    for n, ((kind, shape), members) in enumerate(groups.items()):
        stacked = kinds[kind](jax.random.fold_in(key, n), (len(members), *shape), jnp.float32)
        drawn |= dict(zip(members, stacked, strict=True))
    params = jax.tree.unflatten(tree, [drawn[i] for i in range(len(leaves))])
    params["head"]["kernel"] *= h["head_init"]
    for block in params.get("blocks", {}).values():
        block["attention"]["query"]["kernel"] *= h["query_init"]
    return params


def stack(params: dict) -> dict:
    """`params` with the tensors of all blocks stacked, (L, …): what `apply` then scans over."""
    blocks = [params["blocks"][name] for name in sorted(params["blocks"], key=int)]
    return params | {"blocks": jax.tree.map(lambda *each: jnp.stack(each), *blocks)}


def stacked(tree: dict) -> bool:
    return "mlp_in" in tree.get("blocks", {})


def tensor_rms(tree: dict) -> dict:
    """RMS of every tensor; (L,) of a stacked one, a layer each."""
    each = {name: jax.vmap(rms) if name == "blocks" and stacked(tree) else rms for name in tree}
    return {name: jax.tree.map(each[name], part) for name, part in tree.items()}


def apply(
    config: ModelConfig,
    params: dict,
    tokens_BT: jax.Array,
    probe=True,
    h: dict = PAPER,
    place=lambda x: x,
):
    """Logits (N, V) in float32 for integer tokens (B, T), and the taps. `h`: `attention_power` and `kappa`.

    Taps: per block (L,) `max_attention_logit` (largest |logit| over causal entries), mean `q_norm` and `k_norm` as
    they enter the product, `qk_cosine` (mean |cosine| of the last query with every key), `block_rms` (RMS of the
    block's output); scalars `mean_output_logit`, `max_output_logit`. Zeros where `probe` is false.

    Of stacked params (`stack`) layers are scanned, and computed again in the backward pass: one layer's activations
    in memory, one layer to compile. `place` pins the residual stream (N, D) to devices.
    """
    if not stacked(params):
        return _merged(_skeleton(config), params)(tokens_BT, probe, h, place=place)
    block = _block_skeleton(config)

    def layer(x_ND, block_params):
        x_ND, taps = _merged(block, block_params)(x_ND, tokens_BT.shape[0], probe, h)
        return place(x_ND), taps

    ends = _merged(
        _skeleton(dataclasses.replace(config, n_layers=0)),
        {n: p for n, p in params.items() if n != "blocks"},
    )
    scanned = functools.partial(
        jax.lax.scan, jax.checkpoint(layer, prevent_cse=False), xs=params["blocks"]
    )
    return ends(tokens_BT, probe, h, layers=scanned, place=place)


def _merged(skeleton, params: dict) -> nnx.Module:
    graphdef, state = skeleton
    state = jax.tree.map(lambda x: x, state)  # a copy: the skeleton is shared between traces
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graphdef, state)


@functools.cache
def _block_skeleton(config: ModelConfig):
    return nnx.split(nnx.eval_shape(lambda: Transformer(config, nnx.Rngs(0)).blocks[0]), nnx.Param)


@functools.cache
def _skeleton(config: ModelConfig):
    return nnx.split(nnx.eval_shape(lambda: Transformer(config, nnx.Rngs(0))), nnx.Param)
