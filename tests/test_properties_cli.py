"""Whatever is typed: `proxies` does it, or says in one line why not."""

import io
import os
import resource
import shlex
import sys
from unittest import mock

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from proxies_lib import cli, config

MEMORY = 2 * 2**30  # bytes that a command may take beyond what the tests have taken before


def cases(n: int):
    """`n` generated cases, the same ones each time."""
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
    return settings(
        max_examples=n, deadline=None, derandomize=True, database=None, suppress_health_check=slow
    )


@pytest.fixture(scope="module", autouse=True)
def bounded_memory():
    """An absurd number must be refused before a list of that length is made, not when memory
    ends."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def call(arguments: list[str]) -> tuple[int, str, str]:
    """Status, output and errors of `proxies ARGUMENTS`, in this process, with streams as a
    terminal's."""
    out = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="strict")
    err = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="backslashreplace")
    with (
        mock.patch.dict(os.environ),
        mock.patch.object(sys, "stdout", out),
        mock.patch.object(sys, "stderr", err),
    ):
        try:
            status = cli.main(arguments)
        except SystemExit as stop:
            status = stop.code
        texts = []
        for stream in (out, err):
            stream.flush()
            texts.append(stream.buffer.getvalue().decode())
    return status or 0, *texts


def done_or_refused(arguments: list[str]):
    status, out, err = call(arguments)
    typed = shlex.join(arguments)
    assert status in (0, 1, 2), (typed, status)
    if status:
        assert err.startswith("proxies: ") and err.count("\n") == 1, (typed, err)
        assert len(err.splitlines()) == 1 and not out, (typed, out, err)


# What a shell can pass: any characters but NUL, and bytes that are not UTF-8 as lone surrogates.
typed = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
words = st.one_of(
    typed, st.sampled_from(["", "-", "--", "-1", "\udcff", "a\nb", "../..", "x" * 5000, "²", "１"])
)

sections = st.one_of(st.sampled_from(["00", "01", "07", "10", "01_attention_logit_growth"]), words)
scales = st.one_of(st.sampled_from(["smoke"] * 4 + ["gpu", "paper", "huge"]), words)
literals = st.one_of(
    st.sampled_from(
        [
            "1",
            "40",
            "0.1",
            "[8]",
            "[[8, 1]]",
            "[0, 1]",
            "none",
            "None",
            "True",
            "nan",
            "1e999",
            "-0.0",
        ]
    ),
    st.sampled_from(
        ["9" * 4000, "9" * 5000, "1" + "0" * 400, "[" * 400, "(" * 99 + ")" * 99, "-" * 3000 + "1"]
    ),
    st.sampled_from(
        ["{1: 2}", "{[]: 1}", "1j", "b'x'", "__import__('os')", "[1, [2, [3]]]", "'a\\nb'", "\\"]
    ),
    words,
)
names = st.one_of(st.sampled_from([*config.FIELDS, "sizes", "lrs", "seeds"]), words)
assignments = st.one_of(st.tuples(names, literals).map("=".join), words)
seeds = st.one_of(
    st.sampled_from(
        ["0", "0,1", "5-7", "7-5", "", ",", "0-", "-3", "1,,2", "²", "0-99999999999", "4294967296"]
    ),
    st.sampled_from(["9" * 5000, "0-" + "9" * 5000, "2147483647-2147483648"]),
    words,
)
shards = st.one_of(
    st.sampled_from(["1/1", "2/3", "3/2", "0/1", "1/0", "²/²", "1/" + "9" * 5000]), words
)
stores = st.one_of(
    st.sampled_from(["", "nowhere", "x" * 300, "pyproject.toml", "pyproject.toml/a", "/dev/null"]),
    words,
)
workers = st.one_of(st.sampled_from(["1", "2", "0", "-1", "two", "²", "9" * 5000, "1.0"]), words)
engines = st.one_of(st.sampled_from(["auto", "processes", "lanes", "ray", "gpu"]), words)
options = st.one_of(
    st.tuples(st.just("--set"), assignments),
    st.tuples(st.just("--set"), assignments),
    st.tuples(st.just("--seeds"), seeds),
    st.tuples(st.just("--shard"), shards),
    st.tuples(st.just("--store"), stores),
    st.tuples(st.just("--workers"), workers),
    st.tuples(st.just("--engine"), engines),
    st.tuples(st.just("--scale"), scales),
    st.tuples(words),
)


