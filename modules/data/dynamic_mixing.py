"""Dynamic mixing: every example is a new mixture of talkers drawn from a pool.

The recipe is that of SpeechBrain for WSJ0-mix:

- speakers are drawn without replacement, each in proportion to its utterances;
- the first source's level is N(-27.43, 2.57) dB, that of each other one is the
  first's plus N(-2.51, 2.66) dB, all within [-45, 0] dB;
- sources are cut at random to the shortest of them and to the segment;
- everything is scaled so that the highest peak is 0.9.

Two things differ. A level is the active-speech level of the whole utterance, measured
once, and not the mean amplitude of the file. And every draw is a function of (seed,
epoch, index), so a mixture is the same for any number of workers, ranks or resumes.

Where the training set has noise, a crop of it is added by WHAM!'s rule: the first
source is U(-3, 6) dB louder than the noise, both by BS.1770 and as cropped.

With a pool of rooms every mixture is heard in one of them, as in WHAMR!: levels and
noise are those of the dry sources, whose energy the anechoic ones keep. A crop begins
in silence: earlier speech does not reverberate in it.

Legend: S source, T sample.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from modules.audio.faults import LARGEST_PEAK
from modules.audio.io import check_samples, read_audio
from modules.audio.levels import MIXTURE_PEAK, loudness_db
from modules.audio.resample import resample
from modules.audio.rooms import RoomPool
from modules.data.batch import Example, ExampleKey
from modules.data.utterances import Utterance, UtterancePool, check_unchanged
from modules.runtime.errors import AudioError, DataError, HparamsError
from modules.runtime.randomness import Stream, numpy_rng

LEVEL_RANGE_DB = (-45.0, 0.0)

# A crop this far under the level of its utterance is a pause: it is drawn again.
PAUSE_DB = 20.0

MAX_DRAWS = 50

# Speed and rate change in one step, unless the ratio has larger terms: torchaudio's
# table grows with their product, to gigabytes for 22050 Hz at 133 % into 8000 Hz.
LARGEST_TERM = 500


def frames_at(utterance: Utterance, sample_rate: int, percent: int = 100) -> int:
    """Return the samples of an utterance, resampled and at `percent` of the speed."""
    return utterance.frames * sample_rate * 100 // (utterance.sample_rate * percent)


def read_crop(
    utterance: Utterance, start: int, frames: int, sample_rate: int, percent: int = 100
) -> Tensor:
    """Read just the part of a file that a crop needs, and resample it: [T].

    `start` and `frames` (T) are in samples after the resampling. A speed of 105 % reads
    5 % more of the file and plays it 5 % faster and higher.
    """
    check_unchanged(utterance)
    up, down = sample_rate * 100, utterance.sample_rate * percent
    first = start * down // up
    wanted = min(-(-frames * down // up), utterance.frames - first)
    wave_T = read_audio(utterance.path, first, wanted, utterance.sample_rate)
    if max(up, down) > LARGEST_TERM * math.gcd(up, down):
        wave_T = resample(wave_T, utterance.sample_rate, sample_rate)
        down, up = percent, 100
    wave_T = resample(wave_T, down, up)
    wave_T = wave_T[:frames]
    if len(wave_T) != frames:
        raise AudioError(
            f"{utterance.path}: a crop of {len(wave_T)} samples instead of {frames}"
        )
    return wave_T


@dataclass(eq=False, repr=False)
class DynamicMixing(Dataset):
    """Mixtures drawn from a pool of utterances by (seed, epoch, index).

    A DataError says that the pool or the rooms do not fit the mixtures, an HparamsError
    that `noise_snr_db` or `targets` is invalid.
    """

    pool: UtterancePool
    num_spks: int = 2  # in a mixture, all different
    sample_rate: int = 8000  # in Hz; utterances at another are resampled
    # Length of an example, less only where an utterance is shorter; None is as long as
    # the shortest utterance drawn.
    segment_seconds: float | None = 4.0
    examples_per_epoch: int | None = None  # None: as many as there are utterances
    seed: int = 0
    # Percentages of which one is drawn for each source; None changes no speed.
    speed_changes: Sequence[int] | None = (95, 100, 105)
    # Mean and standard deviation in dB of the first source's level, and of the level of
    # each other one above it.
    first_level_db: tuple[float, float] = (-27.43, 2.57)
    level_change_db: tuple[float, float] = (-2.51, 2.66)
    # Files of noise at `sample_rate`, with their lengths in samples; one is drawn for
    # each mixture, which is no longer than it.
    noises: Sequence[tuple[str, int]] = ()
    # Range in dB of the loudness of the first source above the noise.
    noise_snr_db: Sequence[float] = (-3.0, 6.0)
    rooms: RoomPool | None = None  # of which one is drawn for each mixture
    # The sources of an example in a room: "anechoic", which do not add up to the
    # mixture, or "reverb".
    targets: str = "anechoic"

    def __post_init__(self) -> None:
        pool, rooms, snr_db = self.pool, self.rooms, self.noise_snr_db
        if len(pool.speakers) < self.num_spks:
            raise DataError(
                f"dynamic mixing of {self.num_spks} speakers needs as many, but there "
                f"are only {pool}: {', '.join(pool.speakers)}"
            )
        if len(snr_db) != 2 or snr_db[0] > snr_db[1]:
            raise HparamsError(f"noise_snr_db is [least, most] in dB, not {snr_db}")
        if self.targets not in ("anechoic", "reverb"):
            raise HparamsError(
                f"targets is {self.targets!r}, expected 'anechoic' or 'reverb'"
            )
        if rooms is not None and rooms.num_sources < self.num_spks:
            raise DataError(
                f"the rooms have places for {rooms.num_sources} talkers, not "
                f"{self.num_spks}"
            )
        if rooms is not None and rooms.sample_rate != self.sample_rate:
            raise DataError(
                f"the rooms are at {rooms.sample_rate} Hz, mixtures at "
                f"{self.sample_rate} Hz"
            )
        self.segment = round((self.segment_seconds or 0) * self.sample_rate)
        self.num_examples = self.examples_per_epoch or len(pool)
        counts = np.array(list(map(len, pool.by_speaker)))
        self.probabilities = counts / counts.sum()

    def __len__(self) -> int:
        return self.num_examples

    def __getitem__(self, key: ExampleKey | int) -> Example:
        """Return the mixture of (seed, epoch, index); a bare index means epoch 0.

        Its id names the utterances, its peak is 0.9, no source is silent, and it is
        exactly the sum of sources (in rooms: of reverberant ones) and noise.
        """
        epoch, index, _ = ExampleKey.of(key)
        if not 0 <= index < self.num_examples:
            raise IndexError(f"example {index} of {self.num_examples}")
        for draw in range(MAX_DRAWS):
            rng = numpy_rng(self.seed, epoch, index, Stream.MIXING, draw)
            example = self._draw(rng)
            if example is not None:
                return example
        raise DataError(
            f"dynamic mixing: {MAX_DRAWS} draws for example {index} of epoch {epoch} "
            f"all hit pauses; are these nearly silent: {self.pool}"
            f"{' or the noises' * bool(self.noises)}?"
        )

    def _draw(self, rng: np.random.Generator) -> Example | None:
        """Draw one mixture; return None when a crop lies in a pause."""
        speakers = rng.choice(
            len(self.probabilities), self.num_spks, replace=False, p=self.probabilities
        )
        spoken = [self.pool.by_speaker[speaker] for speaker in speakers]
        utterances = [own[int(rng.integers(len(own)))] for own in spoken]
        percents = self.speed_changes or (100,)
        speeds = [int(s) for s in rng.choice(percents, self.num_spks)]
        levels_db = self._levels_db(rng)
        pairs = zip(utterances, speeds, strict=True)
        available = [frames_at(file, self.sample_rate, speed) for file, speed in pairs]
        noise_file = ""
        if self.noises:
            noise_file, frames = self.noises[int(rng.integers(len(self.noises)))]
            available.append(frames)
        length = min([*available, *([self.segment] if self.segment else [])])
        starts = [int(rng.integers(frames - length + 1)) for frames in available]

        src_ST = torch.empty(self.num_spks, length)
        for source_T, utterance, start, speed, level_db in zip(
            src_ST, utterances, starts[: self.num_spks], speeds, levels_db, strict=True
        ):
            wave_T = read_crop(utterance, start, length, self.sample_rate, speed)
            norm = float(torch.linalg.vector_norm(wave_T))
            if not norm <= LARGEST_PEAK:  # so it is if a sample exceeds that or is NaN
                check_samples(utterance.path, wave_T)
            power = norm**2 / length
            if power < 10 ** ((utterance.level_db - PAUSE_DB) / 10):
                return None
            gain = 10 ** ((level_db - utterance.level_db) / 20)
            torch.mul(wave_T, gain, out=source_T)
        noise_T = None
        if noise_file:
            snr_db = rng.uniform(self.noise_snr_db[0], self.noise_snr_db[1])
            noise_T = self._noise(noise_file, starts[-1], src_ST[0], snr_db)
            if noise_T is None:
                return None
        image_ST = src_ST
        if self.rooms is not None:
            number = int(rng.integers(len(self.rooms)))
            heard = self.rooms.in_room(src_ST.numpy(), number)
            src_ST, image_ST = map(torch.from_numpy, heard)
            if not src_ST.any(1).all():  # the sound of one has not arrived yet
                return None
            src_ST = image_ST if self.targets == "reverb" else src_ST
        waves = [_sum(image_ST, noise_T), src_ST]
        waves += [] if noise_T is None else [noise_T]
        extremes = [extreme for wave in waves for extreme in torch.aminmax(wave)]
        gain = MIXTURE_PEAK / max(abs(float(extreme)) for extreme in extremes)
        mixed_ST = image_ST * gain
        src_ST = mixed_ST if src_ST is image_ST else src_ST * gain
        noise_T = None if noise_T is None else noise_T * gain
        name = "+".join(utterance.name for utterance in utterances)
        return Example(name, _sum(mixed_ST, noise_T), src_ST, noise_T)

    def _noise(
        self, path: str, start: int, first_T: Tensor, snr_db: float
    ) -> Tensor | None:
        """Return noise `snr_db` under the first source; None if either is silent."""
        noise_T = read_audio(path, start, len(first_T), self.sample_rate)
        check_samples(path, noise_T)
        speech_db = loudness_db(first_T.numpy(), self.sample_rate)
        noise_db = loudness_db(noise_T.numpy(), self.sample_rate)
        if not (np.isfinite(speech_db) and np.isfinite(noise_db)):
            return None
        return noise_T * 10 ** ((speech_db - snr_db - noise_db) / 20)

    def _levels_db(self, rng: np.random.Generator) -> np.ndarray:
        """Draw the levels of the sources in dB relative to full scale, shape [S]."""
        first = np.clip(rng.normal(*self.first_level_db), *LEVEL_RANGE_DB)
        others = first + rng.normal(*self.level_change_db, size=self.num_spks - 1)
        return np.clip([first, *others], *LEVEL_RANGE_DB)


def _sum(src_ST: Tensor, noise_T: Tensor | None) -> Tensor:
    """Return the mixture [T]; one addition after the other is quicker than `sum`."""
    waves = [*src_ST] if noise_T is None else [*src_ST, noise_T]
    return functools.reduce(torch.add, waves)
