import collections
import gzip
import json
import lzma
import pathlib

import numpy as np
import pytest

from proxies_lib import config, data
from proxies_lib.config import UserError

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"
quiet = {"say": lambda *_: None}


def stories(n, first=0):
    return [
        f"Story {i}. " + " ".join(f"word{(i * j) % 97} is here" for j in range(60)) for i in range(first, first + n)
    ]


@pytest.fixture
def text_set(tmp_path):
    (tmp_path / "a.txt").write_text("\f\n".join(stories(40)))
    return data.prepare("text", name="stories", path=[str(tmp_path / "a.txt")], vocab_size=200, **quiet)


def test_synthetic_is_the_same_on_every_machine():
    first = data.open_dataset("synthetic", 64).batch("train", 3, 7, 4, 32)
    assert first.shape == (4, 33) and first.dtype == np.int32
    assert first[0, :12].tolist() == [33, 14, 1, 56, 0, 1, 14, 1, 1, 0, 16, 33]


def test_synthetic_entropy_floor_is_the_samples_own():
    """The mean surprise of samples under the true conditional distribution is the closed form."""
    V, T = 32, 64
    tokens = data.open_dataset("synthetic", V).batch("train", 0, 0, 2000, T)
    p = data.zipf(V)
    surprise = []
    for t in range(1, T + 1):
        fresh = p[tokens[:, t]]
        if t >= data.COPY_LAG:
            fresh = (1 - data.COPY_SHARE) * fresh + data.COPY_SHARE * (tokens[:, t] == tokens[:, t - data.COPY_LAG])
        surprise.append(-np.log(fresh))
    assert np.mean(surprise) == pytest.approx(data.synthetic_entropy(V, T), rel=0.01)
    assert np.bincount(tokens.ravel(), minlength=V) / tokens.size == pytest.approx(p, abs=0.01)
    assert data.synthetic_entropy(V, T) < -np.sum(p * np.log(p)) - 0.5  # there is something to learn


def test_batches_are_stateless_and_differ_by_seed_step_and_split():
    d = data.open_dataset("synthetic", 64)
    a = d.batch("train", 0, 5, 8, 16)
    np.testing.assert_array_equal(a, d.batch("train", 0, 5, 8, 16))
    for other in (d.batch("train", 1, 5, 8, 16), d.batch("train", 0, 6, 8, 16), d.batch("validation", 0, 5, 8, 16)):
        assert not np.array_equal(a, other)
    np.testing.assert_array_equal(d.batch("validation", 0, 0, 8, 16), d.batch("validation", 9, 0, 8, 16))


def test_shards_of_a_batch_are_its_rows(text_set):
    for d in (text_set, data.open_dataset("synthetic", 64)):
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
    second = np.concatenate([text_set.batch("train", 5, i, B, T) for i in range(steps + 1, 2 * steps)])
    assert not np.array_equal(rows[: len(second)], second)


def test_documents_are_packed_with_eos_and_held_out_ones_never_trained_on(text_set):
    import sentencepiece

    spm = sentencepiece.SentencePieceProcessor(model_file=f"{text_set.path}/tokenizer.model")
    assert (spm.pad_id(), spm.eos_id(), spm.bos_id(), spm.unk_id()) == (0, 1, 2, 3)
    texts = {}
    for split in data.SPLITS:
        ids = np.fromfile(pathlib.Path(text_set.path) / f"{split}.bin", np.uint16)
        assert ids[-1] == 1 and 0 not in ids
        texts[split] = [spm.decode(part.tolist()) for part in np.split(ids, np.flatnonzero(ids == 1) + 1)[:-1]]
    assert sorted(texts["train"] + texts["validation"]) == sorted(stories(40))
    assert texts["validation"] and not set(texts["train"]) & set(texts["validation"])


def test_plain_gz_and_xz_files_give_the_same_dataset(tmp_path):
    content = "\f".join(stories(30)).encode()
    (tmp_path / "x.txt").write_bytes(content)
    (tmp_path / "x.txt.gz").write_bytes(gzip.compress(content))
    (tmp_path / "x.txt.xz").write_bytes(lzma.compress(content))
    first = [[t for _, t in data.text_documents([str(tmp_path / n)])] for n in ("x.txt", "x.txt.gz", "x.txt.xz")]
    assert first[0] == first[1] == first[2] == stories(30)


def test_fingerprint_follows_text_and_tokenizer(tmp_path, text_set):
    (tmp_path / "b.txt").write_text("\f\n".join(stories(41)))
    other = data.prepare("text", name="b", path=[str(tmp_path / "b.txt")], vocab_size=200, **quiet)
    (tmp_path / "a.txt").write_text("\f\n".join(stories(40)))
    again = data.prepare("text", name="c", path=[str(tmp_path / "a.txt")], vocab_size=200, **quiet)
    assert other.fingerprint != text_set.fingerprint == again.fingerprint


def test_stdlib_is_real_text_with_line_breaks_and_indentation():
    import sentencepiece

    d = data.open_dataset("stdlib", 1024, **quiet)
    spm = sentencepiece.SentencePieceProcessor(model_file=f"{d.path}/tokenizer.model")
    code = "def f(x):\n    return x + 1\n"
    assert spm.decode(spm.encode(code)) == code and len(spm) == 1024
    manifest = json.loads((pathlib.Path(d.path) / "manifest.json").read_text())
    assert manifest["train"]["tokens"] > 1_000_000 and manifest["validation"]["tokens"] > 50_000
    assert data.open_dataset("stdlib", 1024, **quiet) == d


