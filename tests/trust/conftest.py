"""The slow suite `make test-trust`: kills, full and read-only disks, damaged files. Not part
of `make test`."""

import collections

import pytest
from worlds import TARGETS, World

LEDGER = []  # a row per disturbance: (what was disturbed, how, outcome); printed at the end


class References:
    """What each target leaves when nothing disturbs it, measured at first use, in a world of
    its own."""

    def __init__(self, folder):
        self.folder, self.known = folder, {}
        self.first = World(folder / "first")
        self.first.folder.mkdir()
        ended = self.first.run(("run", "01", "--scale", "smoke"))
        assert ended.status == 0, ended
        compiled = ("--store", str(folder / "compiled"))
        lanes = TARGETS["lanes with checkpoints"].arguments
        assert self.first.run((*lanes, *compiled)).status == 0

    def of(self, name: str) -> tuple[dict[str, str], float]:
        """What must come out of a target, and the seconds that it takes."""
        if name not in self.known:
            world = World(self.folder / f"reference-{len(self.known)}")
            world.folder.mkdir()
            TARGETS[name].before(world, self.first)
            ended = TARGETS[name].run(world)
            assert ended.status == 0, ended
            assert not world.strays()
            self.known[name] = TARGETS[name].after(world), ended.seconds
        return self.known[name]


@pytest.fixture(scope="session")
def references(tmp_path_factory):
    return References(tmp_path_factory.mktemp("references"))


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


@pytest.fixture
def ledger(request):
    """Note what this test disturbs: `ledger(what, how)`. It counts as whole only if the test
    passes."""
    noted = []

    def note(what: str, how: str, **figures):
        noted.append((what, how, figures))

    yield note
    passed = getattr(request.node, "passed", False)
    LEDGER.extend((what, how, figures, passed) for what, how, figures in noted)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.when == "call":
        item.passed = report.passed
    return report


def pytest_terminal_summary(terminalreporter):
    if not LEDGER:
        return
    groups = collections.defaultdict(list)
    for what, how, figures, passed in LEDGER:
        groups[what, how].append((figures, passed))
    head = ("what", "disturbed by", "times", "died at (s)", "finished runs kept", "bit-identical")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    total, whole = 0, 0
    for (what, how), rows in groups.items():
        times = sum(figures.get("times", 1) for figures, _ in rows)
        good = sum(figures.get("times", 1) for figures, passed in rows if passed)
        seconds = sorted(figures["at"] for figures, _ in rows if "at" in figures)
        kept = (
            sum(figures.get("kept", 0) for figures, _ in rows)
            if any("kept" in f for f, _ in rows)
            else "–"
        )
        span = f"{seconds[0]:.1f} – {seconds[-1]:.1f}" if seconds else "–"
        lines.append(f"| {what} | {how} | {times} | {span} | {kept} | {good} of {times} |")
        total, whole = total + times, whole + good
    kills = sum(1 for _, _, figures, _ in LEDGER if "at" in figures)
    lines.append(f"\n{total} disturbances, {kills} of them kills: {whole} ended bit-identical")
    terminalreporter.section("trust")
    for line in lines:
        terminalreporter.write_line(line)
