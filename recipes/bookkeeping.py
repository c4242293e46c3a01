"""What a run counts while it trains, and the table it prints at its end.

Legend: K loss terms of an example (speech: one; music: one per stem).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.manifest import write_text

#: Messages name so many examples.
NAMED = 5


@dataclass
class TrainStats:
    """Counts of one training epoch, over all ranks; saved mid-epoch.

    `seen` examples were offered, `nonfinite` of them had an input or a loss that was
    not finite, or an input beyond any level. `silent` loss terms had a silent target;
    `silent_ids` names the first such examples.
    Of the loss terms, `offered_K` could be trained on and `kept_K` were; their losses
    add up in `loss_offered_K` and `loss_kept_K`. `steps_skipped` counts optimizer
    steps not taken, for want of examples or of finite gradients.
    """

    seen: int = 0
    nonfinite: int = 0
    silent: int = 0
    steps_skipped: int = 0
    offered_K: list[int] = field(default_factory=list)
    kept_K: list[int] = field(default_factory=list)
    loss_offered_K: list[float] = field(default_factory=list)
    loss_kept_K: list[float] = field(default_factory=list)
    silent_ids: list[str] = field(default_factory=list)

    def add(
        self,
        seen: float,
        nonfinite: float,
        silent: float,
        offered_K: Sequence[float],
        kept_K: Sequence[float],
        loss_offered_K: Sequence[float],
        loss_kept_K: Sequence[float],
    ) -> None:
        """Add the counts and the sums of losses of one global batch."""
        self.seen += int(seen)
        self.nonfinite += int(nonfinite)
        self.silent += int(silent)
        self.offered_K = _sum(self.offered_K, map(int, offered_K))
        self.kept_K = _sum(self.kept_K, map(int, kept_K))
        self.loss_offered_K = _sum(self.loss_offered_K, loss_offered_K)
        self.loss_kept_K = _sum(self.loss_kept_K, loss_kept_K)

    @property
    def kept(self) -> int:
        """Loss terms trained on."""
        return sum(self.kept_K)

    @property
    def loss(self) -> float:
        """Mean loss of the terms kept so far (NaN before the first)."""
        return _ratio(sum(self.loss_kept_K), self.kept)

    @property
    def kept_share(self) -> float:
        """Share of the terms of all examples seen that were trained on."""
        return _ratio(self.kept, self.seen * len(self.kept_K))

    def per_term(self, names: Sequence[str]) -> dict[str, float]:
        """Kept share, and mean loss of kept and dropped terms, by name of the term."""
        values = {}
        for k, name in enumerate(names[: len(self.kept_K)]):
            kept, offered = self.kept_K[k], self.offered_K[k]
            dropped_loss = self.loss_offered_K[k] - self.loss_kept_K[k]
            values[f"{name}_kept"] = _ratio(kept, offered)
            values[f"{name}_loss_kept"] = _ratio(self.loss_kept_K[k], kept)
            values[f"{name}_loss_dropped"] = _ratio(dropped_loss, offered - kept)
        return values


@dataclass
class Window:
    """The batches that one optimizer step accumulates.

    `weight` adds the weights of the terms that the mean runs over, `kept` counts the
    terms trained on; `suspects` names this rank's examples that were not finite,
    `silent_ids` those with one of the `silent` targets of all ranks.
    """

    weight: float = 0.0
    kept: int = 0
    nonfinite: int = 0
    ids: list[str] = field(default_factory=list)
    suspects: list[str] = field(default_factory=list)
    silent: int = 0
    silent_ids: list[str] = field(default_factory=list)


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


def _sum(totals: Sequence, values) -> list:
    values = list(values)
    totals = totals or [0] * len(values)
    return [total + value for total, value in zip(totals, values, strict=True)]


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
