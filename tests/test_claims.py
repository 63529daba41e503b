import numpy as np
import pytest

from proxies_lib import claims, config


def verdict(values, side="above", threshold=1.0):
    return claims.check("c", "1", "s", "m", values, side, threshold)


@pytest.mark.parametrize(
    ("values", "side", "expected"),
    [
        ([2.0, 3.0, 4.0], "above", claims.HOLDS), ([2.0, 3.0, 0.1], "above", claims.FAILS),
        ([0.1, 0.2, 0.3], "below", claims.HOLDS), ([0.1, 0.2, 3.0], "below", claims.FAILS),
        ([2.0, np.nan], "above", claims.UNTESTABLE), ([], "above", claims.UNTESTABLE), ([2.0], "above", claims.HOLDS),
    ],
)  # fmt: skip
def test_a_claim_holds_only_with_its_whole_interval(values, side, expected):
    assert verdict(values, side)["verdict"] == expected


def test_an_undecided_claim_says_so():
    assert "interval includes" in verdict([3.0, 3.0, 0.5])["note"]
    assert "one seed" in verdict([2.0])["note"]


def test_publishing_replaces_one_section_and_keeps_the_others():
    study = config.study("smoke", train=True)
    claims.publish([verdict([2.0, 3.0])], "01", study)
    claims.publish([verdict([2.0, 3.0]), verdict([0.0, 0.1])], "02", study)
    claims.publish([verdict([0.0, 0.1])], "01", study)
    board = claims.scoreboard("smoke")
    assert board["section"].tolist() == ["01", "02", "02"]
    assert board["verdict"].tolist() == [claims.FAILS, claims.HOLDS, claims.FAILS]
    assert board["figure"].tolist() == ["1"] * 3 and claims.markdown(board).count("\n") == 4


def test_reading_publishes_nothing():
    study = config.study("paper")
    claims.publish([verdict([2.0, 3.0])], "01", study)
    with pytest.raises(config.UserError, match="run its sections first"):
        claims.scoreboard("paper")
