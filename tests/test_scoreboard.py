"""Verdicts in columns, and the pages that show them."""

import json
import pathlib
import re

import nbformat
import numpy as np
import pandas as pd
import pytest

from proxies_lib import cli, pages, paths
from proxies_lib.config import UserError
from proxies_lib.science import (
    claims,
    columns,
    difference,
    notebooks,
    outputs,
    report,
    side_by_side,
)
from proxies_lib.science.figures import BEYOND, of_section

ROOT = pathlib.Path(__file__).resolve().parents[1]
SECTIONS = sorted(set(notebooks.sections()) - {"00", BEYOND})  # of claims of the papers


def row(claim="c", section="01", figure="1", verdict=claims.HOLDS, effect=2.0, n=3, **more):
    return {
        "claim": claim,
        "figure": figure,
        "section": section,
        "statement": f"{claim} is so.",
        "measure": f"measure of {claim} (above 1)",
        "effect": effect,
        "lo": effect - 0.5,
        "hi": effect + 0.5,
        "n": n,
        "verdict": verdict,
        "note": "",
        **more,
    }


def rows_of(*sections, verdict=claims.HOLDS, effect=2.0):
    """A claim for each of these sections, about its first figure."""
    figure_of = {section: of_section(section)[0].name for section in sections}
    return [
        row(f"c{section}", section, figure, verdict, effect)
        for section, figure in figure_of.items()
    ]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with the notebooks, two pages with their markers, and nothing published."""
    for kind in ("figures", "papermill_runs", "store"):
        monkeypatch.delenv(f"PROXIES_{kind.upper()}", raising=False)
    monkeypatch.delenv(outputs.PUBLISH, raising=False)
    monkeypatch.setattr(paths, "root", lambda: tmp_path)
    (tmp_path / "notebooks").symlink_to(ROOT / "notebooks")
    (tmp_path / "docs").mkdir()
    names = ["scoreboard", "side-by-side", "undecided"]
    names += [f"scoreboard {scale}" for scale in columns.SCALES]
    (tmp_path / pages.SCOREBOARD).write_text(_with_markers(names))
    (tmp_path / pages.README).write_text(_with_markers(["first", "digest"]))
    (tmp_path / pages.INTERVENTIONS).write_text(_with_markers(["scores"]))
    quantities = pd.DataFrame({"": ["S"], "laptop": ["0.69, 3"]})
    monkeypatch.setattr(side_by_side, "table", lambda: quantities)
    return tmp_path


def _with_markers(names):
    return "".join(f"# {name}\n\n<!-- {name} -->\n\nold\n\n<!-- /{name} -->\n\n" for name in names)


def between(text: str, name: str) -> str:
    return text.split(f"<!-- {name} -->\n\n")[1].split(f"\n\n<!-- /{name} -->")[0]


def publish(project, scale, rows):
    folder = project / "papermill_runs" / scale
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows)[report.COLUMNS].to_csv(folder / report.CLAIMS, index=False)


# ------------------------------------------------------------------ columns


def test_a_claim_is_a_row_and_a_scale_a_column():
    laptop = [
        row("both", verdict=claims.UNDECIDED, effect=0.0992, lo=0.041, hi=0.157),
        row("same", figure="2"),
        row("laptop-only", figure="2"),
        row("later", "02", "3", claims.UNTESTABLE, effect=np.nan, n=0),
    ]
    night = [
        row("later", "02", "3", claims.HOLDS, effect=1.0, lo=np.nan, hi=np.nan, n=1),
        row("both", verdict=claims.HOLDS, effect=3.0, n=5),
        row("night-only", verdict=claims.CONTRADICTED, effect=-2.0),
        row("same", figure="2", effect=4.0),
    ]
    table = columns.in_columns({"laptop": pd.DataFrame(laptop), "night": pd.DataFrame(night)})
    assert table.columns.tolist()[:3] == ["claim", "figure", "statement"]
    found = table.set_index("claim")
    # By figure: a claim of Figure 1 stands above those of Figure 2, whoever has it.
    assert found.index.tolist() == ["both", "night-only", "same", "laptop-only", "later"]
    assert found["laptop"].tolist() == [
        "undecided 0.0992 [0.041, 0.157], 3",
        "–",
        "holds 2 [1.5, 2.5], 3",
        "holds 2 [1.5, 2.5], 3",
        "not testable",
    ]
    assert found["night"].tolist() == [
        "holds 3 [2.5, 3.5], 5",
        "contradicted -2 [-2.5, -1.5], 3",
        "holds 4 [3.5, 4.5], 3",
        "–",
        "holds 1, 1",
    ]
    moved = found["laptop → night"].tolist()
    assert moved == ["undecided → holds", "", "", "", "not testable → holds"]
    # The picture is that of the first column that has the claim.
    assert found["scale"].tolist() == ["laptop", "night", "laptop", "laptop", "laptop"]


def test_without_both_scales_of_a_move_there_is_no_column_of_it():
    boards = {"laptop": pd.DataFrame([row()]), "long": pd.DataFrame([row()])}
    assert columns.in_columns(boards).columns.tolist()[-2:] == ["laptop", "long"]


def test_a_scale_lacks_only_sections_that_it_is_made_for():
    rows = pd.DataFrame(rows_of("01", "04"))
    assert columns.missing_sections("long", rows) == ["02", "08"]
    assert columns.missing_sections("night", rows) == [
        section for section in SECTIONS if section not in ("01", "04")
    ]


def test_our_predictions_on_later_ideas_are_counted_apart():
    """Section 11 holds no claim of the papers, and no scale waits for it."""
    rows = pd.DataFrame([*rows_of(*SECTIONS), *rows_of(BEYOND, verdict=claims.CONTRADICTED)])
    papers, ours = report.tally(rows).split(". ")
    assert papers.startswith("Of 10 checks on 10 figures, 10 hold, 0 are contradicted")
    assert ours.startswith("Of 1 predictions on later ideas (section 11), 0 hold, 1 is contr")
    assert not columns.missing_sections("night", rows[rows["section"] != BEYOND])


def test_the_front_of_a_section_is_the_night_where_that_has_it():
    laptop, part = pd.DataFrame(rows_of(*SECTIONS)), pd.DataFrame(rows_of(*SECTIONS[:-1]))
    assert columns.front({"laptop": laptop}, SECTIONS[0]) == "laptop"
    boards = {"laptop": laptop, "night": part}
    assert columns.front(boards, SECTIONS[0]) == "night"
    assert columns.front(boards, SECTIONS[-1]) == "laptop"
    assert columns.front({"long": part, "night": part}, SECTIONS[-1]) == "long"  # which neither has
    shown = columns.at_front(boards)
    assert shown["section"].tolist() == SECTIONS
    assert shown["scale"].tolist() == ["night"] * len(part) + ["laptop"]


# ------------------------------------------------------------------ pages


def test_the_pages_show_every_published_scale(project):
    publish(project, "laptop", rows_of(*SECTIONS, verdict=claims.UNDECIDED))
    publish(project, "night", [*rows_of("01", "02"), row("night-only", "02", "4")])
    assert cli.main(["claims", "--pages"]) == 0
    page = (project / pages.SCOREBOARD).read_text("utf-8")
    readme = (project / pages.README).read_text("utf-8")

    board = between(page, "scoreboard")
    assert "- `laptop`: Of 10 checks on 10 figures, 0 hold" in board
    assert "- `night`: Of 3 checks on 3 figures, 3 hold" in board
    assert "- From `laptop` to `night` 2 of the 2 verdicts that both have change." in board
    head = "| claim | figure | statement | laptop | night | laptop → night |"
    assert head in board
    assert (
        "| c01 | [1](../figures/laptop/fig01_lr_sensitivity.png) | c01 is so. "
        "| undecided 2 [1.5, 2.5], 3 | holds 2 [1.5, 2.5], 3 | undecided → holds |"
    ) in board
    assert "| night-only | [4](../figures/night/fig04_output_logits.png) |" in board

    night = between(page, "scoreboard night")
    assert "Not published yet: sections 03, 04, 05, 06, 07, 08, 09, 10." in night
    assert "| measure | effect | n | decides | verdict | note | notebook, data |" in night
    assert "| 2 [1.5, 2.5] | 3 | 0.5 | holds |" in night
    assert "../papermill_runs/night/02_z_loss.ipynb" in night
    assert between(page, "scoreboard laptop").count("\n") == 13
    assert "Not published" not in between(page, "scoreboard laptop")
    assert between(page, "scoreboard long") == "The scale `long` is not published yet."
    assert between(page, "side-by-side") == "|  | laptop |\n| --- | --- |\n| S | 0.69, 3 |"

    assert between(readme, "first").startswith("![Loss against learning rate")
    assert "](figures/night/fig01_lr_sensitivity.png)" in between(readme, "first")
    assert "The scale is night for 01, 02; laptop for 03," in between(readme, "digest")
    assert "\nold\n" not in page + readme
    assert cli.main(["claims", "--pages", "--scale", "night"]) == 0
    assert (project / pages.SCOREBOARD).read_text("utf-8") == page


def test_the_undecided_ones_are_listed_with_the_seeds_that_would_decide_them():
    on_it = row("on", verdict=claims.UNDECIDED, effect=1.0)
    near, under = (
        row(name, verdict=claims.UNDECIDED, effect=effect)
        for name, effect in {"near": 1.2, "under": 0.8}.items()
    )
    board = pd.DataFrame([row("held"), near, on_it, under])
    lines = pages.undecided(board.assign(scale="laptop")).splitlines()[2:]
    cells = [[cell.strip() for cell in line.split("|")][1:-1] for line in lines]
    assert [c[0] for c in cells] == ["near", "on", "under"]
    assert cells[0][3:] == ["1.2 [0.7, 1.7]", "above 1", "holds", "3", "7", "–"]
    assert cells[1][5:] == ["–", "3", "–", "–"]
    assert cells[2][5:] == ["contradicted", "3", "7", "–"]
    assert "None is" in pages.undecided(board[:1].assign(scale="laptop"))


def test_an_undecided_one_says_what_all_seeds_do(project):
    """Where a scale's protocol was trained on further seeds, and these test the claim too."""
    night = [row(name, verdict=claims.UNDECIDED, effect=1.2) for name in ("a", "b")]
    publish(project, "night", night)
    assert columns.on_all_seeds("night") == {}
    publish(project, "night-again", [row("a", effect=1.4)])
    again = {"label": "night-again", "scale": "night", "overrides": {"seeds": [10, 11, 12]}}
    (project / "papermill_runs/night-again/protocol.json").write_text(json.dumps(again))

    last = [line.split(" | ")[-1] for line in _undecided(night, "night")]
    # Both means lie 0.1 from that of all six, and each half width is 0.5.
    assert last == ["holds 1.3 [1.08, 1.52], 6 |", "– |"]
    assert columns.on_all_seeds("laptop") == {}


