import dataclasses
import pathlib

import pytest

from proxies_lib import config, paths
from proxies_lib.config import Run, UserError, grid, replace
from proxies_lib.science import protocol


def test_golden_key_guards_every_stored_run():
    """If this fails, stored runs no longer match: bump SCHEMA on purpose, or undo the change."""
    run = Run()
    assert config.key(run, "f" * 24) == "b0753ee4a27d2abf77fa0627"
    assert config.recipe(run) == "b86d7c6f7c8fba703192891b"


def test_every_field_and_the_fingerprint_change_the_key(smoke):
    other = {
        "data": "x",
        "qk_norm": "none",
        "compute_dtype": "bfloat16",
        "decay": "coupled",
        "d_head": 4,
        "attention": "squared_relu",
        "lr_scaling": "rms",
        "gradient_dtype": "float16",
        "logits_dtype": "bfloat16",
        "rare_kind": "uniform",
    }
    seen = {config.key(smoke, "a"), config.key(smoke, "b")}
    for name, value in config.flat(smoke).items():
        if name.startswith("intervention"):  # the two go together: test_interventions.py
            continue
        if name in other:
            changed = other[name]
        elif not value:
            changed = 1
        else:
            changed = value * 2 if isinstance(value, int) else value * 0.5
        seen.add(config.key(replace(smoke, **{name: changed}), "a"))
    assert len(seen) == 2 + len(config.FIELDS) - 2  # the two that go together


def test_a_younger_field_at_its_default_leaves_keys_alone(smoke):
    """Adding an intervention must not lose what was trained before it."""
    fields = config.flat(smoke)
    before = {name: value for name, value in fields.items() if name not in config.YOUNGER}
    assert config.recipe(smoke) == config.digest({"schema": config.SCHEMA, **before})
    assert config.from_flat(before) == smoke
    assert config.recipe(replace(smoke, kappa=2.0)) != config.recipe(smoke)


def test_floats_that_print_alike_have_one_key(smoke):
    for name, value, same in (("lr", 0.003, 0.003000000000000001), ("weight_decay", 0, 0.0)):
        keys = [config.key(replace(smoke, **{name: v}), "") for v in (value, same)]
        assert keys[0] == keys[1]


def test_defaults_are_the_papers():
    run = Run()
    assert config.flat(run) == {
        "data": "c4",
        "d_model": 256,
        "n_layers": 3,
        "d_head": 64,
        "vocab_size": 32101,
        "seq_len": 512,
        "qk_norm": "per_head",
        "compute_dtype": "bfloat16",
        "attention": "softmax",
        "batch_size": 256,
        "log_every": 100,
        "eval_batches": 20,
        "steps": 100_000,
        "warmup_steps": 5_000,
        "lr": 1e-2,
        "min_lr": 1e-5,
        "weight_decay": 1e-4,
        "decay": "independent",
        "z_loss": 1e-4,
        "b1": 0.9,
        "b2": 0.95,
        "eps": 1e-8,
        "clip_norm": 1.0,
        "linear_lr": 1.0,
        "head_init": 1.0,
        "query_init": 1.0,
        "attention_power": 0.5,
        "lr_scaling": "none",
        "kappa": 1.0,
        "embedding_gradient": 1.0,
        "seed": 0,
        "gradient_dtype": "float32",
        "logits_dtype": "float32",
        "intervention": "",
        "intervention_numbers": "",
        "histograms": 0,
        "eps_decay": 1.0,
        "loss_scale": 1.0,
        "corpus_batches": 0,
        "rare_batch": 0,
        "rare_batches": 0,
        "rare_kind": "repeated",
        "skip_step": 0,
        "skip_batches": 0,
    }
    assert run.tokens == 100_000 * 131_072


def test_more_logged_points_than_a_record_holds_are_refused():
    assert replace(Run(), steps=2**20, log_every=1)
    with pytest.raises(UserError, match="log_every=1: must give at most 1048576 points of 2097152"):
        replace(Run(), steps=2**21, log_every=1)


