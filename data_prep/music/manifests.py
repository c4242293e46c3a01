"""Manifests of music in stems, a folder for each track."""

import json
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from data_prep.common.layout import NAMED, SPLITS, Tracks, list_audio, list_names
from modules.audio.io import read_header
from modules.data.manifest import THREADS, Row, write_manifest
from modules.runtime.errors import DataError

logger = logging.getLogger(__name__)

SOURCES = ("drums", "bass", "other", "vocals")
MIXTURE = "mixture"
LAYOUT = (Tracks(mixture=MIXTURE),)

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
) -> dict[str, str]:
    """Write train, valid and test manifests.

    Arguments
    ---------
    data_folder : str | Path
        A folder in one of the layouts that the module names.
    save_folder : str | Path
        Where `train.csv`, `valid.csv` and `test.csv` go.
    sources : Sequence[str]
        Names of the stems; source_1, source_2, ... of the manifests are in this order.
    valid_tracks : Sequence[str] | int | None
        Training tracks to validate on: their names, or how many of the first by name.
        None takes the folder `valid`, else MUSDB18's 14, else a tenth; 0 holds out
        none.
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

    Returns
    -------
    dict[str, str]
        Paths of the manifests under the keys train, valid and test; valid and test
        only if there are such tracks.

    Raises
    ------
    DataError
        There is no track, a track lacks a stem, or a file is unreadable, empty, not of
        the track's rate or of more than two channels; the message names it. Mono files
        and unequal lengths only cause a warning: a mono file is played on both
        channels, and a track ends with its shortest stem.
    """
    sources = tuple(sources)
    _check_sources(sources)
    data_folder, save_folder = Path(data_folder).absolute(), Path(save_folder)
    only_test, own_test = list(splits) == ["test"], data_folder / "test"
    if only_test and test_folder is None and own_test.is_dir():
        test_folder = own_test
    tracks: dict[str, list[Track]] = {}
    if not (only_test and test_folder):
        tracks = find_tracks(data_folder, sources, valid_tracks)
    if test_folder is not None:
        tracks["test"] = _list_tracks(Path(test_folder).absolute(), sources)
    rows = {
        split: _make_rows(split_tracks, sample_rate)
        for split, split_tracks in tracks.items()
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
        logger.info("%s: %d tracks", path, len(rows[split]))
    return paths


@dataclass(frozen=True)
class Track:
    """A song: its name and files; `mixture` is empty if the song has none."""

    name: str
    sources: tuple[str, ...]
    mixture: str = ""

    @property
    def files(self) -> tuple[str, ...]:
        """The sources, and the mixture if there is one."""
        return (*self.sources, *([self.mixture] if self.mixture else []))


def find_tracks(
    data_folder: Path,
    sources: Sequence[str],
    valid_tracks: Sequence[str] | int | None = None,
) -> dict[str, list[Track]]:
    """Return the tracks of each set by name, as `prepare` finds them."""
    if not data_folder.is_dir():
        raise DataError(f"data_folder {data_folder} does not exist or is no folder")
    has_splits = (data_folder / "train").is_dir()
    train_folder = data_folder / "train" if has_splits else data_folder
    tracks = {"train": _list_tracks(train_folder, sources)}
    for split in ("valid", "test"):
        if has_splits and (data_folder / split).is_dir():
            tracks[split] = _list_tracks(data_folder / split, sources)
    if "valid" in tracks:
        if valid_tracks is not None:
            raise DataError(
                f"valid_tracks is set, but {data_folder / 'valid'} exists: remove one"
            )
        return tracks
    if valid_tracks is not None and not valid_tracks:
        return tracks
    everything = tracks["train"]
    names = [track.name for track in everything]
    held_out = _choose_valid(train_folder, names, valid_tracks)
    tracks["valid"] = [track for track in everything if track.name in held_out]
    tracks["train"] = [track for track in everything if track.name not in held_out]
    return tracks


def _check_sources(sources: tuple[str, ...]) -> None:
    """Raise unless the names are those of files, distinct, and not the mixture's."""
    if not sources or any(not name or Path(name).name != name for name in sources):
        raise DataError(
            f"sources is {list(sources)}, expected names of files without .wav, such "
            f"as {list(SOURCES)}"
        )
    for name in sources:
        if name == MIXTURE or sources.count(name) > 1:
            fault = "the mixture" if name == MIXTURE else "there twice"
            raise DataError(f"sources: {name!r} is {fault}, expected distinct stems")


def _list_tracks(folder: Path, sources: Sequence[str]) -> list[Track]:
    """Return the tracks in a folder by name; skip folders without any of the stems."""
    if not folder.is_dir():
        raise DataError(f"{folder} does not exist or is no folder")
    tracks, others = [], []
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith(".") or not entry.is_dir():
            continue
        files = {stem: file.path for stem, file in list_audio(entry).items()}
        present = [name for name in sources if name in files]
        if not present:
            others.append(entry.name)
            continue
        absent = [name for name in sources if name not in files]
        if absent:
            raise DataError(
                f"{entry}/{absent[0]}.wav does not exist, but {files[present[0]]} "
                "does; add it (silence will do) or set --sources"
            )
        paths = tuple(files[name] for name in sources)
        tracks.append(Track(entry.name, paths, files.get(MIXTURE, "")))
    if not tracks:
        raise DataError(
            f"{folder}: no tracks found; looked for <track>/{{{','.join(sources)}}}.wav"
            f"; it holds {list_names(folder)}"
        )
    if others:
        logger.warning(
            "%s: %d folders hold none of the stems and are left out, such as %s",
            *(folder, len(others), others[0]),
        )
    return tracks


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
        held_out = set(valid_tracks)
    unknown = sorted(held_out - set(names))
    if unknown:
        (near,) = get_close_matches(unknown[0], names, n=1, cutoff=0.0)
        raise DataError(
            f"valid_tracks: {folder} has no track {unknown[0]!r}; nearest is {near!r}"
        )
    if not 0 < len(held_out) < len(names):
        raise DataError(
            f"valid_tracks={valid_tracks}: of the {len(names)} tracks in {folder} at "
            "least one must be held out and one left for training"
        )
    return held_out


def _make_rows(tracks: Sequence[Track], sample_rate: int | None) -> list[Row]:
    """Return a row for each track, with every header checked."""
    with ThreadPoolExecutor(THREADS) as threads:
        made = list(threads.map(lambda track: _make_row(track, sample_rate), tracks))
    warnings = [warning for _, warning in made if warning]
    for warning in warnings[:NAMED]:
        logger.warning("%s", warning)
    if len(warnings) > NAMED:
        logger.warning(
            "and %d more tracks with such faults: data_prep.verify lists all",
            len(warnings) - NAMED,
        )
    return [row for row, _ in made]


def _make_row(track: Track, sample_rate: int | None) -> tuple[Row, str]:
    """Return the row of a track, and a warning or ""."""
    headers = {
        Path(path).name: read_header(path, remember=True) for path in track.files
    }
    folder, first = Path(track.files[0]).parent, next(iter(headers))
    rate, expected = sample_rate, f"{sample_rate} Hz; resample it"
    if rate is None:
        rate = headers[first].sample_rate
        expected = f"{rate} Hz as {first}; resample one of them"
    for name, (own_rate, channels, _) in headers.items():
        path = folder / name
        if own_rate != rate:
            raise DataError(f"{path} is at {own_rate} Hz, expected {expected}")
        if channels > 2:
            raise DataError(
                f"{path} has {channels} channels, expected stereo; mix it down"
            )
    frames = {name: header.frames for name, header in headers.items()}
    shortest, longest = (pick(frames, key=frames.__getitem__) for pick in (min, max))
    faults = []
    if frames[shortest] != frames[longest]:
        faults.append(
            f"{shortest} has {frames[shortest]} samples, {longest} {frames[longest]}: "
            "cut to the shortest"
        )
    mono = [name for name, header in headers.items() if header.channels == 1]
    if mono:
        faults.append(f"{', '.join(mono)} mono, played on both channels")
    seconds = frames[shortest] / rate
    row = Row(track.name, seconds, rate, track.mixture, track.sources, channels=2)
    return row, f"{folder}: {'; '.join(faults)}" if faults else ""


def _restrict(
    rows: dict[str, list[Row]], stems: Path, sources: Sequence[str]
) -> list[Row]:
    """Return the training rows with the stems that are not listed marked as unused."""
    listed = _read_stems(stems, sources)
    known = {row.id for split in ("train", "valid") for row in rows.get(split, ())}
    trained = {row.id for row in rows["train"]}
    for number, name in enumerate(sources, start=1):
        unknown = sorted(listed[name] - known)
        if unknown:
            raise DataError(
                f"{stems}: {name!r} lists {unknown[0]!r}, which is no track"
            )
        if not listed[name] & trained:
            raise DataError(
                f"{stems}: lists no training track for {name!r} (source_{number}); "
                "loosen the filter that wrote it"
            )
    counts = ", ".join(f"{len(listed[name] & trained)} {name}" for name in sources)
    logger.info("%s: of %d training tracks %s", stems, len(rows["train"]), counts)
    numbered = list(enumerate(sources, start=1))
    restricted = []
    for row in rows["train"]:
        unused = tuple(k for k, name in numbered if row.id not in listed[name])
        if len(unused) < len(sources):
            restricted.append(replace(row, unused=unused))
    return restricted


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
            raise DataError(
                f"{path}: has no list of tracks for {name!r}, expected "
                f'{{"{name}": [track, ...], ...}}'
            )
    return {name: set(listed[name]) for name in sources}
