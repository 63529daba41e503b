"""What interactive charts are made of: traces, axes, tables and the words beside them.

A chart is a panel, as Plotly wants it. `meta` of a trace is ours, for the pages' script: to which
options it belongs (`facets`), its color on the light and on the dark page (`colors`), whether it
only accompanies another trace (`quiet`), the opacity of its area (`fill`), its runs (`keys`).
"""

import dataclasses
import math
from collections.abc import Iterable

import numpy as np
import pandas as pd

from proxies_lib.science import styles
from proxies_lib.site import colors
from proxies_lib.site.colors import Pair

DIGITS = 5  # of a drawn number

DASHES = ("solid", "dash", "dot", "dashdot", "longdash")  # by position in a figure

LACKING = "–"


@dataclasses.dataclass(frozen=True)
class Keys:
    """A cell of a table: run keys."""

    keys: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Table:
    """The numbers of charts, for those who do not see them."""

    caption: str
    head: list[str]
    rows: list[list]  # of texts and Keys


@dataclasses.dataclass(frozen=True)
class Chart:
    """A panel: Plotly's traces and layout."""

    title: str
    traces: list[dict]
    layout: dict
    wide: bool = False  # it takes a row of its own

    @property
    def words(self) -> str:
        """What stands for the chart where it is not seen."""
        named = dict.fromkeys(t["name"] for t in self.traces if not t["meta"].get("quiet"))
        y, x = (self.layout[axis]["title"]["text"] for axis in ("yaxis", "xaxis"))
        curves = "; ".join(named)
        return f"{self.title}: {y or 'arms'} against {x}. {curves}. The numbers are in the tables."


@dataclasses.dataclass(frozen=True)
class Option:
    """A value of a facet, with the color that it has in the charts, if it has one."""

    value: str
    colors: Pair | None = None


@dataclasses.dataclass(frozen=True)
class Drawing:
    """All charts of a figure."""

    charts: list[Chart]
    facets: dict[str, list[Option]]  # what can be switched off, by the facet's name
    tables: list[Table]
    note: str
    columns: int = 2  # of charts side by side, where the page is wide enough


# ------------------------------------------------------------------ traces


def trace(name: str, x, y, facets: dict, pair: Pair, **more) -> dict:
    """A trace: a line with points, unless `more` says otherwise."""
    meta = {"facets": facets, "colors": pair, **more.pop("meta", {})}
    plain = {"type": "scatter", "mode": "lines+markers", "name": name}
    return {**plain, **_along(numbers(x)), "y": numbers(y), "meta": meta, **more}


def _along(x: list) -> dict:
    """Where a trace's points lie, as Plotly takes it: evenly spaced whole numbers, as the steps of
    nearly all curves are, by the first and their distance."""
    if len(x) > 2 and all(isinstance(at, int) for at in x):
        apart = x[1] - x[0]
        if x == list(range(x[0], x[0] + apart * len(x), apart or 1)):
            return {"x0": x[0], "dx": apart}
    return {"x": x}


def band(name: str, x, low, high, facets: dict, pair: Pair) -> dict:
    """The area between two curves."""
    x, low, high = list(x), list(low), list(high)
    area = {"mode": "lines", "fill": "toself", "line": {"width": 0}, "hoverinfo": "skip"}
    meta = {"quiet": True, "fill": 0.18}
    return trace(name, x + x[::-1], low + high[::-1], facets, pair, meta=meta, **area)


def points(name: str, frame: pd.DataFrame, x: str, y: str, facets: dict, method: str) -> dict:
    """A point per run, which names it."""
    known = frame[frame[y].notna()]
    keys = list(known["key"]) if "key" in known else [""] * len(known)
    texts = [
        f"{words(x)} {at:g}: {value:.4g}" for at, value in zip(known[x], known[y], strict=True)
    ]
    marker = {"symbol": colors.symbol_of(method), "size": 7}
    about = {"mode": "markers", "marker": marker, **hover(name, texts, keys)}
    return trace(name, known[x], known[y], facets, colors.of_method(method), **about)


def hover(head: str, texts: list[str], keys: Iterable[str]) -> dict:
    """What the points of a trace say when they are hovered: the head of all, a text and run keys
    of each; "" where there are no keys."""
    listed = [of_point.split() for of_point in keys]
    runs = _named_runs(max(map(len, listed), default=0), "%{customdata}")
    return {
        "text": texts,
        "customdata": ["<br>".join(of_point) for of_point in listed],
        "hovertemplate": f"<b>{head}</b><br>%{{text}}{runs}<extra></extra>",
    }


def number(value) -> float | str | None:
    """A number as JSON can hold it; the name of a category as it is."""
    if isinstance(value, str):
        return value
    if not math.isfinite(value):
        return None
    number = float(f"{value:.{DIGITS}g}")
    return int(number) if number.is_integer() else number  # a step is 3, not 3.0


