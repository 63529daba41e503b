"""The Ray engine on simulated nodes; the templates of deploy/ as far as one machine runs them."""

import collections
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
import unittest.mock

import jax.numpy as jnp
import psutil
import pytest
import yaml

from proxies_lib import settings
from proxies_lib.cli.options import shard_of
from proxies_lib.cli.parser import parser_and_commands
from proxies_lib.config import UserError, grid, replace
from proxies_lib.interventions import intervention
from proxies_lib.runs import cluster, datasets, engines, sweep, tables

DEPLOY = pathlib.Path(__file__).resolve().parents[1] / "deploy"


@pytest.fixture(autouse=True)
def own_process(monkeypatch):
    """A worker of one core sets its whole process to one thread; here that is the tests' own."""
    monkeypatch.setattr(settings, "_one_thread", False)
    with unittest.mock.patch.dict(os.environ):
        yield


@pytest.fixture
def runs(smoke):
    return grid(
        replace(smoke, steps=2000), {"d_model": (8, 16), "lr": (1e-3, 1e-2, 1e-1), "seed": (0, 1)}
    )


def test_jobs_share_programs_and_nothing_is_handed_out_twice(tmp_path, runs):
    plan = sweep.plan(runs, tmp_path)
    jobs = engines.Jobs(plan, 4)
    small, large = runs[0].program, runs[-1].program
    first = jobs.take()
    assert [f.run.program for f in first] == [large] * 4, "the costliest program first"
    assert jobs.take()[0].run.program == small, "a second worker opens another program"
    jobs.put_back(first)
    taken = [jobs.take(large) for _ in range(len(jobs))]
    assert taken[0] == first and not jobs and [len(job) for job in taken] == [4, 2, 2]


def test_a_worker_of_an_accelerator_trains_lanes(tmp_path, runs):
    worker = cluster.Worker(cluster.LANES)
    plan = sweep.plan([replace(one, steps=20) for one in runs[:3]], tmp_path)
    records = worker.train([f.run for f in plan.found], [f.key for f in plan.found])
    assert [meta["key"] for meta, _ in records] == [f.key for f in plan.found]
    assert "jax finds none" in worker.check({})


def test_a_node_must_have_the_drivers_corpus_and_code(own_world, smoke):
    worker = cluster.Worker(0)
    fingerprint = datasets.open_dataset("synthetic", 64).fingerprint
    assert worker.check({("synthetic", 64): fingerprint}) == ""
    assert "data='nowhere': is not prepared here" in worker.check({("nowhere", 64): "f"})
    assert "data='synthetic': fingerprint" in worker.check({("synthetic", 64): "another"})
    with pytest.raises(UserError, match="another version of proxies_lib"):
        worker.train([smoke], ["another"])


def test_a_worker_of_a_core_computes_on_one_thread_whatever_its_nodes_settings(monkeypatch):
    """Ray starts it with the environment of its node, not of the driver."""
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    monkeypatch.setenv("NPROC", "7")
    cluster.Worker(0)
    assert {name: os.environ[name] for name in settings.ONE_THREAD} == settings.ONE_THREAD


def test_without_ray_or_a_cluster_there_is_one_clear_line(tmp_path, runs, monkeypatch):
    plan = sweep.plan(runs[:1], tmp_path)
    with pytest.raises(
        UserError, match="engine='nosuch': must be one of auto, processes, lanes, ray"
    ):
        sweep.run(plan, engine="nosuch")
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setenv("PROXIES_ENGINE", "ray")
    install = r"needs the optional extra: pip install -c constraints.txt -e '.\[ray\]'"
    with pytest.raises(UserError, match=f"engine='ray': {install}"):
        sweep.run(plan)


# ------------------------------------------------------------------ Ray


class Logged(cluster.Worker):
    """A worker that writes down when it begins and ends to train a run."""

    def train(self, runs, keys):
        self._log("begin", keys)
        records = super().train(runs, keys)
        self._log("end", keys)
        return records

    def _log(self, event, keys):
        with open(os.environ["PROXIES_TEST_LOG"], "a") as file:
            file.write("".join(f"{event} {key} {os.getpid()}\n" for key in keys))


