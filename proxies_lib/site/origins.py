"""Where a check is written, and since when: its source, and what git says about its lines.

All of it is best effort: without git, or with a shallow clone, there is a source and no commit.
"""

import ast
import contextlib
import dataclasses
import functools
import json
import pathlib
import re
import subprocess

from proxies_lib import config, paths

CHECKS, NOTEBOOKS = "proxies_lib/science/checks", "notebooks"

_LAYOUT = 3  # of the cached file


@dataclasses.dataclass(frozen=True)
class Commit:
    name: str  # twelve digits, as runs name it
    date: str
    subject: str


@dataclasses.dataclass(frozen=True)
class Origin:
    """What fixes a claim: the call of `claims.check`, or the prediction in a notebook."""

    file: str  # in the project's folder
    line: int
    source: str
    written: Commit | None  # the first commit with the words of its measure, or of the prediction
    stands: Commit | None  # the last one that touched it, or the constant of its threshold


def origins(statements: dict[str, str]) -> dict[str, Origin]:
    """By claim, where it is fixed; what is not found is left out.

    `statements` are the claims' words, by their names: a check is known by the name, a prediction
    by the words.
    """
    found = {name: _passage_of(name, words) for name, words in statements.items()}
    known = {name: passage for name, passage in found.items() if passage}
    since = _since(list(dict.fromkeys(known.values())))
    return {
        name: Origin(passage.file, passage.lines[0], passage.source, *since[passage])
        for name, passage in known.items()
    }


# ------------------------------------------------------------------ passages of the source


@dataclasses.dataclass(frozen=True)
class _Passage:
    file: str
    lines: tuple[int, int]  # the first and the last one
    source: str
    words: str  # by which git finds when it was first written
    constants: tuple[tuple[str, int], ...] = ()  # file and line of each name in its threshold


@dataclasses.dataclass(frozen=True)
class _Check:
    """A call of `check`, which may make several claims in turn."""

    pattern: re.Pattern  # of the names of its claims
    fixed: int  # how many letters of a name it fixes: the more, the surer it is the one
    passage: _Passage


def _passage_of(name: str, statement: str) -> _Passage | None:
    if statement in _predictions():
        return _predictions()[statement]
    fitting = [found for found in _checks() if found.pattern.fullmatch(name)]
    return max(fitting, key=lambda found: found.fixed).passage if fitting else None


@functools.cache
def _checks() -> list[_Check]:
    """Every call of `check` in the modules of the checks."""
    trees = _trees(CHECKS)
    constants = {
        target.id: (_place(file), node.lineno)
        for file, tree in trees.items()
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    return [
        _check(file, node, constants)
        for file, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", "") == "check"
        and len(node.args) >= 4
    ]


def _check(file: pathlib.Path, node: ast.Call, constants: dict) -> _Check:
    parts = _parts(node.args[0])
    pattern = "".join(".+" if part is None else re.escape(part) for part in parts)
    thresholds = [key.value for key in node.keywords if key.arg in ("above", "below")]
    named = [n.id for value in thresholds for n in ast.walk(value) if isinstance(n, ast.Name)]
    measure = max(filter(None, _parts(node.args[3])), key=len, default="")
    known = tuple(constants[name] for name in named if name in constants)
    fixed = sum(len(part) for part in parts if part)
    return _Check(re.compile(pattern), fixed, _passage(file, node, measure, known))


@functools.cache
def _predictions() -> dict[str, _Passage]:
    """By their words, the predictions that a notebook writes down: dictionaries with `words`."""
    written = [
        (file, node)
        for file, tree in _trees(NOTEBOOKS).items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Dict)
    ]
    by_words = {_words(node): (file, node) for file, node in written}
    return {words: _passage(*place, words) for words, place in by_words.items() if words}


def _words(node: ast.Dict) -> str | None:
    """The value of the key "words" of a dictionary that is written out."""
    for key, value in zip(node.keys, node.values, strict=True):
        if isinstance(key, ast.Constant) and key.value == "words":
            return "".join(filter(None, _parts(value)))
    return None


def _trees(folder: str) -> dict[pathlib.Path, ast.Module]:
    files = sorted((paths.root() / folder).glob("*.py"))
    return {file: ast.parse(file.read_text("utf-8")) for file in files}


def _passage(
    file: pathlib.Path, node: ast.Call | ast.Dict, words: str, constants: tuple = ()
) -> _Passage:
    lines = file.read_text("utf-8").splitlines()[node.lineno - 1 : node.end_lineno]
    indent = len(lines[0]) - len(lines[0].lstrip())
    source = "\n".join(line[indent:] if not line[:indent].strip() else line for line in lines)
    ends = (node.lineno, node.end_lineno or node.lineno)
    return _Passage(_place(file), ends, source, words, constants)


