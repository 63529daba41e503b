"""Datasets: opening what is prepared, and preparing text into packed tokens.

A preparation reads the documents of a source (`corpora`), splits them into training and
validation, makes or reads a vocabulary (`tokenizers`), packs tokens into a scratch folder and
renames that to its place (`scratch`). Training reads the tokens by `proxies_lib.prepared`.
"""

import contextlib
import functools
import hashlib
import json
import os
import pathlib
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from proxies_lib.config import UserError, component, digest, refuse, shown
from proxies_lib.data import COPY_LAG, COPY_SHARE, Dataset
from proxies_lib.paths import folder
from proxies_lib.prepared import (
    MAX_PIECES,
    SPLITS,
    DamagedDataset,
    PreparedFolder,
    fingerprint_of,
    map_tokens,
)
from proxies_lib.runs.corpora import (
    c4_documents,
    c4_shards,
    require_file,
    stdlib_documents,
    text_documents,
)
from proxies_lib.runs.scratch import install, refuse_foreign, scratch_for, unwound_by_sigterm
from proxies_lib.runs.tokenizers import processor_of, read_tokenizer, train_tokenizer

HELD_OUT = 0.05  # share of documents kept for validation where a source names none

# What each source reads of the options of `prepare`; any other is refused, not passed over.
OPTIONS = {
    "synthetic": ("vocab_size",),
    "stdlib": ("name", "tokenizer", "vocab_size"),
    "text": ("name", "path", "validation", "tokenizer", "vocab_size"),
    "c4": ("name", "path", "tokenizer", "vocab_size", "shards"),
}


if TYPE_CHECKING:  # so that the reference names the function once

    @overload
    def open_dataset(
        name: str, vocab_size: int, prepare_missing: Literal[True] = True, say=print
    ) -> Dataset: ...

    @overload
    def open_dataset(
        name: str, vocab_size: int, prepare_missing: bool, say=print
    ) -> Dataset | None: ...


def open_dataset(
    name: str, vocab_size: int, prepare_missing: bool = True, say=print
) -> Dataset | None:
    """The dataset that a run calls `name`: `synthetic`, `stdlib`, or a prepared folder.

    With `prepare_missing` its tokens are about to be read: their checksums are compared, and
    `stdlib` is prepared where it is missing or damaged. Without, sizes alone are compared (which
    is enough for its fingerprint) and None stands for "not here". Raises UserError where another
    dataset is missing or damaged (DamagedDataset), or its vocabulary is not `vocab_size`.
    """
    if name == "synthetic":
        identity = {"vocab": vocab_size, "copy": COPY_SHARE, "lag": COPY_LAG, "version": 1}
        return Dataset(name, vocab_size, digest(identity))
    own = name == "stdlib"  # the one that anybody can prepare without being asked
    path = _stdlib_path(vocab_size) if own else folder("cache") / "data" / name
    dataset = None
    try:
        if _is_prepared(name, path):
            dataset = _open(name, path, vocab_size, read=prepare_missing)
    except DamagedDataset as error:
        if not own:
            raise
        say(str(error))  # and prepare it again
    if dataset or not prepare_missing:
        return dataset
    if not own:
        source = f"text --path FILES --name {shown(name)}"
        if name == "c4":
            source = "c4 --path FOLDER --tokenizer MODEL"
        refuse("data", name, f"is not prepared here; `proxies data prepare {source}` prepares it")
    return prepare("stdlib", vocab_size=vocab_size, say=say)


def _is_prepared(name: str, path: pathlib.Path) -> bool:
    try:
        os.lstat(path / "manifest.json")
        return True
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL character
        return False
    except OSError as error:
        refuse("data", name, f"cannot be read ({error.strerror})")


