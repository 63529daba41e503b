"""The scoreboard: a claim's effect per seed, its interval, n and verdict; published tables.

A claim holds when its whole interval lies on the claimed side of a threshold fixed in `checks`, before the runs.
"""

import numpy as np

from proxies_lib.science import analysis

HOLDS, FAILS, UNTESTABLE = "holds", "does not hold", "not testable at this scale"


def check(
    claim, figure, statement, measure, values, side: str, threshold: float, note="", unless=""
) -> dict:
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
    return {
        "claim": claim,
        "figure": figure,
        "statement": statement,
        "measure": measure,
        "effect": effect,
        "lo": lo,
        "hi": hi,
        "n": len(values),
        "verdict": verdict,
        "note": note,
    }
