"""Notebooks as programs: find a section, read its grid without running it, execute it with papermill."""

import contextlib
import os
import pathlib
import tempfile

import jupytext

from proxies_lib import config, outputs
from proxies_lib.config import Run, UserError, refuse


def sections() -> dict[str, pathlib.Path]:
    """The notebooks by number: {"01": …/01_attention_logit_growth.py}."""
    return {path.name[:2]: path for path in sorted((config.root() / "notebooks").glob("[0-9][0-9]_*.py"))}


def choose(names: list[str]) -> list[pathlib.Path]:
    """Sections by number or name, the overview last: it shows what the others found. Raises UserError."""
    known = sections()
    if not known:
        raise UserError(f"notebooks: none in {config.root()}; stand in the project's folder")
    chosen = []
    for name in names or list(known):
        if name[:2] not in known or name not in (name[:2], known[name[:2]].stem):
            refuse("section", name, f"must be one of {', '.join(known)}")
        chosen.append(known[name[:2]])
    return sorted(set(chosen), key=lambda path: (path.name.startswith("00"), path))


def runs_of(path: pathlib.Path, parameters: dict) -> tuple[list[Run], list[Run]]:
    """The runs a section asks for, from its cells tagged `setup` and `grid`, executed with `parameters`.

    The second list is what the grid calls `held_out`: runs that the notebook trains itself, after a prediction.
    """
    space = dict(parameters)
    for cell in jupytext.read(path).cells:
        if {"setup", "grid"} & set(cell.metadata.get("tags", [])):
            exec(compile(cell.source, path.name, "exec"), space)
    return tuple([run for runs in space.get(name, {}).values() for run in runs] for name in ("runs", "held_out"))


def execute(path: pathlib.Path, parameters: dict, label: str) -> pathlib.Path:
    """Run one notebook with papermill into its label's folder (`outputs.target`). Raises UserError where a cell fails.

    The output appears only when complete; a failed one stays beside it as `.failed.ipynb`.
    """
    import nbformat
    import papermill

    target = outputs.target("papermill_runs", label) / f"{path.stem}.ipynb"
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_suffix(".failed.ipynb")
    with _quiet_kernel():
        try:
            papermill.execute_notebook(
                jupytext.read(path), str(scratch), parameters=parameters, kernel_name="python3",
                progress_bar=False, cwd=str(config.root()),
            )  # fmt: skip
        except papermill.PapermillExecutionError as error:
            raise UserError(
                f"{path.stem}: cell {error.cell_index} failed ({error.ename}: {error.evalue}); see {scratch.name}"
            ) from None
    notebook = nbformat.read(scratch, as_version=4)
    _scrub(notebook)
    nbformat.write(notebook, scratch)
    os.replace(scratch, target)
    return target


def _scrub(notebook):
    """Drop what differs between machines and times: paths, durations, execution state."""
    notebook.metadata.pop("papermill", None)
    notebook.metadata.get("language_info", {}).pop("version", None)
    for cell in notebook.cells:
        for name in ("papermill", "execution"):
            cell.metadata.pop(name, None)


@contextlib.contextmanager
def _quiet_kernel():
    """A throw-away IPython profile: the user's own start-up files must not change results, and ipykernel's
    start-up warning must not enter the outputs."""
    with tempfile.TemporaryDirectory() as folder:
        profile = pathlib.Path(folder) / "profile_default"
        profile.mkdir()
        (profile / "ipython_kernel_config.py").write_text("c.IPKernelApp.log_level = 40\n")
        with config.environment("IPYTHONDIR", folder):
            yield
