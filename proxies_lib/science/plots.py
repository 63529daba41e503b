"""Figures: a function per layout, tidy frames in, a matplotlib figure out; nothing is written.

A plot draws all that it is given: a diverged run sits, marked ×, on the ℓ0 line. A method has one
color and marker in every figure (styles.py); parts of figures are in canvas.py.
"""

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns

from proxies_lib.science import analysis, canvas, styles
from proxies_lib.science.styles import (
    ARROWS,
    ATTENTION_LOGIT,
    BLUE,
    GRAY,
    LOGIT_AXIS,
    LOSS_AXIS,
    LR_AXIS,
    N_AXIS,
    RATIO_AXIS,
)

# Curves on a given axis.


def loss_against_lr(ax, curves: pd.DataFrame, by: str = "n_params", sizes=None):
    """Final loss against peak LR, a curve per N or per method.

    Mean over seeds, band from the least to the largest seed, × where runs diverged. `sizes` are
    all N of the figure, so that a size has the same color in every panel.
    """
    by_size = by == "n_params"
    colors = styles.size_colors(curves["n_params"] if sizes is None else sizes)
    dashes = styles.dashes_of(curves[by])
    for value, curve in curves.groupby(by, sort=by_size):
        curve = curve.sort_values("lr")
        color, marker = (colors[value], "o") if by_size else styles.style_of(value)
        ax.plot(
            curve["lr"],
            curve["loss"],
            ls="-" if by_size else dashes[value],
            marker=marker,
            ms=4.5,
            color=color,
            label=f"N = {styles.count(value)}" if by_size else styles.shown(value),
        )
        ax.fill_between(curve["lr"], curve["low"], curve["high"], color=color, alpha=0.2, lw=0)
        broken = curve[curve["n_diverged"] > 0]
        ax.plot(broken["lr"], broken["high"], "x", ms=9, mew=2, color=color)
    canvas.reference_init_loss(ax, curves)
    canvas.log_lr_axis(ax)
    ax.set_ylabel(LOSS_AXIS)


def note_on_curves(fig, curves: pd.DataFrame):
    canvas.note(
        fig, f"Mean of {styles.seeds(curves)}; band: least to largest seed{canvas.crosses(curves)}"
    )


def sensitivity_against_n(ax, sensitivity: pd.DataFrame):
    """LR sensitivity S against N, a curve per method, with its interval over seeds.

    Methods stand side by side at each N: where they agree, intervals on one spot would hide each
    other.
    """
    sizes = sensitivity["n_params"]
    methods = list(dict.fromkeys(sensitivity["method"]))
    dashes = styles.dashes_of(methods)
    # Of neighbors: 2 % of the axis, which one size alone does not span.
    spread = (sizes.max() / sizes.min() if sizes.nunique() > 1 else 10.0) ** 0.02
    for i, method in enumerate(methods):
        curve = sensitivity[sensitivity["method"] == method].sort_values("n_params")
        color, marker = styles.style_of(method)
        x = curve["n_params"] * spread ** (i - (len(methods) - 1) / 2)
        ax.plot(
            x, curve["S"], ls=dashes[method], marker=marker, color=color, label=styles.shown(method)
        )
        ax.vlines(x, curve["lo"].clip(lower=0), curve["hi"], color=color, lw=1.2)
    canvas.log_size_axis(ax, sizes)
    ax.set_ylabel("LR sensitivity S (nats)")


def trajectories(ax, observed: pd.DataFrame, y: str, dashes: dict | None = None):
    """`y` against step, colored by method: a faint line per run, their median bold.

    A diverged run ends in ×.
    """
    dashes = dashes or styles.dashes_of(observed["method"])
    for method, runs in observed.groupby("method", sort=False):
        color, _ = styles.style_of(method)
        for _, run in runs.groupby("key"):
            ax.plot(run["step"], run[y], color=color, lw=0.7, alpha=0.4)
            if run["diverged"].any():
                ax.plot(run["step"].iloc[-1:], run[y].iloc[-1:], "x", ms=9, mew=2, color=color)
        median = runs.groupby("step")[y].median()
        ax.plot(median, color=color, ls=dashes[method], lw=1.8, label=styles.shown(method))


