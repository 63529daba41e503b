"""The taps of this project's model, of somebody else's: queries, keys and logits as arrays.

Arrays may be NumPy's, JAX's, or what NumPy takes for one. Axes are those that most libraries have:

    B  sequences    T  positions    H  heads    K  width of a head    V  vocabulary

The numbers are those of `model.attention_taps` and `model.output_taps`, in float32, for causal
attention: a query sees the keys at and before its own position.
"""

import numpy as np

from proxies_lib.config import refuse

# Values, or an array with one of each head.
Taps = dict[str, float | np.ndarray]


def attention(q_BTHK, k_BTHK, scale: float | None = None, entering_BHTT=None) -> Taps:
    """What a figure shows of one attention layer, from q and k as they enter their product.

    That is behind normalization and rotation. Keys may have fewer heads, each for as many queries
    (grouped-query attention). A logit is `scale` · q·k; 1/√K without. `entering_BHTT`
    are logits (B, H, query, key) as they enter the softmax, where something changes them before.

        max_attention_logit            largest |logit| over causal entries
        max_attention_logit_of_head    the same of each head, (H,)
        max_entering_logit             the same of `entering_BHTT`, if given
        attention_entropy              mean entropy of a query's weights, nats
        q_norm, k_norm                 mean lengths of queries and of keys
        qk_cosine                      mean |cosine| of the last query with every key

    Raises UserError, with the shape, where arrays do not fit together.
    """
    import jax.numpy as jnp

    from proxies_lib import model

    q, k = _array("q", q_BTHK, 4), _array("k", k_BTHK, 4)
    B, T, H, K = q.shape
    heads = k.shape[2]
    if k.shape != (B, T, heads, K) or not heads or H % heads:
        allowed = f"must be ({B}, {T}, heads, {K}) as q is {q.shape}, heads dividing {H}"
        refuse("k", k.shape, allowed)
    k = np.repeat(k, H // heads, axis=2)
    scale = float(K) ** -0.5 if scale is None else float(scale)
    # The model's own order: positions last, keys before queries.
    q_BHKT, k_BHKS = (jnp.asarray(z.transpose(0, 2, 3, 1)) for z in (q, k))
    given = [q_BHKT, k_BHKS, model.attention_logits(q_BHKT, k_BHKS, scale)]
    if entering_BHTT is not None:
        entering = _array("entering", entering_BHTT, 4)
        if entering.shape != (B, H, T, T):
            refuse("entering", entering.shape, f"must be {(B, H, T, T)}")
        given.append(jnp.asarray(entering.swapaxes(2, 3)))
    return _numbers(model.attention_taps(scale, True, *given))


def output(logits) -> Taps:
    """What a figure shows of output logits (…, V): mean, largest, mean log Z and log² Z.

    Z is the sum over the vocabulary of exp(logit). Raises UserError where there are no logits.
    """
    import jax.numpy as jnp

    from proxies_lib import model

    values = _array("logits", logits, None)
    return _numbers(model.output_taps(jnp.asarray(values.reshape(-1, values.shape[-1]))))


def _array(name: str, values, axes: int | None) -> np.ndarray:
    """`values` as float32 of that many axes, None for any; none of them empty."""
    try:
        array = np.asarray(values, np.float32)
    except (TypeError, ValueError):
        refuse(name, type(values).__name__, "must be an array of numbers")
    if array.ndim != (axes or max(array.ndim, 1)) or not array.size:
        wanted = f"{axes} axes" if axes else "at least one axis"
        refuse(name, array.shape, f"must have {wanted}, none of them empty")
    return array


def _numbers(taps: dict) -> Taps:
    return {name: np.asarray(v) if np.ndim(v) else float(v) for name, v in taps.items()}
