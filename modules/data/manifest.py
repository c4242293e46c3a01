"""The one table that every data set is turned into: a CSV with a row for a mixture.

Columns: `id,duration,sample_rate,mixture,noise,source_1,...,source_S`. Paths are
absolute, `noise` may be empty. `duration` is in seconds; times the rate it is exactly
the number of samples of every file in the row.

Where a target is not what is in the mixture (an anechoic target of a reverberant
mixture), columns `image_1,...,image_S` at the end name what is: mixture = images +
noise. Without them the sources are their own images.

Stems of music get two more columns at the end. `channels` is 2: the files are stereo,
and an empty `mixture` stands for the sum of the sources. `unused` holds the numbers of
the sources that belong to the mixture but are not to be trained on, such as "2 4". An
empty source is a stem that the song does not have: silence.
Collections of music are not uniform: a file may be mono, longer than the row says, or
end earlier, in silence.
"""

import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NoReturn

from modules.audio.io import Header, read_header
from modules.runtime.errors import AudioError, DataError, refuse
from modules.runtime.tables import read_cells, write_table
from modules.runtime.threads import in_threads

FIXED_COLUMNS = ("id", "duration", "sample_rate", "mixture", "noise")
STEM_COLUMNS = ("channels", "unused")

# Opening a file waits for the disk, not for the processor: more threads than cores.
THREADS = 16


@dataclass(frozen=True)
class Row:
    """One mixture: its audio files and what is known of them without opening them."""

    id: str
    duration: float
    sample_rate: int
    mixture: str
    sources: tuple[str, ...]
    noise: str = ""
    channels: int = 1
    unused: tuple[int, ...] = ()
    images: tuple[str, ...] = ()

    @property
    def frames(self) -> int:
        """Number of samples of every file of the row."""
        return round(self.duration * self.sample_rate)

    @property
    def files(self) -> tuple[str, ...]:
        """The files of mixture, sources, noise and images that the row has."""
        named = (self.mixture, *self.sources, self.noise, *self.images)
        return tuple(path for path in named if path)

    @property
    def summands(self) -> tuple[str, ...]:
        """The files whose sum the mixture is: images, or else sources, and noise."""
        parts = (*(self.images or self.sources), self.noise)
        return tuple(path for path in parts if path)

    @property
    def by_stem(self) -> bool:
        """Whether a song's stems lie in a folder each: `STEM/SONG.wav`."""
        first, name = Path(self.files[0]), Path(self.id).name
        return first.stem == name != first.parent.name

    @property
    def place(self) -> str:
        """What messages call a song: its mixture, or else the folder of its stems."""
        first = Path(self.files[0])
        return str(first if self.mixture or self.by_stem else first.parent)


def write_manifest(path: str | Path, rows: Sequence[Row]) -> Path:
    """Write rows, sorted by id, in one atomic step, and return the path.

    A DataError says that there are no rows, or that two have one id or another number
    of sources or images.
    """
    if not rows:
        raise DataError(f"{path}: no rows to write: the data set is empty")
    rows = sorted(rows, key=lambda row: row.id)
    for before, row in pairwise(rows):
        if before.id == row.id:
            raise DataError(f"{path}: two rows have the id {row.id!r}")
        if len(before.sources) != len(row.sources):
            found = f"{before.id!r} has {len(before.sources)} sources but"
            raise DataError(f"{path}: {found} {row.id!r} has {len(row.sources)}")
    for row in rows:
        if len(row.images) != (len(row.sources) if rows[0].images else 0):
            found = f"{row.id!r} has {len(row.sources)} sources but {len(row.images)}"
            others = f"{rows[0].id!r} has {len(rows[0].images)}"
            raise DataError(f"{path}: {found} images; {others}")
    names = [f"source_{k + 1}" for k in range(len(rows[0].sources))]
    images = map(_image_of, names if rows[0].images else ())
    stems = any(row.channels != 1 for row in rows)
    header = [*FIXED_COLUMNS, *names, *images, *(STEM_COLUMNS if stems else ())]

    def cells_of(row: Row) -> list[object]:
        first = [row.id, row.duration, row.sample_rate, row.mixture, row.noise]
        last = [row.channels, " ".join(map(str, row.unused))] if stems else []
        return [*first, *row.sources, *row.images, *last]

    return write_table(path, header, map(cells_of, rows))


