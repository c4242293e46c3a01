"""HTDemucs: equal to the published network, and evaluated with one fixed segment.

The goldens in ../shared were computed by PyPI demucs 4.1.0. The tests against demucs
itself need it installed (`pip install --no-deps demucs==4.1.0 einops tqdm`), which is
for development only. Everything else runs on generated signals with tiny networks.
"""

import importlib.util
import json
from fractions import Fraction

import pytest
import torch
from safetensors import safe_open

from benchmarks.models import reference_module
from modules.models.htdemucs import (
    HTDemucs,
    linear,
    pad_reflecting,
    to_spectrum,
    to_waveform,
    widened_norm,
)
from tests import SHARED
from tests.modules.models.goldens import check_large_product

SOURCES = ["drums", "bass", "other", "vocals"]
TINY = {
    "channels": 8,
    "depth": 2,
    "nfft": 256,
    "dconv_comp": 4,
    "bottom_channels": 8,
    "t_layers": 2,
    "t_heads": 2,
    "t_dropout": 0.0,
}
RATE = 1000
SEGMENT = 1200


def golden(name):
    path = SHARED / "goldens" / name
    if not path.exists():
        pytest.skip(f"golden file not found at {path}")
    return path


def moved(model, seed=0):
    """The model away from its initial state, where every branch counts."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def tiny(seed=0, **options):
    torch.manual_seed(seed)
    options = {"sources": SOURCES, **TINY, **options}
    return moved(
        HTDemucs(segment_seconds=Fraction(SEGMENT, RATE), sample_rate=RATE, **options),
        seed,
    )


def song(samples, batch=2, seed=0, channels=2):
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(batch, channels, samples, generator=generator)


def gradients(model, mixture_BCT):
    """Estimates and the gradient of every parameter, for a loss of every value."""
    model.zero_grad()
    estimate = model(mixture_BCT)
    generator = torch.Generator().manual_seed(9)
    weight = torch.randn(estimate.shape, generator=generator).to(estimate)
    (weight * estimate).sum().backward()
    return estimate.detach(), {n: p.grad.clone() for n, p in model.named_parameters()}


# -------------------------------------------------------------------- goldens


@pytest.fixture(scope="module")
def reference():
    """The golden model with its weights, and the file's tensors by name."""
    path = golden("htdemucs_8ch_4src.safetensors")
    with safe_open(str(path), "pt") as file:
        config = json.loads(file.metadata()["config"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    model = HTDemucs(sample_rate=config.pop("samplerate"), **config)
    weights = {
        key.removeprefix("weight/"): value
        for key, value in tensors.items()
        if key.startswith("weight/")
    }
    model.load_state_dict(weights, strict=True)
    return model.eval(), tensors


@pytest.mark.parametrize("case", [0, 1])
def test_outputs_equal_the_reference(reference, case):
    model, tensors = reference
    truth = tensors[f"case{case}/estimate_BSCT"]
    with torch.no_grad():
        estimate = model(tensors[f"case{case}/mixture_BCT"])
    assert estimate.shape == truth.shape
    assert (estimate - truth).abs().max() < 1e-5 * truth.abs().max()


@pytest.mark.parametrize("size", ["published", "repository_default"])
def test_published_size_has_the_published_parameters(size):
    truth = json.loads(golden("htdemucs_keys.json").read_text())[size]
    with torch.device("meta"):
        model = HTDemucs(SOURCES, **truth["config"])
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert shapes == truth["state_dict"]
    assert sum(p.numel() for p in model.parameters()) == truth["parameters"]


def test_the_defaults_are_the_published_model():
    with torch.device("meta"):
        model = HTDemucs(SOURCES)
    assert sum(p.numel() for p in model.parameters()) == 41_984_456
    assert (model.segment, model.segment_samples) == (Fraction(39, 5), 343_980)


# -------------------------------------------------------------------- PyPI demucs


def demucs(segment, **options):
    """The reference network with the weights of a seed."""
    for name in ("demucs", "einops", "tqdm"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed (development only)")
    torch.manual_seed(0)
    return reference_module("demucs.htdemucs").HTDemucs(
        SOURCES, segment=segment, **options
    )


# The levels and the frame of the published models, with fewer features.
CONFIG = {
    "channels": 16,
    "dconv_mode": 3,
    "bottom_channels": 32,
    "t_layers": 3,
    "t_heads": 4,
}


def test_a_seed_starts_both_with_equal_weights():
    theirs = demucs(Fraction(1, 2), **CONFIG)
    torch.manual_seed(0)
    ours = HTDemucs(SOURCES, (1, 2), **CONFIG)
    truth, state = theirs.state_dict(), ours.state_dict()
    assert state.keys() == truth.keys()
    assert all(torch.equal(state[key], truth[key]) for key in truth)


@pytest.mark.parametrize("samples", [1, 1000, 22049, 22050])
def test_evaluation_equals_demucs(samples):
    theirs = moved(demucs(Fraction(1, 2), **CONFIG)).eval()
    ours = HTDemucs(SOURCES, (1, 2), **CONFIG).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    with torch.no_grad():
        truth, estimate = theirs(song(samples)), ours(song(samples))
    assert (estimate - truth).abs().max() < 2e-6 * truth.abs().max()


@pytest.mark.parametrize("samples", [5000, 11025])
@pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float32, 1e-4), (torch.float64, 1e-5)]
)
def test_gradients_equal_demucs(samples, dtype, tolerance):
    # demucs computes positions and windows in float32 whatever the weights are.
    options = {**CONFIG, "t_dropout": 0.0}
    theirs = moved(demucs(Fraction(1), **options)).to(dtype)
    ours = HTDemucs(SOURCES, (1, 1), activation_checkpointing=True, **options)
    ours.to(dtype).load_state_dict(theirs.state_dict(), strict=True)
    mixture = song(samples).to(dtype)
    truth, truth_gradients = gradients(theirs.train(), mixture)
    estimate, our_gradients = gradients(ours.train(), mixture)
    assert (estimate - truth).abs().max() < 2e-6 * truth.abs().max()
    largest = max(gradient.norm() for gradient in truth_gradients.values())
    for name, gradient in truth_gradients.items():
        error = (our_gradients[name] - gradient).norm()
        # Some, such as the bias of a key, are zero but for rounding.
        assert error < tolerance * gradient.norm() + 1e-7 * largest, name


