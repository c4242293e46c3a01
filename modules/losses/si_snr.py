"""Scale-invariant signal-to-noise ratio and permutation-invariant training.

SI-SNR (Le Roux et al., "SDR - half-baked or well done?", 2019; as a training loss
Luo & Mesgarani, 2019) splits a zero-mean estimate e into its projection on the
zero-mean target s and the rest:

    p = (<e, s> / <s, s>) s        SI-SNR = 10 log10( |p|^2 / |e - p|^2 )

PIT (Kolbaek et al., 2017) scores an example under the assignment of estimates to
targets that is best for that example.

Everything is one batched computation without a loop over examples and without a
transfer to the host. Only the first `length_B[b]` samples of example b are read.

Shapes: B batch, S source, T sample, P permutation. A pair matrix `x_BSS[b, i, j]`
holds estimate i against target j.
"""

from collections.abc import Callable
from functools import lru_cache
from itertools import permutations
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

# The score stays within +-100 dB. At 60 dB this costs 0.0004 dB of accuracy.
RATIO_FLOOR = 1e-10

# Estimates are told from silence down to this energy relative to the target's
# (-160 dB); it also bounds the gradient, which grows as 1 / |estimate|.
ESTIMATE_FLOOR = 1e-16

# Mean square below which a target counts as silent: -100 dB re full scale, below the
# dither of 16 bit audio (-101 dB for one bit toggling in 15 samples).
SILENCE = 1e-10

# 8! = 40 320 permutations; beyond that enumeration is the wrong method.
MAX_SOURCES = 8


#: A loss of all pairs of estimates and targets, see `pit`.
Measure: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class PITResult(NamedTuple):
    """The result of `pit_neg_si_snr`."""

    #: Mean negative SI-SNR in dB over the active sources.
    loss_B: Tensor
    #: `permutation_BS[b, j]` is the estimate assigned to target j (int64).
    permutation_BS: Tensor
    #: False where the target is silent (bool).
    active_BS: Tensor


def pairwise_neg_si_snr(
    est_BST: Tensor,
    target_BST: Tensor,
    length_B: Tensor | None = None,
    silence: float = SILENCE,
) -> Tensor:
    """Return the negative SI-SNR of every estimate against every target.

    Computed in float32 (float64 for float64 input), also under autocast.

    Arguments
    ---------
    est_BST, target_BST : Tensor
        Estimates and targets.
    length_B : Tensor | None
        Number of valid samples of each example (integers); None means all T.
    silence : float
        A target whose mean square, after removal of its mean, is at most this value
        is silent.

    Returns
    -------
    loss_BSS : Tensor
        `loss_BSS[b, i, j]` is the negative SI-SNR in dB (lower is better) of estimate
        i against target j, always within [-100, 100]:

        - a silent estimate costs 100 against an active target, with zero gradient;
        - a silent target costs 0 with zero gradient, whatever the estimate;
        - an example with a non-finite sample, in any of its estimates or targets,
          is NaN throughout, with zero gradient, and leaves the others alone.

    Raises
    ------
    ValueError
        Shapes differ, or lengths are not integers.
    """
    return _pair_losses(est_BST, target_BST, length_B, silence)[0]


def pit_neg_si_snr(
    est_BST: Tensor,
    target_BST: Tensor,
    length_B: Tensor | None = None,
    silence: float = SILENCE,
    floor: float | None = None,
) -> PITResult:
    """Return the negative SI-SNR of each example under its best permutation.

    Arguments and errors are those of `pairwise_neg_si_snr`; more than 8 sources are a
    ValueError as well. A loss of a source below `floor` dB counts as that, and gets no
    gradient. An example without any active source has loss 0, zero gradient
    and `active_BS` False throughout. A non-finite example has loss NaN and `active_BS`
    True throughout, so that it is never taken for a silent one.

    Example
    -------
    >>> target_BST = torch.tensor([[[1.0, -1.0, 1.0, -1.0], [1.0, 1.0, -1.0, -1.0]]])
    >>> est_BST = target_BST.flip(1) + 0.1 * target_BST
    >>> result = pit_neg_si_snr(est_BST, target_BST)
    >>> result.loss_B.round(decimals=3), result.permutation_BS
    (tensor([-20.]), tensor([[1, 0]]))
    """
    loss_BSS, active_BS = _pair_losses(est_BST, target_BST, length_B, silence)
    if floor is not None:
        loss_BSS = loss_BSS.clamp(min=floor)
    return _assigned(loss_BSS, active_BS)


