"""Separate files and folders: the command of `separate.py`."""

import logging
import time
from collections.abc import Iterator, Sequence
from json import dumps
from pathlib import Path
from typing import Any

from tqdm import tqdm

from modules.audio.io import read_header
from modules.monitor.listen.page import ListenPage, Track
from modules.runtime.errors import DataError, UserError
from modules.runtime.files import one_line
from modules.weights.separators import load_separator
from recipes.separator import Computing, Output, Separator

# Files that are taken from a folder; a file that is named may have any suffix.
SUFFIXES = {
    *(".wav", ".w64", ".rf64", ".flac", ".ogg", ".oga", ".opus", ".mp3"),
    *(".aif", ".aiff", ".au", ".caf"),
}

logger = logging.getLogger(__name__)


def separate(
    model: str,
    /,
    *inputs: Path,
    out: Path,
    output: Output,
    computing: Computing,
    sample_rate: int | None = None,
    json: bool = False,
    page: bool = False,
) -> int:
    """Separate files and folders; return 1 if an input failed, else 0.

    Arguments
    ---------
    model : str
        Folder of a run or of an exported model, or published weights on disk.
    inputs : Path
        Audio files, or folders of them (with all folders below).
    out : Path
        Folder to write; what is there is left as it is.
    sample_rate : int
        Rate of a model that does not state its own, in Hz.
    json : bool
        End with a summary in JSON.
    page : bool
        Write OUT/listen.html, a page to hear mixtures and stems.
    """
    separator = Separator(*load_separator(model, sample_rate), computing)
    summary: dict[str, Any] = {"separated": [], "skipped": [], "failed": []}
    todo = []

    def note(path: Path, error: Exception) -> None:
        logger.error(f"error: {one_line(error)}")
        summary["failed"].append({"input": str(path), "error": one_line(error)})

    jobs = _jobs(inputs, out, output, separator.sources)
    for path, paths in jobs:
        if all(place.is_file() for place in paths.values()):
            summary["skipped"].append(str(path))
            continue
        try:
            header = read_header(path)
            todo.append((path, paths, header.frames / header.sample_rate))
        except (UserError, OSError) as error:
            note(path, error)
    # The sum of the pieces may exceed that of the files by rounding.
    total = sum(seconds for *_, seconds in todo) + 1e-3
    shown = "{desc}{percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s "
    shown += "[{elapsed}<{remaining}, {rate_noinv_fmt}]"
    style: dict[str, Any] = {"unit": "s", "bar_format": shown, "dynamic_ncols": True}
    with tqdm(total=total, disable=None, **style) as bar:
        for path, paths, seconds in todo:
            bar.set_description(path.name)
            start = time.monotonic()
            try:
                lowered = separator.write_stems(path, paths, output, bar.update)
            except (UserError, OSError) as error:
                note(path, error)
                continue
            wall = time.monotonic() - start
            if lowered:
                logger.info(f"{path}: all stems lowered by {lowered:.2f} dB")
            summary["separated"].append(
                {
                    "input": str(path),
                    "outputs": {stem: str(place) for stem, place in paths.items()},
                    "seconds": seconds,
                    "wall_seconds": wall,
                    "real_time_factor": wall / seconds,
                    "lowered_db": lowered,
                }
            )
    if page:
        logger.info(f"listen: {_write_page(jobs, out)}")
    done, skipped, failed = summary.values()
    audio, wall = (sum(x[key] for x in done) for key in ("seconds", "wall_seconds"))
    if json:
        print(dumps(summary, indent=2))
    else:
        factor = f", real-time factor {wall / audio:.3f}" if audio else ""
        print(
            f"{len(done)} files separated ({audio:.1f} s of audio in {wall:.1f} s"
            f"{factor}), {len(skipped)} were there, {len(failed)} failed"
        )
    return 1 if failed else 0


def _write_page(jobs: Sequence[tuple[Path, dict[str, Path]]], out: Path) -> Path:
    """Write the page of all files whose stems are there."""
    page = ListenPage(out)
    for path, paths in jobs:
        if all(place.is_file() for place in paths.values()):
            places = {"mixture": path, **paths}
            page.add(str(path), [Track.of_file(*place) for place in places.items()])
    return page.write(out.absolute().name)


def _jobs(
    inputs: Sequence[Path], out: Path, output: Output, sources: Sequence[str]
) -> list[tuple[Path, dict[str, Path]]]:
    """Every input file with the files to write, no two of them the same."""
    jobs = []
    owner: dict[Path, Path] = {}
    for path, name in _files(inputs, out):
        paths = output.paths(out, name, sources)
        for place in paths.values():
            if place in owner:
                raise DataError(
                    f"{path} and {owner[place]} would both be written to {place}; "
                    "rename one, or give them different --out"
                )
            owner[place] = path
        jobs.append((path, paths))
    return jobs


def _files(inputs: Sequence[Path], out: Path) -> Iterator[tuple[Path, str]]:
    """Input files, each with its name below the folder that was given."""
    for given in inputs:
        if not given.is_dir():
            yield given, given.stem
            continue
        found = [
            path
            for path in sorted(given.rglob("*"))
            if path.suffix.lower() in SUFFIXES
            and path.is_file()
            and not path.name.startswith(".")
            and not path.resolve().is_relative_to(out.resolve())
        ]
        if not found:
            raise DataError(f"{given}: holds no audio ({', '.join(sorted(SUFFIXES))})")
        for path in found:
            yield path, path.relative_to(given).with_suffix("").as_posix()
