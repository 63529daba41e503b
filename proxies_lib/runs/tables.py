"""Tables of runs and curves, from the store and from exported parquet files.

`locate` says where each run is, `table` makes frames of what was located, `export` writes frames
beside the executed notebooks, to be committed. A run has a *key*, the hash of its configuration and
of the fingerprint of its data, and a *recipe*, the hash of its configuration alone: on another
corpus the same recipe has another key.
"""

import contextlib
import dataclasses
import enum
import functools
import io
import json
import operator
import os
import pathlib
from collections.abc import Collection, Iterable

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from proxies_lib import paths
from proxies_lib.config import (
    FIELDS,
    YOUNGER,
    Run,
    UserError,
    flat,
    from_flat,
    key,
    key_of,
    recipe,
)
from proxies_lib.runs import store
from proxies_lib.runs.packs import (
    batches,
    curves_in,
    intact_packs,
    not_empty,
    read_pack,
    with_keys,
)
from proxies_lib.runs.records import (
    META,
    RESULTS,
    content_of,
    is_wanted,
    read_loose,
    record_paths,
    silent,
    write_file,
)

# Exported tables, and the columns that each must have.
EXPORTED = {"runs": {"key", "recipe", *RESULTS}, "curves": {"key", "step"}}

# What to do about a damaged table: where the store has its runs, and where only the table does.
WRITE_ANEW = "`proxies run` writes it anew from the store"
RESTORE = "restore it with git, or leave out --continue"


# ------------------------------------------------------------------ where runs are


class Layer(enum.StrEnum):
    """Where a run's numbers are; the words are those of a plan."""

    STORED = "store"
    COMMITTED = "table"
    COMMITTED_OTHER_CORPUS = "table, other corpus"
    MISSING = ""


@dataclasses.dataclass(frozen=True)
class Found:
    """Where a run is. `key` is its own, None where its corpus is unknown; `table_key` is that of
    its row in the exported table, where it is there."""

    run: Run
    key: str | None
    layer: Layer
    table_key: str | None = None

    @property
    def known_key(self) -> str:
        """`key` of a run that is stored or about to be trained: its corpus is known."""
        assert self.key is not None
        return self.key

    @property
    def row_key(self) -> str | None:
        """The key of its row in a table."""
        return self.key if self.layer == Layer.STORED else self.table_key


def locate(
    runs: list[Run],
    fingerprints: dict,
    folder: pathlib.Path,
    layer: pathlib.Path | None = None,
    say=print,
    exact: bool = False,
) -> list[Found]:
    """Where each run is stored.

    `fingerprints` maps (data, vocab_size) to a fingerprint, None where unknown. Damaged records,
    packs and exported tables count as not there; `say` is told of them. In the exported `layer` a
    run matches by key, else by recipe: the same configuration on another corpus.

    With `exact` it matches by key alone: what it has need not be trained. Raises UserError then
    where the exported table is damaged, incomplete, or has such a run under a wrong key.
    """
    below = _complete(layer) if exact else exported(layer, say)
    exported_keys, key_of_recipe = _exported_keys(below)
    keys = []
    for run in runs:
        fingerprint = fingerprints[run.data, run.model.vocab_size]
        keys.append(key(run, fingerprint) if fingerprint else None)
    known = {run_key for run_key in keys if run_key is not None}
    in_store = store.stored(known, folder, say)

    def found(run: Run, run_key: str | None) -> Found:
        if run_key in in_store:
            return Found(run, run_key, Layer.STORED)
        if run_key in exported_keys:
            return Found(run, run_key, Layer.COMMITTED, run_key)
        other = None if exact else key_of_recipe.get(recipe(run))
        if other is not None:
            return Found(run, run_key, Layer.COMMITTED_OTHER_CORPUS, other)
        return Found(run, run_key, Layer.MISSING)

    located = [found(run, run_key) for run, run_key in zip(runs, keys)]
    if exact and below is not None:
        _check_keys(below[0], {f.key for f in located if f.layer == Layer.COMMITTED})
        others = sum(not f.layer and recipe(f.run) in key_of_recipe for f in located)
        if others:
            say(
                f"table: {others} of these runs are there with another corpus than this machine's "
                "(or it is not prepared here); they count as not trained"
            )
    return located


