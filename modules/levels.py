"""How loud speech is while somebody speaks.

The RMS of a whole recording depends on how long its pauses are, so two utterances
mixed at equal RMS are not equally loud. ITU-T P.56 leaves the pauses out: what lies
more than 15.9 dB under the active level does not count. This is that idea with one
relative gate, as in ITU-R BS.1770, instead of P.56's search over envelopes:

1. power of successive blocks of 30 ms;
2. gate = mean power of all blocks, less 15.9 dB;
3. level = mean power of the blocks at or above the gate.

It serves where levels are drawn at random anyway, as in dynamic mixing, and is quick;
P.56 itself, for data sets whose published levels it set, is in `modules.active_level`.

Legend: T sample, L block.
"""

import math

import numpy as np

BLOCK_SECONDS = 0.030
GATE_DB = 15.9


def active_power(wave_T: np.ndarray, sample_rate: int) -> float:
    """Mean square of the active part of a recording.

    Arguments
    ---------
    wave_T : np.ndarray
        Shape [T], at least one sample, full scale at 1.
    sample_rate : int
        In Hz.

    Returns
    -------
    float
        Power relative to full scale; 0 for digital silence.

    Example
    -------
    Pauses do not lower it:

    >>> voice_T = np.sin(np.arange(8000) / 3)
    >>> half = np.concatenate([voice_T, np.zeros(8000)])
    >>> abs(active_power(half, 8000) / active_power(voice_T, 8000) - 1) < 0.02
    True
    """
    block = max(1, round(BLOCK_SECONDS * sample_rate))
    power_T = np.square(wave_T, dtype=np.float64)
    starts = np.arange(0, len(power_T), block)
    sizes_L = np.diff(np.append(starts, len(power_T)))
    energy_L = np.add.reduceat(power_T, starts)
    gate = energy_L.sum() / len(power_T) * 10 ** (-GATE_DB / 10)
    active_L = energy_L >= gate * sizes_L
    return float(energy_L[active_L].sum() / sizes_L[active_L].sum())


def active_level_db(wave_T: np.ndarray, sample_rate: int) -> float:
    """`active_power` in dB relative to full scale; minus infinity for silence.

    Example
    -------
    >>> round(active_level_db(0.1 * np.ones(8000), 8000), 6)
    -20.0
    """
    power = active_power(wave_T, sample_rate)
    return 10 * math.log10(power) if power > 0 else -math.inf
