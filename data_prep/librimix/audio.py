"""The audio that LibriMix is made of: talkers, and noise as long as they are.

Legend: T sample.
"""

import re
from pathlib import Path

import numpy as np
import scipy.signal

from data_prep.common.versions import check_rate
from data_prep.librimix.metadata import Mixture
from modules.audio.io import open_whole
from modules.runtime.errors import DataError

RATE = 16000

# Half a Hann window of one second: where a repeat of the noise overlaps the last one.
FADE = RATE // 2 + 1

# Speeds of the augmented noises by the end of their names, as up and down factors.
SPEEDS = {"sp08": (5, 4), "sp12": (5, 6)}


def corpus_folder(folder: str | Path, name: str) -> Path:
    """Return the folder of a corpus, given that folder or its parent."""
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of {name}")
    return folder / name if (folder / name).is_dir() else folder


def find_speech(folder: Path, path: str) -> Path:
    """Return the file of an utterance, which the metadata names as FLAC."""
    file, wav = folder / path, (folder / path).with_suffix(".wav")
    return wav if wav.is_file() and not file.is_file() else file


def find_noise(folder: Path, path: str) -> tuple[Path, tuple[int, int]]:
    """Return the file of a noise, and the factors its length is to be changed by."""
    file = folder / path
    match = re.fullmatch(r"(.+)(sp08|sp12)(\.\w+)", path)
    if match is None or file.is_file():
        return file, (1, 1)
    return folder / (match[1] + match[3]), SPEEDS[match[2]]


def read_part(path: Path, frames: int | None = None) -> np.ndarray:
    """Return the first channel of a 16 kHz file as float32 [T], or its start."""
    with open_whole(path) as file:
        check_rate(path, file.header.sample_rate, RATE)
        return file.read(0, frames)[:, 0]


def read_noise(folder: Path, path: str, length: int) -> np.ndarray:
    """Return a noise as float32 [T], cut or repeated so that T = length."""
    file, (up, down) = find_noise(folder, path)
    # A little more than needed, so that the filter's end is not heard.
    noise_T = read_part(file, -(-length * down // up) + RATE // 10)
    if up != down:
        noise_T = scipy.signal.resample_poly(noise_T, up, down)
    return extend(noise_T, length)


def extend(noise_T: np.ndarray, length: int) -> np.ndarray:
    """Cut a noise to a length, or repeat it with cross-fades.

    >>> ones_T = np.ones(20000, np.float32)
    >>> longer_T = extend(ones_T, 50000)
    >>> longer_T.shape, bool(abs(longer_T - 1).max() < 1e-6)
    ((50000,), True)
    """
    if len(noise_T) >= length:
        return noise_T[:length]
    if len(noise_T) <= FADE:
        fault = f"a noise of {len(noise_T)} samples is too short to be repeated"
        raise DataError(f"{fault}; leave those under {FADE / RATE:.1f} s out")
    window_T = np.hanning(2 * FADE - 1).astype(np.float32)
    rise_T, fall_T = window_T[:FADE], window_T[FADE - 1 :]
    pieces, total = [noise_T], len(noise_T)
    while total < length:
        seam_T = pieces[-1][-FADE:] * fall_T + noise_T[:FADE] * rise_T
        pieces[-1] = pieces[-1][:-FADE]
        pieces += [np.concatenate([seam_T, noise_T[FADE:]])]
        total += len(noise_T) - FADE
    return np.concatenate(pieces)[:length]


def read_parts(
    librispeech: Path, wham_noise: Path | None, mixture: Mixture
) -> list[np.ndarray]:
    """Return talkers, each of its own length, and noise as long as the longest.

    Each is multiplied by its gain.
    """
    parts = [*mixture.sources]
    waves = [read_part(find_speech(librispeech, part.path)) for part in parts]
    if wham_noise is not None and mixture.noise is not None:
        parts.append(mixture.noise)
        longest = max(map(len, waves))
        try:
            waves.append(read_noise(wham_noise, mixture.noise.path, longest))
        except DataError as error:
            raise DataError(f"{mixture.noise.path}: {error}") from None
    return [
        wave_T * np.float32(part.gain)
        for wave_T, part in zip(waves, parts, strict=True)
    ]
