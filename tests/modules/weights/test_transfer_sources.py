"""New sources start as the old ones they are copied from."""

import pytest
import torch
from safetensors.torch import save_model

from modules.models.htdemucs import HTDemucs
from modules.runtime.errors import PretrainedError
from modules.weights.transfer_sources import copy_sources, load_for_sources

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
    load_for_sources(new, tmp_path, sources=OLD, segment_seconds=0.25, source_map=MAP)
    after_BSCT = new(x)
    assert after_BSCT.shape[1] == 5
    for index, name in enumerate(NEW):
        origin = OLD.index(MAP.get(name, name))
        # Another number of channels may be summed in another order.
        error = (after_BSCT[:, index] - before_BSCT[:, origin]).abs().max()
        assert error <= 1e-6 * before_BSCT.abs().max(), name


def test_only_the_segment_may_differ_besides():
    copy_sources(model(OLD), model(NEW, seconds=0.5), MAP)
    with pytest.raises(
        PretrainedError, match="more than its sources: channels 8 -> 16"
    ):
        copy_sources(model(OLD), model(NEW, channels=16), MAP)


@pytest.mark.parametrize(
    "source_map, message",
    [
        ({"kick": "drums"}, "the source hihat starts from hihat, which .* name one of"),
        ({**MAP, "bass": "tuba"}, "the source bass starts from tuba"),
        ({**MAP, "snare": "drums"}, "the model has no source snare"),
    ],
)
def test_a_wrong_map_is_refused(source_map, message, tmp_path):
    with pytest.raises(PretrainedError, match=message):
        copy_sources(model(OLD), model(NEW), source_map)
    with pytest.raises(PretrainedError, match=message):  # before any file is read
        load_for_sources(
            model(NEW), tmp_path, sources=OLD, segment_seconds=1, source_map=source_map
        )