# -------------------------------------------------------------------- the segment


def test_evaluation_does_not_depend_on_the_last_training_batch():
    model = tiny()
    before = model.eval()(song(700))
    model.train()(song(333))
    model.train()(song(5000))
    assert torch.equal(model.eval()(song(700)), before)
    assert model.segment == Fraction(SEGMENT, RATE)


def test_a_short_mixture_is_padded_to_the_segment_in_evaluation_only():
    model, mixture = tiny(), song(700)
    padded = torch.nn.functional.pad(mixture, (0, SEGMENT - 700))
    whole = model.eval()(padded)
    assert torch.equal(model(mixture), whole[..., :700])
    assert not torch.allclose(model.train()(mixture), whole[..., :700], atol=1e-3)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("samples", [1, 2, 63, 64, 65, 200, 1199, 1200, 1201, 3001])
def test_any_length_gives_as_many_samples(samples, training):
    estimate = tiny().train(training)(song(samples))
    assert estimate.shape == (2, 4, 2, samples)
    assert estimate.isfinite().all()


def test_one_mono_sample_is_finite():
    model = tiny(audio_channels=1)
    estimate, grads = gradients(model.train(), song(1, channels=1))
    assert estimate.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in grads.values())


@pytest.mark.parametrize("value", [(6, 5), [6, 5], 1.2, "6/5", "1.2", Fraction(6, 5)])
def test_a_segment_is_exact_however_it_is_written(value):
    model = HTDemucs(SOURCES, value, RATE, **TINY)
    assert model.segment == Fraction(6, 5)
    assert model.segment_samples == 1200


@pytest.mark.parametrize("value", [0, -1, (1, 0), (1, 2, 3), "x", None, float("nan")])
def test_a_bad_segment_is_named(value):
    with pytest.raises(ValueError, match="segment_seconds="):
        HTDemucs(SOURCES, value, RATE, **TINY)


# -------------------------------------------------------------------- invariances


def test_examples_of_a_batch_do_not_meet():
    model, mixture = tiny().eval(), song(1500, batch=3)
    single = torch.cat([model(one[None]) for one in mixture])
    torch.testing.assert_close(model(mixture), single, rtol=1e-4, atol=1e-6)


def test_the_level_passes_through():
    model = tiny().eval()
    mixture = song(1500)
    torch.testing.assert_close(
        model(8 * mixture), 8 * model(mixture), rtol=1e-2, atol=1e-2
    )


def test_silence_is_finite_with_finite_gradients():
    estimate, grads = gradients(tiny().train(), torch.zeros(1, 2, 900))
    assert estimate.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in grads.values())


def test_the_spectrum_is_the_stft_and_inverts():
    time = torch.arange(1000, dtype=torch.float64)
    wave = torch.stack([(0.3 * time).sin(), (0.5 * time).cos()]).expand(2, -1, -1)
    spectrum = to_spectrum(wave, 64)
    assert spectrum.shape == (2, 4, 32, 63)
    stft = torch.stft(
        pad_reflecting(wave, 24, 24 + 8).flatten(0, 1),
        64,
        16,
        window=torch.hann_window(64, dtype=wave.dtype),
        center=False,
        normalized=True,
        return_complex=True,
    )[:, :-1]
    truth = torch.view_as_real(stft).permute(0, 3, 1, 2).reshape(2, 4, 32, 63)
    torch.testing.assert_close(spectrum, truth)
    # All but the highest frequency comes back, and there is little of it here.
    again = to_waveform(spectrum, 64, 1000)
    assert (again - wave)[..., 24:-24].abs().max() < 1e-3