def _open(name: str, path: pathlib.Path, vocab_size: int, read: bool) -> Dataset:
    with PreparedFolder(name, path) as prepared:
        manifest = prepared.manifest()
    found = manifest["vocab_size"]
    if found != vocab_size and name == "stdlib":  # whose folder is one of this vocabulary
        raise DamagedDataset(prepared.damage("manifest.json", f"has a vocabulary of {found}"))
    if found != vocab_size:
        refuse("vocab_size", vocab_size, f"dataset {name} has {found} pieces")
    dataset = Dataset(name, vocab_size, manifest["fingerprint"], str(path))
    if read:
        map_tokens(dataset)
    return dataset


def describe_all() -> list[str]:
    """A line for each prepared dataset, or of what is wrong with it; no checksums are compared."""
    lines = []
    for path in sorted((folder("cache") / "data").glob("*/manifest.json")):
        name = path.parent.name
        if name.startswith("."):  # a preparation under way
            continue
        try:
            with PreparedFolder(name, path.parent) as prepared:
                manifest = prepared.manifest()
        except UserError as error:
            lines.append(str(error))
            continue
        train, validation = (manifest[split]["tokens"] for split in SPLITS)
        lines.append(
            f"{name}: {manifest['source']}, vocabulary {manifest['vocab_size']}, "
            f"{train:,} + {validation:,} tokens, fingerprint {manifest['fingerprint']}"
        )
    return lines


# ------------------------------------------------------------------ preparing


def prepare(
    source: str,
    name: str | None = None,
    path: list[str] | None = None,
    validation: list[str] | None = None,
    tokenizer: str | None = None,
    vocab_size: int | None = None,
    shards: int | None = None,
    say=print,
) -> Dataset:
    """Tokenize and pack `source` into the cache, atomically, as dataset `name`; returns it.

    `path`: files or globs (text), or one folder or URL prefix (c4). `validation`: files of
    held-out documents (text; else HELD_OUT of the documents are held out, or of the only one).
    `tokenizer`: a SentencePiece model; else one of `vocab_size` pieces (1024) is trained on the
    training documents. Raises UserError where there is nothing to read or to hold out, and where
    the name's folder is not a dataset's: nothing else is ever replaced.
    """
    given: dict[str, Any] = {"name": name, "path": path, "validation": validation}
    given |= {"tokenizer": tokenizer, "vocab_size": vocab_size, "shards": shards}
    _check_options(source, given)
    pieces = vocab_size or 1024
    if source == "synthetic":
        say(f"synthetic needs no preparation (vocabulary {pieces})")
        return open_dataset("synthetic", pieces)
    model = read_tokenizer(tokenizer, vocab_size) if tokenizer else None
    # The project's own dataset: its folder is named after what it holds.
    own = source == "stdlib" and not name
    target = _stdlib_path(pieces) if own else folder("cache") / "data" / (name or source)
    refuse_foreign(target, own)
    with unwound_by_sigterm():
        texts = _texts(source, path, validation, shards, say)
        try:
            with scratch_for(target) as scratch:
                manifest = _write(scratch / "new", source, texts, model, pieces, say)
                install(scratch, target, own)
        except OSError as error:
            why = error.strerror or error
            refuse("data", target.name, f"cannot be written in {target.parent} ({why})")
    found, fingerprint = manifest["vocab_size"], manifest["fingerprint"]
    say(f"{target.name}: fingerprint {fingerprint}, vocabulary {found}")
    return Dataset(name or source, found, fingerprint, str(target))


