"""The transformer of P1 (section 2.1): Flax NNX modules behind two pure functions, `init`, `apply`.

Axes, as suffixes of array names:

    B  sequences of a batch    D  model width        V  vocabulary
    T  query position          H  heads              L  layers
    S  key position            K  width of a head    N  = B·T, flattened tokens

Dense layers see flattened tokens (N, D): XLA:CPU takes the weight gradient of a 3-D activation
much slower. Queries, keys and values have positions on their last axis, (B, H, K, T), and logits
the queries, (B, H, S, T): every reduction of qk-layernorm and softmax then runs along vectors,
which halves attention's time on a CPU.

Taps are what the papers plot of the forward pass beside the loss (`apply` lists them): largest
logits, lengths of q and k, sizes of activations. They are taken where `probe` is true, which in
training is the last step of a logged point; elsewhere they are zeros and cost nothing. No
gradient passes through them.

`h` holds the hyperparameters that are inputs of the compiled program, by name (`optim.inputs`).
`places` are the functions of interventions of one's own, none in the paper's model.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from proxies_lib import interventions, ops
from proxies_lib.config import ModelConfig, refuse
from proxies_lib.ops import (
    anywhere,
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


class Transformer(nnx.Module):
    """Embedding, blocks, final LayerNorm, untied head; no biases anywhere."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.compute_dtype)
        linear = functools.partial(Linear, use_bias=False, rngs=rngs)
        norm = functools.partial(LayerNorm, use_bias=False, rngs=rngs)
        self.embed = nnx.Embed(config.vocab_size, config.d_model, dtype=dtype, rngs=rngs)
        block = interventions.places(config.intervention).only("block") or Block
        self.blocks = nnx.List([block(config, linear, norm) for _ in range(config.n_layers)])
        for made in self.blocks:
            if not isinstance(made, Block):
                refuse("block", type(made).__name__, "must be a subclass of model.Block")
        self.final_norm = norm(config.d_model)
        self.head = linear(config.d_model, config.vocab_size)
        self.config = config

    def __call__(self, tokens_BT: jax.Array, probe, h: dict, pin=anywhere, scanned=None):
        """Logits (N, V) and taps, as `apply` says. `scanned` stands in for the blocks, if given."""
        x_ND = pin(self.embed(tokens_BT.reshape(-1)))
        if scanned is None:
            x_ND, taps = self._through_blocks(x_ND, len(tokens_BT), probe, h, pin)
        else:
            x_ND, taps = scanned(x_ND)
        logits_NV = self.head(self.final_norm(x_ND)).astype(jnp.float32)
        places = interventions.places(self.config.intervention)
        logits_NV = places.through("output_logits", logits_NV, h)
        if self.config.logits_dtype == "bfloat16":
            logits_NV = ops.rounded_to_bfloat16(logits_NV)
        return logits_NV, taps | ops.zeros_unless(probe, output_taps, logits_NV)

    def _through_blocks(self, x_ND, batch: int, probe, h: dict, pin):
        taps = []
        for block in self.blocks:
            x_ND, taps_of_block = block(x_ND, batch, probe, h)
            x_ND = pin(x_ND)
            taps.append(taps_of_block)
        return x_ND, _stacked_leaves(taps) if taps else {}


class Block(nnx.Module):
    """Pre-LayerNorm residual block: attention, then a GELU MLP of hidden width 4·D."""

    def __init__(self, config: ModelConfig, linear, norm):
        self.config = config
        self.attention_norm = norm(config.d_model)
        self.mlp_norm = norm(config.d_model)
        self.attention = Attention(config, linear, norm)
        self.mlp_in = linear(config.d_model, 4 * config.d_model)
        self.mlp_out = linear(4 * config.d_model, config.d_model)

    def __call__(self, x_ND: jax.Array, batch: int, probe, h: dict):
        places = interventions.places(self.config.intervention)
        mixed_ND, taps = self.attend(x_ND, batch, probe, h)
        x_ND = x_ND + places.through("branch", mixed_ND, h)
        x_ND = x_ND + places.through("branch", self.feed_forward(x_ND), h)
        return x_ND, taps | {"block_rms": ops.zeros_unless(probe, rms, x_ND)}

    def attend(self, x_ND, batch: int, probe, h: dict):
        """What attention adds to the stream, and its taps."""
        return self.attention(self.attention_norm(x_ND), batch, probe, h)

    def feed_forward(self, x_ND):
        """What the MLP adds to the stream."""
        return self.mlp_out(jax.nn.gelu(self.mlp_in(self.mlp_norm(x_ND))))


