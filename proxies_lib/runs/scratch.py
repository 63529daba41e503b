"""Putting a prepared dataset in its place: whole or not at all, and over nothing but a dataset.

A preparation writes into a scratch folder beside its target and renames that at the end. A killed
one leaves its scratch behind, which the next preparation of the same name removes:

    data/books/                 the dataset `books`
    data/.books-01234567/new    what a preparation of it writes
    data/.books-01234567/old    what it has taken away from `books`, between two renames

Nothing else is ever deleted.
"""

import contextlib
import fcntl
import os
import pathlib
import re
import secrets
import signal
import sys
import threading

from proxies_lib.config import UserError, refuse
from proxies_lib.prepared import FILES, PreparedFolder


def refuse_foreign(target: pathlib.Path, own: bool):
    """Refuse to replace what stands at `target`, unless it is a dataset and nothing else.

    It must have a manifest, and that must be one or stand beside tokens: a damaged dataset can be
    prepared again. Of the project's `own`, the standard library's, the manifest may be lost.
    """
    advice = "move it away or choose another --name"
    try:
        if not os.path.lexists(target):
            return
        if target.is_symlink() or not target.is_dir():
            refuse("name", target.name, f"stands for a file or link in {target.parent}; {advice}")
        entries = list(os.scandir(target))
        foreign = sorted(e.name for e in entries if not _is_of_a_dataset(e))
    except OSError as error:
        refuse("name", target.name, f"its folder cannot be read ({error.strerror})")
    if foreign:
        refuse("name", target.name, f"its folder also holds {foreign[0]!r}; {advice}")
    if not own and not _has_manifest(target, beside_tokens=len(entries) > 1):
        refuse("name", target.name, f"its folder holds no dataset; {advice}")


def _is_of_a_dataset(entry: os.DirEntry) -> bool:
    return entry.name in FILES and not entry.is_dir(follow_symlinks=False)


def _has_manifest(path: pathlib.Path, beside_tokens: bool) -> bool:
    if beside_tokens:
        return (path / "manifest.json").is_file()
    try:
        with PreparedFolder(path.name, path) as prepared:
            return bool(prepared.read_manifest())
    except UserError:
        return False


@contextlib.contextmanager
def _locked(path: pathlib.Path, wait: bool):
    """Hold the lock of a folder, which ends with the process; yields whether this one has it.

    Not where the file system has no locks (some network ones): nobody has it there.
    """
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            held = True
        except OSError:
            held = False
        yield held
    finally:
        os.close(handle)


@contextlib.contextmanager
def scratch_for(target: pathlib.Path):
    """A folder beside `target` for a preparation of it, with `new` in it; gone afterwards.

    Its lock says that this process lives: the next preparation of that name removes what others
    left, but not what has a living owner. `old` in it is what `install` took from `target`.
    """
    parent = target.parent
    parent.mkdir(parents=True, exist_ok=True)
    scratch = parent / f".{target.name}-{secrets.token_hex(4)}"
    with contextlib.ExitStack() as stack:
        stack.callback(_discard, scratch, target)
        with _locked(parent, wait=True):  # so that nobody takes a new, unlocked one for a dead one
            _discard_stale(target)
            (scratch / "new").mkdir(parents=True)
            stack.enter_context(_locked(scratch, wait=False))
        yield scratch


def _discard_stale(target: pathlib.Path):
    """Remove scratch folders for `target` that no living process has."""
    pattern = re.compile(rf"\.{re.escape(target.name)}-[a-z0-9_]{{8}}")
    for path in target.parent.iterdir():
        if path.is_symlink() or not pattern.fullmatch(path.name):
            continue
        with contextlib.suppress(OSError), _locked(path, wait=False) as dead:
            if dead:
                _discard(path, target)


def _discard(scratch: pathlib.Path, target: pathlib.Path):
    """Remove a scratch folder, after `target` is what it was if nothing took its place."""
    old = scratch / "old"
    with contextlib.suppress(OSError):
        if old.is_dir() and not os.path.lexists(target):
            os.rename(old, target)
    for path in (scratch / "new", old, scratch):
        with contextlib.suppress(OSError):
            _remove(path)


def _remove(path: pathlib.Path):
    """Delete a folder of a dataset's files; anything else in it stays, and the folder with it."""
    if path.is_symlink():
        return
    for name in FILES:
        (path / name).unlink(missing_ok=True)
    path.rmdir()


def install(scratch: pathlib.Path, target: pathlib.Path, own: bool):
    """Rename the new dataset to `target`; what stood there waits in `scratch` meanwhile."""
    with _locked(target.parent, wait=True):
        refuse_foreign(target, own)  # again: it may have come while this one was written
        if os.path.lexists(target):
            os.rename(target, scratch / "old")
        os.rename(scratch / "new", target)


@contextlib.contextmanager
def unwound_by_sigterm():
    """Within, SIGTERM unwinds as an interrupt does, with status 143, where nobody else hears it."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def stop(*_):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not stop the clearing up
        print("proxies: stopped by SIGTERM; data is not prepared", file=sys.stderr)
        raise SystemExit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
