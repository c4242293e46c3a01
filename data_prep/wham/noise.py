"""Find which noise a mixture of WHAM! lies in, and where: drawn, published or by a CSV.

Legend: N recording, T sample.
"""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_prep.common.versions import NOISE_RATE, frames_of, pick
from data_prep.wham.scales import Scales
from modules.runtime.errors import DataError
from modules.runtime.files import list_files
from modules.runtime.randomness import named_rng
from modules.runtime.tables import read_table

SNR_DB = (-3.0, 6.0)
MOST_LEAD_SECONDS = 2.0
FADE_SECONDS = 1.0


class Placement(NamedTuple):
    """Where a mixture's speech lies in which noise; positions at 16 kHz."""

    utterance_id: str
    noise_file: str
    noise_start: int
    noise_frames: int
    speech_start: int
    snr_db: float


COLUMNS = Placement._fields


def _list_noise(folder: Path) -> dict[str, int]:
    """Return the recordings of a folder with their length, sorted by name."""
    if not folder.is_dir():
        raise DataError(f"{folder}: does not exist; --wham_noise holds {{tr,cv,tt}}")
    found = {
        path.name: frames_of(path, NOISE_RATE) for path in list_files(folder, "*.wav")
    }
    if not found:
        raise DataError(f"{folder}: holds no .wav file")
    return found


def draw_placements(
    folder: Path, lengths: dict[str, int], seed: int
) -> list[Placement]:
    """Draw by the published rules; a recording with a mixture's name is its noise."""
    noise = _list_noise(folder)
    names = list(noise)
    frames_N = np.array(list(noise.values()))
    drawn = []
    for name, frames in lengths.items():
        rng = named_rng(seed, f"wham/{folder.name}/{name}")
        snr_db = float(rng.uniform(*SNR_DB))
        leads = rng.uniform(0, MOST_LEAD_SECONDS * NOISE_RATE, 2).astype(int)
        wanted = frames + int(leads.sum())
        chance, place = rng.random(2)
        # One that is too short would be repeated: only where there is no other.
        choice = np.flatnonzero(frames_N >= wanted)
        choice = choice if len(choice) else np.arange(len(names))
        file = names[choice[int(chance * len(choice))]]
        if f"{name}.wav" in noise:
            file = f"{name}.wav"
        start = int(place * (max(noise[file] - wanted, 0) + 1))
        drawn.append(Placement(name, file, start, wanted, int(leads[0]), snr_db))
    return drawn


def published_placements(folder: Path, scales: dict[str, Scales]) -> list[Placement]:
    """Place each mixture in the recording of its name, whole."""
    frames = {name: frames_of(folder / f"{name}.wav", NOISE_RATE) for name in scales}
    return [
        Placement(name, f"{name}.wav", 0, frames[name], scale.speech_start, math.nan)
        for name, scale in scales.items()
    ]


def read_placements(path: Path, lengths: dict[str, int]) -> list[Placement]:
    """Read the placements of the mixtures from a CSV written before."""
    found = {}
    for place, cells in read_table(path, COLUMNS):
        try:
            start, frames, speech = (int(cells[name]) for name in COLUMNS[2:5])
            snr_db = float(cells["snr_db"])
        except ValueError as error:
            raise DataError(f"{place}: {error}") from None
        if not math.isfinite(snr_db):
            raise DataError(f"{place}: snr_db is {cells['snr_db']!r}, no number of dB")
        name, file = cells["utterance_id"], cells["noise_file"]
        found[name] = Placement(name, file, start, frames, speech, snr_db)
    return pick(path, found, lengths)


def extend(noise_T: np.ndarray, frames: int, sample_rate: int) -> np.ndarray:
    """Repeat noise with cross-fades of a second (of equal power) until it is long.

    >>> len(extend(np.ones(40000), 100000, 16000))
    100000
    """
    fade = min(round(FADE_SECONDS * sample_rate), len(noise_T) // 2)
    angle_T = np.linspace(0, np.pi / 2, fade)
    long_T = noise_T
    while len(long_T) < frames:
        joint_T = long_T[len(long_T) - fade :] * np.cos(angle_T)
        joint_T = joint_T + noise_T[:fade] * np.sin(angle_T)
        long_T = np.concatenate([long_T[: len(long_T) - fade], joint_T, noise_T[fade:]])
    return long_T[:frames]
