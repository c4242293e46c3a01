"""Make synthetic songs in stems, for the demo and the tests, without a download.

    python -m data_prep.synthetic.songs --out=FOLDER [--sample_rate=44100]

makes, in a few seconds and bit for bit the same each time,

    FOLDER/clean/{train,valid,test}/<song>/{mixture,drums,bass,other,vocals}.wav
    FOLDER/label_noise/<uuid>/{drums,bass,other,vocals}.wav
    FOLDER/label_noise_truth.csv

The first is laid out as MUSDB18-HQ, the second as SDXDB23: the training songs again,
but each of their instruments is with some probability in a wrong stem. Every song has
its own tempo, key, chords and timbres. Scores on them say that training works and
nothing about real music.

Legend: C channel, T sample.
"""

import math
import sys
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.common.layout import SPLITS
from data_prep.music.manifests import MIXTURE, SOURCES
from data_prep.music.manifests import prepare as prepare_stems
from data_prep.synthetic import parts
from modules.audio.io import write_wave
from modules.runtime.cli import run
from modules.runtime.errors import DataError
from modules.runtime.tables import write_table
from modules.runtime.threads import in_threads

PEAK = 0.95
MAJOR = (0, 2, 4, 5, 7, 9, 11)
PROGRESSIONS = ((0, 4, 5, 3), (5, 3, 0, 4), (0, 5, 3, 4), (0, 3, 4, 3), (1, 4, 0, 5))

# F1 and F2 of sung vowels in Hz.
VOWELS = ((700, 1150), (450, 1900), (310, 2250), (480, 850), (350, 750))

TRUTH_COLUMNS = (
    *("track", "source_track", "stem", "is_clean", "moved_in", "moved_out"),
    "sdr_vs_true_stem_db",
)

CLEAN_DB = 99.0  # what a stem that is right gets for its SDR
Waves = dict[str, np.ndarray]


@dataclass(frozen=True)
class Parameters:
    """Everything that decides what is made.

    `seconds` is of a song, `noise_probability` of an instrument to be in a wrong stem.
    """

    sample_rate: int = 44100
    seed: int = 0
    train_songs: int = 12
    valid_songs: int = 3
    test_songs: int = 4
    seconds: float = 12.0
    noise_probability: float = 0.2

    def check(self) -> None:
        """Raise a DataError for songs that cannot be made."""
        for name, value in vars(self).items():
            if name.endswith("_songs") and value < 1:
                raise DataError(f"{name}={value}: at least 1")
        if self.sample_rate < 4000 or self.seconds < 1:
            given = f"sample_rate={self.sample_rate}, seconds={self.seconds}"
            raise DataError(f"{given}: at least 4000 Hz and 1 s")
        if not 0 <= self.noise_probability <= 1:
            raise DataError(f"noise_probability={self.noise_probability}: within 0, 1")

    def fill(self, folder: Path) -> None:
        """Make all songs and write both layouts."""
        counts = (self.train_songs, self.valid_songs, self.test_songs)
        sets = zip(SPLITS, counts, strict=True)
        names = [f"{name}{k:02d}" for name, count in sets for k in range(count)]
        truth = []
        songs = in_threads(self._play, range(len(names)))
        for number, (name, instruments) in enumerate(zip(names, songs, strict=True)):
            true = _stems_of(instruments, HOME)
            split = name[:-2]
            mixture = np.stack([*true.values()]).sum(0, dtype=np.int16)
            self._write(folder / "clean" / split / name, {MIXTURE: mixture, **true})
            if split == "train":
                track = str(uuid.uuid5(uuid.NAMESPACE_OID, f"{self.seed}/{name}"))
                places = self._misplace(number)
                noisy = _stems_of(instruments, places)
                self._write(folder / "label_noise" / track, noisy)
                truth += _truth(track, name, places, true, noisy)
        write_table(folder / "label_noise_truth.csv", TRUTH_COLUMNS, truth)

    def _play(self, number: int) -> Waves:
        """Return the instruments of a song as int16 [2, T]; no sum of them clips."""
        rng = np.random.default_rng([self.seed, number])
        beat = 60 / rng.uniform(84, 150)
        root = int(rng.integers(40, 52))
        chords = PROGRESSIONS[int(rng.integers(len(PROGRESSIONS)))]
        song = Song(rng, self.sample_rate, self.seconds, beat, root, chords)
        frames = round(self.seconds * self.sample_rate)
        waves = {}
        for name, (play, _, level_db) in INSTRUMENTS.items():
            wave_CT = song.record(play(song))[:, :frames]
            level = 10 ** ((level_db + rng.uniform(-2, 2)) / 20)
            waves[name] = wave_CT * (level / np.sqrt(np.mean(wave_CT**2)))
        peak = sum(np.abs(wave_CT) for wave_CT in waves.values()).max()
        scale = min(1.0, PEAK / peak) * 2**15
        return {k: np.round(w * scale).astype(np.int16) for k, w in waves.items()}

    def _misplace(self, number: int) -> dict[str, str]:
        """Draw the stem that each instrument of a song is put in."""
        rng = np.random.default_rng([self.seed, number, 1])
        places = {}
        for instrument, stem in HOME.items():
            wrong = [source for source in SOURCES if source != stem]
            is_wrong = rng.random() < self.noise_probability
            places[instrument] = wrong[int(rng.integers(3))] if is_wrong else stem
        return places

    def _write(self, folder: Path, waves: Waves) -> None:
        for name, wave_CT in waves.items():
            write_wave(folder / f"{name}.wav", wave_CT.T, self.sample_rate)


