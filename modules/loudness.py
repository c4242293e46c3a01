"""How loud a recording is by ITU-R BS.1770-4: LKFS, also called LUFS.

The rule LibriMix and WHAM! set their levels by. torchaudio has the same measure; this
one needs neither torch, which every process that makes a data set would have to load,
nor a wave within full scale, to which torchaudio clips what it filters.

1. the K-weighting: a shelf of +4 dB above 1.5 kHz and a high-pass at 38 Hz, biquads by
   the usual formulas for any rate, as torchaudio and pyloudnorm have them (the
   standard's own high-pass, for 48 kHz, is 0.04 dB louder);
2. power of blocks of 400 ms that overlap by 75 %;
3. mean power of the blocks above -70 LKFS, and of these, of the ones at most 10 dB
   under their mean.

Legend: T sample, L block.
"""

import functools
import math

import numpy as np
import scipy.signal

BLOCK_SECONDS = 0.4
BLOCKS_PER_BLOCK = 4  # a block starts every quarter of a block
OFFSET_DB = -0.691
ABSOLUTE_GATE_DB = -70.0
RELATIVE_GATE_DB = -10.0


def loudness_db(wave_T: np.ndarray, sample_rate: int) -> float:
    """Integrated loudness of one channel.

    Arguments
    ---------
    wave_T : np.ndarray
        Shape [T], full scale at 1. Shorter than a block, it is a block itself.
    sample_rate : int
        In Hz.

    Returns
    -------
    float
        LKFS; minus infinity where nothing is above -70 LKFS.

    Example
    -------
    A sine of 997 Hz at full scale, -3.01 LKFS by the standard:

    >>> tone_T = np.sin(2 * np.pi * 997 * np.arange(48000) / 48000)
    >>> round(loudness_db(tone_T, 48000), 2)
    -3.05
    """
    if not len(wave_T):
        return -math.inf
    weighted_T = scipy.signal.sosfilt(_k_weighting(sample_rate), wave_T)
    block = min(round(BLOCK_SECONDS * sample_rate), len(weighted_T))
    step = max(block // BLOCKS_PER_BLOCK, 1)
    energy = np.concatenate([[0.0], np.cumsum(np.square(weighted_T))])
    starts_L = np.arange(0, len(weighted_T) - block + 1, step)
    power_L = (energy[starts_L + block] - energy[starts_L]) / block
    power_L = power_L[power_L > 10 ** ((ABSOLUTE_GATE_DB - OFFSET_DB) / 10)]
    if not len(power_L):
        return -math.inf
    gate = power_L.mean() * 10 ** (RELATIVE_GATE_DB / 10)
    return OFFSET_DB + 10 * math.log10(power_L[power_L > gate].mean())


@functools.cache
def _k_weighting(sample_rate: int) -> np.ndarray:
    """The two biquads, shape [2, 6]."""
    return np.array([_shelf(sample_rate), _high_pass(sample_rate)])


def _shelf(
    sample_rate: int, hz: float = 1500.0, gain_db: float = 4.0, q: float = 0.5**0.5
) -> np.ndarray:
    """A high shelf as b0 b1 b2 a0 a1 a2."""
    omega = 2 * math.pi * hz / sample_rate
    amplitude, cosine = 10 ** (gain_db / 40), math.cos(omega)
    slope = 2 * math.sqrt(amplitude) * math.sin(omega) / (2 * q)
    plus, minus = amplitude + 1, amplitude - 1
    numerator = [
        amplitude * (plus + minus * cosine + slope),
        -2 * amplitude * (minus + plus * cosine),
        amplitude * (plus + minus * cosine - slope),
    ]
    denominator = [
        plus - minus * cosine + slope,
        2 * (minus - plus * cosine),
        plus - minus * cosine - slope,
    ]
    return np.array(numerator + denominator) / denominator[0]


def _high_pass(sample_rate: int, hz: float = 38.0, q: float = 0.5) -> np.ndarray:
    """A high-pass as b0 b1 b2 a0 a1 a2."""
    omega = 2 * math.pi * hz / sample_rate
    alpha, cosine = math.sin(omega) / (2 * q), math.cos(omega)
    half = (1 + cosine) / 2
    filters = [half, -2 * half, half, 1 + alpha, -2 * cosine, 1 - alpha]
    return np.array(filters) / (1 + alpha)
