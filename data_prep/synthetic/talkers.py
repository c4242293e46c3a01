"""Make a corpus of synthetic talkers, for the demo and the tests, without a download.

    python -m data_prep.synthetic.talkers --out=FOLDER

makes, in a few seconds and bit for bit the same each time,

    FOLDER/wsj0/si_tr_s/<speaker>/<utterance>.wav      training utterances, to mix from
    FOLDER/2speakers/wav8k/min/{tr,cv,tt}/{mix,s1,s2}  mixtures, laid out as WSJ0-2mix

Training, validation and test talkers are different ones, and each group spans the
whole range of pitch. The talkers come from `voices.py`; scores on them say that
training works and nothing about real speech.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.common.versions import SETS
from data_prep.synthetic import parts
from data_prep.synthetic.voices import Voice, make_voices, speak
from data_prep.wsj0mix import manifests as wsj0mix
from modules.audio.io import write_wave
from modules.runtime.cli import run
from modules.runtime.errors import DataError
from modules.runtime.threads import in_threads

PEAK = 0.9

# WSJ0-mix: sources 1 and 2 lie up to 2.5 dB above and below power 1, a third at 0 dB.
LEVEL_DB = 2.5

# Streams of random numbers under one seed.
STREAM_SPEECH, STREAM_MIXTURES = 1, 2

Utterance = tuple[str, np.ndarray]


@dataclass(frozen=True)
class Parameters:
    """Everything that decides what the corpus holds; `seconds` is of an utterance."""

    sample_rate: int = 8000
    seed: int = 0
    num_spks: int = 2
    train_voices: int = 24
    valid_voices: int = 4
    test_voices: int = 4
    utterances_per_voice: int = 8
    seconds: float = 4.5
    valid_mixtures: int = 16
    test_mixtures: int = 24

    def check(self) -> None:
        """Raise a DataError for parameters that no corpus can meet."""
        if self.num_spks < 2 or self.sample_rate < 8000 or self.seconds < 1:
            raise DataError(
                f"num_spks={self.num_spks}, sample_rate={self.sample_rate}, "
                f"seconds={self.seconds}: at least 2 talkers, 8000 Hz and 1 s"
            )
        utterances = self.utterances_per_voice**self.num_spks
        for name, voices, mixtures in (
            ("train_voices", self.train_voices, 1),
            ("valid_voices", self.valid_voices, self.valid_mixtures),
            ("test_voices", self.test_voices, self.test_mixtures),
        ):
            possible = math.comb(voices, self.num_spks) * utterances
            if not 1 <= mixtures <= possible:
                raise DataError(
                    f"{name}={voices} with {self.utterances_per_voice} utterances each "
                    f"allow 1 to {possible} mixtures of {self.num_spks}, not {mixtures}"
                )

    def fill(self, folder: Path) -> None:
        """Speak all utterances, write the training ones, mix."""
        takes = [
            (split, name, voice, take)
            for split, voices in self.split_voices().items()
            for name, voice in voices
            for take in range(self.utterances_per_voice)
        ]
        waves = in_threads(self._speak, takes)
        spoken: dict[str, list[Utterance]] = {split: [] for split in SETS}
        for (split, name, _, take), wave_T in zip(takes, waves, strict=True):
            utterance = f"{name}c01{take:02d}"
            spoken[split].append((utterance, wave_T))
            if split == "tr":
                path = folder / "wsj0" / "si_tr_s" / name / f"{utterance}.wav"
                write_wave(path, wave_T, self.sample_rate)
        counts = {"tr": None, "cv": self.valid_mixtures, "tt": self.test_mixtures}
        version = f"{self.num_spks}speakers/wav{self.sample_rate // 1000}k/min"
        for number, (split, utterances) in enumerate(spoken.items()):
            rng = np.random.default_rng([self.seed, STREAM_MIXTURES, number])
            for group in _choose(utterances, self.num_spks, counts[split], rng):
                _write_mixture(folder / version / split, group, self.sample_rate, rng)

    def split_voices(self) -> dict[str, list[tuple[str, Voice]]]:
        """Name the voices of each set by pitch, so that every set spans its range."""
        counts = (self.train_voices, self.valid_voices, self.test_voices)
        places = sorted(
            ((k + 0.5) / count, split)
            for split, count in zip(SETS, counts, strict=True)
            for k in range(count)
        )
        groups: dict[str, list[tuple[str, Voice]]] = {split: [] for split in SETS}
        for number, voice in enumerate(make_voices(len(places), self.seed)):
            groups[places[number][1]].append((f"v{number:02d}", voice))
        return groups

    def _speak(self, take: tuple[str, str, Voice, int]) -> np.ndarray:
        """Return an utterance as 16-bit samples, its length drawn within 15 %."""
        _, name, voice, number = take
        rng = np.random.default_rng([self.seed, STREAM_SPEECH, int(name[1:]), number])
        seconds = self.seconds * rng.uniform(0.85, 1.15)
        wave_T = speak(voice, seconds, self.sample_rate, rng)
        wave_T *= min(1.0, PEAK / np.abs(wave_T).max())
        return np.round(wave_T * 2**15).astype(np.int16)


def generate(out: str | Path, parameters: Parameters) -> Path:
    """Make the corpus in `out`, unless it is there already, and return the folder.

    An earlier corpus is replaced if its parameters differ.
    """
    return parts.make(out, parameters, "data_prep.synthetic.talkers")


def prepare(
    data_folder: str | Path,
    save_folder: str | Path,
    num_spks: int = 2,
    sample_rate: int = 8000,
    mode: str = "min",
    test_folder: str | Path | None = None,
    **parameters: Any,
) -> dict[str, str]:
    """Make the corpus in `data_folder` if it is missing, and its manifests.

    Arguments and result are those of `data_prep.wsj0mix.prepare`, where only mode "min"
    is made; `parameters` are other fields of `Parameters`.
    """
    if mode != "min":
        raise DataError(f"mode is {mode!r}, but synthetic mixtures are of mode 'min'")
    settings = Parameters(sample_rate=sample_rate, num_spks=num_spks, **parameters)
    corpus = generate(data_folder, settings)
    chosen = (num_spks, sample_rate, mode, test_folder)
    return wsj0mix.prepare(corpus, save_folder, *chosen)


def _choose(
    utterances: list[Utterance],
    num_spks: int,
    count: int | None,
    rng: np.random.Generator,
) -> list[list[Utterance]]:
    """Return groups of utterances of different speakers; no two groups are the same.

    `count` None makes as few groups as hold every utterance.
    """
    groups: dict[frozenset[str], list[Utterance]] = {}
    while True:
        waiting = [utterances[k] for k in rng.permutation(len(utterances))]
        while waiting:
            group = [waiting.pop()]
            for candidates in (waiting, utterances):
                for k in rng.permutation(len(candidates)):
                    speakers = {name[:3] for name, _ in group}
                    if len(group) < num_spks and candidates[k][0][:3] not in speakers:
                        group.append(candidates[k])
            used = frozenset(name for name, _ in group)
            waiting = [item for item in waiting if item[0] not in used]
            groups.setdefault(used, group)
            if len(groups) == count:
                return list(groups.values())
        if count is None:
            return list(groups.values())


def _write_mixture(
    folder: Path, group: list[Utterance], sample_rate: int, rng: np.random.Generator
) -> None:
    """Cut to the shortest, set levels, add, and write mixture and sources.

    The sources are rounded before they are added, so the mixture is their sum exactly.
    """
    offset_db = round(float(rng.uniform(0, LEVEL_DB)), 4)
    levels_db = [offset_db, -offset_db, *[0.0] * (len(group) - 2)]
    length = min(len(wave_T) for _, wave_T in group)
    src_ST = np.stack([wave_T[:length] / 2**15 for _, wave_T in group])
    gains_S = 10 ** (np.array(levels_db) / 20) / np.sqrt(np.mean(src_ST**2, axis=1))
    src_ST *= gains_S[:, None]
    peak = max(np.abs(src_ST.sum(0)).max(), np.abs(src_ST).max())
    src_ST = np.round(src_ST * (PEAK / peak * 2**15)).astype(np.int16)
    name = "_".join(
        f"{utterance}_{level:.5g}"
        for (utterance, _), level in zip(group, levels_db, strict=True)
    )
    waves = {"mix": src_ST.sum(0, dtype=np.int16)}
    waves |= {f"s{k}": source_T for k, source_T in enumerate(src_ST, start=1)}
    for part, wave_T in waves.items():
        write_wave(folder / part / f"{name}.wav", wave_T, sample_rate)


if __name__ == "__main__":
    program = "python -m data_prep.synthetic.talkers"
    sys.exit(run(program, __doc__, {"generate": generate}))
