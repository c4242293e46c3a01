"""Everything that can be wrong with the audio of a row, found by reading all of it.

Speech (mono rows) must be just what the row says. Stems of music are looked at more
sternly than training does, which copes with some of it: mono files and files cut short
are faults here.

Legend: T sample, C channel.
"""

import os
import re
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from data_prep.manifest import Row

# int16 rounding of the sources and the mixture, with room for dither.
SUM_TOLERANCE = 4 / 2**15
# Equal samples in a row at full scale that make a clipped peak.
CLIPPED_SAMPLES = 3
FULL_SCALE = 0.999
# Nothing above the last bit of 16: digital silence, or what dither leaves of it.
SILENT_PEAK = 1.5 / 2**15
# Float files may exceed full scale, but not by 40 dB.
LARGEST_PEAK = 100.0
BLOCK_SECONDS = 10
# What libsndfile notes of a WAV whose header promises more than the file holds.
CUT_SHORT = re.compile(r"^data : (\d+) \(should be (\d+)\)", re.MULTILINE)

Waves = dict[str, np.ndarray]


class Fault(NamedTuple):
    """What is wrong with a file; `kind` sorts it, `text` is one line and names it."""

    kind: str
    text: str


def row_faults(row: Row, observe: Callable[[Waves], None] | None = None) -> list[Fault]:
    """All that is wrong with the files of a row; nothing is assumed of them.

    Arguments
    ---------
    row : Row
        `duration` 0 leaves the length open: the files must agree with the mixture.
    observe : Callable | None
        Is shown every block of samples, {path: [T, C]}, for figures of its own.

    Returns
    -------
    list[Fault]
        Empty when there is none.
    """
    faults: list[Fault] = []
    with ExitStack() as stack:
        files: dict[str, soundfile.SoundFile] = {}
        for path in row.files:
            try:
                files[path] = stack.enter_context(soundfile.SoundFile(path))
            except (soundfile.LibsndfileError, OSError) as error:
                exists = os.path.exists(path)
                why = f"cannot be read as audio ({error})" if exists else "is missing"
                faults.append(
                    Fault("unreadable" if exists else "missing", _at(path, why))
                )
        expected, saying = _expected_frames(row, files)
        for path, file in files.items():
            faults += _header_faults(row, path, file, expected, saying)
        faults += _sample_faults(row, files, bool(faults), observe)
    return faults


def _at(path: str, text: str) -> str:
    """One line about a file."""
    return f"{path} {text}".replace("\n", " ")


def _expected_frames(
    row: Row, files: dict[str, soundfile.SoundFile]
) -> tuple[int, str]:
    """The length that every file should have, and who says so."""
    if row.channels != 1:
        longest = max((file.frames for file in files.values()), default=0)
        return longest, "others of the track up to"
    if row.frames:
        return row.frames, "the row says"
    first = row.mixture if row.mixture in files else next(iter(files), "")
    return (files[first].frames if first else 0), f"{Path(first).parent.name} has"


def _header_faults(
    row: Row, path: str, file: soundfile.SoundFile, expected: int, saying: str
) -> list[Fault]:
    """Faults that a header shows."""
    faults = []

    def fault(kind: str, text: str) -> None:
        faults.append(Fault(kind, _at(path, text)))

    if row.sample_rate and file.samplerate != row.sample_rate:
        fault("rate", f"is at {file.samplerate} Hz, the row says {row.sample_rate} Hz")
    if file.channels != row.channels:
        kind = "is mono" if file.channels == 1 else f"has {file.channels} channels"
        wanted = "mono" if row.channels == 1 else "stereo"
        fault("channels", f"{kind}, expected {wanted}")
    cut = CUT_SHORT.search(file.extra_info)
    if cut and int(cut[1]) > int(cut[2]):
        fault("truncated", f"is truncated: holds {cut[2]} of {cut[1]} bytes of samples")
    elif file.frames == 0:
        fault("empty", "is empty: it holds no samples")
    elif file.frames != expected:
        fault("length", f"has {file.frames} samples, {saying} {expected}")
    elif file.frames < row.frames:
        fault("length", f"has {file.frames} samples, the row says {row.frames}")
    return faults


