"""Speed, honestly: what a train step, a sweep and a store cost on this machine.

Shapes (d, L) = (32, 2), (64, 3), (128, 4), heads of 16, V 1024, 16 × 64 tokens, float32,
qk-layernorm, z-loss and all taps on. What is compared alternates in rounds, so a drift of the
machine hits both; medians are printed.
"""

import collections
import concurrent.futures
import itertools
import json
import multiprocessing
import os
import pathlib
import re
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import unittest.mock

import numpy as np

from proxies_lib import config, ops, optim, paths, settings
from proxies_lib.config import UserError
from proxies_lib.runs import datasets, provenance, store, sweep, tables
from proxies_lib.science import protocol

SHAPES = ((32, 2), (64, 3), (128, 4))

PROFILED_CALLS = 5
FEWEST_ROUNDS = 5

SWEEP_LRS, SWEEP_STEPS = protocol.PAPER_WINDOW, 400


def main(part: str | None, seconds: float, counts: list[int], as_json: bool):
    """Measure `part` and print a table, or JSON lines with the machine's description.

    Parts are "step", "profile", "lanes", "checkpoint", "sweep" and "store"; None is "lanes" on an
    accelerator, else "step".
    """
    part = part or ("step" if settings.platform_of_jax() == "cpu" else "lanes")
    if part in ON_ONE_CORE:
        _measure_in_a_process(part, seconds, as_json)
        return
    measure = {
        "lanes": lambda: measure_lanes(seconds),
        "checkpoint": lambda: measure_checkpoint(seconds),
        "sweep": lambda: measure_sweep(SHAPES),
        "store": lambda: measure_store(counts),
    }
    show(part, measure[part](), as_json)


def _measure_in_a_process(part: str, seconds: float, as_json: bool):
    """In a fresh process: the number of threads is set before JAX starts."""
    form = "json" if as_json else "table"
    command = [sys.executable, "-m", "proxies_lib.budget.bench", part, str(seconds), form]
    done = subprocess.run(command, env=os.environ | settings.ONE_THREAD_AT_START)
    if done.returncode:
        raise UserError(f"bench: the process that measures ended with status {done.returncode}")


def show(title: str, rows, as_json: bool):
    """Print rows as they come: JSON lines, or a table headed by the machine's description."""
    for i, row in enumerate(rows):
        if as_json:
            print(json.dumps({"bench": title} | row | provenance.provenance()), flush=True)
            continue
        widths = [max(len(name), 9) for name in row]
        if i == 0:
            here = provenance.provenance()
            print(
                f"{title}: {here['device']}, {os.cpu_count()} cores, "
                f"jax {here['jax']}, commit {here['commit']}"
            )
            print("  ".join(f"{name:>{width}}" for name, width in zip(row, widths)))
        values = [_short(value) for value in row.values()]
        print("  ".join(f"{value:>{width}}" for value, width in zip(values, widths)), flush=True)


def _short(value) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


# ------------------------------------------------------------------ what is measured


def bench_run(shape: tuple[int, int], **changes) -> config.Run:
    """The run that is measured at (d, L), in the sizes in which the peers were measured."""
    sizes = {
        "data": "synthetic",
        "d_model": shape[0],
        "n_layers": shape[1],
        "d_head": 16,
        "vocab_size": 1024,
        "seq_len": 64,
        "batch_size": 16,
        "log_every": 10,
        "steps": 320,
        "warmup_steps": 16,
    }
    return config.replace(protocol.scales()["laptop"].base, **(sizes | changes))


def _models() -> list[config.Run]:
    """The models of the gpu scale, each with its batch; on a CPU those of `SHAPES`."""
    if settings.platform_of_jax() == "cpu":
        return [bench_run(shape, steps=SWEEP_STEPS) for shape in SHAPES]
    study = protocol.scales()["gpu"]
    # Speed does not depend on the text.
    base = config.replace(study.base, data="synthetic", log_every=10)
    return [config.replace(base, d_model=d, n_layers=n) for d, n in study.sizes]


def _rounds(seconds: float):
    """Numbers of rounds, for so many seconds, `FEWEST_ROUNDS` at least."""
    deadline = time.monotonic() + seconds
    for done in itertools.count():
        if time.monotonic() >= deadline and done >= FEWEST_ROUNDS:
            return
        yield done


