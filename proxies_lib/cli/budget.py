"""bench, tpu-check, costs: how fast, whether it fits, how much."""

import argparse
import json
import math

from proxies_lib.cli.options import add_json, add_scale, refuse_beside
from proxies_lib.config import refuse
from proxies_lib.science import protocol


def add(command):
    """bench, tpu-check, costs: how fast, whether it fits, how much."""
    bench = command(
        "bench",
        _bench,
        "measure this machine: training beside the matmul peak, sweeps, the store",
        """
        bench
        bench store --counts 100 1000 --json
        """,
    )
    bench.add_argument(
        "part",
        nargs="?",
        choices=("step", "profile", "lanes", "checkpoint", "sweep", "store"),
        help="a train step on one core (default on a CPU), where its time goes, runs at once as "
        "lanes (default on an accelerator), a checkpoint of them, a sweep with its compilation, "
        "the store",
    )
    add_json(bench)
    bench.add_argument(
        "--seconds",
        type=float,
        help="step, profile, lanes, checkpoint: measured time per model (default: 12)",
    )
    bench.add_argument(
        "--counts", type=int, nargs="+", help="store: numbers of stored runs (default: 100 1000)"
    )
    _add_tpu_check(command)
    cost = command(
        "costs",
        _costs,
        "what each figure costs at a scale, from its FLOPs, and what its published runs took",
        "costs --scale gpu",
    )
    add_scale(cost)
    add_json(cost)
    cost.add_argument(
        "--table", action="store_true", help="write the tables of all scales into docs/scale.md"
    )


def _add_tpu_check(command):
    added = command(
        "tpu-check",
        _tpu_check,
        "compile the paper's train step for a TPU slice on this machine: does it fit?",
        "tpu-check --size 1.2B --topology v5e:2x4 --scan",
    )
    added.add_argument("--size", help="N of the paper's sizes: 2.4M, 9.4M, … 4.8B (default)")
    added.add_argument(
        "--topology",
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
    add_json(added)
    added.add_argument(
        "--table",
        action="store_true",
        help="check what docs/tpu_check.csv lacks, write docs/scale.md",
    )


def _bench(options):
    from proxies_lib.budget import bench

    _refuse_for_other_parts(options)
    seconds = 12.0 if options.seconds is None else options.seconds
    bench.main(options.part, seconds, options.counts or [100, 1000], options.json)


def _refuse_for_other_parts(options):
    """Options that the part would not read. Without a part it is `step` or `lanes`."""
    if options.counts is not None and options.part != "store":
        refuse("counts", options.counts, "is an option of `proxies bench store`")
    if options.seconds is not None and options.part in ("sweep", "store"):
        refuse("seconds", options.seconds, f"`proxies bench {options.part}` takes its own time")
    if options.seconds is not None and not 0 <= options.seconds < math.inf:
        refuse("seconds", options.seconds, "must be 0 or more, and finite")
    if options.counts is not None and min(options.counts) < 1:
        refuse("counts", options.counts, "must be 1 or more each")


def _tpu_check(options):
    from proxies_lib import pages
    from proxies_lib.budget import tpu

    given = {"accumulate": options.accumulate, "scan": options.scan}
    if options.table:
        place = {"size": options.size, "topology": options.topology, "batch": options.batch}
        refuse_beside("table", **place, **given, json=options.json)
        tpu.measure()
        return pages.write_between_markers(tpu.PAGE, tpu.slices_table(), "slices")
    changes = {name: value for name, value in given.items() if value is not None}
    size, topology = options.size or "4.8B", options.topology or "v5e:4x4"
    row = tpu.check(size, topology, options.batch, **changes)
    print(json.dumps(row, indent=1) if options.json else tpu.describe(row))


def _costs(options):
    from proxies_lib import pages
    from proxies_lib.budget import costs, tpu

    if options.table:
        other = options.scale if options.scale != "laptop" else None
        refuse_beside("table", json=options.json, scale=other)
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
