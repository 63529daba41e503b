"""The command `proxies`: plan and run sections, read tables, claims and figures, prepare data, measure speed."""

import argparse
import ast
import io
import json
import os
import pathlib
import re
import sys

from proxies_lib import config, paths
from proxies_lib.budget import costs
from proxies_lib.config import UserError, refuse
from proxies_lib.runs import datasets, engines, provenance, tables
from proxies_lib.science import protocol, report

MOST_SEEDS = 10_000  # of one command


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0; 2 for bad input and 1 for a disk's refusal, with one line on stderr; 130 when interrupted, 143 by
    SIGTERM with a checkpoint."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(
            stream, io.TextIOWrapper
        ):  # a terminal that cannot show a character shows its number
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
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except OSError as error:
        where = error.filename2 or error.filename
        at = f"{config.shown(where)}: " if where else ""
        print(f"proxies: {at}{config.shown(error.strerror or error)}", file=sys.stderr)
        return 1


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"proxies: {_one_line(message)}; see {self.prog} --help\n")


def _one_line(message: str) -> str:
    """What argparse says, without the line breaks and endless values of what it was given."""
    words = "".join(c if c.isprintable() else " " for c in message)
    return words if len(words) <= 400 else f"{words[:399]}…"


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="proxies", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)

    def command(name, call, text):
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(call=call)
        return sub

    for name, call, text in (
        ("plan", _plan, "print what sections would train, and why, without training"),
        ("run", _run, "train what is missing, then execute the notebooks"),
        (
            "figures",
            _figures,
            "execute the notebooks on stored or committed runs only: redraw, train nothing",
        ),
    ):
        sub = command(name, call, text)
        sub.add_argument(
            "sections", nargs="*", metavar="SECTION", help="01, 02, …; all without one"
        )
        sub.add_argument("--scale", default="laptop", help="smoke, laptop (default), gpu or paper")
        sub.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="NAME=VALUE",
            dest="settings",
            help="override sizes, lrs, seeds or a field of the run; outputs go to a label of its own",
        )
        sub.add_argument("--seeds", help="as 0,1,2 or 1000-1002: short for --set seeds=[…]")
        sub.add_argument("--label", metavar="NAME", help="outputs go to <scale>-NAME")
        sub.add_argument("--store", help="folder of the run store")
        if name != "plan":
            sub.add_argument(
                "--publish",
                action="store_true",
                help="write the committed outputs, not the local ones; the code must be committed",
            )
        if name == "figures":
            continue
        sub.add_argument("--workers", type=int, help="training processes (default: one per core)")
        sub.add_argument(
            "--engine",
            choices=("auto", "processes", "lanes", "ray"),
            help="a process per core, vmapped lanes, a Ray cluster (docs/machines.md); auto: by the device",
        )
        if name == "plan":
            sub.add_argument(
                "--shard", default="1/1", metavar="i/n", help="only part i of n (1 ≤ i ≤ n)"
            )
            continue
        sub.add_argument(
            "--distributed",
            nargs="?",
            const="auto",
            metavar="HOST:PORT,n,i",
            help="train in step with other processes; on pods and under Slurm they find each other",
        )
        sub.add_argument(
            "--shard", default="1/1", metavar="i/n", help="only train part i of n (1 ≤ i ≤ n)"
        )

    sub = command(
        "merge", _merge, "bring runs of other stores into one, and pack it into files below 16 MiB"
    )
    sub.add_argument(
        "sources", nargs="*", metavar="SOURCE", help="a store or a pack; none: only pack the store"
    )
    sub.add_argument("--store", help="folder of the run store that receives them")

    sub = command("table", _table, "print the exported runs of a scale as csv")
    _add_label(sub)
    sub = command("claims", _claims, "print the scored claims of a scale")
    _add_label(sub)
    sub.add_argument("--json", action="store_true")
    kind = sub.add_mutually_exclusive_group()
    kind.add_argument(
        "--readme", action="store_true", help="write the published ones between README's markers"
    )
    kind.add_argument(
        "--against",
        metavar="LABEL",
        help="compare with the verdicts of another label; of the same one: one's own with the published ones",
    )
    sub = command(
        "bench", _bench, "measure this machine: training beside the matmul peak, sweeps, the store"
    )
    sub.add_argument(
        "part",
        nargs="?",
        choices=("step", "profile", "lanes", "checkpoint", "sweep", "store"),
        help="a train step on one core (default on a CPU), where its time goes, runs at once as lanes (default on an "
        "accelerator), a checkpoint of them, a sweep with its compilation, the store",
    )
    sub.add_argument("--json", action="store_true")
    sub.add_argument(
        "--seconds",
        type=float,
        default=12.0,
        help="step, profile, lanes, checkpoint: measured time per model",
    )
    sub.add_argument(
        "--counts", type=int, nargs="+", default=[100, 1000], help="store: numbers of stored runs"
    )

    sub = command(
        "tpu-check",
        _tpu_check,
        "compile the paper's train step for a TPU slice on this machine: does it fit?",
    )
    sub.add_argument(
        "--size", default="4.8B", help="N of the paper's sizes: 2.4M, 9.4M, … 4.8B (default)"
    )
    sub.add_argument(
        "--topology",
        default="v5e:4x4",
        help="a slice, as v5e:4x4 (default), v6e:2x4, v5p:2x2x1, v4:2x2x2",
    )
    sub.add_argument("--batch", type=int, help="global batch (default: the paper's 256)")
    sub.add_argument(
        "--accumulate",
        type=int,
        help="microbatches of a step (default: 1, the whole batch at once)",
    )
    sub.add_argument(
        "--scan",
        action=argparse.BooleanOptionalAction,
        help="scan over layers, with rematerialization",
    )
    sub.add_argument("--json", action="store_true")
    sub.add_argument(
        "--table",
        action="store_true",
        help="check what docs/tpu_check.csv lacks, write docs/scale.md",
    )
    sub = command("costs", _costs, "what each figure costs at a scale, from its FLOPs")
    sub.add_argument("--scale", default="laptop", help="smoke, laptop (default), gpu or paper")
    sub.add_argument("--json", action="store_true")
    sub.add_argument(
        "--table", action="store_true", help="write the tables of all scales into docs/scale.md"
    )

    data = command("data", None, "prepare and list datasets").add_subparsers(
        required=True, metavar="ACTION", parser_class=_Parser
    )
    sub = data.add_parser("prepare", help="tokenize and pack a source")
    sub.set_defaults(call=_data_prepare)
    sub.add_argument("source", help="synthetic, stdlib, text or c4")
    sub.add_argument(
        "--path", nargs="+", help="files or globs (text); a folder or URL prefix of shards (c4)"
    )
    sub.add_argument("--validation", nargs="+", help="files of held-out documents (text)")
    sub.add_argument("--tokenizer", help="a SentencePiece model; else one is trained")
    sub.add_argument("--vocab-size", type=int, help="pieces of a trained vocabulary (default 1024)")
    sub.add_argument("--shards", type=int, help="use at most so many shards (c4)")
    sub.add_argument(
        "--name",
        help="letters, digits, '.', '_' and '-' (default: the source); replaces its dataset",
    )
    sub = data.add_parser("list", help="prepared datasets, with counts and fingerprints")
    sub.set_defaults(call=_data_list)
    return parser


