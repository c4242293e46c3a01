"""Songs in stems, a folder for each: one look for preparing and for verifying."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from data_prep.common.layout import list_audio, list_names, match
from modules.audio.io import Header
from modules.data.manifest import Row
from modules.runtime.files import found_path

# What else a song may lie in.
SONG_SUFFIXES = (".wav", ".flac", ".mp3", ".mp4", ".m4a", ".ogg", ".opus", ".aif")


def list_tracks(
    folder: Path,
    sources: Sequence[str],
    mixture: str,
    faults: list[str],
    notes: list[str],
) -> list[Row]:
    """Return the tracks in a folder by name; no file is opened.

    `duration` and `sample_rate` are 0; a stem that is missing has the name that it
    should have. `faults` gets what is wrong, `notes` what is left out or
    spelt otherwise.
    """
    tracks: list[Row] = []
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if not entry.is_dir():
            if entry.suffix.lower() in SONG_SUFFIXES:
                notes.append(f"{entry}: is left out, it is no folder of stems")
            continue
        twins: list[str] = []
        found = match((*sources, mixture), list_audio(entry, twins))
        if not found.keys() & set(sources):
            there = list_names(entry)
            notes.append(f"{entry}: is left out, it has no stem; it holds {there}")
            continue
        faults += twins
        for name, file in found.items():
            if Path(file.name).stem != name:
                notes.append(f"{file.path}: is taken for {name}")
        paths = {name: str(entry / f"{name}.wav") for name in sources}
        paths |= {name: file.path for name, file in found.items()}
        stems = tuple(paths[name] for name in sources)
        whole = paths.get(mixture, "")
        tracks.append(Row(entry.name, 0.0, 0, whole, stems, channels=2))
    return tracks


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
        yield f"{first} ends {seconds:.3g} s before {Path(last).name}"
