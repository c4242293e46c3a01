"""Learning-rate schedulers."""

import pytest
import torch
from speechbrain.nnet.schedulers import NewBobScheduler, ReduceLROnPlateau

from recipes.schedule import LinearDecay, update_learning_rate


def rate_after(scheduler, losses):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    for epoch, loss in enumerate(losses, start=1):
        update_learning_rate(scheduler, optimizer, epoch, loss)
    return optimizer.param_groups[0]["lr"]


def test_the_plateau_waits_for_its_first_epochs_and_then_halves():
    def plateau():
        return ReduceLROnPlateau(factor=0.5, patience=2, dont_halve_until_epoch=3)

    assert rate_after(plateau(), [0, 1, 2, 2]) == 1
    assert rate_after(plateau(), [0, 0, 0, 1, 1]) == 1  # patience 2
    assert rate_after(plateau(), [0, 0, 0, 1, 1, 1]) == 0.5


def test_newbob_and_no_scheduler():
    newbob = NewBobScheduler(initial_value=1.0, annealing_factor=0.5)
    assert rate_after(newbob, [2.0, 2.0]) == 0.5
    assert rate_after(None, [2.0, 2.0]) == 1


def test_the_linear_decay_needs_no_validation():
    decay = LinearDecay(initial_value=1.0, final_value=0.0, epoch_count=5)
    assert rate_after(decay, [None] * 2) == pytest.approx(0.5)
    assert rate_after(decay, [None] * 9) == 0  # also beyond its end


def test_without_validation_the_others_wait():
    plateau = ReduceLROnPlateau(factor=0.5, patience=1, dont_halve_until_epoch=0)
    assert rate_after(plateau, [0, None, None, None]) == 1
    assert rate_after(NewBobScheduler(initial_value=1.0), [2.0, None, None]) == 1


def test_another_scheduler_is_refused_by_name():
    with pytest.raises(TypeError, match="int is not supported"):
        rate_after(3, [1.0])
