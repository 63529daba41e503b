"""Where numbers come from: software, device and commit of this process, stored with every run."""

import functools
import importlib.metadata
import platform
import subprocess

from proxies_lib import config, data, paths, settings
from proxies_lib.config import Run
from proxies_lib.runs import store

UNKNOWN = "unknown"  # a commit, where there is no git

CHANGED = "+changes"  # what a commit ends with where code differs from it

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")  # whose versions are stored


def committed(commit: str) -> bool:
    """Whether a recorded commit says exactly which code ran."""
    return commit != UNKNOWN and not commit.endswith(CHANGED)


@functools.cache
def commit() -> str:
    """The commit of the code that runs, with CHANGED where library or notebooks differ from it."""
    try:
        git = functools.partial(
            subprocess.run, cwd=paths.root(), capture_output=True, text=True, check=True
        )
        head = git(["git", "rev-parse", "--short=12", "HEAD"]).stdout.strip()
        code = ["git", "status", "--porcelain", "--", "proxies_lib", "notebooks"]
        return head + (CHANGED if git(code).stdout.strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return UNKNOWN


@functools.cache
def provenance() -> dict[str, str]:
    """Software, device, commit and unpinned settings of this process."""
    return {
        "device": _device(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        "commit": commit(),
        "settings": settings.unpinned(),
    }


def _device() -> str:
    """The kind of an accelerator; the name of a CPU and, of x86, its family and model.

    Clouds call processors that round differently by one name, such as "AMD EPYC".
    """
    import jax

    from proxies_lib.runs import executables

    if settings.platform_of_jax() != "cpu":
        return jax.devices()[0].device_kind
    name = executables.cpu("model name") or platform.processor()
    family, model = executables.cpu("cpu family"), executables.cpu("model")
    return f"{name} (family {family}, model {model})" if family and model else name


def record(folder, run: Run, dataset: data.Dataset, result: dict):
    """Store a result of `Trainer.train` with its configuration and this process's provenance."""
    result = dict(result)
    curves = result.pop("curves")
    meta = {
        "key": config.key(run, dataset.fingerprint),
        "config": config.flat(run),
        "result": result,
        "provenance": {"fingerprint": dataset.fingerprint, **provenance()},
    }
    store.write(folder, meta, curves)
