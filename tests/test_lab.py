"""JupyterLab's settings for this project, without a browser: tests/browser/test_lab.py has one."""

import json
import os
import subprocess
import sys

import pytest

from proxies_lib.science import lab

ASK = """
import json
from jupyterlab_server.settings_utils import _get_overrides
from jupyter_core.paths import jupyter_config_path
overrides, error = _get_overrides("nowhere")
print(json.dumps([overrides, str(error), jupyter_config_path()]))
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A user whose own setting for another file type must stay, and who has another folder, too."""
    own = tmp_path / "home/.jupyter/labconfig/default_setting_overrides.json"
    own.parent.mkdir(parents=True)
    own.write_text('{"@jupyterlab/docmanager-extension:plugin": {"autosave": false}}')
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PROXIES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("JUPYTER_CONFIG_PATH", str(tmp_path / "other"))
    return tmp_path / "home"


def files(folder) -> dict:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_setting_reaches_the_server_and_changes_nothing_of_the_users(home, monkeypatch):
    before = files(home)
    monkeypatch.setattr(os, "execve", lambda *command: started.append(command))
    monkeypatch.chdir(home)
    started = []
    lab.start(["--no-browser"])
    ((program, command, environment),) = started
    assert command == [program, "-m", "jupyterlab", "--no-browser"] and program == sys.executable
    asked = subprocess.run(
        [sys.executable, "-c", ASK], env=environment, capture_output=True, text=True, check=True
    )
    overrides, error, places = json.loads(asked.stdout)
    manager = overrides["@jupyterlab/docmanager-extension:plugin"]
    assert manager == {"defaultViewers": {"python": "Jupytext Notebook"}, "autosave": False}
    assert error == "" and str(home.parent / "other") in places
    assert files(home) == before


def test_jupyterlab_answers_through_the_command(home):
    command = [sys.executable, "-m", "proxies_lib.cli", "lab", "--", "--version"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout[0].isdigit(), done.stderr


def test_jupytext_still_opens_notebooks_under_that_name():
    """JupyterLab ignores a viewer that it does not know, without a word."""
    from jupytext_config.labconfig import LabConfig

    known = LabConfig(settings_file="nowhere").set_default_viewers(["python"]).config
    assert known == lab.SETTINGS
