"""Read every sample that a manifest names and list all that is wrong with it.

    python -m data_prep.check MANIFEST.csv ...

Training reads headers at the start and samples only when it needs them; a fault that
only the samples show (NaN, silence, a mixture that is not its sources' sum) is found
here beforehand. The exit status is 1 when there is one.
"""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import soundfile

from data_prep.manifest import THREADS, DataError, Row, header_fault, read_manifest

# int16 rounding of the sources and the mixture, with room for dither.
SUM_TOLERANCE = 4 / 2**15


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
    waves = []
    for path in row.files:
        try:
            wave_T, _ = soundfile.read(path, dtype="float32")
        except (soundfile.LibsndfileError, OSError) as error:
            return [f"{path} cannot be read as audio ({error})"]
        if not np.isfinite(wave_T).all():
            faults.append(f"{path} holds NaN or Inf")
        elif not wave_T.any():
            faults.append(f"{path} is silent")
        waves.append(wave_T)
    if len({len(wave_T) for wave_T in waves}) > 1:
        return [*faults, f"{row.mixture} and its parts differ in length"]
    difference = np.abs(waves[0] - sum(waves[1:])).max()
    if not faults and difference > SUM_TOLERANCE:
        faults.append(
            f"{row.mixture} is not the sum of its sources (off by {difference:.2g} of "
            "full scale)"
        )
    return faults


def main(arguments: list[str] | None = None) -> int:
    """Check manifests and all their audio; list every fault; 1 when there is one."""
    paths = sys.argv[1:] if arguments is None else arguments
    if not paths:
        print("usage: python -m data_prep.check MANIFEST.csv ...", file=sys.stderr)
        return 2
    faulty = 0
    for path in paths:
        try:
            rows = read_manifest(path, check=False)
        except DataError as error:
            print(error)
            faulty += 1
            continue
        count = 0
        with ThreadPoolExecutor(THREADS) as threads:
            checks = threads.map(
                lambda row: [f] if (f := header_fault(row)) else sample_faults(row),
                rows,
            )
            for row, faults in zip(rows, checks, strict=True):
                count += len(faults)
                for fault in faults:
                    print(f"{path}, {row.id}: {fault}")
        print(f"{path}: {len(rows)} rows, {count} faults")
        faulty += count
    return 1 if faulty else 0


if __name__ == "__main__":
    sys.exit(main())
