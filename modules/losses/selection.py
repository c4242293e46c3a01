"""Which examples count: one class a rule, which looks at losses and gives a mask.

A mask may hold weights from 0 to 1 instead (`SoftWeights`).

A selector sees the unreduced losses of the whole global batch (all ranks), so every
rank reaches the same answer. Terms that cannot be used reach it as NaN and are left out
whatever it says (see `modules.losses.choice`).

Legend: N examples of the global batch, K loss terms of an example, F frames of a term,
R ranks, B examples of a rank, W remembered losses.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from modules.runtime.distributed import world_size


class Selector:
    """Map losses [N, K] to a mask of the terms to keep; the base has no memory."""

    #: True lets the mean loss run over what is kept, False over all that is usable.
    renormalise = True
    #: Length of the frames to choose from: losses and mask are then [N, K, F].
    frame_seconds: float | None = None

    @property
    def dropped_are(self) -> str:
        """What an example is that the rule drops, with the setting that says so."""
        return "dropped by the selector"

    def __call__(self, loss_NK: Tensor) -> Tensor:
        raise NotImplementedError

    def enter_phase(self, quantile: float, batches: int) -> None:
        """Obey a phase of training: the share to keep, the batches accumulated."""

    def check(self, batch_size: int, world_size: int) -> None:
        """Raise a ValueError if the rule cannot drop anything in such batches."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return what a checkpoint keeps."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from a checkpoint."""


class KeepAll(Selector):
    """Every usable example counts."""

    def __call__(self, loss_NK: Tensor) -> Tensor:
        return torch.ones_like(loss_NK, dtype=torch.bool)


@dataclass(eq=False)
class ThresholdByLoss(Selector):
    """Train on what is still hard: drop examples separated better than `threshold`.

    The threshold is in dB of negative SI-SNR: -30 drops examples above 30 dB. This is
    SpeechBrain's recipe practice (`threshold_byloss`); the MossFormer2 paper does not
    state it. `enabled=False` keeps every example.
    """

    threshold: float = -30.0
    enabled: bool = True

    @property
    def dropped_are(self) -> str:
        return f"easier than threshold={self.threshold:g}"

    def __call__(self, loss_NK: Tensor) -> Tensor:
        if not self.enabled:
            return torch.ones_like(loss_NK, dtype=torch.bool)
        return loss_NK > self.threshold


class LossTruncation(Selector):
    """Leave out the terms with the largest losses, which may have a wrong label.

    This is the base of three rules, which differ in the losses that a loss is compared
    with. A term is dropped when its loss lies strictly above the `quantile` of those,
    stem by stem, with linear interpolation; losses that are not finite do not count.
    A `quantile` of 1 keeps everything. `memory` is the number of losses per stem that
    `RunningTruncation` remembers.
    """

    def __init__(self, quantile: float, memory: int = 1000) -> None:
        if not 0 < quantile <= 1:
            raise ValueError(f"quantile={quantile} must be above 0 and at most 1")
        if memory < 1:
            raise ValueError(f"memory={memory}: must be 1 or more")
        self.quantile = quantile
        self.memory = memory
        self.batches = 1  # accumulated for an optimizer step
        self.past_WK: Tensor | None = None

    @property
    def dropped_are(self) -> str:
        return f"dropped by loss truncation (quantile={self.quantile:g})"

    def enter_phase(self, quantile: float, batches: int) -> None:
        """Keep another share; compare over so many accumulated batches."""
        self.quantile, self.batches = quantile, batches

    def compared(self, batch_size: int, world_size: int) -> int:
        """Return the number of losses that a loss is compared with, itself included."""
        raise NotImplementedError

    def check(self, batch_size: int, world_size: int) -> None:
        """Raise a ValueError if too few losses are compared to drop any."""
        count = self.compared(batch_size, world_size)
        if self.quantile == 1 or dropped_of(count, self.quantile):
            return
        needed = next(n for n in range(2, 10_000) if dropped_of(n, self.quantile))
        raise ValueError(
            f"loss truncation at quantile {self.quantile} drops none of {count} "
            "losses: n losses lose n - 1 - floor((n - 1) * quantile), so at least "
            f"{needed} are needed; raise the batch size, or compare with more losses "
            "(truncation=running)"
        )

    def _quantile(self, loss_NK: Tensor) -> Tensor:
        return torch.nanquantile(loss_NK.float(), self.quantile, dim=0)

    def _remember(self, loss_NK: Tensor, memory: int) -> Tensor:
        """Append the losses and return the newest `memory`."""
        seen_WK = loss_NK.detach().float()
        if self.past_WK is not None:
            seen_WK = torch.cat([self.past_WK.to(seen_WK.device), seen_WK])
        self.past_WK = seen_WK[-memory:]
        return self.past_WK

    def state_dict(self) -> dict[str, Tensor]:
        """Return the losses and a mask instead of NaN, which no checkpoint may hold."""
        if self.past_WK is None:
            return {}
        known_WK = ~self.past_WK.isnan()
        return {"past_WK": self.past_WK.nan_to_num().cpu(), "known_WK": known_WK.cpu()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue with the losses of a checkpoint."""
        self.past_WK = None
        if state:
            self.past_WK = state["past_WK"].where(state["known_WK"], torch.nan)


