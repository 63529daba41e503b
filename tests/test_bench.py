from proxies_lib import bench


def test_store_benchmark_measures_what_it_wrote():
    small, large = bench.measure_store([2, 20])
    assert (small["runs"], large["runs"]) == (2, 20)
    assert all(row[name] > 0 for row in (small, large) for name in ("write_s", "plan_s", "table_s", "peak_MiB"))


def test_benchmarked_runs_are_the_stated_shapes():
    for shape in bench.SHAPES:
        run = bench.bench_run(shape, steps=bench.SWEEP_STEPS)
        assert (run.model.d_model, run.model.n_layers, run.model.d_head) == (*shape, 16)
        assert (run.model.vocab_size, run.model.seq_len, run.train.batch_size) == (1024, 64, 16)
        assert run.model.qk_norm == "per_head" and run.hparams.z_loss > 0 and run.model.compute_dtype == "float32"
