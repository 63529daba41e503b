"""Ctrl-C and SIGTERM: a command with worker processes answers at once, whoever is told."""

import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from proxies_lib import cli, paths
from proxies_lib.cli import results, stopping

# Each run takes many minutes, so that nobody waits for one by accident.
LONG = ["run", "01", "--scale", "smoke", "--set", "steps=4000000", "--workers", "2"]


def started(tmp_path) -> subprocess.Popen:
    """The command, in a group of its own, when its workers are at work."""
    own = {f"PROXIES_{kind}": str(tmp_path / kind) for kind in ("STORE", "PAPERMILL_RUNS")}
    own["PROXIES_ENGINE"] = "processes"
    process = subprocess.Popen(
        [sys.executable, "-m", "proxies_lib.cli", *LONG],
        env=os.environ | own,
        cwd=paths.root(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell's background job would hand down that it ignores Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    until = time.monotonic() + 60
    while len(workers(process)) < 2 and process.poll() is None and time.monotonic() < until:
        time.sleep(0.1)
    if len(workers(process)) < 2:
        process.kill()
        pytest.fail(f"no workers: {process.communicate()[1]}")
    return process


def workers(process) -> list[psutil.Process]:
    """Those that have taken up their work: they hear no Ctrl-C any more."""
    children = psutil.Process(process.pid).children()
    return [child for child in children if _ignores(child.pid, signal.SIGINT)]


def _ignores(pid: int, number: int) -> bool:
    try:
        with open(f"/proc/{pid}/status") as file:
            (mask,) = (line.split()[1] for line in file if line.startswith("SigIgn:"))
    except (FileNotFoundError, ProcessLookupError, ValueError):
        return False
    return bool(int(mask, 16) >> (number - 1) & 1)


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="asks /proc")
@pytest.mark.parametrize(
    ("number", "of_all", "status", "how"),
    [
        (signal.SIGINT, True, 130, "interrupted"),  # as a terminal sends it
        (signal.SIGTERM, False, 143, "stopped by SIGTERM"),
    ],
)
def test_workers_end_with_their_command_and_it_says_how_to_go_on(
    number, of_all, status, how, tmp_path
):
    process = started(tmp_path)
    there = workers(process)
    asked = time.monotonic()
    (os.killpg if of_all else os.kill)(process.pid, number)
    too_late = threading.Timer(30, process.kill)
    too_late.start()
    line = process.stderr.readline()
    answered = time.monotonic() - asked
    rest = process.communicate()[1]
    too_late.cancel()
    assert line == f"proxies: {how}; finished runs are kept; go on with: proxies {' '.join(LONG)}\n"
    assert process.returncode == status and rest == "" and answered < 10
    _, alive = psutil.wait_procs(there, timeout=10)
    assert alive == []


def test_an_interrupt_and_a_termination_unwind_and_are_one_line(monkeypatch, capsys):
    """Whatever is under way: what a `finally` clears up is cleared up, and SIGTERM is as before."""
    before = signal.getsignal(signal.SIGTERM)
    for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        cleared = []

        def waiting(options, number=number, cleared=cleared):
            try:
                signal.raise_signal(number)
                time.sleep(10)
            finally:
                cleared.append(signal.getsignal(signal.SIGTERM))

        monkeypatch.setattr(results, "_claims", waiting)
        assert cli.main(["claims", "--scale", "a b"]) == status
        out, err = capsys.readouterr()
        assert not out and err.startswith("proxies: ") and err.count("\n") == 1
        assert err.endswith("; start it again with: proxies claims --scale 'a b'\n")
        # While a termination clears up, another one must not stop it.
        assert (cleared[0] == signal.SIG_IGN) == (number == signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) == before


def test_who_hears_sigterm_already_goes_on_hearing_it():
    heard = []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
    try:
        with stopping.terminable():
            signal.raise_signal(signal.SIGTERM)
        assert heard == [1]
    finally:
        signal.signal(signal.SIGTERM, before)
