"""Examples of music: segments of stems from disk, augmented, remixed into mixtures.

A training example is a sum of stems, each cut from somewhere, changed a little and
put together anew. Two ways to choose the pieces:

- *segments* (demucs): every stretch of every track, a stride apart, is an example of
  the epoch; `remix_group` of them then exchange stems among themselves.
- *independent* (CCOM, part 2): each stem comes from another random place of another
  random track.

Everything drawn is a function of (seed, epoch, index) alone, the remix too: a
permutation of the epoch's segments says which group an example is in, and one per
stem and group says whose stem it takes. So the example is the same for any number of
workers, ranks or resumes, and no batch operation is needed.

Legend: S source, C channel (always 2), T sample.
"""

import csv
import hashlib
import io
import logging
import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from data_prep.faults import SILENT_PEAK, level_fault
from data_prep.manifest import DataError, Row, write_text
from modules.audio import read_stereo, refuse_fault, resample, sample_fault
from modules.dataset import STREAM_ORDER, Example, ExampleKey, odd_sum
from modules.pitch import change_pitch_and_tempo
from modules.randomness import numpy_rng

logger = logging.getLogger(__name__)

# See the other streams in modules/dataset.py and modules/mixing.py.
STREAM_REMIX, STREAM_SEGMENT, STREAM_STEM = 4, 5, 6
LEVEL_COLUMNS = ["id", "key", "mean", "std"]
BLOCK_SECONDS = 10
# Added to the standard deviation: a silent track stays silent.
SMALLEST_STD = 1e-8


@dataclass(frozen=True)
class Level:
    """Mean and standard deviation of a track's mixture, its channels averaged."""

    mean: float
    std: float

    def normalize(self, wave: Tensor) -> Tensor:
        """Subtract the mean, divide by the standard deviation."""
        return (wave - self.mean) / (self.std + SMALLEST_STD)


def measure_levels(rows: Sequence[Row], index: str | Path) -> dict[str, Level]:
    """Levels of all tracks, measured once: reading a collection takes minutes.

    Arguments
    ---------
    rows : Sequence[Row]
        The manifest. The mixture is the sum of all stems, the unused ones too, where
        there is no mixture file.
    index : str | Path
        CSV that keeps the levels; a track is measured anew when one of its files has
        changed. One process at a time may write it (`distributed.run_on_main`).

    Returns
    -------
    dict[str, Level]
        By the id of the track.

    Raises
    ------
    DataError
        A file holds NaN, Inf or an absurd level, or cannot be read; the message names
        it.
    """
    known = _read_index(index)
    keys = {row.id: _fingerprint(row) for row in rows}
    stale = [row for row in rows if keys[row.id] not in known]
    if stale:
        logger.info("%s: measuring the levels of %d tracks", index, len(stale))
        with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
            for row, level in zip(stale, threads.map(measure, stale), strict=True):
                known[keys[row.id]] = (row.id, level)
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(LEVEL_COLUMNS)
        for key, (name, level) in sorted(known.items(), key=lambda item: item[1][0]):
            table.writerow([name, key, repr(level.mean), repr(level.std)])
        write_text(index, text.getvalue())
    return {row.id: known[keys[row.id]][1] for row in rows}


def measure(row: Row) -> Level:
    """Mean and standard deviation of one track's mixture, read in blocks."""
    paths = [row.mixture] if row.mixture else row.sources
    count, total, squares = row.frames, 0.0, 0.0
    block = BLOCK_SECONDS * row.sample_rate
    with ExitStack() as stack:
        try:
            files = [stack.enter_context(soundfile.SoundFile(path)) for path in paths]
            for start in range(0, count, block):
                frames = min(block, count - start)
                mono_T = np.zeros(frames)
                for path, file in zip(paths, files, strict=True):
                    part_TC = file.read(frames, always_2d=True)
                    if len(part_TC) != frames:
                        raise DataError(
                            f"{path}: ends before sample {start + frames}; truncated "
                            "or changed, run the data preparation again"
                        )
                    fault = level_fault(float(part_TC.min()), float(part_TC.max()))
                    if fault:
                        raise DataError(
                            f"{path}: {fault}; repair or remove the track "
                            "(python -m data_prep.verify lists all such files)"
                        )
                    mono_T += part_TC.mean(1)
                total += math.fsum(mono_T)
                squares += math.fsum(mono_T**2)
        except (soundfile.LibsndfileError, OSError) as error:
            raise DataError(f"{row.id}: cannot be read as audio ({error})") from None
    mean = total / count
    variance = max(squares - count * mean**2, 0.0) / max(count - 1, 1)
    return Level(mean, math.sqrt(variance))


