"""What is wrong with the samples or the header of an audio file."""

import math
import re

import soundfile

# Largest distance of a mixture from the sum of its sources: int16 rounding of each,
# with room for dither. A share of the peak where float files exceed full scale.
SUM_TOLERANCE = 4 / 2**15

# No sample above the last bit of 16: digital silence, or what dither leaves of it.
SILENT_PEAK = 1.5 / 2**15

# Active-speech level below the quietest speech, above what 16-bit dither leaves.
SILENT_SPEECH_DB = -75.0

# Level of the mean absolute sample below which a stem holds nothing to judge.
SILENT_STEM_DB = -80.0

# Float files may exceed full scale, but not by 40 dB.
LARGEST_PEAK = 100.0

# libsndfile's note of a WAV whose header promises more than the file holds.
CUT_SHORT = re.compile(r"^data : (\d+) \(should be (\d+)\)", re.MULTILINE)

# A program that writes into a pipe promises this much or more: it cannot know.
UNKNOWN_BYTES = 2**31 - 2**16


def cut_short(file: soundfile.SoundFile) -> str:
    """Say how much of what a WAV's header promises is there; empty if all is."""
    found = CUT_SHORT.search(file.extra_info)
    promised, held = map(int, found.groups()) if found else (0, 0)
    if not held < promised < UNKNOWN_BYTES:
        return ""
    return f"holds {held} of {promised} bytes of samples"


def level_fault(low: float, high: float) -> str:
    """Say what is wrong with samples between two extremes (NaN counts as one).

    Example
    -------
    >>> level_fault(-1.0, 0.9), level_fault(0.0, float("nan")), level_fault(-1e25, 0.0)
    ('', 'holds NaN or Inf', 'has a peak of 1e+25 times full scale')
    """
    if not (math.isfinite(low) and math.isfinite(high)):
        return "holds NaN or Inf"
    peak = max(high, -low)
    return f"has a peak of {peak:.2g} times full scale" * (peak > LARGEST_PEAK)
