"""Writing the site into a folder: whole files, and no file of anyone else is touched.

A manifest in the folder says which files are ours, by their content. Only those are replaced, or
removed where a new site has no such page.
"""

import hashlib
import json
import os
import pathlib

from proxies_lib import paths
from proxies_lib.config import refuse

MANIFEST = ".proxies-site.json"


def check(folder: pathlib.Path):
    """Raises UserError where a site cannot be written into the folder."""
    _known(folder)


def write(folder: pathlib.Path, files: dict[str, bytes]):
    """Write a site's files, by their place in it.

    Raises UserError, with nothing written, where the folder holds something else than a site of an
    earlier report, or a file of that was changed since.
    """
    known = _known(folder)
    for name, content in files.items():
        _require_ours(folder, name, known.get(name, set()) | {_digest(content)})
    new = {name: {_digest(content)} for name, content in files.items()}
    # Whoever is killed half-way leaves a manifest that knows the old files and the new ones.
    both = {name: known.get(name, set()) | new.get(name, set()) for name in known | new}
    _write_manifest(folder, both)
    for name, content in files.items():
        path = folder / name
        if not path.is_file() or path.read_bytes() != content:
            paths.write_atomically(path, content)
    for name in known.keys() - files.keys():
        path = folder / name
        if (
            path.is_file()
            and _is_inside(folder, path)
            and _digest(path.read_bytes()) in known[name]
        ):
            path.unlink()
    _write_manifest(folder, new)


def _known(folder: pathlib.Path) -> dict[str, set[str]]:
    """The digests of the files of an earlier report, by place. Raises UserError where the folder
    holds something else."""
    if not folder.exists() or not any(folder.iterdir()):
        return {}
    try:
        found = json.loads((folder / MANIFEST).read_text("utf-8"))
        return {name: set(digests) for name, digests in found.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        refuse(
            "out", str(folder), "must be a new folder, an empty one, or that of an earlier report"
        )


def _require_ours(folder: pathlib.Path, name: str, digests: set[str]):
    path = folder / name
    if not os.path.lexists(path):
        # A folder of that name could be a link to somewhere else.
        ours = _is_inside(folder, path)
    else:
        ours = path.is_file() and _is_inside(folder, path) and _digest(path.read_bytes()) in digests
    if not ours:
        refuse("out", str(folder), f"{name} is not as a report wrote it; take another folder")


def _is_inside(folder: pathlib.Path, path: pathlib.Path) -> bool:
    return path.resolve() == folder.resolve() / path.relative_to(folder)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _write_manifest(folder: pathlib.Path, files: dict[str, set[str]]):
    listed = {name: sorted(digests) for name, digests in sorted(files.items())}
    paths.write_atomically(folder / MANIFEST, (json.dumps(listed, indent=0) + "\n").encode())
