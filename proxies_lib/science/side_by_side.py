"""Quantities side by side: what the paper states, a public re-run, and what each scale measures.

They are P1's, sections 2.2, 3.1.1 and 3.1.2: LR sensitivity with and without qk-layernorm and
z-loss, the LR that diverges, log² Z, the best LR.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd

from proxies_lib import config, paths
from proxies_lib.runs import tables
from proxies_lib.science import analysis, columns, notebooks, protocol
from proxies_lib.science.analysis import where
from proxies_lib.science.checks.attention_logits import OFF, ON
from proxies_lib.science.checks.measures import (
    BY,
    same_as_base,
    same_numbers_as_base,
    slopes_of_diverging_lr,
)
from proxies_lib.science.checks.output_logits import NEITHER, Z_LOSS
from proxies_lib.science.protocol import PAPER_RUN, PAPER_WINDOW

LACKING = "–"

ROWS = {
    "length": "steps × tokens a step",
    "window": "window of S",
    "smallest": "N, smallest",
    "largest": "N, largest with and without qk-layernorm",
    "S off": "S without qk-layernorm, largest N",
    "S on": "S with qk-layernorm, largest N",
    "ratio": "their ratio",
    "paper S off": "S without qk-layernorm, largest N, over 0.0003 – 0.3",
    "paper S on": "S with qk-layernorm, largest N, over 0.0003 – 0.3",
    "paper ratio": "their ratio, over 0.0003 – 0.3",
    "largest z": "N, largest with and without z-loss",
    "S neither": "S without z-loss, no decay, largest N",
    "S z": "S with z-loss, no decay, largest N",
    "diverging small": "diverging LR without qk-layernorm, smallest N",
    "diverging large": "diverging LR without qk-layernorm, largest N",
    "slope": "its slope, decades per decade of width",
    "drift steps": "steps of Figure 4's longest training",
    "log² Z neither": "mean log² Z at its end without z-loss, LR 0.1, smallest N",
    "log² Z z": "mean log² Z at its end with z-loss, LR 0.1, smallest N",
    "best": "best LR with qk-layernorm, largest N",
}

_PAPER_TOKENS = PAPER_RUN.train.batch_size * PAPER_RUN.model.seq_len

# What P1 states. It prints no table of losses or of S; the ratio is read off its Figure 1.
PAPER = {
    "length": f"{PAPER_RUN.hparams.steps:,} × {_PAPER_TOKENS:,}",
    "window": f"{PAPER_WINDOW[0]:g} – {PAPER_WINDOW[-1]:g}",
    "paper ratio": "about 25, at 19M",
}

# A public re-run of P1's protocol, arXiv 2601.02031: github.com/flxst/output-embedding-centering,
# loss_overview.csv, commit 25c6fb9, the smallest model ("16M": 6 layers of width 224, N 3.6M), one
# seed. Test loss in nats per token by peak LR, qk-layernorm on, decay 0, 100,000 steps of 64 × 2048
# tokens. Column `H.mean_logsqZ` at LR 0.1. V is 50K, so ℓ0 is about ln V.
RERUN_N = 12 * 6 * 224**2
RERUN_INIT_LOSS = 10.83
RERUN_LOSSES = pd.DataFrame(
    [
        (3e-4, 3.961, 3.961),
        (1e-3, 3.881, 3.878),
        (3e-3, 3.850, 3.848),
        (1e-2, 3.841, 3.836),
        (3e-2, 3.857, 3.841),
        (1e-1, 4.269, 3.854),
        (3e-1, 5.065, 3.955),
    ],
    columns=["lr", NEITHER, Z_LOSS],
)
RERUN_LOG2_Z = {NEITHER: 389_120.0, Z_LOSS: 14.8}


class _Lacking(LookupError):
    """A published table lacks runs, or a curve, of a quantity."""


def table() -> pd.DataFrame:
    """A row per quantity of ROWS, a column per source; "–" where a source does not have it.

    A measured cell is a mean over seeds and their number n; LRs are averaged in log LR.
    """
    cells = {"paper": PAPER, "public re-run": of_rerun()}
    cells |= {scale: of_scale(scale) for scale in columns.SCALES}
    frame = pd.DataFrame({"": ROWS} | cells, index=list(ROWS))
    return frame.fillna(LACKING)


def of_scale(scale: str) -> dict[str, str]:
    """The cells of a scale, from its published tables of runs and curves.

    Raises UserError where a notebook's grid cannot be read.
    """
    study = protocol.study(scale)
    attention, _ = asked_runs(scale, "01")
    output, curves = asked_runs(scale, "02")
    sizes, few = sorted(attention["n_params"].unique()), sorted(output["n_params"].unique())
    same = same_as_base(output, study)
    drifting = where(same_numbers_as_base(output, study), n_params=few[0], lr=0.1)
    longest = int(drifting["steps"].max())
    tokens = study.base.train.batch_size * study.base.model.seq_len

    def s(method: str, window: tuple = study.window) -> pd.Series:
        return _s(_picked(attention, method=method, n_params=sizes[-1], lr=window), window)

    def s_of_output(method: str) -> pd.Series:
        picked = _picked(same, method=method, n_params=few[-1], lr=study.window)
        return _s(picked, study.window)

    def diverging(**selected) -> pd.DataFrame:
        return analysis.diverging_lr(_picked(attention, method=OFF, **selected), [*BY, "d_model"])

    def log2_z(method: str) -> pd.Series:
        runs = _picked(drifting, method=method, steps=longest)
        return _at_end(runs, curves, "mean_log_z_squared")

    def best() -> pd.Series:
        largest = _picked(attention, method=ON, n_params=sizes[-1])
        return analysis.optimum(largest, BY).set_index("seed")["best_lr"]

    quantities: dict[str, Callable[[], str]] = {
        "length": lambda: f"{study.base.hparams.steps:,} × {tokens:,}",
        "window": lambda: f"{study.window[0]:g} – {study.window[-1]:g}",
        "smallest": lambda: f"{sizes[0]:,}",
        "largest": lambda: f"{sizes[-1]:,}",
        "S off": lambda: _mean(s(OFF)),
        "S on": lambda: _mean(s(ON)),
        "ratio": lambda: _mean(s(OFF) / s(ON)),
        "paper S off": lambda: _mean(s(OFF, PAPER_WINDOW)),
        "paper S on": lambda: _mean(s(ON, PAPER_WINDOW)),
        "paper ratio": lambda: _mean(s(OFF, PAPER_WINDOW) / s(ON, PAPER_WINDOW)),
        "largest z": lambda: f"{few[-1]:,}",
        "S neither": lambda: _mean(s_of_output(NEITHER)),
        "S z": lambda: _mean(s_of_output(Z_LOSS)),
        "diverging small": lambda: _diverging(diverging(n_params=sizes[0]), study.lrs[-1]),
        "diverging large": lambda: _diverging(diverging(n_params=sizes[-1]), study.lrs[-1]),
        "slope": lambda: _mean(slopes_of_diverging_lr(diverging(), "d_model").dropna()),
        "drift steps": lambda: f"{longest:,}",
        "log² Z neither": lambda: _mean(log2_z(NEITHER)),
        "log² Z z": lambda: _mean(log2_z(Z_LOSS)),
        "best": lambda: _log_mean(best()),
    }
    cells = {}
    for name, quantity in quantities.items():
        try:
            cells[name] = quantity()
        except _Lacking:
            cells[name] = LACKING
    return cells


def of_rerun() -> dict[str, str]:
    """The cells of the public re-run. Its arms are without decay, with qk-layernorm; its S divides
    by the number of LRs less one, so S is taken from its losses here, as everywhere."""
    arms = RERUN_LOSSES.melt("lr", var_name="method", value_name="final_loss")
    runs = arms.assign(n_params=RERUN_N, seed=1, init_loss=RERUN_INIT_LOSS, diverged=False)
    neither, z_loss = (where(runs, method=method) for method in (NEITHER, Z_LOSS))
    n = f"{RERUN_N:,}"
    return {
        "length": f"{100_000:,} × {64 * 2048:,}",
        "window": PAPER["window"],
        "smallest": n,
        "largest z": n,
        "S neither": _mean(_s(neither, PAPER_WINDOW)),
        "S z": _mean(_s(z_loss, PAPER_WINDOW)),
        "drift steps": f"{100_000:,}",
        "log² Z neither": _mean(pd.Series([RERUN_LOG2_Z[NEITHER]])),
        "log² Z z": _mean(pd.Series([RERUN_LOG2_Z[Z_LOSS]])),
        "best": _log_mean(analysis.optimum(z_loss, BY)["best_lr"]),
    }


def asked_runs(scale: str, section: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every run that a section asks for, a row per method and run, and the published curves.

    A run that the published table of the scale lacks has no `key`. Runs match by recipe, as
    `tables.locate` does where the corpus of the table is not prepared here.
    """
    methods = notebooks.grid_of(notebooks.sections()[section], notebooks.reading(scale))
    asked = [
        config.flat(run)
        | {"method": method, "n_params": run.model.n_params, "recipe": config.recipe(run)}
        for method, runs in methods.items()
        for run in dict.fromkeys(runs)
    ]
    results = ["recipe", "key", "final_loss", "init_loss", "diverged"]
    exported = tables.exported(paths.folder("papermill_runs") / scale)
    if exported is None:
        return pd.DataFrame(asked).assign(key=np.nan), pd.DataFrame()
    runs, curves = exported
    found = runs[results].drop_duplicates("recipe", keep="last")
    return pd.DataFrame(asked).merge(found, on="recipe", how="left"), curves


