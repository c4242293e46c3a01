"""Losses of stems: their formulas, the reference's values, silence, levels, faults."""

import math

import pytest
import torch
from torch import Tensor

from modules.losses import stems
from modules.losses.stems import StemLosses
from modules.models.roformer import BSRoFormer, MelRoFormer
from modules.models.scnet import SCNet
from tests.modules.models.goldens import read_golden

NAMES = ("l1", "mrstft", "spec_rmse", "snr", "log_wmse", "l1_snr")
RELATIVE = ("snr", "log_wmse", "l1_snr")


def only(name: str, weight: float = 1.0) -> StemLosses:
    return StemLosses(sample_rate=44100, **{"l1": 0.0, name: weight})


def stems_of(samples: int = 5000, examples: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    target = torch.randn(examples, 3, 2, samples)
    return target + 0.1 * torch.randn_like(target), target, target.sum(1)


def stft_error(estimate: Tensor, target: Tensor, n_fft: int, hop: int, **how) -> Tensor:
    """Of spectrograms [B, S, X], by torch.stft of estimate and target."""
    both = [
        torch.stft(x.flatten(0, 2), n_fft, hop, return_complex=True, **how)
        for x in (estimate, target)
    ]
    return (both[0] - both[1]).unflatten(0, target.shape[:3]).flatten(2)


@pytest.mark.parametrize(
    ("golden", "kind", "n_fft"),
    [
        ("bs_roformer_16x2_2stem", BSRoFormer, 2048),
        ("mel_band_roformer_16x2_2stem", MelRoFormer, 1024),
    ],
)
def test_mrstft_is_the_roformers(golden, kind, n_fft, monkeypatch):
    config, weights, tensors = read_golden(golden)
    model = kind.from_config(config).eval()
    model.load_state_dict(weights)
    monkeypatch.setattr(stems, "N_FFT", n_fft)  # the code takes the network's own
    with torch.no_grad():
        estimate = model(tensors["grad/mixture_BCT"])
    loss_BS = stems.mrstft(estimate - tensors["grad/target_BSCT"])
    torch.testing.assert_close(loss_BS.mean(), tensors["grad/loss_multi_stft"])


def test_spec_rmse_is_scnets():
    config, weights, tensors = read_golden("scnet_8x4_4stem")
    model = SCNet.from_config(config).eval()
    model.load_state_dict(weights)
    with torch.no_grad():
        estimate = model(tensors["grad/mixture_BCT"])
    loss_BS = stems.spec_rmse(estimate - tensors["grad/target_BSCT"])
    torch.testing.assert_close(loss_BS.mean(), tensors["grad/loss_spec_rmse"])


@pytest.mark.parametrize("samples", [5000, 6144])
def test_each_equals_its_formula_in_plain_torch_with_its_gradient(samples):
    estimate, target, mix = stems_of(samples)
    estimate.requires_grad_()
    rmse = stft_error(
        *(estimate, target, 4096, 1024), window=torch.ones(4096), normalized=True
    )
    energy = torch.view_as_real(rmse).square()
    power = (estimate - target).square().mean((2, 3)) + 1e-6
    size = (estimate - target).abs().mean((2, 3))
    formulas = {
        "l1": size,
        "mrstft": sum(
            stft_error(
                *(estimate, target, max(window, 2048), 147),
                **{"win_length": window, "window": torch.hann_window(window)},
            )
            .abs()
            .mean(2)
            for window in (4096, 2048, 1024, 512, 256)
        ),
        "spec_rmse": energy.mean((2, 3)).sqrt(),
        "snr": 10 * torch.log10(power / (target.square().mean((2, 3)) + 1e-6)),
        "l1_snr": 10 * torch.log10((size + 1e-3) / (target.abs().mean((2, 3)) + 1e-3)),
    }
    above_BS = torch.randn(2, 3)  # each stem's gradient is its own
    for name, expected_BS in formulas.items():
        loss_BS = only(name)(estimate, target, mix)
        torch.testing.assert_close(loss_BS, expected_BS, rtol=2e-5, atol=2e-5)
        gradients = [
            torch.autograd.grad((loss * above_BS).sum(), estimate, retain_graph=True)[0]
            for loss in (loss_BS, expected_BS)
        ]
        near = 1e-4 * float(gradients[1].abs().max())
        torch.testing.assert_close(*gradients, rtol=0, atol=near)


def test_log_wmse_weighs_frequencies_as_hearing_does():
    def tone(hz: float, level: float = 1.0) -> Tensor:
        time = torch.arange(44032) / 44100
        return level * torch.sin(2 * math.pi * hz * time).expand(1, 1, 2, -1)

    mix_BCT = tone(1000)[:, 0]

    def loss(error: Tensor) -> float:
        return float(only("log_wmse")(error, torch.zeros_like(error), mix_BCT))

    assert loss(tone(1000, 0.1)) == pytest.approx(4 * math.log(0.01), abs=0.01)
    # 6.3 dB less sensitive at 100 Hz than at 1 kHz: the filter that is on PyPI.
    expected = 4 * math.log(0.01 * 10**-0.63)
    assert loss(tone(100, 0.1)) == pytest.approx(expected, abs=0.3)
    assert loss(tone(18000, 0.1)) < loss(tone(100, 0.1)) < loss(tone(3000, 0.1))
    assert loss(tone(1000, 0)) == pytest.approx(4 * math.log(1e-8))


def test_the_default_has_the_bits_of_l1():
    estimate, target, mix = stems_of()
    estimate.requires_grad_()
    losses = [StemLosses(44100)(estimate, target, mix)]
    losses.append((estimate.float() - target).abs().mean((2, 3)))
    gradients = [torch.autograd.grad(loss.sum(), estimate)[0] for loss in losses]
    assert torch.equal(*losses) and torch.equal(*gradients)


def test_the_sum_is_weighted():
    estimate, target, mix = stems_of()
    whole = StemLosses(44100, l1=2, mrstft=0.5, snr=0.1)(estimate, target, mix)
    parts = {"l1": 2, "mrstft": 0.5, "snr": 0.1}
    expected = sum(w * only(n)(estimate, target, mix) for n, w in parts.items())
    torch.testing.assert_close(whole, expected)
    for wrong in ({"l1": 0}, {"mrstft": -1}):
        with pytest.raises(ValueError, match="weights of 0 or more, not only 0"):
            StemLosses(44100, **wrong)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_better_than_the_target(name):
    estimate, target, mix = stems_of()
    target[0, 0] = 0
    loss = only(name)
    best = loss(target, target, mix)
    assert (best < loss(estimate, target, mix)).all()
    if name not in RELATIVE:
        torch.testing.assert_close(best, torch.zeros(2, 3), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("samples", [1, 700, 5000])
def test_silence_has_a_finite_gradient_at_any_length(name, samples):
    target = torch.randn(1, 3, 2, samples)
    target[:, 0] = 0
    estimate = target.clone()
    estimate[:, 2] += 0.1
    estimate.requires_grad_()
    for mix in (target.sum(1), torch.zeros(1, 2, samples)):
        loss_BS = only(name)(estimate, target, mix)
        (gradient,) = torch.autograd.grad(loss_BS.sum(), estimate)
        assert loss_BS.isfinite().all() and gradient.isfinite().all()
        assert gradient[:, 2].any() and not gradient[:, :2].any()


@pytest.mark.parametrize("name", NAMES)
def test_a_common_level_changes_a_loss_as_it_should(name):
    waves = stems_of()
    plain, louder = (only(name)(*(g * x for x in waves)) for g in (1, 10))
    expected = plain if name in RELATIVE else 10 * plain
    torch.testing.assert_close(louder, expected, rtol=1e-3, atol=0.05)
    assert StemLosses(44100, **{name: 1}).is_relative == (name in RELATIVE)


def test_a_shift_of_the_phase_alone_counts():
    time = torch.arange(9000) / 44100
    waves = [torch.sin(2 * math.pi * 440 * time + shift) for shift in (0.0, 0.5)]
    error = (waves[1] - waves[0]).expand(1, 1, 2, -1)
    assert float(stems.mrstft(error)) > 1


@pytest.mark.parametrize("name", NAMES)
def test_faults_stay_with_their_example(name):
    estimate, target, mix = stems_of(examples=3)
    alone = only(name)(estimate[2:], target[2:], mix[2:])
    estimate[0, 1, 0, 7] = math.nan
    estimate[1] = math.inf
    estimate.requires_grad_()
    loss_BS = only(name)(estimate, target, mix)
    assert not loss_BS[0, 1].isfinite() and not loss_BS[1].isfinite().any()
    torch.testing.assert_close(loss_BS[2:], alone)
    loss_BS[2].sum().backward()
    assert estimate.grad[2].isfinite().all()