def test_paper_sizes_have_the_papers_n():
    named = [2.4e6, 9.4e6, 19e6, 42e6, 85e6, 151e6, 302e6, 1.2e9, 4.8e9]
    for (d, layers), n in zip(protocol.scales()["paper"].sizes, named, strict=True):
        n_params = replace(Run(), d_model=d, n_layers=layers).model.n_params
        assert n_params == pytest.approx(n, rel=0.02)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("lr", "abc", "type float"),
        ("lr", float("nan"), "finite"),
        ("lr", 0.0, "above 0"),
        ("lr", True, "type float"),
        ("warmup_steps", 40, "below steps=40"),
        ("d_head", 6, "must divide d_model=8"),
        ("steps", 41, "multiple of"),
        ("steps", 2**24 + 5, "from 1 to 16777216"),
        ("qk_norm", "yes", "one of none, per_head, whole, kappa"),
        ("b2", 1.0, "[0, 1)"),
        ("nosuch", 1, "unknown field"),
        ("min_lr", 1.0, "at most lr"),
        ("d_model", 8.5, "type int"),
        ("seed", -1, "0 or more"),
    ],
)
def test_bad_values_are_refused_by_name_value_and_rule(smoke, field, value, words):
    with pytest.raises(UserError) as error:
        replace(smoke, **{field: value})
    assert str(error.value).startswith(f"{field}={value!r}: ") and words in str(error.value)
    assert "\n" not in str(error.value)


def test_grid_is_the_product_and_tuples_vary_together(smoke):
    runs = grid(smoke, {("d_model", "n_layers"): [(8, 1), (16, 2)], "lr": [0.1, 0.2, 0.3]})
    assert [(r.model.d_model, r.model.n_layers, r.hparams.lr) for r in runs] == [
        (8, 1, 0.1),
        (8, 1, 0.2),
        (8, 1, 0.3),
        (16, 2, 0.1),
        (16, 2, 0.2),
        (16, 2, 0.3),
    ]
    assert len({r.program for r in runs}) == 2


def test_overrides_change_the_label_and_nothing_else_does():
    assert protocol.study("smoke").label == "smoke"
    changed = protocol.study("smoke", {"steps": 80, "seeds": [7]})
    assert changed.label.startswith("smoke-")
    assert changed.seeds == (7,) and changed.base.hparams.steps == 80
    again = protocol.study("smoke", {"seeds": (7,), "steps": 80.0})
    assert again.base == changed.base
    named = protocol.study("smoke", {"steps": 80, "seeds": [7], "label": "long"})
    assert named.label == "smoke-long"
    assert named.overrides == changed.overrides and named.base == changed.base
    with pytest.raises(UserError, match="set lrs instead"):
        protocol.study("smoke", {"lr": 0.1})


def test_different_protocols_have_different_labels_and_equal_ones_the_same():
    labels = {protocol.study("smoke", {"z_loss": value}).label for value in (0.0, 0.1, 0.2)}
    assert len(labels) == 3
    one_order = protocol.study("smoke", {"z_loss": 0.1, "steps": 80})
    other_order = protocol.study("smoke", {"steps": 80, "z_loss": 0.1})
    assert one_order.label == other_order.label


@pytest.mark.parametrize(
    "label", ["", ".", "..", "a/b", "/a", "a\n", "-a", "ä", "x" * 101, 3, None]
)
def test_a_label_is_one_plain_component(label):
    with pytest.raises(UserError, match="^label="):
        protocol.study("smoke", {"label": label})


@pytest.mark.parametrize("seed", [2**31, 2**32, 10**30])
def test_seeds_that_would_wrap_around_are_refused(smoke, seed):
    """Seeds 0 and 2³² used to start from equal weights."""
    with pytest.raises(UserError, match=f"seed={seed}: must be at most 2147483647"):
        replace(smoke, seed=seed)
    with pytest.raises(UserError, match="seed"):
        protocol.study("smoke", {"seeds": [0, seed]})
    assert replace(smoke, seed=2**31 - 1).order.seed == 2**31 - 1


def test_a_refused_value_is_shown_in_one_short_line():
    deep = []
    deep.append(deep)
    for value in ("a\nb", "x" * 10_000, 10**5000, deep, "\u2028"):
        with pytest.raises(UserError) as error:
            config.refuse("name", value, "must be something")
        assert len(str(error.value).splitlines()) == 1 and len(str(error.value)) < 300


def test_the_installed_checkout_goes_before_the_folder_one_stands_in(tmp_path, monkeypatch):
    """Its notebooks are executed, never those of a folder that one stands in by chance."""
    for name in ("notebooks", "proxies_lib"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    assert paths.root() == pathlib.Path(config.__file__).resolve().parents[1]
    assert paths.project_here() == tmp_path


def test_runs_are_immutable(smoke):
    with pytest.raises(dataclasses.FrozenInstanceError):
        smoke.data = "other"
