"""How well the suspicion score and the stem filter find wrongly labelled stems.

    python -m benchmarks.label_noise --truth=labelnoise_truth.csv \
        --suspicion=results/.../suspicion.csv --margins=clean/margins.csv \
        [--data_folder=labelnoise]

The truth is a CSV with the columns `track`, `stem` and `is_clean` (1 or 0). A table of
precision, recall and average precision (area under the precision-recall curve, step by
step) is printed, beside two baselines: chance, whose average precision is the share of
wrong stems, and with `--data_folder` the loudness of the file alone, the quietest stem
first or the loudest first, whichever does better.

Flagged is what truncation dropped more often than not, and what the filter does not
call clean.
"""

import argparse
import csv
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from data_prep.clean_stems import read_any_rate

Key = tuple[str, str]  # track, stem


def read_truth(path: Path) -> dict[Key, bool]:
    """Whether each stem is wrong."""
    with open(path, newline="", encoding="utf-8") as file:
        return {
            (row["track"], row["stem"]): row["is_clean"] == "0"
            for row in csv.DictReader(file)
        }


def read_scores(path: Path, column: str, sign: float = 1.0) -> dict[Key, float]:
    """A score per stem, higher is more suspect; rows without a number are left out."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row[column] not in ("", "nan")]
    return {(row["track"], row["stem"]): sign * float(row[column]) for row in rows}


def average_precision(score: Mapping[Key, float], truth: Mapping[Key, bool]) -> float:
    """Mean over the wrong stems of the precision where each one is found.

    Stems of equal score are found together. A wrong stem without a score is never
    found.

    Example
    -------
    >>> score = {("a", "x"): 3.0, ("b", "x"): 2.0, ("c", "x"): 1.0}
    >>> wrong = {("a", "x"): True, ("b", "x"): False, ("c", "x"): True}
    >>> average_precision(score, wrong)
    0.8333333333333333
    """
    total = sum(truth.values())
    area, found = 0.0, 0
    for value in sorted({score[key] for key in truth if key in score}, reverse=True):
        flagged = [key for key in truth if score.get(key, float("-inf")) >= value]
        hits = sum(truth[key] for key in flagged)
        area += (hits - found) * hits / len(flagged)
        found = hits
    return area / total if total else float("nan")


def precision_recall(
    flagged: Sequence[Key], truth: Mapping[Key, bool]
) -> tuple[float, float]:
    """Share of the flagged that is wrong, and share of the wrong that is flagged."""
    hits = sum(truth[key] for key in flagged)
    wrong = sum(truth.values())
    precision = hits / len(flagged) if flagged else float("nan")
    return precision, hits / wrong if wrong else float("nan")


def loudness_score(data_folder: Path, truth: Mapping[Key, bool]) -> dict[Key, float]:
    """Mean absolute sample of every file."""
    return {
        (track, stem): float(
            read_any_rate(data_folder / track / f"{stem}.wav")[0].abs().mean()
        )
        for track, stem in truth
    }


def table(
    truth: Mapping[Key, bool],
    suspicion: Mapping[Key, float] | None = None,
    margins: Mapping[Key, float] | None = None,
    loudness: Mapping[Key, float] | None = None,
    threshold_db: float = 20.0,
) -> list[str]:
    """Lines of markdown: a row per way to find wrong stems.

    Arguments
    ---------
    truth : Mapping
        Whether each stem is wrong.
    suspicion, margins, loudness : Mapping | None
        Share of times dropped; margin in dB, negated; mean absolute sample.
    threshold_db : float
        Margin of a clean stem.
    """
    share = sum(truth.values()) / len(truth)
    lines = [
        f"{sum(truth.values())} of {len(truth)} stems are wrong.",
        "",
        "| | flagged | precision | recall | average precision |",
        "|---|---|---|---|---|",
        f"| chance | | {share:.2f} | | {share:.2f} |",
    ]
    if loudness:
        signs = [{k: sign * v for k, v in loudness.items()} for sign in (1, -1)]
        best = max(average_precision(score, truth) for score in signs)
        lines.append(f"| loudness alone | | | | {best:.2f} |")
    for name, score, limit in (
        ("suspicion (dropped more often than not)", suspicion, 0.5),
        (f"stem filter (margin under {threshold_db:g} dB)", margins, -threshold_db),
    ):
        if score:
            flagged = [key for key in truth if score.get(key, -1e9) >= limit]
            precision, recall = precision_recall(flagged, truth)
            lines.append(
                f"| {name} | {len(flagged)} | {precision:.2f} | {recall:.2f} "
                f"| {average_precision(score, truth):.2f} |"
            )
    return lines


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
    known = set().union(*scores.values()) & truth.keys()
    if not known:
        sys.exit("error: no stem of the truth has a score; give --suspicion, --margins")
    # Judged is what training saw: a held-out track has no suspicion.
    truth = {key: truth[key] for key in sorted(known)}
    if options.data_folder:
        scores["loudness"] = loudness_score(options.data_folder, truth)
    print("\n".join(table(truth, **scores)))


if __name__ == "__main__":
    main()
