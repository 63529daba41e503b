"""A claim's verdict: its effect per seed, the interval of that, n, and on which side it lies.

Thresholds are fixed in `checks`, before the runs.
"""

import re

import numpy as np

from proxies_lib.science import analysis

HOLDS = "holds"  # the whole interval lies on the claimed side of the threshold
CONTRADICTED = "contradicted"  # the whole interval lies on the other side
UNDECIDED = "undecided"  # the interval includes the threshold
UNTESTABLE = "not testable"  # the note says why

VERDICTS = (HOLDS, CONTRADICTED, UNDECIDED, UNTESTABLE)

MANY = 1000  # seeds: more than that is no advice


def check(
    claim: str,
    figure: str,
    statement: str,
    measure: str,
    values,
    *,
    above: float | None = None,
    below: float | None = None,
    note: str = "",
    unless: str = "",
) -> dict:
    """The row of one claim, with its verdict from `values`, an effect per seed.

    The claim holds where the interval lies `above`, or `below`, a threshold: give one of the two.
    It is contradicted where the interval lies on the other side. A single seed is judged by its
    value, and the note says so. `unless` is the reason, where there is one, why this scale cannot
    test the claim; a value that is nan is such a reason too.
    """
    if above is not None and below is None:
        side, threshold = "above", above
    elif below is not None and above is None:
        side, threshold = "below", below
    else:
        raise TypeError("a claim holds above a threshold or below one")
    values = np.asarray(values, float)
    effect, lo, hi = analysis.interval(values)
    if not unless and (not len(values) or np.isnan(values).any()):
        unless = "no such run, or no such point in one"
    if unless:
        verdict, note = UNTESTABLE, unless
    else:
        verdict, remark = _judge(values, side, threshold)
        note = "; ".join(text for text in (note, remark) if text)
    return {
        "claim": claim,
        "figure": figure,
        "statement": statement,
        "measure": f"{measure} ({side} {threshold:g})",
        "effect": effect,
        "lo": lo,
        "hi": hi,
        "n": len(values),
        "verdict": verdict,
        "note": note,
    }


def parts_of(measure: str) -> tuple[str, str, float]:
    """A row's measure without its threshold, the side on which the claim holds, the threshold.

    "S, nats (below 0.05)" → "S, nats", "below", 0.05. Without one the side is "", and it is nan.
    """
    match = re.fullmatch(r"(.*) \((above|below) (\S+)\)", measure, re.DOTALL)
    return (match[1], match[2], float(match[3])) if match else (measure, "", np.nan)


def verdict_of(lo: float, hi: float, side: str, threshold: float) -> str:
    """The verdict of an interval: which side of the threshold it lies on, if it lies on one."""
    decided = lo > threshold or hi < threshold
    return leans_to(lo, side, threshold) if decided else UNDECIDED


def leans_to(effect: float, side: str, threshold: float) -> str:
    """The verdict of an effect without its interval, where it is not the threshold itself."""
    return HOLDS if (effect > threshold) == (side == "above") else CONTRADICTED


def seeds_that_decide(distance: float, half: float, n: int) -> int | None:
    """The least number of seeds whose interval would not reach the threshold, if effect and
    standard deviation stayed as they are; None where that is more than MANY.

    `distance` is that of the effect from the threshold, `half` half the width of the interval over
    n > 1 seeds.
    """
    deviation = half / analysis.half_width(1, n)
    counts = np.arange(2, MANY + 1)
    deciding = counts[analysis.half_width(deviation, counts) < distance]
    return int(deciding[0]) if len(deciding) else None


def _judge(values: np.ndarray, side: str, threshold: float) -> tuple[str, str]:
    """The verdict, and what a reader should know about it, or ""."""
    effect, lo, hi = analysis.interval(values)
    remark = ""
    if len(values) == 1:
        lo = hi = effect
        remark = "one seed, no interval"
    return verdict_of(lo, hi, side, threshold), remark
