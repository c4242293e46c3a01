"""The loss of auxiliary estimates, which some networks make in training alone.

SepReformer (Shin et al., arXiv 2406.05983) estimates the sources from the input of each
stage of its decoder as well. Their magnitudes are compared:

    20 log10( | |a T| - |E| | / | |a T| | )      a = max( <e, t> / <t, t>, 0.01 )

with Frobenius norms of the spectrograms E and T of zero-mean estimate e and target t.

Legend: B batch, S source, T sample, F frequency, N frame. A pair matrix [b, i, j] holds
estimate i against target j.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from modules.losses.si_snr import PITResult, pit

N_FFT, HOP = 512, 128
#: The authors scale their window; it matters against `FLOOR` alone.
SCALE = math.sqrt(2 / 3) / (0.5 * N_FFT / math.sqrt(HOP))
FLOOR = 1e-10  # added to the squared magnitudes
EPS = 1e-12


def pit_neg_magnitude_snr(
    est_BST: Tensor, target_BST: Tensor, length_B: Tensor | None = None
) -> PITResult:
    """Return the loss at the top of the file, in dB, under the best permutation.

    Silent targets and examples that are not finite are treated as in
    `modules.losses.si_snr.pit_neg_si_snr`.

    Example
    -------
    >>> target_BST = torch.randn(1, 2, 800)
    >>> pit_neg_magnitude_snr(0.5 * target_BST.flip(1), target_BST).permutation_BS
    tensor([[1, 0]])
    """
    return pit(_neg_magnitude_snr, est_BST, target_BST, length_B)


def _neg_magnitude_snr(
    est_BST: Tensor, target_BST: Tensor, energy_B1S: Tensor, count_B11: Tensor
) -> Tensor:
    dot_BSS = (est_BST.unsqueeze(2) * target_BST.unsqueeze(1)).sum(-1) / count_B11
    gain_BSS = (dot_BSS / energy_B1S).clamp(min=0.01)
    est_BSFN = (_power(est_BST) + FLOOR).sqrt()
    power_BSSFN = gain_BSS.square()[..., None, None] * _power(target_BST).unsqueeze(1)
    target_BSSFN = (power_BSSFN + FLOOR).sqrt()
    error_BSS = torch.linalg.vector_norm(
        est_BSFN.unsqueeze(2) - target_BSSFN, dim=(3, 4)
    )
    level_BSS = torch.linalg.vector_norm(target_BSSFN, dim=(3, 4))
    return -20 * torch.log10(level_BSS / (error_BSS + EPS) + EPS)


def _power(x_BST: Tensor) -> Tensor:
    """Return squared magnitudes ``[B, S, F, N]`` of zero-padded signals."""
    samples = x_BST.shape[-1]
    room = max(N_FFT, -(-samples // HOP) * HOP)
    window = SCALE * torch.hann_window(N_FFT, dtype=x_BST.dtype, device=x_BST.device)
    spectrum_XFN = torch.stft(
        F.pad(x_BST, (0, room - samples)).flatten(0, 1),
        *(N_FFT, HOP),
        window=window,
        center=False,
        return_complex=True,
    )
    power_XFN = torch.view_as_real(spectrum_XFN).square().sum(-1)
    return power_XFN.unflatten(0, x_BST.shape[:2])


class AuxiliaryLoss:
    """Mixes the loss of auxiliary estimates into the main one, less from some epoch on.

    The mixture is ``(1 - a) main + a mean_k auxiliary_k`` with a = `weight` in the
    first `hold_epochs`; it falls by `factor` after them and after every `every_epochs`.

    Arguments
    ---------
    weight : float
        In [0, 1).
    hold_epochs, every_epochs : int
        Counted in epochs, 0 or more, 1 or more.
    factor : float
        In (0, 1].
    loss : Callable
        Maps estimates, targets and lengths to a `PITResult`; each estimate has a
        permutation of its own.

    Raises
    ------
    ValueError
        A number is out of range.

    Example
    -------
    >>> auxiliary = AuxiliaryLoss(weight=0.5, hold_epochs=2, factor=0.5, every_epochs=3)
    >>> [auxiliary.weight_at(epoch) for epoch in (1, 2, 3, 5, 6)]
    [0.5, 0.5, 0.25, 0.25, 0.125]
    """

    def __init__(
        self,
        weight: float,
        hold_epochs: int = 0,
        factor: float = 1.0,
        every_epochs: int = 1,
        loss: Callable[..., PITResult] = pit_neg_magnitude_snr,
    ) -> None:
        if not (0 <= weight < 1 and 0 < factor <= 1):
            raise ValueError(
                f"auxiliary: weight={weight} must be in [0, 1), factor={factor} in "
                "(0, 1]"
            )
        if hold_epochs < 0 or every_epochs < 1:
            raise ValueError(
                f"auxiliary: hold_epochs={hold_epochs} must be 0 or more and "
                f"every_epochs={every_epochs} 1 or more"
            )
        self.weight, self.factor, self.loss = weight, factor, loss
        self.hold_epochs, self.every_epochs = hold_epochs, every_epochs

    def weight_at(self, epoch: int) -> float:
        """Return the weight a of an epoch, counted from 1."""
        late = epoch - self.hold_epochs - 1
        falls = 1 + late // self.every_epochs if late >= 0 else 0
        return self.weight * self.factor**falls

    def mixed(
        self,
        main_B: Tensor,
        others: Sequence[Tensor],
        target_BST: Tensor,
        length_B: Tensor | None,
        epoch: int,
    ) -> Tensor:
        """Return the mixed loss of each example; `others` are estimates [B, S, T]."""
        weight = self.weight_at(epoch)
        losses = [self.loss(est, target_BST, length_B).loss_B for est in others]
        return (1 - weight) * main_B + weight * torch.stack(losses).mean(0)