# Figures.


def figure0(curves: pd.DataFrame, sensitivity: pd.DataFrame, window) -> plt.Figure:
    """The method in one picture: a loss curve, its best loss ℓ*, ℓ0, and S.

    S is the mean gap to ℓ* over the `window` of learning rates.
    """
    fig = canvas.new_figure(4.6)
    ax = fig.subplots()
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
    ax.axhline(best + s, color=BLUE[0], lw=1, label=f"ℓ* + S, S = {s:.2f} nats")
    canvas.legend_above(fig, [ax])
    note_on_curves(fig, curves)
    return fig


def figure_sweep(
    curves: pd.DataFrame, sensitivities: dict[str, pd.DataFrame] | None = None
) -> plt.Figure:
    """The paper's main layout: Figures 1, 3, 5, 6, 7, 8, E.2, E.4, E.10, E.14.

    Above, LR→loss: a panel per method, a curve per N. Below, N→S: a panel per LR window.
    """
    methods = list(dict.fromkeys(curves["method"]))
    rows = -(-len(methods) // canvas.columns_of(len(methods)))
    heights = [0.7 + 2.4 * rows, *([3.4] if sensitivities else [])]
    fig = canvas.new_figure(sum(heights))
    parts = fig.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]

    above = canvas.side_by_side(parts[0], len(methods))
    for ax, method in zip(above, methods, strict=True):
        loss_against_lr(ax, curves[curves["method"] == method], sizes=curves["n_params"])
        ax.set_title(styles.shown(method))
    canvas.label_outer(above, LR_AXIS, LOSS_AXIS)
    sizes = sorted(curves["n_params"].unique())
    canvas.legend_above(parts[0], above, [f"N = {styles.count(n)}" for n in sizes])
    note_on_curves(parts[0], curves)

    if sensitivities:
        below = canvas.side_by_side(parts[1], len(sensitivities))
        for ax, (window, frame) in zip(below, sensitivities.items(), strict=True):
            sensitivity_against_n(ax, frame)
            ax.set_title(styles.title_of_sensitivity(window, curves))
        canvas.label_outer(below, N_AXIS, "LR sensitivity S (nats)")
        below[0].set_ylim(bottom=0)
        canvas.legend_above(parts[1], below)
        behind = styles.seeds(*sensitivities.values())
        canvas.note(
            parts[1],
            f"Mean of {behind}; upright: 95 % interval; methods stand side by side at each N.",
        )
    return fig


