"""Networks for the fault bench: small, random where networks can be, heavy on disk.

Legend: B batch, S source, C channel, T sample.
"""

import random
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from tests.toy import ToySeparator


def draw(source: str) -> float:
    """Return a number from one of the three global generators."""
    if source == "torch":
        return float(torch.rand(()))
    if source == "numpy":
        return float(np.random.rand())
    if source == "python":
        return random.random()
    raise ValueError(f"noise={source!r} must be torch, numpy or python")


class FaultToy(nn.Module):
    """`ToySeparator` with everything that makes a resume hard.

    Arguments
    ---------
    num_sources : int
        Outputs.
    dropout : float
        Share of samples dropped.
    noise : Sequence[str]
        Global generators that each training forward draws a gain from.
    norm : bool
        Batch normalisation of the input: state outside the parameters.
    ballast : int
        Numbers in a buffer that is saved but never used, so that saving takes time.
    """

    def __init__(
        self,
        num_sources: int = 2,
        dropout: float = 0.0,
        noise: Sequence[str] = (),
        norm: bool = False,
        ballast: int = 0,
    ) -> None:
        super().__init__()
        self.toy = ToySeparator(num_sources, dropout)
        self.noise = list(noise)
        self.norm = nn.BatchNorm1d(1) if norm else nn.Identity()
        self.register_buffer("ballast", torch.ones(ballast))

    def forward(self, mixture_BT: Tensor) -> Tensor:
        """Separate [B, T] to [B, S, T]."""
        if self.training:
            for source in self.noise:
                mixture_BT = mixture_BT * (0.9 + 0.2 * draw(source))
        return self.toy(self.norm(mixture_BT[:, None])[:, 0])


class FaultStems(nn.Module):
    """`FaultToy` for stereo songs, with the attributes that `apply_model` reads."""

    segment = 0.5

    def __init__(
        self, sources: Sequence[str], sample_rate: int, **toy: float | Sequence[str]
    ) -> None:
        super().__init__()
        self.sources, self.sample_rate = list(sources), sample_rate
        self.mono = FaultToy(len(self.sources), **toy)

    def forward(self, mixture_BCT: Tensor) -> Tensor:
        """Separate [B, C, T] to [B, S, C, T]."""
        est_XST = self.mono(mixture_BCT.flatten(0, 1))
        return est_XST.unflatten(0, mixture_BCT.shape[:2]).transpose(1, 2)
