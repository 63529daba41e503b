"""Where results go, and where they are read from.

A *label* names the outputs of one protocol: the scale, or `<scale>-<name>`. There are two places for it:

    figures/local/<label>, papermill_runs/local/<label>    what one's own runs write; git ignores it
    figures/<label>,       papermill_runs/<label>          what is published: committed with the project

A plain run writes to the first, `--publish` to the second. Readers look at one's own results first. Where
PROXIES_FIGURES or PROXIES_PAPERMILL_RUNS names a folder, both places are that folder.
"""

import json
import os
import pathlib

from proxies_lib import config, paths
from proxies_lib.config import UserError
from proxies_lib.runs.provenance import committed
from proxies_lib.science.protocol import Study

PUBLISH = "PROXIES_PUBLISH"  # set for this process and its kernels by `--publish`

PROTOCOL = (
    "protocol.json"  # which overrides a label stands for, at which commit it was last written
)


def publishing() -> bool:
    return bool(os.environ.get(PUBLISH))


def local(kind: str) -> pathlib.Path:
    """One's own outputs of a `kind`, "figures" or "papermill_runs"."""
    named = os.environ.get(f"PROXIES_{kind.upper()}")
    return paths.folder(kind) if named else paths.folder(kind) / "local"


def target(kind: str, label: str) -> pathlib.Path:
    """The folder that this process writes a label's outputs to."""
    return (paths.folder(kind) if publishing() else local(kind)) / label


def source(kind: str, label: str, file: str, published: bool = False) -> pathlib.Path | None:
    """The folder to read a label's `file` from: one's own, unless only `published` ones are wanted."""
    config.component("label", label)
    places = [] if published or publishing() else [local(kind) / label]
    places.append(paths.folder(kind) / label)
    return next((place for place in places if (place / file).exists()), None)


def claim(study: Study, commit: str):
    """Make the study's label its own before it writes: `protocol.json` in the label's folder.

    Raises UserError where the label stands for another protocol already.
    """
    path = target("papermill_runs", study.label) / PROTOCOL
    protocol = {"label": study.label, "scale": study.scale, "overrides": _decoded(study.overrides)}
    known = _read(path)
    if known is not None and {name: known.get(name) for name in protocol} != protocol:
        changes = ", ".join(f"{name}={value}" for name, value in known.get("overrides", {}).items())
        config.refuse(
            "label", study.label, f"holds another protocol ({changes}); choose another --label"
        )
    if known != protocol | {"commit": commit}:
        text = json.dumps(protocol | {"commit": commit}, indent=1) + "\n"
        paths.write_atomically(path, text.encode())


def _decoded(overrides: tuple) -> dict:
    return {name: json.loads(value) for name, value in overrides}


def _read(path: pathlib.Path) -> dict | None:
    """The manifest at `path`; None where there is none, or a damaged one."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("overrides"), dict) else None


def require_committed(commit: str, runs=None):
    """Raises UserError where the code of this process, or the code that trained `runs`, is not committed."""
    if not committed(commit):
        raise UserError(f"publish: the code is not committed (commit {commit}); commit it first")
    if runs is not None:
        foreign = sum(not committed(str(found)) for found in runs["commit"])
        if foreign:
            raise UserError(
                f"publish: {foreign} of {len(runs)} runs were trained by code that is not committed; "
                "train them again, with --store in an empty folder"
            )
