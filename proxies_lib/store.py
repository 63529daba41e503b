"""Finished runs as content-addressed, checksummed files, and the tables made of them.

A record is one `<key>.npz`: `meta`, a JSON text with configuration, results and provenance, and the curves as one
float32 matrix of `points` × `columns`. Zip's CRC-32 guards each entry; a rename makes writing atomic.

A record is believed only if it has the shape `write` gives it and its key follows from its own
configuration and fingerprint. Whatever else stands in its place, be it cut, flipped, a folder or a
pipe, makes its run count as missing.

`merge` gathers records into packs, `packs/<sha256 of the content>.parquet`, with a row per run: `key`, `recipe`,
the parts of `meta` as JSON texts, and a list column per curve, so that reading a few curves of many runs reads only
these. Packs never change, and their metadata says if every key was recomputed when they were
written; where it does not, keys are recomputed when the pack is first read. A record is deleted
only when its pack is on disk, so readers look among the records first, then in the packs. An
exported table (parquet) is a read-only layer below.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import errno
import functools
import hashlib
import io
import json
import math
import operator
import os
import pathlib
import re
import secrets
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from proxies_lib import config as configuration
from proxies_lib.config import (
    FIELDS,
    LATER,
    SCHEMA,
    Run,
    UserError,
    flat,
    from_flat,
    key,
    key_of,
    recipe,
    recipe_of,
    refuse,
)

RESULTS = ("final_loss", "init_loss", "diverged", "diverged_step", "train_seconds")
META = ("config", "result", "provenance")
PACK_BYTES = 15 * 2**20  # of a pack at most, where it holds more than one run
ENTRY_BYTES = 2**28  # of an entry of a record, unpacked, at most: ten times the largest curves
FIRST_FIELDS = FIELDS.keys() - set(LATER)  # that every record has
CHECKED = {b"keys": b"recomputed"}  # metadata of a pack whose keys all are "today" (see `_kind`)
LINES = 5  # of damaged files told one by one
DAY = 86400.0

Record = tuple[dict, dict[str, np.ndarray]]  # metadata and curves


def _silent(line: str):
    pass


def write(folder: pathlib.Path, meta: dict, curves: dict[str, np.ndarray]) -> pathlib.Path:
    """Write one record atomically; an equal key is replaced."""
    path = _path(folder, meta["key"])
    buffer = io.BytesIO()
    points = np.stack([np.asarray(v, np.float32) for v in curves.values()], axis=1)
    names = np.array(list(curves))
    np.savez_compressed(buffer, meta=np.array(json.dumps(meta)), columns=names, points=points)
    _make_way(path)
    write_atomically(path, buffer.getvalue())
    return path


def write_atomically(path: pathlib.Path, content: bytes):
    """Write a file so that readers see the old one or the new one, never a part, even in a crash.

    Its mode is the user's umask's. Raises OSError where the disk is full or read-only, and then
    leaves nothing behind.
    """
    path = pathlib.Path(path)
    if not path.parent.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
        _sync_folder(path.parent.parent)
    scratch = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0)
    handle = os.open(scratch, flags, 0o666)  # less the umask, which cannot be asked for safely
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except BaseException:
        with contextlib.suppress(OSError):
            scratch.unlink()
        raise
    _sync_folder(path.parent)


def _sync_folder(path: pathlib.Path):
    """Make the entries of a folder durable, where the file system has a notion of it."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EACCES):
            raise


def _make_way(path: pathlib.Path):
    """Rename a folder that stands where a file of the store goes: no file can replace it."""
    if path.is_dir() and not path.is_symlink():
        path.rename(path.with_name(f"{path.name}.aside-{secrets.token_hex(4)}"))


def _content(path: pathlib.Path) -> bytes | None:
    """The content of a file, None where there is none. A pipe is not read: that would wait."""
    try:
        return path.read_bytes() if path.is_file() else None
    except OSError:
        return None


def read(folder: pathlib.Path, run_key: str, columns=None) -> Record | None:
    """Metadata and curves of a run; None where it is missing or damaged (then it is trained again).

    `columns` are the names or prefixes of the wanted curves beside `step`; None for all.
    """
    for kind in ("today", "other"):
        if (record := _read_loose(folder, run_key, kind)) is not None:
            meta, curves = record
            return meta, {name: values for name, values in curves.items() if _wanted(name, columns)}
        for path, keys in _packs(folder).items():
            if run_key in getattr(keys, kind) and (rows := _read_pack(path, columns)) is not None:
                return _record(_with_keys(rows, {run_key}))
    return None


