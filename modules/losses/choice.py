"""Which loss terms of a global batch are trained on, decided by all ranks together.

`choose` is a pure function: every rank hands it the losses of its own examples, one
exchange makes them known to all, and every rank computes the same choice from them.

Legend: B batch, K loss terms of an example (speech: one; music: one per stem), F frames
of a term, N examples of the global batch, rank by rank.
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
    `weight_BK` above 0 multiplies the losses. With `frame_BKF`, whose mean over the
    frames is `loss_BK`, frames are chosen.
    """

    loss_BK: Tensor
    scorable_BK: Tensor
    sort_key_BK: Tensor | None = None
    silent_BK: Tensor | None = None
    origin_BK: Tensor | None = None
    relative_BK: Tensor | None = None
    weight_BK: Tensor | None = None
    frame_BKF: Tensor | None = None

    @property
    def parts(self) -> Tensor:
        """What is chosen from: the losses of frames, if there are any, or of terms."""
        return self.loss_BK if self.frame_BKF is None else self.frame_BKF


class Choice(NamedTuple):
    """What is trained on, and the counts of the global batch, read by the host.

    `nonfinite_B`, `silent_B`, `over_limit_B` and `dropped_B` describe this rank's
    examples; everything else is equal on all ranks. `keep_NK` marks terms of which the
    selector kept more than half, `kept_K` adds up their weights. An example is
    `over_limit` when one of its losses is, and `dropped` when the selector kept nothing
    of its usable terms. `flags` says which of the ranks' flags any rank raised.
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
    kept_K: list[float]
    usable_loss_K: list[float]
    kept_loss_K: list[float]
    flags: list[bool]


class Chosen(NamedTuple):
    """A choice on the device: enough for the backward; the host knows it by `read`.

    `weight`, from 0 to 1, has the shape of `Terms.parts`.
    """

    weight: Tensor
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
        own = slice(first, first + len(self.weight))
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
            kept_K=[int(n) if n.is_integer() else n for n in found["kept"]],
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
    there is something to learn. The selector maps the sort keys [N, K], or [N, K, F] of
    frames, of the global batch, NaN for terms that are not usable, to a mask of what to
    keep, or to weights from 0 to 1.

    `batch_size` is how many examples a rank has at most, the same on all ranks. `flags`
    is what this rank wants the others to know; they travel with the losses.
    """
    loss_BK = terms.loss_BK.float()
    sort_key_BK = loss_BK if terms.sort_key_BK is None else terms.sort_key_BK.float()
    relative_BK = loss_BK if terms.relative_BK is None else terms.relative_BK
    key = part = terms.parts.float()
    if terms.frame_BKF is None:
        key = sort_key_BK
    elif terms.sort_key_BK is not None:  # frames have the level of their target
        key = part * (sort_key_BK / loss_BK.clamp(min=1e-12))[..., None]
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
            "loss": part.nan_to_num().flatten(1),
            "sort_key": key.nan_to_num().flatten(1),
            "usable": usable_BK,
            "origin": nothing_BK if terms.origin_BK is None else terms.origin_BK,
            "relative": relative_BK.nan_to_num(),
            "silent": silent_BK,
            "nonfinite": nonfinite_B[:, None],
            "over_limit": over_limit_BK.any(1)[:, None],
            "counts": counts_B[:, None],
            "flags": to_device(flags, loss_BK).expand(len(loss_BK), -1),
            **({} if terms.weight_BK is None else {"weight": terms.weight_BK}),
        },
        batch_size,
    )
    usable_NK, shape = everyone["usable"] == 1, (-1, *part.shape[1:])
    loss, sort_key = (everyone[name].view(shape) for name in ("loss", "sort_key"))
    usable = usable_NK.view(*usable_NK.shape, *[1] * (loss.dim() - 2))
    share = select(sort_key.where(usable, torch.nan)).float().where(usable, 0.0)
    weight = share
    if "weight" in everyone:
        weight = (share * everyone["weight"].view_as(usable)).where(usable, 0.0)
    keep_NK = _of_terms(share) > 0.5

    silent_NK = everyone["silent"] == 1
    counts = {
        "seen": everyone["counts"][:, 0] == 1,
        "nonfinite": everyone["nonfinite"][:, 0] == 1,
        "silent": silent_NK.any(1),
        "over_limit": everyone["over_limit"][:, 0] == 1,
        "dropped": usable_NK.any(1) & ~weight.flatten(1).any(1),
        "silent_terms": silent_NK.sum(0),
        "usable": usable_NK.sum(0),
        "kept": _of_terms(weight).double().sum(0),
        "usable_loss": _of_terms(loss.where(usable, 0.0)).double().sum(0),
        "kept_loss": _of_terms((loss * weight).where(usable, 0.0)).double().sum(0),
        "flags": (everyone["flags"] == 1).any(0),
    }
    first = distributed.rank() * (len(keep_NK) // distributed.world_size())
    own = weight[first : first + len(loss_BK)]
    origin_NK, relative_NK = everyone["origin"], everyone["relative"]
    return Chosen(own, origin_NK, relative_NK, usable_NK, keep_NK, counts)


def to_device(values: Sequence[float], like: Tensor) -> Tensor:
    """Return `values` as a vector of the type of `like`, beside it.

    Each is written by a kernel: to copy them would wait for the device.
    """
    filled = [like.new_full((1,), value) for value in values]
    return torch.cat(filled or [like.new_empty(0)])


def masked_sum(loss: Tensor, weight: Tensor, weights_K: Tensor) -> Tensor:
    """Sum losses [B, K], or means over frames [B, K, F], by `weight`; a scalar.

    Term k is multiplied by `weights_K[k]` too. A product alone would not do: where the
    weight is 0 the loss may be NaN.
    """
    kept_BK = _of_terms(torch.where(weight > 0, loss * weight, 0.0))
    return (kept_BK.sum(0) * weights_K).sum()


def _of_terms(values: Tensor) -> Tensor:
    """Return the mean over the frames, if there are any."""
    return values.mean(2) if values.dim() == 3 else values
