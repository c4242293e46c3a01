"""Measure how well the audit finds wrong stems: each signal alone, and combined.

    python -m benchmarks.audit --truth=labelnoise_truth.csv --audit AUDIT [AUDIT ...] \
        [--data_folder=labelnoise]

The truth is a CSV with the columns `track`, `stem` and `is_clean` (1 or 0); the audits
are folders that `data_prep.music.audit` wrote, for instance with several seeds: what is
printed is the mean over them and, in brackets, the least and the largest. Average
precision is the area under the precision-recall curve, step by step.

Beside it stand chance, whose average precision is the share of wrong stems, with
`--data_folder` the loudness of the file alone (the quietest stem first or the loudest
first, whichever does better), and CCOM's filter at its published 20 dB. The last lines
say how well the probabilities are calibrated.
"""

import argparse
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.detection import (
    average_precision,
    brier,
    precision_at,
    precision_recall,
    read_truth,
)
from data_prep.music.audit import SEPARATED
from modules.audio.io import read_stereo
from modules.data.labels import COLUMNS, Key, Label, read_labels
from modules.runtime.cli import as_command
from modules.runtime.errors import DataError
from modules.runtime.tables import read_table

Scores = dict[str, dict[Key, float]]
CCOM_DB = 20.0
BINS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def read_audit(folder: Path) -> Scores:
    """Read the score of each signal, the most suspect the highest; skip empty cells.

    `combined` is the order of the rows, `filter` CCOM's margin in dB, negated.
    """
    rows = [row for _, row in read_table(folder / "audit.csv", COLUMNS)]
    keys = [(row["track"], row["stem"]) for row in rows]
    found: Scores = {"combined": {key: -float(n) for n, key in enumerate(keys)}}
    for name in [name for name in rows[0] if name not in COLUMNS]:
        values = {k: r[name] for k, r in zip(keys, rows, strict=True)}
        found[name] = {key: float(value) for key, value in values.items() if value}
    if (table := folder / "separated.csv").is_file():
        margins: dict[Key, list[float]] = defaultdict(list)
        for _, row in read_table(table, SEPARATED):
            margins[row["track"], row["stem"]].append(-float(row["margin_db"]))
        found["filter"] = {key: statistics.fmean(x) for key, x in margins.items()}
    return found


def loudness_score(data_folder: Path, truth: Mapping[Key, bool]) -> dict[Key, float]:
    """Return the mean absolute sample of every file."""
    return {
        (track, stem): float(
            read_stereo(data_folder / track / f"{stem}.wav").abs().mean()
        )
        for track, stem in truth
    }


def spread(values: Sequence[float]) -> str:
    """Write the mean of some values and, of several, the least and the largest."""
    text = f"{statistics.fmean(values):.2f}"
    ends = f" ({min(values):.2f} to {max(values):.2f})"
    return text + ends * (len(values) > 1)


def table(truth: Mapping[Key, bool], audits: Sequence[Scores]) -> list[str]:
    """Return lines of markdown: a row for each signal."""
    share = sum(truth.values()) / len(truth)
    lines = [
        f"{sum(truth.values())} of {len(truth)} stems are wrong.",
        "",
        "| | average precision | precision at recall 0.8 |",
        "|---|---|---|",
        f"| chance | {share:.2f} | {share:.2f} |",
    ]
    for name in dict.fromkeys(name for scores in audits for name in scores):
        of_name = [scores[name] for scores in audits if name in scores]
        if name == "loudness":  # nobody says which direction is suspect
            signs = [{k: sign * x for k, x in of_name[0].items()} for sign in (1, -1)]
            of_name = [max(signs, key=lambda score: average_precision(score, truth))]
        area = spread([average_precision(score, truth) for score in of_name])
        at = spread([precision_at(0.8, score, truth) for score in of_name])
        lines.append(f"| {name} | {area} | {at} |")
    return lines


def calibration(
    truth: Mapping[Key, bool], audits: Sequence[Mapping[Key, Label]]
) -> list[str]:
    """Return lines: what is called wrong, the Brier score, a table of reliability."""
    probabilities = [{key: one[key].wrong for key in truth} for one in audits]

    def over(measure: Callable[[Mapping[Key, float]], float]) -> str:
        return spread([measure(probability) for probability in probabilities])

    flagged = [[key for key in truth if one[key].is_wrong] for one in audits]
    found = [precision_recall(keys, truth) for keys in flagged]
    share = sum(truth.values()) / len(truth)
    lines = [
        "",
        f"Called wrong: precision {spread([p for p, _ in found])}, "
        f"recall {spread([r for _, r in found])}. "
        f"Brier score {over(lambda p: brier(p, truth))}; the share of wrong stems for "
        f"every stem would have {share * (1 - share):.2f}.",
        "",
        "| probability | stems | wrong |",
        "|---|---|---|",
    ]
    pairs = [(p[key], truth[key]) for p in probabilities for key in truth]
    for low, high in zip(BINS, BINS[1:], strict=False):
        inside = [t for p, t in pairs if low <= p < high or p == high == 1]
        part = f"{sum(inside) / len(inside):.2f}" if inside else ""
        lines.append(f"| {low:g} to {high:g} | {len(inside)} | {part} |")
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.audit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--truth", type=Path, required=True)
    parser.add_argument("--audit", type=Path, nargs="+", required=True)
    parser.add_argument("--data_folder", type=Path)
    options = parser.parse_args(arguments)
    truth, audits = read_truth(options.truth), list(map(read_audit, options.audit))
    judged = {key for key in truth if all(key in one["combined"] for one in audits)}
    if not judged:
        raise DataError(f"{options.truth}: names no stem that was judged")
    truth = {key: truth[key] for key in sorted(judged)}
    if options.data_folder:
        audits[0]["loudness"] = loudness_score(options.data_folder, truth)
    print("\n".join(table(truth, audits)))
    if any("filter" in one for one in audits):
        flagged = [k for k in truth if audits[0]["filter"].get(k, 0) > -CCOM_DB]
        precision, recall = precision_recall(flagged, truth)
        print(f"\nCCOM's rule ({CCOM_DB:g} dB) flags {len(flagged)}: precision "
              f"{precision:.2f}, recall {recall:.2f}.")  # fmt: skip
    labels = [read_labels(folder / "audit.csv") for folder in options.audit]
    print("\n".join(calibration(truth, labels)))


if __name__ == "__main__":
    sys.exit(as_command(main))
