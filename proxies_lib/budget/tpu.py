"""Scale on paper: the real train step, compiled for TPU slices on a CPU.

A TPU compiler comes with libtpu (the optional extra `tpu-check`; large, not open source), and
compiles for slices that are not here. It is never imported by this process: `check` starts one with
the environment that it needs. What fits is the compiler's word; times are FLOPs over a stated
utilization, never measured here.
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
from typing import Any

import pandas as pd

from proxies_lib import config, paths
from proxies_lib.config import ModelConfig, Run, UserError, refuse
from proxies_lib.runs import provenance
from proxies_lib.science import protocol, report

GIB = 2**30

TIGHT = 0.9  # of a chip's memory
UTILIZATION = 0.4  # model FLOPs per peak FLOP of a TPU, assumed

MEASURED = "docs/tpu_check.csv"
PAGE = "docs/scale.md"

# The slices of a kind that are tried, growing: chips in two dimensions, or in three.
_2D = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")

_3D = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8")


@dataclasses.dataclass(frozen=True)
class Chip:
    """A TPU generation."""

    memory: float  # GiB that its compiler gives to programs
    flops: float  # dense bf16 FLOP/s, the vendor's number
    slices: tuple[str, ...]


CHIPS = {
    "v4": Chip(30.75, 275e12, _3D),
    "v5e": Chip(15.75, 197e12, _2D),
    "v5p": Chip(95.74, 459e12, _3D),
    "v6e": Chip(31.25, 918e12, _2D),
}

# What the compiler reads before it is loaded: no metadata server, no logs, no lock on a device.
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
    if n_params >= 1e9:
        return f"{n_params / 1e9:.2g}B"
    digits = 2 if n_params < 1e8 else 3
    return f"{n_params / 1e6:.{digits}g}M"


def sized(size: str) -> Run:
    """The run of the paper scale whose N is `size`, give or take 7 % (the paper's 10M is 9.4M).

    Raises UserError.
    """
    study = protocol.scales()["paper"]
    runs = [config.replace(study.base, d_model=d, n_layers=n) for d, n in study.sizes]
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([MB])", size)
    n_params = float(match[1]) * {"M": 1e6, "B": 1e9}[match[2]] if match else math.inf
    nearest = min(runs, key=lambda run: abs(run.model.n_params - n_params))
    if not abs(n_params / nearest.model.n_params - 1) < 0.07:
        known = ", ".join(name_of(run.model.n_params) for run in runs)
        refuse("size", size, f"must be one of {known}")
    return nearest


def shape_of(topology: str) -> tuple[str, tuple[int, ...]]:
    """("v5e", (4, 4)) of "v5e:4x4". Raises UserError where no such slice can be."""
    match = re.fullmatch(r"(\w+):(\d{1,6}(?:x\d{1,6})*)", topology)
    kind = match[1] if match else ""
    shape = tuple(map(int, match[2].split("x"))) if match else ()
    if kind not in CHIPS or not _is_slice(shape, flat=CHIPS[kind].slices is _2D):
        refuse(
            "topology",
            topology,
            "must be v5e:NxM or v6e:NxM, v4:NxMxK or v5p:NxMxK; N and M even, or 1x1; up to 16",
        )
    return kind, shape


def _is_slice(shape: tuple[int, ...], flat: bool) -> bool:
    """Whether chips can stand like this: hosts hold blocks of 2 × 2 of them."""
    if len(shape) != (2 if flat else 3):
        return False
    if flat and shape == (1, 1):
        return True
    in_blocks = not any(n % 2 for n in shape[:2])
    return in_blocks and all(1 <= n <= 16 for n in shape)


# ------------------------------------------------------------------ what a program does


def matmul_flops(jaxpr) -> float:
    """FLOPs of a (closed) jaxpr's products, 2·m·n·k each.

    A product counts times the length of the scans around it. Of a `cond` the dearest branch
    counts, of a `while` one trip. Unlike Run.flops this sees recomputation, and the masked half of
    attention.
    """
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
    """Of each kind in a compiled program: how many, and the bytes of their results on a chip.

    What a loop repeats is counted once, and so are copies of one operation (same channel) that the
    compiler overlaps with computation.
    """
    bytes_of: dict[tuple, float] = {}
    for number, line in enumerate(hlo.splitlines()):
        match = _collective.search(line)
        if not match:
            continue
        result, kind, start, arguments = match.groups()
        sizes = [_bytes(bits, dims) for bits, dims in _array.findall(result)]
        # The result of a -start also holds its inputs: the largest array is the result proper.
        size = max(sizes) if start else sum(sizes)
        channel = re.search(r"channel_id=(\d+)", arguments)
        operation = kind, channel[1] if channel else f"line {number}"
        bytes_of[operation] = max(bytes_of.get(operation, 0.0), size)
    found = {}
    for kind in COLLECTIVES:
        sizes = [size for (of_kind, _), size in bytes_of.items() if of_kind == kind]
        if sizes:
            found[kind] = {"count": len(sizes), "bytes": sum(sizes)}
    return found


def _bytes(bits: str, dims: str) -> float:
    """The size of an array as HLO writes it: f32[16,8] has bits 32 and dims 16,8."""
    return int(bits or 8) / 8 * math.prod(int(n) for n in dims.split(",") if n)


# ------------------------------------------------------------------ the check


def check(size: str, topology: str, batch: int | None = None, **overrides) -> dict:
    """Compile the paper scale's train step of `size` for `topology`; what `describe` prints.

    `batch` is the global batch (None: the protocol's), taken at once. `overrides` change fields of
    the layout, in which one run is sharded over the slice. Raises UserError on bad input, without
    libtpu, and where the compiler fails for another reason than memory.
    """
    run, (kind, shape) = sized(size), shape_of(topology)
    run = run if batch is None else config.replace(run, batch_size=batch)
    job = {"run": config.flat(run), "topology": topology, "overrides": overrides}
    answer = _compiled_in_a_process(job)
    chip = CHIPS[kind]
    return {
        "size": name_of(run.model.n_params),
        "topology": topology,
        "chips": math.prod(shape),
        "batch": run.train.batch_size,
        "verdict": _verdict(answer, chip),
        "need_gib": answer["need_gib"],
        "memory_gib": chip.memory,
        "model_flops": run.flops / run.hparams.steps,
        "run_flops": run.flops,
        "chip_hours": run.flops / (chip.flops * UTILIZATION) / 3600,
        **answer,
    }


def _verdict(answer: dict, chip: Chip) -> str:
    if answer["error"]:
        return "does not fit"
    return "tight" if answer["need_gib"] > TIGHT * chip.memory else "fits"


def _compiled_in_a_process(job: dict) -> dict:
    """`compile_here` in a process of its own, which finds the compiler's environment."""
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "tpu-check needs the TPU compiler (libtpu); "
            "install the extra: pip install -e '.[tpu-check]'"
        )
    done = subprocess.run(
        [sys.executable, "-m", "proxies_lib.budget.tpu"],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        env=os.environ | ENVIRONMENT,
        cwd=paths.root(),
    )
    if done.returncode:
        said = done.stderr.splitlines()
        errors = [line for line in said if re.search(r"Error|Check failed|\]", line)]
        last = (errors or [f"status {done.returncode}"])[-1]
        raise UserError(f"the compiler stopped ({last[:300]})")
    return json.loads(done.stdout.splitlines()[-1])


def describe(row: dict) -> str:
    """A check in words."""
    run, chip = sized(row["size"]), CHIPS[shape_of(row["topology"])[0]]
    model, need = run.model, row["need_gib"]
    share = f" ({need / row['memory_gib']:.0%})" if need else ""
    amount = f"{need:.2f}" if need else "more than the"
    recomputed = row["step_flops"] / row["model_flops"]
    lines = [
        f"{row['size']} (d {model.d_model}, {model.n_layers} layers, N {model.n_params:,}) on "
        f"{row['topology']}: {row['chips']} chips, batch {row['batch']} × {model.seq_len}, "
        f"{model.compute_dtype}",
        f"  {row['verdict']}: {amount} of {row['memory_gib']:.2f} GiB per chip{share}",
        f"  layout: {_pairs(row['layout'])}",
        f"  FLOPs a step: {row['model_flops']:.3g} of the model, {row['step_flops']:.3g} of the "
        f"program's products (recomputation and masked attention included: × {recomputed:.2f})",
        *_what_the_compiler_says(row),
        f"  lowered in {row['lower_seconds']:.0f} s, compiled in {row['compile_seconds']:.0f} s, "
        f"{row['host_gib']:.1f} GiB of memory here",
        f"  the whole run: {row['run_flops']:.3g} model FLOPs, {row['chip_hours']:,.3g} chip-hours "
        f"({row['chip_hours'] / row['chips']:,.3g} h on this slice) if it reaches "
        f"{UTILIZATION:.0%} of {chip.flops / 1e12:.0f} TFLOP/s, which is assumed, not measured",
        f"  {_pairs(row['versions'])}",
    ]
    return "\n".join(lines)


def _what_the_compiler_says(row: dict) -> list[str]:
    if not row["error"]:
        moved = [
            f"{moved['count']} {kind} ({moved['bytes'] / GIB:.2g} GiB)"
            for kind, moved in row["collectives"].items()
        ]
        listed = "; ".join(moved) or "none"
        return [f"  collectives (a loop's once; results on a chip): {listed}"]
    lines = [f"  compiler: {row['error']}"]
    if row["microbatches"] > row["layout"]["accumulate"]:
        lines.append(f"  training would split the batch: try --accumulate {row['microbatches']}")
    return lines


def _pairs(values: dict) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def compile_here(job: dict) -> dict:
    """The part of `check` that runs beside the compiler: lower, count, compile. Nothing concrete
    touches a device."""
    from proxies_lib.layout import layout_for
    from proxies_lib.train import trace

    run, (kind, shape) = config.from_flat(job["run"]), shape_of(job["topology"])
    devices = _devices(job["topology"], kind, shape)
    chosen = layout_for(*run.program, devices, CHIPS[kind].memory * GIB)
    # One run over the whole slice, the batch at once; what training would choose is told beside.
    shards = math.gcd(len(devices), run.train.batch_size)
    one_run = {"lanes": 0, "run": 1, "data": shards, "accumulate": 1}
    layout = dataclasses.replace(chosen, **one_run | job["overrides"])
    started = time.perf_counter()
    _, traced, *_ = trace(*run.program, layout, devices)
    lowered = traced.lower()
    flops = matmul_flops(traced.jaxpr) / run.train.log_every
    lower_seconds, started = time.perf_counter() - started, time.perf_counter()
    answer = _compiled(lowered)
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "libtpu")}
    return {
        "need_gib": answer["need_gib"],
        "error": answer["error"],
        "layout": dataclasses.asdict(layout),
        "microbatches": chosen.accumulate,
        "step_flops": flops,
        "collectives": answer["collectives"],
        "lower_seconds": lower_seconds,
        "compile_seconds": time.perf_counter() - started,
        "host_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "versions": versions,
    }


