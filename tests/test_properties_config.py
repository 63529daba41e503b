"""Whatever is given as a configuration: it is taken as it is meant, or refused in one line."""

import json
import random

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from proxies_lib import config
from proxies_lib.config import Run, UserError
from proxies_lib.science import notebooks, protocol
from proxies_lib.science.protocol import Study

# Characters of a name, a value, and what is allowed: at most the names of all fields.
LONGEST_LINE = 2 * config.SHOWN + 600


def cases(n: int):
    """`n` generated cases, the same ones each time."""
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(
        max_examples=n, deadline=None, derandomize=True, database=None, suppress_health_check=slow
    )


integers = st.one_of(
    st.integers(-3, 300),
    st.integers(),
    st.integers(2**31 - 2, 2**33),
    st.sampled_from([10**400, -(10**400), 10**4000]),
)
numbers = st.one_of(integers, st.floats(), st.floats(1e-12, 1e3), st.booleans())
words = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ["none", "whole", "bfloat16", "coupled", "rms", "synthetic", "x" * 9999, "a\nb", "\ud800"]
    ),
)
scalars = st.one_of(st.none(), numbers, words)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)
lists = st.lists(
    st.one_of(numbers, scalars, st.lists(integers, min_size=2, max_size=2)), max_size=5
)
names = st.one_of(st.sampled_from([*config.FIELDS, "sizes", "lrs", "seeds", "label"]), words)
overrides = st.dictionaries(names, st.one_of(values, lists), max_size=4)


def taken_or_refused(call):
    """What `call` returns, None where it is refused in one line; every other exception passes
    through."""
    try:
        return call()
    except UserError as refused:
        line = str(refused)
        assert "\n" not in line and line.isprintable()
        assert len(line) <= LONGEST_LINE
        return None


# ------------------------------------------------------------------ studies


@cases(500)
@given(
    scale=st.one_of(st.sampled_from([*protocol.scales()]), values),
    overrides=overrides,
)
def test_overrides_make_a_study_or_are_refused_in_one_line(scale, overrides):
    study = taken_or_refused(lambda: protocol.study(scale, overrides))
    if study is not None:
        assert isinstance(study, Study) and study.scale == scale
        changes = {name: value for name, value in overrides.items() if name != "label"}
        assert {name: json.loads(text) for name, text in study.overrides} == _as_json(changes)
        assert (study.label == scale) == (not overrides)
        flat = config.flat(study.base)
        assert all(flat[name] == value for name, value in overrides.items() if name in flat)


@cases(60)
@given(overrides=st.one_of(values, st.just([]), st.lists(st.tuples(names, scalars), min_size=1)))
def test_overrides_of_any_other_kind_are_refused_in_one_line(overrides):
    taken_or_refused(lambda: protocol.study("smoke", overrides))


@pytest.mark.parametrize("name", ["z_loss", "steps", "seeds", "sizes", "data", "no such name"])
def test_what_python_itself_cannot_print_is_refused_in_one_line(name):
    """A list nested 5,000 deep, a number of 5,000 digits."""
    deep = []
    for _ in range(5000):
        deep = [deep]
    for value in (deep, [deep], 10**5000, [10**5000]):
        assert taken_or_refused(lambda value=value: protocol.study("smoke", {name: value})) is None


def _as_json(value):
    return json.loads(json.dumps(value))


# ------------------------------------------------------------------ runs


@cases(400)
@given(name=names, value=st.one_of(values, numbers))
def test_a_field_takes_a_value_as_it_is_meant_or_refuses_it(name, value):
    """No conversion changes a number, and what is taken is what the program can hold."""
    run = taken_or_refused(lambda: config.replace(protocol.scales()["smoke"].base, **{name: value}))
    if run is not None:
        taken = config.flat(run)[name]
        assert taken == value and not isinstance(value, bool)
        assert not isinstance(taken, int) or 0 <= taken <= config.MAX_INT
        assert run.flops > 0 and isinstance(config.key(run, "f"), str)


small = st.integers(1, 2**20)
above_0 = st.floats(1e-30, 1e30)
not_negative = st.one_of(st.just(0.0), st.just(-0.0), above_0)


def names_of(field):
    """The names that a field of a run may have."""
    part = config.PARTS[config.FIELDS[field]]
    return part.__dataclass_fields__[field].metadata["allowed"].names


