"""JAX's persistent compilation cache, with a checksum before each entry.

JAX itself may compress entries without a checksum (with zstd), so that a flipped bit is code that
runs, and never replaces an entry that it cannot read. Here a damaged one is said, removed and
made again.
"""

import hashlib
import os
import pathlib
import platform
import sys
import tempfile
from typing import Any

import jax

from proxies_lib import config, paths

# Names that JAX keeps to itself: a version without them has its own cache, unchecked.
compilation_cache: Any
CacheInterface: Any
try:
    from jax._src import compilation_cache
    from jax._src.compilation_cache_interface import CacheInterface
except ImportError:
    compilation_cache, CacheInterface = None, object

CPUINFO = pathlib.Path("/proc/cpuinfo")  # of Linux

CHECKSUM_BYTES = hashlib.sha256().digest_size


def use_cache(say=lambda line: print(line, file=sys.stderr, flush=True)):
    """Compile through the cache from now on, in the project's own folder.

    It is kept by machine: executables of another CPU do not load. `say` is told, in a line, what
    could not be read or written.
    """
    # Arm's lines are "Features" and "CPU part".
    flags = cpu("flags") or cpu("Features") + cpu("CPU part")
    machine = config.digest({"flags": flags, "machine": platform.machine()})[:8]
    folder = paths.folder("cache") / "executables" / machine
    if hasattr(compilation_cache, "get_file_cache"):
        compilation_cache.get_file_cache = lambda path: (Entries(path, say), path)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # Everything is kept: by itself JAX leaves out what is small or compiles in a second.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def cpu(field: str) -> str:
    """A field of the first processor in /proc/cpuinfo, "" where there is none."""
    lines = CPUINFO.read_text().splitlines() if CPUINFO.exists() else []
    named = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in named if name.strip() == field), "")


class Entries(CacheInterface):
    """Compiled programs, a file each: a checksum, then the program.

    Eviction (jax_compilation_cache_max_size) is left out.
    """

    def __init__(self, folder: str, say):
        self._path, self.say = pathlib.Path(folder), say  # JAX reads `_path`
        self.writable = True

    def file(self, key: str) -> pathlib.Path:
        return self._path / f"{key}.xla"

    def get(self, key: str) -> bytes | None:
        """The entry of `key`, None where there is none or it is damaged."""
        path = self.file(key)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        checksum, program = content[:CHECKSUM_BYTES], content[CHECKSUM_BYTES:]
        if hashlib.sha256(program).digest() == checksum:
            return program
        self.say(f"compilation cache: {path.name} is damaged; it is removed and compiled again")
        path.unlink(missing_ok=True)
        return None

    def put(self, key: str, value: bytes):
        """Write an entry, whole or not at all. Where that fails, which is said once, the next
        process compiles again."""
        if not self.writable:
            return
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self._path, prefix="part-") as scratch:
                whole = pathlib.Path(scratch) / "entry"
                whole.write_bytes(hashlib.sha256(value).digest() + value)
                os.replace(whole, self.file(key))
        except OSError as error:
            self.writable = False
            self.say(f"compilation cache: cannot write to {self._path} ({error.strerror})")
