import numpy as np
import pandas as pd
import pytest

from proxies_lib.config import UserError
from proxies_lib.science import analysis

LRS = (1e-3, 1e-2, 1e-1)


def frame(losses, seed=0, n=100, init=5.0, diverged=(False, False, False)):
    return pd.DataFrame(
        {
            "lr": LRS,
            "final_loss": losses,
            "init_loss": init,
            "diverged": diverged,
            "seed": seed,
            "n_params": n,
            "key": [f"{n}-{seed}-{lr}" for lr in LRS],
        }
    )


def test_sensitivity_is_the_mean_gap_with_diverged_runs_at_the_initial_loss():
    runs = frame([3.0, 2.0, np.nan], diverged=(False, False, True))
    s = analysis.lr_sensitivity(runs, ["n_params"], LRS)
    assert s["S"].item() == pytest.approx((1.0 + 0.0 + 3.0) / 3) and s["n"].item() == 1
    clipped = analysis.lr_sensitivity(frame([3.0, 2.0, 99.0]), ["n_params"], LRS)
    assert clipped["S"].item() == pytest.approx((1.0 + 0.0 + 3.0) / 3)


def test_sensitivity_uses_the_window_only_and_refuses_holes():
    runs = frame([3.0, 2.0, 4.0])
    assert analysis.lr_sensitivity(runs, ["n_params"], LRS[:1])["S"].item() == 0.0
    with pytest.raises(UserError, match="2 of its LRs|window"):
        analysis.lr_sensitivity(runs.iloc[:2], ["n_params"], LRS)


def test_sensitivity_above_the_best_lr_is_over_the_decade_that_begins_there():
    # The gap below the best LR, and that beyond a decade of it, are left out.
    early = analysis.lr_sensitivity_above_best(frame([2.0, 3.0, 9.0]), ["n_params"])
    assert early["S"].item() == pytest.approx((0.0 + 1.0) / 2)
    late = frame([3.0, 2.0, np.nan], diverged=(False, False, True))
    assert analysis.lr_sensitivity_above_best(late, ["n_params"])["S"].item() == 1.5


def test_a_curve_that_ends_within_the_decade_above_its_best_lr_has_no_sensitivity_there():
    runs = pd.concat([frame([3.0, 2.0, 4.0], 0), frame([3.0, 2.0, 1.0], 1)])
    above_best = analysis.lr_sensitivity_above_best(runs, ["n_params"])
    assert above_best["seed"].tolist() == [0]
    none = analysis.lr_sensitivity_above_best(runs[runs["seed"] == 1], ["n_params"])
    assert none.empty and analysis.over_seeds(none, ["n_params"]).empty


def test_sensitivity_is_averaged_over_seeds_not_over_losses():
    runs = pd.concat([frame([3.0, 2.0, 3.0], 0), frame([2.0, 3.0, 3.0], 1)])
    s = analysis.lr_sensitivity(runs, ["n_params"], LRS)
    assert s["S"].item() == pytest.approx(2 / 3) and s["n"].item() == 2


def test_the_interval_is_students_t_and_one_value_has_none():
    assert analysis.interval([2.0]) == pytest.approx((2.0, np.nan, np.nan), nan_ok=True)
    mean, lo, hi = analysis.interval([1.0, 2.0, 3.0])
    assert (mean, lo, hi) == pytest.approx((2.0, 2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5))


@pytest.mark.parametrize("counts", [(5, 5), (3, 5), (1, 4), (1, 1), (2, 3, 1)])
def test_sets_of_seeds_taken_as_one_have_the_interval_of_all_their_values(counts):
    values = np.split(np.random.default_rng(1).normal(3, 2, sum(counts)), np.cumsum(counts)[:-1])
    means, lows, highs = zip(*map(analysis.interval, values), strict=True)
    halves = np.nan_to_num((np.array(highs) - lows) / 2)
    mean, half = analysis.pooled(means, halves, counts)
    assert (mean, mean - half, mean + half) == pytest.approx(
        analysis.interval(np.concatenate(values))
    )


