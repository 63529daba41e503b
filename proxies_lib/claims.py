"""The scoreboard: a claim's effect per seed, its interval, n and verdict; published tables.

A claim holds when its whole interval lies on the claimed side of a threshold fixed in `checks`, before the runs.
"""

import io
import pathlib

import numpy as np
import pandas as pd

from proxies_lib import analysis, config, outputs, store
from proxies_lib.config import Study, UserError

HOLDS, FAILS, UNTESTABLE = "holds", "does not hold", "not testable at this scale"
VERDICTS = (HOLDS, FAILS, UNTESTABLE)
CLAIMS = "claims.csv"
COLUMNS = ["claim", "figure", "section", "statement", "measure", "effect", "lo", "hi", "n", "verdict", "note"]


def check(claim, figure, statement, measure, values, side: str, threshold: float, note="", unless="") -> dict:
    """One verdict from an effect per seed: `side` "above" or "below" the threshold, interval included.

    `unless` is the reason, where there is one, why this scale cannot test the claim; a value that is nan is one too.
    A single seed is judged by its value, and the note says so.
    """
    values = np.asarray(values, float)
    effect, lo, hi = analysis.interval(values)
    if not unless and (not len(values) or np.isnan(values).any()):
        unless = "no such run, or no such point in one"
    if unless:
        verdict, note = UNTESTABLE, unless
    else:
        edge = {"above": lo, "below": hi}[side] if len(values) > 1 else effect
        verdict = HOLDS if (edge > threshold if side == "above" else edge < threshold) else FAILS
        if len(values) == 1:
            note = f"{note}; one seed, no interval".lstrip("; ")
        elif verdict == FAILS and (effect > threshold) == (side == "above"):
            note = f"{note}; undecided: the interval includes {threshold:g}".lstrip("; ")
    measure = f"{measure} ({side} {threshold:g})"
    return {"claim": claim, "figure": figure, "statement": statement, "measure": measure, "effect": effect,
            "lo": lo, "hi": hi, "n": len(values), "verdict": verdict, "note": note}  # fmt: skip


def structure_only(rows: list[dict], study: Study) -> list[dict]:
    """At smoke scale nothing is learned: every verdict is "not testable", whatever the numbers say."""
    if study.scale != "smoke":
        return rows
    return [row | {"verdict": UNTESTABLE, "note": "smoke checks the machinery only"} for row in rows]


def predict(predicted: pd.DataFrame, fitted: pd.DataFrame, held_out_stored: int, study: Study) -> pd.DataFrame:
    """Fig. 9's prediction as it stands in the label's `prediction.csv`, written once for each set of `fitted` runs.

    `held_out_stored` says how many of the predicted runs were already trained when it was written. A study that
    trains predicts from its own runs; one that reads shows the published prediction, where it has no own one.
    """
    file = "prediction.csv"
    path = outputs.target("papermill_runs", study.label) / file
    mark = config.digest({"keys": " ".join(sorted(fitted["key"].unique()))})
    places = [path]
    if not study.train:
        published = config.folder("papermill_runs")
        places += [published / study.label / file, published / study.scale / file]
    for place in places:
        known = _read_csv(place, {"fitted_on": str})
        if known is not None and "fitted_on" in known and known["fitted_on"].eq(mark).all():
            return known
    predicted = predicted.assign(fitted_on=mark, held_out_stored=held_out_stored)
    if study.publish:
        store.write_atomically(path, predicted.to_csv(index=False).encode())
    return predicted


def publish(rows: list[dict], section: str, study: Study) -> pd.DataFrame:
    """The verdicts as a table; when the study writes, also into its label's `claims.csv` (this section's rows)."""
    mine = pd.DataFrame(structure_only(rows, study)).assign(section=section)[COLUMNS]
    if study.publish:
        path = outputs.target("papermill_runs", study.label) / CLAIMS
        merged = mine
        if path.exists() and (others := _read_claims(path)) is not None:
            merged = pd.concat([others[others["section"] != section], mine], ignore_index=True)
        elif path.exists():
            print(f"{CLAIMS} of {study.label} was damaged: it is begun anew, with section {section}")
        text = merged.sort_values("section", kind="stable").to_csv(index=False, float_format="%.6g")
        store.write_atomically(path, text.encode())
    return mine


