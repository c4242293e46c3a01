"""Manifests of music in stems, a folder for each track or each stem."""

import json
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args

from data_prep.common.layout import NAMED, SPLITS, Tracks, existing, list_names
from data_prep.common.tracks import (
    MissingStems,
    declare,
    ends_early,
    list_tracks,
    split_folders,
)
from modules.audio.io import read_header
from modules.data.manifest import THREADS, Row, header_faults, write_manifest
from modules.runtime.errors import AudioError, DataError, refuse
from modules.runtime.threads import in_threads

logger = logging.getLogger(__name__)

Unequal = Literal["pad", "cut", "refuse"]

SOURCES, MIXTURE = Tracks.sources, Tracks.mixture
LAYOUT = (Tracks(),)

# Held out of MUSDB18's training set by its authors (musdb, configs/mus.yaml).
MUSDB_VALID_TRACKS = (
    "ANiMAL - Rockshow",
    "Actions - One Minute Smile",
    "Alexander Ross - Goodbye Bolero",
    "Clara Berry And Wooldog - Waltz For My Victims",
    "Fergessen - Nos Palpitants",
    "James May - On The Line",
    "Johnny Lokke - Promises & Lies",
    "Leaf - Summerghost",
    "Meaxic - Take A Step",
    "Patrick Talbot - A Reason To Leave",
    "Skelpolu - Human Mistakes",
    "Traffic Experiment - Sirens",
    "Triviul - Angelsaint",
    "Young Griffo - Pennies",
)

HOLD_OUT_SHARE = 0.1


def prepare(
    data_folder: str | Path,
    save_folder: str | Path,
    sources: Sequence[str] = SOURCES,
    valid_tracks: Sequence[str] | int | None = None,
    test_folder: str | Path | None = None,
    train_stems: str | Path | None = None,
    sample_rate: int | None = None,
    splits: Sequence[str] = SPLITS,
    unequal: Unequal = "pad",
    missing_stems: MissingStems = "refuse",
) -> dict[str, str]:
    """Write manifests; return their paths by split, of those that have tracks.

    Arguments
    ---------
    data_folder : str | Path
        A folder in one of the layouts that the module names.
    save_folder : str | Path
        Where `train.csv`, `valid.csv` and `test.csv` go.
    sources : Sequence[str]
        Names of the stems; source_1, source_2, ... of the manifests are in this order.
    valid_tracks : Sequence[str] | int | None
        Training tracks to validate on: their names, or how many of the first by name;
        among names, "1/2" is the first of every two. None takes the folder `valid`,
        else MUSDB18's 14, else a tenth; 0 holds out none.
    test_folder : str | Path | None
        A folder of tracks, such as `musdb18hq/test`. None takes the folder `test`;
        without one the validation tracks are tested on.
    train_stems : str | Path | None
        A JSON file {source: [track, ...]} of the stems to train on; the others stay
        in the manifest as part of the mixture, marked `unused`.
    sample_rate : int | None
        Rate in Hz that every file must have. None accepts any: reading resamples.
    splits : Sequence[str]
        The manifests that are wanted. For "test" alone no other tracks are looked for,
        unless there are no test tracks.
    unequal : str
        What is done where the files of a track end at different times: silence is
        appended (pad), all are cut to the shortest (cut), or it is an error (refuse).
    missing_stems : str
        A stem that a track lacks is an error (refuse), or an empty cell (silent).

    Raises
    ------
    DataError
        There is no track, a track lacks a stem, or a file is at another rate than its
        track, of more than two channels, unreadable, empty or truncated. For the last
        three a track to train on is left out with a warning: only a score must be that
        of the whole set. A mono file is played on both channels, with a warning.
    """
    sources = tuple(sources)
    _check_sources(sources)
    if unequal not in get_args(Unequal):
        raise DataError(f"unequal is {unequal!r}, expected pad, cut or refuse")
    if missing_stems not in get_args(MissingStems):
        raise DataError(f"missing_stems={missing_stems!r}: expected refuse or silent")
    data_folder, save_folder = Path(data_folder).absolute(), Path(save_folder)
    only_test = list(splits) == ["test"]
    if only_test and test_folder is None:
        test_folder = split_folders(data_folder, splits).get("test")
    tracks: dict[str, list[Row]] = {}
    if not (only_test and test_folder):
        tracks = find_tracks(data_folder, sources, valid_tracks, missing_stems)
    if test_folder is not None:
        tracks["test"] = _list_tracks(test_folder, sources, missing_stems)
    rows = {
        split: _make_rows(of_split, sample_rate, unequal, split == "train")
        for split, of_split in tracks.items()
    }
    if train_stems is not None and "train" in splits:
        rows["train"] = _restrict(rows, Path(train_stems), sources)
    if "test" not in rows and "valid" in rows:
        logger.info("%s: no test tracks, testing on the validation set", data_folder)
        rows["test"] = rows["valid"]
    paths: dict[str, str] = {}
    for split in splits:
        path = save_folder / f"{split}.csv"
        if split not in rows:
            path.unlink(missing_ok=True)  # of tracks that are trained on now
            continue
        paths[split] = str(write_manifest(path, rows[split]))
        silent = sum(not path for row in rows[split] for path in row.sources)
        lacking = f", which lack {silent} stems" * bool(silent)
        logger.info("%s: %d tracks%s", path, len(rows[split]), lacking)
    return paths


