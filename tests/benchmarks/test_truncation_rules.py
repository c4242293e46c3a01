"""The rule that only the comparison of rules has."""

import torch

from benchmarks.truncation_rules import CoTeaching


def test_each_of_two_networks_chooses_for_the_other():
    loss_NK = torch.tensor([[1.0, 4.0], [2.0, 3.0], [3.0, 2.0], [4.0, 1.0]])
    keep_NK = CoTeaching(0.7)(loss_NK)
    assert keep_NK[:, 0].tolist() == [False, True, True, True]
    assert keep_NK[:, 1].tolist() == [True, True, True, False]
