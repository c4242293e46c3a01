"""BatchNorm under many processes and under steps that are not taken.

What BatchNorm learns in the forward pass, its running statistics, knows nothing of what
the training step decides after it. `RunningStatistics` takes back what came from a
batch with an example that was not finite, or from a step that was not taken.

Ranks share the statistics of a batch, so that R ranks x B examples are one batch of R*B
and what they learn stays equal. On a GPU torch's SyncBatchNorm does it, to which
SpeechBrain turns every BatchNorm; on a CPU `SharedBatchNorm` does.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class RunningStatistics:
    """Takes back what the BatchNorms of a network have learnt.

    Call `begin_batch` before a forward pass, `end_batch` after it and `end_step` after
    the optimizer step that one or more batches make up. The network may be wrapped.

    >>> norm = nn.BatchNorm1d(1)
    >>> statistics = RunningStatistics(norm)
    >>> statistics.begin_batch()
    >>> _ = norm(torch.full((2, 1), torch.nan))
    >>> statistics.end_batch(is_good=False)
    >>> norm.running_mean
    tensor([0.])
    """

    def __init__(self, network: nn.Module) -> None:
        layers = [layer for layer in network.modules() if isinstance(layer, NORMS)]
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


class SharedBatchNorm(nn.Module):
    """BatchNorm by the statistics of all ranks' examples, on any device.

    Not made but put in the place of a layer's class, by `share_statistics`.
    """

    eps: float
    momentum: float | None
    weight: Tensor | None
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``[N, C, ...]`` over all but C."""
        learnt = self.running_mean, self.running_var
        if not self.training:
            return F.batch_norm(x, *learnt, self.weight, self.bias, eps=self.eps)
        wide = x.to(torch.promote_types(x.dtype, torch.float32)).movedim(1, -1)
        rows_NC = wide.reshape(-1, x.shape[1])
        own = rows_NC.new_tensor([len(rows_NC)])
        total: Any = _SumOfRanks.apply(torch.cat([own, rows_NC.sum(0)]))
        number = total[:1].detach()
        mean_C = total[1:] / number
        centred_NC = rows_NC - mean_C
        var_C = _SumOfRanks.apply(centred_NC.square().sum(0)) / number
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            share = self.momentum or 1 / float(self.num_batches_tracked)
            unbiased_C = var_C * number / (number - 1)
            for running, new in zip(learnt, (mean_C, unbiased_C), strict=True):
                running.lerp_(new, share)
        y_NC = centred_NC * (var_C + self.eps).rsqrt()
        if self.weight is not None:
            y_NC = y_NC * self.weight + self.bias
        return y_NC.view_as(wide).movedim(-1, 1).to(x.dtype)


class _SumOfRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        total = own.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _SumOfRanks.forward(ctx, grad)


NORMS = (_BatchNorm, SharedBatchNorm)


def share_statistics(network: nn.Module) -> None:
    """Let BatchNorms see the examples of all ranks, where SyncBatchNorm cannot."""
    for layer in network.modules():
        if isinstance(layer, _BatchNorm) and layer.track_running_stats:
            layer.__class__ = SharedBatchNorm  # type: ignore[assignment]


def freeze_statistics(network: nn.Module) -> None:
    """Let BatchNorms use what they have learnt, until the next `train()`."""
    for layer in network.modules():
        if isinstance(layer, NORMS):
            layer.eval()
