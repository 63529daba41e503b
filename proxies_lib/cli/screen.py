"""What is printed: color, columns that stand below each other, JSON.

Color goes to a terminal only, and not where NO_COLOR is set (no-color.org) or TERM is dumb.
"""

import json
import math
import os
import pathlib
import re
import sys
import unicodedata

from proxies_lib import paths

CODES = {"bold": "1", "faint": "2", "red": "31", "green": "32", "yellow": "33"}

# Of each verdict, and of each side of a comparison.
COLORS = {"holds": "green", "contradicted": "red", "undecided": "yellow", "not testable": "faint"}


def painted(text: str, style: str) -> str:
    """`text` in a style of CODES, where stdout is a terminal that wants color."""
    return f"\033[{CODES[style]}m{text}\033[0m" if _has_color() and text else text


def _has_color() -> bool:
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return sys.stdout is not None and sys.stdout.isatty()


def verdict(text: str, width: int = 0) -> str:
    """A verdict in its color, in so many columns at least."""
    return painted(text, COLORS[text]) + " " * (width - len(text))


def heading(text: str):
    """Print a heading with an empty line above."""
    print(f"\n{painted(text, 'bold')}")


def pairs(values: dict[str, str], indent: str = "  "):
    """Print names and values, a line each, the values below each other."""
    width = max(map(_width, values), default=0)
    for name, value in values.items():
        print(f"{indent}{_padded(name, width)}  {value}".rstrip())


def table(head: list[str], rows: list[list[str]], indent: str = "  "):
    """Print rows under their head, each column as wide as its widest cell."""
    lines = [head, *rows]
    widths = [max(map(_width, column)) for column in zip(*lines, strict=True)]
    for number, line in enumerate(lines):
        cells = [_padded(cell, width) for cell, width in zip(line, widths, strict=True)]
        text = "  ".join(cells).rstrip()
        print(f"{indent}{painted(text, 'faint') if number == 0 else text}")


def _padded(text: str, width: int) -> str:
    return text + " " * (width - _width(text))


def _width(text: str) -> int:
    """Columns that a terminal gives to a text: colors and combining marks have none."""
    return sum(not unicodedata.combining(c) for c in re.sub("\033\\[[0-9]*m", "", text))


def print_json(value):
    """Print a value as JSON, a frame as a list of rows; nan and infinity are null."""
    print(json.dumps(_plain(value), indent=1, ensure_ascii=False))


def _plain(value):
    if hasattr(value, "to_dict"):  # a frame
        value = value.to_dict("records")
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if hasattr(value, "item"):  # NumPy's scalars
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def place(path: pathlib.Path) -> str:
    """A path as one types it in the project's folder."""
    try:
        return str(path.relative_to(paths.root()))
    except ValueError:
        return str(path)


def text(value) -> str:
    """A value of a field as it is typed: 0.0003, none; those of a list with commas between."""
    if isinstance(value, tuple):
        return ", ".join(f"({text(one)})" if isinstance(one, tuple) else text(one) for one in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
