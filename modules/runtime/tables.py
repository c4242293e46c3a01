"""CSV tables: each fault is named with its row (the header is row 1)."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from modules.runtime.errors import DataError
from modules.runtime.files import open_file, write_text


def read_cells(
    path: str | Path, if_missing: str = "does not exist"
) -> Iterator[list[str]]:
    """Yield the cells of each row of a UTF-8 CSV, the header first, blank lines as [].

    A byte-order mark, any line ends and the bytes of names that are not UTF-8 are
    accepted. A DataError says that the file is missing (by `if_missing`), unreadable or
    not valid CSV.
    """
    try:
        with open_file(path) as file:
            raw = file.read()
    except FileNotFoundError:
        raise DataError(f"{path}: {if_missing}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    if b"\0" in raw:
        number = raw.count(b"\n", 0, raw.index(b"\0")) + 1
        raise DataError(f"{path}, row {number}: holds a zero byte; the file is damaged")
    # Decoded line by line: a `StringIO` takes four bytes a character.
    coding: Any = {"encoding": "utf-8-sig", "errors": "surrogateescape", "newline": ""}
    text = io.TextIOWrapper(io.BytesIO(raw), **coding)
    return _name_faults(path, csv.reader(text, strict=True))


def _name_faults(path: str | Path, reader: Iterator[list[str]]) -> Iterator[list[str]]:
    """Pass rows on; a CSV syntax error gets the name of the file and the row."""
    number = 1
    try:
        for cells in reader:
            yield cells
            number += 1
    except csv.Error as error:
        raise DataError(f"{path}, row {number}: is not valid CSV ({error})") from None


def read_table(
    path: str | Path, columns: Sequence[str]
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the place ("FILE, row NUMBER") and the cells by column of each row.

    Other columns are passed on as well, as far as a row has them. A DataError is raised
    as by `read_cells`, and where a column is missing from the header or a row.
    """
    table = read_cells(path)
    header = next(table, [])
    missing = [name for name in columns if name not in header]
    if missing:
        raise DataError(f"{path}, row 1: has no column {missing[0]!r}")
    for number, cells in enumerate(table, start=2):
        if not cells:  # a blank line
            continue
        row = dict(zip(header, cells, strict=False))
        if any(name not in row for name in columns):
            raise DataError(f"{path}, row {number}: has too few fields")
        yield f"{path}, row {number}", row


def table_text(header: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    """Return a table as CSV; floats keep all their digits."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def write_table(
    path: str | Path, header: Sequence[str], rows: Iterable[Iterable[object]]
) -> Path:
    """Write a CSV that appears only when it is whole."""
    return write_text(path, table_text(header, rows))
