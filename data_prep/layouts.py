"""Which files make a mixture, by folder: what `data_prep.verify` finds in a data set.

Each data set's own file has `list_rows(folder)`: a row for every mixture of every
version that the folder holds, training's and others; none where the folder is laid out
otherwise. No audio is opened, so a row's file may be missing; `duration` is 0 (that of
the mixture), and so is `sample_rate` where the place of a file does not tell it.
"""

import importlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_prep.manifest import DataError, Row

SUFFIXES = (".wav", ".flac")
# Name on the command line: module. Stems stay last: any folder of folders with like
# names could be some.
LAYOUTS = {
    "wsj0mix": "data_prep.wsj0mix",
    "stems": "data_prep.verify_stems",
}


def find_rows(
    folder: Path, layout: str | None = None, sources: Sequence[str] = ()
) -> tuple[str, list[Row]]:
    """All mixtures of a folder, and the name of its layout.

    Arguments
    ---------
    folder : Path
        A data set's folder.
    layout : str | None
        A name in `LAYOUTS`; None finds it by looking.
    sources : Sequence[str]
        Names of stems, where the layout is that of stems; none: found by looking.

    Raises
    ------
    DataError
        Nothing is found, or several layouts are, or there is no such folder.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: does not exist or is no folder")
    found = {}
    for name in [layout] if layout else LAYOUTS:
        if found and name == "stems":
            break
        options = {"sources": sources} if name == "stems" else {}
        rows = importlib.import_module(LAYOUTS[name]).list_rows(folder, **options)
        if rows:
            found[name] = rows
    if len(found) == 1:
        return next(iter(found.items()))
    if found:
        raise DataError(f"{folder}: may be {' or '.join(found)}; set --layout")
    there = ", ".join(sorted(os.listdir(folder))[:8]) or "nothing"
    raise DataError(
        f"{folder}: no mixtures of the layout {layout or ' or '.join(LAYOUTS)} found; "
        f"it holds {there}"
    )


def versions(folder: Path, splits: Sequence[str]) -> Iterator[tuple[Path, int]]:
    """The folders `wav{8k,16k}/{min,max}/SPLIT` that there are, with their rate."""
    for kilohertz in (8, 16):
        for mode in ("min", "max"):
            for split in splits:
                place = folder / f"wav{kilohertz}k" / mode / split
                if place.is_dir():
                    yield place, 1000 * kilohertz


def tree_rows(
    root: Path,
    place: Path,
    mixture: str,
    sources: Sequence[str],
    noise: str = "",
    sample_rate: int = 0,
) -> list[Row]:
    """The rows of a folder with a subfolder for each part of the mixtures.

    Arguments
    ---------
    root, place : Path
        The data set's folder, which ids leave out, and the one with the subfolders.
    mixture, sources, noise
        Names of the subfolders; no noise: empty.
    sample_rate : int
        In Hz; 0: not known.

    Returns
    -------
    list[Row]
        One for every name that lies in any of the subfolders.
    """
    parts = [mixture, *sources, *([noise] if noise else [])]
    listing = [_list_audio(place / part) for part in parts]
    rows = []
    for name in sorted(set().union(*listing)):
        paths = [
            files.get(name, str(place / part / f"{name}.wav"))
            for part, files in zip(parts, listing, strict=True)
        ]
        rows.append(
            Row(
                id=str((place / mixture / name).relative_to(root)),
                duration=0.0,
                sample_rate=sample_rate,
                mixture=paths[0],
                sources=tuple(paths[1 : 1 + len(sources)]),
                noise=paths[-1] if noise else "",
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
