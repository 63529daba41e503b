"""Figures: a function per figure of the paper, on tidy frames; png, svg and the numbers in it (csv).

A plot draws all it is given: a diverged run sits, marked, on the ℓ0 line. One style per method everywhere.
"""

import itertools

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns

from proxies_lib.science import analysis

BLUE, RED = ("#3b6fb6", "o"), ("#c44e52", "X")  # the default, and the same without qk-layernorm

METHODS = {  # color, marker; several names of one configuration share them
    **dict.fromkeys(
        (
            "with qk-layernorm",
            "default",
            "decay, z-loss",
            "warm-up 5 %",
            "independent decay 1e-4",
            "decay 1e-4",
            "by width",
            "standard",
            "1 × steps",
            "batch × 1",
            "qk-layernorm per head",
            "ε = 1e-08",
        ),
        BLUE,
    ),
    **dict.fromkeys(
        (
            "without qk-layernorm",
            "by width, no qk-layernorm",
            "standard, no qk-layernorm",
            "softmax attention",
        ),
        RED,
    ),
    "no decay, no z-loss": ("#6b6b6b", "v"),
    **dict.fromkeys(("no decay, z-loss", "no decay"), ("#3f9c9a", "D")),
    "decay, no z-loss": ("#d99a2b", "s"),
    "matched decay, no z-loss": ("#9b5de5", "P"),
    "warm-up 0.05 %": ("#d8b365", "v"),
    "warm-up 0.5 %": ("#bf812d", "<"),
    "warm-up 10 %": ("#5ab4ac", ">"),
    "warm-up 25 %": ("#01665e", "^"),
    "coupled decay 0.1": ("#e07a3f", "s"),
    "a tenth of matched decay": ("#a58bd0", "<"),
    "matched decay": ("#5e3c99", ">"),
    "by depth": ("#2f9e6e", "^"),
    "by depth, no qk-layernorm": ("#e58f65", "P"),
    "jointly": ("#8e5bbf", "s"),
    "µParam (simple)": ("#e9a03b", "^"),
    "µParam (simple), no qk-layernorm": ("#a65628", "v"),
    "µParam (intermediate)": ("#c06fb0", "s"),
    "µParam (full)": ("#6a3d8f", "D"),
    "µParam (full), no qk-layernorm": ("#d45087", "P"),
    "LR × RMS": ("#4f8f8b", "p"),
    "logits / d_head": ("#46a35e", "<"),
    "logits / d_head, no qk-layernorm": ("#93a02a", ">"),
    "κ": ("#7a5195", "o"),
    "bigram": ("#6b6b6b", "_"),
    "ε = 1e-15": ("#35b779", "^"),
    "ε = 1e-06": ("#e0b000", "v"),
    "ε = 1e-05": ("#f08a24", "<"),
    "ε = 0.0001": ("#d9482b", ">"),
    "ε = 0.001": ("#8b1a1a", "X"),
    "0.5 × steps": ("#9cc5a1", "<"),
    "2 × steps": ("#49796b", ">"),
    "batch × 2": ("#e3a857", "s"),
    "batch × 4": ("#b5562b", "D"),
    "qk-layernorm whole": ("#b5428c", "s"),
    "squared_relu attention": ("#3a9d5d", "^"),
    "without the burst": BLUE,
    "with the burst": RED,
    "ε = 1e-8, no burst": BLUE,
    "ε = 1e-3, no burst": ("#8b1a1a", "o"),
    "ε = 1e-8": ("#3b6fb6", "X"),
    "ε = 1e-3": ("#8b1a1a", "X"),
    "ε = 1e-3, batch × 8": ("#e0b000", "X"),
    "LR / 3": ("#35b779", "v"),
    "ε = 0": ("#4f8f8b", "X"),
    "ε from 1e-3 to 1e-8": ("#6a3d8f", "X"),
    "batch / 2": ("#e3a857", "s"),
    "β = 0.8, 0.9": ("#c06fb0", "^"),
    "embedding gradient / 10": ("#a65628", "P"),
    "rewind and skip": ("#2f9e6e", "D"),
    "every batch new": ("#3b6fb6", "v"),
    "8 batches, again and again": ("#8e5bbf", "v"),
    "one batch, again and again": ("#c44e52", "v"),
    **{
        f"{name}, loss × {scale}": (color, marker)
        for name, color in (
            ("float16", "#46a35e"),
            ("float8_e5m2", "#e07a3f"),
            ("float8_e4m3fn", "#5e3c99"),
        )
        for scale, marker in ((1, "<"), (64, ">"))
    },
}

