"""BS-RoFormer and Mel-Band RoFormer: equal to the published networks on every path.

The goldens in ../shared were computed by the public reference code; everything else
runs on generated signals with tiny configurations.
"""

import json

import pytest
import torch
from torch.func import functional_call

from modules.models import roformer
from modules.models.roformer import BSRoFormer, LinearAttention, MelRoFormer
from tests.modules.models.goldens import (
    check_gradients,
    check_keys,
    check_large_product,
    close,
    golden,
    read_golden,
)

TINY = {
    "channels": 12,
    "layers": 2,
    "heads": 2,
    "head_channels": 6,
    "n_fft": 64,
    "hop": 16,
    "mask_expansion": 1,
}
BANDS = {BSRoFormer: [2] * 8 + [8, 9], MelRoFormer: 8}
KINDS = pytest.mark.parametrize("kind", [BSRoFormer, MelRoFormer])


def tiny(kind, sources=("a", "b"), seed=0, **options):
    """A small model away from its initial state, where every branch counts."""
    torch.manual_seed(seed)
    model = kind(sources, bands=BANDS[kind], **{**TINY, **options})
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize(
    "name, kind, gradients",
    [
        ("bs_roformer_16x2_2stem", BSRoFormer, 15),
        ("mel_band_roformer_16x2_1stem", MelRoFormer, 16),
        ("mel_band_roformer_16x2_2stem", MelRoFormer, 16),
    ],
)
def test_outputs_and_gradients_equal_the_reference(name, kind, gradients):
    config, weights, tensors = read_golden(name)
    model = kind.from_config(config).eval()
    model.load_state_dict(weights, strict=True)
    with torch.no_grad():
        for case in ("case0", "case1"):
            estimate = model(tensors[f"{case}/mixture_BCT"])
            close(estimate, tensors[f"{case}/estimate_BSCT"])
    check_gradients(model, tensors, gradients)


@pytest.mark.parametrize(
    "name, kind, size",
    [
        ("bs_roformer", BSRoFormer, "musdb18_384x8_4stem"),
        ("bs_roformer", BSRoFormer, "viperx_317_vocals"),
        ("bs_roformer", BSRoFormer, "musdb18_192x6_1stem"),
        ("mel_band_roformer", MelRoFormer, "kj_vocals"),
        ("mel_band_roformer", MelRoFormer, "viperx_3005_vocals"),
    ],
)
def test_published_size_has_the_published_parameters(name, kind, size):
    config = json.loads(golden(f"{name}_keys.json").read_text())[size]["config"]
    with torch.device("meta"):
        check_keys(kind.from_config(config), name, size)


@KINDS
@pytest.mark.parametrize("samples", [1, 2, 31, 32, 33, 333])
@pytest.mark.parametrize("sound", ["noise", "silence", "constant"])
def test_any_length_is_finite(kind, samples, sound):
    model = tiny(kind, audio_channels=1)
    mixture = torch.full((1, 1, samples), float(sound == "constant"))
    mixture = torch.randn(1, 1, samples) if sound == "noise" else mixture
    estimate = model(mixture.requires_grad_())
    assert estimate.shape == (1, 2, 1, samples)
    assert estimate.isfinite().all()
    estimate.sum().backward()
    assert mixture.grad.isfinite().all()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


@KINDS
def test_one_source_keeps_its_axis(kind):
    assert tiny(kind, sources=["a"])(torch.randn(3, 2, 100)).shape == (3, 1, 2, 100)


@KINDS
def test_what_the_mask_leaves_is_the_last_source(kind):
    model, mixture = (
        tiny(kind, sources=["a", "b"], residual=True),
        torch.randn(2, 2, 99),
    )
    other = tiny(kind, sources=["a"])
    other.load_state_dict(model.state_dict(), strict=True)
    first = other(mixture)[:, 0]
    close(model(mixture), torch.stack([first, mixture - first], dim=1))
    with pytest.raises(ValueError, match="sources="):
        tiny(kind, sources=["a"], residual=True)


@KINDS
def test_examples_do_not_see_each_other_and_keep_their_level(kind):
    model = tiny(kind).eval()
    mixture = torch.randn(2, 2, 500) * torch.tensor([1.0, 0.01]).view(2, 1, 1)
    with torch.no_grad():
        together = model(mixture)
        for index in range(2):
            alone = mixture[index : index + 1]
            close(together[index], model(alone)[0])
            close(100 * together[index], model(100 * alone)[0])


@pytest.mark.parametrize(
    "option", [{"skip_connection": True}, {"zero_dc": False}, {"window_length": 48}]
)
def test_an_option_counts_with_the_same_weights(option):
    plain, other = tiny(MelRoFormer, layers=3), tiny(MelRoFormer, layers=3, **option)
    other.load_state_dict(plain.state_dict())
    mixture = 1 + torch.randn(1, 2, 300)
    with torch.no_grad():
        assert (plain(mixture) - other(mixture)).abs().max() > 1e-3


