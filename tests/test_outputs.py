import json
import os
import pathlib
import subprocess
import sys

import pandas as pd
import pytest

from proxies_lib import paths
from proxies_lib.config import UserError
from proxies_lib.runs import provenance, tables
from proxies_lib.science import claims, outputs, protocol, report

ROOT = pathlib.Path(__file__).resolve().parents[1]
VERDICT = {
    "claim": "c",
    "figure": "1",
    "statement": "s",
    "measure": "m",
    "effect": 2.0,
    "lo": 1.5,
    "hi": 2.5,
    "n": 3,
    "verdict": claims.HOLDS,
    "note": "",
}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty project folder, with no folder named by the environment."""
    for kind in ("figures", "papermill_runs", "store"):
        monkeypatch.delenv(f"PROXIES_{kind.upper()}", raising=False)
    monkeypatch.delenv(outputs.PUBLISH, raising=False)
    monkeypatch.setattr(paths, "root", lambda: tmp_path)
    return tmp_path


def test_a_plain_run_writes_beside_what_is_published_and_publishing_replaces_it(
    project, monkeypatch
):
    study = protocol.study("laptop", train=True)
    report.publish([VERDICT], "01", study)
    own = project / "papermill_runs/local/laptop/claims.csv"
    assert [p for p in project.rglob("*") if p.is_file()] == [own]
    monkeypatch.setenv(outputs.PUBLISH, "1")
    report.publish([VERDICT | {"effect": 1.9}], "01", study)
    published = project / "papermill_runs/laptop/claims.csv"
    assert published.exists() and report.scoreboard("laptop")["effect"].tolist() == [1.9]
    monkeypatch.delenv(outputs.PUBLISH)
    assert report.scoreboard("laptop")["effect"].tolist() == [2.0], "one's own results come first"
    assert report.scoreboard("laptop", published=True)["effect"].tolist() == [1.9]


def test_where_own_places_are_is_ignored_by_git():
    for kind in ("figures", "papermill_runs"):
        path = f"{kind}/local/laptop/any.file"
        assert subprocess.run(["git", "check-ignore", "-q", path], cwd=ROOT).returncode == 0


def test_a_folder_that_the_environment_names_is_used_as_it_is(project, monkeypatch):
    monkeypatch.setenv("PROXIES_FIGURES", str(project / "elsewhere"))
    assert outputs.target("figures", "laptop") == project / "elsewhere" / "laptop"
    assert outputs.target("papermill_runs", "laptop") == project / "papermill_runs/local/laptop"


def test_two_protocols_of_one_label_are_refused_and_one_goes_on(project):
    zero, tenth = ({"z_loss": value, "label": "mine"} for value in (0, 0.1))
    outputs.claim(protocol.study("smoke", zero, train=True), "abc")
    outputs.claim(protocol.study("smoke", zero, train=True), "def")
    path = project / "papermill_runs/local/smoke-mine/protocol.json"
    assert json.loads(path.read_text()) == {
        "label": "smoke-mine",
        "scale": "smoke",
        "overrides": {"z_loss": 0},
        "commit": "def",
    }
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"label='smoke-mine': holds another protocol \(z_loss=0\)"):
        outputs.claim(protocol.study("smoke", tenth, train=True), "def")
    assert path.read_bytes() == before
    for damaged in ("[]", '{"overrides": {}}'):
        path.write_text(damaged)
        assert outputs.study_of("smoke-mine").scale == "smoke"
        outputs.claim(protocol.study("smoke", tenth, train=True), "def")
        assert json.loads(path.read_text())["overrides"] == {"z_loss": 0.1}, (
            "a damaged one is written again"
        )


def test_publishing_needs_committed_code_and_runs_of_committed_code():
    for commit in (provenance.UNKNOWN, "abc" + provenance.CHANGED):
        with pytest.raises(UserError, match="publish: the code is not committed"):
            outputs.require_committed(commit)
    runs = pd.DataFrame({"commit": ["abc", "abc" + provenance.CHANGED, "def"]})
    with pytest.raises(
        UserError, match="publish: 1 of 3 runs were trained by code that is not committed"
    ):
        outputs.require_committed("abc", runs)
    outputs.require_committed("abc", runs.iloc[[0, 2]])


def test_a_claims_table_cut_short_is_begun_anew_and_never_read(project, capsys):
    study = protocol.study("laptop", train=True)
    report.publish([VERDICT], "01", study)
    report.publish([VERDICT], "02", study)
    path = project / "papermill_runs/local/laptop/claims.csv"
    whole = path.read_bytes()
    for size in (0, 5, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match="claims.csv is damaged; run its sections again"):
            report.scoreboard("laptop")
    report.publish([VERDICT], "01", study)
    assert "claims.csv of laptop was damaged" in capsys.readouterr().out
    assert report.scoreboard("laptop")["section"].tolist() == ["01"]


def test_a_prediction_cut_short_is_made_again(project):
    study, fitted = protocol.study("smoke", train=True), pd.DataFrame({"key": ["a"]})
    made = report.predict(pd.DataFrame({"lr": [0.1], "predicted": [1.0]}), fitted, 0, study)
    path = project / "papermill_runs/local/smoke/prediction.csv"
    path.write_bytes(path.read_bytes()[:-3])
    again = report.predict(pd.DataFrame({"lr": [0.1], "predicted": [1.0]}), fitted, 0, study)
    assert again.to_csv() == made.to_csv() and path.read_bytes().endswith(b"\n")


def test_training_predicts_anew_whatever_is_published_and_reading_shows_it(project, monkeypatch):
    fitted, frames = (
        pd.DataFrame({"key": ["a"]}),
        [pd.DataFrame({"lr": [0.1], "predicted": [x]}) for x in (1.0, 2.0)],
    )
    monkeypatch.setenv(outputs.PUBLISH, "1")
    report.predict(frames[0], fitted, 0, protocol.study("smoke", train=True))
    monkeypatch.delenv(outputs.PUBLISH)
    assert report.predict(frames[1], fitted, 0, protocol.study("smoke"))["predicted"].tolist() == [
        1.0
    ]
    assert report.predict(frames[1], fitted, 0, protocol.study("smoke", train=True))[
        "predicted"
    ].tolist() == [2.0]


def test_links_of_a_scoreboard_lead_from_where_it_is_read(project, monkeypatch):
    rows = pd.DataFrame([VERDICT | {"section": "01"}])
    for folder in ("notebooks", "figures/laptop"):
        (project / folder).mkdir(parents=True)
    (project / "notebooks/01_a.py").touch()
    (project / "figures/laptop/fig01_lr_sensitivity.png").touch()
    assert "](../../../figures/laptop/fig01_lr_sensitivity.png)" in report.verdict_table(
        rows, "laptop", up="../../"
    )
    (project / "figures/local/laptop").mkdir(parents=True)
    (project / "figures/local/laptop/fig01_lr_sensitivity.png").touch()
    own = report.verdict_table(rows, "laptop", up="../../")
    assert "](../../../figures/local/laptop/fig01_lr_sensitivity.png)" in own
    assert "](../../../papermill_runs/local/laptop/01_a.ipynb)" in own
    monkeypatch.setenv(outputs.PUBLISH, "1")
    assert "](../../figures/laptop/fig01_lr_sensitivity.png)" in report.verdict_table(
        rows, "laptop", up="../../"
    )


def test_own_results_are_compared_with_the_published_ones_of_the_same_label(
    project, monkeypatch, capsys
):
    from proxies_lib import cli

    study = protocol.study("laptop", train=True)
    report.publish([VERDICT], "01", study)
    monkeypatch.setenv(outputs.PUBLISH, "1")
    report.publish([VERDICT | {"verdict": claims.CONTRADICTED}], "01", study)
    monkeypatch.delenv(outputs.PUBLISH)
    assert cli.main(["claims", "--against", "laptop"]) == 0
    words = "same verdict: 0 of 1; hold: 1 in yours, 0 in the published, 0 in both"
    assert words in capsys.readouterr().out
    assert cli.main(["claims", "--against", "laptop", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)[0]
    assert (row["verdict"], row["verdict_other"], row["same"]) == (
        claims.HOLDS,
        claims.CONTRADICTED,
        False,
    )


def test_labels_without_a_claim_in_common_are_not_compared(project, capsys):
    from proxies_lib import cli

    report.publish([VERDICT], "01", protocol.study("laptop", train=True))
    other = VERDICT | {"claim": "another"}
    report.publish([other], "01", protocol.study("smoke", train=True))
    assert cli.main(["claims", "--scale", "smoke", "--against", "laptop"]) == 2
    assert "against='laptop': has no verdict on a claim of smoke" in capsys.readouterr().err


def test_trying_the_project_leaves_a_fresh_clone_clean(tmp_path):
    """What README offers first must not change a tracked file.

    Later runs would else be marked as made by changed code.
    """
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", "--shared", str(ROOT), str(clone)], check=True)
    hidden = {"PROXIES_STORE", "PROXIES_FIGURES", "PROXIES_PAPERMILL_RUNS", "PROXIES_CACHE"}
    own = {name: value for name, value in os.environ.items() if name not in hidden}
    own |= {"PYTHONPATH": str(clone)}
    command = [sys.executable, "-m", "proxies_lib.cli", "run", "00", "--scale", "smoke"]
    done = subprocess.run(command, cwd=clone, env=own, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    status = subprocess.run(
        ["git", "status", "--porcelain"], cwd=clone, capture_output=True, text=True
    )
    assert status.stdout == ""
    assert (clone / "papermill_runs/local/smoke/00_overview.ipynb").exists()
    table, _ = tables.exported(clone / "papermill_runs/local/smoke")
    assert table["commit"].map(provenance.committed).all()
