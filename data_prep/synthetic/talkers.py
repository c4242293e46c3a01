"""A corpus of synthetic talkers, for the demo and the tests: nothing to download.

    python -m data_prep.synthetic.talkers --out=FOLDER

makes, in a few seconds and bit for bit the same each time,

    FOLDER/wsj0/si_tr_s/<speaker>/<utterance>.wav      training utterances, to mix from
    FOLDER/2speakers/wav8k/min/{tr,cv,tt}/{mix,s1,s2}  mixtures, laid out as WSJ0-2mix

Training, validation and test talkers are different ones, and each group spans the
whole range of pitch. The talkers come from `voices.py`; scores on them say
that training works and nothing about real speech.
"""

import json
import math
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import soundfile

from data_prep.common.cli import command_line
from data_prep.common.once import make_once
from data_prep.synthetic.voices import Voice, make_voices, speak
from data_prep.wsj0mix import manifests as wsj0mix
from modules.runtime.errors import DataError

MARKER = ".completed"

# Goes into the marker: raise it when the same parameters would give other audio.
FORMAT = 1

PEAK = 0.9

# WSJ0-mix: sources 1 and 2 lie up to 2.5 dB above and below power 1, a third at 0 dB.
LEVEL_DB = 2.5

# Streams of random numbers under one seed.
STREAM_SPEECH, STREAM_MIXTURES = 1, 2


@dataclass(frozen=True)
class Parameters:
    """Everything that decides what the corpus holds."""

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
        """Refuse parameters that no corpus can meet."""
        if self.num_spks < 2 or self.sample_rate < 8000 or self.seconds < 1:
            raise DataError(
                f"num_spks={self.num_spks}, sample_rate={self.sample_rate}, "
                f"seconds={self.seconds}: at least 2 talkers, 8000 Hz and 1 s"
            )
        wanted = {
            "train_voices": (self.train_voices, 1),
            "valid_voices": (self.valid_voices, self.valid_mixtures),
            "test_voices": (self.test_voices, self.test_mixtures),
        }
        for name, (voices, mixtures) in wanted.items():
            utterances = self.utterances_per_voice**self.num_spks
            possible = math.comb(voices, self.num_spks) * utterances
            if not 1 <= mixtures <= possible:
                raise DataError(
                    f"{name}={voices} with {self.utterances_per_voice} utterances each "
                    f"allow 1 to {possible} mixtures of {self.num_spks}, not {mixtures}"
                )

    def marker(self) -> str:
        """What is written when the corpus is complete."""
        return json.dumps({"format": FORMAT, **vars(self)}, indent=1) + "\n"


