"""Speed, honestly: what a train step, a sweep and a store cost on this machine.

Shapes (d, L) = (32, 2), (64, 3), (128, 4), heads of 16, V 1024, 16 × 64 tokens, float32, qk-layernorm, z-loss and all
taps on. What is compared alternates in rounds, so a drift of the machine hits both; medians are printed.
"""

import collections
import concurrent.futures
import json
import multiprocessing
import os
import pathlib
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import unittest.mock

import numpy as np

from proxies_lib import config, ops, optim, paths, settings
from proxies_lib.runs import datasets, provenance, store, sweep, tables
from proxies_lib.science import protocol

SHAPES = ((32, 2), (64, 3), (128, 4))

PROFILED_CALLS = 5

SWEEP_LRS, SWEEP_STEPS = protocol.PAPER_WINDOW, 400


def main(part: str | None, seconds: float, counts: list[int], as_json: bool):
    """Measure `part` ("step", "profile", "lanes", "checkpoint", "sweep", "store"; None: lanes on an accelerator, else a
    step) and print a table, or JSON lines with the machine's description."""
    part = part or ("step" if settings.platform_of_jax() == "cpu" else "lanes")
    if part in ON_ONE_CORE:  # a fresh process: threads are set before JAX starts
        command = [
            sys.executable,
            "-m",
            "proxies_lib.budget.bench",
            part,
            str(seconds),
            "json" if as_json else "table",
        ]
        subprocess.run(command, env=os.environ | settings.ONE_THREAD_AT_START, check=True)
        return
    measure = {
        "lanes": lambda: measure_lanes(seconds),
        "checkpoint": lambda: measure_checkpoint(seconds),
        "sweep": lambda: measure_sweep(SHAPES),
        "store": lambda: measure_store(counts),
    }
    show(part, measure[part](), as_json)


def show(title: str, rows, as_json: bool):
    """Print rows as they come: JSON lines, or a table headed by the machine's description."""
    for i, row in enumerate(rows):
        if as_json:
            print(json.dumps({"bench": title} | row | provenance.provenance()), flush=True)
            continue
        if not i:
            at = provenance.provenance()
            print(
                f"{title}: {at['device']}, {os.cpu_count()} cores, jax {at['jax']}, commit {at['commit']}"
            )
            print("  ".join(f"{name:>{max(len(name), 9)}}" for name in row))
        print(
            "  ".join(f"{_short(value):>{max(len(name), 9)}}" for name, value in row.items()),
            flush=True,
        )


def _short(value) -> str:
    return (
        f"{value:,.0f}"
        if isinstance(value, float) and abs(value) >= 1000
        else f"{value:.3g}"
        if isinstance(value, float)
        else str(value)
    )


def bench_run(shape: tuple[int, int], **changes) -> config.Run:
    """The run that is measured at (d, L), in the sizes in which the peers were measured."""
    base = config.replace(
        protocol.scales()["laptop"].base, data="synthetic", d_model=shape[0], n_layers=shape[1]
    )
    sizes = {
        "d_head": 16,
        "vocab_size": 1024,
        "seq_len": 64,
        "batch_size": 16,
        "log_every": 10,
        "steps": 320,
    }
    return config.replace(base, **(sizes | {"warmup_steps": 16} | changes))


class _Training:
    """A compiled program and its state, advanced call by call; as a worker trains it, unless there is a layout."""

    def __init__(self, run: config.Run, layout=None, devices=None):
        from proxies_lib.layout import layout_alone
        from proxies_lib.train import Trainer

        layout = layout or layout_alone(run)
        self.trainer, self.times = Trainer(*run.program, layout, devices), []
        self.steps = layout.points * run.train.log_every
        lead = (layout.lanes,) if layout.lanes else ()
        everywhere = self.trainer.shardings()
        numbers = {
            name: np.full(lead, value, np.float32)
            for name, value in optim.inputs(run.hparams).items()
        }
        self.h = {name: self.trainer.put(value, everywhere) for name, value in numbers.items()}
        dataset = datasets.open_dataset(run.data, run.model.vocab_size)
        self.tokens = self.trainer.tokens(dataset, [run.order] * max(layout.lanes, 1), 0)
        self.state = self.trainer.init(
            self.h, self.trainer.put(np.zeros(lead, np.int32), everywhere)
        )
        self.advance()

    def advance(self):
        import jax

        started = time.perf_counter()
        self.state, metrics = self.trainer.chunk(self.h, self.state, self.tokens)
        metrics = jax.device_get(metrics)
        self.times.append((time.perf_counter() - started) / self.steps)
        return metrics


