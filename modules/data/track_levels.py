"""The level of every track, measured once and kept in an index."""

import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from modules.audio.faults import SILENT_STEM_DB
from modules.audio.io import check_samples, open_audio
from modules.data.index import fingerprint, measure_once
from modules.data.manifest import Row
from modules.runtime.errors import DataError
from modules.runtime.tensors import song_level

logger = logging.getLogger(__name__)

INDEX_COLUMNS = {"id": str, "fingerprint": str, "mean": float, "std": float}

# Part of the fingerprint: raise it when the same files would give other levels.
RULE = 2

BLOCK_SECONDS = 10

# Added to the level: a silent track stays silent.
SMALLEST_STD = 1e-8


@dataclass(frozen=True)
class Level:
    """Mean and level of a track's mixture, as `song_level` has them."""

    mean: float
    std: float

    def normalize(self, wave: Tensor) -> Tensor:
        """Subtract the mean, divide by the level."""
        return (wave - self.mean) / (self.std + SMALLEST_STD)


def measure_levels(rows: Sequence[Row], index: str | Path) -> dict[str, Level]:
    """Return the level of each track by its id; reading a collection takes minutes.

    A DataError names a file that cannot be read, or holds NaN, Inf or an absurd level.
    """
    row_of = {row.id: row for row in rows}
    found = measure_once(
        index,
        INDEX_COLUMNS,
        {row.id: fingerprint(_mixture_files(row), row.duration, RULE) for row in rows},
        lambda name: astuple(measure(row_of[name])),
    )
    return {name: Level(*values) for name, values in found.items()}


def _mixture_files(row: Row) -> Sequence[str]:
    """Return the files whose sum is the track's mixture: without one, all stems."""
    return [row.mixture] if row.mixture else row.files


def measure(row: Row) -> Level:
    """Return the level of one track's mixture, read in blocks."""
    paths = _mixture_files(row)
    count, total, mono, power = row.frames, 0.0, 0.0, 0.0
    block = BLOCK_SECONDS * row.sample_rate
    with ExitStack() as stack:
        files = [stack.enter_context(open_audio(path)) for path in paths]
        for start in range(0, count, block):
            frames = min(block, count - start)
            mono_T, mix_TC = np.zeros(frames), np.zeros((frames, 2))
            for path, file in zip(paths, files, strict=True):
                part_TC = file.read(start, frames, "float64")
                held = min(max(file.header.frames - start, 0), frames)
                if file.fault or len(part_TC) != held:
                    fault = "is truncated or has changed"
                    raise DataError(f"{path}: {fault}; run the data preparation again")
                if not held:  # it ended earlier, in silence
                    continue
                check_samples(path, part_TC)
                mono_T[:held] += part_TC.mean(1)
                mix_TC[:held] += part_TC
            total += math.fsum(mono_T)
            mono += math.fsum(mono_T**2)
            power += float(np.square(mix_TC).mean(1).sum())
    sums = torch.tensor([total / count, mono, power], dtype=torch.float64)
    return Level(total / count, float(song_level(count, *sums)))


def level_fault(std: float) -> str:
    """Say that a track of this level is too quiet to be normalised, or return ""."""
    level_db = 20 * math.log10(max(std, SMALLEST_STD))
    quiet = f"cannot be normalised: its mixture is at {level_db:.0f} dB"
    return quiet * (level_db < SILENT_STEM_DB)


def loud_enough(rows: Sequence[Row], levels: Mapping[str, Level]) -> list[Row]:
    """Return the tracks that can be normalised; a warning names the others."""
    faults = {row.id: level_fault(levels[row.id].std) for row in rows}
    named = [f"{row.place} {faults[row.id]}" for row in rows if faults[row.id]]
    if named:
        text = f"{len(named)} tracks are left out of training: {'; '.join(named)}"
        if len(named) == len(rows):
            raise DataError(text)
        logger.warning("%s", text)
    return [row for row in rows if not faults[row.id]]
