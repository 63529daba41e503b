"""Sources of text: the standard library, text files, C4. Each yields documents with a name."""

import functools
import glob
import gzip
import json
import lzma
import os
import pathlib
import re
import stat
import sysconfig
import zlib
from collections.abc import Callable, Iterator

from proxies_lib.config import refuse
from proxies_lib.settings import first_line

Documents = Iterator[tuple[str, str]]  # name and text

# Folders of the standard library: tests, GUIs, code tables, and what is no part of it.
LEFT_OUT = {
    "test",
    "tests",
    "idlelib",
    "tkinter",
    "turtledemo",
    "lib2to3",
    "distutils",
    "ensurepip",
    "encodings",
    "site-packages",
    "dist-packages",
    "lib-dynload",
    "__pycache__",
    "__phello__",
}


def stdlib_documents() -> list[tuple[str, str]]:
    """Files of the running interpreter's standard library, but for LEFT_OUT, by relative path."""
    base = pathlib.Path(sysconfig.get_paths()["stdlib"])
    documents = []
    for path in sorted(base.rglob("*.py")):
        relative = path.relative_to(base)
        if LEFT_OUT.isdisjoint(relative.parts) and not path.name.startswith("_sysconfigdata"):
            documents.append((relative.as_posix(), path.read_text("utf-8", errors="replace")))
    return documents


# ------------------------------------------------------------------ text files


def text_documents(patterns: list[str], field: str = "path", say=print) -> Documents:
    """Documents of text files, plain, .gz or .xz, with a form feed between them.

    A pattern is a file's name, or else a glob. Files without text are named and passed over.
    `field` is the option that errors name. Raises UserError on anything that cannot be read.
    """
    for pattern in patterns:
        for path in _files(field, pattern):
            parts = _text(field, path).split("\f")
            documents = [part.strip("\n") for part in parts if part.strip()]
            if not documents:
                say(f"{field}={path!r}: holds no text")
            for i, document in enumerate(documents):
                yield f"{pathlib.Path(path).name}:{i}", document


def _files(field: str, pattern: str) -> list[str]:
    """The files that `pattern` names: itself where it stands there literally, brackets and all."""
    if os.path.lexists(pattern):
        return [pattern]
    try:
        found = sorted(glob.glob(pattern, recursive=True))
    except ValueError:  # a NUL character
        found = []
    files = [path for path in found if not os.path.isdir(path)]
    if not files:
        refuse(field, pattern, "no such file")
    return files


def _text(field: str, path: str) -> str:
    """The text of a file. A byte order mark is none of it."""
    require_file(field, path)
    openers: dict[str, Callable] = {".gz": gzip.open, ".xz": lzma.open}
    opener = openers.get(pathlib.Path(path).suffix, open)
    try:
        with opener(path, "rt", encoding="utf-8-sig") as file:
            return file.read()
    except (OSError, EOFError, zlib.error, lzma.LZMAError, UnicodeDecodeError) as error:
        refuse(field, path, f"cannot be read ({error})")


def require_file(field: str, path: str):
    """Refuse what is not a regular file, without opening it: reading a FIFO waits for ever."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        refuse(field, path, "no such file")
    except (OSError, ValueError) as error:
        refuse(field, path, f"cannot be read ({getattr(error, 'strerror', None) or error})")
    if stat.S_ISDIR(mode):
        refuse(field, path, "is a folder, not a file")
    if not stat.S_ISREG(mode):
        refuse(field, path, "is not a regular file")


# ------------------------------------------------------------------ C4


def c4_shards(prefix: str, split: str, shards: int | None = None, say=print) -> list:
    """The first `shards` (None: all) of C4's shards of `split` in a folder or below a URL prefix.

    Each is a function that opens it. Only exact names count, `c4-<split>.NNNNN-of-MMMMM.json.gz`:
    a browser's second copy or a part of a download is named and passed over. Raises UserError
    where there is none, or where shards are of several cuts of the corpus.
    """
    import fsspec

    try:
        files, base = fsspec.core.url_to_fs(prefix)
        entries = files.ls(base.rstrip("/") + "/", detail=True)
    except Exception as error:  # every protocol raises its own
        refuse("path", prefix, f"cannot be listed ({first_line(error)})")
    found, cuts = [], set()
    for entry in sorted(entries, key=lambda entry: entry["name"]):
        name = entry["name"].rstrip("/").rsplit("/", 1)[-1]
        match = re.fullmatch(rf"c4-{split}\.(\d{{5}})-of-(\d{{5}})\.json\.gz", name, re.ASCII)
        if match and entry["type"] == "file":
            found.append(functools.partial(files.open, entry["name"], compression="gzip"))
            cuts.add(match[2])
        elif name.startswith(f"c4-{split}."):
            say(f"c4: {name} is passed over: no c4-{split}.NNNNN-of-MMMMM.json.gz")
    if not found:
        refuse("path", prefix, f"holds no c4-{split}.NNNNN-of-MMMMM.json.gz")
    if len(cuts) > 1:
        counts = " and ".join(str(int(cut)) for cut in sorted(cuts))
        refuse("path", prefix, f"holds c4-{split} shards of several cuts, of {counts} shards")
    return found[:shards]


def c4_documents(shards: list) -> Documents:
    """Pairs of URL and text of opened-by-call `shards`. Raises UserError with shard and line."""
    for shard in shards:
        path, number = shard.args[0], 0
        try:
            with shard() as file:
                for line in file:
                    number += 1
                    if line.strip():
                        yield _document(line)
        except BadLine as error:
            refuse("path", path, f"line {number} {error}")
        except (OSError, EOFError, zlib.error) as error:
            reason = f"after line {number}: {type(error).__name__}: {first_line(error)}"
            refuse("path", path, f"is not a C4 json.gz shard ({reason})")
        except Exception as error:  # what a protocol raises when a connection breaks
            refuse("path", path, f"cannot be read after line {number} ({first_line(error)})")


class BadLine(ValueError):
    """What is wrong with a line of a shard."""


def _document(line: bytes) -> tuple[str, str]:
    """URL and text of a line. Raises BadLine."""
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise BadLine("is not UTF-8") from None
    except (ValueError, RecursionError):
        raise BadLine("is not JSON") from None
    if not isinstance(record, dict):
        raise BadLine("is not a JSON object")
    if "text" not in record:
        raise BadLine('has no "text"')
    text = record["text"]
    if not isinstance(text, str):
        raise BadLine('has a "text" that is not a string')
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can spell
        raise BadLine('has a "text" that is not Unicode') from None
    return str(record.get("url", "")), text
