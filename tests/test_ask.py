"""show, explain, diff, and tables with conditions: held against the committed files themselves."""

import csv
import json
import math
import pathlib
import re
import shlex

import numpy as np
import pandas as pd
import pytest

from proxies_lib import cli, config, paths
from proxies_lib.cli import options, parser
from proxies_lib.config import UserError, replace
from proxies_lib.interventions import intervention
from proxies_lib.runs import datasets, query, store
from proxies_lib.science import (
    claims,
    difference,
    explain,
    figures,
    lookup,
    notebooks,
    outputs,
    protocol,
    report,
)

ROOT = pathlib.Path(__file__).resolve().parents[1]


@intervention(version=3, cap=50.0)
class softcap:
    def attention_logits(z, h):
        return h["cap"] * z


@pytest.fixture
def committed(monkeypatch):
    """The outputs of the checkout, not those of the tests' own world; only read."""
    for kind in ("FIGURES", "PAPERMILL_RUNS"):
        monkeypatch.delenv(f"PROXIES_{kind}")
    monkeypatch.setattr(outputs, "local", lambda kind: paths.root() / "none" / kind)


@pytest.fixture
def own_store(tmp_path, monkeypatch):
    monkeypatch.setenv("PROXIES_STORE", str(tmp_path))
    return tmp_path


def said(capsys, arguments: str, status: int = 0):
    """What a command prints; with --json what that says."""
    assert cli.main(shlex.split(arguments)) == status
    out = capsys.readouterr().out
    return json.loads(out) if "--json" in arguments else out


def table_of(label: str) -> pd.DataFrame:
    return pd.read_parquet(ROOT / "papermill_runs" / label / "runs.parquet")


def point(file: str, **where) -> dict:
    """The row of a committed csv with these values."""
    with open(ROOT / "figures" / "laptop" / f"{file}.csv") as lines:
        (row,) = (
            row for row in csv.DictReader(lines) if all(row[n] == v for n, v in where.items())
        )
    return row


def remember(folder, run, fingerprint="f" * 24, loss=3.25) -> str:
    """A record of a run that nobody trained; its key."""
    meta = {
        "key": config.key(run, fingerprint),
        "config": config.flat(run),
        "result": {
            "final_loss": loss,
            "init_loss": 4.0,
            "diverged": False,
            "diverged_step": -1,
            "train_seconds": 1.5,
        },
        "provenance": {"fingerprint": fingerprint, "device": "an abacus", "commit": "c0ffee"},
    }
    store.write(folder, meta, {"step": np.arange(3), "loss": np.ones(3)})
    return meta["key"]


# ------------------------------------------------------------------ show


def test_a_point_of_a_figure_leads_to_its_run(committed, own_store, capsys):
    """By its key: configuration, results on both machines, provenance, all figures that show it."""
    row = point("fig07_width_vs_depth", method="by width", n_params="98304", lr="0.1")
    key = row["keys"].split()[0]
    text = said(capsys, f"show {key[:12]}")
    here, there = (table_of(label).set_index("key").loc[key] for label in ("laptop", "laptop-xeon"))
    lines = [line.split() for line in text.splitlines()]
    assert lines[0] == [key]
    assert ["lr", "0.1", "base", "0.01"] in lines and ["d_model", "64", "base", "16"] in lines
    for name, run in (("laptop", here), ("laptop-xeon", there)):
        (result,) = (line for line in lines if line[:1] == [name] and "s" in line)
        assert result[1] == f"{run['final_loss']:.6f}" and result[-1] == (
            "yes" if name == "laptop" else "no"
        )
        assert run["device"] in text and run["commit"] in text
    shown = set(re.findall(r"^  Figure (\S+) of laptop", text, re.MULTILINE))
    row_here = table_of("laptop").set_index("key").loc[[key]].to_dict("records")[0]
    run = config.from_flat({name: row_here[name] for name in config.FIELDS})
    study, by_registry = protocol.study("laptop"), set()
    for section, path in notebooks.sections().items():
        grid = notebooks.grid_of(path, notebooks.reading("laptop"))
        showing = [f for f in figures.of_section(section) if run in f.runs(grid, study)]
        # A figure that is not drawn shows nothing.
        by_registry |= {f.name for f in showing if (ROOT / f"figures/laptop/{f.file}.csv").exists()}
    assert shown == by_registry and {"1", "7", "E.3"} <= shown
    assert row["loss"] in text


