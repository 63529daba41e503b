import ast
import json
import os
import pathlib
import re
import subprocess
import sys

import jupytext
import nbformat
import pandas as pd
import pytest

from proxies_lib import config, pages
from proxies_lib.config import UserError
from proxies_lib.science import (
    analysis,
    bisection,
    columns,
    notebooks,
    protocol,
    report,
    styles,
)
from proxies_lib.science.figures import BEYOND, FIGURES, of_section

ROOT = pathlib.Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "notebooks").glob("*.py"))
STUDY = protocol.study("smoke")
SMOKE = {"scale": "smoke", "train": True, "publish": True, "overrides": {}}
PAPER = [figure for figure in FIGURES.values() if figure.section not in ("00", "10", BEYOND)]
EXECUTED = [
    p
    for scale in protocol.scales()
    for p in sorted((ROOT / "papermill_runs" / scale).glob("[0-9]*.ipynb"))
]


def test_smoke_notebooks_run_again_and_agree_from_an_empty_store(tmp_path, monkeypatch):
    """nbval on the committed smoke notebooks: every cell runs, and prints what it printed."""
    executed = [p for p in EXECUTED if p.parent.name == "smoke"]
    assert [p.stem for p in executed] == [p.stem for p in SOURCES]
    outputs = {
        f"PROXIES_{k.upper()}": str(tmp_path / k) for k in ("store", "figures", "papermill_runs")
    }
    outputs["PROXIES_WORKERS"] = "1"  # two would compile the same programs twice
    with notebooks.quiet_kernel():
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "--nbval-lax",
            "-p",
            "no:cacheprovider",
            "--nbval-cell-timeout=1500",
            *reversed([str(p) for p in executed]),
        ]
        done = subprocess.run(
            command, cwd=tmp_path, env=os.environ | outputs, capture_output=True, text=True
        )
    assert done.returncode == 0, done.stdout[-4000:]
    asked = {run for path in SOURCES for runs in notebooks.runs_of(path, SMOKE) for run in runs}
    monkeypatch.setenv("PROXIES_STORE", outputs["PROXIES_STORE"])
    arms = notebooks.grids_of(notebooks.sections()["11"], SMOKE).bisected
    asked |= set(notebooks.all_runs(bisection.rounds(arms, STUDY).runs))
    assert len(list((tmp_path / "store").rglob("*.npz"))) == len(asked)
    assert (tmp_path / "figures/smoke").exists()


@pytest.mark.parametrize("path", EXECUTED, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_executed_notebooks_hold_the_source_that_is_committed(path):
    source = jupytext.read(ROOT / "notebooks" / f"{path.stem}.py")
    executed = nbformat.read(path, as_version=4)
    mine = [c for c in executed.cells if "injected-parameters" not in c.metadata.get("tags", [])]
    assert [(c.cell_type, c.source) for c in mine] == [
        (c.cell_type, c.source) for c in source.cells
    ]
    assert all(c.execution_count for c in mine if c.cell_type == "code")
    text = path.read_text()
    assert not re.search(r"/(home|root|tmp|work|Users)/", text) and "Traceback" not in text


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.stem)
def test_notebooks_stay_thin(path):
    """Caps count characters and statements, not lines: unfolding a packed line costs nothing.

    An intervention is what a notebook may define, in a cell of its own: the notebook's data.
    """
    code = [cell.source for cell in jupytext.read(path).cells if cell.cell_type == "code"]
    assert all(len(source) <= 1_000 for source in code)
    own = [source for source in code if not source.startswith("@intervention(")]
    assert sum(map(len, own)) <= 6_800
    for source in own:
        nodes = list(ast.walk(ast.parse(source)))
        assert sum(isinstance(node, ast.stmt) for node in nodes) <= 12
        assert not any(isinstance(node, (ast.FunctionDef, ast.ClassDef)) for node in nodes)
    for source in set(code) - set(own):
        assert [type(node) for node in ast.parse(source).body] == [ast.ClassDef]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.stem)
def test_every_figure_opens_with_a_paragraph_that_says_what_is_drawn(path):
    """Between its heading and the cell that saves it. Pictures take their alt text from there."""
    text = ""
    for cell in jupytext.read(path).cells:
        if cell.cell_type == "markdown":
            text = cell.source if re.search("^#", cell.source, re.M) else text + cell.source
        for name in re.findall(r'"(fig[A-Z]?\d*_[\w-]+)"', cell.source):
            assert notebooks.DRAWN in text, name