def _add_label(sub):
    sub.add_argument(
        "--scale", default="laptop", metavar="LABEL", help="a scale, or the label of a protocol"
    )
    sub.add_argument(
        "--published", action="store_true", help="the committed ones, also where there are own ones"
    )


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
    except (
        ValueError,
        SyntaxError,
        MemoryError,
        RecursionError,
    ):  # the last two: nested too deeply
        return text


def _seeds(text: str) -> list[int]:
    """The seeds of `text`, single ones and ranges: "0,5-7" is [0, 5, 6, 7]."""
    parts = [re.fullmatch(r"([0-9]{1,10})(?:-([0-9]{1,10}))?", part) for part in text.split(",")]
    if not all(parts):
        refuse("seeds", text, "must be like 0,1,2 or 1000-1002")
    ranges = [range(int(m[1]), int(m[2] or m[1]) + 1) for m in parts]
    if not all(ranges) or sum(map(len, ranges)) > MOST_SEEDS:
        refuse("seeds", text, f"must be 1 to {MOST_SEEDS} seeds, ranges in growing order")
    return [seed for each in ranges for seed in each]


def _shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        refuse("shard", text, "must be i/n with 1 ≤ i ≤ n")
    return int(match[1]), int(match[2])


def _gather(options):
    """Study, notebooks, every run they ask for now and after their predictions; checked before anything is written."""
    from proxies_lib.science import notebooks, outputs

    _say_which_project()
    if getattr(options, "workers", None) is not None:
        if options.workers < 1:
            refuse("workers", options.workers, "must be 1 or more")
        os.environ["PROXIES_WORKERS"] = str(options.workers)
    if getattr(options, "engine", None):
        os.environ["PROXIES_ENGINE"] = options.engine
    engines.chosen_engine()
    if options.store is not None:
        os.environ["PROXIES_STORE"] = _new_folder("store", options.store)
    shard, overrides = _shard(getattr(options, "shard", "1/1")), _settings(options)
    study = protocol.study(options.scale, overrides, train=True)
    chosen = notebooks.choose(options.sections)
    if getattr(options, "publish", False):
        outputs.require_committed(provenance.commit())
        os.environ[outputs.PUBLISH] = "1"
    parameters = {"scale": options.scale, "train": True, "publish": True, "overrides": overrides}
    asked = [notebooks.runs_of(path, parameters) for path in chosen]
    runs, held_out = ([run for each in which for run in each] for which in zip(*asked, strict=True))
    return study, chosen, parameters, runs, held_out, shard


