"""Single talkers for dynamic mixing: who speaks in which file, how long, how loud.

Files are measured once, several at a time, and the result is kept in an index; after
that a start of training opens none of them. A file that cannot be used (unreadable,
truncated, silent, constant, NaN, too short) is left out with a warning that names it.
A file that changes while training reads it is an error (`check_unchanged`).
"""

import csv
import io
import logging
import math
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from modules.audio.faults import cut_short, level_fault
from modules.audio.levels import active_level_db
from modules.data.manifest import Row
from modules.runtime.errors import AudioError, DataError
from modules.runtime.files import write_text

logger = logging.getLogger(__name__)

SUFFIXES = (".wav", ".flac")

INDEX_COLUMNS = ["path", "size", "mtime_ns", "rate", "frames", "level_db", "fault"]

# Below the quietest speech and above what 16-bit dither leaves.
SILENT_DB = -75.0

# Warnings name this many files; the index names all.
NAMED = 10

EVALUATION_FOLDERS = {
    *("si_dt_05", "si_et_05", "si_dt_20", "si_et_20"),
    *("dev-clean", "dev-other", "test-clean", "test-other"),
}

LIBRISPEECH_NAME = re.compile(r"(\d+)-\d+-\d+")

WSJ0_NAME = re.compile(r"[0-9a-z]{8}", re.IGNORECASE)


class Utterance(NamedTuple):
    """One file of one talker; `level_db` is that of `modules.audio.levels`.

    `state` is the file's size and time of change when it was measured; None: not known.
    """

    path: str
    name: str
    speaker: str
    sample_rate: int
    frames: int
    level_db: float
    state: tuple[int, int] | None = None


class _Measured(NamedTuple):
    """A line of the index after the path; size and mtime say if it still holds."""

    size: int
    mtime_ns: int
    rate: int
    frames: int
    level_db: float
    fault: str


class UtterancePool:
    """Usable utterances by speaker.

    Arguments
    ---------
    utterances : Sequence[Utterance]
        Their order decides what a seed draws, so it must not vary between runs.

    Example
    -------
    >>> pool = UtterancePool([Utterance("/a.wav", "a", "ann", 8000, 16000, -20.0),
    ...                       Utterance("/b.wav", "b", "bob", 8000, 16000, -26.0)])
    >>> print(pool)
    2 utterances of 2 speakers (0.0 h)
    """

    def __init__(self, utterances: Sequence[Utterance]) -> None:
        by_speaker: dict[str, list[Utterance]] = defaultdict(list)
        for utterance in utterances:
            by_speaker[utterance.speaker].append(utterance)
        self.speakers = tuple(sorted(by_speaker))
        self.by_speaker = tuple(tuple(by_speaker[name]) for name in self.speakers)

    def __len__(self) -> int:
        return sum(map(len, self.by_speaker))

    def __str__(self) -> str:
        seconds = sum(u.frames / u.sample_rate for us in self.by_speaker for u in us)
        return (
            f"{len(self)} utterances of {len(self.speakers)} speakers "
            f"({seconds / 3600:.1f} h)"
        )

    @classmethod
    def scan(
        cls,
        folder: str | Path,
        index_file: str | Path | None = None,
        speaker: str = "auto",
        min_seconds: float = 0.5,
    ) -> "UtterancePool":
        """All WAV and FLAC files under a folder.

        Arguments
        ---------
        folder : str | Path
            Searched with all its subfolders. It must hold training speakers only.
        index_file : str | Path | None
            Where lengths and levels are kept between runs; None measures anew.
        speaker : str
            What names the speaker of a file: "folder" (the one it lies in), "wsj0"
            (the first three characters of its name), "librispeech" (the folder above
            the one it lies in), or "auto": found from the names, and logged.
        min_seconds : float
            Shorter files are left out.

        Returns
        -------
        UtterancePool
            Sorted by path.

        Raises
        ------
        DataError
            No folder, no usable file, or no speaker to be told from a file's place.
        """
        root = Path(folder).absolute()
        if not root.is_dir():
            raise DataError(f"{root}: no such folder of utterances")
        paths = sorted(
            os.path.join(place, name)
            for place, names in _walk(root)
            for name in names
            if name.lower().endswith(SUFFIXES) and not name.startswith(".")
        )
        if not paths:
            raise DataError(f"{root}: holds no {' or '.join(SUFFIXES)} file")
        inside = {
            part for path in paths for part in Path(path).parts[len(root.parts) :]
        }
        if inside & EVALUATION_FOLDERS and inside - EVALUATION_FOLDERS:
            logger.warning(
                "%s: trains on the evaluation speakers of %s as well; point to the "
                "training folder alone",
                *(root, ", ".join(sorted(inside & EVALUATION_FOLDERS))),
            )
        speaker_of = _speaker_rule(root, paths, speaker)
        named = {path: (Path(path).stem, speaker_of(path)) for path in paths}
        return cls._measure(named, index_file, min_seconds, str(root))

    @classmethod
    def from_manifest(
        cls,
        rows: Sequence[Row],
        index_file: str | Path | None = None,
        min_seconds: float = 0.5,
    ) -> "UtterancePool":
        """The sources of mixtures whose names tell the utterances they are made of.

        WSJ0-mix (`40na010x_1.9857_01xo031a_-1.9857`) and LibriMix
        (`3536-8226-0026_1673-143397-0009`) names do; one talker in noise is the
        first that is named. Of an utterance that occurs in several mixtures
        the longest cut is taken.

        Arguments
        ---------
        rows : Sequence[Row]
            The training manifest.
        index_file, min_seconds
            As in `scan`.

        Returns
        -------
        UtterancePool
            Sorted by the name of the utterance.

        Raises
        ------
        DataError
            A mixture's id does not name as many utterances as it has sources.
        """
        longest: dict[str, tuple[float, str]] = {}
        for row in rows:
            names = _utterances_of(row)
            for name, path in zip(names, row.sources, strict=True):
                if row.duration > longest.get(name, (0.0, ""))[0]:
                    longest[name] = (row.duration, path)
        named = {}
        for name in sorted(longest):
            librispeech = LIBRISPEECH_NAME.fullmatch(name)
            talker = librispeech[1] if librispeech else name[:3]
            named[longest[name][1]] = (name, talker)
        return cls._measure(named, index_file, min_seconds, "the training sources")

    @classmethod
    def _measure(
        cls,
        named: dict[str, tuple[str, str]],
        index_file: str | Path | None,
        min_seconds: float,
        origin: str,
    ) -> "UtterancePool":
        """Measure what the index lacks, leave out what cannot be used."""
        measured = _read_index(index_file)
        current = {path: _file_state(path) for path in named}
        stale = [p for p in named if p not in measured or measured[p][:2] != current[p]]
        with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
            results = threads.map(
                lambda path: _measure_file(path, current[path]), stale
            )
            measured.update(zip(stale, results, strict=True))
        if index_file is not None and (stale or measured.keys() != named.keys()):
            _write_index(index_file, {path: measured[path] for path in named})

        usable, faults = [], []
        for path, (name, speaker) in named.items():
            *state, rate, frames, level_db, fault = measured[path]
            if not fault and frames < min_seconds * rate:
                fault = f"{frames / rate:.2f} s, shorter than {min_seconds} s"
            if fault:
                faults.append(f"{_printable(path)} ({fault})")
            else:
                told = (rate, frames, level_db, tuple(state))
                usable.append(Utterance(path, name, speaker, *told))
        if faults:
            more = f", and {len(faults) - NAMED} more" if len(faults) > NAMED else ""
            logger.warning(
                "%s: left out %d of %d files: %s%s",
                *(origin, len(faults), len(named), ", ".join(faults[:NAMED]), more),
            )
        if not usable:
            raise DataError(f"{origin}: no file can be used; the first is {faults[0]}")
        return cls(usable)