class Attention(nnx.Module):
    """Causal multi-head attention with rotary positions.

    With qk-layernorm or its alternatives (P1, section 3.1.1, Figs 10, E.8 and E.11).
    """

    def __init__(self, config: ModelConfig, linear, norm):
        self.config = config
        self.query = linear(config.d_model, config.d_model)
        self.key = linear(config.d_model, config.d_model)
        self.value = linear(config.d_model, config.d_model)
        self.out = linear(config.d_model, config.d_model)
        if config.qk_norm in ("per_head", "whole"):
            width = config.d_head if config.qk_norm == "per_head" else config.d_model
            self.query_norm = norm(width)
            self.key_norm = norm(width)

    def __call__(self, x_ND: jax.Array, batch: int, probe, h: dict):
        places = interventions.places(self.config.intervention)
        q_BHKT, k_BHKS, v_BHKS = self._heads(x_ND, batch, places, h)
        scale = self.config.d_head ** -h["attention_power"]
        if fused(self.config):
            mixed_BHKT = fused_attention(q_BHKT, k_BHKS, v_BHKS, scale)
            # No logits were written: where taps are taken, they are computed from the same q, k.
            observed: tuple = (q_BHKT, k_BHKS)
        else:
            logits_BHST = attention_logits(q_BHKT, k_BHKS, scale)
            entering_BHST = places.through("attention_logits", logits_BHST, h)
            weights_BHST = self._weights(entering_BHST)
            mixed_BHKT = jnp.einsum("BHKS,BHST->BHKT", v_BHKS, weights_BHST.astype(v_BHKS.dtype))
            observed = (q_BHKT, k_BHKS, logits_BHST)
            if places.has("attention_logits"):
                observed += (entering_BHST,)
        out_ND = self.out(mixed_BHKT.transpose(0, 3, 1, 2).reshape(x_ND.shape))
        softmax = self.config.attention == "softmax"
        observe = functools.partial(attention_taps, scale, softmax)
        taps = ops.zeros_unless(probe, observe, *observed)
        if places.has("after"):  # which sees the logits of every step
            largest_H = _sizes(jax.lax.stop_gradient(logits_BHST)).max(axis=(0, 2, 3))
            taps["max_attention_logit_of_head"] = largest_H
        return out_ND, taps

    def _heads(self, x_ND, batch: int, places, h: dict):
        """Queries, keys and values (B, H, K, T), q and k normalized and rotated."""
        # One product for q, k and v: three narrow ones cost more on every backend.
        kernels = [w.kernel[...] for w in (self.query, self.key, self.value)]
        kernel = jnp.concatenate(kernels, axis=1)
        q, k, v = jnp.split(dense(x_ND, kernel.astype(x_ND.dtype)), 3, axis=1)
        if self.config.qk_norm == "whole":
            q, k = self.query_norm(q), self.key_norm(k)
        heads = (batch, -1, self.config.n_heads, self.config.d_head)
        q, k, v = (z.reshape(heads).transpose(0, 2, 3, 1) for z in (q, k, v))
        if self.config.qk_norm == "per_head":
            q, k = self.query_norm(q, axis=-2), self.key_norm(k, axis=-2)
        if self.config.qk_norm == "kappa":
            q, k = kappa_map(q, h["kappa"]), kappa_map(k, h["kappa"])
        q, k = places.qk(q, k, h)
        return rope(q), rope(k), v

    def _weights(self, logits_BHST):
        """What each value S weighs for query T: softmax, or relu²/√T (P1, Fig. E.11)."""
        if self.config.attention == "softmax":
            masked = jnp.where(causal(logits_BHST), logits_BHST, -jnp.inf)
            return jax.nn.softmax(masked, axis=-2)
        masked = jnp.where(causal(logits_BHST), logits_BHST, 0.0)
        return jnp.square(jax.nn.relu(masked)) * logits_BHST.shape[-1] ** -0.5


