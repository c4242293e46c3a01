"""The suspicion score counts what truncation dropped, and nothing else."""

import csv

import pytest
import torch

from modules.losses.suspicion import Suspicion


def choice(*rows: tuple[int, int, bool, bool]):
    """(track, stem number, usable, kept) of a batch of one stem each, K = 2."""
    origin_NK = torch.full((len(rows), 2), float("nan"))
    usable_NK, keep_NK = (torch.zeros(len(rows), 2, dtype=torch.bool) for _ in "ab")
    for n, (track, stem, usable, kept) in enumerate(rows):
        origin_NK[n, stem] = track
        usable_NK[n, stem], keep_NK[n, stem] = usable, kept
    return origin_NK, usable_NK, keep_NK


def test_counts_go_to_the_track_that_the_stem_is_from():
    suspicion = Suspicion(["a", "b", "c"], ["drums", "bass"])
    suspicion.add(*choice((1, 0, True, False), (1, 0, True, False), (1, 0, True, True)))
    suspicion.add(
        *choice((0, 1, True, True), (1, 1, False, False), (1, 0, True, False))
    )
    rows = {(row["track"], row["stem"]): row for row in suspicion.rows()}
    assert set(rows) == {("b", "drums"), ("a", "bass")}
    assert rows["b", "drums"] == {
        "track": "b", "stem": "drums", "offered": 4, "dropped": 3, "suspicion": 0.75
    }  # fmt: skip
    assert rows["a", "bass"]["suspicion"] == 0.0
    assert suspicion.rows()[0]["track"] == "b"


def test_counts_continue_from_a_checkpoint():
    one, other = (Suspicion(["a"], ["drums", "bass"]) for _ in range(2))
    one.add(*choice((0, 0, True, False)))
    other.load_state_dict(one.state_dict())
    for suspicion in (one, other):
        suspicion.add(*choice((0, 0, True, True)))
    assert one.rows() == other.rows()
    with pytest.raises(ValueError, match=r"\[1, 2\].*\[2, 2\]"):
        Suspicion(["a", "b"], ["drums", "bass"]).load_state_dict(one.state_dict())


def test_the_csv_reads_back(tmp_path):
    suspicion = Suspicion(["a, b"], ["drums", "bass"])
    suspicion.add(*choice((0, 1, True, False)))
    with open(suspicion.write_csv(tmp_path / "suspicion.csv")) as file:
        (row,) = csv.DictReader(file)
    assert (row["track"], row["stem"], row["suspicion"]) == ("a, b", "bass", "1.0")