def _record(row: pa.Table) -> Record:
    """The first row of a pack as a record."""
    meta = {"key": row["key"][0].as_py()}
    meta |= {name: json.loads(row[name][0].as_py()) for name in META}
    curves = {name: row[name][0].values for name in _curves(row.schema)}
    return meta, {name: values.to_numpy() for name, values in curves.items() if values is not None}


def _read_loose(folder: pathlib.Path, run_key: str, kind: str = "today") -> Record | None:
    """A record that is a file of its own and of this `kind` (see `_kind`), or None."""
    content = _content(_path(folder, run_key))
    record = _parse(content) if content is not None else None
    if record is None or record[0]["key"] != run_key or _kind(record[0]) != kind:
        return None
    return record


def _parse(content: bytes) -> Record | None:
    """The record that these bytes are, or None."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            text, names, points = (_entry(file, name) for name in ("meta", "columns", "points"))
        meta, names = json.loads(str(text)), names.tolist()
        curves = dict(zip(names, points.T, strict=True))
        _check_meta(meta)
        _check_curves(curves, len(names), points)
    except Exception:  # zipfile, NumPy and json raise almost anything on damaged bytes
        return None
    return meta, curves | {"step": curves["step"].astype(np.int32)}


def _entry(file: zipfile.ZipFile, name: str) -> np.ndarray:
    """An array of an archive, read whole and so with its checksum."""
    _demand(file.getinfo(f"{name}.npy").file_size <= ENTRY_BYTES)
    return np.lib.format.read_array(io.BytesIO(file.read(f"{name}.npy")), allow_pickle=False)


def _demand(condition: bool):
    if not condition:
        raise ValueError


def _check_curves(curves: dict, count: int, points: np.ndarray):
    """Raise ValueError unless these are curves as `write` gets them; `count` names were given."""
    _demand(points.dtype == np.float32 and len(curves) == count)
    _demand(all(isinstance(name, str) for name in curves))
    _demand(not curves.keys() & {"key", "recipe", *META})
    " ".join(curves).encode()  # a lone surrogate would go into no table
    step = curves["step"]
    _demand(bool(np.all((step >= 0) & (step < 2**31))))


def _check_meta(meta):
    """Raise ValueError, or what a wrong type raises, unless `meta` is shaped as of a record."""
    _demand(isinstance(meta, dict) and isinstance(meta["key"], str))
    setting, result, provenance = (meta[name] for name in META)
    _demand(all(isinstance(part, dict) for part in (setting, result, provenance)))
    _demand(all(map(_is_scalar, setting.values())))
    _demand(not setting.keys() & {"schema", "fingerprint"})  # of the key, beside the configuration
    _demand(isinstance(result["diverged"], bool) and _is_whole(result["diverged_step"]))
    _demand(all(_is_number(result[name]) for name in ("final_loss", "init_loss", "train_seconds")))
    _demand(math.isfinite(result["train_seconds"]) and result["train_seconds"] >= 0)
    _demand(isinstance(provenance["fingerprint"], str))
    _demand(all(v is None or _is_scalar(v) for v in provenance.values()))
    _demand(not provenance.keys() & {"key", "recipe", "n_params", *FIELDS, *RESULTS})


def _is_whole(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def _is_number(value) -> bool:
    return isinstance(value, float) or _is_whole(value)


def _is_scalar(value) -> bool:
    return isinstance(value, (str, bool)) or _is_number(value)


def _kind(meta: dict) -> str:
    """What the key of well-shaped metadata is worth: "today" where it follows from configuration
    and fingerprint, "false" where it does not, "other" where that cannot be told: it has fields of
    another version, so no run of today asks for it."""
    setting, fingerprint = meta["config"], meta["provenance"]["fingerprint"]
    if any(key_of(setting, fingerprint, n) == meta["key"] for n in range(SCHEMA, 0, -1)):
        return "today"
    return "false" if FIRST_FIELDS <= setting.keys() <= FIELDS.keys() else "other"


def _path(folder: pathlib.Path, run_key: str) -> pathlib.Path:
    return pathlib.Path(folder) / run_key[:2] / f"{run_key}.npz"


def _loose(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Path of each record that is a file of its own, by key."""
    paths = sorted(pathlib.Path(folder).glob("??/*.npz"))
    return {path.stem: path for path in paths if not path.name.startswith(".")}


def _wanted(name: str, columns) -> bool:
    return columns is None or name == "step" or name.startswith(tuple(columns))