def test_links_to_the_glossary_lead_to_a_heading():
    glossary = (ROOT / "docs" / "glossary.md").read_text("utf-8")
    headings = re.findall("^#+ (.*)$", glossary, re.M)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    links = re.findall(r"\(#([^)]+)\)", glossary)
    for path in SOURCES:
        links += re.findall(r"\.\./\.\./docs/glossary\.md#([\w-]+)", path.read_text("utf-8"))
    assert len(links) > 60 and set(links) <= anchors


def test_pictures_get_an_alt_text_that_nbconverts_classic_template_writes():
    """The heading and the paragraph of the figure, as plain text; a new heading ends them."""
    from nbconvert import HTMLExporter

    def picture(source):
        data = {"image/png": "AAAA"}
        output = nbformat.v4.new_output("display_data", data, metadata={"image/png": {"width": 9}})
        return nbformat.v4.new_code_cell(source, outputs=[output])

    cells = [
        nbformat.v4.new_markdown_cell(
            "## Figure 0 · first\n\n**Drawn.** The *loss* ℓ\\* of [S](x)."
        ),
        picture("1"),
        nbformat.v4.new_markdown_cell("And more."),
        picture("2"),
        nbformat.v4.new_markdown_cell("# Second"),
        picture("3"),
    ]
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebooks.describe_pictures(notebook)
    html, _ = HTMLExporter(template_name="classic").from_notebook_node(notebook)
    first = "Figure 0 · first. The loss ℓ* of S."
    assert re.findall('alt="([^"]*)"', html) == [first, first, "Second."]


@pytest.mark.parametrize("name", ["01_attention_logit_growth", "07_predicting_logit_growth"])
def test_the_laptop_notebooks_draw_from_the_committed_table_without_training(name, tmp_path):
    """What a reader does first: each cell of a section, on stored runs of another corpus than the
    reader's."""
    script = (
        "import jupytext, os\n"
        f"for cell in jupytext.read({str(ROOT / 'notebooks' / f'{name}.py')!r}).cells:\n"
        "    if cell.cell_type == 'code': exec(cell.source, globals())\n"
        "print(len(table), 'rows')\n"
        "print(verdicts.set_index('claim')['verdict'].to_json())"
    )
    where = {
        "PROXIES_PAPERMILL_RUNS": str(ROOT / "papermill_runs"),
        "PROXIES_STORE": str(tmp_path / "none"),
        "PROXIES_CACHE": str(tmp_path / "cache"),
        "PROXIES_FIGURES": str(tmp_path / "figures"),
        "MPLBACKEND": "agg",
    }
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | where,
    )
    assert done.returncode == 0, done.stderr
    assert (
        "0 to train" in done.stdout
        and "matched by configuration" in done.stdout
        and "rows" in done.stdout
    )
    assert not list(tmp_path.iterdir())  # reading writes nothing
    published = pd.read_csv(ROOT / "papermill_runs/laptop/claims.csv", dtype=str)
    mine = published[published["section"] == name[:2]].set_index("claim")["verdict"]
    assert json.loads(done.stdout.splitlines()[-1]) == mine.to_dict()


def test_a_run_that_serves_two_methods_has_a_row_in_each(monkeypatch):
    monkeypatch.setenv("PROXIES_PAPERMILL_RUNS", str(ROOT / "papermill_runs"))
    first, second = notebooks.runs_of(notebooks.choose(["00"], STUDY)[0], SMOKE)[0][:2]
    table, _ = report.collect({"a": [first, second], "b": [second]}, protocol.study("smoke"))
    assert (
        table["method"].tolist() == ["a", "a", "b"]
        and table["lr"].nunique() + table["seed"].nunique() == 3
    )
    assert table["key"].tolist()[1:] == table["key"].tolist()[1:2] * 2
    assert (table["loss"] == analysis.with_loss(table)["loss"]).all()


