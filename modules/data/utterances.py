"""Single talkers for dynamic mixing: who speaks in which file, how long, how loud.

Files are measured once, and the result is kept in an index; after that a start of
training opens none of them. A file that cannot be used (unreadable, truncated, silent,
constant, NaN, too short) is left out with a warning that names it. A file that changes
while training reads it is an error (`check_unchanged`).
"""

import logging
import math
import os
import re
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from modules.audio.faults import SILENT_SPEECH_DB
from modules.audio.io import SUFFIXES, open_audio, sample_fault
from modules.audio.levels import active_level_db
from modules.data.index import mark, measure_once, printable
from modules.data.manifest import Row
from modules.runtime.errors import AudioError, DataError, first_of
from modules.runtime.files import walk_files

logger = logging.getLogger(__name__)

# Number of files that a warning names, and of speakers with a file of theirs.
NAMED, EXAMPLES = 10, 3

EVALUATION_FOLDERS = {
    *("si_dt_05", "si_et_05", "si_dt_20", "si_et_20"),
    *("dev-clean", "dev-other", "test-clean", "test-other"),
}

LIBRISPEECH_NAME = re.compile(r"(\d+)-\d+-\d+")

# Who speaks in a file: the group of a pattern that is searched in its path below the
# folder. The first rule that fits more than half of the files holds for all of them.
SPEAKER_RULES = {
    "librispeech": r"(?:^|/)(\d+)/(\d+)/\1[-_]\2[-_][\d_]+\.\w+$",  # LibriTTS, MLS
    "voxceleb": r"(?:^|/)(id\d+)/[^/]+/\d+\.\w+$",
    "wsj0": r"(?i)(?:^|/)(\w{3})/\1[a-z]\w{4}\.\w+$|^(\d\w\w)[a-z]\w{4}\.\w+$",
    "folder": r"([^/]+)/[^/]+$",  # VCTK
}


class Utterance(NamedTuple):
    """One file of one talker; `level_db` is its active-speech level.

    `fingerprint` is that of the file when it was measured; "" if it is not known.
    """

    path: str
    name: str
    speaker: str
    sample_rate: int
    frames: int
    level_db: float
    fingerprint: str = ""


class _Measured(NamedTuple):
    """The values of a file in the index; `fault` is "" where it can be used."""

    rate: int
    frames: int
    level_db: float
    fault: str = ""


INDEX_COLUMNS = {"path": str, "fingerprint": str, **_Measured.__annotations__}


