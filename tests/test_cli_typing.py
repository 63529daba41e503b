"""What people type: help, examples, versions, short names, completion, quiet, color, JSON."""

import json
import os
import re
import shlex
import subprocess
import sys
from unittest import mock

import pytest

from proxies_lib import cli, config, paths
from proxies_lib.cli import parser as typed
from proxies_lib.cli import screen
from proxies_lib.runs import provenance, sweep
from proxies_lib.science import figures, notebooks, protocol


def parsers() -> dict:
    """Every parser by what one types before --help."""
    top, commands = typed.parser_and_commands()
    found = {"": top} | commands
    for action in commands["data"]._subparsers._group_actions:
        found |= {f"data {name}": parser for name, parser in action.choices.items()}
    return found


PARSERS = parsers()


def test_without_arguments_the_help_is_shown(capsys):
    assert cli.main([]) == 0
    bare = capsys.readouterr().out
    assert cli.main(["data"]) == 0 and "usage: proxies data" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    assert stop.value.code == 0 and capsys.readouterr().out == bare
    for status, words in typed.STATUSES.items():
        assert re.search(rf"^  {status} +{re.escape(words)}$", bare, re.MULTILINE)


@pytest.mark.parametrize("name", PARSERS)
def test_every_help_has_an_example_that_can_be_typed(name):
    lines = re.findall(r"^  proxies (.+)$", PARSERS[name].format_help(), re.MULTILINE)
    assert lines
    top, _ = typed.parser_and_commands()
    for line in lines:
        command = line.partition("#")[0].partition(" > ")[0]
        options = top.parse_args(shlex.split(command))
        assert callable(options.call), line
        assert command.startswith(name) or not name


def test_every_option_is_read(capsys):
    """An option whose name stands in no module but where it is declared is not honored."""
    folder = paths.root() / "proxies_lib" / "cli"
    code = "\n".join(path.read_text() for path in folder.glob("*.py"))
    for name, parser in PARSERS.items():
        for action in parser._actions:
            read = action.dest in ("help", "version", "==SUPPRESS==") or f"options.{action.dest}"
            by_name = f'"{action.dest}"' in code  # as data prepare reads them
            assert read is True or read in code or by_name, f"{name}: {action.dest}"


def test_the_version_is_the_packages_and_the_commit(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    said = re.fullmatch(r"proxies (\S+), commit (\S+)\n", capsys.readouterr().out)
    declared = re.search(r'^version = "(.+)"$', (paths.root() / "pyproject.toml").read_text(), re.M)
    assert stop.value.code == 0 and said[1] == declared[1] and said[2] == provenance.commit()


@pytest.mark.parametrize(
    "name",
    ["1", "01", "01_attention_logit_growth", "notebooks/01_attention_logit_growth.py"],
)
def test_a_section_has_several_names(name):
    (path,) = notebooks.choose([name], protocol.study("laptop"))
    assert path.name == "01_attention_logit_growth.py"


@pytest.mark.parametrize("name", ["001", "1_attention_logit_growth", "²", "1.py", "0", "-1"])
def test_what_is_no_section_is_refused(name):
    if name in ("1.py", "0"):
        assert len(notebooks.choose([name], protocol.study("laptop"))) == 1  # 01 and 00
        return
    with pytest.raises(config.UserError, match="^section="):
        notebooks.choose([name], protocol.study("laptop"))


@pytest.mark.parametrize(
    ("word", "known", "meant"),
    [
        ("lptop", ["laptop", "night"], "laptop"),
        ("LAPTOP", ["laptop"], "laptop"),
        ("z_loss", ["02_z_loss", "03_warmup"], "02_z_loss"),
        ("zzz", ["laptop"], ""),
        ("", ["laptop"], ""),
        ("l" * 5000, ["laptop"], ""),
        (None, ["laptop"], ""),
    ],
)
def test_what_was_meant(word, known, meant):
    assert config.did_you_mean(word, known) == (f" (did you mean {meant}?)" if meant else "")


# ------------------------------------------------------------------ completion


def completions(line: str, tmp_path) -> list[str]:
    """The words that Tab offers behind `line`, as argcomplete tells the shell."""
    answer = tmp_path / "answer"
    asked = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "COMP_TYPE": "9",
    }
    script = "import sys; sys.argv[0] = 'proxies'; from proxies_lib.cli import main; main()"
    command = [sys.executable, "-c", script]
    subprocess.run(command, env=os.environ | asked, cwd=paths.root(), check=True)
    return [word.strip() for word in answer.read_text().splitlines()]