def test_a_run_as_json_has_every_field_and_digit(committed, own_store, capsys):
    key = point("fig01_lr_sensitivity", method="without qk-layernorm", lr="1", n_params="98304")
    key = key["keys"].split()[1]
    said_ = said(capsys, f"show {key} --json")
    row = table_of("laptop").set_index("key").loc[key]
    assert (
        said_["configuration"] == {name: row[name] for name in said_["configuration"]}
        and said_["configuration"].keys() == config.FIELDS.keys()
    )
    assert [place["in"] for place in said_["places"]] == ["laptop", "laptop-xeon"]
    assert said_["places"][0]["final_loss"] == row["final_loss"]
    assert said_["beside_base"]["qk_norm"] == {"value": "none", "base": "per_head"}
    (figure,) = (f for f in said_["figures"] if f["figure"] == "1")
    assert figure["csv"] == "figures/laptop/fig01_lr_sensitivity.csv"
    assert figure["method"] == "without qk-layernorm" and float(figure["rows"][0]["lr"]) == 1


def test_a_beginning_of_several_keys_lists_them(committed, own_store, capsys):
    every = pd.concat([table_of(label)["key"] for label in ("laptop", "night", "smoke")])
    beginning = every.str[:3].mode()[0]
    keys = sorted(set(every[every.str.startswith(beginning)]))
    assert cli.main(["show", beginning]) == 2
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()[1:]] == keys
    assert err == (f"proxies: key={beginning!r}: {len(keys)} runs begin so; give more of the key\n")
    slip = keys[0][:11] + ("0" if keys[0][11] != "0" else "1") + keys[0][12:]
    assert cli.main(["show", slip]) == 2
    assert f"(did you mean {keys[0]}?)" in capsys.readouterr().err


def test_a_run_of_the_store_alone_has_its_text_and_the_nearest_scale(committed, own_store, capsys):
    base = protocol.scales()["smoke"].base
    key = remember(own_store, softcap(replace(base, eps=1e-4), cap=7.0))
    text = said(capsys, f"show {key}")
    assert "beside the base of smoke" in text and "the store" in text and "an abacus" in text
    assert "Intervention softcap@3" in text and '{"cap": 7.0}' in text
    assert "def attention_logits(z, h):\n          return h['cap'] * z" in text
    assert ["eps", "0.0001", "base", "1e-08"] in [line.split() for line in text.splitlines()]
    assert "none of smoke" in text
    packed = cli.main(["merge", "--store", str(own_store), "--quiet"])
    assert packed == 0 and not list(own_store.glob("??/*.npz"))
    assert said(capsys, f"show {key[:9]}") == text


def test_of_a_label_without_figures_the_registry_answers(committed, tmp_path, monkeypatch):
    """Before a label is drawn its notebooks' grids say what will show a run."""
    monkeypatch.setenv("PROXIES_FIGURES", str(tmp_path))
    row = next(row for row in table_of("long").to_dict("records") if row["z_loss"] == 0)
    run = config.from_flat({name: row[name] for name in config.FIELDS if name in row})
    shown = lookup.in_registry(run, protocol.study("long"))
    assert shown and all(one.csv is None and one.method for one in shown)
    grid = notebooks.grid_of(notebooks.sections()["02"], notebooks.reading("long"))
    expected = [m for m, runs in grid.items() if run in runs]
    assert expected
    assert [one.method for one in shown if one.figure == "3"] == [", ".join(expected)]


# ------------------------------------------------------------------ explain


