"""Executed notebooks as HTML, and what they hold about a figure: prose, cell, picture."""

import base64
import dataclasses
import functools
import html
import pathlib
import re
import struct

import nbformat

from proxies_lib.config import UserError
from proxies_lib.science.figures import Figure, of_section


@dataclasses.dataclass(frozen=True)
class Drawn:
    """What an executed notebook holds about a figure."""

    title: str
    prose: str  # Markdown: what stands between its heading and its cell
    code: str  # of the cell that draws it
    anchor: str  # of that cell in the notebook's page
    words: str  # that stand for the picture where it is not seen


@functools.lru_cache(maxsize=64)
def read(path: pathlib.Path) -> nbformat.NotebookNode:
    """An executed notebook. Raises UserError where it is damaged."""
    try:
        return nbformat.read(path, as_version=4)
    except Exception:  # nbformat raises almost anything on damaged text
        raise UserError(f"{path.name}: is damaged; execute its section again") from None


def drawn(path: pathlib.Path, figure: Figure) -> Drawn | None:
    """What the notebook at `path` holds about a figure; None where no cell of it draws it."""
    cells = read(path).cells
    place = _cell_of(cells, figure)
    if place is None:
        return None
    above = [i for i in range(place) if cells[i].cell_type == "markdown"]
    headed = [i for i in above if cells[i].source.startswith("## ")]
    first = headed[-1] if headed else place
    text = "\n\n".join(cells[i].source for i in above if i >= first)
    heading, _, prose = text.partition("\n")
    outputs = cells[place].get("outputs", [])
    alts = [output.get("metadata", {}).get("image/png", {}).get("alt") for output in outputs]
    words = heading.lstrip("# ")
    title = words if words.startswith("Figure") else f"Figure {figure.name} · {words}"
    return Drawn(
        title, prose, cells[place].source, _anchor(cells[place]), next(filter(None, alts), title)
    )


def untold(figure: Figure) -> Drawn:
    """What is said about a figure whose notebook is not there."""
    return Drawn(f"Figure {figure.name}", "", "", "", f"Figure {figure.name}")


def _cell_of(cells: list, figure: Figure) -> int | None:
    """The number of the code cell that names a figure's file."""
    for i, cell in enumerate(cells):
        if cell.cell_type == "code" and f'"{figure.file}"' in cell.source:
            return i
    return None


def _anchor(cell) -> str:
    return f"cell-id={cell.get('id', '')}"


@dataclasses.dataclass(frozen=True)
class Picture:
    """The published picture of a figure."""

    address: str  # as the notebook's page links to it
    pixels: tuple[int, int] | None  # its width and height


def body(path: pathlib.Path, section: str, pictures: dict[str, Picture]) -> str:
    """The cells of a notebook as HTML, its links as they stand there.

    A figure whose picture is published, by its file in `pictures`, is shown by that: the same cell
    drew it, and it need not be in the site twice. A link to the figure's page follows it.
    """
    notebook = nbformat.from_dict(read(path))
    for figure in of_section(section):
        place = _cell_of(notebook.cells, figure)
        if place is not None and figure.file in pictures:
            outputs = notebook.cells[place].outputs
            notebook.cells[place].outputs = _with_picture(outputs, figure, pictures[figure.file])
    text, _ = _exporter().from_notebook_node(notebook)
    words = "A figure; the text above says what it shows"
    return re.sub(r"<img(?![^>]*\balt=)", f'<img alt="{words}"', text)


def _with_picture(outputs: list, figure: Figure, picture: Picture) -> list:
    """The outputs of a figure's cell, with its published picture and a link to its page."""
    drawn = [output for output in outputs if "image/png" in output.get("data", {})]
    kept = outputs
    if picture.pixels and len(drawn) == 1 and _has_shape(drawn[0], picture.pixels):
        alt = html.escape(drawn[0].metadata.get("image/png", {}).get("alt", figure.name))
        width, height = picture.pixels
        size = f'width="{width}" height="{height}" loading="lazy"'
        image = _html_output(f'<img src="{picture.address}" alt="{alt}" {size}>')
        kept = [image if output is drawn[0] else output for output in outputs]
    words = f"Figure {figure.name}: interactive, with its numbers and runs"
    return [
        *kept,
        _html_output(f'<p class="to-figure"><a href="{picture.address}">{words}</a></p>'),
    ]


def _html_output(text: str) -> nbformat.NotebookNode:
    return nbformat.v4.new_output("display_data", {"text/html": text})


def _has_shape(output: nbformat.NotebookNode, pixels: tuple[int, int]) -> bool:
    """Whether the picture of an output is as wide for its height, within 5 %, as another one."""
    own = pixels_of(base64.b64decode(output.data["image/png"][:64]))
    if own is None:
        return False
    return abs(own[0] * pixels[1] / (own[1] * pixels[0]) - 1) < 0.05


def pixels_of(png: bytes) -> tuple[int, int] | None:
    """Width and height of a png, as its first chunk says; None where it is none."""
    if len(png) < 24 or png[12:16] != b"IHDR":
        return None
    return struct.unpack(">II", png[16:24])


@functools.cache
def _exporter():
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(template_name="basic")
    exporter.exclude_input_prompt = exporter.exclude_output_prompt = True
    exporter.exclude_anchor_links = True
    return exporter


def title_of(path: pathlib.Path) -> str:
    """The heading of a notebook."""
    first = read(path).cells[0].source.partition("\n")[0]
    return first.lstrip("# ")