def add_node(nodes, **options):
    """A node more. Ray gives up on one that takes 15 seconds to start, as it may on a busy machine:
    try again."""
    for last in (False, False, True):
        try:
            return nodes.add_node(**options)
        except Exception as error:
            if last or "timed out during startup" not in str(error):
                raise


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    """A simulated cluster: a head that trains nothing, and three nodes of one core each."""
    ray = pytest.importorskip("ray", reason="the optional extra `ray` is not installed")
    from ray.cluster_utils import Cluster

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # nodes cannot import this file
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PROXIES_TEST_LOG", str(tmp_path_factory.mktemp("ray") / "log"))
        simulated = Cluster()
        try:
            add_node(simulated, num_cpus=0, include_dashboard=False)
            for _ in range(3):
                add_node(simulated, num_cpus=1)
            patch.setenv("RAY_ADDRESS", simulated.address)
            yield simulated
        finally:
            simulated.shutdown()


def log() -> list[list[str]]:
    path = pathlib.Path(os.environ["PROXIES_TEST_LOG"])
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def kill_a_node_in_the_middle_of_a_run(nodes) -> str:
    """Kill a node with all its processes, as a power cut would, once three runs are done.

    Returns the key of the run that it was training."""
    while True:
        time.sleep(0.05)
        events = log()
        if sum(event == "end" for event, *_ in events) < 3:
            continue
        for node in list(nodes.worker_nodes):
            raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
            processes = {p.pid: p for p in raylet.children(recursive=True)}
            for pid in {int(pid) for *_, pid in events} & processes.keys():
                processes[pid].send_signal(signal.SIGSTOP)
                mine = [(event, key) for event, key, owner in log() if int(owner) == pid]
                if mine[-1][0] == "begin":
                    for process in (raylet, *processes.values()):
                        process.kill()
                    nodes.remove_node(node, allow_graceful=False)
                    return mine[-1][1]
                processes[pid].send_signal(signal.SIGCONT)


@intervention(version=1, cap=5.0)
class softcap:
    def attention_logits(z, h):
        return h["cap"] * jnp.tanh(z / h["cap"])


def test_a_node_dies_and_nothing_is_lost_or_trained_twice(
    tmp_path, nodes, runs, smoke, monkeypatch
):
    monkeypatch.setattr(cluster, "Worker", Logged)
    # Its text is all that a node gets of an intervention.
    capped = softcap(replace(smoke, steps=2000, qk_norm="none"))
    runs = runs + grid(capped, {"lr": (0.1, 1.0)})
    victims = []
    killer = threading.Thread(
        target=lambda: victims.append(kill_a_node_in_the_middle_of_a_run(nodes)), daemon=True
    )
    killer.start()
    sweep.run(sweep.plan(runs, tmp_path / "ray"), engine="ray")
    killer.join(timeout=30)
    plan = sweep.plan(runs, tmp_path / "ray")
    assert len(victims) == 1 and not plan.missing
    count = collections.Counter((event, key) for event, key, _ in log())
    assert all(count["end", f.key] == 1 for f in plan.found)
    assert all(count["begin", f.key] == 1 + (f.key in victims) for f in plan.found)
    sweep.run(sweep.plan(runs, tmp_path / "here"), engine="processes")
    texts = []
    for folder in (tmp_path / "ray", tmp_path / "here"):
        table, curves = tables.table(list(sweep.plan(runs, folder).found), folder)
        texts.append((table.drop(columns=["train_seconds", "commit"]).to_csv(), curves.to_csv()))
    assert texts[0] == texts[1], "bit for bit that of the processes engine"


def test_a_node_without_the_corpus_is_named(tmp_path, nodes, smoke, monkeypatch):
    (tmp_path / "text").write_text(
        "\f".join(f"document {i} of a few words\n" * 50 for i in range(40))
    )
    datasets.prepare(
        "text", "elsewhere", [str(tmp_path / "text")], vocab_size=32, say=lambda line: None
    )
    run = replace(smoke, data="elsewhere", vocab_size=32)
    monkeypatch.setitem(cluster.SLOTS, "CPU", {"num_cpus": 1, "resources": {"bare": 1}})
    add_node(
        nodes,
        num_cpus=1,
        resources={"bare": 1},
        env_vars={"PROXIES_CACHE": str(tmp_path / "other")},
    )
    with pytest.raises(UserError, match=r"node .*: data='elsewhere': is not prepared here"):
        sweep.run(sweep.plan([run], tmp_path), engine="ray")


def test_an_address_where_no_cluster_is(tmp_path, runs, monkeypatch):
    pytest.importorskip("ray", reason="the optional extra `ray` is not installed")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(UserError, match="RAY_ADDRESS='127.0.0.1:1': no Ray cluster answers there"):
        sweep.run(sweep.plan(runs, tmp_path), engine="ray")


# ------------------------------------------------------------------ deploy/