def test_a_protocol_of_ones_own_says_that_the_text_is_about_another(monkeypatch, capsys):
    monkeypatch.setenv("PROXIES_PAPERMILL_RUNS", str(ROOT / "papermill_runs"))
    run = notebooks.runs_of(notebooks.choose(["00"], STUDY)[0], SMOKE)[0][0]
    own = protocol.study("smoke", {"seeds": [0], "label": "mine"})
    words = "smoke-mine: smoke with seeds = [0]. The text tells what is seen in runs of smoke"
    for study, said in ((own, True), (protocol.study("smoke"), False)):
        report.collect({"a": [run]}, study)
        assert (words in capsys.readouterr().out) == said


def test_a_sections_summary_is_what_its_notebook_has_printed(monkeypatch, capsys):
    monkeypatch.setenv("PROXIES_PAPERMILL_RUNS", str(ROOT / "papermill_runs"))
    path, study = notebooks.sections()["05"], protocol.study("smoke")
    table, _ = report.collect(notebooks.grid_of(path, notebooks.reading("smoke")), study)
    capsys.readouterr()
    report.summary(table, study)
    executed = nbformat.read(ROOT / "papermill_runs/smoke" / f"{path.stem}.ipynb", as_version=4)
    printed = [o.get("text") for c in executed.cells for o in c.get("outputs", [])]
    assert capsys.readouterr().out in printed


def test_a_figure_of_curves_is_saved_with_its_numbers(monkeypatch):
    monkeypatch.setenv("PROXIES_PAPERMILL_RUNS", str(ROOT / "papermill_runs"))
    path, study = notebooks.sections()["01"], protocol.study("smoke")
    table, _ = report.collect(notebooks.grid_of(path, notebooks.reading("smoke")), study)
    saved = {}
    monkeypatch.setattr(report, "save", lambda _, name, frames, *__: saved.update({name: frames}))
    sensitivity = report.lr_figure(table, study, "with S")
    report.size_figure(table, study, "by size")
    assert list(saved["with S"]) == ["loss", *sensitivity] and list(saved["by size"]) == ["loss"]
    expected = analysis.lr_sensitivity(table, ["method", "n_params"], study.window)
    assert next(iter(sensitivity.values())).equals(expected)
    assert saved["by size"]["loss"].equals(saved["with S"]["loss"])


def test_a_run_of_several_sections_keeps_the_curves_that_any_of_them_reads(tmp_path):
    known = notebooks.sections()
    of_warmup, _ = notebooks.runs_of(known["03"], SMOKE)
    of_z_loss, _ = notebooks.runs_of(known["02"], SMOKE)
    draft = tmp_path / "12_draft.py"  # one that cannot be read is no reason to lose an export
    draft.write_text('# %% tags=["grid"]\nruns = 1 / 0\n')
    read = notebooks.curves_read([known["03"], draft, known["02"]], SMOKE)
    assert set(read) == {*of_warmup, *of_z_loss}
    shared = set(of_warmup) & set(of_z_loss)
    assert shared and all("mean_log_z_squared" in read[run] for run in of_z_loss)
    assert {read[run] for run in set(of_warmup) - shared} == {frozenset()}
    # Section 10 does not say: it reads all curves, those of runs that others share included.
    everything = notebooks.curves_read([known["10"], *known.values()], SMOKE)
    of_instability, _ = notebooks.runs_of(known["10"], SMOKE)
    assert {everything[run] for run in of_instability} == {None}


def test_readme_has_the_digest_and_a_page_the_scoreboards(monkeypatch):
    monkeypatch.setenv("PROXIES_PAPERMILL_RUNS", str(ROOT / "papermill_runs"))
    monkeypatch.setenv("PROXIES_FIGURES", str(ROOT / "figures"))
    boards = columns.published()
    readme = (ROOT / pages.README).read_text("utf-8")
    page = (ROOT / pages.SCOREBOARD).read_text("utf-8")
    words, shown = pages.sentences(readme), columns.at_front(boards)
    assert pages.digest(shown, words) in readme
    assert set(words) == set(zip(shown["section"], shown["scale"])) and all(words.values())
    assert len(readme.splitlines()) <= 120
    for scale, board in boards.items():
        assert pages.scoreboard(board, scale) in page
    links = re.findall(r"\]\(\.\./((?:figures|papermill_runs)/[^)]+)\)", page)
    assert len(links) >= 3 * len(boards["laptop"])


