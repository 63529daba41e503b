"""From the table of runs to the paper's quantities: LR curves, LR sensitivity, optima, fits, intervals. Frame → frame.

`by` names the columns that make one curve, usually ["method", "n_params"]. Groups keep the order of the table.
"""

import numpy as np
import pandas as pd
from scipy import stats

from proxies_lib.config import UserError
from proxies_lib.science import protocol

FAILURE = 0.1  # a run fails when it loses this share of what the best LR learns

LATE = 0.05  # of the logged points, at the end of training; P1 averages its last 500 of 1e5 steps

CONFIDENCE = 0.95


def with_loss(runs: pd.DataFrame) -> pd.DataFrame:
    """`runs` with `loss` = min(ℓ, ℓ0), a diverged run counting as ℓ0 (P1, section 2.2), in nats per token."""
    loss = runs["final_loss"].where(~runs["diverged"], np.inf).fillna(np.inf)
    return runs.assign(loss=np.minimum(loss, runs["init_loss"]))


def interval(values) -> tuple[float, float, float]:
    """Mean of one number per seed, with its 95 % Student t interval; one value has no interval (nan)."""
    values = np.asarray(values, float)
    n = len(values)
    if n < 2:
        return (float(values.mean()) if n else np.nan), np.nan, np.nan
    half = stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * values.std(ddof=1) / np.sqrt(n)
    return float(values.mean()), float(values.mean() - half), float(values.mean() + half)


def where(table: pd.DataFrame, **values) -> pd.DataFrame:
    """The rows whose columns have these values, floats compared with tolerance; a list or tuple allows several."""
    keep = np.ones(len(table), bool)
    for name, wanted in values.items():
        wanted = wanted if isinstance(wanted, (list, tuple)) else [wanted]
        column = table[name].to_numpy()
        if column.dtype.kind == "f":
            keep &= np.isclose(column[:, None], np.array(wanted, float), rtol=1e-9, atol=0).any(
                axis=1
            )
        else:
            keep &= table[name].isin(wanted).to_numpy()
    return table[keep]


def _summary(per_seed: pd.DataFrame, by: list[str], value: str) -> pd.DataFrame:
    rows = []
    for group, rest in per_seed.groupby(by, sort=False):
        mean, lo, hi = interval(rest[value])
        rows.append(
            dict(zip(by, group, strict=True)) | {value: mean, "lo": lo, "hi": hi, "n": len(rest)}
        )
    return pd.DataFrame(rows)


