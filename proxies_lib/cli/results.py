"""merge, table, claims, score, reference: what the store and the tables hold."""

import contextlib
import os
import pathlib
import sys

from proxies_lib import paths
from proxies_lib.cli import completion, screen
from proxies_lib.cli.options import (
    add_json,
    add_label,
    add_option,
    add_overrides,
    add_quiet,
    new_folder,
    overrides_of,
    refuse_beside,
)
from proxies_lib.config import refuse
from proxies_lib.science import protocol


def add(command):
    """merge, table, claims, score, reference: what the store and the published tables hold."""
    merge = command(
        "merge",
        _merge,
        "bring runs of other stores into one, and pack it into files below 16 MiB",
        """
        merge shards/* --store papermill_runs/store
        merge                                    # only pack the store
        """,
    )
    merge.add_argument(
        "sources", nargs="*", metavar="SOURCE", help="a store or a pack; none: only pack the store"
    )
    merge.add_argument("--store", help="folder of the run store that receives them")
    add_quiet(merge)
    _add_table(command)
    _add_claims(command)
    _add_score(command)
    reference = command(
        "reference",
        _reference,
        "print the reference: commands, fields of a run, public functions",
        "reference --write",
    )
    reference.add_argument(
        "--write", action="store_true", help="write it into docs/reference.md instead"
    )


def _add_table(command):
    table = command(
        "table",
        _table,
        "print the exported runs of a scale, all of them or those that one asks for",
        """
        table --scale laptop > runs.csv
        table --where 'lr=0.1,d_model=64' --columns key,qk_norm,seed,final_loss
        table --where 'final_loss<4' --where 'device=AMD EPYC' --json
        """,
    )
    add_label(table)
    add_option(
        table,
        "--where",
        action="append",
        default=[],
        metavar="CONDITIONS",
        help="only rows with all of these: NAME=VALUE, also with != < <= > >=, and commas between",
        complete=completion.conditions,
    )
    add_option(
        table,
        "--columns",
        metavar="NAMES",
        help="only these columns, in this order, with commas between",
        complete=completion.columns,
    )
    kind = table.add_mutually_exclusive_group()
    kind.add_argument("--csv", action="store_true", help="print csv (the default)")
    kind.add_argument("--json", action="store_true", help="print JSON, an object per run")


def _add_claims(command):
    claims = command(
        "claims",
        _claims,
        "print the scored claims of a scale",
        """
        claims                                   # one's own verdicts, else the published ones
        claims --scale night --json
        claims --against laptop-xeon             # which verdicts another label has otherwise
        claims --scale night --together night-again    # over the seeds of both labels
        """,
    )
    add_label(claims)
    add_json(claims)
    kind = claims.add_mutually_exclusive_group()
    kind.add_argument(
        "--pages",
        action="store_true",
        help="write the published ones of every scale into docs/scoreboard.md, and a digest "
        "into README",
    )
    add_option(
        kind,
        "--against",
        metavar="LABEL",
        help="compare with the verdicts of another label; "
        "of the same one: one's own with the published ones",
        complete=completion.labels,
    )
    add_option(
        kind,
        "--together",
        metavar="LABEL",
        help="over the seeds of both labels, which must have the same protocol but for seeds",
        complete=completion.labels,
    )


def _add_score(command):
    score = command(
        "score",
        _score,
        "score interventions: a row per method of a notebook, beside its anchors; trains nothing",
        """
        score                                    # section 11
        score my_idea.ipynb --scale night
        """,
    )
    add_option(
        score,
        "notebook",
        nargs="?",
        metavar="NOTEBOOK",
        help="a section, or a notebook of yours with cells tagged `grid` (default: 11)",
        complete=completion.notebooks,
    )
    add_overrides(score)
    add_json(score)


def _merge(options):
    from proxies_lib.runs import store

    into = paths.folder("store") if options.store is None else new_folder("store", options.store)
    store.merge(options.sources, into)


