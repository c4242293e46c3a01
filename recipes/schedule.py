"""The learning rate of every optimizer step, and the phases of a recipe.

    rate(step) = rate of the epoch (scheduler) x warm-up and decay (`RateFactor`)

A scheduler is a function of the epoch (`LinearDecay`, `Phases`, which can wait for the
validation too), or one of SpeechBrain's that wait for the validation loss
(ReduceLROnPlateau, NewBobScheduler).
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TypeAlias

import torch
from speechbrain.nnet.schedulers import NewBobScheduler, ReduceLROnPlateau
from speechbrain.nnet.schedulers import update_learning_rate as set_rate

from modules.runtime.errors import HparamsError


@dataclass
class Waiting:
    """Counts the validations in a row that did not improve on the best one."""

    best: float = math.inf
    waited: int = 0
    falls: int = 0  # how often a rate was lowered for it

    def add(self, loss: float, patience: float = math.inf) -> None:
        """Count one more, of this loss; start again after more than `patience`."""
        self.waited = 0 if loss < self.best else self.waited + 1
        self.best = min(loss, self.best)
        if self.waited > patience:
            self.waited, self.falls = 0, self.falls + 1


class EpochSchedule:
    """A rate that is a function of the epoch: mostly there is nothing to save."""

    def rate(self, epoch: int) -> float:
        """Return the rate of an epoch, counted from 1."""
        raise NotImplementedError

    def end_epoch(self, epoch: int, loss: float | None) -> None:
        """Take note of an epoch's validation, where the rate depends on it."""

    def state_dict(self) -> dict:
        """Return nothing."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Load nothing."""


class LinearDecay(EpochSchedule):
    """A straight line from one rate in the first epoch to another in the last.

    `final_value` holds from epoch `epoch_count` on. (SpeechBrain's LinearScheduler
    cannot be put into a checkpoint and fails when a finished run is given more epochs.)

    >>> LinearDecay(initial_value=1.0, final_value=0.5, epoch_count=3).rate(epoch=2)
    0.75
    """

    def __init__(
        self, initial_value: float, final_value: float, epoch_count: int
    ) -> None:
        self.initial_value = initial_value
        self.final_value = final_value
        self.epoch_count = epoch_count

    def rate(self, epoch: int) -> float:
        """Return the rate of an epoch, counted from 1."""
        part = min(1.0, (epoch - 1) / max(1, self.epoch_count - 1))
        return self.initial_value + part * (self.final_value - self.initial_value)


@dataclass(frozen=True)
class Phase:
    """One phase: how long, how fast, and which share of the losses counts."""

    number: int
    first_epoch: int
    epochs: int
    lr: float
    quantile: float


class Phases(EpochSchedule):
    """Training in phases that follow each other, each with its own settings.

    `epochs`, `lr` and `quantile` are the length, the learning rate and the truncation
    quantile of every phase; `only` runs one alone, counted from 1. The rate falls by
    `factor`, at most 1, after every `every_epochs` of a phase, and by `plateau_factor`
    where more than `patience` validations in a row (null: any number) have not raised
    the best score of the phase. A ValueError says what is out of range.

    >>> phases = Phases(epochs=[500, 200], lr=[3e-4, 1e-4], quantile=[0.7, 0.5])
    >>> phases.total, phases.at(500).number, phases.at(501).lr
    (700, 1, 0.0001)
    """

    def __init__(
        self,
        epochs: Sequence[int],
        lr: Sequence[float],
        quantile: Sequence[float],
        only: int | None = None,
        factor: float = 1.0,
        every_epochs: int = 1,
        patience: int | None = None,
        plateau_factor: float = 0.95,
    ) -> None:
        if not len(epochs) == len(lr) == len(quantile) > 0:
            raise ValueError(
                "a phase needs epochs, lr and quantile, but there are "
                f"{len(epochs)}, {len(lr)} and {len(quantile)} of them"
            )
        if min(epochs) < 1 or min(lr) <= 0 or not all(0 < q <= 1 for q in quantile):
            raise ValueError(
                f"epochs={[*epochs]}, lr={[*lr]}, quantile={[*quantile]}: epochs must "
                "be 1 or more, rates above 0, quantiles above 0 and at most 1"
            )
        if not 0 < factor <= 1 or every_epochs < 1:
            raise ValueError(
                f"factor={factor} must be above 0 and at most 1, and {every_epochs=} "
                "1 or more"
            )
        self.factor, self.every_epochs = factor, every_epochs
        self.patience, self.plateau_factor = patience, plateau_factor
        self.waiting = Waiting()
        numbers = range(1, len(epochs) + 1)
        if only is not None and only not in numbers:
            raise ValueError(f"phase={only}: there are phases 1 to {len(epochs)}")
        self.rates = [*lr]
        self.phases: list[Phase] = []
        self.total = 0
        pairs = zip(numbers, epochs, lr, quantile, strict=True)
        for number, length, rate, share in pairs:
            if only in (None, number):
                first = self.total + 1
                self.phases.append(Phase(number, first, length, rate, share))
                self.total += length

    def at(self, epoch: int) -> Phase:
        """Return the phase of an epoch, counted from 1; the last phase never ends."""
        return [phase for phase in self.phases if phase.first_epoch <= epoch][-1]

    def rate(self, epoch: int) -> float:
        """Return the learning rate of an epoch."""
        phase = self.at(epoch)
        falls = (epoch - phase.first_epoch) // self.every_epochs
        return phase.lr * self.factor**falls * self.plateau_factor**self.waiting.falls

    def end_epoch(self, epoch: int, loss: float | None) -> None:
        """Lower the rate where the validation waits for a better score in vain."""
        if self.at(epoch + 1) != self.at(epoch):
            self.waiting = Waiting()
        elif self.patience is not None and loss is not None:
            self.waiting.add(loss, self.patience)

    def state_dict(self) -> dict:
        """Return what a plateau has counted."""
        return {} if self.patience is None else asdict(self.waiting)

    def load_state_dict(self, state: dict) -> None:
        """Go on counting."""
        self.waiting = Waiting(**state)


