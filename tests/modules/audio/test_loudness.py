"""BS.1770 loudness: the standard's points, torchaudio, and what gating leaves out."""

import math

import numpy as np
import pytest
import torch
import torchaudio

from modules.audio.levels import loudness_db


def tone(seconds, rate, hz=997.0, amplitude=1.0):
    return amplitude * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)


@pytest.mark.parametrize(
    ("rate", "tolerance_db"), [(8000, 0.2), (16000, 0.1), (48000, 0.05)]
)
def test_a_sine_at_997_hz_has_3_db_less_than_its_peak(rate, tolerance_db):
    """Annex 1 of the standard; a low rate bends the shelf."""
    assert loudness_db(tone(2, rate), rate) == pytest.approx(-3.01, abs=tolerance_db)


@pytest.mark.parametrize("rate", [8000, 16000])
def test_as_torchaudio(rate):
    rng = np.random.default_rng(1)
    envelope_T = np.repeat(rng.uniform(0, 0.2, 40) ** 2, rate // 10)
    wave_T = rng.standard_normal(4 * rate) * envelope_T
    wave_T = np.concatenate([wave_T, np.zeros(rate), wave_T[: rate // 3]])
    expected = torchaudio.functional.loudness(torch.from_numpy(wave_T)[None], rate)
    assert loudness_db(wave_T, rate) == pytest.approx(float(expected), abs=1e-4)


def test_gain_adds_its_decibels_also_above_full_scale():
    wave_T = np.random.default_rng(2).standard_normal(16000)
    for gain_db in (-30, 0, 20):
        louder_T = wave_T * 10 ** (gain_db / 20)
        change = loudness_db(louder_T, 16000) - loudness_db(wave_T, 16000)
        assert change == pytest.approx(gain_db, abs=1e-9)


def test_pauses_do_not_count():
    voice_T = np.random.default_rng(3).standard_normal(32000) * 0.1
    pause_T = voice_T[:16000] * 0.01
    with_pauses_T = np.concatenate([voice_T, pause_T, voice_T, np.zeros(16000)])
    difference = loudness_db(with_pauses_T, 16000) - loudness_db(voice_T, 16000)
    assert abs(difference) < 0.6  # only blocks that reach into a pause


def test_silence_and_short_waves():
    assert loudness_db(np.zeros(16000), 16000) == -math.inf
    assert loudness_db(np.zeros(0), 16000) == -math.inf
    assert loudness_db(tone(1, 16000, amplitude=1e-4), 16000) == -math.inf
    assert loudness_db(tone(0.1, 16000), 16000) == pytest.approx(-3, abs=0.4)
