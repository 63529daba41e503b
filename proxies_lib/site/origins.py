"""Where a check is written, and since when: its source, and what git says about its lines.

All of it is best effort: without git, or with a shallow clone, there is a source and no commit.
"""

import ast
import dataclasses
import functools
import json
import pathlib
import re
import subprocess

from proxies_lib import config, paths

CHECKS = "proxies_lib/science/checks"

_LAYOUT = 1  # of the cached file


@dataclasses.dataclass(frozen=True)
class Commit:
    name: str  # twelve digits, as runs name it
    date: str
    subject: str


@dataclasses.dataclass(frozen=True)
class Origin:
    """The call of `claims.check` that judges a claim."""

    file: str  # in the project's folder
    line: int
    source: str
    written: Commit | None  # the first commit with the words of its measure
    stands: Commit | None  # the last one that touched the call, or the constant of its threshold


def origins(names: list[str]) -> dict[str, Origin]:
    """By claim, where it is judged; a claim whose check is not found is left out."""
    calls = _calls()
    found = {}
    for name in names:
        fitting = [call for call in calls if call.pattern.fullmatch(name)]
        if fitting:
            found[name] = max(fitting, key=lambda call: call.fixed)
    since = _since(list(dict.fromkeys(found.values())))
    return {
        name: Origin(call.file, call.lines[0], call.source, *since[call])
        for name, call in found.items()
    }


# ------------------------------------------------------------------ calls in the source


@dataclasses.dataclass(frozen=True)
class _Call:
    file: str
    lines: tuple[int, int]  # the first and the last one
    source: str
    pattern: re.Pattern  # of the names of its claims
    fixed: int  # how many letters of a name it fixes: the more, the surer it is the one
    measure: str  # the longest fixed words of its measure
    constants: tuple[tuple[str, int], ...]  # file and line of each name in its threshold


@functools.cache
def _calls() -> list[_Call]:
    """Every call of `check` in the modules of the checks."""
    files = sorted((paths.root() / CHECKS).glob("*.py"))
    trees = {file: ast.parse(file.read_text("utf-8")) for file in files}
    constants = {
        target.id: (_place(file), node.lineno)
        for file, tree in trees.items()
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    return [
        _call(file, node, constants)
        for file, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", "") == "check"
        and len(node.args) >= 4
    ]


def _call(file: pathlib.Path, node: ast.Call, constants: dict) -> _Call:
    lines = file.read_text("utf-8").splitlines()[node.lineno - 1 : node.end_lineno]
    indent = len(lines[0]) - len(lines[0].lstrip())
    parts = _parts(node.args[0])
    pattern = "".join(".+" if part is None else re.escape(part) for part in parts)
    thresholds = [key.value for key in node.keywords if key.arg in ("above", "below")]
    named = [n.id for value in thresholds for n in ast.walk(value) if isinstance(n, ast.Name)]
    return _Call(
        _place(file),
        (node.lineno, node.end_lineno or node.lineno),
        "\n".join(line[indent:] if not line[:indent].strip() else line for line in lines),
        re.compile(pattern),
        sum(len(part) for part in parts if part),
        max((part for part in _parts(node.args[3]) if part), key=len, default=""),
        tuple(constants[name] for name in named if name in constants),
    )


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


def _since(calls: list[_Call]) -> dict[_Call, tuple[Commit | None, Commit | None]]:
    """For each call, the commit that first had its measure, and the last one that touched it.

    Asking takes seconds, so the answers are kept in the cache, for a commit and these sources.
    """
    head = _git("rev-parse", "HEAD").strip()
    edited = _git("status", "--porcelain", "--", CHECKS).strip()
    # All lines of a shallow clone seem to be from its first commit.
    whole = _git("rev-parse", "--is-shallow-repository").strip() == "false"
    if not head or edited or not whole:
        return dict.fromkeys(calls, (None, None))
    mark = config.digest({"layout": _LAYOUT, "head": head, "calls": [c.source for c in calls]})
    cached = paths.folder("cache") / "site" / "origins.json"
    known = _read(cached, mark)
    if known is None or len(known) != len(calls):
        known = [_asked(call) for call in calls]
        text = json.dumps({"mark": mark, "commits": known}, ensure_ascii=False, indent=1)
        paths.write_atomically(cached, text.encode())
    return {call: (_commit(w), _commit(s)) for call, (w, s) in zip(calls, known, strict=True)}


def _read(path: pathlib.Path, mark: str) -> list | None:
    try:
        found = json.loads(path.read_text("utf-8"))
        return found["commits"] if found["mark"] == mark else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _commit(known) -> Commit | None:
    return None if known is None else Commit(*known)


def _asked(call: _Call) -> tuple[list[str] | None, list[str] | None]:
    touched = [_blamed(call.file).get(line) for line in range(call.lines[0], call.lines[1] + 1)]
    touched += [_blamed(file).get(line) for file, line in call.constants]
    known = {name for name in touched if name}
    complete = bool(known) and None not in touched
    return _about(_first_with(call.measure)), _about(_newest(known)) if complete else None


@functools.cache
def _blamed(file: str) -> dict[int, str]:
    """The commit of each line of a file, across moves."""
    found = re.findall(r"(?m)^([0-9a-f]{40}) \d+ (\d+)", _git(*_BLAME, "--", file))
    return {int(line): name for name, line in found}


_BLAME = ("blame", "--root", "-w", "-M", "-C", "--line-porcelain")


def _first_with(words: str) -> str | None:
    """The first commit that added these words to the library, wherever they stood then."""
    return next((commit for commit, text in _added() if words and words in text), None)


@functools.cache
def _added() -> list[tuple[str, str]]:
    """By commit, the oldest first, the lines that it added to the library."""
    log = _git(
        "log", "--reverse", "-p", "-U0", "--no-color", "--format=%x00%H", "--", "proxies_lib"
    )
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
