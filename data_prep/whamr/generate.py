"""WHAMR!: WHAM! in rooms. Generate it, and turn it into manifests.

    python -m data_prep.whamr generate --wham=/data/wham --out=/data/whamr \
        [--rooms=FOLDER] [--sample_rates 8000 16000] [--modes min max] [--workers=8]
    python -m data_prep.whamr --data_folder=/data/whamr --save_folder=manifests \
        [--task=mix_both] [--mixture=reverb] [--targets=anechoic]
    python -m data_prep.whamr pool --out=rooms.npz --rooms=2000 [--sample_rate=8000]

`wham` is the set that `data_prep.wham generate` makes, at 16 kHz at least: the rooms
are simulated at that rate. `rooms` holds the public `reverb_params_{tr,cv,tt}.csv`;
a set without its file, or all of them, gets rooms drawn by WHAMR!'s ranges, each by the
name of its mixture. All rooms are written to `metadata/`, in the same form.

Written as float WAV: {mix_clean,mix_single,mix_both,s1,s2}_{anechoic,reverb} and noise,
in the folders of WHAM!. "anechoic" is the direct path alone, so it has the delay of the
reverberant source, and it has the energy that the source has in WHAM!; "reverb" has the
same gain. One channel: the left microphone.

`pool` writes rooms for dynamic mixing (`modules/audio/rooms.py`).

Legend: S source, T sample.
"""

import functools
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.signal import oaconvolve, resample_poly

from data_prep.common.jobs import claim_folder, make_all
from data_prep.common.versions import (
    NOISE_RATE,
    SETS,
    check_versions,
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


@dataclass(frozen=True)
class Mixture:
    """A job: one mixture in all versions."""

    split: str
    placed: Placed


def generate(
    wham: str | Path,
    out: str | Path,
    rooms: str | Path | None = None,
    sample_rates: Sequence[int] = (8000, 16000),
    modes: Sequence[str] = ("min", "max"),
    seed: int = 0,
    workers: int | None = None,
) -> int:
    """Put WHAM! into rooms; the same command again continues.

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
        Processes; None: one a core.

    Returns
    -------
    int
        Mixtures made, the others being there already.

    Raises
    ------
    DataError
        A folder or file is missing or cannot be used; the message names it.
    """
    source = Path(wham).absolute()
    versions = check_versions(sample_rates, modes)
    needed = check_versions([*sample_rates, NOISE_RATE], modes)
    tables = {split: _table_in(rooms, split) for split in SETS}
    if rooms is not None and not any(tables.values()):
        raise DataError(f"{rooms}: holds no reverb_params_{{{','.join(SETS)}}}.csv")
    mixtures: list[Mixture] = []
    texts: dict[str, str] = {}
    for split, table in tables.items():
        names = list(mixture_lengths(source, split, needed))
        if table:
            placed = read_rooms(table, names)
        else:
            placed = [draw_room(split, name, seed) for name in names]
        print(f"{split}: {len(names)} rooms from {table or f'seed {seed}'}")
        texts[split] = table_of(placed)
        mixtures += [Mixture(split, room) for room in placed]
    out = claim_folder(
        Path(out).absolute(),
        {
            "set": "whamr",
            "sample_rates": sorted(set(sample_rates)),
            "modes": sorted(set(modes)),
            "rooms": hashlib.sha256("".join(texts.values()).encode()).hexdigest()[:16],
        },
    )
    for split, text in texts.items():
        write_text(out / "metadata" / f"reverb_params_{split}.csv", text)
    return make_all(
        functools.partial(_make, source, out, versions),
        mixtures,
        functools.partial(_outputs, out, versions),
        workers,
        "WHAMR!",
    )


def _table_in(rooms: str | Path | None, split: str) -> Path | None:
    """The file of a set's rooms, if there is one."""
    if rooms is None:
        return None
    path = Path(rooms) / f"reverb_params_{split}.csv"
    return path if path.is_file() else None


def _outputs(
    out: Path, versions: Sequence[tuple[int, str]], mixture: Mixture
) -> Iterator[Path]:
    for rate, mode in versions:
        for part in PARTS:
            folder = out / folder_of(rate, mode) / mixture.split / part
            yield folder / f"{mixture.placed.utterance_id}.wav"


def _make(
    source: Path, out: Path, versions: Sequence[tuple[int, str]], mixture: Mixture
) -> None:
    """Write one mixture in all versions."""
    name = f"{mixture.placed.utterance_id}.wav"
    room = mixture.placed.room
    responses = {
        "anechoic": impulse_responses(room, NOISE_RATE, max_order=0),
        "reverb": impulse_responses(room, NOISE_RATE),
    }
    for mode in dict.fromkeys(mode for _, mode in versions):
        place = source / folder_of(NOISE_RATE, mode) / mixture.split
        dry_ST = read_sources([place / f"s{k}" / name for k in (1, 2)], NOISE_RATE)
        heard = {
            kind: oaconvolve(dry_ST, response_ST, axes=1)[:, : dry_ST.shape[1]]
            for kind, response_ST in responses.items()
        }
        for rate in (rate for rate, its_mode in versions if its_mode == mode):
            folder = folder_of(rate, mode)
            place = source / folder / mixture.split
            paths = [place / f"s{k}" / name for k in (1, 2)]
            src_ST = read_sources(paths, rate)
            noise_T = read_left(place / "noise" / name, rate)
            waves = in_room(paths, src_ST, noise_T, heard, rate)
            for part, wave_T in waves.items():
                path = out / folder / mixture.split / part / name
                write_wave(path, wave_T.astype(np.float32), rate, "FLOAT")


def in_room(
    paths: Sequence[Path],
    src_ST: np.ndarray,
    noise_T: np.ndarray,
    heard: dict[str, np.ndarray],
    sample_rate: int,
) -> dict[str, np.ndarray]:
    """All parts of both kinds of mixture, by the names in `PARTS`.

    Arguments
    ---------
    paths : Sequence[Path]
        Of the sources, for messages.
    src_ST, noise_T : np.ndarray
        As they are in WHAM!.
    heard : dict[str, np.ndarray]
        The sources at the microphone by kind, [S, T] at 16 kHz, at any gain.
    sample_rate : int
        Of `src_ST` and of the result.

    Raises
    ------
    DataError
        Lengths that differ, or a silent source; the message names it.
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
