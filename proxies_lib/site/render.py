"""Templates, and what all of them can call."""

import json

import jinja2
from markupsafe import Markup, escape

from proxies_lib.science import styles
from proxies_lib.site import links, verdicts
from proxies_lib.site.charts import Chart
from proxies_lib.site.contents import Contents

MENU = (
    ("index.html", "Start"),
    ("scoreboard.html", "Scoreboard"),
    ("figures/index.html", "Figures"),
    ("papermill_runs/index.html", "Notebooks"),
    ("docs/interventions.html", "Interventions"),
    ("docs/index.html", "Documentation"),
)


class Renderer:
    """Pages from templates; `figure_page` gives the page of a figure, None where it has none."""

    def __init__(self, contents: Contents, commit: str, figure_page):
        self._templates = jinja2.Environment(
            loader=jinja2.PackageLoader("proxies_lib.site"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._common = {
            "contents": contents,
            "commit": commit,
            "menu": MENU,
            "look": verdicts.LOOK,
            "shown_method": styles.shown,
            "chart_json": chart_json,
            "decides": decides,
            "what_would_change": verdicts.what_would_change,
            "description": "",
            "wide": False,
            "has_charts": False,
        }
        self._figure_page = figure_page

    def page(self, name: str, template: str, **values) -> str:
        """The page `name` of the site."""

        def url(target: str) -> str:
            return links.relative(target, name)

        def figure_link(figure: str) -> Markup:
            target = self._figure_page(figure)
            if target is None:
                return escape(figure)
            return Markup('<a href="{}">{}</a>').format(url(target), figure)

        made = self._templates.get_template(f"{template}.html.j2")
        own = {"page": name, "url": url, "figure_link": figure_link}
        return made.render(self._common | own | values)


def chart_json(chart: Chart) -> Markup:
    """A chart as JSON that cannot end the element it stands in."""
    text = json.dumps(
        {"data": chart.traces, "layout": chart.layout},
        ensure_ascii=False,
        allow_nan=False,
        separators=(",", ":"),
    )
    return Markup(text.replace("</", "<\\/").replace("<!--", "\\u003c!--"))


def decides(verdict: verdicts.Verdict) -> str:
    """Half the width of the interval, as the scoreboard has it."""
    judged = verdict.verdict != verdicts.UNTESTABLE and verdict.half == verdict.half
    return f"{verdict.half:.2g}" if judged else "–"
