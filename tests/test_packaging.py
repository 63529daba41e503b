import ast
import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from proxies_lib import pages

ROOT = pathlib.Path(__file__).resolve().parents[1]
DOCS = sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))


def name_of(requirement: str) -> str:
    return re.split(r"[\s\[<>=;~!]", requirement)[0].lower()


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def needed(*extras: str) -> set:
    optional = project()["optional-dependencies"]
    return {
        name_of(r) for r in sum((optional[extra] for extra in extras), project()["dependencies"])
    }


def pinned(python: str) -> dict[str, str]:
    """The versions of constraints.txt for a version of Python."""
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    there = {"python_version": python}
    applying = [r for r in found if r.marker is None or r.marker.evaluate(there)]
    return {r.name: str(r.specifier).removeprefix("==") for r in applying}


# What conda-forge builds itself, or is not expected to have.
BY_PIP = {"jax", "flax", "optax", "orbax-checkpoint", "diptest"}


def test_environment_yml_has_the_versions_of_the_constraints():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))
    listed = environment["dependencies"]
    conda = dict(item.partition("=")[::2] for item in listed if isinstance(item, str))
    python = conda.pop("python")
    assert SpecifierSet(project()["requires-python"]).contains(python)
    assert all(conda.pop(tool) == "" for tool in ("pip", "git", "make"))
    versions = pinned(python)
    assert conda == {name: versions[name] for name in needed("test") - BY_PIP}
    (by_pip,) = [item["pip"] for item in listed if isinstance(item, dict)]
    options = [item for item in by_pip if item.startswith("-")]
    assert options == ["-c constraints.txt", "-e ."] and set(by_pip) - set(options) == BY_PIP
    assert BY_PIP <= versions.keys() and environment["channels"] == ["conda-forge"]


def test_the_page_of_platforms_has_the_commands_behind_make():
    if not shutil.which("make"):
        pytest.skip("make is not installed")
    page = (ROOT / "docs/platforms.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `make ([\w-]+)` \| `(.+)` \|$", page, re.MULTILINE))
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z-]+): \.venv/\.ready$", makefile, re.MULTILINE))
    assert {"reproduce", "publish", "lab", "test", "bench"} <= rows.keys() <= targets
    # `make test` runs this test: the outer make's flags and variables are not of the user's.
    own = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    for target, command in rows.items():
        asked = ["make", "--no-print-directory", "-n", "-o", ".venv/.ready", target]
        said = subprocess.run(
            asked, cwd=ROOT, env=own, capture_output=True, text=True, check=True
        ).stdout
        assert command.split() == said.splitlines()[-1].split(), target
    for line in re.findall(r"-m (?:venv|pip) .+", page):
        words = line.replace("-m pip install", "-m pip install --quiet --disable-pip-version-check")
        assert words in makefile, line


def test_constraints_pin_every_dependency_for_every_python():
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            match = re.fullmatch(
                r"([a-z0-9-]+)==[\w.]+(?: ; (python_version (?:<|>=) \"3\.12\"))?", line
            )
            assert match, line
            pins.setdefault(match[1], []).append(match[2])
    assert needed(*project()["optional-dependencies"]) <= pins.keys()
    assert all(
        len(markers) == 1 and markers[0] is None or len(markers) == 2 for markers in pins.values()
    )


def test_no_file_names_a_registry_or_a_machine():
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()
    files = [ROOT / f for f in listed if not f.endswith((".png", ".parquet"))]
    bad = re.compile("py" + "pi|python" + "hosted|index" + "-url|/ro" + "ot/|/wo" + "rk/", re.I)
    pictures = re.compile(r'"image/png": "[^"]*"')  # base64 spells anything sooner or later
    texts = {f: pictures.sub("", f.read_text("utf-8", "ignore")) for f in files if f.is_file()}
    assert len(texts) > 300
    assert [str(f) for f, text in texts.items() if bad.search(text)] == []


# ------------------------------------------------------------------ the house

RANK = {"core": 0, "runs": 1, "science": 2, "budget": 3, "pages": 4, "site": 5, "cli": 6}


def layer_of(module: str) -> str:
    """The layer of a module or of a package, by its dotted name."""
    words = module.split(".")
    if len(words) == 1:
        return "core"
    return words[1] if words[1] in RANK else "core"


def imported(path: pathlib.Path) -> set[str]:
    """The modules of this library that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            # `from proxies_lib import train` names a module, `… import UserError` none.
            found |= {f"{node.module}.{name.name}" for name in node.names}
    return {name for name in found if name.split(".")[0] == "proxies_lib"}


def test_layers_hold():
    """core ← runs ← science ← budget ← site ← cli: no import from a higher layer."""
    assert set(pages.ABOVE_ALL) < RANK.keys()
    files = sorted((ROOT / "proxies_lib").rglob("*.py"))
    assert {path.parent.name for path in files} >= {"runs", "science", "budget", "site"}
    for path in files:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        higher = [m for m in imported(path) if RANK[layer_of(m)] > RANK[layer_of(name)]]
        assert not higher, f"{name} imports {higher}"


def test_notebooks_stand_on_science():
    for path in sorted((ROOT / "notebooks").glob("*.py")):
        layers = {layer_of(module) for module in imported(path)}
        assert layers <= {"core", "runs", "science"}, path.name


def ruff() -> list[str]:
    if importlib.util.find_spec("ruff"):
        return [sys.executable, "-m", "ruff"]
    if shutil.which("ruff"):
        return ["ruff"]
    pytest.skip("ruff is not installed (the extra test)")


@pytest.mark.parametrize("command", ["check", "format --check"])
def test_ruff_is_content(command):
    done = subprocess.run(
        [*ruff(), *command.split(), "--no-cache", "."], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr


def test_the_types_of_core_and_runs_agree():
    if not importlib.util.find_spec("mypy"):
        pytest.skip("mypy is not installed (the extra test)")
    command = [sys.executable, "-m", "mypy", "--cache-dir", os.devnull]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr


def test_the_hooks_are_local_and_run_ruff():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repo["repo"] for repo in hooks] == ["local"]
    assert [hook["entry"] for hook in hooks[0]["hooks"]] == ["ruff check", "ruff format"]


LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(#[^)\s]*)?\)")


def anchors(page: pathlib.Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    heads = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    words = (re.sub(r"[^\w\- ]", "", head.lower()) for head in heads)
    return {f"#{text.replace(' ', '-')}" for text in words}


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", *DOCS])
def test_links_lead_somewhere(page):
    for target, anchor in LINK.findall((ROOT / page).read_text("utf-8")):
        place = (ROOT / page).parent / target if target else ROOT / page
        assert place.exists(), f"{page} links to {target}"
        if anchor and place.suffix == ".md":
            assert anchor in anchors(place), f"{page} links to {target}{anchor}"


def test_the_page_of_machines_lists_every_variable():
    code = [*(ROOT / "proxies_lib").rglob("*.py"), *(ROOT / "deploy").iterdir()]
    named = {
        v for path in code for v in re.findall(r"\bPROXIES_[A-Z_]+\b", path.read_text("utf-8"))
    }
    table = (ROOT / "docs/machines.md").read_text("utf-8")
    listed = set(re.findall(r"^\| `(PROXIES_[A-Z_]+)`", table, re.MULTILINE))
    assert named <= listed
