import ast
import os
import pathlib
import re
import subprocess
import sys

import jupytext
import nbformat
import pytest

from proxies_lib import claims, config, notebooks

ROOT = pathlib.Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "notebooks").glob("*.py"))
EXECUTED = [p for scale in config.scales() for p in sorted((ROOT / "papermill_runs" / scale).glob("[0-9]*.ipynb"))]


def test_smoke_notebooks_run_again_and_agree_from_an_empty_store(tmp_path):
    """nbval on the committed smoke notebooks: every cell runs, checked cells print what they printed."""
    executed = [p for p in EXECUTED if p.parent.name == "smoke"]
    assert [p.stem for p in executed] == [p.stem for p in SOURCES]
    outputs = {f"PROXIES_{k.upper()}": str(tmp_path / k) for k in ("store", "figures", "papermill_runs")}
    with notebooks._quiet_kernel():
        command = [sys.executable, "-m", "pytest", "-q", "--nbval-lax", "-p", "no:cacheprovider", "--nbval-cell-timeout=300",
                   *reversed([str(p) for p in executed])]  # fmt: skip
        done = subprocess.run(command, cwd=tmp_path, env=os.environ | outputs, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]
    assert len(list((tmp_path / "store").rglob("*.npz"))) == 24 and (tmp_path / "figures/smoke").exists()


@pytest.mark.parametrize("path", EXECUTED, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_executed_notebooks_hold_the_source_that_is_committed(path):
    source = jupytext.read(ROOT / "notebooks" / f"{path.stem}.py")
    executed = nbformat.read(path, as_version=4)
    mine = [c for c in executed.cells if "injected-parameters" not in c.metadata.get("tags", [])]
    assert [(c.cell_type, c.source) for c in mine] == [(c.cell_type, c.source) for c in source.cells]
    assert all(c.execution_count for c in mine if c.cell_type == "code")
    text = path.read_text()
    assert not re.search(r"/(home|root|tmp|work|Users)/", text) and "Traceback" not in text


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.stem)
def test_notebooks_stay_thin(path):
    code = [c.source for c in jupytext.read(path).cells if c.cell_type == "code"]
    assert len(path.read_text().splitlines()) <= 170
    for source in code:
        assert len(source.splitlines()) <= 12
        assert not any(isinstance(n, (ast.FunctionDef, ast.ClassDef)) for n in ast.walk(ast.parse(source)))


def test_the_laptop_notebooks_draw_from_the_committed_table_without_training(tmp_path):
    """What a reader does first: every cell of section 01, on stored runs of another corpus than the reader's."""
    script = (
        "import jupytext, os\n"
        f"for cell in jupytext.read({str(ROOT / 'notebooks/01_attention_logit_growth.py')!r}).cells:\n"
        "    if cell.cell_type == 'code': exec(cell.source, globals())\n"
        "print(len(table), 'rows')"
    )
    where = {"PROXIES_PAPERMILL_RUNS": str(ROOT / "papermill_runs"), "PROXIES_STORE": str(tmp_path / "none"),
             "PROXIES_CACHE": str(tmp_path / "cache"), "PROXIES_FIGURES": str(tmp_path / "figures"),
             "MPLBACKEND": "agg"}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, env=os.environ | where
    )
    assert done.returncode == 0, done.stderr
    assert "0 to train" in done.stdout and "matched by configuration" in done.stdout and "rows" in done.stdout
    assert not list(tmp_path.iterdir())  # reading writes nothing


def test_readme_shows_the_laptop_scoreboard(monkeypatch):
    monkeypatch.setenv("PROXIES_PAPERMILL_RUNS", str(ROOT / "papermill_runs"))
    assert claims.markdown(claims.scoreboard("laptop")) in (ROOT / "README.md").read_text("utf-8")


@pytest.mark.parametrize("scale", ["smoke", "laptop"])
def test_every_figure_is_there_in_three_forms(scale):
    for name in ("fig00_method", "fig01_lr_sensitivity", "fig02_logit_growth", "figE01_qk_norms"):
        for kind in ("png", "svg", "csv"):
            assert (ROOT / "figures" / scale / f"{name}.{kind}").exists()


def test_sections_are_found_by_number_and_name_overview_last():
    chosen = notebooks.choose(["00", "01_attention_logit_growth"])
    assert [p.name[:2] for p in chosen] == ["01", "00"]
    runs = notebooks.runs_of(chosen[0], {"scale": "smoke", "train": True, "publish": True, "overrides": {}})
    assert len(runs) == 24 and runs[0].data == "synthetic" and config.scales()["smoke"].base.train == runs[0].train
