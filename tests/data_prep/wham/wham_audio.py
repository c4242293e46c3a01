"""Small WSJ0-mix and noise folders, for the tests of WHAM! and WHAMR!."""

from pathlib import Path

import numpy as np
import soundfile
from scipy.signal import resample_poly

NAMES = ("01aa0101_1.5_02ba0102_-1.5", "03ca0103_0.2_04da0104_-0.2")
SECONDS = {NAMES[0]: (1.1, 0.8), NAMES[1]: (0.7, 1.3)}


def talker(rng: np.random.Generator, frames: int) -> np.ndarray:
    """Band-limited noise in bursts: enough like speech to be loud now and then."""
    wave_T = np.convolve(rng.standard_normal(frames), np.hanning(9), "same")
    syllables_T = np.sin(2 * np.pi * 3 * np.arange(frames) / 16000) > -0.5
    return 0.05 * wave_T * syllables_T


def make_wsj0mix(root: Path) -> Path:
    """All versions of two mixtures a split: s1 and s2, int16, at equal lengths."""
    rng = np.random.default_rng(0)
    for split in ("tr", "cv", "tt"):
        for name, seconds in SECONDS.items():
            # An odd number of samples: its half at 8 kHz is rounded up.
            waves = [talker(rng, round(s * 16000) + 1) for s in seconds]
            for mode, length in (("min", min(seconds)), ("max", max(seconds))):
                frames = round(length * 16000) + 1
                for k, wave_T in enumerate(waves):
                    wave_T = np.pad(wave_T, (0, max(0, frames - len(wave_T))))[:frames]
                    for rate in (8000, 16000):
                        path = root / f"wav{rate // 1000}k" / mode / split / f"s{k + 1}"
                        path.mkdir(parents=True, exist_ok=True)
                        pcm_T = np.round(2**15 * resample_poly(wave_T, rate, 16000))
                        pcm_T = pcm_T.astype(np.int16)
                        soundfile.write(path / f"{name}.wav", pcm_T, rate)
    return root


def make_noise(root: Path, seconds: float = 6.0, names=("hum", "rain")) -> Path:
    """Two stereo recordings a split, 16 kHz; the right channel is not the left."""
    rng = np.random.default_rng(1)
    for split in ("tr", "cv", "tt"):
        (root / split).mkdir(parents=True, exist_ok=True)
        for name in names:
            wave_TC = 0.02 * rng.standard_normal((round(seconds * 16000), 2))
            soundfile.write(root / split / f"{name}.wav", wave_TC, 16000, "FLOAT")
    return root
