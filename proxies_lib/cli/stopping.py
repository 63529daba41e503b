"""How a command ends that is stopped: Ctrl-C and SIGTERM unwind it, and one line says what next.

Where training has its own way to hear SIGTERM, with a checkpoint, that one counts
(`runs.checkpoint.until_terminated`); other processes of a command end as their input does.
"""

import contextlib
import shlex
import signal
import sys
import threading

GO_ON = "finished runs are kept; go on with"

AGAIN = "start it again with"


class Terminated(SystemExit):
    """The command was stopped by SIGTERM. As an exit it passes through whatever is under way."""

    status = 128 + signal.SIGTERM

    def __init__(self):
        super().__init__(self.status)


@contextlib.contextmanager
def terminable():
    """Within, SIGTERM raises Terminated, once, unless somebody else hears it."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def stop(*_):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not stop the clearing up
        raise Terminated

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def say(how: str, next_step: str, arguments: list[str]):
    """The line of a command that was stopped: `how`, and what to type next."""
    typed = shlex.join(["proxies", *arguments])
    words = "".join(c if c.isprintable() else "?" for c in typed)
    print(f"proxies: {how}; {next_step}: {words}", file=sys.stderr, flush=True)