def read_manifest(
    path: str | Path,
    num_sources: int | None = None,
    sample_rate: int | None = None,
    check: bool = True,
    stems: bool = False,
) -> list[Row]:
    """Read a manifest; raise for whatever training could stumble over later.

    The rows are in the order of the file, at least one. A DataError is one line with
    the file, the row, what is wrong and what was expected.

    Arguments
    ---------
    path : str | Path
        The CSV. A byte-order mark, CRLF line ends, blank lines and any order of the
        columns are accepted.
    num_sources : int | None
        Number of sources that every row must have; None accepts any.
    sample_rate : int | None
        Rate in Hz that every row must have; None accepts any.
    check : bool
        Also open the header of every audio file (see `check_audio`).
    stems : bool
        Expect stems of music, whose mixture file is optional.
    """
    rows, faults = list_manifest(path, num_sources, sample_rate, stems)
    refuse(faults)
    if check:
        check_audio(list(rows.values()), list(rows))
    return list(rows.values())


def list_manifest(
    path: str | Path,
    num_sources: int | None = None,
    sample_rate: int | None = None,
    stems: bool | None = None,
) -> tuple[dict[str, Row], list[str]]:
    """Return the rows that can be read by place ("FILE, row NUMBER"), and the faults.

    Arguments are as in `read_manifest`; the columns tell `stems` if it is None. No
    audio is opened. There is a line for each faulty row, and one if there are no rows.
    """
    rows: dict[str, Row] = {}
    faults: list[str] = []
    row_of_id: dict[str, int] = {}
    try:
        table = read_cells(
            path,
            "no such manifest; run the data preparation, and let all machines of a run "
            "share this folder",
        )
        header = [name.strip() for name in next(table, [])]
        if fault := _columns_fault(header, num_sources):
            raise DataError(f"{path}, row 1: {fault}")
        stems = STEM_COLUMNS[0] in header if stems is None else stems
        for number, cells in enumerate(table, start=2):
            if not cells:  # a blank line
                continue
            place = f"{path}, row {number}"
            try:
                row = _read_row(header, cells)
                _check_row(row, sample_rate, stems)
                if (first := row_of_id.setdefault(row.id, number)) != number:
                    raise DataError(f"id {row.id!r} is already that of row {first}")
                rows[place] = row
            except DataError as error:
                faults.append(f"{place}: {error}")
    except DataError as error:  # of the file as a whole, or it cannot be read on
        faults.append(str(error))
    if not rows and not faults:
        faults.append(f"{path}: holds no rows: the data set is empty")
    return rows, faults


def _sources_of(header: Sequence[str]) -> list[str]:
    """Return the columns of the sources in order of their number."""
    names = [name for name in header if re.fullmatch(r"source_[1-9]\d*", name)]
    return sorted(names, key=lambda name: int(name.removeprefix("source_")))


def _image_of(source: str) -> str:
    """Return the name of the image's column that belongs to a source's."""
    return source.replace("source_", "image_")


def _columns_fault(header: Sequence[str], num_sources: int | None) -> str:
    """Describe the first fault in the names of the columns; "" if there is none."""
    sources = _sources_of(header)
    expected = ",".join(FIXED_COLUMNS) + ",source_1,source_2,..."
    names = [*FIXED_COLUMNS, *(f"source_{k + 1}" for k in range(len(sources) or 1))]
    for name in names:
        if header.count(name) != 1:
            fault = "there twice" if name in header else "missing"
            found = f"the header must be {expected} and is {','.join(header)!r}"
            return f"column {name!r} is {fault}; {found}"
    images = [_image_of(name) for name in sources]
    for name in header:
        if name not in (*names, *images, *STEM_COLUMNS):
            return f"unknown column {name!r}; the header must be {expected}"
    missing = [name for name in images if name not in header]
    if 0 < len(missing) < len(images):
        return f"has images, but no column {missing[0]!r}"
    if num_sources in (None, len(sources)):
        return ""
    hint = "set --num_spks (for music --sources) or prepare the data anew"
    return f"has {len(sources)} source columns, expected {num_sources}; {hint}"