def _say_which_project():
    """Notebooks are programs: say whose are executed, where one stands in another project folder."""
    here = paths.project_here()
    if here is not None and here.resolve() != paths.root().resolve():
        print(
            f"proxies: uses the project folder {paths.root()}, which is installed, not {here}",
            file=sys.stderr,
        )


def _new_folder(field: str, text: str) -> str:
    """`text` as the name of a folder that is there or can be made. Raises UserError."""
    if not text or "\0" in text:
        refuse(field, text, "must be the name of a folder")
    path = pathlib.Path(text).resolve()
    try:
        above = next(p for p in (path, *path.parents) if p.exists())
    except OSError as error:
        refuse(field, text, f"cannot be a folder ({error.strerror})")
    if not above.is_dir():
        refuse(field, text, f"cannot be a folder: {above} is a file")
    return str(path)


def _plan(options):
    from proxies_lib.runs import sweep

    *_, runs, held_out, shard = _gather(options)
    for name, vocab_size in sorted({(run.data, run.model.vocab_size) for run in runs}):
        if name != "stdlib":  # which prepares itself
            datasets.open_dataset(name, vocab_size)
    _say_held_out(held_out)
    print(sweep.plan(runs, prepare=False, shard=shard).describe(engines.cores()))


def _run(options):
    from proxies_lib.runs import sweep
    from proxies_lib.science import notebooks, outputs

    _join(options.distributed)
    study, chosen, parameters, runs, held_out, shard = _gather(options)
    _say_held_out(held_out)
    plan = sweep.plan(runs, shard=shard)
    if shard[1] == 1:
        outputs.claim(study, provenance.commit())
    print(plan.describe(engines.cores()), flush=True)
    sweep.run(plan)
    if shard[1] > 1:
        print(
            f"shard {options.shard} is trained; run without --shard once every shard's store is in one place"
        )
        return
    if options.distributed:
        print(
            "trained by all processes together, stored by the first; run there without --distributed to go on"
        )
        return
    if options.publish:
        trained = sweep.plan(runs)
        outputs.require_committed(
            provenance.commit(), tables.table(list(trained.found), trained.folder, columns=())[0]
        )
    _execute(notebooks, chosen, parameters, study.label)
    done = sweep.plan(runs + held_out)
    table, curves = tables.table(list(done.found), done.folder)
    tables.export(table, curves, outputs.target("papermill_runs", study.label))


def _join(distributed: str | None):
    """Start `jax.distributed`: every process then trains the same plan in step, over the devices of all."""
    if not distributed:
        return
    match = re.fullmatch(r"([^,]+:\d+),(\d+),(\d+)", distributed)
    if distributed != "auto" and not (match and int(match[3]) < int(match[2])):
        refuse("distributed", distributed, "must be HOST:PORT,n,i with 0 ≤ i < n, or nothing")
    import jax

    try:
        jax.distributed.initialize(*((match[1], int(match[2]), int(match[3])) if match else ()))
    except (RuntimeError, ValueError) as error:
        refuse(
            "distributed",
            distributed,
            f"the processes do not find each other ({str(error).splitlines()[0]})",
        )
    os.environ |= {"PROXIES_DISTRIBUTED": "1", "PROXIES_ENGINE": "lanes"}