def _tell(damaged: list[str], say: Callable[[str], None]):
    """Say what is damaged: a line for each of the first files, one for all the others."""
    for line in damaged[:LINES]:
        say(line)
    if len(damaged) > LINES:
        say(f"store: and {len(damaged) - LINES} more files are damaged")


# ------------------------------------------------------------------ packs


class Keys(NamedTuple):
    """Keys of a pack's rows by what they are worth (see `_kind`)."""

    today: frozenset
    other: frozenset = frozenset()
    false: frozenset = frozenset()


def _packs(folder: pathlib.Path, report=_silent) -> dict[pathlib.Path, Keys]:
    """Keys of each intact pack of a store, in the order of names; a line for a damaged one."""
    paths = sorted(pathlib.Path(folder).glob("packs/*.parquet"))
    try:
        return _intact([p for p in paths if os.path.exists(p) and p.name[0] != "."], report)
    except FileNotFoundError:  # merged into another one since it was listed
        return _packs(folder, report)


def _intact(paths: list[pathlib.Path], report: Callable[[str], None]) -> dict[pathlib.Path, Keys]:
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = dict(zip(paths, pool.map(_keys, paths)))
    for path, keys in found.items():
        if keys is None:
            report(f"store: pack {path.name} is damaged or renamed; its runs count as missing")
        elif keys.false:
            n = len(keys.false)
            report(f"store: pack {path.name} has {n} rows under a wrong key; they count as missing")
    return {path: keys for path, keys in found.items() if keys is not None}


def _keys(path: pathlib.Path) -> Keys | None:
    """Keys of a pack, None where content and name do not agree. Raises FileNotFoundError."""
    state = path.stat()
    return _keys_of(path, state.st_size, state.st_mtime_ns, state.st_ctime_ns)


@functools.cache
def _keys_of(path: pathlib.Path, *_state: int) -> Keys | None:
    content = _content(path)
    if content is None and not path.exists():
        raise FileNotFoundError(path)
    if content is None or _content_hash(content) != path.stem:
        return None
    try:
        with pq.ParquetFile(pa.BufferReader(content)) as file:
            checked = CHECKED.items() <= (file.schema_arrow.metadata or {}).items()
            rows = file.read(["key"] if checked else ["key", *META])
        return Keys(frozenset(rows["key"].to_pylist())) if checked else _sorted_out(rows)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):  # not by `_write_pack`
        return None


def _sorted_out(rows: pa.Table) -> Keys:
    """The keys of rows, recomputed."""
    found = {"today": set(), "other": set(), "false": set()}
    for run_key, *texts in zip(*(rows[name].to_pylist() for name in ("key", *META))):
        try:
            meta = {"key": run_key} | {name: json.loads(text) for name, text in zip(META, texts)}
            _check_meta(meta)
            found[_kind(meta)].add(run_key)
        except (ValueError, KeyError, TypeError, RecursionError):
            found["false"].add(run_key)
    today, other, false = map(frozenset, found.values())
    return Keys(today - false, other - false, false)


def _content_hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:24]


def _curves(schema: pa.Schema) -> list[str]:
    return [field.name for field in schema if pa.types.is_list(field.type)]


def _read_pack(path: pathlib.Path, columns=None, meta=META) -> pa.Table | None:
    """Rows of a pack with the wanted curves and parts of `meta`; None where it is gone, of another
    shape, or fails a page's checksum."""
    texts = ["key", "recipe", *meta]
    try:
        with pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False) as file:
            curves = [name for name in _curves(file.schema_arrow) if _wanted(name, columns)]
            rows = file.read([*texts, *curves])
        whole = not any(rows[name].null_count for name in [*texts, "step"])
        return rows if whole and all(rows[name].type == pa.string() for name in texts) else None
    except (OSError, ValueError, KeyError, pa.ArrowException):
        return None


def _with_keys(rows: pa.Table, keys: set[str]) -> pa.Table:
    mask = [k in keys for k in rows["key"].to_pylist()]
    return rows if all(mask) else rows.filter(pa.array(mask))


def _rows(records: list[Record]) -> pa.Table:
    """Records as rows of a pack; a curve that a run lacks is null."""
    columns = {"key": [m["key"] for m, _ in records], "recipe": [recipe_of(m["config"]) for m, _ in records],
               **{name: [json.dumps(m[name]) for m, _ in records] for name in META}}  # fmt: skip
    columns = {name: pa.array(values, pa.string()) for name, values in columns.items()}
    for name in dict.fromkeys(name for _, curves in records for name in curves):
        element = pa.field("element", pa.int32() if name == "step" else pa.float32())  # as parquet names it
        columns[name] = pa.array([curves.get(name) for _, curves in records], pa.list_(element))
    return pa.table(columns)


