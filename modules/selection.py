"""Which examples count: small objects that look at losses and answer with a mask.

A selector sees the unreduced losses of the whole global batch (all ranks), so every
rank reaches the same answer. Examples that cannot be used (not finite, over
`loss_upper_lim`, silent, or only there to fill up a rank) reach it as NaN and are
left out whatever it says.

Legend: N examples of the global batch.
"""

import torch
from torch import Tensor


class KeepAll:
    """Every usable example counts."""

    def __call__(self, loss_N: Tensor) -> Tensor:
        """Mask of True, shape [N]."""
        return torch.ones_like(loss_N, dtype=torch.bool)


class ThresholdByLoss:
    """Train on what is still hard: drop examples separated better than `threshold`.

    SpeechBrain's recipe practice (`threshold_byloss`); the MossFormer2 paper does not
    state it.

    Arguments
    ---------
    threshold : float
        In dB of negative SI-SNR: -30 drops examples whose SI-SNR is above 30 dB.
    enabled : bool
        False keeps every example.

    Example
    -------
    >>> ThresholdByLoss(-30)(torch.tensor([-12.0, -31.0]))
    tensor([ True, False])
    """

    def __init__(self, threshold: float = -30.0, enabled: bool = True) -> None:
        self.threshold = threshold
        self.enabled = enabled

    def __call__(self, loss_N: Tensor) -> Tensor:
        """Mask of the examples to keep, shape [N]; NaN is never kept when enabled."""
        if not self.enabled:
            return torch.ones_like(loss_N, dtype=torch.bool)
        return loss_N > self.threshold
