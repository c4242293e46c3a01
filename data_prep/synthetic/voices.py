"""Make speech-like sound with numpy: a source-filter model with frames of 8 ms.

A talker is a `Voice`: pitch, length of the vocal tract, spectral tilt, rate and
breathiness. An utterance is a chain of syllables in phrases with pauses between them.
Its phones set targets for formants, voicing and noise; the targets, smoothed as
articulators move, steer two excitations (band-limited pulses and noise) through the
cascade of resonators of a vocal tract (Fant, Acoustic Theory of Speech Production,
1960; targets near Peterson and Barney's means for men, 1952). Frames overlap by three
quarters, so nothing switches on or off within less than 32 ms and there are no clicks.

Legend: T sample, L frame, F frequency bin.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

FRAME_SECONDS = 0.008
OVERLAP = 4  # frames under one window


class Phone(NamedTuple):
    """Targets of a phone: F1-F3 in Hz, gains of voice and noise, length in ms."""

    f1: float
    f2: float
    f3: float
    voice: float
    noise: float
    ms: float
    noise_hz: float = 0.0  # where the noise is strongest; 0: it excites the formants


def _read_phones(table: str) -> tuple[tuple[Phone, ...], ...]:
    """Read a name and the phones that it stands for from each line."""
    return tuple(
        tuple(Phone(*map(float, phone.split())) for phone in line.split(":")[1:])
        for line in table.strip().splitlines()
    )


VOWELS = _read_phones("""
    i : 280 2250 2950 0.8 0 105
    I : 400 1950 2550 0.9 0 85
    E : 540 1800 2480 1.0 0 95
    ae: 670 1680 2410 1.0 0 130
    a : 720 1120 2440 1.0 0 135
    O : 570 860 2410 1.0 0 130
    U : 440 1020 2260 0.9 0 85
    u : 310 880 2250 0.8 0 105
    V : 630 1200 2390 1.0 0 80
    3r: 490 1360 1700 0.9 0 110
    @ : 500 1480 2500 0.7 0 55
""")

# An onset is one phone, or a closure, a burst and a little breath after it.
ONSETS = _read_phones("""
    m : 260 1050 2150 0.30 0 65
    n : 260 1500 2500 0.30 0 60
    l : 350 1080 2600 0.50 0 60
    r : 320 1250 1650 0.45 0 60
    w : 290 700 2200 0.50 0 55
    j : 270 2200 2950 0.45 0 50
    s : 400 1600 2500 0 0.45 100 5200
    sh: 400 1700 2400 0 0.32 100 2900
    f : 350 1200 2300 0 0.10 80 4200
    z : 300 1600 2500 0.20 0.2 65 4600
    v : 320 1150 2300 0.28 0.05 55 3800
    h : 520 1500 2500 0 0.10 55
    b : 300 1500 2500 0.04 0 55 : 280 900 2200 0.2 0.06 12 900
    d : 300 1500 2500 0.04 0 55 : 280 1750 2600 0.2 0.08 14 3200
    g : 300 1500 2500 0.04 0 55 : 280 2000 2300 0.2 0.08 18 1900
    p : 300 1500 2500 0 0 55 : 400 900 2200 0 0.10 12 900 : 450 1100 2300 0 0.06 30
    t : 300 1500 2500 0 0 55 : 400 1750 2600 0 0.16 14 3600 : 450 1700 2600 0 0.07 35
    k : 300 1500 2500 0 0 55 : 400 1900 2300 0 0.14 18 1800 : 450 1800 2400 0 0.07 40
