"""LibriMix's metadata: which utterances and which noise make a mixture, how loud.

Each set has a CSV: `mixture_ID,source_1_path,source_1_gain,...` and, where there is
noise, `noise_path,noise_gain`. Paths lie below the folders of LibriSpeech and of the
WHAM! noise; each file is multiplied by its gain.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from modules.runtime.errors import DataError
from modules.runtime.tables import read_table


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
    """Return the metadata's files by LibriSpeech's name of their set."""
    prefix = f"libri{num_spks}mix_"
    below = folder / f"Libri{num_spks}Mix"
    place = below if below.is_dir() else folder
    files = {
        path.stem.removeprefix(prefix): path
        for path in sorted(place.glob(f"{prefix}*.csv"))
        if not path.stem.endswith("_info")
    }
    if not files:
        hint = "get the metadata from github.com/JorisCos/LibriMix"
        raise DataError(f"{place}: holds no {prefix}*.csv; {hint}")
    for name in sets or ():
        if name not in files:
            raise DataError(f"{place}: holds {', '.join(files)}, but no {name}")
    return {name: path for name, path in files.items() if not sets or name in sets}


def read_metadata(path: Path, num_spks: int) -> list[Mixture]:
    """Return the rows of a metadata CSV; a DataError names a row at fault."""
    sources = [f"source_{number + 1}" for number in range(num_spks)]
    columns = [f"{source}_{cell}" for source in sources for cell in Part._fields]
    mixtures: dict[str, Mixture] = {}
    for place, cells in read_table(path, ["mixture_ID", *columns]):
        if f"source_{num_spks + 1}_path" in cells:
            raise DataError(f"{path}, row 1: has more than {num_spks} sources")
        mixture = _read_row(place, cells, sources)
        if mixture.name in mixtures:
            raise DataError(f"{place}: {mixture.name} is there twice")
        mixtures[mixture.name] = mixture
    if not mixtures:
        raise DataError(f"{path}: holds no mixtures")
    return list(mixtures.values())


def _read_row(place: str, cells: dict[str, str], sources: Sequence[str]) -> Mixture:
    """Return a row as a mixture; its noise is optional."""
    name = cells["mixture_ID"]
    if not name or "/" in name or name.startswith("."):
        raise DataError(f"{place}: mixture_ID is {name!r}, which cannot name a file")

    def read_part(part: str) -> Part:
        path, gain = (cells.get(f"{part}_{cell}") for cell in Part._fields)
        try:
            value = float(gain or "")
        except ValueError:
            value = math.nan
        if not path or not (math.isfinite(value) and value > 0):
            found = f"{part}_path is {path!r}, {part}_gain is {gain!r}"
            raise DataError(f"{place}: {found}; expected a file and a number above 0")
        return Part(path, value)

    noise = read_part("noise") if cells.get("noise_path") else None
    return Mixture(name, tuple(map(read_part, sources)), noise)
