"""An intervention of one's own: a class of pure functions, named after places of a training step.

    @intervention(version=1, cap=50.0)
    class softcap:
        def attention_logits(z, h):
            return h["cap"] * jnp.tanh(z / h["cap"])

    run = softcap(base, cap=30.0)

The keywords are numbers with their defaults. They are inputs of the compiled program, which finds
them in `h` beside every other hyperparameter: sweeping them compiles nothing.

What stands in a run is the text of the class (`ModelConfig.intervention`), without comments and as
Python itself would print it, and its numbers (`HyperParams.intervention_numbers`). So a run's key
covers what the intervention does, and the text travels with the run: into worker processes, the
store, exported tables. That is possible because a function may use nothing from outside but its
arguments, builtins and the modules of MENU.

Places, in the order of a step. Axes are those of `model`; `params` are a nested dict.

    reparametrize(params, h)          → params, inside the gradient and before every evaluation
    block(config, linear, norm)       → nnx.Module in place of `model.Block`
    qk(q_BHKT, k_BHKS, h)             → q, k, after normalization, before rotation
    attention_logits(z_BHST, h)       → logits, keys S before queries T; no fused attention then
    branch(y_ND, h)                   → output of attention, and of the MLP, before it is added
    output_logits(z_NV, h)            → logits in float32
    loss(z_NV, labels_N, params, h)   → a scalar that is added to the loss
    optimizer(h, step)                → optax.GradientTransformation in place of Adam, after
                                        clipping; schedule, LR and decay stay the paper's, unless
                                        the class says `complete = True`
    after(params, seen, h)            → params, after the step. `seen` holds of this step
                                        max_attention_logit_of_head (L, H) and gradient_norm
"""

import ast
import builtins
import copy
import dataclasses
import functools
import json
import linecache
import symtable
from collections.abc import Callable

from proxies_lib.config import FIELDS, Run, UserError, refuse, replace, typed

# Place → the names of its arguments, for their number and for messages.
PLACES = {
    "reparametrize": ("params", "h"),
    "block": ("config", "linear", "norm"),
    "qk": ("q", "k", "h"),
    "attention_logits": ("z", "h"),
    "branch": ("y", "h"),
    "output_logits": ("z", "h"),
    "loss": ("z", "labels", "params", "h"),
    "optimizer": ("h", "step"),
    "after": ("params", "seen", "h"),
}

ALONE = ("block", "optimizer")  # places that only one intervention of a run may take

MENU = ("jax", "jnp", "optax", "nnx", "model")  # modules that functions may use

# Names of `optim.inputs` that are no field.
SWITCHES = ("coupled", "rms_scaled")


@dataclasses.dataclass(frozen=True)
class Declared:
    """What the text of one intervention says of itself."""

    name: str
    version: int
    numbers: tuple[tuple[str, float], ...]  # with their defaults
    places: tuple[str, ...]
    complete: bool  # its optimizer makes the whole update

    @property
    def title(self) -> str:
        return f"{self.name}@{self.version}"


# ------------------------------------------------------------------ from a class to its text


class Intervention:
    """What the decorator makes of a class: call it with a run to get the run with it.

    `text` is its identity, `source` what was written, with comments, `declared` what it says.
    """

    def __init__(self, cls: type, version: int, numbers: dict[str, float]):
        node, self.source = _class_of(cls)
        self.text = _canonical(node, version, numbers)
        (self.declared,) = declared(self.text)
        self.__name__, self.__doc__ = cls.__name__, cls.__doc__

    def __call__(self, run: Run, **numbers: float) -> Run:
        """`run` with this intervention, behind those that it has already.

        `numbers` replace defaults. Raises UserError on an unknown number, and where two
        interventions of a run do not go together.
        """
        known = dict(self.declared.numbers)
        for name, value in numbers.items():
            if name not in known:
                allowed = f"{self.__name__} has {', '.join(known) or 'no numbers'}"
                refuse(name, value, f"unknown number; {allowed}")
            known[name] = typed(name, value, float)
        all_numbers = numbers_of(run.hparams.intervention_numbers) | known
        return replace(
            run,
            intervention=join(run.model.intervention, self.text),
            intervention_numbers=numbers_text(all_numbers),
        )

    def __repr__(self):
        return f"<intervention {self.declared.title} at {', '.join(self.declared.places)}>"


def intervention(version: int = 1, **numbers: float) -> Callable[[type], Intervention]:
    """Decorator: a class of functions named after places becomes an `Intervention`.

    `numbers` are its hyperparameters with their defaults. Raise the `version` for what its text
    cannot show. Raises UserError, with the name, for a function that is no place, for what a
    function uses from outside, and where the source cannot be read.
    """
    version = typed("version", version, int)
    floats = {name: typed(name, value, float) for name, value in numbers.items()}
    return lambda cls: Intervention(cls, version, floats)


