"""WSJ0-2mix and WSJ0-3mix, or any data set laid out as they are, into manifests.

    python -m data_prep.wsj0mix --data_folder=/data/wsj0-mix/2speakers \
        --save_folder=results/manifests [--num_spks=2] [--sample_rate=8000] [--mode=min]
    python -m data_prep.wsj0mix generate --help     makes them, from WSJ0 and the lists

Three layouts are in use; which one a folder has is found by looking into it, never
from its name:

    wav8k/min/{tr,cv,tt}/{mix,s1,s2[,s3]}                 the original
    {train,valid,test}/{mixture,source1,source2[,source3]}
    {train,val,test}/{mix,s1,s2[,s3]}

A mixture and its sources have the same file name, WAV or FLAC.
"""

import argparse
import hashlib
import json
import logging
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import soundfile

from data_prep.generate import as_command
from data_prep.manifest import (
    THREADS,
    DataError,
    Row,
    check_audio,
    write_manifest,
    write_text,
)

logger = logging.getLogger(__name__)

SPLITS = ("train", "valid", "test")
SUFFIXES = (".wav", ".flac")
# Part of the fingerprint: raise it when the same files would give other manifests.
FORMAT = 1


@dataclass(frozen=True)
class Layout:
    """Where a data set keeps its files, relative to its folder."""

    pattern: str
    splits: tuple[str, str, str]
    mixture: str
    source: str

    def folders(self, root: Path, num_spks: int) -> dict[str, list[Path]]:
        """For each split the folder of the mixtures, then those of the sources."""
        parts = [self.mixture, *(f"{self.source}{k + 1}" for k in range(num_spks))]
        return {
            name: [root / self.pattern / split / part for part in parts]
            for name, split in zip(SPLITS, self.splits, strict=True)
        }

    def describe(self, num_spks: int) -> str:
        """The layout in the notation of the shell."""
        parts = [self.mixture, *(f"{self.source}{k + 1}" for k in range(num_spks))]
        prefix = f"{self.pattern}/" if self.pattern else ""
        return f"{prefix}{{{','.join(self.splits)}}}/{{{','.join(parts)}}}"


def prepare(
    data_folder: str | Path,
    save_folder: str | Path,
    num_spks: int = 2,
    sample_rate: int = 8000,
    mode: str = "min",
) -> dict[str, str]:
    """Write train, valid and test manifests; leave them alone if nothing changed.

    Arguments
    ---------
    data_folder : str | Path
        The folder of the mixtures (`2speakers`) or its parent.
    save_folder : str | Path
        Where `train.csv`, `valid.csv` and `test.csv` go.
    num_spks : int
        Sources in each mixture.
    sample_rate : int
        In Hz; every file must have it.
    mode : str
        "min" or "max": mixtures as long as the shortest or the longest utterance.
        Only the first layout has both.

    Returns
    -------
    dict[str, str]
        Paths of the manifests under the keys train, valid and test.

    Raises
    ------
    DataError
        No layout fits, or a file is missing, unreadable, at another rate, or of
        another length than its mixture; the message names it.
    """
    if mode not in ("min", "max"):
        raise DataError(f"mode is {mode!r}, expected 'min' or 'max'")
    data_folder, save_folder = Path(data_folder).absolute(), Path(save_folder)
    folders = find_folders(data_folder, num_spks, sample_rate, mode)
    listing = {path: _list_audio(path) for paths in folders.values() for path in paths}
    paths = {split: save_folder / f"{split}.csv" for split in SPLITS}
    state_file = save_folder / "wsj0mix.json"
    files = _fingerprint(listing, num_spks, sample_rate)
    if _is_current(state_file, files, list(paths.values())):
        logger.info("%s: manifests are up to date", save_folder)
    else:
        rows = {
            split: _make_rows(split_folders, listing, sample_rate)
            for split, split_folders in folders.items()
        }
        state_file.unlink(missing_ok=True)
        for split, path in paths.items():
            write_manifest(path, rows[split])
            logger.info("%s: %d mixtures", path, len(rows[split]))
        state = {"files": files, "manifests": _digest(list(paths.values()))}
        write_text(state_file, json.dumps(state) + "\n")
    return {split: str(path) for split, path in paths.items()}


def find_folders(
    data_folder: Path, num_spks: int, sample_rate: int, mode: str
) -> dict[str, list[Path]]:
    """Find the layout by looking: the folders of mixtures and sources of each split.

    Arguments
    ---------
    data_folder : Path
        The data set's folder or its parent.
    num_spks, sample_rate, mode
        As in `prepare`.

    Returns
    -------
    dict[str, list[Path]]
        For each split the mixtures' folder, then one for each source.

    Raises
    ------
    DataError
        None or more than one layout fits.
    """
    original = f"wav{sample_rate // 1000}k/{mode}"
    layouts = [
        Layout(original, ("tr", "cv", "tt"), "mix", "s"),
        Layout("", ("train", "valid", "test"), "mixture", "source"),
        Layout("", ("train", "val", "test"), "mix", "s"),
    ]
    if not data_folder.is_dir():
        raise DataError(f"data_folder {data_folder} does not exist or is no folder")
    complete, incomplete = [], []
    for root in (data_folder, data_folder / f"{num_spks}speakers"):
        for layout in layouts:
            folders = layout.folders(root, num_spks)
            missing = [p for ps in folders.values() for p in ps if not p.is_dir()]
            if not missing:
                complete.append((layout, root, folders))
            else:
                incomplete.append((len(missing), str(missing[0]), folders))
    if len(complete) > 1:
        found = " and ".join(
            f"{root}/{la.describe(num_spks)}" for la, root, _ in complete
        )
        raise DataError(
            f"{data_folder}: found {found}; point data_folder at one of them"
        )
    if not complete:
        _raise_nothing_found(data_folder, num_spks, layouts, incomplete)
    layout, root, folders = complete[0]
    one_more = layout.folders(root, num_spks + 1)["train"][-1]
    if one_more.is_dir():
        raise DataError(
            f"{one_more} exists, so the mixtures have more than {num_spks} sources; "
            f"set --num_spks={num_spks + 1}"
        )
    return folders