class ProcessTruncation(LossTruncation):
    """Compare with the batch of the own process.

    Team CCOM's rule for the Sound Demixing Challenge 2023: the mean runs over the whole
    batch, in which dropped terms count as 0.
    """

    renormalise = False

    def __call__(self, loss_NK: Tensor) -> Tensor:
        loss_RBK = loss_NK.unflatten(0, (world_size(), -1))  # a rank after the other
        threshold_RK = torch.stack([self._quantile(loss_BK) for loss_BK in loss_RBK])
        return (loss_RBK <= threshold_RK[:, None]).flatten(0, 1)

    def compared(self, batch_size: int, world_size: int) -> int:
        return batch_size


class PooledTruncation(LossTruncation):
    """Compare with the batches of all processes that make an optimizer step.

    Where batches are accumulated, the present one is compared with as many in all, so
    with the ones before it: those that follow are not known yet.
    """

    def __call__(self, loss_NK: Tensor) -> Tensor:
        past_WK = self._remember(loss_NK, self.batches * len(loss_NK))
        return loss_NK <= self._quantile(past_WK)

    def compared(self, batch_size: int, world_size: int) -> int:
        return batch_size * world_size * self.batches


class FrameTruncation(PooledTruncation):
    """Leave out the frames, not the examples, with the largest losses: bleeding.

    Team KUIELab's rule of the Sound Demixing Challenge 2023, first on the board with
    bleeding (arXiv 2306.09382); `coarse: false` in MSST, where a frame is one sample.
    """

    frame_seconds: float | None = 1.0

    def __call__(self, loss_NKF: Tensor) -> Tensor:
        loss_NFK = loss_NKF.transpose(1, 2)
        keep_NK = super().__call__(loss_NFK.flatten(0, 1))  # frames as examples
        return keep_NK.unflatten(0, loss_NFK.shape[:2]).transpose(1, 2)


class RunningTruncation(LossTruncation):
    """Compare with the last `memory` losses of all processes, present ones included.

    Nothing is dropped before `memory` losses were seen.
    """

    def __call__(self, loss_NK: Tensor) -> Tensor:
        # In the order of the data set: what is forgotten first must not depend on how
        # many ranks share it.
        loss_RBK = loss_NK.unflatten(0, (world_size(), -1))
        seen_NK = loss_RBK.transpose(0, 1).flatten(0, 1)
        is_new = ~seen_NK.isnan().all(1)
        past_WK = self._remember(seen_NK, self.memory + len(seen_NK))
        # Sorted, not picked: to count them the host would wait for the device.
        order_W = (~past_WK.isnan().all(1)).sort(stable=True).indices
        self.past_WK = past_WK = past_WK[order_W][-self.memory :]
        return self._keep(loss_NK, past_WK, is_new.sum())

    def _keep(self, loss_NK: Tensor, past_WK: Tensor, new: Tensor) -> Tensor:
        """Return the mask, given what is remembered, of which `new` losses are new."""
        is_full = (~past_WK.isnan().all(1)).sum() >= self.memory
        return loss_NK <= self._quantile(past_WK).where(is_full, torch.inf)

    def compared(self, batch_size: int, world_size: int) -> int:
        return self.memory


