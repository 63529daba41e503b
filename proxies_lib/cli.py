"""The command `proxies`: plan and run sections, read tables, claims and figures, prepare data,
measure speed."""

import argparse
import ast
import contextlib
import dataclasses
import io
import json
import os
import pathlib
import re
import sys

from proxies_lib import config, paths
from proxies_lib.config import Run, UserError, refuse
from proxies_lib.science import protocol

MOST_SEEDS = 10_000  # of one command


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status.

    0; 2 for bad input and 1 for a disk's refusal, with one line on stderr; 130 when interrupted,
    143 by SIGTERM with a checkpoint.
    """
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character shows its number.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        options = _parser().parse_args(arguments)
        return options.call(options) or 0
    except UserError as error:
        print(f"proxies: {error}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        print("proxies: interrupted; finished runs are stored", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader went away (`| head`). Python would complain once more as it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except OSError as error:
        file = error.filename2 or error.filename
        prefix = f"{config.shown(file)}: " if file else ""
        print(f"proxies: {prefix}{config.shown(error.strerror or error)}", file=sys.stderr)
        return 1


# ------------------------------------------------------------------ what can be typed


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"proxies: {_one_line(message)}; see {self.prog} --help\n")


def _one_line(message: str) -> str:
    """What argparse says, without the line breaks and endless values of what it was given."""
    words = "".join(c if c.isprintable() else " " for c in message)
    return words if len(words) <= 400 else f"{words[:399]}…"


def _parser() -> argparse.ArgumentParser:
    return _parser_and_commands()[0]


def _parser_and_commands():
    """The parser, and its commands by name: each has its words as `description`."""
    parser = _Parser(prog="proxies", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)

    def command(name, call, text):
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(call=call)
        return added

    _add_sections(command)
    _add_results(command)
    _add_budget(command)
    _add_data(command)
    _add_lab(command)
    _add_convert(command)
    return parser, commands.choices


def _add_sections(command):
    """plan, run, figures, export: what a section asks for, trained, shown or carried on."""
    plan = command("plan", _plan, "print what sections would train, and why, without training")
    run = command("run", _run, "train what is missing, then execute the notebooks")
    figures = command(
        "figures",
        _figures,
        "execute the notebooks on stored or committed runs only: redraw, train nothing",
    )
    export = command(
        "export",
        _export_stored,
        "write the runs that are stored so far into the tables of the label, for --continue",
    )
    for added in (plan, run, figures, export):
        _add_protocol(added)
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
        _add_engine(added)
    plan.add_argument("--shard", default="1/1", metavar="i/n", help="only part i of n (1 ≤ i ≤ n)")
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
    # What a command does not offer, it has at its default.
    plan.set_defaults(publish=False)
    for added in (figures, export):
        added.set_defaults(workers=None, engine=None, shard="1/1", continued=False)


def _add_protocol(added):
    added.add_argument("sections", nargs="*", metavar="SECTION", help="01, 02, …; all without one")
    _add_overrides(added)


def _add_overrides(added):
    _add_scale(added)
    added.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        dest="settings",
        help="override sizes, lrs, seeds or a field of the run; outputs go to a label of its own",
    )
    added.add_argument("--seeds", help="as 0,1,2 or 1000-1002: short for --set seeds=[…]")
    added.add_argument("--label", metavar="NAME", help="outputs go to <scale>-NAME")
    added.add_argument("--store", help="folder of the run store")


def _add_scale(added):
    added.add_argument(
        "--scale", default="laptop", help="smoke, laptop (default), night, long, gpu or paper"
    )


def _add_engine(added):
    added.add_argument("--workers", type=int, help="training processes (default: one per core)")
    added.add_argument(
        "--engine",
        choices=("auto", "processes", "lanes", "ray"),
        help="a process per core, vmapped lanes, a Ray cluster (docs/machines.md); "
        "auto: by the device",
    )


def _add_results(command):
    """merge, table, claims, reference: what the store and the published tables hold."""
    merge = command(
        "merge", _merge, "bring runs of other stores into one, and pack it into files below 16 MiB"
    )
    merge.add_argument(
        "sources", nargs="*", metavar="SOURCE", help="a store or a pack; none: only pack the store"
    )
    merge.add_argument("--store", help="folder of the run store that receives them")
    table = command("table", _table, "print the exported runs of a scale as csv")
    _add_label(table)
    claims = command("claims", _claims, "print the scored claims of a scale")
    _add_label(claims)
    _add_json(claims)
    kind = claims.add_mutually_exclusive_group()
    kind.add_argument(
        "--pages",
        action="store_true",
        help="write the published ones of every scale into docs/scoreboard.md, and a digest "
        "into README",
    )
    kind.add_argument(
        "--against",
        metavar="LABEL",
        help="compare with the verdicts of another label; "
        "of the same one: one's own with the published ones",
    )
    score = command(
        "score",
        _score,
        "score interventions: a row per method of a notebook, beside its anchors; trains nothing",
    )
    score.add_argument(
        "notebook",
        nargs="?",
        metavar="NOTEBOOK",
        help="a section, or a notebook of yours with cells tagged `grid` (default: 11)",
    )
    _add_overrides(score)
    _add_json(score)
    reference = command(
        "reference", _reference, "print the reference: commands, fields of a run, public functions"
    )
    reference.add_argument(
        "--write", action="store_true", help="write it into docs/reference.md instead"
    )


def _add_label(added):
    added.add_argument(
        "--scale", default="laptop", metavar="LABEL", help="a scale, or the label of a protocol"
    )
    added.add_argument(
        "--published", action="store_true", help="the committed ones, also where there are own ones"
    )


def _add_json(added):
    added.add_argument("--json", action="store_true")


def _add_budget(command):
    """bench, tpu-check, costs: how fast, whether it fits, how much."""
    bench = command(
        "bench", _bench, "measure this machine: training beside the matmul peak, sweeps, the store"
    )
    bench.add_argument(
        "part",
        nargs="?",
        choices=("step", "profile", "lanes", "checkpoint", "sweep", "store"),
        help="a train step on one core (default on a CPU), where its time goes, runs at once as "
        "lanes (default on an accelerator), a checkpoint of them, a sweep with its compilation, "
        "the store",
    )
    _add_json(bench)
    bench.add_argument(
        "--seconds",
        type=float,
        default=12.0,
        help="step, profile, lanes, checkpoint: measured time per model",
    )
    bench.add_argument(
        "--counts", type=int, nargs="+", default=[100, 1000], help="store: numbers of stored runs"
    )
    _add_tpu_check(command)
    cost = command(
        "costs",
        _costs,
        "what each figure costs at a scale, from its FLOPs, and what its published runs took",
    )
    _add_scale(cost)
    _add_json(cost)
    cost.add_argument(
        "--table", action="store_true", help="write the tables of all scales into docs/scale.md"
    )


def _add_tpu_check(command):
    added = command(
        "tpu-check",
        _tpu_check,
        "compile the paper's train step for a TPU slice on this machine: does it fit?",
    )
    added.add_argument(
        "--size", default="4.8B", help="N of the paper's sizes: 2.4M, 9.4M, … 4.8B (default)"
    )
    added.add_argument(
        "--topology",
        default="v5e:4x4",
        help="a slice, as v5e:4x4 (default), v6e:2x4, v5p:2x2x1, v4:2x2x2",
    )
    added.add_argument("--batch", type=int, help="global batch (default: the paper's 256)")
    added.add_argument(
        "--accumulate",
        type=int,
        help="microbatches of a step (default: 1, the whole batch at once)",
    )
    added.add_argument(
        "--scan",
        action=argparse.BooleanOptionalAction,
        help="scan over layers, with rematerialization",
    )
    _add_json(added)
    added.add_argument(
        "--table",
        action="store_true",
        help="check what docs/tpu_check.csv lacks, write docs/scale.md",
    )


def _add_data(command):
    data = command("data", None, "prepare and list datasets")
    actions = data.add_subparsers(required=True, metavar="ACTION", parser_class=_Parser)
    prepare = actions.add_parser("prepare", help="tokenize and pack a source")
    prepare.set_defaults(call=_data_prepare)
    prepare.add_argument("source", help="synthetic, stdlib, text or c4")
    prepare.add_argument(
        "--path", nargs="+", help="files or globs (text); a folder or URL prefix of shards (c4)"
    )
    prepare.add_argument("--validation", nargs="+", help="files of held-out documents (text)")
    prepare.add_argument("--tokenizer", help="a SentencePiece model; else one is trained")
    prepare.add_argument(
        "--vocab-size", type=int, help="pieces of a trained vocabulary (default 1024)"
    )
    prepare.add_argument("--shards", type=int, help="use at most so many shards (c4)")
    prepare.add_argument(
        "--name",
        help="letters, digits, '.', '_' and '-' (default: the source); replaces its dataset",
    )
    listing = actions.add_parser("list", help="prepared datasets, with counts and fingerprints")
    listing.set_defaults(call=_data_list)


def _add_lab(command):
    lab = command(
        "lab", _lab, "start JupyterLab, where a double click on notebooks/*.py opens a notebook"
    )
    lab.add_argument(
        "arguments",
        nargs="*",
        metavar="ARGUMENT",
        help="of `jupyter lab`; options of its own stand behind --, as in `lab -- --no-browser`",
    )


def _add_convert(command):
    added = command(
        "convert",
        _convert,
        "hand runs to other tools: as csv, parquet, TensorBoard events, an offline W&B project, "
        "or the parameters of some as safetensors",
    )
    added.add_argument(
        "format", metavar="FORMAT", help="csv, parquet, tensorboard, wandb or safetensors"
    )
    _add_protocol(added)
    added.add_argument("--into", required=True, metavar="FOLDER", help="a new or empty folder")
    added.add_argument(
        "--runs",
        nargs="+",
        metavar="KEY",
        help="only these, by their keys in a figure's csv; safetensors needs it",
    )
    added.add_argument(
        "--curves",
        nargs="+",
        metavar="NAME",
        help="only curves whose names begin so, as loss or max_attention_logit/ (default: all)",
    )


# ------------------------------------------------------------------ what was typed


def _settings(options) -> dict:
    """--set, --seeds and --label as overrides: Python literals, or bare words as strings."""
    overrides = {}
    for item in options.settings:
        name, equals, text = item.partition("=")
        if not equals:
            refuse("set", item, "must be NAME=VALUE")
        overrides[name] = _literal(text)
    if options.seeds is not None:
        overrides["seeds"] = _seeds(options.seeds)
    if options.label is not None:
        overrides["label"] = options.label
    return overrides


def _literal(text: str):
    """`text` as a Python literal, else as it is."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):  # also: too deep
        return text


