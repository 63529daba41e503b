"""Packs: many runs in one file, `packs/<sha256 of the content>.parquet`.

A pack has a row per run: `key`, `recipe`, the parts of `meta` as JSON texts, and a list column per
curve, so that reading a few curves of many runs reads only these. Packs never change, and their
metadata says if every key was recomputed when they were written; where it does not, keys are
recomputed when the pack is first read.
"""

import concurrent.futures
import functools
import hashlib
import io
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Set
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from proxies_lib.config import recipe_of, refuse
from proxies_lib.runs.records import (
    FALSE,
    META,
    OTHER,
    TODAY,
    Record,
    check_meta,
    content_of,
    is_wanted,
    silent,
    worth_of_key,
    write_file,
)

PACK_BYTES = 15 * 2**20  # of a pack at most, where it holds more than one run

CHECKED = {b"keys": b"recomputed"}  # metadata of a pack whose keys were all found to be of TODAY


class Keys(NamedTuple):
    """Keys of a pack's rows by what they are worth; fields are named as `worth_of_key` says it."""

    today: frozenset[str]
    other: frozenset[str] = frozenset()
    false: frozenset[str] = frozenset()


# ------------------------------------------------------------------ which packs


def intact_packs(folder: pathlib.Path, say=silent) -> dict[pathlib.Path, Keys]:
    """Keys of each intact pack of a store, in the order of names; a line for a damaged one."""
    paths = sorted(pathlib.Path(folder).glob("packs/*.parquet"))
    present = [path for path in paths if os.path.exists(path) and not path.name.startswith(".")]
    try:
        return intact(present, say)
    except FileNotFoundError:  # merged into another one since it was listed
        return intact_packs(folder, say)


def intact(paths: list[pathlib.Path], say: Callable[[str], None]) -> dict[pathlib.Path, Keys]:
    """Keys of those of these packs that are intact; a line for a damaged one.

    Raises FileNotFoundError where one is gone.
    """
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = dict(zip(paths, pool.map(_keys, paths)))
    for path, keys in found.items():
        if keys is None:
            say(f"store: pack {path.name} is damaged or renamed; its runs count as missing")
        elif keys.false:
            count = len(keys.false)
            say(
                f"store: pack {path.name} has {count} rows under a wrong key; they count as missing"
            )
    return {path: keys for path, keys in found.items() if keys is not None}


def keys_of_today(packs: Iterable[Keys]) -> set[str]:
    """The keys of all these packs that a run of today may ask for."""
    return set().union(*(keys.today for keys in packs))


def is_small(path: pathlib.Path) -> bool:
    """Whether a pack fills less than half of what a pack may."""
    metadata = pq.read_metadata(path)
    groups = (metadata.row_group(i) for i in range(metadata.num_row_groups))
    return sum(group.total_byte_size for group in groups) < PACK_BYTES / 2


def _keys(path: pathlib.Path) -> Keys | None:
    """Keys of a pack, None where content and name do not agree. Raises FileNotFoundError."""
    state = path.stat()
    return _keys_of(path, state.st_size, state.st_mtime_ns, state.st_ctime_ns)


@functools.cache
def _keys_of(path: pathlib.Path, *_state: int) -> Keys | None:
    """`_keys`, once for each state of the file."""
    content = content_of(path)
    if content is None and not path.exists():
        raise FileNotFoundError(path)
    if content is None or content_hash(content) != path.stem:
        return None
    try:
        with pq.ParquetFile(pa.BufferReader(content)) as file:
            metadata = file.schema_arrow.metadata or {}
            if CHECKED.items() <= metadata.items():
                return Keys(frozenset(file.read(["key"])["key"].to_pylist()))
            return _keys_by_worth(file.read(["key", *META]))
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):  # not by `write_pack`
        return None


def _keys_by_worth(rows: pa.Table) -> Keys:
    """The keys of rows, recomputed."""
    found: dict[str, set[str]] = {TODAY: set(), OTHER: set(), FALSE: set()}
    columns = (rows[name].to_pylist() for name in ("key", *META))
    for run_key, *texts in zip(*columns):
        try:
            parts = {name: json.loads(text) for name, text in zip(META, texts)}
            meta = {"key": run_key} | parts
            check_meta(meta)
            worth = worth_of_key(meta)
        except (ValueError, KeyError, TypeError, RecursionError):
            worth = FALSE
        found[worth].add(run_key)
    # A key that stands in two rows, once falsely, cannot be read by its key.
    false = frozenset(found[FALSE])
    return Keys(frozenset(found[TODAY]) - false, frozenset(found[OTHER]) - false, false)


def content_hash(content: bytes) -> str:
    """The name of a pack."""
    return hashlib.sha256(content).hexdigest()[:24]


# ------------------------------------------------------------------ reading