def _fingerprint(row: Row) -> str:
    """A digest of the names, sizes and times of the files that a level is of."""
    digest = hashlib.sha256(repr(row.duration).encode())
    for path in [row.mixture] if row.mixture else row.sources:
        try:
            status = os.stat(path)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from None
        digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return digest.hexdigest()[:16]


def _read_index(index: str | Path) -> dict[str, tuple[str, Level]]:
    """What an index holds; nothing if there is none or it is not whole."""
    try:
        with open(index, encoding="utf-8", newline="") as file:
            header, *lines = csv.reader(file)
        levels = {
            key: (name, Level(float(mean), float(std)))
            for name, key, mean, std in lines
        }
    except (OSError, ValueError, csv.Error):
        return {}
    return levels if header == LEVEL_COLUMNS else {}


@dataclass(frozen=True)
class Augmentation:
    """What is done to a stem's segment; the defaults are demucs'.

    Arguments
    ---------
    shift_seconds : float
        A segment starts up to this much later, drawn for each stem.
    shift_same : bool
        One such draw for all stems of a segment.
    flip_channels, flip_sign : bool
        Exchange left and right, negate; each with probability 1/2, for each stem.
    scale : tuple[float, float] | None
        Range of the gain drawn for each stem.
    remix_group : int
        How many segments exchange stems; 1 leaves each as it is in the song.
    repitch_probability : float
        How often pitch and tempo are changed; 0 needs no longer segments.
    pitch_semitones : int
        Largest change of pitch, up or down; whole semitones are drawn.
    tempo_std, tempo_limit : float
        Standard deviation and bound of the change of tempo, in percent.
    repitch_same : bool
        One change of pitch and tempo for all stems of a segment.
    """

    shift_seconds: float = 1.0
    shift_same: bool = False
    flip_channels: bool = True
    flip_sign: bool = True
    scale: tuple[float, float] | None = (0.25, 1.25)
    remix_group: int = 4
    repitch_probability: float = 0.2
    pitch_semitones: int = 2
    tempo_std: float = 5.0
    tempo_limit: float = 12.0
    repitch_same: bool = True

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing."""
        if self.remix_group < 1:
            raise ValueError(f"remix_group={self.remix_group}: 1 or more")
        if not 0 <= self.repitch_probability <= 1:
            raise ValueError(
                f"repitch_probability={self.repitch_probability}: within 0 and 1"
            )
        if self.shift_seconds < 0 or self.pitch_semitones < 0 or self.tempo_std < 0:
            raise ValueError(
                f"shift_seconds={self.shift_seconds}, "
                f"pitch_semitones={self.pitch_semitones}, tempo_std={self.tempo_std}: "
                "0 or more"
            )
        if not 0 <= self.tempo_limit <= 50:
            raise ValueError(f"tempo_limit={self.tempo_limit}: 0 to 50 percent")

    def window(self, seconds: float) -> float:
        """Length in seconds to choose from a track for examples of `seconds`.

        As in demucs: room for the shift, and only then for the tempo.
        """
        room = 1 - self.tempo_limit / 100 if self.repitch_probability else 1.0
        return (seconds + self.shift_seconds) / room


#: The stems as they are.
NO_AUGMENTATION = Augmentation(
    shift_seconds=0.0,
    flip_channels=False,
    flip_sign=False,
    scale=None,
    remix_group=1,
    repitch_probability=0.0,
)


class Segment(NamedTuple):
    """A stretch of a track: number of its row, start in seconds, and of its draws."""

    row: int
    start: float
    number: int


class StemDataset(Dataset):
    """Stems on disk: whole tracks for evaluation, augmented segments for training.

    Arguments
    ---------
    rows : Sequence[Row]
        The manifest, read with `read_manifest(path, len(sources), stems=True)`.
    sample_rate : int
        Rate in Hz of the examples; files at another are resampled.
    segment_seconds : float | None
        Length of the examples; None gives whole tracks, in the order of `rows`,
        without any augmentation. What is read of a track is longer, see
        `window_seconds`: 7.8 s of training needs 10 s with the default augmentation.
    stride_seconds : float
        Distance of the segments of a track.
    augmentation : Augmentation | None
        None takes the segments as they are.
    levels : Mapping[str, Level] | None
        By track id: each stem has its track's mean subtracted and is divided by its
        track's standard deviation. None leaves the levels as they are on disk.
    independent : bool
        Draw each stem from a random place of a random track; the unused stems of a
        manifest (`Row.unused`) are then left out. Nothing is remixed.
    examples_per_epoch : int | None
        Length of the data set; None takes the number of segments. With less than
        that an epoch sees a random part of them, with more it begins again.
    seed : int
        Together with (epoch, index) it decides every draw.
    check_sums : bool
        Note a mixture file of a whole track that is not the sum of its stems. That is
        no error: finished music often went through a limiter.

    Raises
    ------
    DataError
        A source without a usable stem; a track without a level; unused stems
        although `independent` is False.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        sample_rate: int = 44100,
        segment_seconds: float | None = None,
        stride_seconds: float = 1.0,
        augmentation: Augmentation | None = None,
        levels: Mapping[str, Level] | None = None,
        independent: bool = False,
        examples_per_epoch: int | None = None,
        seed: int = 0,
        check_sums: bool = True,
    ) -> None:
        self.rows = list(rows)
        self.check_sums = check_sums
        self.sample_rate = sample_rate
        self.segment_seconds = segment_seconds
        self.augmentation = augmentation or NO_AUGMENTATION
        self.levels = levels
        self.independent = independent
        self.seed = seed
        missing = [r.id for r in self.rows if levels is not None and r.id not in levels]
        if missing:
            raise DataError(f"track {missing[0]!r} has no level; measure_levels first")
        if segment_seconds is None:
            self.num_examples = len(self.rows)
            return
        if segment_seconds <= 0 or stride_seconds <= 0:
            raise ValueError(
                f"segment_seconds={segment_seconds}, stride_seconds={stride_seconds}: "
                "above 0"
            )
        self.window_seconds = self.augmentation.window(segment_seconds)
        self.places = [
            (number, step * stride_seconds)
            for number, row in enumerate(self.rows)
            for step in range(self._segments_of(row, stride_seconds))
        ]
        self.num_examples = examples_per_epoch or len(self.places)
        num_sources = len(self.rows[0].sources)
        # For each source the rows that it may be taken from.
        self.pools = [
            [n for n, row in enumerate(self.rows) if number not in row.unused]
            for number in range(1, num_sources + 1)
        ]
        for number, pool in enumerate(self.pools, start=1):
            if not pool:
                raise DataError(f"no track has a source_{number} that may be used")
            if len(pool) < len(self.rows) and not independent:
                raise DataError(
                    f"only {len(pool)} of {len(self.rows)} tracks may use source_"
                    f"{number}: whole segments need every stem; set "
                    "--independent=True or leave out --stems"
                )

    def _segments_of(self, row: Row, stride_seconds: float) -> int:
        """How many segments a track has; the last may reach beyond its end."""
        beyond = row.duration - self.window_seconds
        return 1 if beyond <= 0 else math.ceil(beyond / stride_seconds) + 1

    def __len__(self) -> int:
        return self.num_examples

    def __getitem__(self, key: ExampleKey | int) -> Example:
        """The example of (seed, epoch, index); a bare index means epoch 0.

        Returns
        -------
        Example
            mix [C, T], src [S, C, T], C = 2. In training the mixture is the sum of
            the stems; for a whole track it is its mixture file, where there is one.
            `origins` names the track each stem is from; the id says what was cut
            where.
        """
        epoch, index = (
            (key.epoch, key.index) if isinstance(key, ExampleKey) else (0, key)
        )
        if not 0 <= index < self.num_examples:
            raise IndexError(f"example {index} of {self.num_examples}")
        if self.segment_seconds is None:
            return self._whole(self.rows[index])
        choose = self._independent if self.independent else self._remixed
        segments = choose(epoch, index)
        src_SCT = torch.stack(
            [self._stem(epoch, segment, s) for s, segment in enumerate(segments)]
        )
        origins = tuple(self.rows[segment.row].id for segment in segments)
        names = [
            f"{origin}@{segment.start:.1f}s"
            for origin, segment in zip(origins, segments, strict=True)
        ]
        name = "+".join(dict.fromkeys(names))
        return Example(name, src_SCT.sum(0), src_SCT, origins=origins)

    def _whole(self, row: Row) -> Example:
        """A whole track at its true level, or normalised if there are levels.

        NaN, Inf and absurd levels are errors here: a score without the track would not
        be that of the set.
        """

        def read(path: str) -> Tensor:
            wave_CT = read_stereo(path, 0, row.frames, row.sample_rate)
            refuse_fault(path, wave_CT)
            return wave_CT

        def made(wave_CT: Tensor) -> Tensor:
            wave_CT = resample(wave_CT, row.sample_rate, self.sample_rate)
            return self.levels[row.id].normalize(wave_CT) if self.levels else wave_CT

        waves, note = [read(path) for path in row.sources], ""
        if row.mixture:
            whole_CT = read(row.mixture)
            note = _odd_sum(row, whole_CT, waves) if self.check_sums else ""
        src_SCT = torch.stack([made(without_offset(wave_CT)) for wave_CT in waves])
        mix_CT = made(whole_CT) if row.mixture else src_SCT.sum(0)
        origins = (row.id,) * len(row.sources)
        return Example(row.id, mix_CT, src_SCT, origins=origins, note=note)

    # ------------------------------------------------------------- which segments

    def _remixed(self, epoch: int, index: int) -> list[Segment]:
        """The segment that each source is taken from: one of the example's group.

        Every stem of every segment is used once in a pass over the segments.
        """
        size = self.augmentation.remix_group
        passes, position = divmod(index, len(self.places))
        order = _epoch_order(self.seed, epoch, passes, len(self.places))
        group, place = divmod(position, size)
        members = order[group * size : (group + 1) * size]
        number_sources = len(self.pools)
        if size == 1:
            chosen = [place] * number_sources
        else:
            rng = numpy_rng(self.seed, epoch, passes, group, STREAM_REMIX)
            chosen = [
                int(rng.permutation(len(members))[place]) for _ in range(number_sources)
            ]
        segments = []
        for k in chosen:
            row, start = self.places[members[k]]
            number = passes * len(self.places) + int(members[k])
            segments.append(Segment(row, start, number))
        return segments

    def _independent(self, epoch: int, index: int) -> list[Segment]:
        """A random place of a random track for each source."""
        segments = []
        for source, pool in enumerate(self.pools):
            rng = numpy_rng(self.seed, epoch, index, source, STREAM_ORDER)
            row = pool[int(rng.integers(len(pool)))]
            room = max(self.rows[row].duration - self.window_seconds, 0.0)
            segments.append(Segment(row, float(rng.uniform(0, room)), index))
        return segments

    # ------------------------------------------------------------------- one stem

    def _stem(self, epoch: int, segment: Segment, source: int) -> Tensor:
        """Read, change and normalise one stem of a segment: [C, T]."""
        settings = self.augmentation
        shared = numpy_rng(self.seed, epoch, segment.number, STREAM_SEGMENT)
        own = numpy_rng(self.seed, epoch, segment.number, source, STREAM_STEM)
        # All draws are made whatever is used: switching one thing off leaves the rest.
        late = (shared if settings.shift_same else own).uniform(
            0, settings.shift_seconds
        )
        semitones, tempo = self._draw_repitch(shared if settings.repitch_same else own)
        swap, negate = own.random(2) < 0.5
        gain = own.uniform(*(settings.scale or (1.0, 1.0)))

        row = self.rows[segment.row]
        start = segment.start + late * tempo
        length = round(self.segment_seconds * self.sample_rate)
        needed = length if tempo == 1 else math.ceil(length * tempo) + 1
        wave_CT = self._read(row, source, start, needed)
        if sample_fault(wave_CT):
            # The training step leaves the example out and names it. Levels are told
            # here: what follows makes them relative to the track's.
            return torch.full((2, length), math.nan)
        wave_CT = change_pitch_and_tempo(wave_CT, self.sample_rate, semitones, tempo)
        wave_CT = wave_CT[:, :length]
        if self.levels is not None:
            wave_CT = self.levels[row.id].normalize(wave_CT)
        if swap and settings.flip_channels:
            wave_CT = wave_CT.flip(0)
        return wave_CT * (-gain if negate and settings.flip_sign else gain)

    def _draw_repitch(self, rng: np.random.Generator) -> tuple[int, float]:
        """Change of pitch in semitones and speed; 0 and 1 most of the time."""
        settings = self.augmentation
        happens = rng.random() < settings.repitch_probability
        pitch = int(
            rng.integers(-settings.pitch_semitones, settings.pitch_semitones + 1)
        )
        percent = rng.normal(0, settings.tempo_std)
        limit = settings.tempo_limit
        percent = float(np.clip(percent, -limit, limit))
        return (pitch, 1 + percent / 100) if happens else (0, 1.0)

    def _read(self, row: Row, source: int, start: float, frames: int) -> Tensor:
        """Read `frames` at the data set's rate; zeros follow the end of the track."""
        first = round(start * row.sample_rate)
        wanted = math.ceil(frames * row.sample_rate / self.sample_rate)
        wanted = min(wanted, row.frames - first)
        if wanted <= 0:
            return torch.zeros(2, frames)
        wave_CT = read_stereo(row.sources[source], first, wanted, row.sample_rate)
        wave_CT = without_offset(wave_CT)
        wave_CT = resample(wave_CT, row.sample_rate, self.sample_rate)[:, :frames]
        return F.pad(wave_CT, (0, frames - wave_CT.shape[-1]))


