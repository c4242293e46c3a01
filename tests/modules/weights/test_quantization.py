"""Eight bits: a quarter of the size, half a step off at most, checked on load."""

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from modules.lora.adapters import adaptable
from modules.models.htdemucs import HTDemucs
from modules.models.mossformer2 import MossFormer2
from modules.models.sepformer import SepFormer
from modules.runtime.errors import PretrainedError
from modules.weights.quantization import (
    dequantized,
    load_int8,
    quantize,
    quantized_state_dict,
)

SMALL = {
    "htdemucs": lambda: HTDemucs(["a", "b"], 0.5, 8000, nfft=512, depth=3, t_layers=1),
    "mossformer2": lambda: MossFormer2(layers=1),
    "sepformer": lambda: SepFormer(intra_layers=1, inter_layers=1),
}


@pytest.mark.parametrize("name", SMALL)
def test_no_weight_moves_by_more_than_half_a_step(name):
    model = SMALL[name]()
    plain, packed = model.state_dict(), quantized_state_dict(model)
    state = dequantized(packed, "here")
    assert state.keys() == plain.keys()
    weights = adaptable(model)
    for key, weight in plain.items():
        if key not in weights:
            assert torch.equal(state[key], weight), key
            continue
        assert packed[key].dtype == torch.int8
        step = packed[f"{key}_scale"]
        assert ((state[key] - weight).abs() <= 0.5001 * step).all(), key
        # The largest of each channel is exact, but for float rounding.
        assert torch.allclose(state[key].abs().amax(), weight.abs().amax()), key


def test_a_channel_is_an_output_channel():
    scales = {
        name: quantized_state_dict(nn.Sequential(layer))["0.weight_scale"].shape
        for name, layer in {
            "linear": nn.Linear(4, 6),
            "conv": nn.Conv2d(4, 6, 3),
            "transposed": nn.ConvTranspose1d(4, 6, 3),
        }.items()
    }
    assert scales == {"linear": (6, 1), "conv": (6, 1, 1, 1), "transposed": (1, 6, 1)}


def test_silent_channels_stay_silent():
    weight = torch.tensor([[0.0, 0.0], [1e-38, -1e-40], [1.0, -0.4]])
    steps, scale = quantize(weight)
    assert steps.tolist() == [[0, 0], [0, 0], [127, -51]]
    assert bool((steps * scale).isfinite().all())


@torch.no_grad()
def test_a_quarter_of_the_file_and_nearly_the_same_output(tmp_path):
    torch.manual_seed(3)
    model = SMALL["htdemucs"]().eval()
    save_file(quantized_state_dict(model), tmp_path / "int8.safetensors")
    save_file(model.state_dict(), tmp_path / "float.safetensors")
    sizes = [(tmp_path / f"{n}.safetensors").stat().st_size for n in ("int8", "float")]
    assert sizes[0] < 0.28 * sizes[1]
    other, mix_BCT = SMALL["htdemucs"]().eval(), torch.randn(1, 2, 4000)
    load_int8(other, tmp_path / "int8.safetensors")
    expected = model(mix_BCT)
    noise = other(mix_BCT) - expected
    assert 10 * torch.log10(expected.square().sum() / noise.square().sum()) > 35


def damaged(**changes: Tensor | None) -> dict[str, Tensor]:
    state = quantized_state_dict(nn.Linear(3, 2)) | changes
    return {key: tensor for key, tensor in state.items() if tensor is not None}


@pytest.mark.parametrize(
    "state, message",
    [
        (damaged(weight_scale=None), "weight has no scales"),
        (damaged(weight_scale=torch.ones(3, 1)), r"damaged \(\[3, 1\] for \[2, 3\]\)"),
        (damaged(weight_scale=torch.ones(2)), "damaged"),
        (damaged(weight_scale=torch.tensor([[1.0], [torch.nan]])), "damaged"),
        (damaged(weight_scale=torch.tensor([[1.0], [-1.0]])), "damaged"),
        (damaged(weight_scale=torch.ones(2, 1, dtype=torch.int32)), "damaged"),
        (dict(nn.Linear(3, 2).state_dict()), "holds no int8 weights"),
        (damaged(bias=None), "does not fit Linear"),
        (damaged(more=torch.ones(1)), "does not fit Linear"),
        (damaged(bias=torch.tensor([1.0, torch.inf])), "NaN or Inf in bias"),
    ],
)
def test_damaged_and_foreign_files_are_refused(tmp_path, state, message):
    save_file(state, tmp_path / "model.safetensors")
    model = nn.Linear(3, 2)
    before = model.weight.clone()
    with pytest.raises(PretrainedError, match=message) as raised:
        load_int8(model, tmp_path / "model.safetensors")
    assert "model.safetensors" in str(raised.value)
    assert torch.equal(model.weight, before)


def test_a_torn_file_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(damaged(), path)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(PretrainedError, match="damaged or holds more than tensors"):
        load_int8(nn.Linear(3, 2), path)
