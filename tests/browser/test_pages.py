"""The slow suite of the site, `make test-browser`: what a reader does, in Chromium."""

import re

import pytest

from proxies_lib.site.verdicts import LOOK

from .conftest import LABELS, SCREENSHOTS

KINDS = {  # of pages, by the beginnings of their names
    "front": (
        "index.html",
        "scoreboard.html",
        "sources.html",
        "figures/index",
        "papermill_runs/index",
    ),
    "claims": ("claims/",),
    "figures": ("figures/fig",),
    "notebooks": ("papermill_runs/laptop/", "papermill_runs/smoke/"),
    "documents": ("docs/", "README", "CONTRIBUTING", "SECURITY", "CHANGELOG"),
}

FIGURE, NOTEBOOK = (
    "figures/fig01_lr_sensitivity.html",
    "papermill_runs/laptop/01_attention_logit_growth.html",
)

AT_ALL_SCALES = "figures/fig03_z_loss.html"

SHOWN = ("index.html", "scoreboard.html", "claims/1-ratio.html", FIGURE, NOTEBOOK)


def names_in(site) -> list[str]:
    return sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html"))


def names_of(site, kind: str) -> list[str]:
    """The pages of a kind; of sources three, as all are made alike."""
    every = names_in(site)
    if kind == "sources":
        known = tuple(begin for begins in KINDS.values() for begin in begins)
        return [name for name in every if not name.startswith(known)][::40]
    return [name for name in every if name.startswith(KINDS[kind])]


# ------------------------------------------------------------------ every page


@pytest.mark.parametrize("width", [390, 1280])
def test_every_page_opens_from_disk_without_a_complaint(visit, site, width):
    visitor, wide = visit(width), []
    for name in names_in(site):
        page = visitor.open(name)
        page.wait_for_load_state()
        # A page that is wider than its window makes a reader scroll sideways.
        if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
            wide.append(name)
    assert visitor.complaints == [] and visitor.elsewhere() == [] and wide == []


