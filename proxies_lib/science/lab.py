"""JupyterLab for this project: a double click on a notebook's `.py` opens it as a notebook.

JupyterLab opens a `.py` in its text editor unless a setting says otherwise. That setting is put
into a folder of this project's cache, and JUPYTER_CONFIG_PATH shows the folder to one server. So
neither the user's own settings nor those of the environment change.
"""

import json
import os
import pathlib
import sys

from proxies_lib import paths

OPENER = "Jupytext Notebook"  # the name of jupytext's way to open a text file

SETTINGS = {"@jupyterlab/docmanager-extension:plugin": {"defaultViewers": {"python": OPENER}}}


def configure() -> pathlib.Path:
    """Write the folder that JUPYTER_CONFIG_PATH is to name, and return it.

    It has two files, as jupyter_server and jupyterlab_server read them: the server's configuration
    and settings of the page. Raises OSError where the cache cannot be written.
    """
    folder = paths.folder("cache") / "jupyter"
    server = {"LabApp": {"default_url": "/lab/tree/notebooks"}}
    for name, value in {
        "jupyter_lab_config.json": server,
        "labconfig/default_setting_overrides.json": SETTINGS,
    }.items():
        paths.write_atomically(folder / name, json.dumps(value, indent=1).encode())
    return folder


def start(arguments: list[str]):
    """Become JupyterLab, in the project's folder, with `arguments` of `jupyter lab`.

    This process is replaced: signals and the exit status are the server's.
    """
    places = filter(None, (str(configure()), os.environ.get("JUPYTER_CONFIG_PATH")))
    environment = os.environ | {"JUPYTER_CONFIG_PATH": os.pathsep.join(places)}
    os.chdir(paths.root())
    command = [sys.executable, "-m", "jupyterlab", *arguments]
    sys.stdout.flush()
    os.execve(sys.executable, command, environment)
