"""Separate whole songs with a model that was trained on segments of them.

As in ``demucs.apply.apply_model``, a song is cut into segments that overlap, each is
separated, and the estimates are averaged with triangular weights, so that one fades
into the next. A short segment at the end is filled up with the samples before it.

A song can be separated several times, moved by a random time each, and the estimates
averaged (the *shift trick*: a model's output depends a little on where a sound begins).

A model has ``sources`` (names), ``sample_rate`` and ``segment`` (seconds), and maps
`[B, C, T]` to `[B, S, C, T]`, such as `modules.models.htdemucs.HTDemucs`.

Shapes: B batch, S source, C audio channel, T sample, M sample of a segment, N model.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.inference.chunks import Read, joined
from modules.runtime.randomness import numpy_rng
from modules.runtime.tensors import song_level

MAX_SHIFT_SECONDS = 0.5


class SongModel(nn.Module):
    """A separator of songs as type checkers see it; no model need inherit from it."""

    sources: Sequence[str]
    sample_rate: int
    segment: float | Fraction


class Bag(nn.Module):
    """Models of the same sources that share the work, weighted for each source.

    `weights` has a row for each model and a column for each source, not negative; None
    makes all equal. The identity matrix takes each source from its own model. A
    ValueError says which models or weights do not fit.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        weights: Sequence[Sequence[float]] | None = None,
    ) -> None:
        super().__init__()
        if not models:
            raise ValueError("a bag needs at least one model")
        first: Any = models[0]
        for name in ("sources", "sample_rate"):
            own, *others = (getattr(model, name) for model in models)
            if other := [value for value in others if value != own]:
                raise ValueError(f"models of a bag differ in {name}: {own}, {other[0]}")
        if weights is None:
            weights = [[1.0] * len(first.sources) for _ in models]
        if [len(row) for row in weights] != [len(first.sources)] * len(models):
            raise ValueError(
                f"weights must have {len(models)} rows (models) of "
                f"{len(first.sources)} numbers (sources), got {weights}"
            )
        self.models = nn.ModuleList(models)
        self.weights = [[float(value) for value in row] for row in weights]
        self.sources = first.sources
        self.song_level = any(getattr(model, "song_level", True) for model in models)
        self.sample_rate, self.segment = first.sample_rate, first.segment
        self.audio_channels = getattr(first, "audio_channels", 2)
        columns = zip(*self.weights, strict=True)
        for name, column in zip(self.sources, columns, strict=True):
            if not (min(column) >= 0 and 0 < sum(column) < float("inf")):
                raise ValueError(f"weights of {name} must be >= 0, not all 0: {column}")


@torch.no_grad()
def apply_model(
    model: nn.Module,
    mixture_BCT: Tensor,
    *,
    shifts: int = 1,
    overlap: float = 0.25,
    batch_size: int = 1,
    normalize: bool = False,
    seed: int = 0,
    offsets: Sequence[int] | None = None,
) -> Tensor:
    """Separate songs [B, C, T] of any length into ``model.sources``: [B, S, C, T].

    The model, or each of a `Bag`, runs in evaluation mode and without gradients; its
    mode is restored in the end. Segments are computed on its device. Mixture and
    estimates stay on the mixture's device, so that a GPU never holds a whole song. A
    ValueError names an argument that is out of range.

    `overlap` is the share of a segment that the next repeats, 0 <= overlap < 1. Each
    call of the model gets `batch_size` segments (each a batch of B).

    `shifts` separations are averaged, each moved by a random time of up to half a
    second; 0 is one that is not moved. The times are drawn by `seed`, unless `offsets`
    gives them in samples: `shifts` numbers for each model of a bag, one model after the
    other.

    `normalize` brings each song to the level of `song_level` first and undoes it in the
    end, as demucs' command line does.
    """
    bag: Any = model if isinstance(model, Bag) else Bag([model])
    max_shift = int(MAX_SHIFT_SECONDS * bag.sample_rate)
    if mixture_BCT.dim() != 3 or mixture_BCT.shape[-1] == 0:
        raise ValueError(
            "the mixture must be [batch, channels, samples >= 1], got "
            f"{list(mixture_BCT.shape)}"
        )
    for name, value, low in (("shifts", shifts, 0), ("batch_size", batch_size, 1)):
        if not value >= low:
            raise ValueError(f"{name} must be at least {low}, got {value}")
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap must be in [0, 1), got {overlap}")
    if offsets is None:
        offsets = draw_offsets(bag, shifts, seed)
    draws = len(bag.models) * shifts
    if len(offsets) != draws or not all(0 <= o <= max_shift for o in offsets):
        raise ValueError(f"offsets must be {draws} numbers in 0..{max_shift}")
    song_BCT = mixture_BCT
    if normalize:
        mean_B11, level_B11 = measure_songs([mixture_BCT])
        song_BCT = (mixture_BCT - mean_B11) / level_B11

    def read(start: int, stop: int) -> Tensor:
        return song_BCT[..., start:stop]

    cut = Cut(overlap, batch_size)
    samples, modes = mixture_BCT.shape[-1], [one.training for one in bag.models]
    try:
        bag.models.eval()
        pieces = stream_song(bag, lambda: read, samples, cut, offsets)
        estimate_BSCT = joined(pieces, samples)
    finally:
        for one, mode in zip(bag.models, modes, strict=True):
            one.train(mode)
    if normalize:
        estimate_BSCT.mul_(level_B11[:, None]).add_(mean_B11[:, None])
    return estimate_BSCT


