"""What there is to show: the labels, with their verdicts, runs, figures and executed notebooks."""

import dataclasses
import functools
import io
import json
import pathlib

import pandas as pd

from proxies_lib import config, paths
from proxies_lib.config import UserError, did_you_mean, refuse
from proxies_lib.runs import tables
from proxies_lib.science import columns, notebooks, outputs, pictures, report
from proxies_lib.science.figures import FIGURES, Figure, of_section


@dataclasses.dataclass(frozen=True, eq=False)
class Label:
    """The outputs of a protocol; of what it does not have, None or nothing."""

    name: str
    verdicts: pd.DataFrame | None
    runs: pd.DataFrame | None  # the exported ones
    figures: pathlib.Path | None  # the folder of its pictures and their numbers
    folder: pathlib.Path | None  # the folder of its executed notebooks and tables
    published: bool = False  # whether one's own outputs were passed over

    def has(self, figure: Figure) -> bool:
        return self.figures is not None and (self.figures / f"{figure.file}.csv").is_file()

    def picture(self, figure: Figure) -> bytes | None:
        """The png of a figure that it has, with a palette. Raises UserError on a damaged one."""
        drawn = _content(self.figures, f"{figure.file}.png")
        try:
            return None if drawn is None else pictures.in_palette(drawn)
        except (OSError, SyntaxError, ValueError):
            name = f"figures/{self.name}/{figure.file}.png"
            raise UserError(f"{name} is damaged; run section {figure.section} again") from None

    def numbers(self, figure: Figure) -> bytes:
        """The csv of a figure that it has."""
        content = _content(self.figures, f"{figure.file}.csv")
        assert content is not None
        return content

    def executed(self) -> dict[str, pathlib.Path]:
        """Its executed notebooks by section."""
        if self.folder is None:
            return {}
        places = {s: self.folder / f"{p.stem}.ipynb" for s, p in notebooks.sections().items()}
        return {section: path for section, path in places.items() if path.is_file()}

    def files(self) -> dict[str, bytes]:
        """Its small files, copied beside its pages: verdicts, predictions, the protocol."""
        names = (report.CLAIMS, "prediction.csv", "predictions.csv", outputs.PROTOCOL)
        read = {name: _content(self.folder, name) for name in names}
        return {name: content for name, content in read.items() if content is not None}

    @functools.cached_property
    def protocol(self) -> dict:
        """What `protocol.json` says: scale, overrides, commit; empty where it says nothing."""
        try:
            found = json.loads(self.files().get(outputs.PROTOCOL, b"{}"))
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}


def _content(folder: pathlib.Path | None, name: str) -> bytes | None:
    try:
        return None if folder is None else (folder / name).read_bytes()
    except FileNotFoundError:
        return None


@dataclasses.dataclass(frozen=True, eq=False)
class Contents:
    """All that a site shows."""

    labels: list[Label]
    in_training: dict[str, int]  # scales without verdicts: how many runs each has so far

    @functools.cached_property
    def boards(self) -> dict[str, pd.DataFrame]:
        """The verdicts by label, of those that have any."""
        return {found.name: found.verdicts for found in self.labels if found.verdicts is not None}

    def front(self, section: str) -> str | None:
        """The label at which a section is shown first; None where nothing has verdicts."""
        return columns.front(self.boards, section) if self.boards else None

    def label(self, name: str) -> Label:
        return next(found for found in self.labels if found.name == name)

    def figures(self) -> list[Figure]:
        """The figures that some label has, in the order of the registry."""
        return [f for f in FIGURES.values() if any(found.has(f) for found in self.labels)]


def gather(names: list[str] | None = None, published: bool = False) -> Contents:
    """The contents of these labels, or of the scales that have verdicts or figures.

    One's own outputs come first, unless the `published` ones are wanted. Raises UserError where a
    label has nothing to show, a table is damaged, or there is nothing at all.
    """
    found = [_read(name, published) for name in dict.fromkeys(names or columns.SCALES)]
    shown = [label for label in found if label.verdicts is not None or label.figures]
    empty = [label.name for label in found if label not in shown]
    if names and empty:
        near = did_you_mean(empty[0], outputs.labels())
        refuse("scale", empty[0], f"has neither verdicts nor figures; run its sections first{near}")
    if not shown:
        raise UserError("report: there is nothing to show yet; `proxies run` makes it")
    training = {
        label.name: len(label.runs)
        for label in found
        if label not in shown and label.runs is not None
    }
    return Contents(shown, training)


