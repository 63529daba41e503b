"""Colors, markers and words: of a method, a size, a learning rate, the same everywhere.

Figures and the site take them from here.
"""

import re
import zlib

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

GRAY = "0.4"
# The marker of a value of which only this bound is known.
ARROWS = {analysis.AT_LEAST: ">", analysis.AT_MOST: "<"}


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


def title_of_sensitivity(window: str, curves: pd.DataFrame) -> str:
    """Over which learning rates S is, and which of the paper's are missing: S depends on them."""
    title = f"S over {window}"
    trained = curves["lr"].unique()
    missing = [lr for lr in protocol.PAPER_WINDOW if not np.isclose(lr, trained).any()]
    if window.startswith("the paper's") and missing:
        those = f"{missing[0]:g}" if len(missing) == 1 else f"{len(missing)} more"
        title += f"\n(without {those}: not trained here)"
    return title
