"""Selectors alone: losses in, mask out."""

import torch

from modules.selection import KeepAll, ThresholdByLoss

LOSS_N = torch.tensor([-12.0, -30.0, -31.0, 40.0, float("nan")])


def test_the_threshold_keeps_what_is_still_hard():
    assert ThresholdByLoss(-30)(LOSS_N).tolist() == [True, False, False, True, False]
    assert ThresholdByLoss(-40)(LOSS_N).tolist() == [True, True, True, True, False]


def test_switched_off_it_keeps_everything():
    assert ThresholdByLoss(-30, enabled=False)(LOSS_N).all()
    assert KeepAll()(LOSS_N).all()
