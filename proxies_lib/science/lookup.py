"""A run by its key, or the beginning of it: what it is, what came out where, which figures show it.

Looked for are the store, and the exported tables of every label, one's own and the published ones.
A key is the same on every machine; what came out need not be, so each place has its own results.
"""

import csv
import dataclasses
import io
import pathlib
from collections.abc import Iterator

import pandas as pd

from proxies_lib import config, paths
from proxies_lib.config import FIELDS, YOUNGER, Run, UserError, did_you_mean, refuse
from proxies_lib.runs import store, tables
from proxies_lib.runs.records import RESULTS
from proxies_lib.science import figures, outputs
from proxies_lib.science.protocol import SWEPT, Study, scales

SHORTEST = 2  # characters of a key's beginning

LONG = 12  # characters after which a key may be one with a slip

KEY = 24  # characters of a key

# Columns of a table of runs that are neither fields, results nor provenance.
OTHERS = ("key", "recipe", "n_params")


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a run was found, and its numbers there."""

    name: str  # of the label, or "store"
    path: pathlib.Path
    settings: dict  # the fields of the run
    results: dict
    provenance: dict
    has_curves: bool

    @property
    def is_store(self) -> bool:
        return self.name == "store"


# ------------------------------------------------------------------ by key


def keys(beginning: str) -> list[str]:
    """The keys that begin so, in the store and in all tables. Raises UserError where none does."""
    beginning = beginning.lower()
    allowed = f"must be the first {SHORTEST} to {KEY} of the digits 0-9, a-f of a run's key"
    if not SHORTEST <= len(beginning) <= KEY or set(beginning) - set("0123456789abcdef"):
        refuse("key", beginning, allowed)
    found = store.beginning(beginning, paths.folder("store"))
    every: set[str] = set()
    for _, table in _tables():
        every |= set(table["key"])
        found |= {key for key in table["key"] if key.startswith(beginning)}
    if not found:
        labels = ", ".join(outputs.labels(outputs.RUNS)) or "no label"
        near = did_you_mean(beginning, every) if len(beginning) >= LONG else ""
        refuse("key", beginning, f"no such run in the store, nor in the tables of {labels}{near}")
    return sorted(found)


def places(key: str) -> list[Place]:
    """Where the run of this key is, the store first, then tables by label. Raises UserError where
    all of it is damaged."""
    found = []
    record = store.read(paths.folder("store"), key)
    if record is not None:
        meta, curves = record
        parts = (meta["config"], meta["result"], meta["provenance"])
        found.append(Place("store", paths.folder("store"), *parts, len(curves) > 1))
    for folder, table in _tables():
        rows = table[table["key"] == key].to_dict("records")
        found += [_from_row(folder, rows[0])] if rows else []
    if not found:
        refuse("key", key, "its record is damaged: the run counts as missing")
    return found


def _tables() -> Iterator[tuple[pathlib.Path, pd.DataFrame]]:
    """Every exported table of runs that can be read, with its label's folder."""
    own, committed = outputs.local("papermill_runs"), paths.folder("papermill_runs")
    for label in outputs.labels(outputs.RUNS):
        for folder in dict.fromkeys((own / label, committed / label)):
            try:
                table = tables.exported_runs(folder)
            except UserError:  # damaged: whoever needs it is told
                continue
            if table is not None:
                yield folder, table


def _from_row(folder: pathlib.Path, row: dict) -> Place:
    named_else = {*FIELDS, *RESULTS, *OTHERS}
    return Place(
        folder.name,
        folder,
        {name: row[name] for name in FIELDS if name in row},
        {name: row[name] for name in RESULTS},
        {n: value for n, value in row.items() if n not in named_else and not pd.isna(value)},
        (folder / "curves.parquet").exists(),
    )


def run_of(settings: dict) -> Run | None:
    """The run with these fields; None where today's rules refuse it."""
    try:
        return config.from_flat(settings)
    except UserError:
        return None


# ------------------------------------------------------------------ beside the base


