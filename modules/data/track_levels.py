"""The level of every track, measured once and kept in an index."""

import csv
import hashlib
import io
import logging
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from torch import Tensor

from modules.audio.faults import level_fault
from modules.data.manifest import Row
from modules.runtime.errors import DataError
from modules.runtime.files import write_text

logger = logging.getLogger(__name__)

LEVEL_COLUMNS = ["id", "key", "mean", "std"]

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
    """Levels of all tracks, measured once: reading a collection takes minutes.

    Arguments
    ---------
    rows : Sequence[Row]
        The manifest. The mixture is the sum of all stems, the unused ones too, where
        there is no mixture file.
    index : str | Path
        CSV that keeps the levels; a track is measured anew when one of its files has
        changed. One process at a time may write it (`distributed.run_on_main`).

    Returns
    -------
    dict[str, Level]
        By the id of the track.

    Raises
    ------
    DataError
        A file holds NaN, Inf or an absurd level, or cannot be read; the message names
        it.
    """
    known = _read_index(index)
    keys = {row.id: _fingerprint(row) for row in rows}
    stale = [row for row in rows if keys[row.id] not in known]
    if stale:
        logger.info("%s: measuring the levels of %d tracks", index, len(stale))
        with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
            for row, level in zip(stale, threads.map(measure, stale), strict=True):
                known[keys[row.id]] = (row.id, level)
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(LEVEL_COLUMNS)
        for key, (name, level) in sorted(known.items(), key=lambda item: item[1][0]):
            table.writerow([name, key, repr(level.mean), repr(level.std)])
        write_text(index, text.getvalue())
    return {row.id: known[keys[row.id]][1] for row in rows}


def measure(row: Row) -> Level:
    """Mean and standard deviation of one track's mixture, read in blocks."""
    paths = [row.mixture] if row.mixture else row.sources
    count, total, squares = row.frames, 0.0, 0.0
    block = BLOCK_SECONDS * row.sample_rate
    with ExitStack() as stack:
        try:
            files = [stack.enter_context(soundfile.SoundFile(path)) for path in paths]
            for start in range(0, count, block):
                frames = min(block, count - start)
                mono_T = np.zeros(frames)
                for path, file in zip(paths, files, strict=True):
                    part_TC = file.read(frames, always_2d=True)
                    if len(part_TC) != frames:
                        raise DataError(
                            f"{path}: ends before sample {start + frames}; truncated "
                            "or changed, run the data preparation again"
                        )
                    fault = level_fault(float(part_TC.min()), float(part_TC.max()))
                    if fault:
                        raise DataError(
                            f"{path}: {fault}; repair or remove the track "
                            "(python -m data_prep.verify lists all such files)"
                        )
                    mono_T += part_TC.mean(1)
                total += math.fsum(mono_T)
                squares += math.fsum(mono_T**2)
        except (soundfile.LibsndfileError, OSError) as error:
            raise DataError(f"{row.id}: cannot be read as audio ({error})") from None
    mean = total / count
    variance = max(squares - count * mean**2, 0.0) / max(count - 1, 1)
    return Level(mean, math.sqrt(variance))


def _fingerprint(row: Row) -> str:
    """A digest of the names, sizes and times of the files that a level is of."""
    digest = hashlib.sha256(repr(row.duration).encode())
    for path in [row.mixture] if row.mixture else row.sources:
        try:
            status = os.stat(path)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from None
        digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return digest.hexdigest()[:16]


def _read_index(index: str | Path) -> dict[str, tuple[str, Level]]:
    """What an index holds; nothing if there is none or it is not whole."""
    try:
        with open(index, encoding="utf-8", newline="") as file:
            header, *lines = csv.reader(file)
        levels = {
            key: (name, Level(float(mean), float(std)))
            for name, key, mean, std in lines
        }
    except (OSError, ValueError, csv.Error):
        return {}
    return levels if header == LEVEL_COLUMNS else {}
