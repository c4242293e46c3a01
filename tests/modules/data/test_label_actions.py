"""What training does with labels: drop, weigh, exchange."""

import pytest

from modules.data.label_actions import act_on_labels, without_dropped
from modules.data.labels import Label
from modules.data.manifest import Row
from modules.runtime.errors import DataError

SOURCES = ["drums", "bass", "vocals"]


def row(name: str, unused: tuple[int, ...] = ()) -> Row:
    files = tuple(f"/{name}/{stem}.wav" for stem in SOURCES)
    return Row(name, 10.0, 8000, "", files, channels=2, unused=unused)


ROWS = [row("a"), row("b", unused=(3,)), row("c")]
LABELS = {
    ("a", "drums"): Label(0.9, "bass"),
    ("a", "bass"): Label(0.8, "drums"),
    ("b", "drums"): Label(0.7, "bass"),
    ("b", "bass"): Label(0.5, "drums"),  # one half is not more than one half
    ("c", "vocals"): Label(0.25),
    ("elsewhere", "vocals"): Label(1.0),
}


def test_drop_leaves_out_what_is_more_probably_wrong_than_right():
    rows, trust = act_on_labels(ROWS, LABELS, SOURCES, "drop")
    assert trust == {"a": [0, 0, 1], "b": [0, 1, 1], "c": [1, 1, 1]}
    assert rows == ROWS
    unused = [made.unused for made in without_dropped(rows, trust)]
    assert unused == [(1, 2), (1, 3), ()]


def test_weight_is_the_probability_of_being_right():
    rows, trust = act_on_labels(ROWS, LABELS, SOURCES, "weight")
    assert trust["a"] == pytest.approx([0.1, 0.2, 1]) and trust["c"] == [1, 1, 0.75]
    assert without_dropped(rows, trust) == ROWS


def test_swap_exchanges_two_that_sound_like_each_other_and_drops_the_rest():
    others = {("c", "drums"): Label(0.9, "vocals"), ("c", "bass"): Label(0.9, "drums")}
    rows, trust = act_on_labels(ROWS, LABELS | others, SOURCES, "swap")
    assert rows[0].sources == ("/a/bass.wav", "/a/drums.wav", "/a/vocals.wav")
    assert trust["a"] == [1, 1, 1]
    assert rows[1] == ROWS[1] and trust["b"] == [0, 1, 1]
    assert rows[2] == ROWS[2] and trust["c"] == [0, 0, 1]


def test_a_track_of_which_nothing_is_left_is_left_out():
    labels = {("a", stem): Label(1.0) for stem in SOURCES}
    rows, _ = act_on_labels(ROWS, labels, SOURCES, "drop")
    assert [made.id for made in rows] == ["b", "c"]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({("other", "drums"): Label(1.0)}, r"no row is of a training stem, such as"),
        ({(t, "bass"): Label(1.0) for t in "abc"}, "every 'bass' is called wrong"),
    ],
)
def test_labels_that_fit_no_stem_or_leave_none_are_refused(labels, message):
    with pytest.raises(DataError, match=message):
        act_on_labels(ROWS, labels, SOURCES)
