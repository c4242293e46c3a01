"""New metadata for LibriMix, by the rules that the published one was drawn by.

    python -m data_prep.librimix draw --librispeech=/data/LibriSpeech \
        --wham_noise=/data/wham_noise --out=metadata [--num_spks=2] [--seed=72]

The rules:

- utterances of 3 s and more; the talkers of a mixture differ; in a training set every
  utterance is used once, in others until there are 3000 mixtures;
- a noise is drawn from those not used yet that are longer than the longest talker;
  noises at other speeds are used where there are more mixtures than noises;
- loudness (BS.1770) is uniform in -33 to -25 LUFS for a talker, -38 to -30 for noise;
- a part whose peak would reach 1 is scaled to 0.9, and so is a mixture (of all talkers
  and the noise, padded to the longest) whose peak is above 0.9;
- the number of mixtures is rounded down to hundreds, if there are as many.

With LibriSpeech's published lists and seed 72 the talkers of the published Libri2Mix
come out in their order (train-clean-100, test-clean). Where noises or utterances do not
suffice, the original looks for ever; here noises are used again, a short one is
repeated, and a line says so.
"""

import bisect
import functools
import hashlib
import logging
import math
import random
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_prep.common.jobs import claim_folder, make_all
from data_prep.librimix.audio import RATE, corpus_folder, read_parts
from data_prep.librimix.generate import command_line
from data_prep.librimix.lists import Noise, Talk, list_noises, list_talks, sets_of
from data_prep.librimix.metadata import (
    Mixture,
    Part,
    read_metadata,
    read_note,
    write_metadata,
    write_note,
    write_table,
)
from modules.audio.levels import loudness_db
from modules.runtime.errors import DataError

logger = logging.getLogger(__name__)

TALKER_LUFS = (-33.0, -25.0)

NOISE_LUFS = (-38.0, -30.0)

PEAK = 0.9

# Draws in a row that hit one talker twice until a pass ends; passes without anything
# new until a set does.
MAX_FAILURES = 200

MAX_PASSES = 10


class Draft(NamedTuple):
    """A mixture whose levels in LUFS are drawn; its gains are not known yet."""

    talks: tuple[Talk, ...]
    noise: Noise | None
    levels: tuple[float, ...]

    @property
    def name(self) -> str:
        """The mixture's id."""
        return "_".join(talk.name for talk in self.talks)


def draw(
    librispeech: str | Path,
    out: str | Path,
    wham_noise: str | Path | None = None,
    num_spks: int = 2,
    seed: int = 72,
    most: int = 3000,
    sets: Sequence[str] | None = None,
    workers: int | None = None,
) -> Path:
    """Draw mixtures and measure their gains.

    Arguments
    ---------
    librispeech, wham_noise : str | Path
        As for `generate`; without noise there is only mix_clean.
    out : str | Path
        Where the folders `LibriSpeech`, `Wham_noise` and `Libri2Mix` are made.
    num_spks : int
        Talkers in a mixture.
    seed : int
        Decides every draw, for each set alone.
    most : int
        Mixtures in a set that is not for training.
    sets : Sequence[str] | None
        Folders of LibriSpeech; None: those of train-clean-100, train-clean-360,
        dev-clean and test-clean that there are.
    workers : int | None
        Processes; None: one for each core. The files do not depend on it.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    DataError
        No audio, audio that cannot be used, or other metadata in `out`.
    """
    librispeech = corpus_folder(librispeech, "LibriSpeech")
    if wham_noise is not None:
        wham_noise = corpus_folder(wham_noise, "wham_noise")
    out, place = Path(out), Path(out) / f"Libri{num_spks}Mix"
    sets = list(sets or sets_of(librispeech))
    settings = {"num_spks": num_spks, "seed": seed, "most": most}
    settings |= {"made_by": "data_prep.librimix draw", "noise": wham_noise is not None}
    claim_folder(place, settings)
    for name in sets:
        talks = list_talks(librispeech, name, out)
        noises = list_noises(wham_noise, name, out) if wham_noise else []
        drafts = draw_set(name, talks, noises, num_spks, seed, most)
        table = place / f"libri{num_spks}mix_{name}.csv"
        if table.is_file():
            before = [mixture.name for mixture in read_metadata(table, num_spks)]
            if before != [draft.name for draft in drafts]:
                raise DataError(
                    f"{table}: holds other mixtures than this corpus gives; keep it, "
                    "or draw into another folder"
                )
            continue
        gains = _measure(drafts, librispeech, wham_noise, place, name, workers)
        mixtures = [
            Mixture(
                draft.name,
                tuple(Part(t.path, g) for t, g in zip(draft.talks, g_S, strict=False)),
                Part(draft.noise.path, g_S[-1]) if draft.noise else None,
            )
            for draft, g_S in zip(drafts, gains, strict=True)
        ]
        _write_info(place / f"libri{num_spks}mix_{name}_info.csv", drafts)
        write_metadata(table, mixtures)
        logger.info("%s: %d mixtures", table, len(mixtures))
    shutil.rmtree(place / ".notes", ignore_errors=True)
    return out


