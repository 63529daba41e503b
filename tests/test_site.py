"""The static site: built from the committed smoke outputs, and its parts."""

import collections
import html.parser
import json
import pathlib
import re
import subprocess
import urllib.parse
import zipfile

import numpy as np
import pandas as pd
import plotly.graph_objects
import pytest

from proxies_lib import cli, paths
from proxies_lib.config import UserError
from proxies_lib.science import claims, figures, notebooks, outputs, pictures, styles
from proxies_lib.science.figures import FIGURES
from proxies_lib.site import (
    build,
    claim_pages,
    colors,
    contents,
    documents,
    folder,
    links,
    origins,
    plan,
    shapes,
    verdicts,
)

ROOT = pathlib.Path(__file__).resolve().parents[1]
SMOKE = pd.read_csv(ROOT / "papermill_runs/smoke/claims.csv", dtype={"section": str, "figure": str})
COMMITTED = sorted((ROOT / "figures/smoke").glob("*.csv"))
PICTURE_ONLY = {"P2.ratio"}  # two simulations and a table of shares: no shape that is drawn here


@pytest.fixture(scope="module")
def committed():
    """Readers see the committed outputs, not the folders of this test session."""
    with pytest.MonkeyPatch.context() as patch:
        for kind in ("figures", "papermill_runs"):
            patch.delenv(f"PROXIES_{kind.upper()}", raising=False)
        yield


@pytest.fixture(scope="module")
def site(committed, tmp_path_factory):
    """The folder of the site, as the command writes it."""
    out = tmp_path_factory.mktemp("site") / "out"
    assert cli.main(["report", "--scale", "smoke", "--published", "--out", str(out)]) == 0
    return out


class Page(html.parser.HTMLParser):
    """What a page loads, where it leads, which anchors and headings it has."""

    LOADING = {("script", "src"), ("img", "src"), ("link", "href"), ("iframe", "src")}

    def __init__(self, path: pathlib.Path):
        super().__init__()
        self.path, self.ids, self.links, self.loads = path, [], [], []
        self.tags, self.alts, self.styles, self.title = [], [], [], ""
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.append(tag)
        if "id" in values:
            self.ids.append(values["id"])
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag == "img":
            self.alts.append(values.get("alt"))
        self.loads += [v for name, v in attrs if (tag, name) in self.LOADING]
        self.styles.append(values.get("style") or "")

    def handle_data(self, data):
        if self.tags[-1:] == ["title"]:
            self.title += data


@pytest.fixture(scope="module")
def read(site):
    return {path.relative_to(site).as_posix(): Page(path) for path in site.rglob("*.html")}


# ------------------------------------------------------------------ the whole site


def test_every_link_leads_to_a_file_and_an_anchor(site, read):
    checked = 0
    for name, page in read.items():
        for link in page.links:
            address = urllib.parse.urlsplit(link)
            if address.scheme in ("http", "https"):
                continue
            assert not address.scheme, (name, link)
            target = (site / name).parent / urllib.parse.unquote(address.path)
            target = site / name if not address.path else target
            assert target.is_file(), (name, link)
            if address.fragment:
                ids = read[target.resolve().relative_to(site.resolve()).as_posix()].ids
                asked = {address.fragment, urllib.parse.unquote(address.fragment)}
                assert asked & set(ids), (name, link)
            checked += 1
    assert checked > 5000


def test_the_site_of_all_published_scales_is_below_25_mb(committed):
    files = build.build(contents.gather(None, published=True))
    assert sum(map(len, files.values())) < 25e6
    assert all(len(files[name]) <= plan.MAX_CSV_BYTES for name in files if name.endswith(".csv"))


