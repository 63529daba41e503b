"""Loose records: a finished run as one checksummed file, `<key>.npz`.

A record holds `meta`, a JSON text, and the curves as one float32 matrix of `points` × `columns`:

    meta = {"key": …, "config": {"lr": …}, "result": {"final_loss": …}, "provenance": {"jax": …}}

Zip's CRC-32 guards each entry; a rename makes writing atomic. A record is believed only if it has
the shape that `write` gives it and its key follows from its own configuration and fingerprint.
Whatever else stands in its place, be it cut, flipped, a folder or a pipe, makes its run count as
missing.
"""

import contextlib
import functools
import io
import json
import math
import os
import pathlib
import platform
import re
import secrets
import time
import zipfile

import numpy as np

from proxies_lib.config import FIELDS, SCHEMA, YOUNGER, digest, key_of
from proxies_lib.paths import _sync_folder, write_atomically

META = ("config", "result", "provenance")  # the parts of `meta` beside the key

RESULTS = ("final_loss", "init_loss", "diverged", "diverged_step", "train_seconds")

# What a stored key is worth.
TODAY = "today"  # it follows from configuration and fingerprint
OTHER = "other"  # that cannot be told: of another version, so no run of today asks for it
FALSE = "false"  # it does not follow

ENTRY_BYTES = 2**28  # of an entry of a record, unpacked, at most: ten times the largest curves

FIRST_FIELDS = FIELDS.keys() - YOUNGER.keys()  # that every record has

Record = tuple[dict, dict[str, np.ndarray]]  # metadata and curves

DAY = 86400.0

# Names of scratch: of `_write_file`, with its writer; of `write_atomically` on the way there, with
# two dots and two random parts; of older versions, without a writer.
SCRATCH = re.compile(
    r"\.{1,2}[0-9a-f]{24}\.(?:npz|parquet)"
    r"(?:-(?P<host>[0-9a-f]{12})-(?P<process>[0-9]{1,9}))?(?:-[0-9a-z_]{8}){1,2}"
)


# ------------------------------------------------------------------ files


def write(folder: pathlib.Path, meta: dict, curves: dict[str, np.ndarray]) -> pathlib.Path:
    """Write one record atomically; an equal key is replaced."""
    path = record_path(folder, meta["key"])
    # Steps become float32 as well, which holds whole numbers up to 2²⁴.
    columns = [np.asarray(values, np.float32) for values in curves.values()]
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        meta=np.array(json.dumps(meta)),
        columns=np.array(list(curves)),
        points=np.stack(columns, axis=1),
    )
    _write_file(path, buffer.getvalue())
    return path


def read_loose(folder: pathlib.Path, run_key: str, worth: str = TODAY) -> Record | None:
    """A record that is a file of its own, with a key of this `worth`; else None."""
    content = content_of(record_path(folder, run_key))
    record = None if content is None else _parse(content)
    if record is None:
        return None
    meta, _ = record
    return record if meta["key"] == run_key and worth_of_key(meta) == worth else None


def record_path(folder: pathlib.Path, run_key: str) -> pathlib.Path:
    return pathlib.Path(folder) / run_key[:2] / f"{run_key}.npz"


