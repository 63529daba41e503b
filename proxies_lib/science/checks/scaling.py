"""Sections 05 and 06: growing width or depth, and µParam with its parts."""

import numpy as np
import pandas as pd

from proxies_lib.science import analysis
from proxies_lib.science.analysis import where
from proxies_lib.science.checks.measures import BY, difference, log_slopes, per_seed
from proxies_lib.science.checks.thresholds import SMALL
from proxies_lib.science.claims import check
from proxies_lib.science.protocol import Study

WIDTH, DEPTH, JOINTLY = "by width", "by depth", "jointly"

STANDARD, SIMPLE, FULL = "standard", "µParam (simple)", "µParam (full)"
POWER = "logits / d_head"  # attention logits over d_head, not over its root
LR_BY_RMS = "LR × RMS"
NO_QK = ", no qk-layernorm"  # ends the name of an arm without it


def width_vs_depth(table: pd.DataFrame, curves: pd.DataFrame, study: Study) -> list[dict]:
    """Figures 7, E.2 and E.3 (P1, section 3.2.3 and appendix E)."""
    # The joint series serves E.3 only: it need not have every LR of the window.
    with_s = [method for method in table["method"].unique() if method != JOINTLY]
    s = analysis.lr_sensitivity_per_seed(where(table, method=with_s), BY, study.window)
    best = analysis.optimum(where(table, method=[WIDTH, DEPTH, JOINTLY]), BY)
    return _figure_7(s, best) + _figure_e2(s) + _figure_e3(best)


def _figure_7(s: pd.DataFrame, best: pd.DataFrame) -> list[dict]:
    slope = {method: analysis.slopes(where(s, method=method), "S") for method in (WIDTH, DEPTH)}
    return [
        check(
            "7-steeper",
            "7",
            "LR sensitivity rises faster with depth than with width.",
            "slope of S per decade of N: depth − width, nats",
            slope[DEPTH] - slope[WIDTH],
            above=0.0,
        ),
        check(
            "7-loss",
            "7",
            "At the largest size the deep model has the lower loss.",
            "best loss, depth − width, nats",
            _at_largest(best, DEPTH) - _at_largest(best, WIDTH),
            below=0.0,
        ),
    ]


def _at_largest(best: pd.DataFrame, method: str) -> pd.Series:
    """The best loss of the largest model of a series, by seed."""
    of_series = where(best, method=method)
    largest = where(of_series, n_params=of_series["n_params"].max())
    return largest.set_index("seed")["best_loss"]


def _figure_e2(s: pd.DataFrame) -> list[dict]:
    rows = []
    for name, method in (("width", WIDTH), ("depth", DEPTH)):
        largest = where(s, method=method)["n_params"].max()
        rows.append(
            check(
                f"E2-{name}",
                "E.2",
                "Without qk-layernorm training is unstable whichever is scaled.",
                f"S without − S with qk-layernorm, largest {method}, nats",
                per_seed(difference(s, "S", method + NO_QK, less=method, n_params=largest)),
                above=SMALL,
            )
        )
    return rows


def _figure_e3(best: pd.DataFrame) -> list[dict]:
    of_series = {method: where(best, method=method) for method in (WIDTH, DEPTH, JOINTLY)}
    # The largest N that all three series reach.
    common = min(rows["n_params"].max() for rows in of_series.values())
    loss = {method: _interpolated(rows, common) for method, rows in of_series.items()}
    fits = analysis.extrapolated(best).set_index(["seed", "method"])
    error = fits["error"].abs().unstack()
    return [
        check(
            "E3-best",
            "E.3",
            "Growing width and depth together gives the lowest loss at the largest size.",
            f"best loss, jointly − the better of width and depth, at N {common:,}, nats",
            loss[JOINTLY] - np.minimum(loss[WIDTH], loss[DEPTH]),
            below=0.0,
            note="where a series has no model of this N, its loss is interpolated in log N",
        ),
        check(
            "E3-extrapolates",
            "E.3",
            "Growing width and depth together extrapolates best from smaller sizes.",
            "|error| of a line through all but the largest size: "
            "jointly − the better of the others, nats",
            error[JOINTLY] - error[[WIDTH, DEPTH]].min(axis=1),
            below=0.0,
        ),
    ]


def _interpolated(best: pd.DataFrame, n_params: float) -> np.ndarray:
    """Per seed, the best loss at `n_params`, piecewise linear in log N."""
    log_n, losses = np.log(n_params), []
    for _, sizes in best.sort_values("n_params").groupby("seed"):
        losses.append(np.interp(log_n, np.log(sizes["n_params"]), sizes["best_loss"]))
    return np.array(losses)


