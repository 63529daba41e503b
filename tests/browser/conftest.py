"""For the pages of the site: a browser, and the site of all scales, each once per module."""

import contextlib
import functools
import http.server
import os
import pathlib
import shutil
import threading

import pytest

from proxies_lib import cli

ROOT = pathlib.Path(__file__).resolve().parents[2]

# Pictures for a person to look at; git ignores the folder.
SCREENSHOTS = ROOT / ".cache" / "screenshots"

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

LABELS = ("laptop", "night", "long")  # all that are published: verdicts move between them


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site") / "out"
    with pytest.MonkeyPatch.context() as patch:
        for kind in ("figures", "papermill_runs"):
            patch.delenv(f"PROXIES_{kind.upper()}", raising=False)
        labels = [part for label in LABELS for part in ("--scale", label)]
        assert cli.main(["report", *labels, "--published", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def browser():
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"no browser on the PATH: {', '.join(BROWSERS)}")
    api = pytest.importorskip("playwright.sync_api", reason="the extra browser is not installed")
    # The superuser, in a container, may not make the sandbox.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=arguments)
        yield started
        started.close()


class Visitor:
    """A page of the browser that notes what it complains about and what it asks for."""

    def __init__(self, page, site: pathlib.Path):
        self.page, self.site, self.complaints, self.asked = page, site, [], []
        page.on("console", lambda message: self._note(message.type, message.text))
        page.on("pageerror", lambda error: self._note("error", str(error)))
        page.on("request", lambda request: self.asked.append(request.url))

    def _note(self, kind: str, text: str):
        if kind in ("error", "warning"):
            self.complaints.append(f"{self.page.url}: {text}")

    def open(self, name: str):
        self.page.goto(f"{self.site.as_uri()}/{name}")
        return self.page

    def elsewhere(self) -> list[str]:
        """What was asked for that is no file of the site."""
        own = (self.site.as_uri(), "data:", "blob:")
        return [url for url in self.asked if not url.startswith(own)]


@pytest.fixture
def visit(browser, site):
    """A function that gives a new visitor, of a width in pixels and a theme."""
    with contextlib.ExitStack() as stack:

        def made(width: int = 1280, theme: str = "light") -> Visitor:
            size = {"width": width, "height": 900}
            context = browser.new_context(viewport=size, color_scheme=theme)
            stack.callback(context.close)
            return Visitor(context.new_page(), site)

        yield made


class _Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def served(site):
    """The address of the site on a static host of this machine."""
    handler = functools.partial(_Silent, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
