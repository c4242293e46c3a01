r"""Read every sample of a data set and list all that is wrong with it.

    python -m data_prep.verify FOLDER [--layout=NAME]     a data set on disk
    python -m data_prep.verify MANIFEST.csv ...           what training is to read
    python -m data_prep.verify FOLDER --layout=stems      music, with its requirements

Training reads headers at the start and samples only when it needs them; a fault that
only the samples show (NaN, silence, a mixture that is not its sources' sum) is found
here beforehand. A line for each fault names the row, the file and the reason; the exit
status is 1 when there is one. What is right as a file and may be wrong as data is a
note, which does not count: files that hold the same samples under two names, sources
that equal each other. A folder's layout is found by looking into it, and every version
in it (rate, mode, split) is read.
"""

import functools
import itertools
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from data_prep.common.layout import NAMED, SPLITS
from data_prep.common.tracks import declare
from data_prep.verify.layouts import find_rows
from data_prep.verify.rows import NOTE, Contents, Fault, row_faults
from data_prep.verify.stems import USUAL, Requirements, StemsReport
from modules.audio.io import read_header
from modules.data.manifest import THREADS, Row, list_manifest
from modules.runtime.cli import run
from modules.runtime.errors import AudioError
from modules.runtime.terminal import escaped
from modules.runtime.threads import in_threads

Check = Callable[[Row], list[Fault]]


def verify(
    *paths: str,
    layout: str | None = None,
    workers: int | None = None,
    requirements: Requirements = USUAL,
    splits: Sequence[str] = SPLITS,
) -> int:
    """List the faults of data sets; return how many.

    Arguments
    ---------
    *paths : str
        Folders and manifests.
    layout : str | None
        Layout of the folders: a data set of data_prep, "stems", or a module that has
        LAYOUT; found by looking if not given.
    workers : int | None
        Threads that read; None: as many as suit the files.
    requirements : Requirements
        Requirements of stems.
    splits : Sequence[str]
        The sets that a folder must have, as training needs them.
    """
    contents = Contents()
    count = 0
    for path in paths:
        if layout or Path(path).is_dir():
            asked = layout, workers, requirements, splits
            count += verify_folder(path, *asked, contents)
        else:
            count += verify_manifest(path, workers, contents)
    twins = list(contents.notes())
    _print_faults(twins[:NAMED])
    if len(twins) > NAMED:
        print(f"note: and {len(twins) - NAMED} more files are there twice")
    return count


def verify_manifest(path: str, workers: int | None, contents: Contents) -> int:
    """List the faults of a manifest and of its audio; return how many."""
    rows, faults = list_manifest(path)
    for fault in faults:
        print(fault)
    for row in rows.values():
        contents.add_name(Path(path).stem, row)
    named = {f"{place} ({row.id})": row for place, row in rows.items()}
    check = functools.partial(row_faults, contents=contents)
    found = verify_rows(named, workers, Path(path).name, check)
    count = len(faults) + _print_faults(found)
    print(f"{path}: {len(rows)} rows, {count} faults")
    return count


def verify_folder(
    folder: str,
    layout: str | None,
    workers: int | None,
    requirements: Requirements,
    splits: Sequence[str],
    contents: Contents,
) -> int:
    """List the faults of a data set's folder; return how many."""
    place = Path(folder).absolute()
    layout, placed, notes = find_rows(place, layout, requirements.sources, splits)
    for split, row in placed:
        contents.add_name(split, row)
    rows = declare([row for _, row in placed], requirements.missing_stems)
    report = StemsReport(requirements) if rows[0].channels != 1 else None
    named = {row.id: row for row in (rows if report else _with_rates(rows))}
    check = functools.partial(report.check if report else row_faults, contents=contents)
    found = verify_rows(named, workers, Path(folder).name, check)
    told = itertools.chain((("folder", note) for note in notes), found)
    count = _print_faults(told, once=True)
    count += report.print_table(rows) if report else 0
    unit = "tracks" if report else "mixtures"
    print(f"{folder} ({layout}): {len(rows)} {unit}, {count} faults")
    return count


def verify_rows(
    rows: Mapping[str, Row], workers: int | None, desc: str, check: Check
) -> Iterator[tuple[str, Fault]]:
    """Yield the faults that `check` finds in rows, in order, each with its row's name.

    It runs in threads: long files in blocks keep the processor busy, short ones wait
    for the disk.
    """
    stems = any(row.channels != 1 for row in rows.values())
    workers = workers or ((os.cpu_count() or 1) if stems else THREADS)
    bar = tqdm(total=len(rows), desc=desc, unit=" rows", smoothing=0)
    with bar, ThreadPoolExecutor(max(1, workers)) as threads:
        for place, faults in zip(rows, threads.map(check, rows.values()), strict=True):
            bar.update()
            yield from ((place, fault) for fault in faults)


def _print_faults(found: Iterable[tuple[str, Fault]], once: bool = False) -> int:
    """Print faults above the progress bar; return how many, not counting notes.

    With `once`, the fault of a file in several mixtures is told of the first alone.
    """
    count, known = 0, set()
    for place, fault in found:
        if not once or fault.text not in known:
            known.add(fault.text)
            note = "note: " * (fault.kind == NOTE)
            tqdm.write(escaped(f"{note}{place}: {fault.text}"), file=sys.stdout)
            count += not note
    return count


def _with_rates(rows: list[Row]) -> list[Row]:
    """Give rows whose place does not tell the rate that of most such mixtures."""
    unknown = [row.mixture for row in rows if not row.sample_rate]
    rates = Counter(in_threads(_read_rate, unknown, THREADS))
    rates.pop(0, None)
    common = max(rates, key=rates.__getitem__, default=0)
    return [replace(row, sample_rate=row.sample_rate or common) for row in rows]


def _read_rate(path: str) -> int:
    """Return the rate of a file in Hz, 0 if it cannot be read."""
    with suppress(AudioError):
        return read_header(path).sample_rate
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Verify manifests and folders; return 1 if there is a fault."""
    name = "python -m data_prep.verify"
    return run(name, __doc__, verify, arguments, lambda faults: int(faults > 0))


if __name__ == "__main__":
    sys.exit(main())
