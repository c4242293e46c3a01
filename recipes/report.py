"""What a run prints: the line of an epoch, the table of scores, where its files are."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from modules.runtime.files import write_text

#: Messages name so many examples.
NAMED = 5


def listed(names: Sequence[str], total: int) -> str:
    """The first names of so many, for a message.

    Example
    -------
    >>> listed(["a", "b"], 2), listed(["a", "b"], 7)
    ('a, b', 'a, b and 5 more')
    """
    names = names[:NAMED]
    more = f" and {total - len(names)} more" if total > len(names) else ""
    return f"{', '.join(names)}{more}"


def short_line(
    head: str, stages: Mapping[str, Mapping[str, float]], hidden: Sequence[str] = ()
) -> str:
    """The statistics of an epoch on one line, for people; train_log.txt has them all.

    Arguments
    ---------
    head : str
        What the line begins with.
    stages : Mapping
        Values of each stage, by name.
    hidden : Sequence[str]
        Loss terms: values that carry their names are left out, as are counts of 0.

    Example
    -------
    >>> train = {"loss": 0.71, "kept_share": 0.75, "nonfinite": 0, "drums_kept": 0.5}
    >>> valid = {"nsdr": 1.234, "nsdr_drums": 2.0}
    >>> short_line("epoch 1", {"train": train, "valid": valid}, ["drums"])
    'epoch 1 | train: loss 0.71, kept_share 0.75 | valid: nsdr 1.23'
    """
    parts = [head]
    for stage, values in stages.items():
        shown = [
            f"{name} {value:.3g}"
            for name, value in values.items()
            if not any(
                name.startswith(f"{t}_") or name.endswith(f"_{t}") for t in hidden
            )
            and not (isinstance(value, int) and value == 0)
        ]
        if shown:
            parts.append(f"{stage}: {', '.join(shown)}")
    return " | ".join(parts)


def print_scores(summary: Mapping, metric_names: Mapping[str, str]) -> None:
    """Print the table of a test's scores.

    Arguments
    ---------
    summary : Mapping
        What `ResultTable.summary` returned.
    metric_names : Mapping[str, str]
        How to write the metrics; one that is missing keeps its name.
    """
    shown = [metric_names.get(name, name) for name in summary["metrics"]]
    print(
        f"\n{'metric':<14} {'mean':>8} {'std. error':>11} {'median':>8} {'examples':>9}"
    )
    for name, entry in zip(shown, summary["metrics"].values(), strict=True):
        mean, error, median = (
            "-" if entry[key] is None else f"{entry[key]:.2f}"
            for key in ("mean", "standard_error", "median")
        )
        print(f"{name:<14} {mean:>8} {error:>11} {median:>8} {entry['count']:>9}")
    if summary["non_finite"]:
        print(f"{summary['non_finite']} examples had no finite score")
    has_improvement = any(
        metric_names.get(n, "").endswith("i") for n in summary["metrics"]
    )
    note = "; an 'i' is the improvement over the mixture" if has_improvement else ""
    print(f"\nall values in dB{note}\n")


def print_places(places: Mapping[str, Path]) -> None:
    """Print where the files of a run are, by what they hold; only those that exist."""
    for what, where in places.items():
        if where.exists():
            print(f"{what:<12} {where}")


def rewind_epochs(path: Path, epochs_done: int) -> None:
    """Forget the epochs in train_log.txt that are about to be trained again.

    A kill between the line of an epoch and its checkpoint leaves such a line.

    Arguments
    ---------
    path : Path
        The file; there need be none.
    epochs_done : int
        Epochs finished in the state from which the run goes on.
    """
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    numbers = [re.match(r"epoch: (\d+)", line) for line in lines]
    kept = [
        line
        for line, number in zip(lines, numbers, strict=True)
        if number is None or int(number[1]) <= epochs_done
    ]
    if kept != lines:
        write_text(path, "".join(kept))
