"""Links of the project's pages and notebooks, turned into links of the site.

A page of the project links to other files by their place in the project's folder. The site keeps
these places: docs/night.md is docs/night.html here, a notebook ends with .html instead of .ipynb,
a module with .py.html. What the site does not have becomes plain text.
"""

import dataclasses
import html
import posixpath
import re

IS_EXTERNAL = re.compile(r"(?:[a-z][a-z0-9+.-]*:|//)", re.IGNORECASE)

_LINK = re.compile(r"<a\b([^>]*?)\shref=\"([^\"]*)\"([^>]*)>(.*?)</a>", re.DOTALL)
_IMAGE = re.compile(r"<img\b([^>]*?)\ssrc=\"([^\"]*)\"([^>]*)>", re.DOTALL)


def relative(target: str, page: str) -> str:
    """The way from a page of the site to another place of it."""
    path, mark, anchor = target.partition("#")
    if path == page or not path:
        return f"{mark}{anchor}" or posixpath.basename(page)
    return posixpath.relpath(path, posixpath.dirname(page) or ".") + mark + anchor


@dataclasses.dataclass(frozen=True)
class Places:
    """Where the files of the project stand in the site."""

    pages: dict[str, str]  # a file or folder of the project → the page that shows it
    files: set[str]  # files that the site has under the same name

    def of(self, name: str, as_image: bool = False) -> str | None:
        """The place of a file of the project, None where the site does not show it."""
        if name in self.files and (as_image or name not in self.pages):
            return name
        return None if as_image else self.pages.get(name)

    def rewritten(self, text: str, source: str, page: str) -> str:
        """HTML that was made from the file `source`, as `page` can have it."""

        def link(match: re.Match) -> str:
            before, href, after, words = match.groups()
            target = self._target(href, source, page)
            if target is None:
                return f'<span class="elsewhere" title="in the project: {href}">{words}</span>'
            return f'<a{before} href="{target}"{after}>{words}</a>'

        def image(match: re.Match) -> str:
            before, src, after = match.groups()
            target = self._target(src, source, page, as_image=True)
            if target is None:
                return '<span class="elsewhere">(a picture that is not part of this site)</span>'
            return f'<img{before} src="{target}"{after}>'

        return _IMAGE.sub(image, _LINK.sub(link, text))

    def _target(self, href: str, source: str, page: str, as_image: bool = False) -> str | None:
        address = html.unescape(href)
        if IS_EXTERNAL.match(address):
            return None if as_image and not address.startswith("data:") else href
        path, mark, anchor = address.partition("#")
        if not path:
            return href
        place = self.of(in_project(path, source), as_image)
        return place and html.escape(relative(_with_anchor(place, mark + anchor), page))


def _with_anchor(place: str, anchor: str) -> str:
    """A page that stands for a part of another one has an anchor of its own."""
    return place if "#" in place else place + anchor


def in_project(path: str, source: str) -> str:
    """The place in the project of what a file there links to as `path`.

    One's own outputs lie in figures/local and papermill_runs/local, a folder deeper than the
    published ones: both are meant by figures/<label> and papermill_runs/<label>.
    """
    joined = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    inside = re.sub(r"^(?:\.\./)+", "", joined)
    return re.sub(r"^(figures|papermill_runs)/local/", r"\1/", inside)
