"""Sections 03 and 04: the length of the warm-up, and the kind and strength of weight decay."""

import numpy as np
import pandas as pd

from proxies_lib.science import analysis
from proxies_lib.science.analysis import where
from proxies_lib.science.checks.measures import BY, decays_nothing, log_slopes, per_seed, series
from proxies_lib.science.claims import check
from proxies_lib.science.protocol import Study

DECAYS = (
    "decay 1e-4",
    "a tenth of matched decay",
    "matched decay",
    "ten times matched decay",  # where the matched decay is 1e-4
)


def warmup(table: pd.DataFrame, curves: pd.DataFrame, study: Study) -> list[dict]:
    """Figure 5 (P1, section 3.2.1)."""
    # No warm-up counts as half a step: slopes are per decade of the warm-up's share.
    runs = table.assign(share=table["warmup_steps"].clip(lower=0.5) / table["steps"])
    by = ["method", "share", "n_params"]
    best = analysis.optimum(runs, by)
    s = analysis.lr_sensitivity_per_seed(runs, by, study.window)
    of_largest = analysis.slopes(where(s, n_params=runs["n_params"].max()), "S", "share")
    of_smallest = analysis.slopes(where(s, n_params=runs["n_params"].min()), "S", "share")
    return [
        check(
            "5-sensitivity",
            "5",
            "A longer warm-up lowers LR sensitivity.",
            "slope of S per decade of warm-up, nats, mean over N",
            analysis.slopes(s, "S", "share"),
            below=0.0,
        ),
        check(
            "5-loss",
            "5",
            "A longer warm-up lowers the loss.",
            "slope of the best loss per decade of warm-up, nats, mean over N",
            analysis.slopes(best, "best_loss", "share"),
            below=0.0,
        ),
        check(
            "5-large",
            "5",
            "A longer warm-up lowers LR sensitivity most of all for large N.",
            "slope of S per decade of warm-up, nats: largest − smallest N",
            of_largest - of_smallest,
            below=0.0,
        ),
    ]


def weight_decay(table: pd.DataFrame, curves: pd.DataFrame, study: Study) -> list[dict]:
    """Figures 6 and E.10 (P1, section 3.2.2 and appendix E)."""
    independent = where(table, method="independent decay 1e-4")
    s_independent = series(analysis.lr_sensitivity_per_seed(independent, BY, study.window), "S")
    # Coupled decay may have its optimum at lower LRs: it gets the better of two windows.
    coupled = where(table, method="coupled decay 0.1")
    s_coupled = np.minimum(
        series(analysis.lr_sensitivity_per_seed(coupled, BY, study.window), "S"),
        series(analysis.lr_sensitivity_per_seed(coupled, BY, study.lower_window), "S"),
    )
    strengths = where(table, method=[m for m in DECAYS if m in set(table["method"])])
    best = analysis.optimum(strengths, ["method", "weight_decay", "n_params"])
    return [
        check(
            "6-independent",
            "6",
            "Independent decay has a lower LR sensitivity than coupled decay.",
            "S coupled − S independent, mean over N, nats",
            per_seed(s_coupled - s_independent),
            above=0.0,
            unless=decays_nothing(study.base.hparams.weight_decay, study),
        ),
        check(
            "E10-shift",
            "E.10",
            "More decay moves the best LR slightly to the right.",
            "slope of log10 best LR per decade of λ, mean over N",
            log_slopes(best, "best_lr", "weight_decay"),
            above=0.0,
        ),
    ]
