r"""Make WSJ0-2mix and WSJ0-3mix from WSJ0 and the public lists, as first published.

    python -m data_prep.wsj0mix generate --wsj0=FOLDER --lists=FOLDER --out=FOLDER \
        [--num_spks=2] [--sample_rates 8000 16000] [--modes min max] [--levels=FILE]

`--wsj0` holds `wsj0/si_tr_s`, `si_dt_05` and `si_et_05`; `--lists` the files
`mix_{2,3}_spk_{tr,cv,tt}.txt`, in whose lines utterances and levels in dB take turns.
The recipe, utterance by utterance:

1. level = active speech level (ITU-T P.56) of the utterance at 8 kHz, also for 16 kHz;
   read from `--levels` (lines `utterance power`) if given, else measured;
2. gain = 10^(dB / 20) / sqrt(level);
3. cut to the shortest (min) or pad with zeros to the longest (max), add;
4. scale all by 0.9 / the highest peak of mixture and sources, round to 16 bits.

The files are `{2,3}speakers/wav{8k,16k}/{min,max}/{tr,cv,tt}/{mix,s1,s2[,s3]}/NAME`,
named by utterances and levels. They are the same for any number of workers, and the
same command continues one that was stopped.

Legend: S source, T sample.
"""

import functools
import math
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from scipy.signal import resample_poly

from data_prep.common.jobs import check_missing, claim_folder, digest_of, make_all
from data_prep.common.versions import (
    SETS,
    check_choices,
    check_versions,
    files_of,
    folder_of,
)
from modules.audio.io import open_whole, write_wave
from modules.audio.levels import MIXTURE_PEAK, p56_power
from modules.runtime.errors import DataError
from modules.runtime.files import list_files, walk_files

# Lists say .wav; WSJ0's discs hold .wv1 (SPHERE), and .wv2 of another microphone.
SUFFIXES = (".wav", ".wv1", ".sph", ".flac")
OTHER_MICROPHONE = ".wv2"

LEVEL_RATE = 8000

# Part of the folder's settings: raise it when the same lists would give other files.
FORMAT = 1


@dataclass(frozen=True)
class Mixture:
    """A line of a list: utterances, their levels, and the split they are for."""

    split: str
    utterances: tuple[str, ...]
    levels_db: tuple[float, ...]
    files: tuple[str, ...] = field(default=(), repr=False)

    @property
    def name(self) -> str:
        """The name of its files: utterances and levels as Matlab's num2str writes them.

        >>> Mixture("tr", ("wsj0/a/01t.wav", "wsj0/b/20g.wav"), (0.5, -0.5)).name
        '01t_0.5_20g_-0.5'
        """
        parts = zip(self.utterances, self.levels_db, strict=True)
        return "_".join(f"{Path(path).stem}_{db:.8g}" for path, db in parts)


@dataclass(frozen=True)
class Recipe:
    """Paths and settings of all mixtures of a data set, sent to every worker."""

    out: Path
    versions: list[tuple[int, str]]
    powers: dict[str, float] | None

    def outputs(self, mixture: Mixture) -> list[Path]:
        """Return all files of a mixture."""
        parts = _parts(len(mixture.utterances))
        return files_of(self.out, self.versions, mixture.split, parts, mixture.name)


def _parts(num_spks: int) -> list[str]:
    return ["mix", *(f"s{k + 1}" for k in range(num_spks))]