def _seeds(text: str) -> list[int]:
    """The seeds of `text`, single ones and ranges: "0,5-7" is [0, 5, 6, 7]."""
    parts = [re.fullmatch(r"([0-9]{1,10})(?:-([0-9]{1,10}))?", part) for part in text.split(",")]
    if not all(parts):
        refuse("seeds", text, "must be like 0,1,2 or 1000-1002")
    ranges = [range(int(part[1]), int(part[2] or part[1]) + 1) for part in parts]
    if not all(ranges) or sum(map(len, ranges)) > MOST_SEEDS:
        refuse("seeds", text, f"must be 1 to {MOST_SEEDS} seeds, ranges in growing order")
    return [seed for seeds in ranges for seed in seeds]


def _shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        refuse("shard", text, "must be i/n with 1 ≤ i ≤ n")
    return int(match[1]), int(match[2])


def _new_folder(field: str, text: str) -> str:
    """`text` as the name of a folder that is there or can be made. Raises UserError."""
    if not text or "\0" in text:
        refuse(field, text, "must be the name of a folder")
    path = pathlib.Path(text).resolve()
    try:
        nearest = next(parent for parent in (path, *path.parents) if parent.exists())
    except OSError as error:
        refuse(field, text, f"cannot be a folder ({error.strerror})")
    if not nearest.is_dir():
        refuse(field, text, f"cannot be a folder: {nearest} is a file")
    return str(path)


