import numpy as np
import pandas as pd
import pytest

from proxies_lib import analysis
from proxies_lib.config import UserError

LRS = (1e-3, 1e-2, 1e-1)


def frame(losses, seed=0, n=100, init=5.0, diverged=(False, False, False)):
    return pd.DataFrame({
        "lr": LRS, "final_loss": losses, "init_loss": init, "diverged": diverged, "seed": seed, "n_params": n,
        "key": [f"{n}-{seed}-{lr}" for lr in LRS],
    })  # fmt: skip


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


def test_sensitivity_is_averaged_over_seeds_not_over_losses():
    runs = pd.concat([frame([3.0, 2.0, 3.0], 0), frame([2.0, 3.0, 3.0], 1)])
    s = analysis.lr_sensitivity(runs, ["n_params"], LRS)
    assert s["S"].item() == pytest.approx(2 / 3) and s["n"].item() == 2


def test_bootstrap_covers_the_mean_and_is_repeatable():
    assert analysis.bootstrap([2.0]) == pytest.approx((2.0, np.nan, np.nan), nan_ok=True)
    mean, lo, hi = analysis.bootstrap([1.0, 2.0, 3.0])
    assert (mean, lo, hi) == (2.0, 1.0, 3.0)
    many = np.random.default_rng(1).normal(0, 1, 400)
    _, lo, hi = analysis.bootstrap(many)
    assert hi - lo == pytest.approx(2 * 1.96 * many.std() / 20, rel=0.1)
    assert analysis.bootstrap(many) == analysis.bootstrap(many)


def test_diverging_lr_is_interpolated_above_the_optimum_only():
    # ℓ* = 2, ℓ0 = 5: failing at 2.3; between 1e-2 (2.0) and 1e-1 (2.6) half-way in log LR
    found = analysis.diverging_lr(frame([4.9, 2.0, 2.6]), ["n_params"])["diverging_lr"].item()
    assert found == pytest.approx(10**-1.5)
    assert np.isnan(analysis.diverging_lr(frame([4.9, 2.0, 2.2]), ["n_params"])["diverging_lr"].item())


def test_curves_tell_seeds_spread_and_divergence():
    runs = pd.concat([frame([3.0, 2.0, 3.0], 0), frame([2.0, 3.0, np.nan], 1, diverged=(False, False, True))])
    c = analysis.lr_curves(runs, ["n_params"]).set_index("lr")
    assert c.loc[1e-1, ["loss", "low", "high", "n", "n_diverged"]].tolist() == [4.0, 3.0, 5.0, 2, 1]
    assert c.loc[1e-3, "keys"].split() == ["100-0-0.001", "100-1-0.001"]


def test_slopes_are_per_decade_of_n_and_seed():
    per_seed = pd.DataFrame({"n_params": [10, 100, 10, 100], "seed": [0, 0, 1, 1], "S": [1.0, 3.0, 1.0, 0.0]})
    assert analysis.slopes(per_seed, "S") == pytest.approx([2.0, -1.0])
