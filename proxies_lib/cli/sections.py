"""plan, run, figures, export: what sections ask for, trained, shown or carried on."""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import sys

from proxies_lib import paths
from proxies_lib.cli.options import (
    add_engine,
    add_json,
    add_protocol,
    add_quiet,
    new_folder,
    overrides_of,
    refuse_beside,
    shard_of,
)
from proxies_lib.cli.stopping import GO_ON
from proxies_lib.config import Run, UserError, refuse
from proxies_lib.science import protocol


def add(command):
    """plan, run, figures, export: what a section asks for, trained, shown or carried on."""
    plan = command(
        "plan",
        _plan,
        "print what sections would train, and why, without training",
        """
        plan 01                                  # what section 01 would train, how long it takes
        plan --scale night --continue --json     # what the committed table of the night lacks
        """,
    )
    run = command(
        "run",
        _run,
        "train what is missing, then execute the notebooks",
        """
        run 01 02                                # train their runs once, then draw
        run 01 --set steps=1600 --seeds 10-14    # a protocol of one's own, under its own label
        """,
    )
    figures = command(
        "figures",
        _figures,
        "execute the notebooks on stored or committed runs only: redraw, train nothing",
        "figures 01 --scale night",
    )
    export = command(
        "export",
        _export_stored,
        "write the runs that are stored so far into the tables of the label, for --continue",
        "export 01 --scale night --publish",
    )
    for added in (plan, run, figures, export):
        add_protocol(added)
    for added in (run, figures, export):
        added.add_argument(
            "--publish",
            action="store_true",
            help="write the committed outputs, not the local ones; the code must be committed",
        )
    for added in (plan, run):
        added.add_argument(
            "--continue",
            action="store_true",
            dest="continued",
            help="runs of the label's committed table (papermill_runs/LABEL, curves with four "
            "digits) count as trained: the same configuration on the same corpus",
        )
        add_engine(added)
    part = "only part i of n (1 ≤ i ≤ n)"
    plan.add_argument("--shard", default="1/1", metavar="i/n", help=part)
    run.add_argument(
        "--distributed",
        nargs="?",
        const="auto",
        metavar="HOST:PORT,n,i",
        help="train in step with other processes; on pods and under Slurm they find each other",
    )
    run.add_argument(
        "--shard", default="1/1", metavar="i/n", help="only train part i of n (1 ≤ i ≤ n)"
    )
    add_json(plan)
    for added in (run, figures, export):
        add_quiet(added)
    run.set_defaults(stopped=GO_ON)
    # What a command does not offer, it has at its default.
    plan.set_defaults(publish=False)
    for added in (figures, export):
        added.set_defaults(workers=None, engine=None, shard="1/1", continued=False)


@dataclasses.dataclass
class _Asked:
    """What plan, run, figures and export are asked for."""

    study: protocol.Study
    notebooks: list[pathlib.Path]
    parameters: dict  # of each notebook
    runs: list[Run]
    held_out: list[Run]  # what a notebook trains itself, after its prediction
    bisected: list[dict[str, list[Run]]]  # curves of a notebook that it bisects itself
    shard: tuple[int, int]


def _gather(options) -> _Asked:
    """Read the options, and every run the chosen notebooks ask for.

    All of it is checked before anything is written. Raises UserError.
    """
    from proxies_lib.runs import provenance
    from proxies_lib.science import notebooks, outputs

    _say_which_project()
    _choose_engine(options)
    if options.store is not None:
        os.environ["PROXIES_STORE"] = new_folder("store", options.store)
    shard, overrides = shard_of(options.shard), overrides_of(options)
    study = protocol.study(options.scale, overrides, train=True)
    chosen = notebooks.choose(options.sections, study)
    if options.publish:
        outputs.require_committed(provenance.commit())
        os.environ[outputs.PUBLISH] = "1"
    if options.continued:
        os.environ[outputs.CONTINUE] = study.label
    parameters = {"scale": options.scale, "train": True, "publish": True, "overrides": overrides}
    runs, held_out, bisected = [], [], []
    for path in chosen:
        grid = notebooks.grids_of(path, parameters)
        runs += notebooks.all_runs(grid.runs)
        held_out += notebooks.all_runs(grid.held_out)
        bisected.append(grid.bisected)
    return _Asked(study, chosen, parameters, runs, held_out, bisected, shard)


