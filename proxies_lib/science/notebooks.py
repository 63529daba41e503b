"""Notebooks as programs: find a section, read its grid without running it, execute it.

A notebook is a jupytext file, notebooks/NN_name.py; NN is its section. Papermill executes it with
parameters and writes NN_name.ipynb into the folder of the study's label.
"""

import base64
import contextlib
import linecache
import logging
import os
import pathlib
import re
import tempfile
from typing import NamedTuple

import jupytext

from proxies_lib import paths
from proxies_lib.config import Run, UserError, did_you_mean, refuse
from proxies_lib.runs import engines
from proxies_lib.science import outputs, pictures, protocol
from proxies_lib.science.protocol import Study

KERNEL = "python3"

# What the cells tagged `grid` may define, by method: what is trained first; what the notebook
# trains itself, after a prediction; the curves whose diverging LR it bisects (`bisection.rounds`).
GRIDS = ("runs", "held_out", "bisected")

# And which curves the notebook reads: their names or beginnings; all of them where it does not say.
CURVES_READ = "curves_read"

START_SECONDS = 180  # for a kernel to answer, on a busy machine

DRAWN = "**Drawn.**"  # begins the paragraph above a figure that says what it shows


def sections() -> dict[str, pathlib.Path]:
    """The notebooks by number: {"01": …/01_attention_logit_growth.py}."""
    return {
        path.name[:2]: path for path in sorted((paths.root() / "notebooks").glob("[0-9][0-9]_*.py"))
    }


def choose(names: list[str], study: Study) -> list[pathlib.Path]:
    """The notebooks of the sections with these numbers or names, all of them where none is given.

    The overview comes last: it shows what the others found. Raises UserError for an unknown one,
    and for one that the scale of `study` is not made for.
    """
    known = sections()
    if not known:
        raise UserError(f"notebooks: none in {paths.root()}; stand in the project's folder")
    offered = [number for number in known if not study.sections or number in study.sections]
    chosen = set()
    for name in names or offered:
        number = _number_of(name, known)
        if number is None:
            near = did_you_mean(name, [*offered, *(known[number].stem for number in offered)])
            refuse("section", name, f"must be one of {', '.join(offered)}{near}")
        if number not in offered:
            allowed = f"scale {study.scale} is made for {', '.join(offered)}"
            refuse("section", name, allowed)
        chosen.add(known[number])
    return sorted(chosen, key=lambda path: (path.name.startswith("00"), path))


def _number_of(name: str, known: dict[str, pathlib.Path]) -> str | None:
    """The section that `name` names: 01, 1, 01_attention_logit_growth, or its file; or None."""
    stem = name.removeprefix("notebooks/").removesuffix(".py")
    if re.fullmatch("[0-9]", stem):
        stem = f"0{stem}"
    number = stem[:2]
    return number if number in known and stem in (number, known[number].stem) else None


def reading(scale: str) -> dict:
    """The parameters of a notebook that only reads."""
    return {"scale": scale, "train": False, "publish": False, "overrides": {}}


class Grid(NamedTuple):
    """The runs that a section asks for, by method: see GRIDS."""

    runs: dict[str, list[Run]]
    held_out: dict[str, list[Run]]
    bisected: dict[str, list[Run]]


def grids_of(path: pathlib.Path, parameters: dict) -> Grid:
    """What the grid of a notebook defines with `parameters`.

    Raises UserError where the notebook cannot be read or a cell of its grid fails.
    """
    defined = _grid_cells(path, parameters)
    return Grid(*(defined[name] for name in GRIDS))


def curves_read(paths_: list[pathlib.Path], parameters: dict) -> dict[Run, frozenset[str] | None]:
    """The curves of every run that the notebooks at `paths_`, taken together, read.

    They are names or beginnings of names, as each notebook's `curves_read` has them; None stands
    for all curves. A notebook whose grid fails, a draft or one that cannot take the overrides, is
    left out.
    """
    read: dict[Run, frozenset[str] | None] = {}
    for path in paths_:
        try:
            defined = _grid_cells(path, parameters)
        except UserError:
            continue
        mine = defined.get(CURVES_READ)
        for run in all_runs(defined["runs"]) + all_runs(defined["held_out"]):
            others = read.get(run, frozenset())
            read[run] = None if mine is None or others is None else others | frozenset(mine)
    return read


def runs_of(path: pathlib.Path, parameters: dict) -> tuple[list[Run], list[Run]]:
    """The runs that a section asks for, and those of them that are held out. Raises as `grids_of`.

    Runs that a bisection finds are in neither: they depend on what was trained before.
    """
    grid = grids_of(path, parameters)
    return all_runs(grid.runs), all_runs(grid.held_out)


