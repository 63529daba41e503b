"""The diverging LR of a curve to a factor of FACTOR, by training LRs between those of the grid.

A grid of two LRs a decade cannot see the factor of 1.5 between two methods. So each curve's
interval between the last LR that trains and the first that fails is halved in log LR, round after
round. Failing is that of `analysis.diverging_lr`: at an LR above the best one, a tenth of what the
best one learns is lost.

`next_round` is a function of the runs so far alone. So a study that reads finds the rounds again
from stored numbers, LR for LR.
"""

import contextlib
import dataclasses
import io
from typing import NamedTuple

import numpy as np
import pandas as pd

from proxies_lib.config import Run, UserError, replace
from proxies_lib.science import analysis, report
from proxies_lib.science.protocol import Study

FACTOR = 1.33  # a bracket whose ends are no further apart is narrow enough

CURVE = ["method", "d_model", "n_layers", "n_params"]  # what has one curve of loss against LR

# Of a bracket: its diverging LR lies above the top LR, where nothing fails; or below the lowest.
ABOVE, BELOW = "above", "below"


class Bisected(NamedTuple):
    """What `rounds` found: every run by method, a row per run, and a bracket per curve and seed."""

    runs: dict[str, list[Run]]
    table: pd.DataFrame
    brackets: pd.DataFrame


def brackets(runs: pd.DataFrame, by: list[str] = CURVE) -> pd.DataFrame:
    """Per curve and seed, the bracket of the diverging LR.

    `lo` is the last peak LR that trains, `hi` the first above it that fails, and `diverging_lr`
    their geometric mean. `censored` is "" where both are known. It is ABOVE where no LR fails:
    then `lo` is the top LR and `hi` inf. It is BELOW where every LR fails, as nothing is learned:
    then `lo` is 0 and `hi` the lowest LR. Such a bracket's `diverging_lr` is nan.
    """
    rows = []
    for labels, curve in analysis.with_loss(runs).groupby([*by, "seed"], sort=False):
        curve = curve.sort_values("lr")
        lrs = curve["lr"].to_numpy()
        first = analysis.first_failure(curve)
        if first is None:
            ends = (lrs[-1], np.inf, np.nan, ABOVE)
        elif first == 0:
            ends = (0.0, lrs[0], np.nan, BELOW)
        else:
            lo, hi = lrs[first - 1], lrs[first]
            ends = (lo, hi, np.sqrt(lo * hi), "")
        rows.append((*labels, *ends))
    return pd.DataFrame(rows, columns=[*by, "seed", "lo", "hi", "diverging_lr", "censored"])


def next_round(runs: pd.DataFrame, by: list[str] = CURVE) -> pd.DataFrame:
    """The LRs to train next: per curve and seed with a bracket wider than FACTOR, its middle.

    Columns are `by`, `seed` and `lr`. An LR has three digits, so that its key is the same wherever
    it is computed. No rows: every bracket is narrow enough, or censored.
    """
    found = brackets(runs, by)
    known = found[found["censored"] == ""]
    wide = known[known["hi"] / known["lo"] > FACTOR]
    middles = [float(f"{middle:.3g}") for middle in wide["diverging_lr"]]
    return wide[[*by, "seed"]].assign(lr=middles)


def rounds(
    arms: dict[str, list[Run]], study: Study, most: int | None = None, partial: bool = False
) -> Bisected:
    """Bisect every curve and seed of `arms`, the grid of a section by method, in at most `most`
    rounds, by default those of the study.

    Each round is one `report.collect`: a study that trains trains what the store lacks, and the
    store keeps it. One that reads takes the same runs from the store or the committed table.

    Raises UserError, with the number of the round, where one is missing, unless what is there is
    wanted although it is `partial`; and where runs of one method, size and seed differ in more than
    their LR.
    """
    most = study.bisection_rounds if most is None else most
    bases = _bases(arms)
    runs = {method: list(of_method) for method, of_method in arms.items()}
    table, _ = report.collect(runs, study, columns=(), brief=True)
    for number in range(1, most + 1):
        proposed = next_round(table)
        if proposed.empty:
            break
        print(f"bisection, round {number} of at most {most}: {len(proposed)} runs between two LRs")
        asked = _runs_of(proposed, bases)
        try:
            found, _ = report.collect(asked, study, columns=(), brief=True)
        except UserError as error:
            if partial:
                break
            raise UserError(f"bisection, round {number}: {error}") from None
        table = pd.concat([table, found], ignore_index=True)
        for method, of_method in asked.items():
            runs[method] += of_method
    return Bisected(runs, table, brackets(table))


def so_far(arms: dict[str, list[Run]], study: Study) -> dict[str, list[Run]]:
    """The runs of `arms`, and those that a bisection of them has trained so far; prints nothing."""
    reading = dataclasses.replace(study, train=False, publish=False)
    with contextlib.redirect_stdout(io.StringIO()):  # a plan per round
        try:
            return rounds(arms, reading, partial=True).runs
        except UserError:  # the arms themselves are still to be trained
            return arms


def _bases(arms: dict[str, list[Run]]) -> dict[tuple, Run]:
    """A run of each curve and seed, by method, width, depth and seed; its LR says nothing."""
    found: dict[tuple, Run] = {}
    for method, runs in arms.items():
        for run in runs:
            base = replace(run, lr=1.0)
            size = (run.model.d_model, run.model.n_layers)
            if found.setdefault((method, *size, run.order.seed), base) != base:
                raise UserError(
                    f"bisection: runs of {method!r} at d {size[0]}, {size[1]} layers, "
                    f"seed {run.order.seed} differ in more than their LR"
                )
    return found


def _runs_of(proposed: pd.DataFrame, bases: dict[tuple, Run]) -> dict[str, list[Run]]:
    """The proposed runs by method."""
    asked: dict[str, list[Run]] = {}
    names = ["method", "d_model", "n_layers", "seed"]
    for *curve, lr in proposed[[*names, "lr"]].itertuples(index=False):
        method = curve[0]
        asked.setdefault(method, []).append(replace(bases[tuple(curve)], lr=lr))
    return asked
