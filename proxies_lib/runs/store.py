"""The store of finished runs: content-addressed, checksummed files.

    <folder>/ab/ab12….npz           a loose record, a run each, as training writes it (`records`)
    <folder>/packs/<hash>.parquet   a pack, thousands of runs, as `merge` makes it (`packs`)

A record is deleted only when its pack is on disk, so readers look among the records first, then in
the packs. `tables` makes frames of what is here; the exported tables, which it reads and writes as
well, are a layer below.
"""

import collections
import contextlib
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator

import pyarrow as pa

from proxies_lib.config import refuse
from proxies_lib.paths import is_abandoned
from proxies_lib.runs.packs import (
    Keys,
    batches,
    first_record,
    intact,
    intact_packs,
    is_small,
    keys_of_today,
    pack,
    read_pack,
    with_keys,
    write_packs,
)
from proxies_lib.runs.records import (
    OTHER,
    TODAY,
    Record,
    is_wanted,
    read_loose,
    record_paths,
    silent,
    write,
)

__all__ = ["beginning", "merge", "pack", "read", "stored", "write"]

LINES = 5  # of damaged files told one by one

FILES = r"[0-9a-f]{24}\.(?:npz|parquet)"  # names of records and packs


# ------------------------------------------------------------------ reading


def read(folder: pathlib.Path, run_key: str, columns=None) -> Record | None:
    """Metadata and curves of a run; None where it is missing or damaged (then it is trained again).

    `columns` are the names or prefixes of the wanted curves beside `step`; None for all.
    """
    # What a run of today may ask for comes first; records of another version can be read by key.
    for worth in (TODAY, OTHER):
        record = read_loose(folder, run_key, worth)
        if record is not None:
            meta, curves = record
            wanted = {name: curve for name, curve in curves.items() if is_wanted(name, columns)}
            return meta, wanted
        for path, keys in intact_packs(folder).items():
            rows = read_pack(path, columns) if run_key in getattr(keys, worth) else None
            if rows is not None:
                return first_record(with_keys(rows, {run_key}))
    return None


def beginning(prefix: str, folder: pathlib.Path) -> set[str]:
    """The keys in a store that begin with `prefix`, of damaged records too: `read` tells."""
    packed = set().union(*(keys.today | keys.other for keys in intact_packs(folder).values()))
    return {key for key in record_paths(folder).keys() | packed if key.startswith(prefix)}


def stored(wanted: set[str], folder: pathlib.Path, say=silent) -> set[str]:
    """Those of the `wanted` keys that the store has; lines to `say` about what is damaged."""
    damaged: list[str] = []
    paths = {key: path for key, path in record_paths(folder).items() if key in wanted}
    loose = {key for key in paths if read_loose(folder, key) is not None}
    packed = keys_of_today(intact_packs(folder, damaged.append).values())
    present = loose | (packed & wanted)
    for key, path in paths.items():
        # What is gone by now is missing; what still stands there could not be believed.
        if key not in present and os.path.lexists(path):
            damaged.append(_damaged(path))
    _tell(damaged, say)
    return present


def _damaged(path: pathlib.Path) -> str:
    return f"store: record {path.name} is damaged; its run counts as missing"


def _tell(damaged: list[str], say: Callable[[str], None]):
    """Say what is damaged: a line for each of the first files, one for all the others."""
    for line in damaged[:LINES]:
        say(line)
    if len(damaged) > LINES:
        say(f"store: and {len(damaged) - LINES} more files are damaged")


# ------------------------------------------------------------------ merging


def merge(sources: list[pathlib.Path], target: pathlib.Path, say: Callable[[str], None] = print):
    """Bring the runs of `sources`, stores or packs, into the store `target` as packs.

    The records of `target` itself are packed too. Runs that it has already are kept as they are.
    Its small packs are combined; sources are left alone, and so are records of another version.
    What a new pack replaces is deleted at the end, so a merge may be killed and started again at
    any time. Raises UserError where the disk is full or cannot be written.
    """
    target = pathlib.Path(target)
    sources = [pathlib.Path(source) for source in sources]
    # All of them are checked before anything is written.
    for source in sources:
        _check_source(source, target)
    # A store is made only where something is brought into it.
    if not target.is_dir() and (target.exists() or not sources):
        refuse("store", str(target), "no such folder")
    try:
        merger = _Merger(target)
        written = write_packs(target, merger.new_rows(sources))
        merger.delete_replaced(written)
        _remove_abandoned(target)
        packs = list(intact_packs(target))
        mebibytes = sum(path.stat().st_size for path in packs) / 2**20
    except OSError as error:
        why = error.strerror or error
        refuse("store", str(target), f"cannot be written ({why}); no run is lost")
    _tell(merger.damaged, say)
    count = merger.count
    say(
        f"{count['merged']} runs merged, {count['already there']} already there, "
        f"{count['packed']} of its own packed, {len(merger.damaged)} damaged; "
        f"the store has {len(packs)} packs, {mebibytes:.1f} MiB"
    )