def generate(folder: str | Path, **parameters: int | float) -> Path:
    """Make the corpus, unless it is there already.

    It is made beside `folder` and renamed when complete, so an interrupted call
    leaves nothing that could be taken for a corpus. One process at a time.

    Arguments
    ---------
    folder : str | Path
        Where to; absent, empty, or holding an earlier corpus, which is replaced when
        its parameters differ.
    **parameters : int | float
        Fields of `Parameters`: sample_rate (Hz), seed, num_spks (in a mixture),
        train_voices, valid_voices, test_voices, utterances_per_voice, seconds (of an
        utterance), valid_mixtures, test_mixtures.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    DataError
        The folder holds something else, or more mixtures are asked for than exist.
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
        made_by="data_prep.synthetic.talkers",
    )


def prepare(
    data_folder: str | Path,
    save_folder: str | Path,
    num_spks: int = 2,
    sample_rate: int = 8000,
    mode: str = "min",
    **parameters: int | float,
) -> dict[str, str]:
    """Make the corpus where it is missing, and its manifests.

    Arguments
    ---------
    data_folder : str | Path
        Folder of the corpus.
    save_folder : str | Path
        Folder of the manifests.
    num_spks, sample_rate, mode
        As for `data_prep.wsj0mix.prepare`; only mode "min" is made.
    **parameters : int | float
        Other fields of `Parameters`.

    Returns
    -------
    dict[str, str]
        Paths of the manifests under the keys train, valid and test.
    """
    if mode != "min":
        raise DataError(f"mode is {mode!r}, but synthetic mixtures are of mode 'min'")
    corpus = generate(
        data_folder, num_spks=num_spks, sample_rate=sample_rate, **parameters
    )
    return wsj0mix.prepare(corpus, save_folder, num_spks, sample_rate, mode)


def split_voices(settings: Parameters) -> dict[str, list[tuple[str, Voice]]]:
    """Named voices of each set; names sort by pitch, every set spans its range."""
    counts = {
        "tr": settings.train_voices,
        "cv": settings.valid_voices,
        "tt": settings.test_voices,
    }
    voices = make_voices(sum(counts.values()), settings.seed)
    places = [
        ((k + 0.5) / count, split)
        for split, count in counts.items()
        for k in range(count)
    ]
    groups: dict[str, list[tuple[str, Voice]]] = {split: [] for split in counts}
    for number, (voice, (_, split)) in enumerate(
        zip(voices, sorted(places), strict=True)
    ):
        groups[split].append((f"v{number:02d}", voice))
    return groups


def _fill(folder: Path, settings: Parameters) -> None:
    """Speak all utterances, write the training ones, mix."""
    groups = split_voices(settings)
    talk = [
        (split, name, voice, take)
        for split, voices in groups.items()
        for name, voice in voices
        for take in range(settings.utterances_per_voice)
    ]
    # numpy lets other threads run inside its loops and transforms.
    with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
        waves = threads.map(partial(_utterance, settings), *zip(*talk, strict=True))
        spoken: dict[str, list[tuple[str, np.ndarray]]] = {
            split: [] for split in groups
        }
        for (split, name, _, take), wave_T in zip(talk, waves, strict=True):
            utterance = f"{name}c01{take:02d}"
            spoken[split].append((utterance, wave_T))
            if split == "tr":
                path = folder / "wsj0" / "si_tr_s" / name / f"{utterance}.wav"
                _write(path, wave_T, settings.sample_rate)
    counts = {"tr": None, "cv": settings.valid_mixtures, "tt": settings.test_mixtures}
    rate_name = f"wav{settings.sample_rate // 1000}k"
    root = folder / f"{settings.num_spks}speakers" / rate_name / "min"
    for number, (split, utterances) in enumerate(spoken.items()):
        rng = np.random.default_rng([settings.seed, STREAM_MIXTURES, number])
        for parts in _choose(utterances, settings.num_spks, counts[split], rng):
            _write_mixture(root / split, parts, settings.sample_rate, rng)


def _utterance(
    settings: Parameters, split: str, name: str, voice: Voice, take: int
) -> np.ndarray:
    """One utterance as 16-bit samples, its length drawn within 15 %."""
    counters = [settings.seed, STREAM_SPEECH, int(name[1:]), take]
    rng = np.random.default_rng(counters)
    seconds = settings.seconds * rng.uniform(0.85, 1.15)
    wave_T = speak(voice, seconds, settings.sample_rate, rng)
    wave_T *= min(1.0, PEAK / np.abs(wave_T).max())
    return np.round(wave_T * 2**15).astype(np.int16)


def _choose(
    utterances: list[tuple[str, np.ndarray]],
    num_spks: int,
    count: int | None,
    rng: np.random.Generator,
) -> list[list[tuple[str, np.ndarray]]]:
    """Groups of utterances of different speakers; no two groups are the same.

    `count` None makes as few groups as hold every utterance.
    """
    groups: dict[tuple[str, ...], list[tuple[str, np.ndarray]]] = {}
    while True:
        waiting = [utterances[k] for k in rng.permutation(len(utterances))]
        while waiting:
            group = [waiting.pop()]
            for candidates in (waiting, utterances):
                order = rng.permutation(len(candidates))
                for candidate in [candidates[k] for k in order]:
                    speakers = {name[:3] for name, _ in group}
                    if len(group) < num_spks and candidate[0][:3] not in speakers:
                        group.append(candidate)
            used = {name for name, _ in group}
            waiting = [item for item in waiting if item[0] not in used]
            groups.setdefault(tuple(sorted(used)), group)
            if len(groups) == count:
                return list(groups.values())
        if count is None:
            return list(groups.values())


def _write_mixture(
    folder: Path,
    parts: list[tuple[str, np.ndarray]],
    sample_rate: int,
    rng: np.random.Generator,
) -> None:
    """Cut to the shortest, set levels, add, and write mixture and sources.

    The sources are rounded before they are added, so the mixture is their sum exactly.
    """
    offset_db = round(float(rng.uniform(0, LEVEL_DB)), 4)
    levels_db = [offset_db, -offset_db, *[0.0] * (len(parts) - 2)]
    length = min(len(wave_T) for _, wave_T in parts)
    src_ST = np.stack([wave_T[:length] / 2**15 for _, wave_T in parts])
    gains_S = 10 ** (np.array(levels_db) / 20) / np.sqrt(np.mean(src_ST**2, axis=1))
    src_ST *= gains_S[:, None]
    peak = max(np.abs(src_ST.sum(0)).max(), np.abs(src_ST).max())
    src_ST = np.round(src_ST * (PEAK / peak * 2**15)).astype(np.int16)
    name = "_".join(
        f"{utterance}_{level:.5g}"
        for (utterance, _), level in zip(parts, levels_db, strict=True)
    )
    _write(folder / "mix" / f"{name}.wav", src_ST.sum(0, dtype=np.int16), sample_rate)
    for number, source_T in enumerate(src_ST, start=1):
        _write(folder / f"s{number}" / f"{name}.wav", source_T, sample_rate)


def _write(path: Path, wave_T: np.ndarray, sample_rate: int) -> None:
    """Write 16-bit samples as WAV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave_T, sample_rate, subtype="PCM_16")


def main() -> int:
    """Make the corpus from the command line."""
    return command_line(generate, vars(Parameters()), __doc__)


if __name__ == "__main__":
    sys.exit(main())
