"""Whatever happens to the bytes of records, packs, exported tables and groups of checkpoints,
reading gives what was written or says that it is missing; what was written comes back as it was."""

import json
import os
import pathlib
import tempfile

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxies_lib import config, paths
from proxies_lib.config import UserError, replace
from proxies_lib.layout import Layout
from proxies_lib.runs import checkpoint, packs, store, tables
from proxies_lib.runs.records import META
from proxies_lib.science import protocol

SMOKE = protocol.scales()["smoke"].base
CURVES = {"step": np.arange(3, dtype=np.int32), "loss": np.array([1, -0.0, np.nan], np.float32)}


@pytest.fixture(scope="module", autouse=True)
def no_crash_is_to_come():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


def cases(count):
    return settings(max_examples=count, deadline=None, derandomize=True, database=None)


def meta(run, fingerprint="f1", **changes):
    result = {
        "final_loss": 1.5,
        "init_loss": 4.0,
        "diverged": False,
        "diverged_step": -1,
        "train_seconds": 1.0,
    }
    parts = {
        "config": config.flat(run),
        "result": result,
        "provenance": {"fingerprint": fingerprint},
    }
    return {"key": config.key(run, fingerprint)} | parts | changes


def find(runs, folder, layer=None, say=lambda line: None):
    corpora = {(run.data, run.model.vocab_size): "f1" for run in runs}
    return tables.locate(runs, corpora, folder, layer, say)


def same(record, meta, curves) -> bool:
    """Whether a record is this one, bit for bit; nan is nan."""
    found, values = record
    equal = all(values[name].tobytes() == curves[name].tobytes() for name in curves)
    return repr(found) == repr(meta) and values.keys() == curves.keys() and equal


def once(make):
    """Files that every case of a test damages copies of, by name; made by `make(folder)`."""
    with tempfile.TemporaryDirectory() as folder:
        make(pathlib.Path(folder))
        files = (path for path in pathlib.Path(folder).rglob("*") if path.is_file())
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def lay_out(files, folder):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


@st.composite
def damages(draw, size: int):
    """What may happen to `size` bytes, as a function of them: flipped, lost and new parts."""
    begin, end = sorted((draw(st.integers(0, size - 1)), draw(st.integers(0, size))))
    new = draw(st.binary(max_size=20))
    flips = draw(
        st.lists(st.tuples(st.integers(0, size - 1), st.integers(0, 7)), min_size=1, max_size=3)
    )

    def flipped(content):
        changed = bytearray(content)
        for position, bit in flips:
            changed[position] ^= 1 << bit
        return bytes(changed)

    kinds = (
        flipped,
        lambda content: content[:begin],
        lambda content: content[:begin] + content[end:],
        lambda content: content[:begin] + new + content[begin:],
        lambda content: content[:begin] + bytes(end - begin) + content[end:],
    )
    return draw(st.sampled_from(kinds))


RECORD = once(lambda folder: store.write(folder, meta(SMOKE), CURVES))
((RECORD_NAME, RECORD_BYTES),) = RECORD.items()


@cases(300)
@given(damages(len(RECORD_BYTES)))
def test_a_damaged_record_is_the_record_or_missing_with_a_line(damage):
    content, lines = damage(RECORD_BYTES), []
    with tempfile.TemporaryDirectory() as folder:
        lay_out({RECORD_NAME: content}, pathlib.Path(folder))
        record = store.read(folder, meta(SMOKE)["key"])
        (found,) = find([SMOKE], folder, say=lines.append)
    assert record is None or same(record, meta(SMOKE), CURVES)
    assert found.layer == ("store" if record else "")
    assert len(lines) == (record is None)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@st.composite
def metas(draw):
    """The metadata of a record with anything in place of the whole, a part, or a value."""
    whole, anything = json.loads(json.dumps(meta(SMOKE))), draw(JSON)
    part = draw(st.sampled_from([None, "key", *META]))
    if part is None:
        return anything
    inner = whole[part]
    name = draw(st.none() | st.sampled_from(sorted(inner))) if isinstance(inner, dict) else None
    owner, name = (whole, part) if name is None else (inner, name)
    if draw(st.booleans()):
        owner[name] = anything
    else:
        del owner[name]
    return whole


@cases(250)
@given(metas())
def test_metadata_of_any_shape_is_believed_only_of_the_run_it_describes(anything):
    key = meta(SMOKE)["key"]
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / RECORD_NAME
        path.parent.mkdir()
        text = np.array(json.dumps(anything))
        points = np.stack([values.astype(np.float32) for values in CURVES.values()], axis=1)
        with open(path, "wb") as file:
            np.savez(file, meta=text, columns=np.array(list(CURVES)), points=points)
        record = store.read(folder, key)
        (found,) = find([SMOKE], folder)
        store.merge([], pathlib.Path(folder), say=lambda line: None)
        (merged,) = find([SMOKE], folder)
        if found.layer:
            tables.table([merged], folder)
    assert found.layer == merged.layer
    if found.layer:
        assert same(record, anything, CURVES)
        assert config.key_of(anything["config"], anything["provenance"]["fingerprint"]) == key


RUNS = [replace(SMOKE, seed=seed) for seed in range(4)]


def make_pack(folder):
    store.pack(folder, [(meta(run), CURVES) for run in RUNS])


PACK = once(make_pack)
((PACK_NAME, PACK_BYTES),) = PACK.items()