@pytest.mark.parametrize("scale", ["smoke", "laptop"])
def test_every_figure_is_there_in_both_forms_and_no_other(scale):
    files = sorted(p.name for p in (ROOT / "figures" / scale).iterdir())
    names = [figure.file for figure in FIGURES.values()]
    assert files == sorted(f"{name}.{kind}" for name in names for kind in ("png", "csv"))


def test_the_figures_are_the_papers_29():
    mine = [figure.name for figure in PAPER]
    assert len(mine) == len(set(mine)) == 29
    facts = ROOT.parent / "shared" / "paper" / "facts.md"
    if not facts.exists():
        pytest.skip("the facts of the paper are not beside this checkout")
    rows = re.findall(
        r"^\| ([0-9]+|[A-Z]\.[0-9]+) \|",
        facts.read_text("utf-8").split("## 2.")[1].split("## 3.")[0],
        re.M,
    )
    assert sorted(rows) == sorted(mine)


@pytest.mark.parametrize("scale", ["smoke", "laptop"])
def test_every_figure_of_the_paper_has_a_verdict_from_its_own_section(scale, monkeypatch):
    monkeypatch.setenv("PROXIES_PAPERMILL_RUNS", str(ROOT / "papermill_runs"))
    board = report.scoreboard(scale)
    assert board["claim"].is_unique
    for section in notebooks.sections():
        judged = {figure.name for figure in of_section(section) if section != "00"}
        judged -= {"ideas"}  # the curves behind "ideas.score"
        assert set(board.loc[board["section"] == section, "figure"]) == judged


@pytest.mark.parametrize("scale", ["smoke", "laptop"])
def test_a_configuration_has_one_style_and_the_methods_of_a_notebook_have_several(scale):
    seen = {}
    for path in SOURCES:
        arms = notebooks.grid_of(path, notebooks.reading(scale))
        for method, runs in arms.items():
            identity = frozenset(runs)
            for other, (style, name) in seen.items():
                assert other != identity or style == styles.style_of(method), (method, name)
            seen[identity] = styles.style_of(method), method
        distinct = [styles.style_of(method) for method in arms if not _repeats(arms, method)]
        assert len(distinct) == len(set(distinct)), path.stem


def _repeats(runs: dict, method: str) -> bool:
    """Whether an earlier method has the same configuration, sizes, LRs and seeds aside."""
    swept = {"d_model", "n_layers", "lr", "seed"}

    def configurations(of_method):
        fields = [config.flat(run) for run in runs[of_method]]
        return {tuple(item for item in flat.items() if item[0] not in swept) for flat in fields}

    earlier = list(runs)[: list(runs).index(method)]
    return any(configurations(method) & configurations(other) for other in earlier)


def test_sections_are_found_by_number_and_name_overview_last():
    chosen = notebooks.choose(["00", "01_attention_logit_growth"], STUDY)
    assert [p.name[:2] for p in chosen] == ["01", "00"]
    runs, held_out = notebooks.runs_of(chosen[0], SMOKE)
    assert len(runs) == 24 and not held_out and runs[0].data == "synthetic"
    assert notebooks.runs_of(notebooks.choose(["07"], STUDY)[0], SMOKE)[1]


CELLS = """# %%
import sys
before = 1

# %%
{}
"""


@pytest.fixture
def execute(tmp_path, monkeypatch):
    """Execute a notebook whose second cell is given; the output is then at `execute.target`."""
    monkeypatch.setenv("PROXIES_PAPERMILL_RUNS", str(tmp_path / "runs"))

    def one(cell: str):
        (tmp_path / "section.py").write_text(CELLS.format(cell))
        return notebooks.execute(tmp_path / "section.py", {}, "label")

    one.target = tmp_path / "runs" / "label" / "section.ipynb"
    return one


def test_a_notebook_runs_in_this_interpreter_whatever_jupyter_finds_first(
    execute, tmp_path, monkeypatch
):
    foreign = tmp_path / "jupyter" / "kernels" / "python3"
    foreign.mkdir(parents=True)
    spec = {"argv": ["/bin/false"], "display_name": "another", "language": "python"}
    (foreign / "kernel.json").write_text(json.dumps(spec))
    (tmp_path / "startup.py").write_text("import builtins; builtins.before = 2")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("PYTHONSTARTUP", str(tmp_path / "startup.py"))
    cell = "import builtins; print(sys.executable, hasattr(builtins, 'before'))"
    done = nbformat.read(execute(cell), as_version=4)
    assert done.cells[1].outputs[0].text == f"{sys.executable} False\n"
    assert os.environ["JUPYTER_PATH"] == str(tmp_path / "jupyter")


