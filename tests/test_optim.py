import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from proxies_lib import config, optim
from proxies_lib.science import protocol


def hyper(**changes):
    run = config.replace(config.Run(), **changes)
    return {name: jnp.float32(value) for name, value in optim.inputs(run.hparams).items()}


@pytest.mark.parametrize("warmup", [0, 1, 30])
def test_schedule_is_linear_warmup_then_cosine_to_the_absolute_floor(warmup):
    run = config.replace(protocol.scales()["laptop"].base, steps=200, warmup_steps=warmup, lr=0.3)
    h = {k: jnp.float32(v) for k, v in optim.inputs(run.hparams).items()}
    theirs = optax.warmup_cosine_decay_schedule(0.0, 0.3, warmup, 200, end_value=1e-5)
    for step in (0, 1, 15, 29, 30, 31, 100, 199, 200, 250):
        assert float(0.3 * optim.schedule(step, h)) == pytest.approx(
            float(theirs(step)), rel=1e-4, abs=1e-8
        ), step


def descend_n(h, params, grads_of, n):
    state = optim.adam(h).init(params)
    for step in range(n):
        delta, state = optim.adam(h).update(grads_of(step), state)
        params = optim.descend(params, delta, step, h)
    return params


def grads_of(step):
    return {
        "kernel": jnp.sin(jnp.arange(6.0) + step).reshape(2, 3),
        "scale": jnp.cos(jnp.arange(3.0) * (step + 1)),
    }


PARAMS = {"kernel": jnp.linspace(-1, 1, 6).reshape(2, 3), "scale": jnp.ones(3)}


def test_coupled_decay_is_optax_adamw():
    h = hyper(decay="coupled", weight_decay=0.1, lr=0.01, steps=1000, warmup_steps=10, log_every=1)
    schedule = optax.warmup_cosine_decay_schedule(0.0, 0.01, 10, 1000, end_value=1e-5)
    tx = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, 0.9, 0.95, 1e-8, weight_decay=0.1)
    )
    theirs, state = PARAMS, tx.init(PARAMS)
    for step in range(20):
        updates, state = tx.update(grads_of(step), state, theirs)
        theirs = optax.apply_updates(theirs, updates)
    mine = descend_n(h, PARAMS, grads_of, 20)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), mine, theirs)


def test_independent_decay_does_not_see_the_learning_rate():
    """With no gradient, θ shrinks by Π(1 − s_t·λ) whatever the LR, on every tensor."""
    zero = lambda step: jax.tree.map(jnp.zeros_like, PARAMS)  # noqa: E731
    for lr in (0.01, 0.3):
        h = hyper(
            decay="independent",
            weight_decay=1e-2,
            lr=lr,
            min_lr=0.0,
            steps=1000,
            warmup_steps=10,
            log_every=1,
        )
        expected = np.prod([1 - 1e-2 * float(optim.schedule(t, h)) for t in range(30)])
        shrunk = descend_n(h, PARAMS, zero, 30)
        for name, value in shrunk.items():
            np.testing.assert_allclose(value, PARAMS[name] * expected, rtol=1e-5)


def test_first_update_is_the_sign_of_the_gradient():
    """Bias correction: at step 0 Δ = g/(|g| + ε), after a clip that keeps the sign."""
    h = hyper()
    delta, _ = optim.adam(h).update(grads_of(1), optim.adam(h).init(PARAMS))
    np.testing.assert_allclose(delta["kernel"], np.sign(grads_of(1)["kernel"]), rtol=1e-4)


def test_clipping_bounds_the_gradient_that_adam_sees():
    h = hyper(clip_norm=0.5, eps=1.0)
    big = jax.tree.map(lambda g: 1e3 * g, grads_of(1))
    delta, _ = optim.adam(h).update(big, optim.adam(h).init(PARAMS))
    clipped = jax.tree.map(lambda g: g * 0.5 / optax.tree.norm(big), big)
    jax.tree.map(
        lambda d, g: np.testing.assert_allclose(d, g / (np.abs(g) + 1.0), rtol=1e-4), delta, clipped
    )