def pit(
    measure: Measure,
    est_BST: Tensor,
    target_BST: Tensor,
    length_B: Tensor | None = None,
) -> PITResult:
    """Return another loss of each example under its best permutation.

    `measure(est_BST, target_BST, energy_B1S, count_B11)` returns the loss of all pairs
    [B, S, S] of zero-mean signals; the last two are the targets' mean energies (1 where
    they are silent) and the number of samples. Silent targets and examples that are not
    finite are treated as in `pit_neg_si_snr`.
    """
    return _assigned(*_pair_losses(est_BST, target_BST, length_B, SILENCE, measure))


def _assigned(loss_BSS: Tensor, active_BS: Tensor) -> PITResult:
    permutation_BS = best_permutation(loss_BSS.detach())
    # [b, 0, j] is the loss of the estimate that was assigned to target j.
    assigned_BS = loss_BSS.gather(1, permutation_BS.unsqueeze(1)).squeeze(1)
    loss_B = assigned_BS.sum(dim=1) / active_BS.sum(dim=1).clamp(min=1)
    return PITResult(loss_B, permutation_BS, active_BS)


def best_permutation(cost_BSS: Tensor) -> Tensor:
    """Assign rows to columns at the least total cost, by enumeration.

    `cost_BSS[b, i, j]` is the cost of giving row i to column j, and the result's [b, j]
    (int64) is the row given to column j. More than 8 sources are a ValueError.
    """
    sources = cost_BSS.shape[-1]
    table_PS = _permutation_table(sources, cost_BSS.device)
    columns_S = torch.arange(sources, device=cost_BSS.device)
    total_BP = cost_BSS[:, table_PS, columns_S].sum(dim=-1)
    return table_PS[total_BP.argmin(dim=1)]


def reorder(est_BST: Tensor, permutation_BS: Tensor) -> Tensor:
    """Put estimates in the order of the targets, by the permutation of a PITResult."""
    index_BST = permutation_BS.unsqueeze(-1).expand(-1, -1, est_BST.shape[-1])
    return est_BST.gather(1, index_BST)


def _pair_losses(
    est_BST: Tensor,
    target_BST: Tensor,
    length_B: Tensor | None,
    silence: float,
    measure: Measure | None = None,
) -> tuple[Tensor, Tensor]:
    """Return loss_BSS and active_BS, as the public functions describe them."""
    measure = measure or _neg_ratio_db
    _check(est_BST, target_BST, length_B)
    dtype = torch.promote_types(est_BST.dtype, target_BST.dtype)
    dtype = torch.promote_types(dtype, torch.float32)
    with torch.autocast(est_BST.device.type, enabled=False):
        est_BST, target_BST = est_BST.to(dtype), target_BST.to(dtype)
        valid_B1T, count_B11 = _valid(est_BST, length_B)
        # `where` and not a product: 0 * NaN is NaN.
        est_BST = torch.where(valid_B1T, est_BST, 0)
        target_BST = torch.where(valid_B1T, target_BST, 0)
        # A bad example is computed on zeros and marked at the end. NaNs would also
        # reach the gradient of a caller who masks this example's loss afterwards.
        finite_BST = est_BST.isfinite() & target_BST.isfinite()
        finite_B11 = finite_BST.all(dim=-1, keepdim=True).all(dim=1, keepdim=True)
        est_BST = torch.where(finite_B11, est_BST, 0)
        target_BST = torch.where(finite_B11, target_BST, 0)

        est_BST = _remove_mean(est_BST, valid_B1T, count_B11)
        target_BST = _remove_mean(target_BST, valid_B1T, count_B11)
        energy_BS = target_BST.square().sum(dim=-1) / count_B11.squeeze(-1)
        active_BS = energy_BS > silence
        # Division by 1 instead of 0 keeps silent columns finite until they are masked.
        scale_B1S = torch.where(active_BS, energy_BS, 1).unsqueeze(1)
        loss_BSS = measure(est_BST, target_BST, scale_B1S, count_B11)
        loss_BSS = torch.where(active_BS.unsqueeze(1), loss_BSS, 0)
        loss_BSS = torch.where(finite_B11, loss_BSS, torch.nan)
    return loss_BSS, active_BS | ~finite_B11.squeeze(-1)


