"""show, explain, diff: what stored and committed runs tell, without training."""

import dataclasses
import json
import math
import pathlib
import sys
import textwrap

from proxies_lib import paths
from proxies_lib.cli import completion, screen
from proxies_lib.cli.options import add_json, add_option, add_published
from proxies_lib.config import UserError, refuse

MOST_LISTED = 12  # runs, or kinds of runs, of one list; `--json` has all

MOST_ROWS = 3  # of a figure's csv that are printed; curves have a row per logged point


def add(command):
    show = command(
        "show",
        _show,
        "print a run by its key: configuration, results, provenance, and the figures that show it",
        """
        show 53d53ac60a909908cc747d2d               # a key of a figure's csv
        show 53d5 --json                         # its beginning is enough
        """,
    )
    show.add_argument("key", metavar="KEY", help="a run's key, or its beginning")
    add_json(show)
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
    diff = command(
        "diff",
        _diff,
        "compare two labels: protocols, verdicts that changed, final losses of common runs",
        """
        diff laptop laptop-xeon                  # the same protocol on two machines
        diff laptop laptop                       # one's own runs beside the published ones
        """,
    )
    for name, metavar in (("one", "LABEL"), ("other", "LABEL")):
        add_option(
            diff, name, metavar=metavar, help="a scale or a label", complete=completion.labels
        )
    add_published(diff)
    add_json(diff)


def _print_json(value):
    """Values of JSON; nan and infinity are null."""
    print(json.dumps(_plain(value), indent=1, ensure_ascii=False))


def _plain(value):
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if hasattr(value, "item"):  # NumPy's scalars
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def _place(path: pathlib.Path) -> str:
    """A path as one types it in the project's folder."""
    try:
        return str(path.relative_to(paths.root()))
    except ValueError:
        return str(path)


def _text(value) -> str:
    """A value of a field as it is typed: 0.0003, none."""
    return f"{value:g}" if isinstance(value, float) else str(value)


# ------------------------------------------------------------------ show


def _show(options):
    from proxies_lib.science import lookup

    found = lookup.keys(options.key)
    if len(found) > 1:
        return _list_ambiguous(found, options)
    (key,) = found
    places = lookup.places(key)
    study = lookup.study_of(places)
    run = lookup.run_of(places[0].settings)
    shown = lookup.in_csvs(key)
    if options.json:
        shown += lookup.in_registry(run, study) if run else []
        return _print_json(_as_json(key, places, study, shown))
    print(screen.painted(key, "bold"))
    _print_settings(places[0].settings, study, run)
    _print_results(places)
    _print_intervention(places[0].settings)
    screen.heading("Figures that show it")
    _print_shown(shown)
    # What is known is on the screen before the notebooks are asked, which takes seconds.
    sys.stdout.flush()
    more = lookup.in_registry(run, study) if run else []
    _print_shown(more)
    if not shown and not more:
        print(f"  none of {study.label}")


def _list_ambiguous(keys: list[str], options):
    """What the keys that begin alike are, and the refusal."""
    from proxies_lib.science import lookup

    rows = []
    for key in keys[: None if options.json else MOST_LISTED]:
        place = lookup.places(key)[0]
        names = ("d_model", "n_layers", "qk_norm", "lr", "seed")
        rows.append([key, *(_text(place.settings.get(name, "")) for name in names), place.name])
    head = ["key", "d_model", "n_layers", "qk_norm", "lr", "seed", "in"]
    if options.json:
        _print_json([dict(zip(head, row, strict=True)) for row in rows])
    else:
        screen.table(head, rows)
    more = len(keys) - len(rows)
    left_out = f", {more} of them not listed" if more else ""
    refuse("key", options.key, f"{len(keys)} runs begin so{left_out}; give more of the key")


def _print_settings(settings: dict, study, run):
    from proxies_lib.science import lookup

    beside = lookup.beside_base(settings, study)
    screen.heading(f"Configuration, beside the base of {study.label}")
    rows = []
    for name, (value, base) in beside.items():
        if name not in ("intervention", "intervention_numbers"):  # printed as a text
            rows.append([name, _text(value), f"base {_text(base)}" if value != base else ""])
    screen.table(["field", "value", ""], rows)
    if run is not None:
        print(f"  N {run.model.n_params:,}, {run.tokens:,} tokens, {run.flops:.3g} FLOPs")
    alike = [f"{name} {_text(value)}" for name, value in settings.items() if name not in beside]
    words = f"as the base: {', '.join(text for text in alike if not text.endswith(' '))}"
    print(textwrap.fill(words, 98, initial_indent="  ", subsequent_indent="  "))