def _devices(topology: str, kind: str, shape: tuple[int, ...]) -> list:
    from jax.experimental import topologies

    special: dict[str, Any] = {}
    if kind == "v4":
        special["chip_config_name"] = "megacore"  # two cores of a chip are one device
    if math.prod(shape) == 1:
        special["chips_per_host_bounds"] = (1, 1, 1)
    described = topologies.get_topology_desc(platform="tpu", topology_name=topology, **special)
    return described.devices


def _compiled(lowered) -> dict:
    """What a chip needs and what moves between chips; else the compiler's refusal of memory."""
    try:
        compiled = lowered.compile()
    except Exception as failure:
        if "RESOURCE_EXHAUSTED" not in str(failure):
            raise
        error = str(failure).splitlines()[0]
        return {"need_gib": _asked(error), "error": error, "collectives": {}}
    need = compiled.memory_analysis().peak_memory_in_bytes / GIB
    return {"need_gib": need, "error": "", "collectives": collectives(compiled.as_text())}


def _asked(message: str) -> float | None:
    """GiB that a refused program asked for, where the compiler says so."""
    match = re.search(r"(?:Used |\()([\d.]+)([MG])(?: of|\) exceeds)", message)
    return float(match[1]) / {"M": 1024, "G": 1}[match[2]] if match else None


