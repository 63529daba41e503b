"""What an intervention does to the stability of training: a row per method, beside anchors.

Everything is measured at one size, the largest unless told, and per seed. A seed fixes the order
of the data, and the initialization of what two methods have in common as far as `model.init` says,
so a method is paired with an anchor seed by seed. Intervals are those of Student's t over seeds,
95 %.

`measured` gives these per seed, `score` a row per method, `score_table` a table to read:

    S                 LR sensitivity over the study's window, nats (P1, section 2.2)
    best_loss         lowest final loss over that window, nats per token
    diverging_lr      the lowest peak LR at which training fails (`analysis.diverging_lr`)
    log10_logit_before, log10_logit_after
                      log10 of the largest |attention logit| of the training, over blocks and
                      logged points: of q·k, and as it enters the softmax where an intervention
                      changes logits in between
    log2_z            mean log² Z of the output at the end (P1, section 3.1.2)
    entropy           entropy of the attention weights at the end, nats, mean over blocks

The last four are taken at the top LR of the window, where an instability shows most. Against an
anchor, say "none": "S - none" and "best_loss - none" in nats, "diverging_lr / none" a factor.
"""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from proxies_lib.config import Run, UserError, digest, recipe, refuse
from proxies_lib.science import analysis, bisection, outputs, report
from proxies_lib.science.analysis import AT_LEAST, AT_MOST, where
from proxies_lib.science.claims import check
from proxies_lib.science.figures import FIGURES
from proxies_lib.science.protocol import Study

ANCHORS = ("none", "qk-layernorm")

MEANS = ("S", "best_loss")  # measures with an arithmetic mean, whose difference is paired

LR = "diverging_lr"  # its mean is geometric, and a factor is paired

AT_TOP = ("log10_logit_before", "log10_logit_after", "log2_z", "entropy")  # with a median

# Tap of each block → the measure, largest of a training, at the top LR.
LARGEST = {
    "max_attention_logit/": "log10_logit_before",
    "max_entering_logit/": "log10_logit_after",
}

# Tap, or prefix of a tap of each block → the measure, mean of the end, at the top LR.
AT_END = {"mean_log_z_squared": "log2_z", "attention_entropy/": "entropy"}

# What two runs must share for their times to be compared. One commit: most likely one sweep, on a
# machine that is equally busy.
SHAPE = [
    *("d_model", "n_layers", "d_head", "vocab_size", "seq_len"),
    *("batch_size", "steps", "compute_dtype", "device", "commit"),
]

UNKNOWN = "?"  # beside the bounds AT_LEAST and AT_MOST: of a mean or a ratio of both kinds

OPPOSITE = {"": "", AT_LEAST: AT_MOST, AT_MOST: AT_LEAST, UNKNOWN: UNKNOWN}

# Of a row of `claims.check` → the column of `score`.
JUDGED = {
    "statement": "prediction",
    "measure": "measure",
    "effect": "effect",
    "lo": "effect lo",
    "hi": "effect hi",
    "verdict": "verdict",
    "note": "note",
}


@dataclass(frozen=True)
class Prediction:
    """What one expects of a method, written down before its runs are made.

    `measure` is a column of `measured`; "|S - none|" is the size of "S - none". The prediction
    holds where the whole interval lies `above`, or `below`, a threshold: give one of the two.
    """

    words: str
    measure: str
    above: float | None = None
    below: float | None = None


# ------------------------------------------------------------------ per seed


def measured(
    table: pd.DataFrame,
    curves: pd.DataFrame,
    study: Study,
    anchors: tuple[str, ...] = ANCHORS,
    brackets: pd.DataFrame | None = None,
    n_params: int | None = None,
) -> pd.DataFrame:
    """A row per method and seed, in the order of `table`: the measures above, at one size.

    `table` and `curves` are those of `report.collect`; `brackets` those of `bisection.rounds`.
    Without them the diverging LR is interpolated in the grid. Where its bracket is censored, the
    end that is known stands for it, and `diverging_lr bound` is AT_LEAST or AT_MOST; likewise
    "diverging_lr / none bound". A measure is nan where a run logged no such quantity, and a pair
    where the anchor lacks the seed.

    Raises UserError where `table` lacks an anchor, or a curve an LR of the window.
    """
    runs = _at_size(table, n_params)
    for anchor in anchors:
        if anchor not in set(runs["method"]):
            refuse("anchors", anchor, f"must be one of {', '.join(runs['method'].unique())}")
    window = where(runs, lr=tuple(study.window))
    s = analysis.lr_sensitivity_per_seed(window, ["method"], study.window)
    found = s.set_index(["method", "seed"])
    found["best_loss"] = window.groupby(["method", "seed"])["loss"].min()
    found = found.join(_diverging_lrs(runs, brackets)).join(_at_top(window, curves, study))
    for anchor in anchors:
        found = _paired(found, anchor)
    return found.reset_index()


