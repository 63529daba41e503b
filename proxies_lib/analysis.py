"""From the table of runs to the paper's quantities: LR curves, LR sensitivity, diverging LR, intervals. Frame → frame."""

import itertools

import numpy as np
import pandas as pd

from proxies_lib import config
from proxies_lib.config import UserError

FAILURE = 0.1  # a run fails when it loses this share of what the best LR learns
RESAMPLES = 4000


def protocol_table() -> pd.DataFrame:
    """The protocol of every scale side by side, as `config.scales` fixes it."""
    columns = {}
    for s in config.scales().values():
        b, m = s.base, s.base.model
        columns[s.scale] = {
            "data": f"{b.data}, vocabulary {m.vocab_size}",
            "width × layers": ", ".join(f"{d}×{n}" for d, n in s.sizes),
            "batch × length": f"{b.train.batch_size} × {m.seq_len}",
            "steps (warm-up)": f"{b.hparams.steps} ({b.hparams.warmup_steps})",
            "seeds": str(len(s.seeds)),
            "learning rates": ", ".join(f"{lr:g}" for lr in s.lrs),
            "window of S": f"{s.window[0]:g} – {s.window[-1]:g}",
            "compute": m.compute_dtype,
        }
    return pd.DataFrame(columns)


def markdown(table: pd.DataFrame) -> str:
    """A frame as a Markdown table, without its index."""
    body = [[str(value).replace("|", "\\|") for value in row] for row in table.itertuples(index=False)]
    return "\n".join(
        "| " + " | ".join(row) + " |" for row in [list(table.columns), ["---"] * len(table.columns), *body]
    )


def with_loss(runs: pd.DataFrame) -> pd.DataFrame:
    """`runs` with `loss` = min(ℓ, ℓ0), a diverged run counting as ℓ0 (P1, section 2.2), in nats per token."""
    loss = runs["final_loss"].where(~runs["diverged"], np.inf).fillna(np.inf)
    return runs.assign(loss=np.minimum(loss, runs["init_loss"]))


def bootstrap(values) -> tuple[float, float, float]:
    """Mean and 95 % percentile-bootstrap interval over seeds; every resample where few, else a fixed draw of them.

    One value has no interval (nan). With n ≤ 3 the interval is the range of the values.
    """
    values = np.asarray(values, float)
    n = len(values)
    if n < 2:
        return (float(values.mean()) if n else np.nan), np.nan, np.nan
    if n <= 5:
        picks = np.array(list(itertools.product(range(n), repeat=n)))
    else:
        picks = np.random.default_rng(0).integers(n, size=(RESAMPLES, n))
    means = values[picks].mean(axis=1)
    lo, hi = np.percentile(means, 2.5, method="lower"), np.percentile(means, 97.5, method="higher")
    return float(values.mean()), float(lo), float(hi)


def _summary(per_seed: pd.DataFrame, by: list[str], value: str) -> pd.DataFrame:
    rows = []
    for group, rest in per_seed.groupby(by, sort=True):
        mean, lo, hi = bootstrap(rest[value])
        rows.append(dict(zip(by, group, strict=True)) | {value: mean, "lo": lo, "hi": hi, "n": len(rest)})
    return pd.DataFrame(rows)


def lr_curves(runs: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Final loss against peak LR: mean, min and max over seeds per (by, lr), with n, diverged runs and run keys."""
    groups = with_loss(runs).groupby([*by, "lr"], as_index=False)
    return groups.agg(
        loss=("loss", "mean"), low=("loss", "min"), high=("loss", "max"), init_loss=("init_loss", "mean"),
        n=("seed", "nunique"), n_diverged=("diverged", "sum"), keys=("key", " ".join),
    )  # fmt: skip


def lr_sensitivity_per_seed(runs: pd.DataFrame, by: list[str], window) -> pd.DataFrame:
    """S of every seed: mean over the window's LRs of min(ℓ, ℓ0) − ℓ*, ℓ* the best of them (P1, section 2.2)."""
    inside = with_loss(runs)
    inside = inside[np.isclose(inside["lr"].to_numpy()[:, None], np.array(window)).any(axis=1)]
    rows = []
    for group, rest in inside.groupby([*by, "seed"], sort=True):
        if len(rest) != len(window):
            raise UserError(f"window={tuple(window)}: {dict(zip([*by, 'seed'], group))} has {len(rest)} of its LRs")
        rows.append(dict(zip([*by, "seed"], group, strict=True)) | {"S": (rest["loss"] - rest["loss"].min()).mean()})
    return pd.DataFrame(rows)


def lr_sensitivity(runs: pd.DataFrame, by: list[str], window) -> pd.DataFrame:
    """LR sensitivity S per group: mean over seeds with interval and n."""
    return _summary(lr_sensitivity_per_seed(runs, by, window), by, "S")


def diverging_lr(runs: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Per group and seed, the peak LR above the optimum at which training fails, interpolated in log LR.

    Failing: ℓ ≥ ℓ* + FAILURE·(ℓ0 − ℓ*). nan where no LR of the grid fails.
    """
    rows = []
    for group, rest in with_loss(runs).groupby([*by, "seed"], sort=True):
        rest = rest.sort_values("lr")
        loss, log_lr = rest["loss"].to_numpy(), np.log10(rest["lr"].to_numpy())
        level = loss.min() + FAILURE * (rest["init_loss"].to_numpy()[0] - loss.min())
        best = int(loss.argmin())
        above = np.flatnonzero(loss[best:] >= level)
        found = np.nan
        if len(above):
            j = best + above[0]
            share = (level - loss[j - 1]) / (loss[j] - loss[j - 1])
            found = 10 ** (log_lr[j - 1] + share * (log_lr[j] - log_lr[j - 1]))
        rows.append(dict(zip([*by, "seed"], group, strict=True)) | {"diverging_lr": found})
    return pd.DataFrame(rows)


def excess_loss(runs: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Every run's share of the learning lost against the best LR of its group and seed: (ℓ − ℓ*)/(ℓ0 − ℓ*)."""
    runs = with_loss(runs)
    best = runs.groupby([*by, "seed"])["loss"].transform("min")
    return runs.assign(excess=(runs["loss"] - best) / (runs["init_loss"] - best))


def slopes(per_seed: pd.DataFrame, value: str) -> np.ndarray:
    """Per seed, the least-squares slope of `value` against log10 N."""
    return np.array([np.polyfit(np.log10(rest["n_params"]), rest[value], 1)[0] for _, rest in per_seed.groupby("seed")])


def curves_of(runs: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """The logged points of `runs`, each with its run's configuration, in step order."""
    columns = ["key", "d_model", "n_layers", "n_params", "qk_norm", "lr", "seed", "diverged", "init_loss"]
    return curves.merge(runs[columns], on="key").sort_values(["key", "step"], ignore_index=True)


def at(runs: pd.DataFrame, points) -> pd.DataFrame:
    """The runs at (d_model, n_layers, lr) `points`, with the point's position as `point`."""
    picked = []
    for i, (d_model, n_layers, lr) in enumerate(points):
        here = (runs["d_model"] == d_model) & (runs["n_layers"] == n_layers) & np.isclose(runs["lr"], lr)
        if not here.any():
            raise UserError(f"figure2={(d_model, n_layers, lr)}: no such run in the grid")
        picked.append(runs[here].assign(point=i))
    return pd.concat(picked, ignore_index=True)