def _say_held_out(runs):
    if runs:
        print(
            f"held out: {len(set(runs))} further runs, which a notebook trains after it has written its prediction"
        )


def _figures(options):
    from proxies_lib.science import notebooks, outputs

    study, chosen, parameters, *_ = _gather(options)
    outputs.claim(study, provenance.commit())
    _execute(notebooks, chosen, parameters | {"train": False}, study.label)


def _execute(notebooks, chosen, parameters, label):
    from proxies_lib.science import outputs

    for path in chosen:
        done = notebooks.execute(path, parameters, label)
        print(f"executed {done.parent.name}/{done.name}", flush=True)
    print(f"figures in {outputs.target('figures', label)}")


def _merge(options):
    from proxies_lib.runs import store

    into = paths.folder("store") if options.store is None else _new_folder("store", options.store)
    store.merge(options.sources, into)


def _table(options):
    from proxies_lib.science import outputs

    place = outputs.source("papermill_runs", options.scale, "runs.parquet", options.published)
    runs = place and tables.exported_runs(place)
    if runs is None:
        raise UserError(f"scale={options.scale!r}: no exported table yet; run its sections first")
    runs.to_csv(sys.stdout, index=False)


def _claims(options):
    from proxies_lib.science import claims, outputs

    rows = report.scoreboard(options.scale, options.published or options.readme)
    if options.readme:
        with paths.environment(outputs.PUBLISH, "1"):
            text = f"{report.tally(rows)}\n\n{report.verdict_table(rows, options.scale)}"
        _write_between_markers(paths.root() / "README.md", text)
    elif options.against:
        itself = options.against == options.scale
        both = report.against(rows, report.scoreboard(options.against, published=itself))
        if options.json:
            return _print_json(both)
        for row in both[~both["same"]].itertuples():
            print(
                f"{row.claim:22} {row.effect:10.3g} {row.verdict:26} {row.effect_other:10.3g} {row.verdict_other}"
            )
        held = both[both["verdict"] == claims.HOLDS]
        print(
            f"same verdict: {both['same'].sum()} of {len(both)}; of those that hold: {held['same'].sum()} of {len(held)}"
        )
    elif options.json:
        _print_json(rows)
    else:
        for row in report.short(rows).itertuples():
            print(
                f"Fig. {row.figure:4} {row.verdict:24} {row.effect:28} n={row.n}  {row.statement}"
            )


def _print_json(rows):
    print(json.dumps(json.loads(rows.to_json(orient="records")), indent=1, ensure_ascii=False))


def _write_between_markers(path, text: str, name: str = "scoreboard"):
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"

    old = path.read_text("utf-8")
    if begin not in old or end not in old:
        raise UserError(f"{path.name}: has no {begin} … {end} markers")
    head, rest = old.split(begin, 1)
    new = f"{head}{begin}\n\n{text}\n\n{end}{rest.split(end, 1)[1]}"
    paths.write_atomically(path, new.encode())


def _bench(options):
    from proxies_lib.budget import bench

    bench.main(options.part, options.seconds, options.counts, options.json)


def _tpu_check(options):
    from proxies_lib.budget import tpu

    if options.table:
        tpu.measure()
        return _write_between_markers(paths.root() / tpu.PAGE, tpu.slices_table(), "slices")
    changes = {
        name: getattr(options, name)
        for name in ("accumulate", "scan")
        if getattr(options, name) is not None
    }
    row = tpu.check(options.size, options.topology, options.batch, **changes)
    print(json.dumps(row, indent=1) if options.json else tpu.describe(row))


def _costs(options):
    from proxies_lib.budget import tpu

    if options.table:
        for scale in protocol.scales():
            _write_between_markers(
                paths.root() / tpu.PAGE, costs.costs_table(scale), f"costs {scale}"
            )
        return _write_between_markers(
            paths.root() / tpu.PAGE, costs.sizes_table("paper"), "sizes paper"
        )
    print(
        costs.costs(options.scale).to_json(orient="records", indent=1)
        if options.json
        else costs.costs_table(options.scale)
    )


def _data_prepare(options):

    names = ("source", "name", "path", "validation", "tokenizer", "vocab_size", "shards")
    datasets.prepare(**{name: getattr(options, name) for name in names})


def _data_list(options):

    for line in datasets.describe_all():
        print(line)


if __name__ == "__main__":
    sys.exit(main())