def _at_size(table: pd.DataFrame, n_params: int | None) -> pd.DataFrame:
    size = table["n_params"].max() if n_params is None else n_params
    runs = where(table, n_params=size)
    if runs.empty:
        sizes = ", ".join(map(str, sorted(table["n_params"].unique())))
        refuse("n_params", size, f"must be one of {sizes}")
    return analysis.with_loss(runs)


def _diverging_lrs(runs: pd.DataFrame, brackets: pd.DataFrame | None) -> pd.DataFrame:
    """By method and seed, the diverging LR and its bound."""
    index = ["method", "seed"]
    if brackets is None:
        of_grid = analysis.diverging_lr(runs, ["method"]).set_index(index)
        found = bisection.brackets(runs, ["method"]).set_index(index)
        found = found.assign(diverging_lr=of_grid[LR])
    else:
        found = where(brackets, n_params=runs["n_params"].iloc[0]).set_index(index)
    known_end = {bisection.ABOVE: found["lo"], bisection.BELOW: found["hi"]}
    bound = {bisection.ABOVE: AT_LEAST, bisection.BELOW: AT_MOST}
    lr = found[LR]
    for censored, end in known_end.items():
        lr = lr.mask(found["censored"] == censored, end)
    return pd.DataFrame({LR: lr, f"{LR} bound": found["censored"].map(bound).fillna("")})


def _at_top(runs: pd.DataFrame, curves: pd.DataFrame, study: Study) -> pd.DataFrame:
    """By method and seed, the measures that are taken at the top LR of the window."""
    top = where(runs, lr=max(study.window))
    taps = {prefix: _named(curves, prefix) for prefix in (*LARGEST, *AT_END)}
    columns = [name for names in taps.values() for name in names]
    observed = analysis.curves_of(top, curves[["key", "step", *columns]])
    end = observed[observed["step"] >= (1 - analysis.LATE) * observed["steps"]]

    found = {}
    with np.errstate(divide="ignore"):  # where every logit is 0
        for prefix, measure in LARGEST.items():
            largest = observed[taps[prefix]].max(axis=1)
            found[measure] = np.log10(_by_run(observed, largest).max())
    for prefix, measure in AT_END.items():
        found[measure] = _by_run(end, end[taps[prefix]].mean(axis=1)).mean()
    return pd.DataFrame(found)


def _named(curves: pd.DataFrame, prefix: str) -> list[str]:
    """The columns of a tap: of every block where the prefix ends with a slash."""
    if prefix.endswith("/"):
        return [name for name in curves if name.startswith(prefix)]
    return [prefix] if prefix in curves else []


def _by_run(observed: pd.DataFrame, values: pd.Series):
    return values.groupby([observed["method"], observed["seed"]], sort=False)


def _paired(found: pd.DataFrame, anchor: str) -> pd.DataFrame:
    """`found` with its differences and its factor against `anchor`, seed by seed; nan for its own
    rows."""
    seeds = found.index.get_level_values("seed")
    other = found.loc[anchor].reindex(seeds).set_index(found.index)
    own = found.index.get_level_values("method") == anchor
    pairs = {f"{name} - {anchor}": (found[name] - other[name]).mask(own) for name in MEANS}
    factor, bound = f"{LR} / {anchor}", f"{LR} bound"
    both = zip(found[bound], other[bound].fillna(""), strict=True)
    bounds = pd.Series([_bound_of_ratio(*pair) for pair in both], found.index)
    ratio = (found[LR] / other[LR]).mask(own)
    pairs |= {factor: ratio, f"{factor} bound": bounds.mask(ratio.isna(), "")}
    return found.assign(**pairs)


def _bound_of_ratio(above: str, below: str) -> str:
    """The bound of a ratio whose two parts have these bounds."""
    return _common({above, OPPOSITE[below]})


