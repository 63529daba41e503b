"""Follow docs/interoperability.md: its commands and its Python, in a folder elsewhere."""

import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from proxies_lib import cli

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/interoperability.md").read_text("utf-8")
COMMANDS = re.findall(r"^proxies (.+)$", PAGE, re.MULTILINE)
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)

pytest.importorskip("safetensors", reason="needs the extra share")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A folder elsewhere, an empty store, and the published tables."""
    monkeypatch.chdir(tmp_path)
    for kind in ("store", "figures"):
        monkeypatch.setenv(f"PROXIES_{kind.upper()}", str(tmp_path / kind))
    monkeypatch.setenv("PROXIES_PAPERMILL_RUNS", str(ROOT / "papermill_runs"))


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.split()[1])
def test_a_command_of_the_page_fills_its_folder(command, tmp_path, capsys):
    format, into = command.split()[1], command.split()[-1]
    if format in ("tensorboard", "wandb"):
        pytest.importorskip(format, reason="needs the extra share")
    assert cli.main(shlex.split(command)) == 0
    said = capsys.readouterr().out
    stored, asked = re.search(r"(\d+) of (\d+) runs are stored", said).groups()
    assert int(stored) == int(asked) > 40
    assert len([path for path in (tmp_path / into).rglob("*") if path.is_file()]) >= 2
    assert (
        f"tensorboard --logdir {into}" in PAGE
        or f"wandb sync {into}/" in PAGE
        or (
            {path.name for path in (tmp_path / into).iterdir()}
            == {f"runs.{format}", f"curves.{format}"}
        )
    )


def test_the_python_of_the_page_runs_and_shows_what_it_says(tmp_path):
    """At smoke scale: what is asserted there is that NumPy's queries and keys give our own taps."""
    assert len(BLOCKS) == 5 and BLOCKS[0].count('study("laptop")') == 1
    smoke = "\n".join(BLOCKS).replace('study("laptop")', 'study("smoke")')
    (tmp_path / "page.py").write_text(smoke)
    done = subprocess.run(
        [sys.executable, "page.py"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    first, logit, entropy, output = done.stdout.splitlines()[-4:]
    assert re.fullmatch(r"\{'max_attention_logit': .*'attention_entropy': .*\}", first)
    before, after = (float(number) for number in re.findall(r"\d[\d.e-]*", logit))
    assert after > 20 * before
    before, after = (float(number) for number in re.findall(r"\d[\d.e-]*", entropy))
    assert after < 0.7 * before
    assert "mean_log_z_squared" in output