def _raise_nothing_found(
    data_folder: Path,
    num_spks: int,
    layouts: Sequence[Layout],
    incomplete: Sequence[tuple[int, str, dict[str, list[Path]]]],
) -> NoReturn:
    """Say what was looked for and what lies there instead."""
    count, missing, folders = min(incomplete, key=lambda item: item[0])
    looked_for = ", ".join(layout.describe(num_spks) for layout in layouts)
    there = sorted(entry.name for entry in data_folder.iterdir())[:8]
    if count < sum(map(len, folders.values())):
        raise DataError(f"{missing} does not exist, but other folders of its layout do")
    raise DataError(
        f"{data_folder}: no mixtures found; looked there and in {num_spks}speakers/ "
        f"for {looked_for}; it holds {', '.join(there) or 'nothing'}"
    )


def _list_audio(folder: Path) -> dict[str, os.DirEntry]:
    """Audio files of a folder by their stem; hidden files are left out."""
    found: dict[str, os.DirEntry] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            stem, suffix = os.path.splitext(entry.name)
            if suffix.lower() not in SUFFIXES or entry.name.startswith("."):
                continue
            if stem in found:
                raise DataError(f"{entry.path}: there is {found[stem].name} as well")
            found[stem] = entry
    return found


def _fingerprint(
    listing: dict[Path, dict[str, os.DirEntry]], num_spks: int, sample_rate: int
) -> str:
    """A digest of names, sizes and times of all files, and of the settings."""
    digest = hashlib.sha256(repr((FORMAT, num_spks, sample_rate)).encode())
    for folder, entries in listing.items():
        digest.update(os.fsencode(folder) + b"\0")
        for stem in sorted(entries):
            status = entries[stem].stat()
            fields = f"\0{status.st_size}\0{status.st_mtime_ns}\0"
            digest.update(os.fsencode(entries[stem].name) + fields.encode())
    return digest.hexdigest()


def _digest(paths: Sequence[Path]) -> str:
    """A digest of the contents of files."""
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in paths)).hexdigest()


def _is_current(state_file: Path, files: str, manifests: Sequence[Path]) -> bool:
    """Whether the manifests are those once made from exactly these files."""
    try:
        state = json.loads(state_file.read_text())
        return state == {"files": files, "manifests": _digest(manifests)}
    except (OSError, ValueError):
        return False


def _make_rows(
    folders: Sequence[Path],
    listing: dict[Path, dict[str, os.DirEntry]],
    sample_rate: int,
) -> list[Row]:
    """The rows of one split, with every header checked."""
    mixtures, *sources = (listing[folder] for folder in folders)
    if not mixtures:
        raise DataError(f"{folders[0]}: holds no {' or '.join(SUFFIXES)} file")
    for folder, entries in zip(folders[1:], sources, strict=True):
        absent = sorted(mixtures.keys() - entries.keys())
        if absent:
            example = folder / mixtures[absent[0]].name
            more = f" (and {len(absent) - 1} more)" if len(absent) > 1 else ""
            raise DataError(f"{example} does not exist, but its mixture does{more}")
        spare = sorted(entries.keys() - mixtures.keys())
        if spare:
            logger.warning(
                "%s: %d files have no mixture and are left out, such as %s",
                *(folder, len(spare), spare[0]),
            )
    stems = sorted(mixtures)
    with ThreadPoolExecutor(THREADS) as threads:
        paths = [mixtures[stem].path for stem in stems]
        frames = threads.map(lambda path: _count_frames(path, sample_rate), paths)
        rows = [
            Row(
                id=stem,
                duration=count / sample_rate,
                sample_rate=sample_rate,
                mixture=mixtures[stem].path,
                sources=tuple(entries[stem].path for entries in sources),
            )
            for stem, count in zip(stems, frames, strict=True)
        ]
    check_audio(rows, [f"mixture {stem}" for stem in stems])
    return rows


def _count_frames(path: str, sample_rate: int) -> int:
    """Samples in a file, which must be at the given rate."""
    try:
        with soundfile.SoundFile(path) as file:
            rate, frames = file.samplerate, file.frames
    except (soundfile.LibsndfileError, OSError) as error:
        raise DataError(f"{path} cannot be read as audio ({error})") from None
    if rate != sample_rate:
        raise DataError(
            f"{path} is at {rate} Hz, expected {sample_rate} Hz; set "
            f"--sample_rate={rate} or point data_folder at files of that rate"
        )
    if frames == 0:
        raise DataError(f"{path} holds no samples")
    return frames


def main() -> int:
    """Prepare manifests from the command line; or generate, in a file of its own."""
    command, arguments = sys.argv[1:2], sys.argv[2:]
    if command == ["generate"]:
        from data_prep.wsj0mix_generate import main as generate

        return generate(arguments)
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.wsj0mix", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--data_folder", required=True)
    parser.add_argument("--save_folder", required=True)
    parser.add_argument("--num_spks", type=int, default=2)
    parser.add_argument("--sample_rate", type=int, default=8000)
    parser.add_argument("--mode", default="min")
    args = parser.parse_args(arguments if command == ["prepare"] else sys.argv[1:])

    def run() -> None:
        for split, path in prepare(**vars(args)).items():
            print(f"{split}: {path}")

    return as_command(run)


if __name__ == "__main__":
    sys.exit(main())
