"""The versions of a WSJ0-like set: `wav{8k,16k}/{min,max}/{tr,cv,tt}`, and their files.

Legend: T sample.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from data_prep.common.layout import MODES, RATES, folder_of
from modules.audio.io import open_whole, read_header
from modules.runtime.errors import DataError, refuse
from modules.runtime.files import list_files

Cell = TypeVar("Cell")

WSJ0_SPLITS = {"tr": "train", "cv": "valid", "tt": "test"}
SETS = tuple(WSJ0_SPLITS)

# Positions are noted at this rate, whatever the version.
NOISE_RATE = 16000


def check_choices(name: str, values: Sequence[Any], known: Sequence[Any]) -> None:
    """Raise unless there is a value and all are known."""
    if not values or set(values) - set(known):
        raise DataError(f"{name}: {list(values)}, expected some of {known}")


def check_versions(
    sample_rates: Sequence[int], modes: Sequence[str]
) -> list[tuple[int, str]]:
    """Return pairs of rate and mode; the longest, at the highest rate, comes last."""
    check_choices("sample_rates", sample_rates, RATES)
    check_choices("modes", modes, MODES)
    return [
        (rate, mode)
        for mode in sorted(set(modes), reverse=True)
        for rate in sorted(set(sample_rates))
    ]


def files_of(
    out: Path,
    versions: Sequence[tuple[int, str]],
    split: str,
    parts: Sequence[str],
    name: str,
) -> list[Path]:
    """Return the files of all parts of a mixture in all versions."""
    return [
        out / folder_of(rate, mode) / split / part / f"{name}.wav"
        for rate, mode in versions
        for part in parts
    ]


def mixture_lengths(
    root: Path, split: str, versions: Sequence[tuple[int, str]]
) -> dict[str, int]:
    """Return each mixture of a split with the length at 16 kHz of its longest version.

    A DataError names a folder or file of a version that is missing or unreadable.
    """
    names: list[str] | None = None
    for rate, mode in versions:
        third = root / folder_of(rate, mode) / split / "s3"
        if third.is_dir():
            raise DataError(f"{third}: exists, but a mixture here has 2 talkers")
        for part in ("s1", "s2"):
            folder = root / folder_of(rate, mode) / split / part
            if not folder.is_dir():
                hint = "make it or leave it out of --sample_rates and --modes"
                raise DataError(f"{folder}: does not exist; {hint}")
            found = [path.stem for path in list_files(folder, "*.wav")]
            if names is None:
                names, first = found, folder
            elif found != names:
                name = min(set(found) ^ set(names))
                raise DataError(f"{folder}: {name}.wav is only here or only in {first}")
    if not names:
        raise DataError(f"{root}: holds no mixtures for {split}")
    rate, mode = versions[-1]
    folder = root / folder_of(rate, mode) / split / "s1"
    return {
        name: frames_of(folder / f"{name}.wav", rate) * NOISE_RATE // rate
        for name in names
    }


def frames_of(path: Path, sample_rate: int) -> int:
    """Return the number of samples in a file, by its header."""
    header = read_header(path)
    check_rate(path, header.sample_rate, sample_rate)
    return header.frames


def read_left(
    path: Path, sample_rate: int, start: int = 0, frames: int | None = None
) -> np.ndarray:
    """Read the left channel of a file or of a part of it: float64, shape [T].

    A DataError says that it is unreadable, too short, at another rate or not finite.
    """
    with open_whole(path) as file:
        check_rate(path, file.header.sample_rate, sample_rate)
        wave_T = file.read(start, frames, "float64")[:, 0]
    if len(wave_T) < (wanted := frames or 1):
        raise DataError(f"{path}: holds no {wanted} samples from {start} on")
    if not np.isfinite(wave_T).all():
        raise DataError(f"{path}: holds NaN or Inf; repair or remove it")
    return wave_T


def check_rate(path: Path, rate: int, expected: int) -> None:
    """Raise unless a file's rate is as expected."""
    if rate != expected:
        raise DataError(f"{path} is at {rate} Hz, expected {expected} Hz")


def pick(path: Path, found: Mapping[str, Cell], names: Iterable[str]) -> list[Cell]:
    """Return what a table holds for each name; raise if it lacks one."""
    missing = [name for name in names if name not in found]
    refuse([f"{path}: has no row for {name!r}" for name in missing])
    return [found[name] for name in names]