def _exported_keys(
    below: tuple[pd.DataFrame, pd.DataFrame] | None,
) -> tuple[set[str], dict[str, str]]:
    """The keys of the exported runs that have curves, and these keys by recipe."""
    if below is None:
        return set(), {}
    runs, curves = below
    whole = runs[runs["key"].isin(curves["key"].unique())]
    return set(whole["key"]), dict(zip(whole["recipe"], whole["key"], strict=True))


def _check_keys(runs: pd.DataFrame, keys: set[str | None]):
    """Raise UserError unless each of these keys is that of one row, and follows from it."""
    rows = runs[runs["key"].isin(keys)]
    try:
        false = [row["key"] for row in rows.to_dict("records") if not _has_own_key(row)]
    except (KeyError, TypeError, ValueError):  # a column is missing, or holds anything
        raise UserError(f"table: runs.parquet is not as it was exported; {RESTORE}") from None
    repeated = rows["key"][rows["key"].duplicated()].tolist()
    if false or repeated:
        one = min(false + repeated)
        raise UserError(f"table: runs.parquet has another run under the key {one}; {RESTORE}")


def _has_own_key(row: dict) -> bool:
    return key_of({name: row[name] for name in FIELDS}, row["fingerprint"]) == row["key"]


# ------------------------------------------------------------------ exported tables


def exported(path: pathlib.Path | None, say=silent) -> tuple[pd.DataFrame, pd.DataFrame] | None:
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


def _complete(path: pathlib.Path | None) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    """The exported runs and curves in `path`, None where neither is there. Raises UserError where
    one is damaged, or missing beside the other."""
    if path is None:
        return None
    tables = {name: _exported(path, name, RESTORE) for name in EXPORTED}
    missing = [name for name, table in tables.items() if table is None]
    if len(missing) == 1:
        (name,) = missing
        raise UserError(f"table: {path.name}/{name}.parquet is missing; {RESTORE}")
    return None if missing else (tables["runs"], tables["curves"])


def exported_runs(path: pathlib.Path) -> pd.DataFrame | None:
    """The exported runs in `path`, with or without curves, or None. Raises UserError where they are
    damaged."""
    return _exported(path, "runs")