def test_nothing_is_loaded_from_elsewhere(site, read):
    loads = [(name, load) for name, page in read.items() for load in page.loads]
    styles = [style for page in read.values() for style in page.styles]
    styles.append((site / "assets/site.css").read_text("utf-8"))
    for style in styles:
        assert "url(" not in style and "@import" not in style
    for name, load in loads:
        assert load.startswith("data:") or not urllib.parse.urlsplit(load).scheme, (name, load)
        assert not load.startswith("//"), (name, load)
        if not load.startswith("data:"):
            assert ((site / name).parent / load).is_file(), (name, load)
    for script in ("site.js", "charts.js", "theme.js"):
        text = (site / "assets" / script).read_text("utf-8")
        assert not re.search(r"https?:|fetch\(|XMLHttpRequest|import\(", text), script


def test_every_claim_has_a_page_with_its_numbers(read, site):
    for row in SMOKE.itertuples():
        slug = verdicts.Claim(row.claim, "", "", "", {}).slug
        text = html.unescape((site / f"claims/{slug}.html").read_text("utf-8"))
        assert row.statement in text and row.verdict in text
        assert row.measure.rpartition(" (")[0] in text
        if not pd.isna(row.effect):
            assert f"{row.effect:.3g}" in text, row.claim
    pages = [name for name in read if name.startswith("claims/")]
    assert len(pages) == len(SMOKE)
    board = (site / "scoreboard.html").read_text("utf-8")
    assert board.count('<tr role="row" data-section') == len(SMOKE)
    explained = [link for link in read["claims/7-loss.html"].links if "negatives.html" in link]
    anchor = "7-loss-at-the-largest-size-the-deep-model-has-the-lower-loss"
    assert explained == [f"../docs/negatives.html#{anchor}"]
    assert not any("negatives" in link for link in read["claims/7-steeper.html"].links)


def test_every_committed_figure_has_a_page_its_csv_and_its_picture(site, read):
    assert {path.stem for path in COMMITTED} <= {figure.file for figure in FIGURES.values()}
    for path in COMMITTED:
        assert f"figures/{path.stem}.html" in read
        shown = site / "figures/smoke" / path.name
        packed = shown.with_name(f"{path.name}.zip")
        assert packed.exists() == (path.stat().st_size > plan.MAX_CSV_BYTES) != shown.exists()
        numbers = zipfile.ZipFile(packed).read(path.name) if packed.exists() else shown.read_bytes()
        assert numbers == path.read_bytes()
        picture = path.with_suffix(".png").read_bytes()
        assert shown.with_suffix(".png").read_bytes() == pictures.in_palette(picture)


def test_every_executed_notebook_is_there_with_its_outputs(site):
    for path in (ROOT / "papermill_runs/smoke").glob("*.ipynb"):
        text = (site / f"papermill_runs/smoke/{path.stem}.html").read_text("utf-8")
        for figure in figures.of_section(path.stem[:2]):
            assert f'src="../../figures/smoke/{figure.file}.png"' in text
            assert f'href="../../figures/{figure.file}.html#smoke"' in text
    text = (site / "papermill_runs/smoke/01_attention_logit_growth.html").read_text("utf-8")
    assert "18 claims checked" in text and 'href="../../docs/glossary.html#window"' in text


def test_every_page_of_the_documentation_is_there(read):
    for path in [*(ROOT / "docs").glob("*.md"), ROOT / "README.md"]:
        page = read[path.relative_to(ROOT).with_suffix(".html").as_posix()]
        for heading in re.findall(r"^## (.+)$", path.read_text("utf-8"), re.MULTILINE):
            anchor = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")  # as GitHub does
            assert anchor in page.ids, (path.name, heading)


def test_pages_are_whole_for_a_screen_reader(read):
    for name, page in read.items():
        assert page.tags.count("h1") == 1, name
        assert page.tags.count("main") == 1 and page.tags.count("title") == 1, name
        assert len(page.ids) == len(set(page.ids)), name
        assert None not in page.alts, name


def test_a_tab_of_the_browser_says_which_page_it_is(read):
    titles = collections.Counter(page.title for page in read.values())
    assert [title for title, times in titles.items() if times > 1] == []


