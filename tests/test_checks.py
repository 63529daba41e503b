import itertools
import math
import pathlib

import numpy as np
import pandas as pd
import pytest

from proxies_lib import config
from proxies_lib.science import analysis, checks, claims, notebooks, outputs, protocol, report
from proxies_lib.science.checks.attention_logits import _figure_1, norm_share
from proxies_lib.science.checks.measures import minus
from proxies_lib.science.checks.output_logits import _figure_4

ROOT = pathlib.Path(__file__).resolve().parents[1]
STUDY = protocol.study("laptop")


def table(losses: dict, sizes=((16, 2), (32, 2), (64, 2)), lrs=STUDY.window) -> pd.DataFrame:
    """Runs whose loss is `losses[method](log10 LR, log10 N)`; three seeds differ by a little."""
    rows = []
    for method, loss in losses.items():
        for d, n_layers in sizes:
            n = 12 * n_layers * d * d
            for lr in lrs:
                for seed in range(3):
                    key = f"{method}-{n}-{lr}-{seed}"
                    value = loss(np.log10(lr), np.log10(n)) + 1e-4 * seed
                    rows.append(
                        {
                            "key": key,
                            "method": method,
                            "d_model": d,
                            "n_layers": n_layers,
                            "n_params": n,
                            "lr": lr,
                            "seed": seed,
                            "final_loss": value,
                            "init_loss": 6.0,
                            "diverged": False,
                        }
                    )
    base = {name: value for name, value in config.flat(STUDY.base).items() if name not in rows[0]}
    return pd.DataFrame(rows).assign(**base)


def bowl(optimum: float, steepness: float):
    return lambda lr, n: 4.0 - 0.1 * n + steepness * (lr - optimum) ** 2


def verdicts(rows: list[dict]) -> dict:
    return {row["claim"]: row["verdict"] for row in rows}


def test_more_sensitive_methods_are_told_from_less_sensitive_ones():
    losses = {
        "independent decay 1e-4": bowl(-2, 0.1),
        "coupled decay 0.1": bowl(-2, 0.3),
        "decay 1e-4": bowl(-2, 0.1),
        "a tenth of matched decay": bowl(-1.7, 0.1),
        "matched decay": bowl(-1.4, 0.1),
    }
    runs = table(losses, lrs=STUDY.lrs)
    decays = {"decay 1e-4": 1e-4, "a tenth of matched decay": 3e-3, "matched decay": 3e-2}
    runs = runs.assign(weight_decay=runs["method"].map(decays).fillna(1e-4))
    rows = checks.weight_decay(runs, None, STUDY)
    assert verdicts(rows) == {"6-independent": claims.UNTESTABLE, "E10-shift": claims.HOLDS}
    assert rows[0]["effect"] > 0 and "λ · steps is 0.038" in rows[0]["note"]
    longer = protocol.study("laptop", {"steps": 40_000})
    assert verdicts(checks.weight_decay(runs, None, longer))["6-independent"] == claims.HOLDS


def test_warm_ups_that_flatten_the_bowl_of_large_models_most_hold_all_three_claims():
    arms = {
        f"warm-up {w}": (
            lambda lr, n, w=w: 4 - 0.1 * np.log10(w) + 0.01 * (3 - np.log10(w)) * n * (lr + 2) ** 2
        )
        for w in (2, 19, 96)
    }
    runs = table(arms).assign(warmup_steps=lambda f: f["method"].str.split().str[1].astype(int))
    assert set(verdicts(checks.warmup(runs, None, STUDY)).values()) == {claims.HOLDS}


def test_arms_are_paired_by_the_seeds_that_both_arms_have():
    minuend = pd.Series({0: 3.0, 1: 4.0, 2: 5.0})
    assert minus(minuend, pd.Series({1: 1.0, 2: 1.0, 7: 9.0})).to_dict() == {1: 3.0, 2: 4.0}


def without_qk_layernorm(failing_lr: dict) -> pd.DataFrame:
    """Runs that learn nothing from a size's LR on, where it has one."""

    def loss(lr, n):
        return (
            5.9 if lr >= np.log10(failing_lr.get(round(10**n), np.inf)) - 1e-9 else 3.0 - 0.01 * lr
        )

    return table({"without qk-layernorm": loss, "with qk-layernorm": lambda lr, n: 3.0 - 0.01 * lr})


