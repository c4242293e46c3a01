"""Whether a mixture is the sum of its parts."""

from collections.abc import Sequence

import numpy as np

from modules.audio.faults import LARGEST_PEAK, SUM_TOLERANCE
from modules.data.manifest import Row


def distance_from_sum(mixture: np.ndarray, parts: Sequence[np.ndarray]) -> float:
    """Largest sample of a mixture less all its parts; NaN where one is not a number."""
    with np.errstate(invalid="ignore", over="ignore"):
        rest = mixture - parts[0]
        for part in parts[1:]:
            rest -= part
        return float(np.abs(rest, out=rest).max())


def sum_fault(row: Row, distance: float, peak: float) -> str:
    """That a mixture is not the sum of its parts; empty where it is.

    Arguments
    ---------
    row : Row
        Says what is summed.
    distance : float
        What `distance_from_sum` found.
    peak : float
        Largest sample of all files. Where that is none, or beyond any level, nothing
        is said: another fault says more.
    """
    if not (distance > SUM_TOLERANCE * max(1.0, peak) and peak <= LARGEST_PEAK):
        return ""
    whole = "sources" if row.channels == 1 else "stems"
    whole = "images" if row.images else whole
    noise = " and the noise" if row.noise else ""
    return f"is not the sum of its {whole}{noise} (off by {distance:.2g} of full scale)"


def sum_mismatch(row: Row, mixture: np.ndarray, *parts: np.ndarray) -> str:
    """That a mixture is not the sum of its parts, with its name; empty where it is.

    Arguments
    ---------
    row : Row
        Where the waves are from.
    mixture, *parts : np.ndarray
        [T] or [C, T], all the same. May be off by `modules.audio.faults.SUM_TOLERANCE`;
        where a sample is not finite nothing is said: that is another fault.
    """
    distance = distance_from_sum(mixture, parts)
    if distance <= SUM_TOLERANCE:
        return ""
    peak = float(max(np.abs(wave).max() for wave in (mixture, *parts)))
    fault = sum_fault(row, distance, peak)
    return fault and f"{row.mixture}: {fault}"
