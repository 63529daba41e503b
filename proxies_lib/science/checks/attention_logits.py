"""Section 01: growth of the attention logits, and what qk-layernorm does about it."""

import numpy as np
import pandas as pd

from proxies_lib.science import analysis
from proxies_lib.science.analysis import where
from proxies_lib.science.checks.measures import (
    BY,
    LOGIT,
    QUESTION,
    notes,
    per_seed,
    series,
    sizes_left_out,
    slopes_of_diverging_lr,
)
from proxies_lib.science.checks.thresholds import CATASTROPHE, PAPER_TOP_LR, SAME_SHAPE
from proxies_lib.science.claims import check
from proxies_lib.science.protocol import Study

ON, OFF = "with qk-layernorm", "without qk-layernorm"


def attention_logit_growth(table: pd.DataFrame, curves: pd.DataFrame, study: Study) -> list[dict]:
    """Figures 1, 2 and E.1 (P1, section 3.1.1 and appendix E)."""
    excess = analysis.excess_loss(table, BY)
    rows = _figure_1(table, excess, study)
    points = analysis.at_points(table, study.figure2)
    observed = analysis.curves_of(points, curves)
    for i, (d_model, n_layers, lr) in enumerate(study.figure2):
        lost = where(excess, d_model=d_model, n_layers=n_layers, lr=lr)
        setting = f"d {d_model}, {n_layers} layers, LR {lr:g}"
        rows += _figures_2_and_e1(where(observed, point=i), lost, "abcdefgh"[i], setting)
    return rows


def _figure_1(table: pd.DataFrame, excess: pd.DataFrame, study: Study) -> list[dict]:
    largest = table["n_params"].max()
    failing = analysis.diverging_lr(where(table, method=OFF), [*BY, "d_model"])
    s = analysis.lr_sensitivity_per_seed(table, BY, study.window)
    s_on, s_off = where(s, method=ON), where(s, method=OFF)
    ratio = series(s_off, "S", n_params=largest) / series(s_on, "S", n_params=largest)
    high_on = where(excess, method=ON, n_params=largest)
    left_out = sizes_left_out(failing)
    # The paper's LR, and the top of this scale's window where that is another one.
    high_lrs = dict.fromkeys((min(PAPER_TOP_LR, max(study.lrs)), max(study.window)))
    return [
        *(_stable_at(high_on, lr, largest) for lr in high_lrs),
        check(
            "1-diverging-lr",
            "1",
            "Without qk-layernorm the LR that diverges falls as N grows.",
            "slope of log10 diverging LR per decade of N, over the sizes that fail",
            slopes_of_diverging_lr(failing, "n_params"),
            below=0.0,
            note=left_out,
        ),
        check(
            "1-width",
            "1",
            "Without qk-layernorm the LR that diverges falls as 1/width, plain for Adam.",
            "|1 + slope of log10 diverging LR per decade of width|, over the sizes that fail",
            (1 + slopes_of_diverging_lr(failing, "d_model")).abs(),
            below=0.5,
            note=notes(QUESTION, left_out),
        ),
        check(
            "1-rises-off",
            "1",
            "LR sensitivity rises with N without qk-layernorm.",
            "slope of S per decade of N, nats",
            analysis.slopes(s_off, "S"),
            above=0.0,
        ),
        check(
            "1-rises-on",
            "1",
            "LR sensitivity rises with N with qk-layernorm too.",
            "slope of S per decade of N, nats",
            analysis.slopes(s_on, "S"),
            above=0.0,
        ),
        check(
            "1-ratio",
            "1",
            "qk-layernorm lowers LR sensitivity, about 25 times at 19M in the paper.",
            f"S without / S with, N {largest:,}",
            per_seed(ratio),
            above=1.0,
        ),
        check(
            "1-coincide",
            "1",
            "Below a critical LR the curves with and without qk-layernorm coincide.",
            "mean |difference| / learning, LRs below a third of the diverging LR",
            _coincidence(where(excess, method=OFF), where(excess, method=ON), failing),
            below=SAME_SHAPE,
        ),
    ]


