"""Four sources of text behind one stateless `Dataset.batch`: synthetic, stdlib, text and c4.

A prepared dataset is a folder with `train.bin` and `validation.bin` (packed uint16 tokens, EOS after each document,
no padding: P1, section 2.1), the SentencePiece model that made them, and `manifest.json` with counts and checksums.
Validation holds whole documents that training never sees.
"""

import dataclasses
import functools
import glob
import gzip
import hashlib
import io
import json
import lzma
import os
import pathlib
import shutil
import sysconfig
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator

import numpy as np

from proxies_lib.config import DataOrder, UserError, digest, folder, refuse

SPLITS = ("train", "validation")
HELD_OUT = 0.05  # share of documents kept for validation where a source names none
COPY_SHARE, COPY_LAG = 0.5, 5  # the structure of `synthetic`


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Tokens that a run reads. `fingerprint` identifies corpus and tokenizer; `path` is None for synthetic."""

    name: str
    vocab_size: int
    fingerprint: str
    path: str | None = None

    def batch(self, split, seed, step, batch_size, seq_len, shard=0, n_shards=1) -> np.ndarray:
        """Rows of int32 windows (batch_size / n_shards, seq_len + 1); a pure function of its arguments.

        Training visits every window once per epoch, in an order that `seed` fixes. Validation ignores `seed`: every
        run is judged on the same windows.
        """
        if batch_size % n_shards or not 0 <= shard < n_shards:
            refuse("shard", f"{shard}/{n_shards}", f"must be in 0..n_shards-1, n_shards dividing {batch_size}")
        share = batch_size // n_shards
        first = step * batch_size + shard * share
        if self.path is None:
            return synthetic_windows(self.vocab_size, split, seed, first, share, seq_len + 1)
        rows = np.arange(first, first + share)
        tokens = _memmap(self.path, split)
        n_windows = (len(tokens) - 1) // seq_len
        if n_windows < batch_size:
            refuse("batch_size", batch_size, f"{self.name} has only {n_windows} {split} windows of {seq_len} tokens")
        epochs, positions = np.divmod(rows, n_windows)
        if split == "train":
            order = {e: _permutation(n_windows, seed, int(e)) for e in np.unique(epochs)}
            positions = np.array([order[e][p] for e, p in zip(epochs, positions, strict=True)])
        return tokens[positions[:, None] * seq_len + np.arange(seq_len + 1)].astype(np.int32)

    def chunk(self, order: DataOrder, begin: int, shape, seq_len: int, shard=0, n_shards=1) -> np.ndarray:
        """The training batches of steps begin … begin + log_every − 1, (log_every, batch_size / n_shards, seq_len + 1)."""
        steps = range(begin, begin + shape.log_every)
        return np.stack([self._of_step(order, step, shape.batch_size, seq_len, shard, n_shards) for step in steps])

    def _of_step(
        self, order: DataOrder, step: int, batch_size: int, seq_len: int, shard: int, n_shards: int
    ) -> np.ndarray:
        number = step + (order.skip_batches if step >= order.skip_step else 0)
        if order.rare_batch <= number < order.rare_batch + order.rare_batches:
            token = int(_uniform((3, order.seed), (1,))[0] * self.vocab_size)
            return np.full((batch_size // n_shards, seq_len + 1), token, np.int32)
        number = number % order.corpus_batches if order.corpus_batches else number
        return self.batch("train", order.seed, number, batch_size, seq_len, shard, n_shards)


@functools.lru_cache(maxsize=4)
def _memmap(path: str, split: str) -> np.ndarray:
    return np.memmap(pathlib.Path(path) / f"{split}.bin", dtype=np.uint16, mode="r")


@functools.lru_cache(maxsize=8)
def _permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    # The order of uniform draws: Generator.permutation may change between NumPy releases, random() does not.
    return np.argsort(_uniform((1, seed, epoch), (n,)), kind="stable")


def _uniform(key: tuple, shape: tuple) -> np.ndarray:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key))).random(shape)


# ------------------------------------------------------------------ synthetic


def zipf(vocab_size: int) -> np.ndarray:
    """Unigram probabilities of `synthetic`, ∝ 1/rank."""
    p = 1.0 / np.arange(1, vocab_size + 1)
    return p / p.sum()


@functools.lru_cache(maxsize=1024)  # runs of one seed read the same batches: drawn once for all of a worker's
def synthetic_windows(vocab_size: int, split: str, seed: int, first: int, count: int, length: int) -> np.ndarray:
    """`count` windows of Zipfian tokens, each, with probability COPY_SHARE, a copy of the token COPY_LAG before it.

    Unlimited and identical on every machine; validation is a stream of its own, the same for every seed. Read-only.
    """
    stream = (2, SPLITS.index(split), seed if split == "train" else 0)
    draws = np.stack([_uniform((*stream, row), (2, length)) for row in range(first, first + count)])
    tokens = np.searchsorted(np.cumsum(zipf(vocab_size))[:-1], draws[:, 0], side="right").astype(np.int32)
    copied = draws[:, 1] < COPY_SHARE
    for t in range(COPY_LAG, length):
        tokens[:, t] = np.where(copied[:, t], tokens[:, t - COPY_LAG], tokens[:, t])
    tokens.flags.writeable = False
    return tokens


def synthetic_entropy(vocab_size: int, seq_len: int) -> float:
    """Entropy floor of `synthetic` in nats per predicted token, for windows of seq_len + 1: the best loss possible."""
    p = zipf(vocab_size)
    fresh = -np.sum(p * np.log(p))
    q = (1 - COPY_SHARE) * p  # given the token COPY_LAG before is y, token x has q_x + COPY_SHARE·[x = y]
    plogp = q * np.log(q)
    given = -(plogp.sum() - plogp + (q + COPY_SHARE) * np.log(q + COPY_SHARE))
    first = min(COPY_LAG - 1, seq_len)  # targets 1 … COPY_LAG − 1 have nothing to copy
    return float((first * fresh + (seq_len - first) * np.sum(p * given)) / seq_len)


# ------------------------------------------------------------------ documents


def stdlib_documents() -> list[tuple[str, str]]:
    """(relative path, text) of the running interpreter's standard library, without tests, GUIs and code tables."""
    base = pathlib.Path(sysconfig.get_paths()["stdlib"])
    left_out = {
        "test", "tests", "idlelib", "tkinter", "turtledemo", "lib2to3", "distutils", "ensurepip", "encodings",
        "site-packages", "dist-packages", "lib-dynload", "__pycache__", "__phello__",
    }  # fmt: skip
    documents = []
    for path in sorted(base.rglob("*.py")):
        relative = path.relative_to(base)
        if left_out.isdisjoint(relative.parts) and not path.name.startswith("_sysconfigdata"):
            documents.append((relative.as_posix(), path.read_text("utf-8", errors="replace")))
    return documents


