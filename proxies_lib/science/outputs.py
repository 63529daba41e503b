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
from typing import NoReturn

import pandas as pd

from proxies_lib import config, paths
from proxies_lib.config import UserError, did_you_mean, refuse
from proxies_lib.runs import tables
from proxies_lib.runs.provenance import committed
from proxies_lib.science import protocol
from proxies_lib.science.protocol import Study, scales

RUNS = "runs.parquet"  # a label's table of runs

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


def labels(file: str = "") -> list[str]:
    """The labels that have outputs, or this `file` of them; one's own and the published ones."""
    found = set()
    for place in (local("papermill_runs"), paths.folder("papermill_runs")):
        folders = place.iterdir() if place.is_dir() else ()
        found |= {path.name for path in folders if _is_label(path) and (path / file).exists()}
    return sorted(found)


def _is_label(path: pathlib.Path) -> bool:
    named_else = path.name in ("local", "store") or path.name.startswith(".")
    return not named_else and path.is_dir()


def no_such(label: str, file: str) -> NoReturn:
    """Raise the UserError of a label that has no `file`, with what to do about it."""
    known = labels(file)
    near = did_you_mean(label, known)
    if near:
        advice = f"labels that have one are {', '.join(known)}{near}"
    elif label in scales():
        advice = f"`proxies run --scale {label}` makes it"
    else:
        advice = f"labels that have one are {', '.join(known) or 'none so far'}"
    raise UserError(f"scale={config.shown(label, repr)}: no {file} yet; {advice}")


def runs_of(label: str, published: bool = False) -> pd.DataFrame:
    """The exported table of runs of a label, one's own before the published one. Raises UserError
    where there is none, or a damaged one."""
    place = source("papermill_runs", label, RUNS, published)
    runs = place and tables.exported_runs(place)
    return no_such(label, RUNS) if runs is None else runs


def study_of(label: str, published: bool = False) -> Study:
    """The protocol that a label stands for: what its `protocol.json` says, else its scale's own.

    Raises UserError where neither tells.
    """
    place = source("papermill_runs", label, PROTOCOL, published)
    known = _read(place / PROTOCOL) if place else None
    if known is not None:
        scale, overrides = known["scale"], known["overrides"]
    else:
        named = [scale for scale in scales() if f"{label}-".startswith(f"{scale}-")]
        if not named:
            near = did_you_mean(label, [*labels(), *scales()])
            refuse("label", label, f"begins with no scale, and has no {PROTOCOL}{near}")
        scale, overrides = max(named, key=len), {}
    name = label.removeprefix(f"{scale}-")
    found = protocol.study(scale, overrides)
    return found if found.label == label else protocol.study(scale, overrides | {"label": name})


def claim(study: Study, commit: str):
    """Make the study's label its own before it writes: `protocol.json` in the label's folder.

    Raises UserError where the label stands for another protocol already.
    """
    path = target("papermill_runs", study.label) / PROTOCOL
    overrides = {name: json.loads(value) for name, value in study.overrides}
    own = {"label": study.label, "scale": study.scale, "overrides": overrides}
    known = _read(path)
    if known is not None and {name: known.get(name) for name in own} != own:
        changes = ", ".join(f"{name}={value}" for name, value in known["overrides"].items())
        reason = f"holds another protocol ({changes}); choose another --label"
        refuse("label", study.label, reason)
    manifest = own | {"commit": commit}
    if known != manifest:
        text = json.dumps(manifest, indent=1) + "\n"
        paths.write_atomically(path, text.encode())


def _read(path: pathlib.Path) -> dict | None:
    """The manifest at `path`; None where there is none, or a damaged one."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    types = {"scale": str, "overrides": dict}
    whole = isinstance(found, dict) and all(
        isinstance(found.get(name), kind) for name, kind in types.items()
    )
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
