"""Two labels side by side: protocols, what trained them, verdicts that changed, losses of runs.

A label is read from its exported table of runs and its `claims.csv`; curves are not needed. So
tables of two machines can be compared, and labels of two protocols, as far as they have runs in
common.
"""

import dataclasses
import re

import numpy as np
import pandas as pd

from proxies_lib import config
from proxies_lib.config import FIELDS, UserError, refuse
from proxies_lib.science import analysis, claims, outputs, report
from proxies_lib.science.protocol import SEEDS, SWEPT, Study

PROVENANCE = ("device", "python", "jax", "jaxlib", "flax", "optax", "numpy", "settings", "commit")

NOT_COMPARED = ("train", "publish", "base", "overrides", "name")  # of a study: no protocol


@dataclasses.dataclass(frozen=True)
class Side:
    """One of two labels. A part that it does not have is None."""

    name: str  # to print: the label, or which one of two of the same label
    study: Study | None
    says_so: bool  # `protocol.json` is there; else the study is that of the scale in the name
    runs: pd.DataFrame | None
    verdicts: pd.DataFrame | None


def sides(first: str, second: str, published: bool = False) -> tuple[Side, Side]:
    """What two labels have. Of a label beside itself the first is one's own, the second published.

    Raises UserError where a label has neither a table of runs nor verdicts.
    """
    if first == second:
        require_own(first)
        one, other = side(first), side(second, published=True)
        one = dataclasses.replace(one, name=f"{first}, own")
        return one, dataclasses.replace(other, name=f"{first}, published")
    return side(first, published), side(second, published)


def require_own(label: str):
    """Raise UserError where a label has no outputs of one's own beside the published ones."""
    if not (outputs.local("papermill_runs") / config.component("label", label)).is_dir():
        refuse("label", label, "has no outputs of one's own to compare the published ones to")


def side(label: str, published: bool = False) -> Side:
    runs = _or_none(lambda: outputs.runs_of(label, published))
    verdicts = _or_none(lambda: report.scoreboard(label, published))
    if runs is None and verdicts is None:
        outputs.runs_of(label, published)  # says what is wrong with it
    study = _or_none(lambda: outputs.study_of(label, published))
    place = outputs.source("papermill_runs", label, outputs.PROTOCOL, published)
    return Side(label, study, place is not None, runs, verdicts)


def _or_none(read):
    try:
        return read()
    except UserError:
        return None


# ------------------------------------------------------------------ protocols


def protocols(one: Side, other: Side) -> dict[str, tuple]:
    """What differs between two protocols: lists of a study, and fields of its base run."""
    if one.study is None or other.study is None:
        return {}
    pairs = {
        field.name: (getattr(one.study, field.name), getattr(other.study, field.name))
        for field in dataclasses.fields(Study)
        if field.name not in NOT_COMPARED
    }
    flat, flat_other = config.flat(one.study.base), config.flat(other.study.base)
    pairs |= {name: (flat[name], flat_other[name]) for name in FIELDS if name not in SWEPT}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def origins(one: Side, other: Side) -> dict[str, tuple[list[str], list[str]]]:
    """What trained the runs of two tables, and the corpora, where they differ."""
    if one.runs is None or other.runs is None:
        return {}
    values = {}
    for name in (*PROVENANCE, "fingerprint"):
        pair = (_distinct(one.runs, name), _distinct(other.runs, name))
        if pair[0] != pair[1]:
            values[name] = pair
    return values


def _distinct(runs: pd.DataFrame, name: str) -> list[str]:
    """Without a column nothing was recorded: as where it is empty."""
    found = runs[name].dropna().astype(str) if name in runs else pd.Series(dtype=str)
    return sorted(set(found) - {""})


# ------------------------------------------------------------------ verdicts


def changed(one: Side, other: Side) -> pd.DataFrame:
    """The claims that both judge, otherwise: the columns of `report.against`, and `why`."""
    if one.verdicts is None or other.verdicts is None:
        return pd.DataFrame(columns=["claim", "why"])
    both = report.against(one.verdicts, other.verdicts)
    both = both[~both["same"]]
    return both.assign(why=[why(row) for row in both.to_dict("records")])


def why(row: dict) -> str:
    """Why two verdicts on a claim differ, in a few words.

    The number of seeds is named where it differs. Then the interval of one side is put around the
    effect of the other: where that alone gives the other verdict, effect or interval is the cause;
    where neither does alone, or each does, both are.
    """
    verdicts = (row["verdict"], row["verdict_other"])
    if claims.UNTESTABLE in verdicts:
        note = row["note"] if verdicts[0] == claims.UNTESTABLE else row["note_other"]
        return f"not testable: {note}" if note else "not testable"
    if _without_size(row["measure"]) != _without_size(row["measure_other"]):
        return "other measure"
    words = [f"other n ({row['n']}, {row['n_other']})"] if row["n"] != row["n_other"] else []
    by_effect = _judged(row["effect_other"], _half(row, ""), row["measure"]) == verdicts[1]
    by_interval = _judged(row["effect"], _half(row, "_other"), row["measure"]) == verdicts[1]
    if by_effect == by_interval:
        words.append("other effect and interval")
    else:
        words.append("other effect" if by_effect else "other interval")
    return "; ".join(words)


def _without_size(measure: str) -> str:
    """A measure, whichever the largest N of the scale is."""
    return re.sub(r"\bN [\d,]*\d", "N", measure)


def _half(row: dict, suffix: str) -> float:
    """Half the width of an interval, 0 where one seed has none."""
    half = (row[f"hi{suffix}"] - row[f"lo{suffix}"]) / 2
    return 0.0 if np.isnan(half) else half


