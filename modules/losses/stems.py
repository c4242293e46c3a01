"""Losses of stems of music, and their weighted sum.

Each function returns the loss of every stem of every example, lower is better, from the
error of the estimates, est - target: the spectrogram of the error is the error of the
spectrogram. Gradients are finite everywhere, at silence and at the target too.

Legend: B batch, S source, C channel, T sample, N frame, F frequency bin, X any.
"""

from dataclasses import astuple, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.interpolate import CubicSpline
from torch import Tensor

WINDOWS, HOP, N_FFT = (4096, 2048, 1024, 512, 256), 147, 2048  # of `mrstft`
FRAME, BLOCK = 4096, 1024  # of `spec_rmse`
EPS = 1e-3  # of `l1_snr`; of `neg_snr` its square

#: How sensitive hearing is by frequency in Hz, in dB: read off the filter of
#: log-wmse-audio-quality 0.2.0.
HEARING: dict[float, float] = {
    **{10: -43.01, 20: -30.97, 31.5: -23.18, 50: -15.39, 80: -7.76, 125: -2.51},
    **{160: -0.94, 200: -0.11, 250: 0.49, 315: 1.14, 400: 2.01, 500: 2.53, 630: 2.13},
    **{800: 1.55, 1000: 1.49, 1250: 1.97, 1600: 2.9, 2000: 3.69, 2500: 4.14},
    **{3150: 4.23, 4000: 4.0, 5000: 3.51, 6300: 2.65, 8000: 1.2, 10000: -1.01},
    **{12500: -4.67, 14000: -7.48, 16000: -12.3, 18000: -19.18, 20000: -30.94},
}


def mrstft(error_BSCT: Tensor) -> Tensor:
    """Return the sum over five windows of mean |STFT(est) - STFT(target)|, complex.

    As the code of BS-RoFormer has it (Lu et al., arXiv 2309.02612): Hann windows of
    4096 to 256 samples, 147 apart, in transforms of 2048 or more.
    """
    return torch.stack([_ComplexL1.apply(error_SCT) for error_SCT in error_BSCT])


class _ComplexL1(torch.autograd.Function):
    """Keeps an example's gradient for the backward, not its many spectrograms."""

    @staticmethod
    def forward(ctx: Any, error_SCT: Tensor) -> Tensor:
        losses, slopes = zip(*(_complex_l1(error_SCT, w) for w in WINDOWS), strict=True)
        ctx.save_for_backward(torch.stack(slopes).sum(0))
        return torch.stack(losses).sum(0)

    @staticmethod
    def backward(ctx: Any, *above_S: Tensor) -> Tensor:
        return ctx.saved_tensors[0] * above_S[0][:, None, None]


