"""Software, device and commit of this process."""

import functools
import importlib.metadata
import platform
import subprocess

from proxies_lib import config, data, paths, settings
from proxies_lib.config import Run
from proxies_lib.runs import store

UNKNOWN = "unknown"  # a commit, where there is no git

CHANGED = "+changes"  # what a commit ends with where code differs from it


def committed(commit: str) -> bool:
    """Whether a recorded commit says exactly which code ran."""
    return commit != UNKNOWN and not commit.endswith(CHANGED)


# ------------------------------------------------------------------ provenance


@functools.cache
def commit() -> str:
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
    """Software, device, commit and unpinned settings of this process, stored with every run."""
    import jax

    from proxies_lib.runs import executables

    device = executables.cpu("model name") or platform.processor()
    if settings.platform_of_jax() != "cpu":
        device = jax.devices()[0].device_kind
    versions = {
        name: importlib.metadata.version(name)
        for name in ("jax", "jaxlib", "flax", "optax", "numpy")
    }
    return {
        "device": device,
        "python": platform.python_version(),
        **versions,
        "commit": commit(),
        "settings": settings.unpinned(),
    }


def record(folder, run: Run, dataset: data.Dataset, result: dict):
    """Store a result of `Trainer.train` with its configuration and the provenance of this process."""
    result = dict(result)
    curves = result.pop("curves")
    meta = {
        "key": config.key(run, dataset.fingerprint),
        "config": config.flat(run),
        "result": result,
        "provenance": {"fingerprint": dataset.fingerprint, **provenance()},
    }
    store.write(folder, meta, curves)
