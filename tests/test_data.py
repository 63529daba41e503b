import collections
import errno
import gzip
import hashlib
import io
import json
import lzma
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from proxies_lib import cli, config, data, prepared
from proxies_lib.config import UserError
from proxies_lib.runs import corpora, datasets, scratch, sweep, tokenizers
from proxies_lib.science import protocol

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"
quiet = {"say": lambda *_: None}


def stories(n, first=0):
    return [
        f"Story {i}. " + " ".join(f"word{(i * j) % 97} is here" for j in range(60))
        for i in range(first, first + n)
    ]


@pytest.fixture
def text_set(tmp_path):
    (tmp_path / "a.txt").write_text("\f\n".join(stories(40)))
    return datasets.prepare(
        "text", name="stories", path=[str(tmp_path / "a.txt")], vocab_size=200, **quiet
    )


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The folder of prepared datasets, of this test alone."""
    monkeypatch.setenv("PROXIES_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache" / "data").mkdir(parents=True)
    return tmp_path / "cache" / "data"


@pytest.fixture
def text_file(tmp_path, home):
    """Forty documents, in a home of their own."""
    (tmp_path / "text.txt").write_text("\f".join(stories(40)))
    return tmp_path / "text.txt"


@pytest.fixture
def model(tmp_path, home):
    (tmp_path / "some.model").write_bytes(datasets.train_tokenizer(stories(40), 200))
    return str(tmp_path / "some.model")


def prepare_text(file, name=None, **options):
    given = {"path": [str(file)], "vocab_size": 200}
    return datasets.prepare("text", name, **quiet | given | options)


def snapshot(folder):
    """Everything below a folder: links as links, files by content."""

    def content(path):
        if path.is_symlink():
            return os.readlink(path)
        return path.read_bytes() if path.is_file() else None

    return {path: (path.lstat().st_mode, content(path)) for path in folder.rglob("*")}


def test_synthetic_is_the_same_on_every_machine():
    first = datasets.open_dataset("synthetic", 64).batch("train", 3, 7, 4, 32)
    assert first.shape == (4, 33) and first.dtype == np.int32
    assert first[0, :12].tolist() == [33, 14, 1, 56, 0, 1, 14, 1, 1, 0, 16, 33]


def test_synthetic_entropy_floor_is_the_samples_own():
    """The mean surprise of samples under the true conditional distribution is the closed form."""
    V, T = 32, 64
    tokens = datasets.open_dataset("synthetic", V).batch("train", 0, 0, 2000, T)
    p = data.zipf(V)
    surprise = []
    for t in range(1, T + 1):
        fresh = p[tokens[:, t]]
        if t >= data.COPY_LAG:
            fresh = (1 - data.COPY_SHARE) * fresh + data.COPY_SHARE * (
                tokens[:, t] == tokens[:, t - data.COPY_LAG]
            )
        surprise.append(-np.log(fresh))
    assert np.mean(surprise) == pytest.approx(data.synthetic_entropy(V, T), rel=0.01)
    assert np.bincount(tokens.ravel(), minlength=V) / tokens.size == pytest.approx(p, abs=0.01)
    assert (
        data.synthetic_entropy(V, T) < -np.sum(p * np.log(p)) - 0.5
    )  # there is something to learn


def test_batches_are_stateless_and_differ_by_seed_step_and_split():
    d = datasets.open_dataset("synthetic", 64)
    a = d.batch("train", 0, 5, 8, 16)
    np.testing.assert_array_equal(a, d.batch("train", 0, 5, 8, 16))
    for other in (
        d.batch("train", 1, 5, 8, 16),
        d.batch("train", 0, 6, 8, 16),
        d.batch("validation", 0, 5, 8, 16),
    ):
        assert not np.array_equal(a, other)
    np.testing.assert_array_equal(
        d.batch("validation", 0, 0, 8, 16), d.batch("validation", 9, 0, 8, 16)
    )


def test_shards_of_a_batch_are_its_rows(text_set):
    for d in (text_set, datasets.open_dataset("synthetic", 64)):
        parts = [d.batch("train", 2, 3, 8, 16, shard=i, n_shards=4) for i in range(4)]
        np.testing.assert_array_equal(np.concatenate(parts), d.batch("train", 2, 3, 8, 16))


def test_an_epoch_visits_every_window_once(text_set):
    tokens = np.fromfile(pathlib.Path(text_set.path) / "train.bin", np.uint16)
    T, B = 16, 4
    n = (len(tokens) - 1) // T
    steps = n // B
    rows = np.concatenate([text_set.batch("train", 5, i, B, T) for i in range(steps)])
    windows = collections.Counter(tuple(tokens[i * T : i * T + T + 1]) for i in range(n))
    assert len(rows) == steps * B and not collections.Counter(map(tuple, rows)) - windows
    second = np.concatenate(
        [text_set.batch("train", 5, i, B, T) for i in range(steps + 1, 2 * steps)]
    )
    assert not np.array_equal(rows[: len(second)], second)


def test_documents_are_packed_with_eos_and_held_out_ones_never_trained_on(text_set):
    import sentencepiece

    spm = sentencepiece.SentencePieceProcessor(model_file=f"{text_set.path}/tokenizer.model")
    assert (spm.pad_id(), spm.eos_id(), spm.bos_id(), spm.unk_id()) == (0, 1, 2, 3)
    texts = {}
    for split in prepared.SPLITS:
        ids = np.fromfile(pathlib.Path(text_set.path) / f"{split}.bin", np.uint16)
        assert ids[-1] == 1 and 0 not in ids
        texts[split] = [
            spm.decode(part.tolist()) for part in np.split(ids, np.flatnonzero(ids == 1) + 1)[:-1]
        ]
    assert sorted(texts["train"] + texts["validation"]) == sorted(stories(40))
    assert texts["validation"] and not set(texts["train"]) & set(texts["validation"])


@pytest.mark.parametrize("between", ["\n", " "])
def test_of_one_document_the_end_is_held_out(tmp_path, between):
    """A book in one file: no form feed parts it, and it has lines or not."""
    lines = [f"{i} bottles of beer on the wall" for i in range(400)]
    (tmp_path / "book.txt").write_text(between.join(lines))
    said = []
    d = datasets.prepare(
        "text",
        name="book",
        path=[str(tmp_path / "book.txt")],
        vocab_size=60,
        say=said.append,
    )
    assert any("of the only document the last 5% are held out" in line for line in said)
    manifest = json.loads((pathlib.Path(d.path) / "manifest.json").read_text())
    counts = {split: manifest[split]["bytes"] for split in prepared.SPLITS}
    assert counts["validation"] == pytest.approx(0.05 * sum(counts.values()), rel=0.1)
    cut = datasets._cut((tmp_path / "book.txt").read_text())
    if between == "\n":
        assert cut["train"][0].split("\n") + cut["validation"][0].split("\n") == lines
    assert datasets._cut("x") == {"train": [], "validation": ["x"]}


def test_where_the_hash_holds_out_all_or_none_the_last_document_is(tmp_path, monkeypatch):
    (tmp_path / "two.txt").write_text("\f".join(stories(2)))
    for held in (True, False):
        monkeypatch.setattr(datasets, "held_out", lambda text, held=held: held)
        texts = datasets._texts("text", [str(tmp_path / "two.txt")], None, None, print)
        assert texts == {"train": stories(2)[:1], "validation": stories(2)[1:]}


def test_plain_gz_and_xz_files_give_the_same_dataset(tmp_path):
    content = "\f".join(stories(30)).encode()
    (tmp_path / "x.txt").write_bytes(content)
    (tmp_path / "x.txt.gz").write_bytes(gzip.compress(content))
    (tmp_path / "x.txt.xz").write_bytes(lzma.compress(content))
    first = [
        [t for _, t in corpora.text_documents([str(tmp_path / n)])]
        for n in ("x.txt", "x.txt.gz", "x.txt.xz")
    ]
    assert first[0] == first[1] == first[2] == stories(30)


def test_fingerprint_follows_text_and_tokenizer(tmp_path, text_set):
    (tmp_path / "b.txt").write_text("\f\n".join(stories(41)))
    other = datasets.prepare(
        "text", name="b", path=[str(tmp_path / "b.txt")], vocab_size=200, **quiet
    )
    (tmp_path / "a.txt").write_text("\f\n".join(stories(40)))
    again = datasets.prepare(
        "text", name="c", path=[str(tmp_path / "a.txt")], vocab_size=200, **quiet
    )
    assert other.fingerprint != text_set.fingerprint == again.fingerprint


def test_stdlib_is_real_text_with_line_breaks_and_indentation():
    import sentencepiece

    d = datasets.open_dataset("stdlib", 1024, **quiet)
    spm = sentencepiece.SentencePieceProcessor(model_file=f"{d.path}/tokenizer.model")
    code = "def f(x):\n    return x + 1\n"
    assert spm.decode(spm.encode(code)) == code and len(spm) == 1024
    manifest = json.loads((pathlib.Path(d.path) / "manifest.json").read_text())
    assert manifest["train"]["tokens"] > 1_000_000 and manifest["validation"]["tokens"] > 50_000
    assert datasets.open_dataset("stdlib", 1024, **quiet) == d


def write_shards(
    folder, train=("one two three " * 30,) * 6, validation=("four five six " * 30,) * 3
):
    folder.mkdir(exist_ok=True)
    for split, texts in (("train", train), ("validation", validation)):
        lines = "".join(
            json.dumps({"text": t, "timestamp": "", "url": f"u{i}"}) + "\n"
            for i, t in enumerate(texts)
        )
        with gzip.open(folder / f"c4-{split}.00000-of-00001.json.gz", "wt") as file:
            file.write(lines)
    return folder


def test_c4_reads_its_own_shards_with_a_given_tokenizer(tmp_path, text_set):
    where = write_shards(tmp_path / "en")
    spm = f"{text_set.path}/tokenizer.model"
    d = datasets.prepare("c4", name="mini-c4", path=[str(where)], tokenizer=spm, **quiet)
    manifest = json.loads((pathlib.Path(d.path) / "manifest.json").read_text())
    assert (manifest["train"]["documents"], manifest["validation"]["documents"]) == (6, 3)
    by_url = datasets.prepare("c4", name="mini-url", path=[where.as_uri()], tokenizer=spm, **quiet)
    assert by_url.fingerprint == d.fingerprint


def test_real_c4_with_the_t5_vocabulary():
    if not SHARED.exists():
        pytest.skip("the shared cut of C4 is not beside this checkout")
    d = datasets.prepare(
        "c4",
        name="c4-cut",
        path=[str(SHARED / "c4/en")],
        tokenizer=str(SHARED / "t5.model"),
        **quiet,
    )
    manifest = json.loads((pathlib.Path(d.path) / "manifest.json").read_text())
    assert d.vocab_size == 32101
    # 470,901 + 85,866 T5 tokens without EOS, one EOS a document
    assert manifest["train"]["tokens"] in (470_901, 470_901 + 1_000)
    assert manifest["validation"]["tokens"] in (85_866, 85_866 + 200)


def bad_inputs(tmp_path, spm):
    shards = write_shards(tmp_path / "bad")
    broken = shards / "c4-train.00000-of-00001.json.gz"
    broken.write_bytes(broken.read_bytes()[:40] + b"garbage")
    (tmp_path / "empty.txt").write_text("\n \f ")
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(b"hello " * 1000)[:30])
    none = write_shards(tmp_path / "none", train=())
    return {
        "path='nowhere.txt': no such file": ("text", {"path": ["nowhere.txt"]}),
        "has no train documents": ("c4", {"path": [str(none)], "tokenizer": spm}),
        "has no validation documents": (
            "text",
            {"path": [str(tmp_path / "empty.txt")], "tokenizer": spm},
        ),
        "cannot be read": ("text", {"path": [str(tmp_path / "cut.txt.gz")]}),
        "is not a C4 json.gz shard": ("c4", {"path": [str(shards)], "tokenizer": spm}),
        "cannot be listed": ("c4", {"path": ["nosuch://bucket/en"], "tokenizer": spm}),
        "needs --tokenizer": ("c4", {"path": [str(shards)]}),
        "holds no c4-train": ("c4", {"path": [str(tmp_path)], "tokenizer": spm}),
        "source='wiki'": ("wiki", {}),
        "tokenizer='no.model': no such file": ("stdlib", {"tokenizer": "no.model"}),
        "is not a SentencePiece model": (
            "stdlib",
            {"tokenizer": str(tmp_path / "empty.txt"), "name": "z"},
        ),
    }


def test_bad_corpora_are_refused_in_one_line_and_leave_nothing(tmp_path, text_set):
    home = pathlib.Path(text_set.path).parent
    before = sorted(p.name for p in home.iterdir())
    for words, (source, options) in bad_inputs(
        tmp_path, f"{text_set.path}/tokenizer.model"
    ).items():
        with pytest.raises(UserError) as error:
            datasets.prepare(source, **options, **quiet)
        expected = "has no train documents" if "no validation" in words else words
        assert expected in str(error.value) and "\n" not in str(error.value), words
    assert sorted(p.name for p in home.iterdir()) == before


def test_a_dataset_that_is_not_prepared_or_of_another_vocabulary_is_refused(text_set):
    with pytest.raises(UserError, match="data='nothing'.*prepare"):
        datasets.open_dataset("nothing", 64)
    with pytest.raises(UserError, match="vocab_size=64.*200 pieces"):
        datasets.open_dataset("stories", 64)
    with pytest.raises(UserError, match="batch_size"):
        text_set.batch("validation", 0, 0, 10_000, 64)


def test_the_order_of_batches_can_be_changed():
    """Batches are skipped, repeated or replaced by their number; all else stays bit for bit."""
    corpus, run = datasets.open_dataset("synthetic", 64), protocol.scales()["smoke"].base
    T = run.model.seq_len

    def batches(**changes):
        order = config.replace(run, **changes).order
        return np.concatenate(
            [
                corpus.chunk(order, begin, run.train, T)
                for begin in range(0, 40, run.train.log_every)
            ]
        )

    plain = batches()
    assert np.array_equal(
        batches(skip_step=7, skip_batches=5)[:35], np.delete(plain, range(7, 12), 0)
    )
    assert np.array_equal(batches(corpus_batches=3), np.concatenate([plain[:3]] * 14)[:40])
    rare = batches(rare_batch=20, rare_batches=2)
    assert (rare[20:22] == rare[20, 0, 0]).all() and rare.max() < 64
    assert np.array_equal(np.delete(rare, (20, 21), 0), np.delete(plain, (20, 21), 0))
    noise = batches(rare_batch=20, rare_batches=2, rare_kind="uniform")
    assert noise[20:22].min() >= 0 and noise[20:22].max() < 64
    # Of 64 tokens, drawn some 260 times, nearly each comes; the two batches differ.
    assert len(np.unique(noise[20:22])) > 55 and not np.array_equal(noise[20], noise[21])
    assert np.array_equal(np.delete(noise, (20, 21), 0), np.delete(plain, (20, 21), 0))
    around = batches(rare_batch=20, rare_batches=2, skip_step=18, skip_batches=4)
    assert np.array_equal(around, batches(skip_step=18, skip_batches=4)), (
        "what is skipped is never seen"
    )
    halves = [
        corpus.chunk(config.replace(run, rare_batch=3, rare_batches=1).order, 0, run.train, T, i, 2)
        for i in (0, 1)
    ]
    assert np.array_equal(np.concatenate(halves, 1)[3], np.full((4, T + 1), halves[0][3, 0, 0]))
    order = config.replace(run, rare_batch=3, rare_batches=1, rare_kind="uniform").order
    halves = [corpus.chunk(order, 0, run.train, T, i, 2) for i in (0, 1)]
    assert np.array_equal(np.concatenate(halves, 1), corpus.chunk(order, 0, run.train, T))


# ------------------------------------------------------------------ nothing of the user's is lost


NO_NAMES = (
    ".",
    "..",
    "/",
    "/tmp/thesis",
    "../../../thesis",
    "a/b",
    "a\\b",
    "",
    " ",
    "a ",
    "a.",
    ".hidden",
    "-x",
    "a\0b",
    "a\n",
    "é",
    "x" * 101,
    "synthetic",
    "stdlib",
    "STDLIB",
    "stdlib-256-c82421942",
)


@pytest.mark.parametrize("name", NO_NAMES)
def test_a_name_is_one_plain_component_and_not_reserved(name, text_file):
    with pytest.raises(UserError, match=r"^name=.*(letters, digits|is reserved)"):
        prepare_text(text_file, name=name)


def test_a_folder_that_is_no_dataset_is_never_replaced(tmp_path, text_file, home):
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter.tex").write_text("years of work")
    for name in ("only-text", "with-manifest", "empty", "in-folders"):
        (home / name).mkdir(parents=True)
    (home / "only-text" / "chapter.tex").write_text("years of work")
    for file in ("manifest.json", "train.bin", "chapter.tex"):
        (home / "with-manifest" / file).write_text("{}")
    for folder in ("manifest.json", "train.bin"):
        (home / "in-folders" / folder).mkdir()
    (home / "a-file").write_text("years of work")
    (home / "a-link").symlink_to(thesis)
    (home / "a-broken-link").symlink_to(tmp_path / "nowhere")
    before = snapshot(tmp_path)
    for path in home.iterdir():
        with pytest.raises(UserError, match=r"^name=.*(folder|file or link)") as error:
            prepare_text(text_file, name=path.name)
        assert "\n" not in str(error.value)
    assert snapshot(tmp_path) == before


def test_a_damaged_dataset_can_be_prepared_again(text_file, home):
    for content in (b"[]", b"{", b"\xff", b"null"):
        first = prepare_text(text_file, name="again")
        (home / "again" / "manifest.json").write_bytes(content)
        assert prepare_text(text_file, name="again") == first == datasets.open_dataset("again", 200)
    for file in ("train.bin", "validation.bin", "tokenizer.model"):
        (home / "again" / file).unlink()
    assert prepare_text(text_file, name="again") == first


def test_the_old_dataset_comes_back_when_the_new_one_cannot_take_its_place(
    text_file, home, monkeypatch
):
    first, rename = prepare_text(text_file, name="kept"), os.rename

    def fail_at_the_second(source, target):
        if pathlib.Path(source).name == "new":
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail_at_the_second)
    text_file.write_text("\f".join(stories(40, first=7)))
    with pytest.raises(UserError, match=r"^data='kept': cannot be written.*Input/output error"):
        prepare_text(text_file, name="kept")
    assert datasets.open_dataset("kept", 200) == first
    assert [p.name for p in home.iterdir()] == ["kept"]


def test_what_killed_preparations_left_is_removed_but_not_what_a_live_one_writes(text_file, home):
    target = home / "books"
    for left in (".books-0123abcd/new", ".books-tmp_dir1", ".books-00000000/new"):
        (home / left).mkdir(parents=True)
        (home / left / "train.bin").write_bytes(b"half")
    (home / ".books-00000000" / "notes.txt").write_text("not a dataset's")
    (home / ".books-more-0123abcd" / "new").mkdir(parents=True)
    (home / ".books-11111111").symlink_to(home / ".books-more-0123abcd")
    kept = {".books-00000000", ".books-more-0123abcd", ".books-11111111", "books"}
    with scratch.scratch_for(target) as alive:
        prepare_text(text_file, name="books")
        assert (alive / "new").is_dir()
        assert {p.name for p in home.iterdir()} == kept | {alive.name}
    assert {p.name for p in home.iterdir()} == kept
    assert (home / ".books-00000000" / "notes.txt").exists()


def test_a_dataset_taken_aside_by_a_killed_preparation_comes_back(text_file, home):
    first = prepare_text(text_file, name="books")
    (home / ".books-0123abcd").mkdir()
    (home / "books").rename(home / ".books-0123abcd" / "old")
    with pytest.raises(UserError, match="cannot train"):
        prepare_text(text_file, name="books", vocab_size=60000)
    assert datasets.open_dataset("books", 200) == first


@pytest.mark.parametrize("how, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_preparation_leaves_nothing(how, status, tmp_path, text_file, home):
    process = start_long_preparation(tmp_path, text_file, home)
    process.send_signal(how)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status, errors
    assert errors.startswith("proxies: ") and errors.count("\n") == 1
    assert [p.name for p in home.iterdir()] == ["spm"]


def test_a_killed_preparation_is_cleared_up_by_the_next(tmp_path, text_file, home):
    process = start_long_preparation(tmp_path, text_file, home)
    process.kill()
    process.wait()
    assert len(list(home.glob(".long-*"))) == 1
    prepare_text(text_file, name="long")
    assert sorted(p.name for p in home.iterdir()) == ["long", "spm"]


def start_long_preparation(tmp_path, text_file, home):
    """A process that packs 15 MB of text, at work."""
    model = pathlib.Path(prepare_text(text_file, name="spm").path) / "tokenizer.model"
    long = tmp_path / "long.txt"
    long.write_text("\f".join(stories(25_000)))
    command = [sys.executable, "-m", "proxies_lib.cli", "data", "prepare", "text", "--name", "long"]
    command += ["--path", str(long), "--tokenizer", str(model)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while not list(home.glob(".long-*/new/validation.bin")):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.01)
    return process


def test_a_full_disk_and_a_cache_that_is_no_folder_are_one_line(
    tmp_path, text_file, home, monkeypatch
):
    before = snapshot(home)
    command = f"ulimit -f 1; exec {sys.executable} -m proxies_lib.cli data prepare text"
    command += f" --path {text_file} --vocab-size 200"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "data='text': cannot be written in" in done.stderr and "too large" in done.stderr
    assert snapshot(home) == before
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PROXIES_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"^data='text': cannot be written in .*/file/data"):
        prepare_text(text_file)


def test_a_dataset_has_the_permissions_that_the_user_asks_for(text_file, home):
    (text_file.parent / "private.model").write_bytes(b"")
    before = os.umask(0o027)
    try:
        prepare_text(text_file, name="shared")
        model = text_file.parent / "private.model"
        model.write_bytes((home / "shared" / "tokenizer.model").read_bytes())
        model.chmod(0o600)
        prepare_text(text_file, name="shared", vocab_size=None, tokenizer=str(model))
    finally:
        os.umask(before)
    assert (home / "shared").stat().st_mode & 0o777 == 0o750
    assert {p.stat().st_mode & 0o777 for p in (home / "shared").iterdir()} == {0o640}


# ------------------------------------------------------------------ equal keys, equal numbers


def zero(path):
    """16 bytes in the middle become 0; the time of the last change is what it was."""
    about, content = path.stat(), bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 16] = bytes(16)
    path.write_bytes(content)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


def half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def fifo(path):
    path.unlink()
    os.mkfifo(path)


def directory(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("file", ["train.bin", "validation.bin", "tokenizer.model"])
@pytest.mark.parametrize("damage", [zero, half, fifo, directory, pathlib.Path.unlink])
def test_damaged_tokens_are_one_line_that_says_what_to_do(damage, file, text_file, home):
    prepared = prepare_text(text_file, name="frail")
    prepared.batch("train", 0, 0, 2, 16)  # found right, and mapped, before the damage
    damage(home / "frail" / file)
    with pytest.raises(UserError) as error:
        datasets.open_dataset("frail", 200)
    advice = "prepare it again with `proxies data prepare`"
    line = rf"data='frail': frail/{re.escape(file)} .*; {advice}"
    assert re.fullmatch(line, str(error.value))
    if damage is directory:
        (home / "frail" / file).rmdir()
    again = prepare_text(text_file, name="frail")
    assert datasets.open_dataset("frail", 200) == again
    assert 0 not in again.batch("train", 0, 0, 8, 16), "the map of the damaged file is not used"


def test_a_dataset_that_was_not_opened_by_this_process_is_checked_before_it_is_read(
    text_file, home
):
    prepared = prepare_text(text_file, name="unread")
    zero(home / "unread" / "train.bin")
    with pytest.raises(UserError, match=r"unread/train.bin is damaged"):
        prepared.batch("train", 0, 0, 2, 16)


def test_token_ids_above_the_vocabulary_are_refused(text_file, home):
    prepare_text(text_file, name="above")
    path = home / "above" / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"vocab_size": 100}))
    with pytest.raises(UserError, match=r"above/.*\.bin has token \d+, above the vocabulary"):
        datasets.open_dataset("above", 100)


def test_checksums_are_compared_once_per_process(text_file, home, monkeypatch):
    prepare_text(text_file, name="once")
    counted, digest = [], hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *a: counted.append(a) or digest(*a))
    for _ in range(3):
        datasets.open_dataset("once", 200).batch("train", 0, 0, 2, 16)
    assert len(counted) == 3
    datasets.open_dataset("once", 200, prepare_missing=False)
    assert len(counted) == 3


def test_the_damaged_standard_library_is_prepared_again_with_a_line(home, monkeypatch):
    few = [(f"{i}.py", text) for i, text in enumerate(stories(60))]
    monkeypatch.setattr(datasets, "stdlib_documents", lambda: few)
    monkeypatch.setattr(datasets, "_stdlib_digest", lambda: "0" * 24)
    first = datasets.open_dataset("stdlib", 200, **quiet)
    folder = pathlib.Path(first.path)
    for damage, file in ((zero, "train.bin"), (half, "train.bin"), (half, "manifest.json")):
        damage(folder / file)
        said = []
        assert datasets.open_dataset("stdlib", 200, say=said.append) == first
        assert said[0].startswith(f"data='stdlib': {folder.name}/{file} ")
        assert said[0].endswith("; training prepares it again")
    (folder / "manifest.json").unlink()
    assert datasets.open_dataset("stdlib", 200, prepare_missing=False, **quiet) is None
    assert datasets.open_dataset("stdlib", 200, **quiet) == first
    assert [path.name for path in home.iterdir()] == [folder.name]


def test_the_standard_library_is_split_as_ever():
    """Its fingerprint is in the keys of stored runs: held out by path, all else as before."""
    kept = datasets._texts("stdlib", None, None, None, print)
    documents = corpora.stdlib_documents()
    share = 0.05 * 2**32
    held = [
        text
        for name, text in documents
        if int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) < share
    ]
    assert kept["validation"] == held
    assert len(kept["train"]) == len(documents) - len(held)
    longest = max(len(line) for _, text in documents for line in text.splitlines())
    assert longest <= tokenizers.LONGEST, "a longer line is cut in training the vocabulary"


BAD_MANIFESTS = {
    "a list": "[]",
    "null": "null",
    "a number": "7",
    "no JSON": "{",
    "deep": "[" * 100_000,
    "not UTF-8": "\udcff",
    "empty": "",
    "a huge number": '{"vocab_size": ' + "9" * 5000 + "}",
}


@pytest.mark.parametrize("content", BAD_MANIFESTS.values(), ids=BAD_MANIFESTS)
def test_a_manifest_that_is_none_is_one_line(content, text_file, home, capsys):
    prepare_text(text_file, name="torn")
    path = home / "torn" / "manifest.json"
    path.write_text(content, "utf-8", errors="surrogateescape")
    with pytest.raises(UserError, match=r"^data='torn': torn/manifest.json is damaged; .*again"):
        datasets.open_dataset("torn", 200)
    prepare_text(text_file, name="whole")
    assert cli.main(["data", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("data='torn': torn/manifest.json is damaged") for line in lines)
    assert any(line.startswith("whole: text, vocabulary 200") for line in lines)


@pytest.mark.parametrize(
    "changes",
    [
        {"vocab_size": True},
        {"vocab_size": "200"},
        {"vocab_size": 0},
        {"vocab_size": 65536},
        {"source": None},
        {"train": None},
        {"train": {}},
        {"validation": {"tokens": -1, "sha256": ""}},
        {"tokenizer_sha256": "0"},
        {"fingerprint": "0" * 24},
        {"fingerprint": None},
    ],
    ids=str,
)
def test_a_manifest_of_a_wrong_shape_or_fingerprint_is_damaged(changes, text_file, home):
    prepare_text(text_file, name="torn")
    path = home / "torn" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError, match="torn/manifest.json is damaged"):
        datasets.open_dataset("torn", 200)


def test_a_dataset_prepared_again_is_never_read_under_the_old_fingerprint(text_file, tmp_path):
    old = prepare_text(text_file, name="moving")
    unread = prepare_text(text_file, name="unread-yet")
    before = old.batch("train", 0, 0, 4, 16)
    text_file.write_text("\f".join(stories(40, first=20)))
    new, other = (prepare_text(text_file, name=d.name) for d in (old, unread))
    assert new.fingerprint != old.fingerprint
    np.testing.assert_array_equal(old.batch("train", 0, 0, 4, 16), before)
    opened = datasets.open_dataset("moving", 200)
    assert opened == new
    fresh = np.fromfile(pathlib.Path(new.path) / "train.bin", np.uint16)
    batch = opened.batch("train", 0, 0, 4, 16)
    assert not np.array_equal(batch, before)
    windows = {tuple(fresh[i : i + 17]) for i in range(0, len(fresh) - 16, 16)}
    assert all(tuple(row) in windows for row in batch)
    old.batch("validation", 0, 0, 2, 16)  # both splits stay readable to the run that began
    with pytest.raises(UserError, match=r"^data='unread-yet': was prepared again since"):
        unread.batch("train", 0, 0, 4, 16)
    other.batch("train", 0, 0, 4, 16)


def test_lanes_refuse_a_corpus_that_was_prepared_again_since_their_plan(text_file, tmp_path, smoke):
    """Their checkpoints have the planned keys: nothing may go on from other tokens under them."""
    prepare_text(text_file, name="replaced")
    plan = sweep.plan([config.replace(smoke, data="replaced", vocab_size=200)], tmp_path / "store")
    text_file.write_text("\f".join(stories(40, first=20)))
    prepare_text(text_file, name="replaced")
    with pytest.raises(UserError, match=r"^data='replaced': was prepared again since the sweep"):
        sweep.run(plan, engine="lanes", quiet=True)
    assert not list((tmp_path / "store").rglob("*.npz"))


# ------------------------------------------------------------------ held-out text is not trained on


def texts_of(dataset):
    """The documents of each split, decoded from what is stored."""
    import sentencepiece

    spm = sentencepiece.SentencePieceProcessor(model_file=f"{dataset.path}/tokenizer.model")
    texts = {}
    for split in prepared.SPLITS:
        ids = np.fromfile(pathlib.Path(dataset.path) / f"{split}.bin", np.uint16)
        ends = np.flatnonzero(ids == spm.eos_id()) + 1
        texts[split] = [spm.decode(part.tolist()) for part in np.split(ids, ends)[:-1]]
    return texts


def test_what_is_given_as_validation_is_not_trained_on(tmp_path, home):
    books = tmp_path / "books"
    books.mkdir()
    for i, name in enumerate(("x", "y", "z")):
        (books / f"{name}.txt").write_text("\f".join(stories(10, first=10 * i)))
    said, held = [], [str(books / "z.txt")]
    every = [f"{books}/*.txt"]
    prepared = datasets.prepare("text", "apart", every, held, vocab_size=200, say=said.append)
    texts = texts_of(prepared)
    assert texts["train"] == stories(20) and texts["validation"] == stories(10, first=20)
    assert "text: 10 documents of --path are held out by --validation, not trained on" in said
    with pytest.raises(UserError, match="path=.*has no document that --validation does not hold"):
        datasets.prepare("text", "nothing", held, held, vocab_size=200, **quiet)


def test_documents_are_told_apart_by_content_and_count_once(tmp_path, home):
    """Of two files of one name, each document has its own fate; a copy is the same document."""
    for name, first in (("a", 0), ("b", 40)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "same.txt").write_text("\f".join(stories(40, first)))
    paths = [str(tmp_path / name / "same.txt") for name in ("a", "b")]
    said = []
    once = datasets.prepare("text", "once", paths, vocab_size=200, say=said.append)
    held = [text for text in stories(80) if datasets.held_out(text)]
    assert texts_of(once)["validation"] == held
    places = [{i for i in range(40) if text[i] in held} for text in (stories(40), stories(40, 40))]
    assert places[0] != places[1], "a file's name and a document's number decide nothing"
    assert not any("repeated" in line for line in said)
    twice = datasets.prepare("text", "twice", paths * 2, vocab_size=200, say=said.append)
    assert twice.fingerprint == once.fingerprint
    assert "text: 80 repeated documents are left out" in said


def test_an_empty_validation_file_is_refused(tmp_path, text_file):
    (tmp_path / "empty.txt").write_text("\n\f \n")
    with pytest.raises(UserError, match=r"^validation='.*empty.txt': holds no text"):
        prepare_text(text_file, validation=[str(text_file), str(tmp_path / "empty.txt")])


def test_a_c4_document_of_validation_is_not_trained_on(tmp_path, model):
    texts = [f"text {i} of several words" * 20 for i in range(8)]
    shards, said = write_shards(tmp_path / "en", train=texts, validation=texts[5:]), []
    d = datasets.prepare("c4", "apart-c4", [str(shards)], tokenizer=model, say=said.append)
    manifest = json.loads((pathlib.Path(d.path) / "manifest.json").read_text())
    assert (manifest["train"]["documents"], manifest["validation"]["documents"]) == (5, 3)
    assert "c4: 3 train documents are held out by validation, not trained on" in said


def test_only_exact_names_are_c4_shards(tmp_path, model):
    shards, said = write_shards(tmp_path / "e[n]"), []
    whole = shards / "c4-train.00000-of-00001.json.gz"
    for stray in (
        "c4-train.00000-of-00001.json(1).json.gz",
        "c4-train.00000-of-00001.part.json.gz",
        "c4-train.00000-of-00001 (1).json.gz",
        "c4-train.0-of-1.json.gz",
    ):
        (shards / stray).write_bytes(whole.read_bytes())
    d = datasets.prepare("c4", "exact", [str(shards)], tokenizer=model, say=said.append)
    manifest = json.loads((pathlib.Path(d.path) / "manifest.json").read_text())
    assert manifest["train"]["documents"] == 6
    assert sum("is passed over" in line for line in said) == 4
    (shards / "c4-train.00001-of-01024.json.gz").write_bytes(whole.read_bytes())
    with pytest.raises(UserError, match="several cuts, of 1 and 1024 shards"):
        datasets.prepare("c4", "exact", [str(shards)], tokenizer=model, **quiet)


# ------------------------------------------------------------------ one clear line


BAD_RECORDS = {
    b"[]": "is not a JSON object",
    b"null": "is not a JSON object",
    b'"text"': "is not a JSON object",
    b"{}": 'has no "text"',
    b'{"text": 7}': 'has a "text" that is not a string',
    b'{"text": null}': 'has a "text" that is not a string',
    b'{"text": "\\ud800"}': 'has a "text" that is not Unicode',
    b'{"text": "\xff"}': "is not UTF-8",
    b'{"text": "cut': "is not JSON",
    b"[" * 100_000: "is not JSON",
}


@pytest.mark.parametrize("line", BAD_RECORDS, ids=BAD_RECORDS.values())
def test_an_odd_record_of_a_shard_is_named_by_shard_and_line(line, tmp_path, model, home):
    shards = write_shards(tmp_path / "en")
    content = b'\xef\xbb\xbf{"text": "fine"}\n\n' + line + b"\n"
    with gzip.open(shards / "c4-train.00000-of-00001.json.gz", "wb") as file:
        file.write(content)
    before = snapshot(home)
    with pytest.raises(UserError) as error:
        datasets.prepare("c4", "odd", [str(shards)], tokenizer=model, **quiet)
    expected = f"c4-train.00000-of-00001.json.gz': line 3 {BAD_RECORDS[line]}"
    assert str(error.value).endswith(expected)
    assert snapshot(home) == before


def test_blank_lines_of_a_shard_are_no_documents(tmp_path, model, home):
    shards = write_shards(tmp_path / "en")
    with gzip.open(shards / "c4-train.00000-of-00001.json.gz", "wb") as file:
        file.write(b'\n{"text": "word"}\n  \n\r\n{"text": "is here"}\n\n')
    d = datasets.prepare("c4", "blanks", [str(shards)], tokenizer=model, **quiet)
    assert texts_of(d)["train"] == ["word", "is here"]


def test_a_line_longer_than_sentencepiece_takes_still_makes_the_vocabulary(tmp_path, home):
    """Such lines were dropped in silence once, and a text of nothing else refused with "()"."""
    long = tmp_path / "long.txt"
    long.write_text("\f".join(document.replace("\n", " ") * 10 for document in stories(20)))
    d = datasets.prepare("text", "long-lines", [str(long)], vocab_size=200, **quiet)
    assert tokenizers.cut("ab" * tokenizers.LONGEST) == ["ab" * (tokenizers.LONGEST // 2)] * 2
    ids = np.fromfile(pathlib.Path(d.path) / "train.bin", np.uint16)
    assert not np.any(ids == 3), "its letters are known"


def test_what_sentencepiece_cannot_train_on_is_said(tmp_path):
    (tmp_path / "few.txt").write_text("ab\fcd")
    with pytest.raises(UserError, match=r"vocab_size=500: .*too high \(500\).*a value <= \d+"):
        prepare_text(tmp_path / "few.txt", vocab_size=500)
    with pytest.raises(UserError, match=r"nothing to count"):
        datasets.train_tokenizer([" "], 64)


def test_a_path_with_brackets_is_itself_before_it_is_a_glob(tmp_path, home):
    for name, first in (("book[1].txt", 0), ("book1.txt", 100)):
        (tmp_path / name).write_text("\f".join(stories(10, first)))
    literal = [text for _, text in corpora.text_documents([str(tmp_path / "book[1].txt")])]
    assert literal == stories(10)
    (tmp_path / "book[1].txt").unlink()
    matched = [text for _, text in corpora.text_documents([str(tmp_path / "book[1].txt")])]
    assert matched == stories(10, 100)


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\ftwo")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"\xef\xbb\xbfthree"))
    paths = [str(tmp_path / "a.txt"), str(tmp_path / "b.txt.gz")]
    assert [text for _, text in corpora.text_documents(paths)] == ["one", "two", "three"]


def odd_files(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder").mkdir()
    return {
        "fifo": "is not a regular file",
        "loop": "cannot be read (Too many levels of symbolic links)",
        "broken": "no such file",
        "folder": "is a folder, not a file",
        "no": "no such file",
        "fif[o]": "is not a regular file",
    }


@pytest.mark.parametrize("option", ["path", "validation", "tokenizer"])
def test_what_is_not_a_regular_file_is_refused_unopened(option, tmp_path, text_file, home):
    before = snapshot(home)
    for name, words in odd_files(tmp_path).items():
        value = str(tmp_path / name)
        if option == "tokenizer" and "[" in name:  # no glob
            continue
        options = {option: value if option == "tokenizer" else [value]}
        with pytest.raises(UserError) as error:
            prepare_text(text_file, **{"vocab_size": None} | options)
        assert str(error.value).startswith(f"{option}='{tmp_path}/")
        assert str(error.value).endswith(f": {words}")
    device = "/dev/zero" if option == "tokenizer" else ["/dev/zero"]
    with pytest.raises(UserError, match=f"^{option}='/dev/zero': is not a regular file"):
        prepare_text(text_file, **{"vocab_size": None, option: device})
    assert snapshot(home) == before


def test_a_fifo_among_c4_shards_is_passed_over(tmp_path, model):
    shards = write_shards(tmp_path / "en")
    os.mkfifo(shards / "c4-train.00001-of-00001.json.gz")
    datasets.prepare("c4", "no-fifo", [str(shards)], tokenizer=model, **quiet)


def test_a_tokenizer_without_end_of_sentence_is_refused(tmp_path, text_file):
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(stories(40)),
        model_writer=model,
        vocab_size=50,
        eos_id=-1,
        bos_id=-1,
        minloglevel=2,
    )
    (tmp_path / "endless.model").write_bytes(model.getvalue())
    (tmp_path / "empty.model").write_bytes(b"")
    expected = {"endless": "has no end-of-sentence piece", "empty": "is not a SentencePiece"}
    for name, words in expected.items():
        with pytest.raises(UserError, match=rf"^tokenizer='.*{name}.model': {words}"):
            prepare_text(text_file, vocab_size=None, tokenizer=str(tmp_path / f"{name}.model"))


NOT_HONOURED = {
    "stdlib --path x": "path=['x']: source stdlib has no such option",
    "stdlib --validation x": "validation=['x']: source stdlib has no such option",
    "stdlib --shards 2": "shards=2: source stdlib has no such option",
    "stdlib --name stdlib": "name='stdlib': is reserved",
    "stdlib --tokenizer {model}": "name=None: stdlib with another tokenizer",
    "synthetic --name x": "name='x': source synthetic has no such option",
    "text --path x --shards 1": "shards=1: source text has no such option",
    "text --path {text} --tokenizer {model} --vocab-size 64": "vocab_size=64: the tokenizer has",
    "c4 --path x y --tokenizer {model}": "path=['x', 'y']: must be one folder or URL prefix",
    "c4 --path x --tokenizer {model} --shards 0": "shards=0: must be a whole number in 1..",
    "c4 --path x --tokenizer {model} --shards -1": "shards=-1: must be a whole number in 1..",
    "text --path {text} --vocab-size 0": "vocab_size=0: must be a whole number in 8..65535",
    "text --path {text} --vocab-size -5": "vocab_size=-5: must be a whole number in 8..65535",
    "text --path {text} --vocab-size 65536": "vocab_size=65536: must be a whole number",
    "text --path {text} --vocab-size 100000000000000000000": "must be a whole number in 8..65535",
    "text --path {text} --vocab-size 10**20": "invalid int value",
    "text --path=": "path=['']: must be a list of names",
    "text --path {text} --validation=": "validation=['']: must be a list of names",
    "text --path {text} --tokenizer=": "tokenizer='': no such file",
}


@pytest.mark.parametrize("arguments", NOT_HONOURED)
def test_an_option_that_is_not_honoured_is_refused(arguments, text_file, model, home, capsys):
    before = snapshot(home)
    words = ["data", "prepare", *arguments.format(text=text_file, model=model).split()]
    try:
        status = cli.main(words)
    except SystemExit as stop:
        status = stop.code
    out, err = capsys.readouterr()
    assert status == 2 and not out
    assert err.startswith("proxies: ") and err.count("\n") == 1 and NOT_HONOURED[arguments] in err
    assert snapshot(home) == before


def test_the_share_of_unknown_pieces_is_said(tmp_path, text_file, model):
    said = []
    text_file.write_text("\f".join(stories(40)) + "日x" * 50)
    prepare_text(text_file, vocab_size=None, tokenizer=model, say=said.append)
    lines = [line for line in said if "<unk>" in line]
    assert len(lines) == 2 and all(re.search(r", \d+\.\d\d% <unk>", line) for line in lines)


@pytest.mark.parametrize("name", ["", ".", "..", "a\0b", "x" * 5000, "\udcff"])
def test_a_strange_name_of_a_dataset_is_one_line_when_a_run_asks_for_it(name, home):
    with pytest.raises(UserError, match="^data=") as error:
        datasets.open_dataset(name, 64)
    assert "\n" not in str(error.value)