def join(*texts: str) -> str:
    """The text of several interventions, in the order in which they act."""
    return "\n\n".join(filter(None, texts))


def _class_of(cls: type) -> tuple[ast.ClassDef, str]:
    """The syntax tree of a class, and its source as it was written.

    It is found through one of its functions: `inspect.getsource` knows no class of a notebook.
    """
    functions = [value for value in vars(cls).values() if hasattr(value, "__code__")]
    if not functions:
        refuse("intervention", cls.__name__, f"has no function; places are {', '.join(PLACES)}")
    code = functions[0].__code__
    linecache.checkcache(code.co_filename)  # a module may have been edited and imported again
    lines = linecache.getlines(code.co_filename)
    for node in ast.walk(_parsed("".join(lines), cls.__name__)):
        if not isinstance(node, ast.ClassDef) or node.name != cls.__name__:
            continue
        if node.lineno <= code.co_firstlineno <= (node.end_lineno or 0):
            begin = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            return node, "".join(lines[begin - 1 : node.end_lineno])
    where = "its source cannot be read; write it in a file or in a notebook's cell"
    refuse("intervention", cls.__name__, where)


def _canonical(node: ast.ClassDef, version: int, numbers: dict[str, float]) -> str:
    """The class as Python prints it: no comments, no docstrings, the decorator's values in full."""
    node = copy.deepcopy(node)
    for part in ast.walk(node):
        if isinstance(part, (ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(part):
            part.body = part.body[1:] or [ast.Pass()]
    values = [f"version={version}", *(f"{n}={float(f'{v:.12g}')!r}" for n, v in numbers.items())]
    node.decorator_list = [ast.parse(f"intervention({', '.join(values)})", mode="eval").body]
    return ast.unparse(node)


# ------------------------------------------------------------------ what a text says


def _parsed(text: str, name: str = "intervention") -> ast.Module:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise UserError(f"intervention={name}: is not the text of a class") from None


@functools.lru_cache(maxsize=256)
def declared(text: str) -> tuple[Declared, ...]:
    """What a text of interventions says, without running it.

    Raises UserError where one is not what this module describes, and where two of them share a
    name, a number, or a place that takes only one.
    """
    found = tuple(_declared(node) for node in _parsed(text).body)
    _check_free_names(text, {one.name for one in found})
    _check_together(found)
    return found


def _declared(node: ast.stmt) -> Declared:
    if not isinstance(node, ast.ClassDef) or len(node.decorator_list) != 1:
        refuse("intervention", ast.unparse(node), "must be classes with one decorator")
    if node.bases or node.keywords:
        refuse("intervention", node.name, "must have no base class")
    call = node.decorator_list[0]
    try:
        assert isinstance(call, ast.Call) and not call.args
        values = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
        version = typed("version", values.pop("version", 1), int)
        numbers = tuple((name, typed(name, value, float)) for name, value in values.items())
    except (AssertionError, ValueError):
        refuse("intervention", node.name, "its decorator must have numbers as keywords")
    for name, value in numbers:
        if name in FIELDS or name in SWITCHES:
            refuse(name, value, f"is a field of a run already; {node.name} needs another name")
    places, complete = [], False
    for part in node.body:
        if isinstance(part, ast.FunctionDef):
            places += _place(node.name, part)
        elif _sets_complete(part):
            complete = True
        elif not isinstance(part, ast.Pass):
            allowed = "may hold functions, and `complete = True`"
            refuse("intervention", f"{node.name}: {ast.unparse(part)}", allowed)
    if not places:
        refuse("intervention", node.name, f"has no place; places are {', '.join(PLACES)}")
    if complete and "optimizer" not in places:
        refuse("complete", True, f"is for an optimizer, and {node.name} has none")
    return Declared(node.name, version, numbers, tuple(places), complete)


def _place(name: str, function: ast.FunctionDef) -> list[str]:
    """The place of a function, none for a helper `_name`."""
    if function.name.startswith("_"):
        return []
    shown = f"{name}.{function.name}"
    if function.name not in PLACES:
        refuse("intervention", shown, f"is no place; places are {', '.join(PLACES)}")
    given = function.args
    n_given = len(given.posonlyargs) + len(given.args)
    expected = PLACES[function.name]
    if n_given != len(expected) or given.vararg or given.kwarg or given.kwonlyargs:
        refuse("intervention", shown, f"must take ({', '.join(expected)})")
    return [function.name]


def _sets_complete(part: ast.stmt) -> bool:
    return ast.unparse(part) == "complete = True"


def _check_free_names(text: str, own: set[str]):
    """Refuse what a function uses from outside, and imports: neither would travel."""
    for node in ast.walk(_parsed(text)):
        if isinstance(node, (ast.Import, ast.ImportFrom, ast.Global, ast.Nonlocal)):
            allowed = f"only {', '.join(MENU)} travel with an intervention"
            refuse("intervention", ast.unparse(node), allowed)
    allowed_names = own | set(MENU) | set(dir(builtins)) | {"intervention"}
    tables = [symtable.symtable(text, "intervention", "exec")]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        for symbol in table.get_symbols():
            if symbol.is_global() and symbol.get_name() not in allowed_names:
                used = f"{symbol.get_name()} (line {table.get_lineno()})"
                refuse("intervention", used, f"is from outside; only {', '.join(MENU)} travel")


def _check_together(found: tuple[Declared, ...]):
    """Refuse interventions of one run that would hide each other."""
    names = [one.name for one in found]
    numbers = [name for one in found for name, _ in one.numbers]
    alone = [place for one in found for place in one.places if place in ALONE]
    for kind, values in (("intervention", names), ("number", numbers), ("place", alone)):
        twice = [value for value in values if values.count(value) > 1]
        if twice:
            refuse(kind, twice[0], f"stands twice, in {', '.join(names)}")


def titles(text: str) -> str:
    """Names and versions of a text's interventions: "softcap@1 + qk_clip@2"; "" without any."""
    return " + ".join(one.title for one in declared(text))


def texts(text: str) -> dict[str, str]:
    """The text of each intervention of `text`, by its title."""
    nodes = _parsed(text).body
    return {one.title: ast.unparse(node) for one, node in zip(declared(text), nodes, strict=True)}


def defaults(text: str) -> dict[str, float]:
    """The numbers of a text's interventions, at their defaults."""
    return {name: value for one in declared(text) for name, value in one.numbers}


def numbers_text(numbers: dict[str, float]) -> str:
    """Numbers as a field of a run holds them: JSON, sorted, 12 digits; "" for none."""
    exact = {name: float(f"{value:.12g}") for name, value in sorted(numbers.items())}
    return json.dumps(exact) if exact else ""


@functools.lru_cache(maxsize=4096)
def _numbers_of(text: str) -> tuple[tuple[str, float], ...]:
    try:
        values = json.loads(text or "{}")
        assert isinstance(values, dict)
        return tuple((name, typed(name, value, float)) for name, value in values.items())
    except (ValueError, AssertionError, RecursionError):
        refuse("intervention_numbers", text, "must be a JSON object of numbers")


def numbers_of(text: str) -> dict[str, float]:
    """The numbers in a run's field. Raises UserError where it is no JSON object of numbers."""
    return dict(_numbers_of(text))


def check(text: str, numbers: str):
    """Raises UserError where a run's two fields do not belong together."""
    given, known = numbers_of(numbers), defaults(text)
    if given.keys() != known.keys():
        allowed = f"must give {', '.join(known) or 'no number'}, as its intervention declares"
        refuse("intervention_numbers", numbers, allowed)


# ------------------------------------------------------------------ what a text does


class Places:
    """The functions of a text, as the training step calls them."""

    def __init__(self, found: tuple[Declared, ...], classes: tuple[type, ...]):
        self._functions: dict[str, list[Callable]] = {place: [] for place in PLACES}
        for one, cls in zip(found, classes, strict=True):
            for place in one.places:
                self._functions[place].append(vars(cls)[place])
        self.complete = any(one.complete for one in found)

    def has(self, place: str) -> bool:
        return bool(self._functions[place])

    def through(self, place: str, value, *others):
        """`value` after the functions of a place, one after another."""
        for function in self._functions[place]:
            value = function(value, *others)
        return value

    def qk(self, q_BHKT, k_BHKS, h: dict):
        for function in self._functions["qk"]:
            q_BHKT, k_BHKS = function(q_BHKT, k_BHKS, h)
        return q_BHKT, k_BHKS

    def added_loss(self, logits_NV, labels_N, params: dict, h: dict):
        """What interventions add to the loss; None where none does."""
        terms = [f(logits_NV, labels_N, params, h) for f in self._functions["loss"]]
        return sum(terms[1:], terms[0]) if terms else None

    def only(self, place: str) -> Callable | None:
        """The function of a place that takes one at most, or None."""
        functions = self._functions[place]
        return functions[0] if functions else None


@functools.lru_cache(maxsize=256)
def places(text: str) -> Places:
    """The functions of a text. This runs it. Raises UserError as `declared`."""
    found = declared(text)
    if not found:
        return Places((), ())
    import jax
    import jax.numpy as jnp
    import optax
    from flax import nnx

    from proxies_lib import model

    def same(**_):
        return lambda cls: cls

    names = {"intervention": same, "__name__": "intervention"}
    names |= {"jax": jax, "jnp": jnp, "optax": optax, "nnx": nnx, "model": model}
    # Functions find the classes of their own text by name, and nothing of anybody else's.
    title = f"<{titles(text)}>"
    # A traceback then shows the line.
    linecache.cache[title] = (len(text), None, text.splitlines(keepends=True), title)
    exec(compile(text, title, "exec"), names)
    return Places(found, tuple(names[one.name] for one in found))  # type: ignore[misc]
