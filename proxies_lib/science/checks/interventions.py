"""Section 09: steps, batch, kinds of qk-layernorm, attention without softmax."""

import numpy as np
import pandas as pd

from proxies_lib.science import analysis
from proxies_lib.science.analysis import where
from proxies_lib.science.checks.measures import BY, LOGIT, difference, per_seed
from proxies_lib.science.checks.thresholds import PAPER_TOP_LR, SAME_SHAPE
from proxies_lib.science.claims import check
from proxies_lib.science.protocol import Study

PER_HEAD, WHOLE = "qk-layernorm per head", "qk-layernorm whole"


def additional_interventions(table: pd.DataFrame, curves: pd.DataFrame, study: Study) -> list[dict]:
    """Figures E.7, E.8, E.9 and E.11 (P1, appendix E)."""
    excess = analysis.excess_loss(table, BY)
    steps = "The shape of loss against LR does not depend on the steps."
    batch = "The shape of loss against LR does not depend on the batch at constant tokens."
    return [
        _same_shape("E.7", steps, excess, "0.5 × steps", "1 × steps"),
        _same_shape("E.7", steps, excess, "2 × steps", "1 × steps"),
        _same_shape("E.9", batch, excess, "batch × 2", "batch × 1"),
        _same_shape("E.9", batch, excess, "batch × 4", "batch × 1"),
        _kinds_of_qk_layernorm(table),
        _growth_without_softmax(table, curves, study),
    ]


def _same_shape(
    figure: str, statement: str, excess: pd.DataFrame, method: str, default: str
) -> dict:
    lost, lost_by_default = (
        where(excess, method=name).set_index(["seed", "n_params", "lr"])["excess"]
        for name in (method, default)
    )
    return check(
        f"{figure}-{method.replace(' ', '')}",
        figure,
        statement,
        f"mean |difference of the share of the learning lost|, {method}",
        per_seed((lost - lost_by_default).abs()),
        below=SAME_SHAPE,
    )


def _kinds_of_qk_layernorm(table: pd.DataFrame) -> dict:
    best = analysis.optimum(where(table, method=[PER_HEAD, WHOLE]), BY)
    largest = best["n_params"].max()
    return check(
        "E8-per-head",
        "E.8",
        "qk-layernorm per head is slightly better than over the whole width.",
        f"best loss, whole − per head, N {largest:,}, nats",
        per_seed(difference(best, "best_loss", WHOLE, less=PER_HEAD, n_params=largest)),
        above=0.0,
    )


def _growth_without_softmax(table: pd.DataFrame, curves: pd.DataFrame, study: Study) -> dict:
    lr = PAPER_TOP_LR if PAPER_TOP_LR in study.upper else max(study.upper)
    pointwise = where(table, method="squared_relu attention", lr=lr)
    largest = where(pointwise, n_params=pointwise["n_params"].max())
    logits = analysis.curves_of(largest, curves).groupby("seed")[LOGIT]
    return check(
        "E11-growth",
        "E.11",
        "Attention logits grow without softmax too.",
        f"log10 of largest / first max |attention logit|, pointwise attention, LR {lr:g}",
        np.log10(logits.max() / logits.first()),
        above=1.0,
    )
