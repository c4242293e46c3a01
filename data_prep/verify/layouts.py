"""Find what a data set's folder holds, by the layouts of all packages of `data_prep`.

A row is made for every mixture of every version that a folder holds, whatever training
uses of it. No audio is opened, so a row's file may be missing; `duration` is 0 (that of
the mixture), and so is `sample_rate` where the place of a file does not tell it.
"""

import importlib
import pkgutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import data_prep
from data_prep.common.folders import list_rows
from data_prep.common.layout import (
    MODES,
    MOST_TALKERS,
    RATES,
    SPLITS,
    Layout,
    Tracks,
    existing,
    folder_of,
    list_audio,
    list_names,
    missing_folder,
    missing_splits,
)
from data_prep.common.tracks import has_stem_folders, list_tracks, split_folders
from data_prep.verify.rows import NOTE, Fault
from modules.data.manifest import Row
from modules.runtime.errors import DataError
from modules.runtime.files import found_path

STEMS = "stems"
Layouts = tuple[Layout | Tracks, ...]
Placed = tuple[str, Row]  # a mixture or track with its split, "" where it has none


def find_layouts() -> dict[str, Layouts]:
    """Return the layouts of all data sets by the names of their packages.

    A layout of stems is called so, because many data sets have it. It comes last:
    folders of other things with like names could be stems.
    """
    found: dict[str, Layouts] = {}
    for _, name, is_package in pkgutil.iter_modules(data_prep.__path__):
        layouts = layouts_in(f"data_prep.{name}") if is_package else ()
        if layouts and layouts not in found.values():
            is_stems = any(isinstance(layout, Tracks) for layout in layouts)
            found[STEMS if is_stems else name] = layouts
    return dict(sorted(found.items(), key=lambda pair: pair[0] == STEMS))


def layouts_in(name: str) -> Layouts:
    """Return `LAYOUT` of a module or of its module `manifests`; else nothing."""
    module = importlib.import_module(name)
    names = [one.name for one in pkgutil.iter_modules(getattr(module, "__path__", ()))]
    if not hasattr(module, "LAYOUT") and "manifests" in names:
        module = importlib.import_module(f"{name}.manifests")
    return getattr(module, "LAYOUT", ())


def find_rows(
    folder: Path,
    layout: str | None = None,
    sources: Sequence[str] = (),
    splits: Sequence[str] = SPLITS,
) -> tuple[str, list[Placed], list[Fault]]:
    """Return the name of a folder's layout, a row for each mixture or track, and notes.

    `layout` is a data set of `data_prep`, "stems", or any module that has `LAYOUT`,
    `sources` the names of stems; both are found by looking if not given. The faults and
    notes are those of the folder: of `splits` that are missing, of what is left out. A
    DataError says that nothing is found, or that several layouts fit.
    """
    existing(folder)
    known = find_layouts()
    if layout is not None:
        known = {layout: known[layout] if layout in known else _import(layout, known)}
    elif has_stem_folders(folder, sources or Tracks.sources, SPLITS):
        known = {STEMS: known[STEMS]}  # `mixture` alone may be that of talkers
    found: dict[str, tuple[list[Placed], list[Fault]]] = {}
    for name, layouts in known.items():
        if found and name == STEMS:
            break
        notes: list[Fault] = []
        asked = sources, splits, notes
        placed = [pair for one in layouts for pair in _rows(folder, one, *asked)]
        if placed:
            found[name] = placed, notes
    if not found:
        names = " or ".join(known)
        fault = f"no mixtures of the layout {names} found; it holds"
        raise DataError(f"{folder}: {fault} {list_names(folder)}")
    if len(found) > 1:
        raise DataError(f"{folder}: may be {' or '.join(found)}; set --layout")
    ((name, (placed, notes)),) = found.items()
    return name, placed, notes


def _import(name: str, known: dict[str, Layouts]) -> Layouts:
    """Return the layouts of a data set that lies outside of `data_prep`."""
    layouts: Layouts = ()
    with suppress(ImportError):
        layouts = layouts_in(name)
    if not layouts:
        names = ", ".join(known)
        raise DataError(f"--layout={name}: expected {names} or a module with LAYOUT")
    return layouts


def _rows(
    folder: Path,
    layout: Layout | Tracks,
    sources: Sequence[str],
    splits: Sequence[str],
    notes: list[Fault],
) -> Iterator[Placed]:
    """Yield the rows of everything in a folder that has a layout."""
    if isinstance(layout, Tracks):
        yield from _rows_of_tracks(folder, layout, sources, notes)
        return
    versions = [(folder_of(rate, mode), rate) for rate in RATES for mode in MODES]
    for root in layout.roots(folder, range(1, MOST_TALKERS + 1)):
        for version, rate in versions if layout.versioned else [("", 0)]:
            place = found_path(root / version)
            rows = list(_rows_of_version(folder, place, layout, rate, notes))
            missing = missing_splits(layout, place, splits) if rows else ()
            notes += [Fault("missing", text) for text in missing]
            yield from rows


def _rows_of_version(
    folder: Path, version: Path, layout: Layout, rate: int, notes: list[Fault]
) -> Iterator[Placed]:
    """Yield the rows of all splits; a part that one of them has is expected of all."""
    there = split_folders(version, tuple(layout.splits))

    def exists(part: str) -> bool:
        return any(found_path(split / part).is_dir() for split in there.values())

    for mixture in filter(exists, layout.mixtures):
        fixed = set(layout.mixtures[mixture])
        talkers = [
            number
            for number in range(1, MOST_TALKERS + 1)
            if any(map(exists, {*layout.summands(mixture, [number])} - fixed))
        ]
        for name, split in there.items():
            parts = layout.parts(split, mixture, talkers or [1])
            twins: list[str] = []
            listing = {
                place: list_audio(place, twins) if place.is_dir() else {}
                for place in parts.folders
            }
            absent = [path for path in parts.folders if not path.is_dir()]
            twins += map(missing_folder, absent[:1])
            rows, spare = list_rows(parts, listing, rate)
            notes += [Fault("missing", text) for text in twins]
            notes += [Fault(NOTE, text) for text in spare]
            place = parts.mixture.relative_to(folder)
            for row in rows:
                yield layout.splits[name], replace(row, id=str(place / row.id))


def _rows_of_tracks(
    folder: Path, layout: Tracks, sources: Sequence[str], notes: list[Fault]
) -> Iterator[Placed]:
    """Yield a row for each track, whatever of it is missing.

    Without names of sources they are the stems that most of the tracks have, or the
    folders beside one of a usual stem.
    """
    places = list(split_folders(folder, layout.splits).values()) or [folder]
    if not sources:
        tracks = [track for place in places for track in place.iterdir()]
        listed = [list_audio(track, []) for track in tracks if track.is_dir()]
        counts = Counter(name for files in listed for name in files)
        counts.pop(layout.mixture, None)
        most = sum(1 for files in listed if files) / 2
        sources = sorted(name for name in counts if counts[name] > most)
        if has_stem_folders(folder, layout.sources, layout.splits):
            names = {track.name for track in tracks if track.is_dir()}
            sources = sorted({n for n in names if n[0] != "."} - {layout.mixture})
    for place in places if sources else ():
        faults: list[str] = []
        left_out: list[str] = []
        for track in list_tracks(place, sources, layout.mixture, faults, left_out):
            name = str((place / track.id).relative_to(folder))
            yield "", replace(track, id=name)
        notes += [Fault("missing", text) for text in faults]
        notes += [Fault(NOTE, text) for text in left_out]