def lr_curves(runs: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Final loss against peak LR: mean, min and max over seeds per (by, lr), with n, diverged runs and run keys."""
    groups = with_loss(runs).groupby([*by, "lr"], as_index=False, sort=False)
    return groups.agg(
        loss=("loss", "mean"),
        low=("loss", "min"),
        high=("loss", "max"),
        init_loss=("init_loss", "mean"),
        n=("seed", "nunique"),
        n_diverged=("diverged", "sum"),
        keys=("key", " ".join),
    )


def lr_sensitivity_per_seed(runs: pd.DataFrame, by: list[str], window) -> pd.DataFrame:
    """S of every seed: mean over the window's LRs of min(ℓ, ℓ0) − ℓ*, ℓ* the best of them (P1, section 2.2)."""
    inside = with_loss(runs)
    rows = []
    for group, rest in where(inside, lr=tuple(window)).groupby([*by, "seed"], sort=False):
        if len(rest) != len(window):
            raise UserError(
                f"window={tuple(window)}: {dict(zip([*by, 'seed'], group))} has {len(rest)} of its LRs"
            )
        rows.append(
            dict(zip([*by, "seed"], group, strict=True))
            | {"S": (rest["loss"] - rest["loss"].min()).mean()}
        )
    return pd.DataFrame(rows)


def lr_sensitivity(runs: pd.DataFrame, by: list[str], window) -> pd.DataFrame:
    """LR sensitivity S per group: mean over seeds with interval and n."""
    return _summary(lr_sensitivity_per_seed(runs, by, window), by, "S")


def sensitivities(
    runs: pd.DataFrame, by: list[str], study: protocol.Study
) -> dict[str, pd.DataFrame]:
    """S over the scale's window and, beside it, over those of the paper's LRs that all `runs` have, by title."""
    paper = tuple(lr for lr in protocol.PAPER_WINDOW if not where(runs, lr=lr).empty)
    titles = {f"window {study.window[0]:g} – {study.window[-1]:g}": study.window}
    if paper != tuple(study.window):
        titles[f"the paper's LRs {paper[0]:g} – {paper[-1]:g}"] = paper
    return {title: lr_sensitivity(runs, by, window) for title, window in titles.items()}


def diverging_lr(runs: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Per group and seed, the peak LR above the optimum at which training fails, interpolated in log LR.

    Failing: ℓ ≥ ℓ* + FAILURE·(ℓ0 − ℓ*). nan where no LR of the grid fails.
    """
    rows = []
    for group, rest in with_loss(runs).groupby([*by, "seed"], sort=False):
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


def optimum(runs: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Per group and seed, `best_loss` over the LRs and `best_lr`, the vertex of a parabola in log LR around it."""
    rows = []
    for group, rest in with_loss(runs).groupby([*by, "seed"], sort=False):
        rest = rest.sort_values("lr")
        loss, log_lr = rest["loss"].to_numpy(), np.log10(rest["lr"].to_numpy())
        i = int(loss.argmin())
        best = log_lr[i]
        if 0 < i < len(loss) - 1:
            a, b, _ = np.polyfit(log_lr[i - 1 : i + 2] - best, loss[i - 1 : i + 2] - loss[i], 2)
            best += -b / (2 * a) if a > 0 else 0.0
        rows.append(
            dict(zip([*by, "seed"], group, strict=True))
            | {"best_loss": loss[i], "best_lr": 10**best}
        )
    return pd.DataFrame(rows)


def slopes(per_seed: pd.DataFrame, value: str, x: str = "n_params") -> np.ndarray:
    """Per seed, the least-squares slope of `value` against log10 of `x`."""
    return np.array(
        [np.polyfit(np.log10(rest[x]), rest[value], 1)[0] for _, rest in per_seed.groupby("seed")]
    )


DESCRIBING = [
    "key",
    "method",
    "d_model",
    "n_layers",
    "n_params",
    "lr",
    "seed",
    "steps",
    "diverged",
    "init_loss",
]


def curves_of(runs: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """The logged points of `runs`, each with its run's configuration (and `point`, where runs have one), in the order of the runs."""
    columns = [*DESCRIBING, *(["point"] if "point" in runs else [])]
    return runs[columns].merge(curves, on="key").copy()  # in one piece


def at(runs: pd.DataFrame, points) -> pd.DataFrame:
    """The runs at (d_model, n_layers, lr) `points`, with the point's position as `point`."""
    picked = []
    for i, (d_model, n_layers, lr) in enumerate(points):
        here = where(runs, d_model=d_model, n_layers=n_layers, lr=lr)
        if here.empty:
            raise UserError(f"figure2={(d_model, n_layers, lr)}: no such run in the grid")
        picked.append(here.assign(point=i))
    return pd.concat(picked, ignore_index=True)


def late(runs: pd.DataFrame, curves: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """A row per run: the geometric mean of each logged quantity over the last LATE of the training."""
    points = curves_of(runs, curves)
    points = points[points["step"] >= (1 - LATE) * points["steps"]]
    with np.errstate(divide="ignore"):
        values = np.exp(
            np.log(points[names]).groupby([points["method"], points["key"]], sort=False).mean()
        )
    return runs[DESCRIBING].merge(values.reset_index(), on=["method", "key"])


def rms_panels(
    swept: pd.DataFrame, deep: pd.DataFrame, curves: pd.DataFrame, name: str, by_block: list[str]
) -> dict:
    """`late` values of a quantity for `plots.figure_rms`, as `rms`: against N (a `line` per LR), against LR (per N),
    and, of the runs `deep`, of the columns `by_block` against the block's number (per LR)."""
    seen = late(swept, curves, [name]).rename(columns={name: "rms"})
    blocks = late(deep, curves, by_block)[["key", "seed", "lr", *by_block]]
    blocks = blocks.set_axis(["key", "seed", "lr", *range(len(by_block))], axis=1)
    blocks = blocks.melt(["key", "seed", "lr"], var_name="block", value_name="rms")
    columns = ["key", "seed", "n_params", "lr", "rms"]
    return {
        "n_params": seen[columns].assign(line=seen["lr"], line_of="lr"),
        "lr": seen[columns].assign(line=seen["n_params"], line_of="n_params"),
        "block": blocks.assign(line=blocks["lr"], line_of="lr"),
    }


def before(observed: pd.DataFrame, step: int, window: int, name: str) -> pd.Series:
    """Median of a logged quantity over the points of the `window` steps before `step`, by method and seed."""
    points = observed[observed["step"].between(step - window, step - 1)]
    return points.groupby(["method", "seed"], sort=False)[name].median()


def spikes(
    observed: pd.DataFrame, begin: int, length: int, window: int, back: float
) -> pd.DataFrame:
    """Per method and seed, what a disturbance of `length` steps from step `begin` on does to the training loss (nats).

    `height`: the highest point of the `window` steps after it, less the median of as many before it. `steps_lost`: from
    `begin` to the first point after it that is within `back` of that median, or to the end. Points that hold steps of
    the disturbance are left out, and so must be the rest of the point in which it ends: let it end with one.
    """
    rows = []
    level = before(observed, begin, window, "loss")
    for (method, seed), run in observed.groupby(["method", "seed"], sort=False):
        every = int(run["step"].iloc[0]) + 1  # steps of a point
        after = run[run["step"] >= begin + length - 1 + every]
        near = after[after["step"] < begin + length + window]
        steady = level.get((method, seed), np.nan)
        healed = after.loc[after["loss"] <= steady + back, "step"]
        end = healed.iloc[0] if len(healed) else run["steps"].iloc[0]
        rows.append(
            {
                "key": run["key"].iloc[0],
                "method": method,
                "seed": seed,
                "height": near["loss"].max() - steady,
                "steps_lost": end - begin,
            }
        )
    return pd.DataFrame(rows)


def remedies(table: pd.DataFrame, spikes: pd.DataFrame) -> pd.DataFrame:
    """The runs with their spikes, `loss` and `tokens_lost`. A run that went back lost the steps that it threw away, those
    of the disturbance included."""
    runs = with_loss(table).merge(spikes, on=["key", "method", "seed"])
    thrown = runs["rare_batch"] + runs["rare_batches"] - runs["skip_step"]
    runs["steps_lost"] = runs["steps_lost"].where(runs["skip_step"] == 0, thrown)
    return runs.assign(tokens_lost=runs["steps_lost"] * runs["batch_size"] * runs["seq_len"])


def at_share(runs: pd.DataFrame, curves: pd.DataFrame, share: float) -> pd.DataFrame:
    """The first logged point of every run at or after `share` of its training; runs that ended before have none."""
    points = curves_of(runs, curves)
    points = points[points["step"] + 1 >= share * points["steps"]]
    return points.groupby(["method", "key"], sort=False, as_index=False).first()


def probe(runs: pd.DataFrame, curves: pd.DataFrame, share: float) -> pd.DataFrame:
    """`at_share`, with `failed`: whether the run lost more than FAILURE of what its best LR, a lower one, learned."""
    lost = excess_loss(runs, ["method", "n_params"])
    best = lost.loc[lost.groupby(["method", "n_params", "seed"])["loss"].idxmin()]
    lost = lost.merge(
        best[["method", "n_params", "seed", "lr"]],
        on=["method", "n_params", "seed"],
        suffixes=("", "_best"),
    )
    lost = lost.assign(
        failed=(lost["excess"] > FAILURE) & (lost["lr"] > lost["lr_best"])
    ).drop_duplicates("key")
    return at_share(runs, curves, share).merge(lost[["key", "failed"]], on="key")


def polynomial_prediction(
    log_n, log_y, at_log_n: float, degree: int = 2
) -> tuple[float, float, float]:
    """A polynomial fit's value at `at_log_n` with the 95 % prediction interval of one new observation.

    The degree falls to what the number of distinct sizes allows; without residual degrees of freedom the
    interval is nan.
    """
    log_n, log_y = np.asarray(log_n, float), np.asarray(log_y, float)
    degree = min(degree, len(np.unique(log_n)) - 1)
    design, new = np.vander(log_n, degree + 1), np.vander([at_log_n], degree + 1)[0]
    weights = np.linalg.lstsq(design, log_y, rcond=None)[0]
    freedom = len(log_y) - degree - 1
    value = float(new @ weights)
    if freedom < 1:
        return value, np.nan, np.nan
    variance = np.square(log_y - design @ weights).sum() / freedom
    spread = np.sqrt(variance * (1 + new @ np.linalg.pinv(design.T @ design) @ new))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom) * spread)
    return value, value - half, value + half


def predict_logits(
    probed: pd.DataFrame, sizes, name: str = "max_attention_logit/0"
) -> pd.DataFrame:
    """Fig. 9: per LR, a quadratic of log10 `name` in log10 N fitted to `probed`, evaluated at every N of `sizes`."""
    rows = []
    for lr, rest in probed.groupby("lr"):
        for n in sizes:
            fit = polynomial_prediction(
                np.log10(rest["n_params"]), np.log10(rest[name]), np.log10(n)
            )
            rows.append(
                {
                    "lr": lr,
                    "n_params": n,
                    **dict(zip(("predicted", "lo", "hi"), 10 ** np.array(fit), strict=True)),
                }
            )
    return pd.DataFrame(rows)


def score(
    predicted: pd.DataFrame,
    held_out: pd.DataFrame,
    limit: float,
    name: str = "max_attention_logit/0",
):
    """Every held-out run beside its prediction: `inside` its interval, and `foretold`: (predicted > limit) = failed."""
    both = held_out.merge(predicted, on=["n_params", "lr"])
    return both.assign(
        inside=both[name].between(both["lo"], both["hi"]),
        foretold=(both["predicted"] > limit) == both["failed"],
    )


def extrapolated(best: pd.DataFrame) -> pd.DataFrame:
    """Fig. E.3: per series and seed, best loss as a line in log10 N fitted on all but the largest N: `error` there."""
    rows = []
    for (method, seed), rest in best.groupby(["method", "seed"], sort=False):
        rest = rest.sort_values("n_params")
        x, y = np.log10(rest["n_params"].to_numpy()), rest["best_loss"].to_numpy()
        slope, offset = np.polyfit(x[:-1], y[:-1], 1) if len(x) > 2 else (0.0, y[0])
        rows.append(
            {
                "method": method,
                "seed": seed,
                "n_params": rest["n_params"].max(),
                "slope": slope,
                "offset": offset,
                "error": y[-1] - (slope * x[-1] + offset),
            }
        )
    return pd.DataFrame(rows)
