import numpy as np
import pandas as pd
import pytest
from scipy import stats

from proxies_lib import config
from proxies_lib.science import claims, protocol, report


@pytest.fixture(autouse=True)
def own_outputs(tmp_path, monkeypatch):
    monkeypatch.setenv("PROXIES_PAPERMILL_RUNS", str(tmp_path))


def verdict(values, side="above", threshold=1.0):
    return claims.check("c", "1", "s", "m", values, **{side: threshold})


@pytest.mark.parametrize(
    ("values", "side", "expected"),
    [
        ([2.9, 3.0, 3.1], "above", claims.HOLDS),
        ([1.1, 3.0, 5.1], "above", claims.UNDECIDED),
        ([-1.0, 0.5, 1.9], "above", claims.UNDECIDED),  # the mean lies on the other side
        ([0.1, 0.2, 0.3], "above", claims.CONTRADICTED),
        ([0.1, 0.2, 0.3], "below", claims.HOLDS),
        ([0.1, 0.2, 0.9], "below", claims.UNDECIDED),
        ([2.9, 3.0, 3.1], "below", claims.CONTRADICTED),
        ([2.0, np.nan], "above", claims.UNTESTABLE),
        ([], "above", claims.UNTESTABLE),
        ([2.0], "above", claims.HOLDS),
        ([2.0], "below", claims.CONTRADICTED),
    ],
)
def test_a_verdict_is_the_side_of_the_whole_interval(values, side, expected):
    assert verdict(values, side)["verdict"] == expected


def test_a_claim_that_one_seed_judges_says_so():
    assert "one seed" in verdict([2.0])["note"] and not verdict([1.9, 2.1])["note"]


def test_what_the_seeds_could_have_decided_is_half_their_interval():
    spread = np.array([1.0, 2.0, 3.0])
    rows = [verdict(spread), verdict([2.0]), claims.check("c", "1", "s", "m", spread, above=0.0)]
    rows.append(claims.check("c", "1", "s", "m", spread, above=0.0, unless="too small a model"))
    half = 4.302653 / np.sqrt(3)  # t for 2 degrees of freedom; the standard deviation is 1
    decides = report.decides(pd.DataFrame(rows))
    assert decides.tolist() == pytest.approx([half, np.nan, half, np.nan], nan_ok=True)
    # An effect of 2 is further than that from a threshold at -0.5, and nearer to one at 0.
    further = claims.check("c", "1", "s", "m", spread, above=-0.5)
    assert (further["verdict"], rows[2]["verdict"]) == (claims.HOLDS, claims.UNDECIDED)
    shown = report.short(pd.DataFrame(rows))["decides"].tolist()
    assert shown == ["2.5", "–", "2.5", "–"]


def test_a_reason_against_testing_wins_over_the_numbers():
    row = claims.check("c", "1", "s", "m", [3.0, 3.1], above=1.0, unless="too small a model")
    assert (row["verdict"], row["note"], row["effect"]) == (
        claims.UNTESTABLE,
        "too small a model",
        3.05,
    )


@pytest.mark.parametrize("thresholds", [{}, {"above": 1.0, "below": 2.0}])
def test_a_claim_has_one_side(thresholds):
    with pytest.raises(TypeError, match="above a threshold or below one"):
        claims.check("c", "1", "s", "m", [1.5], **thresholds)


def test_smoke_judges_nothing():
    study = protocol.study("smoke", train=True)
    shown = report.publish([verdict([2.9, 3.0])], "01", study)
    assert shown["verdict"].tolist() == [claims.UNTESTABLE]


def test_a_prediction_is_written_once_per_set_of_fitted_runs():
    study = protocol.study("smoke", train=True)
    first, second = (pd.DataFrame({"lr": [0.1], "predicted": [x]}) for x in (1.0, 2.0))
    fitted = pd.DataFrame({"key": ["a", "b", "b"]})
    assert report.predict(first, fitted, 0, study)["held_out_stored"].tolist() == [0]
    again = report.predict(second, fitted.iloc[::-1], 3, study)
    assert again["predicted"].tolist() == [1.0] and again["held_out_stored"].tolist() == [0]
    other = report.predict(second, pd.DataFrame({"key": ["c"]}), 3, study)
    assert other["predicted"].tolist() == [2.0] and other["held_out_stored"].tolist() == [3]


@pytest.mark.parametrize("distance,half,n", [(0.2, 0.5, 3), (0.3, 0.4, 5), (0.05, 0.3, 8)])
def test_the_number_of_seeds_that_decide_is_the_least(distance, half, n):
    deviation = half * np.sqrt(n) / stats.t.ppf(0.975, n - 1)

    def half_with(seeds):
        return stats.t.ppf(0.975, seeds - 1) * deviation / np.sqrt(seeds)

    seeds = claims.seeds_that_decide(distance, half, n)
    assert seeds > n and half_with(seeds) < distance <= half_with(seeds - 1)
    assert claims.seeds_that_decide(distance / 1000, half, n) is None


@pytest.mark.parametrize("side", ["above", "below"])
def test_a_measure_comes_apart_as_it_was_put_together(side):
    measure = claims.check("c", "1", "s", "S (mean), nats", [1.0, 2.0], **{side: -5e-3})["measure"]
    assert claims.parts_of(measure) == ("S (mean), nats", side, -5e-3)
    assert claims.leans_to(1.5, side, -5e-3) == verdict([1.4, 1.6], side, -5e-3)["verdict"]
    without = claims.parts_of("S (mean)")
    assert without[:2] == ("S (mean)", "") and np.isnan(without[2])


def test_publishing_replaces_one_section_and_keeps_the_others():
    study = protocol.study("laptop", train=True)
    report.publish([verdict([2.9, 3.0])], "01", study)
    report.publish([verdict([2.9, 3.0]), verdict([0.0, 0.1])], "02", study)
    report.publish([verdict([0.0, 0.1])], "01", study)
    board = report.scoreboard("laptop")
    assert board["section"].tolist() == ["01", "02", "02"]
    assert board["verdict"].tolist() == [
        claims.CONTRADICTED,
        claims.HOLDS,
        claims.CONTRADICTED,
    ]
    assert board["figure"].tolist() == ["1"] * 3 and report.verdict_table(board).count("\n") == 4


def test_reading_publishes_nothing():
    study = protocol.study("paper")
    report.publish([verdict([2.0, 3.0])], "01", study)
    with pytest.raises(
        config.UserError,
        match="no claims.csv yet; `proxies run --scale paper`",
    ):
        report.scoreboard("paper")
