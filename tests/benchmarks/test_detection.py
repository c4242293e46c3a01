"""Figures of a score that is to find wrong stems, counted by hand."""

import math

import pytest

from benchmarks.detection import (
    average_precision,
    brier,
    precision_at,
    precision_recall,
    read_truth,
)

DRUMS, BASS, OTHER = ("a", "drums"), ("a", "bass"), ("b", "drums")
WRONG = {DRUMS: True, BASS: False, OTHER: True}


def test_a_stem_is_wrong_where_it_is_not_clean(tmp_path):
    path = tmp_path / "truth.csv"
    path.write_text('track,is_clean,stem\na,0,drums\n"a, b",1,bass\n')
    assert read_truth(path) == {("a", "drums"): True, ("a, b", "bass"): False}


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        # Wrong stems first and third: precision 1 at the first, 2/3 at the second.
        ((0.9, 0.8, 0.1), (1 + 2 / 3) / 2),
        # The clean stem first: 1/2, then 2/3.
        ((0.8, 0.9, 0.1), (1 / 2 + 2 / 3) / 2),
        # Wrong stems first, in either order.
        ((2.0, 1.0, 3.0), 1),
        # All equal: both are found together, among three.
        ((1.0, 1.0, 1.0), 2 / 3),
        # A wrong stem equal to the clean one: 1/2 when found, then 2/3.
        ((1.0, 1.0, 0.0), (1 / 2 + 2 / 3) / 2),
        # One found alone, then one together with the clean one.
        ((2.0, 1.0, 1.0), (1 + 2 / 3) / 2),
        ((-2.0, -1.0, -3.0), (1 / 2 + 2 / 3) / 2),
    ],
)
def test_average_precision_is_the_mean_precision_at_each_hit(scores, expected):
    score = dict(zip(WRONG, scores, strict=True))
    assert average_precision(score, WRONG) == pytest.approx(expected)


def test_a_wrong_stem_without_a_score_is_never_found():
    assert average_precision({DRUMS: 1.0}, WRONG) == pytest.approx(1 / 2)
    assert average_precision({BASS: 1.0}, WRONG) == 0
    assert average_precision({("other", "track"): 2.0, DRUMS: 1.0}, WRONG) == 1 / 2
    assert math.isnan(average_precision({BASS: 1.0}, {BASS: False}))


def test_precision_and_recall():
    assert precision_recall([DRUMS, BASS], WRONG) == (1 / 2, 1 / 2)
    assert precision_recall([DRUMS], WRONG) == (1, 1 / 2)
    assert precision_recall([BASS], {BASS: False})[0] == 0
    assert all(map(math.isnan, precision_recall([], {BASS: False})))


def test_precision_at_a_recall_is_the_best_that_reaches_it():
    score = {DRUMS: 0.9, BASS: 0.8, OTHER: 0.1}
    assert precision_at(0.5, score, WRONG) == 1
    assert precision_at(0.8, score, WRONG) == 2 / 3
    assert precision_at(0.8, {DRUMS: 1.0}, WRONG) == 0, "the other is never found"


def test_the_brier_score_is_the_mean_squared_error():
    found = brier({DRUMS: 1.0, BASS: 0.5, OTHER: 0.8}, WRONG)
    assert found == pytest.approx((0 + 0.25 + 0.04) / 3)