def _parts(node: ast.expr) -> list[str | None]:
    """The fixed parts of a text, None for each part that is computed."""
    values = node.values if isinstance(node, ast.JoinedStr) else [node]
    return [
        value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else None
        for value in values
    ]


def _place(file: pathlib.Path) -> str:
    return file.relative_to(paths.root()).as_posix()


# ------------------------------------------------------------------ what git says


def _since(passages: list[_Passage]) -> dict[_Passage, tuple[Commit | None, Commit | None]]:
    """For each passage, the commit that first had its words, and the last one that touched it.

    Asking takes seconds, so the answers are kept in the cache, for a commit and these sources.
    """
    head = _git("rev-parse", "HEAD").strip()
    edited = _git("status", "--porcelain", "--", CHECKS, NOTEBOOKS).strip()
    # All lines of a shallow clone seem to be from its first commit.
    whole = _git("rev-parse", "--is-shallow-repository").strip() == "false"
    if not head or edited or not whole:
        return dict.fromkeys(passages, (None, None))
    mark = config.digest({"layout": _LAYOUT, "head": head, "sources": [p.source for p in passages]})
    cached = paths.folder("cache") / "site" / "origins.json"
    known = _read(cached, mark)
    if known is None or len(known) != len(passages):
        known = [_asked(passage) for passage in passages]
        text = json.dumps({"mark": mark, "commits": known}, ensure_ascii=False, indent=1)
        with contextlib.suppress(OSError):  # it is asked again next time
            paths.write_atomically(cached, text.encode())
    told = ((_commit(written), _commit(stands)) for written, stands in known)
    return dict(zip(passages, told, strict=True))


def _read(path: pathlib.Path, mark: str) -> list | None:
    try:
        found = json.loads(path.read_text("utf-8"))
        return found["commits"] if found["mark"] == mark else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _commit(known) -> Commit | None:
    return None if known is None else Commit(*known)


def _asked(passage: _Passage) -> tuple[list[str] | None, list[str] | None]:
    first, last = passage.lines
    places = [*((passage.file, line) for line in range(first, last + 1)), *passage.constants]
    touched = [_blamed(file).get(line) for file, line in places]
    names = {name for name in touched if name}
    stands = None if None in touched else _newest(names)
    return _about(_first_with(passage.words)), _about(stands)


@functools.cache
def _blamed(file: str) -> dict[int, str]:
    """The commit of each line of a file, across moves."""
    found = re.findall(r"(?m)^([0-9a-f]{40}) \d+ (\d+)", _git(*_BLAME, "--", file))
    return {int(line): name for name, line in found}


_BLAME = ("blame", "--root", "-w", "-M", "-C", "--line-porcelain")


def _first_with(words: str) -> str | None:
    """The first commit that added these words, wherever they stood then."""
    return next((commit for commit, text in _added() if words and words in text), None)


@functools.cache
def _added() -> list[tuple[str, str]]:
    """By commit, the oldest first, the lines that it added to the library and the notebooks."""
    patches = ("log", "--reverse", "-p", "-U0", "--no-color", "--format=%x00%H")
    log = _git(*patches, "--", "proxies_lib", NOTEBOOKS)
    commits = [entry.partition("\n") for entry in log.split("\0")[1:]]
    return [(name, "\n".join(re.findall(r"(?m)^\+(.*)$", patch))) for name, _, patch in commits]


def _newest(names: set[str]) -> str | None:
    """The commit that comes after the others; of several branches, the one with the last date."""
    ends = _git("merge-base", "--independent", *sorted(names)).split() if names else []
    return next(iter(_git("rev-list", "--no-walk=sorted", *ends).split()), None) if ends else None


@functools.cache
def _about(name: str | None) -> list[str] | None:
    """The arguments of a Commit."""
    if name is None:
        return None
    about = _git("show", "--no-patch", "--format=%H%n%as%n%s", name).splitlines()
    return [about[0][:12], about[1], about[2]] if len(about) >= 3 else None


@functools.cache
def is_ancestor(older: str, newer: str) -> bool | None:
    """Whether a commit is the other one or comes before it; None where git does not know them."""
    try:
        done = subprocess.run(
            ["git", "merge-base", "--is-ancestor", older, newer],
            cwd=paths.root(),
            capture_output=True,
        )
    except OSError:
        return None
    return {0: True, 1: False}.get(done.returncode)


def _git(*arguments: str) -> str:
    """What git prints; "" where there is none, or it refuses."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=paths.root(), capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout
