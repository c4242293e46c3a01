"""How data sets lay out their folders, said once for preparing and for verifying.

The package of a data set, or its module `manifests`, holds `LAYOUT`, a tuple of the
layouts in use. `prepare` finds which of them a folder has by `find_parts`, and
`data_prep.verify` reads the same `LAYOUT`.
"""

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from modules.audio.io import SUFFIXES
from modules.runtime.errors import DataError
from modules.runtime.files import folded, found_path

SPLITS = ("train", "valid", "test")

# In the name of a folder: the number of a talker, or of all talkers in a parent's name.
EACH = "#"

MOST_TALKERS = 5
NOISE = "noise"
RATES = (8000, 16000)
MODES = ("min", "max")

# How many names of what a folder holds a message lists.
NAMED = 8


def folder_of(sample_rate: int, mode: str) -> str:
    """Return the folder of a version, such as wav8k/min."""
    return f"wav{sample_rate // 1000}k/{mode}"


class Parts(NamedTuple):
    """Folders of a split; a mixture is the sum of its images, or sources, and noise."""

    mixture: Path
    sources: tuple[Path, ...]
    noise: Path | None = None
    images: tuple[Path, ...] = ()

    @property
    def folders(self) -> list[Path]:
        """Mixture, sources, noise and images."""
        parts = (self.mixture, *self.sources, self.noise, *self.images)
        return [path for path in parts if path]


@dataclass(frozen=True)
class Layout:
    """Mixtures and their parts in folders: `[PARENT/][VERSION/]SPLIT/PART/NAME.wav`.

    The files of a mixture share a name, WAV or FLAC.

    Arguments
    ---------
    splits : Mapping[str, str]
        The folders of the splits, each with its manifest: train, valid or test.
        `prepare` is told which to take if several would do.
    mixtures : Mapping[str, tuple[str, ...]]
        The folders of mixtures, each with the folders whose sum it is: "s#" stands for
        s1, s2 and so on, one for each talker; "noise" comes last.
    parent : str
        Name under which the data set may lie in the folder that a user gives, such as
        "#speakers" with the number of talkers.
    versioned : bool
        Whether there are folders `wav{8k,16k}/{min,max}`.
    """

    splits: Mapping[str, str]
    mixtures: Mapping[str, tuple[str, ...]]
    parent: str = ""
    versioned: bool = True

    def summands(self, mixture: str, talkers: Iterable[int]) -> list[str]:
        """Return the folders whose sum a mixture is, for the numbers of its talkers."""
        return [
            part.replace(EACH, str(number))
            for part in self.mixtures[mixture]
            for number in (talkers if EACH in part else (1,))
        ]

    def parts(
        self,
        place: Path,
        mixture: str,
        talkers: Iterable[int],
        targets: str | None = None,
    ) -> Parts:
        """Return the parts of a mixture below the folder of a split.

        `targets` is the mixture whose sources are wanted, if they are others.
        """
        summands = self.summands(mixture, talkers)
        found = {part: found_path(place / part) for part in (mixture, *summands)}
        sources = tuple(found[part] for part in summands if part != NOISE)
        noise = found.get(NOISE)
        if targets in (None, mixture):
            return Parts(found[mixture], sources, noise)
        wanted = self.parts(place, targets, talkers).sources
        return Parts(found[mixture], wanted, noise, images=sources)

    def folders(self, split: str) -> list[str]:
        """Return the folders that a split may have."""
        return [name for name, its_split in self.splits.items() if its_split == split]

    def choices(
        self, splits: Sequence[str], train_set: str | None
    ) -> Iterator[tuple[str, ...]]:
        """Return the folders that the splits can be made of."""
        trains = self.folders("train")
        if train_set not in (None, *trains):
            expected = " or ".join(trains)
            raise DataError(f"train_set is {train_set!r}, expected {expected}")
        folders = {split: self.folders(split) for split in splits}
        if train_set and "train" in folders:
            folders["train"] = [train_set]
        return itertools.product(*folders.values())

    def roots(self, folder: Path, counts: Iterable[int]) -> list[Path]:
        """Return a folder, and those in it that are named by a number of talkers."""
        named = {self.parent.replace(EACH, str(count)): None for count in counts}
        return [folder, *(folder / name for name in named if name)]

    def check_task(self, task: str, num_spks: int) -> None:
        """Raise unless the task is a mixture of the layout and num_spks fits it."""
        if task not in self.mixtures:
            names = ", ".join(self.mixtures)
            raise DataError(f"task is {task!r}, expected one of {names}")
        sources = [part for part in self.mixtures[task] if part != NOISE]
        count = num_spks if EACH in "".join(sources) else len(sources)
        if count != num_spks:
            raise DataError(f"{task} has {count} speakers; set --num_spks={count}")