def read_pack(path: pathlib.Path, columns=None, meta=META) -> pa.Table | None:
    """Rows of a pack with the wanted curves and parts of `meta`.

    None where it is gone, of another shape, or fails a page's checksum.
    """
    texts = ["key", "recipe", *meta]
    try:
        with pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False) as file:
            curves = [name for name in curves_in(file.schema_arrow) if is_wanted(name, columns)]
            rows = file.read([*texts, *curves])
        has_holes = any(rows[name].null_count for name in [*texts, "step"])
        has_texts = all(rows[name].type == pa.string() for name in texts)
        return rows if has_texts and not has_holes else None
    except (OSError, ValueError, KeyError, pa.ArrowException):
        return None


def first_record(rows: pa.Table) -> Record:
    """The first row of a pack as a record."""
    meta = {"key": rows["key"][0].as_py()}
    for name in META:
        meta[name] = json.loads(rows[name][0].as_py())
    curves = {}
    for name in curves_in(rows.schema):
        values = rows[name][0].values
        if values is not None:
            curves[name] = values.to_numpy()
    return meta, curves


def with_keys(rows: pa.Table, keys: Set[str]) -> pa.Table:
    """Those of the rows that have one of these keys."""
    mask = [run_key in keys for run_key in rows["key"].to_pylist()]
    return rows if all(mask) else rows.filter(pa.array(mask))


def curves_in(schema: pa.Schema) -> list[str]:
    return [field.name for field in schema if pa.types.is_list(field.type)]


def not_empty(rows: pa.Table) -> list[str]:
    """The curves that any of these rows has."""
    return [name for name in curves_in(rows.schema) if rows[name].null_count < len(rows)]


# ------------------------------------------------------------------ writing


def pack(folder: pathlib.Path, records: Iterable[Record]) -> list[pathlib.Path]:
    """Write `records`, metadata and curves as in `records.write`, straight into packs.

    Raises UserError on a wrong key.
    """
    return write_packs(folder, batches(records))


def batches(records: Iterable[Record]) -> Iterator[pa.Table]:
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


def _rows(records: list[Record]) -> pa.Table:
    """Records as rows of a pack; a curve that a run lacks is null."""
    texts = {
        "key": [meta["key"] for meta, _ in records],
        "recipe": [recipe_of(meta["config"]) for meta, _ in records],
    }
    for name in META:
        texts[name] = [json.dumps(meta[name]) for meta, _ in records]
    columns = {name: pa.array(values, pa.string()) for name, values in texts.items()}
    curve_names = dict.fromkeys(name for _, curves in records for name in curves)
    for name in curve_names:
        number = pa.int32() if name == "step" else pa.float32()
        element = pa.field("element", number)  # as parquet names it
        values = [curves.get(name) for _, curves in records]
        columns[name] = pa.array(values, pa.list_(element))
    return pa.table(columns)


def write_packs(folder: pathlib.Path, tables: Iterable[pa.Table]) -> list[pathlib.Path]:
    """Write the rows of `tables` as packs, each as large as may be.

    The new packs are on disk on return.
    """
    written = []
    waiting, size = [], 0  # rows for the next pack
    for table in tables:
        waiting.append(table)
        size += table.nbytes
        if size > PACK_BYTES:
            rows = _joined(waiting)
            while rows.nbytes > PACK_BYTES and len(rows) > 1:
                count = max(1, len(rows) * PACK_BYTES // rows.nbytes)
                written += write_pack(folder, rows[:count])
                rows = rows[count:]
            waiting, size = [rows], rows.nbytes
    if any(map(len, waiting)):
        written += write_pack(folder, _joined(waiting))
    return written


def _joined(tables: list[pa.Table]) -> pa.Table:
    return pa.concat_tables(tables, promote_options="default")


def write_pack(folder: pathlib.Path, rows: pa.Table) -> list[pathlib.Path]:
    """Write rows as one pack, or as several where they do not fit.

    Raises UserError on a wrong key.
    """
    keys = _keys_by_worth(rows)
    wrong = keys.false | keys.other
    if wrong:
        refuse("key", min(wrong), "does not follow from configuration and fingerprint of its run")
    curves = not_empty(rows)
    rows = rows.select(["key", "recipe", *META, *curves]).combine_chunks()
    buffer = io.BytesIO()
    pq.write_table(
        rows.replace_schema_metadata(CHECKED),
        buffer,
        compression="zstd",
        use_dictionary=False,
        use_byte_stream_split=[f"{name}.list.element" for name in curves],
        write_page_checksum=True,
    )
    content = buffer.getvalue()
    if len(content) > PACK_BYTES and len(rows) > 1:
        half = len(rows) // 2
        return write_pack(folder, rows[:half]) + write_pack(folder, rows[half:])
    path = pathlib.Path(folder) / "packs" / f"{content_hash(content)}.parquet"
    write_file(path, content)
    return [path]