""")

NO_ONSET = 0.12
CODA = 0.35
PAUSE = Phone(500, 1500, 2500, 0, 0, 220)


@dataclass(frozen=True)
class Voice:
    """The traits that tell one talker from another."""

    pitch: float  # mean fundamental frequency in Hz
    tract: float  # formants relative to those of a man of mean height; a child: 1.3
    tilt: float  # fall of the glottal spectrum above 100 Hz in dB per octave
    rate: float  # speed of talking; 1 is about 4.5 syllables a second
    breath: float  # noise relative to the pulses
    melody: float  # standard deviation of the pitch in semitones


def make_voices(count: int, seed: int = 0) -> list[Voice]:
    """Return different voices that cover the range of adults evenly, low ones first.

    >>> [round(voice.pitch) for voice in make_voices(3)]
    [85, 146, 250]
    """
    rng = np.random.default_rng([seed, 1])
    height = np.linspace(0, 1, count) if count > 1 else np.array([0.5])
    # High voices mostly have short tracts, but not as a rule: golden-ratio steps
    # fill the second axis evenly whatever the count.
    other = (np.arange(count) * 0.618034 + 0.3) % 1
    voices = []
    for high, free in zip(height, other, strict=True):
        tilt, rate, breath, melody = rng.uniform(size=4)
        voices.append(
            Voice(
                pitch=85 * (250 / 85) ** high,
                tract=0.90 + 0.16 * high + 0.14 * free,
                tilt=6.5 + 2.5 * tilt,
                rate=0.85 + 0.35 * rate,
                breath=0.01 + 0.04 * breath,
                melody=1.3 + 1.4 * melody,
            )
        )
    return voices


def speak(
    voice: Voice, seconds: float, sample_rate: int, rng: np.random.Generator
) -> np.ndarray:
    """Draw an utterance: float64 [T], T = round(seconds * sample_rate), RMS 0.05.

    It has a short silence at either end; `sample_rate` is 8000 Hz or more.
    """
    num_frames = round(seconds / FRAME_SECONDS)
    hop = round(FRAME_SECONDS * sample_rate)
    phones_L, accent_L = _choose_phones(voice, num_frames, rng)
    voiced_T = _pulses(_pitch_track(voice, accent_L, rng), hop, sample_rate)
    noise_T = rng.standard_normal(num_frames * hop)

    tracks_KL = np.array(phones_L).T
    formants_L3 = _smooth(tracks_KL[:3], 9).T * voice.tract
    voice_L, noise_L = _smooth(tracks_KL[3:5], 3)
    voice_L = voice_L * 10 ** (rng.normal(0, 1.0, num_frames) / 20)  # shimmer

    frequency_F = np.fft.rfftfreq(2 * OVERLAP * hop, 1 / sample_rate)
    tract_LF = _vocal_tract(formants_L3, voice.tract, frequency_F)
    tract_LF *= _glottis(voice.tilt, frequency_F)
    noise_LF = tract_LF * (voice.breath * voice_L + noise_L)[:, None].astype(np.float32)
    noise_hz_L = tracks_KL[-1]
    rubbing_L = noise_hz_L > 0
    friction_LF = _friction(noise_hz_L[rubbing_L] * voice.tract, frequency_F)
    noise_LF[rubbing_L] = friction_LF * noise_L[rubbing_L, None]
    voice_LF = tract_LF * voice_L[:, None].astype(np.float32)
    wave_T = _filter([voiced_T, noise_T], [voice_LF, noise_LF], hop)
    length = round(seconds * sample_rate)
    wave_T = np.pad(wave_T, (0, max(0, length - len(wave_T))))[:length]
    return wave_T * (0.05 / np.sqrt(np.mean(wave_T**2)))


def _choose_phones(
    voice: Voice, num_frames: int, rng: np.random.Generator
) -> tuple[list[Phone], np.ndarray]:
    """Draw the phone of each frame, and the accent of its syllable (about -1 to 2)."""
    phones: list[Phone] = []
    accents: list[float] = []

    def add(phone: Phone, accent: float, stretch: float = 1.0) -> None:
        seconds = phone.ms / 1000 * stretch / voice.rate * rng.uniform(0.8, 1.25)
        count = max(1, round(seconds / FRAME_SECONDS))
        phones.extend([phone] * count)
        accents.extend([accent] * count)

    add(PAUSE, 0, rng.uniform(0.3, 0.8))
    while len(phones) < num_frames:
        syllables = int(rng.integers(4, 11))
        for syllable in range(syllables):
            fall = 1.0 - 2.0 * syllable / syllables  # pitch declines over a phrase
            accent = fall + (1.2 if rng.uniform() < 0.35 else 0)
            if rng.uniform() > NO_ONSET:
                for phone in ONSETS[rng.integers(len(ONSETS))]:
                    add(phone, accent)
            last = syllable == syllables - 1
            stressed = 1.25 if accent > fall else 0.95
            (vowel,) = VOWELS[rng.integers(len(VOWELS))]
            add(vowel, accent, 1.5 if last else stressed)
            if rng.uniform() < CODA:
                add(ONSETS[rng.integers(12)][0], accent)
        add(PAUSE, 0, rng.uniform(0.6, 1.8))
    edge = round(0.05 / FRAME_SECONDS)
    phones = phones[: num_frames - edge] + [PAUSE] * edge
    return phones, np.array(accents[:num_frames])


def _pitch_track(
    voice: Voice, accent_L: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Return the fundamental frequency of each frame in Hz, [L]."""
    drift_L = _smooth(rng.standard_normal((1, len(accent_L))), 25)[0] * 3
    semitones_L = _smooth(accent_L[None], 15)[0] + 0.5 * drift_L
    jitter_L = rng.normal(0, 0.05, len(accent_L))
    return voice.pitch * 2 ** ((semitones_L * voice.melody + jitter_L) / 12)


