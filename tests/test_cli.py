import errno
import gzip
import json
import os
import pathlib
import resource
import signal
import subprocess
import sys

import pytest

from proxies_lib import cli, config, pages, paths
from proxies_lib.cli import results
from proxies_lib.config import UserError
from proxies_lib.science import claims

HUGE = "f" * 5000

BAD = {
    "run 01 --scale smoke --set lr=abc": "lr='abc': must be of type float",
    "run 01 --scale smoke --set lr=0.1": "lr=0.1: is swept by the notebooks; set lrs instead",
    "run 01 --scale smoke --set nosuch=1": "nosuch=1: unknown parameter",
    "run 01 --scale smoke --set steps": "set='steps': must be NAME=VALUE",
    "run 01 --scale huge": "scale='huge': must be one of smoke, laptop, night, long, gpu, paper",
    "run 01 --scale smoke --shard 3/2": "shard='3/2': must be i/n",
    "run 01 --scale smoke --shard 0/2": "shard='0/2': must be i/n",
    "run 99 --scale smoke": "section='99': must be one of 00, 01",
    "run 01 --scale smoke --set warmup_steps=40": "warmup_steps=40: must be below steps=40",
    "run 01 --scale smoke --set d_head=6": "d_head=6: must divide d_model",
    "run 01 --scale smoke --set data=nowhere": "data='nowhere': is not prepared here",
    "run 01 --scale smoke --seeds x": "seeds='x': must be like",
    "run 01 --scale smoke --set lrs=[]": "lrs=[]: must be a list that is not empty",
    "run 01 --scale smoke --seeds 0-99999999999": "seeds='0-99999999999': must be like",
    "run 01 --scale smoke --seeds 0-999999999": "must be 1 to 10000 seeds",
    "run 01 --scale smoke --seeds 7-5": "must be 1 to 10000 seeds, ranges in growing order",
    "run 01 --scale smoke --seeds=": "seeds='': must be like",
    "run 01 --scale smoke --seeds 2147483648": "seeds=2147483648: must be at most 2147483647",
    f"run 01 --scale smoke --set steps={'9' * 5000}": "steps='99",
    f"run 01 --scale smoke --set steps=0x{HUGE}": "steps=a int too large to print: must be at most",
    f"run 01 --scale smoke --set eps=0x{HUGE}": "eps=a int too large to print: must be a finite",
    f"run 01 --scale smoke --set steps={'[' * 5000}": "steps='[[",
    "run 01 --scale smoke --store=": "store='': must be the name of a folder",
    "plan 01 --scale smoke --store /dev/null/store": "cannot be a folder",
    "run 01 --scale smoke --store /dev/null/store": "cannot be a folder: /dev/null is a file",
    "plan 01 --scale smoke --set data=nowhere": "data='nowhere': is not prepared here",
    "plan 01 --scale gpu": "data='c4': is not prepared here",
    "run 01 --scale smoke --label ../x": "label='../x': must be 1 to 100 letters",
    "run 01 --scale smoke --label=": "label='': must be 1 to 100",
    "run 01 --scale smoke --label .": "label='.': must be 1 to 100",
    "figures 01 --scale smoke --shard 1/2": "unrecognized arguments: --shard 1/2",
    "claims --scale ../smoke": "label='../smoke': must be 1 to 100",
    "table --scale ../smoke": "label='../smoke': must be 1 to 100",
    "claims --pages --against laptop": "not allowed with argument --pages",
    "run 01 --scale smoke --workers 0": "workers=0: must be 1 or more",
    "run 01 --scale smoke --workers two": "invalid int value",
    "data prepare text --path nowhere.txt": "path='nowhere.txt': no such file",
    "data prepare c4 --path nowhere": "tokenizer=None",
    "claims --scale gpu": "no claims.csv yet",
    "nothing": "invalid choice",
    # What was meant, and which help says more.
    "rn 01": "invalid choice: 'rn' (choose",
    "tabel": "(did you mean table?); see proxies --help",
    "data prepar": "(did you mean prepare?); see proxies data --help",
    "run 01 --sedes 5": "--sedes 5 (did you mean --seeds?); see proxies run --help",
    "run 01 --engine lane": "(did you mean lanes?); see proxies run --help",
    "run 01 --scale lptop": "(did you mean laptop?)",
    "run z_los": "(did you mean 02_z_loss?)",
    "run qk": "section='qk': must be one of 00, 01",
    "run 01 --scale smoke --set z_los=0": "unknown parameter (did you mean z_loss?); allowed are",
    "claims laptop": "unrecognized arguments: laptop (did you mean --scale laptop?)",
    "explain E33": "(did you mean E.3?)",
    # What does not go together, or is not there.
    "show xyz": "key='xyz': must be the first 2 to 24 of the digits 0-9, a-f",
    "show 0123456789abcdef": "key='0123456789abcdef': no such run in the store, nor in the tables",
    "explain nothing": "figure='nothing': must be one of 00, 1, 2, E.1",
    "explain 1 --scale mine": "label='mine': begins with no scale, and has no protocol.json",
    "diff laptop gpu": "no runs.parquet yet",
    "diff smoke smoke": "has no outputs of one's own",
    "diff ../x laptop": "label='../x': must be 1 to 100",
    "bench sweep --seconds 3": "seconds=3.0: `proxies bench sweep` takes its own time",
    "bench --counts 5": "counts=[5]: is an option of `proxies bench store`",
    "tpu-check --table --size 4.8B": "size='4.8B': does not go with --table",
    "costs --table --scale gpu": "scale='gpu': does not go with --table",
    "claims --pages --json": "json=True: does not go with --pages",
    "run 01 --scale smoke --engine lanes --workers 2": "workers=2: engine lanes has none",
    "run 01 --scale smoke --set seeds=[1,1]": "seeds=[1, 1]: must have each entry once",
    "figures 01 --scale smoke": "24 of 24 runs are not stored; `proxies run` with the same words",
    "bench store --counts 0": "counts=[0]: must be 1 or more each",
    "bench step --seconds nan": "seconds=nan: must be 0 or more, and finite",
    "claims --against laptop": "label='laptop': has no outputs of one's own to compare",
    "claims --together laptop": "together='laptop': is the label itself, with the same seeds",
    "score README.md": "notebook='README.md': must have a grid with the arms none and qk-lay",
    "score 01 --scale smoke": "notebook='01_attention_logit_growth.py': must have a grid with",
    "score nosuch.ipynb": "notebook='nosuch.ipynb': is no file",
    "tpu-check --table --no-scan": "scan=False: does not go with --table",
    "tpu-check --topology v5e:99999999999x2": "topology='v5e:99999999999x2': must be v5e:NxM",
    "run 01 --scale smoke --distributed --engine ray": "engine='ray': does not go with",
}


