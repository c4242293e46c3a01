"""A rule for which examples count that the packages do not know.

Legend: N examples of the global batch, K loss terms of an example.
"""

from torch import Tensor

from modules.losses.selection import Selector


class HarderHalf(Selector):
    """Train on the half of the batch that is separated worst."""

    def __call__(self, loss_NK: Tensor) -> Tensor:
        """Return the mask of the terms to keep; a loss of NaN cannot be used."""
        return loss_NK >= loss_NK.nanmedian(dim=0).values