@pytest.mark.parametrize(
    ("typed", "name", "label"),
    [
        ("1", "1", None),
        ("E.3", "E.3", None),
        ("e3", "E.3", None),
        ("Figure 12", "12", None),
        ("fig. 13", "13", None),
        ("p2.ratio", "P2.ratio", None),
        ("ideas.score", "ideas.score", None),
        ("fig01", "1", None),
        ("figE10_decay_strength", "E.10", None),
        ("fig09_predicted_logits.png", "9", None),
        ("figures/laptop/figE15_epsilon_1e-6.csv", "E.15", "laptop"),
        ("/somewhere/figures/local/laptop-mine/fig03_z_loss.svg", "3", "laptop-mine"),
    ],
)
def test_a_figure_has_several_names(typed, name, label):
    figure, of = explain.named(typed)
    assert (figure.name, of) == (name, label)


def test_every_figure_is_found_by_its_name_and_by_its_file():
    for figure in figures.FIGURES.values():
        assert explain.named(figure.name) == (figure, None)
        assert explain.named(f"{figure.file}.csv") == (figure, None)


def test_a_figure_is_explained_by_what_draws_it(committed, own_store, capsys):
    text = said(capsys, "explain figures/laptop/figE03_best_loss.png")
    notebook = (ROOT / "notebooks/05_width_vs_depth.py").read_text().splitlines()
    line = int(re.search(r"05_width_vs_depth.py, line (\d+)", text)[1])
    assert '"figE03_best_loss"' in notebook[line - 1]
    assert text.startswith("Figure E.3 · the best loss of each series\nThe best loss over")
    assert notebook[line - 1].strip() in text
    path, study = notebooks.sections()["05"], protocol.study("laptop")
    grid = notebooks.grid_of(path, notebooks.reading("laptop"))
    known = set(table_of("laptop")["recipe"])
    for method in ("by width", "by depth", "jointly"):
        runs = figures.FIGURES["E.3"].runs({method: grid[method]}, study)
        assert all(config.recipe(run) in known for run in runs)
        assert re.search(rf"^  {method} +{len(runs)} +0 +{len(runs)} +0$", text, re.MULTILINE)
    assert "proxies figures 05 --scale laptop " in text
    for kind in ("png", "csv"):
        assert f"  figures/laptop/figE03_best_loss.{kind}\n" in text
    own = report.scoreboard("laptop", published=True)
    for statement in own[own["figure"] == "E.3"]["statement"]:
        assert statement in text