def test_linear_attention_is_what_the_paper_says():
    layer, x_BLD = LinearAttention(10, 2, 4, dropout=0.0), torch.randn(3, 7, 10)
    torch.nn.init.normal_(layer.temperature)
    qkv = layer.to_qkv[0](layer.norm(x_BLD))
    seen = torch.empty(3, 7, 8)
    for head in range(2):
        q, k, v = (qkv[..., 8 * n + 4 * head :][..., :4] for n in range(3))
        q, k = (part / part.norm(dim=1, keepdim=True) for part in (q, k))
        score = 8 * layer.temperature[head].exp() * q.mT @ k
        seen[..., 4 * head : 4 * head + 4] = v @ score.softmax(-1).mT
    torch.testing.assert_close(layer(x_BLD, None), layer.to_out[1](seen))


def test_linear_attention_comes_first_and_sees_all_frames():
    model = tiny(BSRoFormer, linear_layers=1, time_layers=0, band_layers=0).eval()
    assert "layers.1.0.layers.0.0.temperature" in model.state_dict()
    mixture = torch.randn(1, 2, 400)
    changed = mixture.clone()
    changed[..., :100] += torch.randn(100)
    with torch.no_grad():
        difference = (model(mixture) - model(changed))[..., 300:]
    assert difference.abs().max() > 1e-3


def test_many_sequences_are_attended_in_pieces(monkeypatch):
    model, mixture = tiny(BSRoFormer).eval(), torch.randn(2, 2, 500)
    with torch.no_grad():
        truth = model(mixture)
        monkeypatch.setattr(roformer, "ROWS", 3)
        close(model(mixture), truth)


@KINDS
def test_checkpointing_gives_the_same_gradients_with_dropout_on(kind):
    mixture, results = torch.randn(1, 2, 301), []
    shares = {"dropout": 0.2, "attention_dropout": 0.2, "linear_layers": 1}
    for checkpointing in (False, True):
        model = tiny(kind, activation_checkpointing=checkpointing, **shares).train()
        torch.manual_seed(5)
        model(mixture).abs().sum().backward()
        results.append([p.grad for p in model.parameters() if p.requires_grad])
    for kept, recomputed in zip(*results, strict=True):
        assert torch.equal(kept, recomputed)


@KINDS
def test_bfloat16_autocast_stays_close(kind):
    model, mixture = tiny(kind, linear_layers=1), torch.randn(1, 2, 900)
    truth = model(mixture)
    with torch.autocast("cpu", torch.bfloat16):
        estimate = model(mixture)
    assert estimate.dtype == torch.float32
    close(estimate, truth, 0.05)
    estimate.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_compiled_model_is_one_graph():
    model = tiny(MelRoFormer, layers=1).eval()
    mixture = torch.randn(1, 2, 333)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    close(compiled(mixture), model(mixture))


def test_frequencies_that_were_rounded_become_exact():
    model = tiny(BSRoFormer)
    truth = model.state_dict()
    half = {key: value.half() for key, value in truth.items()}
    for key, value in model.adapt_keys(half).items():
        assert torch.equal(value, truth[key] if "rotary" in key else half[key])


@pytest.mark.parametrize(
    "kind, options",
    [
        (BSRoFormer, {"head_channels": 5}),
        (BSRoFormer, {"layers": 0}),
        (BSRoFormer, {"hop": 33}),
        (BSRoFormer, {"dropout": 1.0}),
        (BSRoFormer, {"bands": [16, 16]}),
        (BSRoFormer, {"bands": [0, 33]}),
        (BSRoFormer, {"bands": 33}),
        (MelRoFormer, {"bands": [33]}),
        (MelRoFormer, {"bands": 0}),
        (MelRoFormer, {"bands": 60}),
    ],
)
def test_bad_argument_is_named(kind, options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name}="):
        kind(["a"], **{**TINY, "bands": BANDS[kind], **options})


@pytest.mark.parametrize("shape", [(2, 100), (1, 2, 0), (1, 1, 100)])
def test_bad_mixture_is_refused(shape):
    with pytest.raises(ValueError, match="2 channels"):
        tiny(BSRoFormer)(torch.zeros(shape))


def test_configurations_are_read_with_the_references_defaults():
    config = {"dim": 8, "depth": 1, "num_stems": 2, "flash_attn": True}
    model = MelRoFormer.from_config({"model": config}, activation_checkpointing=True)
    assert model.sources == ["s1", "s2"] and model.audio_channels == 1
    assert model.activation_checkpointing and model.hop == 512
    time, bands = model.layers[0]
    assert (len(time.layers), len(bands.layers)) == (2, 2)
    assert len(model.mask_estimators[0].to_freqs[0][0]) == 3  # two layers and a tanh
    named = BSRoFormer.from_config(config, sources=["vocals", "rest"])
    assert named.sources == ["vocals", "rest"]
    for unknown in ("num_bands", "use_pope"):
        with pytest.raises(ValueError, match=f"unknown {unknown}"):
            BSRoFormer.from_config({**config, unknown: 60})
    with pytest.raises(ValueError, match="channels=0"):
        BSRoFormer.from_config({"depth": 1})


def test_a_large_matrix_gives_what_a_plain_one_gives():
    layer = roformer.Linear(300, 400)
    check_large_product(
        lambda x, weight, bias: functional_call(
            layer, {"weight": weight, "bias": bias}, (x,)
        )
    )
