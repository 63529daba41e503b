"""The project's folders, files written whole or not at all, environment variables for a while."""

import contextlib
import errno
import functools
import hashlib
import os
import pathlib
import platform
import re
import secrets
import time

DAY = 86400.0


def root() -> pathlib.Path:
    """The project's folder: the checkout that this library is part of, else `project_here`.

    The notebooks that are executed are thus those of the code that executes them.
    """
    installed = pathlib.Path(__file__).resolve().parents[1]
    if _is_project(installed):
        return installed
    return project_here() or installed


def project_here() -> pathlib.Path | None:
    """The nearest project folder at or above the working directory."""
    here = pathlib.Path.cwd()
    return next(filter(_is_project, (here, *here.parents)), None)


def _is_project(path: pathlib.Path) -> bool:
    return (path / "notebooks").is_dir() and (path / "proxies_lib").is_dir()


def folder(kind: str) -> pathlib.Path:
    """Where things of a kind live: "cache", "store", "figures", "papermill_runs".

    The environment variable PROXIES_<KIND> overrides the place in the project's folder.
    """
    place = {"cache": ".cache", "store": "papermill_runs/store"}.get(kind, kind)
    chosen = os.environ.get(f"PROXIES_{kind.upper()}")
    return pathlib.Path(chosen or root() / place).resolve()


@contextlib.contextmanager
def environment(name: str, value: str):
    """Within, the environment variable `name` is `value`; afterwards what it was before."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def write_atomically(path: pathlib.Path, content: bytes):
    """Write a file so that readers see the old one or the new one, never a part, even in a crash.

    Its mode is the user's umask's. Raises OSError where the disk is full or read-only, and then
    leaves nothing behind. The content goes to a scratch file beside it, and to the disk, before
    that takes its name. Scratch is hidden and named after its writer (`is_abandoned`).
    """
    path = pathlib.Path(path)
    if not path.parent.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
        _sync_folder(path.parent.parent)
    writer = f"{_host()}-{os.getpid()}"
    scratch = path.with_name(f".{path.name}-{writer}-{secrets.token_hex(4)}")
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
    # A caller may now delete what this file replaces: it keeps its name, even in a crash.
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
        # These say that the file system has none, or no permission to open one.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EACCES):
            raise


# ------------------------------------------------------------------ scratch of writers that died


# What follows the name of the file. Scratch of older versions names no writer, or ends with two
# random parts.
_WRITER = "(?:-(?P<host>[0-9a-f]{12})-(?P<process>[0-9]{1,9}))?(?:-[0-9a-z_]{8}){1,2}"


def is_abandoned(path: pathlib.Path, files: str) -> bool:
    """Whether `path` is scratch that nobody will finish, for a file named like the pattern `files`.

    Its writer was of this host and is gone, or it is a day old. Raises FileNotFoundError where the
    file is gone.
    """
    name = re.fullmatch(rf"\.{{1,2}}(?:{files}){_WRITER}", path.name)
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
    return hashlib.sha256(f"{platform.node()} {boot} {namespace}".encode()).hexdigest()[:12]


def _lives(process: int) -> bool:
    """Whether there is a process of this number. Where a new one has taken it the file waits."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's
        pass
    return True
