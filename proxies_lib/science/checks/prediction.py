"""Section 07: predicting from smaller models which LRs fail, and attention logits by force."""

import numpy as np
import pandas as pd

from proxies_lib.science import analysis
from proxies_lib.science.checks.measures import LOGIT, QUESTION, notes
from proxies_lib.science.checks.thresholds import PAPER_LOGIT, SMALL
from proxies_lib.science.claims import check


def predicting_logit_growth(
    points: dict[str, pd.DataFrame],
    scores: dict[str, pd.DataFrame],
    kappa: pd.DataFrame,
    bigram: pd.DataFrame,
) -> list[dict]:
    """Figures 9 and 10 (P1, section 3.3).

    `points` are the frames of `analysis.probe`, of all sizes, and `scores` those of
    `analysis.scored`, of the held-out size; both by the title of the probe, the paper's and one
    half-way. `kappa` and `bigram` are the runs of Fig. 10.
    """
    rows = []
    for suffix, (title, probed) in zip(("", "-half"), points.items(), strict=True):
        rows += _figure_9(suffix, title, probed, scores[title])
    return rows + _figure_10(kappa, bigram)


def _figure_9(suffix: str, title: str, probed: pd.DataFrame, scored: pd.DataFrame) -> list[dict]:
    beyond = probed[probed[LOGIT] > PAPER_LOGIT]
    # Every seed needs a run beyond the limit, or it has no share of them.
    seeds, seeds_beyond = probed["seed"].nunique(), beyond["seed"].nunique()
    none_beyond = ""
    if seeds_beyond != seeds:
        few = f", and passes 1e4 in {seeds_beyond} of {seeds} seeds" if seeds_beyond else ""
        none_beyond = f"the largest logit then is {probed[LOGIT].max():.3g}{few}"
    by_seed = scored.groupby("seed")
    widest = np.log10(scored["hi"] / scored["lo"]).max()
    one_fit = f"the seeds share one fit, whose widest interval has {widest:.1g} decades"
    return [
        check(
            f"9-beyond{suffix}",
            "9",
            "Every run whose max attention logit passed 1e4 fails.",
            f"share of them that fails, {title}",
            beyond.groupby("seed")["failed"].mean(),
            above=0.99,
            unless=none_beyond,
        ),
        check(
            f"9-logit{suffix}",
            "9",
            "The fit on smaller models predicts the logit of a larger one.",
            f"share of the held-out runs inside the 95 % prediction interval, {title}",
            by_seed["inside"].mean(),
            above=0.8,
            note=one_fit,
        ),
        check(
            f"9-error{suffix}",
            "9",
            "The fit on smaller models is off by less than a factor of three.",
            f"mean |log10 predicted − log10 measured| over the LRs, {title}",
            by_seed["off"].mean(),
            below=0.5,
            note=notes(QUESTION, one_fit),
        ),
        check(
            f"9-failure{suffix}",
            "9",
            "The fit on smaller models predicts at which LRs a larger one fails.",
            f"share of the LRs where (predicted logit > 1e4) = (held-out run fails), {title}",
            by_seed["foretold"].mean(),
            above=0.8,
            note=one_fit,
        ),
    ]


def _figure_10(kappa: pd.DataFrame, bigram: pd.DataFrame) -> list[dict]:
    by_kappa = analysis.with_loss(kappa).set_index(["seed", "kappa"])["loss"].unstack()
    bigram_loss = analysis.with_loss(bigram).set_index("seed")["loss"]
    weak = ""
    if not (by_kappa[1.0] < bigram_loss).all():
        weak = "the model is no better than the bigram model at κ = 1 either"
    return [
        check(
            "10-worse",
            "10",
            "Forced logits make a model worse from κ ≈ 1e3.",
            "final loss at κ 1e3 − at κ 1, nats",
            by_kappa[1e3] - by_kappa[1.0],
            above=SMALL,
            note=f"at κ 1e2 already {(by_kappa[1e2] - by_kappa[1.0]).mean():+.2g} nats",
        ),
        check(
            "10-bigram",
            "10",
            "With logits forced by κ = 1e4 a model is worse than a bigram model.",
            "final loss at κ 1e4 − bigram, nats",
            by_kappa[1e4] - bigram_loss,
            above=0.0,
            unless=weak,
        ),
    ]
