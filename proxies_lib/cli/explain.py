"""explain: a figure by its name or file, from its notebook and its runs."""

import json
import textwrap

from proxies_lib.cli import completion, screen
from proxies_lib.cli.options import add_json, add_option


def add(command):
    explain = command(
        "explain",
        _explain,
        "print what a figure is: who draws it, from which runs, how it is drawn again, its files",
        """
        explain 1
        explain figures/laptop/figE03_best_loss.csv
        """,
    )
    add_option(
        explain,
        "figure",
        metavar="FIGURE",
        help="its name in the paper (1, E.3, P2.ratio), or its file",
        complete=completion.figures,
    )
    add_option(
        explain,
        "--scale",
        metavar="LABEL",
        help="a scale, or the label of a protocol (default: that of the file, else laptop)",
        complete=completion.labels,
    )
    add_json(explain)


def _explain(options):
    from proxies_lib.science import explain

    figure, label = explain.named(options.figure)
    found = explain.explained(figure, options.scale or label or "laptop")
    redraw = explain.command("figures", figure.section, found.study)
    train = explain.command("run", figure.section, found.study)
    if options.json:
        return screen.print_json(_explained_json(found, redraw, train))
    drawing = found.drawing
    print(screen.painted(drawing.heading, "bold"))
    print(textwrap.fill(drawing.about, 98) or "The notebook says no more of it.")
    screen.heading("Drawn by")
    print(f"  section {figure.section}, {screen.place(found.notebook)}, line {drawing.line}")
    print(textwrap.indent(drawing.source, "    "))
    screen.heading(f"Runs behind it, at {found.study.label}")
    _print_behind(found)
    screen.heading("Again")
    commands = {redraw: "draws it, trains nothing", train: "first trains what is missing"}
    screen.pairs(commands)
    screen.heading("Files")
    for path in found.files:
        print(f"  {screen.place(path)}")
    if not found.files:
        print(f"  none yet of {found.study.label}")
    _print_verdicts(found)


def _print_behind(found):
    if found.runs.empty:
        return print("  none: it shows no runs")
    rows = found.runs.to_dict("records")
    head = list(rows[0])
    total = ["all", *(str(found.runs[name].sum()) for name in head[1:])]
    lines = [[str(value) for value in row.values()] for row in rows]
    screen.table(head, [*lines, total] if len(lines) > 1 else lines)
    print("  `table`: in the exported table of the label, so that figures need no training")
    if found.held_out:
        print("  some of them are trained by the notebook, after its prediction is written")
    if found.bisected:
        print("  and the runs between two learning rates, which a bisection finds one by one")


def _print_verdicts(found):
    from proxies_lib.science import report

    rows = found.verdicts
    if rows is None or rows.empty:
        return
    screen.heading("Claims")
    for row in report.short(rows).itertuples():
        verdict = screen.verdict(row.verdict, 13)
        print(f"  {row.claim:18} {verdict} {row.effect:26} n={row.n}  {row.statement}")


def _explained_json(found, redraw: str, train: str) -> dict:
    verdicts = found.verdicts
    return {
        "figure": found.figure.name,
        "label": found.study.label,
        "section": found.figure.section,
        "title": found.drawing.heading,
        "about": found.drawing.about,
        "notebook": screen.place(found.notebook),
        "line": found.drawing.line,
        "source": found.drawing.source,
        "runs": found.runs.to_dict("records"),
        "held_out": found.held_out,
        "bisected": found.bisected,
        "redraw": redraw,
        "train": train,
        "files": [screen.place(path) for path in found.files],
        "claims": [] if verdicts is None else json.loads(verdicts.to_json(orient="records")),
    }