def _read_row(header: Sequence[str], values: Sequence[str]) -> Row:
    """Turn the cells of a row into a `Row`, or raise for the first wrong one."""
    if len(values) != len(header):
        counts = f"has {len(values)} fields, the header has {len(header)}"
        raise DataError(f"{counts}; quote a field that holds a comma")
    cells = dict(zip(header, values, strict=True))
    sources = _sources_of(header)
    images = [name for name in map(_image_of, sources) if name in cells]

    def fail(name: str, expected: str) -> NoReturn:
        raise DataError(f"{name} is {cells[name]!r}, expected {expected}")

    if not cells["id"]:
        raise DataError("id is empty")
    try:
        duration = float(cells["duration"])
    except ValueError:
        duration = math.nan
    if not 0 < duration < math.inf:
        fail("duration", "seconds above 0")
    rate = cells["sample_rate"].strip()
    if not (rate.isdecimal() and int(rate) > 0):
        fail("sample_rate", "a whole number of Hz")
    channels = cells.get("channels", "1").strip()
    if channels not in ("1", "2"):
        fail("channels", "1 or 2")
    unused = cells.get("unused", "").split()
    if not all(f"source_{number}" in sources for number in unused):
        fail("unused", f"numbers of sources, 1 to {len(sources)}")
    optional = ["noise", *(["mixture"] if channels == "2" else [])]
    if channels == "2" and any(cells[name] for name in sources):
        optional += sources
    for name in ("mixture", "noise", *sources, *images):
        if not os.path.isabs(cells[name]) and (cells[name] or name not in optional):
            fail(name, "an absolute path")
    return Row(
        id=cells["id"],
        duration=duration,
        sample_rate=int(rate),
        mixture=cells["mixture"],
        sources=tuple(cells[name] for name in sources),
        noise=cells["noise"],
        channels=int(channels),
        unused=tuple(map(int, unused)),
        images=tuple(cells[name] for name in images),
    )


def _check_row(row: Row, sample_rate: int | None, stems: bool) -> None:
    """Raise unless a row is of the expected kind and rate."""
    if stems != (row.channels != 1):
        wanted, maker = (
            ("stereo stems", "music") if stems else ("mono files", "wsj0mix")
        )
        hint = f"make the manifest with data_prep.{maker}"
        raise DataError(f"channels is {row.channels}, expected {wanted}; {hint}")
    if sample_rate not in (None, row.sample_rate):
        found = f"sample_rate is {row.sample_rate} Hz, expected {sample_rate} Hz"
        raise DataError(f"{found}; prepare the data at that rate or set --sample_rate")


def check_audio(
    rows: Sequence[Row], places: Sequence[str] | None = None, remember: bool = False
) -> None:
    """Open the header of every file: it must exist and be as its row says.

    Stems may be mono, or end at other times: reading copes with both. The error
    names the first faulty row, by its place or else its id. With `remember` the next
    check of the same files does not open them again.
    """
    places = places or [f"row {row.id!r}" for row in rows]
    faults = in_threads(partial(header_fault, remember=remember), rows, THREADS)
    pairs = zip(places, faults, strict=True)
    refuse([f"{place}: {fault}" for place, fault in pairs if fault])


def header_fault(row: Row, remember: bool = False) -> str:
    """Describe the first fault in the headers of a row's files; "" if there is none."""
    try:
        headers = {path: read_header(path, remember) for path in row.files}
    except AudioError as error:
        return str(error)
    return next((text for _, text in header_faults(row, headers)), "")


def header_faults(row: Row, headers: Mapping[str, Header]) -> Iterator[tuple[str, str]]:
    """Yield kind and text of what the headers of a row's files say otherwise.

    `sample_rate` 0 stands for the rate of most of them, `duration` 0 for the length of
    the first, the mixture.
    """
    rate, length = row.sample_rate, row.frames
    hint, saying = "; resample it or set --sample_rate", "the row says"
    if headers and not rate:
        ((rate, _),) = Counter(h.sample_rate for h in headers.values()).most_common(1)
        alike = next(p for p, header in headers.items() if header.sample_rate == rate)
        hint = f" as {alike}; resample one of them"
    if headers and not length:
        first = next(iter(headers))
        owner = "its mixture" if first == row.mixture else Path(first).parent.name
        length, saying = headers[first].frames, f"{owner} has"
    for path, header in headers.items():
        if header.sample_rate != rate:
            found = f"is at {header.sample_rate} Hz"
            yield "rate", f"{path} {found}, expected {rate} Hz{hint}"
        if header.channels > row.channels:
            expected = "mono" if row.channels == 1 else "stereo"
            found = f"has {header.channels} channels"
            yield "channels", f"{path} {found}, expected {expected}"
    # Stems may end early or late, but not all of them early.
    longest = max((header.frames for header in headers.values()), default=0)
    if row.channels == 1 or longest < length:
        for path, header in headers.items():
            if header.frames != length:
                yield "length", f"{path} has {header.frames} samples, {saying} {length}"
