"""Properties of settings, of the compilation cache and of PROXIES_WORKERS, on generated cases."""

import contextlib
import io
import os
import pathlib
import tempfile
import unittest.mock

import hypothesis
from hypothesis import given
from hypothesis import strategies as st

from proxies_lib import settings
from proxies_lib.config import UserError
from proxies_lib.runs import engines, executables

cases = {"deadline": None, "derandomize": True, "database": None}
words = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_", min_size=1, max_size=20)
families = st.sampled_from(
    ["JAX_", "XLA_", "ONEDNN_", "DNNL_", "CUBLAS", "FLAX_", "NCCL_", "MY_", ""]
)
options = st.sampled_from(sorted(settings.PINNED)).map(str.upper)
flags = st.sampled_from(["--xla_dump_to=x", "--xla_force_host_platform_device_count=2"])
any_flags = st.lists(flags | st.text("-=_ax1 ", max_size=12) | words).map(" ".join)
values = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30)
variables = st.dictionaries(options | st.builds(str.__add__, families, words), values, max_size=8)


def pin(environment: dict[str, str], flags: str | None = None) -> tuple[dict[str, str], str]:
    """What pin_environment leaves of an environment, and what it says."""
    given = environment if flags is None else environment | {"XLA_FLAGS": flags}
    said = io.StringIO()
    with unittest.mock.patch.dict(os.environ, given, clear=True), contextlib.redirect_stderr(said):
        with unittest.mock.patch.object(settings, "_jax_has_started", lambda: False):
            settings.pin_environment()
        return dict(os.environ), said.getvalue()


@hypothesis.settings(max_examples=400, **cases)
@given(variables)
def test_pinning_only_drops_says_what_and_leaves_nothing_to_drop(environment):
    left, said = pin(environment)
    assert left.items() <= environment.items()
    gone = environment.keys() - left.keys()
    assert bool(gone) == bool(said) and said.count("\n") == bool(said)
    assert pin(left) == (left, "")


@hypothesis.settings(max_examples=200, **cases)
@given(variables, options)
def test_no_pinned_option_reaches_jax_by_a_variable(environment, option):
    left, _ = pin(environment | {option: "1"})
    assert not any(name.lower() in settings.PINNED for name in left if name.startswith("JAX_"))


@hypothesis.settings(max_examples=200, **cases)
@given(st.dictionaries(words.map("MY_".__add__), values), any_flags)
def test_what_is_not_jaxs_stays_and_of_xlas_flags_only_harmless_ones(environment, given_flags):
    left, _ = pin(environment, given_flags)
    kept = left.pop("XLA_FLAGS", "").split()
    assert left == environment
    assert kept == [flag for flag in given_flags.split() if flag.startswith("--xla_")][: len(kept)]
    assert all(flag.startswith(("--xla_dump_", "--xla_force_host_")) for flag in kept)


@hypothesis.settings(max_examples=300, **cases)
@given(st.text(max_size=12) | st.integers().map(str) | st.integers(0, 10**6).map(str))
def test_a_number_of_workers_is_taken_or_refused_in_one_line(text):
    text = text.replace("\0", "").encode(errors="ignore").decode()
    with unittest.mock.patch.dict(os.environ, {"PROXIES_WORKERS": text}):
        try:
            number = engines.cores()
        except UserError as error:
            assert str(error).startswith("PROXIES_WORKERS=") and len(str(error).splitlines()) == 1
        else:
            assert 1 <= number <= engines.MOST_WORKERS
            assert not text or number == int(text)


@hypothesis.settings(max_examples=300, **cases)
@given(st.binary(max_size=200), st.data())
def test_a_cached_program_is_read_as_written_or_not_at_all(program, data):
    said = []
    with tempfile.TemporaryDirectory() as folder:
        entries = executables.Entries(folder, said.append)
        entries.put("key", program)
        assert entries.get("key") == program
        path = pathlib.Path(folder) / "key.xla"
        content = bytearray(path.read_bytes())
        cut = data.draw(st.integers(0, len(content)), "length")
        flips = data.draw(st.sets(st.integers(0, 8 * len(content) - 1), max_size=3), "bits")
        for bit in flips:
            content[bit // 8] ^= 1 << bit % 8
        damaged = bytes(content[:cut])
        intact = damaged == path.read_bytes()
        path.write_bytes(damaged)
        assert entries.get("key") == (program if intact else None)
        assert path.exists() == intact and len(said) == (not intact)
