"""Every test session has a cache, store and output folders of its own, and one small stdlib-free
world."""

import os
import signal

import pytest

from proxies_lib.science import protocol

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A shell's background job ignores Ctrl-C, and so would the commands that tests interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def own_world(tmp_path_factory):
    home = tmp_path_factory.mktemp("world")
    for kind in ("cache", "store", "figures", "papermill_runs"):
        os.environ[f"PROXIES_{kind.upper()}"] = str(home / kind)
    yield home


@pytest.fixture
def smoke():
    return protocol.scales()["smoke"].base
