"""The score of interventions: on made-up runs, against closed forms and scipy's paired test."""

import pathlib
import re

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from proxies_lib import cli
from proxies_lib.config import UserError, grid
from proxies_lib.science import bisection, protocol, report, score
from proxies_lib.science.claims import CONTRADICTED, HOLDS, UNDECIDED, UNTESTABLE
from proxies_lib.science.score import Prediction

ROOT = pathlib.Path(__file__).resolve().parents[1]

LRS = (0.01, 0.1, 1.0)

STUDY = protocol.study("laptop", {"lrs": LRS})

SEEDS = (0, 1, 2, 3)

INIT = 6.0

# Loss above the best at the three LRs; seeds add noise, of which most is common to all methods.
SHAPES = {
    "none": (0.1, 0.0, 3.0),
    "qk-layernorm": (0.1, 0.0, 0.2),
    "softcap": (0.1, 0.0, 1.4),
}

OWN = np.random.default_rng(0).normal(size=(len(SHAPES), len(SEEDS)))


def made_up(seeds=SEEDS, n_params=100, shapes=SHAPES):
    """A table and curves of four logged points a run, of two blocks."""
    rows, points = [], []
    for i, (method, shape) in enumerate(shapes.items()):
        for seed in seeds:
            for lr, above in zip(LRS, shape):
                key = f"{method}-{n_params}-{seed}-{lr:g}"
                loss = 2.0 + above * (1 + 0.1 * seed) + 0.02 * OWN[i, seed] * above
                rows.append(
                    {
                        "key": key,
                        "method": method,
                        "d_model": n_params,
                        "n_layers": 2,
                        "n_params": n_params,
                        "d_head": 8,
                        "vocab_size": 64,
                        "seq_len": 32,
                        "batch_size": 4,
                        "compute_dtype": "float32",
                        "device": "cpu",
                        "commit": "abc",
                        "steps": 40,
                        "seed": seed,
                        "lr": lr,
                        "final_loss": loss,
                        "init_loss": INIT,
                        "diverged": False,
                        "train_seconds": {"softcap": 1.1}.get(method, 1.0) * (10 + seed),
                    }
                )
                points += curve(key, method, seed, lr)
    return pd.DataFrame(rows), pd.DataFrame(points)


def curve(key, method, seed, lr):
    """Logits grow with the LR. Only softcap has logits that enter the softmax capped, at 50."""
    for i, step in enumerate((9, 19, 29, 39)):
        before = 10 ** (1 + np.log10(100 * lr)) * (1 + seed) * (1 if i != 2 else 2)
        point = {
            "key": key,
            "step": step,
            "loss": 3.0,
            "max_attention_logit/0": before / 2,
            "max_attention_logit/1": before,
            "max_attention_logit_of_head/0/0": 1e9,  # of another tap, with a similar name
            "max_entering_logit/0": np.nan,
            "max_entering_logit/1": np.nan,
            "mean_log_z_squared": 100.0 * (i == 3),
            "attention_entropy/0": 1.0 * (i == 3),
            "attention_entropy/1": 2.0 * (i == 3),
        }
        if method == "softcap":
            point |= {"max_entering_logit/0": 10.0, "max_entering_logit/1": min(before, 50.0)}
        yield point


def row(scores: pd.DataFrame, method: str) -> pd.Series:
    return scores.set_index("method").loc[method]


def s_of(method: str) -> np.ndarray:
    """S per seed in closed form: the mean distance from the best."""
    i, shape = list(SHAPES).index(method), np.array(SHAPES[method])
    factors = 1 + 0.1 * np.array(SEEDS) + 0.02 * OWN[i]
    return shape.mean() * factors


def test_s_and_its_paired_difference_are_those_of_scipys_paired_t():
    scores = score.score(*made_up(), STUDY)
    assert scores["method"].tolist() == list(SHAPES) and set(scores["seeds"]) == {4}
    softcap = row(scores, "softcap")
    assert softcap["S"] == pytest.approx(s_of("softcap").mean())
    for anchor in score.ANCHORS:
        name = f"S - {anchor}"
        paired = stats.ttest_rel(s_of("softcap"), s_of(anchor)).confidence_interval(0.95)
        assert softcap[name] == pytest.approx((s_of("softcap") - s_of(anchor)).mean())
        assert tuple(softcap[[f"{name} lo", f"{name} hi"]]) == pytest.approx(tuple(paired))
    alone = softcap["S hi"] - softcap["S lo"]
    pair = softcap["S - none hi"] - softcap["S - none lo"]
    assert pair < 1.5 * alone and np.isnan(row(scores, "none")["S - none"])


