"""Interactive charts from the numbers of a figure, where the shape of its csv is known.

A shape is a set of columns: a figure is known by what it holds, never by its name. For one of
another shape there are no charts; its picture stands for it.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import pandas as pd

from proxies_lib.science import analysis, styles
from proxies_lib.site import colors
from proxies_lib.site.charts import (
    DASHES,
    LACKING,
    Chart,
    Drawing,
    Option,
    Table,
    arms,
    axis,
    band,
    hover,
    in_order,
    keys_of,
    level,
    lr_axis,
    lr_name,
    numbers,
    points,
    run_lines,
    short,
    size_axis,
    size_name,
    sizes_of,
    spans_decades,
    trace,
    words,
)
from proxies_lib.site.colors import Pair


def draw(frame: pd.DataFrame) -> Drawing | None:
    """The charts of a figure from its csv; None where its shape is not known."""
    for columns, shape in SHAPES:
        if columns <= set(frame):
            return shape(frame)
    return None


def loss_curves(frame: pd.DataFrame) -> Drawing:
    """The first chart of a sweep alone: loss against learning rate, in one panel."""
    curves = frame[frame["panel"] == "loss"]
    chart = _loss_chart(LOSS_TITLE, curves, curves)
    return Drawing([chart], _facets_of_sweep(curves), [_loss_table(curves)], BANDS, 1)


# ------------------------------------------------------------------ loss against learning rate

LOSS_TITLE = "Final loss against peak learning rate"

BANDS = "Line: mean of the seeds. Band: least to greatest seed. ×: a run diverged."


def _sweep(frame: pd.DataFrame) -> Drawing:
    """Loss against LR, a curve per method and size; below, what else the csv has.

    Two arms share a panel. Of more, each size has a panel.
    """
    curves = frame[frame["panel"] == "loss"]
    if curves["method"].nunique() <= 2:
        charts = [dataclasses.replace(_loss_chart(LOSS_TITLE, curves, curves), wide=True)]
    else:
        of_size = {n: curves[curves["n_params"] == n] for n in sizes_of(curves)}
        charts = [
            _loss_chart(f"{LOSS_TITLE}, {size_name(n)}", c, curves) for n, c in of_size.items()
        ]
    tables = [_loss_table(curves)]
    for panel, rows in frame[frame["panel"] != "loss"].groupby("panel", sort=False):
        if "S" in rows and rows["S"].notna().any():
            title = styles.title_of_sensitivity(panel, curves).replace("\n", " ")
            charts.append(_sensitivity_chart(title, rows))
            tables.append(_sensitivity_table(title, rows))
        elif styles.ATTENTION_LOGIT in rows:
            charts += _logit_charts(rows)
            tables.append(_run_table(rows, ["method", "n_params", "lr"], [styles.ATTENTION_LOGIT]))
    return Drawing(charts, _facets_of_sweep(curves), tables, BANDS, min(2, len(charts)))


def _facets_of_sweep(curves: pd.DataFrame) -> dict[str, list[Option]]:
    sizes = [Option(size_name(n)) for n in sizes_of(curves)]
    return {"arm": arms(curves["method"]), "size": sizes}


def _loss_chart(title: str, curves: pd.DataFrame, every: pd.DataFrame) -> Chart:
    """A curve per method and size of `curves`, on the range of `every` curve of the figure.

    Larger models are darker, and their lines thicker.
    """
    sizes, methods = sizes_of(curves), in_order(every["method"])
    traces = []
    for (method, n), curve in curves.groupby(["method", "n_params"], sort=False):
        share = sizes.index(n) / (len(sizes) - 1) if len(sizes) > 1 else 0.6
        line = {"dash": DASHES[methods.index(method) % len(DASHES)], "width": 1.4 + 1.4 * share}
        traces += _loss_traces(method, n, curve.sort_values("lr"), share, line)
    init = every["init_loss"].mean()
    y = axis(styles.LOSS_AXIS, [*every["low"], *every["high"], init])
    layout = {"xaxis": lr_axis(), "yaxis": y, **level(init, "ℓ₀, loss at initialization")}
    return Chart(title, traces, layout)


def _loss_traces(method: str, n: float, curve: pd.DataFrame, share: float, line: dict) -> list:
    arm, size = styles.shown(method), size_name(n)
    shade = colors.shaded(colors.of_method(method), share)
    common = (f"{arm}, {size}", {"arm": arm, "size": size}, shade)
    return [
        _band_of(curve["lr"], curve, *common),
        _mean_of(curve, *common, line=line, marker=_marker(method, 5 + 3 * share)),
        *_crosses(curve, *common),
    ]


def _marker(method: str, size: float) -> dict:
    return {"symbol": colors.symbol_of(method), "size": size}


def _band_of(x, curve: pd.DataFrame, name: str, facets: dict, pair: Pair) -> dict:
    return band(name, x, curve["low"], curve["high"], facets, pair)


def _mean_of(curve: pd.DataFrame, name: str, facets: dict, pair: Pair, **style) -> dict:
    texts = [
        f"LR {row.lr:g}: loss {row.loss:.4g} [{row.low:.4g}, {row.high:.4g}]"
        for row in curve.itertuples()
    ]
    said = hover(name, texts, curve["keys"])
    return trace(name, curve["lr"], curve["loss"], facets, pair, **said, **style)


def _crosses(curve: pd.DataFrame, name: str, facets: dict, pair: Pair) -> list[dict]:
    broken = curve[curve["n_diverged"] > 0]
    if broken.empty:
        return []
    about = {"mode": "markers", "hoverinfo": "skip", "meta": {"quiet": True}}
    cross = {"symbol": "x-thin-open", "size": 11}
    return [trace(name, broken["lr"], broken["high"], facets, pair, marker=cross, **about)]


def _loss_table(curves: pd.DataFrame) -> Table:
    head = ["arm", "N", "learning rate", "loss", "least seed", "greatest seed", "diverged", "runs"]
    rows = [
        [
            styles.shown(row.method),
            f"{int(row.n_params):,}",
            f"{row.lr:g}",
            *map(short, (row.loss, row.low, row.high)),
            f"{int(row.n_diverged)} of {int(row.n)}",
            keys_of([row.keys]),
        ]
        for row in curves.itertuples()
    ]
    return Table("Final loss in nats per token, mean of the seeds", head, rows)


def _sensitivity_chart(title: str, frame: pd.DataFrame) -> Chart:
    """S against N, methods side by side at each N, so that no interval hides another."""
    methods = in_order(frame["method"])
    spread = (frame["n_params"].max() / frame["n_params"].min()) ** 0.02
    traces = [
        _sensitivity_point(row, spread ** (methods.index(row["method"]) - (len(methods) - 1) / 2))
        for row in frame.to_dict("records")
    ]
    reach = [0, *frame["lo"].clip(lower=0), *frame["hi"], *frame["S"]]
    y = axis("LR sensitivity S (nats)", reach)
    return Chart(title, traces, {"xaxis": size_axis(frame["n_params"]), "yaxis": y})


def _sensitivity_point(row: dict, shift: float) -> dict:
    method, n, s, lo, hi = (row[name] for name in ("method", "n_params", "S", "lo", "hi"))
    arm, size = styles.shown(method), size_name(n)
    shown = f"S {s:.3g} [{lo:.3g}, {hi:.3g}], {int(row['n'])} seeds"
    return trace(
        f"{arm}, {size}",
        [n * shift],
        [s],
        {"arm": arm, "size": size},
        colors.of_method(method),
        mode="markers",
        error_y={
            "type": "data",
            "symmetric": False,
            "array": numbers([hi - s]),
            "arrayminus": numbers([s - lo]),
        },
        hovertemplate=f"<b>{arm}, {size}</b><br>{shown}<extra></extra>",
        marker=_marker(method, 8),
    )


def _sensitivity_table(title: str, frame: pd.DataFrame) -> Table:
    rows = [
        [styles.shown(row.method), f"{int(row.n_params):,}", *map(short, (row.S, row.lo, row.hi))]
        for row in frame.itertuples()
    ]
    return Table(f"{title}, mean and 95 % interval, nats", ["arm", "N", "S", "from", "to"], rows)


def _logit_charts(frame: pd.DataFrame) -> list[Chart]:
    """The largest attention logit against LR: a panel per size, a point per run."""
    quantity = styles.ATTENTION_LOGIT
    y = axis(styles.LOGIT_AXIS, frame[quantity], log=True)
    charts = []
    for n, rows in frame.groupby("n_params"):
        traces = []
        for method, runs in rows.groupby("method", sort=False):
            facets = {"arm": styles.shown(method), "size": size_name(n)}
            traces += _with_median(method, runs, "lr", quantity, facets)
        layout = {"xaxis": lr_axis(), "yaxis": y}
        charts.append(Chart(f"Largest attention logit, {size_name(n)}", traces, layout))
    return charts


def _with_median(method: str, runs: pd.DataFrame, x: str, y: str, facets: dict) -> list[dict]:
    """A point per run, and a line through the medians."""
    name = styles.shown(method)
    median = runs.groupby(x)[y].median()
    about = {"mode": "lines", "hoverinfo": "skip", "meta": {"quiet": True}}
    line = trace(name, median.index, median, facets, colors.of_method(method), **about)
    return [line, points(name, runs, x, y, facets, method)]


def _run_table(frame: pd.DataFrame, by: list[str], quantities: list[str]) -> Table:
    """A row per run: what it is, its numbers, its key."""
    rows = [
        [
            *(_cell(row[name]) for name in by),
            _cell(row["seed"]),
            *(short(row[name]) for name in quantities),
            keys_of([row["key"]]) if isinstance(row.get("key"), str) else LACKING,
        ]
        for row in frame.to_dict("records")
    ]
    return Table("A row per run", [*map(words, by), "seed", *map(words, quantities), "run"], rows)


def _cell(value) -> str:
    if isinstance(value, str):
        return styles.shown(value)
    return LACKING if pd.isna(value) else f"{value:g}"


# ------------------------------------------------------------------ curves of training

MARKS = "Reference lines are in the picture only."  # a csv does not have them

_DESCRIBING = {"panel", "key", "seed", "method", "n_params", "lr", "step", "point"}


def _trajectories(frame: pd.DataFrame) -> Drawing:
    """Quantities against step: a panel per quantity and point, a faint line per run, and the bold
    median of a method."""
    quantities = [column for column in frame if column not in _DESCRIBING]
    facets = _facets_of_points(frame)
    names = pd.DataFrame(facets).agg(", ".join, axis=1)
    frame = frame.assign(**facets, point=names)
    if "method" not in frame:
        frame = frame.assign(method="default")
    points_ = in_order(names)
    charts = [
        _trajectory_chart(frame, list(facets), q, name) for q in quantities for name in points_
    ]
    options = {"arm": arms(frame["method"])}
    options |= {facet: [Option(v) for v in in_order(values)] for facet, values in facets.items()}
    note = f"Bold: median of the seeds. Faint: each seed. {MARKS}"
    tables = [_summary_of_curves(frame, quantities)]
    return Drawing(charts, options, tables, note, min(3, len(points_)))


def _facets_of_points(frame: pd.DataFrame) -> dict[str, pd.Series]:
    """What tells the panels of a quantity apart: a point, or a size and a learning rate."""
    if "point" not in frame:
        return {"size": frame["n_params"].map(size_name), "learning rate": frame["lr"].map(lr_name)}
    if pd.api.types.is_numeric_dtype(frame["point"]):
        return {"length": frame["point"].map("{:g} steps".format)}
    return {"panel": frame["point"].map(styles.shown)}


def _trajectory_chart(frame: pd.DataFrame, by: list[str], quantity: str, point: str) -> Chart:
    label = "training loss (nats/token)" if quantity == "loss" else words(quantity)
    rows = frame[frame["point"] == point]
    here = rows[by].iloc[0].to_dict()
    traces = []
    for method, runs in rows.groupby("method", sort=False):
        traces += _run_traces(method, runs, quantity, {"arm": styles.shown(method), **here})
    log = quantity != "loss" and spans_decades(frame[quantity])
    layout = {"xaxis": axis("step"), "yaxis": axis(label, frame[quantity], log)}
    return Chart(f"{label}: {point}", traces, layout)


def _run_traces(method: str, runs: pd.DataFrame, quantity: str, facets: dict) -> list[dict]:
    name, pair = styles.shown(method), colors.of_method(method)
    traces = []
    for (key, seed), run in runs.groupby(["key", "seed"], sort=False):
        said = f"{name}, seed {seed}<br>step %{{x}}: %{{y:.4g}}{run_lines(key)}<extra></extra>"
        faint = {"mode": "lines", "line": {"width": 1}, "opacity": 0.4, "hovertemplate": said}
        meta = {"quiet": True, "keys": key}
        traces.append(trace(name, run["step"], run[quantity], facets, pair, meta=meta, **faint))
    median = runs.groupby("step")[quantity].median()
    said = f"<b>{name}</b>, median<br>step %{{x}}: %{{y:.4g}}<extra></extra>"
    bold = {"mode": "lines", "line": {"width": 2.4}, "hovertemplate": said}
    meta = {"keys": " ".join(in_order(runs["key"]))}
    return [*traces, trace(name, median.index, median, facets, pair, meta=meta, **bold)]


def _summary_of_curves(frame: pd.DataFrame, quantities: list[str]) -> Table:
    """A row per curve: where its median begins, its extremes, where it ends."""
    rows = []
    for (point, method), runs in frame.groupby(["point", "method"], sort=False):
        keys = keys_of(runs["key"].unique())
        for quantity in quantities:
            median = runs.groupby("step")[quantity].median()
            ends = (median.iloc[0], median.min(), median.max(), median.iloc[-1])
            rows.append([point, styles.shown(method), words(quantity), *map(short, ends), keys])
    head = ["panel", "arm", "quantity", "first", "least", "greatest", "last", "runs"]
    return Table("Medians of the seeds; the csv has every logged step", head, rows)


# ------------------------------------------------------------------ root mean squares

_AGAINST = {"n_params": "size", "lr": "learning rate", "block": "block"}


def _rms(frame: pd.DataFrame) -> Drawing:
    """An RMS against N (a line per LR), against LR (per N) and against the block (per LR)."""
    y = axis("RMS", frame["rms"], log=True)
    charts, rows = [], []
    facets: dict[str, list[Option]] = {}
    for x, panel in frame.groupby("panel", sort=False):
        facet = "size" if panel["line_of"].iloc[0] == "n_params" else "learning rate"
        lines = _lines_of(panel, x, facet)
        title = f"RMS against {_AGAINST.get(x, x)}"
        traces = [made for option, means in lines for made in _rms_traces(option, means, facet)]
        charts.append(Chart(title, traces, {"xaxis": _axis_of(x, panel), "yaxis": y}))
        facets[facet] = in_order([*facets.get(facet, []), *(option for option, _ in lines)])
        rows += [[title, option.value, *row] for option, means in lines for row in _rms_rows(means)]
    head = ["panel", "line", "at", "mean", "least seed", "greatest seed", "runs"]
    table = Table("Root mean squares, mean of the seeds", head, rows)
    note = f"Line: mean of the seeds. Band: least to greatest seed. {MARKS}"
    return Drawing(charts, facets, [table], note, 3)


def _axis_of(x: str, panel: pd.DataFrame) -> dict:
    if x == "n_params":
        return size_axis(panel[x])
    return lr_axis() if x == "lr" else axis(x, dtick=1)


def _lines_of(panel: pd.DataFrame, x: str, facet: str) -> list[tuple[Option, pd.DataFrame]]:
    """The lines of a panel: name and color, and at each x the mean over seeds and its ends."""
    by_size = facet == "size"
    pairs = colors.of_ramp(panel["line"], styles.size_colors if by_size else styles.lr_colors)
    name = size_name if by_size else lr_name
    return [
        (Option(name(value), pairs[value]), _means(runs, x))
        for value, runs in panel.groupby("line")
    ]


def _means(runs: pd.DataFrame, x: str) -> pd.DataFrame:
    grouped = runs.groupby(x, as_index=False)
    columns = {"mean": ("rms", "mean"), "low": ("rms", "min"), "high": ("rms", "max")}
    return grouped.agg(**columns, keys=("key", " ".join)).rename(columns={x: "at"})


def _rms_traces(option: Option, means: pd.DataFrame, facet: str) -> list[dict]:
    name, facets, pair = option.value, {facet: option.value}, option.colors
    assert pair is not None
    texts = [
        f"{row.at:g}: {row.mean:.3g} [{row.low:.3g}, {row.high:.3g}]" for row in means.itertuples()
    ]
    about = {"marker": {"size": 6}, **hover(name, texts, means["keys"])}
    line = trace(name, means["at"], means["mean"], facets, pair, **about)
    return [_band_of(means["at"], means, name, facets, pair), line]


def _rms_rows(means: pd.DataFrame) -> list[list]:
    return [
        [
            f"{row['at']:g}",
            *map(short, (row["mean"], row["low"], row["high"])),
            keys_of([row["keys"]]),
        ]
        for row in means.to_dict("records")
    ]


# ------------------------------------------------------------------ histograms


def _histograms(frame: pd.DataFrame) -> Drawing:
    """Shares of bins, seeds averaged: a panel per row and step, an outline per method."""
    frame = frame.assign(
        row=frame["row"] if "row" in frame else "r", step=frame["step"].astype(int)
    )
    charts, rows = [], []
    for (row, step), cell in frame.groupby(["row", "step"], sort=False):
        title = f"{row}, step {step}"
        x, y = axis(row), axis("share of a bin", frame["share"], log=True)
        methods = cell.groupby("method", sort=False)
        traces = [_outline(method, bars, row) for method, bars in methods]
        charts.append(Chart(title, traces, {"xaxis": x, "yaxis": y}))
        rows += [[title, styles.shown(m), *_moments(bars)] for m, bars in methods]
    facets = {"arm": arms(frame["method"]), "tensor": [Option(r) for r in in_order(frame["row"])]}
    head = ["panel", "arm", "mean", "standard deviation", "share of the fullest bin", "runs"]
    table = Table("Histograms, seeds averaged; the csv has every bin", head, rows)
    note = "Height: share of a bin, mean of the seeds."
    columns = frame["step"].nunique()
    return Drawing(charts, facets, [table], note, 2 if columns in (2, 4) else 3)


def _outline(method: str, bars: pd.DataFrame, row: str) -> dict:
    """The mean histogram of the seeds as steps."""
    mean = bars.groupby(["left", "right"], as_index=False)["share"].mean()
    name, keys = styles.shown(method), " ".join(in_order(bars["key"]))
    return trace(
        name,
        [*mean["left"], mean["right"].iloc[-1]],
        [share or np.nan for share in [*mean["share"], mean["share"].iloc[-1]]],  # the axis is log
        {"arm": name, "tensor": row},
        colors.of_method(method),
        mode="lines",
        line={"shape": "hv", "width": 1.8},
        hovertemplate=f"<b>{name}</b><br>from %{{x}}: %{{y:.3g}}{run_lines(keys)}<extra></extra>",
        meta={"keys": keys},
    )


def _moments(bars: pd.DataFrame) -> list:
    mean = bars.groupby(["left", "right"], as_index=False)["share"].mean()
    middle, share = (mean["left"] + mean["right"]) / 2, mean["share"] / mean["share"].sum()
    first = (middle * share).sum()
    deviation = np.sqrt(((middle - first) ** 2 * share).sum())
    return [*map(short, (first, deviation, share.max())), keys_of(bars["key"].unique())]


# ------------------------------------------------------------------ a value per run and arm


def _scores(frame: pd.DataFrame) -> Drawing:
    """What each intervention does, a value per seed: as `_dots`, but runs are not named."""
    seeds = frame[frame["panel"] == "seeds"]
    bounds = [f"{name} bound" for name in SCORES if f"{name} bound" in frame]
    shown = seeds[["method", "seed", *SCORES, *bounds]]
    return _dots(shown.fillna(dict.fromkeys(bounds, "")).assign(key=""))


SCORES = ["S", "diverging_lr", "best_loss", "log10_logit_before"]  # as section 11 draws them

# The marker of a value of which only this bound is known.
ARROWS = {
    analysis.AT_LEAST: "triangle-right-open",
    analysis.AT_MOST: "triangle-left-open",
}


def _dots(frame: pd.DataFrame) -> Drawing:
    """A panel per quantity, a row per method: the seeds, and their mean with its interval.

    Where a column "<quantity> bound" says that a seed's value is only a bound, an arrow points to
    where the value lies, and there is no mean.
    """
    quantities = [
        column for column in frame if column not in _DESCRIBING and not column.endswith(" bound")
    ]
    methods = in_order(frame["method"])
    shown = [styles.shown(method) for method in methods]
    charts = []
    for quantity in quantities:
        traces = [
            made
            for method in methods
            for made in _dot_traces(method, frame[frame["method"] == method], quantity)
        ]
        y = axis("", type="category", categoryarray=shown[::-1], categoryorder="array")
        layout = {"xaxis": axis(words(quantity), frame[quantity]), "yaxis": y}
        charts.append(Chart(words(quantity), traces, layout))
    tables = [_dot_table(frame, quantities), _run_table(frame, ["method"], quantities)]
    note = "Points: seeds. Line: the 95 % interval of their mean."
    if any((analysis.bounds_of(frame, quantity) != "").any() for quantity in quantities):
        note += " Arrow: a seed whose value lies beyond."
    return Drawing(charts, {"arm": arms(methods)}, tables, note)


def _bounded(bound: str, value: float) -> str:
    return f"{bound} {short(value)}".strip()


def _dot_traces(method: str, runs: pd.DataFrame, quantity: str) -> list[dict]:
    name, pair = styles.shown(method), colors.of_method(method)
    facets, row = {"arm": name}, f"{name}<br>{words(quantity)}"
    bounds = analysis.bounds_of(runs, quantity)
    texts = [
        f"seed {seed}: {_bounded(bound, value)}"
        for seed, bound, value in zip(runs["seed"], bounds, runs[quantity], strict=True)
    ]
    marker = _marker(method, 7)
    if (bounds != "").any():
        symbols = {"": marker["symbol"], **ARROWS}
        marker = {**marker, "symbol": [symbols[bound] for bound in bounds]}
    dots = trace(
        name,
        runs[quantity],
        [name] * len(runs),
        facets,
        pair,
        mode="markers",
        marker=marker,
        opacity=0.7,
        **hover(row, texts, runs["key"]),
    )
    if (bounds != "").any():
        return [dots]
    mean, lo, hi = analysis.interval(runs[quantity].dropna())
    shown = f"<b>{row}</b><br>mean {mean:.4g} [{lo:.4g}, {hi:.4g}]<extra></extra>"
    bar = {"mode": "lines+markers", "marker": {"symbol": "line-ns-open", "size": 12}}
    about = {"hovertemplate": shown, "meta": {"quiet": True}, **bar}
    return [dots, trace(name, [lo, mean, hi], [name] * 3, facets, pair, **about)]


def _dot_table(frame: pd.DataFrame, quantities: list[str]) -> Table:
    rows = []
    for method, runs in frame.groupby("method", sort=False):
        cells = [_mean_or_bounds(runs, quantity) for quantity in quantities]
        rows.append([styles.shown(method), *cells, str(len(runs))])
    return Table("Mean and 95 % interval", ["arm", *map(words, quantities), "seeds"], rows)


def _mean_or_bounds(runs: pd.DataFrame, quantity: str) -> str:
    """The mean with its interval; where a seed's value is only a bound, each seed's."""
    bounds = analysis.bounds_of(runs, quantity)
    if (bounds == "").all():
        return _mean_and_interval(runs[quantity])
    texts = [_bounded(bound, x) for bound, x in zip(bounds, runs[quantity], strict=True)]
    return ", ".join(in_order(texts))


def _mean_and_interval(values: pd.Series) -> str:
    mean, lo, hi = analysis.interval(values.dropna())
    return short(mean) if pd.isna(lo) else f"{short(mean)} [{short(lo)}, {short(hi)}]"


# ------------------------------------------------------------------ runs against a number of theirs


def _prediction(frame: pd.DataFrame) -> Drawing:
    """Points of runs against N and the fits that foretell them, a color per LR: Figure 9."""
    pairs = colors.of_ramp(frame["lr"].dropna(), styles.lr_colors)
    measured = frame[frame["panel"].str.startswith("points")]
    charts = []
    for panel, runs in measured.groupby("panel", sort=False):
        probe = panel.partition(", ")[2]
        fits = frame[frame["panel"] == f"fit, {probe}"]
        traces = [t for lr in pairs for t in _prediction_traces(lr, runs, fits, pairs[lr])]
        reach = [*measured[styles.ATTENTION_LOGIT], *fits["predicted"]]
        y = axis(styles.LOGIT_AXIS, reach, log=True)
        layout = {"xaxis": size_axis(measured["n_params"]), "yaxis": y}
        charts.append(Chart(f"Logits against size, {probe}", traces, layout))
    facets = {"learning rate": [Option(lr_name(lr), pair) for lr, pair in pairs.items()]}
    by = ["panel", "n_params", "lr", "held_out", "failed"]
    table = _run_table(measured, by, [styles.ATTENTION_LOGIT])
    note = "A point per run. Open: held out. ×: failed. Line and band: fit, 95 % interval."
    return Drawing(charts, facets, [table], note)


def _prediction_traces(lr: float, runs: pd.DataFrame, fits: pd.DataFrame, pair: Pair) -> list[dict]:
    name, facets = lr_name(lr), {"learning rate": lr_name(lr)}
    fit, alike = (analysis.where(rows, lr=lr).sort_values("n_params") for rows in (fits, runs))
    line = {"mode": "lines", "hoverinfo": "skip", "meta": {"quiet": True}}
    dots = points(name, alike, "n_params", styles.ATTENTION_LOGIT, facets, "default")
    look = zip(alike["failed"].astype(bool), alike["held_out"].astype(bool), strict=True)
    symbols = ["x" if failed else "circle-open" if held else "circle" for failed, held in look]
    dots["marker"] = {"symbol": symbols, "size": 7}
    dots["meta"]["colors"] = pair
    return [
        band(name, fit["n_params"], fit["lo"], fit["hi"], facets, pair),
        trace(name, fit["n_params"], fit["predicted"], facets, pair, **line),
        dots,
    ]


def _kappa(frame: pd.DataFrame) -> Drawing:
    """Final loss and largest logit against κ, a point per run: Figure 10."""
    by_panel = {panel: rows for panel, rows in frame.groupby("panel", sort=False)}
    quantities = {"loss": "loss", "logits": styles.ATTENTION_LOGIT}
    charts, tables = [], []
    for panel, quantity in quantities.items():
        runs = by_panel[panel]
        traces = _with_median("κ", runs, "kappa", quantity, {})
        y = axis(words(quantity), log=spans_decades(runs[quantity]))
        x = axis("κ", log=True, dtick=1, exponentformat="power")
        layout = {"xaxis": x, "yaxis": y}
        if panel == "loss" and "bigram" in by_panel:
            text = "bigram: the same network without blocks"
            layout |= level(by_panel["bigram"]["loss"].mean(), text)
        charts.append(Chart(f"{words(quantity)} against κ", traces, layout))
        tables.append(_run_table(runs, ["kappa"], [quantity]))
    return Drawing(charts, {}, tables, "A point per run. Line: median of the seeds.")


def _best_loss(frame: pd.DataFrame) -> Drawing:
    """The best loss over learning rates against N, a series per method: Figure E.3."""
    best = frame[frame["best_loss"].notna()]
    traces = [
        made
        for method, runs in best.groupby("method", sort=False)
        for made in _with_median(
            method, runs, "n_params", "best_loss", {"arm": styles.shown(method)}
        )
    ]
    y = axis(words("best_loss"), best["best_loss"])
    chart = Chart(
        "Best loss against size", traces, {"xaxis": size_axis(best["n_params"]), "yaxis": y}
    )
    table = _run_table(best, ["method", "n_params"], ["best_loss", "best_lr"])
    note = "A point per seed: the best of its learning rates. Line: median of the seeds."
    return Drawing([chart], {"arm": arms(best["method"])}, [table], note, 1)


# In this order: the first that fits.
SHAPES: list[tuple[set[str], Callable[[pd.DataFrame], Drawing]]] = [
    (
        {"method", "n_params", "lr", "loss", "low", "high", "init_loss", "n_diverged", "keys"},
        _sweep,
    ),
    ({"key", "method", "seed", "step", "left", "right", "share"}, _histograms),
    ({"key", "n_params", "lr", "predicted", "held_out", "failed"}, _prediction),
    ({"key", "kappa", "loss"}, _kappa),
    ({"panel", "method", "seed", *SCORES}, _scores),
    ({"method", "n_params", "seed", "best_loss"}, _best_loss),
    ({"key", "line", "line_of", "rms"}, _rms),
    ({"key", "seed", "step"}, _trajectories),
    ({"key", "seed", "method"}, _dots),
]
