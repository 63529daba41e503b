"""What can be typed: the parser of `proxies` and of its commands."""

import argparse
import functools

from proxies_lib.cli import (
    budget,
    completion,
    data,
    diff,
    explain,
    others,
    report,
    results,
    sections,
    show,
)
from proxies_lib.cli.options import Parser, add_command, shown_examples

ABOUT = (
    "Plan and run sections, read tables, claims and figures, ask and compare, prepare data, "
    "measure speed."
)

EXAMPLES = """
plan 01                     # what section 01 would train, and how long it takes
run 01 02                   # train what is missing, then execute the notebooks
show 53d53ac60a90           # a point of a figure: its run
diff laptop laptop-xeon     # two labels: verdicts that changed, losses of common runs
"""

# Exit statuses, for the help and docs/cli.md.
STATUSES = {
    0: "done",
    1: "the disk refuses: full, read-only, not there",
    2: "bad input, or something is missing, damaged or failed; one line says what",
    130: "interrupted with Ctrl-C; finished runs are kept",
    143: "stopped by SIGTERM; finished runs are kept",
}


def parser_and_commands():
    """The parser, and its commands by name; each has `about` and `example` among its defaults."""
    statuses = "\n".join(f"  {status:<4} {words}" for status, words in STATUSES.items())
    parser = Parser(
        prog="proxies",
        description=ABOUT,
        epilog=f"{shown_examples(EXAMPLES)}\n\nexit status:\n{statuses}",
    )
    parser.add_argument(
        "--version", action=_Version, nargs=0, help="print the version and the commit, and end"
    )
    parser.set_defaults(call=lambda options: parser.print_help())
    commands = parser.add_subparsers(metavar="COMMAND", parser_class=Parser, title="commands")

    command = functools.partial(add_command, commands)
    for group in (sections, results, report, show, explain, diff, budget, data, others, completion):
        group.add(command)
    return parser, commands.choices


class _Version(argparse.Action):
    """`--version`: asked for only where it is wanted, as git takes a moment."""

    def __call__(self, parser, *_):
        import importlib.metadata

        from proxies_lib.runs import provenance

        version = importlib.metadata.version("proxies-lib")
        print(f"proxies {version}, commit {provenance.commit()}")
        parser.exit()
