"""From the table of runs to the paper's quantities: LR curves, S, optima, fits, intervals.

Every function takes frames and returns a frame, or numbers per seed; none reads or writes a file.
Losses are in nats per token: ℓ is a run's final loss, ℓ0 its loss before training, ℓ* the lowest ℓ
of a curve. `by` names the columns that make one curve of loss against LR, usually
["method", "n_params"]. Groups keep the order of the table.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy import stats

from proxies_lib.config import UserError
from proxies_lib.science import protocol

FAILURE = 0.1  # a run fails when it loses this share of what the best LR learns

LATE = 0.05  # of the logged points, at the end of training; P1 averages its last 500 of 1e5 steps

CONFIDENCE = 0.95

AT_LEAST, AT_MOST = "≥", "≤"  # of a quantity, say a diverging LR, that is only known this far


def with_loss(runs: pd.DataFrame) -> pd.DataFrame:
    """`runs` with `loss` = min(ℓ, ℓ0); a diverged run counts as ℓ0 (P1, section 2.2)."""
    loss = runs["final_loss"].where(~runs["diverged"], np.inf).fillna(np.inf)
    return runs.assign(loss=np.minimum(loss, runs["init_loss"]))


def interval(values) -> tuple[float, float, float]:
    """Mean of one number per seed, with its 95 % Student t interval.

    One value has no interval (nan), and no values have no mean either.
    """
    values = np.asarray(values, float)
    n = len(values)
    if n == 0:
        return np.nan, np.nan, np.nan
    mean = float(values.mean())
    if n == 1:
        return mean, np.nan, np.nan
    half = half_width(values.std(ddof=1), n)
    return mean, float(values.mean() - half), float(values.mean() + half)


def half_width(deviation, n):
    """Half the width of the interval over n > 1 seeds of this standard deviation."""
    return stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * deviation / np.sqrt(n)


def pooled(means, halves, counts) -> tuple[float, float]:
    """Mean and half width of the interval over several sets of seeds taken as one.

    Of each set its mean, half the width of its interval (0 of a single seed), and its n.
    """
    means, halves, counts = (np.asarray(values, float) for values in (means, halves, counts))
    n = counts.sum()
    mean = float((counts * means).sum() / n)
    # Half a width of deviation 1 needs n > 1; a single seed deviates from its mean by nothing.
    deviations = halves / half_width(1, np.maximum(counts, 2))
    squares = (counts - 1) * deviations**2 + counts * (means - mean) ** 2
    return mean, float(half_width(np.sqrt(squares.sum() / (n - 1)), n))


def where(table: pd.DataFrame, **values) -> pd.DataFrame:
    """The rows whose columns have these values; a list or tuple allows several.

    Floats are compared with a relative tolerance of 1e-9: an LR of 0.1 may be 0.1 + 1e-16.
    """
    keep = np.ones(len(table), bool)
    for name, wanted in values.items():
        allowed = wanted if isinstance(wanted, (list, tuple)) else [wanted]
        column = table[name].to_numpy()
        if column.dtype.kind == "f":
            # rows × allowed values
            equal = np.isclose(column[:, None], np.array(allowed, float), rtol=1e-9, atol=0)
            keep &= equal.any(axis=1)
        else:
            keep &= table[name].isin(allowed).to_numpy()
    return table[keep]


def bounds_of(values: pd.DataFrame, name: str) -> pd.Series:
    """Of each row AT_LEAST or AT_MOST where its value of a quantity is a bound, else ""."""
    return values.get(f"{name} bound", pd.Series("", values.index))


def _groups(frame: pd.DataFrame, columns: list[str]) -> Iterator[tuple[dict, pd.DataFrame]]:
    """The rows of every group, with the values of `columns` that name it."""
    for values, rows in frame.groupby(columns, sort=False):
        yield dict(zip(columns, values, strict=True)), rows


def lr_curves(runs: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Final loss against peak LR: mean, min and max over seeds per (by, lr).

    Each row has `n`, the number of seeds, `n_diverged`, and the `keys` of its runs.
    """
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
    """LR sensitivity S of every curve and seed, in nats (P1, section 2.2).

    S is the mean over the LRs of `window` of min(ℓ, ℓ0) − ℓ*, with ℓ* the best of them. Raises
    UserError where a curve lacks an LR of the window: S over fewer is another quantity.
    """
    inside = where(with_loss(runs), lr=tuple(window))
    rows = []
    for labels, curve in _groups(inside, [*by, "seed"]):
        if len(curve) != len(window):
            raise UserError(f"window={tuple(window)}: {labels} has {len(curve)} of its LRs")
        above_best = curve["loss"] - curve["loss"].min()
        rows.append(labels | {"S": above_best.mean()})
    return pd.DataFrame(rows)


