"""TF-Locoformer: equal to the published network, and the same on every path.

The goldens in ../shared were computed by the public reference code; everything else
runs on generated signals with tiny configurations.
"""

import json

import pytest
import torch
import torch.nn.functional as F

from modules.models.tf_locoformer import ConvSwiGLU, TFLocoformer
from tests.modules.models.goldens import check_gradients, close, golden, read_golden

TINY = {
    "layers": 2,
    "channels": 16,
    "attention_channels": 16,
    "heads": 2,
    "ffn_channels": (12, 20),
    "n_fft": 32,
    "hop": 16,
}
GOLDEN = "tf_locoformer_32x2_2spk"


@pytest.fixture(scope="module")
def reference():
    """The golden model with its weights, and the file's tensors by name."""
    config, weights, tensors = read_golden(GOLDEN)
    model = TFLocoformer.from_config(config).eval()
    model.load_state_dict(weights, strict=True)
    return model, tensors


def tiny(seed=0, **options):
    """A small model away from its initial state, where every branch counts."""
    torch.manual_seed(seed)
    model = TFLocoformer(**{**TINY, **options})
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("case", [0, 1])
def test_outputs_equal_the_reference(reference, case):
    model, tensors = reference
    with torch.no_grad():
        estimate = model(tensors[f"case{case}/mixture_BT"])
    close(estimate, tensors[f"case{case}/estimate_BST"])


def test_the_network_alone_equals_the_reference(reference):
    model, tensors = reference
    mixture = torch.complex(tensors["spec0/real_BTF"], tensors["spec0/imag_BTF"])
    with torch.no_grad():
        estimate = model.separate(mixture)
    close(estimate.real, tensors["spec0/estimate_real_BSTF"])
    close(estimate.imag, tensors["spec0/estimate_imag_BSTF"])


def test_gradients_equal_the_reference(reference):
    check_gradients(*reference, expected=15)


@pytest.mark.parametrize("size", ["M_wsj0_2mix", "M_whamr", "S_whamr"])
def test_published_size_has_the_published_parameters(size):
    truth = json.loads(golden("tf_locoformer_keys.json").read_text())[size]
    with torch.device("meta"):
        model = TFLocoformer.from_config(truth["config"])
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert shapes == truth["state_dict"]
    assert sum(p.numel() for p in model.parameters()) == truth["parameters"]
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trainable == truth["trainable"]


def test_large_has_the_papers_count():
    with torch.device("meta"):
        model = TFLocoformer(layers=9)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == 22.5


