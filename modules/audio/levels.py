"""How loud a recording is: three measures, of which two leave its pauses out.

`loudness_db`: ITU-R BS.1770-4 (LKFS, also called LUFS), by which LibriMix and WHAM! set
their levels. torchaudio's would load torch into every process that makes a data set,
and clips what it filters to full scale.

1. K-weighting: a shelf of +4 dB above 1.5 kHz and a high-pass at 38 Hz, biquads by the
   usual formulas for any rate, as torchaudio and pyloudnorm have them (the standard's
   own high-pass, for 48 kHz, is 0.04 dB louder);
2. power of blocks of 400 ms that overlap by 75 %;
3. mean power of the blocks above -70 LKFS, and of these, of the ones at most 10 dB
   under their mean.

`p56_power`: the active speech level of ITU-T P.56, method B, by which WSJ0-mix set its
levels, written from the Recommendation. An envelope (two exponential averages of |x|
one after the other, 30 ms each) is compared with thresholds a factor 2 apart; a sample
is active while the envelope is at or above the threshold and for 0.2 s after. For each
threshold C the level A is the power of the whole recording spread over its active
samples only. The active level is the A that lies 15.9 dB above its C, found by
interpolation in dB between the two thresholds around it.

`active_power`: the idea of P.56 with one relative gate instead of the search, for
dynamic mixing and to find silence. It is quick: the mean power of the blocks of 30 ms
that are at most 15.9 dB under the mean power of all.

Legend: T sample, L block, J threshold.
"""

import functools
import math

import numpy as np

# WSJ0-mix scales a mixture and its sources together so that this is the highest peak.
MIXTURE_PEAK = 0.9

LOUDNESS_BLOCK_SECONDS = 0.4
LOUDNESS_OVERLAP = 4  # a block starts every quarter of a block
LOUDNESS_OFFSET_DB = -0.691
LOUDNESS_ABSOLUTE_GATE_DB = -70.0
LOUDNESS_RELATIVE_GATE_DB = -10.0

P56_TIME_CONSTANT_SECONDS = 0.03
P56_HANGOVER_SECONDS = 0.2
P56_MARGIN_DB = 15.9

GATE_BLOCK_SECONDS = 0.03
GATE_DB = P56_MARGIN_DB


