"""Separate a stream of audio by a network for speech or for music.

A network for music has a ``segment`` and is run as `songs.apply_model` runs it, with
the song brought to one level; any other takes `[B, T]` and is run as
`chunks.separate_in_chunks` does, each channel for itself.

Shapes: B batch, S source, C audio channel, T or t sample.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from modules.inference.chunks import in_order_of, stream_chunks
from modules.inference.songs import Cut, draw_offsets, measure_songs, stream_song

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


class Views(nn.Module):
    """Averages a network's estimates of a mixture and of its negative.

    Of stereo also those with the channels swapped (test-time augmentation). Talkers are
    put into the order of the first estimate.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        names = "segment", "sources", "sample_rate", "audio_channels", "song_level"
        for name in names:
            if hasattr(network, name):
                setattr(self, name, getattr(network, name))

    def forward(self, mix: Tensor) -> Tensor:
        """Separate mixtures [B, T] or [B, C, T]."""
        views = [self.network(mix), -self.network(-mix)]
        if mix.dim() == 3 and mix.shape[1] == 2:
            swapped = mix.flip(1)
            views += [self.network(swapped).flip(2), -self.network(-swapped).flip(2)]
        elif mix.dim() == 2:
            views[1] = in_order_of(*views)
        return torch.stack(views).mean(dim=0)


class SpeechBag(nn.Module):
    """Averages the estimates [B, S, T] of networks, in the order of the first one's.

    `weights` has a row for each network and a number for each source, as `songs.Bag`.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        weights: Sequence[Sequence[float]] | None = None,
    ) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)
        weight_NS = torch.tensor(weights or [[1.0]] * len(models))
        self.share_NS: Tensor
        self.register_buffer("share_NS", weight_NS / weight_NS.sum(dim=0))

    def forward(self, mix_BT: Tensor) -> Tensor:
        """Separate mixtures."""
        first_BST, *others = (model(mix_BT) for model in self.models)
        parts = [first_BST, *(in_order_of(first_BST, other) for other in others)]
        pairs = zip(parts, self.share_NS, strict=True)
        return sum(part_BST * share_S[:, None] for part_BST, share_S in pairs)


class Passes(NamedTuple):
    """How often and in which pieces a mixture is separated."""

    chunk: int
    batch_size: int = 1
    overlap: float = 0.25
    shifts: int = 0
    seed: int = 0


def separate_blocks(
    network: Any,
    blocks: Blocks,
    samples: int,
    passes: Passes,
    index: Sequence[int] | None = None,
) -> Iterator[Tensor]:
    """Yield the estimates [S, C, t] of a mixture of `samples`, piece by piece.

    `network` is in evaluation mode; the blocks have its rate, and channels as
    `channels_of` says. They are read again for every pass over music, and once for its
    level. Speech is cut into chunks of `chunk` samples, music into its network's
    segments; the next one repeats the share `overlap`, and `batch_size` of them make a
    call. Music is separated `shifts` times. `index` chooses sources.
    """
    if not hasattr(network, "segment"):
        shared = max(1, round(passes.chunk * passes.overlap))
        together = partial(_in_one_order, network, len(next(iter(blocks()))))
        sizes = samples, passes.chunk, shared, passes.batch_size
        for est_CSt in stream_chunks(together, Window(blocks()), *sizes):
            est_SCt = est_CSt.transpose(0, 1)
            yield est_SCt if index is None else est_SCt[index]
        return

    def batch() -> Iterator[Tensor]:
        single = getattr(network, "audio_channels", 2) == 1
        return (x[:, None] if single else x[None] for x in blocks())

    mean_B11, level_B11 = torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
    if getattr(network, "song_level", True):
        mean_B11, level_B11 = measure_songs(batch())

    def reader() -> Window:
        return Window((x_BCt - mean_B11) / level_B11 for x_BCt in batch())

    cut = Cut(passes.overlap, passes.batch_size)
    offsets = draw_offsets(network, passes.shifts, passes.seed)
    for est_BSCt in stream_song(network, reader, samples, cut, offsets, index):
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