def _judged(effect: float, half: float, measure: str) -> str:
    """The verdict on an effect with an interval of this half width."""
    _, side, threshold = claims.parts_of(measure)
    return claims.verdict_of(effect - half, effect + half, side, threshold) if side else ""


def together(one: Side, other: Side) -> pd.DataFrame:
    """The claims that both test, judged over the seeds of both: rows of a scoreboard.

    Mean and deviation over all seeds follow from those of each side, so no run is read.
    Raises UserError unless the two are one protocol with different seeds.
    """
    _require_other_seeds(one, other)
    assert one.verdicts is not None and other.verdicts is not None  # just required
    both = report.against(one.verdicts, other.verdicts)
    untested = (both[["verdict", "verdict_other"]] == claims.UNTESTABLE).any(axis=1)
    rows = [row | _together(row) for row in both[~untested].to_dict("records")]
    return pd.DataFrame(rows, columns=report.COLUMNS)


def _together(row: dict) -> dict:
    """Effect, interval, n, verdict and notes over the seeds of both sides of a claim."""
    effect, half = analysis.pooled(
        [row["effect"], row["effect_other"]],
        [_half(row, ""), _half(row, "_other")],
        [row["n"], row["n_other"]],
    )
    notes = dict.fromkeys(filter(None, (row["note"], row["note_other"])))
    return {
        "effect": effect,
        "lo": effect - half,
        "hi": effect + half,
        "n": row["n"] + row["n_other"],
        "verdict": _judged(effect, half, row["measure"]),
        "note": "; ".join(notes),
    }


def _require_other_seeds(one: Side, other: Side):
    """Raise UserError unless two labels have verdicts on one protocol with different seeds."""
    for each in (one, other):
        if each.verdicts is None or each.study is None:
            refuse("label", each.name, "has no verdicts, or no protocol that can be read")
    differing = [name for name in protocols(one, other) if name not in SEEDS]
    if differing:
        refuse("together", other.name, f"has another protocol than {one.name}: {differing[0]}")
    shared = sorted(_seeds(one) & _seeds(other))
    if shared:
        refuse("together", other.name, f"has seeds of {one.name}: {', '.join(map(str, shared))}")


def _seeds(side: Side) -> set[int]:
    return {seed for name in SEEDS for seed in getattr(side.study, name)}


# ------------------------------------------------------------------ runs


@dataclasses.dataclass(frozen=True)
class Losses:
    """Final losses of the runs that two tables have in common, a row each, and the others."""

    common: pd.DataFrame  # key, lr, final_loss, final_loss_other, difference (absolute), same_key
    only: tuple[pd.DataFrame, pd.DataFrame]  # the rows that only one of them has


def losses(one: Side, other: Side) -> Losses | None:
    """Runs are matched by configuration: `same_key` says whether the corpus is the same, too.

    Where both ended in nan or infinity the difference is 0, where one did it is infinite.
    """
    if one.runs is None or other.runs is None:
        return None
    runs = [table.drop_duplicates("recipe") for table in (one.runs, other.runs)]
    common = runs[0].merge(runs[1], on="recipe", suffixes=("", "_other"))
    ends = common[["final_loss", "final_loss_other"]].to_numpy(float)
    finite = np.isfinite(ends)
    with np.errstate(invalid="ignore"):
        difference = np.abs(ends[:, 0] - ends[:, 1])
    difference = np.where(finite.all(axis=1), difference, np.inf)
    difference = np.where(~finite.any(axis=1), 0.0, difference)
    common = common.assign(difference=difference, same_key=common["key"] == common["key_other"])
    recipes = set(common["recipe"])
    only = tuple(table[~table["recipe"].isin(recipes)] for table in runs)
    return Losses(common, only)


def by_lr(common: pd.DataFrame) -> pd.DataFrame:
    """By peak learning rate, of runs that ended finite in both: how many, how many to the bit
    equal, median and largest difference; and how many diverged on one side only."""
    rows = []
    for lr, runs in common.groupby("lr"):
        finite = runs[np.isfinite(runs["difference"])]["difference"]
        rows.append({"lr": lr, **_spread(runs["difference"], finite)})
    return pd.DataFrame(rows, columns=["lr", *_spread(pd.Series(), pd.Series())])


def overall(common: pd.DataFrame) -> dict:
    """The same numbers of all common runs."""
    return _spread(common["difference"], common["difference"][np.isfinite(common["difference"])])


def _spread(every: pd.Series, finite: pd.Series) -> dict:
    return {
        "runs": len(every),
        "equal": int((finite == 0).sum()),
        "median": float(finite.median()) if len(finite) else np.nan,
        "largest": float(finite.max()) if len(finite) else np.nan,
        "diverged_in_one": len(every) - len(finite),
    }


def kinds(rows: pd.DataFrame, study: Study | None) -> pd.Series:
    """What rows are, by what differs from the base of `study`, and how many are so.

    Sizes, learning rates and seeds aside, which the notebooks sweep.
    """
    base = config.flat(study.base) if study else {}
    names = [name for name in FIELDS if name in rows and name not in SWEPT and name in base]
    kinds_ = [
        ", ".join(f"{name}={_short(row[name])}" for name in names if row[name] != base[name])
        for row in rows[names].to_dict("records")
    ]
    return pd.Series(kinds_, dtype=str).replace("", "as the base").value_counts()


def _short(value) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    text = config.shown(value)
    return text if len(text) <= 40 else f"{text[:39]}…"