def _common(bounds) -> str:
    """The bound of what is made of numbers with these bounds: that of all which have one."""
    known = set(bounds) - {""}
    return UNKNOWN if len(known) > 1 else "".join(known)


# ------------------------------------------------------------------ cost


def cost(
    table: pd.DataFrame, anchor: str = ANCHORS[0], n_params: int | None = None
) -> pd.DataFrame:
    """By method, what a step costs more than one of `anchor`, in %: `cost`, a median over pairs.

    A pair is a run and the anchor's of the same LR, seed and SHAPE; a diverged run is none. `cost
    lo` and `cost hi` are quartiles, `cost n` counts pairs. `train_seconds` is wall time of whatever
    machine was free: a few % are noise, and so is more where other work ran beside it. Time steps
    in turns (`proxies bench`) before believing a small number.
    """
    runs = _at_size(table, n_params)
    timed = runs[~runs["diverged"]]
    pairing = [*SHAPE, "lr", "seed"]
    is_anchor = timed["method"] == anchor
    reference = timed.loc[is_anchor, [*pairing, "train_seconds"]]
    pairs = timed[~is_anchor].merge(reference, on=pairing, suffixes=("", "_anchor"))
    more = 100 * (pairs["train_seconds"] / pairs["train_seconds_anchor"] - 1)
    by_method = more.groupby(pairs["method"])
    quartiles = {"cost": 0.5, "cost lo": 0.25, "cost hi": 0.75}
    found = {name: by_method.quantile(share) for name, share in quartiles.items()}
    return pd.DataFrame(found | {"cost n": by_method.size()})


# ------------------------------------------------------------------ per method


def score(
    table: pd.DataFrame,
    curves: pd.DataFrame,
    study: Study,
    anchors: tuple[str, ...] = ANCHORS,
    predictions: Mapping[str, Prediction | dict] | None = None,
    brackets: pd.DataFrame | None = None,
    n_params: int | None = None,
) -> pd.DataFrame:
    """A row per method of `table`, in its order; arguments and errors are those of `measured`.

    `S`, `best_loss` and their differences are means over seeds, with ` lo` and ` hi` of the t
    interval; `diverging_lr` and its factors are geometric ones, with an interval in log LR. Where a
    seed's diverging LR is a bound, so is the mean, and it has no interval; where seeds are bounds
    of both kinds, it is nan. Measures at the top LR are medians over seeds. `seeds` counts them,
    `cost` and its quartiles are in % (`cost`, against the first of `anchors`).

    `predictions` are by method, each a Prediction or a dictionary of its fields: `prediction` has
    the words, `verdict` what `claims.check` finds, `effect`, ` lo` and ` hi` why, `note` the rest.
    """
    seeds = measured(table, curves, study, anchors, brackets, n_params)
    rows = [_row(method, of_method) for method, of_method in seeds.groupby("method", sort=False)]
    found = pd.DataFrame(rows)
    if anchors:
        found = found.join(cost(table, anchors[0], n_params), on="method")
    predictions = predictions or {}
    judged = pd.DataFrame(verdicts(seeds, predictions, study), list(predictions), list(JUDGED))
    return found.join(judged.rename(columns=JUDGED), on="method")


def scored(arms: dict[str, list[Run]], study: Study, bisect: bool = False) -> pd.DataFrame:
    """`score` of the methods of `arms` from the runs that there are, with the predictions that
    were written down for them (`predictions.csv` of the label); `bisect`: with bisected LRs.

    Raises UserError where a run or an anchor is missing.
    """
    table, curves = report.collect(arms, study, brief=True)
    brackets = bisection.rounds(arms, study).brackets if bisect else None
    known = {name: given for name, given in _written(study).items() if name in arms}
    return score(table, curves, study, predictions=known, brackets=brackets)


def _written(study: Study) -> dict[str, Prediction]:
    place = outputs.source("papermill_runs", study.label, PREDICTIONS)
    return {} if place is None else predictions_of(pd.read_csv(place / PREDICTIONS))


def _row(method: str, seeds: pd.DataFrame) -> dict:
    """The measures of one method, over its seeds."""
    row = {"method": method, "seeds": len(seeds)}
    for name in seeds.columns.drop(["method", "seed"]):
        if name.endswith(" bound"):
            continue
        values = seeds[name]
        if name in AT_TOP:
            row[name] = values.median()
            continue
        if name.startswith(LR):
            row[f"{name} bound"] = bound = _common(seeds[f"{name} bound"])
            centre = _geometric(values, bound)
        else:
            centre = analysis.interval(values.dropna())
        row |= dict(zip((name, f"{name} lo", f"{name} hi"), centre, strict=True))
    return row


