"""Examples of music: segments of stems from disk, augmented, remixed into mixtures.

There are two ways to choose the stems of a training example:

- *segments* (demucs): every stretch of every track, a stride apart, is an example of
  the epoch; `remix_group` of them then exchange stems among themselves.
- *independent* (CCOM, part 2): each stem comes from another random place of another
  random track.

Everything drawn is a function of (seed, epoch, index) alone, the remix too: a
permutation of the epoch's segments decides which group an example is in, and one per
stem and group decides whose stem it takes. So the example is the same for any number of
workers, ranks or resumes, and no batch operation is needed.

Legend: S source, C channel (always 2), T sample.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from modules.audio.faults import SILENT_PEAK
from modules.audio.io import check_samples, read_stereo, sample_fault
from modules.audio.pitch import change_pitch_and_tempo
from modules.audio.resample import resample
from modules.data.augmentation import NO_AUGMENTATION, Augmentation
from modules.data.batch import Example, ExampleKey
from modules.data.manifest import Row
from modules.data.sums import sum_mismatch
from modules.data.track_levels import Level
from modules.runtime.errors import DataError
from modules.runtime.randomness import Stream, numpy_rng


class Segment(NamedTuple):
    """A stretch of a track: number of its row, start in seconds, and of its draws."""

    row: int
    start: float
    number: int


@dataclass(eq=False, repr=False)
class StemDataset(Dataset):
    """Stems on disk: whole tracks for evaluation, augmented segments for training.

    A DataError says which source or track cannot be used.
    """

    rows: Sequence[Row]  # read with `read_manifest(path, len(sources), stems=True)`
    sample_rate: int = 44100  # in Hz, of the examples; files at another are resampled
    # Length of the examples; None gives whole tracks in the order of `rows`. More of a
    # track is read where the augmentation needs it: 10 s for 7.8 s by default.
    segment_seconds: float | None = None
    stride_seconds: float = 1.0  # between the segments of a track
    augmentation: Augmentation | None = None  # None takes the segments as they are
    # By track id: each stem has its track's mean subtracted and is divided by its
    # track's standard deviation. None leaves the levels as they are on disk.
    levels: Mapping[str, Level] | None = None
    # Draw each stem from a random place of a random track; the unused stems of a
    # manifest (`Row.unused`) are then left out. Nothing is remixed.
    independent: bool = False
    # Length of the data set; None takes the number of segments. With less than that an
    # epoch sees a random part of them, with more it begins again.
    examples_per_epoch: int | None = None
    seed: int = 0
    # Note a mixture file of a whole track that is not the sum of its stems. That is no
    # error: finished music often went through a limiter.
    check_sums: bool = True

    def __post_init__(self) -> None:
        for row in self.rows:
            if self.levels is not None and row.id not in self.levels:
                raise DataError(f"track {row.id!r} has no level; measure_levels first")
        if self.segment_seconds is None:
            self.num_examples = len(self.rows)
            return
        for name in ("segment_seconds", "stride_seconds"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected above 0")
        self.segment = round(self.segment_seconds * self.sample_rate)
        self.settings = self.augmentation or NO_AUGMENTATION
        self.seconds_to_read = self.settings.seconds_to_read(self.segment_seconds)
        self.places = [
            (number, step * self.stride_seconds)
            for number, row in enumerate(self.rows)
            for step in range(self._segments_of(row))
        ]
        self.num_examples = self.examples_per_epoch or len(self.places)
        # For each source the rows that it may be taken from.
        self.pools = [
            [n for n, row in enumerate(self.rows) if number not in row.unused]
            for number in range(1, len(self.rows[0].sources) + 1)
        ]
        for number, pool in enumerate(self.pools, start=1):
            if not pool:
                raise DataError(f"no track has a source_{number} that may be used")
            if len(pool) < len(self.rows) and not self.independent:
                raise DataError(
                    f"only {len(pool)} of {len(self.rows)} tracks may use source_"
                    f"{number}: whole segments need every stem; set "
                    "--independent=True or leave out --train_stems"
                )

    def _segments_of(self, row: Row) -> int:
        """Return how many segments a track has; the last may reach beyond its end."""
        beyond = row.duration - self.seconds_to_read
        return 1 if beyond <= 0 else math.ceil(beyond / self.stride_seconds) + 1

    def __len__(self) -> int:
        return self.num_examples

    def __getitem__(self, key: ExampleKey | int) -> Example:
        """Return the example of (seed, epoch, index); a bare index means epoch 0.

        In training the mixture is the sum of the stems; for a whole track it is its
        mixture file, if it has one. The id adds to `origins` where they were cut.
        """
        epoch, index, _ = ExampleKey.of(key)
        if not 0 <= index < self.num_examples:
            raise IndexError(f"example {index} of {self.num_examples}")
        if self.segment_seconds is None:
            return self._whole(self.rows[index])
        choose = self._independent if self.independent else self._remixed
        segments = choose(epoch, index)
        stems = [self._stem(epoch, segment, s) for s, segment in enumerate(segments)]
        src_SCT = torch.stack(stems)
        origins = tuple(self.rows[segment.row].id for segment in segments)
        starts = (f"{segment.start:.1f}s" for segment in segments)
        name = "+".join(dict.fromkeys(map("{}@{}".format, origins, starts)))
        return Example(name, src_SCT.sum(0), src_SCT, origins=origins)

    def _whole(self, row: Row) -> Example:
        """Return a whole track at its true level, or normalised if there are levels.

        NaN and absurd levels are errors: a score must be that of the whole set.
        """

        def read(path: str) -> Tensor:
            wave_CT = read_stereo(path, 0, row.frames, row.sample_rate)
            check_samples(path, wave_CT)
            return wave_CT

        def finish(wave_CT: Tensor) -> Tensor:
            wave_CT = resample(wave_CT, row.sample_rate, self.sample_rate)
            return self.levels[row.id].normalize(wave_CT) if self.levels else wave_CT

        waves, note = [read(path) for path in row.sources], ""
        src_SCT = torch.stack([finish(without_offset(wave_CT)) for wave_CT in waves])
        if row.mixture:
            whole_CT = read(row.mixture)
            note = _sum_mismatch(row, whole_CT, waves) if self.check_sums else ""
            mix_CT = finish(whole_CT)
        else:
            mix_CT = src_SCT.sum(0)
        origins = (row.id,) * len(row.sources)
        return Example(row.id, mix_CT, src_SCT, origins=origins, note=note)

    def _remixed(self, epoch: int, index: int) -> list[Segment]:
        """Take each source from a segment of the example's group, each segment once."""
        size = self.settings.remix_group
        passes, position = divmod(index, len(self.places))
        order = _epoch_order(self.seed, epoch, passes, len(self.places))
        group, place = divmod(position, size)
        members = order[group * size : (group + 1) * size]
        chosen = [place] * len(self.pools)
        if size > 1:
            rng = numpy_rng(self.seed, epoch, passes, group, Stream.REMIX)
            chosen = [int(rng.permutation(len(members))[place]) for _ in chosen]
        numbers = [int(members[k]) for k in chosen]
        before = passes * len(self.places)
        return [Segment(*self.places[n], before + n) for n in numbers]

    def _independent(self, epoch: int, index: int) -> list[Segment]:
        """Take each source from a random place of a random track."""
        segments = []
        for source, pool in enumerate(self.pools):
            rng = numpy_rng(self.seed, epoch, index, source, Stream.ORDER)
            row = pool[int(rng.integers(len(pool)))]
            room = max(self.rows[row].duration - self.seconds_to_read, 0.0)
            segments.append(Segment(row, float(rng.uniform(0, room)), index))
        return segments

    def _stem(self, epoch: int, segment: Segment, source: int) -> Tensor:
        """Read, change and normalise one stem of a segment: [C, T]."""
        settings = self.settings
        shared = numpy_rng(self.seed, epoch, segment.number, Stream.SEGMENT)
        own = numpy_rng(self.seed, epoch, segment.number, source, Stream.STEM)
        # All draws are made whatever is used: switching one thing off leaves the rest.
        shift_rng = shared if settings.shift_same else own
        late = shift_rng.uniform(0, settings.shift_seconds)
        semitones, tempo = self._draw_repitch(shared if settings.repitch_same else own)
        swap, negate = own.random(2) < 0.5
        gain = own.uniform(*(settings.scale or (1.0, 1.0)))

        row = self.rows[segment.row]
        start = segment.start + late * tempo
        length = self.segment
        needed = length if tempo == 1 else math.ceil(length * tempo) + 1
        wave_CT = self._read(row, source, start, needed)
        if sample_fault(wave_CT):
            # The training step leaves the example out and names it. That must be seen
            # here: what follows makes levels relative to the track's.
            return torch.full((2, length), math.nan)
        wave_CT = change_pitch_and_tempo(wave_CT, self.sample_rate, semitones, tempo)
        wave_CT = wave_CT[:, :length]
        if self.levels is not None:
            wave_CT = self.levels[row.id].normalize(wave_CT)
        if swap and settings.flip_channels:
            wave_CT = wave_CT.flip(0)
        return wave_CT * (-gain if negate and settings.flip_sign else gain)

    def _draw_repitch(self, rng: np.random.Generator) -> tuple[int, float]:
        """Draw a change of pitch in semitones and a speed; mostly 0 and 1."""
        settings = self.settings
        happens = rng.random() < settings.repitch_probability
        most, limit = settings.pitch_semitones, settings.tempo_limit
        pitch = int(rng.integers(-most, most + 1))
        percent = float(np.clip(rng.normal(0, settings.tempo_std), -limit, limit))
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
    """Return zeros in place of a constant, which is no sound, and all else as it is."""
    low_C, high_C = wave_CT.amin(1), wave_CT.amax(1)
    still = (high_C - low_C).max() <= SILENT_PEAK
    # Silence that dither has touched is common, and is left alone.
    has_offset = (low_C > SILENT_PEAK).any() or (high_C < -SILENT_PEAK).any()
    return torch.zeros_like(wave_CT) if still and has_offset else wave_CT


def _sum_mismatch(row: Row, mix_CT: Tensor, stems: Sequence[Tensor]) -> str:
    """Describe a mixture that is not the sum of its stems, if it has no others."""
    mixture, parts = mix_CT.numpy(), [wave_CT.numpy() for wave_CT in stems]
    fault = sum_mismatch(row, mixture, *parts)
    if not fault:
        return ""
    known = {Path(path) for path in row.files}
    suffixes = {path.suffix for path in known}
    there = Path(row.mixture).parent.iterdir()
    if any(path.suffix in suffixes and path not in known for path in there):
        return ""  # `sources` names some of the stems only
    # A file of integers cannot hold what is over full scale.
    clipped = sum_mismatch(row, mixture, np.clip(np.sum(parts, axis=0), -1, 1))
    return fault if clipped else ""


@lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, passes: int, count: int) -> np.ndarray:
    """Return the order of the segments in an epoch, the same in every process."""
    return numpy_rng(seed, epoch, passes, Stream.ORDER).permutation(count)