# ------------------------------------------------------------------ sections


@dataclasses.dataclass
class _Asked:
    """What plan, run and figures are asked for."""

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
        os.environ["PROXIES_STORE"] = _new_folder("store", options.store)
    shard, overrides = _shard(options.shard), _settings(options)
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
        now, later = notebooks.runs_of(path, parameters)
        runs += now
        held_out += later
        bisected.append(notebooks.grids_of(path, parameters).bisected)
    return _Asked(study, chosen, parameters, runs, held_out, bisected, shard)


def _choose_engine(options):
    """Kernels and workers inherit the choice by environment variables."""
    from proxies_lib.runs import engines

    if options.workers is not None:
        if options.workers < 1:
            refuse("workers", options.workers, "must be 1 or more")
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
    from proxies_lib.runs import datasets, engines

    asked = _gather(options)
    corpora = {(run.data, run.model.vocab_size) for run in asked.runs}
    for name, vocab_size in sorted(corpora):
        if name != "stdlib":  # which prepares itself
            datasets.open_dataset(name, vocab_size)
    _say_held_out(asked.held_out)
    plan = _locate(asked.runs, prepare=False, shard=asked.shard)
    print(plan.describe(engines.cores()))


def _locate(runs: list[Run], **options):
    """The plan of `runs`: what the store has and, with --continue, the committed table."""
    from proxies_lib.runs import sweep
    from proxies_lib.science import outputs

    return sweep.plan(runs, layer=outputs.continued(), exact=True, **options)