def call(arguments: str, **options):
    command = [sys.executable, "-m", "proxies_lib.cli", *arguments.split()]
    return subprocess.run(command, capture_output=True, text=True, cwd=paths.root(), **options)


@pytest.mark.parametrize("arguments", BAD)
def test_bad_input_is_one_clear_line_and_nothing_is_written(
    arguments, tmp_path, monkeypatch, capsys
):
    for kind in ("store", "figures", "papermill_runs"):
        monkeypatch.setenv(f"PROXIES_{kind.upper()}", str(tmp_path / kind))
    try:
        status = cli.main(arguments.split())
    except SystemExit as stop:
        status = stop.code
    out, err = capsys.readouterr()
    assert status == 2 and not out
    assert err.startswith("proxies: ") and err.count("\n") == 1 and BAD[arguments] in err
    assert not list(tmp_path.iterdir())


def test_corrupt_and_empty_corpora_are_one_clear_line(tmp_path):
    (tmp_path / "empty.txt").write_text("")
    shard = tmp_path / "c4-train.00000-of-00001.json.gz"
    shard.write_bytes(gzip.compress(b'{"text": "a"}\n')[:15])
    (tmp_path / "t.model").write_bytes(b"x")
    for arguments in (
        f"data prepare text --path {tmp_path}/empty.txt --name e",
        f"data prepare c4 --path {tmp_path} --tokenizer {tmp_path}/t.model --name e",
    ):
        done = call(arguments)
        assert (
            done.returncode == 2 and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
        ), done.stderr
    assert not (paths.folder("cache") / "data" / "e").exists()


def test_plan_trains_and_writes_nothing(capsys):
    assert cli.main(["plan", "01", "--scale", "smoke"]) == 0
    assert "24 to train" in capsys.readouterr().out
    assert not paths.folder("store").exists() or not list(paths.folder("store").rglob("*.npz"))


