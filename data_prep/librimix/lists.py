"""What LibriMix can be drawn from: lists of utterances and noises, by length.

The lists are written as the original's CSVs, `LibriSpeech/SET.csv` and
`Wham_noise/{train,dev,test}.csv`.
"""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import soundfile

from data_prep.librimix.audio import FADE, RATE, SPEEDS
from data_prep.librimix.metadata import write_table
from modules.data.manifest import THREADS
from modules.runtime.errors import DataError
from modules.runtime.files import list_files

logger = logging.getLogger(__name__)

MIN_SECONDS = 3.0

NOISE_SETS = {"train": "tr", "dev": "cv", "test": "tt"}


class Talk(NamedTuple):
    """An utterance: its file below LibriSpeech, samples, who speaks."""

    path: str
    length: int
    speaker: str
    sex: str

    @property
    def name(self) -> str:
        """Speaker, chapter and number."""
        return Path(self.path).stem


class Noise(NamedTuple):
    """A noise: its file below WHAM! noise, samples, whether its speed is changed."""

    path: str
    length: int
    augmented: bool


def sets_of(librispeech: Path) -> list[str]:
    """The sets of the published LibriMix that there are."""
    known = ("train-clean-100", "train-clean-360", "dev-clean", "test-clean")
    found = [name for name in known if (librispeech / name).is_dir()]
    if not found:
        raise DataError(f"{librispeech}: holds none of {', '.join(known)}")
    return found


def list_talks(librispeech: Path, name: str, out: Path) -> list[Talk]:
    """The utterances of a set by length, also written as the original's CSV."""
    sexes = _read_sexes(librispeech / "SPEAKERS.TXT")
    files = list_files(librispeech / name, "*/*/*.flac")
    talks = [
        Talk(str(file.relative_to(librispeech)), length, file.parts[-3], "")
        for file, length in zip(files, _lengths(files), strict=True)
        if length >= MIN_SECONDS * RATE
    ]
    if not talks:
        raise DataError(
            f"{librispeech / name}: holds no SPEAKER/CHAPTER/*.flac of {MIN_SECONDS:g} "
            "s or more"
        )
    talks = [talk._replace(sex=sexes.get(talk.speaker, "")) for talk in talks]
    talks.sort(key=lambda talk: (talk.length, talk.path))
    write_table(
        out / "LibriSpeech" / f"{name}.csv",
        ["speaker_ID", "sex", "subset", "length", "origin_path"],
        [[t.speaker, t.sex, name, t.length, t.path] for t in talks],
    )
    return talks


def list_noises(wham_noise: Path, name: str, out: Path) -> list[Noise]:
    """The noises of a set by length; those of training at two more speeds."""
    kind = next((kind for kind in NOISE_SETS if name.startswith(kind)), None)
    if kind is None:
        raise DataError(f"{name}: is no set of training, dev or test")
    folder = wham_noise / NOISE_SETS[kind]
    # Those at other speeds may be there, made by the original: they are known anyway.
    files = [
        file
        for file in list_files(folder, "*.wav")
        if not file.stem.endswith(tuple(SPEEDS))
    ]
    noises = []
    for file, length in zip(files, _lengths(files), strict=True):
        path = str(file.relative_to(wham_noise))
        noises.append(Noise(path, length, False))
        if kind == "train":
            noises += [
                Noise(f"{path[:-4]}{speed}.wav", -(-length * up // down), True)
                for speed, (up, down) in SPEEDS.items()
            ]
    noises = [noise for noise in noises if noise.length > FADE]
    if not noises:
        raise DataError(f"{folder}: holds no *.wav of more than {FADE / RATE:.1f} s")
    noises.sort(key=lambda noise: (noise.length, noise.path))
    write_table(
        out / "Wham_noise" / f"{kind}.csv",
        ["noise_ID", "subset", "length", "augmented", "origin_path"],
        [
            [Path(n.path).name, NOISE_SETS[kind], n.length, n.augmented, n.path]
            for n in noises
        ],
    )
    return noises


def _lengths(files: Sequence[Path]) -> list[int]:
    """Samples of each file, by several threads; all must be at 16 kHz."""

    def length_of(file: Path) -> int:
        try:
            info = soundfile.info(file)
        except (soundfile.LibsndfileError, OSError) as error:
            raise DataError(f"{file} cannot be read as audio ({error})") from None
        if info.samplerate != RATE:
            raise DataError(f"{file} is at {info.samplerate} Hz, expected {RATE} Hz")
        return info.frames

    with ThreadPoolExecutor(THREADS) as threads:
        return list(threads.map(length_of, files))


def _read_sexes(path: Path) -> dict[str, str]:
    """LibriSpeech's SPEAKERS.TXT: F or M by speaker; nothing where it is missing."""
    if not path.is_file():
        logger.warning("%s: does not exist; the sexes of the speakers stay empty", path)
        return {}
    lines = path.read_text(encoding="utf-8").splitlines()
    fields = [line.split("|") for line in lines if not line.startswith(";")]
    return {cells[0].strip(): cells[1].strip() for cells in fields if len(cells) > 1}
