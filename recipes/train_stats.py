"""Counts of training: examples, kept loss terms, steps that were not finite.

Legend: K loss terms of an example (speech: one; music: one per stem).
"""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from modules.data.batch import Batch
from modules.losses.choice import REASONS, Choice
from modules.runtime import distributed
from modules.runtime.errors import NAMED, NonFiniteTraining, NothingLearned

logger = logging.getLogger(__name__)


@dataclass
class TrainStats:
    """Counts of one training epoch, over all ranks; saved mid-epoch.

    `seen` examples were offered, `nonfinite` of them had an input or a loss that was
    not finite, or an input beyond any level. `silent` loss terms had a silent target;
    `over_limit` examples had a loss of `loss_upper_lim` or above; of `dropped` examples
    the selector kept nothing. `<reason>_ids` names the first such examples.
    `offered_K` loss terms could be trained on and `kept_K` were; their losses add up in
    `loss_offered_K` and `loss_kept_K`. `steps_skipped` counts optimizer steps that were
    not taken, because no example was kept or the gradient was not finite, and
    `steps_moving` those whose gradient was not zero.
    """

    seen: int = 0
    nonfinite: int = 0
    silent: int = 0
    over_limit: int = 0
    dropped: int = 0
    steps_skipped: int = 0
    steps_moving: int = 0
    offered_K: list[int] = field(default_factory=list)
    kept_K: list[float] = field(default_factory=list)
    loss_offered_K: list[float] = field(default_factory=list)
    loss_kept_K: list[float] = field(default_factory=list)
    silent_ids: list[str] = field(default_factory=list)
    over_limit_ids: list[str] = field(default_factory=list)
    dropped_ids: list[str] = field(default_factory=list)

    def add(self, choice: Choice) -> None:
        """Add the counts and the sums of losses of one global batch."""
        for name in ("seen", *REASONS):
            setattr(self, name, getattr(self, name) + getattr(choice, name))
        self.offered_K = _sum(self.offered_K, choice.usable_K)
        self.kept_K = _sum(self.kept_K, choice.kept_K)
        self.loss_offered_K = _sum(self.loss_offered_K, choice.usable_loss_K)
        self.loss_kept_K = _sum(self.loss_kept_K, choice.kept_loss_K)

    @property
    def kept(self) -> float:
        """Number of loss terms trained on, each as much as its weight."""
        return sum(self.kept_K)

    @property
    def loss(self) -> float:
        """Mean loss of the terms kept so far; NaN before the first."""
        return _ratio(sum(self.loss_kept_K), self.kept)

    @property
    def kept_share(self) -> float:
        """Share of the terms of all examples seen that were trained on."""
        return _ratio(self.kept, self.seen * len(self.kept_K))

    def per_term(self, names: Sequence[str]) -> dict[str, float]:
        """Kept share, and mean loss of kept and dropped terms, where there are any."""
        values = {}
        for k, name in enumerate(names[: len(self.kept_K)]):
            kept, offered = self.kept_K[k], self.offered_K[k]
            dropped_loss = self.loss_offered_K[k] - self.loss_kept_K[k]
            values[f"{name}_kept"] = _ratio(kept, offered)
            values[f"{name}_loss_kept"] = _ratio(self.loss_kept_K[k], kept)
            values[f"{name}_loss_dropped"] = _ratio(dropped_loss, offered - kept)
        return known(**values)

    def totals(self, names: Sequence[str]) -> dict[str, float]:
        """Return what the log line of an epoch shows; `names` are of the loss terms."""
        return {
            **known(loss=self.loss, kept_share=self.kept_share),
            **{name: getattr(self, name) for name in REASONS},
            "steps_skipped": self.steps_skipped,
            **self.per_term(names),
        }


@dataclass
class Accumulation:
    """Adds up the batches of one optimizer step.

    `weight` adds the weights of the terms that the mean runs over, `kept` counts the
    terms trained on. `ids` names this rank's examples, `suspects` those of them that
    were not finite. `left_out` names this rank's examples by reason; it has a reason
    where any rank has such an example.
    """

    weight: float = 0.0
    kept: float = 0
    nonfinite: int = 0
    ids: list[str] = field(default_factory=list)
    suspects: list[str] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def add(
        self,
        choice: Choice,
        batch: Batch,
        term_weights: Sequence[float],
        over_kept: bool,
        name_silent: bool,
    ) -> None:
        """Add a batch, of which this rank has its share.

        The mean runs `over_kept` terms, or else over all usable ones.
        """
        averaged_K = choice.kept_K if over_kept else choice.usable_K
        pairs = zip(term_weights, averaged_K, strict=True)
        self.weight += sum(weight * number for weight, number in pairs)
        self.kept += sum(choice.kept_K)
        self.nonfinite += choice.nonfinite
        self.ids += batch.ids
        if choice.nonfinite:
            self.suspects += batch.names(choice.nonfinite_B)
        for reason in REASONS[1 if name_silent else 2 :]:
            if getattr(choice, reason):
                mine = batch.names(getattr(choice, f"{reason}_B"))
                self.left_out.setdefault(reason, []).extend(mine)


