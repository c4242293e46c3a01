"""Pitch and tempo, by what they do to tones and clicks."""

import numpy as np
import pytest
import torch
from torch import Tensor

from modules.audio.pitch import change_pitch_and_tempo

RATE = 22050


def tones(seconds: float = 3.0) -> Tensor:
    """440 Hz left, 1000 Hz right, at half the level."""
    time = torch.arange(round(seconds * RATE)) / RATE
    left, right = (torch.sin(2 * torch.pi * hertz * time) for hertz in (440, 1000))
    return torch.stack([left, 0.5 * right])


def frequency(wave_T: Tensor) -> float:
    """Of the strongest component of the middle, by a parabola through three bins."""
    middle = wave_T[RATE // 2 : -RATE // 2].double().numpy()
    spectrum = np.log(np.abs(np.fft.rfft(middle * np.hanning(len(middle)))) + 1e-12)
    k = int(spectrum.argmax())
    a, b, c = spectrum[k - 1 : k + 2]
    return (k + 0.5 * (a - c) / (a - 2 * b + c)) * RATE / len(middle)


@pytest.mark.parametrize(
    ("semitones", "tempo"),
    [(2, 1), (-2, 1), (0, 1.12), (0, 0.88), (-6, 0.95), (6, 2.0), (1, 1.05)],
)
def test_frequency_length_and_level(semitones, tempo):
    wave_CT = tones()
    changed_CT = change_pitch_and_tempo(wave_CT, RATE, semitones, tempo)
    assert changed_CT.shape == (2, round(wave_CT.shape[-1] / tempo))
    assert changed_CT.dtype == torch.float32
    for channel, hertz in enumerate((440, 1000)):
        expected = hertz * 2 ** (semitones / 12)
        cents = 1200 * np.log2(frequency(changed_CT[channel]) / expected)
        assert abs(cents) < 10
    level_db = 20 * torch.log10(changed_CT.std(-1) / wave_CT.std(-1))
    assert level_db.abs().max() < 1


@pytest.mark.parametrize("tempo", [0.88, 1.12, 2.0])
def test_what_sounded_at_t_sounds_at_t_over_tempo(tempo):
    wave_CT = torch.zeros(2, 4 * RATE)
    wave_CT[:, 2 * RATE] = 1
    changed_CT = change_pitch_and_tempo(wave_CT, RATE, 0, tempo)
    moment = int(changed_CT[0].abs().argmax()) / RATE
    assert moment == pytest.approx(2 / tempo, abs=0.005)


def test_the_same_each_time_and_nothing_for_no_change():
    wave_CT = tones(1.0)
    once, again = (change_pitch_and_tempo(wave_CT, RATE, 2, 1.1) for _ in range(2))
    assert torch.equal(once, again)
    assert change_pitch_and_tempo(wave_CT, RATE) is wave_CT


def test_very_short_and_mono():
    assert change_pitch_and_tempo(torch.ones(1, 10), RATE, 0, 1.1).shape == (1, 9)


@pytest.mark.parametrize(("semitones", "tempo"), [(0, 0), (0, 5), (25, 1)])
def test_refused(semitones, tempo):
    with pytest.raises(ValueError, match="expected 0.25 to 4 and -24 to 24"):
        change_pitch_and_tempo(tones(0.1), RATE, semitones, tempo)
