"""A page per figure, and the gallery of all."""

import dataclasses
import re

import pandas as pd

from proxies_lib.science.figures import Figure
from proxies_lib.site import contents, documents, executed, shapes
from proxies_lib.site.charts import LACKING, Drawing
from proxies_lib.site.contents import Label
from proxies_lib.site.plan import (
    FIGURE_INDEX,
    Pages,
    Plan,
    in_turn,
    place_of_notebook,
    png_of,
)

OUTCOMES = ("final_loss", "init_loss", "diverged", "train_seconds")  # of a run, in its table


def make(plan: Plan) -> Pages:
    """All of them. Raises UserError where a csv or a notebook is damaged."""
    made: Pages = {}
    gallery: dict[str, list[dict]] = {}
    for before, figure, after in in_turn(plan.figures):
        having = [label for label in plan.contents.labels if label.has(figure)]
        parts = [_part(plan, label, figure) for label in having]
        page = _figure(plan, figure, parts, before=before, after=after)
        made |= page
        listed = {"page": next(iter(page)), "title": parts[0].told.title, **_thumbnail(parts)}
        gallery.setdefault(figure.section, []).append(listed)
    return {**made, **_gallery(plan, gallery)}


def _gallery(plan: Plan, by_section: dict[str, list[dict]]) -> Pages:
    sections = [
        {"number": section, "title": contents.title_of(section), "figures": listed}
        for section, listed in by_section.items()
    ]
    about = {"title": "Figures", "at": FIGURE_INDEX, "wide": True}
    return plan.page(FIGURE_INDEX, "figures", sections=sections, **about)


@dataclasses.dataclass(frozen=True)
class _File:
    """A file to download."""

    place: str
    size: str
    pixels: tuple[int, int] | None = None  # of a picture

    @property
    def kind(self) -> str:
        """As its name ends: png, csv or csv.zip."""
        return self.place.rpartition("/")[2].partition(".")[2]


@dataclasses.dataclass(frozen=True)
class _Runs:
    """The runs behind a figure: what all share, and a table of the rest."""

    same: dict[str, str]
    head: list[str]
    rows: list[list[str]]


@dataclasses.dataclass(frozen=True)
class _Part:
    """A figure at one label."""

    label: str
    told: executed.Drawn
    notebook: str  # its place in the project
    cell: str | None  # the place of its cell in the site
    code: str
    drawn: Drawing | None
    picture: _File | None
    csv: _File | None
    runs: _Runs | None
    known: set[str]  # keys of the runs that are listed
    no_runs: str  # why there are none


def _part(plan: Plan, label: Label, figure: Figure) -> _Part:
    frame = contents.frame_of(label, figure)
    rows = contents.runs_behind(label, figure, frame)
    path = label.executed().get(figure.section)
    told = executed.drawn(path, figure) if path else None
    page = plan.notebook_page(label, figure.section) if told else None
    return _Part(
        label=label.name,
        told=told or executed.untold(figure),
        notebook=place_of_notebook(label, path) if path else "",
        cell=f"{page}#{told.anchor}" if page and told else None,
        code=documents.code(told.code) if told else "",
        drawn=shapes.draw(frame),
        picture=_file(plan, png_of(label, figure)),
        csv=_file(plan, plan.numbers_of(label, figure)),
        runs=_runs(rows) if len(rows) else None,
        known=set(rows["key"]) if len(rows) else set(),
        no_runs=_why_no_runs(label, figure, frame),
    )


def _file(plan: Plan, place: str) -> _File | None:
    content = plan.copies.get(place)
    if content is None:
        return None
    megabytes = len(content) / 1e6
    size = f"{megabytes:.1f} MB" if megabytes > 1 else f"{1000 * megabytes:.0f} KB"
    return _File(place, size, executed.pixels_of(content))


def _figure(plan: Plan, figure: Figure, parts: list[_Part], **around) -> Pages:
    page = plan.figure_page(figure.name)
    assert page is not None
    first = parts[0]
    prose = documents.fragment(first.told.prose)
    return plan.page(
        page,
        "figure",
        title=first.told.title,
        description=first.told.words,
        at=FIGURE_INDEX,
        wide=True,
        has_charts=any(part.drawn for part in parts),
        figure=figure,
        prose=plan.places.rewritten(prose, first.notebook, page),
        shown=parts,
        claims=[claim for claim in plan.claims if claim.figure == figure.name],
        **around,
    )


def _thumbnail(parts: list[_Part]) -> dict:
    return {"picture": next((part.picture for part in parts if part.picture), None)}


def _runs(rows: pd.DataFrame) -> _Runs:
    about = rows.drop(columns=["key", "recipe", *OUTCOMES])
    varies = [name for name in about if about[name].nunique(dropna=False) > 1]
    same = {name: _value(about[name].iloc[0]) for name in about if name not in varies}
    shown = [*varies, *OUTCOMES]
    values = zip(rows["key"], *(rows[name].map(_value) for name in shown), strict=True)
    told = {name: value for name, value in same.items() if value}
    return _Runs(told, ["run", *shown], [list(row) for row in values])


def _value(value) -> str:
    if isinstance(value, str):
        # The text of an intervention is a page of code: its class is named, the notebook has it.
        named = re.findall(r"^class (\w+)", value, re.MULTILINE)
        return ", ".join(named) if named else value
    if pd.isna(value):
        return LACKING
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _why_no_runs(label: Label, figure: Figure, frame: pd.DataFrame) -> str:
    if figure.methods is None and not contents.keys_in(frame):
        return "Its csv names no runs: it shows what was computed from them, or simulated."
    if not contents.keys_in(frame):
        return "Its csv names no runs, and the protocol of its label is not known here."
    return f"Its runs are not in the exported table of {label.name}."
