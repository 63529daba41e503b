"""Finished runs as content-addressed, checksummed files, and the tables made of them.

A record is one `<key>.npz`: `meta`, a JSON text with configuration, results and provenance, and the curves as one
float32 matrix of `points` × `columns`. Zip's CRC-32 guards each entry; a rename makes writing atomic.

`merge` gathers records into packs, `packs/<sha256 of the content>.parquet`, with a row per run: `key`, `recipe`,
the parts of `meta` as JSON texts, and a list column per curve, so that reading a few curves of many runs reads only
these. Packs never change. A record is deleted only when its pack is on disk, so readers look among the records first,
then in the packs. An exported table (parquet) is a read-only layer below.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import hashlib
import io
import json
import operator
import os
import pathlib
import re
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from proxies_lib.config import FIELDS, YOUNGER, Run, UserError, flat, from_flat, key, recipe, recipe_of, refuse

RESULTS = ("final_loss", "init_loss", "diverged", "diverged_step", "train_seconds")
META = ("config", "result", "provenance")
PACK_BYTES = 15 * 2**20  # of a pack at most, where it holds more than one run


def write(folder: pathlib.Path, meta: dict, curves: dict[str, np.ndarray]) -> pathlib.Path:
    """Write one record atomically; an equal key is replaced."""
    path = _path(folder, meta["key"])
    buffer = io.BytesIO()
    points = np.stack([np.asarray(v, np.float32) for v in curves.values()], axis=1)
    np.savez_compressed(buffer, meta=np.array(json.dumps(meta)), columns=np.array(list(curves)), points=points)
    write_atomically(path, buffer.getvalue())
    return path


def write_atomically(path: pathlib.Path, content: bytes):
    """Write a file so that readers see the old one or the new one, never a part; also after a crash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(scratch, 0o644)
        os.replace(scratch, path)
    finally:
        pathlib.Path(scratch).unlink(missing_ok=True)


def read(folder: pathlib.Path, run_key: str, columns=None) -> tuple[dict, dict[str, np.ndarray]] | None:
    """Metadata and curves of a run; None where it is missing or damaged (then it is trained again).

    `columns` are the names or prefixes of the wanted curves beside `step`; None for all.
    """
    if (record := _read_loose(folder, run_key)) is not None:
        meta, curves = record
        return meta, {name: values for name, values in curves.items() if _wanted(name, columns)}
    for path in (path for path, keys in _packs(folder).items() if run_key in keys):
        if (rows := _read_pack(path, columns)) is not None:
            row = _with_keys(rows, {run_key})
            curves = {name: row[name][0].values for name in _curves(row.schema)}
            meta = {"key": run_key} | {name: json.loads(row[name][0].as_py()) for name in META}
            return meta, {name: values.to_numpy() for name, values in curves.items() if values is not None}
    return None


def _read_loose(folder: pathlib.Path, run_key: str) -> tuple[dict, dict[str, np.ndarray]] | None:
    try:
        with np.load(_path(folder, run_key)) as file:
            meta = json.loads(str(file["meta"]))
            curves = dict(zip(file["columns"].tolist(), file["points"].T, strict=True))
            curves["step"] = curves["step"].astype(np.int32)
    except (ValueError, OSError, KeyError, EOFError, zlib.error, zipfile.BadZipFile):
        return None
    return (meta, curves) if meta.get("key") == run_key else None


def _path(folder: pathlib.Path, run_key: str) -> pathlib.Path:
    return pathlib.Path(folder) / run_key[:2] / f"{run_key}.npz"


