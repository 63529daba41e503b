"""Speed, honestly: training throughput per core beside the matmul peak measured in the same process.

Shapes (d, L) = (32, 2), (64, 3), (128, 4), V 1024, 16 × 64 tokens, float32, one thread, qk-layernorm, z-loss and all
taps on. Peak and shapes alternate in rounds, so a drift of the machine hits both; medians are printed.
"""

import json
import os
import statistics
import subprocess
import sys
import time

from proxies_lib.sweep import single_threaded

SHAPES = ((32, 2), (64, 3), (128, 4))


def main(seconds: float, as_json: bool):
    """Measure in a fresh single-threaded process and print a table, or JSON lines."""
    command = [sys.executable, "-m", "proxies_lib.bench", str(seconds), "json" if as_json else "table"]
    subprocess.run(command, env=single_threaded(), check=True)


def measure(seconds: float) -> list[dict]:
    """One row per shape: tokens/s, steps/s, model GFLOP/s, its share of the peak, compile seconds; all medians."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from proxies_lib import config, data, optim, sweep
    from proxies_lib.train import Trainer

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    size = 1024
    product = jax.jit(lambda a, b: jax.lax.fori_loop(0, 8, lambda _, c: a @ c, b))
    a = jnp.asarray(np.random.default_rng(0).standard_normal((size, size)) / size**0.5, jnp.float32)

    def peak() -> float:
        started = time.perf_counter()
        product(a, a).block_until_ready()
        return 8 * 2 * size**3 / (time.perf_counter() - started)

    peak()
    dataset = data.open_dataset("synthetic", 1024)
    base = config.replace(config.scales()["laptop"].base, data="synthetic")
    shapes = []
    for d_model, n_layers in SHAPES:
        run = config.replace(base, d_model=d_model, n_layers=n_layers)
        trainer = Trainer(*run.program)
        h = {name: np.float32(v) for name, v in optim.inputs(run.hparams).items()}
        tokens = dataset.chunk(0, 0, run.train, run.model.seq_len)
        state, _ = trainer.advance(h, trainer.start(np.int32(0)), tokens)
        shapes.append([run, trainer, h, tokens, state, [], []])
    deadline = time.monotonic() + seconds * len(SHAPES)
    while time.monotonic() < deadline or len(shapes[0][5]) < 5:
        for shape in shapes:
            run, trainer, h, tokens, state, times, peaks = shape
            peaks.append(peak())
            started = time.perf_counter()
            state, metrics = trainer.advance(h, state, tokens)
            jax.device_get(metrics)
            times.append(time.perf_counter() - started)
            shape[4] = state
    rows = []
    for run, trainer, _, _, _, times, peaks in shapes:
        steps = run.train.log_every / statistics.median(times)
        flops = run.flops / run.hparams.steps * steps
        rows.append({
            "d_model": run.model.d_model, "n_layers": run.model.n_layers,
            "tokens_per_second": steps * run.train.batch_size * run.model.seq_len, "steps_per_second": steps,
            "model_gflops": flops / 1e9, "peak_gflops": statistics.median(peaks) / 1e9,
            "share_of_peak": flops / statistics.median(peaks), "compile_seconds": trainer.compile_seconds,
            "rounds": len(times), **sweep.provenance(),
        })  # fmt: skip
    return rows


if __name__ == "__main__":
    for i, row in enumerate(measure(float(sys.argv[1]))):
        if sys.argv[2] == "json":
            print(json.dumps(row))
            continue
        if not i:
            print(
                f"{row['device']}, one core, jax {row['jax']}, commit {row['commit']}; medians of {row['rounds']} rounds"
            )
            print(" d_model  layers   tokens/s   steps/s   GFLOP/s   matmul peak   share   compile")
        print(
            f"{row['d_model']:8}{row['n_layers']:8}{row['tokens_per_second']:11,.0f}{row['steps_per_second']:10.1f}"
            f"{row['model_gflops']:10.1f}{row['peak_gflops']:14.1f}{row['share_of_peak']:8.0%}"
            f"{row['compile_seconds']:9.1f}s"
        )