def test_tab_offers_what_may_stand_there(tmp_path, monkeypatch):
    monkeypatch.delenv("PROXIES_PAPERMILL_RUNS")  # the committed labels
    assert completions("proxies expl", tmp_path) == ["explain"]
    assert completions("proxies run --scale ", tmp_path) == list(protocol.scales())
    assert set(completions("proxies run ", tmp_path)) >= set(notebooks.sections())
    assert "z_loss=" in completions("proxies run --set z_", tmp_path)
    assert set(completions("proxies diff lap", tmp_path)) >= {"laptop", "laptop-xeon"}
    names = set(completions("proxies explain P2.", tmp_path))
    assert names == {name for name in figures.FIGURES if name.startswith("P2.")}
    assert completions("proxies run --engine ", tmp_path) == ["auto", "processes", "lanes", "ray"]


def test_bash_completes_after_what_the_command_prints(tmp_path):
    stub = tmp_path / "proxies"
    stub.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m proxies_lib.cli "$@"\n')
    stub.chmod(0o755)
    script = (
        'eval "$(proxies completion)"\n'
        "COMP_LINE='proxies clai'; COMP_POINT=12; COMP_TYPE=9\n"
        "COMP_WORDS=(proxies clai); COMP_CWORD=1\n"
        "$(complete -p proxies | sed 's/.* -F \\([^ ]*\\) .*/\\1/') proxies clai proxies\n"
        'echo "${COMPREPLY[@]}"\n'
    )
    own = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(paths.root())}
    command = ["bash", "--norc", "-c", script]
    done = subprocess.run(command, env=own, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.split() == ["claims"], done.stderr


# ------------------------------------------------------------------ what is printed


def test_color_goes_to_terminals_that_want_it(monkeypatch, capsys):
    for is_terminal, variables, colored in (
        (True, {}, True),
        (False, {}, False),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"TERM": "dumb"}, False),
        (True, {"NO_COLOR": ""}, True),  # as no-color.org says
    ):
        with monkeypatch.context() as terminal:
            terminal.setattr(sys.stdout, "isatty", lambda answer=is_terminal: answer)
            for name in ("NO_COLOR", "TERM"):
                terminal.delenv(name, raising=False)
            for name, value in variables.items():
                terminal.setenv(name, value)
            assert screen.verdict("holds", 7) == (
                "\033[32mholds\033[0m" if colored else "holds"
            ) + ("  ")


def test_colored_cells_stand_below_each_other(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    screen.table(["a", "b"], [[screen.verdict("holds"), "1"], ["undecided", "2"]])
    lines = [re.sub("\033\\[[0-9]*m", "", line) for line in capsys.readouterr().out.splitlines()]
    assert lines == ["  a          b", "  holds      1", "  undecided  2"]


def test_quiet_prints_nothing(tmp_path, capsys):
    arguments = ["merge", "--store", str(tmp_path)]
    assert cli.main(arguments) == 0 and capsys.readouterr().out
    assert cli.main([*arguments, "--quiet"]) == 0 and capsys.readouterr() == ("", "")
    assert cli.main(["merge", str(tmp_path / "none"), "--quiet"]) == 2
    assert capsys.readouterr().err.startswith("proxies: source=")


@pytest.fixture
def own_environment():
    """Options are handed on to kernels and workers in the environment: not to other tests."""
    with mock.patch.dict(os.environ):
        yield


def test_a_plan_as_json_is_the_plan_in_words(capsys, own_environment):
    arguments = ["plan", "1", "7", "--scale", "smoke", "--workers", "3"]
    assert cli.main([*arguments, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert cli.main(arguments) == 0
    held_out, head, *programs, time = capsys.readouterr().out.splitlines()
    assert held_out.startswith(f"held out: {plan['held_out']} further runs")
    assert head == (
        f"plan: {plan['requested']} runs requested, {plan['distinct']} distinct, "
        f"{plan['stored']} stored, {plan['to_train']} to train"
    )
    assert len(plan["programs"]) == len(programs)
    assert sum(p["to_train"] for p in plan["programs"]) == plan["to_train"] > 0
    training = sum(p["to_train"] * p["seconds_a_run"] for p in plan["programs"])
    compiling = sweep.COMPILE_SECONDS * len(programs)
    assert plan["seconds"] == pytest.approx((training + compiling) / 3)
    assert time.startswith("  about") and plan["workers"] == 3


def test_of_lanes_no_time_is_said_to_be_known(capsys, own_environment):
    assert cli.main("plan 1 --scale smoke --engine lanes --json".split()) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["seconds"] is None and plan["workers"] is None