def find_tracks(
    data_folder: Path,
    sources: Sequence[str],
    valid_tracks: Sequence[str] | int | None = None,
    missing: MissingStems = "refuse",
) -> dict[str, list[Row]]:
    """Return the tracks of each set by name, as `prepare` finds them."""
    folders = split_folders(data_folder, SPLITS)
    if "train" not in folders:
        folders = {"train": data_folder}
    tracks = {name: _list_tracks(at, sources, missing) for name, at in folders.items()}
    if "valid" in tracks:
        if valid_tracks is not None:
            there = folders["valid"]
            raise DataError(f"valid_tracks is set, but {there} exists: remove one")
        return tracks
    if valid_tracks is not None and not valid_tracks:
        return tracks
    everything = tracks["train"]
    names = [track.id for track in everything]
    held_out = _choose_valid(folders["train"], names, valid_tracks)
    tracks["valid"] = [track for track in everything if track.id in held_out]
    tracks["train"] = [track for track in everything if track.id not in held_out]
    return tracks


def judged_tracks(
    folder: Path, sources: Sequence[str], missing: MissingStems
) -> list[Row]:
    """Return all tracks but those of `test` by name, to judge their labels."""
    # Nothing need be held out; with a single track nothing can be.
    hold_out = None if split_folders(folder, ["valid"]) else 0
    found = find_tracks(folder, sources, hold_out, missing)
    return sorted([*found["train"], *found.get("valid", ())], key=lambda row: row.id)


def _check_sources(sources: tuple[str, ...]) -> None:
    """Raise unless the names are those of files, distinct, and not the mixture's."""
    if not sources or any(not name or Path(name).name != name for name in sources):
        expected = f"names of files without .wav, such as {list(SOURCES)}"
        raise DataError(f"sources is {list(sources)}, expected {expected}")
    for name in sources:
        if name == MIXTURE or sources.count(name) > 1:
            fault = "the mixture" if name == MIXTURE else "there twice"
            raise DataError(f"sources: {name!r} is {fault}, expected distinct stems")


def _list_tracks(
    folder: str | Path, sources: Sequence[str], missing: MissingStems
) -> list[Row]:
    """Return the tracks in a folder by name; name what is left out."""
    folder, faults, notes = existing(folder), list[str](), list[str]()
    tracks = declare(list_tracks(folder, sources, MIXTURE, faults, notes), missing)
    _warn(notes)
    refuse(faults)
    if not tracks:
        wanted = f"<track>/{{{','.join(sources)}}}.wav; it holds {list_names(folder)}"
        raise DataError(f"{folder}: no tracks found; looked for {wanted}")
    return tracks


def _warn(texts: Sequence[str]) -> None:
    """Log the first of some warnings."""
    more = [f"and {len(texts) - NAMED} more like these: data_prep.verify lists all"]
    for text in [*texts[:NAMED], *(more if len(texts) > NAMED else [])]:
        logger.warning("%s", text)


