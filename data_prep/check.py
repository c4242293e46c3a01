"""Read every sample that a manifest names and list all that is wrong with it.

    python -m data_prep.check MANIFEST.csv ...

Training reads headers at the start and samples only when it needs them; a fault that
only the samples show (NaN, silence, a mixture that is not its sources' sum) is found
here beforehand. The exit status is 1 when there is one.

Stems of music are checked more sternly than training is with them: mono, unequal
lengths, a file cut short and clipping are listed as well.
"""

import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np
import soundfile

from data_prep.manifest import (
    THREADS,
    DataError,
    Row,
    header_fault,
    is_of_stems,
    read_manifest,
)

# int16 rounding of the sources and the mixture, with room for dither.
SUM_TOLERANCE = 4 / 2**15
# Equal samples in a row at full scale that make a clipped peak.
CLIPPED_SAMPLES = 3
FULL_SCALE = 0.999
BLOCK_SECONDS = 10
# What libsndfile notes of a WAV whose header promises more than the file holds.
CUT_SHORT = re.compile(r"^data : (\d+) \(should be (\d+)\)", re.MULTILINE)


def sample_faults(row: Row) -> list[str]:
    """Read a row's audio whole: NaN or Inf, silence, and a mixture that is no sum.

    Arguments
    ---------
    row : Row
        A row whose headers are right (`check_audio`).

    Returns
    -------
    list[str]
        One line for each fault; empty when there is none.
    """
    faults = []
    waves: dict[str, np.ndarray] = {}
    for path in row.files:
        try:
            wave_T, _ = soundfile.read(path, dtype="float32")
        except (soundfile.LibsndfileError, OSError) as error:
            return [f"{path} cannot be read as audio ({error})"]
        if not np.isfinite(wave_T).all():
            faults.append(f"{path} holds NaN or Inf")
        elif not wave_T.any():
            faults.append(f"{path} is silent")
        waves[path] = wave_T
    if len({len(wave_T) for wave_T in waves.values()}) > 1:
        return [*faults, f"{row.mixture} and its parts differ in length"]
    total_T = sum(waves[path] for path in row.summands)
    difference = np.abs(waves[row.mixture] - total_T).max()
    if not faults and difference > SUM_TOLERANCE:
        faults.append(
            f"{row.mixture} is not the sum of its sources (off by {difference:.2g} of "
            "full scale)"
        )
    return faults


def stem_faults(row: Row) -> list[str]:
    """All that is wrong with the files of a track, one line for each fault.

    Arguments
    ---------
    row : Row
        A row of a manifest by `data_prep.stems`; nothing is assumed of its files.

    Returns
    -------
    list[str]
        Empty when there is no fault.
    """
    faults: list[str] = []
    with ExitStack() as stack:
        files: dict[str, soundfile.SoundFile] = {}
        for path in row.files:
            try:
                files[path] = stack.enter_context(soundfile.SoundFile(path))
            except (soundfile.LibsndfileError, OSError) as error:
                exists = os.path.exists(path)
                why = f"cannot be read as audio ({error})" if exists else "is missing"
                faults.append(f"{path} {why}")
        longest = max((file.frames for file in files.values()), default=0)
        for path, file in files.items():
            faults += _stem_header_faults(row, path, file, longest)
        faults += _stem_sample_faults(row, files)
    return faults


def _stem_header_faults(
    row: Row, path: str, file: soundfile.SoundFile, longest: int
) -> list[str]:
    """Faults that a header shows."""
    faults = []
    if file.samplerate != row.sample_rate:
        faults.append(
            f"{path} is at {file.samplerate} Hz, the row says {row.sample_rate} Hz"
        )
    if file.channels != row.channels:
        kind = "is mono" if file.channels == 1 else f"has {file.channels} channels"
        faults.append(f"{path} {kind}, expected stereo")
    cut = CUT_SHORT.search(file.extra_info)
    if cut and int(cut[1]) > int(cut[2]):
        faults.append(
            f"{path} is truncated: holds {cut[2]} of {cut[1]} bytes of samples"
        )
    elif file.frames < longest:
        faults.append(
            f"{path} has {file.frames} samples, others of the track up to {longest}"
        )
    elif file.frames < row.frames:
        faults.append(f"{path} has {file.frames} samples, the row says {row.frames}")
    return faults


