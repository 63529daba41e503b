"""Taps of somebody else's model: against closed forms, and against our own model's."""

import numpy as np
import pytest

from proxies_lib import probe
from proxies_lib.config import UserError


@pytest.fixture
def arrays():
    draw = np.random.default_rng(0).normal
    return draw(size=(2, 5, 4, 6)), draw(size=(2, 5, 4, 6))


def by_hand(q, k, scale, entering=None) -> dict:
    """The same with loops over queries."""
    B, T, H, K = q.shape
    largest, entropies, entered = np.zeros(H), [], 0.0
    for b in range(B):
        for h in range(H):
            for t in range(T):
                z = scale * k[b, : t + 1, h] @ q[b, t, h]
                largest[h] = max(largest[h], np.abs(z).max())
                if entering is not None:
                    z = entering[b, h, t, : t + 1]
                    entered = max(entered, np.abs(z).max())
                a = np.exp(z - z.max())
                a /= a.sum()
                entropies.append(-np.sum(a * np.log(a)))
    norms = [np.linalg.norm(z, axis=-1) for z in (q, k)]
    last = np.einsum("bhk,bshk->bsh", q[:, -1], k) / (norms[0][:, -1:] * norms[1])
    taps = {
        "max_attention_logit": largest.max(),
        "max_attention_logit_of_head": largest,
        "attention_entropy": np.mean(entropies),
        "q_norm": norms[0].mean(),
        "k_norm": norms[1].mean(),
        "qk_cosine": np.abs(last).mean(),
    }
    return taps if entering is None else taps | {"max_entering_logit": entered}


def agree(taps: dict, expected: dict):
    assert taps.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(taps[name], value, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("scale", [None, 1.0, 0.01])
def test_attention_is_that_of_loops_over_queries(arrays, scale):
    q, k = arrays
    agree(probe.attention(q, k, scale), by_hand(q, k, 6**-0.5 if scale is None else scale))


def test_logits_that_are_changed_before_the_softmax(arrays):
    q, k = arrays
    capped = 2 * np.tanh(np.einsum("bthk,bshk->bhts", q, k) / 2)
    agree(probe.attention(q, k, 1.0, capped), by_hand(q, k, 1.0, capped))


def test_keys_of_a_group_of_heads(arrays):
    q, k = arrays
    shared = k[:, :, :2]
    agree(probe.attention(q, shared), by_hand(q, np.repeat(shared, 2, axis=2), 6**-0.5))


def test_output_is_the_closed_form():
    logits = np.random.default_rng(1).normal(size=(2, 3, 7)) + 4
    log_z = np.log(np.exp(logits).sum(-1))
    expected = {
        "mean_output_logit": logits.mean(),
        "max_output_logit": logits.max(),
        "mean_log_z": log_z.mean(),
        "mean_log_z_squared": np.mean(log_z**2),
    }
    agree(probe.output(logits), expected)
    agree(probe.output(logits.tolist()), expected)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda q, k: probe.attention(q[0], k), r"q=\(5, 4, 6\): must have 4 axes"),
        (
            lambda q, k: probe.attention(q, k[:, :4]),
            r"k=\(2, 4, 4, 6\): must be \(2, 5, heads, 6\)",
        ),
        (lambda q, k: probe.attention(q, k[:, :, :3]), "heads dividing 4"),
        (lambda q, k: probe.attention(q, k[:, :, :0]), "k=.*none of them empty"),
        (lambda q, k: probe.attention(q, k, 1.0, q), r"entering=.*must be \(2, 4, 5, 5\)"),
        (lambda q, k: probe.attention("q", k), "q='str': must be an array of numbers"),
        (lambda q, k: probe.output(1.0), "logits=.*at least one axis"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_with_their_shape(arrays, call, words):
    with pytest.raises(UserError, match=words):
        call(*arrays)