def test_the_runs_of_a_figure_are_those_of_its_csv(site, read):
    stored = pd.read_parquet(ROOT / "papermill_runs/smoke/runs.parquet")
    for path in COMMITTED:
        keys = set(contents.keys_in(pd.read_csv(path, dtype=str)))
        shown = {
            i.rpartition("-")[2] for i in read[f"figures/{path.stem}.html"].ids if i[:4] == "run-"
        }
        if path.stem == FIGURES["E.3"].file:  # its csv has no keys: the registry says which
            assert len(shown) > 10 and shown <= set(stored["key"])
        else:
            assert shown == keys, path.stem
    text = (site / "figures/fig01_lr_sensitivity.html").read_text("utf-8")
    keys = contents.keys_in(pd.read_csv(ROOT / "figures/smoke/fig01_lr_sensitivity.csv", dtype=str))
    commits = stored.set_index("key").loc[keys, "commit"].unique()
    assert len(commits) and all(commit in text for commit in commits)


def test_of_a_protocol_that_is_not_known_no_runs_are_told(committed, monkeypatch):
    """E.3's csv has no keys: which runs are behind it, the label's protocol says."""
    label, figure = contents.gather(["smoke"], published=True).labels[0], FIGURES["E.3"]
    frame = contents.frame_of(label, figure)
    assert len(contents.runs_behind(label, figure, frame)) > 10

    def refused(*_):
        raise UserError("steps='x': must be of type int")

    monkeypatch.setattr(outputs, "study_of", refused)
    assert contents.runs_behind(label, figure, frame).empty


def test_charts_are_figures_of_plotly_and_name_their_runs(site):
    drawn = 0
    for path in COMMITTED:
        text = (site / f"figures/{path.stem}.html").read_text("utf-8")
        hovered = set()
        for data in re.findall(r'<script type="application/json">(.*?)</script>', text, re.DOTALL):
            chart = json.loads(data)
            plotly.graph_objects.Figure(data=chart["data"], layout=chart["layout"])  # or it raises
            for trace in chart["data"]:
                listed = trace.get("customdata", [])
                assert not any(listed) or "%{customdata}" in trace["hovertemplate"]
                told = json.dumps([listed, trace.get("hovertemplate")])
                hovered |= set(re.findall(r"\b[0-9a-f]{24}\b", told))
            drawn += 1
        keys = set(contents.keys_in(pd.read_csv(path, dtype=str)))
        if path.stem == FIGURES["10"].file:  # the bigram's runs are a line
            keys &= hovered
        assert hovered == keys, path.stem
    assert drawn > 100


def test_the_same_results_make_the_same_bytes(committed, site):
    again = build.build(contents.gather(["smoke"], published=True))
    written = {p.relative_to(site).as_posix() for p in site.rglob("*") if p.is_file()}
    assert written == {*again, folder.MANIFEST}
    assert [name for name, content in again.items() if (site / name).read_bytes() != content] == []


# ------------------------------------------------------------------ charts


@pytest.mark.parametrize("scale", ["smoke", "laptop"])
def test_the_shapes_of_committed_figures_are_known(committed, scale):
    label = contents.gather([scale], published=True).labels[0]
    for figure in figures.FIGURES.values():
        if label.has(figure):
            drawing = shapes.draw(contents.frame_of(label, figure))
            assert (drawing is None) == (figure.name in PICTURE_ONLY), figure.name


def test_a_chart_has_the_numbers_of_the_csv(committed):
    label = contents.gather(["laptop"], published=True).labels[0]
    frame = contents.frame_of(label, FIGURES["1"])
    drawing = shapes.loss_curves(frame)
    drawn = {}
    for trace in drawing.charts[0].traces:
        if not trace["meta"].get("quiet"):
            for lr, loss, keys in zip(trace["x"], trace["y"], trace["customdata"], strict=True):
                facets = trace["meta"]["facets"]
                drawn[facets["arm"], facets["size"], lr] = loss, keys
    curves = frame[frame["panel"] == "loss"]
    for row in curves.itertuples():
        loss, keys = drawn.pop((row.method, f"N = {styles.count(row.n_params)}", row.lr))
        assert loss == pytest.approx(row.loss, rel=1e-4) and keys.split("<br>") == row.keys.split()
    assert not drawn


