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
import functools
import hashlib
import io
import json
import math
import os
import pathlib
import re
import secrets
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from proxies_lib.config import FIELDS, SCHEMA, YOUNGER, key_of, recipe_of, refuse
from proxies_lib.paths import write_atomically

RESULTS = ("final_loss", "init_loss", "diverged", "diverged_step", "train_seconds")

META = ("config", "result", "provenance")

PACK_BYTES = 15 * 2**20  # of a pack at most, where it holds more than one run

ENTRY_BYTES = 2**28  # of an entry of a record, unpacked, at most: ten times the largest curves

FIRST_FIELDS = FIELDS.keys() - YOUNGER.keys()  # that every record has

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
    columns = {
        "key": [m["key"] for m, _ in records],
        "recipe": [recipe_of(m["config"]) for m, _ in records],
        **{name: [json.dumps(m[name]) for m, _ in records] for name in META},
    }
    columns = {name: pa.array(values, pa.string()) for name, values in columns.items()}
    for name in dict.fromkeys(name for _, curves in records for name in curves):
        element = pa.field(
            "element", pa.int32() if name == "step" else pa.float32()
        )  # as parquet names it
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
    return (
        sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
        < PACK_BYTES / 2
    )


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
