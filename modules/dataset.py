"""From a manifest to batches: what is read, cropped, shuffled and shared out.

Everything random here is a function of (seed, epoch, index), so that an example is
the same whatever the number of workers, ranks or restarts. The sampler therefore
hands the data set an `ExampleKey`, not a bare index.

Legend: B batch, S source, T sample.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from data_prep.manifest import Row
from modules.audio import change_speed, frames_before_speed, read_audio
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
    """One mixture and its parts, all of length T: mix = sum of sources (+ noise)."""

    id: str
    mix_T: Tensor
    src_ST: Tensor
    noise_T: Tensor | None = None


@dataclass
class Batch:
    """Examples of one step; `counts_B` is False where an example must not be scored."""

    ids: list[str]
    mix_BT: Tensor
    src_BST: Tensor
    length_B: Tensor
    counts_B: Tensor

    def to(self, device: str | torch.device) -> "Batch":
        """The same batch with its tensors on `device`."""
        move = {"device": device, "non_blocking": True}
        return Batch(
            self.ids,
            self.mix_BT.to(**move),
            self.src_BST.to(**move),
            self.length_B.to(**move),
            self.counts_B.to(**move),
        )

    def pin_memory(self) -> "Batch":
        """Called by the DataLoader when `pin_memory=True`."""
        tensors = (self.mix_BT, self.src_BST, self.length_B, self.counts_B)
        return Batch(self.ids, *(tensor.pin_memory() for tensor in tensors))

    def zero_nonfinite(self) -> Tensor:
        """Silence, in place, every example that holds a NaN or an infinity.

        A masked loss is not enough: a NaN that went through the network reaches every
        weight as 0 * NaN.

        Returns
        -------
        Tensor
            Mask of the examples that were finite, shape [B].
        """
        finite_B = torch.isfinite(self.mix_BT).all(-1)
        finite_B &= torch.isfinite(self.src_BST).all(-1).all(-1)
        self.mix_BT = self.mix_BT.where(finite_B[:, None], 0.0)
        self.src_BST = self.src_BST.where(finite_B[:, None, None], 0.0)
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
        changed sources (and the noise). None leaves the files as they are.
    seed : int
        Together with (epoch, index) it decides every draw.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        sample_rate: int,
        segment_seconds: float | None = None,
        speed_changes: Sequence[int] | None = None,
        seed: int = 0,
    ) -> None:
        self.rows = list(rows)
        self.sample_rate = sample_rate
        self.segment = segment_seconds and round(segment_seconds * sample_rate)
        self.speed_changes = speed_changes
        self.seed = seed

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
            return change_speed(wave_T, percent)[:length]

        src_ST = torch.stack(
            [read(path, speed) for path, speed in zip(row.sources, speeds, strict=True)]
        )
        noise_T = read(row.noise) if row.noise else None
        if self.speed_changes:
            mix_T = src_ST.sum(0) if noise_T is None else src_ST.sum(0) + noise_T
        else:
            mix_T = read(row.mixture)
        return Example(row.id, mix_T, src_ST, noise_T)


def collate_crops(pairs: Sequence[tuple[Example, bool]]) -> Batch:
    """Cut every example to the shortest: training never sees padding.

    MossFormer2 and SepFormer normalise over time, so padding would change what they
    output for the audio itself.
    """
    length = min(example.mix_T.shape[-1] for example, _ in pairs)
    return Batch(
        ids=[example.id for example, _ in pairs],
        mix_BT=torch.stack([example.mix_T[:length] for example, _ in pairs]),
        src_BST=torch.stack([example.src_ST[:, :length] for example, _ in pairs]),
        length_B=torch.full((len(pairs),), length),
        counts_B=torch.tensor([counts for _, counts in pairs]),
    )


def collate_whole(pairs: Sequence[tuple[Example, bool]]) -> Batch:
    """Zero-pad to the longest, for evaluation, where `length_B` is obeyed."""
    pad = torch.nn.utils.rnn.pad_sequence
    src_BTS = pad([example.src_ST.T for example, _ in pairs], batch_first=True)
    return Batch(
        ids=[example.id for example, _ in pairs],
        mix_BT=pad([example.mix_T for example, _ in pairs], batch_first=True),
        src_BST=src_BTS.transpose(1, 2).contiguous(),
        length_B=torch.tensor([example.mix_T.shape[-1] for example, _ in pairs]),
        counts_B=torch.tensor([counts for _, counts in pairs]),
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
    """Carries `ExampleKey.counts` past the data set to the collate function."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitem__(self, key: ExampleKey) -> tuple[Example, bool]:
        return self.dataset[key], key.counts


def make_loader(
    dataset: Dataset,
    sampler: EpochSampler,
    collate: Callable[[Sequence[tuple[Example, bool]]], Batch],
    num_workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader:
    """A DataLoader whose `batch_sampler` is the given `EpochSampler`."""
    return DataLoader(
        _WithCounts(dataset),
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=num_workers,
        pin_memory=pin_memory,
        worker_init_fn=ignore_in_worker,
    )
