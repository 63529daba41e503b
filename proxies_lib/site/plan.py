"""What is where in the site: the page of every claim, figure, notebook, document and source."""

import functools
import io
import pathlib
import zipfile

from proxies_lib import paths
from proxies_lib.runs import provenance
from proxies_lib.science.figures import FIGURES, Figure
from proxies_lib.site import contents, documents, links, render, verdicts
from proxies_lib.site.contents import Contents, Label
from proxies_lib.site.verdicts import Claim

START, SCOREBOARD, SOURCES = "index.html", "scoreboard.html", "sources.html"
FIGURE_INDEX, NOTEBOOK_INDEX, DOCUMENT_INDEX = (
    f"{name}/index.html" for name in ("figures", "papermill_runs", "docs")
)

# Pages of Markdown in the project's own folder, beside those of docs/.
TOP_DOCUMENTS = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")

# Files that are shown as source: README and the pages of docs/ link to them.
SOURCE_FILES = (
    *("proxies_lib/**/*.py", "notebooks/*.py", "benchmarks/*.py", "deploy/*"),
    *("LICENSE", "CITATION.cff", "Makefile", "pyproject.toml", "constraints.txt"),
)

MAX_CSV_BYTES = 50_000  # a csv of more is zipped, or the site would have more than 25 MB

Pages = dict[str, str]  # text of a page by its place in the site


class Plan:
    """What pages are made from, and where each is."""

    def __init__(self, shown: Contents):
        self.contents = shown
        self.claims = verdicts.claims(shown)
        self.figures = shown.figures()
        self._renderer = render.Renderer(shown, provenance.commit(), self.figure_page)

    def page(self, name: str, template: str, **values) -> Pages:
        """A page of the site from a template."""
        return {name: self._renderer.page(name, template, **values)}

    # -------------------------------------------------------------- places of pages

    def figure_page(self, name: str) -> str | None:
        """The page of a figure; None where it has none."""
        figure = FIGURES.get(name)
        return f"figures/{figure.file}.html" if figure in self.figures else None

    def notebook_page(self, label: Label, section: str | None) -> str | None:
        """The page of an executed notebook; None where the label has not executed it."""
        path = label.executed().get(section) if section else None
        return None if path is None else f"papermill_runs/{label.name}/{path.stem}.html"

    def numbers_of(self, label: Label, figure: Figure) -> str:
        """The place of a figure's csv in the site, where it may be zipped."""
        place = csv_of(label, figure)
        return place if place in self.copies else f"{place}.zip"

    @functools.cached_property
    def places(self) -> links.Places:
        found = {name: page_of_document(name) for name in self.documents}
        found |= {name: f"{name}.html" for name in self.sources}
        folders = {str(pathlib.PurePosixPath(name).parent) for name in self.sources} - {"."}
        found |= {name: f"{SOURCES}#{anchor_of_folder(name)}" for name in folders}
        for label in self.contents.labels:
            found |= self._places_of(label)
        return links.Places(found, set(self.copies))

    def _places_of(self, label: Label) -> dict[str, str]:
        found = {f"figures/{label.name}": FIGURE_INDEX}
        found[f"papermill_runs/{label.name}"] = f"{NOTEBOOK_INDEX}#{label.name}"
        for figure in filter(label.has, self.figures):
            found[png_of(label, figure)] = f"{self.figure_page(figure.name)}#{label.name}"
            found[csv_of(label, figure)] = self.numbers_of(label, figure)
        for section, path in label.executed().items():
            page = self.notebook_page(label, section)
            assert page is not None
            found[place_of_notebook(label, path)] = page
        return found

    # -------------------------------------------------------------- what is shown as it is

    @functools.cached_property
    def copies(self) -> dict[str, bytes]:
        """Files of the project that the site has under the same name; a long csv is zipped."""
        copies = {}
        for label in self.contents.labels:
            for figure in filter(label.has, self.figures):
                place, content = _packed(csv_of(label, figure), label.numbers(figure))
                copies[place] = content
                picture = label.picture(figure)
                if picture is not None:
                    copies[png_of(label, figure)] = picture
            for name, content in label.files().items():
                copies[f"papermill_runs/{label.name}/{name}"] = content
        for path in sorted((paths.root() / "docs").glob("*.csv")):
            copies[f"docs/{path.name}"] = path.read_bytes()
        return copies

    @functools.cached_property
    def documents(self) -> dict[str, documents.Document]:
        """Pages of Markdown by their place in the project."""
        in_docs = sorted(path.name for path in (paths.root() / "docs").glob("*.md"))
        named = [*TOP_DOCUMENTS, *(f"docs/{name}" for name in in_docs)]
        texts = {name: contents.project_file(name) for name in named}
        return {name: documents.document(text) for name, text in texts.items() if text is not None}

    @functools.cached_property
    def sources(self) -> dict[str, str]:
        """Texts of source by their place in the project."""
        root = paths.root()
        files = [path for pattern in SOURCE_FILES for path in sorted(root.glob(pattern))]
        names = [path.relative_to(root).as_posix() for path in files if path.is_file()]
        return {name: (root / name).read_text("utf-8") for name in dict.fromkeys(names)}


def _packed(place: str, content: bytes) -> tuple[str, bytes]:
    """A file with its place in the site: as it is, or zipped where it is long."""
    if len(content) <= MAX_CSV_BYTES:
        return place, content
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        # Without the time of day: the same numbers are the same file.
        entry = zipfile.ZipInfo(pathlib.PurePosixPath(place).name)
        file.writestr(entry, content, zipfile.ZIP_DEFLATED, compresslevel=9)
    return f"{place}.zip", packed.getvalue()


def csv_of(label: Label, figure: Figure) -> str:
    return f"figures/{label.name}/{figure.file}.csv"


def png_of(label: Label, figure: Figure) -> str:
    return f"figures/{label.name}/{figure.file}.png"


def page_of_claim(claim: Claim) -> str:
    return f"claims/{claim.slug}.html"


def page_of_document(name: str) -> str:
    return name.removesuffix(".md") + ".html"


def anchor_of_folder(name: str) -> str:
    """Where the page of sources lists a folder."""
    return name.replace("/", "-")


def place_of_notebook(label: Label, path: pathlib.Path) -> str:
    """The place of an executed notebook in the project, as if it were published."""
    return f"papermill_runs/{label.name}/{path.name}"


def in_turn(shown: list) -> list[tuple]:
    """Each with the one before it and the one after it, None at the ends."""
    return list(zip([None, *shown[:-1]], shown, [*shown[1:], None], strict=True))
