"""A figure by its name or file: what it is, who draws it, from which runs, and its files."""

import dataclasses
import json
import pathlib
import re
import shlex

import pandas as pd

from proxies_lib import paths
from proxies_lib.config import Run, UserError, did_you_mean, recipe, refuse
from proxies_lib.runs import tables
from proxies_lib.runs.records import silent
from proxies_lib.science import notebooks, outputs
from proxies_lib.science.figures import FIGURES, Figure
from proxies_lib.science.protocol import Study

KINDS = ("png", "csv", "svg")  # of a figure's files


@dataclasses.dataclass(frozen=True)
class Explained:
    """What there is to say of a figure at a label."""

    figure: Figure
    study: Study
    notebook: pathlib.Path
    drawing: notebooks.Drawing
    runs: pd.DataFrame  # a row per method: `runs`, and where they are: `store`, `table`, `missing`
    held_out: bool  # some runs are trained by the notebook itself, after a prediction
    bisected: bool  # further runs lie between those of the grid, as a bisection finds them
    files: list[pathlib.Path]
    verdicts: pd.DataFrame | None  # of the claims that the figure is drawn for


def named(text: str) -> tuple[Figure, str | None]:
    """The figure that `text` names, and the label where it is the path of a label's file.

    It may be a name of the paper (1, E.3, fig. 12, P2.ratio), a file of the registry with or
    without its ending, or a path to one. Raises UserError where it is none of these.
    """
    path = pathlib.PurePath(text)
    stem = path.name
    for kind in KINDS:
        stem = stem.removesuffix(f".{kind}")
    label = path.parent.name if len(path.parts) > 1 else None
    word = re.sub(r"^(figure|fig)[\s.]*", "", stem.strip().lower())
    for figure in FIGURES.values():
        names = (figure.file.lower(), figure.name.lower(), figure.name.lower().replace(".", ""))
        if stem.lower() == names[0] or word in names[1:]:
            return figure, label
    begun = [figure for figure in FIGURES.values() if figure.file.lower().startswith(stem.lower())]
    if len(begun) == 1 and stem:
        return begun[0], label
    near = did_you_mean(stem, [*FIGURES, *(figure.file for figure in FIGURES.values())])
    refuse("figure", text, f"must be one of {', '.join(FIGURES)}, or its file{near}")


def explained(figure: Figure, label: str) -> Explained:
    """What there is to say of `figure` at `label`. Nothing is trained, drawn or written.

    Raises UserError where the label stands for no protocol, or its notebook cannot be read.
    """
    study = outputs.study_of(label)
    path = notebooks.choose([figure.section], study)[0]
    parameters = notebooks.reading(study.scale) | {"overrides": study.given}
    grid = notebooks.grids_of(path, parameters)
    methods: dict[str, list[Run]] = {}
    for of_kind in grid:
        for method, runs in of_kind.items():
            shown = figure.runs({method: runs}, study)
            if shown:
                methods[method] = list(dict.fromkeys([*methods.get(method, []), *shown]))
    return Explained(
        figure,
        study,
        path,
        notebooks.drawing(path, figure.file),
        _stored(methods, label),
        bool(figure.runs(grid.held_out, study)),
        bool(figure.runs(grid.bisected, study)),
        _files(figure, path.stem, label),
        _verdicts(figure, label),
    )


def _stored(methods: dict[str, list[Run]], label: str) -> pd.DataFrame:
    """Where the runs of each method are: in the store, in the label's table, or nowhere.

    A table's run counts by its configuration, whatever corpus this machine has: so do figures.
    """
    from proxies_lib.runs import sweep

    every = [run for runs in methods.values() for run in runs]
    plan = sweep.plan(every, prepare=False, say=silent)
    stored = {found.run for found in plan.found if found.layer}
    place = outputs.source("papermill_runs", label, outputs.RUNS)
    table = tables.exported_runs(place) if place else None
    recipes = set() if table is None else set(table["recipe"])
    rows = []
    for method, runs in methods.items():
        in_store = sum(run in stored for run in runs)
        in_table = sum(run not in stored and recipe(run) in recipes for run in runs)
        missing = len(runs) - in_store - in_table
        counts = {"runs": len(runs), "store": in_store, "table": in_table, "missing": missing}
        rows.append({"method": method, **counts})
    return pd.DataFrame(rows, columns=["method", "runs", "store", "table", "missing"])


def _files(figure: Figure, notebook: str, label: str) -> list[pathlib.Path]:
    """The files of a figure and its executed notebook that are there, one's own first."""
    found = []
    for kind, names in (
        ("figures", [f"{figure.file}.{ending}" for ending in KINDS]),
        ("papermill_runs", [f"{notebook}.ipynb"]),
    ):
        for place in dict.fromkeys((outputs.local(kind), paths.folder(kind))):
            found += [place / label / name for name in names if (place / label / name).exists()]
    return found


def _verdicts(figure: Figure, label: str) -> pd.DataFrame | None:
    from proxies_lib.science import report

    try:
        rows = report.scoreboard(label)
    except UserError:  # none yet, or damaged
        return None
    return rows[rows["figure"] == figure.name]


def command(verb: str, section: str, study: Study) -> str:
    """`proxies VERB SECTION` for a protocol, as one types it."""
    words = ["proxies", verb, section, "--scale", study.scale]
    for name, value in study.given.items():
        if name == "label":
            words += ["--label", value]
        else:
            words += ["--set", f"{name}={value if isinstance(value, str) else json.dumps(value)}"]
    return shlex.join(words)