def all_runs(by_method: dict[str, list[Run]]) -> list[Run]:
    return [run for runs in by_method.values() for run in runs]


def grid_of(path: pathlib.Path, parameters: dict) -> dict[str, list[Run]]:
    """Every run of `runs_of` by method. Raises as `grids_of`."""
    grid = grids_of(path, parameters)
    methods = dict.fromkeys([*grid.runs, *grid.held_out])
    return {m: grid.runs.get(m, []) + grid.held_out.get(m, []) for m in methods}


def _grid_cells(path: pathlib.Path, parameters: dict) -> dict:
    """The names that a notebook's cells tagged `setup` and `grid` define, with `parameters`.

    Only these cells are executed: asking what a section would train costs no training.
    """
    names = dict.fromkeys(GRIDS, {}) | parameters
    for number, cell in enumerate(_read(path).cells):
        if not {"setup", "grid"} & set(cell.metadata.get("tags", [])):
            continue
        file = f"<{path.stem}, cell {number}>"
        # An intervention reads its own source: here, as from a cell of a kernel.
        linecache.cache[file] = len(cell.source), None, cell.source.splitlines(True), file
        try:
            exec(compile(cell.source, file, "exec"), names)
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            why = engines.what_failed(error)
            raise UserError(f"{path.stem}: a cell of its grid failed ({why})") from error
    for name in GRIDS:
        _check_runs(path, name, names[name])
    return names


def _check_runs(path: pathlib.Path, name: str, by_method):
    """Raise UserError unless `by_method`, the `name` of a grid, is lists of runs by method."""
    fits = isinstance(by_method, dict) and all(
        isinstance(method, str)
        and isinstance(runs, list)
        and all(isinstance(run, Run) for run in runs)
        for method, runs in by_method.items()
    )
    if not fits:
        raise UserError(f"{path.stem}: {name} must be a dictionary of lists of runs, by method")


def _read(path: pathlib.Path):
    try:
        return jupytext.read(path)
    except Exception as error:  # jupytext and nbformat raise almost anything on what is none
        why = engines.what_failed(error)
        raise UserError(f"{path.stem}: cannot be read as a notebook ({why})") from None


