"""Which examples count: small objects that look at losses and answer with a mask.

A selector sees the unreduced losses of the whole global batch (all ranks), so every
rank reaches the same answer. Examples that cannot be used (not finite, over
`loss_upper_lim`, silent, or only there to fill up a rank) reach it as NaN and are
left out whatever it says.

Legend: N examples of the global batch, K loss terms of an example.
"""

import math

import torch
from torch import Tensor

from modules.runtime.distributed import world_size


class Selector:
    """Base of the rules: has no state, and does the same in every phase."""

    #: The mean runs over what is kept; False: over all that is usable.
    renormalise = True

    def __call__(self, loss_NK: Tensor) -> Tensor:
        """Return the mask of the terms to keep, shape [N, K]."""
        raise NotImplementedError

    def enter_phase(self, quantile: float, batches: int) -> None:
        """Obey a phase of training: the share to keep, the batches accumulated."""

    def check(self, batch_size: int, world_size: int) -> None:
        """Raise `ValueError` if the rule cannot drop anything in such batches."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return what a resumed run needs."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from a checkpoint."""


class KeepAll(Selector):
    """Keeps every usable term."""

    def __call__(self, loss_NK: Tensor) -> Tensor:
        """Return a mask of True, shape [N, K]."""
        return torch.ones_like(loss_NK, dtype=torch.bool)


class ThresholdByLoss(Selector):
    """Train on what is still hard: drop examples separated better than `threshold`.

    SpeechBrain's recipe practice (`threshold_byloss`); the MossFormer2 paper does not
    state it.

    Arguments
    ---------
    threshold : float
        In dB of negative SI-SNR: -30 drops examples whose SI-SNR is above 30 dB.
    enabled : bool
        False keeps every example.

    Example
    -------
    >>> ThresholdByLoss(-30)(torch.tensor([-12.0, -31.0]))
    tensor([ True, False])
    """

    def __init__(self, threshold: float = -30.0, enabled: bool = True) -> None:
        self.threshold = threshold
        self.enabled = enabled

    def __call__(self, loss_NK: Tensor) -> Tensor:
        """Mask of the terms to keep, shape [N, K]; NaN is never kept when enabled."""
        if not self.enabled:
            return torch.ones_like(loss_NK, dtype=torch.bool)
        return loss_NK > self.threshold


