"""Examples of music: segments of stems from disk, augmented, remixed into mixtures.

There are two ways to choose the stems of a training example:

- *segments* (demucs): every stretch of every track, a stride apart, is an example of
  the epoch; `remix_group` of them then exchange stems among themselves.
- *independent* (CCOM, part 2): each stem comes from another random place of another
  random track.

A stem that a song does not have (an empty path in its row) is silence; independent
stems are of songs that have them. `stem_balance` is the share of segments drawn for a
stem, each as often as any other, from a random track that has it.

Everything drawn is a function of (seed, epoch, index) alone, the remix too: a
permutation of the epoch's segments decides which group an example is in, and one per
stem and group decides whose stem it takes. So the example is the same for any number of
workers, ranks or resumes, and no batch operation is needed.

Legend: S source, C channel (always 2), T sample.
"""

import glob
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.random import Generator
from torch import Tensor
from torch.utils.data import Dataset

from modules.audio.faults import SILENT_PEAK
from modules.audio.io import check_samples, read_stereo, sample_fault
from modules.audio.pitch import change_pitch_and_tempo
from modules.audio.resample import resample
from modules.data.augmentation import NO_AUGMENTATION, Augmentation
from modules.data.batch import Example, ExampleKey
from modules.data.effects import add_effects, check_mp3
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
    # Names of the sources, for `Augmentation.per_stem`.
    sources: Sequence[str] = ()
    stem_balance: float = 0.0
    # Train on the mixture files that there are, however mastered: whole segments, with
    # one shift, gain and so on for the mixture and its stems, at their pitch and tempo.
    own_mixture: bool = False

    def __post_init__(self) -> None:
        for row in self.rows:
            if self.levels is not None and row.id not in self.levels:
                raise DataError(f"track {row.id!r} has no level; measure_levels first")
        if self.segment_seconds is None:
            self.num_examples = len(self.rows)
            return
        self.segment = round(self.segment_seconds * self.sample_rate)
        self.settings = self.augmentation or NO_AUGMENTATION
        self._check_settings()
        if self.own_mixture:
            self.settings = replace(
                self.settings, remix_group=1, repitch_probability=0.0
            )
        rows, names = self.rows, self.sources or [""] * len(self.rows[0].sources)
        of_stems = map(self.settings.of_stem, names)
        self.settings_S = [*of_stems, self.settings.of_mixture()]
        if any(settings.mp3 for settings in self.settings_S):
            check_mp3(self.sample_rate)
        self.seconds_to_read = self.settings.seconds_to_read(self.segment_seconds)
        self.places = [
            (number, step * self.stride_seconds)
            for number, row in enumerate(self.rows)
            for step in range(self._segments_of(row))
        ]
        self.num_examples = self.examples_per_epoch or len(self.places)
        # For each source the rows that it may be taken from.
        self.pools = [
            [n for n, r in enumerate(rows) if r.sources[k] and k + 1 not in r.unused]
            for k in range(len(names))
        ]
        for number, pool in enumerate(self.pools, start=1):
            if not pool:
                raise DataError(f"no track has a source_{number} that may be used")
            unused = sum(number in row.unused for row in self.rows)
            if unused and not self.independent:
                used = f"{len(self.rows) - unused} of {len(self.rows)}"
                raise DataError(
                    f"only {used} tracks may use source_{number}: whole segments need "
                    "every stem; set --independent=True or leave out --train_stems"
                )

    def _check_settings(self) -> None:
        """Raise for settings that contradict each other."""
        settings, names = self.settings, ", ".join(self.sources)
        for stem in set(settings.per_stem or ()) - set(self.sources):
            raise DataError(f"augmentation: per_stem has {stem!r}, expected {names}")
        effects = ("takes", "reverse", "eq", "noise", "mp3", "per_stem")
        given = [name for name in effects if getattr(settings, name)]
        given += ["independent"] * self.independent
        if self.own_mixture and given:
            fault = f"{', '.join(given)} would change stems, and not the mixture file"
            raise DataError(f"own_mixture=True: {fault}; leave one of them out")
        if self.own_mixture and not any(row.mixture for row in self.rows):
            raise DataError("own_mixture=True: no track has a mixture file")

    def _segments_of(self, row: Row) -> int:
        """Return how many segments a track has; the last may reach beyond its end."""
        beyond = row.duration - self.seconds_to_read
        return 1 if beyond <= 0 else math.ceil(beyond / self.stride_seconds) + 1

    def __len__(self) -> int:
        return self.num_examples

    def __getitem__(self, key: ExampleKey | int) -> Example:
        """Return the example of (seed, epoch, index); a bare index means epoch 0.

        In training the mixture is the sum of the stems; for a whole track, and with
        `own_mixture`, it is its mixture file, if it has one. The id adds to `origins`
        where they were cut.
        """
        epoch, index, _ = ExampleKey.of(key)
        if not 0 <= index < self.num_examples:
            raise IndexError(f"example {index} of {self.num_examples}")
        if self.segment_seconds is None:
            return self._whole(self.rows[index])
        choose = self._independent if self.independent else self._remixed
        segments = choose(epoch, index)
        stems = [self._stem(epoch, segment, s) for s, segment in enumerate(segments)]
        src_SCT, first = torch.stack(stems), segments[0]
        is_own = self.own_mixture and self.rows[first.row].mixture
        mix_CT = self._take(epoch, first, len(stems)) if is_own else src_SCT.sum(0)
        at = self.seed, epoch, first.number, len(stems)
        mix_CT = add_effects(mix_CT, self.settings_S[-1], self.sample_rate, *at)
        origins = tuple(self.rows[segment.row].id for segment in segments)
        starts = (f"{segment.start:.1f}s" for segment in segments)
        name = "+".join(dict.fromkeys(map("{}@{}".format, origins, starts)))
        return Example(name, mix_CT, src_SCT, origins=origins)

    def _whole(self, row: Row) -> Example:
        """Return a whole track at its true level, or normalised if there are levels.

        NaN and absurd levels are errors: a score must be that of the whole set.
        """

        def read(path: str) -> Tensor:
            if not path:
                return torch.zeros(2, row.frames)
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
        return [self._place(epoch, passes, n) for n in numbers]

    def _place(self, epoch: int, passes: int, number: int) -> Segment:
        """Return a segment of the epoch, or one of a track with a rare stem."""
        row, start = self.places[number]
        number += passes * len(self.places)
        if self.stem_balance:
            rng = numpy_rng(self.seed, epoch, number, Stream.BALANCE)
            if rng.random() >= self.stem_balance:
                return Segment(row, start, number)
            pool = self.pools[int(rng.integers(len(self.pools)))]
            row = pool[int(rng.integers(len(pool)))]
            step = rng.integers(self._segments_of(self.rows[row]))
            start = int(step) * self.stride_seconds
        return Segment(row, start, number)

    def _independent(self, epoch: int, index: int) -> list[Segment]:
        """Take each source from a random place of a random track."""
        segments = []
        for source, pool in enumerate(self.pools):
            rng = numpy_rng(self.seed, epoch, index, source, Stream.ORDER)
            segments.append(self._anywhere(pool, rng, index))
        return segments

    def _anywhere(self, pool: list[int], rng: Generator, number: int) -> Segment:
        """Draw a random place of a random track."""
        row = pool[int(rng.integers(len(pool)))]
        room = max(self.rows[row].duration - self.seconds_to_read, 0.0)
        return Segment(row, float(rng.uniform(0, room)), number)

    def _stem(self, epoch: int, segment: Segment, source: int) -> Tensor:
        """Return one stem of a segment as it is trained on: [C, T]."""
        settings = self.settings_S[source]
        counters = self.seed, epoch, segment.number, source
        wave_CT = self._take(epoch, segment, source)
        for take, probability in enumerate(settings.takes, start=1):
            rng = numpy_rng(*counters, take, Stream.TAKES)
            other = self._anywhere(self.pools[source], rng, segment.number)
            if rng.random() < probability:
                wave_CT = wave_CT + self._take(epoch, other, source, take)
        return add_effects(wave_CT, settings, self.sample_rate, *counters)

    def _take(self, epoch: int, segment: Segment, source: int, take: int = 0) -> Tensor:
        """Read, change and normalise one stem of a segment: [C, T].

        The number of sources stands for the mixture file.
        """
        settings = self.settings
        row = self.rows[segment.row]
        path = (*row.sources, row.mixture)[source]
        if not path:
            return torch.zeros(2, self.segment)
        of_source = self.settings_S[source]
        counters = self.seed, epoch, segment.number
        drawn = 0 if self.own_mixture else source
        shared = numpy_rng(*counters, Stream.SEGMENT)
        own = numpy_rng(*counters, drawn, Stream.STEM)
        if take:  # of another track: nothing to share
            shared = own = numpy_rng(*counters, drawn, take, Stream.STEM)
        # All draws are made whatever is used: switching one thing off leaves the rest.
        shift_rng = shared if settings.shift_same else own
        late = shift_rng.uniform(0, settings.shift_seconds)
        semitones, tempo = self._draw_repitch(shared if settings.repitch_same else own)
        swap, negate = own.random(2) < 0.5
        gain = own.uniform(*(of_source.scale or (1.0, 1.0)))

        start = segment.start + late * tempo
        length = self.segment
        needed = length if tempo == 1 else math.ceil(length * tempo) + 1
        wave_CT = self._read(row, path, start, needed)
        if sample_fault(wave_CT):
            # The training step leaves the example out and names it. That must be seen
            # here: what follows makes levels relative to the track's.
            return torch.full((2, length), math.nan)
        wave_CT = change_pitch_and_tempo(wave_CT, self.sample_rate, semitones, tempo)
        wave_CT = wave_CT[:, :length]
        if self.levels is not None:
            wave_CT = self.levels[row.id].normalize(wave_CT)
        if swap and of_source.flip_channels:
            wave_CT = wave_CT.flip(0)
        return wave_CT * (-gain if negate and of_source.flip_sign else gain)

    def _draw_repitch(self, rng: Generator) -> tuple[int, float]:
        """Draw a change of pitch in semitones and a speed; mostly 0 and 1."""
        settings = self.settings
        happens = rng.random() < settings.repitch_probability
        most, limit = settings.pitch_semitones, settings.tempo_limit
        pitch = int(rng.integers(-most, most + 1))
        percent = float(np.clip(rng.normal(0, settings.tempo_std), -limit, limit))
        return (pitch, 1 + percent / 100) if happens else (0, 1.0)

    def _read(self, row: Row, path: str, start: float, frames: int) -> Tensor:
        """Read `frames` at the data set's rate; zeros follow the end of the track."""
        first = round(start * row.sample_rate)
        wanted = math.ceil(frames * row.sample_rate / self.sample_rate)
        wanted = min(wanted, row.frames - first)
        if wanted <= 0:
            return torch.zeros(2, frames)
        wave_CT = read_stereo(path, first, wanted, row.sample_rate)
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
    folder, name = Path(row.mixture).parent, glob.escape(Path(row.mixture).stem)
    there = folder.parent.glob(f"*/{name}.*") if row.by_stem else folder.iterdir()
    if any(path.suffix in suffixes and path not in known for path in there):
        return ""  # `sources` names some of the stems only
    # A file of integers cannot hold what is over full scale.
    clipped = sum_mismatch(row, mixture, np.clip(np.sum(parts, axis=0), -1, 1))
    return fault if clipped else ""


@lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, passes: int, count: int) -> np.ndarray:
    """Return the order of the segments in an epoch, the same in every process."""
    return numpy_rng(seed, epoch, passes, Stream.ORDER).permutation(count)
