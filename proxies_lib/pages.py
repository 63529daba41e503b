"""Pages that the project writes about itself: the scoreboard, README's digest, the reference."""

import ast
import dataclasses
import pathlib
import re
import typing

import pandas as pd

from proxies_lib import config, paths
from proxies_lib.config import UserError
from proxies_lib.science import (
    claims,
    columns,
    figures,
    notebooks,
    outputs,
    report,
    score,
    side_by_side,
)

README, SCOREBOARD, REFERENCE = "README.md", "docs/scoreboard.md", "docs/reference.md"

INTERVENTIONS = "docs/interventions.md"

# Layers from below: a module imports from its own and from lower ones (tests/test_packaging.py).
LAYERS = {
    "core: what a run is, the model, training": "proxies_lib",
    "runs: the store, engines, datasets": "proxies_lib/runs",
    "science: what the papers claim, figures, notebooks": "proxies_lib/science",
    "budget: speed, what fits, what it costs": "proxies_lib/budget",
    "site: the report as a static site": "proxies_lib/site",
}

# Modules of the top folder that are no part of the core: `pages` stands between budget and site,
# `cli` above all.
ABOVE_ALL = ("cli", "pages")


def write_between_markers(page: str, text: str, name: str):
    """Replace what stands between the markers `<!-- name -->` and `<!-- /name -->` of a page.

    Raises UserError where the page has no such markers.
    """
    path = paths.root() / page
    new = _between_markers(path.name, path.read_text("utf-8"), text, name)
    paths.write_atomically(path, new.encode())


def _between_markers(page: str, old: str, text: str, name: str) -> str:
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if begin not in old or end not in old:
        raise UserError(f"{page}: has no {begin} … {end} markers")
    head, tail = old.split(begin, 1)
    return f"{head}{begin}\n\n{text}\n\n{end}{tail.split(end, 1)[1]}"


# ------------------------------------------------------------------ scoreboard and digest


def write_scoreboard():
    """Write the published verdicts of every scale into docs/scoreboard.md, their digest and first
    numbers into README, and the scores of interventions into docs/interventions.md.

    Raises UserError where nothing is published, a `claims.csv` is damaged, or a page lacks markers.
    """
    boards = columns.published()
    if not boards:
        raise UserError("claims: nothing is published yet; `proxies run --publish` does it")
    readme = (paths.root() / README).read_text("utf-8")
    first, at_front = columns.front(boards, "01"), columns.at_front(boards)
    # All of it is made before anything is written.
    board = {
        "scoreboard": verdicts_in_columns(boards),
        "side-by-side": report.markdown(side_by_side.table()),
        "undecided": undecided(at_front),
        **{f"scoreboard {scale}": _section_of(scale, boards) for scale in columns.SCALES},
    }
    digested = {
        "first": first_numbers(boards[first], first),
        "digest": digest(at_front, sentences(readme)),
    }
    scored = {"scores": scores(boards)}
    written = {}
    for page, texts in {SCOREBOARD: board, README: digested, INTERVENTIONS: scored}.items():
        path = paths.root() / page
        written[path] = path.read_text("utf-8")
        for name, text in texts.items():
            written[path] = _between_markers(path.name, written[path], text, name)
    for path, text in written.items():
        paths.write_atomically(path, text.encode())


def verdicts_in_columns(boards: dict[str, pd.DataFrame]) -> str:
    """A row per claim in Markdown, a column per scale of `boards`, with a tally of each."""
    table = columns.in_columns(boards)
    pictures = [
        f"[{row.figure}]({_picture(row.figure, row.scale, up='../')})" for row in table.itertuples()
    ]
    table = table.assign(figure=pictures).drop(columns="scale")
    lines = [f"- `{scale}`: {report.tally(rows)}" for scale, rows in boards.items()]
    if set(columns.MOVE) <= boards.keys():
        words = columns.moves(boards)
        before, after = columns.MOVE
        moved = f"{(words != '').sum()} of the {len(words)} verdicts that both have"
        lines.append(f"- From `{before}` to `{after}` {moved} change.")
    return "\n".join([*lines, "", report.markdown(table)])


def _section_of(scale: str, boards: dict[str, pd.DataFrame]) -> str:
    """The verdicts of a scale with all that belongs to them; a sentence where there are none."""
    if scale not in boards:
        return f"The scale `{scale}` is not published yet."
    return scoreboard(boards[scale], scale)


def scoreboard(rows: pd.DataFrame, scale: str) -> str:
    """Every verdict of a scale in Markdown, with links to the published outputs, and a sentence on
    the sections that it lacks."""
    tally = report.tally(rows)
    missing = columns.missing_sections(scale, rows)
    if missing:
        tally += f" Not published yet: section{'s' * (len(missing) > 1)} {', '.join(missing)}."
    with paths.environment(outputs.PUBLISH, "1"):
        return f"{tally}\n\n{report.verdict_table(rows, scale, up='../')}"


