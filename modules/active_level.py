"""Active speech level by ITU-T P.56, method B, which set the levels of WSJ0-mix.

Written from the Recommendation. An envelope (two exponential averages of |x| one after
the other, 30 ms each) is compared with thresholds a factor 2 apart; a sample is active
while the envelope is at or above the threshold and for 0.2 s after. For each threshold
C the level A is the power of the whole recording spread over its active samples only.
The active level is the A that lies 15.9 dB above its C, found by interpolation in dB
between the two thresholds around it.

Used where a data set's own levels are to be reproduced (`data_prep.wsj0mix generate`).
Dynamic mixing, whose levels are drawn anyway, uses the faster gate of `modules.levels`.

Legend: T sample, J threshold.
"""

import math

import numpy as np
from scipy.ndimage import maximum_filter1d
from scipy.signal import lfilter

TIME_CONSTANT = 0.03
HANGOVER_SECONDS = 0.2
MARGIN_DB = 15.9


def p56_power(wave_T: np.ndarray, sample_rate: int) -> float:
    """Mean square of the active part of a recording.

    Arguments
    ---------
    wave_T : np.ndarray
        Shape [T], finite, full scale at 1.
    sample_rate : int
        In Hz.

    Returns
    -------
    float
        Power relative to full scale; 0 for digital silence or an empty recording.

    Example
    -------
    A sine of peak 1 has the power 0.5, with or without a pause behind it:

    >>> sine_T = np.sin(np.arange(80000) / 3)
    >>> round(p56_power(sine_T, 8000), 2)
    0.5
    >>> round(p56_power(np.append(sine_T, np.zeros(80000)), 8000), 2)
    0.49
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
    above = int(np.argmax(margin_J >= MARGIN_DB))
    level_db = level_J[above]
    if above > 0:  # 0 only for clicks, whose envelope stays far under their power
        step = margin_J[above] - margin_J[above - 1]
        share = (margin_J[above] - MARGIN_DB) / step
        level_db += share * (level_J[above - 1] - level_J[above])
    return float(10 ** (level_db / 10))


def _activity(
    wave_T: np.ndarray, sample_rate: int, rms: float
) -> tuple[np.ndarray, np.ndarray]:
    """Thresholds [J], falling by factors of 2, and the active samples at each [J]."""
    decay = math.exp(-1 / (TIME_CONSTANT * sample_rate))
    envelope_T = lfilter([(1 - decay) ** 2], [1, -2 * decay, decay**2], np.abs(wave_T))
    # Active is a sample whose envelope, or one of those up to 0.2 s before it, reaches
    # the threshold: whose running maximum does. It looks back, hence the origin.
    window = math.ceil(HANGOVER_SECONDS * sample_rate) + 1
    held_T = maximum_filter1d(
        envelope_T, window, mode="constant", origin=window - 1 - window // 2
    )
    # held = m * 2^e with 0.5 <= m < 1: it reaches 2^(e-1) and all that lie below.
    exponent_T = np.frexp(held_T[held_T > 0])[1]
    top = int(exponent_T.max())
    # Far enough down for the margin, however short the active part is.
    count = max(top - math.frexp(rms)[1], 0) + math.ceil(MARGIN_DB / 6) + 3
    steps_T = np.minimum(top - exponent_T, count)
    active_J = np.cumsum(np.bincount(steps_T, minlength=count + 1)[:count])
    return 2.0 ** (top - 1 - np.arange(count)), active_J
