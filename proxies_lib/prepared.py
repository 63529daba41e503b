"""A prepared dataset on disk: its manifest, checks of its files, memory maps of its tokens."""

import contextlib
import hashlib
import json
import os
import pathlib
import stat

import numpy as np

from proxies_lib.config import UserError, digest, refuse

SPLITS = ("train", "validation")

# A dataset consists of these files and of no other.
FILES = ("train.bin", "validation.bin", "tokenizer.model", "manifest.json")

MAX_PIECES = 65535  # of a vocabulary: tokens are stored as uint16


# ------------------------------------------------------------------ opening


class DamagedDataset(UserError):
    """A prepared folder that is not what its manifest says, or that has no readable one."""


class PreparedFolder:
    """A prepared folder, held open: its files belong together whatever takes its name meanwhile."""

    def __init__(self, name: str, path: str | pathlib.Path):
        self.name, self.path = name, pathlib.Path(path)

    def __enter__(self):
        try:
            self.handle = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            refuse("data", self.name, f"cannot be read ({error.strerror})")
        return self

    def __exit__(self, *_):
        os.close(self.handle)

    def damage(self, file: str, what: str) -> str:
        """The message that says what is wrong with a file, and what to do."""
        again = "prepare it again with `proxies data prepare`"
        if self.name == "stdlib":
            again = "training prepares it again"
        return f"data={self.name!r}: {self.path.name}/{file} {what}; {again}"

    @contextlib.contextmanager
    def file(self, file: str):
        """A file of the folder, open for reading. Raises DamagedDataset where it cannot be read."""

        def opener(name, flags):  # in the folder that is held; not waiting for a FIFO's writer
            return os.open(name, flags | os.O_NONBLOCK, dir_fd=self.handle)

        try:
            opened = open(file, "rb", opener=opener)
        except FileNotFoundError:
            raise DamagedDataset(self.damage(file, "is missing")) from None
        except OSError as error:
            raise DamagedDataset(self.damage(file, f"cannot be read ({error.strerror})")) from None
        with opened:
            if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
                raise DamagedDataset(self.damage(file, "is not a file"))
            yield opened

    def read_manifest(self) -> dict:
        """The manifest. Raises DamagedDataset where it is none."""
        try:
            with self.file("manifest.json") as file:
                manifest = json.load(file)
        except (ValueError, RecursionError) as error:
            if isinstance(error, DamagedDataset):
                raise
            raise DamagedDataset(self.damage("manifest.json", "is damaged")) from None
        if not _is_manifest(manifest):
            raise DamagedDataset(self.damage("manifest.json", "is damaged"))
        return manifest

    def manifest(self) -> dict:
        """The manifest, after the sizes of the tokens are found to be what it says."""
        manifest = self.read_manifest()
        for split in SPLITS:
            with self.file(f"{split}.bin") as file:
                size, expected = os.fstat(file.fileno()).st_size, 2 * manifest[split]["tokens"]
            if size != expected:
                what = f"has {size:,} bytes, not the {expected:,} of its manifest"
                raise DamagedDataset(self.damage(f"{split}.bin", what))
        return manifest

    def check(self, file: str, sha256: str) -> tuple:
        """Compare a file with its checksum, once per process; returns what identifies the file.

        A file that was changed since has another time of change, which nobody can set back.
        """
        with self.file(file) as opened:
            about = os.fstat(opened.fileno())
            times = (about.st_mtime_ns, about.st_ctime_ns)
            stamp = (about.st_dev, about.st_ino, about.st_size, *times, sha256)
            if stamp not in _verified:
                try:
                    found = hashlib.file_digest(opened, "sha256").hexdigest()
                except OSError as error:
                    what = f"cannot be read ({error.strerror})"
                    raise DamagedDataset(self.damage(file, what)) from None
                if found != sha256:
                    raise DamagedDataset(self.damage(file, "is damaged (sha256)"))
                _verified.add(stamp)
        return stamp


def _is_manifest(value) -> bool:
    """Whether a JSON value has a manifest's shape, and the fingerprint is that of its checksums."""

    def count(number) -> bool:
        return type(number) is int and 0 < number < 2**63

    if not isinstance(value, dict) or not isinstance(value.get("source"), str):
        return False
    if not count(value.get("vocab_size")) or value["vocab_size"] > MAX_PIECES:
        return False
    for split in SPLITS:
        counts = value.get(split)
        if not isinstance(counts, dict) or not count(counts.get("tokens")):
            return False
    try:
        return value["fingerprint"] == fingerprint_of(value)
    except (KeyError, TypeError, ValueError, RecursionError):
        return False


def fingerprint_of(manifest: dict) -> str:
    """What identifies corpus and tokenizer, from the checksums of a manifest."""
    checksums = {split: manifest[split]["sha256"] for split in SPLITS}
    checksums["tokenizer"] = manifest["tokenizer_sha256"]
    return digest(checksums)


# Files of this process whose checksums were found right, and the memory maps of both splits by
# path and fingerprint: a run that has begun reads the preparation it began with to its end.
#
# Every process that trains hashes once, however large the corpus: about a second a gigabyte
# beside hours of training. Stamps of earlier processes beside the dataset would save that, but a
# stamp cannot tell a disk's rot. What only asks for the fingerprint (plan, figures) hashes nothing.
_verified: set[tuple] = set()

_maps: dict[tuple[str, str], tuple[tuple, dict[str, np.ndarray]]] = {}


def tokens_of(dataset) -> dict[str, np.ndarray]:
    """Memory maps of both splits, by name; checked once per process."""
    known = _maps.get((dataset.path, dataset.fingerprint))
    return known[1] if known else map_tokens(dataset)


def map_tokens(dataset) -> dict[str, np.ndarray]:
    """Both splits as memory maps, checked. Raises UserError where the name has other tokens now."""
    with PreparedFolder(dataset.name, dataset.path) as prepared:
        manifest = prepared.manifest()
        if manifest["fingerprint"] != dataset.fingerprint:
            raise UserError(
                f"data={dataset.name!r}: was prepared again since it was opened; start again"
            )
        stamps = [prepared.check("tokenizer.model", manifest["tokenizer_sha256"])]
        stamps += [prepared.check(f"{s}.bin", manifest[s]["sha256"]) for s in SPLITS]
        stamp = (*stamps, dataset.vocab_size)
        known = _maps.get((dataset.path, dataset.fingerprint))
        if known and known[0] == stamp:
            return known[1]
        maps: dict[str, np.ndarray] = {}
        for split in SPLITS:
            with prepared.file(f"{split}.bin") as file:
                maps[split] = np.memmap(file, dtype=np.uint16, mode="r")
            largest = int(maps[split].max())
            if largest >= manifest["vocab_size"]:
                what = f"has token {largest}, above the vocabulary"
                raise DamagedDataset(prepared.damage(f"{split}.bin", what))
    _maps[dataset.path, dataset.fingerprint] = stamp, maps
    return maps