LR_AXIS, LOSS_AXIS, N_AXIS = (
    "peak learning rate",
    "final validation loss (nats/token)",
    "N, parameters of the blocks",
)

sns.set_theme(
    "notebook",
    style="ticks",
    rc={
        "axes.grid": True,
        "grid.alpha": 0.3,
        "svg.hashsalt": "proxies",
        "figure.dpi": 100,
        "savefig.dpi": 150,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        "legend.fontsize": 9,
    },
)


def size_colors(sizes) -> dict:
    """A color per N, light for small to dark for large, the same in every panel."""
    sizes = sorted(set(sizes))
    return dict(zip(sizes, sns.color_palette("flare", len(sizes)), strict=True))


def count(n: int) -> str:
    """24,576 → 25K; 2,359,296 → 2.4M."""
    for unit, word in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if n >= unit:
            return f"{n / unit:.2g}{word}" if n < 100 * unit else f"{n / unit:.0f}{word}"
    return str(n)


def reference(ax, level: float, text: str, x: float):
    """A dotted reference line with its name at the axes fraction `x`."""
    ax.axhline(level, color="0.4", ls=":", lw=1)
    name = ax.annotate(
        text,
        (x, level),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        fontsize=8,
        color="0.4",
        textcoords="offset points",
        ha="left" if x < 0.5 else "right",
    )
    name.set_in_layout(False)


def _mean_and_band(ax, rest: pd.DataFrame, x: str, color, marker, label, dashed=False):
    """Mean over seeds with the band from least to largest; × where runs diverged."""
    rest = rest.sort_values(x)
    ax.plot(
        rest[x],
        rest["loss"],
        "--" if dashed else "-",
        marker=marker,
        ms=4.5,
        color=color,
        label=label,
    )
    ax.fill_between(rest[x], rest["low"], rest["high"], color=color, alpha=0.2, lw=0)
    broken = rest[rest["n_diverged"] > 0]
    ax.plot(broken[x], broken["high"], "x", ms=9, mew=2, color=color)


def loss_against_lr(ax, curves: pd.DataFrame, by: str = "n_params", sizes=None):
    """Final loss against peak LR, a curve per N or per method: mean over seeds, band from least to largest.

    `sizes` are all N of the figure, so that a size has the same color in every panel.
    """
    colors = size_colors(curves["n_params"] if sizes is None else sizes)
    for value, rest in curves.groupby(by, sort=by == "n_params"):
        color, marker = (colors[value], "o") if by == "n_params" else METHODS[value]
        _mean_and_band(
            ax, rest, "lr", color, marker, f"N = {count(value)}" if by == "n_params" else value
        )
    reference(ax, curves["init_loss"].mean(), "ℓ₀, loss at initialization", 0.02)
    ax.set(xscale="log", xlabel=LR_AXIS, ylabel=LOSS_AXIS)


def _size_ticks(ax, sizes):
    ax.set_xscale("log")
    ax.set_xticks(sorted(set(sizes)), [count(n) for n in sorted(set(sizes))], minor=False)
    ax.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    ax.set_xlabel(N_AXIS)


