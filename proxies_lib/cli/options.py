"""Options that several commands have, and what their values mean."""

import argparse
import ast
import json
import pathlib
import re

from proxies_lib.config import refuse

MOST_SEEDS = 10_000  # of one command


# ------------------------------------------------------------------ what can be typed


class Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"proxies: {_one_line(message)}; see {self.prog} --help\n")


def _one_line(message: str) -> str:
    """What argparse says, without the line breaks and endless values of what it was given."""
    words = "".join(c if c.isprintable() else " " for c in message)
    return words if len(words) <= 400 else f"{words[:399]}…"


def add_protocol(added):
    added.add_argument("sections", nargs="*", metavar="SECTION", help="01, 02, …; all without one")
    add_overrides(added)


def add_overrides(added):
    add_scale(added)
    added.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        dest="settings",
        help="override sizes, lrs, seeds or a field of the run; outputs go to a label of its own",
    )
    added.add_argument("--seeds", help="as 0,1,2 or 1000-1002: short for --set seeds=[…]")
    added.add_argument("--label", metavar="NAME", help="outputs go to <scale>-NAME")
    added.add_argument("--store", help="folder of the run store")


def add_scale(added):
    added.add_argument(
        "--scale", default="laptop", help="smoke, laptop (default), night, long, gpu or paper"
    )


def add_engine(added):
    added.add_argument("--workers", type=int, help="training processes (default: one per core)")
    added.add_argument(
        "--engine",
        choices=("auto", "processes", "lanes", "ray"),
        help="a process per core, vmapped lanes, a Ray cluster (docs/machines.md); "
        "auto: by the device",
    )


def add_label(added):
    added.add_argument(
        "--scale", default="laptop", metavar="LABEL", help="a scale, or the label of a protocol"
    )
    added.add_argument(
        "--published", action="store_true", help="the committed ones, also where there are own ones"
    )


def add_json(added):
    added.add_argument("--json", action="store_true")


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
    ranges = [range(int(part[1]), int(part[2] or part[1]) + 1) for part in parts]
    if not all(ranges) or sum(map(len, ranges)) > MOST_SEEDS:
        refuse("seeds", text, f"must be 1 to {MOST_SEEDS} seeds, ranges in growing order")
    return [seed for seeds in ranges for seed in seeds]


def shard_of(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        refuse("shard", text, "must be i/n with 1 ≤ i ≤ n")
    return int(match[1]), int(match[2])


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


# ------------------------------------------------------------------ what is printed


def print_json(rows):
    print(json.dumps(json.loads(rows.to_json(orient="records")), indent=1, ensure_ascii=False))
