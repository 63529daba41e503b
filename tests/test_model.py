import jax
import jax.numpy as jnp
import numpy as np
import pytest

from proxies_lib import config, model, ops, train

CONFIG = config.ModelConfig(
    d_model=16,
    n_layers=2,
    d_head=8,
    vocab_size=50,
    seq_len=12,
    qk_norm="per_head",
    compute_dtype="float32",
)


def varied(**changes):
    return config.ModelConfig(**{**CONFIG.__dict__, **changes})


OFF = varied(qk_norm="none")
H = {"attention_power": 1.0, "kappa": 30.0}


def scrambled(config_, seed=0):
    """Parameters with every entry away from its initial value, LayerNorm scales included."""
    params = model.init(config_, jax.random.key(seed))
    return jax.tree.map(
        lambda p: p + 0.1 * jax.random.normal(jax.random.key(p.size), p.shape), params
    )


def reference(c, params, tokens, setting=model.PAPER):
    """The paper's forward pass in NumPy, token by token where it is simplest: logits and taps."""
    p = jax.tree.map(np.asarray, params)

    def norm(x, scale):
        m, v = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        return (x - m) / np.sqrt(v + 1e-6) * scale

    def kappa_map(z):
        return np.sqrt(setting["kappa"] / np.mean(z**2, -1, keepdims=True)) * z

    def rotate(x):  # (T, K) as complex numbers
        T, K = x.shape
        z = x[:, : K // 2] + 1j * x[:, K // 2 :]
        z = z * np.exp(1j * np.arange(T)[:, None] * 10_000.0 ** (-np.arange(0, K, 2) / K))
        return np.concatenate([z.real, z.imag], 1)

    x = p["embed"]["embedding"][tokens].astype(np.float64)
    names = ("max_attention_logit", "max_attention_logit_of_head", "q_norm", "block_rms")
    taps = {name: [] for name in names}
    if c.attention == "softmax":
        taps["attention_entropy"] = []
    for i in range(c.n_layers):
        b = p["blocks"][i]
        a, lengths, entropies = b["attention"], [], []
        biggest_of_head = np.zeros(c.n_heads)
        update = np.zeros_like(x)
        for s in range(len(tokens)):
            h = norm(x[s], b["attention_norm"]["scale"])
            heads = []
            for n in range(c.n_heads):
                cut = slice(n * c.d_head, (n + 1) * c.d_head)
                q, k, v = (h @ a[w]["kernel"] for w in ("query", "key", "value"))
                if c.qk_norm == "whole":
                    q, k = norm(q, a["query_norm"]["scale"]), norm(k, a["key_norm"]["scale"])
                q, k, v = q[:, cut], k[:, cut], v[:, cut]
                if c.qk_norm == "per_head":
                    q, k = norm(q, a["query_norm"]["scale"]), norm(k, a["key_norm"]["scale"])
                if c.qk_norm == "kappa":
                    q, k = kappa_map(q), kappa_map(k)
                q, k = rotate(q), rotate(k)
                lengths.append(np.linalg.norm(q, axis=-1))
                out = np.zeros_like(v)
                for t in range(len(h)):
                    logits = k[: t + 1] @ q[t] / c.d_head ** setting["attention_power"]
                    biggest_of_head[n] = max(biggest_of_head[n], np.abs(logits).max())
                    if c.attention == "softmax":
                        w = np.exp(logits - logits.max())
                        w = w / w.sum()
                        entropies.append(-np.sum(w * np.log(w)))
                    else:
                        w = np.maximum(logits, 0) ** 2 / np.sqrt(len(h))
                    out[t] = w @ v[: t + 1]
                heads.append(out)
            update[s] = np.concatenate(heads, -1) @ a["out"]["kernel"]
        x = x + update
        h = norm(x, b["mlp_norm"]["scale"]) @ b["mlp_in"]["kernel"]
        gelu = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
        x = x + gelu @ b["mlp_out"]["kernel"]
        taps["max_attention_logit"].append(biggest_of_head.max())
        taps["max_attention_logit_of_head"].append(biggest_of_head)
        if entropies:
            taps["attention_entropy"].append(np.mean(entropies))
        taps["q_norm"].append(np.mean(lengths))
        taps["block_rms"].append(np.sqrt(np.mean(x**2)))
    logits = norm(x, p["final_norm"]["scale"]) @ p["head"]["kernel"]
    log_z = np.log(np.exp(logits).sum(-1))
    return logits, taps | {
        "mean_output_logit": logits.mean(),
        "max_output_logit": logits.max(),
        "mean_log_z": log_z.mean(),
        "mean_log_z_squared": (log_z**2).mean(),
    }


INTERVENTIONS = {
    "qk-layernorm": (CONFIG, model.PAPER),
    "none": (OFF, model.PAPER),
    "1/d_head": (CONFIG, H),
    "whole": (varied(qk_norm="whole"), model.PAPER),
    "kappa": (varied(qk_norm="kappa"), H),
    "squared relu": (varied(attention="squared_relu"), model.PAPER),
}


@pytest.mark.parametrize(("c", "h"), INTERVENTIONS.values(), ids=INTERVENTIONS)
def test_forward_pass_and_taps_agree_with_numpy(c, h):
    tokens = np.random.default_rng(0).integers(c.vocab_size, size=(3, c.seq_len))
    params = scrambled(c)
    logits, taps = jax.jit(lambda p, t, h: model.apply(c, p, t, True, h))(params, tokens, h)
    expected, expected_taps = reference(c, params, tokens, h)
    np.testing.assert_allclose(logits.reshape(expected.shape), expected, rtol=2e-4, atol=2e-4)
    for name, value in expected_taps.items():
        np.testing.assert_allclose(taps[name], value, rtol=1e-4, err_msg=name)


def test_rounded_logits_are_bfloat16_numbers_and_their_gradient_passes_unchanged():
    tokens = np.random.default_rng(0).integers(CONFIG.vocab_size, size=(2, CONFIG.seq_len))
    params, rounded = scrambled(CONFIG), varied(logits_dtype="bfloat16")
    logits, _ = jax.jit(lambda p: model.apply(CONFIG, p, tokens))(params)
    narrow, _ = jax.jit(lambda p: model.apply(rounded, p, tokens))(params)
    assert np.array_equal(narrow, logits.astype(jnp.bfloat16).astype(jnp.float32))
    assert not np.array_equal(narrow, logits)
    # A sum of logits has the same gradient with and without.
    of_sum = [
        jax.grad(lambda p, c=c: model.apply(c, p, tokens)[0].sum())(params)["head"]["kernel"]
        for c in (CONFIG, rounded)
    ]
    np.testing.assert_array_equal(*of_sum)


def test_attention_that_sees_one_key_has_no_entropy():
    tokens = np.zeros((2, 1), np.int32)
    _, taps = model.apply(OFF, scrambled(OFF), tokens)
    np.testing.assert_allclose(taps["attention_entropy"], 0.0, atol=1e-6)


def test_cosine_tap_is_that_of_the_last_query():
    tokens = np.random.default_rng(1).integers(OFF.vocab_size, size=(2, 1))
    _, taps = model.apply(OFF, scrambled(OFF), np.repeat(tokens, 2, axis=1)[:, :1])
    # One key, two heads: |logit| is bounded by the norms.
    logit = taps["max_attention_logit"] * np.sqrt(OFF.d_head)
    assert np.all(taps["qk_cosine"] <= 1.0 + 1e-5) and np.all(taps["qk_cosine"] > 0)
    assert np.all(logit <= OFF.n_heads * taps["q_norm"] * taps["k_norm"] * OFF.n_heads + 1e-5)


def test_a_probe_that_is_off_changes_no_logit_and_reports_zeros():
    tokens = np.zeros((1, 4), int)
    params = scrambled(CONFIG)
    on, _ = model.apply(CONFIG, params, tokens, True)
    off, taps = jax.jit(lambda probe: model.apply(CONFIG, params, tokens, probe))(False)
    np.testing.assert_allclose(on, off, rtol=1e-5, atol=1e-5)
    assert all(np.all(np.asarray(v) == 0) for v in taps.values())


@pytest.mark.parametrize("c", [CONFIG, OFF], ids=["qk-layernorm", "none"])
def test_parameter_count_is_the_papers_formula(c):
    params = model.init(c, jax.random.key(0))
    norms = (2 * c.n_layers + 1) * c.d_model
    if c.qk_norm == "per_head":
        norms += 2 * c.n_layers * c.d_head
    expected = 12 * c.n_layers * c.d_model**2 + 2 * c.vocab_size * c.d_model + norms
    assert sum(p.size for p in jax.tree.leaves(params)) == expected


def test_no_logit_depends_on_a_later_token():
    tokens = np.random.default_rng(2).integers(CONFIG.vocab_size, size=(1, CONFIG.seq_len))
    params = scrambled(CONFIG)
    before, _ = model.apply(CONFIG, params, tokens)
    for t in range(1, CONFIG.seq_len):
        changed = tokens.copy()
        changed[0, t] = (changed[0, t] + 1) % CONFIG.vocab_size
        after, _ = model.apply(CONFIG, params, changed)
        np.testing.assert_array_equal(before[:t], after[:t])
        assert np.abs(before[t:] - after[t:]).max() > 1e-3


def test_initial_weights_have_the_papers_distributions():
    c = config.ModelConfig(128, 2, 16, 512, 32, "per_head", "float32")
    p = model.init(c, jax.random.key(0))
    assert np.std(p["embed"]["embedding"]) == pytest.approx(128**-0.5, rel=0.02)
    a = p["blocks"][0]["attention"]
    for w, fan_in in (
        (a["query"], 128),
        (a["out"], 128),
        (p["blocks"][1]["mlp_in"], 128),
        (p["blocks"][0]["mlp_out"], 512),
        (p["head"], 128),
    ):
        kernel = np.asarray(w["kernel"])
        assert kernel.shape[0] == fan_in and kernel.std() == pytest.approx(fan_in**-0.5, rel=0.03)
        # Truncated at two standard deviations; what is left has 0.8796 of the normal's.
        assert np.abs(kernel).max() <= 2.0 / 0.8796 * fan_in**-0.5 * 1.001
    assert np.all(p["final_norm"]["scale"] == 1) and np.all(a["query_norm"]["scale"] == 1)
    assert a["query_norm"]["scale"].shape == (16,)


def test_bigram_model_has_no_blocks_and_sees_one_token():
    c = varied(n_layers=0)
    params = scrambled(c)
    assert sum(p.size for p in jax.tree.leaves(params)) == 2 * c.vocab_size * c.d_model + c.d_model
    logits, taps = model.apply(c, params, np.array([[3, 7, 3]]))
    np.testing.assert_array_equal(logits[0], logits[2])
    of_output = {"mean_output_logit", "max_output_logit", "mean_log_z", "mean_log_z_squared"}
    assert set(taps) == of_output


def test_kappa_bounds_the_logits_by_kappa_root_d_head():
    c = varied(qk_norm="kappa")
    tokens = np.random.default_rng(0).integers(c.vocab_size, size=(3, c.seq_len))
    for kappa in (0.1, 100.0):
        h = {"attention_power": 0.5, "kappa": kappa}
        _, taps = model.apply(c, scrambled(c), tokens, True, h)
        largest = np.asarray(taps["max_attention_logit"])
        assert np.all(largest <= kappa * np.sqrt(c.d_head) * 1.001)
        assert np.all(largest > 0.5 * kappa)
        np.testing.assert_allclose(taps["q_norm"], np.sqrt(kappa * c.d_head), rtol=1e-3)


def test_mu_param_scales_the_initial_head_and_zeroes_queries():
    plain = model.init(CONFIG, jax.random.key(0))
    h = model.PAPER | {"head_init": 0.5, "query_init": 0.0}
    scaled = model.init(CONFIG, jax.random.key(0), h)
    np.testing.assert_array_equal(scaled["head"]["kernel"], 0.5 * plain["head"]["kernel"])
    a, b = (p["blocks"][1]["attention"] for p in (plain, scaled))
    assert not np.any(b["query"]["kernel"])
    assert np.array_equal(a["key"]["kernel"], b["key"]["kernel"])


def test_loss_at_initialization_is_ln_v_plus_a_half():
    c = config.ModelConfig(128, 2, 16, 4096, 64, "per_head", "float32")
    tokens = np.random.default_rng(0).integers(c.vocab_size, size=(1, 4, 65), dtype=np.int32)
    params = model.init(c, jax.random.key(1))
    loss = jax.jit(lambda tokens: train.evaluate(c, model.PAPER, params, tokens))(tokens)
    assert float(loss) == pytest.approx(np.log(4096) + 0.5, abs=0.1)


def test_layer_norm_gradient_is_appendix_c_and_autodiff():
    x, scale, g = (
        np.random.default_rng(i).standard_normal(s) for i, s in enumerate([(7, 12), (12,), (7, 12)])
    )

    def plain(x, scale):
        centered = x - x.mean(-1, keepdims=True)
        return centered / jnp.sqrt(jnp.mean(centered**2, -1, keepdims=True) + 1e-6) * scale

    value, pull = jax.vjp(ops.layer_norm, *map(jnp.float32, (x, scale)))
    expected, pull_plain = jax.vjp(plain, *map(jnp.float32, (x, scale)))
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(pull(jnp.float32(g)), pull_plain(jnp.float32(g)), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)
    # Appendix C, for the normalization alone (inputs of mean zero):
    # m^(-1/2) [α⊙∇z − x ⟨∇z, α⊙x⟩/(n·m)]
    centered = x - x.mean(-1, keepdims=True)
    m, n = (centered**2).mean(-1, keepdims=True) + 1e-6, x.shape[-1]
    inner = (g * scale * centered).sum(-1, keepdims=True)
    gradient = (g * scale - centered * inner / (n * m)) / np.sqrt(m)
    gradient -= gradient.mean(-1, keepdims=True)  # the mean's own derivative
    np.testing.assert_allclose(pull(jnp.float32(g))[0], gradient, rtol=1e-3, atol=1e-5)


def test_layer_norm_along_an_inner_axis_is_that_of_the_last_axis_transposed():
    x, g = (
        np.random.default_rng(i).standard_normal((3, 8, 5)).astype(np.float32) for i in range(2)
    )
    scale = np.random.default_rng(2).standard_normal(8).astype(np.float32)
    inner, pull_inner = jax.vjp(lambda x, s: ops.layer_norm(x, s, -2), x, scale)
    last, pull_last = jax.vjp(
        lambda x, s: ops.layer_norm(x.swapaxes(1, 2), s).swapaxes(1, 2), x, scale
    )
    for mine, theirs in zip((inner, *pull_inner(g)), (last, *pull_last(g)), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)


def test_tensors_of_one_shape_are_drawn_independently():
    c = config.ModelConfig(64, 2, 16, 64, 8, "per_head", "float32")
    params = model.init(c, jax.random.key(0))
    square = [
        b["attention"][n]["kernel"].ravel()
        for b in params["blocks"].values()
        for n in ("query", "key", "value", "out")
    ]
    correlation = np.corrcoef(np.stack(square)) - np.eye(8)
    assert np.abs(correlation).max() < 5 / 64  # five standard deviations of 64² independent pairs


@pytest.mark.parametrize("shape", [(6, 24), (24, 6), (8, 8)])
def test_dense_gradients_equal_autodiff(shape):
    x, g = (
        np.random.default_rng(i).standard_normal((10, n)).astype(np.float32)
        for i, n in enumerate(shape)
    )
    w = np.random.default_rng(9).standard_normal(shape).astype(np.float32)
    pull, pull_plain = jax.vjp(ops.dense, x, w)[1], jax.vjp(jnp.matmul, x, w)[1]
    for mine, theirs in zip(pull(g), pull_plain(g), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)


def test_bfloat16_compute_keeps_float32_parameters_and_logits():
    c = config.ModelConfig(**{**CONFIG.__dict__, "compute_dtype": "bfloat16"})
    params, tokens = scrambled(CONFIG), np.zeros((2, 12), int)
    low, _ = model.apply(c, params, tokens)
    full, _ = model.apply(CONFIG, params, tokens)
    assert low.dtype == jnp.float32
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(params))
    assert 1e-4 < np.abs(low - full).max() < 0.2