def _run(options):
    from proxies_lib.runs import engines, provenance, sweep
    from proxies_lib.science import outputs

    _join(options.distributed)
    asked = _gather(options)
    _say_held_out(asked.held_out)
    plan = _locate(asked.runs, shard=asked.shard)
    sharded = asked.shard[1] > 1
    if not sharded:
        outputs.claim(asked.study, provenance.commit())
    print(plan.describe(engines.cores()), flush=True)
    sweep.run(plan)
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
        _require_that_committed_code_trained(asked)
    _execute(asked)
    _export(asked)


def _require_that_committed_code_trained(asked: _Asked):
    """Of held-out runs those that are there already, as the others are still to be trained."""
    from proxies_lib.runs import provenance, tables
    from proxies_lib.science import outputs

    plan, trained = _trained(asked)
    table, _ = tables.table(trained, plan.folder, plan.layer, columns=())
    outputs.require_committed(provenance.commit(), table)


def _trained(asked: _Asked):
    """The plan of all runs that sections ask for, and those of them that are there."""
    plan = _locate(asked.runs + asked.held_out + _bisected(asked))
    return plan, [found for found in plan.found if found.layer]


def _bisected(asked: _Asked) -> list[Run]:
    """The runs that bisections of the notebooks have trained so far."""
    from proxies_lib.science import bisection, notebooks

    reading = dataclasses.replace(asked.study, train=False, publish=False)
    found = []
    for arms in filter(None, asked.bisected):
        with contextlib.redirect_stdout(io.StringIO()):  # the plan is printed already
            try:
                bisected = bisection.rounds(arms, reading, partial=True)
            except UserError:  # nothing is trained yet
                continue
        found += notebooks.all_runs(bisected.runs)
    return found