@pytest.mark.parametrize(
    ("failing_lr", "expected"),
    [
        ({6_144: 0.3, 24_576: 0.3, 98_304: 0.1}, (claims.HOLDS, claims.HOLDS)),
        (
            {24_576: 0.1, 98_304: 0.03},
            (claims.HOLDS, claims.CONTRADICTED),
        ),  # the smallest never fails
        ({98_304: 0.03}, (claims.UNTESTABLE, claims.UNTESTABLE)),
    ],
)
def test_the_slope_of_the_diverging_lr_is_that_of_the_sizes_that_fail(failing_lr, expected):
    runs = without_qk_layernorm(failing_lr)
    rows = _figure_1(runs, analysis.excess_loss(runs, ["method", "n_params"]), STUDY)
    found = verdicts(rows)
    assert (found["1-diverging-lr"], found["1-width"]) == expected


def drifting(log2_z: dict, loss: dict) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Section 02's frames, made up: log² Z at the end and final loss by z-loss and precision."""
    rows, points = [], []
    arms = {"no decay, no z-loss": 0.0, "no decay, z-loss": 1e-4}
    for (method, z_loss), dtype, seed in itertools.product(
        arms.items(), ("float32", "bfloat16"), range(3)
    ):
        key = f"{z_loss}-{dtype}-{seed}"
        rows.append(
            config.flat(config.replace(STUDY.base, lr=0.1, seed=seed, compute_dtype=dtype))
            | {"key": key, "method": method, "n_params": 6144, "diverged": False}
            | {"final_loss": loss[z_loss, dtype] + 1e-3 * seed, "init_loss": 6.0}
        )
        for step, share in ((0, 0.01), (200, 0.02), (383, 1.0)):
            points.append(
                {"key": key, "step": step, "mean_log_z_squared": share * log2_z[z_loss] + seed}
            )
    return pd.DataFrame(rows), pd.DataFrame(points)


def test_the_drift_of_output_logits_is_judged_on_log_z_and_its_harm_by_precision():
    loss = {(0.0, "float32"): 3.0, (1e-4, "float32"): 3.0}
    loss |= {(0.0, "bfloat16"): 3.2, (1e-4, "bfloat16"): 3.0}
    frames = drifting({0.0: 1e4, 1e-4: 10.0}, loss)
    found = verdicts(_figure_4(*frames, STUDY))
    assert [found[f"4-{name}"] for name in ("drift", "late", "z-loss")] == [claims.HOLDS] * 3
    assert found["4-harm"] == claims.CONTRADICTED
    assert found["4-compute-bfloat16-0.1"] == claims.HOLDS
    assert "4-logits-bfloat16-0.1" not in found, "the laptop has no such runs"
    still = verdicts(_figure_4(*drifting({0.0: 12.0, 1e-4: 10.0}, loss), STUDY))
    assert still["4-drift"] == still["4-z-loss"] == claims.CONTRADICTED


def test_a_fixed_optimum_is_told_from_a_moving_one():
    fixed, moving = bowl(-2, 0.2), (lambda lr, n: 4 - 0.1 * n + 0.2 * (lr + n / 2) ** 2)
    off = ", no qk-layernorm"
    names = [
        "standard",
        "standard" + off,
        "µParam (simple)",
        "µParam (simple)" + off,
        "LR × RMS",
        "µParam (full)",
        "logits / d_head",
        "logits / d_head" + off,
    ]
    losses = {name: moving if name.startswith("standard") else fixed for name in names}
    found = verdicts(checks.mu_param(table(losses), None, STUDY))
    assert found["8-optimum"] == found["E14-optimum"] == claims.HOLDS
    found = verdicts(checks.mu_param(table(dict.fromkeys(names, fixed)), None, STUDY))
    assert found["8-optimum"] == found["E14-optimum"] == claims.UNDECIDED
    assert found["8-loss"] == claims.HOLDS


def test_the_share_of_growth_by_norms_is_one_where_the_cosine_stays():
    curve = pd.DataFrame(
        {
            "seed": 0,
            "step": [0, 9],
            "q_norm/0": [1, 10],
            "k_norm/0": [1, 10],
            "qk_cosine/0": [0.3, 0.3],
        }
    )
    assert norm_share(curve) == pytest.approx([1.0])
    turned = curve.assign(**{"q_norm/0": 1.0, "k_norm/0": 1.0, "qk_cosine/0": [0.1, 0.9]})
    assert norm_share(turned) == 0.0
    both = curve.assign(**{"k_norm/0": 1.0, "qk_cosine/0": [0.05, 0.5]})
    assert norm_share(both) == pytest.approx([0.5])


