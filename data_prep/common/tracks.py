"""Songs in stems, a folder for each: one look for preparing and for verifying."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.common.layout import list_audio, list_names, match
from modules.runtime.files import found_path

# What else a song may lie in.
SONG_SUFFIXES = (".wav", ".flac", ".mp3", ".mp4", ".m4a", ".ogg", ".opus", ".aif")


@dataclass(frozen=True)
class Track:
    """A song: its name and files; `mixture` is empty if the song has none."""

    name: str
    sources: tuple[str, ...]
    mixture: str = ""

    @property
    def files(self) -> tuple[str, ...]:
        """The sources, and the mixture if there is one."""
        return (*self.sources, *([self.mixture] if self.mixture else []))


def list_tracks(
    folder: Path, sources: Sequence[str], mixture: str
) -> tuple[list[Track], list[str], list[str]]:
    """Return the tracks in a folder by name, what is wrong, and what is to be noted.

    The files of a stem that is missing are as they should be called. Notes say what is
    left out, and which files are spelt otherwise.
    """
    tracks: list[Track] = []
    faults: list[str] = []
    notes: list[str] = []
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
        tracks.append(Track(entry.name, stems, paths.get(mixture, "")))
    return tracks, faults, notes


def split_folders(folder: Path, splits: Sequence[str]) -> dict[str, Path]:
    """Return those of the folders of splits that exist."""
    found = {split: found_path(folder / split) for split in splits}
    return {split: path for split, path in found.items() if path.is_dir()}
