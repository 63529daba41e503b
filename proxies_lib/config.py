"""What a run is: frozen configurations, grids of them, and the key that identifies a run.

To add a hyperparameter, add a line to one of the parts below: name, type, default, allowed
values, what it is. It is then a keyword of `replace`, an axis of `grid` and part of the key.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import math
import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NoReturn

SCHEMA = 2  # bump by hand when the meaning of a stored number changes

MAX_INT = 2**31 - 1  # the programs count in int32, and a seed above would wrap around


class UserError(ValueError):
    """Bad input, in one line that names the field, its value and what is allowed."""

    status = 2  # of the command that ends by it


HISTOGRAM_RANGE = 1.5  # |r| of Adam is at most 1.2 with β (0.9, 0.95) (P2)

SHOWN = 200  # characters of a refused value: a path should be whole

LONGEST_WORD = 60  # characters of what may be a slip of the keyboard


def refuse(name: str, value, allowed: str) -> NoReturn:
    """Raise the UserError of a value that is not `allowed`, in one line whatever it is."""
    raise UserError(f"{shown(name)}={shown(value, repr)}: {allowed}")


def shown(value, text=str) -> str:
    """`value` as a short text without line breaks."""
    try:
        words = text(value)
    except (ValueError, RecursionError):  # a whole number of thousands of digits, a list in itself
        return f"a {type(value).__name__} too large to print"
    words = "".join(c if c.isprintable() else repr(c)[1:-1] for c in words)
    return words if len(words) <= SHOWN else f"{words[: SHOWN - 1]}…"


def did_you_mean(word, known: Iterable[str]) -> str:
    """ " (did you mean laptop?)", where one of the `known` words is near to `word`; else "".

    A part of a known word is near to it, too: `z_loss` to `02_z_loss`.
    """
    if not isinstance(word, str) or len(word) > LONGEST_WORD:
        return ""
    import difflib

    by_lower = {other.lower(): other for other in known}
    near = difflib.get_close_matches(word.lower(), by_lower, n=1)
    if not near and len(word) >= 3:
        near = [other for other in by_lower if word.lower() in other][:1]
    return f" (did you mean {by_lower[near[0]]}?)" if near else ""


def component(name: str, text: str) -> str:
    """`text`, where it can name a file or folder of ours: never a path, never hidden.

    Raises UserError.
    """
    if not re.fullmatch(r"(?![.-])[A-Za-z0-9._-]{1,100}(?<!\.)", text):
        allowed = "must be 1 to 100 letters, digits, '_', '-' or '.', not beginning with '.' or '-'"
        refuse(name, text, f"{allowed} and not ending with '.'")
    return text


MAX_LOGGED_POINTS = 2**20  # of a run: what a record of a thousand curves can hold

# ------------------------------------------------------------------ what a field may be


@dataclass(frozen=True)
class Allowed:
    """The values that a field may have: a test, its words, and the names where they are a few."""

    words: str
    holds: Callable[[Any], bool]
    names: tuple[str, ...] = ()


POSITIVE = Allowed("must be above 0", lambda value: value > 0)

NOT_NEGATIVE = Allowed("must be 0 or more", lambda value: value >= 0)

SOME_TEXT = Allowed("must be a text", lambda value: True)

# The program counts steps in float32, which has every whole number up to 2²⁴.
COUNTABLE = Allowed("must be from 1 to 16777216 (2²⁴)", lambda value: 1 <= value <= 2**24)

BELOW_ONE = Allowed("must be in [0, 1)", lambda value: 0 <= value < 1)


def one_of(*names: str) -> Allowed:
    """Any of `names`."""
    return Allowed(f"must be one of {', '.join(names)}", names.__contains__, names)


def knob(default, allowed: Allowed, about: str, younger: bool = False):
    """A field of a run. `about` says what it is and where the papers have it.

    A `younger` field came after runs were stored: at its default it is no part of a key, so those
    stay valid.
    """
    return field(default=default, metadata={"allowed": allowed, "about": about, "younger": younger})


younger_knob = functools.partial(knob, younger=True)


def _check_fields(part):
    """Give every field of a part its type, and hold it against its range. Raises UserError."""
    for declared in dataclasses.fields(part):
        value = typed(declared.name, getattr(part, declared.name), declared.type)
        allowed = declared.metadata["allowed"]
        if not allowed.holds(value):
            refuse(declared.name, value, allowed.words)
        # A frozen part may only be changed so, and only while it is being made.
        object.__setattr__(part, declared.name, value)


def typed(name: str, value, kind: type):
    """`value` as `kind`, so that equal settings have one key. Raises UserError, named `name`.

    Ints become floats where a float is meant, whole floats ints, and -0.0 is 0.0; nothing else
    is changed.
    """
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            refuse(name, value, "must be a finite number")
        return number + 0.0  # of -0.0, 0.0
    if kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, kind) or isinstance(value, bool):
        refuse(name, value, f"must be of type {kind.__name__}")
    if isinstance(value, int) and value > MAX_INT:
        refuse(name, value, f"must be at most {MAX_INT}")
    return value


# ------------------------------------------------------------------ the parts of a run


@dataclass(frozen=True)
class ModelConfig:
    """The transformer's shape and graph (P1, section 2.1).

    Each distinct value compiles its own program.
    """

    d_model: int = knob(256, POSITIVE, "width")
    n_layers: int = knob(3, NOT_NEGATIVE, "depth; 0 is the bigram model of P1's Fig. 10")
    d_head: int = knob(64, POSITIVE, "width of an attention head; must divide d_model")
    vocab_size: int = knob(32101, POSITIVE, "pieces of the tokenizer")
    seq_len: int = knob(512, POSITIVE, "tokens of a sequence")
    qk_norm: str = knob(
        "per_head",
        one_of("none", "per_head", "whole", "kappa"),
        "what q and k pass before the logits: LayerNorm per head or over the whole width "
        "(P1, Fig. E.8), or the κ map √κ·z/√mean(z²) (P1, Fig. 10)",
    )
    compute_dtype: str = knob(
        "bfloat16", one_of("float32", "bfloat16"), "of activations and weights in the products"
    )
    attention: str = younger_knob(
        "softmax",
        one_of("softmax", "squared_relu"),
        "how logits weigh values; squared_relu is relu(logit)²/√seq_len (P1, Fig. E.11)",
    )
    logits_dtype: str = younger_knob(
        "float32",
        one_of("float32", "bfloat16"),
        "output logits are rounded to it before the loss (does rounding make drift harmful?)",
    )
    intervention: str = younger_knob(
        "", SOME_TEXT, "text of interventions of one's own (`proxies_lib.interventions`)"
    )

    def __post_init__(self):
        _check_fields(self)
        if self.d_model % self.d_head:
            refuse("d_head", self.d_head, f"must divide d_model={self.d_model}")
        if self.d_head % 2:
            refuse("d_head", self.d_head, "must be even (rotary pairs)")

    @property
    def n_heads(self) -> int:
        return self.d_model // self.d_head

    @property
    def n_params(self) -> int:
        """N of the paper: 12·L·d², the weights of the blocks without embedding, head and norms."""
        return 12 * self.n_layers * self.d_model**2


@dataclass(frozen=True)
class TrainConfig:
    """What else the compiled program of training depends on.

    Each distinct value compiles its own.
    """

    batch_size: int = knob(256, POSITIVE, "sequences of a step")
    log_every: int = knob(100, POSITIVE, "steps between logged points; must divide steps")
    eval_batches: int = knob(20, POSITIVE, "validation batches of the first and the final loss")
    gradient_dtype: str = younger_knob(
        "float32",
        one_of("float32", "float16", "float8_e5m2", "float8_e4m3fn"),
        "gradients are rounded to it before the optimizer, times loss_scale (P2)",
    )
    histograms: int = younger_knob(
        0,
        NOT_NEGATIVE,
        "bins of the histograms of Adam's ratio and update; 0: none are logged (P2)",
    )

    def __post_init__(self):
        _check_fields(self)


@dataclass(frozen=True)
class HyperParams:
    """Inputs of the compiled program: changing them compiles nothing. Defaults: P1, section 2.1."""

    steps: int = knob(100_000, COUNTABLE, "optimizer steps")
    warmup_steps: int = knob(5_000, NOT_NEGATIVE, "of linear warm-up from 0 (P1, Fig. 5)")
    lr: float = knob(1e-2, POSITIVE, "peak learning rate η")
    min_lr: float = knob(1e-5, NOT_NEGATIVE, "absolute floor of the cosine, whatever η")
    weight_decay: float = knob(1e-4, NOT_NEGATIVE, "λ")
    decay: str = knob(
        "independent",
        one_of("independent", "coupled"),
        "subtract s_t·λ·θ, or s_t·η·λ·θ (P1, section 3.3 and Fig. 6)",
    )
    z_loss: float = knob(1e-4, NOT_NEGATIVE, "coefficient of log² Z (P1, section 3.1.2)")
    b1: float = knob(0.9, BELOW_ONE, "Adam's β₁")
    b2: float = knob(0.95, BELOW_ONE, "Adam's β₂")
    eps: float = knob(1e-8, NOT_NEGATIVE, "Adam's ε (P1, section 3.4)")
    clip_norm: float = knob(1.0, POSITIVE, "largest global norm of the gradient")
    linear_lr: float = younger_knob(
        1.0, POSITIVE, "µParam: LR factor of linear layers, base width/width (P1, section 3.2.4)"
    )
    head_init: float = younger_knob(1.0, NOT_NEGATIVE, "µParam: factor of the head's initial std")
    query_init: float = younger_knob(1.0, NOT_NEGATIVE, "µParam: the same of queries, 0 for zero")
    attention_power: float = younger_knob(
        0.5, NOT_NEGATIVE, "logits are scaled by d_head to minus this power (P1, Fig. E.6)"
    )
    lr_scaling: str = younger_knob(
        "none", one_of("none", "rms"), "rms: a tensor's LR × max(RMS, 1e-3) (P1, Fig. E.14)"
    )
    kappa: float = younger_knob(1.0, POSITIVE, "κ of qk_norm=kappa (P1, Fig. 10)")
    embedding_gradient: float = younger_knob(
        1.0, POSITIVE, "factor of the embedding's gradient, before clipping (P2; GLM-130B)"
    )
    eps_decay: float = younger_knob(
        1.0, POSITIVE, "ε falls geometrically to this factor at the last step (P2)"
    )
    loss_scale: float = younger_knob(1.0, POSITIVE, "of gradients in gradient_dtype (P2)")
    intervention_numbers: str = younger_knob(
        "", SOME_TEXT, "JSON object of the numbers that the intervention declares"
    )

    def __post_init__(self):
        _check_fields(self)
        if self.warmup_steps >= self.steps:
            refuse("warmup_steps", self.warmup_steps, f"must be below steps={self.steps}")
        if self.min_lr > self.lr:
            refuse("min_lr", self.min_lr, f"must be at most lr={self.lr:g}")


@dataclass(frozen=True)
class DataOrder:
    """Which batches a run reads, numbered from 0, and the seed.

    The compiled program sees none of it, only the tokens and the seed as a number.
    """

    corpus_batches: int = younger_knob(
        0, NOT_NEGATIVE, "repeat the first so many batches; 0: all, once (P2)"
    )
    rare_batch: int = younger_knob(0, NOT_NEGATIVE, "number of the first rare batch (P2)")
    rare_batches: int = younger_knob(
        0, NOT_NEGATIVE, "so many batches are rare ones (P2, section 10's burst)"
    )
    rare_kind: str = younger_knob(
        "repeated",
        one_of("repeated", "uniform"),
        "a rare batch holds one token, repeated, or tokens drawn uniformly from the vocabulary",
    )
    skip_step: int = younger_knob(0, NOT_NEGATIVE, "the step at which batches are skipped (PaLM)")
    skip_batches: int = younger_knob(0, NOT_NEGATIVE, "so many are left out there (PaLM)")
    seed: int = knob(0, NOT_NEGATIVE, "of the initialization and of the order of the data")

    def __post_init__(self):
        _check_fields(self)


@dataclass(frozen=True)
class Run:
    """One training run. `data` names a source or a prepared dataset (see `proxies_lib.data`)."""

    data: str = "c4"
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    hparams: HyperParams = field(default_factory=HyperParams)
    order: DataOrder = field(default_factory=DataOrder)

    def __post_init__(self):
        typed("data", self.data, str)
        if self.train.histograms and not self.model.n_layers:
            refuse("histograms", self.train.histograms, "must be 0 without layers")
        if self.hparams.steps % self.train.log_every:
            allowed = f"must be a multiple of log_every={self.train.log_every}"
            refuse("steps", self.hparams.steps, allowed)
        if self.hparams.steps // self.train.log_every > MAX_LOGGED_POINTS:
            allowed = f"must give at most {MAX_LOGGED_POINTS} points of {self.hparams.steps} steps"
            refuse("log_every", self.train.log_every, allowed)
        if self.model.intervention or self.hparams.intervention_numbers:
            self._check_intervention()

    def _check_intervention(self):
        from proxies_lib import interventions

        text = self.model.intervention
        interventions.check(text, self.hparams.intervention_numbers)
        places = {place for one in interventions.declared(text) for place in one.places}
        if "after" in places and not self.model.n_layers:
            refuse("n_layers", 0, "must be 1 or more with `after`, which sees attention logits")
        if "optimizer" in places and self.train.histograms:
            allowed = "must be 0 with an optimizer of one's own: they show Adam's moments"
            refuse("histograms", self.train.histograms, allowed)

    @property
    def program(self) -> tuple[ModelConfig, TrainConfig]:
        """What is static, (model, train): runs with equal programs share one executable."""
        return self.model, self.train

    @property
    def tokens(self) -> int:
        """Training tokens of the whole run."""
        return self.hparams.steps * self.train.batch_size * self.model.seq_len

    @property
    def flops(self) -> float:
        """Model FLOPs of training.

        They are 6 per weight and token, head included, plus causal attention's 6·L·T·d per token.
        """
        m = self.model
        attention = m.n_layers * m.seq_len * m.d_model
        return 6.0 * self.tokens * (m.n_params + m.vocab_size * m.d_model + attention)


PARTS = {"model": ModelConfig, "train": TrainConfig, "hparams": HyperParams, "order": DataOrder}

FIELDS = {"data": ""}  # name of a field → the part that has it, "" for the run itself

YOUNGER = {}  # name of a younger field → its default, at which it is no part of a key

for _part, _kind in PARTS.items():
    for _declared in dataclasses.fields(_kind):
        FIELDS[_declared.name] = _part
        if _declared.metadata["younger"]:
            YOUNGER[_declared.name] = _declared.default

# Of a run, the values of FIELDS in their order.
_values = operator.attrgetter(*(f"{part}.{name}".lstrip(".") for name, part in FIELDS.items()))


# ------------------------------------------------------------------ runs from runs


def replace(run: Run, **changes) -> Run:
    """`run` with fields changed by name, whichever part has them.

    Raises UserError on an unknown name and on a value that is not allowed.
    """
    changes_of: dict[str, dict] = {}  # by part
    for name, value in changes.items():
        if name not in FIELDS:
            near = did_you_mean(name, FIELDS)
            refuse(name, value, f"unknown field{near}; fields are {', '.join(FIELDS)}")
        changes_of.setdefault(FIELDS[name], {})[name] = value
    changed = changes_of.pop("", {})
    for part, values in changes_of.items():
        changed[part] = dataclasses.replace(getattr(run, part), **values)
    return dataclasses.replace(run, **changed)


def grid(base: Run, axes: dict) -> list[Run]:
    """The product of `axes` over `base`, the last axis fastest.

    An axis is the name of a field, or a tuple of names that vary together; its values are then
    tuples, too. For example {"lr": (0.01, 0.1), ("d_model", "n_layers"): [(8, 1), (16, 2)]}.
    """
    runs = []
    for values in itertools.product(*axes.values()):
        changes: dict = {}
        for axis, value in zip(axes, values, strict=True):
            names = axis if isinstance(axis, tuple) else (axis,)
            changes.update(zip(names, value if len(names) > 1 else (value,), strict=True))
        runs.append(replace(base, **changes))
    return runs


def flat(run: Run) -> dict:
    """Every field of `run` in one dictionary, in a fixed order."""
    return dict(zip(FIELDS, _values(run)))


def from_flat(values: dict) -> Run:
    """The run whose `flat` gave `values`; fields that are left out have their defaults."""
    return replace(Run(), **values)


# ------------------------------------------------------------------ identity

# A recipe is the hash of a configuration, in which a corpus is a name: {"data": "c4", "lr": …}. A
# key hashes the corpus's fingerprint, too. Two machines that prepared different texts under one
# name have runs of one recipe and different keys; results are stored and found by key.


def digest(value) -> str:
    """Short sha256 of a JSON value.

    Floats have 12 significant digits, so 0.003000000000000001 is 0.003.
    """
    return _short_hash(json.dumps(_canonical(value), sort_keys=True))


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _canonical(value):
    if isinstance(value, float):
        return f"{value:.12g}"
    if isinstance(value, dict):
        return {name: _canonical(entry) for name, entry in value.items()}
    return value


def recipe(run: Run) -> str:
    """Hash of the whole configuration, whatever the corpus behind its name contains."""
    return recipe_of(flat(run))


def recipe_of(values: dict) -> str:
    """The recipe of the run with these `flat` values."""
    return _digest_of_fields({"schema": SCHEMA, **_identity(values)})


def _identity(values: dict) -> dict:
    """The fields that make a run what it is: all of them, but for younger ones at their default."""
    return {n: value for n, value in values.items() if n not in YOUNGER or value != YOUNGER[n]}


def key(run: Run, fingerprint: str) -> str:
    """Identity of a run's numbers: configuration, and fingerprint of corpus and tokenizer."""
    return key_of(flat(run), fingerprint)


def key_of(values: dict, fingerprint: str, schema: int = SCHEMA) -> str:
    """The key of the run with these `flat` values, stored when SCHEMA was `schema`."""
    return _digest_of_fields({"schema": schema, "fingerprint": fingerprint, **_identity(values)})


def _digest_of_fields(fields: dict) -> str:
    """`digest` of a flat dictionary, faster: a table asks for thousands that differ in a field."""
    texts = []
    for name, value in fields.items():
        # Zeros are encoded each time: 0.0 and -0.0 are one value to a cache.
        encode = _encoded if value else _encoded.__wrapped__
        texts.append(encode(name, value))
    return _short_hash("{" + ", ".join(sorted(texts)) + "}")


@functools.lru_cache(1 << 12, typed=True)
def _encoded(name: str, value) -> str:
    """A field as it stands in the JSON text of `digest`."""
    return json.dumps({name: _canonical(value)})[1:-1]