def test_pairs_are_made_by_seed_whatever_the_order_and_only_where_both_have_one():
    table, curves = made_up()
    expected = score.score(table, curves, STUDY)
    shuffled = table.sample(frac=1, random_state=1)
    again = score.score(shuffled, curves, STUDY).set_index("method").loc[list(SHAPES)]
    pd.testing.assert_frame_equal(again.reset_index(), expected, check_like=True)

    lacking = table[~((table["method"] == "none") & (table["seed"] == 3))]
    softcap = row(score.score(lacking, curves, STUDY), "softcap")
    difference = (s_of("softcap") - s_of("none"))[:3]
    assert softcap["S - none"] == pytest.approx(difference.mean()) and softcap["seeds"] == 4
    assert softcap["S"] == pytest.approx(s_of("softcap").mean())


def test_one_seed_has_no_interval():
    softcap = row(score.score(*made_up(seeds=(1,)), STUDY), "softcap")
    assert softcap["S - none"] == pytest.approx((s_of("softcap") - s_of("none"))[1])
    assert np.isnan(softcap["S - none lo"]) and softcap["seeds"] == 1


def brackets(lrs: dict[str, list]) -> pd.DataFrame:
    """Brackets of factor 1.21 around LRs by seed; inf and 0 are censored, at LRs 1 and 0.01."""
    rows = []
    for method, per_seed in lrs.items():
        for seed, lr in enumerate(per_seed):
            ends = {"lo": lr / 1.1, "hi": lr * 1.1, "diverging_lr": lr, "censored": ""}
            if lr == np.inf:
                ends = {"lo": 1.0, "hi": lr, "diverging_lr": np.nan, "censored": bisection.ABOVE}
            if lr == 0:
                ends = {"lo": lr, "hi": 0.01, "diverging_lr": np.nan, "censored": bisection.BELOW}
            rows.append({"method": method, "n_params": 100, "seed": seed} | ends)
    return pd.DataFrame(rows)


KNOWN = {
    "none": [0.02, 0.04, 0.03, 0.02],
    "qk-layernorm": [0.3, 0.5, 0.4, 0.4],
    "softcap": [0.03, 0.06, 0.045, 0.03],  # 1.5 times none, seed by seed
}


def test_the_factor_of_the_diverging_lr_is_geometric_and_paired():
    scores = score.score(*made_up(), STUDY, brackets=brackets(KNOWN))
    softcap = row(scores, "softcap")
    assert softcap["diverging_lr"] == pytest.approx(stats.gmean(KNOWN["softcap"]))
    factor = softcap[["diverging_lr / none", "diverging_lr / none lo", "diverging_lr / none hi"]]
    assert factor.tolist() == pytest.approx([1.5, 1.5, 1.5])
    logs = np.log(KNOWN["softcap"]), np.log(KNOWN["qk-layernorm"])
    paired = np.exp(stats.ttest_rel(*logs).confidence_interval(0.95))
    name = "diverging_lr / qk-layernorm"
    assert softcap[[f"{name} lo", f"{name} hi"]].tolist() == pytest.approx(list(paired))


def test_without_brackets_the_diverging_lr_is_the_grids():
    scores = score.score(*made_up(), STUDY)
    none = row(scores, "none")["diverging_lr"]
    # failing at 2.4: of the way from LR 0.1, loss 2, to LR 1, loss 2 + 3 · (1 + 0.1 · seed)
    share = 0.4 / (3 * (1 + 0.1 * np.array(SEEDS) + 0.02 * OWN[0]))
    assert none == pytest.approx(stats.gmean(10 ** (-1 + share)))
    qk = row(scores, "qk-layernorm")
    assert qk["diverging_lr"] == pytest.approx(1.0) and qk["diverging_lr bound"] == "≥"
    assert np.isnan(qk["diverging_lr lo"])


