"""Make a set in which some stems bleed, of one that is clean and one that bleeds.

    python -m benchmarks.bleeding --truth=bleeding_truth.csv --bleeding=bleeding \
        --clean=musdb18hq/train --out=mixed_bleeding

The truth names the tracks of `--bleeding` (`track`) and of `--clean` (`source_track`)
that belong together, by stem. A stem bleeds with the probability 0.4, drawn by seed 0.
`OUT_truth.csv` says which do.
"""

import argparse
import random
import shutil
import sys
from pathlib import Path

from modules.runtime.cli import as_command
from modules.runtime.tables import read_table, write_table

PROBABILITY = 0.4


def main() -> None:
    """Copy the stems and write the truth."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bleeding")
    for name in ("truth", "bleeding", "clean", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    options = parser.parse_args()
    rng, truth = random.Random(0), []
    for _, row in read_table(options.truth, ("track", "source_track", "stem")):
        bleeds = rng.random() < PROBABILITY
        folder = options.bleeding / row["track"]
        if not bleeds:
            folder = options.clean / row["source_track"]
        place = options.out / row["track"]
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / f"{row['stem']}.wav", place)
        truth.append((row["track"], row["stem"], int(not bleeds)))
    name = f"{options.out.name}_truth.csv"
    write_table(options.out.with_name(name), ("track", "stem", "is_clean"), truth)


if __name__ == "__main__":
    sys.exit(as_command(main))