def record_paths(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Path of each record that is a file of its own, by key."""
    paths = sorted(pathlib.Path(folder).glob("??/*.npz"))
    return {path.stem: path for path in paths if not path.name.startswith(".")}


def content_of(path: pathlib.Path) -> bytes | None:
    """The content of a file, None where there is none. A pipe is not read: that would wait."""
    try:
        return path.read_bytes() if path.is_file() else None
    except OSError:
        return None


def make_way(path: pathlib.Path):
    """Rename a folder that stands where a file of the store goes: no file can replace it."""
    if path.is_dir() and not path.is_symlink():
        path.rename(path.with_name(f"{path.name}.aside-{secrets.token_hex(4)}"))


def is_wanted(curve: str, columns) -> bool:
    """Whether a curve is among `columns`, names or prefixes, None for all; `step` always is."""
    return columns is None or curve == "step" or curve.startswith(tuple(columns))


def silent(line: str):
    """Says nothing: what `say` is where nobody listens."""


# ------------------------------------------------------------------ scratch


def _write_file(path: pathlib.Path, content: bytes):
    """Write a file of the store, whole or not at all, and on the disk on return.

    Its scratch is named after host and process, so that `_is_abandoned` can tell whether the
    writer lives.
    """
    make_way(path)
    writer = f"{_host()}-{os.getpid()}"
    scratch = path.with_name(f".{path.name}-{writer}-{secrets.token_hex(4)}")
    try:
        write_atomically(scratch, content)
        os.replace(scratch, path)
    except BaseException:
        with contextlib.suppress(OSError):
            scratch.unlink()
        raise
    # A merge deletes what a pack replaces: the pack must have its name before, even in a crash.
    _sync_folder(path.parent)


def _is_abandoned(path: pathlib.Path) -> bool:
    """Whether a file is scratch that nobody will finish: of a writer of this host that is gone, or
    of any, and a day old.

    Raises FileNotFoundError where the file is gone.
    """
    name = SCRATCH.fullmatch(path.name)
    if name is None:
        return False
    if name["host"] == _host() and not _lives(int(name["process"])):
        return True
    return time.time() - path.lstat().st_mtime > DAY


@functools.cache
def _host() -> str:
    """What processes share that see each other under the same numbers.

    The name alone would not do: names repeat, and containers of a host number their processes on
    their own. Where the system does not tell, no two processes share it.
    """
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text()
        namespace = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return secrets.token_hex(6)
    return digest({"node": platform.node(), "boot": boot, "namespace": namespace})[:12]


def _lives(process: int) -> bool:
    """Whether there is a process of this number. Where a new one has taken it the file waits."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's
        pass
    return True


# ------------------------------------------------------------------ what is believed


def worth_of_key(meta: dict) -> str:
    """TODAY, OTHER or FALSE: what the key of well-shaped metadata is worth."""
    setting = meta["config"]
    fingerprint = meta["provenance"]["fingerprint"]
    # Older schemas hashed fewer fields; their keys stay valid.
    for schema in range(SCHEMA, 0, -1):
        if key_of(setting, fingerprint, schema) == meta["key"]:
            return TODAY
    has_fields_of_today = FIRST_FIELDS <= setting.keys() <= FIELDS.keys()
    return FALSE if has_fields_of_today else OTHER


def check_meta(meta):
    """Raise ValueError, or what a wrong type raises, unless `meta` is shaped as of a record.

    Names that would collide are refused as well: a table has a column for each field, result and
    provenance, and `key_of` puts "schema" and "fingerprint" beside the configuration.
    """
    _demand(isinstance(meta, dict) and isinstance(meta["key"], str))
    setting, result, provenance = (meta[name] for name in META)
    _demand(all(isinstance(part, dict) for part in (setting, result, provenance)))

    _demand(all(map(_is_scalar, setting.values())))
    _demand(not setting.keys() & {"schema", "fingerprint"})

    _demand(isinstance(result["diverged"], bool) and _is_whole(result["diverged_step"]))
    _demand(all(_is_number(result[name]) for name in ("final_loss", "init_loss", "train_seconds")))
    # Losses may be nan or infinite, which is a finding; times may not.
    _demand(math.isfinite(result["train_seconds"]) and result["train_seconds"] >= 0)

    _demand(isinstance(provenance["fingerprint"], str))
    _demand(all(value is None or _is_scalar(value) for value in provenance.values()))
    _demand(not provenance.keys() & {"key", "recipe", "n_params", *FIELDS, *RESULTS})


def _parse(content: bytes) -> Record | None:
    """The record that these bytes are, or None."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            text = _entry(file, "meta")
            names = _entry(file, "columns").tolist()
            points = _entry(file, "points")
        meta = json.loads(str(text))
        curves = dict(zip(names, points.T, strict=True))
        check_meta(meta)
        _check_curves(curves, len(names), points)
    except Exception:  # zipfile, NumPy and json raise almost anything on damaged bytes
        return None
    return meta, curves | {"step": curves["step"].astype(np.int32)}


def _entry(file: zipfile.ZipFile, name: str) -> np.ndarray:
    """An array of an archive, read whole and so with its checksum."""
    _demand(file.getinfo(f"{name}.npy").file_size <= ENTRY_BYTES)
    content = io.BytesIO(file.read(f"{name}.npy"))
    return np.lib.format.read_array(content, allow_pickle=False)


def _check_curves(curves: dict, count: int, points: np.ndarray):
    """Raise ValueError unless these are curves as `write` gets them; `count` names were given."""
    _demand(points.dtype == np.float32 and len(curves) == count)
    _demand(all(isinstance(name, str) for name in curves))
    _demand(not curves.keys() & {"key", "recipe", *META})  # columns of a pack
    " ".join(curves).encode()  # a lone surrogate would go into no table
    step = curves["step"]
    _demand(bool(np.all((step >= 0) & (step < 2**31))))


def _demand(condition: bool):
    if not condition:
        raise ValueError


def _is_whole(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def _is_number(value) -> bool:
    return isinstance(value, float) or _is_whole(value)


def _is_scalar(value) -> bool:
    return isinstance(value, (str, bool)) or _is_number(value)