@pytest.mark.parametrize("kernel, shift", [(1, 1), (4, 1), (4, 3), (5, 2), (8, 8)])
def test_feed_forward_is_a_convolution_there_and_back(kernel, shift):
    layer = ConvSwiGLU(6, 5, kernel, shift, dropout=0.0)
    x_BXLD = torch.randn(2, 7, 11, 6)
    x_ZDL = x_BXLD.flatten(0, 1).transpose(1, 2)
    size, reach = x_ZDL.shape[2], kernel - shift
    steps = -(-(size + 2 * reach - kernel) // shift)
    padded = F.pad(x_ZDL, (reach, steps * shift + kernel - size - reach))
    value, gate = layer.conv1d(padded).chunk(2, dim=1)
    y_ZDL = layer.deconv1d(value * F.silu(gate))[..., reach : reach + size]
    truth = y_ZDL.transpose(1, 2).unflatten(0, x_BXLD.shape[:2])
    torch.testing.assert_close(layer(x_BXLD), truth)


@pytest.mark.parametrize("samples", [1, 2, 15, 16, 17, 18, 31, 333])
@pytest.mark.parametrize("sound", ["noise", "silence", "constant"])
def test_any_length_is_finite(samples, sound):
    model = TFLocoformer(**TINY, num_sources=3)  # as it starts: biases are zero
    mixture = torch.full((1, samples), float(sound == "constant"))
    mixture = torch.randn(1, samples) if sound == "noise" else mixture
    estimate = model(mixture.requires_grad_())
    assert estimate.shape == (1, 3, samples)
    assert estimate.isfinite().all()
    estimate.sum().backward()
    assert mixture.grad.isfinite().all()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


def test_equally_long_examples_do_not_see_each_other():
    model = tiny().eval()
    mixture = torch.randn(2, 700) * torch.tensor([[1.0], [0.01]])
    with torch.no_grad():
        together = model(mixture)
        for index in range(2):
            close(together[index], model(mixture[index : index + 1])[0])


def test_scaling_the_mixture_scales_the_estimate():
    mixture = torch.randn(1, 500)
    with torch.no_grad():
        normalised, plain = tiny().eval(), tiny(normalize=False).eval()
        close(normalised(7 * mixture), 7 * normalised(mixture))
        assert not torch.allclose(plain(7 * mixture), 7 * plain(mixture), rtol=0.01)
        level = mixture.std(-1, keepdim=True)
        close(normalised(mixture), level * plain(mixture / level))


def test_the_order_of_the_paths_matters():
    mixture = torch.randn(1, 500)
    with torch.no_grad():
        assert not torch.allclose(tiny()(mixture), tiny(order="tf")(mixture))


def test_checkpointing_gives_the_same_gradients_with_dropout_on():
    mixture, results = torch.randn(1, 301), []
    for checkpointing in (False, True):
        model = tiny(activation_checkpointing=checkpointing, dropout=0.2).train()
        torch.manual_seed(5)
        model(mixture).abs().sum().backward()
        results.append([p.grad for p in model.parameters() if p.requires_grad])
    for kept, recomputed in zip(*results, strict=True):
        assert torch.equal(kept, recomputed)


def test_bfloat16_autocast_stays_close():
    model, mixture = tiny(), torch.randn(1, 900)
    truth = model(mixture)
    with torch.autocast("cpu", torch.bfloat16):
        estimate = model(mixture)
    assert estimate.dtype == torch.float32
    close(estimate, truth, 0.05)
    estimate.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_compiled_model_is_one_graph_and_gives_the_same():
    model = tiny(layers=1, activation_checkpointing=True)
    mixture = torch.randn(1, 333)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    estimate = compiled(mixture)
    close(estimate, model(mixture))
    estimate.sum().backward()
    assert model.deconv.weight.grad.isfinite().all()


@pytest.mark.parametrize(
    "options",
    [
        {"channels": 18},
        {"attention_channels": 10},
        {"ffn_channels": (8,)},
        {"kernel_shift": 5},
        {"hop": 17},
        {"order": "tt"},
        {"dropout": 1.0},
        {"num_sources": 0},
        {"n_fft": 31},
    ],
)
def test_bad_argument_is_named(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name}="):
        TFLocoformer(**{**TINY, **options})


@pytest.mark.parametrize("shape", [(100,), (1, 0), (1, 1, 100)])
def test_bad_mixture_is_refused(shape):
    with pytest.raises(ValueError, match="shape"):
        tiny()(torch.zeros(shape))


ESPNET = {
    "optim": "adamw",
    "encoder": "stft",
    "encoder_conf": {"n_fft": 64, "hop_length": 32, "win_length": None},
    "decoder": "stft",
    "decoder_conf": {"n_fft": 64, "hop_length": 32},
    "separator": "tflocoformer",
    "separator_conf": {"num_spk": 3, "n_layers": 1, "emb_dim": 8, "tf_order": "tf"},
    "model_conf": {"normalize_variance": True, "loss_type": "spectrum"},
}


def test_espnets_configuration_is_read_by_section():
    model = TFLocoformer.from_config(ESPNET, activation_checkpointing=True)
    assert (model.num_sources, model.n_fft, model.hop) == (3, 64, 32)
    assert model.order == "tf" and model.normalize and len(model.blocks) == 1
    assert model.activation_checkpointing
    assert not TFLocoformer.from_config({**ESPNET, "model_conf": {}}).normalize


@pytest.mark.parametrize(
    "change, message",
    [
        ({"separator_conf": {"lstm": 3}}, "unknown keys lstm"),
        ({"separator_conf": {"norm_type": "layernorm"}}, "norm_type='layernorm'"),
        ({"encoder_conf": {"n_fft": 64, "window": "hamming"}}, "window='hamming'"),
        ({"encoder_conf": {"n_fft": 64, "win_length": 32}}, "n_fft is both"),
        ({"decoder_conf": {"n_fft": 128}}, "n_fft is both"),
        ({"separator": "tfgridnet"}, "separator='tfgridnet'"),
    ],
)
def test_what_is_not_known_in_a_configuration_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        TFLocoformer.from_config({**ESPNET, **change})


def test_published_states_lose_their_prefix():
    state = {f"separator.{key}": value for key, value in tiny().state_dict().items()}
    tiny(1).load_state_dict(TFLocoformer.adapt_keys(state), strict=True)
    key = "separator.blocks.1.freq_path.attn.rope.freqs"
    state[key] = state[key] * 1.01
    with pytest.raises(ValueError, match="rope.freqs"):
        TFLocoformer.adapt_keys(state)
