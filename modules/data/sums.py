"""Whether a mixture is the sum of its parts."""

from collections.abc import Sequence

import numpy as np

from modules.audio.faults import LARGEST_PEAK, SUM_TOLERANCE
from modules.data.manifest import Row


def distance_from_sum(mixture: np.ndarray, parts: Sequence[np.ndarray]) -> float:
    """Return the largest sample of mixture - sum of parts; NaN if any sample is NaN."""
    with np.errstate(invalid="ignore", over="ignore"):
        rest = mixture - parts[0]
        for part in parts[1:]:
            rest -= part
        return float(np.abs(rest, out=rest).max())


def sum_fault(row: Row, distance: float, peak: float) -> str:
    """Describe a mixture that is not the sum of its parts; return "" where it is.

    Arguments
    ---------
    row : Row
        Names the parts that are summed.
    distance : float
        The result of `distance_from_sum`.
    peak : float
        Largest sample of all files. If it is not finite or beyond any level, nothing
        is reported: that fault explains the wrong sum.
    """
    if not (distance > SUM_TOLERANCE * max(1.0, peak) and peak <= LARGEST_PEAK):
        return ""
    whole = "sources" if row.channels == 1 else "stems"
    whole = "images" if row.images else whole
    noise = " and the noise" if row.noise else ""
    return f"is not the sum of its {whole}{noise} (off by {distance:.2g} of full scale)"


def sum_mismatch(row: Row, mixture: np.ndarray, *parts: np.ndarray) -> str:
    """Return `sum_fault` of waves with the mixture's name; [T] or [C, T], all alike."""
    distance = distance_from_sum(mixture, parts)
    if distance <= SUM_TOLERANCE:
        return ""
    peak = float(max(np.abs(wave).max() for wave in (mixture, *parts)))
    fault = sum_fault(row, distance, peak)
    return fault and f"{row.mixture}: {fault}"
