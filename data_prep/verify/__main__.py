"""Read every sample of a data set and list all that is wrong with it.

    python -m data_prep.verify FOLDER [--layout=NAME]     a data set on disk
    python -m data_prep.verify MANIFEST.csv ...           what training is to read
    python -m data_prep.verify FOLDER --layout=stems      music, with its requirements

Training reads headers at the start and samples only when it needs them; a fault that
only the samples show (NaN, silence, a mixture that is not its sources' sum) is found
here beforehand. A line for each fault names the row, the file and the reason; the exit
status is 1 when there is one. A folder's layout is found by looking into it, and every
version in it (rate, mode, split) is read.
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import soundfile
from tqdm import tqdm

from data_prep.common.cli import as_command
from data_prep.verify.layouts import NAMES, STEMS, find_rows
from data_prep.verify.rows import Fault, row_faults
from data_prep.verify.stems import Requirements, StemsReport
from modules.data.manifest import THREADS, Row, is_of_stems, list_manifest
from modules.runtime.errors import DataError

Check = Callable[[Row], list[Fault]]


def verify_rows(
    rows: Mapping[str, Row], workers: int | None, desc: str, check: Check = row_faults
) -> Iterator[tuple[str, Fault]]:
    """Read the audio of rows with several threads and a progress bar.

    Arguments
    ---------
    rows : Mapping[str, Row]
        By what to call them in a message.
    workers : int | None
        Threads; None: by what the rows are.
    desc : str
        Label of the bar.
    check : Callable
        Finds the faults of a row.

    Yields
    ------
    tuple[str, Fault]
        The name of a row and a fault, in the order of the rows.
    """
    # Long files in blocks keep the processor busy, short ones wait for the disk.
    stems = any(row.channels != 1 for row in rows.values())
    workers = workers or ((os.cpu_count() or 1) if stems else THREADS)
    with (
        tqdm(total=len(rows), desc=desc, unit=" rows", smoothing=0) as bar,
        ThreadPoolExecutor(max(1, workers)) as threads,
    ):
        for place, faults in zip(rows, threads.map(check, rows.values()), strict=True):
            bar.update()
            for fault in faults:
                yield place, fault


def verify_manifest(path: str, workers: int | None) -> int:
    """List the faults of a manifest and of its audio; returns how many."""
    try:
        rows, faults = list_manifest(path, stems=is_of_stems(path))
    except DataError as error:
        rows, faults = {}, [str(error)]
    for fault in faults:
        print(fault)
    named = {f"{place} ({row.id})": row for place, row in rows.items()}
    count = len(faults) + _print_faults(verify_rows(named, workers, Path(path).name))
    print(f"{path}: {len(rows)} rows, {count} faults")
    return count


def verify_folder(
    folder: str, layout: str | None, workers: int | None, requirements: Requirements
) -> int:
    """List the faults of a data set's folder; returns how many."""
    sources = [name for name in requirements.sources.split(",") if name]
    layout, rows = find_rows(Path(folder).absolute(), layout, sources)
    report = StemsReport(requirements) if layout == STEMS else None
    if report is None:
        rows = _with_rates(rows)
    named = {row.id: row for row in rows}
    found = verify_rows(
        named, workers, Path(folder).name, report.check if report else row_faults
    )
    count = _print_faults(found, once=True)
    if report is not None:
        count += report.print_table(rows)
    unit = "tracks" if report else "mixtures"
    print(f"{folder} ({layout}): {len(rows)} {unit}, {count} faults")
    return count


def _print_faults(found: Iterator[tuple[str, Fault]], once: bool = False) -> int:
    """Print faults above the progress bar; returns how many.

    `once`: a fault of a file that belongs to several mixtures is that of the first.
    """
    count, known = 0, set()
    for place, fault in found:
        if once and fault.text in known:
            continue
        known.add(fault.text)
        tqdm.write(f"{place}: {fault.text}", file=sys.stdout)
        count += 1
    return count


def _with_rates(rows: list[Row]) -> list[Row]:
    """Rows whose place does not tell the rate get that of most such mixtures."""
    unknown = [row.mixture for row in rows if not row.sample_rate]
    with ThreadPoolExecutor(THREADS) as threads:
        rates = Counter(threads.map(_read_rate, unknown))
    rates.pop(0, None)
    common = max(rates, key=rates.__getitem__, default=0)
    return [
        row if row.sample_rate else replace(row, sample_rate=common) for row in rows
    ]


def _read_rate(path: str) -> int:
    """Of a file in Hz, 0 where it cannot be told."""
    try:
        return soundfile.info(path).samplerate
    except (soundfile.LibsndfileError, OSError):
        return 0


def main(arguments: list[str] | None = None) -> int:
    """Verify manifests and folders; list every fault; 1 when there is one."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.verify",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("paths", nargs="+", metavar="PATH", help="a folder or a manifest")
    add("--layout", choices=NAMES, help="of folders; found by looking if not given")
    add("--workers", type=int, help="threads that read")
    Requirements.add_arguments(parser)
    options = parser.parse_args(arguments)
    requirements = Requirements.from_arguments(options)
    faults = 0

    def verify() -> None:
        nonlocal faults
        for path in options.paths:
            if options.layout or Path(path).is_dir():
                faults += verify_folder(
                    path, options.layout, options.workers, requirements
                )
            else:
                faults += verify_manifest(path, options.workers)

    return as_command(verify) or int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