def test_a_custom_protocol_runs_from_a_shard_to_figures_without_touching_the_scales_own(
    tmp_path, capsys
):
    """A shard, then the whole: trained once, with outputs under a label of their own."""
    figures, runs = paths.folder("figures"), paths.folder("papermill_runs")
    before = [sorted((folder / "smoke").rglob("*")) for folder in (figures, runs)]
    common = (
        f"run 01 --scale smoke --seeds 5-6 --set z_loss=0 --set sizes=[[8,1]] --label short"
        f" --store {tmp_path}/store"
    )
    for options, expected in ((" --shard 1/2", "6 to train"), ("", "6 stored, 6 to train")):
        done = call(common + options)
        assert done.returncode == 0 and expected in done.stdout, done.stdout + done.stderr
    for name in ("fig01_lr_sensitivity", "fig02_logit_growth", "figE01_qk_norms"):
        for kind in ("png", "csv"):
            assert (figures / "smoke-short" / f"{name}.{kind}").stat().st_size > 1000
    assert [sorted((folder / "smoke").rglob("*")) for folder in (figures, runs)] == before
    text = (runs / "smoke-short" / "01_attention_logit_growth.ipynb").read_text()
    assert (
        str(pathlib.Path.home()) not in text
        and str(tmp_path) not in text
        and str(paths.root()) not in text
    )
    assert cli.main(["claims", "--scale", "smoke-short", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) >= 10 and {"figure", "effect", "lo", "hi", "n", "verdict"} <= rows[0].keys()
    assert {r["n"] for r in rows} <= {0, 2} and {r["verdict"] for r in rows} == {claims.UNTESTABLE}
    assert cli.main(["table", "--scale", "smoke-short"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 13 and "fingerprint" in table[0]
    protocol = json.loads((runs / "smoke-short" / "protocol.json").read_text())
    own = {"seeds": [5, 6], "sizes": [[8, 1]], "z_loss": 0}
    assert protocol["overrides"] == own and protocol["commit"]
    other = call(f"run 01 --scale smoke --set eps=0 --label short --store {tmp_path}/store")
    assert other.returncode == 2 and other.stderr == (
        "proxies: label='smoke-short': holds another protocol (seeds=[5, 6], sizes=[[8, 1]], "
        "z_loss=0); choose another --label\n"
    )


def test_text_for_a_terminal_that_cannot_show_it_is_escaped(own_world):
    done = call("claims --scale ü", env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "\\xfc" in done.stderr
    done = call("data --help", env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and "Traceback" not in done.stderr


def test_a_readme_that_cannot_be_written_whole_stays_as_it_was(tmp_path):
    """As with a full disk: files of this process may grow to 20 KB and no further, for a while."""
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- scoreboard -->\nold\n<!-- /scoreboard -->\n" + "after\n" * 5000)
    before = readme.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20 * 1024, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            pages.write_between_markers(str(readme), "| new |", "scoreboard")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)
    assert readme.read_bytes() == before and list(tmp_path.iterdir()) == [readme]


def test_a_full_disk_is_one_clear_line(monkeypatch, capsys):
    def full(options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "figures/a.png")

    monkeypatch.setattr(results, "_claims", full)
    assert cli.main(["claims"]) == 1
    assert capsys.readouterr().err == "proxies: figures/a.png: No space left on device\n"


def test_the_scoreboard_is_written_between_the_markers_only(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- scoreboard -->\nold\n<!-- /scoreboard -->\nafter\n")
    pages.write_between_markers(str(readme), "| new |", "scoreboard")
    new = "before\n<!-- scoreboard -->\n\n| new |\n\n<!-- /scoreboard -->\nafter\n"
    assert readme.read_text() == new
    with pytest.raises(UserError, match="README.md: has no <!-- digest -->"):
        pages.write_between_markers(str(readme), "| new |", "digest")
    assert readme.read_text() == new


def test_the_reference_is_what_docstrings_and_fields_say():
    page = (paths.root() / pages.REFERENCE).read_text("utf-8")
    assert page == cli.reference(), "write it again: proxies reference --write"
    for name in config.FIELDS:
        assert name == "data" or f"| `{name}` |" in page


def test_the_command_starts_without_what_only_some_commands_need():
    """`proxies --help` and every refusal answer at once: each of these takes a second to import."""
    script = "import sys, proxies_lib.cli; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not {"jax", "pandas", "matplotlib", "jupytext", "scipy"} & set(done.stdout.split())
