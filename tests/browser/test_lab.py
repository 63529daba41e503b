"""A reader's first minute in a real browser: JupyterLab, a double click, a figure."""

import contextlib
import os
import pathlib
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "notebooks/01_attention_logit_growth.py"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PATIENCE = 120_000  # milliseconds, on a busy machine

playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra browser")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs chromium on the PATH")


@pytest.fixture
def address(tmp_path):
    """The address of a JupyterLab of this project, as `proxies lab` starts it.

    Its user has nothing set, its store is empty, and committed tables are the project's.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    own = {f"PROXIES_{kind.upper()}": str(tmp_path / kind) for kind in ("cache", "store")}
    own |= {"PROXIES_PAPERMILL_RUNS": str(ROOT / "papermill_runs"), "HOME": str(tmp_path)}
    own |= {"PROXIES_FIGURES": str(tmp_path / "figures"), "PYTHONPATH": str(ROOT)}
    arguments = ["--no-browser", "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0"]
    arguments += [f"--IdentityProvider.token={token}", "--allow-root"]
    log = open(tmp_path / "lab.log", "w+")
    server = subprocess.Popen(
        [sys.executable, "-m", "proxies_lib.cli", "lab", "--", *arguments],
        env=os.environ | own,
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        _wait_for(f"http://127.0.0.1:{port}/api", server, log)
        yield f"http://127.0.0.1:{port}/?token={token}"
    finally:
        server.terminate()
        server.wait(timeout=60)
        log.close()


def _wait_for(url: str, server: subprocess.Popen, log):
    """Until the server answers. Raises AssertionError, with its log, where it ends instead."""
    until = time.monotonic() + PATIENCE / 1000
    while time.monotonic() < until:
        if server.poll() is not None:
            break
        with contextlib.suppress(OSError):
            urllib.request.urlopen(url, timeout=5)
            return
        time.sleep(0.2)
    log.seek(0)
    raise AssertionError(f"jupyter lab does not answer: {log.read()[-2000:]}")


@pytest.fixture
def page():
    with playwright.sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(PATIENCE)
        yield page
        browser.close()


def test_a_double_click_opens_a_notebook_and_its_first_figure_appears(address, page, capsys):
    before = NOTEBOOK.read_bytes()
    page.goto(address)  # shows the folder of notebooks
    page.locator(".jp-DirListing-item", has_text=NOTEBOOK.name).dblclick()
    clicked = time.monotonic()
    notebook = page.locator(".jp-NotebookPanel")
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()  # else a dialog asks for a kernel
    opened = time.monotonic()
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    asked = time.monotonic()
    picture = notebook.locator(".jp-OutputArea-output img").first
    picture.wait_for(state="attached")
    drawn = time.monotonic()
    picture.scroll_into_view_if_needed()
    assert picture.evaluate("image => image.complete && image.naturalWidth") > 500
    assert notebook.locator(".jp-MarkdownOutput h1").first.text_content().startswith("1 ·")
    assert page.locator(".jp-FileEditor").count() == 0  # the text editor
    assert notebook.locator(".jp-OutputArea-output[data-mime-type*=error]").count() == 0
    assert NOTEBOOK.read_bytes() == before
    with capsys.disabled():
        print(
            f"\nopened in {opened - clicked:.1f} s, first figure {drawn - asked:.1f} s after "
            f"Run All Cells, {drawn - clicked:.1f} s after the double click"
        )