def _export(asked: _Asked):
    """Write the tables of a label: what its notebooks show, from now on without the store."""
    from proxies_lib.runs import tables
    from proxies_lib.science import outputs

    done = _locate(asked.runs + asked.held_out + _bisected(asked))
    table, curves = tables.table(list(done.found), done.folder, done.layer)
    tables.export(table, curves, outputs.target("papermill_runs", asked.study.label))


def _export_stored(options):
    """Write what is stored of a section, although some of it is still to be trained."""
    from proxies_lib.runs import provenance, tables
    from proxies_lib.science import outputs

    asked = _gather(options)
    plan, stored = _trained(asked)
    if not stored:
        raise UserError(f"store={plan.folder}: has none of these runs; train some first")
    table, curves = tables.table(stored, plan.folder, plan.layer)
    if options.publish:
        outputs.require_committed(provenance.commit(), table)
    outputs.claim(asked.study, provenance.commit())
    target = outputs.target("papermill_runs", asked.study.label)
    tables.export(table, curves, target)
    print(f"exported {len(stored)} of {len(plan.found)} runs to {target}")


def _join(distributed: str | None):
    """Start `jax.distributed`: every process then trains the same plan in step, over the devices
    of all."""
    if not distributed:
        return
    match = re.fullmatch(r"([^,]+:\d+),(\d+),(\d+)", distributed)
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
    asked.parameters["train"] = False
    outputs.claim(asked.study, provenance.commit())
    _execute(asked)


def _execute(asked: _Asked):
    from proxies_lib.science import notebooks, outputs

    for path in asked.notebooks:
        done = notebooks.execute(path, asked.parameters, asked.study.label)
        print(f"executed {done.parent.name}/{done.name}", flush=True)
    print(f"figures in {outputs.target('figures', asked.study.label)}")


# ------------------------------------------------------------------ results


def _merge(options):
    from proxies_lib.runs import store

    into = paths.folder("store") if options.store is None else _new_folder("store", options.store)
    store.merge(options.sources, into)


def _table(options):
    from proxies_lib.runs import tables
    from proxies_lib.science import outputs

    place = outputs.source("papermill_runs", options.scale, "runs.parquet", options.published)
    runs = place and tables.exported_runs(place)
    if runs is None:
        raise UserError(f"scale={options.scale!r}: no exported table yet; run its sections first")
    runs.to_csv(sys.stdout, index=False)


def _claims(options):
    from proxies_lib import pages
    from proxies_lib.science import columns, report

    if options.pages:
        if options.scale not in columns.SCALES:
            refuse("scale", options.scale, f"--pages writes {', '.join(columns.SCALES)}")
        return pages.write_scoreboard()
    rows = report.scoreboard(options.scale, options.published)
    if options.against:
        _print_comparison(rows, options)
    elif options.json:
        _print_json(rows)
    else:
        for row in report.short(rows).itertuples():
            print(
                f"Fig. {row.figure:4} {row.verdict:24} {row.effect:28} n={row.n}  {row.statement}"
            )


def _print_comparison(rows, options):
    from proxies_lib.science import claims, report

    # Against the own label: what one has trained oneself with what is published.
    published = options.against == options.scale
    both = report.against(rows, report.scoreboard(options.against, published=published))
    if options.json:
        return _print_json(both)
    for row in both[~both["same"]].itertuples():
        print(
            f"{row.claim:22} {row.effect:10.3g} {row.verdict:26} "
            f"{row.effect_other:10.3g} {row.verdict_other}"
        )
    held = both[both["verdict"] == claims.HOLDS]
    print(
        f"same verdict: {both['same'].sum()} of {len(both)}; "
        f"of those that hold: {held['same'].sum()} of {len(held)}"
    )


def _print_json(rows):
    print(json.dumps(json.loads(rows.to_json(orient="records")), indent=1, ensure_ascii=False))


