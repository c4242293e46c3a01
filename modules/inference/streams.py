"""Separate a stream of audio by a network for speech or for music.

A network for music has a ``segment`` and is run as `songs.apply_model` runs it, with
the song brought to one level; any other takes `[B, T]` and is run as
`chunks.separate_in_chunks` does, each channel for itself.

Shapes: B batch, S source, C audio channel, T or t sample.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from modules.inference.chunks import in_order_of, stream_chunks
from modules.inference.songs import measure_songs, stream_song

# Gives the blocks [C, t] of a mixture, from the beginning at every call.
Blocks = Callable[[], Iterable[Tensor]]


class Window:
    """Reads samples `[start, stop)` of a stream whose blocks [..., t] come in order.

    Starts never go back: what lies before the last one is forgotten.
    """

    def __init__(self, blocks: Iterable[Tensor]) -> None:
        self.blocks, self.first = iter(blocks), 0
        self.held_t: Tensor | None = None

    def __call__(self, start: int, stop: int) -> Tensor:
        if self.held_t is None:
            self.held_t = next(self.blocks)
        while self.first + self.held_t.shape[-1] < stop:
            passed = min(max(0, start - self.first), self.held_t.shape[-1])
            self.first += passed
            parts = self.held_t[..., passed:], next(self.blocks)
            self.held_t = torch.cat(parts, dim=-1)
        return self.held_t[..., start - self.first : stop - self.first]


def channels_of(network: nn.Module, channels: int) -> int:
    """Return how many channels the network takes of a mixture with as many channels."""
    if not hasattr(network, "segment"):
        return channels  # each for itself
    own = getattr(network, "audio_channels", channels)
    return channels if own == 1 else own


def separate_blocks(
    network: Any,
    blocks: Blocks,
    samples: int,
    chunk: int,
    overlap: float,
    batch_size: int,
) -> Iterator[Tensor]:
    """Yield the estimates [S, C, t] of a mixture of `samples`, piece by piece.

    `network` is in evaluation mode; the blocks have its rate, and channels as
    `channels_of` says. They are read twice for music, first for the song's level.
    Speech is cut into chunks of `chunk` samples, music into its network's segments; the
    next one repeats the share `overlap`, and `batch_size` of them make a call.
    """
    if not hasattr(network, "segment"):
        shared = max(1, round(chunk * overlap))
        together = partial(_in_one_order, network, len(next(iter(blocks()))))
        read = Window(blocks())
        pieces = stream_chunks(together, read, samples, chunk, shared, batch_size)
        yield from (est_CSt.transpose(0, 1) for est_CSt in pieces)
        return

    def batch() -> Iterator[Tensor]:
        single = getattr(network, "audio_channels", 2) == 1
        return (x[:, None] if single else x[None] for x in blocks())

    mean_B11, level_B11 = measure_songs(batch())
    read = Window((x_BCt - mean_B11) / level_B11 for x_BCt in batch())
    for est_BSCt in stream_song(network, read, samples, overlap, batch_size):
        est_BSCt = est_BSCt * level_B11[:, None] + mean_B11[:, None]
        # One example of several channels, or several of one channel.
        yield est_BSCt[0] if len(est_BSCt) == 1 else est_BSCt[:, :, 0].transpose(0, 1)


def _in_one_order(network: nn.Module, channels: int, mix_BT: Tensor) -> Tensor:
    """Separate mixtures; each `channels` of them get the order of their first."""
    device = next((p.device for p in network.parameters()), mix_BT.device)
    est_BST = network(mix_BT.to(device)).to(mix_BT.device)
    est_XCST = est_BST.unflatten(0, (-1, channels))
    first_BST = est_XCST[:, :1].expand_as(est_XCST).flatten(0, 1)
    return in_order_of(first_BST, est_BST) if channels > 1 else est_BST
