"""How a data set lays out its folders."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from modules.data.manifest import Row

SUFFIXES = (".wav", ".flac")

# Stands for 1, 2, ... as far as there are folders: the number of talkers varies.
EACH = "#"

MOST_TALKERS = 5

VERSIONS = tuple(f"wav{k}k/{mode}" for k in (8, 16) for mode in ("min", "max"))


@dataclass(frozen=True)
class Tree:
    """Folders of parts: `[PARENT/][VERSION/]SPLIT/PART/NAME.wav`.

    `mixtures` maps the folder of mixtures to those whose sum it is.
    """

    splits: tuple[str, ...]
    mixtures: dict[str, tuple[str, ...]] = field(hash=False)
    parents: tuple[str, ...] = ()
    versions: tuple[str, ...] = VERSIONS


def _rows_of(folder: Path, trees: Sequence[Tree]) -> list[Row]:
    """The rows of all versions of a data set."""
    return [
        row
        for tree in trees
        for root in (folder, *(folder / parent for parent in tree.parents))
        for version in tree.versions
        for row in _rows_of_version(folder, root / version, tree, _rate_of(version))
    ]


def _rate_of(version: str) -> int:
    """In Hz; 0 where the version does not tell."""
    return 1000 * int(version.split("k")[0].removeprefix("wav")) if version else 0


def _rows_of_version(folder: Path, version: Path, tree: Tree, rate: int) -> list[Row]:
    """The rows of all splits; a part that one of them has is expected of all."""
    splits = [version / split for split in tree.splits if (version / split).is_dir()]

    def exists(part: str) -> bool:
        return any((split / part).is_dir() for split in splits)

    rows = []
    for mixture, parts in tree.mixtures.items():
        if not exists(mixture):
            continue
        summands = [
            part.replace(EACH, str(number))
            for part in parts
            for number in (range(1, MOST_TALKERS + 1) if EACH in part else (1,))
            if EACH not in part or exists(part.replace(EACH, str(number)))
        ]
        for split in splits:
            rows += _rows_of_split(folder, split, mixture, summands, rate)
    return rows


def _rows_of_split(
    folder: Path, split: Path, mixture: str, summands: Sequence[str], rate: int
) -> list[Row]:
    """A row for every name that lies in any of the parts' folders."""
    parts = [mixture, *summands]
    listing = [_list_audio(split / part) for part in parts]
    rows = []
    for name in sorted(set().union(*listing)):
        paths = [
            files.get(name, str(split / part / f"{name}.wav"))
            for part, files in zip(parts, listing, strict=True)
        ]
        in_noise = summands[-1] == "noise"
        rows.append(
            Row(
                id=str((split / mixture / name).relative_to(folder)),
                duration=0.0,
                sample_rate=rate,
                mixture=paths[0],
                sources=tuple(paths[1:-1] if in_noise else paths[1:]),
                noise=paths[-1] if in_noise else "",
            )
        )
    return rows


def _list_audio(folder: Path) -> dict[str, str]:
    """Paths of a folder's audio by their name without suffix, none hidden."""
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        split = [(os.path.splitext(entry.name), entry.path) for entry in entries]
    return {
        stem: path
        for (stem, suffix), path in split
        if suffix.lower() in SUFFIXES and not stem.startswith(".")
    }
