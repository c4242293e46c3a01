"""The level of every track, measured once and kept in an index."""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from modules.audio.io import open_audio, sample_fault
from modules.data.index import fingerprint, measure_once
from modules.data.manifest import Row
from modules.runtime.errors import DataError

INDEX_COLUMNS = {"id": str, "fingerprint": str, "mean": float, "std": float}

BLOCK_SECONDS = 10

# Added to the standard deviation: a silent track stays silent.
SMALLEST_STD = 1e-8


@dataclass(frozen=True)
class Level:
    """Mean and standard deviation of a track's mixture, its channels averaged."""

    mean: float
    std: float

    def normalize(self, wave: Tensor) -> Tensor:
        """Subtract the mean, divide by the standard deviation."""
        return (wave - self.mean) / (self.std + SMALLEST_STD)


def measure_levels(rows: Sequence[Row], index: str | Path) -> dict[str, Level]:
    """Return the level of each track by its id; reading a collection takes minutes.

    Without a mixture file a track's mixture is the sum of all stems, the unused ones
    too. A DataError names a file that cannot be read, or holds NaN, Inf or an absurd
    level.
    """
    row_of = {row.id: row for row in rows}
    found = measure_once(
        index,
        INDEX_COLUMNS,
        {row.id: fingerprint(_mixture_files(row), row.duration) for row in rows},
        lambda name: astuple(measure(row_of[name])),
    )
    return {name: Level(*values) for name, values in found.items()}


def _mixture_files(row: Row) -> Sequence[str]:
    """Return the files whose sum is the track's mixture."""
    return [row.mixture] if row.mixture else row.sources


def measure(row: Row) -> Level:
    """Return the level of one track's mixture, read in blocks."""
    paths = _mixture_files(row)
    count, total, squares = row.frames, 0.0, 0.0
    block = BLOCK_SECONDS * row.sample_rate
    with ExitStack() as stack:
        files = [stack.enter_context(open_audio(path)) for path in paths]
        for start in range(0, count, block):
            frames = min(block, count - start)
            mono_T = np.zeros(frames)
            for path, file in zip(paths, files, strict=True):
                part_TC = file.read(start, frames, "float64")
                if len(part_TC) != frames:
                    raise DataError(
                        f"{path}: ends before sample {start + frames}; truncated or "
                        "changed, run the data preparation again"
                    )
                if fault := sample_fault(part_TC):
                    raise DataError(
                        f"{path}: {fault}; repair or remove the track "
                        "(python -m data_prep.verify lists all such files)"
                    )
                mono_T += part_TC.mean(1)
            total += math.fsum(mono_T)
            squares += math.fsum(mono_T**2)
    mean = total / count
    variance = max(squares - count * mean**2, 0.0) / max(count - 1, 1)
    return Level(mean, math.sqrt(variance))
