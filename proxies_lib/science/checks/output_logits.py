"""Section 02: drift of the output logits, and what z-loss and weight decay do about it."""

import pandas as pd

from proxies_lib.science import analysis
from proxies_lib.science.analysis import where
from proxies_lib.science.checks.measures import (
    BY,
    decays_nothing,
    difference,
    per_seed,
    same_as_base,
)
from proxies_lib.science.checks.thresholds import SMALL
from proxies_lib.science.claims import HOLDS, check
from proxies_lib.science.protocol import Study

NEITHER, Z_LOSS, BOTH = "no decay, no z-loss", "no decay, z-loss", "decay, z-loss"


def z_loss(table: pd.DataFrame, curves: pd.DataFrame, study: Study) -> list[dict]:
    """Figures 3 and 4 (P1, section 3.1.2)."""
    longest = where(table, steps=table["steps"].max(), method=[NEITHER, Z_LOSS])
    return _figure_3(table, study) + _figure_4(longest, curves)


def _figure_3(table: pd.DataFrame, study: Study) -> list[dict]:
    largest = table["n_params"].max()
    s = analysis.lr_sensitivity_per_seed(same_as_base(table, study), BY, study.window)
    harm = check(
        "3-neither",
        "3",
        "Without decay and without z-loss training fails at high LR at every N; with z-loss not.",
        "S without either − S with z-loss, least over N, nats",
        per_seed(difference(s, "S", NEITHER, less=Z_LOSS), "min"),
        above=SMALL,
    )
    # A remedy can be tested only where there is harm.
    nothing = ""
    if harm["verdict"] != HOLDS:
        nothing = "there is nothing to repair: without either, training is as stable"
    repaired = check(
        "3-z-loss",
        "3",
        "z-loss alone repairs it at every N.",
        "S with z-loss only − S with both, largest over N, nats",
        per_seed(difference(s, "S", Z_LOSS, less=BOTH), "max"),
        below=SMALL,
        unless=nothing,
    )
    rows = [harm, repaired]
    decays = {
        "decay": ("decay, no z-loss", study.base.hparams.weight_decay),
        "matched": ("matched decay, no z-loss", study.matched_decay),
    }
    for name, (method, decay) in decays.items():
        gain = per_seed(difference(s, "S", NEITHER, less=method, n_params=largest))
        rows.append(
            check(
                f"3-{name}",
                "3",
                "Weight decay alone repairs it for larger N.",
                f"S without either − S with λ = {decay:g}, N {largest:,}, nats",
                gain,
                above=SMALL,
                unless=nothing or decays_nothing(decay, study),
            )
        )
    return rows


def _figure_4(longest: pd.DataFrame, curves: pd.DataFrame) -> list[dict]:
    """Of the longest trainings, those of the smallest model at LR 0.1."""
    setting = f"LR {longest['lr'].iloc[0]:g}, {longest['steps'].iloc[0]} steps"
    runs = where(longest, lr=0.1, n_params=longest["n_params"].min())
    loss = analysis.with_loss(runs).set_index(["method", "seed"])["loss"]
    observed = analysis.curves_of(runs, curves)
    logits = observed.groupby(["method", "seed"])["mean_output_logit"]
    end, half_way = logits.last(), logits.apply(lambda points: points.iloc[len(points) // 2])
    return [
        check(
            "4-drift",
            "4",
            "Without z-loss the output logits drift to very negative values.",
            f"mean output logit at the end, {setting}",
            end[NEITHER],
            below=-10.0,
        ),
        check(
            "4-late",
            "4",
            "The drift is late in training.",
            f"share of the drift in the second half, {setting}",
            1 - half_way[NEITHER] / end[NEITHER],
            above=0.5,
        ),
        check(
            "4-z-loss",
            "4",
            "z-loss keeps the output logits near zero.",
            f"mean output logit at the end, with / without z-loss, {setting}",
            end[Z_LOSS] / end[NEITHER],
            below=0.5,
        ),
        check(
            "4-harm",
            "4",
            "The drift harms: without z-loss the loss is higher.",
            f"final loss without − with z-loss, nats, {setting}",
            loss[NEITHER] - loss[Z_LOSS],
            above=SMALL,
        ),
    ]
