"""Measurements of files, kept in a CSV so that each file is read for them once."""

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from modules.audio.io import unreadable
from modules.runtime.tables import read_cells, write_table

logger = logging.getLogger(__name__)

#: Names of an index's columns, and what reads a cell of each. The first holds the key,
#: the second the fingerprint, the others the values.
Columns = Mapping[str, Callable[[str], object]]


def fingerprint(paths: Iterable[str], *settings: object) -> str:
    """Return a digest of the names, sizes and times of change of files."""
    digest = hashlib.sha256(repr(settings).encode())
    for path in paths:
        try:
            status = os.stat(path)
        except OSError as error:
            raise unreadable(path, error) from None
        fields = f"\0{status.st_size}\0{status.st_mtime_ns}\0"
        digest.update(os.fsencode(path) + fields.encode())
    return digest.hexdigest()[:16]


def identity(items: Iterable[object], files: Iterable[str] = ()) -> str:
    """Return the number of items, and a digest of them and of files.

    Of files it takes size and time of change in whole seconds, which archives keep, and
    not the path: data may move between two starts of a run.
    """
    items = list(items)
    digest = hashlib.sha256(repr(items).encode(errors="surrogateescape"))
    for path in files:
        status = os.stat(path)
        digest.update(f"{status.st_size} {status.st_mtime_ns // 10**9}\n".encode())
    return f"{len(items)} ({digest.hexdigest()[:8]})"


def measure_once(
    index: str | Path | None,
    columns: Columns,
    fingerprints: Mapping[str, str],
    measure: Callable[[str], tuple],
) -> dict[str, tuple]:
    """Return the values of each key of `fingerprints`; measure what `index` lacks.

    A key whose fingerprint has changed is measured anew, and one that is not asked for
    is dropped from the CSV. One process at a time may write that (`run_on_main`).
    """
    known = _read(index, columns) if index is not None else {}
    stale = [k for k, now in fingerprints.items() if known.get(k, ("",))[0] != now]
    if stale:
        where = f"{index}: " if index is not None else ""
        logger.info("%smeasuring %d levels", where, len(stale))
        with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
            for key, values in zip(stale, threads.map(measure, stale), strict=True):
                known[key] = (fingerprints[key], *values)
    if index is not None and (stale or known.keys() != fingerprints.keys()):
        rows = [(key, *known[key]) for key in fingerprints]
        write_table(index, list(columns), rows)
    return {key: known[key][1:] for key in fingerprints}


def _read(index: str | Path, columns: Columns) -> dict[str, tuple]:
    """Return fingerprint and values by key; nothing if the index is damaged."""
    if not os.path.exists(index):
        return {}
    try:
        header, *lines = read_cells(index)
        if header != list(columns):
            raise ValueError("it has other columns")
        kinds = list(columns.values())[1:]
        return {
            key: tuple(kind(cell) for kind, cell in zip(kinds, cells, strict=True))
            for key, *cells in lines
        }
    except ValueError as error:
        logger.warning("%s: measuring anew, the index is damaged: %s", index, error)
        return {}


def printable(path: str) -> str:
    """Return the path with bytes that are not UTF-8 escaped."""
    return path.encode(errors="backslashreplace").decode()
