r"""Generate WHAMR! from WHAM!: the same mixtures, heard in simulated rooms.

    python -m data_prep.whamr generate --wham=/data/wham --out=/data/whamr \
        [--rooms=FOLDER] [--sample_rates 8000 16000] [--modes min max] [--workers=8]

`wham` is the set that `data_prep.wham generate` makes, at 16 kHz at least: the rooms
are simulated at that rate. `rooms` holds the public `reverb_params_{tr,cv,tt}.csv`;
a set without its file gets rooms drawn from WHAMR!'s ranges, each by the name of its
mixture. All rooms are written to `metadata/`, in the same form.

Written as float WAV: {mix_clean,mix_single,mix_both,s1,s2}_{anechoic,reverb} and noise,
in the folders of WHAM!. "anechoic" is the direct path alone, so it has the delay of the
reverberant source, and it has the energy that the source has in WHAM!; "reverb" has the
same gain. There is one channel, the left microphone.

To simulate a room takes about 0.3 s of one core, most of a mixture's time.

Legend: S source, T sample.
"""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.signal import oaconvolve, resample_poly

from data_prep.common.jobs import claim_folder, digest_of, make_all
from data_prep.common.versions import (
    NOISE_RATE,
    SETS,
    check_versions,
    files_of,
    folder_of,
    mixture_lengths,
    read_left,
)
from data_prep.wham.generate import mix, read_sources
from data_prep.whamr.manifests import KINDS, SPOKEN
from data_prep.whamr.rooms import Placed, draw_room, read_rooms, table_of
from modules.audio.io import write_wave
from modules.audio.rooms import impulse_responses
from modules.runtime.errors import DataError
from modules.runtime.files import write_text

PARTS = (*(f"{part}_{kind}" for kind in KINDS for part in SPOKEN), "noise")

# A job: the split of a mixture, and its room.
Job = tuple[str, Placed]


def generate(
    wham: str | Path,
    out: str | Path,
    rooms: str | Path | None = None,
    sample_rates: Sequence[int] = (8000, 16000),
    modes: Sequence[str] = ("min", "max"),
    seed: int = 0,
    workers: int | None = None,
) -> int:
    """Put WHAM! into rooms; return the number of mixtures made.

    The others were there already: the same call again continues.

    Arguments
    ---------
    wham : str | Path
        WHAM!, with `wav16k` for every mode wanted.
    out : str | Path
        An empty or new folder.
    rooms : str | Path | None
        Folder of `reverb_params_{tr,cv,tt}.csv`; None draws all rooms.
    sample_rates, modes : Sequence
        Versions to make.
    seed : int
        Decides, with the name of a mixture, the room that is drawn for it.
    workers : int | None
        Number of processes, which does not change the files; None: one for each core.
    """
    source = Path(wham).absolute()
    versions = check_versions(sample_rates, modes)
    needed = check_versions([*sample_rates, NOISE_RATE], modes)
    folder = None if rooms is None else Path(rooms)
    tables = {s: folder / f"reverb_params_{s}.csv" for s in SETS} if folder else {}
    tables = {split: path for split, path in tables.items() if path.is_file()}
    if folder and not tables:
        raise DataError(f"{rooms}: holds no reverb_params_{{{','.join(SETS)}}}.csv")
    jobs: list[Job] = []
    texts: dict[str, str] = {}
    for split in SETS:
        names = list(mixture_lengths(source, split, needed))
        table = tables.get(split)
        if table:
            placed = read_rooms(table, names)
        else:
            placed = [draw_room(split, name, seed) for name in names]
        print(f"{split}: {len(names)} rooms from {table or f'seed {seed}'}")
        texts[split] = table_of(placed)
        jobs += [(split, room) for room in placed]
    settings = {
        "set": "whamr",
        "sample_rates": sorted(set(sample_rates)),
        "modes": sorted(set(modes)),
        "rooms": digest_of("".join(texts.values())),
    }
    out = claim_folder(Path(out).absolute(), settings)
    for split, text in texts.items():
        write_text(out / "metadata" / f"reverb_params_{split}.csv", text)
    make = functools.partial(_make, source, out, versions)

    def outputs(job: Job) -> list[Path]:
        split, placed = job
        return files_of(out, versions, split, PARTS, placed.utterance_id)

    return make_all(make, jobs, outputs, workers, "WHAMR!")


def _make(
    source: Path, out: Path, versions: Sequence[tuple[int, str]], job: Job
) -> None:
    """Write one mixture in all versions."""
    split, placed = job
    name = f"{placed.utterance_id}.wav"
    responses = {
        "anechoic": impulse_responses(placed.room, NOISE_RATE, max_order=0),
        "reverb": impulse_responses(placed.room, NOISE_RATE),
    }
    for mode in dict.fromkeys(mode for _, mode in versions):
        place = source / folder_of(NOISE_RATE, mode) / split
        dry_ST = read_sources([place / f"s{k}" / name for k in (1, 2)], NOISE_RATE)
        heard = {
            kind: oaconvolve(dry_ST, response_ST, axes=1)[:, : dry_ST.shape[1]]
            for kind, response_ST in responses.items()
        }
        for rate in (rate for rate, its_mode in versions if its_mode == mode):
            folder = folder_of(rate, mode)
            place = source / folder / split
            paths = [place / f"s{k}" / name for k in (1, 2)]
            src_ST = read_sources(paths, rate)
            noise_T = read_left(place / "noise" / name, rate)
            for part, wave_T in in_room(paths, src_ST, noise_T, heard, rate).items():
                path = out / folder / split / part / name
                write_wave(path, wave_T.astype(np.float32), rate, "FLOAT")


def in_room(
    paths: Sequence[Path],
    src_ST: np.ndarray,
    noise_T: np.ndarray,
    heard: dict[str, np.ndarray],
    sample_rate: int,
) -> dict[str, np.ndarray]:
    """Return all parts of both kinds of mixture, by the names in `PARTS`.

    `src_ST` and `noise_T` are WHAM!'s at `sample_rate`, the rate of the result, `paths`
    the sources' files; `heard` has the sources at the microphone by kind, [S, T] at
    16 kHz and at any gain.
    """
    frames = len(noise_T)
    if src_ST.shape[1] != frames:
        raise DataError(f"{paths[0]}: is not as long as its noise")
    slow = {
        kind: resample_poly(wave_ST, sample_rate, NOISE_RATE, axis=1)[:, :frames]
        for kind, wave_ST in heard.items()
    }
    energy_S = np.square(slow["anechoic"]).sum(1)
    for path, energy in zip(paths, energy_S, strict=True):
        if energy <= 0:
            raise DataError(f"{path}: is silent; remove the mixture")
    gain_S = np.sqrt(np.square(src_ST).sum(1) / energy_S)
    waves = {"noise": noise_T}
    for kind, wave_ST in slow.items():
        parts = mix(gain_S[:, None] * wave_ST, noise_T)
        waves |= {f"{part}_{kind}": parts[part] for part in SPOKEN}
    return waves