def _choose_engine(options):
    """Kernels and workers inherit the choice by environment variables."""
    from proxies_lib.runs import engines

    if options.workers is not None:
        if options.workers < 1:
            refuse("workers", options.workers, "must be 1 or more")
        if options.engine == "lanes":
            refuse("workers", options.workers, "engine lanes has none: it uses every device")
        os.environ["PROXIES_WORKERS"] = str(options.workers)
    if options.engine:
        os.environ["PROXIES_ENGINE"] = options.engine
    engines.chosen_engine()


def _say_which_project():
    """Notebooks are programs: where one stands in another project folder, say whose they are."""
    here = paths.project_here()
    if here is not None and here.resolve() != paths.root().resolve():
        print(
            f"proxies: uses the project folder {paths.root()}, which is installed, not {here}",
            file=sys.stderr,
        )


def _plan(options):
    """What would train; with --json nothing else goes to stdout, remarks go to stderr."""
    with contextlib.redirect_stdout(sys.stderr if options.json else sys.stdout):
        asked = _gather(options)
        plan = _planned(asked)
    if options.json:
        held_out = len(set(asked.held_out))
        print(json.dumps(plan.summary(_workers()) | {"held_out": held_out}, indent=1))
    else:
        _say_held_out(asked.held_out)
        print(plan.describe(_workers()))


def _planned(asked: _Asked):
    from proxies_lib.runs import datasets

    corpora = {(run.data, run.model.vocab_size) for run in asked.runs}
    for name, vocab_size in sorted(corpora):
        if name != "stdlib":  # which prepares itself
            datasets.open_dataset(name, vocab_size)
    return _locate(asked.runs, prepare=False, shard=asked.shard)


def _workers() -> int | None:
    """Processes that train, a run each; None for engines that train otherwise, or do not know."""
    from proxies_lib.runs import engines

    engine = engines.chosen_engine()
    all_of_a_cluster = engine == "ray" and "PROXIES_WORKERS" not in os.environ
    return None if engine == "lanes" or all_of_a_cluster else engines.cores()


def _locate(runs: list[Run], **options):
    """The plan of `runs`: what the store has and, with --continue, the committed table."""
    from proxies_lib.runs import sweep
    from proxies_lib.science import outputs

    return sweep.plan(runs, layer=outputs.continued(), exact=True, **options)


def _run(options):
    from proxies_lib.runs import provenance, sweep
    from proxies_lib.science import outputs

    if options.distributed:
        refuse_beside("distributed", workers=options.workers, engine=_unless_lanes(options.engine))
    _join(options.distributed)
    asked = _gather(options)
    _say_held_out(asked.held_out)
    plan = _locate(asked.runs, shard=asked.shard)
    sharded = asked.shard[1] > 1
    if not sharded:
        outputs.claim(asked.study, provenance.commit())
    print(plan.describe(_workers()), flush=True)
    sweep.run(plan, quiet=options.quiet)
    if sharded:
        print(
            f"shard {options.shard} is trained; "
            "run without --shard once every shard's store is in one place"
        )
        return
    if options.distributed:
        print(
            "trained by all processes together, stored by the first; "
            "run there without --distributed to go on"
        )
        return
    if options.publish:
        _require_that_committed_code_trained(*_trained(asked))
    _execute(asked)
    _export(asked)


def _require_that_committed_code_trained(plan, trained: list):
    """Of held-out runs those that are there already, as the others are still to be trained."""
    from proxies_lib.runs import provenance, tables
    from proxies_lib.science import outputs

    table, _ = tables.table(trained, plan.folder, plan.layer, columns=())
    outputs.require_committed(provenance.commit(), table)


def _trained(asked: _Asked):
    """The plan of all runs that sections ask for, and those of them that are there."""
    plan = _locate(asked.runs + asked.held_out + _bisected(asked))
    return plan, [found for found in plan.found if found.layer]