def test_a_protocol_of_ones_own_is_explained_as_it_was_typed(committed, own_store, capsys):
    """Stored runs count as stored; the command repeats the overrides."""
    given = {"steps": 20, "warmup_steps": 1, "seeds": [5], "label": "short"}
    study = protocol.study("smoke", given)
    grid = notebooks.grid_of(
        notebooks.sections()["01"], notebooks.reading("smoke") | {"overrides": given}
    )
    runs = grid["with qk-layernorm"]
    fingerprint = datasets.open_dataset("synthetic", study.base.model.vocab_size).fingerprint
    for run in runs[:2]:
        remember(own_store, run, fingerprint)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(outputs, "study_of", lambda label: study)
        assert cli.main(["explain", "1", "--scale", "smoke-short", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    by_method = {row["method"]: row for row in found["runs"]}
    assert by_method["with qk-layernorm"] == {
        "method": "with qk-layernorm",
        "runs": len(runs),
        "store": 2,
        "table": 0,
        "missing": len(runs) - 2,
    }
    words = shlex.split(found["redraw"])
    assert words[:5] == ["proxies", "figures", "01", "--scale", "smoke"]
    again = parser.parser_and_commands()[0].parse_args(words[1:])
    assert protocol.study(again.scale, options.overrides_of(again)) == study


# ------------------------------------------------------------------ diff


def test_two_machines_are_compared_without_curves(committed, capsys):
    found = said(capsys, "diff laptop laptop-xeon --json")
    here, there = table_of("laptop"), table_of("laptop-xeon")
    both = here[["key", "final_loss", "lr"]].merge(
        there[["key", "final_loss"]], on="key", suffixes=("", "_other")
    )
    distance = (both["final_loss"] - both["final_loss_other"]).abs()
    runs = found["runs"]
    assert runs["common"] == runs["same_corpus"] == len(both) == len(there)
    assert runs["only"] == [sorted(set(here["key"]) - set(there["key"])), []]
    assert runs["difference"]["largest"] == pytest.approx(distance.max())
    assert runs["difference"]["median"] == pytest.approx(distance.median())
    assert runs["difference"]["equal"] == (distance == 0).sum()
    assert {row["lr"]: row["largest"] for row in runs["by_lr"]} == pytest.approx(
        distance.groupby(both["lr"]).max().to_dict()
    )
    assert found["trained_by"]["device"] == [["AMD EPYC"], ["Intel(R) Xeon(R) Processor"]]
    boards = [report.scoreboard(label)[["claim", "verdict"]] for label in found["labels"]]
    pairs = boards[0].merge(boards[1], on="claim", suffixes=("", "_other"))
    changed = set(pairs[pairs["verdict"] != pairs["verdict_other"]]["claim"])
    assert {row["claim"] for row in found["verdicts_changed"]} == changed and changed
    text = said(capsys, "diff laptop laptop-xeon")
    assert f"the same: {len(pairs) - len(changed)} of {len(pairs)} claims" in text
    assert "laptop-xeon has no protocol.json: taken for that of scale laptop" in text
    for claim in changed:
        assert re.search(rf"^  {re.escape(claim)} .*(other|not testable)", text, re.MULTILINE)


def test_two_protocols_are_compared_where_they_differ(committed, capsys):
    found = said(capsys, "diff laptop night --json")
    small, large = protocol.study("laptop"), protocol.study("night")
    assert found["protocols"]["steps"] == [384, 1920]
    assert found["protocols"]["seeds"] == [list(small.seeds), list(large.seeds)]
    assert "vocab_size" not in found["protocols"] and "lr" not in found["protocols"]
    text = said(capsys, "diff laptop night")
    assert re.search(r"^  batch_size +8 +32$", text, re.MULTILINE)


def test_seeds_of_two_labels_judge_a_claim_together(committed, capsys):
    one, other = (report.scoreboard(label).set_index("claim") for label in ("night", "night-again"))
    rows = said(capsys, "claims --scale night --together night-again --json")
    tested = [
        name
        for name in one.index.intersection(other.index)
        if claims.UNTESTABLE not in (one.verdict[name], other.verdict[name])
    ]
    assert [row["claim"] for row in rows] == tested
    for row in rows:
        effects, counts = zip(*((b.effect[row["claim"]], b.n[row["claim"]]) for b in (one, other)))
        assert row["n"] == sum(counts)
        assert row["effect"] == pytest.approx(np.average(effects, weights=counts))
        _, side, threshold = claims.parts_of(row["measure"])
        inside = row["lo"] <= threshold <= row["hi"]
        leans = claims.leans_to(row["effect"], side, threshold)
        assert row["verdict"] == (claims.UNDECIDED if inside else leans)


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        ("laptop laptop", "together='laptop': is the label itself, with the same seeds"),
        ("laptop laptop-xeon", "together='laptop-xeon': has seeds of laptop: 0, 1, 2"),
        ("night laptop", "together='laptop': has another protocol than night: scale"),
        ("night nosuch", "scale='nosuch': no runs.parquet yet"),
    ],
)
def test_only_other_seeds_of_the_same_protocol_judge_together(committed, capsys, pair, words):
    label, other = pair.split()
    assert cli.main(["claims", "--scale", label, "--together", other]) == 2
    assert words in capsys.readouterr().err