@cases(200)
@given(damages(len(PACK_BYTES)), st.booleans())
def test_a_damaged_pack_holds_its_runs_or_none(damage, renamed):
    """Also where its name is right: then nothing raises, and what is read is what was written."""
    content, lines = damage(PACK_BYTES), []
    name = f"packs/{packs.content_hash(content)}.parquet" if renamed else PACK_NAME
    with tempfile.TemporaryDirectory() as folder:
        lay_out({name: content}, pathlib.Path(folder))
        found = find(RUNS, folder, say=lines.append)
        records = [store.read(folder, meta(run)["key"]) for run in RUNS]
        store.merge([], pathlib.Path(folder), say=lambda line: None)
    if renamed:
        assert all(r is None or same(r, meta(run), CURVES) for r, run in zip(records, RUNS))
    else:
        assert {f.layer for f in found} == ({"store"} if content == PACK_BYTES else {""})
        assert len(lines) == (content != PACK_BYTES)


def make_export(folder):
    make_pack(folder / "store")
    found = find(RUNS, folder / "store")
    tables.export(*tables.table(found, folder / "store"), folder / "out", folder / "store")


EXPORT = once(make_export)
SIZES = {name: len(EXPORT[f"out/{name}.parquet"]) for name in tables.EXPORTED}


@cases(60)
@given(
    st.sampled_from(list(SIZES)).flatmap(
        lambda name: st.tuples(st.just(name), damages(SIZES[name]))
    )
)
def test_a_damaged_export_never_stops_a_run_and_is_written_anew(damaged):
    name, damage = damaged
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        lay_out(EXPORT, folder)
        before = tables.exported(folder / "out")
        path = folder / "out" / f"{name}.parquet"
        path.write_bytes(damage(path.read_bytes()))
        layers = {f.layer for f in find(RUNS, folder / "empty", folder / "out")}
        assert layers in ({""}, {"table"}) or name == "curves"
        try:
            tables.exported_runs(folder / "out")
        except UserError as error:
            assert "\n" not in str(error) and name == "runs"
        everything = tables.table(find(RUNS, folder / "store"), folder / "store")
        tables.export(*everything, folder / "out", folder / "store", say=lambda line: None)
        for frame, again in zip(before, tables.exported(folder / "out"), strict=True):
            pd.testing.assert_frame_equal(frame, again[list(frame)])


GROUP = {"keys": ["a", "b"], "layout": {"lanes": 4, "run": 2, "scan": False}}


def make_group(folder):
    layout = Layout(**GROUP["layout"])
    with paths.environment("PROXIES_CHECKPOINTS", str(folder)):
        checkpoint.Group([SMOKE], GROUP["keys"], layout)._write_group()


GROUPS = once(make_group)
((GROUP_NAME, GROUP_BYTES),) = GROUPS.items()


@cases(200)
@given(damages(len(GROUP_BYTES)))
def test_a_damaged_group_of_checkpoints_is_the_group_or_a_line(damage):
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        lay_out({GROUP_NAME: damage(GROUP_BYTES)}, pathlib.Path(folder))
        with paths.environment("PROXIES_CHECKPOINTS", folder):
            groups = checkpoint.pending(["a", "b", "c"], lines.append)
    if groups:
        assert groups[0]["keys"] == GROUP["keys"]
        assert Layout(**groups[0]["layout"]) == Layout(**GROUP["layout"])
    assert len(groups) + len(lines) == 1


FLOATS = st.floats(width=32)
NAMES = st.text("abz/_0.é ", min_size=1, max_size=8).filter(
    lambda name: name not in ("key", "step")
)


@st.composite
def records(draw):
    """Up to four records of different runs, fingerprint "f1", with any finite and other numbers."""
    made = []
    for run in draw(st.lists(st.sampled_from(RUNS), min_size=1, max_size=4, unique=True)):
        n = draw(st.integers(1, 4))
        names = draw(st.lists(NAMES, max_size=3, unique=True))
        values = st.lists(FLOATS, min_size=n, max_size=n)
        curves = {name: np.array(draw(values), np.float32) for name in names}
        steps = np.array(
            sorted(draw(st.sets(st.integers(0, 2**24), min_size=n, max_size=n))), np.int32
        )
        result = meta(run)["result"] | {
            "final_loss": draw(st.floats()),
            "diverged": draw(st.booleans()),
        }
        provenance = {
            "fingerprint": "f1",
            "device": draw(st.text(max_size=5)),
            "jax": draw(st.text(max_size=5)),
        }
        run = replace(run, lr=draw(st.floats(1e-3, 10)))
        made.append(
            (run, meta(run, result=result, provenance=provenance), {"step": steps} | curves)
        )
    return made


@cases(80)
@given(records())
def test_records_come_back_as_written_loose_packed_and_in_tables(made):
    with tempfile.TemporaryDirectory() as scratch:
        folder, other = pathlib.Path(scratch) / "store", pathlib.Path(scratch) / "other"
        for _, each, curves in made:
            store.write(folder, each, curves)
        runs = [run for run, *_ in made]
        frames = []
        for where, sources in ((folder, None), (other, [folder]), (folder, [])):
            if sources is not None:
                store.merge(sources, where, say=lambda line: None)
            for _, each, curves in made:
                assert same(store.read(where, each["key"]), each, curves)
            frames.append(tables.table(find(runs, where), where))
        first_table, first_curves = frames[0]
        for table, curves in frames[1:]:
            pd.testing.assert_frame_equal(first_table, table)
            pd.testing.assert_frame_equal(first_curves, curves[list(first_curves)])
        found = find(runs, folder)
        tables.export(*frames[0], other / "out", folder)
        assert tables.exported(other / "out")[0]["key"].tolist() == sorted(f.key for f in found)