def numbers(values: Iterable) -> list:
    return [number(value) for value in values]


# ------------------------------------------------------------------ axes


def axis(title: str, values=None, log: bool = False, **more) -> dict:
    """An axis, with a range that holds all `values` where there are any."""
    made: dict = {"title": {"text": title}, "exponentformat": "power" if log else "none"}
    if log:
        made["type"] = "log"
    if values is not None:
        made["range"] = low, high = _range(values, log)
        if log and high - low > 1.5:  # decades: ticks between them would crowd the axis
            made["dtick"] = 1
    return {**made, **more}


def _range(values, log: bool) -> list[float]:
    """The least and the greatest value, with a margin; of a log axis their logarithms."""
    known = np.asarray(values, float)
    known = known[np.isfinite(known) & ((known > 0) | (not log))]
    ends = np.array([known.min(), known.max()]) if len(known) else np.array([0.1, 1.0])
    ends = np.log10(ends) if log else ends
    # On a phone a label above the highest level takes a twelfth of the height.
    margin = 0.1 * (ends[1] - ends[0]) or 0.5
    return numbers([ends[0] - margin, ends[1] + margin])


def lr_axis() -> dict:
    return axis(styles.LR_AXIS, log=True, dtick=1, exponentformat="none")


def size_axis(sizes) -> dict:
    """A tick at every N."""
    shown = sorted({int(n) for n in sizes})
    return axis(styles.N_AXIS, log=True, tickvals=shown, ticktext=[styles.count(n) for n in shown])


def level(y: float, text: str, above: bool = True) -> dict:
    """A dotted line across the chart with its name, as parts of a layout."""
    line = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": number(y), "y1": number(y)}
    label = {"text": text, "textposition": "end", "yanchor": "bottom" if above else "top"}
    return {"shapes": [{**line, "label": label}]}


def spans_decades(values) -> bool:
    """Whether numbers are better drawn on a log axis."""
    known = np.asarray(values, float)
    known = known[np.isfinite(known)]
    return len(known) > 0 and known.min() > 0 and known.max() > 30 * known.min()


# ------------------------------------------------------------------ words


def in_order(values: Iterable) -> list:
    return list(dict.fromkeys(values))


def sizes_of(frame: pd.DataFrame) -> list:
    return sorted(frame["n_params"].dropna().unique())


def size_name(n: float) -> str:
    return f"N = {styles.count(int(n))}"


def lr_name(lr: float) -> str:
    return f"LR {lr:g}"


def arms(methods: Iterable[str]) -> list[Option]:
    return [Option(styles.shown(method), colors.of_method(method)) for method in in_order(methods)]


def run_lines(keys: str) -> str:
    """The lines of a hover text that name runs."""
    listed = keys.split()
    return _named_runs(len(listed), "<br>".join(listed))


def _named_runs(count: int, keys: str) -> str:
    """`keys` of so many runs on lines of their own; nothing where there is none."""
    return f"<br>{'run' if count == 1 else 'runs'} {keys}" if count else ""


def short(value) -> str:
    """A number in a table; LACKING where there is none."""
    return LACKING if pd.isna(value) else f"{value:.4g}"


def keys_of(texts: Iterable[str]) -> Keys:
    """The keys in these texts, each once."""
    return Keys(tuple(in_order(key for text in texts for key in text.split())))


_WORDS = {
    "method": "arm",
    "n_params": styles.N_AXIS,
    "lr": "learning rate",
    "loss": styles.LOSS_AXIS,
    "mean_log_z_squared": "mean log² Z",
    "dip": "dip of r",
    "height": "height of the spike (nats)",
    "S": "LR sensitivity S (nats)",
    "diverging_lr": "diverging learning rate",
    "log10_logit_before": "log₁₀ largest attention logit, top LR",
    "best_loss": "best validation loss over LR (nats/token)",
    "kappa": "κ",
    "max_attention_logit": "max |attention logit|",
    "q_norm": "mean ‖q‖",
    "k_norm": "mean ‖k‖",
    "qk_cosine": "mean |cos(q, k)|",
    "attention_entropy": "entropy of the attention weights",
    "grad_rms": "gradient RMS",
    "update_rms": "update RMS",
    "gradient_cosine": "cosine of successive gradients",
    "zero_gradients": "share of zero gradients",
}


def words(column: str) -> str:
    """The name of a column as an axis has it.

    "grad_rms/blocks/0/…" is "gradient RMS, block 0".
    """
    first, *rest = column.split("/")
    block = next((part for part in rest if part.isdecimal()), None)
    name = _WORDS.get(first, first.replace("_", " "))
    return name if block is None else f"{name}, block {block}"
