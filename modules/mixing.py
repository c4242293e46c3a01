"""Dynamic mixing: every example is a new mixture of talkers drawn from a pool.

The recipe is that of SpeechBrain for WSJ0-mix (`datasets.md`, A1):

- speakers are drawn without replacement, each in proportion to its utterances;
- the first source's level is N(-27.43, 2.57) dB, that of each other one is the
  first's plus N(-2.51, 2.66) dB, all within [-45, 0] dB;
- sources are cut at random to the shortest of them and to the segment;
- everything is scaled so that the highest peak is 0.9.

Two things differ. A level is the active-speech level of the whole utterance, measured
once, and not the mean amplitude of the file. And every draw is a function of (seed,
epoch, index), so a mixture is the same for any number of workers, ranks or resumes.

Legend: S source, T sample.
"""

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from data_prep.manifest import DataError
from modules.audio import AudioError, read_audio, resample
from modules.dataset import Example, ExampleKey
from modules.randomness import numpy_rng
from modules.utterances import Utterance, UtterancePool

__all__ = ["DynamicMixing", "UtterancePool", "read_crop"]

STREAM_MIXING = 3  # see the other streams in modules/dataset.py
PEAK = 0.9
LEVEL_RANGE_DB = (-45.0, 0.0)
# A crop this far under the level of its utterance is a pause: it is drawn again.
PAUSE_DB = 20.0
MAX_DRAWS = 50
LARGEST_TERM = 500


def frames_at(utterance: Utterance, sample_rate: int, percent: int = 100) -> int:
    """Samples of an utterance once resampled and played at `percent` of the speed."""
    return utterance.frames * sample_rate * 100 // (utterance.sample_rate * percent)