class UtterancePool:
    """Usable utterances by speaker.

    The order of `utterances` decides what a seed draws: it must not vary between runs.
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
        utterances = f"{len(self)} utterances of {len(self.speakers)} speakers"
        return f"{utterances} ({seconds / 3600:.1f} h)"

    @classmethod
    def scan(
        cls,
        folder: str | Path,
        index_file: str | Path | None = None,
        speaker_pattern: str | None = None,
        min_seconds: float = 0.5,
    ) -> "UtterancePool":
        """Return all WAV and FLAC files under a folder of training speakers, by path.

        `index_file` keeps lengths and levels between runs; None measures anew. Files
        shorter than `min_seconds` are left out, and those whose path names no speaker.
        `speaker_pattern` is one of `SPEAKER_RULES` or a regular expression, searched in
        the path below the folder: its group, or all that it matches, is the speaker.
        None takes the rule that the paths show. A DataError says that nothing is found.
        """
        root = Path(folder).absolute()
        if not root.is_dir():
            raise DataError(f"{root}: no such folder of utterances")
        paths = sorted(
            os.path.join(place, name)
            for place, names in walk_files(root)
            for name in names
            if name.lower().endswith(SUFFIXES) and not name.startswith(".")
        )
        if not paths:
            raise DataError(f"{root}: holds no {' or '.join(SUFFIXES)} file")
        below = [path.removeprefix(str(root)).lstrip("/") for path in paths]
        folders = {path.rpartition("/")[0] for path in below}
        inside = {part for folder in folders for part in folder.split("/")}
        if inside & EVALUATION_FOLDERS:
            logger.warning(
                "%s: trains on the evaluation speakers of %s as well; point to the "
                "training folder alone",
                *(root, ", ".join(sorted(inside & EVALUATION_FOLDERS))),
            )
        rule, speakers = _name_speakers(below, speaker_pattern)
        del below  # of hundreds of thousands of files
        # Quicker than a `Path`, of hundreds of thousands.
        stems = (path.rpartition("/")[2].rpartition(".")[0] for path in paths)
        named = dict(zip(paths, zip(stems, speakers, strict=True), strict=True))
        told = f"the rule {rule!r}"
        return cls._measure(named, index_file, min_seconds, str(root), told)

    @classmethod
    def from_manifest(
        cls,
        rows: Sequence[Row],
        index_file: str | Path | None = None,
        min_seconds: float = 0.5,
    ) -> "UtterancePool":
        """Return the sources of mixtures, sorted by the name of their utterance.

        The id of a mixture names its utterances in WSJ0-mix
        (`40na010x_1.9857_01xo031a_-1.9857`) and LibriMix
        (`3536-8226-0026_1673-143397-0009`); one talker in noise is the first that is
        named. Of the cuts of an utterance in several mixtures the longest is taken.
        Arguments and errors are as in `scan`.
        """
        longest: dict[tuple[str, str], tuple[float, str]] = {}
        for row in rows:
            for spoken, path in zip(spoken_in(row), row.sources, strict=True):
                if row.duration > longest.get(spoken, (0.0, ""))[0]:
                    longest[spoken] = (row.duration, path)
        named = {path: spoken for spoken, (_, path) in sorted(longest.items())}
        origin, rule = "the training sources", "the names of the mixtures"
        return cls._measure(named, index_file, min_seconds, origin, rule)

    @classmethod
    def _measure(
        cls,
        named: Mapping[str, tuple[str, str]],
        index_file: str | Path | None,
        min_seconds: float,
        origin: str,
        rule: str,
    ) -> "UtterancePool":
        """Say who speaks; measure what the index lacks, leave out what is faulty."""
        first: dict[str, str] = {}
        now: dict[str, str] = {}
        faults: dict[str, str] = {}
        for path, (_, speaker) in named.items():
            try:
                if not speaker:
                    raise DataError(f"names no speaker by {rule}")
                if speaker not in first:
                    first[speaker] = f"{speaker} ({printable(path)})"
                now[path] = mark(path)
            except DataError as error:  # of a link to nowhere
                faults[path] = error.args[0].removeprefix(f"{path}: ")
        told = f"{len(first)} speakers by {rule}, such as "
        logger.info("%s: %s%s", origin, told, ", ".join([*first.values()][:EXAMPLES]))
        measured = measure_once(index_file, INDEX_COLUMNS, now, _measure_file)
        usable = []
        for path, (rate, frames, level_db, fault) in measured.items():
            if not fault and frames < min_seconds * rate:
                fault = f"{frames / rate:.2f} s, shorter than {min_seconds} s"
            if fault:
                faults[path] = fault
            else:
                name, speaker = named[path]
                found = (rate, frames, level_db, now[path])
                usable.append(Utterance(path, name, speaker, *found))
        listed = [f"{printable(path)} ({fault})" for path, fault in faults.items()]
        if listed:
            left_out = f"left out {len(listed)} of {len(named)} files"
            logger.warning("%s: %s: %s", origin, left_out, first_of(listed, NAMED))
        if not usable:
            raise DataError(f"{origin}: no file can be used; the first is {listed[0]}")
        return cls(usable)


def _name_speakers(
    paths: Sequence[str], wanted: str | None
) -> tuple[str, Sequence[str]]:
    """Return the rule in use, and the speaker of each path; "" where it names none."""

    def search(rule: str) -> list[str]:
        try:
            found = map(re.compile(SPEAKER_RULES.get(rule, rule)).search, paths)
        except re.error as error:
            text = f"neither {', '.join(SPEAKER_RULES)} nor a regular expression"
            raise DataError(f"speaker_pattern: {rule!r} is {text} ({error})") from None
        named = [next(filter(None, m.groups()), m[0]) if m else "" for m in found]
        return [sys.intern(name.replace("/", "_")) for name in named]

    if wanted:
        return wanted, search(wanted)
    found = {rule: search(rule) for rule in SPEAKER_RULES}
    for rule, speakers in found.items():
        if rule != "folder" and 2 * sum(map(bool, speakers)) > len(paths):
            return rule, speakers
    # A file of one of the other corpora among these is left out, not taken for another
    # speaker's.
    options = [set(filter(None, names)) for names in zip(*found.values(), strict=True)]
    return "folder", [names.pop() if len(names) == 1 else "" for names in options]


def spoken_in(row: Row) -> list[tuple[str, str]]:
    """Return utterance and speaker of a mixture's sources, as its id names them."""
    parts = row.id.split("_")
    named = parts
    if not all(map(LIBRISPEECH_NAME.fullmatch, parts)):
        levels = "_".join(parts[1::2])
        is_wsj0 = len(parts) % 2 == 0 and re.fullmatch(r"[-+.e\d_]+", levels)
        named = parts[::2] if is_wsj0 else []
    if named and row.noise and len(row.sources) == 1:  # mix_single
        named = named[:1]
    if len(named) == len(row.sources):
        found = zip(map(LIBRISPEECH_NAME.fullmatch, named), named, strict=True)
        return [(name, match[1] if match else name[:3]) for match, name in found]
    raise DataError(
        f"mixture {row.id!r}: its name does not tell who speaks, as those of WSJ0-mix "
        "and LibriMix do; set --base_folder_dm to a folder that has one of utterances "
        "for each speaker, or --dynamic_mixing=False"
    )


