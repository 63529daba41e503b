"""The site as files, and the command `proxies report`."""

import importlib.resources
import pathlib

from proxies_lib import paths
from proxies_lib.site import claim_pages, contents, figure_pages, folder, text_pages
from proxies_lib.site.contents import Contents
from proxies_lib.site.plan import START, Plan

ASSETS = ("site.css", "site.js", "theme.js", "charts.js")


def main(out: str | None = None, labels: list[str] | None = None, published: bool = False):
    """Build the site into the folder `out` (default: `site` in the project's folder) and say where.

    Raises UserError where there is nothing to show, what there is is damaged, or the folder holds
    something else than an earlier report.
    """
    target = pathlib.Path(out) if out else paths.root() / "site"
    folder.check(target)
    files = build(contents.gather(labels, published))
    folder.write(target, files)
    pages = sum(name.endswith(".html") for name in files)
    size = sum(map(len, files.values())) / 1e6
    print(f"report: {pages} pages, {size:.1f} MB; open {target / START}")


def build(shown: Contents) -> dict[str, bytes]:
    """Every file of the site, by its place in it. Raises UserError where an input is damaged."""
    plan = Plan(shown)
    made = {**claim_pages.make(plan), **figure_pages.make(plan), **text_pages.make(plan)}
    return {**_assets(), **plan.copies, **{name: text.encode() for name, text in made.items()}}


def _assets() -> dict[str, bytes]:
    """Style, scripts, Plotly's library, and a file that tells Jekyll to change nothing."""
    from plotly.offline import get_plotlyjs

    static = importlib.resources.files("proxies_lib.site") / "static"
    own = {f"assets/{name}": (static / name).read_bytes() for name in ASSETS}
    return {**own, "assets/plotly.min.js": get_plotlyjs().encode(), ".nojekyll": b""}
