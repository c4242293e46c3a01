"""When and what a run saves: every epoch, and within one by the clock or by steps."""

import logging
import time
from collections.abc import Mapping

from speechbrain.core import INTRA_EPOCH_CKPT_FLAG as MID_EPOCH

from modules.weights.checkpointer import AtomicCheckpointer

#: The newest that always stay: should the last one be damaged, there is one before it.
SPARE = 2


class SaveClock:
    """Says when a checkpoint within an epoch is due: 0 switches a rule off."""

    def __init__(self, minutes: float, steps: float) -> None:
        self.minutes = minutes
        self.steps = steps
        self.restart(0)

    def restart(self, step: int) -> None:
        """Count from now, `step` batches into the epoch."""
        self._saved_at, self.saved_step = time.monotonic(), step

    def minutes_passed(self) -> bool:
        """Whether this rank's clock asks for a checkpoint; the ranks must agree."""
        return 0 < self.minutes <= (time.monotonic() - self._saved_at) / 60

    def steps_passed(self, step: int) -> bool:
        """Whether so many batches were trained on."""
        return 0 < self.steps <= step - self.saved_step


def save_mid_epoch(checkpointer: AtomicCheckpointer, meta: Mapping) -> None:
    """Save within an epoch; of those checkpoints only the newest stays."""
    checkpointer.save_and_keep_only(
        meta={MID_EPOCH: True, **meta},
        end_of_epoch=False,
        ckpt_predicate=lambda ckpt: MID_EPOCH in ckpt.meta,
        verbosity=logging.DEBUG,
        spare=SPARE,
    )


def save_epoch(
    checkpointer: AtomicCheckpointer, meta: Mapping, metric: str, keep: int
) -> None:
    """Save a finished epoch; `keep` of the newest and of the best by `metric` stay."""
    checkpointer.save_and_keep_only(
        meta=dict(meta),
        num_to_keep=keep,
        max_keys=[metric],
        # One from within the epoch must not take the place of an epoch's.
        ckpt_predicate=lambda ckpt: MID_EPOCH not in ckpt.meta,
        spare=SPARE,
    )
    checkpointer.delete_checkpoints(
        num_to_keep=0,
        ckpt_predicate=lambda ckpt: MID_EPOCH in ckpt.meta,
        verbosity=logging.DEBUG,
        spare=SPARE,
    )