def _print_results(places):
    screen.heading("Result, in nats per token")
    rows = []
    for place in places:
        result = place.results
        diverged = f"at step {result['diverged_step']}" if result["diverged"] else "no"
        numbers = [f"{result[name]:.6f}" for name in ("final_loss", "init_loss")]
        seconds = f"{result['train_seconds']:.3g} s"
        curves = "yes" if place.has_curves else "no"
        rows.append([_named(place), *numbers, diverged, seconds, curves])
    screen.table(["in", "final loss", "initial loss", "diverged", "trained in", "curves"], rows)
    screen.heading("Provenance")
    names = list(dict.fromkeys(name for place in places for name in place.provenance))
    said = [name for name in names if any(place.provenance.get(name) for place in places)]
    head = ["", *(_named(place) for place in places)]
    rows = [[name, *(_text(p.provenance.get(name) or "–") for p in places)] for name in said]
    screen.table(head, rows)


def _named(place) -> str:
    if place.is_store:
        return "the store"
    own = place.path.parent.name == "local"
    return f"{place.name}, own" if own else place.name


def _print_intervention(settings: dict):
    text = settings.get("intervention", "")
    if not text:
        return
    from proxies_lib import interventions

    try:
        titles = interventions.titles(text)
    except UserError:  # today's rules refuse it
        titles = "of another version"
    screen.heading(f"Intervention {titles}")
    numbers = settings.get("intervention_numbers", "")
    print(textwrap.indent(text, "  "))
    if numbers:
        print(f"  numbers: {numbers}")


def _print_shown(shown):
    for figure in shown:
        where = "no run is named in its csv; so says the registry"
        if figure.csv is not None:
            where = _place(figure.csv)
        method = f", {figure.method}" if figure.method else ""
        print(f"  Figure {figure.figure} of {figure.label}{method}: {where}")
        if len(figure.rows) > MOST_ROWS:
            print(f"      {len(figure.rows)} rows")
            continue
        for row in figure.rows:
            values = ", ".join(f"{name} {value}" for name, value in row.items() if name != "method")
            print(textwrap.fill(values, 98, initial_indent=" " * 6, subsequent_indent=" " * 8))


def _as_json(key: str, places, study, shown) -> dict:
    from proxies_lib.science import lookup

    first = places[0]
    return {
        "key": key,
        "label": study.label,
        "configuration": first.settings,
        "beside_base": {
            name: {"value": value, "base": base}
            for name, (value, base) in lookup.beside_base(first.settings, study).items()
        },
        "places": [
            {
                "in": _named(place),
                "path": _place(place.path),
                "curves": place.has_curves,
                **place.results,
                "provenance": place.provenance,
            }
            for place in places
        ],
        "figures": [
            dataclasses.asdict(figure) | {"csv": figure.csv and _place(figure.csv)}
            for figure in shown
        ],
    }


# ------------------------------------------------------------------ explain


def _explain(options):
    from proxies_lib.science import explain

    figure, label = explain.named(options.figure)
    found = explain.explained(figure, options.scale or label or "laptop")
    redraw = explain.command("figures", figure.section, found.study)
    train = explain.command("run", figure.section, found.study)
    if options.json:
        return _print_json(_explained_json(found, redraw, train))
    drawing = found.drawing
    print(screen.painted(drawing.heading, "bold"))
    print(textwrap.fill(drawing.about, 98) or "The notebook says no more of it.")
    screen.heading("Drawn by")
    print(f"  section {figure.section}, {_place(found.notebook)}, line {drawing.line}")
    print(textwrap.indent(drawing.source, "    "))
    screen.heading(f"Runs behind it, at {found.study.label}")
    _print_behind(found)
    screen.heading("Again")
    commands = {redraw: "draws it, trains nothing", train: "first trains what is missing"}
    screen.pairs(commands)
    screen.heading("Files")
    for path in found.files:
        print(f"  {_place(path)}")
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
        print(f"  {screen.verdict(row.verdict, 13)} {row.effect:26} n={row.n}  {row.statement}")


def _explained_json(found, redraw: str, train: str) -> dict:
    verdicts = found.verdicts
    return {
        "figure": found.figure.name,
        "label": found.study.label,
        "section": found.figure.section,
        "title": found.drawing.heading,
        "about": found.drawing.about,
        "notebook": _place(found.notebook),
        "line": found.drawing.line,
        "source": found.drawing.source,
        "runs": found.runs.to_dict("records"),
        "held_out": found.held_out,
        "bisected": found.bisected,
        "redraw": redraw,
        "train": train,
        "files": [_place(path) for path in found.files],
        "claims": [] if verdicts is None else json.loads(verdicts.to_json(orient="records")),
    }


# ------------------------------------------------------------------ diff


def _diff(options):
    from proxies_lib.science import difference

    one, other = difference.sides(options.one, options.other, options.published)
    if options.json:
        return _print_json(_diff_json(one, other))
    _print_protocols(one, other)
    _print_changed(one, other)
    _print_losses(one, other)