class _Training:
    """A compiled program and its state, advanced call by call.

    As a worker trains it, unless there is a layout. `times` has the seconds per step of each call,
    the first one a warm-up.
    """

    def __init__(self, run: config.Run, layout=None, devices=None):
        from proxies_lib.layout import layout_alone
        from proxies_lib.train import Trainer

        layout = layout or layout_alone(run)
        self.trainer = Trainer(*run.program, layout, devices)
        self.times: list[float] = []
        self.steps = layout.points * run.train.log_every
        lead = (layout.lanes,) if layout.lanes else ()
        everywhere = self.trainer.shardings()
        self.h = {}
        for name, value in optim.inputs(run.hparams).items():
            self.h[name] = self.trainer.put(np.full(lead, value, np.float32), everywhere)
        dataset = datasets.open_dataset(run.data, run.model.vocab_size)
        self.tokens = self.trainer.tokens(dataset, [run.order] * max(layout.lanes, 1), 0)
        seeds = self.trainer.put(np.zeros(lead, np.int32), everywhere)
        self.state = self.trainer.init(self.h, seeds)
        self.advance()

    def advance(self):
        import jax

        started = time.perf_counter()
        self.state, metrics = self.trainer.chunk(self.h, self.state, self.tokens)
        metrics = jax.device_get(metrics)
        self.times.append((time.perf_counter() - started) / self.steps)
        return metrics

    @property
    def seconds_per_step(self) -> float:
        return statistics.median(self.times[1:])

    @property
    def memory_mib(self) -> float:
        """What the program of training takes on a device, state and tokens included."""
        memory = self.trainer.chunk.memory_analysis()
        return (memory.temp_size_in_bytes + memory.argument_size_in_bytes) / 2**20


def _matmul_peak(size: int = 1024, dtype: str = "float32"):
    """A function that measures FLOP/s of products of `size` × `size` matrices, after it has
    compiled them."""
    import jax
    import jax.numpy as jnp

    product = jax.jit(lambda a, b: jax.lax.fori_loop(0, 8, lambda _, c: a @ c, b))
    a = jnp.asarray(np.random.default_rng(0).standard_normal((size, size)) / size**0.5, dtype)
    product(a, a).block_until_ready()

    def peak() -> float:
        started = time.perf_counter()
        product(a, a).block_until_ready()
        return 8 * 2 * size**3 / (time.perf_counter() - started)

    return peak


# ------------------------------------------------------------------ a step on one core


def measure_step(seconds: float):
    """A row per shape: speed of a train step beside the matmul peak; all medians of rounds.

    tokens/s, steps/s, model GFLOP/s and its share of the peak measured beside it; `taps_share` and
    `calls_share`, the shares of a step's time that taps (with tensor RMS, once per `log_every`;
    against a program without them) and calls (boundaries, once per `points`) take; compile seconds;
    memory of the step (MiB).
    """
    from proxies_lib.layout import Layout

    peak = _matmul_peak()
    for shape in SHAPES:
        run = bench_run(shape, steps=SWEEP_STEPS)
        normal = _Training(run)
        points = normal.steps // run.train.log_every
        short = _Training(run, Layout())
        with _without_taps():
            bare = _Training(run)
        peaks = []
        for _ in _rounds(seconds):
            peaks.append(peak())
            normal.advance()
            bare.advance()
            for _ in range(points):  # as many steps as `normal` in its one call
                short.advance()
        # What happens once in n steps costs c/n of each: two values of n, `points` times apart,
        # tell c.
        short_per_round = np.reshape(short.times[1:], (-1, points)).mean(1)
        calls = (np.median(short_per_round / normal.times[1:]) - 1) / (points - 1)
        taps = 1 - np.median(np.divide(bare.times[1:], normal.times[1:]))
        steps = 1 / normal.seconds_per_step
        flops = run.flops / run.hparams.steps * steps
        yield {
            "d_model": shape[0],
            "n_layers": shape[1],
            "tokens/s": steps * run.train.batch_size * run.model.seq_len,
            "steps/s": steps,
            "GFLOP/s": flops / 1e9,
            "peak_GFLOP/s": statistics.median(peaks) / 1e9,
            "share_of_peak": flops / statistics.median(peaks),
            "points": points,
            "taps_share": taps,
            "calls_share": calls,
            "compile_s": normal.trainer.compile_seconds,
            "memory_MiB": normal.memory_mib,
            "rounds": len(peaks),
        }


def _without_taps():
    """Where a program is traced: its probes then see nothing, and cost nothing."""
    observe = ops.zeros_unless
    return unittest.mock.patch.object(
        ops, "zeros_unless", lambda probe, *seen: observe(False, *seen)
    )


KINDS = ("products", "reductions", "other")