def spiking(height: dict, frozen: float = 0.1):
    """Section 10's frames, made up.

    `height` of the spike by method; `frozen`: the factor of updates under a raised ε.
    """
    quiet = ["ε = 1e-8, no burst", "ε = 1e-3, no burst"]
    arms = [
        *quiet,
        "ε = 1e-8",
        "ε = 1e-3",
        "ε = 1e-3, batch × 8",
        "ε = 1e-8, noise",
        "ε = 1e-3, noise",
        "ε = 0",
        "ε from 1e-3 to 1e-8",
        "LR / 3",
        "batch / 2",
        "β = 0.8, 0.9",
        "embedding gradient / 10",
        "rewind and skip",
        "every batch new",
        "one batch, again and again",
        "float8_e4m3fn, loss × 1",
        "float8_e4m3fn, loss × 64",
    ]
    losses = {"float8_e4m3fn, loss × 1": 4.5, "ε from 1e-3 to 1e-8": 3.9}
    runs = table(
        {arm: (lambda lr, n, arm=arm: losses.get(arm, 4.0)) for arm in arms},
        sizes=((32, 4),),
        lrs=(0.1,),
    )
    points = runs.loc[runs.index.repeat(4), ["key", "method", "seed", "steps"]].reset_index(
        drop=True
    )
    raised, burst = points["method"].str.startswith("ε = 1e-3"), ~points["method"].isin(quiet)
    step = np.tile([187, 191, 195, 383], len(runs))
    lift = np.where((step == 195) & burst, 10.0, 1.0)
    underflow = np.where(points["method"] == "float8_e4m3fn, loss × 1", 0.01, 1.0)
    update = np.where(raised, frozen, 1.0) * lift * underflow
    cosine = (
        np.where(raised, 0.3, 0.1)
        + 0.2 * points["method"].str.contains("× 8")
        + 0.01 * points["seed"]
    )
    observed = points.assign(
        **{
            "step": step,
            checks.GRADIENT: 1e-4 + 1e-6 * points["seed"],
            checks.UPDATE: update,
            f"gradient_cosine/{checks.TENSOR}": cosine,
            "dip": np.where(points["method"].str.startswith("one"), 0.1, 0.001),
        }
    )
    spikes = runs[["key", "method", "seed"]].assign(
        height=runs["method"].map(height).fillna(0.1)
        + 0.01 * runs["seed"] * runs["method"].isin(height)
    )
    simulated = pd.DataFrame(
        {"std": [0.229, 0.230], "closed_form": 0.2294, "rho": [0.3, 0.3], "dip": 0.03}
    )
    return simulated, runs, observed, spikes, 195, 48


def test_the_stages_and_remedies_of_a_spike_are_told_apart():
    high = {"ε = 1e-3": 2.0, "ε = 1e-8": 0.5, "ε = 1e-3, noise": 1.5, "ε = 1e-8, noise": 0.5}
    found = verdicts(checks.adam_instability(*spiking(high)))
    assert set(found.values()) == {claims.HOLDS}
    found = verdicts(
        checks.adam_instability(*spiking({"ε = 1e-3": 0.1, "rewind and skip": 0.5}, frozen=1.0))
    )
    failing = {"P2-3-frozen", "P2-5-spike", "P2-5-epsilon", "P2-remedy-skip", "P2-remedy-lr"}
    assert not any(found[name] == claims.HOLDS for name in failing)
    assert found["P2-full-batch"] == claims.HOLDS


OF_TABLES = {  # the functions that take runs and curves alone
    "01": checks.attention_logit_growth,
    "02": checks.z_loss,
    "03": checks.warmup,
    "04": checks.weight_decay,
    "05": checks.width_vs_depth,
    "06": checks.mu_param,
    "08": checks.adamw_epsilon,
    "09": checks.additional_interventions,
}


def sections_judged(label: str):
    rows = pd.read_csv(ROOT / f"papermill_runs/{label}/claims.csv", dtype=str)
    return rows["section"].unique()


PUBLISHED = [
    (label, section)
    for label in ("laptop", "night", "night-again", "long")
    for section in sections_judged(label)
    if section in OF_TABLES
]


@pytest.mark.parametrize(("label", "section"), PUBLISHED)
def test_the_published_verdicts_follow_from_the_published_table(
    label, section, monkeypatch, tmp_path
):
    monkeypatch.setenv("PROXIES_PAPERMILL_RUNS", str(ROOT / "papermill_runs"))
    monkeypatch.setenv("PROXIES_STORE", str(tmp_path / "none"))
    published = report.scoreboard(label, published=True)
    mine = published[published["section"] == section].set_index("claim")
    study, path = outputs.study_of(label, published=True), notebooks.sections()[section]
    arms = notebooks.grid_of(path, notebooks.reading(study.scale) | {"overrides": study.given})
    rows = OF_TABLES[section](*report.collect(arms, study), study)
    assert {row["claim"]: row["verdict"] for row in rows} == mine["verdict"].to_dict()
    for row in rows:
        if math.isfinite(row["effect"]):  # the table's curves have four digits
            assert row["effect"] == pytest.approx(mine["effect"][row["claim"]], rel=1e-3, abs=2e-4)
