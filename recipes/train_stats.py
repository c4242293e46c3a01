"""What a run counts while it trains, and the table it prints at its end.

Legend: K loss terms of an example (speech: one; music: one per stem).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field


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


def _sum(totals: Sequence, values) -> list:
    values = list(values)
    totals = totals or [0] * len(values)
    return [total + value for total, value in zip(totals, values, strict=True)]


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