def mu_param(table: pd.DataFrame, curves: pd.DataFrame, study: Study) -> list[dict]:
    """Figures 8, E.4, E.5, E.6 and E.14 (P1, section 3.2.4 and appendix E)."""
    largest = table["n_params"].max()
    best = analysis.optimum(table, BY)
    with_s = [STANDARD, SIMPLE, STANDARD + NO_QK, SIMPLE + NO_QK]
    s = analysis.lr_sensitivity_per_seed(where(table, method=with_s), BY, study.window)
    drift = {}
    for method in (STANDARD, SIMPLE, LR_BY_RMS):
        drift[method] = np.abs(log_slopes(where(best, method=method), "best_lr"))
    moves = "|slope| of log10 best LR per decade of N"
    return [
        check(
            "8-optimum",
            "8",
            "With µParam the best LR stops moving.",
            f"{moves}: standard − µParam",
            drift[STANDARD] - drift[SIMPLE],
            above=0.0,
        ),
        *_simple(best, s, largest),
        *_full(table, best, study, largest),
        *_logit_scale(table, study, largest),
        check(
            "E14-optimum",
            "E.14",
            "With LR × max(RMS, 1e-3) the best LR stabilizes.",
            f"{moves}: standard − LR × RMS",
            drift[STANDARD] - drift[LR_BY_RMS],
            above=0.0,
        ),
    ]


def _simple(best: pd.DataFrame, s: pd.DataFrame, largest: int) -> list[dict]:
    """Figures 8 and E.4: what µParam does not improve."""
    return [
        check(
            "8-loss",
            "8",
            "With µParam the loss does not improve.",
            f"best loss, standard − µParam, at N {largest:,}, nats",
            per_seed(difference(best, "best_loss", STANDARD, less=SIMPLE, n_params=largest)),
            below=SMALL,
        ),
        check(
            "8-sensitivity",
            "8",
            "With µParam LR sensitivity does not improve.",
            f"S standard − S µParam, at N {largest:,}, nats",
            per_seed(difference(s, "S", STANDARD, less=SIMPLE, n_params=largest)),
            below=SMALL,
        ),
        check(
            "E4-replace",
            "E.4",
            "µParam does not replace qk-layernorm.",
            f"S of µParam without − S of standard with qk-layernorm, at N {largest:,}, nats",
            per_seed(difference(s, "S", SIMPLE + NO_QK, less=STANDARD, n_params=largest)),
            above=SMALL,
        ),
    ]


def _full(table: pd.DataFrame, best: pd.DataFrame, study: Study, largest: int) -> list[dict]:
    """Figure E.5."""
    top = max(study.window)
    lost = analysis.excess_loss(where(table, method=FULL), BY)
    return [
        check(
            "E5-survives",
            "E.5",
            "Full µParam with qk-layernorm survives LR 1.",
            f"share of the learning lost at LR {top:g}, N {largest:,}",
            where(lost, lr=top)["excess"],
            below=analysis.FAILURE,
            note="" if top == 1.0 else "the top of this scale's window, not 1",
        ),
        check(
            "E5-gain",
            "E.5",
            "Full µParam gains nothing at the best LR.",
            f"best loss, standard − full µParam, at N {largest:,}, nats",
            per_seed(difference(best, "best_loss", STANDARD, less=FULL, n_params=largest)),
            below=SMALL,
        ),
    ]


def _logit_scale(table: pd.DataFrame, study: Study, largest: int) -> list[dict]:
    """Figure E.6, over the upper LRs."""
    smallest = table["n_params"].min()
    upper = where(analysis.with_loss(table), lr=study.upper)
    best = analysis.optimum(upper, BY)
    mean = upper.groupby([*BY, "seed"], as_index=False)["loss"].mean()
    return [
        check(
            "E6-smallest",
            "E.6",
            "Scaling logits by 1/d_head is slightly better at the smallest N.",
            f"best loss, 1/√d_head − 1/d_head, at N {smallest:,}, nats",
            per_seed(difference(best, "best_loss", STANDARD, less=POWER, n_params=smallest)),
            above=0.0,
        ),
        check(
            "E6-largest",
            "E.6",
            "Scaling logits by 1/d_head is worse at the largest N.",
            f"best loss, 1/d_head − 1/√d_head, at N {largest:,}, nats",
            per_seed(difference(best, "best_loss", POWER, less=STANDARD, n_params=largest)),
            above=0.0,
        ),
        check(
            "E6-replace",
            "E.6",
            "Scaling logits by 1/d_head does not replace qk-layernorm.",
            "mean loss over the upper LRs, 1/d_head without − 1/√d_head with qk-layernorm, "
            f"at N {largest:,}, nats",
            per_seed(difference(mean, "loss", POWER + NO_QK, less=STANDARD, n_params=largest)),
            above=SMALL,
        ),
    ]