class NonFiniteWatch:
    """Names examples that are not finite, and ends a run that learns nothing.

    `patience` consecutive bad optimizer steps, or bad epochs, end it. A step is bad
    when all of its examples were left out as not finite, or when its gradient is not
    finite.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.count = 0
        self.bad_epochs = 0

    def look(
        self, accumulated: Accumulation, is_finite: bool, searching: bool, where: str
    ) -> None:
        """Judge an optimizer step; raise `NonFiniteTraining` on all ranks or on none.

        `is_finite` is of its gradient. While a gradient scaler is `searching`, overflow
        is its normal work. `where` is for the message.
        """
        lost_all = accumulated.kept == 0 and accumulated.nonfinite > 0
        is_bad = lost_all or not (is_finite or searching)
        if is_finite and accumulated.kept:
            self.count = 0
        if not is_bad and accumulated.nonfinite == 0:
            return
        in_data = accumulated.nonfinite > 0
        mine = accumulated.suspects if in_data else accumulated.ids
        names = ", ".join(sorted(_of_all_ranks(mine)))
        if not is_bad:
            logger.warning(
                f"{where}: left out, not finite or over 40 dB above full scale: {names}"
            )
            return
        self.count += 1
        times, advice = f"({self.count} in a row)", "check these files or lower lr"
        if lost_all:
            message = (
                "nothing to train on that is finite and under 40 dB above full scale "
                f"{times}; examples: {names}"
            )
        elif in_data:
            message = (
                f"the gradient is not finite {times}; audio, output or loss were not "
                f"finite in examples: {names}"
            )
        else:  # which is no fault of the data
            message = (
                f"the gradient is not finite {times}, though audio and losses are; "
                f"trained on examples: {names}"
            )
            advice = "lower lr or max_grad_norm, or use another precision"
        message = f"{where}: {message}"
        logger.warning(message)
        if self.count >= self.patience:
            raise NonFiniteTraining(
                f"{message}. Stopped by nonfinite_patience={self.patience}; {advice}"
            )

    def end_epoch(self, epoch: int, fault: str | None, is_last: bool) -> None:
        """Judge an epoch, whose `fault` says why nothing was learned; on every rank.

        Raise `NothingLearned` if the patience is over, or the run is and all of its
        epochs were bad.
        """
        self.bad_epochs = self.bad_epochs + 1 if fault else 0
        if fault is None:
            return
        message = f"epoch {epoch}: {fault} ({self.bad_epochs} in a row)"
        logger.warning(message)
        if self.bad_epochs >= self.patience:
            raise NothingLearned(
                f"{message}. Stopped by nonfinite_patience={self.patience}"
            )
        if is_last and self.bad_epochs >= epoch:
            raise NothingLearned(f"{message}. The run has learned nothing")


def idle_fault(stats: TrainStats, left_out: Mapping[str, str]) -> str | None:
    """Return why an epoch moved no weight, None if it did; `left_out` by reason."""
    if stats.steps_moving or not stats.seen:
        return None
    if stats.kept:
        return (
            "every gradient was exactly zero: the separator's output does not depend "
            "on its trainable parameters; check what is frozen or detached in it"
        )
    texts = {"nonfinite": "not finite", **left_out}
    counts = {text: getattr(stats, reason) for reason, text in texts.items()}
    parts = [f"{text} ({count})" for text, count in counts.items() if count]
    return (
        f"nothing was trained on; left out of {stats.seen} examples: {', '.join(parts)}"
    )


def name_left_out(stats: TrainStats, accumulated: Accumulation) -> None:
    """Keep the names of the epoch's first examples that were left out, by reason."""
    for reason, mine in accumulated.left_out.items():  # equal on all ranks
        ids = getattr(stats, f"{reason}_ids")
        if len(ids) < NAMED:
            new = sorted(_of_all_ranks(mine) - set(ids))
            ids += new[: NAMED - len(ids)]


def _of_all_ranks(names: list[str]) -> set[str]:
    return {name for share in distributed.gather_objects(names) for name in share}


def _sum(totals: Sequence, values: Iterable) -> list:
    values = list(values)
    totals = totals or [0] * len(values)
    return [total + value for total, value in zip(totals, values, strict=True)]


def known(**values: float) -> dict[str, float]:
    """Return the values that are not NaN: what was not trained on has no loss."""
    return {name: value for name, value in values.items() if not math.isnan(value)}


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
