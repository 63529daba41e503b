"""Parameters of a run: saved, read again, judged to the same bits."""

import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest

from proxies_lib import config, settings
from proxies_lib.config import UserError, replace
from proxies_lib.layout import Layout
from proxies_lib.runs import checkpoint, datasets, parameters, provenance, store, sweep
from proxies_lib.science import protocol
from proxies_lib.train import Trainer

pytest.importorskip("safetensors", reason="needs the extra share")

SMOKE = protocol.scales()["smoke"].base

NAMES = {
    "embed/embedding": (64, 8),
    "blocks/0/attention/query/kernel": (8, 8),
    "blocks/0/attention/key_norm/scale": (8,),
    "blocks/0/mlp_in/kernel": (8, 32),
    "head/kernel": (8, 64),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run that a sweep stored, and the file of its parameters; what was said meanwhile."""
    folder, said = tmp_path_factory.mktemp("saved"), []
    sweep.run(sweep.plan([SMOKE], folder / "store"), 1, "processes", quiet=True)
    path = folder / "deep" / "run.safetensors"
    parameters.save(SMOKE, path, folder / "store", said.append)
    return path, folder / "store", said


def stored(folder) -> float:
    run_key = config.key(SMOKE, datasets.open_dataset("synthetic", 64).fingerprint)
    meta, _ = store.read(folder, run_key)
    return meta["result"]["final_loss"]


def test_the_loss_of_what_is_loaded_is_the_stored_one_bit_for_bit(saved):
    path, folder, said = saved
    loaded = parameters.load(path)
    assert loaded.run == SMOKE and said == []
    assert parameters.evaluate(loaded) == loaded.final_loss == stored(folder)


def test_another_library_reads_names_shapes_and_the_run(saved):
    """By the format alone: a header of JSON, then the numbers."""
    content = saved[0].read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    about = header.pop("__metadata__")
    assert {name: tuple(header[name]["shape"]) for name in NAMES} == NAMES
    assert {entry["dtype"] for entry in header.values()} == {"F32"}
    assert json.loads(about["config"]) == config.flat(SMOKE)
    assert about["key"] == config.key(SMOKE, about["fingerprint"])
    assert float.fromhex(about["final_loss"]) == stored(saved[1])
    assert {"jax", "device", "commit"} <= about.keys()
    begin, end = header["head/kernel"]["data_offsets"]
    numbers = np.frombuffer(content[8 + length + begin : 8 + length + end], "<f4")
    head = parameters.load(saved[0]).params["head"]["kernel"]
    np.testing.assert_array_equal(numbers.reshape(8, 64), head)


def test_a_run_that_the_store_lacks_is_stored_as_a_sweep_would(saved, tmp_path):
    parameters.save(SMOKE, tmp_path / "again.safetensors", tmp_path / "store")
    assert stored(tmp_path / "store") == stored(saved[1])
    first, again = (parameters.load(p).params for p in (saved[0], tmp_path / "again.safetensors"))
    np.testing.assert_array_equal(first["head"]["kernel"], again["head"]["kernel"])


def test_other_bits_than_the_stored_ones_are_told(saved, tmp_path):
    corpus = datasets.open_dataset("synthetic", 64)
    (result,) = Trainer(*SMOKE.program).train([SMOKE], corpus)
    provenance.record(tmp_path, SMOKE, corpus, result | {"final_loss": 3.5})
    said = []
    parameters.save(SMOKE, tmp_path / "run.safetensors", tmp_path, said.append)
    (line,) = said
    assert f"ends at {stored(saved[1])!r} here and at 3.5 in the store" in line


def test_the_model_gives_the_taps_of_what_is_loaded(saved):
    from proxies_lib import model

    loaded = parameters.load(saved[0])
    corpus = datasets.open_dataset("synthetic", 64)
    tokens = corpus.batch("validation", 0, 0, 4, 32)[:, :-1]
    logits, taps = model.apply(SMOKE.model, loaded.params, tokens, True, loaded.h)
    assert logits.shape == (4 * 32, 64) and np.isfinite(taps["max_attention_logit"]).all()


# ------------------------------------------------------------------ layouts and checkpoints


def test_lanes_and_stacked_layers_have_the_same_names():
    run = replace(SMOKE, n_layers=2)
    corpus = datasets.open_dataset("synthetic", 64)
    tensors = []
    for layout in (Layout(), Layout(lanes=2, scan=True)):
        kept = []
        Trainer(*run.program, layout).train([run], corpus, keep=kept.append)
        params = parameters._of_one_lane(kept[0]["params"], layout)
        tensors.append(parameters._named(params))
    alone, in_lanes = tensors
    assert "blocks/1/attention/query/kernel" in alone and alone.keys() == in_lanes.keys()
    for name, tensor in alone.items():
        np.testing.assert_allclose(tensor, in_lanes[name], rtol=1e-3, atol=1e-4, err_msg=name)


def test_a_training_goes_on_from_the_checkpoint_of_the_run(tmp_path, monkeypatch):
    monkeypatch.setenv("PROXIES_CHECKPOINTS", str(tmp_path / "checkpoints"))
    monkeypatch.setattr(checkpoint, "FLOPS_BETWEEN", {"cpu": 1.0})  # one after every chunk
    monkeypatch.setattr(parameters, "_layout", lambda run: (Layout(), None))
    corpus = datasets.open_dataset("synthetic", 64)
    whole, tensors = parameters._trained(SMOKE, "key", corpus)
    group = checkpoint.Group([SMOKE], ["key"], Layout())
    monkeypatch.setattr(checkpoint, "_asked_to_stop", lambda: True)
    with pytest.raises(checkpoint.Preempted, match="step 5 of 40"):
        Trainer(*SMOKE.program).train([SMOKE], corpus, group)
    group.close(False)
    monkeypatch.setattr(checkpoint, "_asked_to_stop", lambda: False)
    read = []
    chunk = type(corpus).chunk
    monkeypatch.setattr(
        type(corpus), "chunk", lambda *given: read.append(given[2]) or chunk(*given)
    )
    resumed, again = parameters._trained(SMOKE, "key", corpus)
    assert min(read) == 5 and resumed["final_loss"] == whole["final_loss"]
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor, again[name], err_msg=name)
    assert not list((tmp_path / "checkpoints").iterdir())


# ------------------------------------------------------------------ what is refused


def refused(path) -> str:
    with pytest.raises(UserError) as caught:
        parameters.load(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def changed(path, tmp_path, **about):
    """A copy of a file, with other metadata."""
    from safetensors import safe_open
    from safetensors.numpy import load_file, save_file

    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata() | about
    save_file(load_file(path), tmp_path / "changed.safetensors", metadata)
    return tmp_path / "changed.safetensors"


def test_a_damaged_or_foreign_file_is_refused_in_one_line(saved, tmp_path):
    from safetensors.numpy import save_file

    content = bytearray(saved[0].read_bytes())
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(content[:-7])
    assert "cannot be read as safetensors" in refused(damaged)
    content[-3] ^= 1
    damaged.write_bytes(content)
    assert refused(damaged).endswith("its tensors are damaged")
    damaged.write_bytes(b"")
    assert "cannot be read as safetensors" in refused(damaged)
    save_file({"weight": np.zeros(3)}, tmp_path / "foreign.safetensors")
    assert "holds no parameters of this library" in refused(tmp_path / "foreign.safetensors")
    assert refused(tmp_path / "none") == f"path='{tmp_path}/none': no such file"
    assert "cannot be read" in refused(tmp_path)


def test_metadata_that_does_not_belong_together_is_refused(saved, tmp_path):
    other = json.dumps(config.flat(replace(SMOKE, lr=0.5)))
    whole = changed(saved[0], tmp_path)
    assert parameters.load(whole).run == SMOKE
    for about, words in (
        ({"config": other}, "its key does not follow from its configuration"),
        ({"config": "[]"}, "its metadata is damaged"),
        ({"final_loss": "high"}, "its metadata is damaged"),
        ({"format": "another"}, "holds no parameters"),
        ({"config": '{"lr": "x"}'}, "lr='x': must be of type float"),
    ):
        assert words in refused(changed(saved[0], tmp_path, **about))
    wider = replace(SMOKE, d_model=16)
    fingerprint = datasets.open_dataset("synthetic", 64).fingerprint
    about = {"config": json.dumps(config.flat(wider)), "key": config.key(wider, fingerprint)}
    assert refused(changed(saved[0], tmp_path, **about)).endswith("not those of its model")


def test_another_corpus_is_refused(saved):
    loaded = parameters.load(saved[0])
    with pytest.raises(UserError, match="data='synthetic': must have the fingerprint"):
        parameters.evaluate(loaded, datasets.open_dataset("synthetic", 65))


def test_a_name_that_is_taken_or_impossible_is_refused_before_training(saved, tmp_path):
    for path, words in (
        (saved[0], "is there already"),
        ("", "must be the name of a file"),
        ("/dev/null/run.safetensors", "/dev/null is no folder"),
    ):
        with pytest.raises(UserError, match=re.escape(words)):
            parameters.save(SMOKE, path, tmp_path)
    with pytest.raises(UserError, match="^data='nowhere': is not prepared here"):
        parameters.save(replace(SMOKE, data="nowhere"), tmp_path / "new", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_ends_the_training_process_is_one_line(tmp_path, monkeypatch):
    real = subprocess.run

    def killed(command, **options):
        script = f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})"
        return real([sys.executable, "-c", script], **options)

    monkeypatch.setattr(parameters.subprocess, "run", killed)
    with pytest.raises(UserError, match="^parameters: .*killed by SIGKILL"):
        parameters.save(SMOKE, tmp_path / "new", tmp_path)
    assert settings.platform_of_jax() == "cpu" and os.listdir(tmp_path) == []
