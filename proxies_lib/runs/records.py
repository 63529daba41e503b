"""Loose records: a finished run as one checksummed file, `<key>.npz`.

A record holds `meta`, a JSON text, and the curves as one float32 matrix of `points` × `columns`:

    meta = {"key": …, "config": {"lr": …}, "result": {"final_loss": …}, "provenance": {"jax": …}}

Zip's CRC-32 guards each entry; a rename makes writing atomic. A record is believed only if it has
the shape that `write` gives it and its key follows from its own configuration and fingerprint.
Whatever else stands in its place, be it cut, flipped, a folder or a pipe, makes its run count as
missing.
"""

import io
import json
import math
import pathlib
import secrets
import zipfile

import numpy as np

from proxies_lib.config import FIELDS, SCHEMA, YOUNGER, key_of
from proxies_lib.paths import write_atomically

META = ("config", "result", "provenance")  # the parts of `meta` beside the key

RESULTS = ("final_loss", "init_loss", "diverged", "diverged_step", "train_seconds")

# What a stored key is worth.
TODAY = "today"  # it follows from configuration and fingerprint
OTHER = "other"  # that cannot be told: of another version, so no run of today asks for it
FALSE = "false"  # it does not follow

# Of an entry of a record, unpacked, at most: a thousand curves of `config.MAX_LOGGED_POINTS`.
ENTRY_BYTES = 2**32

FIRST_FIELDS = FIELDS.keys() - YOUNGER.keys()  # that every record has

Record = tuple[dict, dict[str, np.ndarray]]  # metadata and curves


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
    write_file(path, buffer.getvalue())
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


def write_file(path: pathlib.Path, content: bytes):
    """`write_atomically`, also where a folder stands in the file's place: that is renamed."""
    if path.is_dir() and not path.is_symlink():
        path.rename(path.with_name(f"{path.name}.aside-{secrets.token_hex(4)}"))
    write_atomically(path, content)


def is_wanted(curve: str, columns) -> bool:
    """Whether a curve is among `columns`, names or prefixes, None for all; `step` always is."""
    return columns is None or curve == "step" or curve.startswith(tuple(columns))


def silent(line: str):
    """Says nothing: what `say` is where nobody listens."""


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
