"""Section 02: drift of the output logits, and what z-loss and weight decay do about it."""

import numpy as np
import pandas as pd

from proxies_lib.science import analysis
from proxies_lib.science.analysis import where
from proxies_lib.science.checks.measures import (
    BY,
    QUESTION,
    decays_nothing,
    difference,
    minus,
    per_seed,
    same_as_base,
    same_numbers_as_base,
)
from proxies_lib.science.checks.thresholds import SMALL
from proxies_lib.science.claims import CONTRADICTED, HOLDS, UNDECIDED, UNTESTABLE, check
from proxies_lib.science.protocol import Study

# Why a remedy cannot be tested, by the verdict on the harm.
NOTHING_TO_REPAIR = {
    HOLDS: "",
    CONTRADICTED: "there is nothing to repair: without either, training is as stable",
    UNDECIDED: "whether there is anything to repair is undecided",
    UNTESTABLE: "whether there is anything to repair cannot be tested",
}

NEITHER, Z_LOSS, BOTH = "no decay, no z-loss", "no decay, z-loss", "decay, z-loss"


def z_loss(table: pd.DataFrame, curves: pd.DataFrame, study: Study) -> list[dict]:
    """Figures 3 and 4 (P1, section 3.1.2)."""
    return _figure_3(table, study) + _figure_4(table, curves, study)


def _figure_3(table: pd.DataFrame, study: Study) -> list[dict]:
    largest = table["n_params"].max()
    decays = {"decay": ("decay, no z-loss", study.base.hparams.weight_decay)}
    if study.matched_decay != study.base.hparams.weight_decay:  # else it is the same arm
        decays["matched"] = ("matched decay, no z-loss", study.matched_decay)
    combinations = [NEITHER, Z_LOSS, BOTH, *(method for method, _ in decays.values())]
    swept = same_as_base(where(table, method=combinations), study)
    s = analysis.lr_sensitivity_per_seed(swept, BY, study.window)
    harm = check(
        "3-neither",
        "3",
        "Without decay and without z-loss training fails at high LR at every N; with z-loss not.",
        "S without either − S with z-loss, least over N, nats",
        per_seed(difference(s, "S", NEITHER, less=Z_LOSS), "min"),
        above=SMALL,
    )
    # A remedy can be tested only where there is harm.
    nothing = NOTHING_TO_REPAIR[harm["verdict"]]
    repaired = check(
        "3-z-loss",
        "3",
        "z-loss alone repairs, at every N, what leaving out z-loss and decay costs.",
        "S with z-loss only − S with both, largest over N, nats",
        per_seed(difference(s, "S", Z_LOSS, less=BOTH), "max"),
        below=SMALL,
        unless=nothing,
    )
    rows = [harm, repaired]
    for name, (method, decay) in decays.items():
        gain = per_seed(difference(s, "S", NEITHER, less=method, n_params=largest))
        rows.append(
            check(
                f"3-{name}",
                "3",
                "Weight decay alone repairs, for larger N, what leaving out both costs.",
                f"S without either − S with λ = {decay:g}, N {largest:,}, nats",
                gain,
                above=SMALL,
                unless=nothing or decays_nothing(decay, study),
            )
        )
    return rows


def _figure_4(table: pd.DataFrame, curves: pd.DataFrame, study: Study) -> list[dict]:
    """Of the longest trainings, those of the smallest model at LR 0.1.

    The *drift* is the root of the mean log² Z over that at initialization: where logits shift by a
    common amount, of either sign, log Z shifts with them.
    """
    runs, log2_z = _at_figure_4(same_numbers_as_base(table, study), curves)
    setting = f"LR 0.1, {runs['steps'].max()} steps"
    loss = analysis.with_loss(runs).set_index(["method", "seed"])["loss"]
    at_begin = np.log(study.base.model.vocab_size) + 0.5  # log Z at initialization, expected
    drift = np.sqrt(log2_z) / at_begin
    end = drift.groupby(["method", "seed"]).last()
    half_way = drift.groupby(["method", "seed"]).apply(_half_way)
    squares = log2_z.groupby(["method", "seed"]).last()
    drifts = check(
        "4-drift",
        "4",
        "Without z-loss the output logits drift far away from zero.",
        f"√(mean log² Z) at the end / at initialization, {setting}",
        end[NEITHER],
        above=3.0,
    )
    no_drift = "" if drifts["verdict"] == HOLDS else "log Z has not drifted"
    return [
        drifts,
        check(
            "4-late",
            "4",
            "Without z-loss most of the output logits' drift comes late in training.",
            f"share of the rise of √(mean log² Z) in the second half, {setting}",
            (end[NEITHER] - half_way[NEITHER]) / (end[NEITHER] - 1),
            above=0.5,
            unless=no_drift,
        ),
        check(
            "4-z-loss",
            "4",
            "z-loss keeps the output logits near zero.",
            f"mean log² Z at the end, with / without z-loss, {setting}",
            squares[Z_LOSS] / squares[NEITHER],
            below=0.1,
        ),
        check(
            "4-harm",
            "4",
            "Without z-loss the drift of the output logits makes the loss higher.",
            f"final loss without − with z-loss, nats, {setting}",
            minus(loss[NEITHER], loss[Z_LOSS]),
            above=SMALL,
        ),
        *_narrow_numbers(table, study),
    ]


def _half_way(points: pd.Series) -> float:
    return points.iloc[len(points) // 2]


def _at_figure_4(table: pd.DataFrame, curves: pd.DataFrame) -> tuple[pd.DataFrame, pd.Series]:
    """The longest runs at LR 0.1 of the smallest model, and the mean log² Z of their points."""
    pair = where(table, method=[NEITHER, Z_LOSS], lr=0.1, n_params=table["n_params"].min())
    runs = where(pair, steps=pair["steps"].max())
    observed = analysis.curves_of(runs, curves)
    return runs, observed.set_index(["method", "seed"])["mean_log_z_squared"]


def _narrow_numbers(table: pd.DataFrame, study: Study) -> list[dict]:
    """Is it rounding that makes the drift harmful? The same pair with rounded numbers."""
    names = {"logits_dtype": "output logits rounded to", "compute_dtype": "computing in"}
    rows = []
    for lr in study.drift_lrs:
        pair = where(table, method=[NEITHER, Z_LOSS], lr=lr, n_params=table["n_params"].min())
        wide = _harm(same_numbers_as_base(where(pair, steps=study.base.hparams.steps), study))
        for name, words in names.items():
            if ((name, "bfloat16"),) not in study.drift:
                continue
            changed = same_numbers_as_base(
                pair, study, **{name: "bfloat16", "vocab_size": study.base.model.vocab_size}
            )
            rows.append(
                check(
                    f"4-{name.removesuffix('_dtype')}-bfloat16-{lr:g}",
                    "4",
                    f"Without z-loss the loss suffers from {words} bfloat16.",
                    "final loss without − with z-loss, bfloat16 − float32, nats, "
                    f"LR {lr:g}, {study.base.hparams.steps} steps",
                    minus(_harm(changed), wide),
                    above=SMALL,
                    note=QUESTION,
                )
            )
    return rows


def _harm(pair: pd.DataFrame) -> pd.Series:
    """By seed, what leaving z-loss out costs in final loss."""
    loss = analysis.with_loss(pair).set_index(["method", "seed"])["loss"]
    return minus(loss[NEITHER], loss[Z_LOSS])