def test_the_interval_covers_the_mean_of_three_normal_seeds_nineteen_times_in_twenty():
    draws = np.random.default_rng(0).normal(size=(4000, 3))
    covered = [lo < 0 < hi for _, lo, hi in map(analysis.interval, draws)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.012)


def test_diverging_lr_is_interpolated_above_the_optimum_only():
    # ℓ* = 2, ℓ0 = 5: failing at 2.3; between 1e-2 (2.0) and 1e-1 (2.6) half-way in log LR
    found = analysis.diverging_lr(frame([4.9, 2.0, 2.6]), ["n_params"])["diverging_lr"].item()
    assert found == pytest.approx(10**-1.5)
    stable = analysis.diverging_lr(frame([4.9, 2.0, 2.2]), ["n_params"])
    assert np.isnan(stable["diverging_lr"].item())


def test_curves_tell_seeds_spread_and_divergence():
    runs = pd.concat(
        [frame([3.0, 2.0, 3.0], 0), frame([2.0, 3.0, np.nan], 1, diverged=(False, False, True))]
    )
    c = analysis.lr_curves(runs, ["n_params"]).set_index("lr")
    assert c.loc[1e-1, ["loss", "low", "high", "n", "n_diverged"]].tolist() == [4.0, 3.0, 5.0, 2, 1]
    assert c.loc[1e-3, "keys"].split() == ["100-0-0.001", "100-1-0.001"]


def test_where_compares_floats_with_tolerance_and_allows_several_values():
    runs = frame([3.0, 2.0, 4.0]).assign(method=["a", "b", "a"])
    assert analysis.where(runs, lr=0.1 + 1e-16)["final_loss"].tolist() == [4.0]
    assert analysis.where(runs, lr=(1e-3, 1e-1), method="a")["final_loss"].tolist() == [3.0, 4.0]
    assert analysis.where(runs, method=["b", "c"])["final_loss"].tolist() == [2.0]


def test_the_optimum_is_the_vertex_of_the_parabola_around_the_best_lr():
    losses = 2.0 + (np.log10(LRS) + 2.2) ** 2
    found = analysis.optimum(frame(losses), ["n_params"])
    assert found["best_lr"].item() == pytest.approx(10**-2.2)
    assert found["best_loss"].item() == losses.min()
    edge = analysis.optimum(frame([1.0, 2.0, 3.0]), ["n_params"])
    assert edge["best_lr"].item() == pytest.approx(1e-3)


def test_a_run_fails_only_above_the_best_lr():
    runs = frame([4.9, 2.0, 4.9]).assign(method="m", d_model=1, n_layers=1, steps=10)
    curves = pd.DataFrame(
        {"key": np.repeat(runs["key"].to_numpy(), 2), "step": [4, 9] * 3, "loss": 1.0}
    )
    probed = analysis.probe(runs, curves, 0.6)
    assert probed["failed"].tolist() == [False, False, True]
    assert probed["step"].tolist() == [9, 9, 9]
    assert analysis.probe(runs, curves, 0.5)["step"].tolist() == [4, 4, 4]


def test_a_quadratic_is_predicted_exactly_and_noise_widens_its_interval():
    x = np.repeat([1.0, 2.0, 3.0, 4.0], 3)
    value, lo, hi = analysis.polynomial_prediction(x, 1 + x + x**2, 5.0)
    assert (value, lo, hi) == pytest.approx((31.0, 31.0, 31.0))
    rng = np.random.default_rng(0)
    inside = []
    for _ in range(400):
        value, lo, hi = analysis.polynomial_prediction(x, x + rng.normal(size=len(x)), 5.0)
        inside.append(lo < 5.0 + rng.normal() < hi)
    assert np.mean(inside) == pytest.approx(0.95, abs=0.03)


