"""Which loss terms of a global batch are trained on, decided by all ranks together.

Legend: B batch, K loss terms of an example.
"""

from typing import NamedTuple

from torch import Tensor


class Terms(NamedTuple):
    """The unreduced losses of a batch.

    `scorable_BK` is False where there is nothing to learn.
    `sort_key_BK` is what the selector sees in place of the loss, for instance the loss
    relative to the level of the target. `silent_BK` is True where a target is silent
    once its mean is removed; such terms are counted.
    """

    loss_BK: Tensor
    scorable_BK: Tensor
    sort_key_BK: Tensor | None = None
    silent_BK: Tensor | None = None