def text_documents(patterns: list[str]) -> Iterator[tuple[str, str]]:
    """(name, text) of every document in files or globs: plain, .gz or .xz, a form feed between documents."""
    for pattern in patterns:
        paths = sorted(glob.glob(pattern, recursive=True))
        if not paths:
            refuse("path", pattern, "no such file")
        for path in paths:
            opener = {".gz": gzip.open, ".xz": lzma.open}.get(pathlib.Path(path).suffix, open)
            try:
                with opener(path, "rt", encoding="utf-8") as file:
                    content = file.read()
            except (OSError, EOFError, zlib.error, lzma.LZMAError, UnicodeDecodeError) as error:
                refuse("path", path, f"cannot be read ({error})")
            for i, document in enumerate(d for d in content.split("\f") if d.strip()):
                yield f"{pathlib.Path(path).name}:{i}", document.strip("\n")


def c4_documents(prefix: str, split: str, shards: int | None = None) -> Iterator[tuple[str, str]]:
    """(url, text) of C4's own json.gz shards, `c4-<split>.NNNNN-of-MMMMM.json.gz`, from a folder or URL prefix."""
    import fsspec

    try:
        fs, base = fsspec.core.url_to_fs(prefix)
        paths = sorted(fs.glob(f"{base.rstrip('/')}/c4-{split}.*.json.gz"))[:shards]
    except (OSError, ValueError, ImportError) as error:
        refuse("path", prefix, f"cannot be listed ({error})")
    if not paths:
        refuse("path", prefix, f"holds no c4-{split}.NNNNN-of-MMMMM.json.gz")
    for path in paths:
        try:
            with fs.open(path, compression="gzip") as file:
                for line in file:
                    document = json.loads(line)
                    yield document.get("url", path), document["text"]
        except (OSError, EOFError, zlib.error, json.JSONDecodeError, KeyError) as error:
            refuse("path", path, f"is not a C4 json.gz shard ({type(error).__name__}: {error})")