def study_of(places_: list[Place]) -> Study:
    """The protocol that the run belongs to: that of a label that has it, else of the scale whose
    base differs least."""
    for place in places_:
        if not place.is_store:
            try:
                return outputs.study_of(place.name)
            except UserError:  # a label of no scale
                continue
    settings = places_[0].settings
    return min(scales().values(), key=lambda study: len(beside_base(settings, study)))


def beside_base(settings: dict, study: Study) -> dict[str, tuple]:
    """Fields that the notebooks sweep, then fields that differ from the base of `study`: value and
    the base's."""
    base = config.flat(study.base)
    values = YOUNGER | settings
    differs = [name for name in FIELDS if name in values and values[name] != base[name]]
    names = dict.fromkeys([*SWEPT, *differs])
    return {name: (values.get(name), base[name]) for name in names}


# ------------------------------------------------------------------ figures


@dataclasses.dataclass(frozen=True)
class Shown:
    """A figure that shows a run. `rows` are those of its csv that name the key, without the keys;
    none where the csv names no runs, and the registry alone says so."""

    figure: str  # its name in the paper, or its file where the registry has none
    label: str
    method: str
    csv: pathlib.Path | None = None
    rows: tuple[dict, ...] = ()


def in_csvs(key: str) -> list[Shown]:
    """The figures whose csv names the key, of every label."""
    name_of = {figure.file: figure.name for figure in figures.FIGURES.values()}
    found = []
    for path in _csvs():
        text = path.read_text("utf-8", errors="replace")
        if key not in text:
            continue
        head, *lines = text.splitlines()
        naming = [line for line in lines if key in line]
        rows = list(csv.DictReader(io.StringIO("\n".join([head, *naming]))))
        kept = tuple(
            {name: value for name, value in row.items() if value and name not in ("key", "keys")}
            for row in rows
        )
        methods = dict.fromkeys(row.get("method", "") for row in kept)
        name = name_of.get(path.stem, path.stem)
        found.append(Shown(name, path.parent.name, ", ".join(methods), path, kept))
    order = {name: place for place, name in enumerate(figures.FIGURES)}
    return sorted(found, key=lambda shown: (shown.label, order.get(shown.figure, len(order))))


def _csvs() -> list[pathlib.Path]:
    own, committed = outputs.local("figures"), paths.folder("figures")
    folders = dict.fromkeys(
        folder
        for place in (own, committed)
        for folder in sorted(place.glob("*"))
        if folder.is_dir() and folder.name != "local"
    )
    return [path for folder in folders for path in sorted(folder.glob("fig*.csv"))]


def in_registry(run: Run, study: Study) -> list[Shown]:
    """The figures that show the run, by the registry, and whose csv does not tell.

    These are figures that are not drawn for the label at all, where it has no figures yet, and
    those whose csv names no runs. Their notebooks' grids are read, which takes seconds.
    """
    from proxies_lib.science import notebooks

    by_section: dict[str, list[figures.Figure]] = {}
    for figure in figures.FIGURES.values():
        if figure.methods is not None and not _tells(figure, study.label):
            by_section.setdefault(figure.section, []).append(figure)
    found = []
    for path in notebooks.choose([], study):
        asked = by_section.get(path.name[:2], [])
        parameters = notebooks.reading(study.scale) | {"overrides": study.given}
        methods = notebooks.grid_of(path, parameters) if asked else {}
        for figure in asked:
            showing = [m for m, runs in methods.items() if run in figure.runs({m: runs}, study)]
            if showing:
                found.append(Shown(figure.name, study.label, ", ".join(showing)))
    return found


def _tells(figure: figures.Figure, label: str) -> bool:
    """Whether the csv of a figure answers for the label: it names runs, or other figures do."""
    places_ = (outputs.local("figures") / label, paths.folder("figures") / label)
    drawn = [path for place in places_ for path in place.glob("fig*.csv")]
    own = [path for path in drawn if path.stem == figure.file]
    if not own:
        return bool(drawn)
    with open(own[0], encoding="utf-8", errors="replace") as file:
        columns = file.readline().strip().split(",")
    return bool({"key", "keys"} & set(columns))
