"""Figures: a function per figure of the paper, on tidy frames; png, svg and the numbers in it (csv).

A plot draws all it is given: a diverged run sits, marked, on the ℓ0 line. One style per method everywhere.
"""

import importlib.metadata
import io
import json

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns

from proxies_lib import config, store, sweep
from proxies_lib.config import Study

METHODS = {  # label, color, marker
    "none": ("without qk-layernorm", "#c44e52", "X"),
    "per_head": ("with qk-layernorm", "#3b6fb6", "o"),
}

sns.set_theme("notebook", style="ticks", rc={
    "axes.grid": True, "grid.alpha": 0.3, "svg.hashsalt": "proxies", "figure.dpi": 100, "savefig.dpi": 150,
    "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "legend.fontsize": 9,
})  # fmt: skip


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
    name = ax.annotate(text, (x, level), xycoords=("axes fraction", "data"), xytext=(0, 3), fontsize=8, color="0.4",
                       textcoords="offset points", ha="left" if x < 0.5 else "right")  # fmt: skip
    name.set_in_layout(False)


def loss_against_lr(ax, curves: pd.DataFrame):
    """Final loss against peak LR, a curve per N: mean over seeds, band from least to largest; × where runs diverged."""
    colors = size_colors(curves["n_params"])
    for n, rest in curves.groupby("n_params"):
        ax.plot(rest["lr"], rest["loss"], "-o", ms=4, color=colors[n], label=f"N = {count(n)}")
        ax.fill_between(rest["lr"], rest["low"], rest["high"], color=colors[n], alpha=0.2, lw=0)
        broken = rest[rest["n_diverged"] > 0]
        ax.plot(broken["lr"], broken["high"], "x", ms=9, mew=2, color=colors[n])
    reference(ax, curves["init_loss"].mean(), "ℓ₀, loss at initialization", 0.02)
    ax.set(xscale="log", xlabel="peak learning rate", ylabel="final validation loss (nats/token)")


def sensitivity_against_n(ax, sensitivity: pd.DataFrame):
    """LR sensitivity S against N, a curve per method, with its interval over seeds."""
    for method, rest in sensitivity.groupby("qk_norm"):
        label, color, marker = METHODS[method]
        ax.plot(rest["n_params"], rest["S"], "-", marker=marker, color=color, label=label)
        ax.fill_between(rest["n_params"], rest["lo"], rest["hi"], color=color, alpha=0.2, lw=0)
    ax.set(xscale="log", xlabel="parameters N (without embedding and head)", ylabel="LR sensitivity S (nats)")
    sizes = sorted(sensitivity["n_params"].unique())
    ax.set_xticks(sizes, [count(n) for n in sizes], minor=False)
    ax.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())


def trajectories(ax, observed: pd.DataFrame, y: str, label: bool = True):
    """`y` against step, a line per run (seed), colored by method; a diverged run ends in a ×."""
    for method, rest in observed.groupby("qk_norm"):
        name, color, _ = METHODS[method]
        for i, (_, run) in enumerate(rest.groupby("key")):
            ax.plot(run["step"], run[y], color=color, lw=1.2, alpha=0.8, label=name if label and not i else None)
            if run["diverged"].any():
                ax.plot(run["step"].iloc[-1:], run[y].iloc[-1:], "x", ms=9, mew=2, color=color)


def figure0(curves: pd.DataFrame, sensitivity: pd.DataFrame, window) -> plt.Figure:
    """The method in one picture: a loss curve, its best loss ℓ*, ℓ0, and S as the mean gap over the window."""
    fig, ax = plt.subplots(figsize=(7, 4.2), layout="constrained")
    loss_against_lr(ax, curves)
    inside = curves[curves["lr"].between(min(window) * 0.99, max(window) * 1.01)]
    best, s = inside["loss"].min(), sensitivity["S"].iloc[0]
    ax.fill_between(
        inside["lr"], best, inside["loss"], color="0.6", alpha=0.35, lw=0, label="gap to ℓ* over the window"
    )
    ax.axhline(best, color="0.2", lw=1, ls="--", label="ℓ*, best loss")
    ax.axhline(best + s, color="#3b6fb6", lw=1, label=f"ℓ* + S, S = {s:.2f} nats")
    ax.legend()
    return fig


