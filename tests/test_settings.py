"""No setting of the process changes a run's numbers: it is pinned, or else recorded."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from proxies_lib import config, paths, settings
from proxies_lib.config import UserError, replace
from proxies_lib.runs import datasets, engines, provenance, store, sweep, tables

# Each of these changed bits of the runs below, or made them fail, before settings were pinned.
VARIABLES = {
    "JAX_DEFAULT_PRNG_IMPL": "rbg",
    "JAX_THREEFRY_PARTITIONABLE": "0",
    "JAX_RANDOM_SEED_OFFSET": "1",
    "JAX_ENABLE_X64": "1",
    "JAX_NUMPY_DTYPE_PROMOTION": "strict",
    "JAX_NUMPY_RANK_PROMOTION": "raise",
    "JAX_DISABLE_JIT": "1",
    "JAX_DEBUG_NANS": "1",
    "JAX_SOFTMAX_CUSTOM_JVP": "1",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
}
FLAGS = (
    "--xla_cpu_enable_fast_math=true",
    "--xla_cpu_max_isa=SSE4_2",
    "--xla_backend_optimization_level=0",
)
# These change none on a CPU, but could elsewhere.
ELSEWHERE = {
    "JAX_DEFAULT_MATMUL_PRECISION": "BF16_BF16_F32",
    "NVIDIA_TF32_OVERRIDE": "1",
    "ONEDNN_DEFAULT_FPMATH_MODE": "BF16",
    "DNNL_DEFAULT_FPMATH_MODE": "BF16",
    "DNNL_MAX_CPU_ISA": "SSE41",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "NPROC": "7",
    "FLAX_PRNG_IMPL": "rbg",
    "XLA_FLAGS": "--xla_allow_excess_precision=false flags.txt",
}
OPTIONS = {
    "jax_default_prng_impl": "rbg",
    "jax_enable_x64": True,
    "jax_default_matmul_precision": "BF16_BF16_F32",
    "jax_numpy_dtype_promotion": "strict",
    "jax_disable_jit": True,
    "jax_debug_nans": True,
    "jax_softmax_custom_jvp": True,
}

BITS = """
import hashlib
from proxies_lib import config
from proxies_lib.runs import datasets, executables
from proxies_lib.science import protocol
from proxies_lib.train import Trainer
executables.use_cache()
base = protocol.scales()["smoke"].base
base = config.replace(base, steps=10, warmup_steps=2, log_every=5)
dataset = datasets.open_dataset("synthetic", base.model.vocab_size)

def bits():
    trainer, digest = Trainer(*base.program), hashlib.sha256()
    for run in (base, config.replace(base, lr=1e30)):  # the second one's loss is not finite
        curves = trainer.train([run], dataset)[0]["curves"]
        for name in sorted(curves):
            digest.update(curves[name].tobytes())
    return digest.hexdigest()
"""
BY_CONFIG = (
    "import json, sys, jax"
    + BITS
    + """
print(bits())
for name, value in json.loads(sys.argv[1]).items():
    jax.config.update(name, value)
    print(name, bits())
"""
)
BY_EVERY_ENGINE = (
    BITS
    + """
import pathlib, sys
import nbformat
from proxies_lib.runs import sweep, tables
from proxies_lib.science import notebooks

folder = pathlib.Path(sys.argv[1])
for engine in ("processes", "lanes"):
    sweep.run(sweep.plan([base], folder / engine), workers=1, engine=engine, quiet=True)
    table, curves = tables.table(list(sweep.plan([base], folder / engine).found), folder / engine)
    print(engine, table["settings"].tolist(), hashlib.sha256(curves.to_csv().encode()).hexdigest())
