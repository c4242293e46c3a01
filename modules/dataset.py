"""From a manifest to batches: what is read, cropped, shuffled and shared out.

Everything random here is a function of (seed, epoch, index), so that an example is
the same whatever the number of workers, ranks or restarts. The sampler therefore
hands the data set an `ExampleKey`, not a bare index.

The same classes carry speech, [B, T] and [B, S, T], and music, [B, C, T] and
[B, S, C, T]: the fields `mix` and `src` therefore have no shape in their names.

Legend: B batch, S source, C channel, T sample.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from data_prep.faults import LARGEST_PEAK, SUM_TOLERANCE, distance_from_sum, sum_fault
from data_prep.manifest import DataError, Row
from modules.audio import (
    AudioError,
    change_speed,
    check_speeds,
    frames_before_speed,
    read_audio,
    refuse_fault,
)
from modules.randomness import numpy_rng
from modules.signals import ignore_in_worker

# Streams keep the draws of one (seed, epoch, index) apart from each other.
STREAM_ORDER, STREAM_CROP = 1, 2


class ExampleKey(NamedTuple):
    """Which example is wanted; `counts` is False for one that only fills up a rank."""

    epoch: int
    index: int
    counts: bool = True


class Example(NamedTuple):
    """One mixture and its parts, all of length T: mix = sum of sources (+ noise).

    Sources that are not in the mixture as they are (anechoic targets) do not add up.
    `mix` is [T] or [C, T], `src` [S, T] or [S, C, T], `noise` like `mix`. `origins`
    says for each source what it was cut from, where that can differ from `id`. `note`
    is what a log should say of the files.
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
        """The same batch with its tensors on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """Called by the DataLoader when `pin_memory=True`."""
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        names = ("mix", "src", "length_B", "counts_B")
        return replace(self, **{name: change(getattr(self, name)) for name in names})

    def names(self, mask_B: Tensor) -> list[str]:
        """Ids of the examples that a mask picks."""
        pairs = zip(self.ids, mask_B.tolist(), strict=True)
        return [name for name, is_picked in pairs if is_picked]

    def zero_nonfinite(self, largest_peak: float = LARGEST_PEAK) -> Tensor:
        """Silence, in place, every example that holds NaN, Inf or an absurd level.

        A masked loss is not enough: a NaN that went through the network reaches every
        weight as 0 * NaN. A sample of 1e25 is finite, but nothing made of it is.

        Arguments
        ---------
        largest_peak : float
            Samples at or beyond it count as not finite.

        Returns
        -------
        Tensor
            Mask of the examples that were finite, shape [B].
        """
        within = []
        for wave in (self.mix, self.src):
            # A tenth of the time of `aminmax` or `isfinite`. Where there is a NaN both
            # are, and no comparison holds.
            low_B, high_B = wave.flatten(1).amin(1), wave.flatten(1).amax(1)
            within.append((low_B > -largest_peak) & (high_B < largest_peak))
        finite_B = within[0] & within[1]
        for name in ("mix", "src"):
            wave = getattr(self, name)
            mask = finite_B.view(-1, *[1] * (wave.dim() - 1))
            setattr(self, name, wave.where(mask, 0.0))
        return finite_B


class ManifestDataset(Dataset):
    """Mixtures on disk: whole for evaluation, random crops for training.

    Arguments
    ---------
    rows : Sequence[Row]
        The manifest, as `data_prep.manifest.read_manifest` gives it.
    sample_rate : int
        In Hz; checked again at every read.
    segment_seconds : float | None
        Length of the random crop; None reads whole files. A shorter file is read
        whole.
    speed_changes : Sequence[int] | None
        Percentages, one drawn per source; the mixture is then the sum of the
        changed sources, or their images, and the noise. None leaves the files as
        they are.
    seed : int
        Together with (epoch, index) it decides every draw.
    check_sums : bool
        Raise an `AudioError` for a mixture that is not the sum of its sources (or
        images) and noise, in the stretch of the example. Images, and with
        `speed_changes` the mixture, are read for this alone, therefore in the first
        epoch only.
    strict : bool
        Raise one for NaN, Inf and absurd levels too, which the training step copes
        with: a score without such an example would not be that of the set.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        sample_rate: int,
        segment_seconds: float | None = None,
        speed_changes: Sequence[int] | None = None,
        seed: int = 0,
        check_sums: bool = True,
        strict: bool = False,
    ) -> None:
        check_speeds(speed_changes)
        self.rows = list(rows)
        self.sample_rate = sample_rate
        self.segment = segment_seconds and round(segment_seconds * sample_rate)
        self.speed_changes = speed_changes
        self.seed = seed
        self.check_sums = check_sums
        self.strict = strict

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: ExampleKey | int) -> Example:
        epoch, index = (
            (key.epoch, key.index) if isinstance(key, ExampleKey) else (0, key)
        )
        row = self.rows[index]
        rng = numpy_rng(self.seed, epoch, index, STREAM_CROP)
        speeds = [100] * len(row.sources)
        if self.speed_changes:
            speeds = [int(s) for s in rng.choice(self.speed_changes, len(speeds))]

        available = round(row.duration * self.sample_rate)
        shortest = min(available * 100 // max(speeds), available)
        length = min(self.segment or shortest, shortest)
        start = int(rng.integers(shortest - length + 1))

        def read(path: str, percent: int = 100) -> Tensor:
            first = start * percent // 100
            frames = min(frames_before_speed(length, percent), available - first)
            wave_T = read_audio(path, first, frames, self.sample_rate)
            if self.strict:
                refuse_fault(path, wave_T)
            return change_speed(wave_T, percent)[:length]

        def read_all(paths: Sequence[str], speeds: Sequence[int]) -> Tensor:
            pairs = zip(paths, speeds, strict=True)
            return torch.stack([read(path, speed) for path, speed in pairs])

        src_ST = read_all(row.sources, speeds)
        noise_T = read(row.noise) if row.noise else None
        if self.speed_changes:
            mix_T = (read_all(row.images, speeds) if row.images else src_ST).sum(0)
            mix_T = mix_T if noise_T is None else mix_T + noise_T
        else:
            mix_T = read(row.mixture)
        # What is not read anyway is read in the first epoch, to look at it once.
        if self.check_sums and (epoch <= 1 or not (self.speed_changes or row.images)):
            plain_ST = src_ST
            if self.speed_changes or row.images:
                plain_ST = read_all(row.images or row.sources, [100] * len(speeds))
            whole_T = read(row.mixture) if self.speed_changes else mix_T
            noise = () if noise_T is None else (noise_T.numpy(),)
            fault = odd_sum(row, whole_T.numpy(), *plain_ST.numpy(), *noise)
            if fault:
                raise AudioError(
                    f"{fault}; make it anew, or, for recordings and coded mixtures, "
                    "set --check_sums=False --speed_changes=null"
                )
        return Example(row.id, mix_T, src_ST, noise_T)


def odd_sum(row: Row, mixture: np.ndarray, *parts: np.ndarray) -> str:
    """That a mixture is not the sum of its parts, with its name; empty where it is.

    Arguments
    ---------
    row : Row
        Where the waves are from.
    mixture, *parts : np.ndarray
        [T] or [C, T], all the same. May be off by `data_prep.faults.SUM_TOLERANCE`;
        where a sample is not finite nothing is said: that is another fault.
    """
    distance = distance_from_sum(mixture, parts)
    if distance <= SUM_TOLERANCE:
        return ""
    peak = float(max(np.abs(wave).max() for wave in (mixture, *parts)))
    fault = sum_fault(row, distance, peak)
    return fault and f"{row.mixture}: {fault}"


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


class EpochSampler(Sampler):
    """Which examples this rank sees at each step of an epoch.

    The order is a permutation drawn from (seed, epoch); every global step takes the
    next `batch_size * world_size` of it and the ranks deal them out in turn, so their
    shares are disjoint and the union does not depend on how many ranks there are. The
    last step may be short: all ranks still take part, a rank with nothing left
    repeats an example that does not count.

    Arguments
    ---------
    num_examples : int
        Length of the data set.
    batch_size : int
        Per rank.
    rank, world_size : int
        This process and how many there are.
    shuffle : bool
        False keeps the order of the data set.
    seed : int
        Seed of the order.

    Example
    -------
    >>> sampler = EpochSampler(5, batch_size=2, rank=1, world_size=2, shuffle=False)
    >>> [[(key.index, key.counts) for key in batch] for batch in sampler]
    [[(1, True), (3, True)], [(4, False)]]
    """

    def __init__(
        self,
        num_examples: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
        seed: int = 0,
    ) -> None:
        if num_examples < 1:
            raise ValueError("the data set is empty: there is nothing to sample")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        self.num_examples = num_examples
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0
        self.first_step = 0

    def set_position(self, epoch: int, first_step: int = 0) -> None:
        """Start the next iteration in `epoch` after `first_step` steps already done."""
        self.epoch = epoch
        self.first_step = first_step

    @property
    def steps_per_epoch(self) -> int:
        """Steps of a whole epoch, the same on every rank."""
        return -(-self.num_examples // (self.batch_size * self.world_size))

    def __len__(self) -> int:
        return self.steps_per_epoch - self.first_step

    def __iter__(self) -> Iterator[list[ExampleKey]]:
        order = range(self.num_examples)
        if self.shuffle:
            rng = numpy_rng(self.seed, self.epoch, STREAM_ORDER)
            order = rng.permutation(self.num_examples).tolist()
        stride = self.batch_size * self.world_size
        for step in range(self.first_step, self.steps_per_epoch):
            shared = order[step * stride : (step + 1) * stride]
            mine = shared[self.rank :: self.world_size]
            if mine:
                yield [ExampleKey(self.epoch, index) for index in mine]
            else:
                yield [ExampleKey(self.epoch, shared[-1], counts=False)]


class _WithCounts(Dataset):
    """Carries `ExampleKey.counts` past the data set to the collate function.

    And an error that explains itself, which torch would wrap into a worker's traceback.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitem__(
        self, key: ExampleKey
    ) -> tuple[Example | AudioError | DataError, bool]:
        try:
            return self.dataset[key], key.counts
        except (AudioError, DataError) as error:
            return error, key.counts


class _Collate:
    """A collate function that passes the first error on as the batch."""

    def __init__(self, collate: Collate) -> None:
        self.collate = collate

    def __call__(
        self, pairs: Sequence[tuple[Example | Exception, bool]]
    ) -> Batch | Exception:
        errors = [first for first, _ in pairs if isinstance(first, Exception)]
        return errors[0] if errors else self.collate(pairs)


class _Loader(DataLoader):
    """Raises in this process the errors that the workers pass on."""

    def __iter__(self) -> Iterator[Batch]:
        for batch in super().__iter__():
            if isinstance(batch, Exception):
                raise batch
            yield batch


def make_loader(
    dataset: Dataset,
    sampler: EpochSampler,
    collate: Collate,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader:
    """A DataLoader whose `batch_sampler` is the given `EpochSampler`.

    An `AudioError` or `DataError` of the data set is raised as it is, from whichever
    process.
    """
    return _Loader(
        _WithCounts(dataset),
        batch_sampler=sampler,
        collate_fn=_Collate(collate),
        num_workers=num_workers,
        pin_memory=pin_memory,
        worker_init_fn=ignore_in_worker,
    )