def _picked(runs: pd.DataFrame, **selected) -> pd.DataFrame:
    """The runs that `where` selects. Raises _Lacking where the published table lacks one."""
    picked = where(runs, **selected)
    if picked.empty or picked["key"].isna().any():
        raise _Lacking
    return picked.astype({"diverged": bool})  # it was an object where some run was lacking


def _s(runs: pd.DataFrame, window: tuple) -> pd.Series:
    return analysis.lr_sensitivity_per_seed(runs, BY, window).set_index("seed")["S"]


def _at_end(runs: pd.DataFrame, curves: pd.DataFrame, name: str) -> pd.Series:
    """By seed, the last logged point of a curve. Raises _Lacking where runs are older than it."""
    if name not in curves:
        raise _Lacking
    points = analysis.curves_of(runs, curves).sort_values("step")
    last = points.groupby("seed")[name].last()
    if last.isna().any():
        raise _Lacking
    return last


def _diverging(failing: pd.DataFrame, highest: float) -> str:
    """Over the seeds that fail; where none does, that it is above the `highest` LR of the grid."""
    found = failing["diverging_lr"].dropna()
    return _log_mean(found) if len(found) else f"above {highest:g}"


def _mean(values: pd.Series) -> str:
    return f"{values.mean():.3g}, {len(values)}" if len(values) else LACKING


def _log_mean(values: pd.Series) -> str:
    return f"{10 ** np.log10(values).mean():.2g}, {len(values)}"