def _batches(records: Iterable[Record]) -> Iterator[pa.Table]:
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


def pack(folder: pathlib.Path, records: Iterable[Record]) -> list[pathlib.Path]:
    """Write `records`, metadata and curves as in `write`, straight into packs. Raises UserError on
    a wrong key."""
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
    return written


def _write_pack(folder: pathlib.Path, rows: pa.Table) -> list[pathlib.Path]:
    keys = _sorted_out(rows)
    if wrong := keys.false | keys.other:
        refuse("key", min(wrong), "does not follow from configuration and fingerprint of its run")
    curves = _not_empty(rows)
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
        return _write_pack(folder, rows[:half]) + _write_pack(folder, rows[half:])
    path = pathlib.Path(folder) / "packs" / f"{_content_hash(content)}.parquet"
    _make_way(path)
    write_atomically(path, content)
    return [path]


def _not_empty(rows: pa.Table) -> list[str]:
    """The curves that any of these rows has."""
    return [name for name in _curves(rows.schema) if rows[name].null_count < len(rows)]


def merge(sources: list[pathlib.Path], target: pathlib.Path, say: Callable[[str], None] = print):
    """Bring the runs of `sources`, stores or packs, into the store `target` as packs, and pack its own records.

    Runs that `target` has already are kept as they are. Its small packs are combined; sources are
    left alone, and so are records of another version. What a new pack replaces is deleted at the
    end, so a merge may be killed and started again at any time. Raises UserError where the disk is
    full or cannot be written.
    """
    target, sources = pathlib.Path(target), [pathlib.Path(source) for source in sources]
    for source in sources:
        _check_source(source, target)
    if not target.is_dir() and (target.exists() or not sources):
        refuse("store", str(target), "no such folder")
    try:
        count, damaged = _merge(sources, target)
        left = list(_packs(target))
        size = sum(path.stat().st_size for path in left) / 2**20
    except OSError as error:
        why = error.strerror or error
        refuse("store", str(target), f"cannot be written ({why}); no run is lost")
    _tell(damaged, say)
    say(
        f"{count['merged']} runs merged, {count['already there']} already there, "
        f"{count['packed']} of its own packed, {len(damaged)} damaged; "
        f"the store has {len(left)} packs, {size:.1f} MiB"
    )


def _check_source(source: pathlib.Path, target: pathlib.Path):
    """Raise UserError where `source` is no store and no pack, or belongs to `target`."""
    if not os.path.lexists(source):
        refuse("source", str(source), "no such file or folder")
    if not os.access(source, os.R_OK | (os.X_OK if source.is_dir() else 0)):
        refuse("source", str(source), "cannot be read")
    is_pack = source.is_file() and re.fullmatch(r"[0-9a-f]{24}\.parquet", source.name)
    if not is_pack and not _loose(source) and not any(source.glob("packs/*.parquet")):
        refuse("source", str(source), "is neither a store nor a pack")
    if (source.parent.parent if is_pack else source).resolve() == target.resolve():
        allowed = "is the store itself; without SOURCE its own records are packed"
        refuse("source", str(source), allowed)