def _table(options):
    from proxies_lib.runs import query
    from proxies_lib.science import outputs

    runs = query.where(outputs.runs_of(options.scale, options.published), options.where)
    if options.columns is not None:
        runs = runs[query.names(runs, options.columns)]
    if options.json:
        screen.print_json(runs)
    else:
        runs.to_csv(sys.stdout, index=False)


def _claims(options):
    from proxies_lib import pages
    from proxies_lib.science import columns, difference, report

    if options.pages:
        refuse_beside("pages", json=options.json, published=options.published)
        if options.scale not in columns.SCALES:
            refuse("scale", options.scale, f"--pages writes {', '.join(columns.SCALES)}")
        return pages.write_scoreboard()
    if options.against == options.scale:
        refuse_beside("against", published=options.published)
        difference.require_own(options.scale)
    if options.together is not None:
        if options.together == options.scale:
            refuse("together", options.together, "is the label itself, with the same seeds")
        pair = (options.scale, options.together)
        rows = difference.together(*difference.sides(*pair, options.published))
    else:
        rows = report.scoreboard(options.scale, options.published)
    if options.against is not None:
        _print_comparison(rows, options)
    elif options.json:
        screen.print_json(rows)
    else:
        for row in report.short(rows).itertuples():
            verdict = screen.verdict(row.verdict, 24)
            name = f"Fig. {row.figure:4} {row.claim:22}"
            print(f"{name} {verdict} {row.effect:28} n={row.n}  {row.statement}")


def _print_comparison(rows, options):
    from proxies_lib.science import claims, report

    # Against the own label: what one has trained oneself with what is published.
    published = options.against == options.scale
    both = report.against(rows, report.scoreboard(options.against, published=published))
    if both.empty:
        refuse("against", options.against, f"has no verdict on a claim of {options.scale}")
    if options.json:
        return screen.print_json(both)
    for row in both[~both["same"]].itertuples():
        print(
            f"{row.claim:22} {row.effect:10.3g} {screen.verdict(row.verdict, 26)} "
            f"{row.effect_other:10.3g} {screen.verdict(row.verdict_other)}"
        )
    holds = both["verdict"] == claims.HOLDS
    holds_other = both["verdict_other"] == claims.HOLDS
    own, other = ("yours", "the published") if published else (options.scale, options.against)
    print(
        f"same verdict: {both['same'].sum()} of {len(both)}; hold: {holds.sum()} in {own}, "
        f"{holds_other.sum()} in {other}, {(holds & holds_other).sum()} in both"
    )


def _score(options):
    """From stored and committed runs only; the plan and what it says go to stderr."""
    from proxies_lib.science import notebooks, score

    if options.store is not None:
        os.environ["PROXIES_STORE"] = new_folder("store", options.store)
    overrides = overrides_of(options)
    study = protocol.study(options.scale, overrides)
    path = _notebook(options.notebook or "11", study)
    grids = notebooks.grids_of(path, notebooks.reading(options.scale) | {"overrides": overrides})
    arms = grids.bisected or grids.runs | grids.held_out
    missing = [anchor for anchor in score.ANCHORS if anchor not in arms]
    if missing:
        allowed = f"must have a grid with the arms {' and '.join(score.ANCHORS)}"
        refuse("notebook", path.name, f"{allowed}, beside which the others are scored")
    with contextlib.redirect_stdout(sys.stderr):
        scores = score.scored(arms, study, bisect=bool(grids.bisected))
    if options.json:
        screen.print_json(scores)
    else:
        print(score.score_table(scores))


def _notebook(name: str, study: protocol.Study) -> pathlib.Path:
    """The notebook at a path, or of a section."""
    from proxies_lib.science import notebooks

    path = pathlib.Path(name)
    if path.is_file():
        return path
    if path.suffix in (".ipynb", ".md") or "/" in name.removeprefix("notebooks/"):
        refuse("notebook", name, "is no file")
    return notebooks.choose([name], study)[0]


def _reference(options):
    from proxies_lib import pages
    from proxies_lib.cli import reference

    text = reference()
    if options.write:
        paths.write_atomically(paths.root() / pages.REFERENCE, text.encode())
    else:
        print(text, end="")