cell = nbformat.v4.new_code_cell(sys.argv[2] + "print(bits())")
nbformat.write(nbformat.v4.new_notebook(cells=[cell]), folder / "cell.ipynb")
done = nbformat.read(notebooks.execute(folder / "cell.ipynb", {}, "settings"), as_version=4)
print("kernel", done.cells[0].outputs[-1].text)
"""
)


def python(script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", script, *arguments]
    environment = os.environ | variables
    return subprocess.run(
        command, env=environment, cwd=paths.root(), capture_output=True, text=True
    )


def printed(script: str, *arguments: str, **variables: str) -> str:
    done = python(script, *arguments, **variables)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("name", "value"), [*VARIABLES.items(), *(("XLA_FLAGS", flag) for flag in FLAGS)]
)
def test_each_variable_and_each_flag_is_dropped_and_named(name, value, monkeypatch, capsys):
    """One by one; that all of them together change no bit is asked further down."""
    monkeypatch.setattr(settings, "_jax_has_started", lambda: False)
    monkeypatch.setenv(name, value)
    settings.pin_environment()
    assert name not in os.environ
    assert capsys.readouterr().err == (
        f"proxies: ignored, as it could change a run's numbers: {name}={value}\n"
    )


def test_no_option_that_was_set_before_changes_bits():
    first, *others = printed(BY_CONFIG, json.dumps(OPTIONS)).splitlines()
    assert others == [f"{name} {first}" for name in OPTIONS]


def test_workers_lanes_and_kernel_train_the_same_bits_under_all_settings_at_once(tmp_path):
    """The kernel's notebook also sets some itself, as a user's might."""
    hostile = VARIABLES | ELSEWHERE | {"XLA_FLAGS": " ".join([*FLAGS, ELSEWHERE["XLA_FLAGS"]])}
    own = (
        "import os, jax\njax.config.update('jax_enable_x64', True)\n"
        "os.environ['XLA_FLAGS'] = '--xla_cpu_enable_fast_math=true'\n"
    )
    plain = printed(BY_EVERY_ENGINE, str(tmp_path / "plain"), BITS)
    done = python(BY_EVERY_ENGINE, str(tmp_path / "hostile"), BITS + own, **hostile)
    assert done.returncode == 0, done.stderr
    assert done.stdout == plain
    processes, lanes, kernel = plain.strip().splitlines()
    assert "['']" in processes and f"['threads={settings.threads()}']" in lanes
    said = [line for line in done.stderr.splitlines() if line.startswith("proxies: ignored")]
    assert len(said) == 1, "once, not from each worker and kernel"
    assert all(name in said[0] for name in hostile)


def test_every_option_of_the_installed_jax_is_pinned_or_known_to_be_harmless():
    unknown = [
        name
        for name in jax.config.values
        if name not in settings.PINNED and not settings.is_harmless(name)
    ]
    assert not unknown, "decide whether they change numbers: settings.PINNED, or HARMLESS"


def test_the_pinned_values_are_those_of_jax_that_stored_numbers_were_made_with():
    script = (
        "import jax; before = jax.config.values\n"
        "from proxies_lib import settings; settings.pin_jax()\n"
        "print([name for name, value in jax.config.values.items() if value != before[name]])"
    )
    assert printed(script) == "[]\n"


def test_a_context_that_overrules_a_pinned_option_is_refused():
    with jax.numpy_dtype_promotion("strict"):
        with pytest.raises(
            UserError, match="jax_numpy_dtype_promotion='STRICT': must be 'standard'"
        ):
            settings.pin_jax()
    settings.pin_jax()


def test_harmless_variables_stay():
    kept = {
        "JAX_PLATFORMS": "cpu",
        "JAX_TRACEBACK_FILTERING": "off",
        "JAX_COORDINATOR_ADDRESS": "host:1",
        "JAX_COMPILATION_CACHE_DIR": "here",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": ".5",
        "TF_CLI_CONFIG_FILE": "terraform's",
        "CUDNN_VERSION": "9",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    script = (
        "import os, proxies_lib; from proxies_lib import settings\n"
        f"print([name for name in {list(kept)} if name not in os.environ], settings.unpinned())"
    )
    done = python(script, **kept)
    recorded = f"XLA_PYTHON_CLIENT_MEM_FRACTION=.5; devices=2; threads={settings.threads()}"
    assert done.stdout == f"[] {recorded}\n" and not done.stderr


def test_flags_that_xla_has_read_already_are_recorded():
    script = (
        "import jax; jax.devices()\n"
        "from proxies_lib.runs import provenance; print(provenance.provenance()['settings'])"
    )
    out = printed(script, XLA_FLAGS="--xla_cpu_enable_fast_math=true")
    assert out.startswith("XLA_FLAGS=--xla_cpu_enable_fast_math=true; ")


def test_runs_stored_before_settings_were_recorded_stay_readable(tmp_path, smoke):
    dataset = datasets.open_dataset("synthetic", smoke.model.vocab_size)
    result = {
        "final_loss": 1.0,
        "init_loss": 2.0,
        "diverged": False,
        "diverged_step": -1,
        "train_seconds": 1.0,
    }
    curves = {"step": np.arange(1, dtype=np.int32), "loss": np.ones(1, np.float32)}
    old, new = (replace(smoke, seed=seed) for seed in (0, 1))
    provenance.record(tmp_path, new, dataset, result | {"curves": curves})
    meta, _ = store.read(tmp_path, config.key(new, dataset.fingerprint))
    del meta["provenance"]["settings"]
    meta |= {"key": config.key(old, dataset.fingerprint), "config": config.flat(old)}
    store.write(tmp_path, meta, curves)
    table, _ = tables.table(list(sweep.plan([old, new], tmp_path).found), tmp_path)
    assert table["settings"].isna().tolist() == [True, False]


COMMAND = "import sys; from proxies_lib import cli; sys.exit(cli.main(sys.argv[1:]))"


@pytest.mark.parametrize(
    ("name", "command"), [("cuda", ["run", "01", "--scale", "smoke"]), ("garbage", ["bench"])]
)
def test_a_device_that_is_not_here_is_one_clear_line(name, command):
    if name == "cuda" and any(device.platform == "gpu" for device in jax.devices()):
        pytest.skip("it is here")
    done = python(COMMAND, *command, JAX_PLATFORMS=name)
    assert done.returncode == 2
    assert done.stderr.startswith(f"proxies: JAX_PLATFORMS='{name}': must name devices that jax")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("value", ["²", "9" * 5000, "0", "-1", "1.5", "100001", "two"])
def test_an_absurd_number_of_workers_is_one_clear_line(value, monkeypatch):
    monkeypatch.setenv("PROXIES_WORKERS", value)
    with pytest.raises(
        UserError, match="^PROXIES_WORKERS='.{1,25}': must be a whole number from 1"
    ):
        engines.cores()


def test_plan_refuses_an_engine_that_run_would_refuse(monkeypatch, capsys):
    from proxies_lib import cli

    monkeypatch.setenv("PROXIES_ENGINE", "nosuch")
    for command in ("plan", "run"):
        assert cli.main([command, "01", "--scale", "smoke"]) == 2
        said = capsys.readouterr()
        assert said.err.startswith("proxies: PROXIES_ENGINE='nosuch': must be one of auto, proc")