def _undecided(rows, scale):
    return pages.undecided(pd.DataFrame(rows).assign(scale=scale)).splitlines()[2:]


def test_readme_shows_each_section_at_its_front_and_keeps_the_words_of_a_person(project):
    publish(project, "laptop", [*rows_of(*SECTIONS), row("1-ratio", effect=1.6)])
    pages.write_scoreboard()
    path = project / pages.README
    first = between(path.read_text("utf-8"), "first")
    assert first.endswith("measure of 1-ratio, 1.6 [1.1, 2.1], 3 seeds.")
    assert "At laptop scale. Of 11 checks" in path.read_text("utf-8")
    written = path.read_text("utf-8").replace("| 0 | 0 | 0 |  |", "| 0 | 0 | 0 | words |")
    path.write_text(written)

    ratio = row("1-ratio", effect=14.0, n=5, verdict=claims.CONTRADICTED)
    publish(project, "night", [*rows_of("01"), ratio])
    pages.write_scoreboard()
    readme = path.read_text("utf-8")
    assert between(readme, "first").endswith("measure of 1-ratio, 14 [13.5, 14.5], 5 seeds.")
    digest = between(readme, "digest")
    others = ", ".join(SECTIONS[1:])
    assert f"The scale is night for 01; laptop for {others}. Of 11 checks" in digest
    head = "| section | scale | figures | holds | contradicted | undecided | not testable |"
    assert f"{head} what came out |" in digest
    assert digest.count("| 1 | 0 | 0 | 0 | words |") == len(SECTIONS) - 1
    assert digest.count("| 1 | 1 | 0 | 0 |  |") == 1  # words on the laptop's 01 are none on night's


