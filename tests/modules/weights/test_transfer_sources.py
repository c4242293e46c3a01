"""New sources start as the old ones they are copied from."""

import pytest
import torch
from safetensors.torch import save_model

from modules.models.htdemucs import HTDemucs
from modules.runtime.errors import PretrainedError
from modules.weights.pretrained import load_pretrained
from modules.weights.transfer_sources import take_sources
from tests.toy import same_weights

OLD = ["drums", "bass", "other", "vocals"]
NEW = ["other", "kick", "vocals", "bass", "hihat"]
MAP = {"kick": "drums", "hihat": "drums"}


def model(sources: list[str], seconds: float = 0.25, **options) -> HTDemucs:
    settings = {
        "sample_rate": 8000, "channels": 8, "depth": 2, "nfft": 256,
        "bottom_channels": 0, "t_layers": 1, "t_heads": 2, "dconv_comp": 4, **options,
    }  # fmt: skip
    return HTDemucs(sources, seconds, **settings).eval()


@torch.no_grad()
def test_before_training_the_mapped_stems_are_the_old_models(tmp_path):
    old, new = model(OLD), model(NEW)
    x = torch.randn(2, 2, 3000)
    before_BSCT = old(x)
    save_model(old, tmp_path / "model.safetensors")
    load_pretrained(new, tmp_path, sources=OLD, source_map=MAP)
    after_BSCT = new(x)
    assert after_BSCT.shape[1] == 5
    for index, name in enumerate(NEW):
        origin = OLD.index(MAP.get(name, name))
        # Another number of channels may be summed in another order.
        error = (after_BSCT[:, index] - before_BSCT[:, origin]).abs().max()
        assert error <= 1e-6 * before_BSCT.abs().max(), name


@pytest.mark.parametrize(
    "source_map, message",
    [
        ({"kick": "drums"}, "the source hihat starts from hihat, .* name one of"),
        ({**MAP, "bass": "tuba"}, "the source bass starts from tuba"),
        ({**MAP, "snare": "drums"}, "the model has no source snare"),
    ],
)
def test_a_wrong_map_is_refused(source_map, message):
    new = model(NEW)
    before = {key: value.clone() for key, value in new.state_dict().items()}
    with pytest.raises(PretrainedError, match=message):
        take_sources(new, model(OLD).state_dict(), OLD, source_map)
    assert same_weights(before, new.state_dict())