@pytest.fixture
def path(tmp_path):
    """PATH with a `proxies` of this interpreter before all others."""
    (tmp_path / "bin").mkdir()
    stub(tmp_path / "bin" / "proxies", f'exec "{sys.executable}" -m proxies_lib.cli "$@"')
    return f"{tmp_path}/bin:{os.environ['PATH']}"


def stub(program: pathlib.Path, line: str):
    program.write_text(f"#!/usr/bin/env bash\n{line}\n")
    program.chmod(0o755)


def bash(*command: str, **environment) -> str:
    done = subprocess.run(
        ["bash", *command],
        capture_output=True,
        text=True,
        cwd=DEPLOY.parent,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_slurm_array_trains_shards_and_its_last_step_merges_and_draws(tmp_path, path):
    script, own = str(DEPLOY / "slurm_array.sbatch"), tmp_path / "store"
    common = {
        "PATH": path,
        "PROXIES_STORE": str(own),
        "ARGUMENTS": "01 --scale smoke --seeds 7 --set z_loss=0 --set sizes=[[8,1]]",
    }
    for i in ("1", "2"):
        out = bash(script, **common, SLURM_ARRAY_TASK_ID=i, SLURM_ARRAY_TASK_COUNT="2")
        assert "3 to train" in out and f"shard {i}/2 is trained" in out
    out = bash(script, **common)
    assert "6 runs merged" in out and "6 stored, 0 to train" in out and "executed" in out


def test_the_kubernetes_job_covers_every_shard_once(tmp_path, path):
    shards, finish = yaml.safe_load_all((DEPLOY / "kubernetes_indexed_job.yaml").read_text())
    stub(tmp_path / "bin" / "proxies", 'echo "$@"')
    for job in (shards, finish):
        pod = job["spec"]["template"]["spec"]
        kind = (job["apiVersion"], job["kind"], pod["restartPolicy"])
        assert kind == ("batch/v1", "Job", "Never")
        mounted = {mount["name"] for c in pod["containers"] for mount in c["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}
    assert shards["spec"]["completionMode"] == "Indexed" and finish["spec"]["suspend"]
    n = shards["spec"]["completions"]
    container = shards["spec"]["template"]["spec"]["containers"][0]
    assert container["command"] == ["bash", "-c"]
    environment = {e["name"]: e["value"] for e in container["env"] if "value" in e} | {"PATH": path}
    calls = [
        bash("-c", *container["args"], **environment, JOB_COMPLETION_INDEX=str(i)).split()
        for i in range(n)
    ]
    shards_trained = [shard_of(call[call.index("--shard") + 1]) for call in calls]
    assert shards_trained == [(i, n) for i in range(1, n + 1)]
    assert len({call[call.index("--store") + 1] for call in calls}) == n
    for call in calls:
        parser_and_commands()[0].parse_args(call)


def test_the_tpu_pod_script_runs_the_same_command_on_every_host(tmp_path, path):
    stub(tmp_path / "bin" / "gcloud", 'printf "%s\\n" "$@"')
    script = str(DEPLOY / "tpu_pod.sh")
    common = {"PATH": path, "TPU": "slice", "ZONE": "zone", "REPOSITORY": "a b"}
    common |= {"PROXIES_CHECKPOINTS": "/mnt/a b"}
    sent = bash(script, "run", "01", "--set", "lrs=[0.1, 1]", **common).splitlines()
    assert sent[:7] == "compute tpus tpu-vm ssh slice --zone zone".split()
    assert "--worker=all" in sent
    stub(tmp_path / "bin" / "there", 'printf "%s\\n" "$PROXIES_CHECKPOINTS" "$@"')
    command = sent[-1].replace("cd proxies", "true").replace(".venv/bin/proxies", "there")
    checkpoints, *typed = bash("-c", command, PATH=path).splitlines()
    assert checkpoints == "/mnt/a b"
    options = parser_and_commands()[0].parse_args(typed)
    assert (options.sections, options.settings) == (["01"], ["lrs=[0.1, 1]"])
    assert options.distributed == "auto"
    assert "git clone a\\ b proxies" in bash(script, "install", **common)


def test_the_ray_cluster_fits_rays_own_schema():
    pytest.importorskip("ray", reason="the optional extra `ray` is not installed")
    from ray.autoscaler._private.util import prepare_config, validate_config

    described = prepare_config(yaml.safe_load((DEPLOY / "ray_cluster.yaml").read_text()))
    validate_config(described)
    config = {name: each["node_config"] for name, each in described["available_node_types"].items()}
    assert "machineType" in config["head"] and "acceleratorType" in config["tpu"]