@st.composite
def runs(draw) -> Run:
    """Valid runs, of any values."""
    d_head, log_every, steps = (
        2 * draw(st.integers(1, 64)),
        draw(st.integers(1, 100)),
        draw(st.integers(1, 1000)),
    )
    lr, layers = draw(above_0), draw(st.integers(0, 200))
    model = {
        "d_model": d_head * draw(st.integers(1, 64)),
        "d_head": d_head,
        "n_layers": layers,
        "vocab_size": draw(small),
        "seq_len": draw(small),
        "histograms": draw(st.integers(0, 100)) if layers else 0,
    }
    training = {"batch_size": draw(small), "log_every": log_every, "eval_batches": draw(small)}
    dynamic = {
        "steps": log_every * steps,
        "warmup_steps": draw(st.integers(0, log_every * steps - 1)),
        "lr": lr,
        "min_lr": lr * draw(st.floats(0, 1)),
        "b1": draw(st.floats(0, 1, exclude_max=True)),
        "b2": draw(st.floats(0, 1, exclude_max=True)),
        "seed": draw(st.integers(0, config.MAX_INT)),
    }
    for name in ("weight_decay", "z_loss", "eps", "head_init", "query_init", "attention_power"):
        dynamic[name] = draw(not_negative)
    for name in (
        "clip_norm",
        "linear_lr",
        "kappa",
        "embedding_gradient",
        "eps_decay",
        "loss_scale",
    ):
        dynamic[name] = draw(above_0)
    fields = {name: part for name, part in config.FIELDS.items() if part}
    named = {name: draw(st.sampled_from(names_of(name))) for name in fields if names_of(name)}
    for name, part in fields.items():
        if part == "order" and name != "seed" and name not in named:
            dynamic[name] = draw(st.integers(0, config.MAX_INT))
    numbers = model | training | dynamic
    return config.replace(Run(), data=draw(st.text(max_size=8)), **numbers, **named)


@cases(200)
@given(run=runs(), seed=st.integers(0, 99))
def test_a_run_survives_its_flat_form_in_any_order(run, seed):
    flat = config.flat(run)
    shuffled = list(flat.items())
    random.Random(seed).shuffle(shuffled)
    for form in (flat, dict(shuffled), json.loads(json.dumps(flat))):
        assert config.from_flat(form) == run
        assert config.recipe_of(form) == config.recipe(run)
    assert config.key(config.from_flat(dict(shuffled)), "f") == config.key(run, "f")


@cases(150)
@given(run=runs(), data=st.data())
def test_a_key_is_blind_to_how_a_number_is_spelled(run, data):
    flat = config.flat(run)
    respelled = {name: _respelled(value, data) for name, value in flat.items()}
    respelled["min_lr"] = min(respelled["min_lr"], respelled["lr"])
    other = taken_or_refused(lambda: config.from_flat(respelled))
    assume(
        other is not None
    )  # the last digit may step over a bound, as b1 < 1 or an exponent of 12 digits
    same_text = all(
        _twelve(flat[name]) == _twelve(value) for name, value in config.flat(other).items()
    )
    assert (config.key(other, "f") == config.key(run, "f")) == same_text


def _respelled(value, data):
    """The same number, written otherwise: a float in its thirteenth digit, or as the int that
    it is; an int as a float."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, float):
        return data.draw(st.sampled_from([value, float(f"{value:.12g}"), value * (1 + 3e-16)]))
    if isinstance(value, int):
        return data.draw(st.sampled_from([value, float(value)]))
    return value


def _twelve(value):
    return f"{value:.12g}" if isinstance(value, float) else value


@cases(200)
@given(run=runs(), other=runs(), name=st.sampled_from(list(config.FIELDS)))
def test_different_values_have_different_keys(run, other, name):
    """One field changed at a time: equal keys if and only if equal to twelve digits."""
    change = {name: config.flat(other)[name]}
    changed = taken_or_refused(lambda: config.replace(run, **change))
    assume(changed is not None)
    equal = _twelve(config.flat(run)[name]) == _twelve(change[name])
    assert (config.key(changed, "f") == config.key(run, "f")) == equal
    assert (config.recipe(changed) == config.recipe(run)) == equal


def test_zero_has_one_key():
    base = protocol.scales()["smoke"].base
    plus, minus = (config.replace(base, weight_decay=zero) for zero in (0.0, -0.0))
    assert plus == minus and config.key(plus, "f") == config.key(minus, "f")


# ------------------------------------------------------------------ papermill parameters


near_smoke = st.fixed_dictionaries(
    {},
    optional={
        "steps": st.one_of(st.integers(0, 400), st.integers(1, 80).map(lambda n: 5 * n), numbers),
        "log_every": st.integers(0, 20),
        "warmup_steps": st.integers(-1, 60),
        "seeds": st.one_of(st.lists(st.integers(0, 9), max_size=3), values),
        "lrs": st.lists(st.floats(1e-6, 10), max_size=4),
        "sizes": st.lists(
            st.tuples(st.sampled_from([8, 12, 16, 64]), st.integers(0, 3)).map(list), max_size=3
        ),
        "batch_size": st.integers(0, 64),
        "z_loss": numbers,
        "histograms": st.integers(0, 8),
        "qk_norm": st.sampled_from(["none", "per_head", "other"]),
    },
)


@cases(250)
@given(
    section=st.sampled_from(sorted(notebooks.sections())),
    scale=st.sampled_from(["smoke", "laptop"]),
    overrides=near_smoke,
)
def test_any_parameters_give_a_section_its_runs_or_are_refused_in_one_line(
    section, scale, overrides
):
    """The setup and grid cells of every notebook, as `plan` reads them."""
    parameters = {"scale": scale, "train": True, "publish": True, "overrides": overrides}
    found = taken_or_refused(lambda: notebooks.runs_of(notebooks.sections()[section], parameters))
    if found is not None:
        asked, held_out = found
        assert all(isinstance(run, Run) for run in (*asked, *held_out))
        assert parameters["overrides"] == overrides and asked
