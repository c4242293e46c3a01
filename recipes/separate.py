"""Separate files and folders: the command of `separate.py`."""

import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from json import dumps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tqdm import tqdm

from modules.audio.io import read_header
from modules.monitor.listen.page import ListenPage, Track
from modules.runtime.errors import DataError, UserError
from modules.runtime.files import list_files, one_line
from recipes.separator import Computing, Output, Separator, load_model

# Files that are taken from a folder; a file that is named may have any suffix.
SUFFIXES = {
    *(".wav", ".w64", ".rf64", ".flac", ".ogg", ".oga", ".opus", ".mp3"),
    *(".aif", ".aiff", ".au", ".caf"),
}

STDIN = Path("-")

Job = tuple[Path, dict[str, Path]]  # a file, and the files of its stems

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
        Folder of a run or of an exported model, published weights on disk or at the
        hub (hf:ORGANISATION/NAME), or a YAML that lists several models.
    inputs : Path
        Audio files, or folders of them (with all folders below); - is a WAV from
        standard input, whose files are named stdin.
    out : Path
        Folder to write; what is there is left as it is, and is no input.
    sample_rate : int
        Rate of a model that does not state its own, in Hz.
    json : bool
        End with a summary in JSON.
    page : bool
        Write OUT/listen.html, a page to hear mixtures and stems.
    """
    network, rate, sources, tested = load_model(model, sample_rate)
    separator = Separator(network, rate, sources, computing, tested)
    with TemporaryDirectory(prefix="separate-") as folder:
        spool = Path(folder, "stdin.wav")
        if STDIN in inputs:
            with open(spool, "wb") as file:
                shutil.copyfileobj(sys.stdin.buffer, file)
        given = [spool if path == STDIN else path for path in inputs]
        jobs = _jobs(given, out, output, separator.sources)
        summary = _separate_all(separator, jobs, output, spool)
        if page:
            faulty = {entry["input"] for entry in summary["failed"]}
            named = ((_shown(path, spool), path, paths) for path, paths in jobs)
            heard = [job for job in named if job[0] not in faulty]
            logger.info(f"listen: {_write_page(heard, out)}")
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


def _shown(path: Path, spool: Path) -> str:
    """Return the name of an input in messages; `spool` is standard input's file."""
    return str(STDIN if path == spool else path)


def _write_page(jobs: Sequence[tuple[str, Path, dict[str, Path]]], out: Path) -> Path:
    """Write the page of all files whose stems are there."""
    page = ListenPage(out)
    for name, path, paths in jobs:
        if all(place.is_file() for place in paths.values()):
            places = {"mixture": path, **paths}
            page.add(name, [Track.of_file(*place) for place in places.items()])
    return page.write(out.absolute().name)


def _separate_all(
    separator: Separator, jobs: Sequence[Job], output: Output, spool: Path
) -> dict[str, list]:
    """Do what is missing of the jobs; say what was separated, skipped and failed.

    `spool` holds standard input; what was there of another input is not its result.
    """
    summary: dict[str, list] = {"separated": [], "skipped": [], "failed": []}
    todo = []

    def note(path: Path, error: Exception) -> None:
        reason = one_line(error).replace(str(path), _shown(path, spool))
        logger.error(f"error: {reason}")
        summary["failed"].append({"input": _shown(path, spool), "error": reason})

    for path, paths in jobs:
        if path != spool and all(place.is_file() for place in paths.values()):
            summary["skipped"].append(str(path))
            continue
        try:
            header = read_header(path)
            todo.append((path, paths, header.frames / header.sample_rate))
        except (UserError, OSError) as error:
            note(path, error)
    # The sum of the pieces may exceed that of the files by rounding.
    total = sum(seconds for *_, seconds in todo) + 1e-3
    style = "{desc}{percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s "
    style += "[{elapsed}<{remaining}, {rate_noinv_fmt}]"
    options: dict[str, Any] = {"unit": "s", "bar_format": style, "dynamic_ncols": True}
    with tqdm(total=total, disable=None, **options) as bar:
        for path, paths, seconds in todo:
            bar.set_description(path.name)
            start = time.monotonic()
            try:
                lowered = separator.write_stems(path, paths, output, bar.update)
            except (UserError, OSError) as error:
                note(path, error)
                continue
            wall, name = time.monotonic() - start, _shown(path, spool)
            if lowered:
                logger.info(f"{name}: all stems lowered by {lowered:.2f} dB")
            summary["separated"].append(
                {
                    "input": name,
                    "outputs": {stem: str(place) for stem, place in paths.items()},
                    "seconds": seconds,
                    "wall_seconds": wall,
                    "real_time_factor": wall / seconds,
                    "lowered_db": lowered,
                }
            )
    return summary


def _jobs(
    inputs: Sequence[Path], out: Path, output: Output, sources: Sequence[str]
) -> list[Job]:
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
    # A folder around --out is read without it; stems in another would be inputs.
    others = {path.resolve() for path in inputs}.difference(out.resolve().parents)
    for place in owner:
        written = place.resolve()
        if not others.isdisjoint([written, *written.parents]):
            raise DataError(
                f"--out={out}: holds inputs, and {place} would be written among them; "
                f"give it a folder of its own, such as --out={out / 'stems'}"
            )
    return jobs


def _files(inputs: Sequence[Path], out: Path) -> Iterator[tuple[Path, str]]:
    """Input files, each with its name below the folder that was given.

    Files that were given have their own name, below their common folder if two of them
    share it.
    """
    files = {given.absolute() for given in inputs if not given.is_dir()}
    shared = len({path.stem for path in files}) < len(files)
    common = os.path.commonpath([path.parent for path in files]) if shared else ""
    written = out.resolve()
    for given in inputs:
        if not given.is_dir():
            own = given.absolute().relative_to(common) if shared else Path(given.name)
            yield given, own.with_suffix("").as_posix()
            continue
        # What lies below --out was written there, unless the folder itself does.
        apart = not given.resolve().is_relative_to(written)
        found = [
            path
            for path in list_files(given, "**/*")
            if path.suffix.lower() in SUFFIXES
            and path.is_file()
            and not (apart and path.resolve().is_relative_to(written))
        ]
        if not found:
            where = f" outside of --out={out}" * apart
            suffixes = ", ".join(sorted(SUFFIXES))
            raise DataError(f"{given}: holds no audio{where} ({suffixes})")
        for path in found:
            yield path, path.relative_to(given).with_suffix("").as_posix()
