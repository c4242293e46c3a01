"""Audio files come back as written, and a bad one is one line that names it."""

import math
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
import torchaudio

from modules.audio.io import (
    change_speed,
    frames_before_speed,
    named_waves,
    read_audio,
    resample,
    safe_name,
    write_audio,
)
from modules.runtime.errors import AudioError
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


def test_a_wave_comes_back_bit_for_bit_even_beyond_full_scale(tmp_path):
    wave_T = 3 * torch.randn(1001, generator=torch.Generator().manual_seed(0))
    write_audio(tmp_path / "new" / "a.wav", wave_T, RATE)
    assert torch.equal(read_audio(tmp_path / "new" / "a.wav"), wave_T)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.wav"]


@pytest.mark.parametrize("kind", ["PCM_16", "PCM_24", "FLOAT", "flac"])
def test_full_scale_is_one_in_every_format(tmp_path, kind):
    wave = 0.5 * tone(100).numpy()
    if kind == "flac":
        soundfile.write(tmp_path / "a.flac", wave, RATE)
        read_T = read_audio(tmp_path / "a.flac")
    else:
        soundfile.write(tmp_path / "a.wav", wave, RATE, subtype=kind)
        read_T = read_audio(tmp_path / "a.wav")
    assert np.abs(read_T.numpy() - wave).max() <= 2**-15


def test_a_crop_is_that_part_of_the_file(tmp_path):
    wave_T = torch.arange(100) / 100
    write_audio(tmp_path / "a.wav", wave_T, RATE)
    assert torch.equal(read_audio(tmp_path / "a.wav", 30, 20), wave_T[30:50])
    assert torch.equal(read_audio(tmp_path / "a.wav", 30), wave_T[30:])


@pytest.mark.parametrize("start, frames", [(90, 20), (100, None), (100, 1), (0, 0)])
def test_samples_that_are_not_there_are_an_error(tmp_path, start, frames):
    write_audio(tmp_path / "a.wav", torch.zeros(100), RATE)
    with pytest.raises(AudioError, match=r"a\.wav"):
        read_audio(tmp_path / "a.wav", start, frames)


def test_what_is_not_usable_is_named_in_one_line(tmp_path):
    stereo, slow, text = (tmp_path / name for name in ("s.wav", "r.wav", "t.wav"))
    soundfile.write(stereo, np.zeros((10, 2)), RATE)
    soundfile.write(slow, np.zeros(10), 11025)
    text.write_text("not audio")
    for path, reason in (
        (stereo, "2 channels"),
        (slow, "11025 Hz, expected 8000 Hz"),
        (text, "cannot be read as audio"),
        (tmp_path / "none.wav", "cannot be read as audio"),
    ):
        with pytest.raises(AudioError, match=reason) as error:
            read_audio(path, sample_rate=RATE)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("id_", ["a/../b", "..", "", "a b", "/etc/passwd", "ü\n"])
def test_an_id_becomes_one_harmless_file_name(tmp_path, id_):
    path = tmp_path / safe_name(id_)
    assert path.parent == tmp_path and path.resolve().parent == tmp_path.resolve()
    path.touch()
    assert [file.name for file in tmp_path.iterdir()] == [safe_name(id_)]


def test_every_wave_of_an_example_has_a_name():
    est_ST, target_ST = torch.ones(2, 5), torch.zeros(3, 5)
    waves = dict(named_waves(torch.full((5,), 2.0), est_ST, target_ST))
    assert list(waves) == [
        "mixture", "estimate_1", "estimate_2", "target_1", "target_2", "target_3"
    ]  # fmt: skip
    assert bool((waves["mixture"] == 2).all() and (waves["target_3"] == 0).all())


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
from modules.audio.io import resample
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
    monkeypatch.setattr("modules.audio.io.LARGEST_PART", 5000)
    parts_CT = resample(wave_CT, 105, 100)
    assert torch.allclose(parts_CT, whole_CT, rtol=0, atol=1e-6)