def _stem_sample_faults(row: Row, files: dict[str, soundfile.SoundFile]) -> list[str]:
    """Faults that only the samples show, read in blocks: tracks are long."""
    finite = dict.fromkeys(files, True)
    sounds = dict.fromkeys(files, False)
    clipped = dict.fromkeys(files, 0)
    unreadable: dict[str, str] = {}
    difference = 0.0
    block = BLOCK_SECONDS * row.sample_rate
    while True:
        waves = {}
        for path, file in files.items():
            try:
                waves[path] = file.read(block, dtype="float32", always_2d=True)
            except (soundfile.LibsndfileError, OSError) as error:
                unreadable[path] = str(error)
                waves[path] = np.zeros((0, file.channels), np.float32)
            wave_TC = waves[path]
            finite[path] &= bool(np.isfinite(wave_TC).all())
            sounds[path] |= bool(wave_TC.any())
            clipped[path] += _count_clipped(wave_TC)
        if not any(map(len, waves.values())):
            break
        if row.mixture in waves and len({wave.shape for wave in waves.values()}) == 1:
            total_TC = sum(waves[path] for path in row.sources if path in waves)
            difference = max(difference, np.abs(waves[row.mixture] - total_TC).max())
    faults = [
        f"{path} cannot be read to its end ({e})" for path, e in unreadable.items()
    ]
    for path in files:
        if not finite[path]:
            faults.append(f"{path} holds NaN or Inf")
        elif not sounds[path]:
            faults.append(f"{path} is silent")
        if clipped[path]:
            faults.append(f"{path} is clipped: {clipped[path]} samples at full scale")
    if not faults and len(files) == len(row.files) and difference > SUM_TOLERANCE:
        faults.append(
            f"{row.mixture} is not the sum of its stems (off by {difference:.2g} of "
            "full scale)"
        )
    return faults


def _count_clipped(wave_TC: np.ndarray) -> int:
    """Samples within runs of equal ones at full scale."""
    if len(wave_TC) < CLIPPED_SAMPLES:
        return 0
    flat_TC = (np.diff(wave_TC, axis=0) == 0) & (np.abs(wave_TC[1:]) >= FULL_SCALE)
    runs_TC = flat_TC[1:] & flat_TC[:-1]  # the third of three, and those that follow
    starts_TC = runs_TC & ~np.pad(runs_TC, ((1, 0), (0, 0)))[:-1]
    return int(runs_TC.sum() + (CLIPPED_SAMPLES - 1) * starts_TC.sum())


def check_row(row: Row) -> list[str]:
    """All faults of a row that can be told, headers first."""
    if row.channels != 1:
        return stem_faults(row)
    fault = header_fault(row)
    return [fault] if fault else sample_faults(row)


def main(arguments: list[str] | None = None) -> int:
    """Check manifests and all their audio; list every fault; 1 when there is one."""
    paths = sys.argv[1:] if arguments is None else arguments
    if not paths:
        print("usage: python -m data_prep.check MANIFEST.csv ...", file=sys.stderr)
        return 2
    faulty = 0
    for path in paths:
        try:
            stems = is_of_stems(path)
            rows = read_manifest(path, check=False, stems=stems)
        except DataError as error:
            print(error)
            faulty += 1
            continue
        count = 0
        # Long files in blocks keep the processor busy, short ones wait for the disk.
        with ThreadPoolExecutor(os.cpu_count() if stems else THREADS) as threads:
            checks = threads.map(check_row, rows)
            for row, faults in zip(rows, checks, strict=True):
                count += len(faults)
                for fault in faults:
                    print(f"{path}, {row.id}: {fault}")
        print(f"{path}: {len(rows)} rows, {count} faults")
        faulty += count
    return 1 if faulty else 0


if __name__ == "__main__":
    sys.exit(main())