def undecided(rows: pd.DataFrame) -> str:
    """The undecided ones of `columns.at_front` in Markdown, and how many seeds would decide them.

    A measured effect is on one side of its threshold: `leans to` is the verdict of that side. `on
    all seeds` is what there is where more were trained under a label of their own.
    """
    listed = []
    again = {scale: columns.on_all_seeds(scale) for scale in rows["scale"].unique()}
    for row in rows[rows["verdict"] == claims.UNDECIDED].itertuples():
        _, side, threshold = claims.parts_of(row.measure)
        distance, half = abs(row.effect - threshold), (row.hi - row.lo) / 2
        leaning = seeds = "–"  # an effect on the threshold itself
        if distance:
            leaning = claims.leans_to(row.effect, side, threshold)
            number = claims.seeds_that_decide(distance, half, row.n)
            seeds = str(number) if number else f"more than {claims.MANY:,}"
        listed.append(
            {
                "claim": row.claim,
                "figure": f"[{row.figure}]({_picture(row.figure, row.scale, up='../')})",
                "statement": row.statement,
                "effect": report.rounded(row.effect, row.lo, row.hi),
                "holds": f"{side} {threshold:g}",
                "leans to": leaning,
                "n": row.n,
                "would decide": seeds,
                "on all seeds": again[row.scale].get(row.claim, "–"),
            }
        )
    return report.markdown(pd.DataFrame(listed)) if listed else "None is undecided."


def first_numbers(rows: pd.DataFrame, scale: str) -> str:
    """Figure 1 of a scale in Markdown, with the ratio of its two LR sensitivities."""
    alt = "Loss against learning rate, and LR sensitivity against size, with and without"
    lines = [
        f"![{alt} qk-layernorm]({_picture('1', scale)})",
        "",
        f"Figure 1 of P1, at {scale} scale. Above, the final loss for each peak learning rate, a",
        "curve per model size; below, the LR sensitivity S: the mean distance of such a curve from",
        "its best point.",
    ]
    for row in rows[rows["claim"] == "1-ratio"].itertuples():
        measure, _, _ = claims.parts_of(row.measure)
        effect = report.rounded(row.effect, row.lo, row.hi)
        lines[-1] += f" What qk-layernorm does to S: {measure}, {effect}, {row.n} seeds."
    return "\n".join(lines)


def scores(boards: dict[str, pd.DataFrame]) -> str:
    """What section 11 found at each published scale, in Markdown: a row per intervention, with
    links to its text, its picture and its numbers."""
    parts = []
    for scale in boards:
        rows = score.published(scale)
        if rows is None:
            continue
        notebook = notebooks.sections()["11"].stem
        picture = _picture("ideas.score", scale, up="../")
        links = [
            f"[text and runs](../papermill_runs/{scale}/{notebook}.ipynb)",
            f"[curves]({_picture('ideas', scale, up='../')})",
            f"[scores]({picture})",
            f"[numbers]({picture.removesuffix('png')}csv)",
        ]
        parts += [f"At {scale} scale: {', '.join(links)}.", score.score_table(rows)]
    return "\n\n".join(parts) or "No scale is published yet."


def _picture(figure: str, scale: str, up: str = "") -> str:
    return f"{up}figures/{scale}/{figures.FIGURES[figure].file}.png"


Words = dict[tuple[str, str], str]  # what came out, by section and scale


def digest(rows: pd.DataFrame, words: Words) -> str:
    """A row per section in Markdown: its figures, how many checks have each verdict, what came out.

    `rows` are those of `columns.at_front`. What came out is in `words`: a person writes it, in
    README.
    """
    counted = []
    for (section, scale), checks in rows.groupby(["section", "scale"], sort=True):
        count = checks["verdict"].value_counts()
        counted.append(
            {
                "section": _section_link(section, scale),
                "scale": scale,
                "figures": _figure_links(section, scale),
                **{verdict: count.get(verdict, 0) for verdict in claims.VERDICTS},
                "what came out": words.get((section, scale), ""),
            }
        )
    table = report.markdown(pd.DataFrame(counted))
    return f"{front_tally(rows)}\n\n{table}"


def front_tally(rows: pd.DataFrame) -> str:
    """How many of the verdicts of `columns.at_front` are which, and at which scale each section
    is."""
    sections_at = {}
    for scale, checks in rows.groupby("scale", sort=False):
        sections_at[scale] = ", ".join(checks["section"].unique())
    if len(sections_at) == 1:
        return f"At {next(iter(sections_at))} scale. {report.tally(rows)}"
    parts = [f"{scale} for {sections}" for scale, sections in sections_at.items()]
    return f"The scale is {'; '.join(parts)}. {report.tally(rows)}"


