"""Effects of augmentation: each changes a wave by what it draws from a generator.

Legend: C channel, T sample.
"""

import io
import math

import numpy as np
import soundfile
import torch
import torchaudio
from numpy.random import Generator
from torch import Tensor

from modules.data.augmentation import Augmentation
from modules.runtime.errors import DataError
from modules.runtime.randomness import Stream, numpy_rng

EQ_BANDS = 3
EQ_HZ = (60.0, 10000.0)
EQ_Q = (0.5, 2.0)

# torchaudio clips at full scale, which normalised stems are over.
HEADROOM = 2.0**-20


def add_effects(wave_CT: Tensor, how: Augmentation, rate: int, *at: int) -> Tensor:
    """Apply each effect as often as the settings say, by the seed and counters `at`."""
    for number, (name, effect) in enumerate(EFFECTS.items()):
        if probability := getattr(how, name):
            rng = numpy_rng(*at, number, Stream.EFFECT)
            if rng.random() < probability:
                wave_CT = effect(wave_CT, rng, how, rate)
    return wave_CT


def reverse(wave_CT: Tensor, rng: Generator, how: Augmentation, rate: int) -> Tensor:
    """Play a wave backwards."""
    return wave_CT.flip(1)


def equalize(wave_CT: Tensor, rng: Generator, how: Augmentation, rate: int) -> Tensor:
    """Raise and lower a few bands at random."""
    highest = min(EQ_HZ[1], 0.45 * rate)
    spans = (min(EQ_HZ[0], highest / 2), highest), EQ_Q
    out_CT = wave_CT.double() * HEADROOM
    for _ in range(EQ_BANDS):
        hz, q = (
            math.exp(rng.uniform(math.log(low), math.log(high))) for low, high in spans
        )
        gain_db = rng.uniform(-how.eq_gain_db, how.eq_gain_db)
        out_CT = torchaudio.functional.equalizer_biquad(out_CT, rate, hz, gain_db, q)
    return (out_CT / HEADROOM).float()


def add_noise(wave_CT: Tensor, rng: Generator, how: Augmentation, rate: int) -> Tensor:
    """Add white noise, at a level relative to the wave's: silence stays silence."""
    snr_db = rng.uniform(*how.noise_snr_db)
    level = float(wave_CT.square().mean().sqrt()) * 10 ** (-snr_db / 20)
    noise_CT = rng.standard_normal(tuple(wave_CT.shape), np.float32)
    return wave_CT + level * torch.from_numpy(noise_CT)


def code_mp3(wave_CT: Tensor, rng: Generator, how: Augmentation, rate: int) -> Tensor:
    """Write a wave as MP3 and read it, in memory; no sample moves."""
    compression = rng.uniform(*how.mp3_compression)
    peak = float(wave_CT.abs().max())
    if not peak > 0:
        return wave_CT
    coded, wave_TC = io.BytesIO(), (wave_CT / (2 * peak)).numpy().T
    # With a variable rate the file always says where the encoder's delay ends.
    options = {"compression_level": compression, "bitrate_mode": "VARIABLE"}
    soundfile.write(coded, wave_TC, rate, format="MP3", **options)
    coded.seek(0)
    read_TC, _ = soundfile.read(coded, dtype="float32", always_2d=True)
    return torch.from_numpy(read_TC.T).contiguous() * (2 * peak)


EFFECTS = {"reverse": reverse, "eq": equalize, "noise": add_noise, "mp3": code_mp3}


def check_mp3(rate: int) -> None:
    """Raise a DataError if MP3 cannot be written here, or not at this rate."""
    click_CT = torch.zeros(2, rate)
    click_CT[:, rate // 3] = 1.0
    fault = "what is written is read at another place"
    try:
        coded_CT = code_mp3(click_CT, numpy_rng(0), Augmentation(), rate)
        if coded_CT.shape == click_CT.shape and int(coded_CT[0].argmax()) == rate // 3:
            return
    except (RuntimeError, TypeError, ValueError) as error:  # of soundfile
        fault = str(error)
    needed = "soundfile 0.13 or newer, whose libsndfile writes MP3"
    raise DataError(f"augmentation: mp3 at {rate} Hz needs {needed}: {fault}")
