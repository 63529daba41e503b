import os
import re

import jax
import jax.numpy as jnp
import pytest

from proxies_lib import config
from proxies_lib.budget import bench
from proxies_lib.layout import Layout
from proxies_lib.runs import checkpoint


def test_store_benchmark_measures_what_it_wrote(monkeypatch):
    monkeypatch.setattr(bench, "_in_process", lambda task, *arguments: task(*arguments))
    small, large = bench.measure_store([2, 20])
    assert (small["runs"], large["runs"]) == (2, 20)
    assert all(
        row[name] > 0
        for row in (small, large)
        for name in ("write_s", "plan_s", "table_s", "peak_MiB")
    )


def test_a_task_of_the_store_benchmark_has_a_process_of_its_own():
    assert bench._in_process(os.getpid) != os.getpid()


def test_benchmarked_runs_are_the_stated_shapes():
    for shape in bench.SHAPES:
        run = bench.bench_run(shape, steps=bench.SWEEP_STEPS)
        assert (run.model.d_model, run.model.n_layers, run.model.d_head) == (*shape, 16)
        assert (run.model.vocab_size, run.model.seq_len, run.train.batch_size) == (1024, 64, 16)
        assert (
            run.model.qk_norm == "per_head"
            and run.hparams.z_loss > 0
            and run.model.compute_dtype == "float32"
        )


def test_kernels_are_told_apart_in_a_compiled_program():
    def f(x):
        y = jax.lax.fori_loop(0, 3, lambda _, x: jnp.sin(x @ x), x)
        return y, y.sum(0)

    hlo = jax.jit(f).lower(jnp.ones((64, 64))).compile().as_text()
    kinds = bench.kernels(hlo)
    assert set(kinds.values()) == set(bench.KINDS)
    loops = re.findall(r"%([\w.]+) = .* while\(", hlo)
    assert loops and not set(loops) & set(kinds)
    assert all(kinds[name] == "products" for name in kinds if name.startswith("dot"))


def test_a_program_without_taps_trains_the_same_and_sees_nothing():
    run = bench.bench_run((16, 1))
    normal = bench._Training(run)
    with bench._without_taps():
        bare = bench._Training(run)
    seen, blind = normal.advance(), bare.advance()
    assert blind["loss"] == pytest.approx(seen["loss"], rel=1e-5)
    assert seen["taps"]["q_norm"].all() and not blind["taps"]["q_norm"].any()
    branches = [each.trainer.chunk.as_text().count(" conditional(") for each in (normal, bare)]
    assert branches[0] > branches[1] == 1  # what is left is that of RMS-scaled updates


def test_a_step_is_measured_with_what_taps_and_calls_add(monkeypatch):
    monkeypatch.setattr(bench, "SHAPES", ((16, 1),))
    (row,) = bench.measure_step(0)
    assert row["points"] > 1 and row["rounds"] >= 5
    assert row["share_of_peak"] == pytest.approx(row["GFLOP/s"] / row["peak_GFLOP/s"])
    assert -1 < row["taps_share"] < 1 and -1 < row["calls_share"] < 1


def test_lanes_are_measured_beside_a_run_at_a_time():
    run = config.replace(bench.bench_run((16, 1), steps=40), batch_size=2, seq_len=8)
    (row,) = bench.measure_lanes(0, [run])
    assert row["lanes"] > 1 and row["rounds"] >= 5
    assert row["tokens/s"] == pytest.approx(row["speedup"] * row["one_tokens/s"])
    assert 0 < row["share_of_peak"] < 1


def test_checkpoints_are_measured_against_the_training_between_two(monkeypatch):
    monkeypatch.setenv("PROXIES_CHECKPOINTS", "untouched")
    monkeypatch.setattr(checkpoint, "FLOPS_BETWEEN", {"cpu": 1e9})
    run = config.replace(bench.bench_run((16, 1)), batch_size=2, seq_len=8)
    (row,) = bench.measure_checkpoint(0, [run])
    assert row["rounds"] >= 5 and row["interval_steps"] == checkpoint.interval(run, Layout())
    assert (
        row["MiB"] > 2 * 4 * run.model.n_params / 2**20
    )  # parameters and both moments, compressed
    assert 0 < row["waits_s"] < row["whole_s"] and row["restore_s"] > 0
    assert row["share"] == pytest.approx(row["waits_s"] / row["interval_s"])
    assert os.environ["PROXIES_CHECKPOINTS"] == "untouched"
