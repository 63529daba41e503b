"""Rows and columns of a table of runs that one asks for: `lr=0.1,d_model>=64`."""

import operator
import re
from collections.abc import Callable

import numpy as np
import pandas as pd

from proxies_lib.config import did_you_mean, refuse

SIGNS: dict[str, Callable] = {
    "<=": operator.le,
    ">=": operator.ge,
    "!=": operator.ne,
    "=": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}

_SIGN = "<=|>=|!=|=|<|>"

# A comma ends a condition only where another one begins: values may have commas.
_BETWEEN = re.compile(rf",(?=\s*[A-Za-z]\w*\s*(?:{_SIGN}))")

_CONDITION = re.compile(rf"\s*([A-Za-z]\w*)\s*({_SIGN})(.*)", re.DOTALL)


def where(table: pd.DataFrame, conditions: list[str]) -> pd.DataFrame:
    """The rows of `table` that meet all `conditions`, each one or several with commas between.

    Numbers are equal if twelve digits agree. Raises UserError on what is no condition, no column,
    or no value that the column may have.
    """
    for condition in conditions:
        for part in _BETWEEN.split(condition):
            table = table[_meets(table, part)]
    return table


def _meets(table: pd.DataFrame, condition: str) -> pd.Series:
    match = _CONDITION.fullmatch(condition)
    if not match:
        refuse("where", condition, "must be NAME=VALUE, or with one of != < <= > >=")
    name, sign, text = match[1], match[2], match[3].strip()
    column = table[_known(table, "where", name)]
    if pd.api.types.is_bool_dtype(column):
        return _same(name, column, sign, _truth(name, text))
    if not pd.api.types.is_numeric_dtype(column):
        return _same(name, column.astype(str), sign, text)
    try:
        value = float(text)
    except ValueError:
        refuse("where", condition, f"{name} is a number")
    if sign in ("=", "!="):
        close = np.isclose(column.astype(float), value, rtol=1e-12, atol=0.0, equal_nan=True)
        return pd.Series(close if sign == "=" else ~close, column.index)
    return SIGNS[sign](column, value)


def _same(name: str, column: pd.Series, sign: str, value) -> pd.Series:
    if sign not in ("=", "!="):
        refuse("where", f"{name}{sign}{value}", f"{name} is no number: only = and != compare it")
    return SIGNS[sign](column, value)


def _truth(name: str, text: str) -> bool:
    words = {"true": True, "1": True, "false": False, "0": False}
    if text.lower() not in words:
        refuse("where", f"{name}={text}", f"{name} is true or false")
    return words[text.lower()]


def names(table: pd.DataFrame, text: str) -> list[str]:
    """The columns of `table` in `text`, with commas between; each once. Raises UserError."""
    asked = [_known(table, "columns", name.strip()) for name in text.split(",")]
    return list(dict.fromkeys(asked))


def _known(table: pd.DataFrame, option: str, name: str) -> str:
    if name not in table:
        near = did_you_mean(name, table)
        refuse(option, name, f"no such column{near}; columns are {', '.join(table)}")
    return name
