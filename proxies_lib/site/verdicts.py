"""Claims as a reader meets them: verdicts by label, how they move, what would change them."""

import dataclasses
import functools
import re

import numpy as np
import pandas as pd

from proxies_lib.science import columns, report
from proxies_lib.science.claims import (
    CONTRADICTED,
    HOLDS,
    MANY,
    UNDECIDED,
    UNTESTABLE,
    VERDICTS,
    leans_to,
    parts_of,
    seeds_that_decide,
)
from proxies_lib.site.contents import Contents

# A word of a class in the style sheet, and a sign for those who do not see colors.
LOOK = {
    HOLDS: ("holds", "✓"),
    CONTRADICTED: ("contradicted", "✗"),
    UNDECIDED: ("undecided", "?"),
    UNTESTABLE: ("untestable", "–"),
}


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A claim's verdict at one label."""

    label: str
    measure: str  # without the threshold
    side: str  # "above" or "below" the threshold it holds; "" where the row does not say
    threshold: float
    effect: float
    lo: float
    hi: float
    n: int
    verdict: str
    note: str

    @property
    def shown(self) -> str:
        """The effect with its interval, rounded."""
        return report.rounded(self.effect, self.lo, self.hi)

    @property
    def half(self) -> float:
        """Half the width of the interval; nan without one."""
        return (self.hi - self.lo) / 2

    @property
    def holds_where(self) -> str:
        return f"{self.side} {self.threshold:g}" if self.side else "–"


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim with its verdicts by label, in the order of the labels."""

    name: str
    figure: str
    section: str
    statement: str
    by_label: dict[str, Verdict]

    @functools.cached_property
    def slug(self) -> str:
        """Its name as part of an address."""
        return re.sub(r"[^A-Za-z0-9._-]", "_", self.name.replace("×", "x"))

    def move(self, first: str, label: str) -> tuple[str, str] | None:
        """Its verdicts at two labels, where both have one and they differ."""
        before, after = self.by_label.get(first), self.by_label.get(label)
        if before is None or after is None or before.verdict == after.verdict:
            return None
        return before.verdict, after.verdict


def claims(contents: Contents) -> list[Claim]:
    """Every claim that is judged somewhere, by section and then by figure."""
    boards = contents.boards
    if not boards:
        return []
    rows = {
        label: {row["claim"]: row for row in board.to_dict("records")}
        for label, board in boards.items()
    }
    found = []
    for name in columns.in_columns(boards)["claim"]:
        by_label = {label: _verdict(label, of[name]) for label, of in rows.items() if name in of}
        first = next(of[name] for of in rows.values() if name in of)
        figure, section, statement = (first[c] for c in ("figure", "section", "statement"))
        found.append(Claim(name, figure, section, statement, by_label))
    return found


def _verdict(label: str, row: dict) -> Verdict:
    numbers = (row[name] for name in ("effect", "lo", "hi", "n", "verdict", "note"))
    return Verdict(label, *parts_of(row["measure"]), *numbers)


def counts(verdicts) -> dict[str, int]:
    """How many of these verdicts there are of each kind."""
    listed = list(verdicts)
    return {kind: listed.count(kind) for kind in VERDICTS}


# ------------------------------------------------------------------ what would change a verdict


def what_would_change(verdict: Verdict) -> str:
    """What would change a verdict, in a sentence or two."""
    if verdict.verdict == UNTESTABLE:
        return f"Runs that can test it. Why these cannot: {verdict.note}."
    if not verdict.side:
        return "An interval on another side of the threshold."
    distance = abs(verdict.effect - verdict.threshold)
    if np.isnan(verdict.half):
        return (
            f"More seeds: one has no interval. Its effect lies {distance:.2g} from the threshold."
        )
    if verdict.verdict == UNDECIDED:
        return _what_would_decide(verdict, distance)
    if not verdict.half:
        return f"Another value: all {verdict.n} seeds agree, {distance:.2g} from the threshold."
    return (
        f"An interval that reaches {verdict.threshold:g}. The effect lies {distance:.2g} from it, "
        f"{distance / verdict.half:.1f} times half the width of the interval ({verdict.half:.2g})."
    )


def _what_would_decide(verdict: Verdict, distance: float) -> str:
    if not distance:
        return "A measure with less spread: the effect lies on the threshold."
    leaning = leans_to(verdict.effect, verdict.side, verdict.threshold)
    side = "claimed" if leaning == HOLDS else "other"
    seeds = seeds_that_decide(distance, verdict.half, verdict.n)
    number = f"about {seeds} seeds" if seeds else f"more than {MANY} seeds"
    return (
        f"More seeds, or less spread between them. The effect lies {distance:.2g} from the "
        f"threshold, on the {side} side, nearer than half the width of the interval "
        f"({verdict.half:.2g}). If effect and spread stayed, it would take {number}, and the "
        f"verdict would be “{leaning}”."
    )


# ------------------------------------------------------------------ the interval plot


@dataclasses.dataclass(frozen=True)
class Mark:
    """A verdict on the plot, in percent of its width; without an interval lo = hi = effect."""

    verdict: Verdict
    effect: float
    lo: float
    hi: float


@dataclasses.dataclass(frozen=True)
class IntervalPlot:
    """Where effects, intervals, thresholds and ticks lie, in percent of the width."""

    marks: list[Mark]
    threshold: float
    holds_above: bool
    ticks: list[tuple[float, str]]
    words: str  # the same, for those who do not see it


def interval_plot(claim: Claim) -> IntervalPlot | None:
    """The plot of a claim's effects; None where none is judged by a number."""
    shown = [v for v in claim.by_label.values() if v.side and not np.isnan(v.effect)]
    if not shown:
        return None
    ends = [x for v in shown for x in (v.effect, v.lo, v.hi, v.threshold) if not np.isnan(x)]
    low, high = min(ends), max(ends)
    margin = 0.12 * (high - low) or abs(high) or 1.0
    low, high = low - margin, high + margin

    def place(x: float) -> float:
        return round(100 * (x - low) / (high - low), 3)

    marks = []
    for v in shown:
        lo, hi = (v.effect, v.effect) if np.isnan(v.lo) else (v.lo, v.hi)
        marks.append(Mark(v, *map(place, (v.effect, lo, hi))))
    ticks = [(place(x), f"{x:g}") for x in round_numbers(low, high)]
    first = shown[0]
    words = "; ".join(f"{v.label}: {v.shown}, {v.verdict}" for v in shown)
    text = f"Effect and 95 % interval beside the threshold {first.holds_where}. {words}."
    return IntervalPlot(marks, place(first.threshold), first.side == "above", ticks, text)