def test_every_contradicted_check_has_its_paragraph_and_no_other_has(monkeypatch):
    monkeypatch.setenv("PROXIES_PAPERMILL_RUNS", str(ROOT / "papermill_runs"))
    page = (ROOT / "docs" / "negatives.md").read_text("utf-8")
    headings = re.findall(r"^### (.+): .+$", page, re.MULTILINE)
    explained = [claim for heading in headings for claim in heading.split(", ")]
    contradicted = set()
    for rows in columns.published().values():
        contradicted |= set(rows["claim"][rows["verdict"] == claims.CONTRADICTED])
    assert sorted(explained) == sorted(contradicted)
    assert page.count("- *Paper.*") == page.count("- *Here.*") == len(headings)
    assert page.count("- *Could be.*") + page.count("- *Is.*") == len(headings)
    assert page.count("- *Would tell.*") == len(headings)


@pytest.mark.parametrize("overview", sorted(ROOT.glob("papermill_runs/*/00_overview.ipynb")))
def test_an_executed_overview_has_the_scoreboard_that_is_published(overview, monkeypatch):
    monkeypatch.setenv("PROXIES_PAPERMILL_RUNS", str(ROOT / "papermill_runs"))
    board = report.scoreboard(overview.parent.name, published=True)
    cells = nbformat.read(overview, as_version=4).cells
    shown = "".join(out.get("text", "") for cell in cells for out in cell.get("outputs", []))
    assert report.tally(board) in shown


