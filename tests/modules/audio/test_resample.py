"""Resampling is torchaudio's on any number of threads; speed moves pitch and length."""

import math
import subprocess
import sys

import pytest
import torch
import torchaudio

from modules.audio.resample import (
    change_speed,
    frames_before_speed,
    resample,
    resample_blocks,
)
from tests import ROOT

RATE = 8000


def tone(frequency: float, seconds: float = 1.0, sample_rate: int = RATE):
    time_T = torch.arange(round(seconds * sample_rate)) / sample_rate
    return torch.sin(2 * math.pi * frequency * time_T)


def loudest_frequency(wave_T: torch.Tensor, sample_rate: int = RATE) -> float:
    """Frequency in Hz of the strongest bin."""
    windowed_T = wave_T * torch.hann_window(len(wave_T))
    peak = torch.fft.rfft(windowed_T).abs().argmax()
    return float(peak) * sample_rate / len(wave_T)


def test_resampling_keeps_a_tone_and_removes_what_would_alias():
    wave_T = tone(1000, sample_rate=16000)
    assert loudest_frequency(resample(wave_T, 16000, RATE)) == pytest.approx(1000, 0.01)
    high_T = resample(tone(6000, sample_rate=16000), 16000, RATE)
    assert float(high_T[200:-200].abs().max()) < 0.01


@pytest.mark.parametrize("percent", [95, 105, 133])
def test_speed_moves_length_and_pitch_together(percent):
    wave_T = tone(1000)
    fast_T = change_speed(wave_T, percent)
    assert len(fast_T) == math.ceil(len(wave_T) * 100 / percent)
    assert loudest_frequency(fast_T) == pytest.approx(10 * percent, rel=0.005)


def test_full_speed_is_the_same_wave():
    wave_T = tone(1000)
    assert change_speed(wave_T, 100) is wave_T


@pytest.mark.parametrize("percent", [50, 95, 100, 105, 133])
@pytest.mark.parametrize("wanted", [1, 799, 8000])
def test_enough_is_read_before_a_speed_change(percent, wanted):
    frames = frames_before_speed(wanted, percent)
    # One sample of input more than needed, at most.
    most = wanted + math.ceil(100 / percent)
    assert wanted <= len(change_speed(torch.zeros(frames), percent)) <= most


@pytest.mark.parametrize(
    ("from_rate", "to_rate"),
    [(105, 100), (95, 100), (16000, 8000), (8000, 16000), (44100, 16000), (3, 3)],
)
@pytest.mark.parametrize("frames", [1, 20, 999, 40000])
def test_resample_is_torchaudios(from_rate, to_rate, frames):
    wave_CT = torch.rand(2, frames, generator=torch.Generator().manual_seed(frames))
    expected_CT = torchaudio.functional.resample(wave_CT, from_rate, to_rate)
    resampled_CT = resample(wave_CT, from_rate, to_rate)
    assert resampled_CT.shape == expected_CT.shape
    assert torch.allclose(resampled_CT, expected_CT, rtol=0, atol=1e-5)
    double_CT = resample(wave_CT.double(), from_rate, to_rate)
    assert (double_CT - expected_CT).abs().max() < 1e-5


THREADS_SCRIPT = """
import torch
from modules.audio.resample import (
    change_speed,
    frames_before_speed,
    resample,
    resample_blocks,
)
from tests import ROOT

for rates in ((105, 100), (95, 100), (140, 100), (2, 1), (21, 10), (44100, 16000)):
    for frames in (1, 500, 700, 2000, 32003, 70001):
        wave_T = torch.rand(frames)
        torch.set_num_threads(1)
        expected_T = resample(wave_T, *rates)
        for threads in (2, 3, 4, 8):
            torch.set_num_threads(threads)
            same = torch.equal(resample(wave_T, *rates), expected_T)
            assert same, (rates, frames, threads)
"""


def test_resample_gives_the_same_bits_on_any_number_of_threads():
    # In a process of its own: set_num_threads breaks MKL's batched solvers (torch 2.14)
    subprocess.run([sys.executable, "-c", THREADS_SCRIPT], cwd=ROOT, check=True)


def test_long_audio_is_resampled_in_parts(monkeypatch):
    wave_CT = torch.rand(2, 70001, generator=torch.Generator().manual_seed(1))
    whole_CT = resample(wave_CT, 105, 100)
    monkeypatch.setattr("modules.audio.resample.LARGEST_PART", 5000)
    parts_CT = resample(wave_CT, 105, 100)
    assert torch.allclose(parts_CT, whole_CT, rtol=0, atol=1e-6)


@pytest.mark.parametrize("rates", [(8000, 16000), (44100, 8000), (11025, 44100)])
@pytest.mark.parametrize("samples", [1, 999, 5003])
@pytest.mark.parametrize("block", [1, 700, 10_000])
def test_blocks_behind_each_other_are_resampled_as_one(rates, samples, block):
    wave_CT = torch.randn(2, samples)
    if block == 1:
        wave_CT = wave_CT[:, :300]
    blocks = resample_blocks(wave_CT.split(block, dim=-1), *rates)
    whole = resample(wave_CT, *rates)
    torch.testing.assert_close(torch.cat(list(blocks), -1), whole, atol=2e-6, rtol=0)
