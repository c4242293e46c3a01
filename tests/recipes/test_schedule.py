"""Learning-rate schedulers."""

import pytest
import torch
from speechbrain.nnet.schedulers import NewBobScheduler, ReduceLROnPlateau

from modules.runtime.errors import HparamsError
from recipes.schedule import (
    LearningRate,
    LinearDecay,
    Phases,
    RateFactor,
    total_epochs,
)


def rate_after(scheduler, losses):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    learning_rate = LearningRate(1.0, scheduler, RateFactor())
    epoch = 0
    for epoch, loss in enumerate(losses, start=1):
        learning_rate.end_epoch(optimizer, epoch, loss)
    assert optimizer.param_groups[0]["lr"] == learning_rate.current
    return learning_rate.at(epoch + 1, step=0, total=1)


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


def test_the_rate_of_a_phase_falls_by_its_factor():
    falling = Phases([4, 2], [1.0, 0.1], [1.0, 1.0], factor=0.5, every_epochs=2)
    assert [falling.rate(epoch) for epoch in range(1, 7)] == [1, 1, 0.5, 0.5, 0.1, 0.1]
    for wrong in ({"factor": 0.0}, {"factor": 2.0}, {"every_epochs": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Phases([1], [1.0], [1.0], **wrong)


def test_phases_wait_for_the_score_to_rise():
    def phases():
        return Phases([7, 4], [1.0, 0.1], [1.0, 1.0], patience=1, plateau_factor=0.5)

    # The loss is the negative score. Two in a row without a gain lower the rate.
    assert rate_after(phases(), [0, -1, -1]) == 1
    assert rate_after(phases(), [0, -1, -1, None, 0]) == 0.5
    assert rate_after(phases(), [0, -1, -1, 0, 0, 0]) == 0.25
    assert rate_after(phases(), [0, 0, -1, 0, -2]) == 1
    assert rate_after(phases(), [0] * 7) == 0.1, "a phase begins anew"
    assert rate_after(phases(), [0] * 10) == 0.05
    assert phases().waiting.falls == Phases([1], [1.0], [1.0]).waiting.falls == 0
    assert rate_after(Phases([9], [1.0], [1.0]), [0] * 8) == 1, "off by default"


def test_a_plateau_resumes_where_it_was():
    losses, options = [0, 0, 0, 0, 0, 0], {"patience": 2, "plateau_factor": 0.5}
    whole = Phases([9], [1.0], [1.0], **options)
    rates = [rate_after(whole, losses[:1])]
    for epoch in range(1, 6):
        resumed = Phases([9], [1.0], [1.0], **options)
        resumed.load_state_dict(whole.state_dict())
        resumed.end_epoch(epoch, losses[epoch])
        whole = resumed
        rates.append(whole.rate(epoch + 1))
    assert rates == [1, 1, 1, 0.5, 0.5, 0.5]
    whole.load_state_dict({})  # of a run before there was a plateau
    assert whole.rate(7) == 1


def test_without_validation_the_others_wait():
    plateau = ReduceLROnPlateau(factor=0.5, patience=1, dont_halve_until_epoch=0)
    assert rate_after(plateau, [0, None, None, None]) == 1
    assert rate_after(NewBobScheduler(initial_value=1.0), [2.0, None, None]) == 1


CCOM = {
    "epochs": [500, 200, 200],
    "lr": [3e-4, 1e-4, 1e-4],
    "quantile": [0.7, 0.5, 0.3],
}


def test_steps_follow_each_other():
    steps = Phases(**CCOM)
    assert steps.total == 900
    numbers = [steps.at(epoch).number for epoch in (1, 500, 501, 700, 701, 900, 999)]
    assert numbers == [1, 1, 2, 2, 3, 3, 3]
    assert [steps.at(epoch).first_epoch for epoch in (3, 600, 900)] == [1, 501, 701]
    assert rate_after(Phases([2, 1], [1.0, 0.1], [1, 1]), [None]) == 1.0
    assert rate_after(Phases([2, 1], [1.0, 0.1], [1, 1]), [None] * 2) == 0.1


@pytest.mark.parametrize(
    "change", [{"epochs": [5, 0]}, {"lr": [0, 1]}, {"quantile": [1.5, 1]},
               {"quantile": [0, 1]}]
)  # fmt: skip
def test_steps_of_impossible_numbers_are_refused(change):
    fine = {"epochs": [5, 2], "lr": [0.1, 0.2], "quantile": [1, 0.5]}
    Phases(**fine)
    with pytest.raises(ValueError, match="quantiles above 0 and at most 1"):
        Phases(**(fine | change))


def test_a_length_needs_steps():
    with pytest.raises(ValueError, match="lr_scheduler=None: music recipes need"):
        total_epochs(None)


def test_one_step_alone_begins_with_epoch_one():
    alone = Phases(**CCOM, only=2)
    assert (alone.total, alone.at(1).number, alone.at(1).quantile) == (200, 2, 0.5)
    with pytest.raises(ValueError, match="phase=4: there are phases 1 to 3"):
        Phases(**CCOM, only=4)
    with pytest.raises(ValueError, match="3, 2 and 3"):
        Phases([1, 1, 1], [1.0, 1.0], [1, 1, 1])


def test_another_scheduler_is_refused_by_name():
    with pytest.raises(HparamsError, match="int is not supported"):
        rate_after(3, [1.0])