def sensitivity_against_n(ax, sensitivity: pd.DataFrame):
    """LR sensitivity S against N, a curve per method, with its interval over seeds."""
    for method, rest in sensitivity.groupby("method", sort=False):
        color, marker = METHODS[method]
        rest = rest.sort_values("n_params")
        ax.plot(rest["n_params"], rest["S"], "-", marker=marker, color=color, label=method)
        ax.fill_between(
            rest["n_params"], rest["lo"].clip(lower=0), rest["hi"], color=color, alpha=0.15, lw=0
        )
    _size_ticks(ax, sensitivity["n_params"])
    ax.set_ylabel("LR sensitivity S (nats)")


def figure0(curves: pd.DataFrame, sensitivity: pd.DataFrame, window) -> plt.Figure:
    """The method in one picture: a loss curve, its best loss ℓ*, ℓ0, and S as the mean gap over the window."""
    fig, ax = plt.subplots(figsize=(7, 4.2), layout="constrained")
    loss_against_lr(ax, curves)
    inside = curves[curves["lr"].between(min(window) * 0.99, max(window) * 1.01)]
    best, s = inside["loss"].min(), sensitivity["S"].iloc[0]
    ax.fill_between(
        inside["lr"],
        best,
        inside["loss"],
        color="0.6",
        alpha=0.35,
        lw=0,
        label="gap to ℓ* over the window",
    )
    ax.axhline(best, color="0.2", lw=1, ls="--", label="ℓ*, best loss")
    ax.axhline(best + s, color="#3b6fb6", lw=1, label=f"ℓ* + S, S = {s:.2f} nats")
    ax.legend()
    return fig