def _loose(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Path of each record that is a file of its own, by key."""
    return {path.stem: path for path in sorted(pathlib.Path(folder).glob("??/*.npz"))}


def _wanted(name: str, columns) -> bool:
    return columns is None or name == "step" or name.startswith(tuple(columns))


# ------------------------------------------------------------------ packs


def _packs(folder: pathlib.Path, report: Callable[[str], None] = lambda line: None) -> dict[pathlib.Path, frozenset]:
    """Keys of each intact pack of a store, in the order of their names; a line to `report` for a damaged one."""
    try:
        return _intact([p for p in sorted(pathlib.Path(folder).glob("packs/*.parquet")) if p.exists()], report)
    except FileNotFoundError:  # merged into another one since it was listed
        return _packs(folder, report)


def _intact(paths: list[pathlib.Path], report: Callable[[str], None]) -> dict[pathlib.Path, frozenset]:
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = dict(zip(paths, pool.map(lambda p: _keys(p, p.stat().st_size, p.stat().st_mtime_ns), paths)))
    for path in (path for path, keys in found.items() if keys is None):
        report(f"store: pack {path.name} is damaged or renamed; its runs count as missing")
    return {path: keys for path, keys in found.items() if keys is not None}


@functools.cache
def _keys(path: pathlib.Path, _size: int, _modified: int) -> frozenset[str] | None:
    """Keys of a pack, None where its content is not what its name says."""
    content = path.read_bytes()
    if _content_hash(content) != path.stem:
        return None
    return frozenset(pq.read_table(pa.BufferReader(content), columns=["key"])["key"].to_pylist())


def _content_hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:24]


def _curves(schema: pa.Schema) -> list[str]:
    return [field.name for field in schema if pa.types.is_list(field.type)]


def _read_pack(path: pathlib.Path, columns=None, meta=META) -> pa.Table | None:
    """Rows of a pack with the wanted curves and parts of `meta`; None where it is gone or fails a page's checksum."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False) as file:
            curves = [name for name in _curves(file.schema_arrow) if _wanted(name, columns)]
            return file.read(["key", "recipe", *meta, *curves])
    except (OSError, pa.ArrowException):
        return None


def _with_keys(rows: pa.Table, keys: set[str]) -> pa.Table:
    mask = [k in keys for k in rows["key"].to_pylist()]
    return rows if all(mask) else rows.filter(pa.array(mask))


def _rows(records: list[tuple[dict, dict[str, np.ndarray]]]) -> pa.Table:
    """Records as rows of a pack; a curve that a run lacks is null."""
    columns = {"key": [m["key"] for m, _ in records], "recipe": [recipe_of(m["config"]) for m, _ in records],
               **{name: [json.dumps(m[name]) for m, _ in records] for name in META}}  # fmt: skip
    columns = {name: pa.array(values, pa.string()) for name, values in columns.items()}
    for name in dict.fromkeys(name for _, curves in records for name in curves):
        element = pa.field("element", pa.int32() if name == "step" else pa.float32())  # as parquet names it
        columns[name] = pa.array([curves.get(name) for _, curves in records], pa.list_(element))
    return pa.table(columns)


def _batches(records: Iterable[tuple[dict, dict[str, np.ndarray]]]) -> Iterator[pa.Table]:
    """Rows of `records`, about a pack's worth at a time."""
    batch, size = [], 0
    for meta, curves in records:
        batch.append((meta, curves))
        size += sum(values.nbytes for values in curves.values())
        if size > PACK_BYTES:
            yield _rows(batch)
            batch, size = [], 0
    if batch:
        yield _rows(batch)


def pack(folder: pathlib.Path, records: Iterable[tuple[dict, dict[str, np.ndarray]]]) -> list[pathlib.Path]:
    """Write `records`, metadata and curves as in `write`, straight into packs."""
    return _write_packs(folder, _batches(records))


def _write_packs(folder: pathlib.Path, tables: Iterable[pa.Table]) -> list[pathlib.Path]:
    """Write the rows of `tables` as packs, each as large as may be; the new packs are on disk on return."""
    written, waiting, size = [], [], 0
    for table in tables:
        waiting.append(table)
        size += table.nbytes
        if size > PACK_BYTES:
            rest = pa.concat_tables(waiting, promote_options="default")
            while rest.nbytes > PACK_BYTES and len(rest) > 1:
                n = max(1, len(rest) * PACK_BYTES // rest.nbytes)
                written += _write_pack(folder, rest[:n])
                rest = rest[n:]
            waiting, size = [rest], rest.nbytes
    if sum(map(len, waiting)):
        written += _write_pack(folder, pa.concat_tables(waiting, promote_options="default"))
    if written and hasattr(os, "O_DIRECTORY"):
        handle = os.open(pathlib.Path(folder) / "packs", os.O_DIRECTORY)
        os.fsync(handle)
        os.close(handle)
    return written


def _write_pack(folder: pathlib.Path, rows: pa.Table) -> list[pathlib.Path]:
    curves = [name for name in _curves(rows.schema) if rows[name].null_count < len(rows)]
    buffer = io.BytesIO()
    pq.write_table(
        rows.select(["key", "recipe", *META, *curves]).combine_chunks(), buffer, compression="zstd", use_dictionary=False,
        use_byte_stream_split=[f"{name}.list.element" for name in curves], write_page_checksum=True,
    )  # fmt: skip
    content = buffer.getvalue()
    if len(content) > PACK_BYTES and len(rows) > 1:
        half = len(rows) // 2
        return _write_pack(folder, rows[:half]) + _write_pack(folder, rows[half:])
    path = pathlib.Path(folder) / "packs" / f"{_content_hash(content)}.parquet"
    write_atomically(path, content)
    return [path]


def merge(sources: list[pathlib.Path], target: pathlib.Path, say: Callable[[str], None] = print):
    """Bring the runs of `sources`, stores or packs, into the store `target` as packs, and pack its own records.

    Runs that `target` has already are kept as they are. Its small packs are combined; sources are left alone. What a
    new pack replaces is deleted at the end, so a merge may be killed and started again at any time.
    """
    target, sources = pathlib.Path(target), [pathlib.Path(source) for source in sources]
    for source in sources:
        is_pack = source.is_file() and re.fullmatch(r"[0-9a-f]{24}\.parquet", source.name)
        if not source.exists():
            refuse("source", str(source), "no such file or folder")
        if not is_pack and not _loose(source) and not any(source.glob("packs/*.parquet")):
            refuse("source", str(source), "is neither a store nor a pack")
    if not target.is_dir() and (target.exists() or not sources):
        refuse("store", str(target), "no such folder")

    count, damaged = collections.Counter(), []
    own, loose = _packs(target, damaged.append), _loose(target)
    small = [path for path in own if _is_small(path)]
    have = set().union(*(own[path] for path in own.keys() - set(small)))

    def fresh(table: pa.Table, origin: str) -> pa.Table:
        new = {k for k in table["key"].to_pylist() if k not in have}
        have.update(new)
        count[origin] += len(new)
        count["already there"] += (len(table) - len(new)) * (origin == "merged")
        return _with_keys(table, new)

    def records(folder: pathlib.Path, paths: dict[str, pathlib.Path]):
        for run_key, path in paths.items():
            if (record := _read_loose(folder, run_key)) is not None:
                yield record
            elif path.exists():
                damaged.append(f"store: record {path.name} is damaged; its run counts as missing")

    def packed(paths: Iterable[pathlib.Path]):
        for path in paths:
            if (rows := _read_pack(path)) is not None:
                yield rows
            else:
                damaged.append(f"store: pack {path.name} could not be read")

    def tables():
        for rows in packed(small):
            yield fresh(rows, "kept")
        for rows in _batches(records(target, {k: path for k, path in loose.items() if k not in have})):
            yield fresh(rows, "packed")
        for source in sources:
            yield from (fresh(rows, "merged") for rows in _batches(records(source, _loose(source))))
            packs = _packs(source, damaged.append) if source.is_dir() else _intact([source], damaged.append)
            yield from (fresh(rows, "merged") for rows in packed(packs))

    written = _write_packs(target, tables())
    replaced = set(small) - set(written)
    safe = set().union(*(keys for path, keys in _packs(target).items() if path not in replaced))
    for path in (*(p for p in replaced if own[p] <= safe), *(p for run_key, p in loose.items() if run_key in safe)):
        path.unlink(missing_ok=True)
    for line in damaged:
        say(line)
    left = list(_packs(target))
    size = sum(path.stat().st_size for path in left) / 2**20
    say(
        f"{count['merged']} runs merged, {count['already there']} already there, {count['packed']} of its own packed, "
        f"{len(damaged)} damaged; the store has {len(left)} packs, {size:.1f} MiB"
    )


def _is_small(path: pathlib.Path) -> bool:
    """Whether a pack fills less than half of what a pack may."""
    metadata = pq.read_metadata(path)
    return sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)) < PACK_BYTES / 2