class _Heard:
    """What was found in the samples of a file so far."""

    def __init__(self) -> None:
        self.finite, self.peak, self.clipped, self.frames = True, 0.0, 0, 0

    def add(self, wave_TC: np.ndarray) -> None:
        """Look at the next block."""
        if not wave_TC.size:
            return
        self.frames += len(wave_TC)
        low, high = float(wave_TC.min()), float(wave_TC.max())
        # NaN is the minimum of whatever holds it.
        self.finite &= bool(np.isfinite(low) and np.isfinite(high))
        self.peak = max(self.peak, high, -low)
        if max(high, -low) >= FULL_SCALE:
            self.clipped += count_clipped(wave_TC)

    def faults(self, path: str, promised: int) -> list[Fault]:
        """All of them, for a header that promised so many samples."""
        faults = []
        if not self.finite:
            faults.append(Fault("non-finite", _at(path, "holds NaN or Inf")))
        elif self.peak <= SILENT_PEAK:
            if self.frames:  # an empty file is none
                faults.append(Fault("silent", _at(path, "is silent")))
        elif self.peak > LARGEST_PEAK:
            text = f"has a peak of {self.peak:.2g} times full scale"
            faults.append(Fault("level", _at(path, text)))
        if self.clipped:
            text = f"is clipped: {self.clipped} samples at full scale"
            faults.append(Fault("clipped", _at(path, text)))
        if self.frames < promised:
            text = f"is truncated: {self.frames} of {promised} samples can be read"
            faults.append(Fault("truncated", _at(path, text)))
        return faults


def _sample_faults(
    row: Row,
    files: dict[str, soundfile.SoundFile],
    is_faulty: bool,
    observe: Callable[[Waves], None] | None,
) -> list[Fault]:
    """Faults that only the samples show, read in blocks: tracks are long."""
    heard = {path: _Heard() for path in files}
    unreadable: dict[str, str] = {}
    difference = 0.0
    summed = row.mixture in files and all(path in files for path in row.summands)
    rate = max((file.samplerate for file in files.values()), default=0)
    longest = max((file.frames for file in files.values()), default=0)
    for _ in range(0, longest, BLOCK_SECONDS * rate or 1):
        waves = {}
        for path, file in files.items():
            try:
                waves[path] = file.read(
                    BLOCK_SECONDS * rate, dtype="float32", always_2d=True
                )
            except (soundfile.LibsndfileError, OSError) as error:
                unreadable[path] = str(error)
                waves[path] = np.zeros((0, file.channels), np.float32)
            heard[path].add(waves[path])
        if observe is not None:
            observe(waves)
        if summed and len({wave.shape for wave in waves.values()}) == 1:
            error_TC = waves[row.mixture].copy()
            for path in row.summands:
                error_TC -= waves[path]
            difference = max(difference, -float(error_TC.min()), float(error_TC.max()))
    faults = []
    for path, file in files.items():
        if path in unreadable:
            why = f"cannot be read to its end ({unreadable[path]})"
            faults.append(Fault("unreadable", _at(path, why)))
        promised = 0 if path in unreadable else file.frames
        faults += heard[path].faults(path, promised)
    # Another fault says more than that the sum, then, is wrong as well.
    if not (is_faulty or faults) and difference > SUM_TOLERANCE:
        whole = "sources" if row.channels == 1 else "stems"
        whole = "images" if row.images else whole
        noise = " and the noise" if row.noise else ""
        text = (
            f"is not the sum of its {whole}{noise} (off by {difference:.2g} of full "
            "scale)"
        )
        faults.append(Fault("sum", _at(row.mixture, text)))
    return faults


def count_clipped(wave_TC: np.ndarray) -> int:
    """Samples of [T, C] within runs of equal ones at full scale."""
    if len(wave_TC) < CLIPPED_SAMPLES:
        return 0
    flat_TC = (np.diff(wave_TC, axis=0) == 0) & (np.abs(wave_TC[1:]) >= FULL_SCALE)
    runs_TC = flat_TC[1:] & flat_TC[:-1]  # the third of three, and those that follow
    starts_TC = runs_TC & ~np.pad(runs_TC, ((1, 0), (0, 0)))[:-1]
    return int(runs_TC.sum() + (CLIPPED_SAMPLES - 1) * starts_TC.sum())
