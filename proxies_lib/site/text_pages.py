"""Executed notebooks, documents and sources."""

import pathlib

from proxies_lib.science import figures
from proxies_lib.science.figures import Figure
from proxies_lib.site import documents, executed, render
from proxies_lib.site.contents import Label
from proxies_lib.site.plan import (
    DOCUMENT_INDEX,
    NOTEBOOK_INDEX,
    SOURCES,
    Pages,
    Plan,
    anchor_of_folder,
    in_turn,
    page_of_document,
    place_of_notebook,
    png_of,
)


def make(plan: Plan) -> Pages:
    """All of them. Raises UserError where a notebook is damaged."""
    return {**_notebooks(plan), **_documents(plan), **_sources(plan)}


# ------------------------------------------------------------------ notebooks


def _notebooks(plan: Plan) -> Pages:
    made: Pages = {}
    listed: dict[str, list[tuple]] = {}
    for label in plan.contents.labels:
        for before, section, after in in_turn(list(label.executed())):
            page = _notebook(plan, label, section, before, after)
            made |= page
            title = executed.title_of(label.executed()[section])
            listed.setdefault(label.name, []).append((next(iter(page)), title))
    about = {"title": "Notebooks", "at": NOTEBOOK_INDEX}
    return {**made, **plan.page(NOTEBOOK_INDEX, "notebooks", executed=listed, **about)}


def _notebook(
    plan: Plan, label: Label, section: str, before: str | None, after: str | None
) -> Pages:
    page, path = plan.notebook_page(label, section), label.executed()[section]
    assert page is not None
    drawn = [figure for figure in figures.of_section(section) if label.has(figure)]
    pictures = {figure.file: _picture(plan, label, figure) for figure in drawn}
    body = executed.body(path, section, pictures)
    others = {
        other.name: plan.notebook_page(other, section)
        for other in plan.contents.labels
        if other is not label and section in other.executed()
    }
    return plan.page(
        page,
        "notebook",
        title=executed.title_of(path),
        at=NOTEBOOK_INDEX,
        label=label.name,
        section=section,
        body=plan.places.rewritten(body, place_of_notebook(label, path), page),
        others=others,
        before=plan.notebook_page(label, before),
        after=plan.notebook_page(label, after),
    )


def _picture(plan: Plan, label: Label, figure: Figure) -> executed.Picture:
    """A published picture, by its address in the project."""
    address = png_of(label, figure)
    return executed.Picture(f"../../{address}", executed.pixels_of(plan.copies.get(address, b"")))


# ------------------------------------------------------------------ documents and sources


def _documents(plan: Plan) -> Pages:
    made: Pages = {}
    listed = []
    for name, found in plan.documents.items():
        page = page_of_document(name)
        body = plan.places.rewritten(found.body, name, page)
        at = page if page in dict(render.MENU) else DOCUMENT_INDEX
        about = {"title": found.title, "description": found.first_words, "at": at}
        made |= plan.page(page, "document", body=body, headings=found.headings, **about)
        listed.append((page, found))
    about = {"title": "Documentation", "at": DOCUMENT_INDEX}
    return {**made, **plan.page(DOCUMENT_INDEX, "documents", listed=listed, **about)}


def _sources(plan: Plan) -> Pages:
    made: Pages = {}
    folders: dict[str, list[str]] = {}
    for name, text in plan.sources.items():
        about = {"title": name, "at": DOCUMENT_INDEX}
        made |= plan.page(f"{name}.html", "source", body=documents.source(text, name), **about)
        inside = str(pathlib.PurePosixPath(name).parent)
        folders.setdefault("the project" if inside == "." else inside, []).append(name)
    listed = [(anchor_of_folder(name), name, files) for name, files in folders.items()]
    about = {"title": "Sources", "at": DOCUMENT_INDEX}
    return {**made, **plan.page(SOURCES, "sources", folders=listed, **about)}