def generate(out: str | Path, parameters: Parameters) -> Path:
    """Make the songs in `out`, unless they are there already, and return the folder.

    Earlier songs are replaced if their parameters differ.
    """
    return parts.make(out, parameters, "data_prep.synthetic.songs")


def prepare(
    data_folder: str | Path,
    save_folder: str | Path,
    sources: Sequence[str] = SOURCES,
    label_noise: bool = False,
    valid_tracks: Sequence[str] | int | None = None,
    test_folder: str | Path | None = None,
    train_stems: str | Path | None = None,
    **parameters: Any,
) -> dict[str, str]:
    """Make the songs in `data_folder` if they are missing, and their manifests.

    Arguments and result are those of `data_prep.music.prepare`; `parameters` are fields
    of `Parameters`. With `label_noise` the songs with wrong stems train, and some of
    them validate; the test songs are clean in either case.
    """
    songs = generate(data_folder, Parameters(**parameters))
    return prepare_stems(
        songs / ("label_noise" if label_noise else "clean"),
        save_folder,
        sources,
        valid_tracks=valid_tracks,
        test_folder=test_folder or songs / "clean" / "test",
        train_stems=train_stems,
    )


def _stems_of(instruments: Waves, places: dict[str, str]) -> Waves:
    """Sum the instruments of each stem; a stem without any is silent."""
    silence = np.zeros_like(next(iter(instruments.values())))
    return {
        source: sum((w for k, w in instruments.items() if places[k] == source), silence)
        for source in SOURCES
    }


def _truth(
    track: str, name: str, places: dict[str, str], true: Waves, noisy: Waves
) -> list[tuple[str | int | float, ...]]:
    """Return rows of `TRUTH_COLUMNS`: what is wrong with each stem of a song."""
    rows: list[tuple[str | int | float, ...]] = []
    for source in SOURCES:
        moved_in = [k for k, p in places.items() if p == source != HOME[k]]
        moved_out = [k for k, p in places.items() if p != source == HOME[k]]
        error = (noisy[source].astype(float) - true[source]).ravel()
        energy = float(true[source].astype(float).ravel() @ true[source].ravel())
        is_clean = not moved_in and not moved_out
        sdr = CLEAN_DB if is_clean else 10 * math.log10(energy / float(error @ error))
        moves = "+".join(moved_in), "+".join(moved_out)
        rows.append((track, name, source, int(is_clean), *moves, round(sdr, 2)))
    return rows


# ------------------------------------------------------------------------ the music

# A note of an instrument: its samples, the beat it starts on, and its place from -1
# (left) to 1 (right).
Note = tuple[np.ndarray, float, float]