def test_a_censored_diverging_lr_is_a_bound_and_so_is_its_factor():
    censored = brackets(KNOWN | {"qk-layernorm": [np.inf, 0.5, np.inf, 0.4]})
    scores = score.score(*made_up(), STUDY, brackets=censored)
    qk, softcap = row(scores, "qk-layernorm"), row(scores, "softcap")
    assert (qk["diverging_lr bound"], qk["diverging_lr / none bound"]) == ("≥", "≥")
    assert softcap["diverging_lr / qk-layernorm bound"] == "≤"
    assert softcap["diverging_lr / none bound"] == softcap["diverging_lr bound"] == ""
    assert qk["diverging_lr"] == pytest.approx(stats.gmean([1.0, 0.5, 1.0, 0.4]))
    assert np.isnan(qk["diverging_lr hi"]) and "≥ 0.669 |" in score.score_table(scores)

    both = brackets(KNOWN | {"qk-layernorm": [np.inf] * 4, "softcap": [0.3, np.inf, 0.3, 0]})
    softcap = row(score.score(*made_up(), STUDY, brackets=both), "softcap")
    assert softcap["diverging_lr bound"] == "?" and np.isnan(softcap["diverging_lr"])
    assert softcap["diverging_lr / qk-layernorm bound"] == "?"


def test_logits_before_and_after_a_cap_are_taken_at_the_top_lr():
    scores = score.score(*made_up(), STUDY)
    # at LR 1: 1000 · (1 + seed), doubled at one point; the median of seeds 0 to 3 in log10
    before = np.median(np.log10(2000.0 * (1 + np.array(SEEDS))))
    softcap, none = row(scores, "softcap"), row(scores, "none")
    assert softcap["log10_logit_before"] == pytest.approx(before)
    assert softcap["log10_logit_after"] == pytest.approx(np.log10(50))
    assert np.isnan(none["log10_logit_after"])
    assert none["log2_z"] == 100 and none["entropy"] == 1.5
    assert "3.69 → 1.7" in score.score_table(scores)


def test_curves_without_a_tap_leave_its_measure_out():
    table, curves = made_up()
    bare = curves[["key", "step", "loss", "max_attention_logit/1"]]
    softcap = row(score.score(table, bare, STUDY), "softcap")
    assert softcap[["log10_logit_after", "log2_z", "entropy"]].isna().all()
    assert softcap["log10_logit_before"] > 3


def test_the_best_loss_is_that_of_the_window_and_is_paired():
    table, curves = made_up()
    better = table[table["method"] == "softcap"].query("lr == 0.1")
    # A round of the bisection: one method has it and the others have not.
    beside = better.assign(lr=0.05, final_loss=1.0, key="beside " + better["key"])
    shifted = table.assign(final_loss=table["final_loss"] - 0.1 * (table["method"] == "softcap"))
    softcap = row(score.score(pd.concat([shifted, beside]), curves, STUDY), "softcap")
    assert softcap["best_loss"] == pytest.approx(1.9)
    assert softcap["best_loss - none"] == pytest.approx(-0.1)


def test_the_largest_size_is_scored_unless_told():
    small, large = made_up(n_params=50), made_up(n_params=100)
    both = pd.concat([small[0].assign(final_loss=5.0), large[0]]), pd.concat([small[1], large[1]])
    expected = score.score(*large, STUDY)
    pd.testing.assert_frame_equal(score.score(*both, STUDY), expected)
    assert (score.score(*both, STUDY, n_params=50)["S"] == 0).all()
    with pytest.raises(UserError, match="n_params=7: must be one of 50, 100"):
        score.score(*both, STUDY, n_params=7)


def test_the_cost_of_a_step_is_the_median_over_pairs_of_equal_shape():
    table, _ = made_up()
    found = score.cost(table)
    assert found.loc["softcap", "cost"] == pytest.approx(10.0)
    assert found.loc["softcap", "cost n"] == 12 and found.loc["qk-layernorm", "cost"] == 0
    # A third of the pairs is disturbed on one side, a third on the other.
    odd = table["lr"].map({0.01: 0.5, 0.1: 1.0, 1.0: 2.0}).where(table["method"] == "softcap", 1.0)
    noisy = score.cost(table.assign(train_seconds=table["train_seconds"] * odd)).loc["softcap"]
    assert noisy["cost"] == pytest.approx(10.0)
    assert (noisy["cost lo"], noisy["cost hi"]) == pytest.approx((-45, 120))
    for name in ("device", "commit"):
        elsewhere = table.assign(**{name: table["method"]})
        assert score.cost(elsewhere).empty, "another machine, or another day, is no pair"
    diverged = table.assign(diverged=table["lr"] == 1)
    assert score.cost(diverged).loc["softcap", "cost n"] == 8


