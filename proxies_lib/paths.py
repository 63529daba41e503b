"""The project's folders, files written whole or not at all, environment variables for a while."""

import contextlib
import errno
import os
import pathlib
import secrets


def root() -> pathlib.Path:
    """The project's folder: the checkout that this library is part of; else the one that one stands in.

    The notebooks that are executed are thus those of the code that executes them.
    """
    installed = pathlib.Path(__file__).resolve().parents[1]
    return installed if _is_project(installed) else project_here() or installed


def project_here() -> pathlib.Path | None:
    """The nearest project folder at or above the working directory."""
    here = pathlib.Path.cwd()
    return next(filter(_is_project, (here, *here.parents)), None)


def _is_project(path: pathlib.Path) -> bool:
    return (path / "notebooks").is_dir() and (path / "proxies_lib").is_dir()


def folder(kind: str) -> pathlib.Path:
    """Where things live: "cache", "store", "figures", "papermill_runs"; PROXIES_<KIND> overrides each."""
    default = {"cache": ".cache", "store": "papermill_runs/store"}.get(kind, kind)
    return pathlib.Path(os.environ.get(f"PROXIES_{kind.upper()}") or root() / default).resolve()


@contextlib.contextmanager
def environment(name: str, value: str):
    """Within, the environment variable `name` is `value`; afterwards what it was before."""
    before, os.environ[name] = os.environ.get(name), value
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


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