def figure_by_size(curves: pd.DataFrame) -> plt.Figure:
    """LR→loss, a panel per N and a curve per method: Figures E.5, E.6, E.7, E.8, E.9."""
    sizes = sorted(curves["n_params"].unique())
    rows = -(-len(sizes) // canvas.columns_of(len(sizes)))
    fig = canvas.new_figure(1.2 + 2.8 * rows)
    axes = canvas.side_by_side(fig, len(sizes))
    for ax, n in zip(axes, sizes, strict=True):
        loss_against_lr(ax, curves[curves["n_params"] == n], by="method")
        ax.set_title(f"N = {styles.count(n)}")
    canvas.label_outer(axes, LR_AXIS, LOSS_AXIS)
    canvas.legend_above(fig, axes)
    note_on_curves(fig, curves)
    return fig


def figure_ideas(
    curves: pd.DataFrame, diverging: pd.DataFrame, anchors: tuple[str, ...]
) -> plt.Figure:
    """LR→loss of one size, a panel per intervention, each beside the same `anchors`.

    `diverging` has a row per method with the geometric mean of its `diverging_lr`, a dotted upright
    line. There is none where it is nan, or where `diverging_lr bound` says that it lies beyond.
    """
    own = "the intervention"
    methods = [method for method in dict.fromkeys(curves["method"]) if method not in anchors]
    rows = -(-len(methods) // canvas.columns_of(len(methods)))
    fig = canvas.new_figure(1.2 + 2.4 * rows)
    axes = canvas.side_by_side(fig, len(methods))
    known = diverging["diverging_lr"].where(diverging["diverging_lr bound"] == "")
    lrs = dict(zip(diverging["method"], known, strict=True))
    for ax, method in zip(axes, methods, strict=True):
        shown_here = curves[curves["method"].isin([*anchors, method])]
        loss_against_lr(ax, shown_here.replace({"method": {method: own}}), by="method")
        for name in (*anchors, method):
            color, _ = styles.style_of(name if name in anchors else own)
            ax.axvline(lrs[name], color=color, ls=":", lw=1.5)
        ax.set_title(method)
    canvas.label_outer(axes, LR_AXIS, LOSS_AXIS)
    canvas.legend_above(fig, axes, anchors)
    canvas.note(
        fig,
        f"Mean of {styles.seeds(curves)}; band: least to largest seed; dotted upright: the "
        f"diverging LR, where the curve has one{canvas.crosses(curves)}",
    )
    return fig


def figure_trajectories(
    observed: pd.DataFrame, quantities: dict, titles: dict, lines: dict | None = None, marks=()
) -> plt.Figure:
    """Quantities against step: Figures 2, 4, 12, 13, E.1, E.15, P2.stages.

    A row per quantity, a column per `point`, a line per run. `quantities` maps a column to its
    label and axis scale, `titles` a point to its title, `lines` a column to a reference level and
    its name; `marks` are steps.
    """
    lines = lines or {}
    observed = observed[observed["point"].isin(titles)]
    dashes = styles.dashes_of(observed["method"])
    fig = canvas.new_figure(1 + (2.3 if len(quantities) < 4 else 1.9) * len(quantities))
    axes = fig.subplots(len(quantities), len(titles), sharex="col", sharey="row", squeeze=False)
    for column, (point, title) in enumerate(titles.items()):
        at_point = observed[observed["point"] == point]
        axes[0, column].set_title(title)
        axes[-1, column].set_xlabel("step")
        for ax, (name, (label, scale)) in zip(axes[:, column], quantities.items(), strict=True):
            trajectories(ax, at_point, name, dashes)
            ax.set_yscale(scale)
            if scale == "log" and not canvas.spans_decades(ax.yaxis):
                canvas.plain_numbers(ax.yaxis)
            ax.set_ylabel("" if column else canvas.wrapped(label))
            for step in marks:
                ax.axvline(step, color=GRAY, ls=":", lw=1)
            if name in lines:
                level, words = lines[name]
                canvas.reference(ax, level, words, 1.0)
    canvas.legend_above(fig, axes.flat)
    canvas.note(
        fig, f"Bold: median of {styles.seeds(observed)}; faint: each seed{canvas.crosses(observed)}"
    )
    return fig


def points_of(observed: pd.DataFrame) -> dict:
    """Titles for `figure_trajectories` of runs picked by `analysis.at_points`: N and peak LR."""
    first = observed.drop_duplicates("point").sort_values("point")
    return {
        row.point: f"N = {styles.count(row.n_params)}, peak LR {row.lr:g}"
        for row in first.itertuples()
    }


def figure_best_loss(best: pd.DataFrame, fits: pd.DataFrame) -> plt.Figure:
    """Fig. E.3: best loss over LR against N, a series each.

    Dashed, its line through all but the largest size.
    """
    fig = canvas.new_figure(4.4)
    ax = fig.subplots()
    for method, series in best.groupby("method", sort=False):
        color, marker = styles.style_of(method)
        loss = series.groupby("n_params")["best_loss"].agg(["mean", "min", "max"])
        # Open markers: series share a size, and there one would hide the other.
        ax.plot(loss.index, loss["mean"], marker, color=color, mfc="none", mew=1.5, ms=7)
        ax.vlines(loss.index, loss["min"], loss["max"], color=color, lw=1.5)
        fit = fits[fits["method"] == method]
        ends = np.array([loss.index.min(), loss.index.max()])
        line = fit["slope"].mean() * np.log10(ends) + fit["offset"].mean()
        ax.plot(ends, line, "--", color=color, lw=1)
        ax.plot([], [], "--", marker=marker, color=color, mfc="none", mew=1.5, label=method)
    canvas.log_size_axis(ax, best["n_params"])
    ax.tick_params(axis="x", rotation=45)
    ax.set_ylabel("best validation loss over LR (nats/token)")
    canvas.legend_above(fig, [ax])
    canvas.note(
        fig,
        f"Mean of {styles.seeds(best)}, upright: least to largest seed; dashed: fit to all sizes "
        "of the series but the largest.",
    )
    return fig


def figure9(probed: dict, predicted: dict, quantity: str = ATTENTION_LOGIT) -> plt.Figure:
    """Fig. 9: max attention logit of block 0 against N at a probe step.

    A color per LR, one panel per probe. Lines are the fits, bands their prediction intervals, open
    points the held-out size, × runs that failed to train.
    """
    fig = canvas.new_figure(4.8)
    axes = canvas.side_by_side(fig, len(probed))
    for ax, (title, points) in zip(axes, probed.items(), strict=True):
        fits = predicted[title]
        colors = styles.lr_colors(points["lr"])
        for lr, runs in points.groupby("lr"):
            fit = fits[np.isclose(fits["lr"], lr)].sort_values("n_params")
            ax.plot(fit["n_params"], fit["predicted"], color=colors[lr], lw=1.2)
            ax.fill_between(
                fit["n_params"], fit["lo"], fit["hi"], color=colors[lr], alpha=0.12, lw=0
            )
            for (held_out, failed), alike in runs.groupby(["held_out", "failed"]):
                ax.plot(
                    alike["n_params"],
                    alike[quantity],
                    "x" if failed else "o",
                    ms=6 if failed else 5,
                    ls="",
                    color=colors[lr],
                    mfc="none" if held_out else colors[lr],
                    mew=2 if failed and held_out else 1.2,
                )
            ax.plot([], [], "o", color=colors[lr], label=f"LR {lr:g}")
        canvas.reference(ax, 1e4, "10⁴", 0.08)  # beside the points of the smallest size
        ax.set_yscale("log")
        # Fits may be evaluated on a fine grid of N: then the runs' sizes are the ticks.
        few = fits["n_params"].nunique() < 8
        canvas.log_size_axis(ax, fits["n_params"] if few else points["n_params"])
        ax.set_title(title)
    canvas.label_outer(axes, N_AXIS, LOGIT_AXIS)
    axes[0].plot([], [], "x", color="0.3", label="failed to train")
    axes[0].plot([], [], "o", color="0.3", mfc="none", label="held out")
    canvas.legend_above(fig, axes)
    canvas.note(fig, "A point per run; line: quadratic fit; band: its 95 % prediction interval.")
    return fig


def figure10(table: pd.DataFrame, bigram: pd.DataFrame, logits: pd.DataFrame) -> plt.Figure:
    """Fig. 10: final loss against κ with the bigram model's as reference, and the largest logit."""
    fig = canvas.new_figure(4.2)
    left, right = fig.subplots(1, 2)
    color, marker = styles.style_of("κ")
    left.plot(table["kappa"], table["loss"], marker, color=color, label="a run")
    mean = table.groupby("kappa")["loss"].mean()
    left.plot(mean.index, mean, color=color, label=f"mean of {styles.seeds(table)}")
    # On the left, where the curve lies below the line.
    canvas.reference(left, bigram["loss"].mean(), "bigram: the same network without blocks", 0.02)
    left.set(xscale="log", xlabel="κ", ylabel=LOSS_AXIS)
    right.plot(
        logits["kappa"],
        logits["allowed"],
        "--",
        color=GRAY,
        lw=1,
        label="κ √d_head, the most the map allows",
    )
    right.plot(
        logits["kappa"],
        logits[ATTENTION_LOGIT],
        marker,
        color=color,
        label="measured, block 0, whole training",
    )
    right.set(xscale="log", yscale="log", xlabel="κ", ylabel="max |attention logit|")
    for ax in (left, right):
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1))
    return fig


