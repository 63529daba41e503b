"""The verdicts of several scales, a column each: which claim holds where, and which verdict moves.

Claims are matched by their id. A few ids mean another setting at another scale: the points of
Figures 2 and E.1, "2a-…" and "E1a-…", are those of the scale's protocol.
"""

import pandas as pd

from proxies_lib.science import difference, notebooks, outputs, protocol, report
from proxies_lib.science.figures import BEYOND, FIGURES

SCALES = ("laptop", "night", "long")  # in this order, those of them that are published

MOVE = ("laptop", "night")  # between these a verdict moves: same sections, a larger protocol

AGAIN = {"night": "night-again"}  # a scale, and the label of its protocol on further seeds


def published() -> dict[str, pd.DataFrame]:
    """The published verdicts by scale, of SCALES. Raises UserError where a `claims.csv` is damaged.

    A scale that has none is left out.
    """
    there = [
        scale
        for scale in SCALES
        if outputs.source("papermill_runs", scale, report.CLAIMS, published=True)
    ]
    return {scale: report.scoreboard(scale, published=True) for scale in there}


def on_all_seeds(scale: str) -> dict[str, str]:
    """By id of the claims that were tested again on further seeds, what all seeds say, as a cell
    of `in_columns`. Empty where the scale has no such label, or it is not published."""
    again = AGAIN.get(scale)
    if not again or not outputs.source("papermill_runs", again, report.CLAIMS, published=True):
        return {}
    both = difference.together(*difference.sides(scale, again, published=True))
    return {row["claim"]: _cell(row) for row in both.to_dict("records")}


def missing_sections(scale: str, rows: pd.DataFrame) -> list[str]:
    """The sections on claims of the papers that a scale is made for and whose verdicts `rows` lack,
    in order."""
    made_for = {path.name[:2] for path in notebooks.choose([], protocol.study(scale))}
    no_claims = {"00", BEYOND}  # the overview judges nothing
    return sorted(made_for - no_claims - set(rows["section"]))


def front(boards: dict[str, pd.DataFrame], section: str) -> str:
    """The scale at which README shows a `section`: the night where that has it, else the first one
    that does, or the first of all."""
    night = MOVE[-1]
    having = [scale for scale, rows in boards.items() if (rows["section"] == section).any()]
    return night if night in having else next(iter(having or boards))


def at_front(boards: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """The verdicts of each section at its `front`, in a column `scale`; sections in order."""
    every = pd.concat([rows.assign(scale=scale) for scale, rows in boards.items()])
    shown = {section: front(boards, section) for section in sorted(every["section"].unique())}
    parts = []
    for section, scale in shown.items():
        parts.append(every[(every["section"] == section) & (every["scale"] == scale)])
    return pd.concat(parts, ignore_index=True)


def in_columns(boards: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """A row per claim, by section and then by figure.

    Columns: `claim`, `figure`, `statement` and `scale`, that of the first column with this claim;
    then one per scale of `boards`, with a verdict, its effect, interval and n, or "–"; and, where
    both scales of MOVE are there, the verdict's move between them, or "".
    """
    every = pd.concat([rows.assign(scale=scale) for scale, rows in boards.items()])
    drawn = {name: place for place, name in enumerate(FIGURES)}
    first = every.drop_duplicates("claim").assign(place=lambda rows: rows["figure"].map(drawn))
    first = first.sort_values(["section", "place"], kind="stable")
    table = first[["claim", "figure", "statement", "scale"]].reset_index(drop=True)
    for scale, rows in boards.items():
        cells = dict(zip(rows["claim"], map(_cell, rows.to_dict("records")), strict=True))
        table[scale] = table["claim"].map(cells).fillna("–")
    if set(MOVE) <= boards.keys():
        words = moves(boards)
        changed = words[words != ""]
        table[" → ".join(MOVE)] = table["claim"].map(changed).fillna("")
    return table


def _cell(row: dict) -> str:
    """A verdict, its rounded effect with the interval, and n: "holds 0.0992 [0.041, 0.157], 3"."""
    if pd.isna(row["effect"]):
        return row["verdict"]
    effect = report.rounded(row["effect"], row["lo"], row["hi"])
    return f"{row['verdict']} {effect}, {row['n']}"


def moves(boards: dict[str, pd.DataFrame]) -> pd.Series:
    """By id of the claims that both scales of MOVE judge: "undecided → holds", "" if unchanged."""
    both = report.against(*(boards[scale] for scale in MOVE))
    words = both["verdict"] + " → " + both["verdict_other"]
    return words.mask(both["same"], "").set_axis(both["claim"])
