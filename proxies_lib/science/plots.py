"""Figures: a function per layout, tidy frames in, a matplotlib figure out; nothing is written.

A plot draws all that it is given: a diverged run sits, marked ×, on the ℓ0 line. A method has one
color and marker in every figure. Every figure is WIDTH inches wide, so that its text is at least
9 px high at the 830 px that GitHub gives it; legends stand above the axes, never on curves; a note
below says what points, lines and bands are.
"""

import re
import textwrap
import zlib

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns

from proxies_lib.science import analysis, protocol

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
            "qk-layernorm",
        ),
        BLUE,
    ),
    **dict.fromkeys(
        (
            "without qk-layernorm",
            "by width, no qk-layernorm",
            "standard, no qk-layernorm",
            "softmax attention",
            "none",
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
    "ten times matched decay": ("#2d1160", "^"),
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
    "the intervention": ("#2f9e6e", "D"),
    "soft-cap 50": ("#e0b000", "v"),
    "soft-cap 10": ("#f08a24", "<"),
    "QK-Clip": ("#d9482b", "s"),
    "µ-centering": ("#6b6b6b", "D"),
    "Muon": ("#8e5bbf", "p"),
    "Muon, QK-Clip": ("#5e3c99", "P"),
    "StableAdamW": ("#a65628", "^"),
    "qk-layernorm, peri-LN": ("#2f9e6e", "D"),
    "qk-layernorm, soft-cap 50": ("#3f9c9a", ">"),
    "burst": ("#8b1a1a", "v"),
    "burst, StableAdamW": ("#00308f", "X"),
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

# For methods that METHODS does not name yet: see `style_of`.
SPARE = [
    (color, marker)
    for marker in ("h", "*", "d", "H")
    for color in ("#17becf", "#7f5f00", "#e377c2", "#5b7f00", "#00308f", "#ff7f0e")
]

# By position in a figure: where curves coincide, the lower ones show in the gaps of the upper.
DASHES = ("-", (0, (4, 2)), (0, (1.5, 1.5)), (0, (6, 1.5, 1.5, 1.5)))

LR_AXIS = "peak learning rate"
LOSS_AXIS = "final validation loss (nats/token)"
N_AXIS = "N, parameters of the blocks"
ATTENTION_LOGIT = "max_attention_logit/0"
LOGIT_AXIS = "max |attention logit|, block 0"
RATIO_AXIS = "r = m̂ / √v̂"

# At 830 px a point is 1.39 px: notes are 11.8 px high, the exponent in 10⁻³ on an axis 9.2 px.
WIDTH = 8.3
NOTE, TICK, LABEL, TITLE = 8.5, 9.5, 9.5, 10.0

GRAY = "0.4"
# The marker of a value of which only this bound is known.
ARROWS = {analysis.AT_LEAST: ">", analysis.AT_MOST: "<"}

sns.set_theme(
    "paper",
    style="ticks",
    rc={
        "axes.grid": True,
        "grid.alpha": 0.3,
        "svg.hashsalt": "proxies",
        "figure.dpi": 100,
        "savefig.dpi": 150,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "font.size": LABEL,
        "axes.labelsize": LABEL,
        "axes.titlesize": TITLE,
        "xtick.labelsize": TICK,
        "ytick.labelsize": TICK,
        "legend.frameon": False,
        "legend.fontsize": LABEL,
        "legend.title_fontsize": LABEL,
    },
)


def style_of(method: str) -> tuple[str, str]:
    """Color and marker of a method; one that METHODS does not name gets a spare style.

    Its name chooses where the search for a free style begins, so that a new method looks the same
    in every notebook.
    """
    if method not in METHODS:
        first = zlib.crc32(method.encode()) % len(SPARE)
        in_turn = [*SPARE[first:], *SPARE[:first]]
        free = [style for style in in_turn if style not in METHODS.values()]
        METHODS[method] = (free or in_turn)[0]
    return METHODS[method]


def dashes_of(methods) -> dict:
    """A line style per method, by order of appearance."""
    return {m: DASHES[i % len(DASHES)] for i, m in enumerate(dict.fromkeys(methods))}


def size_colors(sizes) -> dict:
    """A color per N, light for small to dark for large, the same in every panel."""
    return _ramp(sizes, "flare")


def lr_colors(lrs) -> dict:
    """A color per learning rate, light for low to dark for high."""
    return _ramp(lrs, "viridis_r")


def _ramp(values, palette: str) -> dict:
    values = sorted(set(values))
    return dict(zip(values, sns.color_palette(palette, len(values)), strict=True))


def count(n: int) -> str:
    """24,576 → 25K; 2,359,296 → 2.4M."""
    for unit, word in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if n >= unit:
            return f"{n / unit:.2g}{word}" if n < 100 * unit else f"{n / unit:.0f}{word}"
    return str(n)


def epsilon(value: float) -> str:
    """How an ε is written everywhere: 1e-8, not 1e-08; 1e-3, not 0.001."""
    if not value:
        return "0"
    digits, exponent = f"{value:.2e}".split("e")
    return f"{float(digits):g}e{int(exponent)}"


def shown(method: str) -> str:
    """A method's name as figures print it: an ε in its name is written as `epsilon` does."""
    return re.sub(r"(?<=ε = )\d[\d.e+-]*", lambda found: epsilon(float(found[0])), method)


def seeds(*frames: pd.DataFrame) -> str:
    """How many seeds stand behind a mean: from the column `n`, or counted in `seed`.

    Not every point or panel need have equally many: "3 or 5 seeds".
    """
    counts = set()
    for frame in frames:
        if "n" in frame:
            counts.update(frame["n"].astype(int))
        else:
            counts.add(frame["seed"].nunique())
    if counts == {1}:
        return "one seed"
    return f"{' or '.join(map(str, sorted(counts)))} seeds"


# Parts that every figure is made of.


def new_figure(height: float) -> plt.Figure:
    return plt.figure(figsize=(WIDTH, height), layout="constrained")


def columns_of(n: int) -> int:
    """How many of `n` panels stand side by side: readable at a third of the width, no narrower."""
    return {1: 1, 2: 2, 4: 2}.get(n, 3)


def side_by_side(fig, n: int) -> list[plt.Axes]:
    """`n` axes that share y, in rows of `columns_of(n)`; the last row may be short."""
    columns = columns_of(n)
    axes = fig.subplots(-(-n // columns), columns, sharey=True, squeeze=False).flatten()
    for ax in axes[n:]:
        ax.remove()
    return list(axes[:n])


def label_outer(axes: list[plt.Axes], xlabel: str, ylabel: str):
    """Axis labels of `side_by_side`: y in the first column, x where no panel stands below."""
    columns = columns_of(len(axes))
    for i, ax in enumerate(axes):
        ax.set_ylabel("" if i % columns else wrapped(ylabel))
        ax.set_xlabel(xlabel if i + columns >= len(axes) else "")


def wrapped(label: str, width: int = 26) -> str:
    """A long axis label on lines of about the same length."""
    if "\n" in label or len(label) <= width:
        return label
    lines = -(-len(label) // width)
    return textwrap.fill(label, len(label) // lines + 4)


def legend_above(fig, axes, first=()):
    """One legend for all `axes` above them, in as many columns as fit; no name stands twice.

    Names are in order of appearance, those of `first` before others.
    """
    entries = dict.fromkeys(first)
    for ax in axes:
        for handle, name in zip(*ax.get_legend_handles_labels(), strict=True):
            if entries.get(name) is None:
                entries[name] = handle
    inches = 0.5 + 0.075 * max(map(len, entries))  # of an entry: its line and its longest name
    columns = min(len(entries), max(1, int(WIDTH / inches)))
    fig.legend(
        entries.values(),
        entries.keys(),
        loc="outside upper center",
        ncols=columns,
        columnspacing=1.4,
    )


def note(fig, text: str):
    """What points, lines and bands are, in small print below the axes."""
    fig.supxlabel(textwrap.fill(text, 118), fontsize=NOTE, color=GRAY)


def crosses(frame: pd.DataFrame) -> str:
    """The part of a note that explains ×, where there is one."""
    diverged = frame["n_diverged"] if "n_diverged" in frame else frame["diverged"]
    return "; ×: a run diverged." if diverged.any() else "."


def reference(ax, level: float, text: str, x: float):
    """A dotted reference line with its name at the axes fraction `x`."""
    ax.axhline(level, color=GRAY, ls=":", lw=1)
    name = ax.annotate(
        text,
        (x, level),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        fontsize=NOTE,
        color=GRAY,
        textcoords="offset points",
        ha="left" if x < 0.5 else "right",
    )
    name.set_in_layout(False)


def reference_epsilon(ax, eps: float):
    """The line of ε; where it lies decades below all that is drawn, a word at the bottom instead.

    The line would stretch the axis and leave most of it empty.
    """
    name = f"ε = {epsilon(eps)}"
    bottom = ax.get_ylim()[0]
    if eps > bottom / 10:
        reference(ax, eps, name, 0.02)
        return
    ax.text(
        0.02,
        0.02,
        f"↓ {name}, {float(f'{bottom / eps:.1g}'):g} × lower",
        transform=ax.transAxes,
        fontsize=NOTE,
        color=GRAY,
    )


def reference_init_loss(ax, curves: pd.DataFrame):
    reference(ax, curves["init_loss"].mean(), "ℓ₀, loss at initialization", 0.02)
    ax.margins(y=0.12)  # room for the name between line and title


def _spans_decades(axis) -> bool:
    """Whether three powers of ten fit, so that they are ticks enough."""
    low, high = axis.get_view_interval()
    return high / low > 100


def plain_numbers(axis):
    """Ticks of a log axis as numbers are written elsewhere: 0.01, not 10⁻²."""
    low, high = axis.get_view_interval()
    # Less than two decades show too few powers of ten.
    subs = (1.0,) if high / low > 100 else (1.0, 3.0) if high / low > 10 else (1.0, 2.0, 5.0)
    axis.set_major_locator(matplotlib.ticker.LogLocator(subs=subs))
    axis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(matplotlib.ticker.NullFormatter())


def log_lr_axis(ax):
    """Learning rates as they are written elsewhere: 0.01, not 10⁻²."""
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda lr, _: f"{lr:g}"))
    ax.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    ax.set_xlabel(LR_AXIS)


def log_size_axis(ax, sizes):
    """A tick at every N; where sizes are within 5 % of each other, whose labels would overlap, at
    the largest."""
    sizes = sorted(set(sizes))
    following = [*sizes[1:], np.inf]
    apart = [n for n, above in zip(sizes, following, strict=True) if above > 1.05 * n]
    ax.set_xscale("log")
    ax.set_xticks(apart, [count(n) for n in apart], minor=False)
    ax.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    ax.set_xlabel(N_AXIS)


# Curves on a given axis.


def loss_against_lr(ax, curves: pd.DataFrame, by: str = "n_params", sizes=None):
    """Final loss against peak LR, a curve per N or per method.

    Mean over seeds, band from the least to the largest seed, × where runs diverged. `sizes` are
    all N of the figure, so that a size has the same color in every panel.
    """
    by_size = by == "n_params"
    colors = size_colors(curves["n_params"] if sizes is None else sizes)
    dashes = dashes_of(curves[by])
    for value, curve in curves.groupby(by, sort=by_size):
        curve = curve.sort_values("lr")
        color, marker = (colors[value], "o") if by_size else style_of(value)
        ax.plot(
            curve["lr"],
            curve["loss"],
            ls="-" if by_size else dashes[value],
            marker=marker,
            ms=4.5,
            color=color,
            label=f"N = {count(value)}" if by_size else shown(value),
        )
        ax.fill_between(curve["lr"], curve["low"], curve["high"], color=color, alpha=0.2, lw=0)
        broken = curve[curve["n_diverged"] > 0]
        ax.plot(broken["lr"], broken["high"], "x", ms=9, mew=2, color=color)
    reference_init_loss(ax, curves)
    log_lr_axis(ax)
    ax.set_ylabel(LOSS_AXIS)


def note_on_curves(fig, curves: pd.DataFrame):
    note(fig, f"Mean of {seeds(curves)}; band: least to largest seed{crosses(curves)}")


def sensitivity_against_n(ax, sensitivity: pd.DataFrame):
    """LR sensitivity S against N, a curve per method, with its interval over seeds.

    Methods stand side by side at each N: where they agree, intervals on one spot would hide each
    other.
    """
    sizes = sensitivity["n_params"]
    methods = list(dict.fromkeys(sensitivity["method"]))
    dashes = dashes_of(methods)
    # Of neighbors: 2 % of the axis, which one size alone does not span.
    spread = (sizes.max() / sizes.min() if sizes.nunique() > 1 else 10.0) ** 0.02
    for i, method in enumerate(methods):
        curve = sensitivity[sensitivity["method"] == method].sort_values("n_params")
        color, marker = style_of(method)
        x = curve["n_params"] * spread ** (i - (len(methods) - 1) / 2)
        ax.plot(x, curve["S"], ls=dashes[method], marker=marker, color=color, label=shown(method))
        ax.vlines(x, curve["lo"].clip(lower=0), curve["hi"], color=color, lw=1.2)
    log_size_axis(ax, sizes)
    ax.set_ylabel("LR sensitivity S (nats)")


def title_of_sensitivity(window: str, curves: pd.DataFrame) -> str:
    """Over which learning rates S is, and which of the paper's are missing: S depends on them."""
    title = f"S over {window}"
    trained = curves["lr"].unique()
    missing = [lr for lr in protocol.PAPER_WINDOW if not np.isclose(lr, trained).any()]
    if window.startswith("the paper's") and missing:
        those = f"{missing[0]:g}" if len(missing) == 1 else f"{len(missing)} more"
        title += f"\n(without {those}: not trained here)"
    return title


def trajectories(ax, observed: pd.DataFrame, y: str, dashes: dict | None = None):
    """`y` against step, colored by method: a faint line per run, their median bold.

    A diverged run ends in ×.
    """
    dashes = dashes or dashes_of(observed["method"])
    for method, runs in observed.groupby("method", sort=False):
        color, _ = style_of(method)
        for _, run in runs.groupby("key"):
            ax.plot(run["step"], run[y], color=color, lw=0.7, alpha=0.4)
            if run["diverged"].any():
                ax.plot(run["step"].iloc[-1:], run[y].iloc[-1:], "x", ms=9, mew=2, color=color)
        median = runs.groupby("step")[y].median()
        ax.plot(median, color=color, ls=dashes[method], lw=1.8, label=shown(method))


# Figures.


def figure0(curves: pd.DataFrame, sensitivity: pd.DataFrame, window) -> plt.Figure:
    """The method in one picture: a loss curve, its best loss ℓ*, ℓ0, and S.

    S is the mean gap to ℓ* over the `window` of learning rates.
    """
    fig = new_figure(4.6)
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
    legend_above(fig, [ax])
    note_on_curves(fig, curves)
    return fig


def figure_sweep(
    curves: pd.DataFrame, sensitivities: dict[str, pd.DataFrame] | None = None
) -> plt.Figure:
    """The paper's main layout: Figures 1, 3, 5, 6, 7, 8, E.2, E.4, E.10, E.14.

    Above, LR→loss: a panel per method, a curve per N. Below, N→S: a panel per LR window.
    """
    methods = list(dict.fromkeys(curves["method"]))
    rows = -(-len(methods) // columns_of(len(methods)))
    heights = [0.7 + 2.4 * rows, *([3.4] if sensitivities else [])]
    fig = new_figure(sum(heights))
    parts = fig.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]

    above = side_by_side(parts[0], len(methods))
    for ax, method in zip(above, methods, strict=True):
        loss_against_lr(ax, curves[curves["method"] == method], sizes=curves["n_params"])
        ax.set_title(shown(method))
    label_outer(above, LR_AXIS, LOSS_AXIS)
    sizes = sorted(curves["n_params"].unique())
    legend_above(parts[0], above, [f"N = {count(n)}" for n in sizes])
    note_on_curves(parts[0], curves)

    if sensitivities:
        below = side_by_side(parts[1], len(sensitivities))
        for ax, (window, frame) in zip(below, sensitivities.items(), strict=True):
            sensitivity_against_n(ax, frame)
            ax.set_title(title_of_sensitivity(window, curves))
        label_outer(below, N_AXIS, "LR sensitivity S (nats)")
        below[0].set_ylim(bottom=0)
        legend_above(parts[1], below)
        behind = seeds(*sensitivities.values())
        note(
            parts[1],
            f"Mean of {behind}; upright: 95 % interval; methods stand side by side at each N.",
        )
    return fig


def figure_by_size(curves: pd.DataFrame) -> plt.Figure:
    """LR→loss, a panel per N and a curve per method: Figures E.5, E.6, E.7, E.8, E.9."""
    sizes = sorted(curves["n_params"].unique())
    rows = -(-len(sizes) // columns_of(len(sizes)))
    fig = new_figure(1.2 + 2.8 * rows)
    axes = side_by_side(fig, len(sizes))
    for ax, n in zip(axes, sizes, strict=True):
        loss_against_lr(ax, curves[curves["n_params"] == n], by="method")
        ax.set_title(f"N = {count(n)}")
    label_outer(axes, LR_AXIS, LOSS_AXIS)
    legend_above(fig, axes)
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
    rows = -(-len(methods) // columns_of(len(methods)))
    fig = new_figure(1.2 + 2.4 * rows)
    axes = side_by_side(fig, len(methods))
    known = diverging["diverging_lr"].where(diverging["diverging_lr bound"] == "")
    lrs = dict(zip(diverging["method"], known, strict=True))
    for ax, method in zip(axes, methods, strict=True):
        shown_here = curves[curves["method"].isin([*anchors, method])]
        loss_against_lr(ax, shown_here.replace({"method": {method: own}}), by="method")
        for name in (*anchors, method):
            color, _ = style_of(name if name in anchors else own)
            ax.axvline(lrs[name], color=color, ls=":", lw=1.5)
        ax.set_title(method)
    label_outer(axes, LR_AXIS, LOSS_AXIS)
    legend_above(fig, axes, anchors)
    note(
        fig,
        f"Mean of {seeds(curves)}; band: least to largest seed; dotted upright: the diverging "
        f"LR, where the curve has one{crosses(curves)}",
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
    dashes = dashes_of(observed["method"])
    fig = new_figure(1 + (2.3 if len(quantities) < 4 else 1.9) * len(quantities))
    axes = fig.subplots(len(quantities), len(titles), sharex="col", sharey="row", squeeze=False)
    for column, (point, title) in enumerate(titles.items()):
        at_point = observed[observed["point"] == point]
        axes[0, column].set_title(title)
        axes[-1, column].set_xlabel("step")
        for ax, (name, (label, scale)) in zip(axes[:, column], quantities.items(), strict=True):
            trajectories(ax, at_point, name, dashes)
            ax.set_yscale(scale)
            if scale == "log" and not _spans_decades(ax.yaxis):
                plain_numbers(ax.yaxis)
            ax.set_ylabel("" if column else wrapped(label))
            for step in marks:
                ax.axvline(step, color=GRAY, ls=":", lw=1)
            if name in lines:
                level, words = lines[name]
                reference(ax, level, words, 1.0)
    legend_above(fig, axes.flat)
    note(fig, f"Bold: median of {seeds(observed)}; faint: each seed{crosses(observed)}")
    return fig


def points_of(observed: pd.DataFrame) -> dict:
    """Titles for `figure_trajectories` of runs picked by `analysis.at_points`: N and peak LR."""
    first = observed.drop_duplicates("point").sort_values("point")
    return {
        row.point: f"N = {count(row.n_params)}, peak LR {row.lr:g}" for row in first.itertuples()
    }


def figure_best_loss(best: pd.DataFrame, fits: pd.DataFrame) -> plt.Figure:
    """Fig. E.3: best loss over LR against N, a series each.

    Dashed, its line through all but the largest size.
    """
    fig = new_figure(4.4)
    ax = fig.subplots()
    for method, series in best.groupby("method", sort=False):
        color, marker = style_of(method)
        loss = series.groupby("n_params")["best_loss"].agg(["mean", "min", "max"])
        # Open markers: series share a size, and there one would hide the other.
        ax.plot(loss.index, loss["mean"], marker, color=color, mfc="none", mew=1.5, ms=7)
        ax.vlines(loss.index, loss["min"], loss["max"], color=color, lw=1.5)
        fit = fits[fits["method"] == method]
        ends = np.array([loss.index.min(), loss.index.max()])
        line = fit["slope"].mean() * np.log10(ends) + fit["offset"].mean()
        ax.plot(ends, line, "--", color=color, lw=1)
        ax.plot([], [], "--", marker=marker, color=color, mfc="none", mew=1.5, label=method)
    log_size_axis(ax, best["n_params"])
    ax.tick_params(axis="x", rotation=45)
    ax.set_ylabel("best validation loss over LR (nats/token)")
    legend_above(fig, [ax])
    note(
        fig,
        f"Mean of {seeds(best)}, upright: least to largest seed; dashed: fit to all sizes of the "
        "series but the largest.",
    )
    return fig


def figure9(probed: dict, predicted: dict, quantity: str = ATTENTION_LOGIT) -> plt.Figure:
    """Fig. 9: max attention logit of block 0 against N at a probe step.

    A color per LR, one panel per probe. Lines are the fits, bands their prediction intervals, open
    points the held-out size, × runs that failed to train.
    """
    fig = new_figure(4.8)
    axes = side_by_side(fig, len(probed))
    for ax, (title, points) in zip(axes, probed.items(), strict=True):
        fits = predicted[title]
        colors = lr_colors(points["lr"])
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
        reference(ax, 1e4, "10⁴", 0.08)  # beside the points of the smallest size
        ax.set_yscale("log")
        # Fits may be evaluated on a fine grid of N: then the runs' sizes are the ticks.
        few = fits["n_params"].nunique() < 8
        log_size_axis(ax, fits["n_params"] if few else points["n_params"])
        ax.set_title(title)
    label_outer(axes, N_AXIS, LOGIT_AXIS)
    axes[0].plot([], [], "x", color="0.3", label="failed to train")
    axes[0].plot([], [], "o", color="0.3", mfc="none", label="held out")
    legend_above(fig, axes)
    note(fig, "A point per run; line: quadratic fit; band: its 95 % prediction interval.")
    return fig


def figure10(table: pd.DataFrame, bigram: pd.DataFrame, logits: pd.DataFrame) -> plt.Figure:
    """Fig. 10: final loss against κ with the bigram model's as reference, and the largest logit."""
    fig = new_figure(4.2)
    left, right = fig.subplots(1, 2)
    color, marker = style_of("κ")
    left.plot(table["kappa"], table["loss"], marker, color=color, label="a run")
    mean = table.groupby("kappa")["loss"].mean()
    left.plot(mean.index, mean, color=color, label=f"mean of {seeds(table)}")
    # On the left, where the curve lies below the line.
    reference(left, bigram["loss"].mean(), "bigram: the same network without blocks", 0.02)
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
    fig = new_figure(6.2)
    *axes, corner = fig.subplots(2, 2, sharey=True).flatten()
    corner.set_axis_off()  # the legends' place
    for ax, (x, frame) in zip(axes, panels.items(), strict=True):
        by_size = frame["line_of"].iloc[0] == "n_params"
        colors = size_colors(frame["line"]) if by_size else lr_colors(frame["line"])
        for value, runs in frame.groupby("line"):
            name = f"N = {count(value)}" if by_size else f"LR {value:g}"
            rms = runs.groupby(x)[y].agg(["mean", "min", "max"])
            ax.fill_between(rms.index, rms["min"], rms["max"], color=colors[value], alpha=0.2, lw=0)
            ax.plot(rms.index, rms["mean"], "-o", ms=4, color=colors[value], label=name)
        ax.set_yscale("log")
        if x == "n_params":
            log_size_axis(ax, frame[x])
        elif x == "lr":
            log_lr_axis(ax)
        else:
            ax.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
            ax.set_xlabel("block, deepest model")
    if eps:
        for ax in axes:
            reference_epsilon(ax, eps)
    for ax in axes[::2]:
        ax.set_ylabel(wrapped(label))
    by_lr, by_size, _ = axes  # the third has the lines of the first
    corner.add_artist(corner.legend(*by_lr.get_legend_handles_labels(), loc="center left"))
    corner.legend(*by_size.get_legend_handles_labels(), loc="center")
    note(fig, f"Mean of {seeds(*panels.values())}; band: least to largest seed.")
    return fig


def figure_e11(curves: pd.DataFrame, logits: pd.DataFrame) -> plt.Figure:
    """Fig. E.11: LR→loss above, LR→largest attention logit of block 0 below.

    A column per N, a color per method.
    """
    sizes = sorted(curves["n_params"].unique())
    dashes = dashes_of(curves["method"])
    fig = new_figure(6.6)
    axes = fig.subplots(2, len(sizes), sharex=True, sharey="row", squeeze=False)
    for (above, below), n in zip(axes.T, sizes, strict=True):
        loss_against_lr(above, curves[curves["n_params"] == n], by="method")
        above.set(title=f"N = {count(n)}", xlabel="", ylabel="")
        for method, runs in logits[logits["n_params"] == n].groupby("method", sort=False):
            color, marker = style_of(method)
            below.plot(runs["lr"], runs[ATTENTION_LOGIT], marker, color=color, ms=4.5)
            median = runs.groupby("lr")[ATTENTION_LOGIT].median()
            below.plot(median, ls=dashes[method], color=color)
        below.set_yscale("log")
        log_lr_axis(below)
        reference(below, 1e4, "10⁴", 0.02)
    axes[0, 0].set_ylabel(wrapped(LOSS_AXIS))
    axes[1, 0].set_ylabel(wrapped(LOGIT_AXIS))
    legend_above(fig, axes[0])
    note(
        fig,
        f"Loss: mean of {seeds(curves)}, band: least to largest seed. Logits: a point per run, "
        f"line: median{crosses(curves)}",
    )
    return fig


def figure_e13(observed: pd.DataFrame, gradient: str, update: str, eps: float) -> plt.Figure:
    """Fig. E.13: gradient and unscaled update RMS against step, a row per N, a column per LR."""
    sizes = sorted(observed["n_params"].unique())
    lrs = sorted(observed["lr"].unique())
    shown_quantities = {"update RMS": (update, "#2f9e6e"), "gradient RMS": (gradient, BLUE[0])}
    fig = new_figure(1.1 + 1.7 * len(sizes))
    axes = fig.subplots(len(sizes), len(lrs), sharex=True, sharey=True, squeeze=False)
    for i, n in enumerate(sizes):
        axes[i, 0].set_ylabel(f"N = {count(n)}\nRMS")
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
        reference_epsilon(ax, eps)
    legend_above(fig, axes.flat)
    note(fig, f"A line per seed, {seeds(observed)}.")
    return fig


def figure_ratio(
    simulated: pd.DataFrame, rejections: pd.DataFrame, b1: float, b2: float
) -> plt.Figure:
    """Fig. P2.ratio: simulated distributions of Adam's ratio r for several ρ at (β1, β2).

    Beside them, over β1 and β2, the share ρ of time-correlated gradient from which on the dip test
    finds more than one mode.
    """
    fig = new_figure(4.4)
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
    legend_above(fig, [left])
    note(fig, "ρ: the share of the gradient's variance that all steps have in common.")
    return fig


def figure_histograms(histograms: pd.DataFrame, titles: dict) -> plt.Figure:
    """Figs P2.histograms and P2.batches: distributions of r or Δ, seeds averaged.

    A row per `row`, a column per `column`, a color per `method`. Heights are shares of a bin on a
    log axis, so that rare large updates are seen.
    """
    rows = list(dict.fromkeys(histograms["row"]))
    columns = list(dict.fromkeys(histograms["column"]))
    dashes = dashes_of(histograms["method"])
    fig = new_figure(1.2 + (1.35 if len(rows) > 1 else 2.4) * len(rows))
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
                color=style_of(method)[0],
                ls=dashes[method],
                lw=1.5,
                label=shown(method),
            )
    for ax, column in zip(axes[0], columns, strict=True):
        ax.set_title(titles.get(column, column))
        ax.set_yscale("log")
    for ax, row in zip(axes[:, 0], rows, strict=True):
        ax.set_ylabel(row.replace(", ", ",\n"))
    for ax in axes[-1]:
        ax.set_xlabel("r or Δ" if len(rows) > 1 else RATIO_AXIS)
    legend_above(fig, axes.flat)
    letters = f"; {RATIO_AXIS}, Δ: the update." if len(rows) > 1 else "."
    note(fig, f"Height: share of a bin, mean of {seeds(histograms)}{letters}")
    return fig


def figure_dots(values: pd.DataFrame, quantities: dict, methods: list) -> plt.Figure:
    """Figures P2.remedies, P2.formats, ideas.score: a panel per quantity.

    `quantities` maps a column to its label and axis scale. A line per method: the seeds, their mean
    and its interval; dotted, the mean of the first. Where a column "<quantity> bound" says of a
    seed that its value is only a bound, an open arrow points to where the value lies, and no mean
    is drawn.
    """
    columns = columns_of(len(quantities))
    rows = -(-len(quantities) // columns)
    fig = new_figure(0.6 + (0.8 + 0.26 * len(methods)) * rows)
    axes = side_by_side(fig, len(quantities))
    for ax, (name, (label, scale)) in zip(axes, quantities.items(), strict=True):
        bounds = bounds_of(values, name)
        for y, method in enumerate(methods):
            of_method = values["method"] == method
            of_seeds = values.loc[of_method, name].to_numpy(float)
            _dots(ax, y, method, of_seeds, bounds[of_method].to_numpy())
        of_first = values["method"] == methods[0]
        if (bounds[of_first] == "").all():
            ax.axvline(values.loc[of_first, name].mean(), color=GRAY, ls=":", lw=1)
        ax.set(xlabel=wrapped(label), xscale=scale, yticks=range(len(methods)))
        if scale == "linear":
            ax.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(4, steps=[1, 2, 5, 10]))
        else:
            plain_numbers(ax.xaxis)
    axes[0].set_yticklabels(map(shown, methods))
    axes[0].margins(y=max(0.05, 0.3 / len(methods)))  # a whole marker at the first and last line
    axes[0].invert_yaxis()
    bounded = any(bounds_of(values, name).isin(list(ARROWS)).any() for name in quantities)
    arrows = "; open arrows: it lies beyond" if bounded else ""
    note(
        fig,
        f"Points: {seeds(values)}{arrows}; upright: their mean; line: its 95 % interval; dotted: "
        f"the mean of “{shown(methods[0])}”.",
    )
    return fig


def _dots(ax, y: int, method: str, of_seeds: np.ndarray, bounds: np.ndarray):
    """A line of `figure_dots`: the seeds, and their mean where none of them is a bound."""
    color, marker = style_of(method)
    known = of_seeds[bounds == ""]
    ax.plot(known, np.full(len(known), y), marker, ms=5, color=color, alpha=0.6)
    for bound, arrow in ARROWS.items():
        at = of_seeds[bounds == bound]
        ax.plot(at, np.full(len(at), y), arrow, ms=5, color=color, mfc="none")
    if len(known) == len(of_seeds):
        mean, lo, hi = analysis.interval(of_seeds)
        ax.plot([lo, hi], [y, y], "-", lw=1.2, color=color)
        ax.plot(mean, y, "|", ms=14, mew=2, color=color)


def bounds_of(values: pd.DataFrame, name: str) -> pd.Series:
    """Of each row AT_LEAST or AT_MOST where its value of a quantity is a bound, else ""."""
    return values.get(f"{name} bound", pd.Series("", values.index))
