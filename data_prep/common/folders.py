"""Write the manifests of a data set that has a folder for each part of its mixtures."""

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from data_prep.common.layout import Parts, list_audio, match
from modules.audio.io import SUFFIXES, missing, read_header
from modules.data.manifest import THREADS, Row, check_audio, write_manifest
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


def _make_rows(parts: Parts, listing: Listing, sample_rate: int) -> list[Row]:
    """Return the rows of one split, with every header checked."""
    mixtures = listing[parts.mixture]
    if not mixtures:
        raise DataError(f"{parts.mixture}: holds no {' or '.join(SUFFIXES)} file")
    found = {folder: match(mixtures, listing[folder]) for folder in parts.folders}
    for folder in parts.folders[1:]:
        absent = sorted(mixtures.keys() - found[folder].keys())
        if absent:
            example = missing(folder / mixtures[absent[0]].name)
            more = f" (and {len(absent) - 1} more)" if len(absent) > 1 else ""
            raise DataError(f"{example}, but its mixture does{more}")
        taken = {entry.name for entry in found[folder].values()}
        spare = [e.name for e in listing[folder].values() if e.name not in taken]
        if spare:
            logger.warning(
                "%s: %d files have no mixture and are left out, such as %s",
                *(folder, len(spare), spare[0]),
            )
    stems = sorted(mixtures)
    with ThreadPoolExecutor(THREADS) as threads:
        paths = [mixtures[stem].path for stem in stems]
        frames = threads.map(lambda path: _count_frames(path, sample_rate), paths)
        rows = [
            Row(
                id=stem,
                duration=count / sample_rate,
                sample_rate=sample_rate,
                mixture=mixtures[stem].path,
                sources=tuple(found[folder][stem].path for folder in parts.sources),
                noise=found[parts.noise][stem].path if parts.noise else "",
                images=tuple(found[folder][stem].path for folder in parts.images),
            )
            for stem, count in zip(stems, frames, strict=True)
        ]
    check_audio(rows, [f"mixture {stem}" for stem in stems], remember=True)
    return rows


def _count_frames(path: str, sample_rate: int) -> int:
    """Return the number of samples in a file; raise unless it is at the given rate."""
    rate, _, frames = read_header(path, remember=True)
    if rate != sample_rate:
        raise DataError(
            f"{path} is at {rate} Hz, expected {sample_rate} Hz; set "
            f"--sample_rate={rate} or point data_folder at files of that rate"
        )
    return frames
