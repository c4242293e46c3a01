"""Loaders whose batches depend on (seed, epoch, step) and the rank alone."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch.utils.data import DataLoader, Dataset, Sampler

from modules.data.batch import Batch, Collate, Example, ExampleKey
from modules.runtime.errors import DataError, UserError
from modules.runtime.randomness import Stream, numpy_rng
from modules.runtime.signals import ignore_in_worker


@dataclass(eq=False)
class EpochSampler(Sampler):
    """Which examples this rank sees at each step of an epoch.

    The order is a permutation drawn from (seed, epoch), or without `shuffle` that of
    the data set. Every global step takes the next `batch_size * world_size` of it, and
    the ranks deal them out in turn, so that the union does not depend on how many ranks
    there are. In a short last step a rank with nothing left repeats an example that
    does not count.

    Example
    -------
    >>> sampler = EpochSampler(5, batch_size=2, rank=1, world_size=2, shuffle=False)
    >>> [[(key.index, key.counts) for key in batch] for batch in sampler]
    [[(1, True), (3, True)], [(4, False)]]
    """

    num_examples: int
    batch_size: int
    rank: int = 0
    world_size: int = 1
    shuffle: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_examples < 1:
            raise DataError("the data set is empty: there is nothing to sample")
        self.set_position(epoch=0)

    def set_position(self, epoch: int, first_step: int = 0) -> None:
        """Start the next iteration in `epoch` after `first_step` steps already done."""
        self.epoch = epoch
        self.first_step = first_step

    @property
    def steps_per_epoch(self) -> int:
        """Number of steps in a whole epoch, the same on every rank."""
        return -(-self.num_examples // (self.batch_size * self.world_size))

    def __len__(self) -> int:
        return self.steps_per_epoch - self.first_step

    def __iter__(self) -> Iterator[list[ExampleKey]]:
        order = range(self.num_examples)
        if self.shuffle:
            rng = numpy_rng(self.seed, self.epoch, Stream.ORDER)
            order = rng.permutation(self.num_examples).tolist()
        stride = self.batch_size * self.world_size
        for step in range(self.first_step, self.steps_per_epoch):
            shared = order[step * stride : (step + 1) * stride]
            mine = shared[self.rank :: self.world_size]
            if mine:
                yield [ExampleKey(self.epoch, index) for index in mine]
            else:
                yield [ExampleKey(self.epoch, shared[-1], counts=False)]


@dataclass(eq=False)
class _WithCounts(Dataset):
    """Pass errors for the user on: torch would wrap them into a worker's traceback."""

    dataset: Dataset

    def __getitem__(self, key: ExampleKey) -> tuple[Example | UserError, bool]:
        try:
            return self.dataset[key], key.counts
        except UserError as error:
            return error, key.counts


def _collate_or_error(
    collate: Collate, pairs: Sequence[tuple[Example | UserError, bool]]
) -> Batch | UserError:
    """Collate, or pass the first error on as the batch."""
    examples = []
    for first, counts in pairs:
        if isinstance(first, UserError):
            return first
        examples.append((first, counts))
    return collate(examples)


class _Loader(DataLoader):
    """Raise in this process the errors that the workers pass on."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        for batch in super().__iter__():
            if isinstance(batch, UserError):
                raise batch
            yield batch


def make_loader(
    dataset: Dataset,
    sampler: EpochSampler,
    collate: Collate,
    num_workers: int = 0,
    pin_memory: bool = False,
    prefetch_factor: int = 2,
    persistent_workers: bool = False,
) -> DataLoader:
    """Return a loader that raises a `UserError` as it is, from whichever process."""
    return _Loader(
        _WithCounts(dataset),
        batch_sampler=sampler,
        collate_fn=functools.partial(_collate_or_error, collate),
        num_workers=num_workers,
        pin_memory=pin_memory,
        # torch refuses both where there is no worker.
        prefetch_factor=prefetch_factor if num_workers else None,
        persistent_workers=persistent_workers and num_workers > 0,
        worker_init_fn=ignore_in_worker,
    )