def figure_rms(
    panels: dict[str, pd.DataFrame], y: str, label: str, eps: float | None = None
) -> plt.Figure:
    """Figures 11, C.1, E.12: an RMS against N (a line per LR), LR (per N) and block (per LR).

    `panels` maps "n_params", "lr" and "block" to frames with that column, `y`, the column of the
    lines, `line`, and what these are, `line_of`.
    """
    fig = canvas.new_figure(6.2)
    *axes, corner = fig.subplots(2, 2, sharey=True).flatten()
    corner.set_axis_off()  # the legends' place
    for ax, (x, frame) in zip(axes, panels.items(), strict=True):
        by_size = frame["line_of"].iloc[0] == "n_params"
        colors = styles.size_colors(frame["line"]) if by_size else styles.lr_colors(frame["line"])
        for value, runs in frame.groupby("line"):
            name = f"N = {styles.count(value)}" if by_size else f"LR {value:g}"
            rms = runs.groupby(x)[y].agg(["mean", "min", "max"])
            ax.fill_between(rms.index, rms["min"], rms["max"], color=colors[value], alpha=0.2, lw=0)
            ax.plot(rms.index, rms["mean"], "-o", ms=4, color=colors[value], label=name)
        ax.set_yscale("log")
        if x == "n_params":
            canvas.log_size_axis(ax, frame[x])
        elif x == "lr":
            canvas.log_lr_axis(ax)
        else:
            ax.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
            ax.set_xlabel("block, deepest model")
    if eps:
        for ax in axes:
            canvas.reference_epsilon(ax, eps)
    for ax in axes[::2]:
        ax.set_ylabel(canvas.wrapped(label))
    by_lr, by_size, _ = axes  # the third has the lines of the first
    corner.add_artist(corner.legend(*by_lr.get_legend_handles_labels(), loc="center left"))
    corner.legend(*by_size.get_legend_handles_labels(), loc="center")
    canvas.note(fig, f"Mean of {styles.seeds(*panels.values())}; band: least to largest seed.")
    return fig