def generate(
    wsj0: str | Path,
    lists: str | Path,
    out: str | Path,
    num_spks: int = 2,
    sample_rates: Sequence[int] = (8000, 16000),
    modes: Sequence[str] = ("min", "max"),
    levels: str | Path | None = None,
    workers: int | None = None,
) -> Path:
    """Write the mixtures of three lists that are not there yet; return their folder.

    Arguments
    ---------
    wsj0 : str | Path
        The folder that holds `wsj0/`, or discs (`11-1.1/wsj0`), or `wsj0` itself.
        Names may be in capitals.
    lists : str | Path
        Holds `mix_{num_spks}_spk_{tr,cv,tt}.txt`.
    out : str | Path
        `{num_spks}speakers` is made in it.
    num_spks : int
        Sources of a mixture.
    sample_rates, modes : Sequence
        Versions to write. More can be added by another call.
    levels : str | Path | None
        A file of lines `utterance power`, or a folder of such files (`*.txt`).
    workers : int | None
        Number of processes, which does not change the files; None: one for each core.
    """
    check_choices("num_spks", [num_spks], (2, 3))
    versions = check_versions(sample_rates, modes)
    listed: list[Mixture] = []
    for split in SETS:
        path = Path(lists) / f"mix_{num_spks}_spk_{split}.txt"
        listed += read_list(path, split, num_spks)
    powers = None if levels is None else read_powers(Path(levels))
    root = Path(out) / f"{num_spks}speakers"
    settings = {
        "made_by": "data_prep.wsj0mix",
        "format": FORMAT,
        "lists": digest_of("\n".join(map(repr, listed))),
        "levels": "P.56",
    }
    if powers is not None:
        settings["levels"] = digest_of("\n".join(map(repr, sorted(powers.items()))))
    jobs = _find_utterances(Path(wsj0), listed)
    recipe = Recipe(root, versions, powers)
    claim_folder(root, settings)
    make = functools.partial(make_mixture, recipe)
    make_all(make, jobs, recipe.outputs, workers, f"WSJ0-{num_spks}mix")
    return root


def read_list(path: Path, split: str, num_spks: int) -> list[Mixture]:
    """Return the mixtures of a list; errors name file and line."""
    numbers: dict[str, int] = {}
    mixtures = []
    for number, line in _read_lines(path):
        place, fields = f"{path}, line {number}", line.split()
        if len(fields) != 2 * num_spks:
            expected = f"an utterance and a level for each of {num_spks} talkers"
            raise DataError(f"{place}: has {len(fields)} fields, expected {expected}")
        try:
            levels = tuple(map(float, fields[1::2]))
        except ValueError:
            levels = (math.nan,)
        if not all(map(math.isfinite, levels)):
            raise DataError(f"{place}: levels are {fields[1::2]}, expected dB")
        mixture = Mixture(split, tuple(fields[::2]), levels)
        first = numbers.setdefault(mixture.name, number)
        if first != number:
            raise DataError(f"{place}: is the mixture of line {first} once more")
        mixtures.append(mixture)
    if not mixtures:
        raise DataError(f"{path}: lists no mixture")
    return mixtures


def read_powers(path: Path) -> dict[str, float]:
    """Read active powers by utterance, from a file or all `*.txt` of a folder."""
    files = list_files(path, "*.txt") if path.is_dir() else [path]
    if not files:
        raise DataError(f"{path}: holds no *.txt with lines 'utterance power'")
    powers = {}
    for file in files:
        for number, line in _read_lines(file):
            try:
                utterance, power = line.split()
                powers[utterance] = float(power)
                if not 0 < powers[utterance] < math.inf:
                    raise ValueError
            except ValueError:
                expected = "an utterance and its active power, above 0"
                fault = f"line {number}: is {line!r}, expected {expected}"
                raise DataError(f"{file}, {fault}") from None
    return powers


