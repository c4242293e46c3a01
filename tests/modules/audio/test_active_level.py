"""P.56: the level of a known tone, whatever surrounds it, as the loop would count."""

import math

import numpy as np
import pytest

from modules.audio.levels import active_level_db, p56_power


def tone(seconds: float, rate: int, rms_db: float = -20.0) -> np.ndarray:
    """A sine of known level, 1 kHz."""
    t = np.arange(round(seconds * rate)) / rate
    return math.sqrt(2) * 10 ** (rms_db / 20) * np.sin(2 * np.pi * 1000 * t)


def level_db(wave: np.ndarray, rate: int = 8000) -> float:
    return 10 * math.log10(p56_power(wave, rate))


def counted_power(wave: np.ndarray, rate: int) -> float:
    """The same, sample by sample, as the Recommendation tells it."""
    decay, hangover = math.exp(-1 / (0.03 * rate)), math.ceil(0.2 * rate)
    thresholds = [2.0**-j for j in range(1, 16)]
    active, held = [0] * 15, [hangover] * 15
    p = q = energy = 0.0
    for x in wave:
        energy += x * x
        p = decay * p + (1 - decay) * abs(x)
        q = decay * q + (1 - decay) * p
        for j, c in enumerate(thresholds):
            if q >= c:
                active[j] += 1
                held[j] = 0
            elif held[j] < hangover:
                active[j] += 1
                held[j] += 1
    points = [
        (10 * math.log10(energy / a), 20 * math.log10(c))
        for a, c in zip(active, thresholds, strict=True)
        if a
    ]
    for (a0, c0), (a1, c1) in zip(points, points[1:], strict=False):
        if a1 - c1 >= 15.9:
            share = (15.9 - (a0 - c0)) / ((a1 - c1) - (a0 - c0))
            return 10 ** ((a0 + share * (a1 - a0)) / 10)
    raise AssertionError("no crossing")


@pytest.mark.parametrize("rate", [8000, 16000])
@pytest.mark.parametrize("seed", [0, 1])
def test_it_is_what_the_loop_counts(rate, seed):
    rng = np.random.default_rng(seed)
    envelope = np.repeat(10 ** rng.uniform(-3, 0, 15), rate // 10)
    wave = 0.2 * envelope * rng.standard_normal(len(envelope))
    assert math.isclose(p56_power(wave, rate), counted_power(wave, rate), rel_tol=1e-9)


@pytest.mark.parametrize("rate", [8000, 16000])
@pytest.mark.parametrize("rms_db", [-60.0, -31.0, -20.0, 0.0, 13.0])
def test_a_tone_has_its_level(rate, rms_db):
    assert abs(level_db(tone(10, rate, rms_db), rate) - rms_db) < 0.05


@pytest.mark.parametrize("pause", [1.0, 5.0, 40.0])
@pytest.mark.parametrize("first", [True, False])
def test_the_length_of_a_pause_does_not_count(pause, first):
    silence, speech = np.zeros(round(pause * 8000)), tone(10, 8000)
    wave = np.concatenate([silence, speech] if first else [speech, silence])
    # Of 10 s only the rise of the envelope and the hangover of 0.2 s count.
    assert -0.25 < level_db(wave) + 20 < 0.02
    longer = np.concatenate([wave, np.zeros(80000)])
    if not first:
        assert abs(level_db(longer) - level_db(wave)) < 1e-9


def test_pauses_between_words_shorter_than_the_hangover_are_speech():
    words = [np.concatenate([tone(0.5, 8000), np.zeros(800)]) for _ in range(20)]
    expected = -20 + 10 * math.log10(0.5 / 0.6)
    assert abs(level_db(np.concatenate(words)) - expected) < 0.1


def test_background_noise_under_the_margin_does_not_count():
    rng = np.random.default_rng(0)
    noise = 10 ** (-60 / 20) * rng.standard_normal(160000)
    noise[:80000] += tone(10, 8000)
    assert abs(level_db(noise) + 20) < 0.25


def test_level_follows_the_gain():
    rng = np.random.default_rng(3)
    wave = np.repeat(10 ** rng.uniform(-2, 0, 30), 1600) * rng.standard_normal(48000)
    base = level_db(wave)
    for k in (-30, -3, 4):  # powers of two move every threshold alike
        assert math.isclose(level_db(-wave * 2.0**k), base + 20 * k * math.log10(2))
    for gain in (0.011, 0.7, 3.0):  # others fall between thresholds
        assert abs(level_db(gain * wave) - base - 20 * math.log10(gain)) < 0.2


def test_near_the_gate_used_for_dynamic_mixing():
    rng = np.random.default_rng(4)
    envelope = np.repeat(rng.choice([0.0, 0.3, 1.0], 60), 1600)
    wave = 0.1 * envelope * rng.standard_normal(len(envelope))
    assert abs(level_db(wave) - active_level_db(wave, 8000)) < 1.5


def test_silence_clicks_and_very_short_recordings():
    assert p56_power(np.zeros(1000), 8000) == 0
    assert p56_power(np.zeros(0), 8000) == 0
    click = np.zeros(8000)
    click[100] = 1.0
    for wave in (click, np.array([0.5]), 1e-6 * click, tone(0.01, 8000)):
        mean = np.square(wave).mean()
        assert mean * (1 - 1e-12) <= p56_power(wave, 8000) <= 2 * np.square(wave).max()
