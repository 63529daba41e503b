# PYTHON_ARGCOMPLETE_OK
"""The command `proxies`: plan and run sections, read tables, claims and figures, ask and compare,
prepare data, measure speed.

    parser      what can be typed
    options     options that several commands have, and how their values are read
    sections    plan, run, figures, export
    results     merge, table, claims, score, reference
    report, show, explain, diff   the commands of these names
    budget      bench, tpu-check, costs
    data        data prepare, data list
    completion  completion; the words that Tab offers
    stopping    Ctrl-C and SIGTERM
    screen      what is printed: color, aligned columns, JSON
"""

import contextlib
import io
import os
import sys

from proxies_lib import config
from proxies_lib.cli import completion, stopping
from proxies_lib.cli.parser import parser_and_commands
from proxies_lib.config import UserError


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status, one of `parser.STATUSES`.

    What is wrong is one line on stderr.
    """
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character shows its number.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    parser, _ = parser_and_commands()
    if "_ARGCOMPLETE" in os.environ:
        completion.offer(parser)
    next_step = stopping.AGAIN
    try:
        with stopping.terminable():
            options = parser.parse_args(arguments)
            next_step = getattr(options, "stopped", next_step)
            with _quiet(options):
                return options.call(options) or 0
    except UserError as error:
        print(f"proxies: {error}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        stopping.say("interrupted", next_step, _typed(arguments))
        return 130
    except stopping.Terminated as stop:
        stopping.say("stopped by SIGTERM", next_step, _typed(arguments))
        return stop.status
    except BrokenPipeError:
        # The reader went away (`| head`). Python would complain once more as it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except OSError as error:
        file = error.filename2 or error.filename
        prefix = f"{config.shown(file)}: " if file else ""
        print(f"proxies: {prefix}{config.shown(error.strerror or error)}", file=sys.stderr)
        return 1


def _typed(arguments: list[str] | None) -> list[str]:
    return sys.argv[1:] if arguments is None else arguments


@contextlib.contextmanager
def _quiet(options):
    """Within, with --quiet, nothing goes to stdout."""
    if not getattr(options, "quiet", False):
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def reference() -> str:
    """The text of docs/reference.md."""
    from proxies_lib import pages

    _, commands = parser_and_commands()
    words = {
        name: (one.get_default("about"), one.get_default("example"))
        for name, one in commands.items()
    }
    return pages.reference(words)