def _check_source(source: pathlib.Path, target: pathlib.Path):
    """Raise UserError where `source` is no store and no pack, or belongs to `target`."""
    if not os.path.lexists(source):
        refuse("source", str(source), "no such file or folder")
    if not os.access(source, os.R_OK | (os.X_OK if source.is_dir() else 0)):
        refuse("source", str(source), "cannot be read")
    is_pack = source.is_file() and re.fullmatch(r"[0-9a-f]{24}\.parquet", source.name)
    if not is_pack and not record_paths(source) and not any(source.glob("packs/*.parquet")):
        refuse("source", str(source), "is neither a store nor a pack")
    # Compared through links: a store of another name may be this one.
    its_store = source.parent.parent if is_pack else source
    if its_store.resolve() == target.resolve():
        allowed = "is the store itself; without SOURCE its own records are packed"
        refuse("source", str(source), allowed)


class _Merger:
    """A merge under way.

    `have` are the keys that are in packs, or on the way into one: each run is taken once. `count`
    says where runs came from; `damaged` are lines about what could not be read.
    """

    def __init__(self, target: pathlib.Path):
        self.target = target
        self.count: collections.Counter[str] = collections.Counter()
        self.damaged: list[str] = []
        self.packs = intact_packs(target, self.damaged.append)
        self.loose = record_paths(target)
        # Small packs are written again, together, but for those with rows that nobody understands.
        self.small = {
            path: keys
            for path, keys in self.packs.items()
            if not keys.false | keys.other and is_small(path)
        }
        # The rows of small packs are to be taken, so they do not count as had.
        self.have = keys_of_today(
            keys for path, keys in self.packs.items() if path not in self.small
        )

    def new_rows(self, sources: list[pathlib.Path]) -> Iterator[pa.Table]:
        """The rows of all new packs: of small packs, of the target's records, of sources."""
        for rows in self._rows_of_packs(self.small):
            yield self._fresh(rows, "kept")
        # A merge that was killed may have packed some records and not yet deleted them.
        own = {key: path for key, path in self.loose.items() if key not in self.have}
        for rows in batches(self._records(self.target, own)):
            yield self._fresh(rows, "packed")
        for source in sources:
            for rows in self._rows_of(source):
                yield self._fresh(rows, "merged")

    def delete_replaced(self, written: list[pathlib.Path]):
        """Delete the target's packs and records whose runs are all in packs that stay."""
        # A small pack that came out with the same content is still itself.
        replaced = self.small.keys() - set(written)
        # What is safe is read from the disk: nothing is deleted on a promise.
        staying = [keys for path, keys in intact_packs(self.target).items() if path not in replaced]
        safe = keys_of_today(staying)
        for path in replaced:
            if self.packs[path].today <= safe:
                path.unlink(missing_ok=True)
        for key, path in self.loose.items():
            # A folder or pipe in a record's place is left to its owner.
            if key in safe and path.is_file():
                path.unlink(missing_ok=True)

    def _fresh(self, rows: pa.Table, origin: str) -> pa.Table:
        """Those of the rows whose keys are new, counted under `origin`."""
        new = {key for key in rows["key"].to_pylist() if key not in self.have}
        self.have.update(new)
        self.count[origin] += len(new)
        if origin == "merged":
            self.count["already there"] += len(rows) - len(new)
        return with_keys(rows, new)

    def _rows_of(self, source: pathlib.Path) -> Iterator[pa.Table]:
        """The rows of a store or of a pack."""
        yield from batches(self._records(source, record_paths(source)))
        if source.is_dir():
            packs = intact_packs(source, self.damaged.append)
        else:
            packs = intact([source], self.damaged.append)
        yield from self._rows_of_packs(packs)

    def _records(self, folder: pathlib.Path, paths: dict[str, pathlib.Path]) -> Iterable[Record]:
        for key, path in paths.items():
            record = read_loose(folder, key)
            if record is not None:
                yield record
            # Its key cannot be checked here; the version that wrote it may still need it.
            elif read_loose(folder, key, OTHER) is not None:
                line = f"store: record {path.name} is of another version; it is left alone"
                self.damaged.append(line)
            elif os.path.lexists(path):
                self.damaged.append(_damaged(path))

    def _rows_of_packs(self, packs: dict[pathlib.Path, Keys]) -> Iterator[pa.Table]:
        for path, keys in packs.items():
            if keys.other:
                count = f"{len(keys.other)} rows of another version"
                self.damaged.append(f"store: pack {path.name} has {count}; they stay")
            rows = read_pack(path)
            if rows is not None:
                yield with_keys(rows, keys.today)
            else:
                self.damaged.append(f"store: pack {path.name} could not be read")


def _remove_abandoned(folder: pathlib.Path):
    """Delete the scratch that killed writers left in a store."""
    for path in (*folder.glob("??/.*"), *folder.glob("packs/.*")):
        with contextlib.suppress(FileNotFoundError):  # its writer lives, and has just finished
            if is_abandoned(path, FILES):
                path.unlink()
