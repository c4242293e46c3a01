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

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from modules.losses.si_snr import best_permutation, reorder

# Returns the samples from a first one up to another, in the last dimension.
Read = Callable[[int, int], Tensor]


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
    samples = mix_BT.shape[-1]

    def read(start: int, stop: int) -> Tensor:
        return mix_BT[:, start:stop]

    sizes = samples, chunk, overlap, batch_size
    return joined(stream_chunks(separator, read, *sizes), samples)


def joined(pieces: Iterable[Tensor], samples: int) -> Tensor:
    """Return pieces of a stream as one tensor, with `samples` in its last dimension."""
    whole: Tensor | None = None
    done = 0
    for piece in pieces:
        if whole is None:
            whole = piece.new_empty((*piece.shape[:-1], samples))
        whole[..., done : done + piece.shape[-1]] = piece
        done += piece.shape[-1]
    assert whole is not None  # every stream has a piece
    return whole


def stream_chunks(
    separator: Callable[[Tensor], Tensor],
    read: Read,
    samples: int,
    chunk: int,
    overlap: int,
    batch_size: int = 1,
) -> Iterator[Tensor]:
    """Yield what `separate_in_chunks` returns, piece by piece.

    `read(start, stop)` returns these samples of the mixtures, `[B, T]`; its starts
    never go back. No more than the chunks of one call are held.
    """
    if not 0 < overlap < chunk:
        raise ValueError(f"need 0 < overlap < chunk, got {overlap=} and {chunk=}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if samples <= chunk:
        yield _checked(separator, read(0, samples))
        return
    last = samples - chunk
    starts = [*range(0, last, chunk - overlap), last]
    held_BSC: Tensor | None = None
    first = 0  # sample where the held chunk begins
    for start, new_BSC in _separated(separator, read, chunk, starts, batch_size):
        if held_BSC is not None:
            yield held_BSC[..., : start - first]
            previous_BSC = held_BSC[..., start - first :]
            shared = previous_BSC.shape[-1]
            new_BSC = in_order_of(previous_BSC, new_BSC)
            faded_BSC = _cross_fade(previous_BSC, new_BSC[..., :shared])
            new_BSC = torch.cat([faded_BSC, new_BSC[..., shared:]], dim=-1)
        held_BSC, first = new_BSC, start
    assert held_BSC is not None  # there are at least two chunks
    yield held_BSC


def _separated(
    separator: Callable[[Tensor], Tensor],
    read: Read,
    chunk: int,
    starts: list[int],
    batch_size: int,
) -> Iterator[tuple[int, Tensor]]:
    """Yield (start, estimates of the chunk), `batch_size` chunks per call."""
    for first in range(0, len(starts), batch_size):
        group = starts[first : first + batch_size]
        mix_BC = torch.cat([read(start, start + chunk) for start in group])
        est_BSC = _checked(separator, mix_BC)
        yield from zip(group, est_BSC.chunk(len(group)), strict=True)


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


def in_order_of(previous_BSC: Tensor, new_BSC: Tensor) -> Tensor:
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