def _walk(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Folders under a root and the files in each; links are followed, but only once."""
    seen = set()
    for place, folders, names in os.walk(root, followlinks=True):
        folders.sort()
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield place, names


def _speaker_rule(
    root: Path, paths: Sequence[str], speaker: str
) -> Callable[[str], str]:
    """The function from a path to its speaker, chosen by name or by looking."""
    rules: dict[str, Callable[[str], str]] = {
        "folder": lambda path: Path(path).parent.name,
        "wsj0": lambda path: Path(path).name[:3],
        "librispeech": lambda path: Path(path).parent.parent.name,
    }
    if speaker not in ("auto", *rules):
        raise DataError(f"speaker rule {speaker!r} is none of auto, {', '.join(rules)}")
    if speaker == "auto":
        files = [Path(path) for path in paths]
        if all(_is_librispeech(file) for file in files):
            speaker = "librispeech"
        elif all(
            WSJ0_NAME.fullmatch(file.stem)
            and (file.parent == root or file.stem.startswith(file.parent.name[:3]))
            for file in files
        ):
            speaker = "wsj0"
        else:
            speaker = "folder"
        logger.info("%s: speakers are told by the rule %r", root, speaker)
    depth = {"folder": 1, "wsj0": 0, "librispeech": 2}[speaker]
    for path in paths:
        if len(Path(path).parts) - len(root.parts) <= depth:
            raise DataError(
                f"{path}: lies too high under {root} for the speaker rule {speaker!r}; "
                "put every speaker's files into a folder of their own"
            )
    return rules[speaker]


def _is_librispeech(path: Path) -> bool:
    """Whether a path ends in SPEAKER/CHAPTER/SPEAKER-CHAPTER-UTTERANCE."""
    name = LIBRISPEECH_NAME.fullmatch(path.stem)
    return name is not None and path.parent.parent.name == name[1]


def _utterances_of(row: Row) -> list[str]:
    """The utterances of a mixture's sources, by its id."""
    parts = row.id.split("_")
    named = parts
    if not all(map(LIBRISPEECH_NAME.fullmatch, parts)):
        levels = "_".join(parts[1::2])
        is_wsj0 = len(parts) % 2 == 0 and re.fullmatch(r"[-+.e\d_]+", levels)
        named = parts[::2] if is_wsj0 else []
    if len(named) == len(row.sources):
        return named
    if named and row.noise and len(row.sources) == 1:  # mix_single
        return named[:1]
    raise DataError(
        f"mixture {row.id!r}: its name does not tell who speaks, as the names of "
        "WSJ0-mix and LibriMix do; for dynamic mixing set --base_folder_dm to a "
        "folder with a folder of utterances a speaker, or set --dynamic_mixing=False"
    )


def _file_state(path: str) -> tuple[int, int]:
    """Size and time of last change."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    return status.st_size, status.st_mtime_ns


def check_unchanged(utterance: Utterance) -> None:
    """Raise if a file is no longer what was measured.

    Arguments
    ---------
    utterance : Utterance
        About to be read.

    Raises
    ------
    AudioError
        Its length, rate or level is another, or it cannot be read any more. A file
        that was only touched or copied anew is as good as before.
    """
    if utterance.state is None:
        return
    try:
        status = os.stat(utterance.path)
    except OSError as error:
        raise AudioError(
            f"{utterance.path}: cannot be read ({error.strerror})"
        ) from None
    state = (status.st_size, status.st_mtime_ns)
    if state != utterance.state and (why := _change(utterance, state)):
        raise AudioError(
            f"{utterance.path}: has changed since it was measured ({why}); the same "
            "command measures it anew"
        )


@lru_cache(maxsize=1024)
def _change(utterance: Utterance, state: tuple[int, int]) -> str:
    """What a file in a new state is that it was not; empty if it holds the same."""
    found = _measure_file(utterance.path, state)
    before = (utterance.sample_rate, utterance.frames, utterance.level_db)
    if found.fault or (found.rate, found.frames, found.level_db) != before:
        return found.fault or "other samples"
    return ""


def _measure_file(path: str, state: tuple[int, int]) -> _Measured:
    """Read a file whole: rate, length, level, or why it cannot be used."""

    def faulty(fault: str, rate: int = 0, frames: int = 0) -> _Measured:
        return _Measured(*state, rate, frames, -math.inf, fault)

    try:
        path.encode()
        with soundfile.SoundFile(path) as file:
            rate, promised = file.samplerate, file.frames
            cut = cut_short(file)
            wave_TC = file.read(dtype="float32", always_2d=True)
    except UnicodeEncodeError:
        return faulty("its name is not UTF-8")
    except (soundfile.LibsndfileError, OSError) as error:
        return faulty(f"unreadable: {error}".replace("\n", " "))
    frames, channels = wave_TC.shape
    if channels != 1:
        return faulty(f"{channels} channels, not mono", rate, frames)
    if frames == 0:
        return faulty("empty", rate)
    if frames < promised:
        cut = f"holds {frames} of {promised} samples"
    if cut:
        return faulty(f"truncated: {cut}", rate, frames)
    wave_T = wave_TC[:, 0]
    if fault := level_fault(float(wave_T.min()), float(wave_T.max())):
        return faulty(fault, rate, frames)
    level_db = active_level_db(wave_T, rate)
    # An offset is no sound, however large.
    offset = float(wave_T.mean(dtype=np.float64))
    if level_db >= SILENT_DB and active_level_db(wave_T - offset, rate) < SILENT_DB:
        return faulty(f"silent: a constant ({offset:.2g})", rate, frames)
    if level_db < SILENT_DB:
        return faulty("silent", rate, frames)
    return _Measured(*state, rate, frames, level_db, "")


def _read_index(index_file: str | Path | None) -> dict[str, _Measured]:
    """What an earlier run measured; nothing if there is no (readable) index."""
    if index_file is None or not Path(index_file).exists():
        return {}
    try:
        with open(index_file, encoding="utf-8", newline="") as file:
            table = csv.reader(file, strict=True)
            if next(table, None) != INDEX_COLUMNS:
                raise ValueError("it has other columns")
            kinds = (int, int, int, int, float, str)
            return {
                path: _Measured(*(k(c) for k, c in zip(kinds, cells, strict=True)))
                for path, *cells in table
            }
    except (OSError, ValueError, csv.Error) as error:
        logger.warning(
            "%s: measuring anew, the index is damaged: %s", index_file, error
        )
        return {}


def _write_index(index_file: str | Path, measured: dict[str, _Measured]) -> None:
    """Write the index in one atomic step; names that are not UTF-8 stay out."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(INDEX_COLUMNS)
    for path, line in measured.items():
        if path == _printable(path):
            table.writerow([path, *line[:4], repr(line.level_db), line.fault])
    write_text(index_file, text.getvalue())


def _printable(path: str) -> str:
    """The path with bytes that are not UTF-8 escaped."""
    return path.encode(errors="backslashreplace").decode()