def _neg_ratio_db(
    est_BST: Tensor, target_BST: Tensor, energy_B1S: Tensor, count_B11: Tensor
) -> Tensor:
    """Compute the formula at the top of the file for all pairs, on mean energies.

    The residual is formed sample by sample: |e|^2 - |p|^2 would cancel in float32 from
    about 40 dB on. Products are summed, not multiplied as matrices, because CUDA may
    round the inputs of a matrix product to TF32.
    """
    est_BS1T, target_B1ST = est_BST.unsqueeze(2), target_BST.unsqueeze(1)
    dot_BSS = (est_BS1T * target_B1ST).sum(dim=-1) / count_B11
    gain_BSS = dot_BSS / energy_B1S
    signal_BSS = gain_BSS * dot_BSS
    residual_BSST = est_BS1T - gain_BSS.unsqueeze(-1) * target_B1ST
    noise_BSS = residual_BSST.square().sum(dim=-1) / count_B11
    # Bounded by the two floors: signal 0 (or a silent estimate) gives the ratio
    # RATIO_FLOOR, noise 0 gives at most 1 / RATIO_FLOOR.
    noise_BSS = noise_BSS + ESTIMATE_FLOOR * energy_B1S
    ratio_BSS = (signal_BSS + RATIO_FLOOR * noise_BSS) / (
        noise_BSS + RATIO_FLOOR * signal_BSS
    )
    return -10 * torch.log10(ratio_BSS)


def _remove_mean(x_BST: Tensor, valid_B1T: Tensor, count_B11: Tensor) -> Tensor:
    """Subtract the mean over the valid samples; the rest stays 0."""
    mean_BS1 = x_BST.sum(dim=-1, keepdim=True) / count_B11
    return torch.where(valid_B1T, x_BST - mean_BS1, 0)


def _valid(x_BST: Tensor, length_B: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return a mask of the valid samples, and their number or 1 (it divides)."""
    batch, _, samples = x_BST.shape
    if length_B is None:
        length_B = torch.full((batch,), samples, device=x_BST.device)
    length_B11 = length_B.to(x_BST.device).view(batch, 1, 1)
    valid_B1T = torch.arange(samples, device=x_BST.device) < length_B11
    return valid_B1T, length_B11.clamp(1, max(samples, 1)).to(x_BST.dtype)


@lru_cache(maxsize=32)
def _permutation_table(sources: int, device: torch.device) -> Tensor:
    """Return all permutations of `sources` indices in lexicographic order, `[P, S]`."""
    if sources > MAX_SOURCES:
        raise ValueError(
            f"PIT over {sources} sources needs {sources}! permutations; "
            f"at most {MAX_SOURCES} sources are supported"
        )
    return torch.tensor(list(permutations(range(sources))), device=device)


def _check(est_BST: Tensor, target_BST: Tensor, length_B: Tensor | None) -> None:
    if est_BST.ndim != 3 or est_BST.shape != target_BST.shape:
        raise ValueError(
            "estimates and targets must both be [batch, source, sample], got "
            f"{tuple(est_BST.shape)} and {tuple(target_BST.shape)}"
        )
    if length_B is None:
        return
    if length_B.is_floating_point() or length_B.shape != est_BST.shape[:1]:
        raise ValueError(
            "length_B must hold one integer number of samples per example, got "
            f"{length_B.dtype} {tuple(length_B.shape)}; multiply relative lengths by T"
        )
