"""The choice of a global batch: what is left out, and why."""

import pytest
import torch

from modules.losses.choice import Terms, choose, masked_sum
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
    assert chosen.weight.flatten().tolist() == [True] + [False] * 5
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


def all_true(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.ones(count, dtype=torch.bool), torch.ones(count, dtype=torch.bool)


def test_weights_multiply_the_losses_and_count_as_parts():
    loss_BK = torch.tensor([[1.0, 2.0], [3.0, float("nan")], [-40.0, 5.0]])
    loss_BK.requires_grad_()
    weight_BK = torch.tensor([[0.5, 1.0], [0.25, 1.0], [1.0, 0.5]])
    terms = Terms(loss_BK, torch.ones(3, 2, dtype=torch.bool), weight_BK=weight_BK)
    chosen = choose(terms, *all_true(3), ThresholdByLoss(-30), batch_size=3)
    choice, _ = chosen.read()
    assert chosen.weight.tolist() == [[0.5, 1.0], [0.25, 0.0], [0.0, 0.5]]
    assert choice.kept_K == [0.75, 1.5] and choice.usable_K == [3, 2]
    assert choice.kept_loss_K == [0.5 + 0.75, 2.0 + 2.5]
    # What the selector says is not mixed up with what the labels say.
    assert choice.keep_NK.tolist() == [[True, True], [True, False], [False, True]]
    masked_sum(terms.parts, chosen.weight, torch.tensor([1.0, 2.0])).backward()
    assert loss_BK.grad.tolist() == [[0.5, 2.0], [0.25, 0.0], [0.0, 1.0]]


def test_a_term_without_some_frames_is_the_mean_over_the_others():
    frame_BKF = torch.tensor([[[1.0, 2.0, 9.0, 4.0]], [[1.0, 1.0, 1.0, float("nan")]]])
    frame_BKF.requires_grad_()
    ones_BK = torch.ones(2, 1, dtype=torch.bool)
    terms = Terms(frame_BKF.mean(2), ones_BK, frame_BKF=frame_BKF)

    def select(loss_NKF):
        assert loss_NKF.shape == (2, 1, 4) and loss_NKF[1].isnan().all()
        return loss_NKF < 5

    chosen = choose(terms, *all_true(2), select, batch_size=2)
    choice, _ = chosen.read()
    assert choice.kept_K == [0.75] and choice.kept_loss_K == [7 / 4]
    assert choice.nonfinite == 1 and choice.dropped == 0
    mean = masked_sum(terms.parts, chosen.weight, torch.ones(1)) / choice.kept_K[0]
    mean.backward()
    third = pytest.approx(1 / 3)
    assert mean.item() == pytest.approx(7 / 3)
    assert frame_BKF.grad.flatten().tolist() == [third, third, 0, third, 0, 0, 0, 0]


def test_frames_are_judged_relative_to_the_level_of_their_target():
    frame_BKF = torch.tensor([[[1.0, 3.0]], [[10.0, 30.0]]])
    terms = Terms(
        frame_BKF.mean(2),
        torch.ones(2, 1, dtype=torch.bool),
        sort_key_BK=torch.tensor([[2.0], [2.0]]),  # losses relative to 1 and to 10
        frame_BKF=frame_BKF,
    )
    seen = []
    choose(terms, *all_true(2), lambda k: seen.append(k) or k > 0, batch_size=2)
    assert torch.allclose(seen[0], torch.tensor([[[1.0, 3.0]], [[1.0, 3.0]]]))