@dataclass(frozen=True)
class Tracks:
    """Songs in stems: `[SPLIT/]TRACK/STEM.wav` or `[SPLIT/]STEM/TRACK.wav`."""

    splits: tuple[str, ...] = SPLITS
    mixture: str = "mixture"  # may be missing
    # Usual stems: their folders tell the two apart where nobody names the stems.
    sources: tuple[str, ...] = ("drums", "bass", "other", "vocals")


class _Place(NamedTuple):
    """A place where a layout may lie: its folders in each split."""

    layout: Layout
    root: Path
    version: str
    splits: dict[str, Parts]

    @property
    def folders(self) -> list[Path]:
        """All folders."""
        return [path for parts in self.splits.values() for path in parts.folders]

    @property
    def missing(self) -> list[Path]:
        """Folders that do not exist."""
        return [path for path in self.folders if not path.is_dir()]

    def describe(self) -> str:
        """Return the folders in the notation of the shell."""
        names = ",".join(parts.mixture.parent.name for parts in self.splits.values())
        first = next(iter(self.splits.values()))
        folders = ",".join(path.name for path in first.folders)
        version = f"{self.version}/" if self.version else ""
        return f"{version}{{{names}}}/{{{folders}}}"


def find_parts(
    layouts: Sequence[Layout],
    data_folder: str | Path,
    num_spks: int,
    sample_rate: int,
    mode: str,
    mixture: str | None = None,
    targets: str | None = None,
    train_set: str | None = None,
    splits: Sequence[str] = SPLITS,
) -> dict[str, Parts]:
    """Find which layout a folder has by looking; return the folders of its splits.

    `data_folder` is the data set's or its parent. `mixture` chooses among the folders
    of mixtures, `train_set` among those to train on; None where there is one. `targets`
    is the folder of mixtures whose sources are wanted instead, those of `mixture` being
    its images. A DataError says that none or more than one layout fits, or that the
    mixtures have more than `num_spks` sources.
    """
    if mode not in MODES:
        raise DataError(f"mode is {mode!r}, expected 'min' or 'max'")
    data_folder = existing(data_folder)
    places: list[_Place] = []
    talkers = range(1, num_spks + 1)
    for layout in layouts:
        name = mixture or next(iter(layout.mixtures))
        counted = any(EACH in part for part in layout.mixtures[name])
        counts = [num_spks] if counted else range(2, MOST_TALKERS + 1)
        version = folder_of(sample_rate, mode) if layout.versioned else ""
        for root in layout.roots(data_folder, counts):
            for folders in layout.choices(splits, train_set):
                parts_of = {
                    split: layout.parts(root / version / folder, name, talkers, targets)
                    for split, folder in zip(splits, folders, strict=True)
                }
                places.append(_Place(layout, root, version, parts_of))
    complete = [place for place in places if not place.missing]
    if not complete:
        raise DataError(_nothing_found(data_folder, places))
    if len(complete) > 1:
        raise DataError(_several_found(data_folder, complete))
    layout, _, _, parts_of = complete[0]
    for parts in parts_of.values():
        place, name = parts.mixture.parent, parts.mixture.name
        one_more = layout.parts(place, name, [num_spks + 1]).sources[-1]
        if one_more not in parts.folders and one_more.is_dir():
            fault = f"exists, so the mixtures have more than {num_spks} sources"
            raise DataError(f"{one_more} {fault}; set --num_spks={num_spks + 1}")
    return parts_of