def _read_lines(path: Path) -> list[tuple[int, str]]:
    """Return the lines of a text file that are not blank, with their numbers."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise DataError(f"{path}: does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text ({error})") from None
    return [(k, line) for k, line in enumerate(lines, start=1) if line.strip()]


def _find_utterances(folder: Path, mixtures: Sequence[Mixture]) -> list[Mixture]:
    """Return the mixtures with the files of their utterances, whatever their case."""
    folder = folder.absolute()  # the name of "." is empty
    roots = [folder] if folder.name.lower() == "wsj0" else []
    for depth in ("*", "*/*"):  # the second: of discs
        roots = roots or [p for p in folder.glob(depth) if p.name.lower() == "wsj0"]
    by_stem: dict[str, dict[str, str]] = defaultdict(dict)
    for root in sorted(roots):
        for place, names in walk_files(root):
            for name in sorted(names):
                stem, suffix = os.path.splitext(name.lower())
                key = "/".join([*place.lower().split("/")[-2:], stem])
                by_stem[key].setdefault(suffix, os.path.join(place, name))
    if not by_stem:
        raise DataError(f"{folder}: holds no folder wsj0; give the folder that does")
    files, missing = {}, []
    for path in dict.fromkeys(path for one in mixtures for path in one.utterances):
        stem, suffix = os.path.splitext("/".join(path.lower().split("/")[-3:]))
        found = by_stem[stem]
        fitting = [found[one] for one in (suffix, *SUFFIXES) if one in found]
        files[path] = fitting[0] if fitting else ""
        if not fitting:
            other = found.get(OTHER_MICROPHONE)
            also = f" ({other} is of the other microphone)" if other else ""
            missing.append(path + also)
    hint = f"looked in {folder} for {', '.join(SUFFIXES)}; copy them from the discs"
    check_missing(missing, len(files), hint)
    return [
        replace(mixture, files=tuple(files[path] for path in mixture.utterances))
        for mixture in mixtures
    ]


def make_mixture(recipe: Recipe, mixture: Mixture) -> None:
    """Write all versions of one mixture."""
    rates = {rate for rate, _ in recipe.versions}
    waves: dict[int, list[np.ndarray]] = {rate: [] for rate in rates}
    named = zip(mixture.utterances, mixture.levels_db, mixture.files, strict=True)
    for path, level_db, file in named:
        wave_T, rate = _read_utterance(Path(file))
        if recipe.powers is None:
            power = p56_power(resample_poly(wave_T, LEVEL_RATE, rate), LEVEL_RATE)
        elif (stem := Path(path).stem) in recipe.powers:
            power = recipe.powers[stem]
        else:
            hint = "leave it out to measure all levels"
            raise DataError(f"--levels: has no line for {stem} ({path}); {hint}")
        gain = 10 ** (level_db / 20) / math.sqrt(power)
        for new in rates:
            waves[new].append(gain * resample_poly(wave_T, new, rate))
    for rate, mode in recipe.versions:
        pcm_ST = mix(waves[rate], mode)
        folder = recipe.out / folder_of(rate, mode) / mixture.split
        for part, pcm_T in zip(_parts(len(pcm_ST) - 1), pcm_ST, strict=True):
            write_wave(folder / part / f"{mixture.name}.wav", pcm_T, rate)


def mix(waves: Sequence[np.ndarray], mode: str) -> np.ndarray:
    """Mix sources [T] at their levels; return mixture and sources as int16 [1 + S, T].

    "min" cuts to the shortest, "max" pads to the longest. The highest peak of all is
    `MIXTURE_PEAK` of full scale.
    """
    length = (min if mode == "min" else max)(map(len, waves))
    all_ST = np.zeros((1 + len(waves), length))
    for row_T, wave_T in zip(all_ST[1:], waves, strict=True):
        row_T[: len(wave_T)] = wave_T[:length]
    all_ST[0] = all_ST[1:].sum(0)
    scale = MIXTURE_PEAK / max(all_ST.max(), -all_ST.min())
    all_ST *= 2**15 * scale
    return np.round(all_ST, out=all_ST).astype(np.int16)


def _read_utterance(path: Path) -> tuple[np.ndarray, int]:
    """Read samples [T] in float64 and rate of an utterance."""
    with open(path, "rb") as file:
        header = file.read(1024)
    if header.startswith(b"NIST_1A") and b"shorten" in header:
        raise DataError(
            f"{path}: is SPHERE compressed by shorten, which no maintained library "
            f"reads; convert: sph2pipe -f wav {path} {path.with_suffix('.wav')}"
        )
    with open_whole(path) as audio:
        rate, wave_TC = audio.header.sample_rate, audio.read(dtype="float64")
    if wave_TC.shape[1] != 1:
        raise DataError(f"{path}: has {wave_TC.shape[1]} channels, expected mono")
    if not np.isfinite(wave_TC).all() or not wave_TC.any():
        raise DataError(f"{path}: is empty, silent or holds NaN; replace it")
    return wave_TC[:, 0], rate