def test_a_tensors_own_learning_rate_leaves_decay_alone():
    """linear_lr moves kernels only, RMS scaling every tensor by max(RMS, 1e-3) (P1, Fig. E.14)."""
    small = {"kernel": 0.01 * PARAMS["kernel"], "scale": jnp.full(3, 1e-6)}
    still = hyper(weight_decay=1e-2, lr=0.1)

    def moved(**changes):
        h = hyper(weight_decay=1e-2, lr=0.1, **changes)
        delta = jax.tree.map(jnp.ones_like, small)
        stepped = optim.descend(small, delta, 2500, h)
        decayed = optim.descend(small, jax.tree.map(jnp.zeros_like, small), 2500, h)
        return jax.tree.map(lambda d, s: float(jnp.mean(d - s)), decayed, stepped), decayed

    normal, decayed = moved()
    linear, also_decayed = moved(linear_lr=0.25)
    assert linear["kernel"] == pytest.approx(0.25 * normal["kernel"], rel=1e-4)
    assert linear["scale"] == pytest.approx(normal["scale"], rel=1e-4)
    scaled, scaled_decayed = moved(lr_scaling="rms")
    rms = float(jnp.sqrt(jnp.mean(small["kernel"] ** 2)))
    assert scaled["kernel"] == pytest.approx(rms * normal["kernel"], rel=1e-3)
    assert scaled["scale"] == pytest.approx(1e-3 * normal["scale"], rel=1e-2)
    for other in (also_decayed, scaled_decayed):
        jax.tree.map(np.testing.assert_array_equal, decayed, other)
    assert float(optim.schedule(2500, still)) == pytest.approx(0.5)


def test_without_epsilon_an_unseen_gradient_moves_nothing():
    """P2's remedy: ε = 0, and u := 0 where v = 0; elsewhere the ratio m̂/√v̂ itself."""
    h = hyper(eps=0.0)
    gradient = {"kernel": jnp.array([[0.0, 1e-12], [-1e-30, 2.0]])}
    params = jax.tree.map(jnp.ones_like, gradient)
    delta, state = optim.adam(h).update(gradient, optim.adam(h).init(params))
    # (1e-30)² underflows: v is 0 there.
    np.testing.assert_allclose(delta["kernel"], [[0, 1], [0, 1]], atol=1e-6)
    flipped = {"kernel": jnp.array([[0.0, -1e-12], [0.0, 2.0]])}
    delta, _ = optim.adam(h).update(flipped, state)
    assert np.isfinite(delta["kernel"]).all() and delta["kernel"][0, 0] == 0


def test_epsilon_falls_geometrically():
    h = hyper(eps=1e-2, eps_decay=1e-4, steps=1000, warmup_steps=10, log_every=1)
    gradient = {"kernel": jnp.full((2, 2), 1e-4)}
    for step, eps in ((0, 1e-2), (500, 1e-4), (1000, 1e-6)):
        delta, _ = optim.adam(h, step).update(gradient, optim.adam(h).init(gradient))
        np.testing.assert_allclose(delta["kernel"], 1e-4 / (1e-4 + eps), rtol=1e-4)


@pytest.mark.parametrize(
    "dtype,smallest", [("float16", 2.0**-24), ("float8_e5m2", 2.0**-16), ("float8_e4m3fn", 2.0**-9)]
)
def test_gradients_underflow_as_their_format_does(dtype, smallest):
    gradient = {"w": jnp.array([smallest, smallest / 4, -smallest / 4, 1.0])}
    for scale in (1.0, 64.0):
        seen = optim.rounded(gradient, dtype, scale)["w"]
        small = [0, 0] if scale == 1 else [smallest / 4, -smallest / 4]
        np.testing.assert_allclose(seen, [smallest, *small, 1.0], rtol=1e-6)


def test_what_is_observed_of_adam():
    h = {"b1": jnp.float32(0.9), "b2": jnp.float32(0.95)}
    g = {"embed": jnp.array([1.0, 1.0, 0.0, 0.0])}
    last = {"embed": jnp.array([1.0, -1.0, 0.0, 0.0])}
    moments = (1, {"embed": 0.1 * g["embed"]}, {"embed": 0.05 * g["embed"]})
    seen = optim.observe(3, g, last, {"embed": jnp.array([0.0, 1.4, -9.0, 0.2])}, moments, h)
    # r is 1, 1, 0, 0; bins end at ±0.5
    np.testing.assert_allclose(seen["ratio/embed"], [0, 0.5, 0.5], atol=1e-6)
    np.testing.assert_allclose(seen["update/embed"], [0.25, 0.5, 0.25], atol=1e-6)
    assert float(seen["gradient_cosine/embed"]) == 0 and float(seen["zero_gradients/embed"]) == 0.5


def test_observed_tensors_are_the_same_of_stacked_layers():
    from proxies_lib import model

    run = config.replace(protocol.scales()["smoke"].base, d_model=16, n_layers=3)
    params = model.init(run.model, jax.random.key(0))
    plain, stacked = (optim.observed_tensors(p, 3) for p in (params, model.stack(params)))
    assert list(plain) == ["embed", "blocks/0/mlp_in", "blocks/2/mlp_in"] == list(stacked)
    assert all(np.array_equal(plain[name], stacked[name]) for name in plain)
