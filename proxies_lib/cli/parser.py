"""What can be typed: the parser of `proxies` and of its commands."""

from proxies_lib.cli import budget, data, results, sections
from proxies_lib.cli.options import Parser

ABOUT = (
    "The command `proxies`: plan and run sections, read tables, claims and figures, prepare data, "
    "measure speed."
)


def parser_and_commands():
    """The parser, and its commands by name: each has its words as `description`."""
    parser = Parser(prog="proxies", description=ABOUT)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)

    def command(name, call, text):
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(call=call)
        return added

    sections.add(command)
    results.add(command)
    budget.add(command)
    data.add(command)
    return parser, commands.choices
