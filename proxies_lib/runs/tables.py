"""Tables of runs and curves, from the store and from exported parquet files."""

import contextlib
import dataclasses
import functools
import io
import json
import operator
import os
import pathlib

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from proxies_lib import paths
from proxies_lib.config import FIELDS, YOUNGER, Run, UserError, flat, from_flat, key, recipe
from proxies_lib.paths import write_atomically
from proxies_lib.runs.store import (
    META,
    RESULTS,
    _batches,
    _content,
    _curves,
    _demand,
    _loose,
    _make_way,
    _not_empty,
    _packs,
    _read_loose,
    _read_pack,
    _silent,
    _stored,
    _wanted,
    _with_keys,
)

# ------------------------------------------------------------------ tables


@dataclasses.dataclass(frozen=True)
class Found:
    """Where a run's numbers are: `layer` is "store", "table", "table, other corpus", or "" for nowhere."""

    run: Run
    key: str | None
    layer: str
    table_key: str | None = None


# Tables, and the columns that each must have.
EXPORTED = {"runs": {"key", "recipe", *RESULTS}, "curves": {"key", "step"}}


def _exported(folder: pathlib.Path, name: str) -> pd.DataFrame | None:
    """An exported table, None where there is none. Raises UserError where it is damaged."""
    path = folder / f"{name}.parquet"
    if not os.path.lexists(path):
        return None
    try:
        state = path.stat()
        return _parquet(path, name, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
    except Exception:  # Arrow and pandas raise almost anything on damaged bytes
        damaged = f"{folder.name}/{path.name} is damaged"
        raise UserError(f"table: {damaged}; `proxies run` writes it anew from the store") from None


@functools.lru_cache(maxsize=4)
def _parquet(path: pathlib.Path, name: str, *_state: int) -> pd.DataFrame:
    _demand((content := _content(path)) is not None)
    frame = pd.read_parquet(io.BytesIO(content), page_checksum_verification=True)
    _demand(EXPORTED[name] <= set(frame))
    for column in EXPORTED[name] & {"key", "recipe"}:
        _demand(pd.api.types.is_string_dtype(frame[column]) and not frame[column].isna().any())
    if name == "runs":
        missing = {field: default for field, default in YOUNGER.items() if field not in frame}
        frame = frame.assign(**missing)
    return frame


def exported_runs(path: pathlib.Path) -> pd.DataFrame | None:
    """The exported runs in `path`, with or without curves, or None. Raises UserError where they are
    damaged."""
    return _exported(path, "runs")


def exported(path: pathlib.Path | None, say=_silent) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    """The exported runs and curves in `path`; None where either is missing or, with a line to
    `say`, damaged."""
    if path is None:
        return None
    try:
        runs, curves = (_exported(path, name) for name in EXPORTED)
    except UserError as error:
        say(str(error))
        return None
    return None if runs is None or curves is None else (runs, curves)


def locate(
    runs: list[Run],
    fingerprints: dict,
    folder: pathlib.Path,
    layer: pathlib.Path | None = None,
    say=print,
) -> list[Found]:
    """Where each run is stored. `fingerprints` maps (data, vocab_size) to a fingerprint, None where unknown.

    Damaged records, packs and exported tables count as not there; `say` is told of them. In the
    exported `layer` a run matches by key, else by recipe: the same configuration on another corpus.
    """
    below = exported(layer, say)
    by_key, by_recipe = set(), {}
    if below is not None:
        whole = below[0][below[0]["key"].isin(below[1]["key"].unique())]
        by_key, by_recipe = set(whole["key"]), dict(zip(whole["recipe"], whole["key"], strict=True))
    known = [fingerprints[run.data, run.model.vocab_size] for run in runs]
    keys = [key(run, fingerprint) if fingerprint else None for run, fingerprint in zip(runs, known)]
    stored = _stored(set(keys), folder, say)
    found = []
    for run, k in zip(runs, keys):
        if k in stored:
            found.append(Found(run, k, "store"))
        elif k in by_key:
            found.append(Found(run, k, "table", k))
        elif (r := by_recipe.get(recipe(run))) is not None:
            found.append(Found(run, k, "table, other corpus", r))
        else:
            found.append(Found(run, k, ""))
    return found


def table(
    found: list[Found], folder: pathlib.Path, layer: pathlib.Path | None = None, columns=None
):
    """Runs (a row each) and curves (a row per logged step, keyed by `key`) of located runs, in their order.

    `columns` are the names or prefixes of the wanted curves beside `step`; None for all. Raises UserError, with the
    count, where a run is stored nowhere.
    """
    holes = sum(not f.layer for f in found)
    if holes:
        raise UserError(
            f"table: {holes} of {len(found)} runs are not stored; train them first (train=True)"
        )
    rows, curves = [], []
    stored = [f for f in found if f.layer == "store"]
    wanted = [f.table_key for f in found if f.layer != "store"]
    if wanted:
        if (below := exported(layer)) is None:
            raise UserError("table: the exported table was lost or damaged since runs were planned")
        below_runs, below_curves = below
        rows.append(below_runs[below_runs["key"].isin(wanted)])
        below_curves = below_curves[
            [name for name in below_curves if name == "key" or _wanted(name, columns)]
        ]
        curves.append(below_curves[below_curves["key"].isin(wanted)])
    if stored:
        for frames, frame in zip((rows, curves), _tabulate(stored, folder, columns)):
            frames.append(frame)
    if len(stored) == len(found):
        return rows[0], curves[0]
    order = {f.key if f.layer == "store" else f.table_key: i for i, f in enumerate(found)}
    runs = pd.concat(rows, ignore_index=True).sort_values(
        "key", key=lambda k: k.map(order), ignore_index=True
    )
    return runs, pd.concat(curves, ignore_index=True)


def _gather(wanted: set[str], folder: pathlib.Path, columns, meta=META[1:]) -> pa.Table:
    """Rows of the `wanted` keys, wherever in the store they are, in the layout of a pack without
    empty curves."""
    records = (_read_loose(folder, k) for k in _loose(folder) if k in wanted)
    records = (
        (m, {n: v for n, v in c.items() if _wanted(n, columns)}) for m, c in filter(None, records)
    )
    parts = list(_batches(records))
    missing = wanted.difference(*(part["key"].to_pylist() for part in parts))
    for _ in range(
        2
    ):  # packs that a merge replaces while they are read are found at the second look
        for path, keys in _packs(folder).items() if missing else ():
            here = keys.today & missing
            if here and (rows := _read_pack(path, columns, meta)) is not None:
                rows = _with_keys(rows, here)
                parts.append(rows.select(["key", "recipe", *meta, *_not_empty(rows)]))
                missing -= here
    if missing:
        raise UserError(
            f"table: {len(missing)} of {len(wanted)} runs were lost or damaged since they were planned"
        )
    return pa.concat_tables(parts, promote_options="default")


def _tabulate(
    stored: list[Found], folder: pathlib.Path, columns
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Runs and curves of runs in the store; NaN where a run lacks a curve. Arrow's copy of a curve is freed in passing."""
    records = _gather({f.key for f in stored}, folder, columns)
    position = {k: i for i, k in enumerate(records["key"].to_pylist())}
    order = np.array([position[f.key] for f in stored])
    runs = _runs(stored, records, order)

    lengths = pc.list_value_length(records["step"]).to_numpy()
    counts = lengths[order]
    first = (np.cumsum(lengths) - lengths)[order]
    points = np.repeat(first - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
    curves = {}
    for name in _curves(records.schema):
        lists, records = records[name], records.drop_columns([name])
        values = pc.list_flatten(lists).to_numpy()
        if lists.null_count:
            everywhere = np.full(lengths.sum(), np.nan, np.float32)
            everywhere[np.repeat(lists.is_valid().to_numpy(), lengths)] = values
            values = everywhere
        curves[name] = values[points]
    keys = pa.array([f.key for f in stored]).take(np.repeat(np.arange(len(stored)), counts))
    return runs, pd.DataFrame(curves | {"key": keys.to_pandas()}, copy=False)


def _runs(stored: list[Found], records: pa.Table, order: np.ndarray) -> pd.DataFrame:
    """A row per run: configuration, N, results, provenance."""
    texts, recipes = (records[name].take(order).to_pylist() for name in ("result", "recipe"))
    results = map(operator.itemgetter(*RESULTS), json.loads(f"[{','.join(texts)}]"))
    origin = records["provenance"].dictionary_encode().combine_chunks()
    origins = pd.DataFrame([json.loads(text) for text in origin.dictionary.to_pylist()])
    values = {"key": [f.key for f in stored], "recipe": recipes}
    values |= dict(zip(FIELDS, zip(*(flat(f.run).values() for f in stored))))
    values |= {"n_params": [f.run.model.n_params for f in stored]}
    values |= dict(zip(RESULTS, zip(*results)))
    return pd.DataFrame(values).join(
        origins.take(origin.indices.to_numpy()[order]).reset_index(drop=True)
    )


def _reachable(row: dict) -> bool:
    try:
        run = from_flat({name: row[name] for name in FIELDS})
    except (KeyError, UserError):
        return False
    return recipe(run) == row["recipe"]


def _four_digits(curves: pd.DataFrame) -> pd.DataFrame:
    """float32 columns rounded to 12 bits of mantissa, a relative error of at most 1.3e-4; nan and inf stay."""

    def rounded(column):
        bits = column.to_numpy(np.float32).copy().view(np.int32)
        finite = np.isfinite(bits.view(np.float32))
        bits[finite] = (bits[finite] + (1 << 10)) & ~((1 << 11) - 1)
        return bits.view(np.float32)

    floats = curves.columns[curves.dtypes == np.float32]
    return curves.assign(**{name: rounded(curves[name]) for name in floats})


def _lean(curves: pd.DataFrame) -> pd.DataFrame:
    """Curves as they go out: without the RMS of parameters and of norm scales, which no figure
    reads, and with four digits: a quarter of the size."""
    left_out = [c for c in curves if c.startswith("param_rms/") or c.endswith("/scale")]
    return _four_digits(curves.drop(columns=left_out))


def export(runs: pd.DataFrame, curves: pd.DataFrame, target: pathlib.Path, folder=None, say=print):
    """Write tables as `runs.parquet` and `curves.parquet`; runs of other recipes already there are kept.

    Rows that no configuration of today asks for, of an older schema or with other fields, are
    dropped. If one of the tables is missing or damaged, its part of the kept runs comes from the
    store in `folder` (default: the usual one).
    """
    curves = _lean(curves)
    below_runs, below_curves = _below(target, folder or paths.folder("store"), say)
    if below_runs is not None:
        kept = below_runs[~below_runs["recipe"].isin(runs["recipe"])]
        kept = kept[np.array([_reachable(row) for row in kept.to_dict("records")], bool)]
        runs = pd.concat([kept, runs], ignore_index=True)
        kept_curves = below_curves[below_curves["key"].isin(kept["key"])]
        empty = [name for name in kept_curves if kept_curves[name].isna().all()]
        of_others = [name for name in empty if name not in curves]
        curves = pd.concat([kept_curves.drop(columns=of_others), curves], ignore_index=True)
    runs, curves = (
        runs.sort_values("key", ignore_index=True),
        curves.sort_values(["key", "step"], ignore_index=True),
    )
    for name, frame in (("curves", curves), ("runs", runs)):
        floats = [column for column in frame.columns if frame[column].dtype.kind == "f"]
        content = frame.to_parquet(
            compression="zstd",
            index=False,
            use_dictionary=["key"],
            use_byte_stream_split=floats,
            write_page_checksum=True,
        )
        _make_way(target / f"{name}.parquet")
        write_atomically(target / f"{name}.parquet", content)


def _below(target: pathlib.Path, folder: pathlib.Path, say) -> tuple:
    """The tables exported before, or None and None. Where only one can be read, the other is made
    from the store."""
    whole = {}
    for name in EXPORTED:
        try:
            whole[name] = _exported(target, name)
        except UserError as error:
            whole[name] = None
            say(str(error))
    runs, curves = whole["runs"], whole["curves"]
    if (runs is None) == (curves is None):
        return runs, curves
    keys = set((curves if runs is None else runs)["key"])
    stored = _of_keys(keys, folder)
    if stored is None:
        return runs, None if runs is None else pd.DataFrame({"key": pd.Series(dtype="str")})
    return (stored[0], curves) if runs is None else (runs, stored[1])


def _of_keys(keys: set[str], folder: pathlib.Path) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    """Runs and curves, ready for export, of those `keys` that the store has; None for none."""
    found = []
    if there := _stored(keys, folder):
        records = _gather(there, folder, (), META)
        for run_key, text in zip(records["key"].to_pylist(), records["config"].to_pylist()):
            with contextlib.suppress(UserError):  # a run that today's rules refuse
                found.append(Found(from_flat(json.loads(text)), run_key, "store"))
    if not found:
        return None
    runs, curves = _tabulate(found, folder, None)
    return runs, _lean(curves)
