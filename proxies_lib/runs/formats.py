"""Tables of runs and curves in the formats of other tools: csv, parquet, TensorBoard, W&B.

`runs` has a row per method and run, `curves` a row per key and logged step, as `report.collect`
gives them. Each writer fills an empty folder:

    csv, parquet   runs.csv and curves.csv; runs.parquet and curves.parquet
    tensorboard    <method>/<run>/events.out.tfevents…, with the run's fields for its HParams page
    wandb          wandb/offline-run-…, for `wandb sync`

A store knows how long a run took, and not when. So an event's time is the seconds of training that
came before it, counted from 0: TensorBoard's *relative* axis shows them.
"""

import contextlib
import os
import pathlib
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd

from proxies_lib import interventions, paths
from proxies_lib.config import FIELDS, UserError, digest, refuse
from proxies_lib.runs.records import RESULTS

EVENTS = "events.out.tfevents.0.proxies"  # TensorBoard looks for `tfevents` in a name

# ------------------------------------------------------------------ whole or not at all


def write(format: str, runs: pd.DataFrame, curves: pd.DataFrame, target) -> pathlib.Path:
    """Write `runs` and `curves` in one of FORMATS into the new or empty folder `target`.

    The folder appears when it is complete. Raises UserError where it is taken or cannot be
    written, and where the library of the format is not installed.
    """
    if format not in FORMATS:
        refuse("format", format, f"must be one of {', '.join(FORMATS)}")
    return into_new_folder(target, lambda folder: FORMATS[format](runs, curves, folder))


def into_new_folder(target, fill: Callable[[pathlib.Path], object]) -> pathlib.Path:
    """The folder `target` with what `fill` writes into a folder beside it, which takes its name.

    Raises UserError where `target` is there and not empty, or cannot be written.
    """
    target = pathlib.Path(os.path.abspath(target))
    try:
        if target.is_symlink() or target.exists():
            if not target.is_dir() or target.is_symlink() or any(target.iterdir()):
                refuse("into", str(target), "is there already; choose a new or empty folder")
        scratch = target.with_name(f".{target.name}-{secrets.token_hex(4)}")
        scratch.mkdir(parents=True)
    except OSError as error:
        refuse("into", str(target), f"cannot be written ({error.strerror})")
    try:
        fill(scratch)
        os.replace(scratch, target)
    except OSError as error:
        refuse("into", str(target), f"cannot be written ({error.strerror or error})")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _need(module: str):
    """`module`, imported. Raises UserError where it is not installed."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError:
        name = module.partition(".")[0]
        how = "pip install -c constraints.txt -e '.[share]'"
        raise UserError(f"{name}: is not installed; {how}") from None


# ------------------------------------------------------------------ tables


def _csv(runs: pd.DataFrame, curves: pd.DataFrame, folder: pathlib.Path):
    for name, frame in (("runs", runs), ("curves", curves)):
        frame.to_csv(folder / f"{name}.csv", index=False)


def _parquet(runs: pd.DataFrame, curves: pd.DataFrame, folder: pathlib.Path):
    for name, frame in (("runs", runs), ("curves", curves)):
        frame.to_parquet(folder / f"{name}.parquet", index=False, compression="zstd")


# ------------------------------------------------------------------ run by run


def _each(runs: pd.DataFrame, curves: pd.DataFrame) -> Iterator[tuple[dict, dict[str, np.ndarray]]]:
    """Each row of `runs`, and the curves of its run by name, those that it has."""
    by_key = dict(list(curves.groupby("key", sort=False)))
    for row in runs.to_dict("records"):
        mine = by_key[row["key"]].sort_values("step").drop(columns="key")
        has = [name for name in mine if not mine[name].isna().all() or name == "loss"]
        yield row, {name: mine[name].to_numpy() for name in has}


def name_of(row: dict) -> str:
    """A short name that tells the runs of a method apart, and sorts by size: N 98,304, LR 0.1."""
    return f"N{row['n_params']}_lr{row['lr']:g}_seed{row['seed']}_{row['key'][:8]}"


def settings_of(row: dict) -> dict[str, object]:
    """What makes a run what it is, as other tools take it: numbers, texts, truth values."""
    values = {"method": row["method"], "n_params": int(row["n_params"])}
    for name in FIELDS:
        value = row[name]
        values[name] = value.item() if isinstance(value, np.generic) else value
    values["intervention"] = interventions.titles(str(row["intervention"]))
    return values


def _results_of(row: dict) -> dict[str, float]:
    return {name: float(row[name]) for name in RESULTS}


# ------------------------------------------------------------------ TensorBoard


def _tensorboard(runs: pd.DataFrame, curves: pd.DataFrame, folder: pathlib.Path):
    _need("tensorboard")
    for row, mine in _each(runs, curves):
        place = folder / _slug(row["method"]) / name_of(row)
        place.mkdir(parents=True)
        _write_events(place / EVENTS, row, mine)


def _slug(method: str) -> str:
    """A method as the name of a folder."""
    words = re.sub(r"[^\w.+-]+", "-", method).strip("-.")
    return words if words == method.replace(" ", "-") else f"{words}-{digest(method)[:4]}"


def _write_events(path: pathlib.Path, row: dict, curves: dict[str, np.ndarray]):
    """One event per logged step with all of its curves; the run's fields before, results behind."""
    from tensorboard.compat.proto import event_pb2, summary_pb2
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2, summary_v2
    from tensorboard.summary.writer.record_writer import RecordWriter

    def scalars(values: dict[str, float], step: int, seconds: float):
        summary = summary_pb2.Summary(
            value=[summary_pb2.Summary.Value(tag=n, simple_value=v) for n, v in values.items()]
        )
        return event_pb2.Event(wall_time=seconds, step=step, summary=summary)

    ended = plugin_data_pb2.HParamsPluginData(
        version=metadata.PLUGIN_DATA_VERSION,
        session_end_info=plugin_data_pb2.SessionEndInfo(
            status=api_pb2.STATUS_SUCCESS, end_time_secs=row["train_seconds"]
        ),
    )
    behind = summary_pb2.Summary(
        value=[
            summary_pb2.Summary.Value(
                tag=metadata.SESSION_END_INFO_TAG,
                metadata=metadata.create_summary_metadata(ended),
                tensor=metadata.NULL_TENSOR,
            )
        ]
    )
    before = summary_v2.hparams_pb(settings_of(row), trial_id=row["key"], start_time_secs=0)
    steps = curves.pop("step")
    per_step = row["train_seconds"] / row["steps"]
    with open(path, "wb") as file:
        writer = RecordWriter(file)
        events = [event_pb2.Event(wall_time=0.0, file_version="brain.Event:2")]
        events.append(event_pb2.Event(wall_time=0.0, summary=before))
        for i, step in enumerate(steps):
            values = {name: float(curve[i]) for name, curve in curves.items()}
            events.append(scalars(values, int(step), per_step * (step + 1)))
        last = int(steps[-1])
        events.append(scalars(_results_of(row), last, row["train_seconds"]))
        events.append(event_pb2.Event(wall_time=row["train_seconds"], summary=behind))
        for event in events:
            writer.write(event.SerializeToString())
        writer.flush()


