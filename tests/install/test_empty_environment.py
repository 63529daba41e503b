"""An empty environment, outside the checkout: docs/colab.md installs and executes there.

Slow (`make test-install`): some minutes and 1 GB of packages. It clones what is committed.
"""

import os
import pathlib
import re
import subprocess
import sys

import nbformat
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/colab.md").read_text("utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)\n```$", PAGE, re.MULTILINE | re.DOTALL)
HERE = BLOCKS[0].replace("https://github.com/OWNER/NAME", ROOT.as_uri())


def run(command: list, folder: pathlib.Path, **environment: str) -> str:
    """Standard output of a command that knows nothing of this project's environment."""
    ours = ("PROXIES_", "PYTHON", "VIRTUAL_ENV", "JUPYTER")
    clean = {name: v for name, v in os.environ.items() if not name.startswith(ours)}
    clean |= {"HOME": str(folder), "PIP_CONSTRAINT": str(ROOT / "constraints.txt")} | environment
    done = subprocess.run(command, cwd=folder, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """A folder with an empty environment, in which the first cell of the page was run."""
    folder = tmp_path_factory.mktemp("elsewhere")
    run([sys.executable, "-m", "venv", "environment"], folder)
    cache = os.environ.get("PIP_CACHE_DIR", os.path.expanduser("~/.cache/pip"))
    run(["environment/bin/python", "-c", HERE], folder, PIP_CACHE_DIR=cache)
    return folder


def test_notebook_01_trains_and_is_executed_at_smoke_scale(elsewhere):
    proxies = elsewhere / "environment/bin/proxies"
    said = run([proxies, "run", "01", "--scale", "smoke"], elsewhere / "proxies")
    assert "24 to train" in said and "24/24 runs" in said
    executed = elsewhere / "proxies/papermill_runs/local/smoke/01_attention_logit_growth.ipynb"
    outputs = [o for c in nbformat.read(executed, 4).cells for o in c.get("outputs", [])]
    assert sum("image/png" in o.get("data", {}) for o in outputs) == 3


def test_the_cells_of_the_page_run_in_a_kernel_of_that_environment(elsewhere):
    notebook = nbformat.read(ROOT / "docs/colab.ipynb", as_version=4)
    next(cell for cell in notebook.cells if cell.cell_type == "code").source = HERE
    nbformat.write(notebook, elsewhere / "colab.ipynb")
    jupyter = elsewhere / "environment/bin/jupyter"
    run([jupyter, "execute", "--inplace", "colab.ipynb"], elsewhere)
    cells = [c for c in nbformat.read(elsewhere / "colab.ipynb", 4).cells if "outputs" in c]
    pictures = [sum("image/png" in o.get("data", {}) for o in c.outputs) for c in cells]
    assert pictures == [0, 3, 3]