def figure_sweep(
    curves: pd.DataFrame, sensitivities: dict[str, pd.DataFrame] | None = None
) -> plt.Figure:
    """The paper's main layout: LR→loss above, a panel per method and a curve per N; N→S below, a panel per LR window.

    Figures 1, 3, 5, 6, 7, 8, E.2, E.4, E.10.
    """
    methods = list(dict.fromkeys(curves["method"]))
    rows = 2 if sensitivities else 1
    width = max(10, 3.3 * len(methods))
    fig = plt.figure(figsize=(width, 3.9 * rows), layout="constrained")
    parts = fig.subfigures(rows, 1, squeeze=False)[:, 0]
    above = parts[0].subplots(1, len(methods), sharey=True, squeeze=False)[0]
    for ax, method in zip(above, methods, strict=True):
        mine = curves[curves["method"] == method]
        loss_against_lr(ax, mine, sizes=curves["n_params"])
        ax.set_title(method)
        ax.set_ylabel(LOSS_AXIS if ax is above[0] else "")
        if ax is above[0] or set(mine["n_params"]) != set(
            curves.loc[curves["method"] == methods[0], "n_params"]
        ):
            ax.legend()
    if sensitivities:
        below = parts[1].subplots(1, len(sensitivities), sharey=True, squeeze=False)[0]
        for ax, (title, frame) in zip(below, sensitivities.items(), strict=True):
            sensitivity_against_n(ax, frame)
            ax.set_title(title)
            ax.set_ylabel(ax.get_ylabel() if ax is below[0] else "")
        below[0].set_ylim(bottom=0)
        below[-1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return fig


def figure_by_size(curves: pd.DataFrame) -> plt.Figure:
    """LR→loss, a panel per N and a curve per method: Figures E.5, E.6, E.7, E.8, E.9, E.11, E.14."""
    sizes = sorted(curves["n_params"].unique())
    fig, axes = plt.subplots(
        1,
        len(sizes),
        figsize=(max(6.5, 4.6 * len(sizes)), 4),
        layout="constrained",
        sharey=True,
        squeeze=False,
    )
    for ax, n in zip(axes[0], sizes, strict=True):
        loss_against_lr(ax, curves[curves["n_params"] == n], by="method")
        ax.set_title(f"N = {count(n)}")
        ax.set_ylabel(LOSS_AXIS if n == sizes[0] else "")
    axes[0, 0].legend()
    return fig


def figure_ratio(
    simulated: pd.DataFrame, rejections: pd.DataFrame, b1: float, b2: float
) -> plt.Figure:
    """Fig. P2.ratio: simulated distributions of Adam's ratio r for several ρ at (β1, β2); beside them, over β1 and β2,
    the share ρ of time-correlated gradient from which on the dip test finds more than one mode."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    shares = sorted(simulated["rho"].unique())
    for rho, color in zip(shares, sns.color_palette("viridis_r", len(shares)), strict=True):
        mine = simulated[simulated["rho"] == rho]
        left.stairs(
            mine["density"],
            [*mine["left"], mine["right"].iloc[-1]],
            color=color,
            label=f"ρ = {rho:g}",
        )
    left.set(xlabel="r = m̂ / √v̂", ylabel="density", title=f"β = ({b1:g}, {b2:g})")
    left.legend(
        title="share of the gradient's variance\nthat all steps have in common",
        title_fontsize=8,
        fontsize=8,
        ncols=2,
        loc="upper center",
    )
    grid = rejections.pivot(index="b1", columns="b2", values="rho")
    sns.heatmap(
        grid,
        annot=True,
        fmt=".2f",
        cmap="viridis_r",
        ax=right,
        cbar_kws={"label": "smallest ρ that is rejected"},
    )
    right.set(xlabel="β2", ylabel="β1", title="the dip test finds two modes from here on")
    right.invert_yaxis()
    return fig


def figure_histograms(histograms: pd.DataFrame, titles: dict) -> plt.Figure:
    """Figs P2.histograms and P2.batches: distributions of r or Δ: a row per `row`, a column per `column`, a color per
    `method`, seeds averaged. Heights are shares of a bin on a log axis, so that rare large updates are seen."""
    rows, columns = (
        list(dict.fromkeys(histograms["row"])),
        list(dict.fromkeys(histograms["column"])),
    )
    fig, axes = plt.subplots(
        len(rows),
        len(columns),
        figsize=(max(7, 3.4 * len(columns)), 2.3 * len(rows)),
        layout="constrained",
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for (i, row), (j, column) in itertools.product(enumerate(rows), enumerate(columns)):
        mine = histograms[(histograms["row"] == row) & (histograms["column"] == column)]
        for method, rest in mine.groupby("method", sort=False):
            mean = rest.groupby(["left", "right"], as_index=False)["share"].mean()
            edges = [*mean["left"], mean["right"].iloc[-1]]
            axes[i, j].stairs(mean["share"], edges, color=METHODS[method][0], lw=1.5, label=method)
        axes[i, j].set_yscale("log")
        axes[0, j].set_title(titles.get(column, column), fontsize=10)
        axes[i, 0].set_ylabel(f"{row}\nshare of a bin", fontsize=9)
    axes[-1, 0].set_xlabel("r = m̂ / √v̂, or update Δ")
    axes[0, 0].legend(fontsize=8)
    return fig


def figure_dots(values: pd.DataFrame, quantities: dict, methods: list) -> plt.Figure:
    """Figs P2.remedies and P2.formats: a panel per quantity (column → label, axis scale), a line per method: the seeds,
    their mean and its interval; dotted, the mean of the first."""
    fig, axes = plt.subplots(
        1,
        len(quantities),
        figsize=(2.4 + 3.2 * len(quantities), 1.2 + 0.36 * len(methods)),
        layout="constrained",
        sharey=True,
        squeeze=False,
    )
    for ax, (name, (label, scale)) in zip(axes[0], quantities.items(), strict=True):
        for y, method in enumerate(methods):
            color, marker = METHODS[method]
            mine = values.loc[values["method"] == method, name].to_numpy(float)
            mean, lo, hi = analysis.interval(mine)
            ax.plot(mine, np.full(len(mine), y), marker, ms=5, color=color, alpha=0.6)
            ax.plot([lo, hi], [y, y], "-", lw=1.2, color=color)
            ax.plot(mean, y, "|", ms=14, mew=2, color=color)
        ax.axvline(
            values.loc[values["method"] == methods[0], name].mean(), color="0.4", ls=":", lw=1
        )
        ax.set(xlabel=label, xscale=scale, yticks=range(len(methods)))
    axes[0, 0].set_yticklabels(methods)
    axes[0, 0].invert_yaxis()
    return fig


def trajectories(ax, observed: pd.DataFrame, y: str):
    """`y` against step, colored by method: a faint line per run (seed), their median bold; a diverged run ends in ×."""
    for method, rest in observed.groupby("method", sort=False):
        color, _ = METHODS[method]
        for _, run in rest.groupby("key"):
            ax.plot(run["step"], run[y], color=color, lw=0.7, alpha=0.4)
            if run["diverged"].any():
                ax.plot(run["step"].iloc[-1:], run[y].iloc[-1:], "x", ms=9, mew=2, color=color)
        ax.plot(rest.groupby("step")[y].median(), color=color, lw=1.8, label=method)


def figure_trajectories(
    observed: pd.DataFrame, quantities: dict, titles: dict, lines: dict | None = None, marks=()
) -> plt.Figure:
    """Quantities against step: a row per quantity, a column per `point`, a line per run. Figures 2, 4, 12, 13, E.1, E.15.

    `quantities` maps a column to its label and axis scale, `titles` a point to its title, `lines` a column to a
    reference level and its name; `marks` are steps.
    """
    fig, axes = plt.subplots(
        len(quantities),
        len(titles),
        figsize=(max(7, 4.2 * len(titles)), 2.8 * len(quantities)),
        layout="constrained",
        sharex="col",
        sharey="row",
        squeeze=False,
    )
    for column, (point, title) in enumerate(titles.items()):
        mine = observed[observed["point"] == point]
        axes[0, column].set_title(title)
        axes[-1, column].set_xlabel("step")
        for ax, (name, (label, scale)) in zip(axes[:, column], quantities.items(), strict=True):
            trajectories(ax, mine, name)
            ax.set_yscale(scale)
            ax.set_ylabel(label if not column else "")
            for step in marks:
                ax.axvline(step, color="0.4", ls=":", lw=1)
            if name in (lines or {}):
                reference(ax, *lines[name], 1.0)
        if not column or set(mine["method"]) != set(
            observed.loc[observed["point"] == next(iter(titles)), "method"]
        ):
            axes[0, column].legend()
    return fig


def points_of(observed: pd.DataFrame) -> dict:
    """Titles for `figure_trajectories` of runs picked by `analysis.at`: N and peak LR of every point."""
    first = observed.drop_duplicates("point").sort_values("point")
    return {
        row.point: f"N = {count(row.n_params)}, peak LR {row.lr:g}" for row in first.itertuples()
    }


def figure_best_loss(best: pd.DataFrame, fits: pd.DataFrame) -> plt.Figure:
    """Fig. E.3: best loss over LR against N, a series each; dashed, its line through all but the largest size."""
    fig, ax = plt.subplots(figsize=(7, 4.4), layout="constrained")
    for method, rest in best.groupby("method", sort=False):
        color, marker = METHODS[method]
        mean = rest.groupby("n_params")["best_loss"].agg(["mean", "min", "max"])
        ax.plot(mean.index, mean["mean"], marker, color=color, label=method)
        ax.vlines(mean.index, mean["min"], mean["max"], color=color, lw=1.5)
        fit, ends = fits[fits["method"] == method], np.array([mean.index.min(), mean.index.max()])
        ax.plot(
            ends,
            fit["slope"].mean() * np.log10(ends) + fit["offset"].mean(),
            "--",
            color=color,
            lw=1,
        )
    _size_ticks(ax, best["n_params"])
    ax.tick_params(axis="x", rotation=45)
    ax.set_ylabel("best validation loss over LR (nats/token)")
    ax.legend()
    return fig


def figure9(probed: dict, predicted: dict, quantity: str = "max_attention_logit/0") -> plt.Figure:
    """Fig. 9: max attention logit of block 0 against N at a probe step, a color per LR, one panel per probe.

    Lines are the fits, bands their prediction intervals, open points the held-out size, × runs that failed to train.
    """
    fig, axes = plt.subplots(
        1,
        len(probed),
        figsize=(6.2 * len(probed), 4.8),
        layout="constrained",
        sharey=True,
        squeeze=False,
    )
    for ax, (title, points) in zip(axes[0], probed.items(), strict=True):
        fits = predicted[title]
        colors = dict(
            zip(
                sorted(points["lr"].unique()),
                sns.color_palette("viridis_r", points["lr"].nunique()),
                strict=True,
            )
        )
        for lr, rest in points.groupby("lr"):
            fit = fits[np.isclose(fits["lr"], lr)].sort_values("n_params")
            ax.plot(fit["n_params"], fit["predicted"], color=colors[lr], lw=1.2)
            ax.fill_between(
                fit["n_params"], fit["lo"], fit["hi"], color=colors[lr], alpha=0.12, lw=0
            )
            for (held, failed), some in rest.groupby(["held_out", "failed"]):
                ax.plot(
                    some["n_params"],
                    some[quantity],
                    "x" if failed else "o",
                    ms=6 if failed else 5,
                    ls="",
                    color=colors[lr],
                    mfc="none" if held else colors[lr],
                    mew=2 if failed and held else 1.2,
                )
            ax.plot([], [], "o", color=colors[lr], label=f"LR {lr:g}")
        reference(ax, 1e4, "10⁴", 0.02)
        ax.set_yscale("log")
        _size_ticks(
            ax, fits["n_params"] if len(fits["n_params"].unique()) < 8 else points["n_params"]
        )
        ax.set_title(title)
    axes[0, 0].set_ylabel("max |attention logit|, block 0")
    axes[0, 0].plot([], [], "x", color="0.3", label="failed to train")
    axes[0, 0].plot([], [], "o", color="0.3", mfc="none", label="held out")
    axes[0, -1].legend(
        *axes[0, 0].get_legend_handles_labels(), loc="upper left", bbox_to_anchor=(1.0, 1.0)
    )
    return fig


def figure10(table: pd.DataFrame, bigram: pd.DataFrame, logits: pd.DataFrame) -> plt.Figure:
    """Fig. 10: final loss against κ with the bigram model's as reference; beside it the largest logit measured."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    color, marker = METHODS["κ"]
    left.plot(table["kappa"], table["loss"], marker, color=color, label="a run")
    left.plot(
        *table.groupby("kappa")["loss"].mean().reset_index().to_numpy().T,
        color=color,
        label="mean of the seeds",
    )
    reference(left, bigram["loss"].mean(), "bigram: the same network without blocks", 1.0)
    left.set(xscale="log", xlabel="κ", ylabel=LOSS_AXIS)
    right.plot(
        logits["kappa"],
        logits["allowed"],
        "--",
        color="0.4",
        lw=1,
        label="κ √d_head, the most the map allows",
    )
    right.plot(
        logits["kappa"],
        logits["max_attention_logit/0"],
        marker,
        color=color,
        label="measured, block 0, whole training",
    )
    right.set(xscale="log", yscale="log", xlabel="κ", ylabel="max |attention logit|")
    left.legend()
    right.legend()
    return fig


def figure_rms(
    panels: dict[str, pd.DataFrame], y: str, label: str, eps: float | None = None
) -> plt.Figure:
    """Figures 11, C.1, E.12: an RMS against N (a line per LR), against LR (per N), and against the block (per LR).

    `panels` maps "n_params", "lr" and "block" to frames with that column, `y` and the column of the lines, `line`.
    """
    names = {"n_params": N_AXIS, "lr": LR_AXIS, "block": "block, deepest model"}
    fig, axes = plt.subplots(
        1, len(panels), figsize=(4.8 * len(panels), 4), layout="constrained", sharey=True
    )
    for ax, (x, frame) in zip(axes, panels.items(), strict=True):
        by_size = frame["line_of"].iloc[0] == "n_params"
        colors = (
            size_colors(frame["line"])
            if by_size
            else dict(
                zip(
                    sorted(frame["line"].unique()),
                    sns.color_palette("viridis_r", frame["line"].nunique()),
                    strict=True,
                )
            )
        )
        for value, rest in frame.groupby("line"):
            each = rest.groupby(x)[y].agg(["mean", "min", "max"])
            ax.plot(
                each.index,
                each["mean"],
                "-o",
                ms=4,
                color=colors[value],
                label=f"N = {count(value)}" if by_size else f"LR {value:g}",
            )
            ax.fill_between(
                each.index, each["min"], each["max"], color=colors[value], alpha=0.2, lw=0
            )
        ax.set_yscale("log")
        ax.set_xlabel(names[x])
        if x == "n_params":
            _size_ticks(ax, frame[x])
        elif x == "lr":
            ax.set_xscale("log")
        else:
            ax.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
        if eps:
            reference(ax, eps, f"ε = {eps:g}", 0.02)
        if x != "n_params":  # its lines are those of the last panel
            ax.legend(
                fontsize=8,
                **({} if by_size else {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}),
            )
    axes[0].set_ylabel(label)
    return fig


def figure_e11(curves: pd.DataFrame, logits: pd.DataFrame) -> plt.Figure:
    """Fig. E.11: LR→loss above, LR→largest attention logit of block 0 below, a column per N, a color per method."""
    sizes = sorted(curves["n_params"].unique())
    fig, axes = plt.subplots(
        2,
        len(sizes),
        figsize=(max(6.5, 4.6 * len(sizes)), 7),
        layout="constrained",
        sharex=True,
        sharey="row",
        squeeze=False,
    )
    for (above, below), n in zip(axes.T, sizes, strict=True):
        loss_against_lr(above, curves[curves["n_params"] == n], by="method")
        above.set(title=f"N = {count(n)}", xlabel="")
        for method, rest in logits[logits["n_params"] == n].groupby("method", sort=False):
            color, marker = METHODS[method]
            below.plot(rest["lr"], rest["max_attention_logit/0"], marker, color=color, ms=4.5)
            below.plot(rest.groupby("lr")["max_attention_logit/0"].median(), color=color)
        below.set(
            xscale="log", yscale="log", xlabel=LR_AXIS, ylabel="max |attention logit|, block 0"
        )
        reference(below, 1e4, "10⁴", 0.02)
    for ax in axes[:, 1:].flat:
        ax.set_ylabel("")
    axes[0, 0].legend()
    return fig


def figure_e13(observed: pd.DataFrame, gradient: str, update: str, eps: float) -> plt.Figure:
    """Fig. E.13: gradient RMS and unscaled update RMS against step, a row per N, a column per LR."""
    sizes, lrs = sorted(observed["n_params"].unique()), sorted(observed["lr"].unique())
    fig, axes = plt.subplots(
        len(sizes),
        len(lrs),
        figsize=(2.6 * len(lrs), 2.2 * len(sizes)),
        layout="constrained",
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for i, n in enumerate(sizes):
        for j, lr in enumerate(lrs):
            ax, mine = axes[i, j], observed[(observed["n_params"] == n) & (observed["lr"] == lr)]
            for y, color, name in (
                (update, "#2f9e6e", "update RMS"),
                (gradient, "#3b6fb6", "gradient RMS"),
            ):
                for k, (_, run) in enumerate(mine.groupby("key")):
                    ax.plot(run["step"], run[y], color=color, lw=1, label=None if k else name)
            reference(ax, eps, f"ε = {eps:g}", 0.02)
            ax.set_yscale("log")
            ax.set_title(f"N = {count(n)}, LR {lr:g}", fontsize=9)
    axes[0, 0].legend(fontsize=8)
    for ax in axes[-1]:
        ax.set_xlabel("step")
    return fig
