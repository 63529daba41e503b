import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

import psutil
import pytest

from proxies_lib import config, paths
from proxies_lib.config import UserError, grid, replace
from proxies_lib.runs import processes, sweep, tables
from proxies_lib.science import protocol, report

LRS = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)


@pytest.fixture
def runs(smoke):
    return grid(smoke, {"d_model": (8, 16), "lr": LRS[:3], "seed": (0, 1)})


def test_the_plan_counts_equal_runs_once_and_says_what_and_why(tmp_path, runs):
    text = sweep.plan(runs + runs[:5], tmp_path).describe(2)
    assert "17 runs requested, 12 distinct, 0 stored, 12 to train" in text
    assert "2 program(s) to compile" in text and "about" in text and "N 768" in text
    assert not list(tmp_path.iterdir())


def test_shards_partition_the_plan_without_talking(tmp_path, runs):
    parts = [sweep.plan(runs, tmp_path, shard=(i, 3)).found for i in (1, 2, 3)]
    assert sorted(f.key for part in parts for f in part) == sorted(
        f.key for f in sweep.plan(runs, tmp_path).found
    )


def test_a_sweep_trains_what_is_missing_and_only_that(tmp_path, runs, capfd):
    sweep.run(sweep.plan(runs, tmp_path), workers=2, engine="processes")
    times = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.npz")}
    assert len(times) == 12 and "12/12 runs" in capfd.readouterr().out
    victim = next(iter(times))
    victim.write_bytes(b"damaged")
    again = sweep.plan(runs, tmp_path)
    assert len(again.missing) == 1
    sweep.run(again, workers=2, engine="processes")
    assert [p for p, t in times.items() if p.stat().st_mtime_ns != t] == [victim]
    table, _ = tables.table(list(sweep.plan(runs, tmp_path).found), tmp_path)
    provenance = {"device", "python", "jax", "flax", "optax", "numpy", "commit", "fingerprint"}
    assert provenance <= set(table.columns) and table[list(provenance)].notna().all().all()


def test_workers_and_lanes_agree_and_workers_do_not_change_bits(tmp_path, runs):
    def losses(name, **options) -> list[float]:
        folder = tmp_path / name
        sweep.run(sweep.plan(runs[:4], folder), **options)
        table, _ = tables.table(list(sweep.plan(runs[:4], folder).found), folder)
        return table["final_loss"].tolist()

    alone = losses("one", engine="processes", workers=1)
    assert losses("two", engine="processes", workers=2) == alone
    assert losses("lanes", engine="lanes") == pytest.approx(alone, rel=1e-3)


KILLED = """
import sys
from proxies_lib import config
from proxies_lib.runs import sweep
from proxies_lib.science import protocol
base = config.replace(protocol.scales()["smoke"].base, steps=400)
runs = config.grid(base, {"lr": %r, "seed": (0, 1, 2)})
sweep.run(sweep.plan(runs, sys.argv[1]), workers=2, engine="processes")
"""


def test_kill_nine_loses_only_the_runs_in_flight(tmp_path, smoke):
    """After kill -9 the same command keeps finished runs; the table is that of a sweep never
    killed."""
    command = [sys.executable, "-c", KILLED % (LRS,), str(tmp_path / "killed")]
    sweeper = subprocess.Popen(command, cwd=paths.root(), stdout=subprocess.DEVNULL)
    while len(list((tmp_path / "killed").rglob("*.npz"))) < 3:
        assert sweeper.poll() is None, "the sweep ended before it could be killed"
        time.sleep(0.01)
    os.kill(sweeper.pid, signal.SIGKILL)
    sweeper.wait()
    deadline = time.monotonic() + 10
    while workers_of(tmp_path / "killed") and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not workers_of(tmp_path / "killed"), "workers outlive their parent"
    finished = {p: p.stat().st_mtime_ns for p in (tmp_path / "killed").rglob("*.npz")}
    assert 3 <= len(finished) < 18
    subprocess.run(command, cwd=paths.root(), check=True, stdout=subprocess.DEVNULL)
    assert all(p.stat().st_mtime_ns == t for p, t in finished.items())
    undisturbed = [*command[:3], str(tmp_path / "whole")]
    subprocess.run(undisturbed, cwd=paths.root(), check=True, stdout=subprocess.DEVNULL)
    runs = grid(replace(smoke, steps=400), {"lr": LRS, "seed": (0, 1, 2)})
    texts = []
    for folder in (tmp_path / "killed", tmp_path / "whole"):
        table, curves = tables.table(list(sweep.plan(runs, folder).found), folder)
        texts.append((table.drop(columns="train_seconds").to_csv(), curves.to_csv()))
    assert texts[0] == texts[1]


