"""What the music recipe does with stems that rest."""

from types import SimpleNamespace

import pytest
import torch
from speechbrain import Stage

from modules.data.batch import Batch
from modules.losses.stems import StemLosses
from recipes.music import MusicSeparation


@pytest.mark.parametrize("offset", [0.0, -0.7])
def test_a_silent_stem_is_counted_and_teaches_silence(offset):
    src_BSCT = torch.randn(2, 3, 2, 100)
    src_BSCT[0, 1] = 0
    # Normalised by its track's mean, silence is a constant.
    src_BSCT[1, 2] = offset
    src_BSCT[1, 0, 0] = 0  # one channel only: no silence
    ones_B = torch.ones(2)
    batch = Batch(["a", "b"], src_BSCT.sum(1), src_BSCT, ones_B, ones_B > 0)
    batch.origins = [("a", "b", "a"), ("b", "b", "b")]
    brain = SimpleNamespace(
        stem_weights=[1, 1, 0],
        config=SimpleNamespace(relative_to_level=False, losses=StemLosses(44100)),
        stem_losses=SimpleNamespace(numbers={"a": 0, "b": 1}),
        frames=None,
        trust={},
    )
    estimate_BSCT = src_BSCT + 0.5
    terms = MusicSeparation.compute_objectives(brain, estimate_BSCT, batch, Stage.TRAIN)
    assert terms.silent_BK.tolist() == [[False, True, False], [False, False, True]]
    assert terms.scorable_BK.tolist() == [[True, True, False]] * 2
    assert terms.origin_BK.tolist() == [[0, 1, 0], [1, 1, 1]]
    assert torch.allclose(terms.loss_BK, torch.full((2, 3), 0.5))