def write_shards(folder, train=("one two three " * 30,) * 6, validation=("four five six " * 30,) * 3):
    folder.mkdir(exist_ok=True)
    for split, texts in (("train", train), ("validation", validation)):
        lines = "".join(json.dumps({"text": t, "timestamp": "", "url": f"u{i}"}) + "\n" for i, t in enumerate(texts))
        with gzip.open(folder / f"c4-{split}.00000-of-00001.json.gz", "wt") as file:
            file.write(lines)
    return folder


def test_c4_reads_its_own_shards_with_a_given_tokenizer(tmp_path, text_set):
    where = write_shards(tmp_path / "en")
    spm = f"{text_set.path}/tokenizer.model"
    d = data.prepare("c4", name="mini-c4", path=[str(where)], tokenizer=spm, **quiet)
    manifest = json.loads((pathlib.Path(d.path) / "manifest.json").read_text())
    assert (manifest["train"]["documents"], manifest["validation"]["documents"]) == (6, 3)
    by_url = data.prepare("c4", name="mini-url", path=[where.as_uri()], tokenizer=spm, **quiet)
    assert by_url.fingerprint == d.fingerprint


def test_real_c4_with_the_t5_vocabulary():
    if not SHARED.exists():
        pytest.skip("the shared cut of C4 is not beside this checkout")
    d = data.prepare("c4", name="c4-cut", path=[str(SHARED / "c4/en")], tokenizer=str(SHARED / "t5.model"), **quiet)
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
        "has no validation documents": ("text", {"path": [str(tmp_path / "empty.txt")], "tokenizer": spm}),
        "cannot be read": ("text", {"path": [str(tmp_path / "cut.txt.gz")]}),
        "is not a C4 json.gz shard": ("c4", {"path": [str(shards)], "tokenizer": spm}),
        "cannot be listed": ("c4", {"path": ["nosuch://bucket/en"], "tokenizer": spm}),
        "needs --tokenizer": ("c4", {"path": [str(shards)]}),
        "holds no c4-train": ("c4", {"path": [str(tmp_path)], "tokenizer": spm}),
        "source='wiki'": ("wiki", {}),
        "tokenizer='no.model': no such file": ("stdlib", {"tokenizer": "no.model"}),
        "is not a SentencePiece model": ("stdlib", {"tokenizer": str(tmp_path / "empty.txt"), "name": "z"}),
    }


def test_bad_corpora_are_refused_in_one_line_and_leave_nothing(tmp_path, text_set):
    home = pathlib.Path(text_set.path).parent
    before = sorted(p.name for p in home.iterdir())
    for words, (source, options) in bad_inputs(tmp_path, f"{text_set.path}/tokenizer.model").items():
        with pytest.raises(UserError) as error:
            data.prepare(source, **options, **quiet)
        expected = "has no train documents" if "no validation" in words else words
        assert expected in str(error.value) and "\n" not in str(error.value), words
    assert sorted(p.name for p in home.iterdir()) == before


def test_a_dataset_that_is_not_prepared_or_of_another_vocabulary_is_refused(text_set):
    with pytest.raises(UserError, match="data='nothing'.*prepare"):
        data.open_dataset("nothing", 64)
    with pytest.raises(UserError, match="vocab_size=64.*200 pieces"):
        data.open_dataset("stories", 64)
    with pytest.raises(UserError, match="batch_size"):
        text_set.batch("validation", 0, 0, 10_000, 64)


def test_the_order_of_batches_can_be_changed():
    """Batches are skipped, repeated or replaced by their number alone; all else stays bit for bit."""
    corpus, run = data.open_dataset("synthetic", 64), config.scales()["smoke"].base
    T = run.model.seq_len

    def batches(**changes):
        order = config.replace(run, **changes).order
        return np.concatenate([corpus.chunk(order, begin, run.train, T) for begin in range(0, 40, run.train.log_every)])

    plain = batches()
    assert np.array_equal(batches(skip_step=7, skip_batches=5)[:35], np.delete(plain, range(7, 12), 0))
    assert np.array_equal(batches(corpus_batches=3), np.concatenate([plain[:3]] * 14)[:40])
    rare = batches(rare_batch=20, rare_batches=2)
    assert (rare[20:22] == rare[20, 0, 0]).all() and rare.max() < 64
    assert np.array_equal(np.delete(rare, (20, 21), 0), np.delete(plain, (20, 21), 0))
    around = batches(rare_batch=20, rare_batches=2, skip_step=18, skip_batches=4)
    assert np.array_equal(around, batches(skip_step=18, skip_batches=4)), "what is skipped is never seen"
    halves = [
        corpus.chunk(config.replace(run, rare_batch=3, rare_batches=1).order, 0, run.train, T, i, 2) for i in (0, 1)
    ]
    assert np.array_equal(np.concatenate(halves, 1)[3], np.full((4, T + 1), halves[0][3, 0, 0]))