def workers_of(folder) -> list[str]:
    listed = [" ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"])]
    return [line for line in listed if "proxies_lib.runs.worker" in line and str(folder) in line]


def test_a_worker_ends_with_its_parent_in_the_middle_of_a_run(tmp_path, smoke):
    long_run = replace(smoke, steps=10_000_000, log_every=10)  # at most 2^20 logged points
    with processes.WorkerProcess(0, tmp_path) as worker:
        worker.process.stdin.write(json.dumps(config.flat(long_run)) + "\n")
        worker.process.stdin.flush()
        with pytest.raises(subprocess.TimeoutExpired):
            worker.process.wait(timeout=15)  # long enough to compile and be training
        worker.process.stdin.close()
        assert worker.process.wait(timeout=5) == 0 and not list(tmp_path.iterdir())


def test_a_worker_that_is_killed_is_one_clear_line_with_the_signal(tmp_path, runs):
    with processes.WorkerProcess(0, tmp_path) as worker:
        worker.process.kill()
        with pytest.raises(UserError, match="^worker: .* was killed by SIGKILL, .*; finished runs"):
            worker.train(runs[0])


def test_an_interrupt_ends_the_other_workers_after_one_has_failed(tmp_path, runs, monkeypatch):
    ended, both_train = threading.Event(), threading.Barrier(2)

    class Fake:
        def __init__(self, core, folder):
            self.process, self.core = self, core
            self.kill = ended.set

        def train(self, run):
            both_train.wait(10)
            if not self.core:
                raise UserError("worker: the first one fails")
            time.sleep(0.5)  # until the failure is seen
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            assert ended.wait(10)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(processes, "WorkerProcess", Fake)
    with pytest.raises(KeyboardInterrupt):
        sweep.run(sweep.plan(runs, tmp_path), workers=2, engine="processes", quiet=True)
    assert ended.is_set()


def test_a_worker_that_does_not_start_is_one_clear_line(tmp_path, runs, monkeypatch):
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(UserError, match=r"^worker: .* stopped \(status 1\); finished runs are"):
        sweep.run(sweep.plan(runs[:1], tmp_path), workers=1, engine="processes")


ERROR_OF_JAX = """
from proxies_lib import data
chunk = data.Dataset.chunk

def failing(self, order, *rest):
    if order.seed == 99:
        import jax.numpy as jnp
        jnp.zeros(2) + jnp.zeros(3)
    return chunk(self, order, *rest)

data.Dataset.chunk = failing
"""


def test_a_worker_says_what_a_run_failed_by_and_trains_the_next(tmp_path, smoke, monkeypatch):
    """Also where JAX fails, whose tracebacks end in a footer. The store is a file at first."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{paths.root()}")
    (tmp_path / "sitecustomize.py").write_text(ERROR_OF_JAX)
    (tmp_path / "file").write_text("no folder")
    small = replace(smoke, steps=20)
    with processes.WorkerProcess(0, tmp_path / "file") as worker:
        with pytest.raises(UserError, match=f"^worker: {tmp_path}/file/.*: Not a directory; fin"):
            worker.train(small)
        with pytest.raises(UserError, match="^data='nowhere': is not prepared here"):
            worker.train(replace(small, data="nowhere"))
        with pytest.raises(UserError, match="^worker: TypeError: add got incompatible") as error:
            worker.train(replace(small, seed=99))
        assert len(str(error.value).splitlines()) == 1
        (log,) = tmp_path.glob("proxies-worker-*.log")
        assert str(log) in str(error.value) and "JAX has removed" in log.read_text()
        (tmp_path / "file").unlink()
        worker.train(small)
    assert len(list((tmp_path / "file").rglob("*.npz"))) == 1


def test_reading_never_trains(smoke):
    with pytest.raises(UserError, match="are not stored; train them first"):
        report.collect({"a method": [replace(smoke, seed=12345)]}, protocol.study("smoke"))
