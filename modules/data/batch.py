"""Examples and batches.

The same classes carry speech, [B, T] and [B, S, T], and music, [B, C, T] and
[B, S, C, T], so the names `mix` and `src` have no shape in them.

Legend: B batch, S source, C channel, T sample.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from modules.audio.faults import LARGEST_PEAK


class ExampleKey(NamedTuple):
    """Which example is wanted; `counts` is False for one that only fills up a rank.

    Everything random in an example is a function of (seed, epoch, index), so that it is
    the same whatever the number of workers, ranks or restarts.
    """

    epoch: int
    index: int  # type: ignore[assignment] # hides tuple.index
    counts: bool = True

    @classmethod
    def of(cls, key: "ExampleKey | int") -> "ExampleKey":
        """Return the key; a bare index means epoch 0."""
        return key if isinstance(key, ExampleKey) else cls(0, key)


class Example(NamedTuple):
    """One mixture and its parts, all of length T: mix = sum of sources (+ noise).

    Sources that are not in the mixture as they are (anechoic targets) do not add up.
    `mix` is [T] or [C, T], `src` [S, T] or [S, C, T], `noise` like `mix`. `origins`
    names for each source what it was cut from, where that can differ from `id`. `note`
    goes into the log.
    """

    id: str
    mix: Tensor
    src: Tensor
    noise: Tensor | None = None
    origins: tuple[str, ...] = ()
    note: str = ""


@dataclass
class Batch:
    """Examples of one step; `counts_B` is False where an example must not be scored."""

    ids: list[str]
    mix: Tensor
    src: Tensor
    length_B: Tensor
    counts_B: Tensor
    origins: list[tuple[str, ...]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to(self, device: str | torch.device) -> "Batch":
        """Return the same batch with its tensors on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """Return the batch in pinned memory; the DataLoader calls this."""
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        names = ("mix", "src", "length_B", "counts_B")
        tensors: dict[str, Any] = {name: change(getattr(self, name)) for name in names}
        return replace(self, **tensors)

    def names(self, mask_B: Sequence[bool]) -> list[str]:
        """Return the ids of the examples that a mask picks."""
        return list(itertools.compress(self.ids, mask_B))

    def zero_nonfinite(self, largest_peak: float = LARGEST_PEAK) -> Tensor:
        """Silence, in place, examples with NaN, Inf or a sample of `largest_peak`.

        A masked loss is not enough: a NaN that went through the network reaches every
        weight as 0 * NaN. A sample of 1e25 is finite, but nothing made of it is.
        Returns the mask of the examples that were finite, shape [B].
        """
        within = []
        for wave in (self.mix, self.src):
            # A tenth of the time of `aminmax` or `isfinite`. A NaN makes both extremes
            # NaN, and then no comparison holds.
            low_B, high_B = wave.flatten(1).amin(1), wave.flatten(1).amax(1)
            within.append((low_B > -largest_peak) & (high_B < largest_peak))
        finite_B = within[0] & within[1]
        for name in ("mix", "src"):
            wave = getattr(self, name)
            mask = finite_B.view(-1, *[1] * (wave.dim() - 1))
            setattr(self, name, wave.where(mask, 0.0))
        return finite_B


def collate_crops(pairs: Sequence[tuple[Example, bool]]) -> Batch:
    """Cut every example to the shortest: training never sees padding.

    MossFormer2 and SepFormer normalise over time, so padding would change what they
    output for the audio itself.
    """
    length = min(example.mix.shape[-1] for example, _ in pairs)
    return _collate(pairs, [length] * len(pairs), length)


def collate_whole(pairs: Sequence[tuple[Example, bool]]) -> Batch:
    """Zero-pad to the longest, for evaluation, where `length_B` is obeyed."""
    lengths = [example.mix.shape[-1] for example, _ in pairs]
    return _collate(pairs, lengths, max(lengths))


Collate = Callable[[Sequence[tuple[Example, bool]]], Batch]


def _collate(
    pairs: Sequence[tuple[Example, bool]], lengths: list[int], room: int
) -> Batch:
    """Stack examples, each cut or padded with zeros to `room` samples."""

    def stack(waves: list[Tensor]) -> Tensor:
        return torch.stack([F.pad(w, (0, room - w.shape[-1])) for w in waves])

    return Batch(
        ids=[example.id for example, _ in pairs],
        mix=stack([example.mix for example, _ in pairs]),
        src=stack([example.src for example, _ in pairs]),
        length_B=torch.tensor(lengths),
        counts_B=torch.tensor([counts for _, counts in pairs]),
        origins=[example.origins for example, _ in pairs],
        notes=[example.note for example, counts in pairs if example.note and counts],
    )