def _geometric(values: pd.Series, bound: str) -> tuple[float, float, float]:
    """The geometric mean and its interval; of numbers that are bounds, the mean alone."""
    mean, lo, hi = (10**x for x in analysis.interval(np.log10(values.dropna())))
    if bound == UNKNOWN:
        return np.nan, np.nan, np.nan
    return (mean, np.nan, np.nan) if bound else (mean, lo, hi)


def paired_ratio(values: pd.DataFrame, name: str, anchor: str) -> pd.DataFrame:
    """A row per method and seed of `values`, with its `name` over that of the method `anchor`.

    The column is "<name> / <anchor>", for `verdicts`: nan for the anchor's own rows, and for a seed
    that the anchor lacks.
    """
    of_anchor = where(values, method=anchor).set_index("seed")[name]
    ratio = values[name] / values["seed"].map(of_anchor)
    own = values["method"] == anchor
    return values[["method", "seed"]].assign(**{f"{name} / {anchor}": ratio.mask(own)})


# ------------------------------------------------------------------ predictions

PREDICTIONS = "predictions.csv"


def write_down(
    predictions: Mapping[str, Prediction | dict], runs: Mapping[str, list[Run]], study: Study
) -> pd.DataFrame:
    """Predictions as they stand in the label's `predictions.csv`: a row each, in their order.

    They are written once for a set of `runs` (by method), before these are trained. Written again
    for the same runs, the file stays as it is, and so does what is judged. `runs_stored` says how
    many of the runs there were when it was written; `for_runs` is a hash of their configurations.

    Raises UserError where a prediction is not one, or is about no method of `runs`.
    """
    rows = []
    for method, given in predictions.items():
        prediction = given if isinstance(given, Prediction) else _prediction(method, given)
        if method not in runs:
            refuse("predictions", method, f"must be one of {', '.join(runs)}")
        rows.append({"method": method, **dataclasses.asdict(prediction)})
    every_run = [run for runs_of_method in runs.values() for run in runs_of_method]
    mark = digest({"recipes": " ".join(sorted({recipe(run) for run in every_run}))})
    stored = report.count_stored(every_run)
    frame = pd.DataFrame(rows).assign(for_runs=mark, runs_stored=stored)
    return report.written_once(frame, PREDICTIONS, "for_runs", study)


def published(label: str) -> pd.DataFrame | None:
    """The rows of `score` of a label's section 11, from the published numbers of its figure; None
    where it has none."""
    file = f"{FIGURES['ideas.score'].file}.csv"
    place = outputs.source("figures", label, file, published=True)
    if place is None:
        return None
    numbers = pd.read_csv(place / file)
    rows = numbers[numbers["panel"] == "scores"].drop(columns="panel").reset_index(drop=True)
    bounds = [name for name in rows if name.endswith(" bound")]
    return rows.assign(**rows[bounds].fillna("").to_dict("series"))


def predictions_of(written: pd.DataFrame) -> dict[str, Prediction]:
    """By method, the predictions in the rows of `write_down`."""
    return {
        row.method: Prediction(row.words, row.measure, _number(row.above), _number(row.below))
        for row in written.itertuples()
    }


def _number(value) -> float | None:
    return None if pd.isna(value) else float(value)


def verdicts(
    seeds: pd.DataFrame,
    predictions: Mapping[str, Prediction | dict],
    study: Study,
    figure: str = "",
    prefix: str = "",
) -> list[dict]:
    """The rows of `claims.check` for predictions by method, from the rows of `measured`.

    A claim's id is `prefix` and the method, with hyphens. A difference or factor is judged over the
    seeds that the anchor has too. A factor of the diverging LR is judged in log10, as its
    interval is taken; where a seed's is only a bound, it cannot be tested. At smoke scale nothing
    can. Raises UserError on a method or measure that `seeds` lacks.
    """
    rows = []
    for method, given in predictions.items():
        prediction = given if isinstance(given, Prediction) else _prediction(method, given)
        if method not in set(seeds["method"]):
            refuse("predictions", method, f"must be one of {', '.join(seeds['method'].unique())}")
        of_method = seeds[seeds["method"] == method]
        claim = prefix + re.sub(r"[^\w.-]+", "-", method)
        rows.append(_verdict(of_method, prediction, figure, claim))
    return report.structure_only(rows, study)