class LossDropping(RunningTruncation):
    """Compare with a threshold that is taken anew after every `memory` losses.

    Kang and Hashimoto's loss truncation for text (ACL 2020). Its published code forgets
    the threshold when a run resumes; this one saves it.
    """

    threshold_K: Tensor | None = None
    age = torch.tensor(0)  # losses seen since the threshold was taken

    def _keep(self, loss_NK: Tensor, past_WK: Tensor, new: Tensor) -> Tensor:
        if self.threshold_K is None:
            self.threshold_K = torch.full_like(loss_NK[0], torch.finfo().max)
        age = self.age.to(new.device) + new
        # A stem without any loss in the window has no threshold.
        newest_K = self._quantile(past_WK).nan_to_num(torch.finfo().max)
        is_due, before_K = age >= self.memory, self.threshold_K.to(new.device)
        self.threshold_K = newest_K.where(is_due, before_K)
        self.age = age.where(~is_due, age % self.memory)
        return loss_NK <= self.threshold_K

    def state_dict(self) -> dict[str, Tensor]:
        """Return the window, the threshold and its age."""
        if self.threshold_K is None:
            return {}
        own = {"threshold_K": self.threshold_K.cpu(), "age": self.age.cpu()}
        return super().state_dict() | own

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue with the window and the threshold of a checkpoint."""
        super().load_state_dict(state)
        self.threshold_K = state.get("threshold_K")
        self.age = state.get("age", torch.tensor(0))


class SoftWeights(RunningTruncation):
    """Weigh a term by the probability that its loss is one of the low ones.

    A mixture of two normal distributions is fitted to the last `memory` losses of each
    stem, as DivideMix does (Li et al., ICLR 2020; not its semi-supervised part). It
    begins with the split at `quantile`; 1 keeps everything, as do too few losses.
    """

    def _keep(self, loss_NK: Tensor, past_WK: Tensor, new: Tensor) -> Tensor:
        if self.quantile == 1:
            return torch.ones_like(loss_NK)
        known_WK = (~past_WK.isnan()).double()
        low_WK = (past_WK <= self._quantile(past_WK)).double()
        share_2WK = torch.stack([low_WK, 1 - low_WK])
        # A single huge loss must not become a part of its own.
        low_K, high_K = torch.nanquantile(past_WK, past_WK.new_tensor([0.05, 0.95]), 0)
        past_WK = past_WK.clamp(low_K, high_K).double().nan_to_num()
        tiny = 1e-12 + 1e-4 * past_WK.var(0)

        def log_density(loss_NK: Tensor) -> Tensor:
            distance_2NK = (loss_NK - mean_2K[:, None]).square() / var_2K[:, None]
            return (part_2K.log() - var_2K.log() / 2)[:, None] - distance_2NK / 2

        for _ in range(20):
            share_2WK = share_2WK * known_WK
            part_2K = share_2WK.sum(1) + 1e-6
            mean_2K = (share_2WK * past_WK).sum(1) / part_2K
            square_2WK = (past_WK - mean_2K[:, None]).square()
            var_2K = (share_2WK * square_2WK).sum(1) / part_2K + tiny
            share_2WK = log_density(past_WK).softmax(0)
        # The smaller loss never has the smaller weight, whatever the variances.
        weight_NK = log_density(loss_NK.clamp(*mean_2K)).softmax(0)[0]
        return weight_NK.where(known_WK.any(1).sum() >= self.memory, 1.0)


def dropped_of(count: int, quantile: float) -> int:
    """Return how many of `count` different losses lie above their `quantile`.

    >>> [dropped_of(4, quantile) for quantile in (0.9, 0.7, 0.5, 0.3)]
    [1, 1, 2, 3]
    """
    return count - 1 - math.floor((count - 1) * quantile + 1e-9)


def truncated_mean(scores: Sequence[float], quantile: float) -> float:
    """Return the mean of scores without as many of the worst as losses are left out.

    >>> truncated_mean([4.0, -20.0, 2.0, 3.0], quantile=0.7)
    3.0
    """
    best = sorted(scores)[dropped_of(len(scores), quantile) :]
    return math.fsum(best) / len(best)


TRUNCATIONS = {
    "ccom": ProcessTruncation,
    "pooled": PooledTruncation,
    "running": RunningTruncation,
    "frames": FrameTruncation,
    "dropping": LossDropping,
    "soft": SoftWeights,
}


def truncation(
    rule: str, quantile: float, memory: int = 1000, frame_seconds: float = 1.0
) -> KeepAll | LossTruncation:
    """Return a selector by a name in `TRUNCATIONS`; "none" keeps everything."""
    if rule == "none":
        return KeepAll()
    if rule not in TRUNCATIONS:
        raise ValueError(f"truncation={rule!r} must be none, {', '.join(TRUNCATIONS)}")
    select = TRUNCATIONS[rule](quantile, memory)
    select.frame_seconds = select.frame_seconds and frame_seconds
    return select
