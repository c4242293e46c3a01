"""What BatchNorm learns is taken back where the training step says so.

tests/e2e/test_ddp.py has the same on two ranks.
"""

import torch
from torch import nn

from modules.runtime.batch_norm import RunningStatistics, freeze_statistics


def learnt(norm):
    return [buffer.tolist() for buffer in norm.buffers()]


def test_bad_batches_and_steps_that_are_not_taken_teach_nothing():
    norm, alone = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    statistics = RunningStatistics(nn.Sequential(norm))

    def batch(x_NC, is_good=True):
        statistics.begin_batch()
        norm(x_NC)
        statistics.end_batch(is_good)

    good = torch.randn(4, 5, 3)
    batch(good[0])
    batch(torch.full((5, 3), torch.nan), is_good=False)
    batch(good[1])
    statistics.end_step(is_taken=True)
    for part in good[:2]:
        alone(part)
    assert learnt(norm) == learnt(alone)
    batch(good[2])
    batch(good[3])
    statistics.end_step(is_taken=False)
    assert learnt(norm) == learnt(alone)


def test_frozen_statistics_serve_until_the_next_training():
    norm = nn.BatchNorm1d(3)
    network = nn.Sequential(norm).train()
    freeze_statistics(network)
    network(torch.randn(5, 3))
    assert learnt(norm) == learnt(nn.BatchNorm1d(3)) and network.training
    network.train()
    network(torch.randn(5, 3))
    assert learnt(norm) != learnt(nn.BatchNorm1d(3))