def test_a_bound_is_an_arrow_that_says_so_and_has_no_mean(committed):
    label = contents.gather(["night"], published=True).labels[0]
    drawing = shapes.draw(contents.frame_of(label, FIGURES["ideas.score"]))
    (chart,) = [chart for chart in drawing.charts if chart.title.startswith("diverging")]
    dots = {t["name"]: t for t in chart.traces if not t["meta"].get("quiet")}
    means = {t["name"] for t in chart.traces if t["meta"].get("quiet")}
    assert set(dots["qk-layernorm"]["marker"]["symbol"]) == {"triangle-right-open"}
    assert all("≥ 0.3" in text for text in dots["qk-layernorm"]["text"])
    assert isinstance(dots["none"]["marker"]["symbol"], str)
    assert "none" in means and "qk-layernorm" not in means
    rows = {row[0]: row for row in drawing.tables[0].rows}
    assert rows["qk-layernorm"][2] == "≥ 0.3" and "[" in rows["none"][2]


def test_a_diverged_run_is_marked_and_nothing_breaks_the_json():
    row = {"panel": "loss", "method": "with </script><!--", "n_params": 768, "lr": 0.1, "loss": 5.0}
    row |= {"low": 4.0, "high": 6.0, "init_loss": 6.0, "n": 2, "n_diverged": 1, "keys": "a b"}
    drawing = shapes.draw(pd.DataFrame([row]))
    marks = [
        t for t in drawing.charts[0].traces if t.get("marker", {}).get("symbol") == "x-thin-open"
    ]
    assert [mark["y"] for mark in marks] == [[6.0]]
    from proxies_lib.site import render

    text = render.chart_json(drawing.charts[0])
    assert "</" not in text and "<!--" not in text
    assert json.loads(text)["data"][0]["name"].startswith("with </script><!--")


def test_colors_are_legible_on_both_pages():
    for method in styles.METHODS:
        for share in (0.0, 0.5, 1.0):
            pair = colors.shaded(colors.of_method(method), share)
            for color, panel in zip(pair, colors.PANELS, strict=True):
                assert colors.contrast(color, panel) >= colors.CONTRAST, method
    assert colors.contrast("#000000", "#ffffff") == pytest.approx(21)
    assert colors.contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


def test_text_is_legible_on_both_pages(site):
    sheet = (site / "assets/site.css").read_text("utf-8")
    pairs = re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", sheet)
    tones = {name: (light, dark) for name, light, dark in pairs}
    grounds = [(tone, ground) for tone in ("ink", "muted", "link") for ground in ("page", "panel")]
    grounds += [(kind, f"{kind}-ground") for kind, _ in verdicts.LOOK.values()]
    grounds += [
        ("ink", "code"),
        ("link", "code"),
        *((k, "panel") for k, _ in verdicts.LOOK.values()),
    ]
    for tone, ground in grounds:
        for color, behind in zip(tones[tone], tones[ground], strict=True):
            assert colors.contrast(color, behind) >= 4.5, (tone, ground, color)
    assert tones["panel"] == colors.PANELS


# ------------------------------------------------------------------ verdicts


def verdict(
    effect=2.0, half=0.5, n=3, kind=claims.HOLDS, side="above", threshold=1.0, label="laptop"
):
    ends = (effect - half, effect + half)
    return verdicts.Verdict(label, "m", side, threshold, effect, *ends, n, kind, "why")


