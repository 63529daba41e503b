"""Follow CONTRIBUTING.md on a copy of the project: what it says works."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text("utf-8")

EDIT = re.compile(
    r"^(?:New file|In) `(?P<file>[^`\n]+)`"
    r"(?:, (?P<how>before the line with|after the line with|everywhere) `(?P<text>[^`\n]+)`"
    r"(?: becomes)?|(?P<end>, at the end))?:\n\n```python\n(?P<block>.*?)```$",
    re.MULTILINE | re.DOTALL,
)


def part(title: str) -> str:
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


@pytest.fixture
def project(tmp_path):
    """A copy of what a contributor edits."""
    for name in ("proxies_lib", "notebooks"):
        shutil.copytree(
            ROOT / name, tmp_path / "project" / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    return tmp_path / "project"


def follow(title: str, project: pathlib.Path):
    """Make the edits of one part of the page, in their order."""
    edits = list(EDIT.finditer(part(title)))
    assert len(edits) == part(title).count("```python")
    for edit in edits:
        path, block = project / edit["file"], edit["block"]
        if edit["how"] is None and not edit["end"]:
            assert not path.exists()
            path.write_text(block)
            continue
        old = path.read_text("utf-8")
        if edit["end"]:
            new = f"{old}\n\n{block}"
        elif edit["how"] == "everywhere":
            assert edit["text"] in old
            new = old.replace(edit["text"], block.strip())
        else:
            (line,) = [line for line in old.splitlines(True) if edit["text"] in line]
            both = block + line if edit["how"].startswith("before") else line + block
            new = old.replace(line, both)
        path.write_text(new)


def in_project(project: pathlib.Path, *command: str) -> str:
    """Standard output of a command of the copy, which shares nothing with this project."""
    own = {
        f"PROXIES_{kind.upper()}": str(project.parent / kind)
        for kind in ("cache", "store", "figures", "papermill_runs")
    }
    environment = os.environ | own | {"PYTHONPATH": str(project)}
    done = subprocess.run(
        [sys.executable, *command], cwd=project, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


# The default run's key and result, to compare with the project's as it is.
DEFAULT = """
from proxies_lib import config, train
from proxies_lib.runs import datasets
from proxies_lib.science import protocol

base = protocol.scales()["smoke"].base
dataset = datasets.open_dataset(base.data, base.model.vocab_size)


def trained(*runs):
    return train.Trainer(*runs[0].program).train(list(runs), dataset)


print(config.recipe(base), trained(base)[0]["final_loss"].hex())
"""


def test_add_a_section(project):
    follow("Add a section", project)
    commands = re.findall(r"^proxies (.+)$", part("Add a section"), re.MULTILINE)
    plan, _, claims = [in_project(project, "-m", "proxies_lib.cli", *c.split()) for c in commands]
    assert "36 to train" in plan and "Clipping gradients at 0.1" in claims
    outputs = project.parent
    assert (outputs / "figures/smoke/figX01_clipping.png").stat().st_size > 1000
    assert (outputs / "papermill_runs/smoke/12_gradient_clipping.ipynb").exists()


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """What the default run gives in the project as it is."""
    folder = tmp_path_factory.mktemp("before") / "project"
    folder.mkdir()
    for name in ("proxies_lib", "notebooks"):
        (folder / name).symlink_to(ROOT / name)
    return in_project(folder, "-c", DEFAULT)


def test_add_a_hyperparameter(project, before):
    follow("Add a hyperparameter", project)
    script = (
        f"{DEFAULT}\n"
        "for run in config.grid(base, {'embedding_lr': (0.0, 1.0)}):\n"
        "    print(run.program == base.program, trained(run)[0]['final_loss'].hex())\n"
    )
    default, frozen, same = in_project(project, "-c", script).splitlines()
    assert default == before.strip()  # neither key nor bits change
    assert same == f"True {default.split()[1]}" and frozen.startswith("True") and frozen != same
