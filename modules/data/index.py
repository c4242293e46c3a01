"""Measurements of files, kept in a CSV so that each file is read for them once."""

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from modules.audio.io import unreadable
from modules.runtime.tables import read_cells, write_table
from modules.runtime.threads import in_threads

logger = logging.getLogger(__name__)

#: Names of an index's columns, and what reads a cell of each. The first holds the key,
#: the second the fingerprint, the others the values.
Columns = Mapping[str, Callable[[str], object]]


def fingerprint(paths: Iterable[str], *settings: object) -> str:
    """Return a digest of the names, sizes and times of change of files."""
    digest = hashlib.sha256(repr(settings).encode())
    for path in paths:
        digest.update(os.fsencode(path) + f"\0{mark(path)}\0".encode())
    return digest.hexdigest()[:16]


def mark(path: str) -> str:
    """Return size and time of change of one file: its fingerprint beside its name."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise unreadable(path, error) from None
    return f"{status.st_size} {status.st_mtime_ns}"


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
    known, kept = _read(index, columns, fingerprints)
    stale = [key for key, values in known.items() if not values]
    if stale:
        where = f"{index}: " if index is not None else ""
        logger.info("%smeasuring %d levels", where, len(stale))
        found = in_threads(measure, stale, desc="levels")
        for key, values in zip(stale, found, strict=True):
            known[key] = tuple(values)
    if index is not None and (stale or kept != len(fingerprints)):
        rows = ((key, now, *known[key]) for key, now in fingerprints.items())
        write_table(index, list(columns), rows)
    return known


def _read(
    index: str | Path | None, columns: Columns, now: Mapping[str, str]
) -> tuple[dict[str, tuple], int]:
    """Return the values by key, the very strings of `now`, and the number of rows.

    A key has none, `()`, if its fingerprint is another or the index is damaged.
    """
    known: dict[str, tuple] = dict.fromkeys(now, ())
    if index is None or not os.path.exists(index):
        return known, 0
    kinds, count = list(columns.values())[2:], 0
    try:
        table = read_cells(index)
        if next(table, []) != list(columns):
            raise ValueError("it has other columns")
        for key, before, *cells in table:
            count += 1
            pairs = zip(kinds, cells, strict=True)
            values = tuple([kind(cell) for kind, cell in pairs])
            if now.get(key) == before:
                known[key] = values
        return known, count
    except ValueError as error:
        logger.warning("%s: measuring anew, the index is damaged: %s", index, error)
        return dict.fromkeys(now, ()), 0


def printable(path: str) -> str:
    """Return the path with bytes that are not UTF-8 escaped."""
    return path.encode(errors="backslashreplace").decode()
