"""The code that an export gives to SpeechBrain separates as our own does."""

from fractions import Fraction
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from modules.inference.songs import apply_model
from modules.weights.hub_interface import CustomInterface


class Bent(nn.Module):
    """Gives what depends on the level of its input."""

    sources, sample_rate, segment = ("a", "b"), 100, Fraction(2)

    def forward(self, mix_BCT: Tensor) -> Tensor:
        return torch.stack([mix_BCT.tanh(), mix_BCT.sin()], dim=1)


@pytest.mark.parametrize("likeness", [1.0, 0.0, -1.0])
def test_songs_are_brought_to_the_level_of_ours(likeness):
    """Channels that cancel too: the deviation of their mean is nearly zero."""
    left, other = torch.randn(2, 700, generator=torch.Generator().manual_seed(1))
    mix_BCT = torch.stack([left, likeness * left + (0.01 if likeness else 1) * other])
    brain = SimpleNamespace(hparams=SimpleNamespace(chunk_samples=200), _network=Bent())
    est_BSCT = CustomInterface._music(brain, mix_BCT[None])
    ours_BSCT = apply_model(Bent(), mix_BCT[None], shifts=0, normalize=True)
    assert torch.allclose(est_BSCT, ours_BSCT, atol=1e-5)