def scoreboard(label: str, published: bool = False) -> pd.DataFrame:
    """Every verdict of a label: of one's own runs where there are any, unless the `published` ones are wanted.

    Raises UserError where there is none.
    """
    place = outputs.source("papermill_runs", label, CLAIMS, published)
    if place is None:
        raise UserError(f"scale={label!r}: no {CLAIMS} yet; run its sections first")
    rows = _read_claims(place / CLAIMS)
    if rows is None:
        raise UserError(f"scale={label!r}: {CLAIMS} is damaged; run its sections again")
    return rows


def _read_claims(path: pathlib.Path) -> pd.DataFrame | None:
    """The rows of a `claims.csv`, None where it is damaged. Its last line ends: a part of a file does not pass."""
    numbers = {name: [""] for name in ("effect", "lo", "hi")}
    types = {"section": str, "figure": str} | dict.fromkeys(numbers, float)
    rows = _read_csv(path, types, keep_default_na=False, na_values=numbers)
    whole = rows is not None and set(COLUMNS) <= set(rows) and rows["verdict"].isin(VERDICTS).all()
    return rows[COLUMNS] if whole else None


def _read_csv(path: pathlib.Path, types: dict, **options) -> pd.DataFrame | None:
    """A table that was written by `to_csv`; None where there is none, or only a part of one."""
    try:
        text = path.read_text("utf-8")
        whole = text.endswith("\n")
        return pd.read_csv(io.StringIO(text), dtype=types, **options) if whole else None
    except (OSError, ValueError):  # pandas' own errors are ValueErrors
        return None


def short(rows: pd.DataFrame) -> pd.DataFrame:
    """The scoreboard as a reader sees it: one rounded effect with its interval."""
    effect = [
        "–" if pd.isna(e) else f"{e:.3g}" if pd.isna(lo) else f"{e:.3g} [{lo:.3g}, {hi:.3g}]"
        for e, lo, hi in zip(rows["effect"], rows["lo"], rows["hi"], strict=True)
    ]
    return rows.assign(effect=effect)[["figure", "statement", "measure", "effect", "n", "verdict", "note"]]


def figure_stem(figure: str) -> str:
    """File name of a figure, up to what describes it: 9 → fig09, E.1 → figE01; of P2 all of it: P2.stages → figP2_stages."""
    letter, _, number = figure.rpartition(".")
    if not number.isdigit():
        return f"fig{letter}_{number}"
    return f"fig{letter}{int(number):02d}"


def markdown(rows: pd.DataFrame, label: str = "", up: str = "") -> str:
    """The short scoreboard as a Markdown table; with a `label`, linked to its notebooks, figures and data.

    `up` is the way from the reader's folder to the project's. One's own notebooks lie a folder deeper.
    """
    shown = short(rows)
    if label:
        published = config.folder("figures") / label
        folder = outputs.source("figures", label, "") or published
        own = "" if folder == published else "local/"
        up = f"{up}../" if up and outputs.target("figures", label) != published else up
        names = {path.stem[:2]: path.stem for path in (config.root() / "notebooks").glob("[0-9]*_*.py")}
        drawn = {path.stem.split("_")[0]: path.stem for path in folder.glob("*.png")}
        stems = [drawn.get(figure_stem(f), figure_stem(f)) for f in rows["figure"]]
        where = f"{up}figures/{own}{label}/"
        links = [
            f"[{section}]({up}papermill_runs/{own}{label}/{names[section]}.ipynb) [csv]({where}{stem}.csv)"
            for section, stem in zip(rows["section"], stems, strict=True)
        ]
        figures = [f"[{f}]({where}{stem}.png)" for f, stem in zip(rows["figure"], stems, strict=True)]
        shown = shown.assign(figure=figures, **{"notebook, data": links})
    return analysis.markdown(shown)


def tally(rows: pd.DataFrame) -> str:
    """How many claims hold, do not, and cannot be tested, in a sentence."""
    n = rows["verdict"].value_counts()
    undecided = rows["note"].str.contains("undecided").sum()
    return (f"Of {len(rows)} checks on {rows['figure'].nunique()} figures, {n.get(HOLDS, 0)} hold, {n.get(FAILS, 0)} do not "
            f"({undecided} of them undecided: the interval includes the threshold), and {n.get(UNTESTABLE, 0)} cannot be "
            "tested at this scale.")  # fmt: skip


def against(rows: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """Claims of two scoreboards side by side: `verdict` and `effect` of each, `same` where the verdicts agree."""
    both = rows.merge(other, on="claim", suffixes=("", "_other"))
    return both.assign(same=both["verdict"] == both["verdict_other"])
