"""Find everything that is wrong with the audio of a row, by reading all of it.

Speech (mono rows) must be just what the row says. Stems of music should be stereo,
though training copes with mono files; those that end early are a note, as silence is
appended to them.

Legend: T sample, C channel.
"""

import hashlib
import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_prep.common.layout import NAMED
from data_prep.common.tracks import ends_early
from modules.audio.faults import SILENT_PEAK, level_fault
from modules.audio.io import AudioFile, open_audio
from modules.data.manifest import Row, header_faults
from modules.data.sums import distance_from_sum, sum_fault
from modules.data.utterances import spoken_in
from modules.runtime.errors import AudioError, DataError

# Equal samples in a row at full scale that make a clipped peak.
CLIPPED_SAMPLES = 3

FULL_SCALE = 0.999
BLOCK_SECONDS = 10
Files = Mapping[str, AudioFile]
Waves = dict[str, np.ndarray]


# The kind of what is right as a file and may be wrong as data: shown, not counted.
NOTE = "note"


class Fault(NamedTuple):
    """A fault of a file; `kind` sorts it, `text` is one line and names the file."""

    kind: str
    text: str


class Contents:
    """What the files of all sets hold: the same samples twice, the test in training."""

    def __init__(self) -> None:
        self.paths: dict[bytes, dict[str, str]] = defaultdict(dict)
        self.named: dict[tuple[str, str], set[str]] = defaultdict(set)

    def add_name(self, split: str, row: Row) -> None:
        """Take in a mixture's name and who speaks in it, if the name tells."""
        name = Path(row.id).name
        with suppress(DataError):
            talkers = {talker for _, talker in spoken_in(replace(row, id=name))}
            self.named[split, "mixtures"].add(name)
            self.named[split, "talkers"] |= talkers

    def add_row(self, row: Row, digests: Mapping[str, bytes]) -> None:
        """Take in the files of a row; versions and tasks of a data set share names."""
        for path, digest in digests.items():
            split = Path(path).parent.parent.name  # SPLIT/PART/NAME, SPLIT/TRACK/STEM
            name = f"{split}/{row.id.split('/')[-1]}"
            self.paths[digest].setdefault(name, path)

    def notes(self) -> Iterator[tuple[str, Fault]]:
        """Yield what is to be noted of several files, each with a name."""
        for what in ("mixtures", "talkers"):
            if both := sorted(self.named["train", what] & self.named["test", what]):
                names = ", ".join(both[:NAMED]) + ", ..." * (len(both) > NAMED)
                text = f"{len(both)} {what} are in the training set: {names}"
                yield "test", Fault(NOTE, text)
        for paths in self.paths.values():
            first, *others = sorted(paths)
            others = [name for name in others if paths[name] != paths[first]]
            if others:
                more = f" (and {len(others) - 1} more)" if len(others) > 1 else ""
                text = f"{paths[first]} holds the samples of {paths[others[0]]}{more}"
                yield first, Fault(NOTE, text)


def row_faults(
    row: Row, contents: Contents, observe: Callable[[Waves], None] = lambda waves: None
) -> list[Fault]:
    """Return all that is wrong with the files of a row, see `header_faults`.

    `observe` is given every block of samples, {path: [T, C]}, `contents` what every
    file holds.
    """
    faults: list[Fault] = []
    with ExitStack() as stack:
        files: dict[str, AudioFile] = {}
        for path in row.files:
            try:
                files[path] = stack.enter_context(open_audio(path))
            except AudioError as error:
                kind = "unreadable" if os.path.exists(path) else "missing"
                faults.append(Fault(kind, str(error)))
        for path, file in files.items():
            if file.fault:
                kind = "truncated" if file.header.frames else "empty"
                faults.append(Fault(kind, f"{path} {file.fault}"))
            if file.note:
                faults.append(Fault(NOTE, f"{path} {file.note}"))
        whole = {path: one.header for path, one in files.items() if not one.fault}
        faults += [Fault(*found) for found in header_faults(row, whole)]
        if row.channels == 2:
            faults += [
                Fault("channels", f"{path} is mono, expected stereo")
                for path, header in whole.items()
                if header.channels == 1
            ]
            faults += [Fault(NOTE, text) for text in ends_early(whole)]
        is_faulty = any(fault.kind != NOTE for fault in faults)
        found, digests = _sample_faults(row, files, is_faulty, observe)
    first: dict[bytes, str] = {}
    for path in filter(digests.get, row.sources):
        twin = first.setdefault(digests[path], path)
        if twin != path:
            found.append(Fault(NOTE, f"{path} holds the samples of {twin}"))
    contents.add_row(row, digests)
    faults += found
    return [Fault(kind, text.replace("\n", " ")) for kind, text in faults]


