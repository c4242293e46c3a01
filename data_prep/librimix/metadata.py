"""LibriMix's metadata: which utterances and which noise make a mixture, how loud.

A CSV a set, as the original's: `mixture_ID,source_1_path,source_1_gain,...` and, where
there is noise, `noise_path,noise_gain`. Paths are below LibriSpeech's and WHAM! noise's
folder; gains are what the files are multiplied by.
"""

import csv
import io
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from modules.runtime.errors import DataError
from modules.runtime.files import write_text

COLUMNS = ("path", "gain")


class Part(NamedTuple):
    """A file, below the folder of its corpus, and what it is multiplied by."""

    path: str
    gain: float


class Mixture(NamedTuple):
    """A row of the metadata."""

    name: str
    sources: tuple[Part, ...]
    noise: Part | None


def find_metadata(
    folder: Path, num_spks: int, sets: Sequence[str] | None
) -> dict[str, Path]:
    """The metadata's files by LibriSpeech's name of their set."""
    prefix = f"libri{num_spks}mix_"
    below = folder / f"Libri{num_spks}Mix"
    place = below if below.is_dir() else folder
    files = {
        path.stem.removeprefix(prefix): path
        for path in sorted(place.glob(f"{prefix}*.csv"))
        if not path.stem.endswith("_info")
    }
    if not files:
        raise DataError(
            f"{place}: holds no {prefix}*.csv; get the metadata from "
            "github.com/JorisCos/LibriMix or make some by `data_prep.librimix draw`"
        )
    for name in sets or ():
        if name not in files:
            raise DataError(f"{place}: holds {', '.join(files)}, but no {name}")
    return {name: path for name, path in files.items() if not sets or name in sets}


def read_metadata(path: Path, num_spks: int) -> list[Mixture]:
    """The rows of a metadata CSV.

    Raises
    ------
    DataError
        A column is missing, or a row has no name, no path or no gain.
    """
    sources = [f"source_{number + 1}" for number in range(num_spks)]
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 ({error.reason})") from None
    table = csv.DictReader(io.StringIO(text, newline=""))
    header = table.fieldnames or []
    columns = ["mixture_ID", *(f"{s}_{c}" for s in sources for c in COLUMNS)]
    absent = [name for name in columns if name not in header]
    if absent:
        raise DataError(f"{path}, row 1: has no column {absent[0]}")
    if f"source_{num_spks + 1}_path" in header:
        raise DataError(f"{path}, row 1: has more than {num_spks} sources")
    mixtures = [
        _read_row(f"{path}, row {number}", cells, sources)
        for number, cells in enumerate(table, start=2)
    ]
    if not mixtures:
        raise DataError(f"{path}: holds no mixtures")
    seen: set[str] = set()
    for number, mixture in enumerate(mixtures, start=2):
        if mixture.name in seen:
            raise DataError(f"{path}, row {number}: {mixture.name} is there twice")
        seen.add(mixture.name)
    return mixtures


def _read_row(place: str, cells: dict[str, str], sources: Sequence[str]) -> Mixture:
    """A row; its noise is optional."""
    name = cells["mixture_ID"]
    if not name or "/" in name or name.startswith("."):
        raise DataError(f"{place}: mixture_ID is {name!r}, which cannot name a file")
    parts = []
    for part in (*sources, *(["noise"] if cells.get("noise_path") else [])):
        path, gain = (cells.get(f"{part}_{column}") for column in COLUMNS)
        try:
            value = float(gain or "")
        except ValueError:
            value = math.nan
        if not path or not (math.isfinite(value) and value > 0):
            raise DataError(
                f"{place}: {part}_path is {path!r}, {part}_gain is {gain!r}; expected "
                "a file and a number above 0"
            )
        parts.append(Part(path, value))
    count = len(sources)
    return Mixture(name, tuple(parts[:count]), parts[count] if parts[count:] else None)


def write_metadata(path: Path, mixtures: Sequence[Mixture]) -> None:
    """The reverse of `read_metadata`."""
    sources = [f"source_{number + 1}" for number in range(len(mixtures[0].sources))]
    parts = [*sources, *(["noise"] if mixtures[0].noise else [])]
    header = [
        "mixture_ID",
        *(f"{part}_{column}" for part in parts for column in COLUMNS),
    ]
    rows = [
        [m.name, *(cell for part in (*m.sources, m.noise) if part for cell in part)]
        for m in mixtures
    ]
    write_table(path, header, rows)


def write_table(path: Path, header: Sequence[str], rows: Sequence[Sequence]) -> None:
    """A CSV, whole or not at all."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    write_text(path, text.getvalue())


def write_note(path: Path, value: object) -> None:
    """A small JSON file, whole or not at all, as one of tens of thousands.

    Not synced to the disk, unlike `write_text`: what a power cut takes is made again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    partial.write_text(json.dumps(value))
    os.replace(partial, path)


def read_note(path: Path) -> object:
    """The reverse of `write_note`.

    Raises
    ------
    DataError
        A power cut has spoilt it.
    """
    try:
        return json.loads(path.read_text())
    except ValueError:
        raise DataError(f"{path}: is damaged; remove it and start again") from None