@pytest.mark.parametrize(
    "prediction, verdict",
    [
        (Prediction("S falls.", "S - none", below=0.0), HOLDS),
        (Prediction("S rises.", "S - none", above=0.0), CONTRADICTED),
        ({"words": "S falls by half.", "measure": "S - none", "below": -0.618}, UNDECIDED),
        (Prediction("S does not change.", "|S - none|", below=0.02), CONTRADICTED),
        (Prediction("Logits grow before the cap.", "log10_logit_before", above=3.0), HOLDS),
        (Prediction("It stands 1.4 × the LR.", "diverging_lr / none", above=1.4), HOLDS),
        (Prediction("It stands 1.6 × the LR.", "diverging_lr / none", above=1.6), CONTRADICTED),
        (Prediction("As qk-layernorm.", "diverging_lr / qk-layernorm", above=1.0), UNTESTABLE),
    ],
)
def test_predictions_hold_or_are_refuted(prediction, verdict):
    known = brackets(KNOWN | {"qk-layernorm": [np.inf] * 4})
    predictions = {"softcap": prediction}
    scores = score.score(*made_up(), STUDY, predictions=predictions, brackets=known)
    assert row(scores, "softcap")["verdict"] == verdict
    assert row(scores, "none")[["verdict", "prediction"]].isna().all()
    shown = score.score_table(scores)
    assert verdict in shown and row(scores, "softcap")["prediction"] in shown


def test_a_difference_is_judged_over_the_pairs():
    table, curves = made_up()
    lacking = table[~((table["method"] == "none") & (table["seed"] == 3))]
    seeds = score.measured(lacking, curves, STUDY)
    prediction = {"softcap": Prediction("S falls.", "S - none", below=0.0)}
    (verdict,) = score.verdicts(seeds, prediction, STUDY, "X.1", "11-")
    assert (verdict["n"], verdict["verdict"]) == (3, HOLDS)
    assert (verdict["claim"], verdict["figure"]) == ("11-softcap", "X.1")


@pytest.mark.parametrize(
    "options, words",
    [
        (
            {"anchors": ("nothing",)},
            "anchors='nothing': must be one of none, qk-layernorm, softcap",
        ),
        ({"predictions": {"x": {}}}, "predictions: that of 'x' must have words, measure, and"),
        ({"predictions": {"x": Prediction("", "S", 0.0)}}, "predictions='x': must be one of none"),
        ({"predictions": {"none": Prediction("", "T", 0.0)}}, "measure='T': must be one of S, "),
        ({"predictions": {"none": Prediction("", "S")}}, "must have a threshold above or below"),
        ({"predictions": {"none": Prediction("", "S", 0, 1)}}, "a threshold above or below"),
    ],
)
def test_what_cannot_be_scored_is_refused_in_a_line(options, words):
    with pytest.raises(UserError, match=re.escape(words)):
        score.score(*made_up(), STUDY, **options)


def test_at_smoke_scale_nothing_is_judged():
    smoke = protocol.study("smoke")
    predictions = {"softcap": Prediction("S falls.", "S - none", below=0.0)}
    scores = score.score(*made_up(), smoke, predictions=predictions)
    assert row(scores, "softcap")["verdict"] == UNTESTABLE


def test_the_table_has_a_line_per_method_and_rounded_intervals():
    scores = score.score(*made_up(), STUDY, brackets=brackets(KNOWN))
    head, _, *lines = score.score_table(scores).splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in lines] == list(SHAPES)
    assert head.startswith("| method | S, nats | S − none | S − qk-layernorm | diverging LR |")
    assert "verdict" not in head and "| 1.5 [1.5, 1.5] |" in lines[2]
    assert "| +10 [+10, +10] |" in lines[2] and "nan" not in "".join(lines)