def _pulses(pitch_L: np.ndarray, hop: int, sample_rate: int) -> np.ndarray:
    """Add up equal harmonics of a moving pitch, none above half the rate."""
    centre_L = np.arange(len(pitch_L)) * hop
    pitch_T = np.interp(np.arange(len(pitch_L) * hop), centre_L, pitch_L)
    half_T = np.pi * np.cumsum(pitch_T) / sample_rate
    # cos x + ... + cos Kx = sin((K + 1/2) x) / (2 sin(x / 2)) - 1/2
    count = int(0.48 * sample_rate / pitch_T.max())
    sine_T = np.sin(half_T)
    sine_T = np.where(np.abs(sine_T) < 1e-9, 1e-9, sine_T)
    whole_T = np.sin((2 * count + 1) * half_T) / sine_T
    near_T = np.abs(sine_T) < 1e-6
    whole_T[near_T] = 2 * count + 1
    return (whole_T - 1) / np.sqrt(2 * count)


def _vocal_tract(
    formants_L3: np.ndarray, tract: float, frequency_F: np.ndarray
) -> np.ndarray:
    """Return the complex response of the cascade of formants, [L, F].

    Formants above the third do not move: they lie 1 kHz apart.
    """
    fixed = np.arange(3500 * tract, frequency_F[-1] + 1500 * tract, 1000 * tract)
    fixed = fixed.astype(np.float32)
    s_F = (1j * frequency_F).astype(np.complex64)
    square_F = s_F**2

    def resonance(centre: np.ndarray) -> np.ndarray:
        width = 80 + 0.06 * centre
        square = centre**2 + width**2 / 4
        return square / (square + square_F + s_F * width)

    response_LF = np.prod(resonance(fixed[:, None]), axis=0)
    for centre_L in formants_L3.astype(np.float32).T:
        response_LF = response_LF * resonance(centre_L[:, None])
    return response_LF


def _glottis(tilt: float, frequency_F: np.ndarray) -> np.ndarray:
    """Return the spectrum of the glottal pulses as the lips radiate it, [F]."""
    fall_F = (1 + (frequency_F / 100) ** 2) ** (-tilt / 12.04)
    # The cascade lacks the poles above half the rate, which lift what is below.
    lift_F = 1 + (frequency_F / 1200) ** 2
    return (fall_F * lift_F * np.minimum(frequency_F / 80, 1)).astype(np.float32)


def _friction(centre_L: np.ndarray, frequency_F: np.ndarray) -> np.ndarray:
    """Return the response of a constriction: one broad resonance, [L, F]."""
    centre_L1 = centre_L[:, None]
    distance_LF = (frequency_F - centre_L1) / (0.22 * centre_L1 + 250)
    return (1 / (1 + distance_LF**2)).astype(np.float32)


def _smooth(tracks_KL: np.ndarray, frames: int) -> np.ndarray:
    """Average each row under a moving Hann window, the ends held."""
    window = np.hanning(frames + 2)[1:-1]
    held = np.pad(tracks_KL, ((0, 0), (frames // 2, frames // 2)), mode="edge")
    return np.stack([np.convolve(row, window / window.sum(), "valid") for row in held])


def _filter(
    waves: list[np.ndarray], responses: list[np.ndarray], hop: int
) -> np.ndarray:
    """Filter each windowed frame of each wave by its own response, add them all up."""
    size = OVERLAP * hop
    window = (np.hanning(size + 1)[:-1] * (2 / OVERLAP)).astype(np.float32)
    num_frames = len(responses[0])
    # Frame l is centred on sample l * hop.
    starts = np.arange(num_frames)[:, None] * hop + np.arange(size)
    spectrum_LF = 0
    for wave_T, response_LF in zip(waves, responses, strict=True):
        padded = np.pad(wave_T.astype(np.float32), size // 2)
        spectrum_LF += np.fft.rfft(padded[starts] * window, 2 * size) * response_LF
    pieces = np.fft.irfft(spectrum_LF, 2 * size)
    out = np.zeros((num_frames + 4 * OVERLAP) * hop)
    # Every 2 * OVERLAP-th piece starts where another one ends: add those in one go.
    for first in range(2 * OVERLAP):
        some = pieces[first :: 2 * OVERLAP]
        out[first * hop : first * hop + some.size] += some.reshape(-1)
    return out[size // 2 : size // 2 + len(waves[0])]
