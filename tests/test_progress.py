"""What is said of a sweep under way: on a terminal, in a notebook, in a log."""

import io
import sys

import nbformat
import pytest

from proxies_lib.config import grid
from proxies_lib.runs import engines
from proxies_lib.runs.tables import Found, Layer
from proxies_lib.science import notebooks

# As the engine of processes does: runs end in threads, and a bar is closed in any case.
CELL = """# %%
from concurrent.futures import ThreadPoolExecutor

from proxies_lib.config import Run
from proxies_lib.runs import engines
from proxies_lib.runs.tables import Found, Layer

engines.NotebookLine.SECONDS = 0
missing = [Found(Run(), "key", Layer.MISSING)] * 20
bar = engines.ProgressBar(missing, {Run().program: 2.0}, quiet=False)
with ThreadPoolExecutor(1) as pool:
    list(pool.map(lambda found: bar.add(found.run, "d <8>"), missing[:5]))
"""


def outputs_of(code: str, tmp_path, monkeypatch) -> list:
    monkeypatch.setenv("PROXIES_PAPERMILL_RUNS", str(tmp_path / "runs"))
    (tmp_path / "section.py").write_text(code)
    executed = notebooks.execute(tmp_path / "section.py", {}, "label")
    return nbformat.read(executed, as_version=4).cells[0].outputs


def test_a_notebook_shows_one_bar_that_changes(tmp_path, monkeypatch):
    (output,) = outputs_of(CELL, tmp_path, monkeypatch)
    text = output.data["text/plain"]
    assert text.startswith("  5/20 runs, ") and text.endswith(" s left, d <8>")
    bar, _, words = output.data["text/html"].partition(" 5/20")
    assert bar == '<progress max="20" value="5"></progress>' and words.endswith("d &lt;8&gt;")


def test_an_executed_notebook_keeps_one_line_without_times(tmp_path, monkeypatch):
    (output,) = outputs_of(f"{CELL}bar.close()\n", tmp_path, monkeypatch)
    assert output.data == {"text/plain": "  5/20 runs"}


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_gets_a_bar_and_a_log_a_line_per_tenth(smoke, capsys, monkeypatch, terminal):
    runs = grid(smoke, {"seed": range(40)})
    stream = io.StringIO()
    stream.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", stream)
    missing = [Found(run, None, Layer.MISSING) for run in runs]
    bar = engines.ProgressBar(missing, {smoke.program: 2.0}, quiet=False)
    for run in runs:
        bar.add(run, "d 8")
    bar.close()
    lines = capsys.readouterr().out.splitlines()
    assert (lines == []) == terminal
    if terminal:
        assert "40/40" in stream.getvalue() and "d 8, 0 s left" in stream.getvalue()
    else:
        assert [line.split()[0] for line in lines] == [f"{n}/40" for n in range(4, 41, 4)]
        assert stream.getvalue() == ""


def test_a_quiet_sweep_says_nothing(smoke, capsys):
    bar = engines.ProgressBar([Found(smoke, None, Layer.MISSING)], {smoke.program: 2.0}, True)
    bar.add(smoke, "d 8")
    bar.close()
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""
