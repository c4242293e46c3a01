"""How well a score finds the stems that are wrong: precision, recall, calibration."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from modules.data.labels import Key
from modules.runtime.tables import read_table


def read_truth(path: Path) -> dict[Key, bool]:
    """Read which stems are wrong, 0 in the column is_clean of a CSV."""
    rows = (row for _, row in read_table(path, ("track", "stem", "is_clean")))
    return {(row["track"], row["stem"]): row["is_clean"] == "0" for row in rows}


def found_at(
    score: Mapping[Key, float], truth: Mapping[Key, bool]
) -> list[tuple[int, int]]:
    """Return hits and flagged for each threshold, from the highest score down.

    Stems of equal score are found together, those without a score never.
    """
    steps = []
    for value in sorted({score[key] for key in truth if key in score}, reverse=True):
        flagged = [key for key in truth if score.get(key, float("-inf")) >= value]
        steps.append((sum(truth[key] for key in flagged), len(flagged)))
    return steps


def average_precision(score: Mapping[Key, float], truth: Mapping[Key, bool]) -> float:
    """Return the mean over the wrong stems of the precision where each one is found.

    NaN if no stem is wrong.
    """
    total = sum(truth.values())
    area, found = 0.0, 0
    for hits, flagged in found_at(score, truth):
        area += (hits - found) * hits / flagged
        found = hits
    return area / total if total else float("nan")


def precision_at(
    recall: float, score: Mapping[Key, float], truth: Mapping[Key, bool]
) -> float:
    """Return the best precision at which this share of the wrong stems is found."""
    least = recall * sum(truth.values())
    steps = found_at(score, truth)
    return max((hits / n for hits, n in steps if hits >= least), default=0.0)


def precision_recall(
    flagged: Sequence[Key], truth: Mapping[Key, bool]
) -> tuple[float, float]:
    """Return the share of flagged that is wrong, and the share of wrong flagged."""
    hits = sum(truth[key] for key in flagged)
    wrong = sum(truth.values())
    precision = hits / len(flagged) if flagged else float("nan")
    return precision, hits / wrong if wrong else float("nan")


def brier(probability: Mapping[Key, float], truth: Mapping[Key, bool]) -> float:
    """Return the mean squared distance of the probabilities from the truth."""
    return sum((probability[key] - truth[key]) ** 2 for key in truth) / len(truth)