def read_crop(
    utterance: Utterance,
    start: int,
    frames: int,
    sample_rate: int,
    percent: int = 100,
) -> Tensor:
    """Read just what a crop needs, and resample it.

    Arguments
    ---------
    utterance : Utterance
        What to read from, at any rate.
    start, frames : int
        Position and length of the crop, in samples after the resampling.
    sample_rate : int
        Rate of the result in Hz.
    percent : int
        Speed: 105 reads 5 % more of the file and plays it 5 % faster and higher.

    Returns
    -------
    Tensor
        Shape [T], T = frames exactly.

    Raises
    ------
    AudioError
        The file has changed since it was measured; the message names it.
    """
    up, down = sample_rate * 100, utterance.sample_rate * percent
    first = start * down // up
    wanted = min(-(-frames * down // up), utterance.frames - first)
    wave_T = read_audio(utterance.path, first, wanted, utterance.sample_rate)
    # Speed and rate in one step, unless the ratio has large terms: torchaudio's table
    # grows with their product, to gigabytes for 22050 Hz at 133 % into 8000 Hz.
    steps = [(down, up)]
    if max(up, down) > LARGEST_TERM * math.gcd(up, down):
        steps = [(utterance.sample_rate, sample_rate), (percent, 100)]
    for from_rate, to_rate in steps:
        if from_rate != to_rate:
            wave_T = resample(wave_T, from_rate, to_rate)
    wave_T = wave_T[:frames]
    if len(wave_T) != frames:
        raise AudioError(
            f"{utterance.path}: a crop of {len(wave_T)} samples instead of {frames}"
        )
    return wave_T


def _sum(src_ST: Tensor) -> Tensor:
    """The mixture [T]; one addition after the other is quicker than `sum`."""
    return functools.reduce(torch.add, src_ST)


class DynamicMixing(Dataset):
    """Mixtures drawn from a pool of utterances by (seed, epoch, index).

    Arguments
    ---------
    pool : UtterancePool
        Talkers to draw from.
    num_spks : int
        Sources in a mixture, all of different speakers.
    sample_rate : int
        In Hz; utterances at another rate are resampled.
    segment_seconds : float | None
        Length of an example, less only where an utterance is shorter; None is as
        long as the shortest utterance drawn.
    examples_per_epoch : int | None
        Length of the data set; None takes the number of utterances.
    seed : int
        Decides, with epoch and index, every draw.
    speed_changes : Sequence[int] | None
        Percentages of which one is drawn for each source; None changes no speed.
    first_level_db, level_change_db : tuple[float, float]
        Mean and standard deviation of the first source's level, and of what the
        level of each other one is above it, in dB.

    Raises
    ------
    DataError
        The pool has fewer speakers than a mixture needs.
    """

    def __init__(
        self,
        pool: UtterancePool,
        num_spks: int = 2,
        sample_rate: int = 8000,
        segment_seconds: float | None = 4.0,
        examples_per_epoch: int | None = None,
        seed: int = 0,
        speed_changes: Sequence[int] | None = (95, 100, 105),
        first_level_db: tuple[float, float] = (-27.43, 2.57),
        level_change_db: tuple[float, float] = (-2.51, 2.66),
    ) -> None:
        if len(pool.speakers) < num_spks:
            raise DataError(
                f"dynamic mixing of {num_spks} speakers needs as many, but there are "
                f"only {pool}: {', '.join(pool.speakers)}"
            )
        if any(
            percent != int(percent) or percent < 1 for percent in speed_changes or ()
        ):
            raise ValueError(
                f"speed_changes are whole percentages above 0, not {speed_changes}"
            )
        self.pool = pool
        self.num_spks = num_spks
        self.sample_rate = sample_rate
        self.segment = segment_seconds and round(segment_seconds * sample_rate)
        self.num_examples = examples_per_epoch or len(pool)
        self.seed = seed
        self.speed_changes = tuple(speed_changes or (100,))
        self.first_level_db = first_level_db
        self.level_change_db = level_change_db
        counts = np.array([len(utterances) for utterances in pool.by_speaker])
        self.probabilities = counts / counts.sum()

    def __len__(self) -> int:
        return self.num_examples

    def __getitem__(self, key: ExampleKey | int) -> Example:
        """The mixture of (seed, epoch, index); a bare index means epoch 0.

        Returns
        -------
        Example
            The id names the utterances; peak 0.9; no source is silent.
        """
        epoch, index = (
            (key.epoch, key.index) if isinstance(key, ExampleKey) else (0, key)
        )
        if not 0 <= index < self.num_examples:
            raise IndexError(f"example {index} of {self.num_examples}")
        for draw in range(MAX_DRAWS):
            rng = numpy_rng(self.seed, epoch, index, STREAM_MIXING, draw)
            example = self._draw(rng)
            if example is not None:
                return example
        raise DataError(
            f"dynamic mixing: {MAX_DRAWS} draws for example {index} of epoch {epoch} "
            f"all hit pauses; are these nearly silent: {self.pool}?"
        )

    def _draw(self, rng: np.random.Generator) -> Example | None:
        """One mixture, or None when a crop lies in a pause."""
        speakers = rng.choice(
            len(self.probabilities), self.num_spks, replace=False, p=self.probabilities
        )
        utterances = [self._pick(rng, int(speaker)) for speaker in speakers]
        speeds = [int(s) for s in rng.choice(self.speed_changes, self.num_spks)]
        levels_db = self._levels_db(rng)
        available = [
            frames_at(utterance, self.sample_rate, speed)
            for utterance, speed in zip(utterances, speeds, strict=True)
        ]
        length = min([*available, *([self.segment] if self.segment else [])])
        starts = [int(rng.integers(frames - length + 1)) for frames in available]

        src_ST = torch.empty(self.num_spks, length)
        for source_T, utterance, start, speed, level_db in zip(
            src_ST, utterances, starts, speeds, levels_db, strict=True
        ):
            wave_T = read_crop(utterance, start, length, self.sample_rate, speed)
            power = float(torch.linalg.vector_norm(wave_T)) ** 2 / length
            if not np.isfinite(power):
                raise AudioError(
                    f"{utterance.path}: holds NaN or Inf; repair or remove it"
                )
            if power < 10 ** ((utterance.level_db - PAUSE_DB) / 10):
                return None
            torch.mul(
                wave_T, 10 ** ((level_db - utterance.level_db) / 20), out=source_T
            )
        extremes = (*torch.aminmax(_sum(src_ST)), *torch.aminmax(src_ST))
        src_ST *= PEAK / max(abs(float(extreme)) for extreme in extremes)
        name = "+".join(utterance.name for utterance in utterances)
        return Example(name, _sum(src_ST), src_ST)

    def _pick(self, rng: np.random.Generator, speaker: int) -> Utterance:
        """One of a speaker's utterances."""
        utterances = self.pool.by_speaker[speaker]
        return utterances[int(rng.integers(len(utterances)))]

    def _levels_db(self, rng: np.random.Generator) -> np.ndarray:
        """Levels of the sources in dB relative to full scale, shape [S]."""
        first = np.clip(rng.normal(*self.first_level_db), *LEVEL_RANGE_DB)
        others = first + rng.normal(*self.level_change_db, size=self.num_spks - 1)
        return np.clip([first, *others], *LEVEL_RANGE_DB)