def figure_e11(curves: pd.DataFrame, logits: pd.DataFrame) -> plt.Figure:
    """Fig. E.11: LR→loss above, LR→largest attention logit of block 0 below.

    A column per N, a color per method.
    """
    sizes = sorted(curves["n_params"].unique())
    dashes = styles.dashes_of(curves["method"])
    fig = canvas.new_figure(6.6)
    axes = fig.subplots(2, len(sizes), sharex=True, sharey="row", squeeze=False)
    for (above, below), n in zip(axes.T, sizes, strict=True):
        loss_against_lr(above, curves[curves["n_params"] == n], by="method")
        above.set(title=f"N = {styles.count(n)}", xlabel="", ylabel="")
        for method, runs in logits[logits["n_params"] == n].groupby("method", sort=False):
            color, marker = styles.style_of(method)
            below.plot(runs["lr"], runs[ATTENTION_LOGIT], marker, color=color, ms=4.5)
            median = runs.groupby("lr")[ATTENTION_LOGIT].median()
            below.plot(median, ls=dashes[method], color=color)
        below.set_yscale("log")
        canvas.log_lr_axis(below)
        canvas.reference(below, 1e4, "10⁴", 0.02)
    axes[0, 0].set_ylabel(canvas.wrapped(LOSS_AXIS))
    axes[1, 0].set_ylabel(canvas.wrapped(LOGIT_AXIS))
    canvas.legend_above(fig, axes[0])
    canvas.note(
        fig,
        f"Loss: mean of {styles.seeds(curves)}, band: least to largest seed. Logits: a point per "
        f"run, line: median{canvas.crosses(curves)}",
    )
    return fig


