"""`proxies convert`: the runs of sections in the formats of other tools (`runs.formats`), and the
parameters of single runs (`runs.parameters`)."""

import pathlib
from typing import NamedTuple

import pandas as pd

from proxies_lib.config import Run, UserError, refuse
from proxies_lib.runs import formats, parameters, sweep, tables
from proxies_lib.runs.tables import Found, Layer
from proxies_lib.science import bisection, notebooks, report
from proxies_lib.science.protocol import Study

SAFETENSORS = "safetensors"  # a file of parameters per run

FORMATS = (*formats.FORMATS, SAFETENSORS)


class Wanted(NamedTuple):
    """Runs by method, and where each of them is; runs that several methods share are found once."""

    methods: dict[str, list[Run]]
    plan: sweep.Plan

    @property
    def found(self) -> list[Found]:
        """Those that are in the store or in the committed table."""
        return [found for found in self.plan.found if found.layer]


def wanted(paths: list[pathlib.Path], study: Study, overrides: dict) -> Wanted:
    """What the sections at `paths` ask for, bisected runs included. Raises UserError."""
    parameters_of = notebooks.reading(study.scale) | {"overrides": overrides}
    methods: dict[str, list[Run]] = {}
    for path in paths:
        grid = notebooks.grids_of(path, parameters_of)
        bisected = bisection.so_far(grid.bisected, study) if grid.bisected else {}
        for arms in (grid.runs, grid.held_out, bisected):
            for method, runs in arms.items():
                methods.setdefault(method, []).extend(runs)
    methods = {method: list(dict.fromkeys(runs)) for method, runs in methods.items()}
    plan = sweep.plan(
        notebooks.all_runs(methods), layer=report.published_table(study), prepare=False
    )
    return Wanted(methods, plan)


def convert(
    format: str, chosen: Wanted, into, keys: list[str] | None = None, columns=None, say=print
) -> pathlib.Path:
    """Write the runs that are stored in one of FORMATS into the new or empty folder `into`.

    `keys` are those of the wanted runs, None for all; `columns` are names or prefixes of curves.
    Raises UserError where there is none, a key is unknown, or the folder cannot be written.
    """
    if format not in FORMATS:
        refuse("format", format, f"must be one of {', '.join(FORMATS)}")
    found = chosen.found if keys is None else _of_keys(keys, chosen.found)
    if not found:
        raise UserError("convert: none of these runs is stored; train them first")
    if format == SAFETENSORS:
        return _parameters(found, into, keys, say)
    runs, curves = tables.table(found, chosen.plan.folder, chosen.plan.layer, columns)
    runs = _with_methods(runs, found, chosen.methods)
    # Columns of other runs of the same tables. A loss that is never finite is a finding.
    empty = [name for name in curves if name != "loss" and curves[name].isna().all()]
    curves = curves.drop(columns=empty)
    if columns is not None and set(curves) <= {"key", "step"}:
        refuse("curves", " ".join(columns), "names no curve of these runs")
    target = formats.write(format, runs, curves, into)
    say(f"{len(found)} of {len(chosen.plan.found)} runs are stored, and now in {target}")
    return target


def _of_keys(keys: list[str], found: list[Found]) -> list[Found]:
    """The runs whose keys begin so, each once."""
    of_key = {str(f.row_key): f for f in found}
    chosen: dict[str, Found] = {}
    for key in keys:
        begun = [whole for whole in of_key if key and whole.startswith(key)]
        if not begun:
            refuse("runs", key, "begins no key of a stored run of these sections")
        if len(begun) > 1:
            refuse("runs", key, f"begins several keys: {', '.join(sorted(begun)[:5])}")
        chosen[begun[0]] = of_key[begun[0]]
    return list(chosen.values())


def _with_methods(
    runs: pd.DataFrame, found: list[Found], methods: dict[str, list[Run]]
) -> pd.DataFrame:
    """`runs` with a row per method and run: the rows of `found`, in the order of the methods."""
    position = {f.run: i for i, f in enumerate(found)}
    parts = []
    for method, of_method in methods.items():
        rows = [position[run] for run in of_method if run in position]
        parts.append(runs.iloc[rows].assign(method=method))
    return pd.concat(parts, ignore_index=True)


def _parameters(found: list[Found], into, keys: list[str] | None, say) -> pathlib.Path:
    """A safetensors file per run, each trained again."""
    if keys is None:
        refuse("format", SAFETENSORS, "trains each run again: name the keys of a few with --runs")
    for f in found:
        if f.layer == Layer.COMMITTED_OTHER_CORPUS:
            why = "was trained on another corpus than this machine's; it cannot be trained again"
            refuse("runs", f.row_key, why)

    def fill(folder: pathlib.Path):
        for f in found:
            parameters.save(f.run, folder / f"{f.row_key}.{SAFETENSORS}", say=say)

    target = formats.into_new_folder(into, fill)
    say(f"the parameters of {len(found)} runs are in {target}")
    return target