def test_what_is_executed_again_is_the_same_file(execute):
    first = execute("print(before)").read_bytes()
    assert execute("print(before)").read_bytes() == first


def test_a_kernel_that_is_killed_is_one_clear_line_and_nothing_is_promoted(execute, capfd):
    with pytest.raises(UserError, match="^section: its kernel failed .*Kernel died.*; see section"):
        execute("import os; os.kill(os.getpid(), 9)")
    assert not execute.target.exists() and "Kernel died" not in capfd.readouterr().err


def test_a_notebook_whose_cells_did_not_run_is_not_promoted(execute, monkeypatch):
    def leave_out(notebook, output, **_):
        nbformat.write(notebook, output)

    monkeypatch.setattr("papermill.execute_notebook", leave_out)
    with pytest.raises(UserError, match="^section: cell 0 did not run; see section.failed.ipynb"):
        execute("print()")
    assert not execute.target.exists()


def test_a_notebook_that_cannot_be_written_or_read_is_one_clear_line(execute, tmp_path):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(UserError, match=f"^section: {tmp_path}/runs/label: Not a directory"):
        execute("print()")
    (tmp_path / "broken.ipynb").write_text("{")
    for read in (notebooks.runs_of, lambda *both: notebooks.execute(*both, "label")):
        with pytest.raises(UserError, match="^broken: cannot be read as a notebook"):
            read(tmp_path / "broken.ipynb", {})
    (tmp_path / "grid.py").write_text('# %% tags=["grid"]\nruns = 1 / 0\n')
    with pytest.raises(UserError, match="^grid: a cell of its grid failed .ZeroDivisionError"):
        notebooks.runs_of(tmp_path / "grid.py", {})


PARAMETERS = """# %% tags=["parameters"]
scale = "smoke"
train = False

# %% tags=["setup"]
from proxies_lib.science.protocol import study

this = study(scale, {}, train)
print(this.scale, this.train)
"""


def test_a_slip_in_a_parameter_of_papermill_is_refused_by_the_setup_cell(tmp_path):
    """Papermill itself logs a name that no cell knows, and executes all the same."""
    import papermill

    notebook, done = tmp_path / "section.ipynb", tmp_path / "done.ipynb"
    jupytext.write(jupytext.reads(PARAMETERS, "py:percent"), notebook)

    def execute(parameters):
        papermill.execute_notebook(
            notebook,
            done,
            parameters,
            kernel_name=notebooks.KERNEL,
            language="python",
            progress_bar=False,
        )

    with notebooks.quiet_kernel():
        execute({"scale": "laptop", "train": True})
        assert nbformat.read(done, as_version=4).cells[-1].outputs[0].text == "laptop True\n"
        allowed = "scal='laptop': unknown parameter; allowed are scale, train"
        with pytest.raises(papermill.PapermillExecutionError, match=allowed):
            execute({"scal": "laptop"})


def test_only_what_papermill_injected_last_is_looked_at(monkeypatch):
    """Whoever sets the parameters again, by hand, is heard; so is a notebook of another kind."""

    class Shell:
        user_ns = {"In": [], "scal": 1}

    monkeypatch.setattr("IPython.get_ipython", lambda: Shell)
    own, slip, setup = 'scale = "smoke"\ntrain = True', "# Parameters\nscal = 1\n", "study(scale)"
    for cells in (
        ["", own, setup],
        ["", own, slip, own, setup],
        ["", own, slip, own, "# Parameters\ntrain = False\n", setup],
        ["", "cap = 5", slip, setup],
        ["", "%matplotlib inline", slip, setup],
        [slip, setup],
    ):
        Shell.user_ns["In"] = cells
        assert protocol.study("smoke").scale == "smoke"
    for cells in (["", own, slip, setup], ["", own, "# Parameters\n", own, slip, setup]):
        Shell.user_ns["In"] = cells
        with pytest.raises(UserError, match="^scal=1: unknown parameter"):
            protocol.study("smoke")