# ------------------------------------------------------------------ preparing


def held_out(name: str) -> bool:
    """Whether a document is validation: by a hash of its name, so that it stays so when others come or go."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") < HELD_OUT * 2**32


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> bytes:
    """A SentencePiece BPE vocabulary (pad 0, eos 1, bos 2, unk 3) that keeps line breaks and indentation.

    BPE on one thread: its counts are integers, so the same text gives the same vocabulary everywhere.
    """
    import sentencepiece

    model = io.BytesIO()  # a file's name would become part of the model, and of its checksum

    lines = [line for text in texts for line in text.splitlines() if line.strip()]
    stride = max(1, len(lines) // 100_000)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines[::stride]), model_writer=model, vocab_size=vocab_size,
            model_type="bpe", pad_id=0, eos_id=1, bos_id=2, unk_id=3, user_defined_symbols=["\n"],
            normalization_rule_name="identity", remove_extra_whitespaces=False, allow_whitespace_only_pieces=True,
            add_dummy_prefix=False, character_coverage=0.9995, num_threads=1, minloglevel=2,
        )  # fmt: skip
    except RuntimeError as error:
        refuse("vocab_size", vocab_size, f"SentencePiece cannot train on this text ({str(error).split('] ')[-1]})")
    return model.getvalue()


def prepare(
    source: str, name: str | None = None, path: list[str] | None = None, validation: list[str] | None = None,
    tokenizer: str | None = None, vocab_size: int = 1024, shards: int | None = None, say=print,
) -> Dataset:  # fmt: skip
    """Tokenize and pack `source` into the cache, atomically, as dataset `name`; returns it.

    `path`: files or globs (text), or one folder or URL prefix (c4). `validation`: files of held-out documents (text;
    else HELD_OUT of the documents are held out by name). `tokenizer`: a SentencePiece model; else one of `vocab_size`
    pieces is trained on the training documents. Raises UserError where there is nothing to read or to hold out.
    """
    if source == "synthetic":
        say(f"synthetic needs no preparation (vocabulary {vocab_size})")
        return open_dataset("synthetic", vocab_size)
    if source not in ("stdlib", "text", "c4"):
        refuse("source", source, "must be one of synthetic, stdlib, text, c4")
    if not 8 <= vocab_size <= 65535:
        refuse("vocab_size", vocab_size, "must be in 8..65535 (tokens are stored as uint16)")
    if source != "stdlib" and not path:
        refuse("path", path, f"source {source} needs --path")
    if tokenizer and not pathlib.Path(tokenizer).is_file():
        refuse("tokenizer", tokenizer, "no such file")
    if source == "c4" and not tokenizer:
        refuse("tokenizer", tokenizer, "c4 needs --tokenizer, the T5 SentencePiece model of the paper")
    if source == "c4":
        documents = {s: functools.partial(c4_documents, path[0], s, shards) for s in SPLITS}
    else:
        every = list(stdlib_documents() if source == "stdlib" else text_documents(path))
        kept = {
            "train": every if validation else [d for d in every if not held_out(d[0])],
            "validation": list(text_documents(validation)) if validation else [d for d in every if held_out(d[0])],
        }
        if len(every) > 1 and not kept["validation"]:  # few documents: the last one is held out
            kept = {"train": every[:-1], "validation": every[-1:]}
        documents = {split: functools.partial(iter, kept[split]) for split in SPLITS}
    target = (
        _stdlib_path(vocab_size) if source == "stdlib" and not name else folder("cache") / "data" / (name or source)
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = pathlib.Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        manifest = _write(scratch, source, documents, tokenizer, vocab_size, say)
        if target.exists():
            shutil.rmtree(target)
        os.replace(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    say(f"{target.name}: fingerprint {manifest['fingerprint']}, vocabulary {manifest['vocab_size']}")
    return Dataset(name or source, manifest["vocab_size"], manifest["fingerprint"], str(target))


def _write(scratch, source, documents, tokenizer, vocab_size, say) -> dict:
    import sentencepiece

    started, spm = time.monotonic(), scratch / "tokenizer.model"
    if tokenizer:
        shutil.copy(tokenizer, spm)
    else:
        say(f"{source}: training a SentencePiece vocabulary of {vocab_size} pieces")
        spm.write_bytes(train_tokenizer((text for _, text in documents["train"]()), vocab_size))
    try:
        processor = sentencepiece.SentencePieceProcessor(model_file=str(spm))
    except RuntimeError:
        refuse("tokenizer", tokenizer, "is not a SentencePiece model")
    if len(processor) > 65535:
        refuse("tokenizer", tokenizer, f"has {len(processor)} pieces; at most 65535 fit uint16")
    manifest = {"source": source, "vocab_size": len(processor), "tokenizer_sha256": _sha256(spm)}
    for split in SPLITS:
        counts = {"documents": 0, "bytes": 0, "tokens": 0}
        with open(scratch / f"{split}.bin", "wb") as file:
            for _, text in documents[split]():
                ids = np.array([*processor.encode(text), processor.eos_id()], np.uint16)
                file.write(ids.tobytes())
                counts = {
                    "documents": counts["documents"] + 1,
                    "bytes": counts["bytes"] + len(text.encode()),
                    "tokens": counts["tokens"] + len(ids),
                }
                if counts["documents"] % 10_000 == 0:
                    say(f"{source} {split}: {counts['documents']:,} documents, {counts['tokens']:,} tokens")
        if not counts["tokens"]:
            refuse("source", source, f"has no {split} documents")
        manifest[split] = counts | {"sha256": _sha256(scratch / f"{split}.bin")}
        say(
            f"{source} {split}: {counts['documents']:,} documents, {counts['bytes'] / 1e6:.1f} MB of text, "
            f"{counts['tokens']:,} tokens ({time.monotonic() - started:.0f} s)"
        )
    identity = {s: manifest[s]["sha256"] for s in SPLITS} | {"tokenizer": manifest["tokenizer_sha256"]}
    manifest["fingerprint"] = digest(identity)
    (scratch / "manifest.json").write_text(json.dumps(manifest, indent=1))
    return manifest


def _sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.cache
def _stdlib_path(vocab_size: int) -> pathlib.Path:
    text = digest({name: text for name, text in stdlib_documents()})
    return folder("cache") / "data" / f"stdlib-{vocab_size}-{text[:12]}"


def open_dataset(name: str, vocab_size: int, prepare_missing: bool = True, say=print) -> Dataset | None:
    """The dataset that a run calls `name`: `synthetic`, `stdlib`, or a prepared folder of that name.

    `stdlib` is prepared on the spot when `prepare_missing`, else None stands for "not here". Raises UserError where
    another dataset is missing or its vocabulary is not `vocab_size`.
    """
    if name == "synthetic":
        identity = {"vocab": vocab_size, "copy": COPY_SHARE, "lag": COPY_LAG, "version": 1}
        return Dataset(name, vocab_size, digest(identity))
    path = _stdlib_path(vocab_size) if name == "stdlib" else folder("cache") / "data" / name
    if not (path / "manifest.json").exists():
        if name == "stdlib" and prepare_missing:
            return prepare("stdlib", vocab_size=vocab_size, say=say)
        if not prepare_missing:
            return None
        refuse("data", name, "is not prepared here; run `proxies data prepare` first")
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        found, fingerprint = manifest["vocab_size"], manifest["fingerprint"]
    except (ValueError, KeyError):
        raise UserError(f"data={name!r}: {path.name}/manifest.json is damaged; prepare it again") from None
    if found != vocab_size:
        refuse("vocab_size", vocab_size, f"dataset {name} has {found} pieces")
    return Dataset(name, vocab_size, fingerprint, str(path))