def figure_e13(observed: pd.DataFrame, gradient: str, update: str, eps: float) -> plt.Figure:
    """Fig. E.13: gradient and unscaled update RMS against step, a row per N, a column per LR."""
    sizes = sorted(observed["n_params"].unique())
    lrs = sorted(observed["lr"].unique())
    shown_quantities = {"update RMS": (update, "#2f9e6e"), "gradient RMS": (gradient, BLUE[0])}
    fig = canvas.new_figure(1.1 + 1.7 * len(sizes))
    axes = fig.subplots(len(sizes), len(lrs), sharex=True, sharey=True, squeeze=False)
    for i, n in enumerate(sizes):
        axes[i, 0].set_ylabel(f"N = {styles.count(n)}\nRMS")
        for j, lr in enumerate(lrs):
            ax = axes[i, j]
            runs = observed[(observed["n_params"] == n) & (observed["lr"] == lr)]
            for name, (column, color) in shown_quantities.items():
                for _, run in runs.groupby("key"):
                    ax.plot(run["step"], run[column], color=color, lw=1, label=name)
            ax.set_yscale("log")
    for ax, lr in zip(axes[0], lrs, strict=True):
        ax.set_title(f"LR {lr:g}")
    for ax in axes[-1]:
        ax.set_xlabel("step")
    for ax in axes[:, 0]:
        canvas.reference_epsilon(ax, eps)
    canvas.legend_above(fig, axes.flat)
    canvas.note(fig, f"A line per seed, {styles.seeds(observed)}.")
    return fig


def figure_ratio(
    simulated: pd.DataFrame, rejections: pd.DataFrame, b1: float, b2: float
) -> plt.Figure:
    """Fig. P2.ratio: simulated distributions of Adam's ratio r for several ρ at (β1, β2).

    Beside them, over β1 and β2, the share ρ of time-correlated gradient from which on the dip test
    finds more than one mode.
    """
    fig = canvas.new_figure(4.4)
    left, right = fig.subplots(1, 2)
    shares = sorted(simulated["rho"].unique())
    for rho, color in zip(shares, sns.color_palette("viridis_r", len(shares)), strict=True):
        bins = simulated[simulated["rho"] == rho]
        edges = [*bins["left"], bins["right"].iloc[-1]]
        left.stairs(bins["density"], edges, color=color, lw=1.3, label=f"ρ = {rho:g}")
    left.set(xlabel=RATIO_AXIS, ylabel="density", title=f"β = ({b1:g}, {b2:g})")
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
    right.tick_params(axis="y", rotation=0)
    right.invert_yaxis()
    canvas.legend_above(fig, [left])
    canvas.note(fig, "ρ: the share of the gradient's variance that all steps have in common.")
    return fig


def figure_histograms(histograms: pd.DataFrame, titles: dict) -> plt.Figure:
    """Figs P2.histograms and P2.batches: distributions of r or Δ, seeds averaged.

    A row per `row`, a column per `column`, a color per `method`. Heights are shares of a bin on a
    log axis, so that rare large updates are seen.
    """
    rows = list(dict.fromkeys(histograms["row"]))
    columns = list(dict.fromkeys(histograms["column"]))
    dashes = styles.dashes_of(histograms["method"])
    fig = canvas.new_figure(1.2 + (1.35 if len(rows) > 1 else 2.4) * len(rows))
    axes = fig.subplots(len(rows), len(columns), sharex=True, sharey=True, squeeze=False)
    cells = histograms.groupby(["row", "column"], sort=False)
    for (row, column), cell in cells:
        ax = axes[rows.index(row), columns.index(column)]
        for method, bars in cell.groupby("method", sort=False):
            mean = bars.groupby(["left", "right"], as_index=False)["share"].mean()
            edges = [*mean["left"], mean["right"].iloc[-1]]
            ax.stairs(
                mean["share"],
                edges,
                color=styles.style_of(method)[0],
                ls=dashes[method],
                lw=1.5,
                label=styles.shown(method),
            )
    for ax, column in zip(axes[0], columns, strict=True):
        ax.set_title(titles.get(column, column))
        ax.set_yscale("log")
    for ax, row in zip(axes[:, 0], rows, strict=True):
        ax.set_ylabel(row.replace(", ", ",\n"))
    for ax in axes[-1]:
        ax.set_xlabel("r or Δ" if len(rows) > 1 else RATIO_AXIS)
    canvas.legend_above(fig, axes.flat)
    letters = f"; {RATIO_AXIS}, Δ: the update." if len(rows) > 1 else "."
    canvas.note(fig, f"Height: share of a bin, mean of {styles.seeds(histograms)}{letters}")
    return fig


