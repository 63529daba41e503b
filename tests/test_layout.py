"""Layouts: the same numbers on any number of devices.

Each case runs in a process that sees eight CPU devices.
"""

import json
import os
import re
import socket
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from proxies_lib import config, model, ops, paths
from proxies_lib.config import UserError, replace
from proxies_lib.interventions import intervention
from proxies_lib.layout import Layout, layout_for, memory
from proxies_lib.runs import tables
from proxies_lib.science import protocol

# Relative, of losses after 40 steps: sums over devices and microbatches round otherwise.
TOLERANCE = 1e-3
BASE = replace(protocol.scales()["smoke"].base, d_model=16, n_layers=2, batch_size=8)
LAYOUTS = {
    "one": {},
    "scan": {"scan": True},
    "accumulate": {"accumulate": 4},
    **{f"data {n}": {"data": n} for n in (2, 8)},
    **{f"run {n}": {"run": n, "lanes": 8} for n in (2, 8)},
    "everything": {"run": 2, "data": 2, "lanes": 4, "scan": True, "accumulate": 2},
}
TRAIN = """
import json, sys, jax
from proxies_lib import config
from proxies_lib.layout import Layout
from proxies_lib.runs import datasets
from proxies_lib.train import Trainer
run, layouts = config.from_flat(json.loads(sys.argv[1])), json.loads(sys.argv[2])
dataset = datasets.open_dataset("synthetic", run.model.vocab_size)
for name, options in layouts.items():
    layout = Layout(**options)
    trainer = Trainer(*run.program, layout, None if name == "one" else jax.devices())
    result = trainer.train([run], dataset)[0]
    curves = {k: v.tolist() for k, v in result["curves"].items()}
    print(json.dumps({"name": name, "final_loss": result["final_loss"], "curves": curves,
                      "program": trainer.chunk.as_text()}))
"""


def environment(devices: int) -> dict:
    flags = f"--xla_force_host_platform_device_count={devices}"
    return os.environ | {
        "XLA_FLAGS": flags,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(paths.root()),
    }


def in_layouts(run: config.Run, layouts: dict) -> dict:
    """What `run` gives in each layout, on eight devices, by the layout's name."""
    command = [sys.executable, "-c", TRAIN, json.dumps(config.flat(run)), json.dumps(layouts)]
    done = subprocess.run(command, env=environment(8), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return {row["name"]: row for row in map(json.loads, done.stdout.splitlines())}


@pytest.fixture(scope="module")
def trained():
    return in_layouts(BASE, LAYOUTS)


@pytest.mark.parametrize("name", [n for n in LAYOUTS if n != "one"])
def test_numbers_do_not_depend_on_the_layout(trained, name):
    assert_same_numbers(trained["one"], trained[name])


@intervention(version=1, tau=2.0)
class clipped_and_capped:
    """At three places: before the softmax, after the step on stacked blocks, and on the loss."""

    def attention_logits(z, h):
        return 50.0 * jnp.tanh(z / 50.0)

    def loss(z, labels, params, h):
        return 1e-3 * jnp.square(z.max(axis=-1)).mean()

    def after(params, seen, h):
        def clipped(block, largest_H):
            attention = block["attention"]
            kernel = attention["query"]["kernel"]
            shrink_H = jnp.minimum(1.0, h["tau"] / largest_H)
            factor = jnp.repeat(shrink_H, kernel.shape[-1] // largest_H.size)
            return block | {"attention": attention | {"query": {"kernel": kernel * factor}}}

        return model.over_blocks(clipped, params, seen["max_attention_logit_of_head"])


def test_an_intervention_is_the_same_in_every_layout(trained):
    run = clipped_and_capped(replace(BASE, qk_norm="none", lr=0.1))
    names = ("one", "data 2", "everything")
    found = in_layouts(run, {name: LAYOUTS[name] for name in names})
    for name in names[1:]:
        assert_same_numbers(found["one"], found[name])
    assert found["one"]["final_loss"] != trained["one"]["final_loss"]


def assert_same_numbers(one: dict, other: dict):
    assert other["final_loss"] == pytest.approx(one["final_loss"], rel=TOLERANCE)
    assert one["curves"].keys() == other["curves"].keys()
    noisy = ("gradient_norm", "grad_rms", "update_rms", "mean_output_logit")
    for column, values in one["curves"].items():
        if column.startswith(noisy):
            continue
        found = other["curves"][column]
        np.testing.assert_allclose(found, values, rtol=0.02, atol=2e-3, err_msg=column)
    np.testing.assert_allclose(
        other["curves"]["gradient_norm"], one["curves"]["gradient_norm"], rtol=0.05
    )


COLLECTIVE = re.compile(
    r"= \S+ (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)"
)


@pytest.mark.parametrize("devices", (2, 8))
def test_runs_in_parallel_need_no_collectives(trained, devices):
    assert not COLLECTIVE.findall(trained[f"run {devices}"]["program"])
    assert COLLECTIVE.findall(trained[f"data {devices}"]["program"])  # the pattern does find them


def test_sharded_state_is_split_and_lanes_are_too():
    code = """
import jax
from proxies_lib import config, optim
from proxies_lib.layout import Layout
from proxies_lib.science import protocol
from proxies_lib.train import Trainer
run = config.replace(protocol.scales()["smoke"].base, d_model=16, batch_size=8)
trainer = Trainer(*run.program, Layout(data=8), jax.devices())
def everywhere(number):
    return trainer.put(number, trainer.shardings())
h = {k: everywhere(jax.numpy.float32(v)) for k, v in optim.inputs(run.hparams).items()}
state = trainer.init(h, everywhere(jax.numpy.int32(0)))
big = [x for x in jax.tree.leaves(state) if x.size >= 256]
assert big and all(x.addressable_shards[0].data.size * 8 == x.size for x in big)
"""
    subprocess.run([sys.executable, "-c", code], env=environment(8), check=True)


def test_layouts_follow_memory_and_devices():
    class Device:
        process_index = 0

        def memory_stats(self):
            return {"bytes_limit": 80e9}

    small = protocol.scales()["gpu"].base
    big = replace(protocol.scales()["paper"].base, d_model=4096, n_layers=24)
    one, eight = (layout_for(*small.program, [Device()] * n) for n in (1, 8))
    assert one.run == 1 and eight == Layout(lanes=8 * one.lanes, run=8)
    assert memory(*small.program, one) * one.lanes < 80e9
    sharded = layout_for(*big.program, [Device()] * 8)
    assert sharded.data == 8 and sharded.scan and not sharded.lanes
    assert memory(*big.program, sharded) < 80e9
    assert layout_for(*replace(small, n_layers=96).program, [Device()]).scan
    for layout in (
        Layout(data=3),
        Layout(run=2),
        Layout(lanes=3, run=2),
        Layout(accumulate=5),
        Layout(lanes=2, points=2),
    ):
        with pytest.raises(UserError, match="must be"):
            layout.check(*small.program)


def test_fused_attention_is_the_same_attention():
    """With XLA's implementation of the same call, on a CPU; the kernel itself needs a GPU."""
    import jax
    import jax.numpy as jnp

    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 4, 8, 16))  # (B, H, K, T)
    logits = jnp.where(ops.causal(jnp.zeros((16, 16))), ops.attention_logits(q, k, 0.3), -jnp.inf)
    plain = jnp.einsum("BHKS,BHST->BHKT", v, jax.nn.softmax(logits, axis=-2))
    np.testing.assert_allclose(ops.fused_attention(q, k, v, 0.3, "xla"), plain, atol=1e-5)


