"""Finished runs as content-addressed, checksummed files, and the tables made of them.

A record is one `<key>.npz`: `meta`, a JSON text with configuration, results and provenance, and the curves as one
float32 matrix of `points` × `columns`. Zip's CRC-32 guards each entry; a rename makes writing atomic. An exported table
(parquet) is a read-only layer below.
"""

import dataclasses
import functools
import io
import json
import os
import pathlib
import tempfile
import zipfile
import zlib

import numpy as np
import pandas as pd

from proxies_lib.config import FIELDS, LATER, Run, UserError, flat, from_flat, key, recipe

RESULTS = ("final_loss", "init_loss", "diverged", "diverged_step", "train_seconds")


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


def read(folder: pathlib.Path, run_key: str) -> tuple[dict, dict[str, np.ndarray]] | None:
    """Metadata and curves of a record; None where it is missing or damaged (then it is trained again)."""
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
    default = flat(Run())
    return runs.assign(**{name: default[name] for name in LATER if name not in runs}), curves


def exported(path: pathlib.Path | None) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    """The exported runs and curves in `path`, or None."""
    if path is None or not (path / "runs.parquet").exists() or not (path / "curves.parquet").exists():
        return None
    return _exported(str(path), (path / "runs.parquet").stat().st_mtime)


def locate(runs: list[Run], fingerprints: dict, folder: pathlib.Path, layer: pathlib.Path | None = None) -> list[Found]:
    """Where each run is stored. `fingerprints` maps (data, vocab_size) to a fingerprint, None where unknown.

    In the exported `layer` a run matches by key, else by recipe: the same configuration on another corpus.
    """
    below = exported(layer)
    by_key, by_recipe = set(), {}
    if below is not None:
        by_key, by_recipe = set(below[0]["key"]), dict(zip(below[0]["recipe"], below[0]["key"], strict=True))
    found = []
    for run in runs:
        fingerprint = fingerprints[run.data, run.model.vocab_size]
        k = key(run, fingerprint) if fingerprint else None
        if k and read(folder, k) is not None:
            found.append(Found(run, k, "store"))
        elif k in by_key:
            found.append(Found(run, k, "table", k))
        elif (r := by_recipe.get(recipe(run))) is not None:
            found.append(Found(run, k, "table, other corpus", r))
        else:
            found.append(Found(run, k, ""))
    return found


def row(meta: dict) -> dict:
    """One run as a flat table row: configuration, N, results, provenance."""
    run = from_flat(meta["config"])
    return (
        {"key": meta["key"], "recipe": recipe(run), **flat(run), "n_params": run.model.n_params}
        | {name: meta["result"][name] for name in RESULTS}
        | meta["provenance"]
    )


def table(found: list[Found], folder: pathlib.Path, layer: pathlib.Path | None = None):
    """Runs (a row each) and curves (a row per logged step, keyed by `key`) of located runs, in their order.

    Raises UserError, with the count, where a run is stored nowhere.
    """
    holes = sum(not f.layer for f in found)
    if holes:
        raise UserError(f"table: {holes} of {len(found)} runs are not stored; train them first (train=True)")
    rows, curves = [], []
    stored = [read(folder, f.key) for f in found if f.layer == "store"]
    wanted = [f.table_key for f in found if f.layer != "store"]
    if wanted:
        below_runs, below_curves = exported(layer)
        rows.append(below_runs[below_runs["key"].isin(wanted)])
        curves.append(below_curves[below_curves["key"].isin(wanted)])
    if stored:
        rows.append(pd.DataFrame([row(meta) for meta, _ in stored]))
        lengths = [len(values["step"]) for _, values in stored]
        columns = {
            name: np.concatenate([v.get(name, np.full(n, np.nan, np.float32)) for n, (_, v) in zip(lengths, stored)])
            for name in dict.fromkeys(name for _, values in stored for name in values)
        }
        curves.append(pd.DataFrame(columns | {"key": np.repeat([meta["key"] for meta, _ in stored], lengths)}))
    order = {f.key if f.layer == "store" else f.table_key: i for i, f in enumerate(found)}
    runs = pd.concat(rows, ignore_index=True)
    runs = runs.sort_values("key", key=lambda k: k.map(order), ignore_index=True)
    return runs, pd.concat(curves, ignore_index=True)


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
