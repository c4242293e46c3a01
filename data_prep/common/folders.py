"""Write the manifests of a data set that has a folder for each part of its mixtures."""

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from data_prep.common.layout import Parts, list_audio, match
from modules.audio.io import SUFFIXES, read_header
from modules.data.manifest import Row, check_audio, write_manifest
from modules.runtime.errors import DataError
from modules.runtime.files import write_text

Listing = Mapping[Path, Mapping[str, os.DirEntry]]
logger = logging.getLogger(__name__)

# Part of the fingerprint: raise it when the same files would give other manifests.
FORMAT = 1


def write_manifests(
    splits: Mapping[str, Parts], save_folder: str | Path, sample_rate: int, maker: str
) -> dict[str, str]:
    """Write `train.csv`, `valid.csv` and `test.csv`; return their paths by split.

    Nothing is written if no file has changed since; `<maker>.json` in `save_folder`
    notes what they were made from, and `maker` is the name of the data set. A DataError
    names a file that is missing, unreadable, not at `sample_rate` in Hz, or of another
    length than its mixture.
    """
    save_folder = Path(save_folder)
    folders = {folder for parts in splits.values() for folder in parts.folders}
    listing = {folder: list_audio(folder) for folder in sorted(folders)}
    paths = {split: save_folder / f"{split}.csv" for split in splits}
    state_file = save_folder / f"{maker}.json"
    files = _fingerprint(splits, listing, sample_rate)
    if _is_current(state_file, files, list(paths.values())):
        logger.info("%s: manifests are up to date", save_folder)
    else:
        rows = {
            split: _make_rows(parts, listing, sample_rate)
            for split, parts in splits.items()
        }
        state_file.unlink(missing_ok=True)
        for split, path in paths.items():
            write_manifest(path, rows[split])
            logger.info("%s: %d mixtures", path, len(rows[split]))
        state = {"files": files, "manifests": _digest(list(paths.values()))}
        write_text(state_file, json.dumps(state) + "\n")
    return {split: str(path) for split, path in paths.items()}


def _fingerprint(
    splits: Mapping[str, Parts], listing: Listing, sample_rate: int
) -> str:
    """Return a digest of names, sizes and times of all files, and of the settings."""
    digest = hashlib.sha256(repr((FORMAT, sample_rate, dict(splits))).encode())
    for folder, entries in listing.items():
        digest.update(os.fsencode(folder) + b"\0")
        for _, entry in sorted(entries.items()):
            try:
                status = entry.stat()
            except OSError:  # a link to nowhere: reading its header says so
                continue
            fields = f"\0{status.st_size}\0{status.st_mtime_ns}\0"
            digest.update(os.fsencode(entry.name) + fields.encode())
    return digest.hexdigest()


def _digest(paths: Sequence[Path]) -> str:
    """Return a digest of the contents of files."""
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in paths)).hexdigest()


def _is_current(state_file: Path, files: str, manifests: Sequence[Path]) -> bool:
    """Return whether these manifests were made from exactly these files."""
    try:
        state = json.loads(state_file.read_text())
        return state == {"files": files, "manifests": _digest(manifests)}
    except (OSError, ValueError):
        return False


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
    spare = [
        f"{entry.path} is left out: no {parts.mixture.name} has its name"
        for folder in parts.folders[1:]
        for entry in listing[folder].values()
        if entry not in found[folder].values()
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