class Linear(nnx.Linear):
    """Without bias, on flattened tokens. `init` draws its kernel, unless told how it begins."""

    def __init__(self, *sizes, **options):
        super().__init__(*sizes, **options)
        self.drawn = "kernel_init" not in options

    def __call__(self, x_NI):
        return dense(x_NI, self.kernel[...].astype(x_NI.dtype))


class LayerNorm(nnx.LayerNorm):
    """Without bias, over any axis. Begins at 1, unless told otherwise."""

    def __init__(self, *sizes, **options):
        super().__init__(*sizes, **options)
        self.drawn = "scale_init" not in options

    def __call__(self, x, axis: int = -1):  # type: ignore[override]
        assert self.scale is not None
        return layer_norm(x, self.scale[...].astype(x.dtype), axis)


# ------------------------------------------------------------------ taps


def attention_taps(
    scale, softmax: bool, q_BHKT, k_BHKS, logits_BHST=None, entering_BHST=None
) -> dict:
    """Taps of one attention layer, from q and k as they enter the product.

    `entering` are the logits after an intervention, as they enter the softmax.
    """
    if logits_BHST is None:
        logits_BHST = attention_logits(q_BHKT, k_BHKS, scale)
    largest_H = _sizes(logits_BHST).max(axis=(0, 2, 3))
    q_norm_BHT, k_norm_BHS = (
        jnp.linalg.norm(z.astype(jnp.float32), axis=-2) for z in (q_BHKT, k_BHKS)
    )
    # The last query sees every key, so one row of cosines says enough.
    last_BHS = jnp.einsum(
        "BHK,BHKS->BHS", q_BHKT[..., -1], k_BHKS, preferred_element_type=jnp.float32
    )
    lengths_BHS = q_norm_BHT[..., -1:] * k_norm_BHS
    cosine_BHS = last_BHS / jnp.maximum(lengths_BHS, jnp.finfo(jnp.float32).tiny)
    taps = {
        "max_attention_logit": largest_H.max(),
        "max_attention_logit_of_head": largest_H,
        "q_norm": q_norm_BHT.mean(),
        "k_norm": k_norm_BHS.mean(),
        "qk_cosine": jnp.abs(cosine_BHS).mean(),
    }
    if entering_BHST is not None:
        taps["max_entering_logit"] = _sizes(entering_BHST).max()
    if softmax:
        taps["attention_entropy"] = _entropy(
            logits_BHST if entering_BHST is None else entering_BHST
        )
    return taps


def _sizes(logits_BHST) -> jax.Array:
    """|logit| of causal entries, 0 elsewhere."""
    return jnp.where(causal(logits_BHST), jnp.abs(logits_BHST), 0.0)


def _entropy(logits_BHST) -> jax.Array:
    """Mean entropy of the attention weights of a query, −Σ A log A, in nats (Zhai et al. 2023)."""
    masked = jnp.where(causal(logits_BHST), logits_BHST, -jnp.inf)
    log_weights = jax.nn.log_softmax(masked, axis=-2)
    # A key that the mask hides has weight 0, and 0 · log 0 counts as 0.
    terms = jnp.where(causal(logits_BHST), jnp.exp(log_weights) * log_weights, 0.0)
    return -terms.sum(axis=-2).mean()


def output_taps(logits_NV) -> dict:
    log_z_N = jax.nn.logsumexp(logits_NV, axis=-1)
    return {
        "mean_output_logit": logits_NV.mean(),
        "max_output_logit": logits_NV.max(),
        "mean_log_z": log_z_N.mean(),
        "mean_log_z_squared": jnp.square(log_z_N).mean(),
    }


def tensor_rms(tree: dict) -> dict:
    """RMS of every tensor of `tree`; (L,) where layers are stacked."""

    def rms_of(name: str):
        return jax.vmap(rms) if name == "blocks" and stacked(tree) else rms

    return {name: jax.tree.map(rms_of(name), part) for name, part in tree.items()}