def test_what_would_change_a_verdict_says_the_distance_and_the_side():
    say = verdicts.what_would_change
    assert "lies 1 from it, 2.0 times half the width" in say(verdict(2.0))
    undecided = say(verdict(1.2, kind=claims.UNDECIDED))
    assert "0.2 from the threshold, on the claimed side" in undecided and "“holds”" in undecided
    other = say(verdict(1.2, kind=claims.UNDECIDED, side="below"))
    assert "on the other side" in other and "“contradicted”" in other
    assert "more than 1000 seeds" in say(verdict(1.0001, kind=claims.UNDECIDED))
    assert "lies on the threshold" in say(verdict(1.0, kind=claims.UNDECIDED))
    assert "all 3 seeds agree" in say(verdict(half=0.0))
    assert "Why these cannot: why." in say(verdict(kind=claims.UNTESTABLE))
    assert "one has no interval" in say(verdict(half=np.nan, n=1))


def test_an_interval_plot_has_everything_in_order_and_in_words():
    both = {
        "laptop": verdict(2.0),
        "night": verdict(0.5, 0.1, 5, claims.CONTRADICTED, label="night"),
    }
    plot = verdicts.interval_plot(verdicts.Claim("c", "1", "01", "s", both))
    laptop, night = plot.marks
    assert 0 < night.lo < night.effect < night.hi < plot.threshold < laptop.lo < laptop.hi < 100
    assert plot.holds_above and len(plot.ticks) >= 3
    assert "above 1" in plot.words and "night: 0.5 [0.4, 0.6], contradicted" in plot.words
    nothing = verdict(np.nan, np.nan, kind=claims.UNTESTABLE)
    assert verdicts.interval_plot(verdicts.Claim("c", "1", "01", "s", {"laptop": nothing})) is None


@pytest.mark.parametrize("low,high", [(0.0, 1.0), (-3.2e-4, 2e-4), (0.1, 1900.0), (4.9, 5.1)])
def test_ticks_are_round_and_few(low, high):
    ticks = verdicts.round_numbers(low, high)
    assert 2 <= len(ticks) <= 7 and all(low <= tick <= high for tick in ticks)
    assert np.allclose(np.diff(ticks), np.diff(ticks)[0])


def board(**verdict_of):
    rows = [
        {
            "claim": name,
            "figure": "1",
            "section": "01",
            "statement": f"{name} is so.",
            "measure": f"measure of {name} (above 1)",
            **{"effect": 2.0, "lo": 1.5, "hi": 2.5, "n": 3, "verdict": kind, "note": ""},
        }
        for name, kind in verdict_of.items()
    ]
    return pd.DataFrame(rows)


def label_with(name, rows):
    return contents.Label(name, rows, None, None, None)


def test_moves_between_scales_are_shown_where_there_are_any():
    laptop = board(a=claims.UNDECIDED, b=claims.HOLDS, c=claims.HOLDS)
    night = board(a=claims.HOLDS, b=claims.HOLDS)
    shown = contents.Contents(
        [label_with("laptop", laptop), label_with("night", night)], {"long": 7}
    )
    made = claim_pages.make(plan.Plan(shown))
    sentence = "From laptop to night 1 of 2 verdicts move: 1 undecided → holds."
    scoreboard, start = made["scoreboard.html"], made["index.html"]
    assert sentence in scoreboard and sentence in start
    assert len(re.findall("data-moved", scoreboard)) == 1
    assert "The scale long is still training: 7 of its runs are stored" in start
    assert "Not published yet: long." in scoreboard
    assert "it moves from “undecided” to “holds”" in made["claims/a.html"]
    assert "it moves" not in made["claims/b.html"] + made["claims/c.html"]


def test_names_that_make_one_address_are_refused():
    shown = contents.Contents(
        [label_with("laptop", board(**{"a×b": claims.HOLDS, "axb": claims.HOLDS}))], {}
    )
    with pytest.raises(UserError, match="claim='axb'"):
        claim_pages.make(plan.Plan(shown))


# ------------------------------------------------------------------ where a check is fixed