def check_unchanged(utterance: Utterance) -> None:
    """Raise if a file holds other samples than were measured, whatever its time."""
    if not utterance.fingerprint:
        return
    now = mark(utterance.path)
    if now != utterance.fingerprint and (why := _change(utterance, now)):
        raise AudioError(
            f"{utterance.path}: has changed since it was measured ({why}); the same "
            "command measures it anew"
        )


@lru_cache(maxsize=1024)
def _change(utterance: Utterance, now: str) -> str:
    """Say how a file with a new fingerprint differs; "" if it holds the same."""
    found = _measure_file(utterance.path)
    before = (utterance.sample_rate, utterance.frames, utterance.level_db)
    return found.fault or ("other samples" if found[:3] != before else "")


def _measure_file(path: str) -> _Measured:
    """Read a file whole: rate, length, level, or why it cannot be used."""

    try:
        with open_audio(path) as file:
            rate, channels, promised = file.header
            fault, wave_TC = file.fault, file.read()
    except AudioError as error:
        reason = error.args[0].removeprefix(f"{path}: ")
        return _Measured(0, 0, -math.inf, reason)
    frames, wave_T, level_db = len(wave_TC), wave_TC[:, 0], -math.inf
    if channels != 1:
        fault = f"{channels} channels, not mono"
    elif frames < promised:
        fault = f"is truncated: holds {frames} of {promised} samples"
    fault = fault or sample_fault(wave_T)
    if not fault:
        level_db = active_level_db(wave_T, rate)
        # An offset is no sound, however large.
        offset = float(wave_T.mean(dtype=np.float64))
        if level_db < SILENT_SPEECH_DB:
            fault = "silent"
        elif active_level_db(wave_T - offset, rate) < SILENT_SPEECH_DB:
            fault = f"silent: a constant ({offset:.2g})"
    return _Measured(rate, frames, -math.inf if fault else level_db, fault)
