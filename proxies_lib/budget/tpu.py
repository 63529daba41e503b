"""Scale on paper: the real train step compiled for TPU slices on a CPU, and what every figure costs.

A TPU compiler comes with libtpu (the optional extra `tpu-check`; large, not open source), and compiles for slices that
are not here. It is never imported by this process: `check` starts one with the environment that it needs. What fits is
the compiler's word; times are FLOPs over a stated utilization, never measured here.
"""

import dataclasses
import importlib.util
import json
import math
import os
import re
import resource
import subprocess
import sys
import time

import pandas as pd

from proxies_lib import config, paths
from proxies_lib.config import ModelConfig, Run, UserError, refuse
from proxies_lib.runs import provenance
from proxies_lib.science import protocol

GIB = 2**30

TIGHT = 0.9  # of a chip's memory

UTILIZATION = 0.4  # model FLOPs per peak FLOP of a TPU, assumed

MEASURED, PAGE = "docs/tpu_check.csv", "docs/scale.md"

_2D = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")

_3D = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8")


@dataclasses.dataclass(frozen=True)
class Chip:
    """A TPU generation: GiB of memory that its compiler gives to programs, dense bf16 FLOP/s (vendor), its slices."""

    memory: float
    flops: float
    slices: tuple[str, ...]


CHIPS = {
    "v4": Chip(30.75, 275e12, _3D),
    "v5e": Chip(15.75, 197e12, _2D),
    "v5p": Chip(95.74, 459e12, _3D),
    "v6e": Chip(31.25, 918e12, _2D),
}

# What the compiler reads before it is loaded: no metadata server, no log files, no lock on a device.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_LOG_DIR": "disabled",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


# ------------------------------------------------------------------ what is asked


def name_of(n_params: int) -> str:
    """N as the paper writes it: 2.4M, 151M, 4.8B."""
    return (
        f"{n_params / 1e9:.2g}B"
        if n_params >= 1e9
        else f"{n_params / 1e6:.{2 if n_params < 1e8 else 3}g}M"
    )


def sized(size: str) -> Run:
    """The run of the paper scale whose N is `size`, give or take 7 % (the paper's 10M is 9.4M). Raises UserError."""
    study = protocol.scales()["paper"]
    runs = [config.replace(study.base, d_model=d, n_layers=n) for d, n in study.sizes]
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([MB])", size)
    n_params = float(match[1]) * {"M": 1e6, "B": 1e9}[match[2]] if match else math.inf
    nearest = min(runs, key=lambda run: abs(run.model.n_params - n_params))
    if not abs(n_params / nearest.model.n_params - 1) < 0.07:
        refuse(
            "size", size, f"must be one of {', '.join(name_of(run.model.n_params) for run in runs)}"
        )
    return nearest


def shape_of(topology: str) -> tuple[str, tuple[int, ...]]:
    """("v5e", (4, 4)) of "v5e:4x4". Raises UserError where no such slice can be: hosts hold blocks of 2 × 2 chips."""
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", topology)
    kind, shape = (match[1], tuple(map(int, match[2].split("x")))) if match else ("", ())
    flat = CHIPS[kind].slices is _2D if kind in CHIPS else False
    blocks = (
        len(shape) > 1 and not any(n % 2 for n in shape[:2]) and all(1 <= n <= 16 for n in shape)
    )
    if (
        kind not in CHIPS
        or len(shape) != (2 if flat else 3)
        or not (blocks or (flat and shape == (1, 1)))
    ):
        refuse(
            "topology",
            topology,
            "must be v5e:NxM or v6e:NxM, v4:NxMxK or v5p:NxMxK; N and M even, or 1x1; up to 16",
        )
    return kind, shape


# ------------------------------------------------------------------ FLOPs and collectives of a program


