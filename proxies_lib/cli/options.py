"""Options that several commands have, and what their values mean."""

import argparse
import ast
import pathlib
import re
import textwrap
from collections.abc import Callable

from proxies_lib.cli import completion
from proxies_lib.config import did_you_mean, refuse
from proxies_lib.science.protocol import scales

MOST_SEEDS = 10_000  # of one command


# ------------------------------------------------------------------ what can be typed


class Parser(argparse.ArgumentParser):
    """A parser whose help has examples, and whose errors are a line that says what was meant."""

    def __init__(self, *args, **options):
        super().__init__(*args, **{"formatter_class": _Formatter} | options)

    def error(self, message):
        self.exit(2, f"proxies: {_one_line(message)}; see {self.prog} --help\n")

    def parse_known_args(self, args=None, namespace=None):
        """As argparse's; but the command itself refuses what it does not know, not `proxies`."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}{self._meant(unknown[0])}")
        return found, unknown

    def _meant(self, word: str) -> str:
        if word.startswith("-"):
            return did_you_mean(word.partition("=")[0], self._option_string_actions)
        takes_scale = "--scale" in self._option_string_actions
        return f" (did you mean --scale {word}?)" if takes_scale and word in scales() else ""

    def _check_value(self, action, value):
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            near = did_you_mean(value, map(str, action.choices or ()))
            raise argparse.ArgumentError(action, f"{error.message}{near}") from None


class _Formatter(argparse.HelpFormatter):
    """Paragraphs are wrapped, indented lines stay as they are: examples, tables."""

    def _fill_text(self, text, width, indent):
        return "\n".join(
            line if line.startswith(" ") or not line else textwrap.fill(line, width)
            for line in text.splitlines()
        )


def _one_line(message: str) -> str:
    """What argparse says, without the line breaks and endless values of what it was given."""
    words = "".join(c if c.isprintable() else " " for c in message)
    return words if len(words) <= 400 else f"{words[:399]}…"


def shown_examples(examples: str) -> str:
    """The end of a help: example lines, `proxies` left out."""
    lines = [f"  proxies {line.strip()}" for line in examples.strip().splitlines()]
    return "\n".join(["examples:" if len(lines) > 1 else "example:", *lines])


def add_command(commands, name: str, call, text: str, examples: str) -> Parser:
    """A command of `commands`, with its help; `text` and its first example are its defaults `about`
    and `example`, for docs/reference.md."""
    about = f"{text[0].upper()}{text[1:]}."
    added = commands.add_parser(name, help=text, description=about, epilog=shown_examples(examples))
    example = examples.strip().splitlines()[0].partition("#")[0].strip()
    added.set_defaults(call=call, about=text, example=f"proxies {example}")
    return added


def add_option(added, *names: str, complete: Callable | None = None, **options):
    """`add_argument`, with the words that Tab offers."""
    action = added.add_argument(*names, **options)
    if complete:
        action.completer = complete  # type: ignore[attr-defined]  # argcomplete looks there
    return action


def add_protocol(added):
    add_option(
        added,
        "sections",
        nargs="*",
        metavar="SECTION",
        help="1 or 01, or 01_attention_logit_growth; all without one",
        complete=completion.sections,
    )
    add_overrides(added)


def add_overrides(added):
    add_scale(added)
    add_option(
        added,
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        dest="settings",
        help="override sizes, lrs, seeds or a field of the run; outputs go to a label of its own",
        complete=completion.overrides,
    )
    added.add_argument("--seeds", help="as 0,1,2 or 1000-1002: short for --set seeds=[…]")
    added.add_argument("--label", metavar="NAME", help="outputs go to <scale>-NAME")
    added.add_argument("--store", help="folder of the run store")


def add_scale(added):
    *others, last = scales()
    words = f"{', '.join(others)} or {last} (default: laptop)"
    add_option(added, "--scale", default="laptop", help=words, complete=completion.scales)


def add_engine(added):
    added.add_argument("--workers", type=int, help="training processes (default: one per core)")
    added.add_argument(
        "--engine",
        choices=("auto", "processes", "lanes", "ray"),
        help="a process per core, vmapped lanes, a Ray cluster (docs/machines.md); "
        "auto: by the device",
    )


def add_label(added):
    add_option(
        added,
        "--scale",
        default="laptop",
        metavar="LABEL",
        help="a scale, or the label of a protocol (default: laptop)",
        complete=completion.labels,
    )
    add_published(added)


def add_published(added):
    added.add_argument(
        "--published",
        action="store_true",
        default=None,  # as `refuse_beside` wants it of what is not given
        help="the committed ones, also where there are own ones",
    )


def add_json(added):
    words = "print JSON, with every digit"
    added.add_argument("--json", action="store_true", default=None, help=words)  # None as above


def add_quiet(added):
    added.add_argument(
        "--quiet", action="store_true", help="print nothing but warnings and what is wrong"
    )


# ------------------------------------------------------------------ what was typed


def overrides_of(options) -> dict:
    """--set, --seeds and --label as overrides: Python literals, or bare words as strings."""
    overrides = {}
    for item in options.settings:
        name, equals, text = item.partition("=")
        if not equals:
            refuse("set", item, "must be NAME=VALUE")
        overrides[name] = _literal(text)
    if options.seeds is not None:
        overrides["seeds"] = _seeds(options.seeds)
    if options.label is not None:
        overrides["label"] = options.label
    return overrides


def _literal(text: str):
    """`text` as a Python literal, else as it is."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):  # also: too deep
        return text


def _seeds(text: str) -> list[int]:
    """The seeds of `text`, single ones and ranges: "0,5-7" is [0, 5, 6, 7]."""
    parts = [re.fullmatch(r"([0-9]{1,10})(?:-([0-9]{1,10}))?", part) for part in text.split(",")]
    if not all(parts):
        refuse("seeds", text, "must be like 0,1,2 or 1000-1002")
    ranges = [range(int(part[1]), int(part[2] or part[1]) + 1) for part in parts if part]
    if not all(ranges) or sum(map(len, ranges)) > MOST_SEEDS:
        refuse("seeds", text, f"must be 1 to {MOST_SEEDS} seeds, ranges in growing order")
    return [seed for seeds in ranges for seed in seeds]


def shard_of(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        refuse("shard", text, "must be i/n with 1 ≤ i ≤ n")
    return int(match[1]), int(match[2])


def refuse_beside(option: str, **others):
    """Raise UserError where one of the `others`, options by name, is given beside `option`: is not
    None."""
    for name, value in others.items():
        if value is not None:
            refuse(name, value, f"does not go with --{option}")


def new_folder(field: str, text: str) -> str:
    """`text` as the name of a folder that is there or can be made. Raises UserError."""
    if not text or "\0" in text:
        refuse(field, text, "must be the name of a folder")
    path = pathlib.Path(text).resolve()
    try:
        nearest = next(parent for parent in (path, *path.parents) if parent.exists())
    except OSError as error:
        refuse(field, text, f"cannot be a folder ({error.strerror})")
    if not nearest.is_dir():
        refuse(field, text, f"cannot be a folder: {nearest} is a file")
    return str(path)
