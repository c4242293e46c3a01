"""Write the stems of one mixture block by block, as files of one level.

Legend: C channel, t sample of a block.
"""

import math
import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
import soundfile

from modules.runtime.errors import DataError
from modules.runtime.files import write_whole

Format = Literal["wav", "flac", "ogg"]
Subtype = Literal["float", "pcm16", "pcm24"]
Clip = Literal["scale", "clamp", "error"]

# What libsndfile calls them; the first of each format is its default.
SUBTYPES = {
    "wav": {"float": "FLOAT", "pcm16": "PCM_16", "pcm24": "PCM_24"},
    "flac": {"pcm24": "PCM_24", "pcm16": "PCM_16"},
    "ogg": {"vorbis": "VORBIS"},
}

LARGEST_WAV = 2**32 - 2**16  # bytes; longer ones are RF64

WRITE_FRAMES = 2**16  # at most at a time

Block = Mapping[str, np.ndarray]


def subtype_of(format: Format, subtype: Subtype | None) -> str:
    """Return libsndfile's name of a subtype; None takes the format's default."""
    known = SUBTYPES[format]
    if subtype is not None and subtype not in known:
        raise DataError(f"--subtype={subtype}: {format} files are {' or '.join(known)}")
    return known[subtype] if subtype else next(iter(known.values()))


def write_set(
    paths: Mapping[str, Path],
    blocks: Iterable[Block],
    sample_rate: int,
    format: Format = "wav",
    subtype: Subtype | None = None,
    clip: Clip = "scale",
    frames: int = 0,
) -> float:
    """Write blocks [C, t] by the names of `paths`; all files appear in the end, whole.

    Levels are kept. Where an integer format would clip, all files are lowered by one
    factor (`scale`), clipped (`clamp`), or refused (`error`, a DataError); the samples
    wait for it in float files. WAV of `frames` that exceed 4 GB is RF64.

    Returns
    -------
    float
        By how many dB all files were lowered, 0 if they were not.
    """
    kind = subtype_of(format, subtype)
    folder = next(iter(paths.values())).parent
    with ExitStack() as stack:
        partial = {
            name: stack.enter_context(write_whole(path)) for name, path in paths.items()
        }
        try:
            if not kind.startswith("PCM"):
                _write(partial, blocks, sample_rate, format, kind, frames)
                return 0.0
            place = TemporaryDirectory(dir=folder, prefix=".")
            staging = Path(stack.enter_context(place))
            floats = {name: staging / path.name for name, path in paths.items()}
            peak = _write(floats, blocks, sample_rate, "rf64", "FLOAT", frames)
            if peak > 1 and clip == "error":
                fault = f"samples of {peak:.3g} times full scale clip in {kind}"
                hint = "use --clip=scale or --subtype=float"
                raise DataError(f"{folder}: {fault}; {hint}")
            loud = max(1.0, peak) if clip == "scale" else 1.0
            for name, path in floats.items():
                with soundfile.SoundFile(os.fsencode(path)) as file:
                    parts = file.blocks(WRITE_FRAMES, dtype="float32", always_2d=True)
                    scaled = ({name: part.T / np.float32(loud)} for part in parts)
                    _write(partial, scaled, sample_rate, format, kind, frames)
        except soundfile.LibsndfileError as error:
            reason = error.error_string
            raise DataError(f"{folder}: cannot be written ({reason})") from error
    return 20 * math.log10(loud)


def _write(
    paths: Mapping[str, Path],
    blocks: Iterable[Block],
    sample_rate: int,
    format: str,
    subtype: str,
    frames: int,
) -> float:
    """Write all blocks; return the largest magnitude."""
    peak = 0.0
    with ExitStack() as stack:
        files: dict[str, soundfile.SoundFile] = {}
        for block in blocks:
            for name, wave_Ct in block.items():
                if name not in files:
                    is_long = 4 * frames * len(wave_Ct) > LARGEST_WAV
                    kind = "rf64" if is_long and format == "wav" else format
                    shape = (sample_rate, len(wave_Ct), subtype)
                    place = os.fsencode(paths[name])
                    file = soundfile.SoundFile(place, "w", *shape, format=kind)
                    files[name] = stack.enter_context(file)
                peak = max(peak, float(np.abs(wave_Ct).max(initial=0)))
                for start in range(0, wave_Ct.shape[1], WRITE_FRAMES):
                    files[name].write(wave_Ct[:, start : start + WRITE_FRAMES].T)
    return peak