# ------------------------------------------------------------------ the two pure functions

# What `init` and `apply` read of the hyperparameters, at P1's defaults.
PAPER = {
    "attention_power": 0.5,
    "kappa": 1.0,
    "head_init": 1.0,
    "query_init": 1.0,
}

INITIALIZERS = {
    # of (V, D): std 1/√D
    "embedding": nnx.initializers.variance_scaling(1.0, "fan_out", "normal", batch_axis=0),
    # std 1/√fan_in
    "kernel": nnx.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", batch_axis=0),
    "scale": nnx.initializers.ones_init(),
}


def init(config: ModelConfig, key: jax.Array, h: dict = PAPER) -> dict:
    """Parameters as a nested dict of float32 arrays.

    The embedding is normal with std 1/√D, norms are 1, every other weight is truncated normal
    with std 1/√fan_in. Head and queries are multiplied by `h["head_init"]` and `h["query_init"]`.
    What the block of an intervention makes without `linear` and `norm`, or with an initializer of
    its own, begins as it says.

    Draws are numbered by kind and shape, in the order in which these first occur. So two models of
    one seed agree only up to the first tensor that one of them lacks: with qk-layernorm and
    without, the attention's kernels are equal, those of MLP, embedding and head are not.
    """
    leaves, tree = jax.tree.flatten_with_path(nnx.to_pure_dict(_skeleton(config)[1]))
    drawn_here = _drawn(config)
    # Tensors of one kind and shape are one draw, stacked: every draw is half a second of
    # compilation on a CPU.
    alike: dict[tuple, list[int]] = {}
    for i, (path, leaf) in enumerate(leaves):
        if _names(path) in drawn_here:
            alike.setdefault((path[-1].key, leaf.shape), []).append(i)
    values: dict[int, jax.Array] = {}
    for n, ((kind, shape), members) in enumerate(alike.items()):
        key_of_draw = jax.random.fold_in(key, n)
        stack = INITIALIZERS[kind](key_of_draw, (len(members), *shape), jnp.float32)
        values |= dict(zip(members, stack, strict=True))
    if len(values) < len(leaves):
        constructed = _constructed(config, jax.random.fold_in(key, len(alike)))
        values = dict(enumerate(constructed)) | values
    params = jax.tree.unflatten(tree, [values[i] for i in range(len(leaves))])
    params["head"]["kernel"] *= h["head_init"]
    for block in params.get("blocks", {}).values():
        block["attention"]["query"]["kernel"] *= h["query_init"]
    return params


def apply(
    config: ModelConfig,
    params: dict,
    tokens_BT: jax.Array,
    probe=True,
    h: dict = PAPER,
    pin=anywhere,
):
    """Logits (N, V) in float32 for integer tokens (B, T), and the taps. `pin` pins (N, D).

    Taps of each block, (L,):
        max_attention_logit            largest |logit| over causal entries
        max_attention_logit_of_head    the same of each head, (L, H)
        max_entering_logit             the same of what enters the softmax, where an intervention
                                       changes logits in between
        attention_entropy              mean entropy of a query's weights, nats; softmax only
        q_norm, k_norm                 mean lengths of q and k as they enter the product
        qk_cosine                      mean |cosine| of the last query with every key
        block_rms                      RMS of the block's output
    Taps of the output, scalars:
        mean_output_logit, max_output_logit
        mean_log_z, mean_log_z_squared    of log Z of each token; the second is P1's log² Z

    Of stacked params (`stack`) layers are scanned, and computed again in the backward pass: one
    layer's activations in memory, one layer to compile.
    """
    if not stacked(params):
        return _merged(_skeleton(config), params)(tokens_BT, probe, h, pin)
    block = _block_skeleton(config)

    def layer(x_ND, params_of_layer):
        x_ND, taps = _merged(block, params_of_layer)(x_ND, len(tokens_BT), probe, h)
        return pin(x_ND), taps

    remembering_nothing = jax.checkpoint(layer, prevent_cse=False)
    scanned = functools.partial(jax.lax.scan, remembering_nothing, xs=params["blocks"])
    # What stands before and behind the blocks is a transformer without any.
    params_of_ends = {name: part for name, part in params.items() if name != "blocks"}
    ends = _merged(_skeleton(dataclasses.replace(config, n_layers=0)), params_of_ends)
    return ends(tokens_BT, probe, h, pin, scanned)