@st.composite
def plans(draw) -> list[str]:
    """`plan` with any sections and up to three options, in any order."""
    parts = [("--scale", draw(st.sampled_from(["smoke", "smoke", "laptop"])))]
    parts += draw(st.lists(options, max_size=3))
    parts += [(section,) for section in draw(st.lists(sections, min_size=1, max_size=2))]
    return ["plan", *(word for part in draw(st.permutations(parts)) for word in part)]


@cases(350)
@given(arguments=plans())
@example(["plan", "01", "--scale", "smoke", "--seeds", "0-99999999999"])
@example(["plan", "01", "--scale", "smoke", "--seeds", ""])
@example(["plan", "01", "--scale", "smoke", "--set", "steps=" + "9" * 5000])
@example(["plan", "01", "--scale", "smoke", "--set", "data=" + "x" * 5000])
@example(["plan", "01", "--scale", "smoke", "--set", "data=\udcff"])
@example(["plan", "01", "--scale", "smoke", "--set", "z_loss=" + "[" * 400])
@example(["plan", "01", "--scale", "smoke", "--set", "a\nb=1"])
@example(["plan", "01", "--scale", "smoke", "--workers", "9" * 5000])
@example(["plan", "01", "--scale", "smoke", "--shard", "1/" + "9" * 5000])
@example(["plan", "01", "--scale", "smoke", "--store", "x" * 300])
@example(["plan", "01", "--scale", "smoke", "--store", "pyproject.toml/a"])
def test_plan_is_done_or_refused_in_one_line(arguments):
    done_or_refused(arguments)


conditions = st.one_of(
    st.tuples(names, st.sampled_from(["=", "<=", "!=", ">", "~"]), literals).map("".join),
    st.lists(assignments, min_size=2, max_size=3).map(",".join),
    words,
)
keys = st.one_of(st.text("0123456789abcdef", max_size=26), words)

reading = st.one_of(
    st.tuples(st.just("table"), st.just("--where"), conditions),
    st.tuples(st.just("table"), st.just("--columns"), words),
    st.tuples(st.just("show"), keys),
    st.tuples(st.just("explain"), words, st.just("--scale"), words),
    st.tuples(st.just("diff"), scales, scales),
    st.tuples(st.just("table"), st.just("--scale"), scales),
    st.tuples(st.just("claims"), st.just("--scale"), scales),
    st.tuples(st.just("claims"), st.just("--against"), scales),
    st.tuples(st.just("claims"), st.just("--together"), scales),
    st.tuples(st.just("claims"), words),
    st.tuples(st.just("data"), st.just("list")),
    st.tuples(st.just("data"), words),
    st.tuples(st.just("data"), st.just("prepare"), words),
    st.tuples(
        st.just("data"),
        st.just("prepare"),
        st.just("text"),
        st.just("--path"),
        words.map(lambda w: "nowhere/" + w),
    ),
    st.tuples(
        st.just("merge"),
        words.map(lambda w: "nowhere/" + w),
        st.just("--store"),
        st.just("nowhere/store"),
    ),
    st.tuples(words),
    st.lists(words, max_size=4).map(tuple),
)


@cases(150)
@given(arguments=reading)
@example(("table", "--scale", "x" * 300))
@example(("table", "--scale", "\udcff"))
@example(("claims", "--scale", "x" * 300))
@example(("merge", "nowhere/" + "x" * 300, "--store", "nowhere/store"))
@example(("table", "--scale", "smoke", "--where", "lr=" + "9" * 5000))
@example(("show", "x" * 300))
@example(("explain", "x" * 300))
@example(("explain", ""))
@example(("diff", "\udcff", "laptop"))
@example(("data", "prepare", "text", "--path", "nowhere/" + "x" * 300))
def test_other_commands_are_done_or_refused_in_one_line(arguments):
    done_or_refused(list(arguments))