def test_predictions_are_written_before_the_runs_and_stand(smoke, tmp_path, monkeypatch):
    """Others, later, for the same runs do not replace them; for other runs they do."""
    monkeypatch.setenv("PROXIES_PAPERMILL_RUNS", str(tmp_path))
    writing = protocol.study("smoke", publish=True)
    runs = {"a": grid(smoke, {"seed": (0, 1)}), "b": grid(smoke, {"seed": (2,)})}
    first = {
        "a": Prediction("S falls.", "S - none", below=0.0),
        "b": {"words": "It learns more.", "measure": "best_loss", "above": 1.5},
    }
    score.write_down(first, runs, writing)
    later = {"a": Prediction("S rises.", "S - none", above=0.0)}
    written = score.write_down(later, dict(reversed(runs.items())), writing)
    assert score.predictions_of(written) == {"a": first["a"], "b": Prediction(**first["b"])}
    assert written["runs_stored"].eq(0).all()
    other = score.write_down(later, {"a": grid(smoke, {"seed": (7,)})}, writing)
    assert score.predictions_of(other) == later
    with pytest.raises(UserError, match="predictions='c': must be one of a, b"):
        score.write_down({"c": later["a"]}, runs, writing)


def test_a_study_that_reads_writes_no_prediction(smoke, tmp_path, monkeypatch):
    monkeypatch.setenv("PROXIES_PAPERMILL_RUNS", str(tmp_path))
    runs, given = {"a": [smoke]}, {"a": Prediction("S falls.", "S - none", below=0.0)}
    shown = score.write_down(given, runs, protocol.study("smoke"))
    assert score.predictions_of(shown) == given and not list(tmp_path.iterdir())


def test_a_ratio_is_taken_seed_by_seed():
    heights = pd.DataFrame(
        {
            "method": ["burst", "burst", "mended", "mended", "mended"],
            "seed": [0, 1, 1, 0, 2],
            "height": [2.0, 4.0, 1.0, 1.0, 1.0],
        }
    )
    ratios = score.paired_ratio(heights, "height", "burst")
    assert ratios["height / burst"].tolist()[2:4] == [0.25, 0.5]
    assert ratios["height / burst"].isna().tolist() == [True, True, False, False, True]
    halved = {"mended": Prediction("The spike is halved.", "height / burst", below=0.6)}
    (verdict,) = score.verdicts(ratios, halved, STUDY)
    assert verdict["effect"] == pytest.approx(0.375) and verdict["n"] == 2


def test_published_scores_are_read_from_the_numbers_of_the_figure(tmp_path, monkeypatch):
    monkeypatch.setenv("PROXIES_FIGURES", str(tmp_path / "figures"))
    assert score.published("laptop") is None
    known = brackets(KNOWN | {"qk-layernorm": [np.inf] * 4})
    given = {"softcap": Prediction("S falls.", "S - none", below=0.0)}
    scores = score.score(*made_up(), STUDY, predictions=given, brackets=known)
    drawn = {"seeds": score.measured(*made_up(), STUDY), "scores": scores}
    table = report._csv(drawn)
    (tmp_path / "figures/laptop").mkdir(parents=True)
    (tmp_path / "figures/laptop/fig_ideas_score.csv").write_bytes(table)
    assert score.score_table(score.published("laptop")) == score.score_table(scores)


def test_the_command_prints_the_rows_of_a_notebook(tmp_path, monkeypatch, capsys):
    """Of section 11 from its committed table; of one's own, anywhere; and one clear line."""
    monkeypatch.setenv("PROXIES_PAPERMILL_RUNS", str(ROOT / "papermill_runs"))
    assert cli.main(["score", "--scale", "smoke"]) == 0
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert head.startswith("| method | S, nats |") and len(rows) == 11

    mine = tmp_path / "mine.py"
    mine.write_text(
        '# %% tags=["setup"]\n'
        "from proxies_lib.config import grid, replace\n"
        "from proxies_lib.science.protocol import study\n"
        "this = study(scale, overrides, train, publish)\n"
        '# %% tags=["grid"]\n'
        "normed = replace(this.base, d_model=8, n_layers=2)\n"
        'none = replace(normed, qk_norm="none")\n'
        'axes = {"lr": this.window, "seed": this.seeds}\n'
        'runs = {"none": grid(none, axes), "qk-layernorm": grid(normed, axes)}\n'
    )
    assert cli.main(["score", str(mine), "--scale", "smoke"]) == 0
    own = capsys.readouterr().out.splitlines()[2:]
    assert [row.split(" | ")[0] for row in own] == ["| none", "| qk-layernorm"]
    assert own[0].split(" | ")[1] == rows[0].split(" | ")[1]
    assert cli.main(["score", str(tmp_path / "other.py")]) == 2
    assert capsys.readouterr().err.endswith("other.py': is no file\n")
