"""The command `proxies`: plan and run sections, read tables, claims and figures, prepare data, measure speed."""

import argparse
import ast
import json
import os
import re
import sys

from proxies_lib import config
from proxies_lib.config import UserError, refuse


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0; 2 for bad input, with one line on stderr; 130 when interrupted, 143 by SIGTERM with a checkpoint."""
    options = _parser().parse_args(arguments)
    try:
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


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"proxies: {message}; see {self.prog} --help\n")


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
        ("figures", _figures, "execute the notebooks on stored or committed runs only: redraw, train nothing"),
    ):
        sub = command(name, call, text)
        sub.add_argument("sections", nargs="*", metavar="SECTION", help="01, 02, …; all without one")
        sub.add_argument("--scale", default="laptop", help="smoke, laptop (default), gpu or paper")
        sub.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="settings",
                         help="override sizes, lrs, seeds or a field of the run; outputs go to <scale>-custom")  # fmt: skip
        sub.add_argument("--seeds", help="as 0,1,2 or 1000-1002: short for --set seeds=[…]")
        sub.add_argument("--store", help="folder of the run store")
        sub.add_argument("--workers", type=int, help="training processes (default: one per core)")
        sub.add_argument("--engine", choices=("auto", "processes", "lanes", "ray"),
                         help="a process per core, vmapped lanes, a Ray cluster (docs/machines.md); auto: by the device")  # fmt: skip
        sub.add_argument("--distributed", nargs="?", const="auto", metavar="HOST:PORT,n,i",
                         help="train in step with other processes; on pods and under Slurm they find each other")  # fmt: skip
        sub.add_argument("--shard", default="1/1", metavar="i/n", help="only train part i of n (1 ≤ i ≤ n)")

    sub = command("merge", _merge, "bring runs of other stores into one, and pack it into files below 16 MiB")
    sub.add_argument("sources", nargs="*", metavar="SOURCE", help="a store or a pack; none: only pack the store")
    sub.add_argument("--store", help="folder of the run store that receives them")

    sub = command("table", _table, "print the exported runs of a scale as csv")
    sub.add_argument("--scale", default="laptop")
    sub = command("claims", _claims, "print the scored claims of a scale")
    sub.add_argument("--scale", default="laptop")
    sub.add_argument("--json", action="store_true")
    sub.add_argument("--readme", action="store_true", help="write the scoreboard between README's markers")
    sub.add_argument("--against", metavar="LABEL", help="compare with the verdicts of another scale or protocol")
    sub = command("bench", _bench, "measure this machine: training beside the matmul peak, sweeps, the store")
    sub.add_argument(
        "part", nargs="?", choices=("step", "profile", "lanes", "checkpoint", "sweep", "store"),
        help="a train step on one core (default on a CPU), where its time goes, runs at once as lanes (default on an "
        "accelerator), a checkpoint of them, a sweep with its compilation, the store",
    )  # fmt: skip
    sub.add_argument("--json", action="store_true")
    sub.add_argument("--seconds", type=float, default=12.0, help="step, profile, lanes, checkpoint: measured time per model")
    sub.add_argument("--counts", type=int, nargs="+", default=[100, 1000], help="store: numbers of stored runs")

    sub = command(
        "tpu-check", _tpu_check, "compile the paper's train step for a TPU slice on this machine: does it fit?"
    )
    sub.add_argument("--size", default="4.8B", help="N of the paper's sizes: 2.4M, 9.4M, … 4.8B (default)")
    sub.add_argument(
        "--topology", default="v5e:4x4", help="a slice, as v5e:4x4 (default), v6e:2x4, v5p:2x2x1, v4:2x2x2"
    )
    sub.add_argument("--batch", type=int, help="global batch (default: the paper's 256)")
    sub.add_argument("--accumulate", type=int, help="microbatches of a step (default: 1, the whole batch at once)")
    sub.add_argument("--scan", action=argparse.BooleanOptionalAction, help="scan over layers, with rematerialization")
    sub.add_argument("--json", action="store_true")
    sub.add_argument("--table", action="store_true", help="check what docs/tpu_check.csv lacks, write docs/scale.md")
    sub = command("costs", _costs, "what each figure costs at a scale, from its FLOPs")
    sub.add_argument("--scale", default="laptop", help="smoke, laptop (default), gpu or paper")
    sub.add_argument("--json", action="store_true")
    sub.add_argument("--table", action="store_true", help="write the tables of all scales into docs/scale.md")

    data = command("data", None, "prepare and list datasets").add_subparsers(
        required=True, metavar="ACTION", parser_class=_Parser
    )
    sub = data.add_parser("prepare", help="tokenize and pack a source")
    sub.set_defaults(call=_data_prepare)
    sub.add_argument("source", help="synthetic, stdlib, text or c4")
    sub.add_argument("--path", nargs="+", help="files or globs (text); a folder or URL prefix of shards (c4)")
    sub.add_argument("--validation", nargs="+", help="files of held-out documents (text)")
    sub.add_argument("--tokenizer", help="a SentencePiece model; else one is trained")
    sub.add_argument("--vocab-size", type=int, default=1024, help="pieces of a trained vocabulary (default 1024)")
    sub.add_argument("--shards", type=int, help="use at most so many shards (c4)")
    sub.add_argument("--name", help="name of the dataset (default: the source)")
    sub = data.add_parser("list", help="prepared datasets, with counts and fingerprints")
    sub.set_defaults(call=_data_list)
    return parser


def _settings(options) -> dict:
    """--set and --seeds as overrides: Python literals, or bare words as strings."""
    overrides = {}
    for item in options.settings:
        name, equals, text = item.partition("=")
        if not equals:
            refuse("set", item, "must be NAME=VALUE")
        try:
            overrides[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            overrides[name] = text
    if options.seeds:
        parts = [re.fullmatch(r"(\d+)(?:-(\d+))?", part) for part in options.seeds.split(",")]
        if not all(parts):
            refuse("seeds", options.seeds, "must be like 0,1,2 or 1000-1002")
        overrides["seeds"] = [s for m in parts for s in range(int(m[1]), int(m[2] or m[1]) + 1)]
    return overrides


def _shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        refuse("shard", text, "must be i/n with 1 ≤ i ≤ n")
    return int(match[1]), int(match[2])


def _gather(options):
    """Study, notebooks, every run they ask for now and after their predictions; checked before anything is written."""
    from proxies_lib import notebooks, sweep

    if options.workers is not None:
        if options.workers < 1:
            refuse("workers", options.workers, "must be 1 or more")
        os.environ["PROXIES_WORKERS"] = str(options.workers)
    if options.engine:
        os.environ["PROXIES_ENGINE"] = options.engine
    sweep.chosen_engine()
    if options.store:
        os.environ["PROXIES_STORE"] = options.store
    shard, overrides = _shard(options.shard), _settings(options)
    study = config.study(options.scale, overrides, train=True)
    chosen = notebooks.choose(options.sections)
    parameters = {"scale": options.scale, "train": True, "publish": True, "overrides": overrides}
    asked = [notebooks.runs_of(path, parameters) for path in chosen]
    runs, held_out = ([run for each in which for run in each] for which in zip(*asked, strict=True))
    return study, chosen, parameters, runs, held_out, shard


def _plan(options):
    from proxies_lib import sweep

    *_, runs, held_out, shard = _gather(options)
    _say_held_out(held_out)
    print(sweep.plan(runs, prepare=False, shard=shard).describe(sweep.cores()))


def _run(options):
    from proxies_lib import notebooks, store, sweep

    _join(options.distributed)
    study, chosen, parameters, runs, held_out, shard = _gather(options)
    _say_held_out(held_out)
    plan = sweep.plan(runs, shard=shard)
    print(plan.describe(sweep.cores()), flush=True)
    sweep.run(plan)
    if shard[1] > 1:
        print(f"shard {options.shard} is trained; run without --shard once every shard's store is in one place")
        return
    if options.distributed:
        print("trained by all processes together, stored by the first; run there without --distributed to go on")
        return
    _execute(notebooks, chosen, parameters, study.label)
    done = sweep.plan(runs + held_out)
    store.export(*store.table(list(done.found), done.folder), config.folder("papermill_runs") / study.label)


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
        refuse("distributed", distributed, f"the processes do not find each other ({str(error).splitlines()[0]})")
    os.environ |= {"PROXIES_DISTRIBUTED": "1", "PROXIES_ENGINE": "lanes"}


def _say_held_out(runs):
    if runs:
        print(f"held out: {len(set(runs))} further runs, which a notebook trains after it has written its prediction")


def _figures(options):
    from proxies_lib import notebooks

    study, chosen, parameters, *_ = _gather(options)
    _execute(notebooks, chosen, parameters | {"train": False}, study.label)


def _execute(notebooks, chosen, parameters, label):
    for path in chosen:
        done = notebooks.execute(path, parameters, label)
        print(f"executed {done.parent.name}/{done.name}", flush=True)
    print(f"figures in {config.folder('figures') / label}")


def _merge(options):
    from proxies_lib import store

    store.merge(options.sources, options.store or config.folder("store"))


def _table(options):
    from proxies_lib import store

    found = store.exported(config.folder("papermill_runs") / options.scale)
    if found is None:
        raise UserError(f"scale={options.scale!r}: no exported table yet; run its sections first")
    found[0].to_csv(sys.stdout, index=False)


def _claims(options):
    from proxies_lib import claims

    rows = claims.scoreboard(options.scale)
    if options.readme:
        text = f"{claims.tally(rows)}\n\n{claims.markdown(rows, options.scale)}"
        _write_between_markers(config.root() / "README.md", text)
    elif options.against:
        both = claims.against(rows, claims.scoreboard(options.against))
        for row in both[~both["same"]].itertuples():
            print(f"{row.claim:22} {row.effect:10.3g} {row.verdict:26} {row.effect_other:10.3g} {row.verdict_other}")
        held = both[both["verdict"] == claims.HOLDS]
        print(
            f"same verdict: {both['same'].sum()} of {len(both)}; of those that hold: {held['same'].sum()} of {len(held)}"
        )
    elif options.json:
        print(json.dumps(json.loads(rows.to_json(orient="records")), indent=1, ensure_ascii=False))
    else:
        for row in claims.short(rows).itertuples():
            print(f"Fig. {row.figure:4} {row.verdict:24} {row.effect:28} n={row.n}  {row.statement}")


def _write_between_markers(path, text: str, name: str = "scoreboard"):
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    old = path.read_text("utf-8")
    if begin not in old or end not in old:
        raise UserError(f"{path.name}: has no {begin} … {end} markers")
    head, rest = old.split(begin, 1)
    path.write_text(f"{head}{begin}\n\n{text}\n\n{end}{rest.split(end, 1)[1]}", "utf-8")


def _bench(options):
    from proxies_lib import bench

    bench.main(options.part, options.seconds, options.counts, options.json)


def _tpu_check(options):
    from proxies_lib import tpu

    if options.table:
        tpu.measure()
        return _write_between_markers(config.root() / tpu.PAGE, tpu.slices_table(), "slices")
    changes = {name: getattr(options, name) for name in ("accumulate", "scan") if getattr(options, name) is not None}
    row = tpu.check(options.size, options.topology, options.batch, **changes)
    print(json.dumps(row, indent=1) if options.json else tpu.describe(row))


def _costs(options):
    from proxies_lib import tpu

    if options.table:
        for scale in config.scales():
            _write_between_markers(config.root() / tpu.PAGE, tpu.costs_table(scale), f"costs {scale}")
        return _write_between_markers(config.root() / tpu.PAGE, tpu.sizes_table("paper"), "sizes paper")
    print(
        tpu.costs(options.scale).to_json(orient="records", indent=1) if options.json else tpu.costs_table(options.scale)
    )


def _data_prepare(options):
    from proxies_lib import data

    names = ("source", "name", "path", "validation", "tokenizer", "vocab_size", "shards")
    data.prepare(**{name: getattr(options, name) for name in names})


def _data_list(options):
    for path in sorted((config.folder("cache") / "data").glob("*/manifest.json")):
        m = json.loads(path.read_text())
        print(f"{path.parent.name}: {m['source']}, vocabulary {m['vocab_size']}, {m['train']['tokens']:,} + "
              f"{m['validation']['tokens']:,} tokens, fingerprint {m['fingerprint']}")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