# ------------------------------------------------------------------ tables


@dataclasses.dataclass(frozen=True)
class Found:
    """Where a run's numbers are: `layer` is "store", "table", "table, other corpus", or "" for nowhere."""

    run: Run
    key: str | None
    layer: str
    table_key: str | None = None


@functools.lru_cache(maxsize=4)
def _exported(path: str, _modified: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    runs, curves = (pd.read_parquet(pathlib.Path(path) / f"{name}.parquet") for name in ("runs", "curves"))
    missing = {name: default for name, default in YOUNGER.items() if name not in runs}
    return runs.assign(**missing), curves


def exported(path: pathlib.Path | None) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    """The exported runs and curves in `path`, or None."""
    if path is None or not (path / "runs.parquet").exists() or not (path / "curves.parquet").exists():
        return None
    return _exported(str(path), (path / "runs.parquet").stat().st_mtime)


def locate(
    runs: list[Run], fingerprints: dict, folder: pathlib.Path, layer: pathlib.Path | None = None, say=print
) -> list[Found]:
    """Where each run is stored. `fingerprints` maps (data, vocab_size) to a fingerprint, None where unknown.

    Damaged records and packs count as not stored; `say` is told of packs. In the exported `layer` a run
    matches by key, else by recipe: the same configuration on another corpus.
    """
    below = exported(layer)
    by_key, by_recipe = set(), {}
    if below is not None:
        by_key, by_recipe = set(below[0]["key"]), dict(zip(below[0]["recipe"], below[0]["key"], strict=True))
    known = [fingerprints[run.data, run.model.vocab_size] for run in runs]
    keys = [key(run, fingerprint) if fingerprint else None for run, fingerprint in zip(runs, known)]
    stored = {k for k in _loose(folder).keys() & set(keys) if _read_loose(folder, k) is not None}
    stored = stored.union(*_packs(folder, say).values())
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


def table(found: list[Found], folder: pathlib.Path, layer: pathlib.Path | None = None, columns=None):
    """Runs (a row each) and curves (a row per logged step, keyed by `key`) of located runs, in their order.

    `columns` are the names or prefixes of the wanted curves beside `step`; None for all. Raises UserError, with the
    count, where a run is stored nowhere.
    """
    holes = sum(not f.layer for f in found)
    if holes:
        raise UserError(f"table: {holes} of {len(found)} runs are not stored; train them first (train=True)")
    rows, curves = [], []
    stored = [f for f in found if f.layer == "store"]
    wanted = [f.table_key for f in found if f.layer != "store"]
    if wanted:
        below_runs, below_curves = exported(layer)
        rows.append(below_runs[below_runs["key"].isin(wanted)])
        below_curves = below_curves[[name for name in below_curves if name == "key" or _wanted(name, columns)]]
        curves.append(below_curves[below_curves["key"].isin(wanted)])
    if stored:
        for frames, frame in zip((rows, curves), _tabulate(stored, folder, columns)):
            frames.append(frame)
    if len(stored) == len(found):
        return rows[0], curves[0]
    order = {f.key if f.layer == "store" else f.table_key: i for i, f in enumerate(found)}
    runs = pd.concat(rows, ignore_index=True).sort_values("key", key=lambda k: k.map(order), ignore_index=True)
    return runs, pd.concat(curves, ignore_index=True)


def _gather(wanted: set[str], folder: pathlib.Path, columns) -> pa.Table:
    """Rows of the `wanted` keys, wherever in the store they are, in the layout of a pack."""
    records = (_read_loose(folder, k) for k in _loose(folder) if k in wanted)
    records = ((m, {n: v for n, v in c.items() if _wanted(n, columns)}) for m, c in filter(None, records))
    parts = list(_batches(records))
    missing = wanted.difference(*(part["key"].to_pylist() for part in parts))
    for _ in range(2):  # packs that a merge replaces while they are read are found at the second look
        for path, keys in _packs(folder).items() if missing else ():
            if (here := keys & missing) and (rows := _read_pack(path, columns, META[1:])) is not None:
                parts.append(_with_keys(rows, here))
                missing -= here
    if missing:
        raise UserError(f"table: {len(missing)} of {len(wanted)} runs were lost or damaged since they were planned")
    return pa.concat_tables(parts, promote_options="default")


def _tabulate(stored: list[Found], folder: pathlib.Path, columns) -> tuple[pd.DataFrame, pd.DataFrame]:
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
    return pd.DataFrame(values).join(origins.take(origin.indices.to_numpy()[order]).reset_index(drop=True))


def _reachable(row: dict) -> bool:
    return FIELDS.keys() <= row.keys() and recipe(from_flat({name: row[name] for name in FIELDS})) == row["recipe"]


def _four_digits(curves: pd.DataFrame) -> pd.DataFrame:
    """float32 columns rounded to 12 bits of mantissa, a relative error of at most 1.3e-4; nan and inf stay."""

    def rounded(column):
        bits = column.to_numpy(np.float32).copy().view(np.int32)
        finite = np.isfinite(bits.view(np.float32))
        bits[finite] = (bits[finite] + (1 << 10)) & ~((1 << 11) - 1)
        return bits.view(np.float32)

    floats = curves.columns[curves.dtypes == np.float32]
    return curves.assign(**{name: rounded(curves[name]) for name in floats})


def export(runs: pd.DataFrame, curves: pd.DataFrame, target: pathlib.Path):
    """Write tables as `runs.parquet` and `curves.parquet`; runs of other recipes already there are kept.

    Rows that no configuration of today asks for, of an older schema or with other fields, are dropped. Curves go out
    without the RMS of parameters and of norm scales, which no figure reads, and with four digits: a quarter of the size.
    """
    left_out = [c for c in curves if c.startswith("param_rms/") or c.endswith("/scale")]
    curves = _four_digits(curves.drop(columns=left_out))
    if (below := exported(target)) is not None:
        kept = below[0][~below[0]["recipe"].isin(runs["recipe"])]
        kept = kept[np.array([_reachable(row) for row in kept.to_dict("records")], bool)]
        runs = pd.concat([kept, runs], ignore_index=True)
        curves = pd.concat([below[1][below[1]["key"].isin(kept["key"])], curves], ignore_index=True)
    runs, curves = runs.sort_values("key", ignore_index=True), curves.sort_values(["key", "step"], ignore_index=True)
    for name, frame in (("curves", curves), ("runs", runs)):
        floats = [column for column in frame.columns if frame[column].dtype.kind == "f"]
        content = frame.to_parquet(
            compression="zstd", index=False, use_dictionary=["key"], use_byte_stream_split=floats
        )
        write_atomically(target / f"{name}.parquet", content)
