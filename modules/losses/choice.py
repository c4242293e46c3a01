"""Which loss terms of a global batch are trained on, decided by all ranks together.

`choose` is a pure function: every rank hands it the losses of its own examples, one
exchange makes them known to all, and every rank computes the same choice from them.

Legend: B batch, K loss terms of an example (speech: one; music: one per stem),
N examples of the global batch, rank by rank.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from modules.runtime import distributed

#: Why an example is not trained on, each a mask of `Choice`.
REASONS = ("nonfinite", "silent", "over_limit", "dropped")


class Terms(NamedTuple):
    """The unreduced losses of a batch.

    `scorable_BK` is False where there is nothing to learn. `sort_key_BK` replaces the
    loss for the selector, for instance by the loss relative to the level of the target.
    `silent_BK` marks targets that are silent once their mean is removed; they are
    counted. `origin_BK` numbers the recordings that the targets were cut from, and
    `relative_BK` is the loss relative to their level, for whoever keeps records.
    """

    loss_BK: Tensor
    scorable_BK: Tensor
    sort_key_BK: Tensor | None = None
    silent_BK: Tensor | None = None
    origin_BK: Tensor | None = None
    relative_BK: Tensor | None = None


class Choice(NamedTuple):
    """What is trained on, and the counts of the global batch, read by the host.

    `nonfinite_B`, `silent_B`, `over_limit_B` and `dropped_B` describe this rank's
    examples; everything else is equal on all ranks. An example is `over_limit`
    when one of its losses is, and `dropped` when the selector kept none of its usable
    terms. `flags` says which of the ranks' flags any rank raised.
    """

    nonfinite_B: list[bool]
    silent_B: list[bool]
    over_limit_B: list[bool]
    dropped_B: list[bool]
    origin_NK: Tensor
    relative_NK: Tensor
    usable_NK: Tensor
    keep_NK: Tensor
    seen: int
    nonfinite: int
    silent: int
    over_limit: int
    dropped: int
    usable_K: list[int]
    kept_K: list[int]
    usable_loss_K: list[float]
    kept_loss_K: list[float]
    flags: list[bool]


class Chosen(NamedTuple):
    """A choice on the device: enough for the backward; the host knows it by `read`."""

    keep_BK: Tensor
    origin_NK: Tensor
    relative_NK: Tensor
    usable_NK: Tensor
    keep_NK: Tensor
    counts: dict[str, Tensor]

    def read(self, *scalars: Tensor) -> tuple[Choice, list[float]]:
        """Copy the choice and other scalars: the one wait of a step for the device."""
        values = [*self.counts.values(), *(scalar[None] for scalar in scalars)]
        flat = torch.cat([value.double() for value in values]).tolist()
        found = {}
        for name, value in self.counts.items():
            found[name], flat = flat[: len(value)], flat[len(value) :]
        first = distributed.rank() * (len(self.keep_NK) // distributed.world_size())
        own = slice(first, first + len(self.keep_BK))
        masks = {name: list(map(bool, found[name][own])) for name in REASONS}
        choice = Choice(
            nonfinite_B=masks["nonfinite"],
            silent_B=masks["silent"],
            over_limit_B=masks["over_limit"],
            dropped_B=masks["dropped"],
            origin_NK=self.origin_NK,
            relative_NK=self.relative_NK,
            usable_NK=self.usable_NK,
            keep_NK=self.keep_NK,
            seen=int(sum(found["seen"])),
            nonfinite=int(sum(found["nonfinite"])),
            silent=int(sum(found["silent_terms"])),
            over_limit=int(sum(found["over_limit"])),
            dropped=int(sum(found["dropped"])),
            usable_K=list(map(int, found["usable"])),
            kept_K=list(map(int, found["kept"])),
            usable_loss_K=found["usable_loss"],
            kept_loss_K=found["kept_loss"],
            flags=list(map(bool, found["flags"])),
        )
        return choice, flat


@torch.no_grad()
def choose(
    terms: Terms,
    finite_B: Tensor,
    counts_B: Tensor,
    select: Callable[[Tensor], Tensor],
    *,
    batch_size: int,
    loss_limit: float = math.inf,
    flags: tuple[bool, ...] = (),
) -> Chosen:
    """Choose the terms to train on; call it on every rank.

    A term is usable where its example counts (it does not only fill up a rank's share)
    and is finite (it was not zeroed), its loss is finite and below `loss_limit`, and
    there is something to learn. The selector maps the sort keys [N, K] of the global
    batch, NaN for terms that are not usable, to a mask of the terms to keep.

    `batch_size` is how many examples a rank has at most, the same on all ranks. `flags`
    is what this rank wants the others to know; they travel with the losses.
    """
    loss_BK = terms.loss_BK.float()
    sort_key_BK = loss_BK if terms.sort_key_BK is None else terms.sort_key_BK.float()
    relative_BK = loss_BK if terms.relative_BK is None else terms.relative_BK
    nothing_BK = torch.zeros_like(loss_BK)
    finite_BK = finite_B[:, None] & loss_BK.isfinite() & sort_key_BK.isfinite()
    usable_BK = finite_BK & terms.scorable_BK & counts_B[:, None]
    over_limit_BK = usable_BK & (loss_BK >= loss_limit)
    usable_BK &= loss_BK < loss_limit
    silent_BK = nothing_BK.bool()
    if terms.silent_BK is not None:  # an example that was zeroed is not silent
        silent_BK = terms.silent_BK & (finite_B & counts_B)[:, None]
    nonfinite_B = counts_B & ~finite_BK.all(1)

    everyone = distributed.gather_columns(
        {
            "loss": loss_BK.nan_to_num(),
            "sort_key": sort_key_BK.nan_to_num(),
            "usable": usable_BK,
            "origin": nothing_BK if terms.origin_BK is None else terms.origin_BK,
            "relative": relative_BK.nan_to_num(),
            "silent": silent_BK,
            "nonfinite": nonfinite_B[:, None],
            "over_limit": over_limit_BK.any(1)[:, None],
            "counts": counts_B[:, None],
            "flags": to_device(flags, loss_BK).expand(len(loss_BK), -1),
        },
        batch_size,
    )
    loss_NK, usable_NK = everyone["loss"], everyone["usable"] == 1
    keep_NK = select(everyone["sort_key"].where(usable_NK, torch.nan)) & usable_NK

    silent_NK = everyone["silent"] == 1
    counts = {
        "seen": everyone["counts"][:, 0] == 1,
        "nonfinite": everyone["nonfinite"][:, 0] == 1,
        "silent": silent_NK.any(1),
        "over_limit": everyone["over_limit"][:, 0] == 1,
        "dropped": usable_NK.any(1) & ~keep_NK.any(1),
        "silent_terms": silent_NK.sum(0),
        "usable": usable_NK.sum(0),
        "kept": keep_NK.sum(0),
        "usable_loss": loss_NK.where(usable_NK, 0.0).double().sum(0),
        "kept_loss": loss_NK.where(keep_NK, 0.0).double().sum(0),
        "flags": (everyone["flags"] == 1).any(0),
    }
    keep_WBK = keep_NK.unflatten(0, (distributed.world_size(), -1))
    own_BK = keep_WBK[distributed.rank(), : len(loss_BK)]
    origin_NK, relative_NK = everyone["origin"], everyone["relative"]
    return Chosen(own_BK, origin_NK, relative_NK, usable_NK, keep_NK, counts)


def to_device(values: Sequence[float], like: Tensor) -> Tensor:
    """Return `values` as a vector of the type of `like`, beside it.

    Each is written by a kernel: to copy them would wait for the device.
    """
    filled = [like.new_full((1,), value) for value in values]
    return torch.cat(filled or [like.new_empty(0)])


def masked_sum(loss_BK: Tensor, keep_BK: Tensor, weights_K: Tensor) -> Tensor:
    """Sum the kept terms, term k weighted by `weights_K[k]`; a scalar.

    A product with the mask would not do: 0 * NaN is NaN.
    """
    kept_K = torch.where(keep_BK, loss_BK, 0.0).sum(0)
    return (kept_K * weights_K).sum()