def total_epochs(phases: Phases) -> int:
    """Return the length of all phases; for a YAML, which cannot ask an object."""
    if not isinstance(phases, Phases):
        raise ValueError(
            f"lr_scheduler={phases}: music recipes need recipes.schedule.Phases; one "
            "phase of one rate is {epochs: [100], lr: [0.0003], quantile: [1]}"
        )
    return phases.total


class RateFactor:
    """Warm-up and decay within a run: a factor of the rate at each optimizer step.

    With w warm-up steps in a run of n steps, the factor of step s, counted from 0, is

        (s + 1) / w                          while s < w,
        1 - p  or  (1 + cos(pi p)) / 2       after that, p = (s - w) / (n - w).

    `decay` is `none`, `linear` or `cosine`. (SpeechBrain's LinearWarmupScheduler spends
    the first step at a rate of 0 and counts its calls, which a resume would have to
    restore.)

    >>> factor = RateFactor(warmup_steps=2, decay="linear")
    >>> [factor.at(step, total=6) for step in range(6)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """

    def __init__(self, warmup_steps: int = 0, decay: str = "none") -> None:
        if decay not in ("none", "linear", "cosine"):
            raise ValueError(f"lr_decay={decay}: use none, linear or cosine")
        self.warmup_steps = warmup_steps
        self.decay = decay

    def at(self, step: int, total: int) -> float:
        """Return the factor of a step, counted from 0, of a run of `total` steps."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        part = (step - self.warmup_steps) / max(1, total - self.warmup_steps)
        if self.decay == "linear":
            return max(0.0, 1 - part)
        if self.decay == "cosine":
            return (1 + math.cos(math.pi * min(1.0, part))) / 2
        return 1.0


Scheduler: TypeAlias = EpochSchedule | ReduceLROnPlateau | NewBobScheduler | None


class LearningRate:
    """Gives each optimizer step its rate: the initial one until a scheduler changes it.

    Raise an `HparamsError` for a scheduler of another kind.
    """

    def __init__(
        self, initial: float, scheduler: Scheduler, factor: RateFactor
    ) -> None:
        if not isinstance(scheduler, Scheduler):
            raise HparamsError(
                f"lr_scheduler: {type(scheduler).__name__} is not supported; use "
                "SpeechBrain's ReduceLROnPlateau or NewBobScheduler, "
                "recipes.schedule.LinearDecay or Phases, or null"
            )
        #: Rate before the factor; checkpoints hold it.
        self.current = initial
        self.scheduler = scheduler
        self.factor = factor

    def at(self, epoch: int, step: int, total: int) -> float:
        """Return the rate of optimizer step `step` of `total`, counted from 0."""
        if isinstance(self.scheduler, EpochSchedule):
            self.current = self.scheduler.rate(epoch)
        return self.factor.at(step, total) * self.current

    def end_epoch(
        self, optimizer: torch.optim.Optimizer, epoch: int, loss: float | None
    ) -> None:
        """Let a scheduler that waits for the loss change the optimizer's rate.

        The epoch that ended reached this loss; None when it was not validated.
        """
        if isinstance(self.scheduler, EpochSchedule):
            self.scheduler.end_epoch(epoch, loss)
            self.current = self.scheduler.rate(epoch + 1)
        elif loss is not None and isinstance(self.scheduler, ReduceLROnPlateau):
            set_rate(optimizer, self.current)  # the scheduler reads it from there
            self.current = self.scheduler([optimizer], epoch, loss)[1]
        elif loss is not None and isinstance(self.scheduler, NewBobScheduler):
            self.current = self.scheduler(loss)[1]
        set_rate(optimizer, self.current)
