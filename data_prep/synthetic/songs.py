"""Synthetic songs in stems, for the demo and the tests: nothing to download.

    python -m data_prep.synthetic.songs --out=FOLDER [--sample_rate=44100]

makes, in a few seconds and bit for bit the same each time,

    FOLDER/clean/{train,valid,test}/<song>/{mixture,drums,bass,other,vocals}.wav
    FOLDER/label_noise/<uuid>/{drums,bass,other,vocals}.wav
    FOLDER/label_noise_truth.csv

The first is laid out as MUSDB18-HQ, the second as SDXDB23: the training songs again,
but each of their instruments is with some probability in a wrong stem. Drums (kick and
snare apart from hi-hat), bass, other (synth, guitar) and vocals are made with numpy;
every song has its own tempo, key, chords and timbres. Scores on them say that training
works and nothing about real music.

Legend: C channel, T sample.
"""

import csv
import io
import json
import math
import os
import sys
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import soundfile

from data_prep.common.cli import command_line
from data_prep.common.once import make_once
from data_prep.music.manifests import MIXTURE, SOURCES
from data_prep.music.manifests import prepare as prepare_stems
from modules.runtime.errors import DataError
from modules.runtime.files import write_text

MARKER = ".completed"

# Goes into the marker: raise it when the same parameters would give other audio.
FORMAT = 1

PEAK = 0.95

# Instruments, the stem that each belongs to and its level in dB.
INSTRUMENTS = {
    "drums_nohat": ("drums", -19.0),
    "hihat": ("drums", -30.0),
    "bass": ("bass", -20.0),
    "synth": ("other", -25.0),
    "guitar": ("other", -23.0),
    "vocals": ("vocals", -19.0),
}

MAJOR = (0, 2, 4, 5, 7, 9, 11)

PROGRESSIONS = ((0, 4, 5, 3), (5, 3, 0, 4), (0, 5, 3, 4), (0, 3, 4, 3), (1, 4, 0, 5))

# F1 and F2 of sung vowels in Hz.
VOWELS = ((700, 1150), (450, 1900), (310, 2250), (480, 850), (350, 750))

TRUTH_COLUMNS = (
    *("track", "source_track", "stem", "is_clean", "moved_in", "moved_out"),
    "sdr_vs_true_stem_db",
)

CLEAN_DB = 99.0  # what a stem that is right gets for its SDR


@dataclass(frozen=True)
class Parameters:
    """Everything that decides what is made."""

    sample_rate: int = 44100
    seed: int = 0
    train_songs: int = 12
    valid_songs: int = 3
    test_songs: int = 4
    seconds: float = 12.0
    noise_probability: float = 0.2

    def check(self) -> None:
        """Refuse what cannot be made."""
        for name in ("train_songs", "valid_songs", "test_songs"):
            if getattr(self, name) < 1:
                raise DataError(f"{name}={getattr(self, name)}: at least 1")
        if self.sample_rate < 4000 or self.seconds < 1:
            raise DataError(
                f"sample_rate={self.sample_rate}, seconds={self.seconds}: at least "
                "4000 Hz and 1 s"
            )
        if not 0 <= self.noise_probability <= 1:
            raise DataError(f"noise_probability={self.noise_probability}: within 0, 1")

    def marker(self) -> str:
        """What is written when everything is made."""
        return json.dumps({"format": FORMAT, **vars(self)}, indent=1) + "\n"


def generate(folder: str | Path, **parameters: int | float) -> Path:
    """Make the songs, unless they are there already.

    They are made beside `folder` and renamed when complete. One process at a time.

    Arguments
    ---------
    folder : str | Path
        Where to; absent, empty, or holding earlier songs, which are replaced when
        their parameters differ.
    **parameters : int | float
        Fields of `Parameters`: sample_rate (Hz), seed, train_songs, valid_songs,
        test_songs, seconds (of a song), noise_probability (of an instrument to be in
        a wrong stem).

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    DataError
        The folder holds something else, or a parameter is out of range.
    TypeError
        An unknown parameter.
    """
    settings = Parameters(**parameters)
    settings.check()
    return make_once(
        folder,
        lambda part: _fill(part, settings),
        MARKER,
        settings.marker(),
        made_by="data_prep.synthetic.songs",
    )