# ------------------------------------------------------------------ Weights & Biases


def _wandb(runs: pd.DataFrame, curves: pd.DataFrame, folder: pathlib.Path):
    """A run of W&B per row, in offline mode: nothing is sent, and no account is asked for.

    Its own settings, caches and machine descriptions stay out: they would name the user's folders.
    """
    with tempfile.TemporaryDirectory() as own, _wandb_at(own):
        wandb = _need("wandb")
        quiet = wandb.Settings(
            silent=True,
            console="off",
            disable_git=True,
            disable_code=True,
            x_disable_meta=True,
            x_disable_machine_info=True,
            x_disable_stats=True,
            x_save_requirements=False,
        )
        for row, mine in _each(runs, curves):
            steps = mine.pop("step")
            run = wandb.init(
                mode="offline",
                dir=str(folder),
                project="proxies",
                group=row["method"],
                name=name_of(row),
                id=_slug(f"{row['key']}-{row['method']}")[:64],
                config=settings_of(row),
                settings=quiet,
                reinit="create_new",
            )
            for i, step in enumerate(steps):
                run.log({name: float(curve[i]) for name, curve in mine.items()}, step=int(step))
            run.summary.update(_results_of(row))
            run.finish()
        wandb.teardown()
    _remove_logs(folder / "wandb")


def _remove_logs(folder: pathlib.Path):
    """Leave what `wandb sync` reads. Logs of W&B name the user's folders, some by links."""
    for path in list(folder.iterdir()):
        if not path.name.startswith("offline-run-"):
            path.unlink()
            continue
        for name in ("logs", "tmp"):
            shutil.rmtree(path / name, ignore_errors=True)


def _wandb_at(folder: str):
    """Within, W&B's own files go to `folder`."""
    names = ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR")
    stack = contextlib.ExitStack()
    for name in names:
        stack.enter_context(paths.environment(name, folder))
    stack.enter_context(paths.environment("WANDB_ERROR_REPORTING", "false"))
    return stack


FORMATS: dict[str, Callable[[pd.DataFrame, pd.DataFrame, pathlib.Path], object]] = {
    "csv": _csv,
    "parquet": _parquet,
    "tensorboard": _tensorboard,
    "wandb": _wandb,
}