def _prediction(method: str, fields: dict) -> Prediction:
    try:
        return Prediction(**fields)
    except TypeError:
        allowed = "must have words, measure, and above or below"
        raise UserError(f"predictions: that of {method!r} {allowed}") from None


def _verdict(seeds: pd.DataFrame, prediction: Prediction, figure: str, claim: str) -> dict:
    measure, above, below = prediction.measure, prediction.above, prediction.below
    if (above is None) == (below is None):
        refuse("predictions", claim, "must have a threshold above or below")
    name = measure.strip("|")
    known = [name for name in seeds if name not in ("method", "seed") and " bound" not in name]
    if name not in known:
        refuse("measure", measure, f"must be one of {', '.join(known)}")
    values, unless = seeds[name], ""
    if " - " in name or " / " in name:
        values = values.dropna()  # without a pair
    if name.startswith(LR):
        if _common(seeds[f"{name} bound"]):
            unless = "the diverging LR of a seed is a bound: it lies outside the trained LRs"
        values, measure = np.log10(values), f"log10 {name}"
        above, below = (None if x is None else float(np.log10(x)) for x in (above, below))
    if prediction.measure != name:
        values, measure = values.abs(), f"|{measure.strip('|')}|"
    return check(
        claim,
        figure,
        prediction.words,
        measure,
        values.to_numpy(),
        above=above,
        below=below,
        unless=unless,
    )


# ------------------------------------------------------------------ to read


def score_table(scores: pd.DataFrame, anchors: tuple[str, ...] = ANCHORS) -> str:
    """`score` as a Markdown table with a row per method: see `readable`."""
    return report.markdown(readable(scores, anchors))


def readable(scores: pd.DataFrame, anchors: tuple[str, ...] = ANCHORS) -> pd.DataFrame:
    """`score` as a table to read, all of it text: intervals stand in brackets.

    The last columns appear where there is something to show: the logit after an intervention where
    one changes logits, a verdict where something was predicted.
    """
    columns = {"method": list(scores["method"]), "S, nats": _cells(scores, "S")}
    for anchor in anchors:
        columns[f"S − {anchor}"] = _cells(scores, f"S - {anchor}")
    columns["diverging LR"] = _cells(scores, LR)
    for anchor in anchors:
        columns[f"× {anchor}"] = _cells(scores, f"{LR} / {anchor}")
    for anchor in anchors[:1]:
        columns[f"best loss − {anchor}"] = _cells(scores, f"best_loss - {anchor}")
    columns["log10 max logit"] = [
        _before_and_after(before, after)
        for before, after in zip(
            scores["log10_logit_before"], scores["log10_logit_after"], strict=True
        )
    ]
    if "cost" in scores:
        columns["step, % (noisy)"] = [_percent(*cost) for cost in _three(scores, "cost")]
    columns["seeds"] = [int(n) for n in scores["seeds"]]  # in a csv beside empty cells: 4.0
    if scores["verdict"].notna().any():
        columns["prediction"] = list(scores["prediction"].fillna("–"))
        columns["verdict"] = list(scores["verdict"].fillna("–"))
    return pd.DataFrame(columns)


def _three(scores: pd.DataFrame, name: str):
    return zip(scores[name], scores[f"{name} lo"], scores[f"{name} hi"], strict=True)


def _cells(scores: pd.DataFrame, name: str) -> list[str]:
    bounds = scores.get(f"{name} bound", pd.Series("", scores.index))
    cells = map(report.rounded, *zip(*_three(scores, name)))
    return [
        f"{bound} {cell}".strip() if cell != "–" else cell
        for bound, cell in zip(bounds, cells, strict=True)
    ]


def _before_and_after(before: float, after: float) -> str:
    """3.21, or 3.21 → 1.7 where an intervention changes logits."""
    texts = [f"{value:.3g}" for value in (before, after) if not pd.isna(value)]
    return " → ".join(texts) or "–"


def _percent(median: float, lo: float, hi: float) -> str:
    return "–" if pd.isna(median) else f"{median:+.0f} [{lo:+.0f}, {hi:+.0f}]"