def test_runs_that_ended_in_nan_are_compared():
    def side(losses, keys):
        recipes = [f"r{number}" for number in range(len(losses))]
        runs = pd.DataFrame({"recipe": recipes, "key": keys, "lr": 0.1, "final_loss": losses})
        return difference.Side("a", None, False, runs, None)

    nan, inf = math.nan, math.inf
    one = side([1.0, nan, nan, 2.0, inf, 3.0], list("abcdef"))
    other = side([1.5, nan, 2.0, inf, nan], list("abcdx"))
    found = difference.losses(one, other)
    assert found.common["difference"].tolist() == [0.5, 0.0, inf, inf, 0.0]
    assert found.common["same_key"].tolist() == [True, True, True, True, False]
    assert found.only[0]["key"].tolist() == ["f"] and found.only[1].empty
    assert difference.overall(found.common) == {
        "runs": 5,
        "equal": 2,
        "median": 0.0,
        "largest": 0.5,
        "diverged_in_one": 2,
    }
    assert difference.by_lr(found.common).to_dict("records") == [
        {"lr": 0.1, **difference.overall(found.common)}
    ]


def judged(verdict, effect, half, n=3, measure="m (above 1)", note=""):
    names = ("verdict", "effect", "lo", "hi", "n", "measure", "note")
    return dict(zip(names, (verdict, effect, effect - half, effect + half, n, measure, note)))


@pytest.mark.parametrize(
    ("one", "other", "reason"),
    [
        # The same interval around another mean.
        (judged(claims.HOLDS, 2, 0.5), judged(claims.UNDECIDED, 1.2, 0.5), "other effect"),
        (judged(claims.HOLDS, 2, 0.5), judged(claims.CONTRADICTED, 0, 0.6), "other effect"),
        # The same mean in a wider interval, or a narrower one.
        (judged(claims.HOLDS, 2, 0.5), judged(claims.UNDECIDED, 1.9, 3), "other interval"),
        (judged(claims.UNDECIDED, 0.5, 1), judged(claims.CONTRADICTED, 0.4, 0.1), "other interval"),
        # Neither alone: 2 ± 1.2 and 1.4 ± 0.3 would be undecided.
        (
            judged(claims.UNDECIDED, 1.2, 1.2),
            judged(claims.HOLDS, 2.0, 0.9),
            "other effect and interval",
        ),
        (
            judged(claims.HOLDS, 2, 0.5, n=8),
            judged(claims.UNDECIDED, 1.9, 3, n=3),
            "other n (8, 3); other interval",
        ),
        # One seed has no interval.
        (
            judged(claims.HOLDS, 2, math.nan, n=1),
            judged(claims.UNDECIDED, 1.9, 3),
            "other n (1, 3); other interval",
        ),
        (
            judged(claims.HOLDS, 2, 0.5),
            judged(claims.HOLDS, 2, 0.5, measure="m (above 3)"),
            "other measure",
        ),
        # The largest N of another scale is no other measure.
        (
            judged(claims.HOLDS, 2, 0.5, measure="S, N 98,304 (above 1)"),
            judged(claims.UNDECIDED, 1.2, 0.5, measure="S, N 393,216 (above 1)"),
            "other effect",
        ),
        (
            judged(claims.HOLDS, 0.2, 0.1, measure="m (below 1)"),
            judged(claims.CONTRADICTED, 3, 0.1, measure="m (below 1)"),
            "other effect",
        ),
        (
            judged(claims.UNTESTABLE, 2, 0.5, note="no such run"),
            judged(claims.HOLDS, 2, 0.5),
            "not testable: no such run",
        ),
    ],
)
def test_why_a_verdict_changed(one, other, reason):
    row = one | {f"{name}_other": value for name, value in other.items()}
    assert difference.why(row) == reason