CONTROL = ("while", "conditional", "call")  # what they run counts, not they

_heading = re.compile(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$")

_instruction = re.compile(
    r"\s+(?:ROOT )?%?([\w.\-]+) = (?:\(.*?\)|\S+) ([\w\-]+)\((?:.* calls=%?([\w.\-]+))?"
)


def kernels(hlo: str) -> dict[str, str]:
    """The kind, of `KINDS`, of each instruction in a compiled program's text.

    `products` are dots and fusions around one, `reductions` likewise, `other` is elementwise work,
    gathers and copies. Control flow is left out.
    """
    opcodes_in, found, computation = collections.defaultdict(set), [], ""
    for line in hlo.splitlines():
        if match := _heading.match(line):
            computation = match[1]
        elif match := _instruction.match(line):
            found.append(match.groups())
            opcodes_in[computation].add(match[2])
    kinds = {}
    for name, opcode, called in found:
        if opcode not in CONTROL:
            kinds[name] = _kind(opcodes_in.get(called, {opcode}))
    return kinds


def _kind(opcodes: set[str]) -> str:
    if "dot" in opcodes:
        return "products"
    return "reductions" if "reduce" in opcodes else "other"


def measure_profile(seconds: float):
    """A row per shape: where a step's time goes, by JAX's profiler, in ms, and what bounds it.

    Shares of kinds of kernel are the profiler's; the step they share is timed without it.
    `products_at_peak` is the time of the step's products at the matmul peak measured beside it,
    `ceiling` how much faster the step were if all its products ran at that peak; `ceiling_free`, if
    instead all that is no product took no time.
    """
    peak = _matmul_peak()
    for shape in SHAPES:
        run = bench_run(shape, steps=SWEEP_STEPS)
        training, peaks = _Training(run), []
        for _ in _rounds(seconds):
            peaks.append(peak())
            training.advance()
        step = training.seconds_per_step
        spent, counts = _profiled(training)
        ms = {kind: 1e3 * step * spent[kind] / spent.total() for kind in KINDS}
        at_peak = 1e3 * run.flops / run.hparams.steps / statistics.median(peaks)
        yield {
            "d_model": shape[0],
            "n_layers": shape[1],
            "step_ms": 1e3 * step,
            **{f"{kind}_ms": ms[kind] for kind in KINDS},
            **{f"{kind}_kernels": round(counts[kind]) for kind in KINDS},
            "products_at_peak_ms": at_peak,
            "peak_GFLOP/s": statistics.median(peaks) / 1e9,
            "ceiling": 1e3 * step / (at_peak + ms["reductions"] + ms["other"]),
            "ceiling_free": 1e3 * step / ms["products"],
        }


def _profiled(training: _Training) -> tuple[collections.Counter, collections.Counter]:
    """Nanoseconds by kind of kernel over `PROFILED_CALLS` calls, and kernels of a step."""
    import jax

    kinds = kernels(training.trainer.chunk.as_text())
    spent: collections.Counter[str] = collections.Counter()
    counts: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(PROFILED_CALLS):
                training.advance()
        (written,) = pathlib.Path(folder).rglob("*.xplane.pb")
        for plane in jax.profiler.ProfileData.from_file(str(written)).planes:
            for line in plane.lines:
                for event in line.events:
                    if event.name in kinds:
                        spent[kinds[event.name]] += event.duration_ns
                        counts[kinds[event.name]] += 1 / PROFILED_CALLS / training.steps
    return spent, counts


# ------------------------------------------------------------------ lanes and checkpoints


def measure_lanes(seconds: float, runs: list[config.Run] | None = None):
    """A row per model: a run at a time on one device against lanes on all devices.

    Alternated in rounds; lanes as `layout.layout_for` arranges them. tokens/s of both; the share of
    the matmul peak in the compute dtype, measured on one device beside them, that lanes reach on
    each; compile seconds; memory of a device (MiB).
    """
    import jax

    from proxies_lib.layout import layout_for

    accelerator, devices = settings.platform_of_jax() != "cpu", jax.devices()
    for run in runs or _models():
        layout = layout_for(*run.program, devices)
        alone, together = _Training(run), _Training(run, layout, devices)
        peak = _matmul_peak(8192 if accelerator else 1024, run.model.compute_dtype)
        peaks = []
        for _ in _rounds(seconds):
            peaks.append(peak())
            alone.advance()
            together.advance()
        steps_alone = 1 / alone.seconds_per_step
        steps_together = 1 / together.seconds_per_step * max(layout.lanes, 1)
        tokens = run.train.batch_size * run.model.seq_len
        flops = run.flops / run.hparams.steps
        yield {
            "d_model": run.model.d_model,
            "n_layers": run.model.n_layers,
            "dtype": run.model.compute_dtype,
            "lanes": layout.lanes,
            "devices": len(devices),
            "one_tokens/s": tokens * steps_alone,
            "tokens/s": tokens * steps_together,
            "speedup": steps_together / steps_alone,
            "TFLOP/s": flops * steps_together / 1e12,
            "peak_TFLOP/s": statistics.median(peaks) / 1e12,
            "share_of_peak": flops * steps_together / len(devices) / statistics.median(peaks),
            "one_share_of_peak": flops * steps_alone / statistics.median(peaks),
            "one_compile_s": alone.trainer.compile_seconds,
            "compile_s": together.trainer.compile_seconds,
            "memory_MiB": together.memory_mib,
            "rounds": len(peaks),
        }


def measure_checkpoint(seconds: float, runs: list[config.Run] | None = None):
    """A row per model: what the first checkpoint of its lanes costs, on a CPU of one run.

    `MiB` on the disk; `waits_s` that training waits, `whole_s` until it is written (training goes
    on meanwhile), `restore_s`; `interval_steps` and `interval_s`, the training between two;
    `share`, waits_s of that, and `share_at_most`, all of whole_s.
    """
    import jax

    from proxies_lib.layout import Layout, layout_for
    from proxies_lib.runs import checkpoint

    devices = jax.devices()
    for run in runs or _models():
        on_cpu = settings.platform_of_jax() == "cpu"
        layout = Layout() if on_cpu else layout_for(*run.program, devices)
        training = _Training(run, layout, devices[: layout.run * layout.data])
        every = checkpoint.interval(run, layout)
        run = config.replace(run, steps=every + run.train.log_every)
        rounds = []
        for _ in _rounds(seconds):
            points = [training.advance()] * (every // run.train.log_every)
            rounds.append(_save_and_restore(run, layout, training, every, points))
        waits, whole, restore, size = np.median(rounds, axis=0)
        interval = every * training.seconds_per_step
        yield {
            "d_model": run.model.d_model,
            "n_layers": run.model.n_layers,
            "lanes": layout.lanes,
            "MiB": size / 2**20,
            "waits_s": waits,
            "whole_s": whole,
            "restore_s": restore,
            "interval_steps": every,
            "interval_s": interval,
            "share": waits / interval,
            "share_at_most": whole / interval,
            "rounds": len(rounds),
        }


def _save_and_restore(run: config.Run, layout, training: _Training, step: int, points: list):
    """Seconds that training waits, until all is written, and to restore; bytes on the disk."""
    from proxies_lib.runs import checkpoint

    first_losses = np.zeros(max(layout.lanes, 1), np.float32)
    with (
        tempfile.TemporaryDirectory() as folder,
        paths.environment("PROXIES_CHECKPOINTS", folder),
    ):
        group = checkpoint.Group([run], ["bench"], layout)
        started = time.perf_counter()
        group.after(step, training.state, first_losses, points)
        waited = time.perf_counter()
        group.close(finished=False)
        written = time.perf_counter()
        size = _bytes_in(pathlib.Path(folder))
        group = checkpoint.Group([run], ["bench"], layout)
        restoring = time.perf_counter()
        group.restore(*training.trainer.abstract())
        restored = time.perf_counter()
        group.close(finished=True)
    return waited - started, written - started, restored - restoring, size


def _bytes_in(folder: pathlib.Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# ------------------------------------------------------------------ a sweep


def sweep_seconds(
    shape: tuple[int, int], workers: int, seeds
) -> tuple[list[float], list[config.Run]]:
    """Seconds of a sweep for each seed, start of the workers included, and the runs of one.

    7 learning rates × 2 arms of 400 steps. The first seed meets an empty store and an empty
    compilation cache, the others a warm cache.
    """
    walls = []
    with (
        tempfile.TemporaryDirectory() as scratch,
        paths.environment("PROXIES_CACHE", f"{scratch}/cache"),
    ):
        for seed in seeds:
            base = bench_run(shape, steps=SWEEP_STEPS, warmup_steps=SWEEP_STEPS // 20, seed=seed)
            runs = config.grid(base, {"qk_norm": ("none", "per_head"), "lr": SWEEP_LRS})
            started = time.perf_counter()
            sweep.run(sweep.plan(runs, f"{scratch}/store"), workers, "processes", quiet=True)
            walls.append(time.perf_counter() - started)
    return walls, runs


def measure_sweep(shapes, workers=(1, 2)):
    """A row per shape and number of workers: the sweep of `sweep_seconds`, cold, then with a warm
    cache."""
    for shape in shapes:
        for count in workers:
            (cold, warm), runs = sweep_seconds(shape, count, seeds=(0, 1))
            tokens = sum(run.tokens for run in runs)
            yield {
                "d_model": shape[0],
                "n_layers": shape[1],
                "workers": count,
                "runs": len(runs),
                "cold_s": cold,
                "warm_s": warm,
                "cold_runs/hour": 3600 * len(runs) / cold,
                "cold_tokens/s": tokens / cold,
                "warm_tokens/s": tokens / warm,
            }


# ------------------------------------------------------------------ the store


LOOSE_RUNS = 10_000  # more are packed without being records first, which takes a durable file each

FEW = ("statistic/1",)  # 11 of 80 curves

READ = ("plan_s", "table_s", "peak_MiB")  # what `_read_back` measures


def measure_store(counts):
    """A row per number of stored runs, of 32 points × 80 curves each.

    Seconds to write, plan and tabulate loose records; to merge them; to plan and tabulate packs,
    with all curves and with a few; each with its process's peak memory.
    """
    for count in counts:
        with tempfile.TemporaryDirectory() as name:
            scratch = pathlib.Path(name)
            row, loose = {"runs": count}, count <= LOOSE_RUNS
            row["write_s"] = _in_process(_write_loose, scratch, count) if loose else None
            row |= _read("", scratch, count) if loose else dict.fromkeys(READ)
            row["merge_s"] = _in_process(_merge if loose else _write_packed, scratch, count)
            row["packs_MiB"] = _bytes_in(scratch / "packs") / 2**20
            row |= _read("packed_", scratch, count)
            row |= _read("few_", scratch, count, FEW)
        yield row


def _read(prefix: str, folder: pathlib.Path, count: int, columns=None) -> dict[str, float]:
    values = _in_process(_read_back, folder, count, columns)
    return {f"{prefix}{name}": value for name, value in zip(READ, values, strict=True)}


def _in_process(task, *arguments):
    """A task in a process of its own, so that its peak memory is its own."""
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(task, *arguments).result()


def _store_runs(count: int) -> list[config.Run]:
    return [config.replace(bench_run(SHAPES[0]), seed=i) for i in range(count)]


def _store_records(count: int):
    """Records of `_store_runs`; their curves are noise, which no compression shortens much."""
    fingerprint = datasets.open_dataset("synthetic", 1024).fingerprint
    origin = {"fingerprint": fingerprint, **provenance.provenance()}
    result = {
        "final_loss": 1.0,
        "init_loss": 2.0,
        "diverged": False,
        "diverged_step": -1,
        "train_seconds": 1.0,
    }
    steps, rng = np.arange(1, 33, dtype=np.int32) * 10 - 1, np.random.default_rng(0)
    for run in _store_runs(count):
        meta = {"key": config.key(run, fingerprint), "config": config.flat(run), "result": result}
        noise = rng.standard_normal((80, len(steps)), np.float32)
        curves = {f"statistic/{i}": values for i, values in enumerate(noise)} | {"step": steps}
        yield meta | {"provenance": origin}, curves


def _write_loose(folder: pathlib.Path, count: int) -> float:
    started = time.perf_counter()
    for meta, curves in _store_records(count):
        store.write(folder, meta, curves)
    return time.perf_counter() - started


def _write_packed(folder: pathlib.Path, count: int) -> float:
    started = time.perf_counter()
    store.pack(folder, _store_records(count))
    return time.perf_counter() - started


def _merge(folder: pathlib.Path, _count: int) -> float:
    started = time.perf_counter()
    store.merge([], folder, say=lambda line: None)
    return time.perf_counter() - started


def _read_back(folder: pathlib.Path, count: int, columns) -> tuple[float, float, float]:
    runs = _store_runs(count)
    started = time.perf_counter()
    plan = sweep.plan(runs, folder)
    planned = time.perf_counter()
    tables.table(list(plan.found), plan.folder, columns=columns)
    done = time.perf_counter()
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return planned - started, done - planned, peak_mib


ON_ONE_CORE = {"step": measure_step, "profile": measure_profile}

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # what is to say, the parent says
    settings.use_one_thread()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    show(sys.argv[1], ON_ONE_CORE[sys.argv[1]](float(sys.argv[2])), sys.argv[3] == "json")
