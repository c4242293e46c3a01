"""Everything that can be wrong with the audio of a row, found by reading all of it.

Speech (mono rows) must be just what the row says. Stems of music are looked at more
sternly than training does, which copes with some of it: mono files and files cut short
are faults here.

Legend: T sample, C channel.
"""

import math
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from modules.audio.faults import SILENT_PEAK, cut_short, level_fault
from modules.data.manifest import Row
from modules.data.sums import distance_from_sum, sum_fault

# Equal samples in a row at full scale that make a clipped peak.
CLIPPED_SAMPLES = 3

FULL_SCALE = 0.999

BLOCK_SECONDS = 10

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
    if cut := cut_short(file):
        fault("truncated", f"is truncated: {cut}")
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
        self.low, self.high, self.clipped, self.frames = 0.0, 0.0, 0, 0
        self.offset_C: np.ndarray | None = None  # of a file that is constant so far

    def add(self, wave_TC: np.ndarray) -> None:
        """Look at the next block."""
        if not wave_TC.size:
            return
        if not self.frames:
            self.offset_C = wave_TC[0].copy()
        self.frames += len(wave_TC)
        low, high = float(wave_TC.min()), float(wave_TC.max())
        # NaN is the minimum of whatever holds it, and stays it.
        self.low = float(np.minimum(self.low, low))
        self.high = float(np.maximum(self.high, high))
        if max(high, -low) >= FULL_SCALE:
            self.clipped += count_clipped(wave_TC)
        # The first samples of most files tell that they are not constant.
        for part_TC in (wave_TC[:100], wave_TC):
            if self.offset_C is not None:
                away = distance_from_sum(part_TC, [self.offset_C])
                self.offset_C = self.offset_C if away <= SILENT_PEAK else None

    @property
    def peak(self) -> float:
        """Largest sample; NaN where one is."""
        return float(np.maximum(self.high, -self.low))

    def faults(self, path: str, promised: int) -> list[Fault]:
        """All of them, for a header that promised so many samples."""
        faults = []
        if text := level_fault(self.low, self.high):
            kind = "level" if math.isfinite(self.peak) else "non-finite"
            faults.append(Fault(kind, _at(path, text)))
        elif self.peak <= SILENT_PEAK:
            if self.frames:  # an empty file is none
                faults.append(Fault("silent", _at(path, "is silent")))
        elif self.offset_C is not None:
            text = f"is silent: a constant ({self.offset_C[0]:.2g})"
            faults.append(Fault("silent", _at(path, text)))
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
            parts = [waves[path] for path in row.summands]
            if waves[row.mixture].size:
                apart = distance_from_sum(waves[row.mixture], parts)
                difference = max(difference, apart)
    faults = []
    for path, file in files.items():
        if path in unreadable:
            why = f"cannot be read to its end ({unreadable[path]})"
            faults.append(Fault("unreadable", _at(path, why)))
        promised = 0 if path in unreadable else file.frames
        faults += heard[path].faults(path, promised)
    # Another fault says more than that the sum, then, is wrong as well.
    peak = max((found.peak for found in heard.values()), default=0.0)
    text = sum_fault(row, difference, peak)
    if text and not (is_faulty or faults):
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
