"""Section 08: gradients that shrink towards AdamW's ε, and updates that vanish there."""

import numpy as np
import pandas as pd

from proxies_lib.science import analysis
from proxies_lib.science.analysis import where
from proxies_lib.science.checks.measures import (
    FORCED,
    GRADIENT,
    KEY_GRADIENT,
    UPDATE,
    log_slopes,
    notes,
)
from proxies_lib.science.checks.thresholds import FAR_FROM_EPS, SMALL
from proxies_lib.science.claims import check
from proxies_lib.science.protocol import Study


def adamw_epsilon(table: pd.DataFrame, curves: pd.DataFrame, study: Study) -> list[dict]:
    """Figures 11, 12, 13, C.1, E.12, E.13 and E.15 (P1, section 3.4, appendices C and E)."""
    swept = where(table, method="default")
    deep = where(table, method="by depth")
    ladder = where(table, method=[m for m in table["method"].unique() if m.startswith("ε")])
    return [
        *_gradient_rms("11", swept, curves, GRADIENT, "first MLP layer of block 0"),
        *_gradient_rms("E.12", swept, curves, KEY_GRADIENT, "key projection of block 0"),
        *_block_output(swept, deep, curves),
        *_epsilon_ladder(ladder, curves, study.base.hparams.eps),
    ]


def _gradient_rms(
    figure: str, swept: pd.DataFrame, curves: pd.DataFrame, name: str, layer: str
) -> list[dict]:
    """Figures 11 and E.12: the logged quantity `name`, of a `layer`."""
    largest = swept["n_params"].max()
    end = analysis.end_means(swept, curves, [name])
    return [
        check(
            f"{figure}-n",
            figure,
            "Gradient RMS falls as N grows.",
            f"slope of log10 RMS per decade of N, {layer}, mean over LRs",
            log_slopes(end, name),
            below=0.0,
        ),
        check(
            f"{figure}-lr",
            figure,
            "Gradient RMS falls as the LR grows.",
            f"slope of log10 RMS per decade of LR, {layer}, N {largest:,}",
            log_slopes(where(end, n_params=largest), name, "lr"),
            below=0.0,
        ),
    ]


def _block_output(swept: pd.DataFrame, deep: pd.DataFrame, curves: pd.DataFrame) -> list[dict]:
    """Figure C.1, of block 2 or the last one that all models have."""
    largest = swept["n_params"].max()
    block = min(2, swept["n_layers"].min() - 1)
    name = f"block_rms/{block}"
    end = analysis.end_means(swept, curves, [name])
    return [
        check(
            "C1-n",
            "C.1",
            "The RMS of a block's output does not change with N.",
            f"|slope| of log10 RMS per decade of N, block {block}, mean over LRs",
            np.abs(log_slopes(end, name)),
            below=0.1,
        ),
        check(
            "C1-lr",
            "C.1",
            "The RMS of a block's output grows with the LR.",
            f"slope of log10 RMS per decade of LR, block {block}, N {largest:,}",
            log_slopes(where(end, n_params=largest), name, "lr"),
            above=0.0,
        ),
        check(
            "C1-depth",
            "C.1",
            "The RMS of a block's output grows with depth.",
            "slope of log10 RMS per decade of the block's number, deepest model",
            log_slopes(_by_block(deep, curves), "rms", "block"),
            above=0.0,
        ),
    ]


def _by_block(deep: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """Of the deepest model, a row per run and block, counted from 1: seed, lr, block, rms."""
    deepest = where(deep, n_layers=deep["n_layers"].max())
    names = [f"block_rms/{i}" for i in range(deepest["n_layers"].iloc[0])]
    end = analysis.end_means(deepest, curves, names)
    blocks = end.melt(["seed", "lr"], names, "block", "rms")
    return blocks.assign(block=blocks["block"].str.removeprefix("block_rms/").astype(int) + 1)


def _epsilon_ladder(ladder: pd.DataFrame, curves: pd.DataFrame, eps: float) -> list[dict]:
    """Figures 12, 13, E.13 and E.15: the same training at values of ε round the default `eps`."""
    end = analysis.end_means(ladder, curves, [GRADIENT, UPDATE])[["key", GRADIENT, UPDATE]]
    runs = analysis.with_loss(ladder).merge(end, on="key")
    by_eps = {value: rows.set_index("seed") for value, rows in runs.groupby("eps")}
    default, smallest, raised = by_eps[eps], by_eps[min(by_eps)], by_eps[max(by_eps)]
    at_1e6 = by_eps[1e-6]
    ratio = runs[GRADIENT] / runs["eps"]
    near = runs.assign(ratio=ratio)[ratio < 1e3]  # farther away ε changes nothing
    # Where gradients stay far above ε, its value cannot matter: nothing to test.
    far = _far_from_eps(default, "ε", f"ε = {eps:g}")
    far_from_1e6 = _far_from_eps(at_1e6, "1e-6", "it")
    forced = f"forced: ε {max(by_eps):g} against {min(by_eps):g}"
    return [
        check(
            "12-loss",
            "12",
            "A smaller ε improves the loss where gradients have come down to it.",
            f"final loss at ε {eps:g} − at ε {min(by_eps):g}, nats",
            default["loss"] - smallest["loss"],
            above=0.0,
            unless=far,
        ),
        check(
            "12-gradient",
            "12",
            "A smaller ε prevents the collapse of the gradient RMS.",
            f"gradient RMS at ε {min(by_eps):g} / at ε {eps:g}",
            smallest[GRADIENT] / default[GRADIENT],
            above=1.1,
            unless=far,
        ),
        check(
            "12-forced",
            "12",
            "A smaller ε improves the loss where gradients have come down to it.",
            f"final loss, {forced}, nats",
            raised["loss"] - smallest["loss"],
            above=0.0,
            note=FORCED,
        ),
        check(
            "13-update",
            "13",
            "Updates shrink once the gradient RMS is below ε.",
            f"update RMS, first MLP layer of block 0, ratio, {forced}",
            raised[UPDATE] / smallest[UPDATE],
            below=0.5,
            note=FORCED,
        ),
        check(
            "E13-update",
            "E.13",
            "The update falls where the gradient RMS nears ε.",
            "slope of log10 update RMS per decade of gradient RMS / ε, where that is below 1e3",
            log_slopes(near, UPDATE, "ratio"),
            above=0.0,
            note=notes(FORCED, _some_seeds_only(near)),
        ),
        check(
            "E15-diverges",
            "E.15",
            "ε = 1e-6 diverges where 1e-8 trains.",
            f"final loss at ε 1e-6 − at ε {eps:g}, nats",
            at_1e6["loss"] - default["loss"],
            above=SMALL,
            unless=far_from_1e6,
        ),
    ]


def _far_from_eps(runs: pd.DataFrame, unit: str, name: str) -> str:
    """Why runs of one ε cannot show its effect, their gradients being far above it, or ""."""
    multiple = float((runs[GRADIENT] / runs["eps"]).median())
    if multiple < FAR_FROM_EPS:
        return ""
    return f"gradient RMS ends at {multiple:.2g} × {unit} here, too far above {name}"


def _some_seeds_only(near: pd.DataFrame) -> str:
    """A note on values of ε that are near the gradients in some seeds only, or ""."""
    seeds, of_eps = near["seed"].nunique(), near.groupby("eps")["seed"].nunique()
    parts = [f"ε = {eps:g} in {n} of {seeds} seeds" for eps, n in of_eps.items() if n < seeds]
    return f"counted: {', '.join(parts)}" if parts else ""
