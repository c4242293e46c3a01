"""One call for the learning-rate schedulers that act once an epoch."""

import torch
from speechbrain.nnet.schedulers import (
    NewBobScheduler,
    ReduceLROnPlateau,
)
from speechbrain.nnet.schedulers import update_learning_rate as set_rate


def update_learning_rate(
    scheduler: object | None, optimizer: torch.optim.Optimizer, epoch: int, loss: float
) -> None:
    """Let `scheduler` set the rate for the next epoch.

    Arguments
    ---------
    scheduler : object | None
        SpeechBrain's ReduceLROnPlateau or NewBobScheduler; None keeps the rate.
    optimizer : torch.optim.Optimizer
        Whose rate it is.
    epoch : int
        The epoch that ended, from 1.
    loss : float
        What it reached, lower is better.

    Raises
    ------
    TypeError
        A scheduler of another kind.
    """
    if scheduler is None:
        return
    if isinstance(scheduler, ReduceLROnPlateau):
        set_rate(optimizer, scheduler([optimizer], epoch, loss)[1])
    elif isinstance(scheduler, NewBobScheduler):
        set_rate(optimizer, scheduler(loss)[1])
    else:
        raise TypeError(
            f"lr_scheduler: {type(scheduler).__name__} is not supported; use "
            "SpeechBrain's ReduceLROnPlateau or NewBobScheduler, or null"
        )