class LossTruncation(Selector):
    """Leave the terms with the largest losses out: they may have a wrong label.

    Team CCOM's rule for the Sound Demixing Challenge 2023 and what improves on it. A
    term is dropped when its loss lies strictly above the `quantile` of the losses it
    is compared with, stem by stem, with linear interpolation; losses that are not
    finite are taken out first. `pool` says what a loss is compared with:

    - "process": the batch of its own process. With `renormalise=False` this is CCOM's
      rule: the mean still runs over the whole batch, dropped terms counting as 0.
      Among B losses it drops B - 1 - floor((B - 1) quantile), whatever they are: with
      4 a process, 1 at 0.7 (and at 0.9), 2 at 0.5 and 3 at 0.3.
    - "world": the batch of all processes and, where `batches` of them are accumulated
      for an optimizer step, the batches before it, as many in all (those that follow
      are not known yet when the present one is trained on).
    - "running": the last `memory` losses of all processes and accumulated batches, the
      present ones among them. Nothing is dropped before `memory` losses were seen.

    Arguments
    ---------
    quantile : float
        Share to keep, above 0 and at most 1 (which keeps everything).
    pool : str
        "process", "world" or "running".
    memory : int
        Number of losses per stem to remember, for "running".
    renormalise : bool
        True lets the mean run over the kept terms.
    batches : int
        How many batches "world" compares, 1 or more.

    Raises
    ------
    ValueError
        An argument is out of range.

    Example
    -------
    >>> truncate = LossTruncation(0.7)
    >>> truncate(torch.tensor([[1.0], [4.0], [2.0], [3.0]])).flatten()
    tensor([ True, False,  True,  True])
    """

    def __init__(
        self,
        quantile: float,
        pool: str = "process",
        memory: int = 1000,
        renormalise: bool = False,
        batches: int = 1,
    ) -> None:
        if not 0 < quantile <= 1:
            raise ValueError(f"quantile={quantile} must be above 0 and at most 1")
        if pool not in ("process", "world", "running"):
            raise ValueError(f"pool={pool!r} must be process, world or running")
        if memory < 1:
            raise ValueError(f"memory={memory}: must be 1 or more")
        self.quantile = quantile
        self.pool = pool
        self.memory = memory
        self.renormalise = renormalise
        self.batches = batches
        self.past_WK: Tensor | None = None
        self.threshold_K: Tensor | None = None

    def __call__(self, loss_NK: Tensor) -> Tensor:
        """Mask of the terms to keep, shape [N, K]; NaN is never kept.

        Arguments
        ---------
        loss_NK : Tensor
            Losses of all ranks, one rank's after the other's.
        """
        if self.pool == "process":
            loss_RBK = loss_NK.unflatten(0, (world_size(), -1))
            threshold_RK = torch.stack([self._quantile(part) for part in loss_RBK])
            self.threshold_K = threshold_RK.nanmean(0)
            return (loss_RBK <= threshold_RK[:, None]).flatten(0, 1)
        if self.pool == "world":
            self._remember(loss_NK, self.batches * len(loss_NK))
        else:
            # In the order of the data set: what is forgotten first must not depend on
            # how many ranks share it.
            seen_NK = loss_NK.unflatten(0, (world_size(), -1)).transpose(0, 1)
            seen_NK = seen_NK.flatten(0, 1)
            self._remember(seen_NK[~seen_NK.isnan().all(1)], self.memory)
        if self.pool == "running" and len(self.past_WK) < self.memory:
            self.threshold_K = torch.full_like(loss_NK[0], torch.inf)
        else:
            self.threshold_K = self._quantile(self.past_WK)
        return loss_NK <= self.threshold_K

    def enter_phase(self, quantile: float, batches: int) -> None:
        """Keep another share; compare over so many accumulated batches."""
        self.quantile, self.batches = quantile, batches

    def _quantile(self, loss_NK: Tensor) -> Tensor:
        return torch.nanquantile(loss_NK.float(), self.quantile, dim=0)

    def _remember(self, loss_NK: Tensor, memory: int) -> None:
        """Append the losses; keep the newest `memory`."""
        seen_WK = loss_NK.detach().float()
        if self.past_WK is not None:
            seen_WK = torch.cat([self.past_WK.to(seen_WK.device), seen_WK])
        self.past_WK = seen_WK[-memory:]

    def check(self, batch_size: int, world_size: int) -> None:
        """Refuse a comparison with too few losses to drop any.

        Raises
        ------
        ValueError
            The message says what the quantile means at this batch size.
        """
        compared = {
            "process": batch_size,
            "world": batch_size * world_size * self.batches,
            "running": self.memory,
        }[self.pool]
        if self.quantile == 1 or dropped_of(compared, self.quantile):
            return
        needed = next(n for n in range(2, 10_000) if dropped_of(n, self.quantile))
        raise ValueError(
            f"loss truncation at quantile {self.quantile} drops none of {compared} "
            f"losses (pool={self.pool}): n losses lose n - 1 - floor((n - 1) * "
            f"quantile), so at least {needed} are needed; raise the batch size, or "
            "compare with more losses (pool=running)"
        )

    def state_dict(self) -> dict[str, Tensor]:
        """The losses that are remembered; checkpoints hold no NaN, so these apart."""
        if self.past_WK is None:
            return {}
        known_WK = ~self.past_WK.isnan()
        return {"past_WK": self.past_WK.nan_to_num().cpu(), "known_WK": known_WK.cpu()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue with the losses of a checkpoint."""
        self.past_WK = None
        if state:
            self.past_WK = state["past_WK"].where(state["known_WK"], torch.nan)


def dropped_of(count: int, quantile: float) -> int:
    """How many of `count` different losses lie above their `quantile`.

    Example
    -------
    >>> [dropped_of(4, quantile) for quantile in (0.9, 0.7, 0.5, 0.3)]
    [1, 1, 2, 3]
    """
    return count - 1 - math.floor((count - 1) * quantile + 1e-9)


def truncation(
    rule: str, quantile: float, memory: int = 1000
) -> KeepAll | LossTruncation:
    """A selector by the name of its rule.

    Arguments
    ---------
    rule : str
        "none" keeps everything; "ccom" is team CCOM's rule exactly; "pooled" compares
        over all processes and accumulated batches, "running" over the last `memory`
        losses, and both average what they kept.
    quantile : float
        Share to keep.
    memory : int
        Losses per stem that "running" remembers.

    Raises
    ------
    ValueError
        An unknown rule.
    """
    if rule == "none":
        return KeepAll()
    pools = {"ccom": "process", "pooled": "world", "running": "running"}
    if rule not in pools:
        raise ValueError(f"truncation={rule!r} must be none, {', '.join(pools)}")
    return LossTruncation(quantile, pools[rule], memory, renormalise=rule != "ccom")