# ------------------------------------------------------------------ the table of slices


def measured() -> pd.DataFrame:
    """The stored checks, one row each."""
    path = paths.root() / MEASURED
    if not path.exists():
        return pd.DataFrame(columns=["size", "topology"])
    return pd.read_csv(path, keep_default_na=False)


def measure(kinds=("v5e", "v5p", "v6e")):
    """For each kind of chip and size of the paper, check growing slices up to the first that fits.

    Each check is stored, and what is stored is not repeated, so this can be stopped. A slice too
    small for one size is not tried for a larger.
    """
    for kind in kinds:
        slices = list(CHIPS[kind].slices)
        for d_model, n_layers in protocol.scales()["paper"].sizes:
            size, verdict = name_of(ModelConfig(d_model, n_layers).n_params), None
            while slices and verdict not in ("fits", "tight"):
                slices = slices[1:] if verdict else slices
                verdict = _stored_verdict(size, f"{kind}:{slices[0]}")


def _stored_verdict(size: str, topology: str) -> str:
    """The verdict that is stored; else check, and store it."""
    stored = measured().query("size == @size and topology == @topology")
    if not stored.empty:
        return stored["verdict"].iloc[0]
    row = check(size, topology)
    print(describe(row), flush=True)
    verdict = row["verdict"]
    nested = {name: json.dumps(row.pop(name)) for name in ("layout", "collectives")}
    line = pd.DataFrame([row | nested | row["versions"] | {"commit": provenance.commit()}])
    path = paths.root() / MEASURED
    line.to_csv(path, mode="a", header=not path.exists(), index=False, float_format="%.6g")
    return verdict