class _Heard:
    """Running statistics of the samples of a file."""

    def __init__(self) -> None:
        self.low, self.high, self.clipped, self.frames = 0.0, 0.0, 0, 0
        self.offset_C: np.ndarray | None = None  # of a file that is constant so far
        self.digest = hashlib.blake2b(digest_size=16)

    def add(self, wave_TC: np.ndarray) -> None:
        """Take in the next block."""
        if not wave_TC.size:
            return
        if not self.frames:
            self.offset_C = wave_TC[0].copy()
        self.frames += len(wave_TC)
        self.digest.update(wave_TC.tobytes())
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
        """Return the largest sample, or NaN if there is one."""
        return float(np.maximum(self.high, -self.low))

    def faults(self, promised: int) -> Iterator[tuple[str, str]]:
        """Yield kind and text of each fault, for the length that a header promised."""
        if text := level_fault(self.low, self.high):
            yield "level" if math.isfinite(self.peak) else "non-finite", text
        elif self.peak <= SILENT_PEAK:
            if self.frames:  # an empty file is named as such
                yield "silent", "is silent"
        elif self.offset_C is not None:
            yield "silent", f"is silent: a constant ({self.offset_C[0]:.2g})"
        if self.clipped:
            yield "clipped", f"is clipped: {self.clipped} samples at full scale"
        if self.frames < promised:
            read = f"{self.frames} of {promised} samples can be read"
            yield "truncated", f"is truncated: {read}"


def _sample_faults(
    row: Row, files: Files, is_faulty: bool, observe: Callable[[Waves], None]
) -> tuple[list[Fault], dict[str, bytes]]:
    """Return faults that only the samples show, and digests of what can be heard."""
    heard = {path: _Heard() for path in files}
    unreadable: dict[str, str] = {}
    distance = 0.0
    summed = row.mixture in files and all(path in files for path in row.summands)
    rate = max((file.header.sample_rate for file in files.values()), default=0)
    longest = max((file.header.frames for file in files.values()), default=0)
    block = BLOCK_SECONDS * rate
    for start in range(0, longest, block or 1):
        waves = {}
        for path, file in files.items():
            waves[path] = np.zeros((0, file.header.channels), np.float32)
            if start == heard[path].frames < file.header.frames:
                try:
                    waves[path] = file.read(start, block)
                except AudioError as error:
                    unreadable[path] = f"{error}, though it can be opened"
            heard[path].add(waves[path])
        observe(waves)
        alike = len({wave.shape for wave in waves.values()}) == 1
        if summed and alike and waves[row.mixture].size:
            parts = [waves[path] for path in row.summands]
            distance = max(distance, distance_from_sum(waves[row.mixture], parts))
    faults = [Fault("unreadable", text) for text in unreadable.values()]
    for path, file in files.items():
        promised = 0 if path in unreadable else file.header.frames
        for kind, text in heard[path].faults(promised):
            faults.append(Fault(kind, f"{path} {text}"))
    # Report a wrong sum only if nothing else is wrong.
    peak = max((found.peak for found in heard.values()), default=0.0)
    text = sum_fault(row, distance, peak)
    if text and not (is_faulty or faults):
        faults.append(Fault("sum", f"{row.mixture} {text}"))
    audible = {p: found for p, found in heard.items() if found.peak > SILENT_PEAK}
    return faults, {path: found.digest.digest() for path, found in audible.items()}


def count_clipped(wave_TC: np.ndarray) -> int:
    """Count the samples of [T, C] in runs of equal ones at full scale."""
    if len(wave_TC) < CLIPPED_SAMPLES:
        return 0
    flat_TC = (np.diff(wave_TC, axis=0) == 0) & (np.abs(wave_TC[1:]) >= FULL_SCALE)
    runs_TC = flat_TC[1:] & flat_TC[:-1]  # the third of three, and those that follow
    starts_TC = runs_TC & ~np.pad(runs_TC, ((1, 0), (0, 0)))[:-1]
    return int(runs_TC.sum() + (CLIPPED_SAMPLES - 1) * starts_TC.sum())
