"""Properties of preparing and opening data, over generated names, text, records and damage."""

import contextlib
import gzip
import io
import json
import os
import pathlib
import string

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from proxies_lib import cli, paths, prepared
from proxies_lib.config import UserError
from proxies_lib.runs import corpora, datasets, tokenizers


def cases(count):
    return settings(max_examples=count, deadline=None, derandomize=True, database=None)


def quiet(line):
    pass


ALPHABET = "abcdefgh ijklmnop\nqrstuvwxyz.,0123456789\té日"
DOCUMENTS = [f"document {i} of {ALPHABET[:30]} {i * 7919}" for i in range(30)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A SentencePiece model, trained once."""
    path = tmp_path_factory.mktemp("model") / "some.model"
    path.write_bytes(datasets.train_tokenizer([*DOCUMENTS, ALPHABET * 3], 80))
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory, model):
    """A folder with a text, a thesis, and a cache that holds a dataset and a foreign folder."""
    world = tmp_path_factory.mktemp("sandbox") / "home"
    home = world / "project" / ".cache" / "data"
    for folder in (home / "notes", world / "thesis", world / "project" / ".cache" / "xla"):
        folder.mkdir(parents=True)
        (folder / "chapter.tex").write_text("years of work")
    (world / "text.txt").write_text("\f".join(DOCUMENTS))
    (world / "thesis" / "manifest.json").write_text("{}")
    (home / "link").symlink_to(world / "thesis")
    (home / ".link-0123abcd").symlink_to(world / "thesis")
    with cache_of(world):
        prepared_text(world, model, "books")
    return world


def cache_of(world):
    return paths.environment("PROXIES_CACHE", str(world / "project" / ".cache"))


def prepared_text(world, model, name, say=quiet):
    return datasets.prepare("text", name, [str(world / "text.txt")], tokenizer=str(model), say=say)


def snapshot(folder):
    """Everything below a folder: kind, content and, of what was not written since, its inode."""
    found = {}
    for path in sorted(folder.rglob("*")):
        about = path.lstat()
        link = os.readlink(path) if path.is_symlink() else None
        content = path.read_bytes() if path.is_file() and not link else None
        found[str(path)] = (about.st_mode, about.st_ino, link, content)
    return found


def one_line(error) -> bool:
    return bool(str(error)) and str(error).isprintable()


# ------------------------------------------------------------------ names

COMPONENTS = ("..", ".", "/", "~", "thesis", "books", "notes", "link", "manifest.json", "xla", "a")
NAMES = st.one_of(
    st.lists(st.sampled_from(COMPONENTS), min_size=1, max_size=6).map("".join),
    st.lists(st.sampled_from(COMPONENTS), min_size=1, max_size=6).map("/".join),
    st.text(string.ascii_letters + string.digits + "._-", min_size=1, max_size=12),
    st.text(max_size=120),
)


def plain(name: str) -> bool:
    """The rule of names, written a second time."""
    letters = {*string.ascii_letters, *string.digits, *"._-"}
    if not 1 <= len(name) <= 100 or not set(name) <= letters:
        return False
    reserved = name.lower() in ("synthetic", "stdlib") or name.lower().startswith("stdlib-")
    return name[0] not in ".-" and name[-1] != "." and not reserved


@cases(200)
@given(name=NAMES)
@example(name="../../../thesis")
@example(name="..")
@example(name=".")
@example(name="/tmp/no-such-folder/thesis")
@example(name="notes")
@example(name="link")
@example(name="books")
def test_nothing_outside_the_datasets_own_folder_ever_changes(name, world, model):
    own = str(world / "project" / ".cache" / "data" / name)
    before = snapshot(world.parent)
    with cache_of(world):
        try:
            dataset = prepared_text(world, model, name)
            assert plain(name) and name not in ("notes", "link")
            assert dataset == datasets.open_dataset(name, dataset.vocab_size)
        except UserError as error:
            assert one_line(error) and (not plain(name) or name in ("notes", "link"))
            own = None
    after = snapshot(world.parent)
    changed = {p for p in before.keys() | after.keys() if before.get(p) != after.get(p)}
    assert all(own and (path == own or path.startswith(own + "/")) for path in changed)


@cases(400)
@given(name=NAMES)
def test_a_name_is_accepted_if_it_is_plain(name):
    try:
        datasets._check_name(name)
        accepted = True
    except UserError as error:
        accepted = False
        assert one_line(error)
    assert accepted == plain(name)


@cases(150)
@given(name=NAMES)
def test_any_name_that_a_run_gives_is_a_dataset_or_one_line(name, world, model):
    before = snapshot(world)
    with cache_of(world):
        try:
            found = datasets.open_dataset(name, 80) if name != "stdlib" else None
            assert found is None or found.name == name
        except UserError as error:
            assert one_line(error)
    assert snapshot(world) == before


# ------------------------------------------------------------------ text

TEXTS = st.lists(st.text(ALPHABET, max_size=60), min_size=1, max_size=12)


def split_into_documents(texts):
    """What a text file of these documents holds: form feeds part, blank parts are none."""
    parts = "\f".join(texts).split("\f")
    return [part.strip("\n") for part in parts if part.strip()]


@cases(150)
@given(texts=TEXTS, held=st.one_of(st.none(), TEXTS), twice=st.booleans())
def test_every_document_is_in_one_split_once_and_held_out_ones_are_never_trained_on(
    texts, held, twice, world
):
    where = world / "project" / "corpus"
    where.mkdir(exist_ok=True)
    (where / "train.txt").write_text("\f".join(texts))
    (where / "validation.txt").write_text("\f".join(held or ()))
    paths = [str(where / "train.txt")] * (2 if twice else 1)
    validation = [str(where / "validation.txt")] if held is not None else None
    kept = split_into_documents(texts)
    try:
        split = datasets._texts("text", paths, validation, None, quiet)
    except UserError as error:
        assert one_line(error) and held is not None
        assert not split_into_documents(held) or set(kept) <= set(split_into_documents(held))
        return
    train, validation = split["train"], split["validation"]
    if held is None and len(set(kept)) == 1:  # the end of the only one is held out
        assert len(train) <= 1 and len(validation) <= 1
        assert "".join("".join(train + validation).split()) == "".join(kept[0].split())
        return
    assert not set(train) & set(validation)
    assert len(train) == len(set(train)) and len(validation) == len(set(validation))
    if held is None:
        assert sorted({*train, *validation}) == sorted(set(kept))
    else:
        assert set(validation) == set(split_into_documents(held))
        assert set(train) == set(kept) - set(validation)


@cases(60)
@given(texts=st.lists(st.text(ALPHABET, min_size=1, max_size=60), min_size=2, max_size=12))
def test_what_is_packed_is_the_text_with_its_ends(texts, world, model):
    import sentencepiece

    (world / "text.txt").write_text("\f".join(texts))
    with cache_of(world):
        try:
            dataset = prepared_text(world, model, "packed")
        except UserError as error:
            assert one_line(error) and "documents" in str(error)
            return
    spm = sentencepiece.SentencePieceProcessor(model_file=str(model))
    manifest = json.loads((pathlib.Path(dataset.path) / "manifest.json").read_text())
    documents = []
    for split in prepared.SPLITS:
        ids = np.fromfile(pathlib.Path(dataset.path) / f"{split}.bin", np.uint16)
        assert ids.max() < len(spm) and ids[-1] == spm.eos_id()
        assert manifest[split]["unknown"] == np.count_nonzero(ids == spm.unk_id())
        parts = np.split(ids, np.flatnonzero(ids == spm.eos_id()) + 1)[:-1]
        documents += [spm.decode(part.tolist()) for part in parts]
    kept = split_into_documents(texts)
    if len(set(kept)) == 1:
        kept = sum(datasets._cut(kept[0]).values(), [])
    assert set(documents) == {spm.decode(spm.encode(text)) for text in kept}


@cases(100)
@given(content=st.binary(max_size=200), ending=st.sampled_from(["", ".txt", ".gz", ".xz"]))
@example(content=b"\xef\xbb\xbftext", ending=".txt")
def test_any_bytes_are_text_or_one_line(content, ending, world):
    path = world / f"any{ending}"
    path.write_bytes(content)
    try:
        documents = [text for _, text in corpora.text_documents([str(path)], say=quiet)]
    except UserError as error:
        assert one_line(error) and str(error).startswith(f"path={str(path)!r}: ")
        return
    assert all(text.strip() and not text.startswith("\ufeff") for text in documents)
    assert ending in (".gz", ".xz") or not content.startswith(b"\xff")


@cases(100)
@given(line=st.text(string.printable + "é日", max_size=5000))
def test_a_line_cut_for_sentencepiece_is_whole_in_its_parts(line):
    parts = tokenizers.cut(line)
    assert "".join(parts) == line
    assert all(len(part.encode()) <= 4192 for part in parts)


# ------------------------------------------------------------------ C4

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)
RECORDS = st.one_of(
    st.fixed_dictionaries({"text": st.text(max_size=20), "url": JSON}),
    st.fixed_dictionaries({"text": JSON}),
    JSON,
).map(lambda value: json.dumps(value).encode())
LINES = st.one_of(RECORDS, st.binary(max_size=12).filter(lambda b: b"\n" not in b), st.just(b" "))


@cases(250)
@given(lines=st.lists(LINES, max_size=5))
def test_records_of_a_shard_are_its_texts_or_the_first_odd_line_is_named(lines):
    def shard():
        return io.BytesIO(b"\n".join(lines))

    shard.args = ("shard",)
    expected, odd = [], None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode("utf-8-sig"))
            record["text"].encode()
            expected.append(record["text"])
        except (ValueError, KeyError, TypeError, AttributeError):
            odd = number
            break
    found = []
    try:
        for _, text in corpora.c4_documents([shard]):
            found.append(text)
        assert odd is None
    except UserError as error:
        assert one_line(error) and str(error).startswith(f"path='shard': line {odd} ")
    assert found == expected


@cases(100)
@given(position=st.integers(0, 400), byte=st.integers(0, 255), cut=st.booleans())
def test_a_damaged_shard_is_whole_or_one_line(position, byte, cut, world):
    lines = b"".join(json.dumps({"text": f"text {i}"}).encode() + b"\n" for i in range(60))
    content = bytearray(gzip.compress(lines, mtime=0))
    position %= len(content)
    content[position] = byte
    damaged = bytes(content[:position] if cut else content)

    def shard():
        return gzip.open(io.BytesIO(damaged))

    shard.args = ("shard",)
    try:
        found = [text for _, text in corpora.c4_documents([shard])]
        assert found in ([f"text {i}" for i in range(60)], [])  # nothing, of an empty file
    except UserError as error:
        assert one_line(error) and str(error).startswith("path='shard': ")


NUMBERS = st.integers(0, 3).map("{:05d}".format)
SHARD_NAMES = st.one_of(
    st.builds("c4-{}.{}-of-00004.json.gz".format, st.sampled_from(prepared.SPLITS), NUMBERS),
    st.builds(
        "c4-train.{}-of-{}{}.json.gz".format,
        NUMBERS,
        NUMBERS,
        st.sampled_from(["", "(1)", " (1)", ".part"]),
    ),
    st.sampled_from(["c4-train.0-of-4.json.gz", "c4-train.json.gz", "notes.txt", "c4-trai"]),
)
EXACT = {f"c4-train.{i:05d}-of-{of:05d}.json.gz" for i in range(4) for of in range(5)}


@cases(100)
@given(names=st.sets(SHARD_NAMES, max_size=5), count=st.none() | st.integers(1, 3))
def test_shards_are_those_of_exact_names_of_one_cut(names, count, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    for name in names:
        (folder / name).touch()
    exact = sorted(names & EXACT)
    try:
        found = corpora.c4_shards(str(folder), "train", count, quiet)
    except UserError as error:
        assert one_line(error) and len({name[-12:] for name in exact}) != 1
        return
    assert [pathlib.Path(shard.args[0]).name for shard in found] == exact[:count]


# ------------------------------------------------------------------ damage


@pytest.fixture(scope="module")
def frail(world, model):
    """A prepared dataset, and the bytes of its files."""
    (world / "text.txt").write_text("\f".join(DOCUMENTS))
    with cache_of(world):
        dataset = prepared_text(world, model, "frail")
    folder = pathlib.Path(dataset.path)
    return dataset, {path.name: path.read_bytes() for path in folder.iterdir()}


@contextlib.contextmanager
def changed(dataset, file, content):
    """Within, a file of the dataset holds other bytes, written in place."""
    path = pathlib.Path(dataset.path) / file
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(before)


@cases(250)
@given(
    file=st.sampled_from(prepared.FILES),
    place=st.floats(0, 1),
    byte=st.integers(0, 255),
    cut=st.booleans(),
)
def test_a_changed_byte_or_a_cut_is_noticed_or_changes_nothing(
    file, place, byte, cut, frail, world
):
    dataset, contents = frail
    content = bytearray(contents[file])
    position = int(place * (len(content) - 1))
    content[position] = byte
    damaged = bytes(content[:position] if cut else content)
    assume(damaged != contents[file])
    with cache_of(world), changed(dataset, file, damaged):
        try:
            found = datasets.open_dataset("frail", dataset.vocab_size)
        except UserError as error:
            assert one_line(error) and "frail" in str(error)
        else:  # white space or a count that only informs
            assert file == "manifest.json" and found == dataset
    with cache_of(world):
        assert datasets.open_dataset("frail", dataset.vocab_size) == dataset


@cases(200)
@given(
    changes=st.dictionaries(
        st.sampled_from(
            ["source", "vocab_size", "train", "validation", "tokenizer_sha256", "fingerprint", "x"]
        ),
        JSON,
        min_size=1,
    ),
    whole=st.none() | JSON,
)
def test_any_json_as_manifest_is_one_line_or_changes_nothing(changes, whole, frail, world):
    dataset, contents = frail
    manifest = json.loads(contents["manifest.json"]) | changes
    content = json.dumps(manifest if whole is None else whole).encode()
    with cache_of(world), changed(dataset, "manifest.json", content):
        try:
            assert datasets.open_dataset("frail", dataset.vocab_size) == dataset
        except UserError as error:
            assert one_line(error)
        lines = datasets.describe_all()
        assert sum("frail" in line for line in lines) == 1 and all(map(str.isprintable, lines))


@cases(150)
@given(
    flips=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=4),
    keep=st.floats(0, 1) | st.just(1.0),
)
def test_a_damaged_tokenizer_is_refused_or_makes_a_dataset_that_opens(flips, keep, model, world):
    (world / "text.txt").write_text("\f".join(DOCUMENTS))
    content = bytearray(model.read_bytes())
    for place, byte in flips:
        content[int(place * (len(content) - 1))] = byte
    damaged = world / "damaged.model"
    damaged.write_bytes(bytes(content[: int(keep * len(content))]))
    with cache_of(world):
        try:
            dataset = prepared_text(world, damaged, "flipped")
        except UserError as error:
            assert one_line(error)
            return
        assert datasets.open_dataset("flipped", dataset.vocab_size) == dataset
        for split in prepared.SPLITS:
            assert prepared.tokens_of(dataset)[split].max() < dataset.vocab_size


# ------------------------------------------------------------------ batches and the command


@cases(100)
@given(
    seed=st.integers(0, 2**31 - 1),
    step=st.integers(0, 10**6),
    seq_len=st.integers(1, 8),
    parts=st.sampled_from([1, 2, 4]),
)
def test_a_batch_is_the_rows_of_its_shards_and_of_the_corpus(seed, step, seq_len, parts, frail):
    dataset, contents = frail
    whole = dataset.batch("train", seed, step, 4, seq_len)
    shards = [dataset.batch("train", seed, step, 4, seq_len, i, parts) for i in range(parts)]
    np.testing.assert_array_equal(np.concatenate(shards), whole)
    tokens = np.frombuffer(contents["train.bin"], np.uint16)
    starts = range(0, len(tokens) - seq_len, seq_len)
    windows = {tuple(tokens[i : i + seq_len + 1].tolist()) for i in starts}
    assert {tuple(row) for row in whole.tolist()} <= windows


WORDS = st.one_of(
    st.sampled_from(["text", "c4", "stdlib", "synthetic", "--path", "--name", "--validation"]),
    st.sampled_from(["--tokenizer", "--vocab-size", "--shards", "0", "-1", "8", "9" * 5000, "x"]),
    st.sampled_from(["{text}", "{model}", "{folder}", "..", "", "text.txt", "*", "[", "a\0b"]),
    st.text(max_size=6),
)


@cases(200)
@given(words=st.lists(WORDS, max_size=8))
def test_any_arguments_of_data_prepare_end_in_a_dataset_or_one_line(words, world, model):
    (world / "text.txt").write_text("\f".join(DOCUMENTS))
    places = {"{text}": world / "text.txt", "{model}": model, "{folder}": world / "thesis"}
    arguments = ["data", "prepare", *(str(places.get(word, word)) for word in words)]
    assume("stdlib" not in words and not {"-h", "--help"} & set(words))
    out, err = io.StringIO(), io.StringIO()
    with cache_of(world), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = cli.main(arguments)
        except SystemExit as stop:
            status = stop.code
    lines = err.getvalue()
    assert (status, lines) == (0, "") or status == 2 and lines.startswith("proxies: ")
    assert lines.count("\n") <= 1 and (status == 0 or lines.endswith("\n"))
