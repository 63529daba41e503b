"""The scoreboard: a claim's effect per seed, its interval, n and verdict; published tables.

A claim holds when its whole interval lies on the claimed side of a threshold fixed in `checks`, before the runs.
"""

import numpy as np
import pandas as pd

from proxies_lib import analysis, config, store
from proxies_lib.config import Study, UserError

HOLDS, FAILS, UNTESTABLE = "holds", "does not hold", "not testable at this scale"
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
    """Fig. 9's prediction as it stands in the scale's `prediction.csv`, written once for each set of `fitted` runs.

    `held_out_stored` says how many of the predicted runs were already trained when it was written.
    """
    path = config.folder("papermill_runs") / study.label / "prediction.csv"
    mark = config.digest({"keys": " ".join(sorted(fitted["key"].unique()))})
    if path.exists() and (known := pd.read_csv(path, dtype={"fitted_on": str}))["fitted_on"].eq(mark).all():
        return known
    predicted = predicted.assign(fitted_on=mark, held_out_stored=held_out_stored)
    if study.publish:
        store.write_atomically(path, predicted.to_csv(index=False).encode())
    return predicted


def publish(rows: list[dict], section: str, study: Study) -> pd.DataFrame:
    """The verdicts as a table; when publishing also written into the scale's `claims.csv` (this section's rows)."""
    mine = pd.DataFrame(structure_only(rows, study)).assign(section=section)[COLUMNS]
    if study.publish:
        path = config.folder("papermill_runs") / study.label / "claims.csv"
        others = [scoreboard(study.label)] if path.exists() else []
        merged = pd.concat([*(o[o["section"] != section] for o in others), mine], ignore_index=True)
        text = merged.sort_values("section", kind="stable").to_csv(index=False, float_format="%.6g")
        store.write_atomically(path, text.encode())
    return mine


def scoreboard(label: str) -> pd.DataFrame:
    """Every published verdict of a scale. Raises UserError where there is none."""
    path = config.folder("papermill_runs") / label / "claims.csv"
    if not path.exists():
        raise UserError(f"scale={label!r}: no claims.csv yet; run its sections first")
    return pd.read_csv(path, dtype={"section": str, "figure": str}, keep_default_na=False, na_values={
        name: [""] for name in ("effect", "lo", "hi")})[COLUMNS]  # fmt: skip


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

    `up` is the way from the reader's folder to the project's.
    """
    shown = short(rows)
    if label:
        names = {path.stem[:2]: path.stem for path in (config.root() / "notebooks").glob("[0-9]*_*.py")}
        drawn = {path.stem.split("_")[0]: path.stem for path in (config.folder("figures") / label).glob("*.png")}
        stems = [drawn.get(figure_stem(f), figure_stem(f)) for f in rows["figure"]]
        where = f"{up}figures/{label}/"
        links = [
            f"[{section}]({up}papermill_runs/{label}/{names[section]}.ipynb) [csv]({where}{stem}.csv)"
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
