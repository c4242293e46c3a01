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

# Seconds by which a header may exceed what its file holds: some encoders round up.
HEADER_SLACK = 0.01

# A program that writes into a pipe promises this much or more: it cannot know.
UNKNOWN_BYTES = 2**31 - 2**16
UNKNOWN_FRAMES = 2**40

# libsndfile's note of a header that promises more bytes than the file holds.
CUT_SHORT = re.compile(
    r"^ *(?:data|SSND|Data Size|riff|Riff size) *: (\d+) \(should be (\d+)\)",
    re.MULTILINE,
)

OGG_CUT_SHORT = "Last page lacks an end-of-stream bit"  # libsndfile's words, too
SPHERE_SAMPLES = re.compile(rb"^sample_count -i (\d+)", re.MULTILINE)

# More than a header without samples takes.
LARGEST_HEADER = 4096


def promised_frames(file: soundfile.SoundFile) -> int:
    """Return how many samples the header of a file promises, 0 where it cannot know."""
    if file.format == "NIST":
        with open(file.name, "rb") as sphere:
            counted = SPHERE_SAMPLES.search(sphere.read(1024))
        return int(counted[1]) if counted else file.frames
    found = CUT_SHORT.search(file.extra_info)
    promised, held = map(int, found.groups()) if found else (0, 0)
    if 0 < held < promised:
        known = promised < UNKNOWN_BYTES
        return round(file.frames * promised / held) if known else 0
    return file.frames if file.frames < UNKNOWN_FRAMES else 0


def length_fault(file: soundfile.SoundFile, held: int, size: int) -> tuple[str, str]:
    """Say what is wrong, or else to be noted, of a file's samples and bytes."""
    if OGG_CUT_SHORT in file.extra_info:
        return "is truncated: its last page is missing", ""
    if not held and size > LARGEST_HEADER:
        return f"has 0 samples by its header, but {size} bytes: repair it", ""
    if not held:
        return "is empty: it holds no samples", ""
    promised = promised_frames(file)
    if promised - held > HEADER_SLACK * file.samplerate:
        return f"is truncated: holds {held} of {promised} samples", ""
    note = f"holds {held} of the {promised} samples that its header claims"
    return "", note * (promised > held)


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
