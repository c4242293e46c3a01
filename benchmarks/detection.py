"""How well a score finds the stems that are wrong: precision, recall, their table."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from modules.runtime.tables import read_table

Key = tuple[str, str]  # track, stem


def read_truth(path: Path) -> dict[Key, bool]:
    """Read which stems are wrong, 0 in the column is_clean of a CSV."""
    rows = (row for _, row in read_table(path, ("track", "stem", "is_clean")))
    return {(row["track"], row["stem"]): row["is_clean"] == "0" for row in rows}


def average_precision(score: Mapping[Key, float], truth: Mapping[Key, bool]) -> float:
    """Return the mean over the wrong stems of the precision where each one is found.

    Stems of equal score are found together. A wrong stem without a score is never
    found. NaN if no stem is wrong.
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
    """Return the share of flagged that is wrong, and the share of wrong flagged."""
    hits = sum(truth[key] for key in flagged)
    wrong = sum(truth.values())
    precision = hits / len(flagged) if flagged else float("nan")
    return precision, hits / wrong if wrong else float("nan")


def table(
    truth: Mapping[Key, bool],
    suspicion: Mapping[Key, float] | None = None,
    margins: Mapping[Key, float] | None = None,
    loudness: Mapping[Key, float] | None = None,
    threshold_db: float = 20.0,
) -> list[str]:
    """Return lines of markdown: a row for each way to find wrong stems.

    `suspicion` is the share of times that a stem was dropped, `margins` are in dB and
    negated (under `threshold_db` a stem is flagged), `loudness` is the mean absolute
    sample.
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
    mean = sum(suspicion.values()) / len(suspicion) if suspicion else 0.0
    for name, score, limit in (
        ("suspicion (dropped more than the mean stem)", suspicion, mean),
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