def _score(options):
    """From stored and committed runs only; the plan and what it says go to stderr."""
    from proxies_lib.science import notebooks, score

    if options.store is not None:
        os.environ["PROXIES_STORE"] = _new_folder("store", options.store)
    overrides = _settings(options)
    study = protocol.study(options.scale, overrides)
    path = _notebook(options.notebook or "11", study)
    grids = notebooks.grids_of(path, notebooks.reading(options.scale) | {"overrides": overrides})
    arms = grids.bisected or grids.runs | grids.held_out
    with contextlib.redirect_stdout(sys.stderr):
        scores = score.scored(arms, study, bisect=bool(grids.bisected))
    if options.json:
        _print_json(scores)
    else:
        print(score.score_table(scores))


def _notebook(name: str, study: protocol.Study) -> pathlib.Path:
    """The notebook of a section, or at a path."""
    from proxies_lib.science import notebooks

    path = pathlib.Path(name)
    if path.suffix in (".py", ".ipynb", ".md"):
        if not path.is_file():
            refuse("notebook", name, "is no file")
        return path
    return notebooks.choose([name], study)[0]


def _reference(options):
    from proxies_lib import pages

    text = reference()
    if options.write:
        paths.write_atomically(paths.root() / pages.REFERENCE, text.encode())
    else:
        print(text, end="")


def reference() -> str:
    """The text of docs/reference.md."""
    from proxies_lib import pages

    _, commands = _parser_and_commands()
    return pages.reference({name: parser.description for name, parser in commands.items()})


# ------------------------------------------------------------------ budget


def _bench(options):
    from proxies_lib.budget import bench

    bench.main(options.part, options.seconds, options.counts, options.json)


def _tpu_check(options):
    from proxies_lib import pages
    from proxies_lib.budget import tpu

    if options.table:
        tpu.measure()
        return pages.write_between_markers(tpu.PAGE, tpu.slices_table(), "slices")
    given = {"accumulate": options.accumulate, "scan": options.scan}
    changes = {name: value for name, value in given.items() if value is not None}
    row = tpu.check(options.size, options.topology, options.batch, **changes)
    print(json.dumps(row, indent=1) if options.json else tpu.describe(row))


def _costs(options):
    from proxies_lib import pages
    from proxies_lib.budget import costs, tpu

    if options.table:
        for scale in protocol.scales():
            pages.write_between_markers(tpu.PAGE, costs.costs_table(scale), f"costs {scale}")
        pages.write_between_markers(tpu.PAGE, costs.sizes_table("paper"), "sizes paper")
        pages.write_between_markers(tpu.PAGE, costs.measured_table(), "costs measured")
    elif options.json:
        print(costs.costs(options.scale).to_json(orient="records", indent=1))
    else:
        print(costs.costs_table(options.scale))
        if costs.measured_seconds(options.scale):
            print(f"\n{costs.measured_table((options.scale,))}")


# ------------------------------------------------------------------ data


def _data_prepare(options):
    from proxies_lib.runs import datasets

    names = ("source", "name", "path", "validation", "tokenizer", "vocab_size", "shards")
    datasets.prepare(**{name: getattr(options, name) for name in names})


def _data_list(options):
    from proxies_lib.runs import datasets

    for line in datasets.describe_all():
        print(line)


# ------------------------------------------------------------------ other tools


def _convert(options):
    """Of stored and committed runs; only the parameters of some are made, by training them."""
    from proxies_lib.science import convert, notebooks

    if options.format not in convert.FORMATS:
        refuse("format", options.format, f"must be one of {', '.join(convert.FORMATS)}")
    if options.store is not None:
        os.environ["PROXIES_STORE"] = _new_folder("store", options.store)
    into, overrides = _new_folder("into", options.into), _settings(options)
    study = protocol.study(options.scale, overrides)
    chosen = convert.wanted(notebooks.choose(options.sections, study), study, overrides)
    convert.convert(options.format, chosen, into, options.runs, options.curves)


# ------------------------------------------------------------------ JupyterLab


def _lab(options):
    from proxies_lib.science import lab

    lab.start(options.arguments)


if __name__ == "__main__":
    sys.exit(main())