def _choose_valid(
    folder: Path, names: Sequence[str], valid_tracks: Sequence[str] | int | None
) -> set[str]:
    """Return the training tracks to hold out; at least one stays in training."""
    if isinstance(valid_tracks, str):
        valid_tracks = [valid_tracks]
    if valid_tracks is None:
        published = set(MUSDB_VALID_TRACKS) & set(names)
        valid_tracks = sorted(published) or max(1, round(HOLD_OUT_SHARE * len(names)))
        if not published:
            logger.info(
                "%s: no clean validation set, holding out %d of %d tracks",
                *(folder, valid_tracks, len(names)),
            )
    # The first by name: tracks of one artist mostly stay on one side.
    if isinstance(valid_tracks, int):
        held_out = set(names[: max(valid_tracks, 0)])
    else:
        held_out = set()
        for name in valid_tracks:
            fold = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", name)
            first, step = map(int, fold.groups()) if fold else (1, 1)
            held_out |= set(names[first - 1 :: step]) if fold else {name}
    for name in sorted(held_out - set(names))[:1]:
        (near,) = get_close_matches(name, names, n=1, cutoff=0.0)
        fault = f"has no track {name!r}; nearest is {near!r}"
        raise DataError(f"valid_tracks: {folder} {fault}")
    if not 0 < len(held_out) < len(names):
        raise DataError(
            f"valid_tracks={valid_tracks}: of the {len(names)} tracks in {folder} at "
            "least one must be held out and one left for training"
        )
    return held_out


def _make_rows(tracks: Sequence[Row], *settings: Any) -> list[Row]:
    """Return the tracks as `_make_row` does; name those that are left out."""
    made = list(in_threads(lambda track: _make_row(track, *settings), tracks, THREADS))
    warnings = [warning for _, warning in made if warning]
    _warn(warnings)
    rows = [row for row, _ in made if row is not None]
    if not rows:
        raise DataError(f"no track can be used: {warnings[0]}")
    return rows


def _make_row(
    track: Row, sample_rate: int | None, unequal: Unequal, may_skip: bool
) -> tuple[Row | None, str]:
    """Return a track as its headers are, and a warning or "".

    With `may_skip` it is None where a file is unreadable or truncated.
    """
    try:
        headers = {path: read_header(path, remember=True) for path in track.files}
    except AudioError as error:
        if not all(map(os.path.lexists, track.files)):
            hint = "add it, or set --sources or --missing_stems=silent"
            raise DataError(f"{error}; {hint}") from None
        if may_skip:
            return None, f"{error}; its track is left out of training"
        raise
    track = replace(track, sample_rate=sample_rate or 0)
    refuse([text for _, text in header_faults(track, headers)])
    warnings = []
    for text in ends_early(headers):
        if unequal == "refuse":
            raise DataError(f"{text}; set --unequal=pad or --unequal=cut")
        done = "silence is appended" if unequal == "pad" else "all are cut to it"
        warnings.append(f"{text}: {done}")
    at = Path(track.files[0]).parents[int(track.by_stem)]
    mono = [os.path.relpath(p, at) for p, one in headers.items() if one.channels == 1]
    if mono:
        warnings.append(f"{at}: {', '.join(mono)} mono, played on both channels")
    lengths = [header.frames for header in headers.values()]
    frames = (max if unequal == "pad" else min)(lengths)
    rate = next(iter(headers.values())).sample_rate
    row = replace(track, duration=frames / rate, sample_rate=rate)
    return row, "; ".join(warnings)


def _restrict(
    rows: dict[str, list[Row]], stems: Path, sources: Sequence[str]
) -> list[Row]:
    """Return the training rows with the stems that are not listed marked as unused."""
    listed = _read_stems(stems, sources)
    known = {row.id for split in ("train", "valid") for row in rows.get(split, ())}
    trained = {row.id for row in rows["train"]}
    numbered = list(enumerate(sources, start=1))
    for number, name in numbered:
        for track in sorted(listed[name] - known)[:1]:
            raise DataError(f"{stems}: {name!r} lists {track!r}, which is no track")
        if not listed[name] & trained:
            fault = f"lists no training track for {name!r} (source_{number})"
            raise DataError(f"{stems}: {fault}; loosen the filter that wrote it")
    counts = ", ".join(f"{len(listed[name] & trained)} {name}" for name in sources)
    logger.info("%s: of %d training tracks %s", stems, len(rows["train"]), counts)
    unused = {
        row: tuple(k for k, name in numbered if row.id not in listed[name])
        for row in rows["train"]
    }
    used = [row for row in unused if len(unused[row]) < len(sources)]
    return [replace(row, unused=unused[row]) for row in used]


def _read_stems(path: Path, sources: Sequence[str]) -> dict[str, set[str]]:
    """Return the tracks listed for each source."""
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise DataError(f"{path}: is not valid JSON ({error})") from None
    for name in sources:
        tracks = listed.get(name) if isinstance(listed, dict) else None
        if not isinstance(tracks, list) or not all(isinstance(t, str) for t in tracks):
            expected = f'{{"{name}": [track, ...], ...}}'
            fault = f"has no list of tracks for {name!r}, expected {expected}"
            raise DataError(f"{path}: {fault}")
    return {name: set(listed[name]) for name in sources}