def _merge(sources: list[pathlib.Path], target: pathlib.Path) -> tuple[dict, list[str]]:
    """The work of `merge`: how many runs came from where, and lines about what is damaged."""
    count, damaged = collections.Counter(), []
    own, loose = _packs(target, damaged.append), _loose(target)
    pure = {path: keys for path, keys in own.items() if not keys.false | keys.other}
    small = {path: keys for path, keys in pure.items() if _is_small(path)}
    have = set().union(*(keys.today for path, keys in own.items() if path not in small))

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
            elif _read_loose(folder, run_key, "other") is not None:
                damaged.append(f"store: record {path.name} is of another version; it is left alone")
            elif os.path.lexists(path):
                damaged.append(_damaged(path))

    def packed(packs: dict[pathlib.Path, Keys]):
        for path, keys in packs.items():
            if keys.other:
                rows = f"{len(keys.other)} rows of another version"
                damaged.append(f"store: pack {path.name} has {rows}; they stay")
            if (rows := _read_pack(path)) is not None:
                yield _with_keys(rows, keys.today)
            else:
                damaged.append(f"store: pack {path.name} could not be read")

    def tables():
        for rows in packed(small):
            yield fresh(rows, "kept")
        for rows in _batches(records(target, {k: p for k, p in loose.items() if k not in have})):
            yield fresh(rows, "packed")
        for source in sources:
            yield from (fresh(rows, "merged") for rows in _batches(records(source, _loose(source))))
            if source.is_dir():
                packs = _packs(source, damaged.append)
            else:
                packs = _intact([source], damaged.append)
            yield from (fresh(rows, "merged") for rows in packed(packs))

    written = _write_packs(target, tables())
    replaced = small.keys() - set(written)
    left = (keys for path, keys in _packs(target).items() if path not in replaced)
    safe = set().union(*(keys.today for keys in left))
    for path in replaced:
        if own[path].today <= safe:
            path.unlink(missing_ok=True)
    for path in (path for run_key, path in loose.items() if run_key in safe and path.is_file()):
        path.unlink(missing_ok=True)
    _remove_abandoned(target)
    return count, damaged


def _damaged(path: pathlib.Path) -> str:
    return f"store: record {path.name} is damaged; its run counts as missing"


def _remove_abandoned(folder: pathlib.Path):
    """Delete what killed writers left in a store: scratch of `write_atomically`, a day old."""
    ours = re.compile(r"\.[0-9a-f]{24}\.(npz|parquet)-[0-9a-z_]{8}")  # mkstemp named them once
    for path in (*folder.glob("??/.*"), *folder.glob("packs/.*")):
        with contextlib.suppress(FileNotFoundError):  # its writer lives, and has just finished
            if ours.fullmatch(path.name) and time.time() - path.lstat().st_mtime > DAY:
                path.unlink()


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
        default = flat(Run())
        frame = frame.assign(**{field: default[field] for field in LATER if field not in frame})
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
    runs: list[Run], fingerprints: dict, folder: pathlib.Path, layer: pathlib.Path | None = None, say=print
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


def _stored(wanted: set[str], folder: pathlib.Path, say=_silent) -> set[str]:
    """Those of the `wanted` keys that the store has; lines to `say` about what is damaged."""
    asked = {k: path for k, path in _loose(folder).items() if k in wanted}
    whole = {k for k in asked if _read_loose(folder, k) is not None}
    damaged = []
    packed = set().union(*(keys.today for keys in _packs(folder, damaged.append).values()))
    lost = (path for k, path in asked.items() if k not in whole | packed)
    damaged += [_damaged(path) for path in lost if os.path.lexists(path)]
    _tell(damaged, say)
    return whole | (packed & wanted)


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
        if (below := exported(layer)) is None:
            raise UserError("table: the exported table was lost or damaged since runs were planned")
        below_runs, below_curves = below
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


def _gather(wanted: set[str], folder: pathlib.Path, columns, meta=META[1:]) -> pa.Table:
    """Rows of the `wanted` keys, wherever in the store they are, in the layout of a pack without
    empty curves."""
    records = (_read_loose(folder, k) for k in _loose(folder) if k in wanted)
    records = ((m, {n: v for n, v in c.items() if _wanted(n, columns)}) for m, c in filter(None, records))
    parts = list(_batches(records))
    missing = wanted.difference(*(part["key"].to_pylist() for part in parts))
    for _ in range(2):  # packs that a merge replaces while they are read are found at the second look
        for path, keys in _packs(folder).items() if missing else ():
            here = keys.today & missing
            if here and (rows := _read_pack(path, columns, meta)) is not None:
                rows = _with_keys(rows, here)
                parts.append(rows.select(["key", "recipe", *meta, *_not_empty(rows)]))
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
    below_runs, below_curves = _below(target, folder or configuration.folder("store"), say)
    if below_runs is not None:
        kept = below_runs[~below_runs["recipe"].isin(runs["recipe"])]
        kept = kept[np.array([_reachable(row) for row in kept.to_dict("records")], bool)]
        runs = pd.concat([kept, runs], ignore_index=True)
        kept_curves = below_curves[below_curves["key"].isin(kept["key"])]
        empty = [name for name in kept_curves if kept_curves[name].isna().all()]
        of_others = [name for name in empty if name not in curves]
        curves = pd.concat([kept_curves.drop(columns=of_others), curves], ignore_index=True)
    runs, curves = runs.sort_values("key", ignore_index=True), curves.sort_values(["key", "step"], ignore_index=True)
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
