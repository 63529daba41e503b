"""What the checks of several sections share: logged quantities, selections, an effect per seed."""

import numpy as np
import pandas as pd

from proxies_lib import config
from proxies_lib.science import analysis
from proxies_lib.science.analysis import where
from proxies_lib.science.checks.thresholds import DECAY_ACTS
from proxies_lib.science.protocol import Study

BY = ["method", "n_params"]  # the columns that make one curve of loss against LR

# Names of logged quantities. P1 shows an early layer: block 0.
LOGIT = "max_attention_logit/0"
GRADIENT = "grad_rms/blocks/0/mlp_in/kernel"
UPDATE = "update_rms/blocks/0/mlp_in/kernel"
KEY_GRADIENT = "grad_rms/blocks/0/attention/key/kernel"

FORCED = "forced by raising ε"  # the note of a check that makes the paper's regime, not finds it


QUESTION = "a question of this project, not a claim of the paper"


def notes(*texts: str) -> str:
    """Several notes of a check as one; empty ones are left out."""
    return "; ".join(filter(None, texts))


def series(frame: pd.DataFrame, value: str, **selected) -> pd.Series:
    """`value` of the rows that `where` selects, by seed and N."""
    return where(frame, **selected).set_index(["seed", "n_params"])[value]


def difference(frame: pd.DataFrame, value: str, method: str, less: str, **selected) -> pd.Series:
    """`value` of one `method` less that of the method `less`, by seed and N.

    Only where both arms have that seed and N: the pair shares its data, and of its initialization
    what `model.init` says.
    """
    minuend, subtrahend = (series(frame, value, method=name, **selected) for name in (method, less))
    return minus(minuend, subtrahend)


def minus(minuend: pd.Series, subtrahend: pd.Series) -> pd.Series:
    """The difference of two arms, paired by what both are indexed by, seeds above all."""
    paired = minuend.index.intersection(subtrahend.index)
    return minuend.loc[paired] - subtrahend.loc[paired]


def per_seed(values: pd.Series, how: str = "mean") -> np.ndarray:
    """One number per seed: the mean over the sizes, or the "min" or "max" of them."""
    return values.groupby("seed").agg(how).to_numpy()


def log_slopes(frame: pd.DataFrame, value: str, x: str = "n_params") -> pd.Series:
    """By seed, decades of `value` per decade of `x`."""
    return analysis.slopes(frame.assign(decades=np.log10(frame[value])), "decades", x)


def slopes_of_diverging_lr(failing: pd.DataFrame, x: str) -> pd.Series:
    """By seed, decades of the diverging LR per decade of `x`; nan where fewer than two sizes fail.

    `failing` is `analysis.diverging_lr`. A size that fails at no LR of the grid has a diverging LR
    above it: it is left out.
    """
    found = failing.dropna()
    sizes = found.groupby("seed")[x].transform("nunique")
    slopes = log_slopes(found[sizes > 1], "diverging_lr", x)
    return slopes.reindex(failing["seed"].unique())


def sizes_left_out(failing: pd.DataFrame) -> str:
    """A note on the sizes that `slopes_of_diverging_lr` leaves out; "" where every one fails."""
    missing = failing["diverging_lr"].isna().groupby(failing["n_params"]).sum()
    seeds = failing["seed"].nunique()
    parts = [f"N {n:,} in {count} of {seeds} seeds" for n, count in missing[missing > 0].items()]
    return f"left out, as no LR of the grid fails: {', '.join(parts)}" if parts else ""


def decays_nothing(decay: float, study: Study) -> str:
    """Why an independent `decay` cannot be tested in trainings of this length, or ""."""
    acts = decay * study.base.hparams.steps
    if acts >= DECAY_ACTS:
        return ""
    return f"λ · steps is {acts:.2g} here, 10 in the paper: λ = {decay:g} does nothing"


def same_as_base(table: pd.DataFrame, study: Study) -> pd.DataFrame:
    """The runs of the base's steps, batch, vocabulary and precision."""
    flat = config.flat(study.base)
    same_training = {name: flat[name] for name in ("steps", "batch_size")}
    return where(same_numbers_as_base(table, study), **same_training)


def same_numbers_as_base(table: pd.DataFrame, study: Study, **changed) -> pd.DataFrame:
    """The runs of the base's vocabulary and precision, but for what is `changed`."""
    flat = config.flat(study.base)
    names = ("vocab_size", "compute_dtype", "logits_dtype")
    return where(table, **({name: flat[name] for name in names} | changed))
