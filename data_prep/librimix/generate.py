r"""LibriMix from LibriSpeech, WHAM! noise and the metadata that says what goes where.

    python -m data_prep.librimix generate --librispeech=/data/LibriSpeech \
        --wham_noise=/data/wham_noise --metadata=/data/LibriMix/metadata --out=/data

The metadata is at github.com/JorisCos/LibriMix. The same command continues what was
stopped, and other `--sets`, `--sample_rates`, `--modes` and `--types` can be added to
the same folder later.

The recipe is the original's: gains are applied at 16 kHz, `scipy.signal.resample_poly`
changes the rate, then all is cut to the shortest or padded to the longest. libsndfile
rounds the mixture and each of its parts to 16 bits. A noise too short for the longest
talker is repeated; a Hann window of one second fades each repeat into the next. The
first channel of stereo noise is taken. Where the metadata names a noise played at 0.8
or 1.2 times its speed (`...sp08.wav`, made with sox by the original) and there is no
such file, it is made from the noise by resampling.

Legend: T sample.
"""

import contextlib
import functools
import hashlib
import itertools
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.signal import resample_poly

from data_prep.common.jobs import check_missing, claim_folder, make_all
from data_prep.common.layout import folder_of
from data_prep.common.versions import check_choices, check_versions
from data_prep.librimix.audio import (
    RATE,
    corpus_folder,
    find_noise,
    find_speech,
    read_parts,
)
from data_prep.librimix.manifests import LIBRIMIX
from data_prep.librimix.metadata import Mixture, find_metadata, read_metadata
from modules.audio.io import write_wave
from modules.runtime.errors import DataError
from modules.runtime.files import write_text
from modules.runtime.tables import write_table

TYPES = tuple(LIBRIMIX.mixtures)


class Job(NamedTuple):
    """A mixture of a set, `train-100`, `train-360`, `dev` or `test`."""

    set_name: str
    mixture: Mixture

    @property
    def talkers(self) -> range:
        """The numbers of the talkers."""
        return range(1, len(self.mixture.sources) + 1)


@dataclass(frozen=True)
class Plan:
    """Where the audio comes from, where it goes, and in which versions.

    `wham_noise` is None if no version needs the noise.
    """

    librispeech: Path
    wham_noise: Path | None
    root: Path
    sample_rates: tuple[int, ...]
    modes: tuple[str, ...]
    types: tuple[str, ...]

    @property
    def versions(self) -> list[tuple[int, str]]:
        """The pairs of rate and mode."""
        return list(itertools.product(self.sample_rates, self.modes))

    @property
    def notes(self) -> Path:
        """Where the rows of the tables wait until all mixtures are made."""
        rates = "+".join(f"{rate // 1000}k" for rate in self.sample_rates)
        names = (rates, "+".join(self.modes), "+".join(self.types))
        return self.root / ".notes" / "_".join(names)

    def note(self, job: Job) -> Path:
        """The file of a mixture's rows."""
        return self.notes / job.set_name / f"{job.mixture.name}.json"

    def table(self, kind: str, rate: int, mode: str, set_name: str, type_: str) -> Path:
        """A CSV of the original: `kind` is mixture or metrics."""
        name = f"{kind}_{set_name}_{type_}.csv"
        return self.root / folder_of(rate, mode) / "metadata" / name

    def has_tables(self, set_name: str) -> bool:
        """Whether all CSVs of a set are written."""
        tables = itertools.product(("mixture", "metrics"), self.versions, self.types)
        return all(
            self.table(kind, *version, set_name, type_).is_file()
            for kind, version, type_ in tables
        )

    def waves(self, job: Job, rate: int, mode: str) -> dict[str, Path]:
        """The audio files of a mixture in one version, by the name of their folder."""
        parts = [f"s{number}" for number in job.talkers]
        parts += [*(["noise"] if self.wham_noise else []), *self.types]
        place = self.root / folder_of(rate, mode) / job.set_name
        return {part: place / part / f"{job.mixture.name}.wav" for part in parts}


def generate(
    librispeech: str | Path,
    metadata: str | Path,
    out: str | Path,
    wham_noise: str | Path | None = None,
    num_spks: int = 2,
    sample_rates: Sequence[int] = (8000, 16000),
    modes: Sequence[str] = ("min", "max"),
    types: Sequence[str] = TYPES,
    sets: Sequence[str] | None = None,
    workers: int | None = None,
) -> Path:
    """Make all mixtures of the metadata that are not there yet; return their folder.

    Arguments
    ---------
    librispeech : str | Path
        The folder of `train-clean-100` and so on, or its parent.
    metadata : str | Path
        The folder of `libri2mix_dev-clean.csv` and so on, or its parent.
    out : str | Path
        Where `Libri2Mix` (or `Libri3Mix`) is made.
    wham_noise : str | Path | None
        The folder of `tr`, `cv` and `tt`, or its parent; None for mix_clean alone.
    num_spks : int
        2 or 3.
    sample_rates, modes, types : Sequence
        Versions to make: 8000, 16000; "min", "max"; mix_clean, mix_both, mix_single.
    sets : Sequence[str] | None
        LibriSpeech's names of the sets; None makes all that the metadata has.
    workers : int | None
        Number of processes, which does not change the files; None: one for each core.
    """
    check_choices("num_spks", [num_spks], (2, 3))
    check_versions(sample_rates, modes)
    check_choices("types", types, TYPES)
    is_noisy = set(types) != {"mix_clean"}
    if wham_noise is None and is_noisy:
        names = " and ".join(types)
        raise DataError(f"{names} need --wham_noise; or --types mix_clean")
    root = Path(out) / f"Libri{num_spks}Mix"
    noise = corpus_folder(wham_noise, "wham_noise") if wham_noise else None
    plan = Plan(
        corpus_folder(librispeech, "LibriSpeech"),
        noise if is_noisy else None,
        root,
        tuple(dict.fromkeys(sample_rates)),
        tuple(dict.fromkeys(modes)),
        tuple(dict.fromkeys(types)),
    )
    files = find_metadata(Path(metadata), num_spks, sets)
    jobs = [
        Job(name.replace("-clean", ""), mixture)
        for name, path in files.items()
        for mixture in read_metadata(path, num_spks)
    ]
    _check_sources(plan, jobs)
    claim_folder(root, {"made_by": "data_prep.librimix generate", "num_spks": num_spks})
    for name, path in files.items():
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        claim_folder(root / "metadata" / name, {"sha256 of the metadata": digest})
    set_names = dict.fromkeys(job.set_name for job in jobs)
    listed = {name: plan.has_tables(name) for name in set_names}

    def outputs(job: Job) -> Iterator[Path]:
        for version in plan.versions:
            yield from plan.waves(job, *version).values()
        if not listed[job.set_name]:
            yield plan.note(job)

    make_all(functools.partial(_make, plan), jobs, outputs, workers, root.name)
    for name in set_names:
        if not listed[name]:
            _write_tables(plan, name, [job for job in jobs if job.set_name == name])
    shutil.rmtree(plan.notes, ignore_errors=True)
    with contextlib.suppress(OSError):  # another, unfinished command's notes
        plan.notes.parent.rmdir()
    return root


