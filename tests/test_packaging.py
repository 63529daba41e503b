import pathlib
import re
import subprocess
import tomllib

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[1]


def name_of(requirement: str) -> str:
    return re.split(r"[\s\[<>=;~!]", requirement)[0].lower()


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def needed(*extras: str) -> set:
    optional = project()["optional-dependencies"]
    return {
        name_of(r) for r in sum((optional[extra] for extra in extras), project()["dependencies"])
    }


def test_environment_yml_names_what_pyproject_needs():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda = {name_of(d) for d in environment["dependencies"] if isinstance(d, str)}
    assert conda - {"python", "pip", "make"} == needed("test")
    assert "python" + project()["requires-python"] in environment["dependencies"]
    assert (
        environment["channels"] == ["conda-forge"]
        and {"pip": ["-e ."]} in environment["dependencies"]
    )


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
    texts = {f.name: pictures.sub("", f.read_text("utf-8", "ignore")) for f in files if f.is_file()}
    assert texts and [name for name, text in texts.items() if bad.search(text)] == []