def _matmul_peak(size: int = 1024, dtype: str = "float32"):
    """A function that measures FLOP/s of products of `size` × `size` matrices, after it has compiled them."""
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


def measure_step(seconds: float):
    """A row per shape: tokens/s, steps/s, model GFLOP/s and its share of the matmul peak measured beside it; the shares
    of a step's time that taps (with tensor RMS, once per `log_every`; against a program without them) and calls (boundaries,
    once per `points`) take; compile seconds, memory of the step (MiB); all medians of rounds."""
    from proxies_lib.layout import Layout

    peak = _matmul_peak()
    for shape in SHAPES:
        run = bench_run(shape, steps=SWEEP_STEPS)
        normal = _Training(run)
        points = normal.steps // run.train.log_every
        short = _Training(run, Layout())
        with _without_taps():
            bare = _Training(run)
        peaks, deadline = [], time.monotonic() + seconds
        while time.monotonic() < deadline or len(peaks) < 5:
            peaks.append(peak())
            normal.advance()
            bare.advance()
            for _ in range(points):
                short.advance()
        per_round = np.reshape(short.times[1:], (-1, points)).mean(1)
        steps, flops = 1 / statistics.median(normal.times[1:]), run.flops / run.hparams.steps
        memory = normal.trainer.chunk.memory_analysis()
        # What happens once in n steps costs c/n of each: two values of n, `points` times apart, tell c.
        calls = (np.median(per_round / normal.times[1:]) - 1) / (points - 1)
        taps = 1 - np.median(np.divide(bare.times[1:], normal.times[1:]))
        yield {
            "d_model": shape[0],
            "n_layers": shape[1],
            "tokens/s": steps * run.train.batch_size * run.model.seq_len,
            "steps/s": steps,
            "GFLOP/s": flops * steps / 1e9,
            "peak_GFLOP/s": statistics.median(peaks) / 1e9,
            "share_of_peak": flops * steps / statistics.median(peaks),
            "points": points,
            "taps_share": taps,
            "calls_share": calls,
            "compile_s": normal.trainer.compile_seconds,
            "memory_MiB": (memory.temp_size_in_bytes + memory.argument_size_in_bytes) / 2**20,
            "rounds": len(peaks),
        }


def _without_taps():
    """Where a program is traced: its probes then see nothing, and cost nothing."""
    observe = ops.zeros_unless
    return unittest.mock.patch.object(
        ops, "zeros_unless", lambda probe, *seen: observe(False, *seen)
    )


KINDS = ("products", "reductions", "other")


