"""Separate signals of any length in overlapping chunks.

A separator returns its sources in any order, and the order may change from one chunk
to the next. Each chunk is therefore put into the order that agrees best with the
previous chunk over their overlap, and then cross-faded into it:

    order = argmax over permutations of  sum_j <previous_j, new_order(j)>

This order has the least squared difference. The products are not normalised: where
only one voice speaks, the other streams hold faint copies of it that correlate just as
well, and only the level tells them apart.

Shapes: B batch, S source, T sample, C sample of a chunk.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from modules.losses.si_snr import best_permutation, reorder


def separate_in_chunks(
    separator: Callable[[Tensor], Tensor],
    mix_BT: Tensor,
    chunk: int,
    overlap: int,
    batch_size: int = 1,
) -> Tensor:
    """Run a separator of [B, T] to [B, S, T] over long mixtures, piece by piece.

    All chunks have the same length: the last one is moved back to end with the signal,
    so that the separator never sees a short remainder. Its memory does not grow with T.
    Up to `chunk` samples the result is `separator(mix_BT)`. Neighbours share at least
    `overlap` samples, 0 < overlap < chunk. If all streams are silent over these, the
    separator's own order is kept: choose more than the pauses in the speech.

    The sources are in the order of the first chunk. Each call of the separator gets
    `batch_size` chunks (each a batch of B). A ValueError says which size is invalid.
    """
    if mix_BT.ndim != 2:
        raise ValueError(f"the mixture must be [B, T], got {tuple(mix_BT.shape)}")
    if not 0 < overlap < chunk:
        raise ValueError(f"need 0 < overlap < chunk, got {overlap=} and {chunk=}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    samples = mix_BT.shape[-1]
    if samples <= chunk:
        return _checked(separator, mix_BT)

    last = samples - chunk
    starts = [*range(0, last, chunk - overlap), last]
    est_BST: Tensor | None = None
    done = 0
    for start, new_BSC in _separated(separator, mix_BT, chunk, starts, batch_size):
        if est_BST is None:
            est_BST = new_BSC.new_empty((*new_BSC.shape[:2], samples))
        else:
            previous_BSC, shared = est_BST[..., start:done], done - start
            new_BSC = _in_order_of(previous_BSC, new_BSC)
            faded_BSC = _cross_fade(previous_BSC, new_BSC[..., :shared])
            new_BSC = torch.cat([faded_BSC, new_BSC[..., shared:]], dim=-1)
        done = start + chunk
        est_BST[..., start:done] = new_BSC
    assert est_BST is not None  # there are at least two chunks
    return est_BST


def _separated(
    separator: Callable[[Tensor], Tensor],
    mix_BT: Tensor,
    chunk: int,
    starts: list[int],
    batch_size: int,
) -> Iterator[tuple[int, Tensor]]:
    """Yield (start, estimates of the chunk), `batch_size` chunks per call."""
    for first in range(0, len(starts), batch_size):
        group = starts[first : first + batch_size]
        mix_BC = torch.cat([mix_BT[:, start : start + chunk] for start in group])
        est_BSC = _checked(separator, mix_BC)
        yield from zip(group, est_BSC.split(mix_BT.shape[0]), strict=True)


def _checked(separator: Callable[[Tensor], Tensor], mix_BT: Tensor) -> Tensor:
    """Return the separator's estimates; raise unless they have the right shape."""
    est_BST = separator(mix_BT)
    batch, samples = mix_BT.shape
    if est_BST.ndim != 3 or est_BST.shape[::2] != (batch, samples):
        raise ValueError(
            f"the separator must map {(batch, samples)} to [{batch}, S, {samples}], "
            f"got {tuple(est_BST.shape)}"
        )
    return est_BST


def _in_order_of(previous_BSC: Tensor, new_BSC: Tensor) -> Tensor:
    """Reorder the new sources to agree with the previous ones where both exist."""
    shared_BSC = new_BSC[..., : previous_BSC.shape[-1]]
    # cost[b, i, j]: new source i continuing stream j
    cost_BSS = -torch.einsum(
        "bic,bjc->bij", shared_BSC.detach().float(), previous_BSC.detach().float()
    )
    return reorder(new_BSC, best_permutation(cost_BSS))


def _cross_fade(old_BSC: Tensor, new_BSC: Tensor) -> Tensor:
    """Fade linearly, exactly where both sides are equal."""
    length = old_BSC.shape[-1]
    weight_C = torch.arange(1, length + 1, device=old_BSC.device) / (length + 1)
    return torch.lerp(old_BSC, new_BSC, weight_C.to(old_BSC.dtype))
