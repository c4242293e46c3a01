r"""Make WHAM! from WSJ0-2mix and noise; the same command again continues.

    python -m data_prep.wham generate --wsj0mix=/data/wsj0-mix/2speakers \
        --wham_noise=/data/wham_noise --out=/data/wham \
        [--sample_rates 8000 16000] [--modes min max] [--workers=8]

`wham_noise` is the noise archive: `{tr,cv,tt}/*.wav` at 16 kHz, of which the left
channel is used. With its `metadata/scaling_{tr,cv,tt}.npz` the set is WHAM! itself.
Without, or with other noise, it is drawn by WHAM!'s rules for each mixture's name: the
first speaker is U(-3, 6) dB above the noise in BS.1770 loudness, the noise begins
U(0, 2) s before the speech and ends as much after it, and where a peak would pass 0.95
everything is turned down. `metadata/placement_{tr,cv,tt}.csv` notes what was drawn;
`--placement=FOLDER` takes it in place of a draw. All files are float WAV.

Legend: S source, T sample.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.signal import resample_poly

from data_prep.common.jobs import claim_folder, digest_of, make_all
from data_prep.common.versions import (
    NOISE_RATE,
    SETS,
    check_versions,
    files_of,
    frames_of,
    mixture_lengths,
    read_left,
)
from data_prep.wham import noise
from data_prep.wham.manifests import WHAM
from data_prep.wham.scales import Scales, read_scales
from modules.audio.io import write_wave
from modules.audio.levels import loudness_db
from modules.runtime.errors import DataError
from modules.runtime.files import write_text
from modules.runtime.tables import table_text

PARTS = (*WHAM.mixtures, "s1", "s2", "noise")
PEAK = 0.95


@dataclass(frozen=True)
class Mixture:
    """One mixture in all versions, with the published scales if there are any."""

    split: str
    placement: noise.Placement
    scales: Scales | None


def generate(
    wsj0mix: str | Path,
    wham_noise: str | Path,
    out: str | Path,
    sample_rates: Sequence[int] = (8000, 16000),
    modes: Sequence[str] = ("min", "max"),
    seed: int = 0,
    placement: str | Path | None = None,
    workers: int | None = None,
) -> int:
    """Make WHAM! from WSJ0-2mix and noise; return the number of mixtures made.

    The others were there already: the same call again continues.

    Arguments
    ---------
    wsj0mix : str | Path
        Has `wav{8k,16k}/{min,max}/{tr,cv,tt}/{s1,s2}` for every version wanted, as
        `data_prep.wsj0mix generate` makes it.
    wham_noise : str | Path
        The noise archive.
    out : str | Path
        An empty or new folder.
    sample_rates, modes : Sequence
        The versions to make.
    seed : int
        Decides, with the name of a mixture, what is drawn for it.
    placement : str | Path | None
        Folder of `placement_{tr,cv,tt}.csv` to use instead of drawing.
    workers : int | None
        Number of processes, which does not change the files; None: one for each core.
    """
    wsj0mix, wham_noise = Path(wsj0mix).absolute(), Path(wham_noise).absolute()
    versions = check_versions(sample_rates, modes)
    published = [wham_noise / "metadata" / f"scaling_{split}.npz" for split in SETS]
    present = [path.is_file() for path in published]
    if any(present) != all(present):
        missing = published[present.index(False)]
        raise DataError(f"{missing}: does not exist, but others of its kind do")
    exact = all(present) and placement is None
    mixtures: list[Mixture] = []
    tables: dict[str, str] = {}
    for split, path in zip(SETS, published, strict=True):
        lengths = mixture_lengths(wsj0mix, split, versions)
        scales = read_scales(path, lengths, versions) if exact else {}
        if placement is not None:
            table = Path(placement) / f"placement_{split}.csv"
            placements = noise.read_placements(table, lengths)
        elif exact:
            placements = noise.published_placements(wham_noise / split, scales)
        else:
            placements = noise.draw_placements(wham_noise / split, lengths, seed)
        tables[split] = table_text(noise.COLUMNS, placements)
        mixtures += [Mixture(split, p, scales.get(p.utterance_id)) for p in placements]
    settings = {
        "set": "wham",
        "sample_rates": sorted(set(sample_rates)),
        "modes": sorted(set(modes)),
        "scales": "published" if exact else "by loudness",
        "placement": digest_of("".join(tables.values())),
    }
    out = claim_folder(Path(out).absolute(), settings)
    for split, text in tables.items():
        write_text(out / "metadata" / f"placement_{split}.csv", text)
    make = functools.partial(_make, wsj0mix, wham_noise, out, versions)

    def outputs(mixture: Mixture) -> list[Path]:
        name = mixture.placement.utterance_id
        return files_of(out, versions, mixture.split, PARTS, name)

    return make_all(make, mixtures, outputs, workers, "WHAM!")


def _make(
    wsj0mix: Path,
    wham_noise: Path,
    out: Path,
    versions: Sequence[tuple[int, str]],
    mixture: Mixture,
) -> None:
    """Write one mixture in all versions."""
    split, place = mixture.split, mixture.placement
    noise_file = wham_noise / split / place.noise_file
    frames = min(frames_of(noise_file, NOISE_RATE), place.noise_frames)
    recording_T = read_left(noise_file, NOISE_RATE, place.noise_start, frames)
    recording_T = noise.extend(recording_T, place.noise_frames, NOISE_RATE)
    rates = {rate for rate, _ in versions}
    noises = {rate: resample_poly(recording_T, rate, NOISE_RATE) for rate in rates}
    for rate, mode in versions:
        version = [(rate, mode)]
        paths = files_of(wsj0mix, version, split, ("s1", "s2"), place.utterance_id)
        src_ST = read_sources(paths, rate)
        start = place.speech_start * rate // NOISE_RATE
        under_T = noises[rate][start : start + src_ST.shape[1]]
        if len(under_T) < src_ST.shape[1]:
            fault = f"ends before the speech of {paths[0]} placed in it"
            raise DataError(f"{noise_file}: {fault}; is this another version?")
        if mixture.scales:
            speech_gain, noise_gain = mixture.scales.by_version[rate, mode]
        else:
            ratio = level_ratio((noise_file, under_T), (paths[0], src_ST[0]), rate)
            speech_gain, noise_gain = 10 ** (place.snr_db / 20) * ratio, 1.0
        if mode == "max":
            after = len(noises[rate]) - start - src_ST.shape[1]
            src_ST, under_T = np.pad(src_ST, ((0, 0), (start, after))), noises[rate]
        waves = mix(speech_gain * src_ST, noise_gain * under_T)
        peak = max(np.abs(wave_T).max() for wave_T in waves.values())
        scale = 1.0 if mixture.scales else min(1.0, PEAK / peak)
        paths = files_of(out, version, split, PARTS, place.utterance_id)
        for part, path in zip(PARTS, paths, strict=True):
            wave_T = (scale * waves[part]).astype(np.float32)
            write_wave(path, wave_T, rate, "FLOAT")


def read_sources(paths: Sequence[Path], sample_rate: int) -> np.ndarray:
    """Read files of equal length into an array of shape [S, T]."""
    waves = [read_left(path, sample_rate) for path in paths]
    for path, wave_T in zip(paths, waves, strict=True):
        if len(wave_T) != len(waves[0]):
            fault = f"has {len(wave_T)} samples, {paths[0]} {len(waves[0])}"
            raise DataError(f"{path}: {fault}")
    return np.stack(waves)


def mix(src_ST: np.ndarray, noise_T: np.ndarray) -> dict[str, np.ndarray]:
    """Return all parts of a mixture by name, each of shape [T]."""
    return {
        "mix_clean": src_ST.sum(0),
        "mix_single": src_ST[0] + noise_T,
        "mix_both": src_ST.sum(0) + noise_T,
        "s1": src_ST[0],
        "s2": src_ST[1],
        "noise": noise_T,
    }


def level_ratio(
    wanted: tuple[Path, np.ndarray], given: tuple[Path, np.ndarray], sample_rate: int
) -> float:
    """Return the gain that makes the second wave as loud as the first."""
    levels = [loudness_db(wave_T, sample_rate) for _, wave_T in (wanted, given)]
    for level, (path, _) in zip(levels, (wanted, given), strict=True):
        if not math.isfinite(level):
            raise DataError(f"{path}: is silent where it is to be mixed; remove it")
    return 10 ** ((levels[0] - levels[1]) / 20)