def _check_options(source: str, given: dict):
    """Refuse, before anything is read, what `source` would not honour or cannot mean."""
    if source not in OPTIONS:
        refuse("source", source, f"must be one of {', '.join(OPTIONS)}")
    given = {option: value for option, value in given.items() if value is not None}
    for option, value in given.items():
        if option not in OPTIONS[source]:
            refuse(option, value, f"source {source} has no such option")
    if "name" in given:
        _check_name(given["name"])
    for option, lowest, highest in (("vocab_size", 8, MAX_PIECES), ("shards", 1, 99999)):
        value = given.get(option, lowest)
        if type(value) is not int or not lowest <= value <= highest:
            refuse(option, value, f"must be a whole number in {lowest}..{highest}")
    for option in ("path", "validation"):
        names = given.get(option, [])
        if isinstance(names, str) or "" in names:
            refuse(option, names, "must be a list of names that are not empty")
    if "tokenizer" in given:
        require_file("tokenizer", given["tokenizer"])
    if source in ("text", "c4") and not given.get("path"):
        refuse("path", given.get("path"), f"source {source} needs --path")
    if source == "c4" and len(given["path"]) > 1:
        refuse("path", given["path"], "must be one folder or URL prefix")
    if source == "c4" and "tokenizer" not in given:
        needed = "c4 needs --tokenizer, the T5 SentencePiece model of the paper"
        refuse("tokenizer", None, needed)
    if source == "stdlib" and "tokenizer" in given and "name" not in given:
        refuse("name", None, "stdlib with another tokenizer is another dataset: it needs --name")


def _check_name(name: str):
    """A name is one plain component of a path, and not a name that means another dataset."""
    component("name", name)
    folded = name.casefold()  # some file systems tell no case apart
    if folded in ("synthetic", "stdlib") or folded.startswith("stdlib-"):
        refuse("name", name, "is reserved; choose another name")


@functools.cache
def _stdlib_digest() -> str:
    return digest(dict(stdlib_documents()))


def _stdlib_path(vocab_size: int) -> pathlib.Path:
    return folder("cache") / "data" / f"stdlib-{vocab_size}-{_stdlib_digest()[:12]}"


# ------------------------------------------------------------------ splits


def held_out(text: str) -> bool:
    """Whether a document is validation, by a hash: it stays so when others come or go.

    `text` is the document's own, but in the standard library its path.
    """
    first = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
    return first < HELD_OUT * 2**32


def _texts(source, path, validation, shards, say) -> Mapping[str, Iterable[str]]:
    """The documents of each split."""
    if source == "stdlib":
        # By path, as ever: another rule would be another corpus under the same name.
        documents = stdlib_documents()
        return {
            "train": [text for name, text in documents if not held_out(name)],
            "validation": [text for name, text in documents if held_out(name)],
        }
    if source == "c4":
        return _c4_texts(path[0], shards, say)
    texts = _distinct(text_documents(path, "path", say), say)
    if validation:
        held: dict[str, None] = {}  # in order, each once
        for pattern in validation:
            held |= dict.fromkeys(_held_out_texts(pattern, say))
        return _apart(texts, held, path, say)
    kept = {
        "train": [text for text in texts if not held_out(text)],
        "validation": [text for text in texts if held_out(text)],
    }
    if all(kept.values()) or not texts:
        return kept
    if len(texts) > 1:  # few documents: the last one is held out
        return {"train": texts[:-1], "validation": texts[-1:]}
    say(f"text: of the only document the last {HELD_OUT:.0%} are held out")
    return _cut(texts[0])


def _cut(text: str) -> dict[str, list[str]]:
    """Both splits from one text: its end is validation, from a line on where it has lines."""
    at = int(len(text) * (1 - HELD_OUT))
    at = text.rfind("\n", 1, at) + 1 or at
    parts = {"train": text[:at], "validation": text[at:]}
    return {split: [part.strip("\n")] if part.strip() else [] for split, part in parts.items()}


def _distinct(documents: Iterable[tuple[str, str]], say) -> list[str]:
    """Texts in their order, each once: what is in two files is the same document."""
    texts = [text for _, text in documents]
    distinct = list(dict.fromkeys(texts))
    if len(distinct) < len(texts):
        say(f"text: {len(texts) - len(distinct):,} repeated documents are left out")
    return distinct


def _held_out_texts(pattern: str, say) -> list[str]:
    texts = [text for _, text in text_documents([pattern], "validation", say=lambda line: None)]
    if not texts:
        refuse("validation", pattern, "holds no text")
    return texts