def _complex_l1(error_SCT: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Return mean |STFT| and its gradient; where frames lie in it is a phase alone."""
    size = max(window, N_FFT)
    hann_T = torch.hann_window(window, device=error_SCT.device)
    with torch.enable_grad():
        own_SCT = error_SCT.detach().requires_grad_()
        framed_SCNT = _padded(own_SCT, window).unfold(-1, window, HOP)
    slope_SCNF = torch.fft.rfft(framed_SCNT.detach() * hann_T, n=size)
    length_SCNF = slope_SCNF.abs()
    slope_SCNF /= length_SCNF.clamp(min=torch.finfo(length_SCNF.dtype).tiny)
    slope_SCNF[..., 1:-1] /= 2  # which the inverse transform counts twice
    slope_SCNT = torch.fft.irfft(slope_SCNF, n=size)[..., :window] * hann_T
    slope_SCNT *= size / length_SCNF[0].numel()
    slopes = torch.autograd.grad(framed_SCNT, own_SCT, slope_SCNT)
    return length_SCNF.mean((1, 2, 3)), slopes[0]


def _padded(x_SCT: Tensor, frame: int) -> Tensor:
    """Reflect half a frame at both ends; a shorter signal gets zeros first."""
    missing = max(0, frame // 2 + 1 - x_SCT.shape[-1])
    x_SCT = F.pad(x_SCT, (0, missing)) if missing else x_SCT
    return F.pad(x_SCT, (frame // 2, frame // 2), mode="reflect")


def spec_rmse(error_BSCT: Tensor) -> Tensor:
    """Return the root of the mean squared error of complex spectrograms.

    As in SCNet (Tong et al., arXiv 2401.13276): frames of 4096 samples, 1024 apart, no
    window, over sqrt(4096); the mean is over C, F, N, real and imaginary part.

    By Parseval's theorem the samples of a frame have its energy: no transform is needed
    but of the first and the last bin, which have no mirror image.
    """
    padded_XT = _padded(error_BSCT.flatten(0, 1), FRAME)
    count = padded_XT.shape[-1] // BLOCK
    block_XNT = padded_XT[..., : count * BLOCK].unflatten(-1, (count, BLOCK))
    even_XN, odd_XN = block_XNT[..., ::2].sum(-1), block_XNT[..., 1::2].sum(-1)
    sums = [block_XNT.square().sum(-1), even_XN + odd_XN, even_XN - odd_XN]
    framed = torch.stack(sums).unfold(-1, FRAME // BLOCK, 1)
    energy_XN, low_XN, high_XN = framed.sum(-1)
    energy_XN = energy_XN + (low_XN.square() + high_XN.square()) / FRAME
    mean_X = energy_XN.mean((1, 2)) / (2 * (FRAME + 2))
    return mean_X.clamp(min=1e-12).sqrt().unflatten(0, error_BSCT.shape[:2])


def neg_snr(error_BSCT: Tensor, target_BSCT: Tensor) -> Tensor:
    """Return the negative SNR in dB (Le Roux et al., arXiv 1811.02508).

    With means of squares: 10 log10((|est - target|^2 + 1e-6) / (|target|^2 + 1e-6)).
    """
    return _ratio_db(error_BSCT.square(), target_BSCT.square(), EPS**2)


def l1_snr(error_BSCT: Tensor, target_BSCT: Tensor) -> Tensor:
    """Return the loss L1SNR (Watcharasupat et al., arXiv 2309.02539).

    With absolute means: 10 log10((|est - target| + 1e-3) / (|target| + 1e-3)).
    """
    return _ratio_db(error_BSCT.abs(), target_BSCT.abs(), EPS)


def _ratio_db(error_BSCT: Tensor, target_BSCT: Tensor, eps: float) -> Tensor:
    above_BS, below_BS = error_BSCT.mean((2, 3)) + eps, target_BSCT.mean((2, 3)) + eps
    return 10 * torch.log10(above_BS / below_BS)


def neg_log_wmse(error_BSCT: Tensor, mix_BCT: Tensor, sample_rate: int) -> Tensor:
    """Return the negative logWMSE of Nomono's package of that name, at least -73.7.

    With means of squares, and h that weighs frequencies as hearing does (without the
    package's gate at -68 dB, which has no gradient):

        mean over C of 4 ln(|h * (est - target)|^2 / |h * mix|^2 + 1e-8)
    """
    level_BC = _heard(mix_BCT, sample_rate).clamp(min=1e-16)
    ratio_BSC = _heard(error_BSCT, sample_rate) / level_BC[:, None]
    return 4 * torch.log(ratio_BSC + 1e-8).mean(2)


def _heard(x_XT: Tensor, sample_rate: int) -> Tensor:
    """Return the weighted mean square, by Parseval's theorem."""
    size = -(-x_XT.shape[-1] // BLOCK) * BLOCK  # quick to transform
    power_XF = torch.view_as_real(torch.fft.rfft(x_XT, n=size)).square().sum(-1)
    heard_X = (power_XF * _hearing(size, sample_rate, x_XT.device)).sum(-1)
    return heard_X / x_XT.shape[-1]


@lru_cache(maxsize=4)
def _hearing(size: int, sample_rate: int, device: torch.device) -> Tensor:
    """Return what the power of each bin counts in the energy, for an even size."""
    hz_F = np.linspace(0, sample_rate / 2, size // 2 + 1)
    curve = CubicSpline(np.log([*HEARING]), [*HEARING.values()])
    db_F = curve(np.log(hz_F.clip(min(HEARING), max(HEARING))))
    power_F = 2 * 10 ** (db_F / 10) / size
    power_F[[0, -1]] *= 0, 0.5  # the last bin has no mirror image
    return torch.tensor(power_F, dtype=torch.float32, device=device)


@dataclass(frozen=True)
class StemLosses:
    """The sum of these losses and L1, by weight: unreduced [B, S], in float32.

    The weights are 0 or more, not all 0 (else a ValueError); 0 leaves a loss out. L1 is
    the mean of |est - target|, as in demucs (Defossez, arXiv 2111.03600).

    >>> target_BSCT = torch.ones(1, 1, 2, 100)
    >>> loss = StemLosses(sample_rate=44100, l1=1, snr=0.1)
    >>> loss(0.5 * target_BSCT, target_BSCT, mix_BCT=target_BSCT[0]).round(decimals=3)
    tensor([[-0.1020]])
    """

    sample_rate: int
    l1: float = 1.0
    mrstft: float = 0.0
    spec_rmse: float = 0.0
    snr: float = 0.0
    log_wmse: float = 0.0
    l1_snr: float = 0.0

    def __post_init__(self) -> None:
        _, *weights = astuple(self)
        if min(weights) < 0 or not any(weights):
            raise ValueError(f"{self}: give weights of 0 or more, not only 0")

    @property
    def is_relative(self) -> bool:
        """Whether a loss in the sum is relative to a level."""
        return any((self.snr, self.log_wmse, self.l1_snr))

    def __call__(
        self, est_BSCT: Tensor, target_BSCT: Tensor, mix_BCT: Tensor
    ) -> Tensor:
        """Return the sum for each stem of each example."""
        rate, error_BSCT = self.sample_rate, est_BSCT.float() - target_BSCT
        parts = [
            (self.l1, lambda: error_BSCT.abs().mean((2, 3))),
            (self.mrstft, lambda: mrstft(error_BSCT)),
            (self.spec_rmse, lambda: spec_rmse(error_BSCT)),
            (self.snr, lambda: neg_snr(error_BSCT, target_BSCT)),
            (self.log_wmse, lambda: neg_log_wmse(error_BSCT, mix_BCT, rate)),
            (self.l1_snr, lambda: l1_snr(error_BSCT, target_BSCT)),
        ]
        return torch.stack([weight * part() for weight, part in parts if weight]).sum(0)
