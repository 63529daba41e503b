"""Sweep throughput beside nanoGPT and NanoDO, driven from their public code on the same cores.

    python benchmarks/peers.py --nanogpt CHECKOUT --torch-python PYTHON --nanodo CHECKOUT \\
        [--rounds 3] [--seconds 8] [--shapes 32,2]

The question: 7 learning rates × 2 arms of 400 steps at (d, L), heads of 16, V 1024, 16 × 64 tokens,
float32. Ours is trained in full from an empty store and an empty cache: data, evaluation, taps,
records, start-up and compilation included.

A peer is given the benefit of every doubt: its step alone is timed on tokens in memory, without
data, evaluation or logging, and the sweep's time is its start-up and compilation plus 14 × 400
such steps. Its arrangements: nanoGPT eager or compiled, as one process of two threads or two
processes of one; NanoDO as one process, compiled again for each run (its learning rate is a
constant of the program). Arrangements alternate in rounds; medians are printed.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

SHAPES = ((32, 2), (64, 3), (128, 4))
RUNS, STEPS, TOKENS = 14, 400, 16 * 64


def nanogpt(checkout: str, d: int, n_layers: int, seconds: float, compiled: bool, threads: int):
    sys.path.insert(0, checkout)
    import torch
    from model import GPT, GPTConfig

    torch.set_num_threads(threads)
    started = time.perf_counter()
    sizes = GPTConfig(
        block_size=64,
        vocab_size=1024,
        n_layer=n_layers,
        n_head=d // 16,
        n_embd=d,
        dropout=0.0,
        bias=False,
    )
    model = GPT(sizes)
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), "cpu")
    model = torch.compile(model) if compiled else model
    windows = torch.randint(0, 1024, (16, 65))
    x, y = windows[:, :-1].contiguous(), windows[:, 1:].contiguous()

    def step():
        loss = model(x, y)[1]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return measure(step, started, seconds)


def nanodo(checkout: str, d: int, n_layers: int, seconds: float):
    sys.path.insert(0, checkout)
    import jax
    import jax.numpy as jnp
    import optax
    from nanodo.model import DoConfig, TransformerDo

    started = time.perf_counter()
    model = TransformerDo(
        DoConfig(D=d, H=d // 16, L=64, N=n_layers, V=1024, F=4 * d, fsdp_enabled=False)
    )
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(1e-3, 0.9, 0.98, 1e-9, weight_decay=1e-4)
    )
    windows = jax.random.randint(jax.random.key(0), (16, 65), 0, 1024)
    params = jax.jit(model.init)(jax.random.key(1), windows[:, :-1])
    state = [params, optimizer.init(params)]

    @jax.jit
    def update(params, opt, windows):
        def loss_fn(params):
            logits = model.apply(params, windows[:, :-1])
            return jnp.mean(
                optax.losses.softmax_cross_entropy_with_integer_labels(logits, windows[:, 1:])
            )

        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, opt = optimizer.update(grads, opt, params)
        return optax.apply_updates(params, updates), opt, loss

    def step():
        state[0], state[1], loss = update(*state, windows)
        loss.block_until_ready()

    return measure(step, started, seconds)


def measure(step, started: float, seconds: float) -> dict:
    step()
    startup, times, end = time.perf_counter() - started, [], time.monotonic() + seconds
    while time.monotonic() < end or len(times) < 5:
        begun = time.perf_counter()
        for _ in range(5):
            step()
        times.append((time.perf_counter() - begun) / 5)
    return {"startup": startup, "seconds_per_step": statistics.median(times)}


def child(python: str, options, name: str, shape, core: int | None, **more) -> subprocess.Popen:
    arguments = json.dumps(
        {
            "name": name,
            "checkout": getattr(options, name),
            "d": shape[0],
            "n_layers": shape[1],
            "seconds": options.seconds,
            "core": core,
            **more,
        }
    )
    return subprocess.Popen(
        [python, __file__, "--child", arguments],
        stdout=subprocess.PIPE,
        text=True,
        stderr=subprocess.DEVNULL,
    )


def peer_sweep(children: list, runs_share: int, startups: int) -> float:
    """Seconds of the whole sweep: the slowest process, each doing `runs_share` runs after
    `startups` start-ups."""
    replies = [json.loads(c.communicate()[0].splitlines()[-1]) for c in children]
    return max(
        r["startup"] * startups + r["seconds_per_step"] * STEPS * runs_share for r in replies
    )


def arrangements(options, shape) -> dict:
    gpt, torch, here = "nanogpt", options.torch_python, sys.executable
    half = RUNS // 2

    def ours() -> float:
        from proxies_lib.budget import bench

        return bench.sweep_seconds(shape, workers=2, seeds=(0,))[0][0]

    rows = {"ours, 2 workers": ours}
    for compiled in (False, True):
        kind = "compiled" if compiled else "eager"
        rows[f"nanoGPT {kind}, 2 processes"] = lambda compiled=compiled: peer_sweep(
            [
                child(torch, options, gpt, shape, core, compiled=compiled, threads=1)
                for core in (0, 1)
            ],
            half,
            1,
        )
        rows[f"nanoGPT {kind}, 2 threads"] = lambda compiled=compiled: peer_sweep(
            [child(torch, options, gpt, shape, None, compiled=compiled, threads=2)], RUNS, 1
        )
    rows["NanoDO, sequential"] = lambda: peer_sweep(
        [child(here, options, "nanodo", shape, None)], RUNS, RUNS
    )
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--nanogpt")
    parser.add_argument("--nanodo")
    parser.add_argument("--torch-python", help="a Python with torch")
    parser.add_argument(
        "--shapes",
        nargs="+",
        default=SHAPES,
        metavar="D,L",
        type=lambda text: tuple(map(int, text.split(","))),
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0)
    options = parser.parse_args()
    if options.child:
        order = json.loads(options.child)
        core, name = order.pop("core"), order.pop("name")
        if core is not None and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[core]})
        print(json.dumps({"nanogpt": nanogpt, "nanodo": nanodo}[name](**order)))
        return
    if not (options.nanogpt and options.nanodo and options.torch_python):
        parser.error("--nanogpt, --nanodo and --torch-python are needed")
    for shape in options.shapes:
        rows = arrangements(options, shape)
        seconds = {name: [] for name in rows}
        for _ in range(options.rounds):
            for name, sweep in rows.items():
                seconds[name].append(sweep())
        ours = statistics.median(seconds["ours, 2 workers"])
        for name, values in seconds.items():
            median = statistics.median(values)
            print(
                f"(d, L) = {shape}  {name:28}{median:8.1f} s  "
                f"{RUNS * STEPS * TOKENS / median:10,.0f} tokens/s  "
                f"{3600 * RUNS / median:7,.0f} runs/hour  ours is {median / ours:5.2f} x",
                flush=True,
            )


if __name__ == "__main__":
    main()
