"""Effects of augmentation: what each does to a wave, how often, and to which stem."""

import numpy as np
import pytest
import soundfile
import torch

from modules.data import effects
from modules.data.augmentation import Augmentation
from modules.data.effects import add_effects, add_noise, check_mp3, code_mp3, equalize
from modules.runtime.errors import DataError
from modules.runtime.randomness import numpy_rng

RATE = 16000
PLAIN = Augmentation()


def noise(frames: int = RATE, seed: int = 0) -> torch.Tensor:
    """Two channels of noise without the highest frequencies."""
    wave = np.random.default_rng(seed).standard_normal((2, frames + 15))
    smooth = [np.convolve(channel, np.hanning(16) / 8, "valid") for channel in wave]
    return torch.from_numpy(np.stack(smooth)).float()


def db(wave: torch.Tensor) -> float:
    return 10 * float(wave.square().mean().log10())


def test_the_equalizer_is_linear_and_stays_within_its_gain():
    wave = noise()
    out = equalize(wave, numpy_rng(1), PLAIN, RATE)
    loud = equalize(100 * wave, numpy_rng(1), PLAIN, RATE)
    assert torch.allclose(loud, 100 * out, rtol=1e-4), "nothing is clipped"
    settings = Augmentation(eq_gain_db=6.0)
    gains = []
    for seed in range(20):
        other = equalize(wave, numpy_rng(seed), settings, RATE)
        ratio = torch.fft.rfft(other) / torch.fft.rfft(wave)
        # The ends of a wave and a ratio of small numbers blur the response.
        gains += (
            (20 * ratio.abs().log10()).quantile(torch.tensor([0.05, 0.95])).tolist()
        )
    most = effects.EQ_BANDS * 6.0
    assert -most - 1 < min(gains) < -2 and 2 < max(gains) < most + 1
    still = equalize(wave, numpy_rng(1), Augmentation(eq_gain_db=0.0), RATE)
    assert torch.allclose(still, wave, atol=1e-5)


def test_noise_has_the_level_that_was_drawn():
    wave = 3 * noise()
    settings = Augmentation(noise_snr_db=(10.0, 20.0))
    found = [
        db(wave) - db(add_noise(wave, numpy_rng(seed), settings, RATE) - wave)
        for seed in range(30)
    ]
    assert 9.9 < min(found) < 12 and 18 < max(found) < 20.1
    silence = torch.zeros(2, 100)
    assert torch.equal(add_noise(silence, numpy_rng(0), settings, RATE), silence)


@pytest.mark.parametrize("frames", [1000, RATE, RATE + 1])
@pytest.mark.parametrize("compression", [0.0, 0.9])
def test_mp3_moves_and_scales_nothing(frames, compression):
    wave = 20 * noise(frames)  # far over full scale
    settings = Augmentation(mp3_compression=(compression, compression))
    coded = code_mp3(wave, numpy_rng(0), settings, RATE)
    assert coded.shape == wave.shape and not torch.equal(coded, wave)
    lags = torch.fft.irfft(torch.fft.rfft(coded[0]) * torch.fft.rfft(wave[0]).conj())
    assert int(lags.argmax()) == 0
    assert db(coded - wave) < db(wave) - 10
    silence = torch.zeros(2, frames)
    assert torch.equal(code_mp3(silence, numpy_rng(0), settings, RATE), silence)


def test_what_cannot_write_mp3_is_one_line(monkeypatch):
    check_mp3(RATE)
    with pytest.raises(DataError, match="mp3 at 1000 Hz needs .*sample rates") as error:
        check_mp3(1000)
    assert "\n" not in str(error.value) and "soundfile 0.13" in str(error.value)
    monkeypatch.setattr(soundfile, "_formats", {"WAV": 0x010000})
    with pytest.raises(DataError, match="needs soundfile 0.13"):
        check_mp3(RATE)
    # A decoder that keeps the encoder's delay.
    monkeypatch.setattr(effects, "code_mp3", lambda wave, *rest: wave.roll(1105, 1))
    with pytest.raises(DataError, match="read at another place"):
        check_mp3(RATE)


def test_each_effect_has_its_odds_and_leaves_the_others_their_draws():
    wave = noise(400)
    settings = Augmentation(reverse=0.3)
    out = [add_effects(wave, settings, RATE, 1, k) for k in range(400)]
    turned = [torch.equal(one, wave.flip(1)) for one in out]
    assert all(t or torch.equal(one, wave) for t, one in zip(turned, out, strict=True))
    assert 85 < sum(turned) < 155
    half = Augmentation(reverse=0.5, noise=0.5)
    out = [add_effects(wave, half, RATE, 1, k) for k in range(200)]
    kinds = [torch.equal(one, wave) + 2 * torch.equal(one, wave.flip(1)) for one in out]
    assert all(kinds.count(kind) > 25 for kind in (1, 2)), "one without the other"
    both = Augmentation(reverse=0.3, noise=1.0)
    for k in range(20):
        noisy = add_effects(wave, both, RATE, 1, k)
        clean = noisy - add_effects(wave, Augmentation(noise=1.0), RATE, 1, k) + wave
        near = wave.flip(1) if turned[k] else wave
        assert torch.allclose(clean, near, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"vocals": {"eqq": 0.1}},
            "expected {scale, .*, eq_gain_db: VALUE}",
        ),
        ({"vocals": 0.1}, r"per_stem=\{vocals: 0.1\}"),
        ({"vocals": {"eq": 1.5}}, "eq=1.5: expected 0 to 1"),
        ({"vocals": {"eq": "often"}}, "eq=often: expected 0 to 1"),
        ({"vocals": {"flip_sign": "no"}}, "flip_sign"),
        ({"vocals": {"remix_group": 2}}, "remix_group"),
        ({"vocals": {"scale": [1.0]}}, "scale=.*two numbers of 0 or more"),
    ],
)
def test_settings_of_a_stem_that_mean_nothing(changes, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(per_stem=changes)
