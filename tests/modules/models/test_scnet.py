"""SCNet: equal to the published network, and the same on every path.

The goldens in ../shared were computed by the public reference code; everything else
runs on generated signals with tiny configurations.
"""

import json

import pytest
import torch

from modules.models.scnet import SCNet
from tests.modules.models.goldens import (
    check_gradients,
    check_keys,
    close,
    golden,
    read_golden,
)

TINY = {"channels": [4, 8], "n_fft": 256, "hop": 64, "dual_layers": 2}


def tiny(sources=("a", "b"), **options):
    torch.manual_seed(0)
    return SCNet(sources, **{**TINY, **options})


@pytest.fixture(scope="module")
def reference():
    """The golden model's configuration, its weights, and the file's tensors."""
    return read_golden("scnet_8x4_4stem")


def test_outputs_and_gradients_equal_the_reference(reference):
    config, weights, tensors = reference
    model = SCNet.from_config(config).eval()
    model.load_state_dict(weights, strict=True)
    with torch.no_grad():
        for case in ("case0", "case1"):
            estimate = model(tensors[f"{case}/mixture_BCT"])
            close(estimate, tensors[f"{case}/estimate_BSCT"])
    check_gradients(model, tensors, 15)


def test_normalised_spectrum_equals_the_authors_form(reference):
    config, weights, tensors = reference
    model = SCNet.from_config(config, normalize_spectrum=True).eval()
    model.load_state_dict(weights, strict=True)
    with torch.no_grad():
        estimate = model(tensors["case1/mixture_BCT"])
    close(estimate, tensors["specnorm/estimate_BSCT"])


@pytest.mark.parametrize("size", ["small", "large"])
def test_published_size_has_the_published_parameters(size):
    config = json.loads(golden("scnet_keys.json").read_text())[size]["config"]
    with torch.device("meta"):
        check_keys(SCNet.from_config(config), "scnet", size)


@pytest.mark.parametrize("samples", [1, 63, 64, 65, 128, 333])
@pytest.mark.parametrize("sound", ["noise", "silence", "constant"])
@pytest.mark.parametrize("normalize", [False, True])
def test_any_length_is_finite(samples, sound, normalize):
    model = tiny(["a"], audio_channels=1, normalize_spectrum=normalize)
    mixture = torch.full((1, 1, samples), float(sound == "constant"))
    mixture = torch.randn(1, 1, samples) if sound == "noise" else mixture
    estimate = model(mixture.requires_grad_())
    assert estimate.shape == (1, 1, 1, samples)
    assert estimate.isfinite().all()
    estimate.sum().backward()
    assert mixture.grad.isfinite().all()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name


def test_examples_do_not_see_each_other():
    model = tiny(normalize_spectrum=True).eval()
    mixture = torch.randn(2, 2, 700) * torch.tensor([1.0, 0.01]).view(2, 1, 1)
    with torch.no_grad():
        together = model(mixture)
        for index in range(2):
            close(together[index], model(mixture[index : index + 1])[0])


@pytest.mark.parametrize(
    "options",
    [
        {"band_kernels": [5, 4, 16]},
        {"band_strides": [2, 4, 8], "band_kernels": [2, 4, 8]},
        {"band_strides": [1, 2, 4], "band_kernels": [3, 4, 8]},
        {"band_shares": [0.5, 0.5], "band_strides": [1, 4], "band_kernels": [3, 4]},
        {"expansion": 2, "kernel_size": 5, "window_length": 200},
    ],
)
def test_bands_of_any_kind_come_back(options):
    if "band_shares" in options:
        options = {**options, "conv_depths": [1, 0]}
    assert tiny(**options)(torch.randn(1, 2, 500)).shape == (1, 2, 2, 500)


def test_what_the_others_leave_is_the_last_source():
    model, mixture = tiny(["a", "b", "c"], residual=True), torch.randn(2, 2, 99)
    other = tiny(["a", "b"])
    other.load_state_dict(model.state_dict(), strict=True)
    first = other(mixture)
    rest = (mixture - first.sum(1)).unsqueeze(1)
    close(model(mixture), torch.cat([first, rest], dim=1))


def test_checkpointing_gives_the_same_gradients():
    mixture, results = torch.randn(1, 2, 501), []
    for checkpointing in (False, True):
        model = tiny(activation_checkpointing=checkpointing)
        model(mixture).abs().sum().backward()
        results.append([p.grad for p in model.parameters()])
    for kept, recomputed in zip(*results, strict=True):
        assert torch.equal(kept, recomputed)


def test_compiled_model_breaks_at_its_lstms_alone():
    # PyTorch keeps LSTMs out of graphs. `allow_rnn`, which it calls experimental, is no
    # way out: with it aot_eager and Inductor fail at an LSTM (torch 2.14, CPU).
    model, mixture = tiny().eval(), torch.randn(1, 2, 333)
    with torch._dynamo.config.patch(allow_rnn=True):
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        close(compiled(mixture), model(mixture))


def test_bfloat16_autocast_stays_close():
    model, mixture = tiny(), torch.randn(1, 2, 900)
    truth = model(mixture)
    with torch.autocast("cpu", torch.bfloat16):
        estimate = model(mixture)
    assert estimate.dtype == torch.float32
    close(estimate, truth, 0.05)
    estimate.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    "options, name",
    [
        ({"channels": [2, 8]}, "channels"),
        ({"hop": 200}, "hop"),
        ({"dual_layers": 3}, "dual_layers"),
        ({"conv_depths": [1]}, "conv_depths"),
        ({"kernel_size": 4}, "kernel_size"),
        ({"band_strides": [2, 4, 16]}, "band_strides"),  # reaches too little
    ],
)
def test_bad_argument_is_named(options, name):
    with pytest.raises(ValueError, match=f"{name}="):
        tiny(**{"band_kernels": [1, 4, 16]} | options)


@pytest.mark.parametrize("shape", [(2, 100), (1, 2, 0), (1, 1, 100)])
def test_bad_mixture_is_refused(shape):
    with pytest.raises(ValueError, match="2 channels"):
        tiny()(torch.zeros(shape))


def test_configurations_are_read_with_the_references_defaults():
    model = SCNet.from_config({"model": {"dims": [2, 8, 8], "audio_channels": 1}})
    assert model.sources == ["drums", "bass", "other", "vocals"]
    assert len(model.encoder) == 2 and model.config["normalized"]
    with pytest.raises(ValueError, match="unknown lstm"):
        SCNet.from_config({"lstm": 1})
    with pytest.raises(ValueError, match="dims begin with 4"):
        SCNet.from_config({"audio_channels": 1})
