"""show: a run by its key, from the store and from committed tables."""

import dataclasses
import sys
import textwrap

from proxies_lib.cli import screen
from proxies_lib.cli.options import add_json
from proxies_lib.config import UserError, refuse

MOST_LISTED = 12  # runs of a list; `--json` has all

LISTED = ("d_model", "n_layers", "qk_norm", "lr", "seed")  # of each

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
        return screen.print_json(_as_json(key, places, study, shown))
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
        rows.append({"key": key} | {name: place.settings.get(name) for name in LISTED})
    if options.json:
        screen.print_json(rows)
    else:
        screen.table(["key", *LISTED], [list(map(screen.text, row.values())) for row in rows])
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
            differs = f"base {screen.text(base)}" if value != base else ""
            rows.append([name, screen.text(value), differs])
    screen.table(["field", "value", ""], rows)
    if run is not None:
        print(f"  N {run.model.n_params:,}, {run.tokens:,} tokens, {run.flops:.3g} FLOPs")
    alike = [
        f"{name} {screen.text(value)}" for name, value in settings.items() if name not in beside
    ]
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
    rows = []
    for name in said:
        rows.append([name, *(screen.text(p.provenance.get(name) or "–") for p in places)])
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
            where = screen.place(figure.csv)
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
                "path": screen.place(place.path),
                "curves": place.has_curves,
                **place.results,
                "provenance": place.provenance,
            }
            for place in places
        ],
        "figures": [
            dataclasses.asdict(figure) | {"csv": figure.csv and screen.place(figure.csv)}
            for figure in shown
        ],
    }