@dataclass(frozen=True)
class Song:
    """The common ground of a song's instruments; `root` of the key is a MIDI note."""

    rng: np.random.Generator
    rate: int
    seconds: float
    beat: float
    root: int
    chords: tuple[int, ...]

    def record(self, notes: Iterator[Note]) -> np.ndarray:
        """Add up notes, panned at equal power: [2, T] with what rings after the end."""
        tail = 4 * self.beat + 1
        wave_CT = np.zeros((2, round((self.seconds + tail) * self.rate)))
        for note_T, beat, pan in notes:
            start = round(beat * self.beat * self.rate)
            note_T = note_T[: wave_CT.shape[1] - start]
            angle = (pan + 1) * math.pi / 4
            wave_CT[0, start : start + len(note_T)] += math.cos(angle) * note_T
            wave_CT[1, start : start + len(note_T)] += math.sin(angle) * note_T
        return wave_CT

    def times(self, seconds: float) -> np.ndarray:
        """Return the times of the samples of a note, [T]."""
        return np.arange(round(seconds * self.rate)) / self.rate

    def beats(self, step: float) -> np.ndarray:
        """Return where something may start, `step` beats apart, in beats."""
        return np.arange(0, self.seconds / self.beat, step)

    def hertz(self, degree: int, octave: int = 0) -> float:
        """Return the frequency of a degree of the scale, from the root on."""
        octaves, step = divmod(degree, len(MAJOR))
        note = self.root + MAJOR[step] + 12 * (octaves + octave)
        return 440 * 2 ** ((note - 69) / 12)

    def chord(self, beat: float) -> int:
        """Return the degree that the chord of a bar is built on."""
        return self.chords[int(beat // 4) % len(self.chords)]

    def tone(
        self,
        hertz: float,
        beats: float,
        amplitudes: Sequence[float],
        attack: float = 0.005,
        decay: float = math.inf,
    ) -> np.ndarray:
        """Return harmonics below the Nyquist rate, of which high ones decay faster."""
        seconds = beats * self.beat
        time_T = self.times(seconds)
        wave_T = np.zeros_like(time_T)
        for k, amplitude in enumerate(amplitudes, start=1):
            if k * hertz < 0.45 * self.rate:
                fall_T = np.exp(-time_T * k**0.5 / decay)
                wave_T += amplitude * fall_T * np.sin(2 * math.pi * k * hertz * time_T)
        release = min(0.03, seconds / 4)
        return wave_T * np.minimum(1, time_T / attack) * _fade(time_T, seconds, release)


def _fade(time_T: np.ndarray, seconds: float, release: float) -> np.ndarray:
    """1 until `release` seconds before the end, then down to 0."""
    return np.clip((seconds - time_T) / release, 0, 1)


def _kick_and_snare(song: Song) -> Iterator[Note]:
    """A kick that falls in pitch, a snare of noise and a short tone."""
    rng, time_T = song.rng, song.times(0.3)
    low, drop = rng.uniform(45, 60), rng.uniform(80, 160)
    phase_T = low * time_T + drop * 0.03 * (1 - np.exp(-time_T / 0.03))
    kick_T = np.sin(2 * math.pi * phase_T) * np.exp(-time_T / rng.uniform(0.07, 0.14))
    body_T = np.sin(2 * math.pi * rng.uniform(170, 230) * time_T)
    ring = rng.uniform(0.05, 0.11)
    offbeat = rng.choice([1.5, 2.5, 2.75])
    for beat in song.beats(0.25):
        place = beat % 4
        if place in (0, 2, offbeat):
            yield kick_T * rng.uniform(0.8, 1), beat, 0
        if place in (1, 3):
            noise_T = rng.standard_normal(len(time_T))
            snare_T = 0.35 * noise_T * np.exp(-time_T / ring)
            snare_T += 0.5 * body_T * np.exp(-time_T / 0.05)
            yield snare_T * rng.uniform(0.8, 1), beat, 0.1


def _hihat(song: Song) -> Iterator[Note]:
    """Short high noise on every half beat or quarter of one."""
    rng = song.rng
    step = float(rng.choice([0.25, 0.5]))
    time_T = song.times(0.1)
    pan = rng.uniform(-0.5, 0.5)
    for beat in song.beats(step):
        # Two differences take the lows away.
        noise_T = np.diff(rng.standard_normal(len(time_T) + 2), 2)
        accent = 1.0 if beat % 1 == 0 else rng.uniform(0.4, 0.8)
        yield accent * noise_T * np.exp(-time_T / 0.025), beat, pan


def _bass(song: Song) -> Iterator[Note]:
    """Roots and fifths of the chords, like a low-passed sawtooth."""
    rng = song.rng
    amplitudes = [k ** -rng.uniform(1.2, 2) for k in range(1, 9)]
    step = float(rng.choice([0.5, 1.0]))
    for beat in song.beats(step):
        degree = song.chord(beat) + int(rng.choice([0, 0, 0, 4]))
        hertz = song.hertz(degree, -1)
        yield song.tone(hertz, 0.9 * step, amplitudes, decay=0.6), beat, 0


def _synth(song: Song) -> Iterator[Note]:
    """Held chords with a slow attack, wide in stereo."""
    rng = song.rng
    amplitudes = [k ** -rng.uniform(0.9, 1.4) for k in range(1, 11)]
    for beat in song.beats(4):
        for third, pan in zip((0, 2, 4), (-0.7, 0.0, 0.7), strict=True):
            hertz = song.hertz(song.chord(beat) + third, 1) * rng.uniform(0.998, 1.002)
            yield song.tone(hertz, 4, amplitudes, attack=0.25), beat, pan


def _guitar(song: Song) -> Iterator[Note]:
    """Plucked arpeggios on one side."""
    rng = song.rng
    pluck = rng.uniform(0.1, 0.4)  # where: it thins out some of the harmonics
    amplitudes = [abs(math.sin(math.pi * k * pluck)) / k for k in range(1, 15)]
    pan = float(rng.choice([-0.6, 0.6]))
    for beat in song.beats(0.5):
        degree = song.chord(beat) + int(rng.choice([0, 2, 4, 7]))
        note_T = song.tone(song.hertz(degree, 1), 1.2, amplitudes, decay=0.35)
        yield note_T * rng.uniform(0.6, 1), beat, pan


def _vocals(song: Song) -> Iterator[Note]:
    """A sung melody: vibrato, glides, vowels as formants; a rest in every phrase."""
    rng = song.rng
    octave = int(rng.choice([1, 2]))
    degree, beat, end = 4, 0.0, song.seconds / song.beat
    vibrato = rng.uniform(4.5, 6)
    while beat < end:
        length = float(rng.choice([0.5, 1.0, 1.0, 2.0]))
        if beat % 8 < 6.5:
            degree = int(np.clip(degree + rng.integers(-2, 3), 0, 8))
            seconds = 0.95 * length * song.beat
            time_T = song.times(seconds)
            swing_T = np.sin(2 * math.pi * vibrato * time_T)
            swing_T = swing_T * np.minimum(1, time_T / 0.3)
            bend_T = 0.012 * swing_T - 0.06 * np.exp(-time_T / 0.04)
            hertz = song.hertz(degree, octave)
            phase_T = np.cumsum(hertz * (1 + bend_T)) / song.rate
            first, second = VOWELS[int(rng.integers(len(VOWELS)))]
            formants = ((first, 110, 1.0), (second, 160, 0.5), (2800, 250, 0.25))
            note_T = np.zeros_like(time_T)
            for k in range(1, int(min(5000, 0.42 * song.rate) // hertz) + 1):
                gain = sum(
                    weight / (1 + ((k * hertz - formant) / width) ** 2)
                    for formant, width, weight in formants
                )
                note_T += (gain + 0.01) / k**0.5 * np.sin(2 * math.pi * k * phase_T)
            note_T += 0.01 * rng.standard_normal(len(note_T))  # breath
            note_T *= np.minimum(1, time_T / 0.04) * _fade(time_T, seconds, 0.05)
            yield note_T, beat, 0
        beat += length


# Instruments: who plays, the stem that it belongs to and its level in dB.
INSTRUMENTS = {
    "drums_nohat": (_kick_and_snare, "drums", -19.0),
    "hihat": (_hihat, "drums", -30.0),
    "bass": (_bass, "bass", -20.0),
    "synth": (_synth, "other", -25.0),
    "guitar": (_guitar, "other", -23.0),
    "vocals": (_vocals, "vocals", -19.0),
}

HOME = {name: stem for name, (_, stem, _) in INSTRUMENTS.items()}

if __name__ == "__main__":
    program = "python -m data_prep.synthetic.songs"
    sys.exit(run(program, __doc__, {"generate": generate}))