def round_numbers(low: float, high: float, most: int = 6) -> list[float]:
    """At most `most` evenly spaced numbers of 1, 2 or 5 times a power of ten between two ends."""
    power = 10.0 ** np.floor(np.log10((high - low) / most))
    step = next(s for s in power * np.array([1, 2, 5, 10]) if (high - low) / s <= most)
    whole = np.arange(np.ceil(low / step), np.floor(high / step) + 1)
    return [float(f"{number:.10g}") for number in whole * step + 0.0]


def per_section(found: list[Claim]) -> dict[str, list[Claim]]:
    """The claims by section, in their order."""
    sections: dict[str, list[Claim]] = {}
    for claim in found:
        sections.setdefault(claim.section, []).append(claim)
    return sections


def move_sentence(found: list[Claim], first: str, label: str) -> str:
    """How the verdicts move from the first label to another one."""
    both = [claim for claim in found if first in claim.by_label and label in claim.by_label]
    moves = [claim.move(first, label) for claim in both]
    moved = [" → ".join(move) for move in moves if move]
    kinds = pd.Series(moved).value_counts() if moved else pd.Series(dtype=int)
    words = ", ".join(f"{number} {kind}" for kind, number in kinds.items())
    head = f"From {first} to {label} {len(moved)} of {len(both)} verdicts move"
    return f"{head}: {words}." if moved else f"{head}."
