"""Each measure is its formula, written out plainly, or what its package says.

Shapes: S source, C channel, T sample.
"""

import importlib.util
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from modules.losses.stems import HEARING
from modules.metrics.measures import MUSIC, SPEECH, check_metrics, of_column
from modules.metrics.scores import score_example, score_song
from modules.runtime.errors import HparamsError

RATE = 16000


def tone(hertz: float, seconds: float = 0.5, rate: int = RATE) -> Tensor:
    t_T = torch.arange(round(seconds * rate), dtype=torch.double) / rate
    return 0.1 * torch.sin(2 * math.pi * hertz * t_T)


def song(samples: int = 9000) -> tuple[Tensor, Tensor]:
    """An estimate and a target of two stereo stems, coloured and of other levels."""
    generator = np.random.default_rng(0)
    steps = generator.standard_normal((2, 2, samples))
    target = np.cumsum(steps, axis=2) / 500 + 0.02 * steps
    est = 0.9 * target + 0.02 * generator.standard_normal(target.shape)
    return torch.from_numpy(est), torch.from_numpy(target)


def scored(metrics: list[str], est: Tensor, target: Tensor) -> dict[str, float | None]:
    return score_song(est, target, target.sum(0), RATE, ["a", "b"], metrics)


def spectra(wave: np.ndarray, size: int, window: np.ndarray, mode: str) -> np.ndarray:
    """Magnitudes [C, L, F] of frames 1024 apart, the first centred on sample 0."""
    padded = np.pad(wave, ((0, 0), (size // 2, size // 2)), mode=mode)
    frames = np.lib.stride_tricks.sliding_window_view(padded, size, axis=1)[:, ::1024]
    return np.abs(np.fft.rfft(frames * window))


def test_snr_and_si_sdr_are_one_ratio_over_the_channels():
    est, target = song()
    scores = scored(["snr", "si_sdr"], est, target)
    for name, e, t in zip("ab", est.numpy(), target.numpy(), strict=True):
        snr = 10 * np.log10((t**2).sum() / ((t - e) ** 2).sum())
        assert scores[f"snr_{name}"] == pytest.approx(snr)
        wanted = (e * t).sum() / (t * t).sum() * t
        si_sdr = 10 * np.log10((wanted**2).sum() / ((e - wanted) ** 2).sum())
        assert scores[f"si_sdr_{name}"] == pytest.approx(si_sdr)
    louder = scored(["snr", "si_sdr"], 7 * est, target)
    assert louder["si_sdr"] == pytest.approx(scores["si_sdr"])
    assert louder["snr"] < scores["snr"] - 10


@pytest.mark.parametrize("samples", [9000, 1024, 1])
def test_l1_freq_is_that_of_magnitudes_without_a_window(samples):
    est, target = song(samples)
    scores = scored(["l1_freq"], est, target)
    short = ((0, 0), (0, max(0, 1025 - samples)))  # too short to be reflected
    for name, *pair in zip("ab", est.numpy(), target.numpy(), strict=True):
        padded = (np.pad(wave, short) for wave in pair)
        e, t = (spectra(wave, 2048, np.ones(2048), "reflect") for wave in padded)
        wanted = 100 / (1 + 10 * np.abs(e - t).mean())
        assert scores[f"l1_freq_{name}"] == pytest.approx(wanted, rel=1e-4)


def slaney_bank(bands: int, size: int) -> np.ndarray:
    """Triangles [bands, F] of area 1: linear to 1 kHz, then 27 for a ratio of 6.4."""

    def hertz(mel: float) -> float:
        return mel * 200 / 3 if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27)

    top = 15 + 27 * math.log(RATE / 2 / 1000) / math.log(6.4)
    edges = [hertz(mel) for mel in np.linspace(0, top, bands + 2)]
    bins = np.fft.rfftfreq(size, 1 / RATE)
    triangles = [
        np.minimum((bins - low) / (middle - low), (high - bins) / (high - middle))
        * (2 / (high - low))
        for low, middle, high in zip(edges, edges[1:], edges[2:], strict=False)
    ]
    return np.maximum(triangles, 0)


def test_bleedless_and_fullness_are_the_excess_and_the_lack_of_mel_decibels():
    est, target = song()
    scores = scored(["bleedless", "fullness"], est, target)
    bank, window = slaney_bank(512, 4096), np.hanning(4097)[:-1]
    for name, *pair in zip("ab", est.numpy(), target.numpy(), strict=True):
        levels = []
        for wave in pair:
            mel = spectra(wave, 4096, window, "constant") @ bank.T
            level = 20 * np.log10(np.maximum(mel, 1e-10))
            levels.append(np.maximum(level, level.max() - 80))
        difference = levels[0] - levels[1]
        bleed = difference[difference > 0].mean()
        lack = -difference[difference < 0].mean()
        assert scores[f"bleedless_{name}"] == pytest.approx(100 / (1 + bleed), rel=1e-3)
        assert scores[f"fullness_{name}"] == pytest.approx(100 / (1 + lack), rel=1e-3)
    rest = target.clone()
    rest[..., 5000:] = 0
    scores = scored(["bleedless", "fullness"], rest, target)
    assert scores["fullness"] < 10 < scores["bleedless"], "it lacks half"


@pytest.mark.parametrize("rate", [8000, 44100])
def test_log_wmse_weighs_the_error_as_hearing_does(rate):
    low, high = tone(100, 1, rate), tone(2000, 1, rate)
    target = torch.stack([low, high])[:, None]
    mix = target.sum(0)
    heard = {100: 10 ** (-4.76 / 20), 2000: 10 ** (HEARING[2000] / 20)}
    for hertz, wave in ((100, low), (2000, high)):
        est = target + 0.1 * wave
        scores = score_song(est, target, mix, rate, ["a", "b"], ["log_wmse"])
        power = (0.1 * heard[hertz]) ** 2 / sum(gain**2 for gain in heard.values())
        assert scores["log_wmse"] == pytest.approx(-4 * math.log(power), abs=0.05)
    perfect = score_song(target, target, mix, rate, ["a", "b"], ["log_wmse"])
    assert perfect["log_wmse"] == pytest.approx(-4 * math.log(1e-8))


def test_a_stem_that_is_not_finite_has_no_finite_score_by_any_measure():
    est, target = song()
    est[1, 0, 7] = math.nan
    scores = scored(list(MUSIC), est, target)
    assert all(math.isnan(scores[name]) for name in MUSIC)
    assert all(math.isnan(scores[f"{name}_b"]) for name in MUSIC)
    assert math.isfinite(scores["bleedless_a"])


def test_every_speech_score_and_its_improvement_follow_the_assignment():
    _, target = song()
    target = target[:, 0]
    est = (target + 0.05 * torch.randn(2, 9000).double()).flip(0)
    mix = target.sum(0)
    own = [name for name in SPEECH if not SPEECH[name].package]
    names = [*own, *(f"{name}_i" for name in own)]
    scores = score_example(est, target, mix, RATE, names)
    assert list(scores) == names
    before = score_example(mix.expand(2, -1), target, mix, RATE, own)
    for name in own:
        gain = scores[name] - before[name]
        assert scores[f"{name}_i"] == pytest.approx(gain), name


def test_stoi_and_pesq_get_target_and_estimate_and_may_refuse(monkeypatch):
    calls = []

    def stoi(true: np.ndarray, est: np.ndarray, rate: int) -> float:
        calls.append((true[0], est[0], rate))
        if len(true) < 100:
            raise ValueError("axis 1 is out of bounds")
        return 0.75

    def pesq(rate: int, true: np.ndarray, est: np.ndarray, mode: str) -> float:
        calls.append((true[0], est[0], rate, mode))
        return 3.5

    monkeypatch.setitem(sys.modules, "pystoi", SimpleNamespace(stoi=stoi))
    monkeypatch.setitem(sys.modules, "pesq", SimpleNamespace(pesq=pesq))
    wave = tone(300, 21) + 0.25
    for rate, mode in ((8000, "nb"), (16000, "wb")):
        for samples, values in ((8000, (0.75, 3.5)), (50, (None, 3.5))):
            true = wave[None, :samples]
            names = ["stoi", "pesq", "pesq_i"]
            scores = score_example(0.5 * true, true, true[0], rate, names)
            assert tuple(scores.values()) == (*values, 0.0)
        assert calls[-2:] == [
            (0.25, 0.125, rate, mode),
            (0.25, 0.25, rate, mode),
        ], "of the estimate, then of the mixture"
    scores = score_example(wave[None], wave[None], wave, RATE, ["pesq"])
    assert scores == {"pesq": None}, "its code crashes on long files"


@pytest.mark.parametrize("name", ["stoi", "pesq"])
def test_the_packages_agree_where_they_are_installed(name):
    pytest.importorskip(SPEECH[name].package)
    noise = torch.from_numpy(np.random.default_rng(1).standard_normal((2, 32000)))
    target = noise[:1] * (torch.arange(32000) % 4000 < 3000) * 0.1
    clean = score_example(target, target, target[0], RATE, [name])
    assert clean[name] == pytest.approx({"stoi": 1, "pesq": 4.64}[name], abs=0.01)
    loud = score_example(target + 0.1 * noise[1:], target, target[0], RATE, [name])
    assert loud[name] < 0.9 * clean[name]
    short = score_example(target[:, :50], target[:, :50], target[0, :50], RATE, [name])
    assert short == {name: None}


def test_what_a_run_could_not_compute_at_its_end_is_refused_at_its_start(monkeypatch):
    def refused(table: dict, names: list[str], rate: int = 8000) -> str:
        with pytest.raises(HparamsError) as error:
            check_metrics(names, table, rate)
        return str(error.value)

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert refused(SPEECH, ["sdr", "stoi_i"]) == (
        "metrics: stoi_i needs a package: pip install pystoi"
    )
    assert refused(SPEECH, ["pesq"], 44100) == (
        "metrics: pesq is defined at 8000 and 16000 Hz, not at 44100"
    )
    assert refused(MUSIC, ["stoi"]).startswith("metrics: stoi is unknown; known: nsdr,")
    assert refused(MUSIC, ["sdr_i"]).startswith("metrics: sdr_i is unknown")
    assert "si_snr_i, sdr_i" in refused(SPEECH, ["sisdr"])
    check_metrics(["si_sdr_i", "fullness"], SPEECH, 44100)


def test_a_column_is_written_by_its_metric():
    titles = {
        "si_snr": "SI-SNR",
        "si_sdr_i": "SI-SDRi",
        "nsdr_drums": "nSDR drums",
        "l1_freq_low_bass": "L1 freq low_bass",
        "loss": "loss",
        "sdrx": "sdrx",
    }
    assert {column: of_column(column)[1] for column in titles} == titles
    assert of_column("pesq_i")[0].unit == "MOS" and of_column("sdrx")[0] is None
