"""The active-speech level leaves pauses out and follows the gain."""

import math

import numpy as np
import pytest

from modules.audio.levels import active_level_db, active_power


@pytest.mark.parametrize("rate", [8000, 16000])
@pytest.mark.parametrize("pause_share", [0.0, 0.3, 0.8])
def test_pauses_do_not_count(rate, pause_share):
    speech = 0.1 * np.random.default_rng(0).standard_normal(2 * rate)
    pause = np.zeros(round(2 * rate * pause_share / (1 - pause_share)))
    recording = np.concatenate([pause, speech])
    assert abs(active_level_db(recording, rate) + 20) < 0.2


def test_background_noise_16_db_down_does_not_count():
    rng = np.random.default_rng(0)
    recording = 0.1 * rng.standard_normal(32000)
    recording[8000:] *= 10 ** (-25 / 20)
    assert abs(active_level_db(recording, 8000) + 20) < 0.2


def test_level_follows_the_gain_and_ignores_the_sign():
    wave = np.random.default_rng(1).standard_normal(5000)
    for gain in (1e-3, 0.5, 40.0):
        change = active_level_db(-gain * wave, 8000) - active_level_db(wave, 8000)
        assert abs(change - 20 * math.log10(gain)) < 1e-9


def test_silence_and_a_single_sample():
    assert active_power(np.zeros(1000), 8000) == 0
    assert active_level_db(np.zeros(1000), 8000) == -math.inf
    assert active_power(np.array([0.5]), 8000) == 0.25
