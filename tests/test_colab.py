"""docs/colab.ipynb is docs/colab.md as a notebook; and a section shown in another notebook."""

import pathlib
import re

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from proxies_lib.config import UserError
from proxies_lib.science import notebooks

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/colab.md").read_text("utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)\n```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_notebook_has_the_cells_of_the_page():
    notebook = nbformat.read(ROOT / "docs/colab.ipynb", as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.source for cell in code] == BLOCKS and len(BLOCKS) == 3
    assert not any(cell.outputs or cell.execution_count for cell in code)
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    assert len(texts) == 4 and all(text.split("\n\n")[-1] in PAGE for text in texts)


def test_the_cells_assume_nothing_of_this_machine():
    assert "OWNER/NAME" in BLOCKS[0]
    assert not re.search(r"/(home|tmp|content|Users)/", "".join(BLOCKS))
    imported = re.findall(r"^(?:import|from) (\w+)", BLOCKS[0], re.MULTILINE)
    assert set(imported) == {"os", "pathlib", "subprocess", "sys"}, "nothing is installed yet"


def executed(*cells: str) -> list:
    sources = [nbformat.v4.new_code_cell(cell) for cell in cells]
    notebook = nbformat.v4.new_notebook(cells=sources)
    with notebooks.quiet_kernel():
        NotebookClient(notebook, kernel_name=notebooks.KERNEL, timeout=300).execute()
    return [cell.outputs for cell in notebook.cells]


def test_a_section_is_shown_in_another_notebook_with_text_and_figures(monkeypatch, tmp_path):
    monkeypatch.setenv("PROXIES_PAPERMILL_RUNS", str(ROOT / "papermill_runs"))
    monkeypatch.setenv("PROXIES_STORE", str(tmp_path / "none"))
    show = "from proxies_lib.science import notebooks\nnotebooks.show('01', scale='smoke')"
    shown, names = executed(show, "print(len(table), scale, train, len(verdicts))")
    texts = [o.data["text/markdown"] for o in shown if "text/markdown" in o.get("data", {})]
    assert texts[0].startswith("# 1 · Attention logit growth") and len(texts) > 8
    assert texts[-1].startswith("| figure | statement |"), "the verdicts"
    pictures = [i for i, o in enumerate(shown) if "image/png" in o.get("data", {})]
    headings = [i for i, o in enumerate(shown) if "## Figure" in str(o.get("data", ""))]
    assert len(pictures) == len(headings) == 3, "each under its own heading"
    assert all(h < p for h, p in zip(headings, pictures)) and pictures[0] < headings[1]
    rows, scale, train, n_verdicts = names[0].text.split()
    assert (int(rows), scale, train) == (24, "smoke", "False") and int(n_verdicts) > 10


def test_a_section_that_defines_interventions_is_shown_as_well(monkeypatch, tmp_path):
    """Their text is read back from the cell: of a cell that another one runs, too."""
    monkeypatch.setenv("PROXIES_PAPERMILL_RUNS", str(ROOT / "papermill_runs"))
    monkeypatch.setenv("PROXIES_STORE", str(tmp_path / "none"))
    show = (
        "from proxies_lib.science import notebooks\n"
        "try:\n    notebooks.show('11', scale='smoke', overrides={'seeds': [77]})\n"
        "except ValueError as error:\n    print(error)  # no run of that seed is stored"
    )
    _, names = executed(show, "print(softcap, len(arms))")
    shown, _, count = names[0].text.rpartition(" ")
    assert shown == "<intervention softcap@1 at attention_logits>" and int(count) > 5


def test_a_slip_is_refused_and_an_error_of_a_cell_is_not_swallowed():
    slips = {
        "scal='smoke'": "scal='smoke': unknown parameter; allowed are scale, train",
        "scale='huge'": "scale='huge': must be one of",
        "overrides={'lr': 1.0}": "lr=1.0: is swept by the notebooks",
    }
    show = "try:\n    notebooks.show('01', {})\nexcept ValueError as error:\n    print(error)"
    cells = [show.format(slip) for slip in slips]
    _, *shown = executed("from proxies_lib.science import notebooks", *cells)
    for outputs, words in zip(shown, slips.values(), strict=True):
        assert outputs[-1].text.startswith(words)
    with pytest.raises(CellExecutionError, match="scale='huge': must be one of"):
        executed("from proxies_lib.science import notebooks\nnotebooks.show('01', scale='huge')")
    with pytest.raises(UserError, match="^show: needs the kernel of a notebook"):
        notebooks.show("01")
