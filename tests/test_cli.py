import gzip
import json
import pathlib
import subprocess
import sys

import pytest

from proxies_lib import claims, cli, config

BAD = {
    "run 01 --scale smoke --set lr=abc": "lr='abc': must be of type float",
    "run 01 --scale smoke --set lr=0.1": "lr=0.1: is swept by the notebooks; set lrs instead",
    "run 01 --scale smoke --set nosuch=1": "nosuch=1: unknown parameter",
    "run 01 --scale smoke --set steps": "set='steps': must be NAME=VALUE",
    "run 01 --scale huge": "scale='huge': must be one of smoke, laptop, gpu, paper",
    "run 01 --scale smoke --shard 3/2": "shard='3/2': must be i/n",
    "run 01 --scale smoke --shard 0/2": "shard='0/2': must be i/n",
    "run 99 --scale smoke": "section='99': must be one of 00, 01",
    "run 01 --scale smoke --set warmup_steps=40": "warmup_steps=40: must be below steps=40",
    "run 01 --scale smoke --set d_head=6": "d_head=6: must divide d_model",
    "run 01 --scale smoke --set data=nowhere": "data='nowhere': is not prepared here",
    "run 01 --scale smoke --seeds x": "seeds='x': must be like",
    "run 01 --scale smoke --set lrs=[]": "lrs=[]: must be a list that is not empty",
    "run 01 --scale smoke --workers 0": "workers=0: must be 1 or more",
    "run 01 --scale smoke --workers two": "invalid int value",
    "data prepare text --path nowhere.txt": "path='nowhere.txt': no such file",
    "data prepare c4 --path nowhere": "tokenizer=None",
    "claims --scale gpu": "no claims.csv yet",
    "nothing": "invalid choice",
}


def call(arguments: str, **options):
    command = [sys.executable, "-m", "proxies_lib.cli", *arguments.split()]
    return subprocess.run(command, capture_output=True, text=True, cwd=config.root(), **options)


@pytest.mark.parametrize("arguments", BAD)
def test_bad_input_is_one_clear_line_and_nothing_is_written(arguments, own_world, capsys):
    before = sorted(own_world.rglob("*"))
    try:
        status = cli.main(arguments.split())
    except SystemExit as stop:
        status = stop.code
    out, err = capsys.readouterr()
    assert status == 2 and not out
    assert err.startswith("proxies: ") and err.count("\n") == 1 and BAD[arguments] in err
    assert sorted(own_world.rglob("*")) == before


def test_corrupt_and_empty_corpora_are_one_clear_line(tmp_path, own_world):
    (tmp_path / "empty.txt").write_text("")
    shard = tmp_path / "c4-train.00000-of-00001.json.gz"
    shard.write_bytes(gzip.compress(b'{"text": "a"}\n')[:15])
    (tmp_path / "t.model").write_bytes(b"x")
    for arguments in (
        f"data prepare text --path {tmp_path}/empty.txt --name e",
        f"data prepare c4 --path {tmp_path} --tokenizer {tmp_path}/t.model --name e",
    ):
        done = call(arguments)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr, done.stderr
    assert not (own_world / "cache" / "data" / "e").exists()


def test_plan_trains_and_writes_nothing(capsys):
    assert cli.main(["plan", "01", "--scale", "smoke"]) == 0
    assert "24 to train" in capsys.readouterr().out
    assert not config.folder("store").exists() or not list(config.folder("store").rglob("*.npz"))


def test_a_custom_protocol_runs_from_shards_to_figures_without_touching_the_scales_own(tmp_path):
    """Two shards, then the whole: trained once, figures, table and claims under smoke-custom."""
    figures, runs = config.folder("figures"), config.folder("papermill_runs")
    before = [sorted((folder / "smoke").rglob("*")) for folder in (figures, runs)]
    common = f"run 01 --scale smoke --seeds 5-6 --set steps=20 --store {tmp_path}/store"
    for shard in ("1/2", "2/2"):
        done = call(f"{common} --shard {shard}")
        assert done.returncode == 0 and "12 to train" in done.stdout, done.stdout + done.stderr
    done = call(common)
    assert done.returncode == 0 and "24 stored, 0 to train" in done.stdout, done.stdout + done.stderr
    for name in ("fig01_lr_sensitivity", "fig02_logit_growth", "figE01_qk_norms"):
        for kind in ("png", "svg", "csv"):
            assert (figures / "smoke-custom" / f"{name}.{kind}").stat().st_size > 1000
    assert [sorted((folder / "smoke").rglob("*")) for folder in (figures, runs)] == before
    text = (runs / "smoke-custom" / "01_attention_logit_growth.ipynb").read_text()
    assert str(pathlib.Path.home()) not in text and str(tmp_path) not in text and str(config.root()) not in text
    listed = call("claims --scale smoke-custom --json")
    rows = json.loads(listed.stdout)
    assert len(rows) >= 10 and {"figure", "effect", "lo", "hi", "n", "verdict"} <= rows[0].keys()
    assert {r["n"] for r in rows} <= {0, 2} and {r["verdict"] for r in rows} == {claims.UNTESTABLE}
    table = call("table --scale smoke-custom").stdout.splitlines()
    assert len(table) == 25 and "fingerprint" in table[0]


def test_the_scoreboard_is_written_between_the_markers_only(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- scoreboard -->\nold\n<!-- /scoreboard -->\nafter\n")
    cli._write_between_markers(readme, "| new |")
    assert readme.read_text() == "before\n<!-- scoreboard -->\n\n| new |\n\n<!-- /scoreboard -->\nafter\n"