def lr_sensitivity(runs: pd.DataFrame, by: list[str], window) -> pd.DataFrame:
    """S of every curve: mean over seeds, `lo` and `hi` of its interval, `n` seeds."""
    return over_seeds(lr_sensitivity_per_seed(runs, by, window), by)


def lr_sensitivity_above_best(runs: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """`S` of every curve and seed over the decade from its own best LR up, in nats.

    The window moves with the optimum, as P1's appendix B advises, and no LR below the best one is
    in it. A curve whose LRs end within that decade has no row.
    """
    rows = []
    for labels, curve in _groups(with_loss(runs), [*by, "seed"]):
        above_best = curve.set_index("lr")["loss"].sort_index() - curve["loss"].min()
        best = above_best.idxmin()
        top = 10.1 * best  # a little more than the decade, as LRs are rounded
        if above_best.index.max() > 9.9 * best:
            rows.append(labels | {"S": above_best[best:top].mean()})
    return pd.DataFrame(rows, columns=[*by, "seed", "S"])


def over_seeds(per_seed: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """`S` of each group: mean over its seeds, `lo` and `hi` of the interval, `n` seeds."""
    rows = []
    for labels, seeds in _groups(per_seed, by):
        mean, lo, hi = interval(seeds["S"])
        rows.append(labels | {"S": mean, "lo": lo, "hi": hi, "n": len(seeds)})
    return pd.DataFrame(rows, columns=[*by, "S", "lo", "hi", "n"])


def sensitivities(
    runs: pd.DataFrame, by: list[str], study: protocol.Study
) -> dict[str, pd.DataFrame]:
    """S, by title, over the scale's window and over those of the paper's LRs that `runs` have."""
    paper = tuple(lr for lr in protocol.PAPER_WINDOW if not where(runs, lr=lr).empty)
    windows = {f"window {study.window[0]:g} – {study.window[-1]:g}": study.window}
    if paper != tuple(study.window):
        windows[f"the paper's LRs {paper[0]:g} – {paper[-1]:g}"] = paper
    return {title: lr_sensitivity(runs, by, window) for title, window in windows.items()}


def failure_level(curve: pd.DataFrame) -> float:
    """The loss from which on a run of one curve and seed fails: ℓ* + FAILURE·(ℓ0 − ℓ*), nats."""
    best = curve["loss"].min()
    return best + FAILURE * (curve["init_loss"].iloc[0] - best)


def first_failure(curve: pd.DataFrame) -> int | None:
    """The row of the first LR above the best one that fails, in one curve and seed by rising LR.

    None where no LR fails; 0 where nothing is learned at any LR, so that every one fails.
    """
    loss = curve["loss"].to_numpy()
    best = int(loss.argmin())
    failing = np.flatnonzero(loss[best:] >= failure_level(curve))
    return best + int(failing[0]) if len(failing) else None


def diverging_lr(runs: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Per curve and seed, the peak LR above the optimum at which training fails: `diverging_lr`.

    Failing is ℓ ≥ ℓ* + FAILURE·(ℓ0 − ℓ*), interpolated in log LR; nan where no LR of the grid
    fails, or where every one does.
    """
    rows = []
    for labels, curve in _groups(with_loss(runs), [*by, "seed"]):
        curve = curve.sort_values("lr")
        loss, log_lr = curve["loss"].to_numpy(), np.log10(curve["lr"].to_numpy())
        found = np.nan
        j = first_failure(curve)
        if j:
            # Between the last LR below the level and the first at or above it.
            share = (failure_level(curve) - loss[j - 1]) / (loss[j] - loss[j - 1])
            found = 10 ** (log_lr[j - 1] + share * (log_lr[j] - log_lr[j - 1]))
        rows.append(labels | {"diverging_lr": found})
    return pd.DataFrame(rows)


def excess_loss(runs: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """`runs` with `excess`, the share of the learning lost against the best LR of its curve.

    It is (ℓ − ℓ*)/(ℓ0 − ℓ*), ℓ* of the same seed: 0 at the best LR, 1 where nothing is learned.
    """
    runs = with_loss(runs)
    best = runs.groupby([*by, "seed"])["loss"].transform("min")
    return runs.assign(excess=(runs["loss"] - best) / (runs["init_loss"] - best))


def optimum(runs: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Per curve and seed, `best_loss` over the LRs, and `best_lr` between them.

    `best_lr` is the vertex of the parabola in log LR through the best point and its neighbours; at
    an end of the grid it is that end.
    """
    rows = []
    for labels, curve in _groups(with_loss(runs), [*by, "seed"]):
        curve = curve.sort_values("lr")
        loss, log_lr = curve["loss"].to_numpy(), np.log10(curve["lr"].to_numpy())
        i = int(loss.argmin())
        best = log_lr[i]
        if 0 < i < len(loss) - 1:
            around = slice(i - 1, i + 2)
            a, b, _ = np.polyfit(log_lr[around] - best, loss[around] - loss[i], 2)
            # Equal losses make no vertex.
            best += -b / (2 * a) if a > 0 else 0.0
        rows.append(labels | {"best_loss": loss[i], "best_lr": 10**best})
    return pd.DataFrame(rows)


def slopes(per_seed: pd.DataFrame, value: str, x: str = "n_params") -> pd.Series:
    """By seed, the least-squares slope of `value` against log10 of `x`; nan of a single x."""
    found = {}
    for seed, rows in per_seed.groupby("seed"):
        found[seed] = np.nan
        if rows[x].nunique() > 1:
            found[seed], _ = np.polyfit(np.log10(rows[x]), rows[value], 1)
    return pd.Series(found, dtype=float).rename_axis("seed")


# The columns of a run that go with its logged points.
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
    """The logged points of `runs`, each with the columns DESCRIBING its run, in the runs' order.

    Runs that have a `point` (of a figure) keep it.
    """
    columns = [*DESCRIBING, "point"] if "point" in runs else DESCRIBING
    # The copy is in one piece: a merge leaves hundreds of blocks, slow to add columns to.
    return runs[columns].merge(curves, on="key").copy()


def at_points(runs: pd.DataFrame, points) -> pd.DataFrame:
    """The runs at (d_model, n_layers, lr) `points`, with the point's position as `point`.

    Raises UserError where a point has no run.
    """
    found = []
    for i, (d_model, n_layers, lr) in enumerate(points):
        here = where(runs, d_model=d_model, n_layers=n_layers, lr=lr)
        if here.empty:
            raise UserError(f"figure2={(d_model, n_layers, lr)}: no such run in the grid")
        found.append(here.assign(point=i))
    return pd.concat(found, ignore_index=True)


def end_means(runs: pd.DataFrame, curves: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """A row per run: the geometric mean of each logged quantity over the last LATE of training."""
    points = curves_of(runs, curves)
    points = points[points["step"] >= (1 - LATE) * points["steps"]]
    with np.errstate(divide="ignore"):  # the mean of values of which one is 0 is 0
        logs = np.log(points[names])
        means = np.exp(logs.groupby([points["method"], points["key"]], sort=False).mean())
    return runs[DESCRIBING].merge(means.reset_index(), on=["method", "key"])


def rms_panels(
    swept: pd.DataFrame, deep: pd.DataFrame, curves: pd.DataFrame, name: str, by_block: list[str]
) -> dict[str, pd.DataFrame]:
    """The three panels of `plots.figure_rms`: `end_means` values of a quantity, as `rms`.

    By the quantity on the x axis: "n_params" (a `line` per LR) and "lr" (a line per N) of the runs
    `swept`; "block" (a line per LR) of the runs `deep`, from the columns `by_block`.
    """
    seen = end_means(swept, curves, [name]).rename(columns={name: "rms"})
    seen = seen[["key", "seed", "n_params", "lr", "rms"]]
    numbers = {column: number for number, column in enumerate(by_block)}
    blocks = end_means(deep, curves, by_block)[["key", "seed", "lr", *by_block]]
    blocks = blocks.rename(columns=numbers)
    blocks = blocks.melt(["key", "seed", "lr"], var_name="block", value_name="rms")
    return {
        "n_params": seen.assign(line=seen["lr"], line_of="lr"),
        "lr": seen.assign(line=seen["n_params"], line_of="n_params"),
        "block": blocks.assign(line=blocks["lr"], line_of="lr"),
    }


def median_before(observed: pd.DataFrame, step: int, nearby: int, name: str) -> pd.Series:
    """Median of a logged quantity over the `nearby` steps before `step`, by method and seed."""
    points = observed[observed["step"].between(step - nearby, step - 1)]
    return points.groupby(["method", "seed"], sort=False)[name].median()


def spikes(
    observed: pd.DataFrame, begin: int, length: int, nearby: int, back: float
) -> pd.DataFrame:
    """What a burst of `length` steps from step `begin` on does to the training loss (nats).

    Per method and seed: `height`, the highest point of the `nearby` steps after the burst, less
    the level, the median of as many before it. `steps_lost`, from `begin` to the first point after
    the burst that is within `back` of the level, or to the end of training.

    A logged point stands at its last step; its loss is the mean of its steps. With a point every 4
    steps and a burst of 5 steps from 23 on:

        steps    16–19   20–23   24–27   28–31   …
        point      19      23      27      31
        burst               23 – 27
        taken    before                  after   …

    The points at 23 and 27 hold steps of the burst and are left out. A burst must end with a point,
    as this one does at 27: else the rest of that point's steps would be left out with it.
    """
    rows = []
    levels = median_before(observed, begin, nearby, "loss")
    for (method, seed), run in observed.groupby(["method", "seed"], sort=False):
        steps_of_a_point = int(run["step"].iloc[0]) + 1
        last_of_burst = begin + length - 1
        after = run[run["step"] >= last_of_burst + steps_of_a_point]
        near = after[after["step"] < begin + length + nearby]
        level = levels.get((method, seed), np.nan)
        healed = after.loc[after["loss"] <= level + back, "step"]
        end = healed.iloc[0] if len(healed) else run["steps"].iloc[0]
        rows.append(
            {
                "key": run["key"].iloc[0],
                "method": method,
                "seed": seed,
                "height": near["loss"].max() - level,
                "steps_lost": end - begin,
            }
        )
    return pd.DataFrame(rows)


def remedies(table: pd.DataFrame, spikes: pd.DataFrame) -> pd.DataFrame:
    """The runs with their spikes, `loss` and `tokens_lost`.

    A run that went back lost the steps that it threw away, those of the burst included.
    """
    runs = with_loss(table).merge(spikes, on=["key", "method", "seed"])
    end_of_burst = runs["rare_batch"] + runs["rare_batches"]
    went_back = runs["skip_step"] != 0
    steps_lost = runs["steps_lost"].mask(went_back, end_of_burst - runs["skip_step"])
    tokens_lost = steps_lost * runs["batch_size"] * runs["seq_len"]
    return runs.assign(steps_lost=steps_lost, tokens_lost=tokens_lost)


def at_share(runs: pd.DataFrame, curves: pd.DataFrame, share: float) -> pd.DataFrame:
    """The first logged point of every run at or after `share` of its training.

    Runs that ended before have none.
    """
    points = curves_of(runs, curves)
    points = points[points["step"] + 1 >= share * points["steps"]]
    return points.groupby(["method", "key"], sort=False, as_index=False).first()


def probe(runs: pd.DataFrame, curves: pd.DataFrame, share: float) -> pd.DataFrame:
    """`at_share`, with `failed`: the run lost more than FAILURE, at an LR above the best one."""
    curve = ["method", "n_params", "seed"]
    lost = excess_loss(runs, ["method", "n_params"])
    best = lost.loc[lost.groupby(curve)["loss"].idxmin(), [*curve, "lr"]]
    lost = lost.merge(best, on=curve, suffixes=("", "_best"))
    # Too low an LR learns little too, but does not fail.
    failed = (lost["excess"] > FAILURE) & (lost["lr"] > lost["lr_best"])
    lost = lost.assign(failed=failed).drop_duplicates("key")
    return at_share(runs, curves, share).merge(lost[["key", "failed"]], on="key")


def polynomial_prediction(
    log_n, log_y, at_log_n: float, degree: int = 2
) -> tuple[float, float, float]:
    """A polynomial fit's value at `at_log_n`, and the 95 % prediction interval of one observation.

    The degree falls to what the number of distinct sizes allows. Without residual degrees of
    freedom the interval is nan.
    """
    log_n, log_y = np.asarray(log_n, float), np.asarray(log_y, float)
    degree = min(degree, len(np.unique(log_n)) - 1)
    # Powers of log N: of the observations (n, degree + 1), and of the new one (degree + 1,).
    design = np.vander(log_n, degree + 1)
    new = np.vander([at_log_n], degree + 1)[0]
    weights = np.linalg.lstsq(design, log_y, rcond=None)[0]
    value = float(new @ weights)
    freedom = len(log_y) - degree - 1
    if freedom < 1:
        return value, np.nan, np.nan
    # The variance of a new observation is that of the residuals and that of the fit itself.
    variance = np.square(log_y - design @ weights).sum() / freedom
    leverage = new @ np.linalg.pinv(design.T @ design) @ new
    spread = np.sqrt(variance * (1 + leverage))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom) * spread)
    return value, value - half, value + half


def predict_logits(
    probed: pd.DataFrame, sizes, name: str = "max_attention_logit/0"
) -> pd.DataFrame:
    """Fig. 9: per LR, a quadratic of log10 `name` in log10 N, fitted to `probed`.

    A row per LR and N of `sizes`: `predicted`, with `lo` and `hi` of its prediction interval.
    """
    rows = []
    for lr, points in probed.groupby("lr"):
        log_n, log_y = np.log10(points["n_params"]), np.log10(points[name])
        for n in sizes:
            fit = polynomial_prediction(log_n, log_y, np.log10(n))
            predicted, lo, hi = 10 ** np.array(fit)
            rows.append({"lr": lr, "n_params": n, "predicted": predicted, "lo": lo, "hi": hi})
    return pd.DataFrame(rows)


def scored(
    predicted: pd.DataFrame,
    held_out: pd.DataFrame,
    limit: float,
    name: str = "max_attention_logit/0",
) -> pd.DataFrame:
    """Every probed run of the held-out size beside its prediction.

    `inside`: its logit lies in the prediction interval. `off`: by how many decades, of either sign,
    the prediction misses it. `foretold`: the predicted logit is above `limit` and the run failed,
    or neither.
    """
    both = held_out.merge(predicted, on=["n_params", "lr"])
    return both.assign(
        inside=both[name].between(both["lo"], both["hi"]),
        off=np.log10(both["predicted"] / both[name]).abs(),
        foretold=(both["predicted"] > limit) == both["failed"],
    )


def extrapolated(best: pd.DataFrame) -> pd.DataFrame:
    """Fig. E.3: per series and seed, a line of best loss in log10 N through all but the largest N.

    `slope` and `offset` are the line's, `error` is the largest model's loss above it. Two sizes
    leave one to fit: the line is flat.
    """
    rows = []
    for (method, seed), series in best.groupby(["method", "seed"], sort=False):
        series = series.sort_values("n_params")
        x, y = np.log10(series["n_params"].to_numpy()), series["best_loss"].to_numpy()
        slope, offset = np.polyfit(x[:-1], y[:-1], 1) if len(x) > 2 else (0.0, y[0])
        rows.append(
            {
                "method": method,
                "seed": seed,
                "n_params": series["n_params"].max(),
                "slope": slope,
                "offset": offset,
                "error": y[-1] - (slope * x[-1] + offset),
            }
        )
    return pd.DataFrame(rows)