def test_two_sizes_allow_a_line_and_no_residual_no_interval():
    value, lo, hi = analysis.polynomial_prediction([1.0, 2.0], [3.0, 4.0], 4.0)
    assert value == pytest.approx(6.0) and np.isnan([lo, hi]).all()


def test_extrapolation_error_is_the_distance_from_the_line_through_the_smaller_sizes():
    best = pd.DataFrame(
        {"method": "m", "seed": 0, "n_params": [10, 100, 1000], "best_loss": [5.0, 4.0, 3.5]}
    )
    assert analysis.extrapolated(best)["error"].item() == pytest.approx(0.5)


def test_late_values_are_geometric_means_over_the_end_of_training():
    runs = frame([3.0, 2.0, 4.0]).assign(method="m", d_model=1, n_layers=1, steps=40)
    curves = pd.DataFrame(
        {
            "key": np.repeat(runs["key"].to_numpy(), 3),
            "step": [37, 38, 39] * 3,
            "g": [99, 1.0, 100] * 3,
        }
    )
    assert analysis.end_means(runs, curves, ["g"])["g"].tolist() == pytest.approx([10.0] * 3)


def test_slopes_are_per_decade_of_n_and_seed():
    per_seed = pd.DataFrame(
        {"n_params": [10, 100, 10, 100], "seed": [0, 0, 1, 1], "S": [1.0, 3.0, 1.0, 0.0]}
    )
    assert analysis.slopes(per_seed, "S").to_dict() == pytest.approx({0: 2.0, 1: -1.0})


def disturbed(after, end: int = 80) -> pd.DataFrame:
    """A curve of points of 4 steps at loss 3.0; steps 23 to 27 are disturbed; then `after`.

    So the points at 23 and 27 are.
    """
    steps = np.arange(3, end, 4)
    loss = np.where(np.isin(steps, (23, 27)), 9.0, np.where(steps < 23, 3.0, after(steps)))
    return pd.DataFrame(
        {"key": "k", "method": "m", "seed": 0, "step": steps, "loss": loss, "steps": end}
    )


def test_a_spike_is_the_highest_point_after_the_disturbance_above_the_level_before():
    falling = disturbed(lambda step: 3.0 + np.maximum(0.0, (51 - step) / 10))
    found = analysis.spikes(falling, 23, 5, 16, 0.05).iloc[0]
    # the first clean point is at 31
    assert found["height"] == pytest.approx(2.0) and found["steps_lost"] == 51 - 23
    quiet = analysis.spikes(disturbed(lambda step: 3.0), 23, 5, 16, 0.05).iloc[0]
    assert quiet["height"] == 0 and quiet["steps_lost"] == 31 - 23
    lasting = analysis.spikes(disturbed(lambda step: 4.0), 23, 5, 16, 0.05).iloc[0]
    assert lasting["height"] == 1 and lasting["steps_lost"] == 80 - 23
    gone = analysis.spikes(disturbed(lambda step: 4.0).query("step < 20"), 23, 5, 16, 0.05).iloc[0]
    assert np.isnan(gone["height"]) and gone["steps_lost"] == 80 - 23


def test_going_back_costs_the_steps_thrown_away():
    runs = pd.DataFrame(
        {
            "key": ["a", "b"],
            "method": ["a", "b"],
            "seed": 0,
            "final_loss": 3.0,
            "init_loss": 6.0,
            "diverged": False,
            "rare_batch": 23,
            "rare_batches": 5,
            "skip_step": [0, 16],
            "batch_size": 2,
            "seq_len": 10,
        }
    )
    spikes = pd.DataFrame(
        {"key": ["a", "b"], "method": ["a", "b"], "seed": 0, "height": 1.0, "steps_lost": [8, 99]}
    )
    cost = analysis.remedies(runs, spikes)
    assert cost["steps_lost"].tolist() == [8, 12] and cost["tokens_lost"].tolist() == [160, 240]