def _stable_at(excess: pd.DataFrame, lr: float, n_params: int) -> dict:
    shifted = f"{QUESTION}: the top of this scale's window lies above 0.3"
    return check(
        f"1-stable-{lr:g}",
        "1",
        f"With qk-layernorm the largest model still trains at a very high LR, {lr:g}.",
        f"share of the learning lost at LR {lr:g}, N {n_params:,}",
        where(excess, lr=lr)["excess"],
        below=analysis.FAILURE,
        note="" if lr == PAPER_TOP_LR else shifted,
    )


def _coincidence(off: pd.DataFrame, on: pd.DataFrame, failing: pd.DataFrame) -> np.ndarray:
    """Per seed, the mean |gap| between the curves below the critical LR, in shares of the learning.

    Critical is a third of the LR at which training without qk-layernorm diverges; where it does
    not, every LR of the grid counts.
    """
    both = off.merge(on, on=["n_params", "lr", "seed"], suffixes=("_off", "_on"))
    of_run = pd.MultiIndex.from_frame(both[["n_params", "seed"]])
    diverging = failing.set_index(["n_params", "seed"])["diverging_lr"].reindex(of_run).to_numpy()
    critical = np.where(np.isnan(diverging), np.inf, diverging / 3)
    both = both[both["lr"].to_numpy() < critical]
    best = both.groupby(["n_params", "seed"])["loss_off"].transform("min")
    gap = (both["loss_off"] - both["loss_on"]).abs() / (both["init_loss_off"] - best)
    return gap.groupby(both["seed"]).mean().to_numpy()


def _figures_2_and_e1(
    observed: pd.DataFrame, lost: pd.DataFrame, point: str, setting: str
) -> list[dict]:
    """The claims about one `point` of Fig. 2: its curves, and the share of the learning lost."""
    largest_logit = np.log10(observed.groupby(["method", "seed"])[LOGIT].max())
    return [
        check(
            f"2{point}-logit-off",
            "2",
            "Without qk-layernorm the attention logits of layer 0 grow out of bounds.",
            f"log10 max |attention logit|, {setting}",
            largest_logit[OFF],
            above=np.log10(CATASTROPHE),
        ),
        check(
            f"2{point}-logit-on",
            "2",
            "With qk-layernorm the attention logits of layer 0 stay bounded.",
            f"log10 max |attention logit|, {setting}",
            largest_logit[ON],
            below=np.log10(CATASTROPHE),
        ),
        check(
            f"2{point}-fails-off",
            "2",
            "Without qk-layernorm training diverges at the LRs of Fig. 2.",
            f"share of the learning lost, {setting}",
            where(lost, method=OFF)["excess"],
            above=analysis.FAILURE,
        ),
        check(
            f"2{point}-fails-on",
            "2",
            "With qk-layernorm training does not diverge at the LRs of Fig. 2.",
            f"share of the learning lost, {setting}",
            where(lost, method=ON)["excess"],
            below=analysis.FAILURE,
        ),
        check(
            f"E1{point}-norm",
            "E.1",
            "The logits grow by the norms of q and k, not by their alignment.",
            f"share of the growth due to norms, {setting}",
            norm_share(where(observed, method=OFF)),
            above=0.5,
        ),
    ]


def norm_share(observed: pd.DataFrame) -> np.ndarray:
    """Per seed, the share of the logits' growth that is due to the norms of q and k.

    A logit is ‖q‖‖k‖ · cosine, so its log grows by Δlog(‖q‖‖k‖) + Δlog cosine, from the first to
    the last logged point. The share is Δlog(‖q‖‖k‖) / (|Δlog(‖q‖‖k‖)| + |Δlog cosine|).
    """
    shares = []
    for _, curve in observed.groupby("seed"):
        ends = curve.sort_values("step").iloc[[0, -1]]
        norms = np.diff(np.log(ends["q_norm/0"] * ends["k_norm/0"]))[0]
        cosine = np.diff(np.log(ends["qk_cosine/0"]))[0]
        shares.append(norms / (abs(norms) + abs(cosine)))
    return np.array(shares)
