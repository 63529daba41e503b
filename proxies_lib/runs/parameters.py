"""The parameters that a run ends with, as a safetensors file that any library reads.

Sweeps store results and no parameters. `save` trains a run again, which gives the same bits on the
same kind of processor and versions, or goes on from its checkpoint where it has one.

    names       embed/embedding, blocks/0/attention/query/kernel, …, head/kernel; float32
    metadata    format, config, fingerprint, key        which run on which corpus
                final_loss                              of these parameters, as a C99 hex number
                sha256                                  of all tensors in the order of their names
                jax, device, commit, …                  where they were trained

Kernels are (input, output); those of queries, keys and values hold one head after another.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np

from proxies_lib import config, paths, settings
from proxies_lib.config import Run, UserError, refuse
from proxies_lib.data import Dataset
from proxies_lib.runs import datasets, store

if TYPE_CHECKING:
    from proxies_lib.layout import Layout

FORMAT = "proxies-lib parameters 1"


@dataclasses.dataclass(frozen=True)
class Parameters:
    """A file that was read: a run, its key, its final loss in nats per token, and `params` as
    `model.apply` takes them."""

    run: Run
    key: str
    fingerprint: str
    final_loss: float
    params: dict

    @property
    def h(self) -> dict[str, np.float32]:
        """The hyperparameters as `model.apply` and `train.evaluate` take them."""
        from proxies_lib import optim

        return {n: np.float32(v) for n, v in optim.inputs(self.run.hparams).items()}


# ------------------------------------------------------------------ saving


def save(run: Run, path, folder=None, say=print) -> pathlib.Path:
    """Train `run` and write the parameters behind its last step to a new file at `path`.

    A run that the store in `folder` (default: the usual one) lacks is stored as well. One that it
    has is compared: `say` is told where the bits differ, as on another kind of processor.

    Raises UserError where `path` is taken, the dataset is not here, or the training fails; then
    nothing is written.
    """
    path = _new_file(path)
    folder = pathlib.Path(folder or paths.folder("store"))
    _require_safetensors()
    if settings.platform_of_jax() != "cpu":
        _train_and_write(run, path, folder, say)
        return path
    # The bits of a sweep on a CPU are those of one thread, which JAX must find as it starts.
    job = {"run": config.flat(run), "path": str(path), "folder": str(folder)}
    done = subprocess.run(
        [sys.executable, "-m", "proxies_lib.runs.parameters"],
        input=json.dumps(job),
        env=os.environ | settings.ONE_THREAD_AT_START,
        cwd=paths.root(),
        capture_output=True,
        text=True,
    )
    for line in done.stdout.splitlines():
        say(line)
    if done.returncode:
        raise UserError(_how_it_failed(done.returncode, done.stderr))
    return path


def _how_it_failed(status: int, errors: str) -> str:
    """The line to say where the process that trained did not end well."""
    if status < 0:
        name = signal.Signals(-status).name
        return f"parameters: the training process was killed by {name}; nothing is written"
    last = (errors.strip().splitlines() or [f"status {status}"])[-1]
    return last if status == UserError.status else f"parameters: {last}"


def _new_file(path) -> pathlib.Path:
    """`path`, whole, where nothing stands yet. Raises UserError."""
    text = os.fspath(path)
    if not text or "\0" in text:
        refuse("path", text, "must be the name of a file")
    found = pathlib.Path(text).absolute()
    if os.path.lexists(found):
        refuse("path", text, "is there already; choose another name")
    nearest = next(folder for folder in found.parents if os.path.lexists(folder))
    if not nearest.is_dir():
        refuse("path", text, f"cannot be written: {nearest} is no folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        refuse("path", text, f"cannot be written: {nearest} does not allow it")
    return found


def _require_safetensors():
    import importlib.util

    if not importlib.util.find_spec("safetensors"):
        raise UserError("safetensors: is not installed; pip install -c constraints.txt safetensors")


def _work():
    """What the process of one thread does: read a job, do it, say a refusal on stderr."""
    settings.use_one_thread()
    job = json.load(sys.stdin)
    try:
        run = config.from_flat(job["run"])
        _train_and_write(run, pathlib.Path(job["path"]), pathlib.Path(job["folder"]), print)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(error.status)
    except OSError as error:
        from proxies_lib.runs.engines import what_failed

        print(f"path={job['path']!r}: {what_failed(error)}", file=sys.stderr)
        sys.exit(UserError.status)


def _train_and_write(run: Run, path: pathlib.Path, folder: pathlib.Path, say):
    """Train in this process, compare with the store or add to it, write the file."""
    from safetensors.numpy import save as to_bytes

    from proxies_lib.runs import executables
    from proxies_lib.runs.provenance import commit, provenance, record

    executables.use_cache(say)
    commit()  # of the code that is loaded, whatever is checked out while it trains
    dataset = datasets.open_dataset(run.data, run.model.vocab_size)
    run_key = config.key(run, dataset.fingerprint)
    result, tensors = _trained(run, run_key, dataset)
    known = store.read(folder, run_key, columns=())
    if known is None:
        record(folder, run, dataset, result)
    else:
        before = known[0]["result"]["final_loss"]
        if not _same(before, result["final_loss"]):
            say(
                f"parameters: {run_key} ends at {result['final_loss']!r} here and at {before!r} in "
                "the store; another kind of processor or version rounds otherwise"
            )
    about = {
        "format": FORMAT,
        "key": run_key,
        "config": json.dumps(config.flat(run)),
        "fingerprint": dataset.fingerprint,
        "final_loss": float(result["final_loss"]).hex(),
        "sha256": _checksum(tensors),
        **provenance(),
    }
    paths.write_atomically(path, to_bytes(tensors, about))


def _same(a: float, b: float) -> bool:
    return np.array_equal(a, b, equal_nan=True)


def _trained(run: Run, run_key: str, dataset: Dataset) -> tuple[dict, dict[str, np.ndarray]]:
    """The result of a training, and the parameters behind its last step by name.

    The layout is the one in which a sweep trains the run on these devices. A long training leaves
    checkpoints, and goes on from one that a sweep left of this run alone.
    """
    from proxies_lib import train
    from proxies_lib.runs import checkpoint

    layout, devices = _layout(run)
    trainer = train.Trainer(*run.program, layout, devices)
    group = checkpoint.Group([run], [run_key], layout) if layout.points == 1 else None
    kept: list[dict] = []
    finished = False
    try:
        # Without checkpoints SIGTERM ends the process at once.
        with checkpoint.until_terminated() if group else contextlib.nullcontext():
            (result,) = trainer.train(
                [run], dataset, group, keep=lambda state: kept.append(train.fetch(state["params"]))
            )
        finished = True
    finally:
        if group:
            group.close(finished)
    return result, _named(_of_one_lane(kept[0], layout))


def _layout(run: Run) -> tuple["Layout", list | None]:
    import jax

    from proxies_lib import layout

    if settings.platform_of_jax() == "cpu":
        return layout.layout_alone(run), None
    return layout.layout_for(*run.program, jax.devices()), jax.devices()


def _of_one_lane(params: dict, layout: "Layout") -> dict:
    """The parameters of the first lane, with a dictionary for each block."""
    import jax

    from proxies_lib import model

    if layout.lanes:
        params = jax.tree.map(lambda values: values[0], params)
    if not model.stacked(params):
        return params
    count = len(jax.tree.leaves(params["blocks"])[0])
    blocks = {i: jax.tree.map(lambda x, i=i: x[i], params["blocks"]) for i in range(count)}
    return params | {"blocks": blocks}


def _named(params: dict) -> dict[str, np.ndarray]:
    """Tensors by their names, for example blocks/0/attention/query/kernel."""
    import jax

    return {_name(path): np.ascontiguousarray(x) for path, x in jax.tree.leaves_with_path(params)}


def _name(path) -> str:
    import jax

    return jax.tree_util.keystr(path, simple=True, separator="/")


def _checksum(tensors: dict[str, np.ndarray]) -> str:
    """Of all tensors: safetensors itself has none, and a flipped bit is a number."""
    checksum = hashlib.sha256()
    for name in sorted(tensors):
        checksum.update(tensors[name].tobytes())
    return checksum.hexdigest()


# ------------------------------------------------------------------ loading


def load(path) -> Parameters:
    """The run and its parameters in a file that `save` wrote.

    Of a run with an intervention this runs its text: load only files whose text you have read.
    Raises UserError where the file is damaged, or is not one of `save`'s.
    """
    _require_safetensors()
    about, tensors = _read(os.fspath(path))
    whose = functools.partial(refuse, "path", os.fspath(path))
    if about.get("format") != FORMAT:
        whose(f"holds no parameters of this library ({FORMAT})")
    try:
        run = config.from_flat(json.loads(about["config"]))
        fingerprint, final_loss = about["fingerprint"], float.fromhex(about["final_loss"])
        checksum, run_key = about["sha256"], about["key"]
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, RecursionError):
        whose("its metadata is damaged")
    if config.key(run, fingerprint) != run_key:
        whose("its key does not follow from its configuration")
    if _checksum(tensors) != checksum:
        whose("its tensors are damaged")
    return Parameters(run, run_key, fingerprint, final_loss, _as_tree(run, tensors, whose))


def _read(path: str) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Metadata and tensors of a safetensors file. Raises UserError."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            return file.metadata() or {}, tensors
    except FileNotFoundError:
        refuse("path", path, "no such file")
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        refuse("path", path, f"cannot be read as safetensors ({settings.first_line(error)})")


def _as_tree(run: Run, tensors: dict[str, np.ndarray], whose) -> dict:
    """Tensors in the shape that the program of `run` has them, else a refusal by `whose`."""
    import jax

    from proxies_lib import model

    h = Parameters(run, "", "", 0.0, {}).h
    init = functools.partial(model.init, run.model, h=h)
    wanted = jax.eval_shape(init, jax.random.key(0))
    shapes = {_name(path): leaf.shape for path, leaf in jax.tree.leaves_with_path(wanted)}
    found = {name: tensor.shape for name, tensor in tensors.items()}
    if found != shapes or any(x.dtype != np.float32 for x in tensors.values()):
        whose("its tensors are not those of its model")
    return jax.tree.map_with_path(lambda path, _: tensors[_name(path)], wanted)


def evaluate(loaded: Parameters, dataset: Dataset | None = None) -> float:
    """The validation loss in nats per token: on the device that trained them, the run's bits.

    `dataset` is the run's own, which is opened if none is given. Raises UserError where its
    fingerprint is another one.
    """
    import jax

    from proxies_lib import train

    run = loaded.run
    dataset = dataset or datasets.open_dataset(run.data, run.model.vocab_size)
    if dataset.fingerprint != loaded.fingerprint:
        allowed = f"must have the fingerprint {loaded.fingerprint}, has {dataset.fingerprint}"
        refuse("data", run.data, allowed)
    settings.pin_jax()
    tokens = train.validation_tokens(*run.program, dataset)
    evaluated = jax.jit(functools.partial(train.evaluate, run.model))
    return float(evaluated(loaded.h, loaded.params, tokens))


if __name__ == "__main__":
    _work()
