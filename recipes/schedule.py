"""One call for the learning-rate schedulers that act once an epoch."""

import torch
from speechbrain.nnet.schedulers import NewBobScheduler, ReduceLROnPlateau
from speechbrain.nnet.schedulers import update_learning_rate as set_rate


class LinearDecay:
    """A straight line from one rate in the first epoch to another in the last.

    (SpeechBrain's LinearScheduler cannot be put into a checkpoint and fails when a
    finished run is given more epochs.) The rate is a function of the epoch alone.

    Arguments
    ---------
    initial_value, final_value : float
        Rates of the first epoch and of epoch `epoch_count`.
    epoch_count : int
        Length of the line; `final_value` holds from there on.

    Example
    -------
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
        """Rate of an epoch, counted from 1."""
        part = min(1.0, (epoch - 1) / max(1, self.epoch_count - 1))
        return self.initial_value + part * (self.final_value - self.initial_value)

    def state_dict(self) -> dict:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Nothing to load."""


def update_learning_rate(
    scheduler: object | None,
    optimizer: torch.optim.Optimizer,
    epoch: int,
    loss: float | None,
) -> None:
    """Let `scheduler` set the rate for the next epoch.

    Arguments
    ---------
    scheduler : object | None
        SpeechBrain's ReduceLROnPlateau or NewBobScheduler, which wait for the loss,
        or LinearDecay; None keeps the rate.
    optimizer : torch.optim.Optimizer
        Whose rate it is.
    epoch : int
        The epoch that ended, from 1.
    loss : float | None
        What it reached, lower is better; None when it was not validated.

    Raises
    ------
    TypeError
        A scheduler of another kind.
    """
    if scheduler is None:
        return
    if isinstance(scheduler, LinearDecay):
        set_rate(optimizer, scheduler.rate(epoch + 1))
    elif isinstance(scheduler, ReduceLROnPlateau):
        if loss is not None:
            set_rate(optimizer, scheduler([optimizer], epoch, loss)[1])
    elif isinstance(scheduler, NewBobScheduler):
        if loss is not None:
            set_rate(optimizer, scheduler(loss)[1])
    else:
        raise TypeError(
            f"lr_scheduler: {type(scheduler).__name__} is not supported; use "
            "SpeechBrain's ReduceLROnPlateau or NewBobScheduler, "
            "recipes.schedule.LinearDecay, or null"
        )
