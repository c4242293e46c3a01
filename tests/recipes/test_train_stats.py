"""Counts of an epoch and of a step, and the watch over what is not finite."""

import logging
import re

import pytest
import torch

from modules.data.batch import Batch
from modules.losses.choice import Terms, choose
from modules.losses.selection import KeepAll, PooledTruncation
from modules.runtime.errors import NonFiniteTraining, NothingLearned
from recipes.train_stats import Accumulation, NonFiniteWatch, TrainStats, idle_fault

IDS = ["a", "b", "c", "d"]
LOSS_BK = torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, float("nan")], [4.0, 40.0]])


def add(select, over_kept: bool = True, weights=(1.0, 3.0)):
    """Count one batch of four examples with two terms; the third one is not finite."""
    wave = torch.ones(4, 8)
    counts_B = torch.ones(4, dtype=torch.bool)
    batch = Batch(IDS, wave, wave[:, None], torch.full((4,), 8), counts_B)
    silent_BK = torch.tensor([[True, True], [False, False], [True, False], [False] * 2])
    terms = Terms(LOSS_BK, torch.ones(4, 2, dtype=torch.bool), silent_BK=silent_BK)
    finite_B = torch.tensor([True, True, False, True])
    choice, _ = choose(terms, finite_B, counts_B, select, batch_size=4).read()
    stats, accumulated = TrainStats(), Accumulation()
    stats.add(choice)
    accumulated.add(choice, batch, weights, over_kept, name_silent=True)
    return stats, accumulated


def test_an_epoch_counts_terms_and_sums_their_losses():
    stats, _ = add(PooledTruncation(0.5))
    assert (stats.seen, stats.nonfinite, stats.silent) == (4, 1, 2)
    assert stats.offered_K == [3, 3] and stats.kept_K == [2, 2] and stats.kept == 4
    assert stats.loss_offered_K == [7.0, 70.0] and stats.loss_kept_K == [3.0, 30.0]
    assert stats.loss == 33 / 4 and stats.kept_share == 4 / 8
    assert stats.per_term(["x", "y"]) == {
        "x_kept": 2 / 3, "x_loss_kept": 1.5, "x_loss_dropped": 4.0,
        "y_kept": 2 / 3, "y_loss_kept": 15.0, "y_loss_dropped": 40.0,
    }  # fmt: skip


def test_a_step_averages_over_the_terms_it_kept_or_over_all_it_could():
    rule = PooledTruncation(0.5)
    assert add(rule, over_kept=True)[1].weight == 2 * 1 + 2 * 3
    assert add(rule, over_kept=False)[1].weight == 3 * 1 + 3 * 3
    accumulated = add(rule, weights=(0.0, 0.5))[1]
    assert (accumulated.weight, accumulated.kept) == (1.0, 4)
    assert accumulated.nonfinite == 1
    assert accumulated.ids == IDS and accumulated.suspects == ["c"]
    assert accumulated.left_out == {"silent": ["a"], "dropped": ["d"]}
    assert add(KeepAll())[1].kept == 6


SOME_BAD = Accumulation(1.0, kept=2, nonfinite=1, ids=["good", "bad"], suspects=["bad"])
ALL_BAD = Accumulation(0.0, kept=0, nonfinite=1, ids=["bad"], suspects=["bad"])
ALL_GOOD = Accumulation(1.0, kept=2, ids=["one", "two"])
NONE_KEPT = Accumulation(0.0, kept=0, ids=["easy"])


@pytest.mark.parametrize(
    ("accumulated", "is_finite", "searching", "count", "said"),
    [
        (ALL_GOOD, True, False, 0, None),
        (NONE_KEPT, True, False, 1, None),  # neither bad nor good: the count stays
        (SOME_BAD, True, False, 0, "left out, not finite or .*: bad$"),
        (ALL_BAD, True, False, 2, r"\(2 in a row\); examples: bad$"),
        (
            ALL_GOOD,
            False,
            False,
            2,
            r"gradient .*\(2 in a row\), though audio .*: one, two$",
        ),
        (SOME_BAD, False, False, 2, r"gradient .*\(2 in a row\); .*: bad$"),
        # A scaler that lowers its scale overflows on purpose.
        (ALL_GOOD, False, True, 1, None),
        (ALL_BAD, False, True, 2, r"\(2 in a row\); examples: bad$"),
    ],
)
def test_the_watch_counts_bad_steps_and_names_the_examples(
    caplog, accumulated, is_finite, searching, count, said
):
    watch = NonFiniteWatch(patience=3)
    watch.count = 1
    with caplog.at_level(logging.WARNING):
        watch.look(accumulated, is_finite, searching, "epoch 1, step 5")
    assert watch.count == count
    if said is None:
        assert caplog.messages == []
    else:
        (message,) = caplog.messages
        assert message.startswith("epoch 1, step 5: ")
        assert re.search(said, message), message


def test_the_watch_ends_the_run_when_its_patience_is_over():
    watch = NonFiniteWatch(patience=2)
    watch.look(ALL_BAD, True, False, "epoch 1, step 1")
    watch.look(ALL_GOOD, True, False, "epoch 1, step 2")
    watch.look(ALL_BAD, True, False, "epoch 1, step 3")
    with pytest.raises(NonFiniteTraining, match="step 4: .*nonfinite_patience=2"):
        watch.look(ALL_BAD, True, False, "epoch 1, step 4")


def test_a_gradient_that_is_not_finite_is_not_blamed_on_the_files():
    watch = NonFiniteWatch(patience=1)
    with pytest.raises(NonFiniteTraining) as error:
        watch.look(ALL_GOOD, False, False, "epoch 1, step 4")
    assert "files" not in str(error.value) and "lower lr" in str(error.value)


LEFT_OUT = {"silent": "silent", "over_limit": "over the limit", "dropped": "too easy"}


def test_an_epoch_that_moves_nothing_says_why():
    assert idle_fault(TrainStats(), LEFT_OUT) is None, "no step was left to take"
    assert idle_fault(TrainStats(seen=2, steps_moving=1), LEFT_OUT) is None
    stats = TrainStats(seen=5, kept_K=[0], over_limit=3, dropped=2)
    assert idle_fault(stats, LEFT_OUT) == (
        "nothing was trained on; left out of 5 examples: over the limit (3), "
        "too easy (2)"
    )
    still = TrainStats(seen=5, kept_K=[5])
    assert "every gradient was exactly zero" in idle_fault(still, LEFT_OUT)


def test_an_epoch_that_kept_nothing_has_no_loss():
    stats = TrainStats(seen=5, kept_K=[0], offered_K=[0], loss_offered_K=[0.0],
                       loss_kept_K=[0.0], over_limit=5)  # fmt: skip
    totals = stats.totals(["x"])
    assert "loss" not in totals and "x_loss_kept" not in totals
    assert totals["over_limit"] == 5 and totals["kept_share"] == 0


def test_bad_epochs_end_a_run_in_a_row_or_when_there_were_no_others():
    watch = NonFiniteWatch(patience=2)
    watch.end_epoch(1, "idle", is_last=False)
    watch.end_epoch(2, None, is_last=False)
    watch.end_epoch(3, "idle", is_last=True)  # another epoch has learned
    with pytest.raises(NothingLearned, match="idle .2 in a row.*nonfinite_patience=2"):
        watch.end_epoch(4, "idle", is_last=False)
    with pytest.raises(NothingLearned, match="The run has learned nothing"):
        NonFiniteWatch(patience=3).end_epoch(1, "idle", is_last=True)
