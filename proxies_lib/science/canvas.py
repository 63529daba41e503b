"""Parts that every figure is made of: panels, legends, notes, reference lines, axes.

Every figure is WIDTH inches wide, so that its text is at least 9 px high at the 830 px that GitHub
gives it. Legends stand above the axes, never on curves; a note below says what points, lines and
bands are.
"""

import textwrap

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns

from proxies_lib.science import styles
from proxies_lib.science.styles import GRAY, LR_AXIS, N_AXIS

# At 830 px a point is 1.39 px: notes are 11.8 px high, the exponent in 10⁻³ on an axis 9.2 px.
WIDTH = 8.3
NOTE, TICK, LABEL, TITLE = 8.5, 9.5, 9.5, 10.0

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
    name = f"ε = {styles.epsilon(eps)}"
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


def spans_decades(axis) -> bool:
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
    ax.set_xticks(apart, [styles.count(n) for n in apart], minor=False)
    ax.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    ax.set_xlabel(N_AXIS)