def loudness_db(wave_T: np.ndarray, sample_rate: int) -> float:
    """Return the integrated loudness of [T], full scale at 1, in LKFS by BS.1770.

    A wave shorter than a block is a block itself. The result is minus infinity where
    nothing is above -70 LKFS.
    """
    if not len(wave_T):
        return -math.inf
    from scipy.signal import sosfilt  # 50 MB that a start of training does not need

    weighted_T = sosfilt(_k_weighting(sample_rate), wave_T)
    block = min(round(LOUDNESS_BLOCK_SECONDS * sample_rate), len(weighted_T))
    step = max(block // LOUDNESS_OVERLAP, 1)
    energy = np.concatenate([[0.0], np.cumsum(np.square(weighted_T))])
    starts_L = np.arange(0, len(weighted_T) - block + 1, step)
    power_L = (energy[starts_L + block] - energy[starts_L]) / block
    floor = 10 ** ((LOUDNESS_ABSOLUTE_GATE_DB - LOUDNESS_OFFSET_DB) / 10)
    power_L = power_L[power_L > floor]
    if not len(power_L):
        return -math.inf
    gate = power_L.mean() * 10 ** (LOUDNESS_RELATIVE_GATE_DB / 10)
    return LOUDNESS_OFFSET_DB + 10 * math.log10(power_L[power_L > gate].mean())


@functools.cache
def _k_weighting(sample_rate: int) -> np.ndarray:
    """Return the two biquads, shape [2, 6]."""
    return np.array([_shelf(sample_rate), _high_pass(sample_rate)])


def _shelf(
    sample_rate: int, hz: float = 1500.0, gain_db: float = 4.0, q: float = 0.5**0.5
) -> np.ndarray:
    """Return a high shelf as b0 b1 b2 a0 a1 a2."""
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
    """Return a high-pass as b0 b1 b2 a0 a1 a2."""
    omega = 2 * math.pi * hz / sample_rate
    alpha, cosine = math.sin(omega) / (2 * q), math.cos(omega)
    half = (1 + cosine) / 2
    filters = [half, -2 * half, half, 1 + alpha, -2 * cosine, 1 - alpha]
    return np.array(filters) / (1 + alpha)


def active_power(wave_T: np.ndarray, sample_rate: int) -> float:
    """Return the mean square of the active part of [T], full scale at 1, by one gate.

    Digital silence gives 0. At least one sample is needed.
    """
    block = max(1, round(GATE_BLOCK_SECONDS * sample_rate))
    power_T = np.square(wave_T, dtype=np.float64)
    starts = np.arange(0, len(power_T), block)
    sizes_L = np.diff(np.append(starts, len(power_T)))
    energy_L = np.add.reduceat(power_T, starts)
    gate = energy_L.sum() / len(power_T) * 10 ** (-GATE_DB / 10)
    active_L = energy_L >= gate * sizes_L
    return float(energy_L[active_L].sum() / sizes_L[active_L].sum())


def active_level_db(wave_T: np.ndarray, sample_rate: int) -> float:
    """Return `active_power` in dB re full scale; minus infinity for silence."""
    power = active_power(wave_T, sample_rate)
    return 10 * math.log10(power) if power > 0 else -math.inf


def p56_power(wave_T: np.ndarray, sample_rate: int) -> float:
    """Return the mean square of the active part of [T], full scale at 1, by P.56.

    Digital silence or an empty recording gives 0; all samples must be finite.
    """
    wave_T = np.asarray(wave_T, dtype=np.float64)
    # No BLAS: its threads would change the last bits, and stand in each other's way.
    energy = float(np.square(wave_T).sum())
    if energy == 0:
        return 0.0
    rms = math.sqrt(energy / len(wave_T))
    thresholds_J, active_J = _activity(wave_T, sample_rate, rms)
    level_J = 10 * np.log10(energy / active_J)
    margin_J = level_J - 20 * np.log10(thresholds_J)
    # Thresholds fall, so margins rise; the last is above the margin by construction.
    above = int(np.argmax(margin_J >= P56_MARGIN_DB))
    level_db = level_J[above]
    if above > 0:  # 0 only for clicks, whose envelope stays far under their power
        step = margin_J[above] - margin_J[above - 1]
        share = (margin_J[above] - P56_MARGIN_DB) / step
        level_db += share * (level_J[above - 1] - level_J[above])
    return float(10 ** (level_db / 10))


def _activity(
    wave_T: np.ndarray, sample_rate: int, rms: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return thresholds [J], falling by factors of 2, and active samples at each."""
    from scipy.ndimage import maximum_filter1d
    from scipy.signal import lfilter

    decay = math.exp(-1 / (P56_TIME_CONSTANT_SECONDS * sample_rate))
    envelope_T = lfilter([(1 - decay) ** 2], [1, -2 * decay, decay**2], np.abs(wave_T))
    # A sample is active if its envelope, or one of those up to 0.2 s before it, reaches
    # the threshold: if the running maximum does. It looks back, hence the origin.
    window = math.ceil(P56_HANGOVER_SECONDS * sample_rate) + 1
    held_T = maximum_filter1d(
        envelope_T, window, mode="constant", origin=window - 1 - window // 2
    )
    # held = m * 2^e with 0.5 <= m < 1: it reaches 2^(e-1) and all that lie below.
    exponent_T = np.frexp(held_T[held_T > 0])[1]
    top = int(exponent_T.max())
    # Far enough down for the margin, however short the active part is.
    count = max(top - math.frexp(rms)[1], 0) + math.ceil(P56_MARGIN_DB / 6) + 3
    steps_T = np.minimum(top - exponent_T, count)
    active_J = np.cumsum(np.bincount(steps_T, minlength=count + 1)[:count])
    return 2.0 ** (top - 1 - np.arange(count)), active_J