def missing_splits(layout: Layout, place: Path, splits: Sequence[str]) -> Iterator[str]:
    """Say which of some splits a version of a data set lacks."""
    for split in splits:
        paths = [found_path(place / name) for name in layout.folders(split)]
        if not any(map(Path.is_dir, paths)):
            yield missing_folder(paths[0])


def _several_found(data_folder: Path, complete: Sequence[_Place]) -> str:
    """Name the places that fit, and say how to choose one."""
    first = complete[0]
    if all(p.layout is first.layout and p.root == first.root for p in complete):
        trains = [place.splits["train"].mixture.parent.name for place in complete]
        found = f"has the training sets {' and '.join(trains)}"
        return f"{data_folder}: {found}; choose by --train_set={trains[0]}"
    found = " and ".join(f"{place.root}/{place.describe()}" for place in complete)
    return f"{data_folder}: found {found}; point data_folder at one of them"


def _nothing_found(data_folder: Path, places: Sequence[_Place]) -> str:
    """Say which folder is missing, or what was looked for and what is there instead."""
    best = min(places, key=lambda place: len(place.missing))
    if len(best.missing) < len(best.folders):
        return missing_folder(best.missing[0])
    inner = {f"{p.root.name}/": None for p in places if p.root != data_folder}
    also = f" and in {' and '.join(inner)}" if inner else ""
    looked_for = ", ".join({place.describe(): None for place in places})
    hint = "; generate it, or choose another --data_folder, --sample_rate or --mode"
    return (
        f"{data_folder}: no mixtures found; looked there{also} for {looked_for}; it "
        f"holds {list_names(data_folder)}{hint if best.layout.versioned else ''}"
    )


def missing_folder(folder: Path) -> str:
    """Say that a folder of a layout, or the whole split, is missing."""
    folder = folder if folder.parent.is_dir() else folder.parent
    return f"{folder}: does not exist, but other folders of its layout do"


def existing(folder: str | Path) -> Path:
    """Return the absolute path of a folder; raise if there is none."""
    if not Path(folder).is_dir():
        raise DataError(f"{Path(folder).absolute()} does not exist or is no folder")
    return Path(folder).absolute()


def list_names(folder: Path) -> str:
    """Name the first things in a folder, for a message."""
    return ", ".join(sorted(os.listdir(folder))[:NAMED]) or "nothing"


def list_audio(folder: Path, faults: list[str]) -> dict[str, os.DirEntry]:
    """Return a folder's audio files by their stem, sorted, without hidden files.

    Of two that differ only in their suffix the first is taken; `faults` gets a line.
    """
    with os.scandir(folder) as scanned:
        entries = sorted(scanned, key=lambda entry: entry.name)
    found: dict[str, os.DirEntry] = {}
    for entry in entries:
        stem, suffix = os.path.splitext(entry.name)
        if suffix.lower() not in SUFFIXES or stem.startswith("."):
            continue
        if found.setdefault(stem, entry) is not entry:
            faults.append(f"{entry.path}: there is {found[stem].name} as well")
    return found


def match(
    names: Iterable[str], entries: Mapping[str, os.DirEntry]
) -> dict[str, os.DirEntry]:
    """Return the entry of each name that has one, or the only one that is like it.

    Names are alike that differ in nothing but case or Unicode form.
    """
    names = list(names)
    alike: dict[str, list[os.DirEntry]] = {}
    for stem in entries.keys() - set(names):
        alike.setdefault(folded(stem), []).append(entries[stem])
    found = {}
    for name in names:
        fitting = [entries[name]] if name in entries else alike.get(folded(name), [])
        if len(fitting) == 1:
            found[name] = fitting[0]
    return found