def _read(name: str, published: bool) -> Label:
    def place(kind: str, file: str) -> pathlib.Path | None:
        return outputs.source(kind, name, file, published)

    judged = place("papermill_runs", report.CLAIMS)
    with_runs = place("papermill_runs", "runs.parquet")
    return Label(
        name,
        report.scoreboard(name, published) if judged else None,
        tables.exported_runs(with_runs) if with_runs else None,
        place("figures", ""),
        judged or with_runs or place("papermill_runs", ""),
        published,
    )


# ------------------------------------------------------------------ the runs behind a figure


@functools.lru_cache(maxsize=256)
def frame_of(label: Label, figure: Figure) -> pd.DataFrame:
    """The drawn numbers of a figure. Raises UserError where its csv is damaged."""
    text = io.BytesIO(label.numbers(figure))
    try:
        frame = pd.read_csv(text, dtype={"key": str, "keys": str, "panel": str})
    except ValueError:  # pandas' own errors are ValueErrors
        frame = pd.DataFrame()
    if "panel" not in frame:
        raise UserError(f"figures: {label.name}/{figure.file}.csv is damaged; draw it again")
    return frame


def keys_in(frame: pd.DataFrame) -> list[str]:
    """The run keys that the numbers of a figure carry, in their order, each once."""
    joined = [text for name in ("key", "keys") if name in frame for text in frame[name].dropna()]
    return list(dict.fromkeys(key for text in joined for key in text.split()))


def runs_behind(label: Label, figure: Figure, frame: pd.DataFrame) -> pd.DataFrame:
    """The exported runs behind a figure, a row each.

    They are those whose keys its csv carries. A figure of best losses carries none: its runs are
    those that the registry picks from the grid of its notebook, where the protocol is known.
    """
    if label.runs is None:
        return pd.DataFrame()
    keys = keys_in(frame)
    if keys:
        rows = label.runs.drop_duplicates("key").set_index("key", drop=False)
        return rows.loc[[key for key in keys if key in rows.index]]
    recipes = _asked_recipes(label, figure)
    return label.runs[label.runs["recipe"].isin(recipes)].drop_duplicates("key")


def trained_at(label: Label, section: str) -> dict[str, int]:
    """How many of the runs behind a section's figures were trained at each commit."""
    if label.runs is None:
        return {}
    drawn = [figure for figure in of_section(section) if label.has(figure)]
    keys = {key for figure in drawn for key in keys_in(frame_of(label, figure))}
    rows = label.runs[label.runs["key"].isin(keys)].drop_duplicates("key")
    return rows["commit"].value_counts().sort_index().to_dict()


def _asked_recipes(label: Label, figure: Figure) -> set[str]:
    """The recipes that a figure's notebook asks for, under the protocol of the label."""
    if figure.methods is None:
        return set()
    try:
        study = outputs.study_of(label.name, label.published)
        parameters = notebooks.reading(study.scale) | {"overrides": study.given}
        methods = notebooks.grid_of(notebooks.sections()[figure.section], parameters)
    except UserError:  # a protocol that today's rules refuse, or a notebook that has changed
        return set()
    return {config.recipe(run) for run in figure.runs(methods, study)}


def title_of(section: str) -> str:
    """The title of a section's notebook, without its number."""
    text = notebooks.sections()[section].read_text("utf-8")
    heading = next(line for line in text.splitlines() if line.startswith("# # "))
    return heading.removeprefix("# # ").partition(" · ")[2]


def project_file(name: str) -> str | None:
    """The text of a file of the project's folder; None where it has no such file."""
    path = paths.root() / name
    return path.read_text("utf-8") if path.is_file() else None