def draw_offsets(bag: Any, shifts: int, seed: int) -> list[int]:
    """Draw `shifts` times for each model of a bag, in samples: the same for any song.

    `apply_model` moves the songs of a test by them, and `separate.py` its files.
    """
    high = int(MAX_SHIFT_SECONDS * bag.sample_rate) + 1
    draws = shifts * len(getattr(bag, "models", [bag]))
    return numpy_rng(seed).integers(0, high, draws).tolist()


def measure_songs(blocks: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the mean and the `song_level` of songs in blocks [B, C, t]: [B, 1, 1]."""
    count, sum_B11 = 0, torch.zeros(())
    mono_B11, power_B11 = torch.zeros(2)
    for block_BCt in blocks:
        block_BCt = block_BCt.double()
        mono_B1t = block_BCt.mean(dim=1, keepdim=True)
        count += mono_B1t.shape[-1]
        sum_B11 = sum_B11 + mono_B1t.sum(dim=-1, keepdim=True)
        mono_B11 = mono_B11 + mono_B1t.square().sum(dim=-1, keepdim=True)
        power_B11 = power_B11 + block_BCt.square().mean(1, True).sum(-1, True)
    mean_B11 = sum_B11 / count
    level_B11 = 1e-8 + song_level(count, mean_B11, mono_B11, power_B11)
    return mean_B11.float(), level_B11.float()


class Cut(NamedTuple):
    """How a song is cut into segments; see `apply_model`."""

    overlap: float = 0.25
    batch_size: int = 1


@torch.no_grad()
def stream_song(
    model: Any,
    reader: Callable[[], Read],
    samples: int,
    cut: Cut,
    offsets: Sequence[int] = (),
    index: Sequence[int] | None = None,
) -> Iterator[Tensor]:
    """Yield what `apply_model` returns, piece by piece.

    `reader()` begins to read the songs: it returns a function of (start, stop) that
    gives these samples, `[B, C, T]`, and whose starts never go back. `index` chooses
    sources; a model of a bag that they give no weight does not run. No more than the
    segments of one call are held for each model and offset. The mode of the models is
    left as it is.
    """
    bag: Any = model if isinstance(model, Bag) else Bag([model])
    chosen = list(range(len(bag.sources)) if index is None else index)
    max_shift = int(MAX_SHIFT_SECONDS * bag.sample_rate)
    shifts = len(offsets) // len(bag.models)
    share_NS = torch.tensor(bag.weights)[:, chosen]
    share_NS = share_NS / share_NS.sum(dim=0)
    streams, shares = [], []
    for number, single in enumerate(bag.models):
        own = offsets[number * shifts : (number + 1) * shifts]
        early = [max_shift - offset for offset in own] or [0]
        for samples_early in early if share_NS[number].any() else ():
            sizes = samples, samples_early, cut, chosen
            streams.append(_moved(single, reader(), *sizes))
            shares.append(share_NS[number, :, None, None] / len(early))
    for parts in _in_step(streams):
        pairs = zip(parts, shares, strict=True)
        weighted = (part_BSCt * share.to(part_BSCt) for part_BSCt, share in pairs)
        yield functools.reduce(Tensor.add_, weighted)


def _in_step(streams: Sequence[Iterator[Tensor]]) -> Iterator[list[Tensor]]:
    """Yield pieces of several streams that cover the same samples."""
    held: list[Any] = [next(stream, None) for stream in streams]
    while all(part is not None for part in held):
        length = min(part.shape[-1] for part in held)
        yield [part[..., :length] for part in held]
        for number, stream in enumerate(streams):
            rest = held[number][..., length:]
            held[number] = rest if rest.shape[-1] else next(stream, None)


def _moved(
    model: Any, read: Read, samples: int, early: int, cut: Cut, index: list[int]
) -> Iterator[Tensor]:
    """Separate a song whose first segment begins `early` samples before it."""

    def moved(start: int, stop: int) -> Tensor:
        return read(start - early, stop - early)

    bounds, ahead = (early, early + samples), early
    for piece_BSCt in _stream(model, moved, bounds, samples + early, cut, index):
        skipped = min(ahead, piece_BSCt.shape[-1])
        ahead -= skipped
        if skipped < piece_BSCt.shape[-1]:
            yield piece_BSCt[..., skipped:]


def _stream(
    model: Any,
    read: Read,
    bounds: tuple[int, int],
    samples: int,
    cut: Cut,
    index: list[int],
) -> Iterator[Tensor]:
    """Yield the estimates of samples 0 to `samples`, as soon as they are complete.

    `bounds` are the first and the last sample that can be read, plus one; `index` says
    of which sources.
    """
    length = int(model.sample_rate * model.segment)
    stride = int((1 - cut.overlap) * length)
    if stride < 1:
        raise ValueError(
            f"segments of {length} samples leave no step at overlap={cut.overlap}"
        )
    sum_BSCM: Tensor | None = None  # of the samples from the next segment's first on
    starts = range(0, samples, stride)
    pieces = [(start, min(length, samples - start)) for start in starts]
    segments = _segments(model, read, bounds, pieces, length, cut.batch_size)
    for new_BSCM in (all_BSCM[:, index] for all_BSCM in segments):
        covered = new_BSCM.shape[-1]
        if sum_BSCM is None:
            weight_M = _triangle(length, new_BSCM.device)
            total_M = weight_M.new_zeros(0)
            sum_BSCM = new_BSCM.new_zeros((*new_BSCM.shape[:-1], 0))
        missing = (0, covered - len(total_M))
        sum_BSCM, total_M = F.pad(sum_BSCM, missing), F.pad(total_M, missing)
        sum_BSCM += weight_M[:covered] * new_BSCM
        total_M += weight_M[:covered]
        # No later segment reaches back before its own start.
        yield sum_BSCM[..., :stride] / total_M[:stride]
        sum_BSCM, total_M = sum_BSCM[..., stride:], total_M[stride:]


def _segments(
    model: nn.Module,
    read: Read,
    bounds: tuple[int, int],
    pieces: list[tuple[int, int]],
    length: int,
    batch_size: int,
) -> Iterator[Tensor]:
    """Yield the estimates of the pieces (first sample, samples), as long as these."""
    device = next((p.device for p in model.parameters()), None)
    for index in range(0, len(pieces), batch_size):
        group = pieces[index : index + batch_size]
        segments_BCM = torch.cat(
            [_with_context(read, bounds, *piece, length) for piece in group]
        )
        estimate_BSCM = model(segments_BCM.to(device)).to(segments_BCM.device)
        parts = estimate_BSCM.chunk(len(group))
        for (_, samples), part_BSCM in zip(group, parts, strict=True):
            before = (length - samples) // 2
            yield part_BSCM[..., before : before + samples]


def _with_context(
    read: Read, bounds: tuple[int, int], first: int, samples: int, length: int
) -> Tensor:
    """A piece in the middle of `length` samples of the song, zeros beyond its ends."""
    start = first - (length - samples) // 2
    first = min(max(bounds[0], start), start + length)
    stop = max(first, min(bounds[1], start + length))
    return F.pad(read(first, stop), (first - start, start + length - stop))


def _triangle(length: int, device: torch.device) -> Tensor:
    """Return weights [M] that rise to 1 in the middle and fall again."""
    half = length // 2
    rising = torch.arange(1, half + 1, device=device)
    falling = torch.arange(length - half, 0, -1, device=device)
    weight_M = torch.cat([rising, falling])
    return weight_M / weight_M.max()