@pytest.mark.parametrize("kind", [*KINDS, "sources"])
def test_axe_finds_nothing_serious(visit, site, kind):
    """Every page in one theme; of each kind one in the other, where only colors differ."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    # From a disk axe may not fetch the style sheet that it would preload.
    options = {"resultTypes": ["violations"], "preload": False}
    names = names_of(site, kind)
    light, dark = visit(), visit(theme="dark")
    found = []
    for visitor, those in ((light, names), (dark, names[:1])):
        for name in those:
            response = axe.run(visitor.open(name), options=options).response
            for violation in response["violations"]:
                if violation["impact"] in ("serious", "critical"):
                    nodes = [node["target"] for node in violation["nodes"]]
                    found.append((name, violation["id"], nodes[:3]))
    assert names and found == []


# ------------------------------------------------------------------ scoreboard


def rows_shown(page) -> list[str]:
    return page.locator(".board tbody tr:visible th").all_inner_texts()


def test_filters_of_the_scoreboard(visit):
    visitor = visit()
    page = visitor.open("scoreboard.html")
    every = rows_shown(page)
    assert len(
        every
    ) > 100 and f"{len(every)} of {len(every)} checks are shown." in page.inner_text(".shown")

    page.select_option("#section", "03")
    assert rows_shown(page) == ["5-sensitivity", "5-loss", "5-large"]
    page.get_by_label("laptop", exact=True).check()
    page.locator("input[value=holds]").uncheck()
    assert rows_shown(page) == ["5-large"]
    assert page.locator("td[data-scale=night]:visible").count() == 0
    address = page.url
    assert "section=03" in address and "scale=laptop" in address and "verdict=" in address

    # The address keeps the filters: it can be sent to someone.
    page.goto("about:blank")
    page.goto(address)
    assert rows_shown(page) == ["5-large"]
    page.get_by_role("button", name="Show all").click()
    page.wait_for_function(
        f"document.querySelector('.shown').textContent.startsWith('{len(every)} of')"
    )
    assert rows_shown(page) == every and visitor.complaints == []


def test_the_scoreboard_shows_how_verdicts_move(visit):
    page = visit().open("scoreboard.html")
    page.get_by_label("only those that move").check()
    moving = rows_shown(page)
    assert 0 < len(moving) < 101
    assert page.locator(".board tbody tr:visible:has(.moved:visible)").count() == len(moving)
    assert all("→" in move for move in page.locator(".moved:visible").all_inner_texts())
    page.get_by_label(LABELS[0], exact=True).check()
    assert rows_shown(page) == moving  # from the first scale to any other


def test_the_digest_leads_to_filtered_rows(visit):
    page = visit().open("index.html")
    first = page.get_by_role("link", name=re.compile(r"\d+ holds")).first
    number = int(first.inner_text().split()[0])
    first.click()
    assert "scale=night" in page.url  # section 01 is shown where it is largest
    assert len(rows_shown(page)) == number
    cells = page.locator("tr:visible td[data-scale=night]").all_inner_texts()
    assert all("holds" in text for text in cells)


# ------------------------------------------------------------------ charts


def drawn(page, chart: int = 0):
    figure = page.locator(f".chart >> nth={chart}")
    figure.scroll_into_view_if_needed()
    figure.locator(".main-svg").first.wait_for()
    page.wait_for_function(f"document.querySelectorAll('.chart')[{chart}].dataset.drawn === ''")
    return figure


def names_of_curves(figure) -> int:
    return figure.locator(".scatterlayer .trace .lines path:visible").count()


@pytest.mark.parametrize("name", ["index.html", FIGURE])
def test_arms_and_sizes_can_be_switched_off(visit, name):
    visitor = visit()
    page = visitor.open(name)
    figure = drawn(page)
    every = names_of_curves(figure)
    page.get_by_label("without qk-layernorm").first.uncheck()
    page.wait_for_timeout(300)
    assert names_of_curves(figure) * 2 == every
    page.get_by_label("N = 6.1K").first.uncheck()
    page.wait_for_timeout(300)
    sizes = page.locator(".facets >> nth=0").locator("input[data-facet=size]").count()
    assert names_of_curves(figure) == every // 2 * (sizes - 1) // sizes
    page.get_by_role("button", name="Show all").first.click()
    page.wait_for_timeout(300)
    assert names_of_curves(figure) == every and visitor.complaints == []


def center(locator) -> tuple[float, float]:
    box = locator.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def test_a_point_names_its_runs_and_leads_to_them(visit):
    visitor = visit()
    page = visitor.open(FIGURE)
    figure = drawn(page)
    point = figure.locator(".scatterlayer .trace .points path").last
    page.mouse.move(*center(point))
    figure.locator(".hoverlayer .hovertext").wait_for()
    hovered = " ".join(figure.locator(".hoverlayer tspan").all_text_contents())
    keys = re.findall(r"\b[0-9a-f]{24}\b", hovered)
    assert len(keys) == 3 and "LR 1: loss" in hovered

    page.mouse.click(*center(point))
    links = page.locator("section:visible .picked a")
    links.first.wait_for()
    assert links.all_inner_texts() == keys
    links.first.click()
    row = page.locator(f"#run-laptop-{keys[0]}")
    assert row.is_visible() and "1e27f95a88cb" in page.locator("section:visible .same").inner_text()
    assert visitor.complaints == []


def test_a_chart_zooms_and_comes_back(visit):
    page = visit().open(FIGURE)
    figure = drawn(page)
    ask = "document.querySelector('.plot').layout.xaxis.range.join()"
    whole = page.evaluate(ask)
    box = figure.locator(".nsewdrag").first.bounding_box()
    page.mouse.move(box["x"] + 60, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + 220, box["y"] + 160, steps=4)
    page.mouse.up()
    page.wait_for_function(f"{ask} !== '{whole}'")
    page.get_by_role("button", name="Reset zoom").first.click()
    page.wait_for_function(f"{ask} === '{whole}'")


def test_every_chart_of_every_figure_is_drawn(visit, site):
    visitor = visit()
    for name in names_of(site, "figures"):
        page = visitor.open(name)
        # As for a printer: all at once, not only those in view.
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        shown = "[...document.querySelectorAll('.chart')].filter((chart) => chart.offsetParent)"
        page.wait_for_function(f"{shown}.every((chart) => chart.dataset.drawn === '')")
        empty = page.evaluate(
            f"{shown}.filter((c) => !c.querySelector('.scatterlayer path')).map((c) => c.innerText)"
        )
        assert empty == [], name
    assert visitor.complaints == [] and visitor.elsewhere() == []


def test_one_scale_at_a_time(visit):
    page = visit().open(FIGURE)
    titles = page.locator("section.scale:visible h2")
    assert titles.all_inner_texts() == ["At laptop scale"]
    page.get_by_label("night", exact=True).check()
    assert titles.all_inner_texts() == ["At night scale"]
    page.locator("section:visible .chart[data-drawn]").first.wait_for()
    page.goto(page.url.partition("#")[0] + "#night")
    page.reload()
    assert titles.all_inner_texts() == ["At night scale"]


# ------------------------------------------------------------------ themes, keyboard, hosts


def test_the_theme_is_kept_and_charts_follow_it(visit):
    page = visit().open("index.html")
    figure = drawn(page)
    color = "getComputedStyle(document.body).backgroundColor"
    line = "document.querySelector('.scatterlayer .lines path').style.stroke"
    light, stroke = page.evaluate(color), page.evaluate(line)
    page.get_by_role("button", name="Dark page").click()
    assert page.evaluate(color) != light
    page.wait_for_function(f"{line} !== '{stroke}'")
    assert figure.is_visible() and page.get_by_role("button", name="Light page").is_visible()
    page.goto(page.url.replace("index.html", "scoreboard.html"))
    assert page.evaluate(color) != light, "another page forgot the theme"


FOCUS = """() => {
  const at = document.activeElement, style = getComputedStyle(at);
  const box = at.getBoundingClientRect();
  return [at.tagName, (at.innerText || at.value || at.ariaLabel || "").trim().slice(0, 40),
          style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2,
          box.width > 0 && box.height > 0];
}"""


@pytest.mark.parametrize("name", ["index.html", "scoreboard.html", "claims/1-ratio.html", FIGURE])
def test_everything_can_be_reached_by_keyboard_and_is_seen_to_be(visit, name):
    page = visit().open(name)
    page.wait_for_load_state()
    wanted = page.evaluate(
        "[...document.querySelectorAll('a[href], button, select, summary, input')].filter("
        "(e) => e.checkVisibility() && !e.matches('.modebar *, [type=radio]')).length"
    )
    reached, unseen = 0, []
    for step in range(wanted + 150):
        page.keyboard.press("Tab")
        tag, words, outlined, visible = page.evaluate(FOCUS)
        if tag == "BODY":
            break
        if step == 0:
            assert words == "Skip to the content"
        reached += 1
        if not (outlined and visible):
            unseen.append((tag, words))
    assert reached >= wanted and unseen == []


def test_the_skip_link_and_controls_work_by_keyboard(visit):
    page = visit().open("scoreboard.html")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"
    page.locator("input[value=holds]").focus()
    page.keyboard.press("Space")
    assert not page.locator("input[value=holds]").is_checked()
    page = visit().open(FIGURE)
    page.locator("section:visible details.runs summary").focus()
    page.keyboard.press("Enter")
    assert page.locator("section:visible details.runs table").is_visible()


def test_it_works_from_a_static_host_too(visit, served):
    visitor = visit()
    lost = []
    visitor.page.on(
        "response", lambda answer: lost.append(answer.url) if answer.status >= 400 else None
    )
    for name in SHOWN:
        visitor.page.goto(f"{served}/{name}")
        visitor.page.wait_for_load_state("networkidle")
    visitor.page.goto(f"{served}/{FIGURE}")
    drawn(visitor.page)
    assert lost == [] and visitor.complaints == []
    assert all(url.startswith((served, "data:", "blob:")) for url in visitor.asked)


def test_without_scripts_everything_is_there_to_read(browser, site):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{site.as_uri()}/scoreboard.html")
    assert page.locator(".board tbody tr:visible").count() > 100
    assert not page.locator("form.filters").is_visible()
    page.goto(f"{site.as_uri()}/{AT_ALL_SCALES}")
    assert page.locator("section.scale:visible").count() == len(LABELS)
    assert page.locator(".downloads:visible").count() == len(LABELS)
    page.goto(f"{site.as_uri()}/index.html")
    assert page.locator("noscript img, img").first.is_visible()
    context.close()


# ------------------------------------------------------------------ pictures to look at


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_screenshots(visit, width, theme):
    """Into SCREENSHOTS, for a person; here only that the pages have their colors and badges."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    visitor = visit(width, theme)
    for name in SHOWN:
        page = visitor.open(name)
        page.wait_for_load_state()
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        page.wait_for_timeout(500)
        file = SCREENSHOTS / f"{name.replace('/', '_').removesuffix('.html')}-{width}-{theme}.png"
        page.screenshot(path=file, full_page=True)
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert sum(map(int, re.findall(r"\d+", ground)[:3])) > 600 or theme == "dark"
        assert sum(map(int, re.findall(r"\d+", ground)[:3])) < 100 or theme == "light"
    page = visitor.open("scoreboard.html")
    assert page.locator(".badge:visible").count() > 4 * len(LOOK)