def _print_protocols(one, other):
    from proxies_lib.science import difference

    print(screen.painted(f"{one.name} | {other.name}", "bold"))
    for each in (one, other):
        if each.study is None:
            print(f"  {each.name}: its protocol is not known")
        elif not each.says_so:
            print(f"  {each.name} has no protocol.json: taken for that of scale {each.study.scale}")
    rows = {name: map(_text, pair) for name, pair in difference.protocols(one, other).items()}
    screen.heading("Protocols")
    _print_pairs(one, other, rows, "the same")
    screen.heading("Trained by")
    origins = difference.origins(one, other)
    rows = {name: (", ".join(pair) or "–" for pair in pairs) for name, pairs in origins.items()}
    _print_pairs(one, other, rows, "the same")


def _print_pairs(one, other, rows: dict, none: str):
    if rows:
        screen.table(["", one.name, other.name], [[name, *pair] for name, pair in rows.items()])
    else:
        print(f"  {none}")


def _print_changed(one, other):
    from proxies_lib.science import difference, report

    screen.heading("Verdicts")
    if one.verdicts is None or other.verdicts is None:
        without = one if one.verdicts is None else other
        return print(f"  {without.name} has none")
    both = report.against(one.verdicts, other.verdicts)
    print(f"  the same: {both['same'].sum()} of {len(both)} claims that both judge")
    for each, beside in ((one, other), (other, one)):
        more = sorted(set(each.verdicts["claim"]) - set(beside.verdicts["claim"]))
        if more:
            print(_wrapped(f"only {each.name} judges {len(more)}: {', '.join(more)}"))
    rows = [
        [row["claim"], _judged(row, ""), _judged(row, "_other"), row["why"]]
        for row in difference.changed(one, other).to_dict("records")
    ]
    if rows:
        screen.table(["claim", one.name, other.name, "why"], rows)


def _judged(row: dict, suffix: str) -> str:
    """A verdict, its effect with the interval, and n."""
    from proxies_lib.science import report

    effect = report.rounded(*(row[f"{name}{suffix}"] for name in ("effect", "lo", "hi")))
    return f"{screen.verdict(row[f'verdict{suffix}'])} {effect}, {row[f'n{suffix}']}"


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 98, initial_indent="  ", subsequent_indent="    ")


def _print_losses(one, other):
    from proxies_lib.science import difference

    screen.heading("Runs")
    found = difference.losses(one, other)
    if found is None:
        without = one if one.runs is None else other
        return print(f"  {without.name} has no table of runs")
    common = found.common
    same = int(common["same_key"].sum())
    print(f"  common: {len(common)}, {same} of them on the same corpus")
    for each, rows in zip((one, other), found.only, strict=True):
        print(f"  only {each.name}: {len(rows)}")
        counts = difference.kinds(rows, each.study)
        for words, count in counts.head(MOST_LISTED).items():
            print(_wrapped(f"  {count} {words}"))
        if len(counts) > MOST_LISTED:
            print(f"    and other kinds: {len(counts) - MOST_LISTED}; --json has the keys")
    if not len(common):
        return
    screen.heading("Final losses of common runs, absolute difference in nats per token")
    rows = [_spread_cells(f"{row['lr']:g}", row) for row in _records(difference.by_lr(common))]
    rows.append(_spread_cells("all", difference.overall(common)))
    screen.table(["LR", "runs", "equal", "median", "largest", "diverged in one only"], rows)
    worst = common.loc[common["difference"].idxmax()]
    print(
        f"  largest: {worst['final_loss']:.6f} | {worst['final_loss_other']:.6f}, "
        f"`proxies show {worst['key']}`"
    )


def _records(frame) -> list[dict]:
    return frame.to_dict("records")


def _spread_cells(name: str, row: dict) -> list[str]:
    sizes = [f"{row[key]:.2g}" for key in ("median", "largest")]
    return [name, str(row["runs"]), str(row["equal"]), *sizes, str(row["diverged_in_one"] or "–")]


def _diff_json(one, other) -> dict:
    from proxies_lib.science import difference

    found = difference.losses(one, other)
    runs = None
    if found is not None:
        runs = {
            "common": len(found.common),
            "same_corpus": int(found.common["same_key"].sum()),
            "only": [rows["key"].tolist() for rows in found.only],
            "difference": difference.overall(found.common),
            "by_lr": _records(difference.by_lr(found.common)),
        }
    changed = difference.changed(one, other)
    return {
        "labels": [one.name, other.name],
        "protocols": difference.protocols(one, other),
        "trained_by": difference.origins(one, other),
        "verdicts_changed": json.loads(changed.to_json(orient="records")),
        "runs": runs,
    }