def execute(path: pathlib.Path, parameters: dict, label: str) -> pathlib.Path:
    """Run one notebook with papermill into its label's folder, in this interpreter.

    The output appears only when complete; a failed one stays beside it as `.failed.ipynb`.
    Raises UserError where a cell fails, the kernel dies or a file cannot be written.
    """
    import nbformat

    target = outputs.target("papermill_runs", label) / f"{path.stem}.ipynb"
    scratch = target.with_suffix(".failed.ipynb")
    notebook = _read(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _execute(notebook, parameters, path.stem, scratch)
        notebook = nbformat.read(scratch, as_version=4)
        _check_that_all_cells_ran(notebook, path.stem, scratch)
        _scrub(notebook)
        _reduce_pictures(notebook)
        describe_pictures(notebook)
        nbformat.write(notebook, scratch)
        os.replace(scratch, target)
    except OSError as error:
        raise UserError(f"{path.stem}: {engines.what_failed(error)}") from None
    return target


def show(section: str, **parameters):
    """Run a section in the kernel that this is called from, with its text: its names stay there.

    For a notebook of one's own, wherever it lies: of Colab, for example. `parameters` are those of
    the section, as papermill's. Raises UserError outside a kernel, for an unknown section or
    parameter, and what a cell raises.
    """
    from IPython import get_ipython
    from IPython.display import Markdown, display

    shell = get_ipython()
    if shell is None:
        raise UserError("show: needs the kernel of a notebook; in a shell, `proxies run` it")
    scale = parameters.get("scale", "laptop")
    for name, value in parameters.items():
        if name not in reading(scale):
            refuse(name, value, f"unknown parameter; allowed are {', '.join(reading(scale))}")
    (path,) = choose([section], protocol.study(scale, parameters.get("overrides")))
    for cell in _read(path).cells:
        if cell.cell_type != "code":
            display(Markdown(cell.source))
            continue
        shell.run_cell(cell.source).raise_error()
        if "parameters" in cell.metadata.get("tags", []):
            shell.push(parameters)


def _execute(notebook, parameters: dict, name: str, scratch: pathlib.Path):
    """Execute `notebook` into the file `scratch`; every failure but the system's is a UserError."""
    import papermill

    logging.getLogger("papermill").addHandler(logging.NullHandler())  # the line below says it
    with quiet_kernel():
        try:
            papermill.execute_notebook(
                notebook,
                str(scratch),
                parameters=parameters,
                kernel_name=KERNEL,
                progress_bar=False,
                cwd=str(paths.root()),
                start_timeout=START_SECONDS,
                # A kernel that is asked to end lets its cell end first, with a traceback: Ctrl-C
                # would wait for it. What a cell has written is on the disk by then.
                shutdown_kernel="immediate",
            )
        except papermill.PapermillExecutionError as error:
            why = f"{error.ename}: {error.evalue}"
            raise UserError(
                f"{name}: cell {error.cell_index} failed ({why}); see {scratch.name}"
            ) from None
        except OSError:
            raise
        except Exception as error:  # a kernel that dies or does not start has no type in common
            why = engines.what_failed(error)
            if "died" in why:
                why += "; the system kills one where memory runs out"
            raise UserError(f"{name}: its kernel failed ({why}); see {scratch.name}") from error


def _check_that_all_cells_ran(notebook, name: str, scratch: pathlib.Path):
    """Papermill marks cells as completed although they never ran; a count says that one did."""
    for i, cell in enumerate(notebook.cells):
        if cell.cell_type == "code" and cell.source.strip() and not cell.execution_count:
            raise UserError(f"{name}: cell {i} did not run; see {scratch.name}")


def _scrub(notebook):
    """Drop what differs between machines and times: paths, durations, states, random ids."""
    notebook.metadata.pop("papermill", None)
    notebook.metadata.get("language_info", {}).pop("version", None)
    for position, cell in enumerate(notebook.cells):
        cell.id = f"cell-{position}"
        for name in ("papermill", "execution"):
            cell.metadata.pop(name, None)


def _reduce_pictures(notebook):
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                reduced = pictures.in_palette(base64.b64decode(data["image/png"]))
                data["image/png"] = base64.b64encode(reduced).decode()


def describe_pictures(notebook):
    """Give every picture an alt text: its heading, and the paragraph above that begins with DRAWN.

    It is metadata of the output. nbconvert's classic template writes it, its default one does not
    (7.17); there a reader has the paragraph itself.
    """
    for cell, heading, drawn in _captioned(notebook.cells):
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                alt = _without_markup(f"{heading}. {drawn}")
                output.metadata.setdefault("image/png", {})["alt"] = alt


def _captioned(cells):
    """Each cell with the heading above it, and the paragraph of DRAWN below that heading."""
    heading = drawn = ""
    for cell in cells:
        if cell.cell_type == "markdown":
            for paragraph in cell.source.split("\n\n"):
                if paragraph.startswith("#"):
                    heading, drawn = paragraph.lstrip("# "), ""
                elif paragraph.startswith(DRAWN):
                    drawn = paragraph.removeprefix(DRAWN)
        yield cell, heading, drawn


class Drawing(NamedTuple):
    """Where a notebook draws a figure: a cell, and what is said above it."""

    heading: str
    about: str
    line: int  # of the notebook's file, where the cell names the figure's file
    source: str  # of the cell


def drawing(path: pathlib.Path, file: str) -> Drawing:
    """The cell of a notebook that saves the figure `file`. Raises UserError where there is none."""
    name = f'"{file}"'
    for cell, heading, drawn in _captioned(_read(path).cells):
        if cell.cell_type == "code" and name in cell.source:
            lines = path.read_text("utf-8").splitlines()
            line = next(number for number, text in enumerate(lines, 1) if name in text)
            return Drawing(_without_markup(heading), _without_markup(drawn), line, cell.source)
    raise UserError(f"{path.stem}: saves no {file}")


def _without_markup(text: str) -> str:
    """Markdown as plain text in one line: links become their words, emphasis goes."""
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"(?<!\\)[*`]", "", text)
    return " ".join(text.replace("\\", "").split())


@contextlib.contextmanager
def quiet_kernel():
    """A kernel of this interpreter with a throw-away IPython profile.

    Another `python3` that Jupyter finds first would run other code, and the user's own start-up
    files must not change results; ipykernel's start-up warning must not enter the outputs.
    """
    from ipykernel.kernelspec import write_kernel_spec

    with tempfile.TemporaryDirectory() as folder:
        profile = pathlib.Path(folder) / "profile_default"
        profile.mkdir()
        (profile / "ipython_kernel_config.py").write_text(
            "c.IPKernelApp.log_level = 40\nc.IPKernelApp.exec_PYTHONSTARTUP = False\n"
        )
        write_kernel_spec(pathlib.Path(folder) / "kernels" / KERNEL)
        places = filter(None, (folder, os.environ.get("JUPYTER_PATH")))
        with (
            paths.environment("IPYTHONDIR", folder),
            paths.environment("JUPYTER_PATH", os.pathsep.join(places)),
        ):
            yield