def test_a_model_with_fused_attention_has_the_same_logits_and_taps(monkeypatch):
    import functools

    import jax

    tiny = BASE.model
    params, tokens = model.init(tiny, jax.random.key(0)), np.arange(64).reshape(2, 32) % 64
    plain = model.apply(tiny, params, tokens)
    monkeypatch.setattr(model, "fused", lambda _: True)
    monkeypatch.setattr(
        model, "fused_attention", functools.partial(ops.fused_attention, implementation="xla")
    )
    one_kernel = model.apply(tiny, params, tokens)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(one_kernel), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


SWEEP = """
import sys
host, folder = int(sys.argv[1]), sys.argv[2]
from proxies_lib import config
from proxies_lib.cli import sections
from proxies_lib.runs import sweep
from proxies_lib.science import protocol
sections._join(f"{sys.argv[3]},2,{host}")
runs = config.grid(protocol.scales()["smoke"].base, {"lr": (1e-2, 1e-1), "seed": (0, 1)})
sweep.run(sweep.plan(runs, f"{folder}/{host}"))
"""


def test_two_processes_equal_one_and_only_the_first_writes(tmp_path):
    """`jax.distributed` on localhost: each process has a device and a store of its own."""
    from proxies_lib.runs import sweep

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-c", SWEEP]
    two = [
        subprocess.Popen([*command, str(i), str(tmp_path), address], env=environment(1))
        for i in (0, 1)
    ]
    assert [p.wait(timeout=300) for p in two] == [0, 0]
    assert not list((tmp_path / "1").rglob("*.npz"))
    runs = config.grid(protocol.scales()["smoke"].base, {"lr": (1e-2, 1e-1), "seed": (0, 1)})
    sweep.run(sweep.plan(runs, tmp_path / "alone"), workers=1, engine="processes")
    losses = []
    for name in ("0", "alone"):
        found = list(sweep.plan(runs, tmp_path / name).found)
        losses.append(tables.table(found, tmp_path / name)[0]["final_loss"].tolist())
    assert losses[0] == pytest.approx(losses[1], rel=TOLERANCE)