def matmul_flops(jaxpr) -> float:
    """FLOPs of a (closed) jaxpr's products, 2·m·n·k each: times the length of the scans around it, the dearest branch
    of a `cond`, and one trip of a `while`. Unlike Run.flops it sees recomputation, and the masked half of attention."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            contracted = equation.params["dimension_numbers"][0][0]
            depth = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2.0 * math.prod(equation.outvars[0].aval.shape) * depth
            continue
        inner = [matmul_flops(value) for value in _jaxprs(equation.params.values())]
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        total += times * (max(inner) if equation.primitive.name == "cond" else sum(inner))
    return total


def _jaxprs(values):
    for value in values:
        if isinstance(value, (tuple, list)):
            yield from _jaxprs(value)
        elif hasattr(getattr(value, "jaxpr", value), "eqns"):
            yield value


COLLECTIVES = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")

_collective = re.compile(rf"= (.*?) ({'|'.join(COLLECTIVES)})(-start)?\((.*)")

_array = re.compile(r"\b(?:pred|[a-z]+(\d+)[a-z0-9]*)\[([\d,]*)\]")


def collectives(hlo: str) -> dict[str, dict]:
    """Of each kind in a compiled program: how many, and the bytes of their results on a chip. What a loop repeats is
    counted once, and so are copies of one operation (same channel) that the compiler overlaps with computation."""
    found: dict[tuple, float] = {}
    for number, line in enumerate(hlo.splitlines()):
        if match := _collective.search(line):
            result, kind, start, rest = match.groups()
            sizes = [
                int(bits or 8) / 8 * math.prod(int(n) for n in dims.split(",") if n)
                for bits, dims in _array.findall(result)
            ]
            channel = re.search(r"channel_id=(\d+)", rest)
            key = kind, channel[1] if channel else f"line {number}"
            found[key] = max(
                found.get(key, 0.0), max(sizes) if start else sum(sizes)
            )  # a start also names its inputs
    counts = {kind: [size for (k, _), size in found.items() if k == kind] for kind in COLLECTIVES}
    return {
        kind: {"count": len(sizes), "bytes": sum(sizes)} for kind, sizes in counts.items() if sizes
    }


# ------------------------------------------------------------------ the check


def check(size: str, topology: str, batch: int | None = None, **overrides) -> dict:
    """Compile the paper scale's train step of `size` for `topology` in a process of its own; what `describe` prints.

    `batch` is the global batch (None: the protocol's), taken at once. `overrides` change fields of the layout, in which
    one run is sharded over the slice. Raises UserError on bad input, without libtpu, and where the compiler fails for another reason than memory.
    """
    run, (kind, shape) = sized(size), shape_of(topology)
    run = run if batch is None else config.replace(run, batch_size=batch)
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "tpu-check needs the TPU compiler (libtpu); install the extra: pip install -e '.[tpu-check]'"
        )
    job = {"run": config.flat(run), "topology": topology, "overrides": overrides}
    command = [sys.executable, "-m", "proxies_lib.budget.tpu"]
    done = subprocess.run(
        command,
        input=json.dumps(job),
        capture_output=True,
        text=True,
        env=os.environ | ENVIRONMENT,
        cwd=paths.root(),
    )
    if done.returncode:
        lines = [
            line for line in done.stderr.splitlines() if re.search(r"Error|Check failed|\]", line)
        ]
        raise UserError(
            f"the compiler stopped ({(lines or [f'status {done.returncode}'])[-1][:300]})"
        )
    answer = json.loads(done.stdout.splitlines()[-1])
    chip, chips = CHIPS[kind], math.prod(shape)
    need = answer["need_gib"]
    return {
        "size": name_of(run.model.n_params),
        "topology": topology,
        "chips": chips,
        "batch": run.train.batch_size,
        "verdict": "does not fit"
        if answer["error"]
        else "tight"
        if need > TIGHT * chip.memory
        else "fits",
        "need_gib": need,
        "memory_gib": chip.memory,
        "model_flops": run.flops / run.hparams.steps,
        "run_flops": run.flops,
        "chip_hours": run.flops / (chip.flops * UTILIZATION) / 3600,
        **answer,
    }


def describe(row: dict) -> str:
    """A check in words."""
    run, chip = sized(row["size"]), CHIPS[shape_of(row["topology"])[0]]
    m, need = run.model, row["need_gib"]
    share = f" ({need / row['memory_gib']:.0%})" if need else ""
    amount = f"{need:.2f}" if need else "more than the"
    moved = "; ".join(
        f"{c['count']} {kind} ({c['bytes'] / GIB:.2g} GiB)"
        for kind, c in row["collectives"].items()
    )
    lines = [
        f"{row['size']} (d {m.d_model}, {m.n_layers} layers, N {m.n_params:,}) on {row['topology']}: {row['chips']} chips, "
        f"batch {row['batch']} × {m.seq_len}, {m.compute_dtype}",
        f"  {row['verdict']}: {amount} of {row['memory_gib']:.2f} GiB per chip{share}",
        f"  layout: {', '.join(f'{k} {v}' for k, v in row['layout'].items())}",
        f"  FLOPs a step: {row['model_flops']:.3g} of the model, {row['step_flops']:.3g} of the program's products "
        f"(recomputation and masked attention included: × {row['step_flops'] / row['model_flops']:.2f})",
    ]
    if row["error"]:
        lines.append(f"  compiler: {row['error']}")
        if row["microbatches"] > row["layout"]["accumulate"]:
            lines.append(
                f"  training would split the batch: try --accumulate {row['microbatches']}"
            )
    else:
        lines.append(f"  collectives (a loop's once; results on a chip): {moved or 'none'}")
    return "\n".join(
        [
            *lines,
            f"  lowered in {row['lower_seconds']:.0f} s, compiled in {row['compile_seconds']:.0f} s, "
            f"{row['host_gib']:.1f} GiB of memory here",
            f"  the whole run: {row['run_flops']:.3g} model FLOPs, {row['chip_hours']:,.3g} chip-hours "
            f"({row['chip_hours'] / row['chips']:,.3g} h on this slice) if it reaches {UTILIZATION:.0%} of "
            f"{chip.flops / 1e12:.0f} TFLOP/s, which is assumed, not measured",
            f"  {', '.join(f'{k} {v}' for k, v in row['versions'].items())}",
        ]
    )


def compile_here(job: dict) -> dict:
    """The part of `check` that runs beside the compiler: lower, count, compile. Nothing concrete touches a device."""
    from jax.experimental import topologies

    from proxies_lib.layout import layout_for
    from proxies_lib.train import trace

    run, (kind, shape) = config.from_flat(job["run"]), shape_of(job["topology"])
    special = {"chip_config_name": "megacore"} if kind == "v4" else {}
    special |= {"chips_per_host_bounds": (1, 1, 1)} if math.prod(shape) == 1 else {}
    devices = topologies.get_topology_desc(
        platform="tpu", topology_name=job["topology"], **special
    ).devices
    chosen = layout_for(*run.program, devices, CHIPS[kind].memory * GIB)
    one = {
        "lanes": 0,
        "run": 1,
        "data": math.gcd(len(devices), run.train.batch_size),
        "accumulate": 1,
    }
    whole = dataclasses.replace(chosen, **one | job["overrides"])
    started = time.perf_counter()
    traced = trace(*run.program, whole, devices)[1]
    lowered = traced.lower()
    flops = matmul_flops(traced.jaxpr) / run.train.log_every
    lower_seconds, started = time.perf_counter() - started, time.perf_counter()
    need, error, moved = None, "", {}
    try:
        compiled = lowered.compile()
        need = compiled.memory_analysis().peak_memory_in_bytes / GIB
        moved = collectives(compiled.as_text())
    except Exception as failure:
        if "RESOURCE_EXHAUSTED" not in str(failure):
            raise
        error = str(failure).splitlines()[0]
        need = _asked(error)
    return {
        "need_gib": need,
        "error": error,
        "layout": dataclasses.asdict(whole),
        "microbatches": chosen.accumulate,
        "step_flops": flops,
        "collectives": moved,
        "lower_seconds": lower_seconds,
        "compile_seconds": time.perf_counter() - started,
        "host_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "versions": {
            name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "libtpu")
        },
    }


def _asked(message: str) -> float | None:
    """GiB that a refused program asked for, where the compiler says so."""
    match = re.search(r"(?:Used |\()([\d.]+)([MG])(?: of|\) exceeds)", message)
    return float(match[1]) / {"M": 1024, "G": 1}[match[2]] if match else None


# ------------------------------------------------------------------ the table of slices


def measured() -> pd.DataFrame:
    """The stored checks, one row each."""
    path = paths.root() / MEASURED
    return (
        pd.read_csv(path, keep_default_na=False)
        if path.exists()
        else pd.DataFrame(columns=["size", "topology"])
    )


def measure(kinds=("v5e", "v5p", "v6e")):
    """For each kind of chip and size of the paper, check growing slices up to the first that fits; store each check.

    What is stored is not repeated, so this can be stopped; a slice too small for one size is not tried for a larger.
    """

    path = paths.root() / MEASURED
    for kind in kinds:
        slices = list(CHIPS[kind].slices)
        for d, n in protocol.scales()["paper"].sizes:
            size, verdict = name_of(ModelConfig(d, n).n_params), None
            while slices and verdict not in ("fits", "tight"):
                slices = slices[1:] if verdict else slices
                topology = f"{kind}:{slices[0]}"
                stored = measured().query("size == @size and topology == @topology")
                if stored.empty:
                    row = check(size, topology)
                    print(describe(row), flush=True)
                    nested = {name: json.dumps(row.pop(name)) for name in ("layout", "collectives")}
                    line = pd.DataFrame(
                        [row | nested | row.pop("versions") | {"commit": provenance.commit()}]
                    )
                    line.to_csv(
                        path, mode="a", header=not path.exists(), index=False, float_format="%.6g"
                    )
                    verdict = row["verdict"]
                else:
                    verdict = stored["verdict"].iloc[0]


def slices_table() -> str:
    """Markdown of the stored checks: per size and kind of chip, the smallest slice that fits."""
    rows = measured()
    if rows.empty:
        return "Not measured yet."
    rows = rows.sort_values(["run_flops", "chips"])
    rows = rows[rows["verdict"] != "does not fit"].assign(
        kind=lambda f: f["topology"].str.split(":").str[0]
    )
    lines = [
        "| size | slice | GiB of a chip | devices, layers scanned | FLOPs a step | a run: chip-hours | hours |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in (
        rows.drop_duplicates(["size", "kind"]).sort_values(["run_flops", "kind"]).itertuples()
    ):
        layout, need = json.loads(row.layout), float(row.need_gib)
        lines.append(
            f"| {row.size} | {row.topology} | {need:.1f} of {row.memory_gib:.2f}{', tight' * (row.verdict == 'tight')} | "
            f"{layout['data']}, {'yes' if layout['scan'] else 'no'} | {row.step_flops:.3g} | {row.chip_hours:,.3g} | "
            f"{row.chip_hours / row.chips:,.3g} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(json.dumps(compile_here(json.load(sys.stdin))))