def sentences(readme: str) -> Words:
    """The last column of README's digest: what a person wrote stays where it stands, as long as
    the section is shown at the scale that it was written for."""
    block = readme.partition("<!-- digest -->")[2].partition("<!-- /digest -->")[0]
    rows = re.findall(r"^\| \[(\d\d)\]\(papermill_runs/([^/]+)/.*\| (.*?) \|$", block, re.MULTILINE)
    return {(section, scale): words for section, scale, words in rows}


def _section_link(section: str, label: str) -> str:
    path = notebooks.sections()[section]
    heading = re.search(r"^# # \d+ · (.+)$", path.read_text("utf-8"), re.MULTILINE)
    assert heading  # every notebook begins with one
    return f"[{section}](papermill_runs/{label}/{path.stem}.ipynb) {heading[1]}"


def _figure_links(section: str, label: str) -> str:
    drawn = figures.of_section(section)
    return ", ".join(f"[{figure.name}]({_picture(figure.name, label)})" for figure in drawn)


# ------------------------------------------------------------------ reference


def reference(commands: dict[str, tuple[str, str]]) -> str:
    """The page docs/reference.md: `commands` with their words and an example, fields of a run,
    public functions."""
    parts = [
        "# Reference",
        "Written by `proxies reference --write` from docstrings and fields; do not edit it here.",
        "## Commands",
        "`proxies COMMAND --help` lists the options. How to ask and compare, exit statuses, tab"
        " completion: [cli.md](cli.md).",
        _table(
            ["command", "what it does", "for example"],
            [(f"`{name}`", text, f"`{typed}`") for name, (text, typed) in commands.items()],
        ),
        "## Fields of a run",
        "`proxies run --set NAME=VALUE` overrides any of them. In a notebook:"
        " `replace(this.base, NAME=VALUE)`. A *younger* field is no part of a run's key while it"
        " has its default, so runs that were stored before it came stay valid.",
        *(_fields_of(kind) for kind in config.PARTS.values()),
    ]
    for layer, folder in LAYERS.items():
        parts.append(f"## Layer {layer}")
        for path in _modules(paths.root() / folder):
            parts.append(_module(path))
    return "\n\n".join(parts) + "\n"


def _modules(folder: pathlib.Path) -> list[pathlib.Path]:
    """The modules of a layer: of the core those of the top folder alone."""
    files = folder.glob("*.py") if folder.name == "proxies_lib" else folder.rglob("*.py")
    return sorted(path for path in files if path.stem not in ("__init__", *ABOVE_ALL))


def _fields_of(kind: type) -> str:
    rows, types = [], typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        about, allowed = field.metadata["about"], field.metadata["allowed"].words
        younger = "yes" if field.metadata["younger"] else ""
        name, default = f"`{field.name}`", f"`{field.default!r}`"
        rows.append((name, types[field.name].__name__, default, allowed, about, younger))
    head = ["field", "type", "default", "allowed", "what it is", "younger"]
    return f"### {kind.__name__}\n\n{_first_words(kind.__doc__)}\n\n{_table(head, rows)}"


def _module(path: pathlib.Path) -> str:
    """A module's docstring, and each public function and class with the first words of its own."""
    tree = ast.parse(path.read_text("utf-8"))
    lines = []
    for node in tree.body:
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name.startswith("_"):
            continue
        words = _first_words(ast.get_docstring(node))
        lines.append(f"- `{_signature(node)}`{f': {words}' if words else ''}")
    place = path.relative_to(paths.root()).as_posix()
    head = f"### [{place}](../{place})\n\n{_first_words(ast.get_docstring(tree))}"
    return "\n\n".join([head, "\n".join(lines)] if lines else [head])


def _signature(node: ast.FunctionDef | ast.ClassDef) -> str:
    if isinstance(node, ast.ClassDef):
        return f"class {node.name}"
    given = node.args
    names = [argument.arg for argument in (*given.posonlyargs, *given.args)]
    names += [f"*{given.vararg.arg}"] if given.vararg else []
    names += [argument.arg for argument in given.kwonlyargs]
    names += [f"**{given.kwarg.arg}"] if given.kwarg else []
    return f"{node.name}({', '.join(names)})"


def _first_words(docstring: str | None) -> str:
    """The first paragraph of a docstring in one line."""
    return " ".join((docstring or "").partition("\n\n")[0].split())


def _table(head: list[str], rows: list[tuple]) -> str:
    return report.markdown(pd.DataFrame(rows, columns=head))