def test_old_words_of_a_verdict_are_refused_and_no_page_is_touched(project, capsys):
    publish(project, "laptop", rows_of(*SECTIONS))
    publish(project, "night", rows_of("01", verdict="does not hold"))
    before = [(project / page).read_bytes() for page in (pages.SCOREBOARD, pages.README)]
    assert cli.main(["claims", "--pages"]) == 2
    assert "scale='night': claims.csv is damaged" in capsys.readouterr().err
    after = [(project / page).read_bytes() for page in (pages.SCOREBOARD, pages.README)]
    assert after == before


def test_the_pages_need_something_published_and_a_scale_that_has_a_column(project, capsys):
    with pytest.raises(UserError, match="nothing is published yet"):
        pages.write_scoreboard()
    assert cli.main(["claims", "--pages", "--scale", "smoke"]) == 2
    assert "--pages writes laptop, night, long" in capsys.readouterr().err


@pytest.fixture
def night_twice(monkeypatch):
    """The claims of night, of night on other seeds, and of both as one; and what docs/night.md
    says of the other seeds: its text, and its tables' rows on a claim."""
    monkeypatch.delenv("PROXIES_PAPERMILL_RUNS")  # the checkout's, not the tests' own
    sides = difference.sides("night", "night-again", published=True)
    boards = (*(side.verdicts for side in sides), difference.together(*sides))
    night, again, both = (board.set_index("claim") for board in boards)
    page = (ROOT / "docs/night.md").read_text("utf-8")
    part = page.partition("## Again")[2].partition("## Predictions")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in part.splitlines()]
    return night, again, both, part, [row for row in rows if row and row[0] in night.index]


def told(board: pd.DataFrame, claim: str) -> str:
    """A verdict as docs/night.md has it in a cell."""
    return f"{board.verdict[claim]}, {board.effect[claim]:.3g}"


def test_the_page_of_the_night_tells_which_verdicts_held_again_on_other_seeds(night_twice):
    night, again, both, _, rows = night_twice
    cells = {row[0]: row[4:] for row in rows if len(row) == 6}
    counted = night["figure"].isin(["1", "3", "5", "8"]) & (night["verdict"] == claims.HOLDS)
    assert set(cells) == set(night.index[counted])
    assert cells == {claim: [told(again, claim), told(both, claim)] for claim in cells}


def test_the_page_of_the_night_tells_what_more_seeds_change(night_twice):
    night, _, both, part, rows = night_twice
    # Sections 10, 09 and 07: six undecided checks, and what all seeds say of them.
    cells = {row[0]: row[-1] for row in rows if len(row) == 7}
    assert len(cells) == 6
    assert cells == {claim: told(both, claim) for claim in cells}
    # A verdict that more seeds change is told, also one that is not in a table.
    changed = both[both["verdict"] != night["verdict"].reindex(both.index)]
    assert [claim for claim in changed.index if claim not in part] == []
    # docs/scoreboard.md counts them: five of 17 undecided ones are decided, two others are opened.
    undecided = night.index[night["verdict"] == claims.UNDECIDED]
    assert (len(changed.index.intersection(undecided)), len(undecided)) == (5, 17)
    opened = changed.index[changed["verdict"] == claims.UNDECIDED]
    assert set(opened) == {"P2-5-snap", "9-beyond-half"}
