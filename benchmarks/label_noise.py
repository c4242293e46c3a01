"""Measure how well suspicion score and stem filter find wrongly labelled stems.

    python -m benchmarks.label_noise --truth=labelnoise_truth.csv \
        --suspicion=results/.../suspicion.csv --margins=clean/margins.csv \
        [--data_folder=labelnoise]

The truth is a CSV with the columns `track`, `stem` and `is_clean` (1 or 0). A table of
precision, recall and average precision (area under the precision-recall curve, step by
step) is printed, beside two baselines: chance, whose average precision is the share of
wrong stems, and with `--data_folder` the loudness of the file alone, the quietest stem
first or the loudest first, whichever does better.

A stem is flagged when truncation dropped it more often than the mean stem, or when the
filter does not call it clean.
"""

import argparse
import csv
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.detection import Key, read_truth, table
from modules.audio.io import read_stereo
from modules.runtime.cli import as_command
from modules.runtime.errors import DataError


def read_scores(path: Path, column: str, sign: float = 1.0) -> dict[Key, float]:
    """Read a score per stem, higher is more suspect; skip rows without a number."""
    with open(path, newline="", encoding="utf-8") as file:
        table = csv.DictReader(file)
        if not {"track", "stem", column} <= {*(table.fieldnames or ())}:
            raise DataError(f"{path}: expected the columns track, stem and {column}")
        rows = [row for row in table if row[column] not in ("", "nan")]
    return {(row["track"], row["stem"]): sign * float(row[column]) for row in rows}


def loudness_score(data_folder: Path, truth: Mapping[Key, bool]) -> dict[Key, float]:
    """Return the mean absolute sample of every file."""
    return {
        (track, stem): float(
            read_stereo(data_folder / track / f"{stem}.wav").abs().mean()
        )
        for track, stem in truth
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.label_noise",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--truth", type=Path, required=True)
    add("--suspicion", type=Path)
    add("--margins", type=Path)
    add("--data_folder", type=Path)
    options = parser.parse_args(arguments)
    truth = read_truth(options.truth)
    scores = {}
    if options.suspicion:
        scores["suspicion"] = read_scores(options.suspicion, "suspicion")
    if options.margins:
        scores["margins"] = read_scores(options.margins, "margin_db", sign=-1.0)
    # Judged is what training saw: a held-out track has no suspicion.
    known = scores.get("suspicion", scores.get("margins", {})).keys() & truth.keys()
    if not known:
        sys.exit("error: no stem of the truth has a score; give --suspicion, --margins")
    truth = {key: truth[key] for key in sorted(known)}
    if options.data_folder:
        scores["loudness"] = loudness_score(options.data_folder, truth)
    print("\n".join(table(truth, **scores)))


if __name__ == "__main__":
    sys.exit(as_command(main))
