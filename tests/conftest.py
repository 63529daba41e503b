"""Every test session has a cache, store and output folders of its own, and one small stdlib-free
world."""

import os
import signal

import pytest

from proxies_lib.runs import executables
from proxies_lib.science import protocol

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A shell's background job ignores Ctrl-C, and so would the commands that tests interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_sessionfinish():
    """pytest-xdist interrupts its processes at the end, which a garbage collection would print."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


@pytest.fixture(scope="session", autouse=True)
def own_world(tmp_path_factory):
    home = tmp_path_factory.mktemp("world")
    for kind in ("store", "figures", "papermill_runs"):
        os.environ[f"PROXIES_{kind.upper()}"] = str(home / kind)
    # Processes of pytest-xdist share what is compiled, and a process finds what another one left.
    session = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        session = session.parent
    os.environ["PROXIES_CACHE"] = str(session / "cache")
    executables.use_cache()
    yield home


@pytest.fixture
def smoke():
    return protocol.scales()["smoke"].base