def prepare(
    data_folder: str | Path,
    save_folder: str | Path,
    sources: Sequence[str] = SOURCES,
    label_noise: bool = False,
    valid_tracks: Sequence[str] | int | None = None,
    test_folder: str | Path | None = None,
    train_stems: str | Path | None = None,
    **parameters: int | float,
) -> dict[str, str]:
    """Make the songs where they are missing, and their manifests.

    Arguments
    ---------
    data_folder : str | Path
        Folder of the songs.
    save_folder : str | Path
        Folder of the manifests.
    sources : Sequence[str]
        Some or all of drums, bass, other, vocals.
    label_noise : bool
        Train on the songs with wrong stems, and validate on some of them; the test
        songs are clean in either case.
    valid_tracks, test_folder, train_stems
        As for `data_prep.music.prepare`.
    **parameters : int | float
        Fields of `Parameters`.

    Returns
    -------
    dict[str, str]
        Paths of the manifests under the keys train, valid and test.
    """
    songs = generate(data_folder, **parameters)
    return prepare_stems(
        songs / ("label_noise" if label_noise else "clean"),
        save_folder,
        sources,
        valid_tracks=valid_tracks,
        test_folder=test_folder or songs / "clean" / "test",
        train_stems=train_stems,
    )


def _fill(folder: Path, settings: Parameters) -> None:
    """Make all songs and write both layouts."""
    splits = {
        "train": settings.train_songs,
        "valid": settings.valid_songs,
        "test": settings.test_songs,
    }
    names = [
        (split, f"{split}{k:02d}") for split, n in splits.items() for k in range(n)
    ]
    truth = []
    # numpy lets other threads run inside its loops; songs are taken one by one, so
    # that only a few of them are held at a time.
    with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
        songs = threads.map(partial(make_song, settings), range(len(names)))
        for number, ((split, name), parts) in enumerate(zip(names, songs, strict=True)):
            true = _stems_of(parts, {k: INSTRUMENTS[k][0] for k in parts})
            mixture = sum(true.values())
            _write(
                folder / "clean" / split / name, {MIXTURE: mixture, **true}, settings
            )
            if split == "train":
                track = str(uuid.uuid5(uuid.NAMESPACE_OID, f"{settings.seed}/{name}"))
                places = _misplace(settings, number)
                noisy = _stems_of(parts, places)
                _write(folder / "label_noise" / track, noisy, settings)
                truth += _truth(track, name, places, true, noisy)
    text = io.StringIO()
    table = csv.DictWriter(text, TRUTH_COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows(truth)
    write_text(folder / "label_noise_truth.csv", text.getvalue())


def _misplace(settings: Parameters, number: int) -> dict[str, str]:
    """The stem that each instrument of a song is put in, sometimes a wrong one."""
    rng = np.random.default_rng([settings.seed, number, 1])
    places = {}
    for instrument, (stem, _) in INSTRUMENTS.items():
        wrong = [source for source in SOURCES if source != stem]
        is_wrong = rng.random() < settings.noise_probability
        places[instrument] = wrong[int(rng.integers(3))] if is_wrong else stem
    return places


def _stems_of(
    parts: dict[str, np.ndarray], places: dict[str, str]
) -> dict[str, np.ndarray]:
    """Sum the instruments of each stem; a stem without any is silent."""
    silence = np.zeros_like(next(iter(parts.values())))
    return {
        source: sum((w for k, w in parts.items() if places[k] == source), silence)
        for source in SOURCES
    }


def _truth(
    track: str,
    name: str,
    places: dict[str, str],
    true: dict[str, np.ndarray],
    noisy: dict[str, np.ndarray],
) -> list[dict[str, str | int | float]]:
    """What is wrong with each stem of a song."""
    rows = []
    for source in SOURCES:
        home = {k: stem for k, (stem, _) in INSTRUMENTS.items()}
        moved_in = [k for k, p in places.items() if p == source != home[k]]
        moved_out = [k for k, p in places.items() if p != source == home[k]]
        error = (noisy[source].astype(float) - true[source]).ravel()
        energy = float(true[source].astype(float).ravel() @ true[source].ravel())
        is_clean = not moved_in and not moved_out
        sdr = CLEAN_DB if is_clean else 10 * math.log10(energy / float(error @ error))
        cells = (
            *(track, name, source, int(is_clean)),
            *("+".join(moved_in), "+".join(moved_out), round(sdr, 2)),
        )
        rows.append(dict(zip(TRUTH_COLUMNS, cells, strict=True)))
    return rows


def _write(folder: Path, waves: dict[str, np.ndarray], settings: Parameters) -> None:
    """Write 16-bit stereo files."""
    folder.mkdir(parents=True)
    for name, wave_CT in waves.items():
        path = folder / f"{name}.wav"
        soundfile.write(path, wave_CT.T, settings.sample_rate, subtype="PCM_16")


# ------------------------------------------------------------------------ the music


def make_song(settings: Parameters, number: int) -> dict[str, np.ndarray]:
    """The instruments of one song.

    Arguments
    ---------
    settings : Parameters
        Rate, length and seed.
    number : int
        Which song.

    Returns
    -------
    dict[str, np.ndarray]
        By instrument, int16 of shape [2, T]; any sum of them stays within full scale.
    """
    rng = np.random.default_rng([settings.seed, number])
    rate = settings.sample_rate
    frames = round(settings.seconds * rate)
    beat = 60 / rng.uniform(84, 150)
    root = int(rng.integers(40, 52))  # of the key, as a MIDI note
    chords = PROGRESSIONS[int(rng.integers(len(PROGRESSIONS)))]
    song = Song(rng, rate, settings.seconds, beat, root, chords)
    makers = {
        "drums_nohat": _kick_and_snare,
        "hihat": _hihat,
        "bass": _bass,
        "synth": _synth,
        "guitar": _guitar,
        "vocals": _vocals,
    }
    waves = {}
    for name, make in makers.items():
        wave_CT = make(song)[:, :frames]
        level = 10 ** ((INSTRUMENTS[name][1] + rng.uniform(-2, 2)) / 20)
        waves[name] = wave_CT * (level / np.sqrt(np.mean(wave_CT**2)))
    peak = sum(np.abs(wave_CT) for wave_CT in waves.values()).max()
    scale = min(1.0, PEAK / peak) * 2**15
    return {k: np.round(w * scale).astype(np.int16) for k, w in waves.items()}


@dataclass(frozen=True)
class Song:
    """What the instruments of a song share."""

    rng: np.random.Generator
    rate: int
    seconds: float
    beat: float
    root: int
    chords: tuple[int, ...]

    def silence(self) -> np.ndarray:
        """Room for the song and what rings after its end, [2, T]."""
        return np.zeros((2, round((self.seconds + 4 * self.beat + 1) * self.rate)))

    def beats(self, step: float) -> np.ndarray:
        """Times at which something may start, `step` beats apart, in beats."""
        return np.arange(0, self.seconds / self.beat, step)

    def hertz(self, degree: int, octave: int = 0) -> float:
        """Frequency of a degree of the scale, from the root on."""
        octaves, step = divmod(degree, len(MAJOR))
        note = self.root + MAJOR[step] + 12 * (octaves + octave)
        return 440 * 2 ** ((note - 69) / 12)

    def chord(self, beat: float) -> int:
        """Degree that the chord of a bar is built on."""
        return self.chords[int(beat // 4) % len(self.chords)]

    def place(
        self, wave_CT: np.ndarray, note_T: np.ndarray, beat: float, pan: float
    ) -> None:
        """Add a note at a beat; pan -1 is left, 1 right, at equal power."""
        start = round(beat * self.beat * self.rate)
        note_T = note_T[: wave_CT.shape[1] - start]
        angle = (pan + 1) * math.pi / 4
        wave_CT[0, start : start + len(note_T)] += math.cos(angle) * note_T
        wave_CT[1, start : start + len(note_T)] += math.sin(angle) * note_T


def _tone(
    rate: int,
    hertz: float,
    seconds: float,
    amplitudes: Sequence[float],
    attack: float = 0.005,
    decay: float = math.inf,
) -> np.ndarray:
    """Harmonics below the Nyquist rate, faded in and out; high ones decay faster."""
    time_T = np.arange(round(seconds * rate)) / rate
    wave_T = np.zeros_like(time_T)
    for k, amplitude in enumerate(amplitudes, start=1):
        if k * hertz < 0.45 * rate:
            fall_T = np.exp(-time_T * k**0.5 / decay)
            wave_T += amplitude * fall_T * np.sin(2 * math.pi * k * hertz * time_T)
    release = min(0.03, seconds / 4)
    return wave_T * np.minimum(1, time_T / attack) * _fade(time_T, seconds, release)


def _fade(time_T: np.ndarray, seconds: float, release: float) -> np.ndarray:
    """1 until `release` seconds before the end, then down to 0."""
    return np.clip((seconds - time_T) / release, 0, 1)


def _kick_and_snare(song: Song) -> np.ndarray:
    """A kick that falls in pitch, a snare of noise and a short tone."""
    rng, rate, wave_CT = song.rng, song.rate, song.silence()
    time_T = np.arange(round(0.3 * rate)) / rate
    low, drop = rng.uniform(45, 60), rng.uniform(80, 160)
    phase_T = low * time_T + drop * 0.03 * (1 - np.exp(-time_T / 0.03))
    kick_T = np.sin(2 * math.pi * phase_T) * np.exp(-time_T / rng.uniform(0.07, 0.14))
    body_T = np.sin(2 * math.pi * rng.uniform(170, 230) * time_T)
    ring = rng.uniform(0.05, 0.11)
    offbeat = rng.choice([1.5, 2.5, 2.75])
    for beat in song.beats(0.25):
        place = beat % 4
        if place in (0, 2, offbeat):
            song.place(wave_CT, kick_T * rng.uniform(0.8, 1), beat, 0)
        if place in (1, 3):
            noise_T = rng.standard_normal(len(time_T))
            snare_T = 0.35 * noise_T * np.exp(-time_T / ring)
            snare_T += 0.5 * body_T * np.exp(-time_T / 0.05)
            song.place(wave_CT, snare_T * rng.uniform(0.8, 1), beat, 0.1)
    return wave_CT


def _hihat(song: Song) -> np.ndarray:
    """Short high noise on every half beat or quarter of one."""
    rng, rate, wave_CT = song.rng, song.rate, song.silence()
    step = float(rng.choice([0.25, 0.5]))
    time_T = np.arange(round(0.1 * rate)) / rate
    pan = rng.uniform(-0.5, 0.5)
    for beat in song.beats(step):
        # Two differences take the lows away.
        noise_T = np.diff(rng.standard_normal(len(time_T) + 2), 2)
        accent = 1.0 if beat % 1 == 0 else rng.uniform(0.4, 0.8)
        hat_T = accent * noise_T * np.exp(-time_T / 0.025)
        song.place(wave_CT, hat_T, beat, pan)
    return wave_CT


def _bass(song: Song) -> np.ndarray:
    """Roots and fifths of the chords, like a low-passed sawtooth."""
    rng, wave_CT = song.rng, song.silence()
    amplitudes = [k ** -rng.uniform(1.2, 2) for k in range(1, 9)]
    step = float(rng.choice([0.5, 1.0]))
    for beat in song.beats(step):
        degree = song.chord(beat) + int(rng.choice([0, 0, 0, 4]))
        note_T = _tone(
            song.rate,
            *(song.hertz(degree, -1), 0.9 * step * song.beat, amplitudes),
            decay=0.6,
        )
        song.place(wave_CT, note_T, beat, 0)
    return wave_CT


def _synth(song: Song) -> np.ndarray:
    """Held chords with a slow attack, wide in stereo."""
    rng, wave_CT = song.rng, song.silence()
    amplitudes = [k ** -rng.uniform(0.9, 1.4) for k in range(1, 11)]
    for beat in song.beats(4):
        for third, pan in zip((0, 2, 4), (-0.7, 0.0, 0.7), strict=True):
            hertz = song.hertz(song.chord(beat) + third, 1) * rng.uniform(0.998, 1.002)
            note_T = _tone(song.rate, hertz, 4 * song.beat, amplitudes, attack=0.25)
            song.place(wave_CT, note_T, beat, pan)
    return wave_CT


def _guitar(song: Song) -> np.ndarray:
    """Plucked arpeggios on one side."""
    rng, wave_CT = song.rng, song.silence()
    pluck = rng.uniform(0.1, 0.4)  # where: it thins out some of the harmonics
    amplitudes = [abs(math.sin(math.pi * k * pluck)) / k for k in range(1, 15)]
    pan = float(rng.choice([-0.6, 0.6]))
    for beat in song.beats(0.5):
        degree = song.chord(beat) + int(rng.choice([0, 2, 4, 7]))
        note_T = _tone(
            song.rate,
            *(song.hertz(degree, 1), 1.2 * song.beat, amplitudes),
            decay=0.35,
        )
        song.place(wave_CT, note_T * rng.uniform(0.6, 1), beat, pan)
    return wave_CT


def _vocals(song: Song) -> np.ndarray:
    """A sung melody: vibrato, glides, vowels as formants; a rest in every phrase."""
    rng, wave_CT = song.rng, song.silence()
    octave = int(rng.choice([1, 2]))
    degree, beat, end = 4, 0.0, song.seconds / song.beat
    vibrato = rng.uniform(4.5, 6)
    while beat < end:
        length = float(rng.choice([0.5, 1.0, 1.0, 2.0]))
        if beat % 8 < 6.5:
            degree = int(np.clip(degree + rng.integers(-2, 3), 0, 8))
            seconds = 0.95 * length * song.beat
            time_T = np.arange(round(seconds * song.rate)) / song.rate
            swing_T = np.sin(2 * math.pi * vibrato * time_T) * np.minimum(
                1, time_T / 0.3
            )
            bend_T = 0.012 * swing_T - 0.06 * np.exp(-time_T / 0.04)
            hertz = song.hertz(degree, octave)
            phase_T = np.cumsum(hertz * (1 + bend_T)) / song.rate
            vowel = VOWELS[int(rng.integers(len(VOWELS)))]
            note_T = np.zeros_like(time_T)
            for k in range(1, int(min(5000, 0.42 * song.rate) // hertz) + 1):
                gain = sum(
                    weight / (1 + ((k * hertz - formant) / width) ** 2)
                    for formant, width, weight in (
                        (vowel[0], 110, 1.0),
                        (vowel[1], 160, 0.5),
                        (2800, 250, 0.25),
                    )
                )
                note_T += (gain + 0.01) / k**0.5 * np.sin(2 * math.pi * k * phase_T)
            note_T += 0.01 * rng.standard_normal(len(note_T))  # breath
            note_T *= np.minimum(1, time_T / 0.04) * _fade(time_T, seconds, 0.05)
            song.place(wave_CT, note_T, beat, 0)
        beat += length
    return wave_CT


def main() -> int:
    """Make the songs from the command line."""
    return command_line(generate, vars(Parameters()), __doc__)


if __name__ == "__main__":
    sys.exit(main())
