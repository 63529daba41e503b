"""The command `proxies`: plan and run sections, read tables, claims and figures, prepare data,
measure speed.

    parser      what can be typed
    options     options that several commands have, and how their values are read
    sections    plan, run, figures, export
    results     merge, table, claims, score, reference
    budget      bench, tpu-check, costs
    data        data prepare, data list
"""

import io
import os
import sys

from proxies_lib import config
from proxies_lib.cli.parser import parser_and_commands
from proxies_lib.config import UserError


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status.

    0; 2 for bad input and 1 for a disk's refusal, with one line on stderr; 130 when interrupted,
    143 by SIGTERM with a checkpoint.
    """
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character shows its number.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        options = parser_and_commands()[0].parse_args(arguments)
        return options.call(options) or 0
    except UserError as error:
        print(f"proxies: {error}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        print("proxies: interrupted; finished runs are stored", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader went away (`| head`). Python would complain once more as it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except OSError as error:
        file = error.filename2 or error.filename
        prefix = f"{config.shown(file)}: " if file else ""
        print(f"proxies: {prefix}{config.shown(error.strerror or error)}", file=sys.stderr)
        return 1


def reference() -> str:
    """The text of docs/reference.md."""
    from proxies_lib import pages

    _, commands = parser_and_commands()
    return pages.reference({name: parser.description for name, parser in commands.items()})