# -------------------------------------------------------------------- training options


def test_checkpointing_changes_nothing():
    plain, lean = tiny(t_dropout=0.3), tiny(t_dropout=0.3)
    lean.activation_checkpointing = True
    torch.manual_seed(3)
    truth, truth_gradients = gradients(plain.train(), song(800))
    torch.manual_seed(3)
    estimate, our_gradients = gradients(lean.train(), song(800))
    assert torch.equal(estimate, truth)
    for name, gradient in truth_gradients.items():
        assert torch.equal(our_gradients[name], gradient), name


def test_dropout_acts_in_training_and_can_spare_the_attention():
    model, mixture = tiny(t_dropout=0.5), song(800)
    assert not torch.equal(model.train()(mixture), model(mixture))
    rates = {m.dropout for m in model.modules() if type(m).__name__ == "Attention"}
    assert rates == {0.5}
    spared = tiny(t_dropout=0.5, attention_dropout=False)
    rates = {m.dropout for m in spared.modules() if type(m).__name__ == "Attention"}
    assert rates == {0.0}
    assert not torch.equal(spared.train()(mixture), spared(mixture))
    assert torch.equal(spared.eval()(mixture), model.eval()(mixture))


@pytest.mark.parametrize("training", [False, True])
def test_bfloat16_autocast_stays_close(training):
    model, mixture = tiny().train(training), song(1200)
    truth = model(mixture)
    with torch.autocast("cpu", torch.bfloat16):
        estimate = model(mixture)
    assert estimate.dtype == torch.float32
    error = (estimate - truth).square().mean() / truth.square().mean()
    assert error < 1e-2
    estimate.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_every_parameter_learns():
    _, grads = gradients(tiny(t_layers=3).train(), song(900))
    assert all(gradient.abs().max() > 0 for gradient in grads.values())


@pytest.mark.parametrize("options", [{"t_layers": 0}, {"dconv_mode": 0}, {"depth": 1}])
def test_parts_can_be_left_out(options):
    bottom = {"bottom_channels": 0}
    assert tiny(**{**bottom, **options}).eval()(song(500)).isfinite().all()


# -------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    "options",
    [
        {"channels": 0},
        {"channels": 7.5},
        {"growth": 1.5},
        {"depth": 5},
        {"nfft": 100},
        {"nfft": 64},  # too few frequencies for two levels
        {"dconv_mode": 4},
        {"dconv_comp": 9},
        {"t_heads": 3},
        {"t_layers": True},
        {"bottom_channels": 8, "t_layers": 0},
        {"t_dropout": 1.0},
        {"audio_channels": 0},
        {"sample_rate": 44100.0},
    ],
)
def test_bad_argument_is_named(options):
    name = next(iter(options))
    with pytest.raises(ValueError, match=f"{name}="):
        HTDemucs(SOURCES, (1, 2), **{**TINY, **options})


@pytest.mark.parametrize("sources", [[], "vocals", ["a", "a"], [1, 2], [""]])
def test_bad_sources_are_refused(sources):
    with pytest.raises(ValueError, match="sources="):
        HTDemucs(sources, (1, 2), **TINY)


def test_an_argument_of_another_network_is_refused():
    with pytest.raises(TypeError, match="cac"):
        HTDemucs(SOURCES, cac=False)


@pytest.mark.parametrize("shape", [(2, 100), (1, 2, 0), (1, 1, 100), (1, 1, 2, 100)])
def test_bad_mixture_is_refused(shape):
    with pytest.raises(ValueError, match=r"expected \[batch, 2 channels"):
        tiny()(torch.zeros(shape))


def test_compiled_model_is_one_graph():
    model, mixture = tiny(t_dropout=0.0, attention_dropout=False).train(), song(700)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(mixture), model(mixture), rtol=1e-4, atol=1e-6)


def test_a_norm_after_a_matrix_needs_no_tensor_between_them():
    torch.manual_seed(0)
    widen, norm = torch.nn.Conv1d(3, 14, 1).double(), torch.nn.GroupNorm(1, 14).double()
    moved(norm)
    h_XJT = (5 + torch.randn(4, 3, 50, dtype=torch.double)).requires_grad_()
    leaves = [h_XJT, *widen.parameters(), *norm.parameters()]
    found, seen = widened_norm(h_XJT, widen, norm), norm(widen(h_XJT))
    torch.testing.assert_close(found, seen)
    weight = torch.randn_like(seen)
    for ours, plain in zip(
        torch.autograd.grad((found * weight).sum(), leaves),
        torch.autograd.grad((seen * weight).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(ours, plain)


def test_a_large_matrix_gives_what_a_plain_one_gives():
    check_large_product(linear)