def figure1(curves: pd.DataFrame, sensitivities: dict[str, pd.DataFrame]) -> plt.Figure:
    """Fig. 1: LR→loss per N without and with qk-layernorm above, N→S below, a panel per LR window."""
    fig, axes = plt.subplots(2, 2, figsize=(10, 7.5), layout="constrained", sharey="row")
    for ax, method in zip(axes[0], METHODS, strict=True):
        loss_against_lr(ax, curves[curves["qk_norm"] == method])
        ax.set_title(METHODS[method][0])
    axes[0, 0].legend()
    for ax, (title, frame) in zip(axes[1], sensitivities.items(), strict=True):
        sensitivity_against_n(ax, frame)
        ax.set_title(title)
    axes[1, 0].set_ylim(bottom=0)
    for ax in axes[:, 1]:
        ax.set_ylabel("")
    axes[1, 0].legend()
    return fig


def figure2(observed: pd.DataFrame) -> plt.Figure:
    """Fig. 2: training loss, and max |attention logit| of layer 0, against step, at two (size, LR)."""
    return _trajectory_grid(observed, {
        "loss": ("training loss (nats/token)", "linear"),
        "max_attention_logit/0": ("max |attention logit|, layer 0", "log"),
    }, lines={"max_attention_logit/0": (1e4, "10⁴")})  # fmt: skip


def figure_e1(observed: pd.DataFrame) -> plt.Figure:
    """Fig. E.1: norms of q and k and the cosine between them, layer 0, against step."""
    return _trajectory_grid(observed, {
        "q_norm/0": ("mean ‖q‖, layer 0", "log"),
        "k_norm/0": ("mean ‖k‖, layer 0", "log"),
        "qk_cosine/0": ("mean |cos(q, k)|, layer 0", "linear"),
    }, lines={})  # fmt: skip


def _trajectory_grid(observed, quantities: dict, lines: dict) -> plt.Figure:
    points = sorted(observed["point"].unique())
    fig, axes = plt.subplots(
        len(quantities), len(points), figsize=(10, 2.9 * len(quantities)), layout="constrained",
        sharex=True, sharey="row", squeeze=False,
    )  # fmt: skip
    for column, point in enumerate(points):
        mine = observed[observed["point"] == point]
        axes[0, column].set_title(f"N = {count(mine['n_params'].iloc[0])}, peak LR {mine['lr'].iloc[0]:g}")
        axes[-1, column].set_xlabel("step")
        for ax, (name, (label, scale)) in zip(axes[:, column], quantities.items(), strict=True):
            trajectories(ax, mine, name)
            ax.set_yscale(scale)
            ax.set_ylabel(label if not column else "")
            if name in lines:
                reference(ax, *lines[name], 1.0)
    axes[0, 0].legend()
    return fig


def save(fig: plt.Figure, name: str, frames: dict[str, pd.DataFrame], runs: pd.DataFrame, study: Study):
    """When publishing, write figures/<label>/<name>.{png,svg,csv}; while only reading, write nothing.

    The csv holds exactly the plotted numbers, a `panel` column first; png and svg carry scale, overrides, corpus,
    devices, versions and commits of the runs, and the commit of the drawing.
    """
    if not study.publish:
        return
    target = config.folder("figures") / study.label
    seen = {k: sorted(map(str, runs[k].unique())) for k in ("fingerprint", "device", "python", "jax", "flax", "commit")}
    about = {"scale": study.scale, "overrides": dict(study.overrides), "runs": len(runs), **seen,
             "drawn_at_commit": sweep.commit(), "matplotlib": importlib.metadata.version("matplotlib")}  # fmt: skip
    text = json.dumps(about, sort_keys=True)
    for kind, metadata in (("png", {"Description": text}), ("svg", {"Description": text, "Date": None})):
        picture = io.BytesIO()
        fig.savefig(picture, format=kind, metadata=metadata)
        store.write_atomically(target / f"{name}.{kind}", picture.getvalue())
    numbers = pd.concat([frame.assign(panel=panel) for panel, frame in frames.items()], ignore_index=True)
    numbers = numbers[["panel", *(c for c in numbers.columns if c != "panel")]]
    store.write_atomically(target / f"{name}.csv", numbers.to_csv(index=False, float_format="%.7g").encode())