def figure_dots(values: pd.DataFrame, quantities: dict, methods: list) -> plt.Figure:
    """Figures P2.remedies, P2.formats, ideas.score: a panel per quantity.

    `quantities` maps a column to its label and axis scale. A line per method: the seeds, their mean
    and its interval; dotted, the mean of the first. Where a column "<quantity> bound" says of a
    seed that its value is only a bound, an open arrow points to where the value lies, and no mean
    is drawn.
    """
    columns = canvas.columns_of(len(quantities))
    rows = -(-len(quantities) // columns)
    fig = canvas.new_figure(0.6 + (0.8 + 0.26 * len(methods)) * rows)
    axes = canvas.side_by_side(fig, len(quantities))
    bounds_by_name = {name: analysis.bounds_of(values, name) for name in quantities}
    for ax, (name, (label, scale)) in zip(axes, quantities.items(), strict=True):
        bounds = bounds_by_name[name]
        for y, method in enumerate(methods):
            of_method = values["method"] == method
            of_seeds = values.loc[of_method, name].to_numpy(float)
            _dots(ax, y, method, of_seeds, bounds[of_method].to_numpy())
        of_first = values["method"] == methods[0]
        if (bounds[of_first] == "").all():
            ax.axvline(values.loc[of_first, name].mean(), color=GRAY, ls=":", lw=1)
        ax.set(xlabel=canvas.wrapped(label), xscale=scale, yticks=range(len(methods)))
        if scale == "linear":
            ax.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(4, steps=[1, 2, 5, 10]))
        else:
            canvas.plain_numbers(ax.xaxis)
    axes[0].set_yticklabels(map(styles.shown, methods))
    axes[0].margins(y=max(0.05, 0.3 / len(methods)))  # a whole marker at the first and last line
    axes[0].invert_yaxis()
    bounded = any(bounds.isin(list(ARROWS)).any() for bounds in bounds_by_name.values())
    arrows = "; open arrows: it lies beyond" if bounded else ""
    canvas.note(
        fig,
        f"Points: {styles.seeds(values)}{arrows}; upright: their mean; line: its 95 % interval; "
        f"dotted: the mean of “{styles.shown(methods[0])}”.",
    )
    return fig


def _dots(ax, y: int, method: str, of_seeds: np.ndarray, bounds: np.ndarray):
    """A line of `figure_dots`: the seeds, and their mean where none of them is a bound."""
    color, marker = styles.style_of(method)
    known = of_seeds[bounds == ""]
    ax.plot(known, np.full(len(known), y), marker, ms=5, color=color, alpha=0.6)
    for bound, arrow in ARROWS.items():
        at = of_seeds[bounds == bound]
        ax.plot(at, np.full(len(at), y), arrow, ms=5, color=color, mfc="none")
    if len(known) == len(of_seeds):
        mean, lo, hi = analysis.interval(of_seeds)
        ax.plot([lo, hi], [y, y], "-", lw=1.2, color=color)
        ax.plot(mean, y, "|", ms=14, mew=2, color=color)
