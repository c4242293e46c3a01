"""The losses of stems: sums of what training saw, and nothing else."""

import csv

import pytest
import torch

from modules.losses.kept_losses import KeptLosses
from modules.runtime.errors import CheckpointMismatch


def choice(*rows: tuple[int, int, float, bool, bool]):
    """(track, stem number, loss, usable, kept) of a batch of one stem each, K = 2."""
    origin_NK, loss_NK = torch.full((2, len(rows), 2), float("nan"))
    usable_NK, keep_NK = torch.zeros(2, len(rows), 2, dtype=torch.bool)
    for n, (track, stem, loss, usable, kept) in enumerate(rows):
        origin_NK[n, stem], loss_NK[n] = track, loss
        usable_NK[n, stem], keep_NK[n, stem] = usable, kept
    return origin_NK, loss_NK, usable_NK, keep_NK


def test_sums_go_to_the_track_and_the_epoch_of_the_stem():
    losses = KeptLosses(["a", "b"], ["drums", "bass"])
    losses.add(1, *choice((1, 0, 0.5, True, False), (1, 0, 1.0, True, True)))
    losses.add(1, *choice((0, 1, 2.0, True, True), (1, 1, 9.0, False, False)))
    losses.add(3, *choice((1, 0, 0.25, True, False)))
    assert list(losses.rows()) == [
        ("a", "bass", 1, 2.0, 1, 0),
        ("b", "drums", 1, 0.75, 2, 1),
        ("b", "drums", 3, 0.25, 1, 1),
    ]


def test_no_order_changes_the_sums():
    rows = [(0, 0, 0.1 * 3**k, True, True) for k in range(12)]
    one, other = (KeptLosses(["a"], ["drums", "bass"]) for _ in range(2))
    for row in rows:
        one.add(1, *choice(row))
    other.add(1, *choice(*reversed(rows)))
    assert list(one.rows()) == list(other.rows())


def test_sums_continue_from_a_checkpoint():
    one, other = (KeptLosses(["a"], ["drums", "bass"]) for _ in range(2))
    one.add(1, *choice((0, 0, 0.3, True, False)))
    other.load_state_dict(one.state_dict())
    for losses in (one, other):
        losses.add(1, *choice((0, 0, 0.2, True, True)))
        losses.add(2, *choice((0, 0, 0.1, True, True)))
    assert list(one.rows()) == list(other.rows())
    assert other.state_dict()["sums_EQRK"][0, 1, 0, 0] == 2


def test_sums_go_with_the_names_of_their_tracks(tmp_path):
    stems = ["drums", "bass"]
    old = KeptLosses(["a", "b", "c"], stems)
    old.add(1, *choice(*((track, 0, track + 1.0, True, True) for track in range(3))))
    torch.save(old.state_dict(), tmp_path / "saved")
    state = torch.load(tmp_path / "saved", weights_only=True)
    for tracks in (["c", "new", "a"], ["new", "a", "b", "c"], ["b"], ["new"]):
        losses = KeptLosses(tracks, stems)
        losses.load_state_dict(state)
        kept = [
            (t, "drums", 1, "abc".index(t) + 1.0, 1, 0) for t in tracks if t != "new"
        ]
        assert list(losses.rows()) == kept
        losses.add(2, *choice((len(tracks) - 1, 1, 0.5, True, True)))
        assert list(losses.rows())[-1][0] == tracks[-1]
    with pytest.raises(CheckpointMismatch, match=r"\[3, 2\] .* this run of \[3, 1\]"):
        KeptLosses(["a", "b", "c"], ["drums"]).load_state_dict(state)


def test_a_checkpoint_without_names_must_have_as_many_tracks():
    one, same, more = (
        KeptLosses(names, ["drums", "bass"]) for names in ("a", "a", "ab")
    )
    one.add(1, *choice((0, 0, 0.3, True, False)))
    state = {"sums_EQRK": one.state_dict()["sums_EQRK"]}
    same.load_state_dict(state)
    assert list(same.rows()) == list(one.rows())
    with pytest.raises(CheckpointMismatch, match=r"\[1, 2\] .* this run of \[2, 2\]"):
        more.load_state_dict(state)


def test_the_csv_reads_back(tmp_path):
    losses = KeptLosses(["a, b"], ["drums", "bass"])
    losses.add(1, *choice((0, 1, 0.5, True, False)))
    with open(losses.write_csv(tmp_path / "stem_losses.csv")) as file:
        (row,) = csv.DictReader(file)
    assert (row["track"], row["stem"], row["loss"]) == ("a, b", "bass", "0.5")
    assert row["dropped"] == "1"