def _bisected(asked: _Asked) -> list[Run]:
    """The runs that bisections of the notebooks have trained so far."""
    from proxies_lib.science import bisection, notebooks

    found = []
    for arms in filter(None, asked.bisected):
        found += notebooks.all_runs(bisection.so_far(arms, asked.study))
    return found


def _export(asked: _Asked):
    """Write the tables of a label: what its notebooks show, from now on without the store."""
    plan = _locate(asked.runs + asked.held_out + _bisected(asked))
    _write_tables(asked, plan, list(plan.found))


def _write_tables(asked: _Asked, plan, found: list) -> pathlib.Path:
    """The runs `found`, with those of their curves that a section of the scale reads; where to.

    Any section, not only those asked for: sections share runs, and one that finds a run in the
    table does not train it again.
    """
    from proxies_lib.runs import tables
    from proxies_lib.science import notebooks, outputs

    table, curves = tables.table(found, plan.folder, plan.layer)
    read = notebooks.curves_read(notebooks.choose([], asked.study), asked.parameters)
    curves = tables.only_read(curves, {f.row_key: read.get(f.run) for f in found})
    target = outputs.target("papermill_runs", asked.study.label)
    tables.export(table, curves, target)
    return target


def _export_stored(options):
    """Write what is stored of a section, although some of it is still to be trained."""
    from proxies_lib.runs import provenance
    from proxies_lib.science import outputs

    asked = _gather(options)
    plan, stored = _trained(asked)
    if not stored:
        raise UserError(f"store={plan.folder}: has none of these runs; train some first")
    if options.publish:
        _require_that_committed_code_trained(plan, stored)
    outputs.claim(asked.study, provenance.commit())
    target = _write_tables(asked, plan, stored)
    print(f"exported {len(stored)} of {len(plan.found)} runs to {target}")


def _unless_lanes(engine: str | None) -> str | None:
    return None if engine in ("auto", "lanes") else engine


def _join(distributed: str | None):
    """Start `jax.distributed`: every process then trains the same plan in step, over the devices
    of all."""
    if not distributed:
        return
    match = re.fullmatch(r"([^,]+:\d{1,5}),(\d{1,6}),(\d{1,6})", distributed)
    if distributed != "auto" and not (match and int(match[3]) < int(match[2])):
        refuse("distributed", distributed, "must be HOST:PORT,n,i with 0 ≤ i < n, or nothing")
    import jax

    place = (match[1], int(match[2]), int(match[3])) if match else ()
    try:
        jax.distributed.initialize(*place)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        refuse("distributed", distributed, f"the processes do not find each other ({reason})")
    os.environ |= {"PROXIES_DISTRIBUTED": "1", "PROXIES_ENGINE": "lanes"}


def _say_held_out(runs: list[Run]):
    if runs:
        print(
            f"held out: {len(set(runs))} further runs, "
            "which a notebook trains after it has written its prediction"
        )


def _figures(options):
    from proxies_lib.runs import provenance
    from proxies_lib.science import outputs

    asked = _gather(options)
    _require_stored(asked)
    asked.parameters["train"] = False
    outputs.claim(asked.study, provenance.commit())
    _execute(asked)


def _require_stored(asked: _Asked):
    """Raise UserError where a notebook would find runs missing: nothing is written by then."""
    from proxies_lib.runs import sweep
    from proxies_lib.science import report

    layer = report.published_table(asked.study)
    plan = sweep.plan(asked.runs + asked.held_out, layer=layer, prepare=False)
    if plan.missing:
        counts = f"{len(plan.missing)} of {len(plan.found)}"
        trains = "`proxies run` with the same words trains them"
        raise UserError(f"figures: {counts} runs are not stored; {trains}")


def _execute(asked: _Asked):
    from proxies_lib.science import notebooks, outputs

    for path in asked.notebooks:
        done = notebooks.execute(path, asked.parameters, asked.study.label)
        print(f"executed {done.parent.name}/{done.name}", flush=True)
    print(f"figures in {outputs.target('figures', asked.study.label)}")
