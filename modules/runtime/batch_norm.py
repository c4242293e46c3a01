"""BatchNorm under many processes and under steps that are not taken.

What BatchNorm learns in the forward pass, its running statistics, knows nothing of what
the training step decides after it. `RunningStatistics` takes back what came from a
batch with an example that was not finite, or from a step that was not taken.

Ranks share the statistics of a batch, as torch's SyncBatchNorm does on a GPU, so that
R ranks x B examples are one batch of R*B, and their running statistics stay equal.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm


class RunningStatistics:
    """Takes back what the BatchNorms of a network have learnt.

    Call `begin_batch` before a forward pass, `end_batch` after it and `end_step` after
    the optimizer step that one or more batches make up.

    Arguments
    ---------
    network : nn.Module
        Wrapped or not. Its SyncBatchNorms will work on a CPU as well.

    Example
    -------
    >>> norm = nn.BatchNorm1d(1)
    >>> statistics = RunningStatistics(norm)
    >>> statistics.begin_batch()
    >>> _ = norm(torch.full((2, 1), torch.nan))
    >>> statistics.end_batch(is_good=False)
    >>> norm.running_mean
    tensor([0.])
    """

    def __init__(self, network: nn.Module) -> None:
        layers = [layer for layer in network.modules() if isinstance(layer, _BatchNorm)]
        for layer in layers:
            if type(layer) is nn.SyncBatchNorm:
                layer.__class__ = SharedBatchNorm
        self._live = [tensor for layer in layers for tensor in layer.buffers()]
        self._batch: list[Tensor] = []
        self._step: list[Tensor] = []

    def begin_batch(self) -> None:
        """Remember the statistics before a batch."""
        self._batch = [tensor.clone() for tensor in self._live]
        self._step = self._step or self._batch

    def end_batch(self, is_good: bool) -> None:
        """Take back what a batch taught that is not good."""
        if not is_good:
            self._put(self._batch)

    def end_step(self, is_taken: bool) -> None:
        """Take back what all batches of a step taught that was not taken."""
        if not is_taken:
            self._put(self._step)
        self._step = []

    @torch.no_grad()
    def _put(self, kept: list[Tensor]) -> None:
        for live, before in zip(self._live, kept, strict=True):
            live.copy_(before)


class SharedBatchNorm(nn.SyncBatchNorm):
    """SyncBatchNorm that works on a CPU too."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``[N, C, ...]`` by the statistics of all ranks' N."""
        alone = not (dist.is_initialized() and dist.get_world_size() > 1)
        if x.device.type != "cpu" or not self.training or alone:
            return super().forward(x)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        rows_NC = wide.movedim(1, -1).reshape(-1, x.shape[1])
        number = wide.new_tensor([float(len(rows_NC))])
        total = all_reduce(torch.cat([number, rows_NC.sum(0)]))
        number, mean_C = total[:1].detach(), total[1:] / total[:1].detach()
        centred_NC = rows_NC - mean_C
        var_C = all_reduce(centred_NC.square().sum(0)) / number
        if self.track_running_stats:
            self._learn(mean_C.detach(), var_C.detach() * number / (number - 1))
        y_NC = centred_NC * (var_C + self.eps).rsqrt()
        if self.weight is not None:
            y_NC = y_NC * self.weight + self.bias
        y = y_NC.view_as(wide.movedim(1, -1)).movedim(-1, 1)
        return y.to(x.dtype)

    @torch.no_grad()
    def _learn(self, mean_C: Tensor, var_C: Tensor) -> None:
        count: Any = self.num_batches_tracked
        count.add_(1)
        share = 1 / float(count) if self.momentum is None else self.momentum
        learnt: Any = self.running_mean, self.running_var
        for running, new in zip(learnt, (mean_C, var_C), strict=True):
            running.lerp_(new, share)


def freeze_statistics(network: nn.Module) -> None:
    """Let BatchNorms use what they have learnt, until the next `train()`."""
    for layer in network.modules():
        if isinstance(layer, _BatchNorm):
            layer.eval()