def _apart(texts: list[str], held: dict[str, None], path, say) -> dict[str, list[str]]:
    """`held` as validation, and as training those of `texts` that are not held out."""
    train = [text for text in texts if text not in held]
    if not train:
        refuse("path", path, "has no document that --validation does not hold out")
    if len(train) < len(texts):
        count = len(texts) - len(train)
        say(f"text: {count:,} documents of --path are held out by --validation, not trained on")
    return {"train": train, "validation": list(held)}


def _c4_texts(prefix: str, shards: int | None, say) -> dict[str, Iterable[str]]:
    """C4's own splits, without training documents that its validation holds.

    They are read as they are packed, validation first: only its hashes are kept.
    """
    found = {split: c4_shards(prefix, split, shards, say) for split in SPLITS}
    held = set()

    def identity(text: str) -> bytes:
        return hashlib.sha256(text.encode()).digest()

    def validation():
        for _, text in c4_documents(found["validation"]):
            held.add(identity(text))
            yield text

    def train():
        left_out = 0
        for _, text in c4_documents(found["train"]):
            if identity(text) in held:
                left_out += 1
            else:
                yield text
        if left_out:
            say(f"c4: {left_out:,} train documents are held out by validation, not trained on")

    return {"train": train(), "validation": validation()}


# ------------------------------------------------------------------ packing


def _write(where: pathlib.Path, source: str, texts, model: bytes | None, pieces: int, say) -> dict:
    """Write a dataset into the empty folder `where`; returns its manifest."""
    started = time.monotonic()
    for split in SPLITS:
        if texts[split] == []:  # known before reading; of generators, below
            refuse("source", source, f"has no {split} documents")
    if model is None:
        say(f"{source}: training a SentencePiece vocabulary of {pieces} pieces")
        model = train_tokenizer(texts["train"], pieces)
    processor = processor_of(model)
    with _written(where / "tokenizer.model") as file:
        file.write(model)
    manifest = {"source": source, "vocab_size": len(processor)}
    manifest["tokenizer_sha256"] = hashlib.sha256(model).hexdigest()
    for split in reversed(SPLITS):  # validation first: see `_c4_texts`
        counts = _pack(where / f"{split}.bin", texts[split], processor, f"{source} {split}", say)
        if not counts["tokens"]:
            refuse("source", source, f"has no {split} documents")
        manifest[split] = counts
        say(
            f"{source} {split}: {counts['documents']:,} documents, "
            f"{counts['bytes'] / 1e6:.1f} MB of text, {counts['tokens']:,} tokens, "
            f"{counts['unknown'] / counts['tokens']:.2%} <unk> ({time.monotonic() - started:.0f} s)"
        )
    manifest["fingerprint"] = fingerprint_of(manifest)
    with _written(where / "manifest.json") as file:
        file.write(json.dumps(manifest, indent=1).encode())
    return manifest


def _pack(path: pathlib.Path, texts: Iterable[str], processor, label: str, say) -> dict:
    """Write the tokens of `texts`; returns counts of documents, bytes, tokens, and a checksum."""
    counts = {"documents": 0, "bytes": 0, "tokens": 0, "unknown": 0}
    checksum = hashlib.sha256()
    with _written(path) as file:
        for text in texts:
            ids = np.array([*processor.encode(text), processor.eos_id()], np.uint16)
            packed = ids.tobytes()
            file.write(packed)
            checksum.update(packed)
            counts["documents"] += 1
            counts["bytes"] += len(text.encode())
            counts["tokens"] += len(ids)
            counts["unknown"] += int(np.count_nonzero(ids == processor.unk_id()))
            if counts["documents"] % 10_000 == 0:
                say(f"{label}: {counts['documents']:,} documents, {counts['tokens']:,} tokens")
    return counts | {"sha256": checksum.hexdigest()}


@contextlib.contextmanager
def _written(path: pathlib.Path):
    """A new file, on the disk when it is closed."""
    with open(path, "xb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