def _exported(folder: pathlib.Path, name: str, advice: str = WRITE_ANEW) -> pd.DataFrame | None:
    """An exported table, None where there is none. Raises UserError, with the `advice`, where it is
    damaged."""
    path = folder / f"{name}.parquet"
    if not os.path.lexists(path):
        return None
    try:
        state = path.stat()
        return _parquet(path, name, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
    except Exception:  # Arrow and pandas raise almost anything on damaged bytes
        raise UserError(f"table: {folder.name}/{path.name} is damaged; {advice}") from None


@functools.lru_cache(maxsize=4)
def _parquet(path: pathlib.Path, name: str, *_state: int) -> pd.DataFrame:
    """The table in a file, read once for each state of it. Raises anything where it is damaged."""
    content = content_of(path)
    if content is None:
        raise ValueError
    frame = pd.read_parquet(io.BytesIO(content), page_checksum_verification=True)
    if not EXPORTED[name] <= set(frame):
        raise ValueError
    for column in EXPORTED[name] & {"key", "recipe"}:
        if not pd.api.types.is_string_dtype(frame[column]) or frame[column].isna().any():
            raise ValueError
    if name == "runs":  # a run that is older than a field had its default
        absent = {field: default for field, default in YOUNGER.items() if field not in frame}
        frame = frame.assign(**absent)
    return frame


# ------------------------------------------------------------------ frames of located runs


def table(
    found: list[Found], folder: pathlib.Path, layer: pathlib.Path | None = None, columns=None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Runs, a row each, in the order of `found`, and curves, a row per logged step, by `key`.

    `columns` are the names or prefixes of the wanted curves beside `step`; None for all. Raises
    UserError, with the count, where a run is stored nowhere.
    """
    holes = sum(not f.layer for f in found)
    if holes:
        counts = f"{holes} of {len(found)}"
        raise UserError(f"table: {counts} runs are not stored; train them first (train=True)")
    in_store = [f for f in found if f.layer == Layer.STORED]
    if len(in_store) == len(found):
        return _tabulate(in_store, folder, columns)
    below = [f.table_key for f in found if f.table_key is not None]
    parts = [_rows_below(below, layer, columns)] if below else []
    if in_store:
        parts.append(_tabulate(in_store, folder, columns))
    runs = pd.concat([runs for runs, _ in parts], ignore_index=True)
    curves = pd.concat([curves for _, curves in parts], ignore_index=True)
    position = {f.row_key: i for i, f in enumerate(found)}
    in_order = runs.sort_values("key", key=lambda keys: keys.map(position), ignore_index=True)
    return in_order, curves


def _rows_below(
    keys: list[str], layer: pathlib.Path | None, columns
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Runs and curves of these keys in the exported table."""
    below = exported(layer)
    if below is None:
        raise UserError("table: the exported table was lost or damaged since runs were planned")
    runs, curves = below
    wanted = [name for name in curves if name == "key" or is_wanted(name, columns)]
    curves = curves[wanted]
    return runs[runs["key"].isin(keys)], curves[curves["key"].isin(keys)]


def _tabulate(
    in_store: list[Found], folder: pathlib.Path, columns
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Runs and curves of runs in the store; NaN where a run lacks a curve."""
    rows = _gather({f.known_key for f in in_store}, folder, columns)
    position = {run_key: i for i, run_key in enumerate(rows["key"].to_pylist())}
    order = np.array([position[f.key] for f in in_store])
    runs = _runs(in_store, rows, order)

    # Arrow keeps a curve of all rows end to end. `points` are the places, in there, of the points
    # of the wanted runs in their order.
    lengths = pc.list_value_length(rows["step"]).to_numpy()
    begins = np.cumsum(lengths) - lengths
    counts = lengths[order]
    begins_in_order = np.cumsum(counts) - counts
    points = np.repeat(begins[order] - begins_in_order, counts) + np.arange(counts.sum())

    curves = {}
    for name in curves_in(rows.schema):
        # Dropped from the rows, so that Arrow's copy is freed before the next curve is copied.
        lists, rows = rows[name], rows.drop_columns([name])
        curves[name] = _flat_values(lists, lengths)[points]
    keys = pa.array([f.key for f in in_store]).take(np.repeat(np.arange(len(in_store)), counts))
    return runs, pd.DataFrame(curves | {"key": keys.to_pandas()}, copy=False)


def _flat_values(lists: pa.ChunkedArray, lengths: np.ndarray) -> np.ndarray:
    """The values of a curve of all rows, end to end; NaN for rows without it."""
    values = pc.list_flatten(lists).to_numpy()
    if not lists.null_count:
        return values
    everywhere = np.full(lengths.sum(), np.nan, np.float32)
    everywhere[np.repeat(lists.is_valid().to_numpy(), lengths)] = values
    return everywhere


def _gather(wanted: set[str], folder: pathlib.Path, columns, meta=META[1:]) -> pa.Table:
    """Rows of the `wanted` keys, wherever in the store they are, as in a pack without empty curves.

    Raises UserError where one is gone.
    """

    def loose_records():
        for run_key in record_paths(folder):
            record = read_loose(folder, run_key) if run_key in wanted else None
            if record is not None:
                about, curves = record
                yield about, {n: curve for n, curve in curves.items() if is_wanted(n, columns)}

    parts = list(batches(loose_records()))
    missing = wanted.difference(*(part["key"].to_pylist() for part in parts))
    for _ in range(2):  # a merge may replace packs while they are read: look twice
        packs = intact_packs(folder) if missing else {}
        for path, keys in packs.items():
            here = keys.today & missing
            rows = read_pack(path, columns, meta) if here else None
            if rows is not None:
                rows = with_keys(rows, here)
                parts.append(rows.select(["key", "recipe", *meta, *not_empty(rows)]))
                missing -= here
    if missing:
        counts = f"{len(missing)} of {len(wanted)}"
        raise UserError(f"table: {counts} runs were lost or damaged since they were planned")
    return pa.concat_tables(parts, promote_options="default")


def _runs(in_store: list[Found], rows: pa.Table, order: np.ndarray) -> pd.DataFrame:
    """A row per run: configuration, N, results, provenance."""
    values = {
        "key": [f.key for f in in_store],
        "recipe": rows["recipe"].take(order).to_pylist(),
    }
    settings = [flat(f.run).values() for f in in_store]
    values |= dict(zip(FIELDS, zip(*settings)))
    values["n_params"] = [f.run.model.n_params for f in in_store]
    # One JSON text of all results is read many times faster than a text per run.
    texts = ",".join(rows["result"].take(order).to_pylist())
    results = map(operator.itemgetter(*RESULTS), json.loads(f"[{texts}]"))
    values |= dict(zip(RESULTS, zip(*results)))
    # Thousands of runs share a few provenances: each is read once.
    origin = rows["provenance"].dictionary_encode().combine_chunks()
    origins = pd.DataFrame([json.loads(text) for text in origin.dictionary.to_pylist()])
    of_each_run = origins.take(origin.indices.to_numpy()[order])
    return pd.DataFrame(values).join(of_each_run.reset_index(drop=True))


# ------------------------------------------------------------------ exporting


def only_read(curves: pd.DataFrame, read: dict[str, Collection[str] | None]) -> pd.DataFrame:
    """`curves` with nan where nothing reads a curve of a run; `loss` always stays.

    `read` maps a run's key to the names, or their beginnings, of the curves that are read of it;
    None stands for all.
    """
    kept = {}
    for name in curves.columns.difference(["key", "step", "loss"], sort=False):
        readers = [key for key, names in read.items() if is_wanted(name, names)]
        kept[name] = curves[name].where(curves["key"].isin(readers))
    unread = [name for name, values in kept.items() if values.isna().all()]
    return curves.assign(**kept).drop(columns=unread)


def export(runs: pd.DataFrame, curves: pd.DataFrame, target: pathlib.Path, folder=None, say=print):
    """Write tables as `runs.parquet` and `curves.parquet`. One that did not change is left alone.

    Runs of other recipes that are there already stay. Rows that no configuration of today asks
    for, of an older schema or with other fields, are dropped. If one of the tables is missing or
    damaged, its part of the kept runs comes from the store in `folder` (default: the usual one).

    A run stays where it was in the table and new ones are appended, so that git stores what an
    export adds and not the whole table again.
    """
    curves = _lean(curves)
    below_runs, below_curves = _exported_before(target, folder or paths.folder("store"), say)
    recipes_before = []
    if below_runs is not None:
        recipes_before = below_runs["recipe"].tolist()
        kept = below_runs[~below_runs["recipe"].isin(runs["recipe"])]
        reachable = [_is_reachable(row) for row in kept.to_dict("records")]
        kept = kept[np.array(reachable, bool)]
        runs = pd.concat([kept, runs], ignore_index=True)
        kept_curves = below_curves[below_curves["key"].isin(kept["key"])]
        empty = [name for name in kept_curves if kept_curves[name].isna().all()]
        of_others = [name for name in empty if name not in curves]
        curves = pd.concat([kept_curves.drop(columns=of_others), curves], ignore_index=True)
    runs = _sorted(runs, recipes_before, ["recipe", "key"])
    curves = _sorted(curves, runs["key"], ["key", "step"])
    # Curves first: a run is believed only where it has curves.
    _write(curves, target / "curves.parquet")
    _write(runs, target / "runs.parquet")


def _sorted(frame: pd.DataFrame, order: Iterable[str], by: list[str]) -> pd.DataFrame:
    """Rows sorted by two columns, the first in the given order; what that lacks comes last."""
    place = {value: number for number, value in enumerate(order)}
    first, second = by
    rows = np.lexsort([frame[second], frame[first].map(lambda v: place.get(v, len(place)))])
    return frame.take(rows).reset_index(drop=True)


# A group of rows that is full has the same bytes in every later export.
ROWS_OF_A_GROUP = 8192


def _write(frame: pd.DataFrame, path: pathlib.Path):
    with contextlib.suppress(UserError):  # a damaged one is replaced
        if frame.equals(_exported(path.parent, path.stem)):
            return
    floats = [column for column in frame.columns if frame[column].dtype.kind == "f"]
    content = frame.to_parquet(
        compression="zstd",
        index=False,
        row_group_size=ROWS_OF_A_GROUP,
        use_dictionary=["key"],
        use_byte_stream_split=floats,
        write_page_checksum=True,
        write_statistics=False,  # nothing here asks for them, and a group has hundreds of columns
    )
    write_file(path, content)


def _is_reachable(row: dict) -> bool:
    """Whether a run of today has this row's recipe."""
    try:
        run = from_flat({name: row[name] for name in FIELDS})
    except (KeyError, UserError):
        return False
    return recipe(run) == row["recipe"]


# Tensors whose RMS of gradients and updates goes out: those that figures read.
DRAWN_TENSORS = ("/mlp_in/kernel", "/attention/key/kernel")


def _lean(curves: pd.DataFrame) -> pd.DataFrame:
    """Curves as they go out, with four digits: a fifth of the size.

    Left out is what no figure reads: the RMS of parameters and of most tensors' gradients and
    updates, and the largest logit of each head.
    """
    left_out = [name for name in curves if not _goes_out(name)]
    return _four_digits(curves.drop(columns=left_out))


def _goes_out(name: str) -> bool:
    if name.startswith(("param_rms/", "max_attention_logit_of_head/")):
        return False
    return not name.startswith(("grad_rms/", "update_rms/")) or name.endswith(DRAWN_TENSORS)


def _four_digits(curves: pd.DataFrame) -> pd.DataFrame:
    """float32 columns rounded to 12 bits of mantissa, a relative error of at most 1.3e-4.

    nan and inf stay.
    """

    def rounded(column):
        bits = column.to_numpy(np.float32).copy().view(np.int32)
        finite = np.isfinite(bits.view(np.float32))
        bits[finite] = (bits[finite] + (1 << 10)) & ~((1 << 11) - 1)
        return bits.view(np.float32)

    floats = curves.columns[curves.dtypes == np.float32]
    return curves.assign(**{name: rounded(curves[name]) for name in floats})


def _exported_before(target: pathlib.Path, folder: pathlib.Path, say) -> tuple:
    """The tables exported before, or None and None. Where only one can be read, the other is made
    from the store."""
    readable = {}
    for name in EXPORTED:
        try:
            readable[name] = _exported(target, name)
        except UserError as error:
            readable[name] = None
            say(str(error))
    runs, curves = readable["runs"], readable["curves"]
    if runs is not None and curves is None:
        from_store = _of_keys(set(runs["key"]), folder)
        no_curves = pd.DataFrame({"key": pd.Series(dtype="str")})
        return runs, no_curves if from_store is None else from_store[1]
    if curves is not None and runs is None:
        from_store = _of_keys(set(curves["key"]), folder)
        return (None, None) if from_store is None else (from_store[0], curves)
    return runs, curves


def _of_keys(keys: set[str], folder: pathlib.Path) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    """Runs and curves, ready for export, of those `keys` that the store has; None for none."""
    found = []
    present = store.stored(keys, folder)
    if present:
        rows = _gather(present, folder, (), META)
        for run_key, text in zip(rows["key"].to_pylist(), rows["config"].to_pylist()):
            with contextlib.suppress(UserError):  # a run that today's rules refuse
                found.append(Found(from_flat(json.loads(text)), run_key, Layer.STORED))
    if not found:
        return None
    found.sort(key=operator.attrgetter("key"))
    runs, curves = _tabulate(found, folder, None)
    return runs, _lean(curves)