def _check_sources(plan: Plan, jobs: Sequence[Job]) -> None:
    """List missing files at the start, not hours later."""
    paths: dict[Path, str] = {}
    for job in jobs:
        for part in job.mixture.sources:
            paths[find_speech(plan.librispeech, part.path)] = "--librispeech"
        if plan.wham_noise:
            if job.mixture.noise is None:
                hint = "use --types mix_clean, or metadata with noise"
                fault = "the metadata has no noise for it"
                raise DataError(f"{job.mixture.name}: {fault}; {hint}")
            path, _ = find_noise(plan.wham_noise, job.mixture.noise.path)
            paths[path] = "--wham_noise"
    missing = [path for path in paths if not path.is_file()]
    options = " and ".join(sorted({paths[path] for path in missing}))
    hint = f"correct {options}, or leave sets out by --sets"
    check_missing([str(path) for path in missing], len(paths), hint)


def _make(plan: Plan, job: Job) -> None:
    """Write the files of one mixture and note its rows of the tables."""
    scaled = read_parts(plan.librispeech, plan.wham_noise, job.mixture)
    note: dict[str, dict[str, int | list[float]]] = {}
    for rate in plan.sample_rates:
        parts = [resample_poly(wave_T, rate, RATE) for wave_T in scaled]
        for mode in plan.modes:
            length = (min if mode == "min" else max)(map(len, parts))
            fitted = [_fit(wave_T, length) for wave_T in parts]
            files = plan.waves(job, rate, mode)
            waves = dict(zip(files, fitted, strict=False))  # the parts come first
            for part, wave_T in waves.items():
                write_wave(files[part], wave_T, rate)
            for type_ in plan.types:
                used = [waves[part] for part in LIBRIMIX.summands(type_, job.talkers)]
                mixed_T = functools.reduce(np.add, used)
                write_wave(files[type_], mixed_T, rate)
                note[f"{rate} {mode} {type_}"] = {
                    "length": length,
                    "snr": [_snr_db(wave_T, mixed_T) for wave_T in used],
                }
    write_text(plan.note(job), json.dumps(note), sync=False)


def _fit(wave_T: np.ndarray, length: int) -> np.ndarray:
    """Cut a wave, or pad it with zeros, to a length."""
    return np.pad(wave_T[:length], (0, max(0, length - len(wave_T))))


def _snr_db(part_T: np.ndarray, mixture_T: np.ndarray) -> float:
    """Return the level of a part relative to all else in the mixture."""
    part = np.square(part_T, dtype=np.float64).mean()
    rest = np.square(mixture_T - part_T, dtype=np.float64).mean()
    return 10 * math.log10(part / (rest + 1e-10) + 1e-10)


def _write_tables(plan: Plan, set_name: str, jobs: Sequence[Job]) -> None:
    """Write the original's CSVs: a mixture's files, and how loud its parts are."""
    notes = [_read_note(plan.note(job)) for job in jobs]
    for rate, mode in plan.versions:
        for type_ in plan.types:
            parts = LIBRIMIX.summands(type_, jobs[0].talkers)
            labels = [p if p == "noise" else f"source_{p[1:]}" for p in parts]
            files, snrs = [], []
            for job, note in zip(jobs, notes, strict=True):
                row = note[f"{rate} {mode} {type_}"]
                waves = plan.waves(job, rate, mode)
                paths = [waves[part].absolute() for part in (type_, *parts)]
                files.append([job.mixture.name, *paths, row["length"]])
                snrs.append([job.mixture.name, *row["snr"]])
            version = (rate, mode, set_name, type_)
            header = ["mixture_ID", "mixture_path", *(f"{x}_path" for x in labels)]
            write_table(plan.table("mixture", *version), [*header, "length"], files)
            header = ["mixture_ID", *(f"{label}_SNR" for label in labels)]
            write_table(plan.table("metrics", *version), header, snrs)


def _read_note(path: Path) -> dict[str, dict]:
    """Return the rows of one mixture."""
    try:
        return json.loads(path.read_text())
    except ValueError:  # a power cut has spoilt it
        raise DataError(f"{path}: is damaged; remove it and start again") from None
