"""The choice of a global batch: what is left out, and why."""

import torch

from modules.losses.choice import Terms, choose
from modules.losses.selection import ThresholdByLoss


def test_an_example_is_left_out_for_one_reason_and_counted_under_it():
    loss_BK = torch.tensor([[1.0], [-40.0], [70.0], [float("nan")], [2.0], [80.0]])
    scorable_BK = torch.tensor([[True]] * 4 + [[False]] + [[True]])
    counts_B = torch.tensor([True] * 5 + [False])  # the last one fills up
    chosen = choose(
        Terms(loss_BK, scorable_BK, silent_BK=~scorable_BK),
        torch.ones(6, dtype=torch.bool),
        counts_B,
        ThresholdByLoss(-30),
        batch_size=8,
        loss_limit=60,
    )
    choice, _ = chosen.read()
    assert chosen.keep_BK.flatten().tolist() == [True] + [False] * 5
    assert choice.dropped_B == [False, True, False, False, False, False]
    assert choice.over_limit_B == [False, False, True, False, False, False]
    assert choice.nonfinite_B == [False, False, False, True, False, False]
    counts = choice.seen, choice.nonfinite, choice.silent
    assert counts == (5, 1, 1) and (choice.over_limit, choice.dropped) == (1, 1)


def test_an_example_of_many_terms_is_over_the_limit_with_one_and_dropped_with_all():
    loss_BK = torch.tensor([[1.0, 70.0], [-40.0, 1.0], [-40.0, -50.0], [70.0, -40.0]])
    chosen = choose(
        Terms(loss_BK, torch.ones(4, 2, dtype=torch.bool)),
        *(torch.ones(4, dtype=torch.bool) for _ in range(2)),
        ThresholdByLoss(-30),
        batch_size=4,
        loss_limit=60,
    )
    choice, _ = chosen.read()
    assert choice.over_limit_B == [True, False, False, True]
    assert choice.dropped_B == [False, False, True, True]
