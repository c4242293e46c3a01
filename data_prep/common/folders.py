"""Write the manifests of a data set that has a folder for each part of its mixtures."""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from data_prep.common.layout import (
    SPLITS,
    Layout,
    Parts,
    find_parts,
    list_audio,
    match,
)
from data_prep.common.versions import check_choices
from modules.audio.io import SUFFIXES, read_header
from modules.data.index import fingerprint
from modules.data.manifest import Row, check_audio, write_manifest
from modules.runtime.errors import DataError, refuse
from modules.runtime.files import fingerprint as content_of
from modules.runtime.files import write_text

Listing = Mapping[Path, Mapping[str, os.DirEntry]]
logger = logging.getLogger(__name__)

# Part of the fingerprint: raise it when the same files would give other manifests.
FORMAT = 1


def prepare_set(
    maker: str,
    layouts: Sequence[Layout],
    data_folder: str | Path,
    save_folder: str | Path,
    test_folder: str | Path | None,
    splits: Sequence[str],
    num_spks: int,
    sample_rate: int,
    mode: str,
    mixture: str | None = None,
    targets: str | None = None,
    train_set: str | None = None,
) -> dict[str, str]:
    """Write the manifests of some splits; the folders of others need not exist.

    The test set is that of `test_folder` if there is one; see `find_parts`.
    """
    check_choices("splits", splits, SPLITS)
    other = test_folder if "test" in splits else None
    own = [split for split in splits if split != "test" or other is None]
    found: dict[str, Parts] = {}
    for folder, wanted in ((data_folder, own), (other, ["test"])):
        if folder is not None and wanted:
            chosen = (num_spks, sample_rate, mode, mixture, targets, train_set)
            found |= find_parts(layouts, folder, *chosen, wanted)
    return write_manifests(found, save_folder, sample_rate, maker)


def write_manifests(
    splits: Mapping[str, Parts], save_folder: str | Path, sample_rate: int, maker: str
) -> dict[str, str]:
    """Write `train.csv`, `valid.csv` and `test.csv`; return their paths by split.

    Nothing is written if no file has changed since; `<maker>.json` in `save_folder`
    notes what they were made from, and `maker` is the name of the data set. A DataError
    names a file that is missing, unreadable, not at `sample_rate` in Hz, or of another
    length than its mixture.
    """
    faults: list[str] = []
    folders = dict.fromkeys(one for parts in splits.values() for one in parts.folders)
    listing = {folder: list_audio(folder, faults) for folder in folders}
    refuse(faults)
    paths = {split: Path(save_folder) / f"{split}.csv" for split in splits}
    state_file = Path(save_folder) / f"{maker}.json"
    listed = [entry.path for found in listing.values() for entry in found.values()]
    # Reading the header of a link to nowhere names it.
    present = filter(os.path.exists, listed)
    files = fingerprint(present, FORMAT, sample_rate, dict(splits))

    def state() -> str:
        """Return what the manifests were made from, and what they are."""
        manifests = [content_of(path) for path in paths.values()]
        return json.dumps({"files": files, "manifests": manifests}) + "\n"

    with suppress(OSError, ValueError):
        if state_file.read_text() == state():
            logger.info("%s: manifests are up to date", save_folder)
            return {split: str(path) for split, path in paths.items()}
    rows = {
        split: _make_rows(parts, listing, sample_rate)
        for split, parts in splits.items()
    }
    state_file.unlink(missing_ok=True)
    for split, path in paths.items():
        write_manifest(path, rows[split])
        logger.info("%s: %d mixtures", path, len(rows[split]))
    write_text(state_file, state())
    return {split: str(path) for split, path in paths.items()}


def list_rows(
    parts: Parts, listing: Listing, sample_rate: int
) -> tuple[list[Row], list[str]]:
    """Return a row for each mixture of a split, and what is left out beside them.

    No file is opened: one that is missing is named as WAV, and `duration` is 0.
    """
    mixtures = listing[parts.mixture]
    found = {folder: match(mixtures, listing[folder]) for folder in parts.folders}

    def path_of(folder: Path, name: str) -> str:
        entry = found[folder].get(name)
        return entry.path if entry else str(folder / f"{name}.wav")

    rows = [
        Row(
            id=name,
            duration=0.0,
            sample_rate=sample_rate,
            mixture=path_of(parts.mixture, name),
            sources=tuple(path_of(folder, name) for folder in parts.sources),
            noise=path_of(parts.noise, name) if parts.noise else "",
            images=tuple(path_of(folder, name) for folder in parts.images),
        )
        for name in sorted(mixtures)
    ]
    used = {entry for files in found.values() for entry in files.values()}
    spare = [
        f"{entry.path} is left out: no {parts.mixture.name} has its name"
        for folder in parts.folders[1:]
        for entry in listing[folder].values()
        if entry not in used
    ]
    return rows, spare


def _make_rows(parts: Parts, listing: Listing, sample_rate: int) -> list[Row]:
    """Return the rows of one split, with every header checked."""
    rows, spare = list_rows(parts, listing, sample_rate)
    if not rows:
        raise DataError(f"{parts.mixture}: holds no {' or '.join(SUFFIXES)} file")
    for text in spare:
        logger.warning("%s", text)
    check_audio(rows, [f"mixture {row.id}" for row in rows], remember=True)
    headers = (read_header(row.mixture, remember=True) for row in rows)
    pairs = zip(rows, headers, strict=True)
    return [replace(row, duration=head.frames / sample_rate) for row, head in pairs]
