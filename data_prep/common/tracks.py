"""Songs in stems, a folder for each song or each stem: for preparing and verifying."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from data_prep.common.layout import list_audio, list_names, match
from modules.audio.io import Header
from modules.data.manifest import Row
from modules.runtime.errors import DataError
from modules.runtime.files import found_path

# What else a song may lie in.
SONG_SUFFIXES = (".wav", ".flac", ".mp3", ".mp4", ".m4a", ".ogg", ".opus", ".aif")

# A stem that a song lacks is an error, or silent by declaration.
MissingStems = Literal["refuse", "silent"]


def list_tracks(
    folder: Path,
    sources: Sequence[str],
    mixture: str,
    faults: list[str],
    notes: list[str],
) -> list[Row]:
    """Return the tracks in a folder by name; no file is opened.

    `duration` and `sample_rate` are 0; a stem that is missing has the name that it
    should have. `faults` gets what is wrong, `notes` what is left out or spelt
    otherwise. A DataError says that there are folders both of songs and of stems.
    """
    listed = _by_stem if has_stem_folders(folder, sources) else _by_song
    tracks: list[Row] = []
    for track, paths, found in listed(folder, (*sources, mixture), faults, notes):
        paths |= {name: file.path for name, file in found.items()}
        stems = tuple(paths[name] for name in sources)
        whole = paths[mixture] if mixture in found else ""
        tracks.append(Row(track, 0.0, 0, whole, stems, channels=2))
    return tracks


def declare(tracks: Sequence[Row], missing: MissingStems) -> list[Row]:
    """Return tracks in which a stem that is missing has no path, if it is silent."""
    if missing == "refuse" or any(row.channels == 1 for row in tracks):
        return list(tracks)
    held = [[p * os.path.lexists(p) for p in row.sources] for row in tracks]
    return [replace(r, sources=tuple(h)) for r, h in zip(tracks, held, strict=True)]


def has_stem_folders(
    folder: Path, sources: Sequence[str], splits: Sequence[str] = ()
) -> bool:
    """Whether a folder, or that of a split, holds `STEM/TRACK.wav`."""
    if there := split_folders(folder, splits):
        return any(has_stem_folders(place, sources) for place in there.values())
    inner = {entry.name: entry for entry in _entries(folder) if entry.is_dir()}
    named = [entry.name for entry in match(sources, inner).values()]
    if not named:
        return False
    audio = {name: list_audio(folder / name, []) for name in inner}
    songs = [name for name in inner if match(sources, audio[name])]
    stems = [name for name in named if audio[name] and name not in songs]
    if stems and songs:
        fault = f"holds folders of stems ({stems[0]}) and of songs ({songs[0]})"
        raise DataError(f"{folder}: {fault}; keep them in two folders")
    return bool(stems)


def _entries(folder: Path) -> list[os.DirEntry]:
    """Return what is in a folder and not hidden, by name."""
    with os.scandir(folder) as entries:
        seen = [entry for entry in entries if not entry.name.startswith(".")]
    return sorted(seen, key=lambda entry: entry.name)


# A track, where its files should be by stem, and those that are there.
_Found = tuple[str, dict[str, str], Mapping[str, os.DirEntry]]


def _by_song(
    folder: Path, names: Sequence[str], faults: list[str], notes: list[str]
) -> Iterator[_Found]:
    """Yield the tracks of a folder of songs."""
    for entry in _entries(folder):
        place = folder / entry.name
        if not entry.is_dir():
            if place.suffix.lower() in SONG_SUFFIXES:
                notes.append(f"{place}: is left out, it is no folder of stems")
            continue
        twins: list[str] = []
        audio = list_audio(place, twins)
        found = match(names, audio)
        if not found.keys() & set(names[:-1]):
            held = f"it has no stem; it holds {list_names(place)}"
            notes.append(f"{place}: is left out, {held}")
            continue
        faults += twins
        notes += _respelt(found)
        absent = [name for name in names[:-1] if name not in found]
        others = audio.keys() - {Path(file.name).stem for file in found.values()}
        if absent and others:
            lacks = f"has no {', '.join(absent)}; not used:"
            notes.append(f"{place}: {lacks} {', '.join(sorted(others))}")
        yield entry.name, {name: str(place / f"{name}.wav") for name in names}, found


def _by_stem(
    folder: Path, names: Sequence[str], faults: list[str], notes: list[str]
) -> Iterator[_Found]:
    """Yield the tracks of folders of stems: files that share a name are a track."""
    folders = match(names, {e.name: e for e in _entries(folder) if e.is_dir()})
    notes += _respelt(folders)
    places = {name: folder / name for name in names}
    places |= {name: folder / entry.name for name, entry in folders.items()}
    audio = {name: list_audio(places[name], faults) for name in folders}
    for track in sorted(set().union(*audio.values())):
        found = {name: files[track] for name, files in audio.items() if track in files}
        if found.keys() == {names[-1]}:
            notes.append(f"{found[names[-1]].path}: is left out, it has no stem")
            continue
        yield track, {n: str(p / f"{track}.wav") for n, p in places.items()}, found


def _respelt(found: Mapping[str, os.DirEntry]) -> Iterator[str]:
    """Name what is spelt otherwise."""
    for name, entry in found.items():
        if name not in (entry.name, Path(entry.name).stem):
            yield f"{entry.path}: is taken for {name}"


def stem_name(row: Row, path: str) -> str:
    """Return the name of the stem that a track's file holds."""
    return Path(path).parent.name if row.by_stem else Path(path).stem


def split_folders(folder: Path, splits: Sequence[str]) -> dict[str, Path]:
    """Return those of the folders of splits that exist."""
    found = {split: found_path(folder / split) for split in splits}
    return {split: path for split, path in found.items() if path.is_dir()}


def ends_early(headers: Mapping[str, Header]) -> Iterator[str]:
    """Yield which file of a track ends first, and how long before the last."""
    ends = {path: header.frames for path, header in headers.items()}
    if len(set(ends.values())) > 1:
        first = min(ends, key=lambda path: (ends[path], path))
        last = min(ends, key=lambda path: (-ends[path], path))
        seconds = (ends[last] - ends[first]) / headers[first].sample_rate
        name = os.path.relpath(last, Path(first).parent)
        yield f"{first} ends {seconds:.3g} s before {name}"
