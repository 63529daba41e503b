"""Texts of interventions that a store has seen: one text per name and version.

    <store>/interventions/<name>@<version>.py

A run's key covers its text, so no numbers can be mixed up. But a reader who sees one name in two
rows must be able to believe that it did the same.
"""

import pathlib

from proxies_lib import interventions
from proxies_lib.config import Run, UserError
from proxies_lib.paths import write_atomically

FOLDER = "interventions"


def check(runs: list[Run], folder: pathlib.Path):
    """Raises UserError where an intervention of `runs` has another text than one of its name and
    version: in the store `folder`, or in another of the runs."""
    _agreeing(runs, folder)


def remember(runs: list[Run], folder: pathlib.Path):
    """Write the texts of `runs` into the store `folder`. Raises as `check`."""
    for title, text in _agreeing(runs, folder).items():
        if _stored(folder, title) != text:
            write_atomically(_path(folder, title), f"{text}\n".encode())


def _path(folder: pathlib.Path, title: str) -> pathlib.Path:
    return folder / FOLDER / f"{title}.py"


def _agreeing(runs: list[Run], folder: pathlib.Path) -> dict[str, str]:
    """The text of each intervention, by name and version."""
    known: dict[str, str] = {}
    for text in dict.fromkeys(run.model.intervention for run in runs):
        for title, own in interventions.texts(text).items():
            if title not in known:
                known[title] = _stored(folder, title) or own
            if known[title] != own:
                where = _path(folder, title)
                raise UserError(
                    f"intervention={title}: has another text here than before ({where.name}); "
                    "raise its version"
                )
    return known


def _stored(folder: pathlib.Path, title: str) -> str | None:
    try:
        return _path(folder, title).read_text("utf-8").strip()
    except (OSError, ValueError):  # none, or a damaged one, which the next run writes anew
        return None