def without_offset(wave_CT: Tensor) -> Tensor:
    """Zeros in the place of a constant, which is no sound; all else as it is.

    Example
    -------
    >>> without_offset(torch.full((2, 3), 0.1)).abs().max().item()
    0.0
    """
    low_C, high_C = wave_CT.amin(1), wave_CT.amax(1)
    still = (high_C - low_C).max() <= SILENT_PEAK
    # Silence that dither has touched is common, and is left alone.
    has_offset = (low_C > SILENT_PEAK).any() or (high_C < -SILENT_PEAK).any()
    return torch.zeros_like(wave_CT) if still and has_offset else wave_CT


def _odd_sum(row: Row, mix_CT: Tensor, stems: Sequence[Tensor]) -> str:
    """That a mixture is not the sum of its stems, if these are all stems it has."""
    mixture, parts = mix_CT.numpy(), [wave_CT.numpy() for wave_CT in stems]
    fault = odd_sum(row, mixture, *parts)
    if not fault:
        return ""
    known = {Path(path) for path in row.files}
    suffixes = {path.suffix for path in known}
    there = Path(row.mixture).parent.iterdir()
    if any(path.suffix in suffixes and path not in known for path in there):
        return ""  # `sources` names some of the stems only
    # A file of integers cannot hold what is over full scale.
    clipped = odd_sum(row, mixture, np.clip(np.sum(parts, axis=0), -1, 1))
    return fault if clipped else ""


@lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, passes: int, count: int) -> np.ndarray:
    """Order of the segments in an epoch, the same in every process."""
    return numpy_rng(seed, epoch, passes, STREAM_ORDER).permutation(count)