def test_own_runs_are_compared_with_the_published_ones(tmp_path, monkeypatch, capsys):
    for kind in ("FIGURES", "PAPERMILL_RUNS"):
        monkeypatch.delenv(f"PROXIES_{kind}")
    monkeypatch.setattr(paths, "root", lambda: tmp_path)
    verdict = claims.check("c", "1", "s", "m", [2.0, 2.1, 2.2], above=1.0)
    study = protocol.study("laptop", train=True)
    report.publish([verdict], "01", study)
    monkeypatch.setenv(outputs.PUBLISH, "1")
    published = claims.check("c", "1", "s", "m", [0.0, 2.1, 4.2], above=1.0)
    report.publish([published], "01", study)
    monkeypatch.delenv(outputs.PUBLISH)
    text = said(capsys, "diff laptop laptop")
    assert "laptop, own | laptop, published" in text and "has no table of runs" in text
    assert re.search(r"^  c +holds .* +undecided .* other interval$", text, re.MULTILINE)


# ------------------------------------------------------------------ table


def test_rows_and_columns_that_one_asks_for(committed, capsys):
    runs = table_of("laptop")
    arguments = "table --where 'lr=0.1,d_model=64' --where 'qk_norm=none, seed<2'"
    text = said(capsys, f"{arguments} --columns seed,key,final_loss")
    wanted = runs[
        (runs["lr"] == 0.1)
        & (runs["d_model"] == 64)
        & (runs["qk_norm"] == "none")
        & (runs["seed"] < 2)
    ]
    assert len(wanted) > 1
    assert text == wanted[["seed", "key", "final_loss"]].to_csv(index=False)
    assert said(capsys, f"{arguments} --columns seed,key,final_loss --csv") == text
    as_json = said(capsys, f"{arguments} --columns key,final_loss --json")
    assert {row["key"]: row["final_loss"] for row in as_json} == pytest.approx(
        dict(zip(wanted["key"], wanted["final_loss"])), rel=1e-14
    )
    assert said(capsys, "table --where lr=77").count("\n") == 1  # the head alone


RUNS = pd.DataFrame(
    {
        "lr": [0.1, 0.30000000000000004, 1.0],
        "steps": [10, 20, 30],
        "diverged": [False, True, False],
        "device": ["AMD EPYC", "Intel, R", "x=1"],
        "loss": [1.0, np.nan, np.inf],
    }
)


@pytest.mark.parametrize(
    ("condition", "rows"),
    [
        ("lr=0.3", [1]),  # whatever the sixteenth digit
        ("lr!=0.3", [0, 2]),
        ("steps>=20,steps<30", [1]),
        ("steps > 10 , lr <= 0.5", [1]),
        ("steps=20.0", [1]),
        ("diverged=true", [1]),
        ("diverged!=1", [0, 2]),
        ("device=AMD EPYC", [0]),
        ("device=Intel, R,lr=0.3", [1]),  # a comma of a value ends no condition
        ("device=x=1", [2]),
        ("loss=nan", [1]),
        ("loss=inf", [2]),
        ("loss<2", [0]),
    ],
)
def test_conditions(condition, rows):
    assert query.where(RUNS, [condition]).index.tolist() == rows


@pytest.mark.parametrize(
    ("condition", "wrong"),
    [
        ("lr", "where='lr': must be NAME=VALUE"),
        ("", "where='': must be NAME=VALUE"),
        ("lrr=1", r"where='lrr': no such column \(did you mean lr\?\); columns are lr, steps"),
        ("lr=low", "where='lr=low': lr is a number"),
        ("diverged=maybe", "where='diverged=maybe': diverged is true or false"),
        ("diverged<1", "where='diverged<True': diverged is no number"),
        ("device<1", "where='device<1': device is no number: only = and != compare it"),
    ],
)
def test_what_is_no_condition_is_refused(condition, wrong):
    with pytest.raises(UserError, match=f"^{wrong}"):
        query.where(RUNS, [condition])


def test_columns_come_once_and_must_exist():
    assert query.names(RUNS, "loss, lr,loss") == ["loss", "lr"]
    with pytest.raises(UserError, match=r"^columns='los': no such column \(did you mean loss\?\)"):
        query.names(RUNS, "lr,los")