def kernels(hlo: str) -> dict[str, str]:
    """The kind, of `KINDS`, of each instruction in a compiled program's text: `products` are dots and fusions around one,
    `reductions` likewise, `other` is elementwise work, gathers and copies. Control flow is left out: what it runs counts."""
    heading = re.compile(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
    instruction = re.compile(
        r"\s+(?:ROOT )?%?([\w.\-]+) = (?:\(.*?\)|\S+) ([\w\-]+)\((?:.* calls=%?([\w.\-]+))?"
    )
    inside, found, computation = collections.defaultdict(set), [], ""
    for line in hlo.splitlines():
        if match := heading.match(line):
            computation = match[1]
        elif match := instruction.match(line):
            found.append(match.groups())
            inside[computation].add(match[2])
    kinds = {}
    for name, opcode, called in found:
        opcodes = inside.get(called, {opcode})
        if opcode not in ("while", "conditional", "call"):
            kinds[name] = (
                "products" if "dot" in opcodes else "reductions" if "reduce" in opcodes else "other"
            )
    return kinds


def measure_profile(seconds: float):
    """A row per shape: where a step's time goes, by JAX's profiler, in ms, and what bounds it. Shares of kinds of kernel
    are the profiler's; the step they share is timed without it. `products_at_peak` is the time of the step's products at
    the matmul peak measured beside it, `ceiling` how much faster the step were if all its products ran at that peak;
    `ceiling_free`, if instead all that is no product took no time."""
    import jax

    peak = _matmul_peak()
    for shape in SHAPES:
        run = bench_run(shape, steps=SWEEP_STEPS)
        training, peaks, deadline = _Training(run), [], time.monotonic() + seconds
        while time.monotonic() < deadline or len(peaks) < 5:
            peaks.append(peak())
            training.advance()
        step = statistics.median(training.times[1:])
        kinds, spent, counts = (
            kernels(training.trainer.chunk.as_text()),
            collections.Counter(),
            collections.Counter(),
        )
        with tempfile.TemporaryDirectory() as folder:
            with jax.profiler.trace(folder):
                for _ in range(PROFILED_CALLS):
                    training.advance()
            (written,) = pathlib.Path(folder).rglob("*.xplane.pb")
            for plane in jax.profiler.ProfileData.from_file(str(written)).planes:
                for event in (
                    event for line in plane.lines for event in line.events if event.name in kinds
                ):
                    spent[kinds[event.name]] += event.duration_ns
                    counts[kinds[event.name]] += 1 / PROFILED_CALLS / training.steps
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


def _models() -> list[config.Run]:
    """On an accelerator the models of the gpu scale, each with its batch; else those of `SHAPES`."""
    if settings.platform_of_jax() == "cpu":
        return [bench_run(shape, steps=SWEEP_STEPS) for shape in SHAPES]
    study = protocol.scales()["gpu"]
    base = config.replace(
        study.base, data="synthetic", log_every=10
    )  # speed does not depend on the text
    return [config.replace(base, d_model=d, n_layers=n) for d, n in study.sizes]


def measure_lanes(seconds: float, runs: list[config.Run] | None = None):
    """A row per model: a run at a time on one device against lanes on all devices (`train.layout_for`), alternated in
    rounds; tokens/s of both, the share of the matmul peak in the compute dtype, measured on one device beside them, that
    lanes reach on each, compile seconds, memory of a device (MiB)."""
    import jax

    from proxies_lib.layout import layout_for

    accelerator, devices = settings.platform_of_jax() != "cpu", jax.devices()
    for run in runs or _models():
        layout = layout_for(*run.program, devices)
        one, all_ = _Training(run), _Training(run, layout, devices)
        peak = _matmul_peak(8192 if accelerator else 1024, run.model.compute_dtype)
        peaks, deadline = [], time.monotonic() + seconds
        while time.monotonic() < deadline or len(peaks) < 5:
            peaks.append(peak())
            one.advance()
            all_.advance()
        steps, wide = (1 / statistics.median(each.times[1:]) for each in (one, all_))
        wide *= max(layout.lanes, 1)
        tokens, flops = run.train.batch_size * run.model.seq_len, run.flops / run.hparams.steps
        memory = all_.trainer.chunk.memory_analysis()
        yield {
            "d_model": run.model.d_model,
            "n_layers": run.model.n_layers,
            "dtype": run.model.compute_dtype,
            "lanes": layout.lanes,
            "devices": len(devices),
            "one_tokens/s": tokens * steps,
            "tokens/s": tokens * wide,
            "speedup": wide / steps,
            "TFLOP/s": flops * wide / 1e12,
            "peak_TFLOP/s": statistics.median(peaks) / 1e12,
            "share_of_peak": flops * wide / len(devices) / statistics.median(peaks),
            "one_share_of_peak": flops * steps / statistics.median(peaks),
            "one_compile_s": one.trainer.compile_seconds,
            "compile_s": all_.trainer.compile_seconds,
            "memory_MiB": (memory.temp_size_in_bytes + memory.argument_size_in_bytes) / 2**20,
            "rounds": len(peaks),
        }


def measure_checkpoint(seconds: float, runs: list[config.Run] | None = None):
    """A row per model: what the first checkpoint of its lanes costs, on a CPU of one run: `MiB` on the disk, `waits_s` that
    training waits, `whole_s` until it is written (training goes on meanwhile), `restore_s`; `interval_steps` and
    `interval_s`, the training between two; `share`, waits_s of that, and `share_at_most`, all of whole_s."""
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
        rounds, deadline = [], time.monotonic() + seconds
        while time.monotonic() < deadline or len(rounds) < 5:
            points = [training.advance()] * (every // run.train.log_every)
            with (
                tempfile.TemporaryDirectory() as folder,
                paths.environment("PROXIES_CHECKPOINTS", folder),
            ):
                group = checkpoint.Group([run], ["bench"], layout)
                started = time.perf_counter()
                group.after(
                    every, training.state, np.zeros(max(layout.lanes, 1), np.float32), points
                )
                waited = time.perf_counter()
                group.close(finished=False)
                written = time.perf_counter()
                size = sum(
                    path.stat().st_size
                    for path in pathlib.Path(folder).rglob("*")
                    if path.is_file()
                )
                group = checkpoint.Group([run], ["bench"], layout)
                restoring = time.perf_counter()
                group.restore(*training.trainer.abstract())
                rounds.append(
                    (waited - started, written - started, time.perf_counter() - restoring)
                )
                group.close(finished=True)
        waits, whole, restore = np.median(rounds, axis=0)
        interval = every * statistics.median(training.times[1:])
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


def sweep_seconds(
    shape: tuple[int, int], workers: int, seeds
) -> tuple[list[float], list[config.Run]]:
    """Seconds of a sweep for each seed, start of the workers included, and the runs of one: 7 learning rates × 2 arms
    of 400 steps. The first seed meets an empty store and an empty compilation cache, the others a warm cache."""
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
    """A row per shape and number of workers: the sweep of `sweep_seconds`, cold, then with a warm cache."""
    for shape in shapes:
        for n in workers:
            (cold, warm), runs = sweep_seconds(shape, n, seeds=(0, 1))
            tokens = sum(r.tokens for r in runs)
            yield {
                "d_model": shape[0],
                "n_layers": shape[1],
                "workers": n,
                "runs": len(runs),
                "cold_s": cold,
                "warm_s": warm,
                "cold_runs/hour": 3600 * len(runs) / cold,
                "cold_tokens/s": tokens / cold,
                "warm_tokens/s": tokens / warm,
            }


LOOSE_RUNS = 10_000  # more are packed without being records first, which takes a durable file each

FEW = ("statistic/1",)  # 11 of 80 curves


def measure_store(counts):
    """A row per number of stored runs, of 32 points × 80 curves each: seconds to write, plan and tabulate loose records;
    to merge them; to plan and tabulate packs, with all curves and with a few; each with its process's peak memory."""
    names = ("plan_s", "table_s", "peak_MiB")
    for count in counts:
        with tempfile.TemporaryDirectory() as scratch:
            row, loose = {"runs": count}, count <= LOOSE_RUNS
            row["write_s"] = _in_process(_write_loose, scratch, count) if loose else None
            row |= dict(
                zip(names, _in_process(_read_back, scratch, count, None) if loose else 3 * [None])
            )
            row["merge_s"] = _in_process(_merge if loose else _write_packed, scratch, count)
            row["packs_MiB"] = (
                sum(path.stat().st_size for path in pathlib.Path(scratch).glob("packs/*")) / 2**20
            )
            for kind, columns in (("packed", None), ("few", FEW)):
                row |= {
                    f"{kind}_{n}": v
                    for n, v in zip(names, _in_process(_read_back, scratch, count, columns))
                }
        yield row


def _in_process(task, *arguments):
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


def _write_loose(folder: str, count: int) -> float:
    started = time.perf_counter()
    for meta, curves in _store_records(count):
        store.write(folder, meta, curves)
    return time.perf_counter() - started


def _write_packed(folder: str, count: int) -> float:
    started = time.perf_counter()
    store.pack(folder, _store_records(count))
    return time.perf_counter() - started


def _merge(folder: str, _count: int) -> float:
    started = time.perf_counter()
    store.merge([], folder, say=lambda line: None)
    return time.perf_counter() - started


def _read_back(folder: str, count: int, columns) -> tuple[float, float, float]:
    runs = _store_runs(count)
    started = time.perf_counter()
    plan = sweep.plan(runs, folder)
    planned = time.perf_counter()
    tables.table(list(plan.found), plan.folder, columns=columns)
    done = time.perf_counter()
    return (
        planned - started,
        done - planned,
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )


ON_ONE_CORE = {"step": measure_step, "profile": measure_profile}

if __name__ == "__main__":
    settings.use_one_thread()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    show(sys.argv[1], ON_ONE_CORE[sys.argv[1]](float(sys.argv[2])), sys.argv[3] == "json")