def test_where_every_claim_of_the_laptop_is_fixed_is_found():
    rows = pd.read_csv(ROOT / "papermill_runs/laptop/claims.csv").set_index("claim")
    found = origins.origins(dict(rows["statement"]))
    assert found.keys() == set(rows.index)
    # A prediction on a later idea stands in its notebook.
    ideas = found["ideas-soft-cap-10"]
    assert ideas.file == "notebooks/11_your_intervention.py" and '"below": 0.0' in ideas.source
    assert found["1-ratio"].file.endswith("checks/attention_logits.py")
    assert '"1-ratio"' in found["1-ratio"].source and "above=1.0" in found["1-ratio"].source
    assert "below=SAME_SHAPE" in found["E.7-0.5×steps"].source


CHECK = """from proxies_lib.science.claims import check

SMALL = {small}


def judge(values):
    return [
        check(
            "a-first",
            "1",
            "It is so.",
            "the measure of it",
            values,
            below=SMALL,
        ),
        check("b", "1", "Another.", "another measure", values, above={above}),
    ]
"""


CACHES = ("_checks", "_predictions", "_blamed", "_added", "_about", "is_ancestor")


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A project of one module of checks in a git of its own, and a function that commits to it."""
    monkeypatch.setattr(paths, "root", lambda: tmp_path)
    monkeypatch.setenv("PROXIES_CACHE", str(tmp_path / "cache"))
    for name in CACHES:
        getattr(origins, name).cache_clear()
    module = tmp_path / origins.CHECKS / "one.py"
    module.parent.mkdir(parents=True)

    def git(*arguments):
        author = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        command = ["git", *author, *arguments]
        return subprocess.run(
            command, cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    def commit(subject, **values):
        module.write_text(CHECK.format(**values))
        for name in CACHES:
            getattr(origins, name).cache_clear()
        git("add", "proxies_lib")
        git("commit", "-q", "-m", subject)
        return git("rev-parse", "--short=12", "HEAD").strip()

    git("init", "-q")
    yield commit
    for name in CACHES:
        getattr(origins, name).cache_clear()


def test_git_says_since_when_measure_and_threshold_stand(repository):
    first = repository("first", small=0.05, above=1)
    moved = repository("the threshold of a", small=0.1, above=1)
    last = repository("that of b", small=0.1, above=2)
    found = origins.origins({"a-first": "It is so.", "b": "Another.", "unknown": "Unknown."})
    assert found.keys() == {"a-first", "b"}
    a, b = found["a-first"], found["b"]
    assert (a.written.name, a.stands.name, a.stands.subject) == (first, moved, "the threshold of a")
    assert (b.written.name, b.stands.name) == (first, last)
    assert a.line == 8 and a.source.startswith('check(\n    "a-first"')
    assert origins.is_ancestor(moved, last) is True and origins.is_ancestor(last, moved) is False
    assert origins.is_ancestor("0" * 12, last) is None


def test_without_git_or_with_edits_a_check_has_a_source_and_no_commit(repository):
    repository("first", small=0.05, above=1)
    module = paths.root() / origins.CHECKS / "one.py"
    module.write_text(CHECK.format(small=0.05, above=3))
    origins._checks.cache_clear()
    found = origins.origins({"b": "Another."})["b"]
    assert "above=3" in found.source and found.written is None and found.stands is None


# ------------------------------------------------------------------ links and documents


def test_links_of_the_project_become_links_of_the_site():
    places = links.Places(
        {
            "docs/night.md": "docs/night.html",
            "figures/laptop/fig01.png": "figures/fig01.html#laptop",
            "proxies_lib/train.py": "proxies_lib/train.py.html",
        },
        {"figures/laptop/fig01.png", "figures/laptop/fig01.csv"},
    )

    def told(text, source="docs/design.md", page="docs/design.html"):
        return places.rewritten(text, source, page)

    assert told('<a href="night.md#how">x</a>') == '<a href="night.html#how">x</a>'
    assert told('<a href="#here">x</a>') == '<a href="#here">x</a>'
    assert told('<a href="https://a.b/c">x</a>') == '<a href="https://a.b/c">x</a>'
    assert (
        told('<a href="../proxies_lib/train.py">x</a>')
        == '<a href="../proxies_lib/train.py.html">x</a>'
    )
    # A link to a picture leads to its page, an image shows it.
    picture = "../figures/laptop/fig01.png"
    assert told(f'<a href="{picture}">1</a>') == '<a href="../figures/fig01.html#laptop">1</a>'
    assert told(f'<img alt="a" src="{picture}">') == f'<img alt="a" src="{picture}">'
    # From one's own notebook, which lies a folder deeper.
    own = told(
        '<a href="../../../figures/local/laptop/fig01.csv">csv</a>',
        "papermill_runs/laptop/01.ipynb",
        "papermill_runs/laptop/01.html",
    )
    assert own == '<a href="../../figures/laptop/fig01.csv">csv</a>'
    gone = told('<a href="../tests/x.py">x</a> <img src="none.png" alt="">')
    assert "<a" not in gone and "<img" not in gone and "x" in gone


def test_a_document_has_anchors_tables_and_no_markers():
    table = "| a |\n| --- |\n| b |\n"
    text = f"# A page\n\nFirst *words*.\n\n<!-- digest -->\n\n## Of `x`, and more\n\n{table}"
    made = documents.document(text)
    assert (made.title, made.first_words) == ("A page", "First words.")
    assert [(h.anchor, h.words) for h in made.headings] == [("of-x-and-more", "Of x, and more")]
    assert "digest" not in made.body and '<div class="scroll"><table>' in made.body


# ------------------------------------------------------------------ the folder


def test_a_second_report_replaces_its_own_files_and_removes_what_is_gone(tmp_path):
    out = tmp_path / "out"
    folder.write(out, {"index.html": b"1", "claims/old.html": b"old", "same.css": b"s"})
    before = (out / "same.css").stat().st_mtime_ns
    folder.write(out, {"index.html": b"2", "same.css": b"s"})
    left = {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    left.pop(folder.MANIFEST)
    assert left == {"index.html": b"2", "same.css": b"s"}
    assert (out / "same.css").stat().st_mtime_ns == before


def test_nothing_that_is_not_ours_is_touched(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/index.html").write_text("mine")
    with pytest.raises(UserError, match="must be a new folder, an empty one"):
        folder.write(tmp_path / "mine", {"index.html": b"1"})

    out = tmp_path / "out"
    folder.write(out, {"index.html": b"1", "a/b.html": b"b"})
    (out / "index.html").write_text("edited")
    with pytest.raises(UserError, match="index.html is not as a report wrote it"):
        folder.write(out, {"a/b.html": b"c", "index.html": b"2"})
    assert (out / "index.html").read_text() == "edited" and (out / "a/b.html").read_bytes() == b"b"
    # What was edited stays even where the new site has no such page.
    folder.write(out, {"a/b.html": b"b"})
    assert (out / "index.html").read_text() == "edited"


def test_a_link_in_the_folder_is_not_followed(tmp_path):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    folder.write(out, {"index.html": b"1"})
    elsewhere.mkdir()
    (out / "claims").symlink_to(elsewhere)
    with pytest.raises(UserError, match="claims/a.html is not as a report wrote it"):
        folder.write(out, {"index.html": b"2", "claims/a.html": b"a"})
    assert list(elsewhere.iterdir()) == [] and (out / "index.html").read_bytes() == b"1"


def test_a_report_that_was_killed_half_way_goes_on(tmp_path, monkeypatch):
    out = tmp_path / "out"
    folder.write(out, {"a.html": b"1", "b.html": b"1"})
    whole = paths.write_atomically

    def killed(path, content):
        if path.name == "b.html":
            raise KeyboardInterrupt
        whole(path, content)

    monkeypatch.setattr(paths, "write_atomically", killed)
    with pytest.raises(KeyboardInterrupt):
        folder.write(out, {"a.html": b"2", "b.html": b"2"})
    monkeypatch.setattr(paths, "write_atomically", whole)
    assert (out / "a.html").read_bytes() == b"2" and (out / "b.html").read_bytes() == b"1"
    folder.write(out, {"a.html": b"3", "b.html": b"3"})
    assert (out / "a.html").read_bytes() == (out / "b.html").read_bytes() == b"3"


# ------------------------------------------------------------------ the command


@pytest.mark.parametrize(
    "arguments,said",
    [
        ("report --scale gpu", "scale='gpu': has neither verdicts nor figures"),
        ("report --scale ../x", "label='../x': must be 1 to 100"),
        ("report --out /dev/null/x", "cannot be a folder: /dev/null is a file"),
        ("report --out=", "out='': must be the name of a folder"),
    ],
)
def test_bad_input_is_one_line(arguments, said, capsys, committed):
    assert cli.main(arguments.split()) == 2
    captured = capsys.readouterr()
    assert said in captured.err and captured.err.count("\n") == 1 and not captured.out


def test_with_nothing_to_show_it_says_so(tmp_path, monkeypatch, capsys):
    for kind in ("figures", "papermill_runs"):
        monkeypatch.setenv(f"PROXIES_{kind.upper()}", str(tmp_path / kind))
    assert cli.main(["report", "--out", str(tmp_path / "out")]) == 2
    assert "report: there is nothing to show yet" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "file,content,said",
    [
        (
            "figures/smoke/fig05_warmup.csv",
            b"no such\ncolumn\n",
            "smoke/fig05_warmup.csv is damaged",
        ),
        ("papermill_runs/smoke/03_warmup.ipynb", b"{", "03_warmup.ipynb: is damaged"),
        ("papermill_runs/smoke/claims.csv", b"claim\n1", "claims.csv is damaged"),
        ("papermill_runs/smoke/runs.parquet", b"PAR1", "runs.parquet is damaged"),
    ],
)
def test_damage_is_one_line_and_writes_nothing(tmp_path, monkeypatch, capsys, file, content, said):
    """A label of one figure and one notebook, one file of which is damaged."""
    for kind in ("figures", "papermill_runs"):
        monkeypatch.setenv(f"PROXIES_{kind.upper()}", str(tmp_path / kind))
        (tmp_path / kind / "smoke").mkdir(parents=True)
    kept = ("figures/smoke/fig05_warmup.csv", "papermill_runs/smoke/03_warmup.ipynb")
    for name in (*kept, "papermill_runs/smoke/claims.csv", "papermill_runs/smoke/runs.parquet"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / file).write_bytes(content)
    assert cli.main(["report", "--scale", "smoke", "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_ones_own_results_come_first_and_published_ones_where_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "root", lambda: tmp_path)
    (tmp_path / "notebooks").symlink_to(ROOT / "notebooks")
    for kind in ("figures", "papermill_runs"):
        monkeypatch.delenv(f"PROXIES_{kind.upper()}", raising=False)
    for place, kind in (
        ("papermill_runs/local", claims.UNDECIDED),
        ("papermill_runs", claims.HOLDS),
    ):
        (tmp_path / place / "laptop").mkdir(parents=True)
        board(a=kind).to_csv(tmp_path / place / "laptop/claims.csv", index=False)
    assert contents.gather().boards["laptop"]["verdict"].tolist() == [claims.UNDECIDED]
    published = contents.gather(published=True)
    assert published.boards["laptop"]["verdict"].tolist() == [claims.HOLDS]
    assert published.front("01") == "laptop" and notebooks.sections().keys() >= {"01"}


def test_git_ignores_the_default_folder():
    assert (
        subprocess.run(["git", "check-ignore", "-q", "site/index.html"], cwd=ROOT).returncode == 0
    )
    ignored = subprocess.run(["git", "check-ignore", "-q", "proxies_lib/site/build.py"], cwd=ROOT)
    assert ignored.returncode == 1
