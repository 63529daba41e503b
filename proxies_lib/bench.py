"""Speed, honestly: what a train step, a sweep and a store cost on this machine.

Shapes (d, L) = (32, 2), (64, 3), (128, 4), heads of 16, V 1024, 16 × 64 tokens, float32, qk-layernorm, z-loss and all
taps on. What is compared alternates in rounds, so a drift of the machine hits both; medians are printed.
"""

import concurrent.futures
import json
import multiprocessing
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

from proxies_lib import config, data, optim, store, sweep

SHAPES = ((32, 2), (64, 3), (128, 4))
LONG_CHUNK = 5  # the overhead of logging compares chunks of log_every steps with chunks this many times as long
SWEEP_LRS, SWEEP_STEPS = config.PAPER_WINDOW, 400


def main(part: str, seconds: float, counts: list[int], as_json: bool):
    """Measure `part` ("step", "sweep", "store") and print a table, or JSON lines with the machine's description."""
    if part == "step":  # a fresh process: threads are set before JAX starts
        command = [sys.executable, "-m", "proxies_lib.bench", str(seconds), "json" if as_json else "table"]
        subprocess.run(command, env=sweep.single_threaded(), check=True)
    else:
        show(part, (measure_sweep(SHAPES) if part == "sweep" else measure_store(counts)), as_json)


def show(title: str, rows, as_json: bool):
    """Print rows as they come: JSON lines, or a table headed by the machine's description."""
    for i, row in enumerate(rows):
        if as_json:
            print(json.dumps({"bench": title} | row | sweep.provenance()), flush=True)
            continue
        if not i:
            at = sweep.provenance()
            print(f"{title}: {at['device']}, {os.cpu_count()} cores, jax {at['jax']}, commit {at['commit']}")
            print("  ".join(f"{name:>{max(len(name), 9)}}" for name in row))
        print("  ".join(f"{_short(value):>{max(len(name), 9)}}" for name, value in row.items()), flush=True)


def _short(value) -> str:
    return f"{value:,.0f}" if isinstance(value, float) and abs(value) >= 1000 else f"{value:.3g}" if isinstance(
        value, float) else str(value)  # fmt: skip


def bench_run(shape: tuple[int, int], **changes) -> config.Run:
    """The run that is measured at (d, L), in the sizes in which the peers were measured."""
    base = config.replace(config.scales()["laptop"].base, data="synthetic", d_model=shape[0], n_layers=shape[1])
    sizes = {"d_head": 16, "vocab_size": 1024, "seq_len": 64, "batch_size": 16, "log_every": 10, "steps": 320}
    return config.replace(base, **(sizes | {"warmup_steps": 16} | changes))


class _Training:
    """A compiled program and its state, advanced chunk by chunk."""

    def __init__(self, run: config.Run):
        from proxies_lib.train import Trainer

        self.run, self.trainer, self.times = run, Trainer(*run.program), []
        self.h = {name: np.float32(v) for name, v in optim.inputs(run.hparams).items()}
        dataset = data.open_dataset(run.data, run.model.vocab_size)
        self.tokens = dataset.chunk(run.hparams, 0, run.train, run.model.seq_len)
        self.state = self.trainer.start(self.h, np.int32(0))
        self.advance()

    def advance(self):
        import jax

        started = time.perf_counter()
        self.state, metrics = self.trainer.advance(self.h, self.state, self.tokens)
        jax.device_get(metrics)
        self.times.append((time.perf_counter() - started) / self.run.train.log_every)


def measure_step(seconds: float):
    """A row per shape: tokens/s, steps/s, model GFLOP/s and its share of the matmul peak measured beside it, what
    taps and a chunk boundary add to a step, compile seconds, memory of the step (MiB), all medians of rounds."""
    import jax
    import jax.numpy as jnp

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    size = 1024
    product = jax.jit(lambda a, b: jax.lax.fori_loop(0, 8, lambda _, c: a @ c, b))
    a = jnp.asarray(np.random.default_rng(0).standard_normal((size, size)) / size**0.5, jnp.float32)
    product(a, a).block_until_ready()
    for shape in SHAPES:
        run = bench_run(shape, steps=SWEEP_STEPS)
        normal, long = _Training(run), _Training(config.replace(run, log_every=LONG_CHUNK * run.train.log_every))
        peaks, deadline = [], time.monotonic() + seconds
        while time.monotonic() < deadline or len(peaks) < 5:
            started = time.perf_counter()
            product(a, a).block_until_ready()
            peaks.append(8 * 2 * size**3 / (time.perf_counter() - started))
            for _ in range(LONG_CHUNK):
                normal.advance()
            long.advance()
        normal.times, long.times = normal.times[1:], long.times[1:]
        steps, flops = 1 / statistics.median(normal.times), run.flops / run.hparams.steps
        memory = normal.trainer.advance.memory_analysis()
        # A step with taps and boundary once in n costs s + c/n; two values of n give c/n.
        share = 1 - 1 / LONG_CHUNK
        yield {
            "d_model": shape[0], "n_layers": shape[1], "tokens/s": steps * run.train.batch_size * run.model.seq_len,
            "steps/s": steps, "GFLOP/s": flops * steps / 1e9, "peak_GFLOP/s": statistics.median(peaks) / 1e9,
            "share_of_peak": flops * steps / statistics.median(peaks),
            "logging_share": (1 - statistics.median(long.times) * steps) / share,
            "compile_s": normal.trainer.compile_seconds,
            "memory_MiB": (memory.temp_size_in_bytes + memory.argument_size_in_bytes) / 2**20, "rounds": len(peaks),
        }  # fmt: skip


