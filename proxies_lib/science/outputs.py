"""Where results go, and where they are read from.

A *label* names the outputs of one protocol: the scale, or `<scale>-<name>`. It has two places:

    figures/local/<label>, papermill_runs/local/<label>    one's own: git ignores it
    figures/<label>,       papermill_runs/<label>          published: committed with the project

A plain run writes to the first, `--publish` to the second. Readers look at one's own results first.
Where PROXIES_FIGURES or PROXIES_PAPERMILL_RUNS names a folder, both places are that folder.
"""

import json
import os
import pathlib

from proxies_lib import config, paths
from proxies_lib.config import UserError
from proxies_lib.runs.provenance import committed
from proxies_lib.science.protocol import Study

PUBLISH = "PROXIES_PUBLISH"  # set for this process and its kernels by `--publish`

CONTINUE = "PROXIES_CONTINUE"  # a label, set in the same way by `--continue`

# Which overrides a label stands for, and at which commit it was last written.
PROTOCOL = "protocol.json"


def publishing() -> bool:
    return bool(os.environ.get(PUBLISH))


def continued() -> pathlib.Path | None:
    """With `--continue`, the folder of the committed table whose runs count as trained.

    None without. Raises UserError where the environment names no label.
    """
    label = os.environ.get(CONTINUE)
    return paths.folder("papermill_runs") / config.component(CONTINUE, label) if label else None


def local(kind: str) -> pathlib.Path:
    """One's own outputs of a `kind`, "figures" or "papermill_runs"."""
    named = os.environ.get(f"PROXIES_{kind.upper()}")
    return paths.folder(kind) if named else paths.folder(kind) / "local"


def target(kind: str, label: str) -> pathlib.Path:
    """The folder that this process writes a label's outputs to."""
    return (paths.folder(kind) if publishing() else local(kind)) / label


def source(kind: str, label: str, file: str, published: bool = False) -> pathlib.Path | None:
    """The folder to read a label's `file` from; None where there is no such file.

    One's own comes first, unless only `published` ones are wanted. Raises UserError where the label
    is no name of a folder.
    """
    config.component("label", label)
    places = [paths.folder(kind) / label]
    if not (published or publishing()):
        places.insert(0, local(kind) / label)
    for place in places:
        if (place / file).exists():
            return place
    return None


def claim(study: Study, commit: str):
    """Make the study's label its own before it writes: `protocol.json` in the label's folder.

    Raises UserError where the label stands for another protocol already.
    """
    path = target("papermill_runs", study.label) / PROTOCOL
    overrides = {name: json.loads(value) for name, value in study.overrides}
    protocol = {"label": study.label, "scale": study.scale, "overrides": overrides}
    known = _read(path)
    if known is not None and {name: known.get(name) for name in protocol} != protocol:
        changes = ", ".join(f"{name}={value}" for name, value in known["overrides"].items())
        reason = f"holds another protocol ({changes}); choose another --label"
        config.refuse("label", study.label, reason)
    manifest = protocol | {"commit": commit}
    if known != manifest:
        text = json.dumps(manifest, indent=1) + "\n"
        paths.write_atomically(path, text.encode())


def _read(path: pathlib.Path) -> dict | None:
    """The manifest at `path`; None where there is none, or a damaged one."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    whole = isinstance(found, dict) and isinstance(found.get("overrides"), dict)
    return found if whole else None


def require_committed(commit: str, runs=None):
    """What is published must name the code that made it.

    Raises UserError where the code of this process, or that which trained `runs`, is not committed.
    """
    if not committed(commit):
        raise UserError(f"publish: the code is not committed (commit {commit}); commit it first")
    if runs is not None:
        foreign = sum(not committed(str(found)) for found in runs["commit"])
        if foreign:
            raise UserError(
                f"publish: {foreign} of {len(runs)} runs were trained by code that is not "
                "committed; train them again, with --store in an empty folder and without "
                "--continue"
            )