def draw_set(
    name: str,
    talks: Sequence[Talk],
    noises: Sequence[Noise],
    num_spks: int,
    seed: int,
    most: int = 3000,
) -> list[Draft]:
    """The mixtures of a set.

    Arguments
    ---------
    name : str
        Of the set: one that begins with "train" uses every utterance once.
    talks, noises : Sequence
        What there is, sorted by length; no noises: none in the mixtures.
    num_spks, seed, most
        As for `draw`.

    Raises
    ------
    DataError
        Not one mixture can be made.
    """
    rng = random.Random(seed)
    speakers = [talk.speaker for talk in talks]
    groups: dict[frozenset[int], tuple[int, ...]] = {}
    passes_in_vain = 0
    while len(groups) < most and passes_in_vain < MAX_PASSES:
        before = len(groups)
        for group in draw_groups(speakers, num_spks, rng):
            groups.setdefault(frozenset(group), group)
        if name.startswith("train"):
            break
        passes_in_vain = 0 if len(groups) > before else passes_in_vain + 1
    drawn = list(groups.values())
    if not name.startswith("train"):
        drawn = drawn[:most]
        if len(drawn) < most:
            logger.warning(
                "%s: %d utterances give %d mixtures, not %d",
                *(name, len(talks), len(drawn), most),
            )
    if len(drawn) >= 100:
        drawn = drawn[: len(drawn) // 100 * 100]
    if not drawn:
        raise DataError(
            f"{name}: {len(talks)} utterances of {len(set(speakers))} speakers give no "
            f"mixture of {num_spks}"
        )
    lengths = [max(talks[index].length for index in group) for group in drawn]
    chosen = _draw_noises(name, lengths, noises, rng) if noises else [None] * len(drawn)
    ranges = [TALKER_LUFS] * num_spks + [NOISE_LUFS] * bool(noises)
    return [
        Draft(
            tuple(talks[index] for index in group),
            noise,
            tuple(rng.uniform(*levels) for levels in ranges),
        )
        for group, noise in zip(drawn, chosen, strict=True)
    ]


def draw_groups(
    speakers: Sequence[str], num_spks: int, rng: random.Random
) -> Iterator[tuple[int, ...]]:
    """Groups of utterances of different speakers, every utterance at most once.

    Arguments
    ---------
    speakers : Sequence[str]
        Who speaks in each utterance.
    num_spks : int
        Utterances in a group.
    rng : random.Random
        Python's generator, as the original used: a seed gives what it gave.
    """
    left = list(range(len(speakers)))
    failures = 0
    while len(left) >= num_spks and failures < MAX_FAILURES:
        group = rng.sample(left, num_spks)
        if len({speakers[index] for index in group}) < num_spks:
            failures += 1
            continue
        failures = 0
        for index in group:
            del left[bisect.bisect_left(left, index)]
        yield tuple(group)


def _draw_noises(
    name: str, lengths: Sequence[int], noises: Sequence[Noise], rng: random.Random
) -> list[Noise]:
    """For each mixture one of the unused noises, longer than it if there is one."""
    plain = [noise for noise in noises if not noise.augmented]
    if len(plain) >= len(lengths):
        noises = plain
    left: list[Noise] = []
    rounds = short = 0
    chosen = []
    for length in lengths:
        if not left:
            left, rounds = list(noises), rounds + 1
        first = bisect.bisect_right(left, length, key=lambda noise: noise.length)
        if first == len(left):
            first, short = 0, short + 1
        chosen.append(left.pop(first + rng.randrange(len(left) - first)))
    if rounds > 1 or short:
        logger.warning(
            "%s: %d noises for %d mixtures: each is used up to %d times, %d are "
            "repeated to be long enough",
            *(name, len(noises), len(lengths), rounds, short),
        )
    return chosen


def _measure(
    drafts: Sequence[Draft],
    librispeech: Path,
    wham_noise: Path | None,
    place: Path,
    name: str,
    workers: int | None,
) -> list[list[float]]:
    """The gains of every mixture, restartable."""
    digest = hashlib.sha256(repr(list(drafts)).encode()).hexdigest()[:12]
    notes = place / ".notes" / f"{name}-{digest}"
    make_all(
        functools.partial(_note_gains, librispeech, wham_noise, notes),
        drafts,
        lambda draft: [notes / f"{draft.name}.json"],
        workers,
        name,
    )
    return [read_note(notes / f"{d.name}.json") for d in drafts]


def _note_gains(
    librispeech: Path, wham_noise: Path | None, notes: Path, draft: Draft
) -> None:
    """Measure one mixture."""
    mixture = Mixture(
        draft.name,
        tuple(Part(talk.path, 1.0) for talk in draft.talks),
        Part(draft.noise.path, 1.0) if draft.noise else None,
    )
    waves = read_parts(librispeech, wham_noise, mixture)
    try:
        gains = gains_for(waves, draft.levels)
    except ValueError as error:
        raise DataError(f"{librispeech}, mixture {draft.name}: {error}") from None
    write_note(notes / f"{draft.name}.json", gains)


def gains_for(waves: Sequence[np.ndarray], levels: Sequence[float]) -> list[float]:
    """What brings every part to its level, unless a peak would be too high.

    Arguments
    ---------
    waves : Sequence[np.ndarray]
        The parts at 16 kHz, shape [T] each, of different lengths.
    levels : Sequence[float]
        Their loudness in LUFS, padded with zeros to the longest as the original does.

    Returns
    -------
    list[float]
        Factors.

    Raises
    ------
    ValueError
        A part is silent.
    """
    longest = max(map(len, waves))
    gains, mixed_T = [], np.zeros(longest)
    for number, (wave_T, level) in enumerate(zip(waves, levels, strict=True), start=1):
        padded_T = np.pad(wave_T.astype(np.float64), (0, longest - len(wave_T)))
        loudness = loudness_db(padded_T, RATE)
        if not math.isfinite(loudness):
            raise ValueError(f"part {number} of {len(waves)} is silent, or not finite")
        gain = 10 ** ((level - loudness) / 20)
        peak = np.abs(wave_T).max() * gain
        if peak >= 1:
            gain *= PEAK / peak
        gains.append(float(gain))
        mixed_T += gain * padded_T
    peak = np.abs(mixed_T).max()
    return [gain * float(PEAK / peak) for gain in gains] if peak > PEAK else gains


def _write_info(path: Path, drafts: Sequence[Draft]) -> None:
    """Who speaks in each mixture."""
    numbers = range(1, len(drafts[0].talks) + 1)
    columns = [f"speaker_{k}_{what}" for k in numbers for what in ("ID", "sex")]
    rows = [
        [d.name, *(cell for talk in d.talks for cell in (talk.speaker, talk.sex))]
        for d in drafts
    ]
    write_table(path, ["mixture_ID", *columns], rows)


def command(arguments: list[str]) -> None:
    """`draw` from the command line."""
    parser = command_line("draw", __doc__)
    parser.add_argument("--seed", type=int, default=72)
    parser.add_argument(
        "--most", type=int, default=3000, help="mixtures in dev and test"
    )
    print(draw(**vars(parser.parse_args(arguments))))