def slices_table() -> str:
    """Markdown of the stored checks: per size and kind of chip, the smallest slice that fits."""
    checks = measured()
    if checks.empty:
        return "Not measured yet."
    checks = checks[checks["verdict"] != "does not fit"]
    checks = checks.assign(kind=checks["topology"].str.split(":").str[0])
    smallest = checks.sort_values(["run_flops", "chips"]).drop_duplicates(["size", "kind"])
    rows = []
    for row in smallest.sort_values(["run_flops", "kind"]).itertuples():
        layout, tight = json.loads(row.layout), ", tight" if row.verdict == "tight" else ""
        rows.append(
            [
                row.size,
                row.topology,
                f"{float(row.need_gib):.1f} of {row.memory_gib:.2f}{tight}",
                f"{layout['data']}, {'yes' if layout['scan'] else 'no'}",
                f"{row.step_flops:.3g}",
                f"{row.chip_hours:,.3g}",
                f"{row.chip_hours / row.chips:,.3g}",
            ]
        )
    head = ["size", "slice", "GiB of a chip", "devices, layers scanned", "FLOPs a step"]
    head += ["a run: chip-hours", "hours"]
    return report.markdown(pd.DataFrame(rows, columns=head))


if __name__ == "__main__":
    print(json.dumps(compile_here(json.load(sys.stdin))))