def sweep_seconds(shape: tuple[int, int], workers: int, seeds) -> tuple[list[float], list[config.Run]]:
    """Seconds of a sweep for each seed, start of the workers included, and the runs of one: 7 learning rates × 2 arms
    of 400 steps. The first seed meets an empty store and an empty compilation cache, the others a warm cache."""
    walls = []
    with tempfile.TemporaryDirectory() as scratch:
        before, os.environ["PROXIES_CACHE"] = os.environ.get("PROXIES_CACHE"), f"{scratch}/cache"
        try:
            for seed in seeds:
                base = bench_run(shape, steps=SWEEP_STEPS, warmup_steps=SWEEP_STEPS // 20, seed=seed)
                runs = config.grid(base, {"qk_norm": ("none", "per_head"), "lr": SWEEP_LRS})
                started = time.perf_counter()
                sweep.run(sweep.plan(runs, f"{scratch}/store"), workers, "processes", quiet=True)
                walls.append(time.perf_counter() - started)
        finally:
            os.environ.pop("PROXIES_CACHE")
            if before is not None:
                os.environ["PROXIES_CACHE"] = before
    return walls, runs


def measure_sweep(shapes, workers=(1, 2)):
    """A row per shape and number of workers: the sweep of `sweep_seconds`, cold, then with a warm cache."""
    for shape in shapes:
        for n in workers:
            (cold, warm), runs = sweep_seconds(shape, n, seeds=(0, 1))
            tokens = sum(r.tokens for r in runs)
            yield {
                "d_model": shape[0], "n_layers": shape[1], "workers": n, "runs": len(runs), "cold_s": cold,
                "warm_s": warm, "cold_runs/hour": 3600 * len(runs) / cold,
                "cold_tokens/s": tokens / cold, "warm_tokens/s": tokens / warm,
            }  # fmt: skip


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
            row |= dict(zip(names, _in_process(_read_back, scratch, count, None) if loose else 3 * [None]))
            row["merge_s"] = _in_process(_merge if loose else _write_packed, scratch, count)
            row["packs_MiB"] = sum(path.stat().st_size for path in pathlib.Path(scratch).glob("packs/*")) / 2**20
            for kind, columns in (("packed", None), ("few", FEW)):
                row |= {f"{kind}_{n}": v for n, v in zip(names, _in_process(_read_back, scratch, count, columns))}
        yield row


def _in_process(task, *arguments):
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(task, *arguments).result()


def _store_runs(count: int) -> list[config.Run]:
    return [config.replace(bench_run(SHAPES[0]), seed=i) for i in range(count)]


def _store_records(count: int):
    """Records of `_store_runs`; their curves are noise, which no compression shortens much."""
    fingerprint = data.open_dataset("synthetic", 1024).fingerprint
    provenance = {"fingerprint": fingerprint, **sweep.provenance()}
    result = {"final_loss": 1.0, "init_loss": 2.0, "diverged": False, "diverged_step": -1, "train_seconds": 1.0}
    steps, rng = np.arange(1, 33, dtype=np.int32) * 10 - 1, np.random.default_rng(0)
    for run in _store_runs(count):
        meta = {"key": config.key(run, fingerprint), "config": config.flat(run), "result": result}
        noise = rng.standard_normal((80, len(steps)), np.float32)
        curves = {f"statistic/{i}": values for i, values in enumerate(noise)} | {"step": steps}
        yield meta | {"provenance": provenance}, curves


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
    store.table(list(plan.found), plan.folder, columns=columns)
    done = time.perf_counter()
    return planned - started, done - planned, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    show("step", measure_step(float(sys.argv[1])), sys.argv[2] == "json")