def stack(params: dict) -> dict:
    """`params` with the tensors of all blocks stacked, (L, …): what `apply` then scans over."""
    blocks = [params["blocks"][name] for name in sorted(params["blocks"], key=int)]
    return params | {"blocks": _stacked_leaves(blocks)}


def stacked(tree: dict) -> bool:
    """Whether `tree`, of parameters or gradients, has its layers stacked."""
    # Else blocks are keyed by their number, or by its text.
    return any(not str(name).isdigit() for name in tree.get("blocks", {}))


def over_blocks(function, params: dict, *per_layer) -> dict:
    """`params` with each block b replaced by function(b, *x[layer]), stacked or not.

    For interventions. `per_layer` are arrays (L, …), for example the largest logit of each head.
    """
    blocks = params["blocks"]
    if stacked(params):
        return params | {"blocks": jax.vmap(function)(blocks, *per_layer)}
    changed = {}
    for i, name in enumerate(sorted(blocks, key=int)):
        changed[name] = function(blocks[name], *(x[i] for x in per_layer))
    return params | {"blocks": changed}


def _stacked_leaves(trees: list):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _merged(skeleton, params: dict) -> nnx.Module:
    """The module of `skeleton` with `params` for its weights."""
    graphdef, state = skeleton
    state = jax.tree.map(lambda x: x, state)  # a copy: the skeleton is shared between traces
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graphdef, state)


# A skeleton is a module's structure and the shapes of its weights, without numbers.


@functools.cache
def _skeleton(config: ModelConfig):
    return nnx.split(_shapes(config), nnx.Param)


@functools.cache
def _block_skeleton(config: ModelConfig):
    return nnx.split(_shapes(config).blocks[0], nnx.Param)


@functools.cache
def _shapes(config: ModelConfig) -> Transformer:
    transformer = nnx.eval_shape(lambda: Transformer(config, nnx.Rngs(0)))
    _check_is_all_parameters(transformer)
    return transformer


def _check_is_all_parameters(transformer: Transformer):
    """Refuse what no step would carry on: the state of a batch norm, an array that is no Param."""
    state = dict(nnx.to_flat_state(nnx.state(transformer)))
    for path, module in nnx.iter_modules(transformer):
        # Plain arrays are in the state as well from some release of Flax on.
        own = {(*path, name): value for name, value in vars(module).items()}
        state |= {at: value for at, value in own.items() if isinstance(value, jax.Array)}
    for path, value in state.items():
        if not isinstance(value, nnx.Param):
            kind = type(value).__name__ if isinstance(value, nnx.Variable) else "plain array"
            reason = f"is a {kind}; a block may hold nnx.Param only"
            refuse("block", "/".join(map(str, path)), reason)


@functools.cache
def _drawn(config: ModelConfig) -> set[tuple[str, ...]]:
    """Where the weights are that `init` draws, as names: all of the paper's model."""
    found: set[tuple[str, ...]] = {("embed", "embedding")}
    for path, module in nnx.iter_modules(_shapes(config)):
        if isinstance(module, (Linear, LayerNorm)) and module.drawn:
            weight = "kernel" if isinstance(module, Linear) else "scale"
            found.add((*map(str, path), weight))
    return found


def _names(path) -> tuple[str, ...]:
    return tuple(str(part.key) for part in path)


def _constructed(config: ModelConfig, key: jax.Array) -> list[jax.Array]:
    """All weights as the constructors of the modules make them, in the order of `_skeleton`."""
    state = nnx.split(Transformer(config, nnx.Rngs(key)), nnx.Param)[1]
    leaves = jax.tree.leaves(nnx.to_pure_dict(state))
    return [leaf.astype(jnp.float32) for leaf in leaves]
