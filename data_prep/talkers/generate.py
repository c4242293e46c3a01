"""Make mixtures of the people in any folder of recordings, by dynamic mixing itself.

Legend: S source, T sample.
"""

import functools
import itertools
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_prep.common.jobs import claim_folder, digest_of, make_all
from data_prep.common.layout import SPLITS
from data_prep.talkers.manifests import MIXTURE, NOISY_MIXTURE, SPEAKERS
from modules.audio.io import (
    SUFFIXES,
    check_samples,
    read_header,
    read_stereo,
    write_wave,
)
from modules.audio.resample import resample
from modules.data.dynamic_mixing import DynamicMixing
from modules.data.utterances import UtterancePool
from modules.runtime.errors import DataError
from modules.runtime.files import list_files
from modules.runtime.randomness import named_rng
from modules.runtime.tables import write_table

# Share of the people, and of the noises, for validation and again for test.
SHARE = 0.1

# Number of mixtures that are made together: a job of a second or two.
BLOCK = 25

TRAIN_SPEAKERS = "train_speakers"

# The set of some mixtures, and their numbers.
Job = tuple[str, range]


def generate(
    speakers: str | Path,
    out: str | Path,
    noise: str | Path | None = None,
    num_spks: int = 2,
    sample_rate: int = 8000,
    train_mixtures: int = 1000,
    valid_mixtures: int = 200,
    test_mixtures: int = 300,
    seconds: float = 5.0,
    speaker_pattern: str | None = None,
    seed: int = 0,
    workers: int | None = None,
) -> Path:
    """Make a data set from recordings of single people; return its folder, `out`.

    The same call again continues.

    Arguments
    ---------
    speakers : str | Path
        Any tree of mono WAV and FLAC files, at any rate.
    out : str | Path
        An empty or new folder. Until it is finished a table of measurements,
        `<out>.index.csv`, lies beside it.
    noise : str | Path | None
        Any tree of WAV and FLAC files of noise, at any rate; the left channel of stereo
        files counts. None makes mixtures without noise.
    num_spks : int
        Number of people in a mixture.
    sample_rate : int
        Rate of the mixtures in Hz.
    train_mixtures, valid_mixtures, test_mixtures : int
        Number of mixtures in each set.
    seconds : float
        Length of a mixture; it is shorter where a recording is.
    speaker_pattern : str | None
        Who speaks in a file: "librispeech", "voxceleb", "wsj0", "folder" (the one it
        lies in), or a regular expression whose group is the person, searched in the
        path below `speakers`; found from the paths if not given.
    seed : int
        Decides everything that is drawn.
    workers : int | None
        Number of processes, which does not change the files; None: one for each core.
    """
    numbers = (train_mixtures, valid_mixtures, test_mixtures)
    if min(num_spks, sample_rate, seconds, *numbers) <= 0:
        raise DataError("num_spks, sample_rate, seconds and mixtures must be above 0")
    speakers, out = Path(speakers).absolute(), Path(out).absolute()
    index = out.with_name(f"{out.name}.index.csv")
    pool = UtterancePool.scan(speakers, index, speaker_pattern)
    people = _divide(pool.speakers, num_spks, seed, f"{speakers}: speakers")
    pools = {split: _named(pool, names) for split, names in people.items()}
    noises = _divide_noises(noise, seed) if noise else {split: [] for split in SPLITS}
    files = sorted(itertools.chain(*noises.values()))
    content = [
        *([u.name, u.frames, u.level_db] for us in pool.by_speaker for u in us),
        *([path.name, path.stat().st_size] for path in files),
    ]
    settings = {
        "set": "talkers",
        "num_spks": num_spks,
        "sample_rate": sample_rate,
        "mixtures": list(numbers),
        "seconds": seconds,
        "seed": seed,
        "recordings": digest_of(repr(content)),
    }
    claim_folder(out, settings)
    for split in SPLITS:
        also = f", {len(noises[split])} files of noise" if noise else ""
        print(f"{split}: {pools[split]}{also}")
    _link(pools["train"], out / TRAIN_SPEAKERS)
    heard = _convert(noises, out / "noises", sample_rate, workers)
    datasets = {
        split: DynamicMixing(
            pools[split],
            num_spks=num_spks,
            sample_rate=sample_rate,
            segment_seconds=seconds,
            examples_per_epoch=number,
            seed=int(named_rng(seed, f"talkers/{split}").integers(2**32)),
            speed_changes=None,
            noises=heard[split],
        )
        for split, number in zip(SPLITS, numbers, strict=True)
    }
    jobs = [
        (split, range(k, min(k + BLOCK, number)))
        for split, number in zip(SPLITS, numbers, strict=True)
        for k in range(0, number, BLOCK)
    ]
    make = functools.partial(_make_block, out, datasets)
    outputs = functools.partial(_outputs, out, datasets)
    make_all(make, jobs, outputs, workers, f"{BLOCK} mixtures")
    rows = [(name, split) for split in SPLITS for name in people[split]]
    write_table(out / SPEAKERS, ["speaker", "split"], rows)
    index.unlink(missing_ok=True)
    return out


def _named(pool: UtterancePool, speakers: Sequence[str]) -> UtterancePool:
    """Return the utterances of some speakers, named SPEAKER/UTTERANCE."""
    spoken = [one for of_one in pool.by_speaker for one in of_one]
    wanted = set(speakers)
    return UtterancePool(
        [
            u._replace(name=f"{u.speaker}/{u.name}")
            for u in spoken
            if u.speaker in wanted
        ]
    )


def _divide(
    names: Sequence[str], least: int, seed: int, what: str
) -> dict[str, list[str]]:
    """Divide names among the sets at random, so that each gets `least` or more."""
    count = len(names)
    if count < len(SPLITS) * least:
        need = f"training, validation and test need {least} each"
        raise DataError(f"{what}: only {count}, but {need}")
    few = max(least, min(round(SHARE * count), (count - least) // 2))
    order = [names[k] for k in named_rng(seed, "talkers").permutation(count)]
    cuts = (order[2 * few :], order[:few], order[few : 2 * few])
    return {split: sorted(cut) for split, cut in zip(SPLITS, cuts, strict=True)}


def _divide_noises(noise: str | Path, seed: int) -> dict[str, list[Path]]:
    """Divide the files of noise among the sets."""
    files = list_files(Path(noise).absolute(), "**/*")
    names = [str(path) for path in files if path.suffix.lower() in SUFFIXES]
    cuts = _divide(names, 1, seed, f"{noise}: files of noise")
    return {split: [Path(name) for name in cut] for split, cut in cuts.items()}


def _convert(
    noises: dict[str, list[Path]], folder: Path, sample_rate: int, workers: int | None
) -> dict[str, list[tuple[str, int]]]:
    """Write noises as mono files at the rate of the mixtures; return their lengths."""
    jobs = {
        split: [(path, folder / split / f"{k:05d}.wav") for k, path in enumerate(paths)]
        for split, paths in noises.items()
    }
    todo = list(itertools.chain(*jobs.values()))
    make = functools.partial(_convert_one, sample_rate)
    if todo:
        make_all(make, todo, lambda job: [job[1]], workers, "noises")
    return {
        split: [(str(made), read_header(made).frames) for _, made in of_split]
        for split, of_split in jobs.items()
    }


def _convert_one(sample_rate: int, job: tuple[Path, Path]) -> None:
    """Write the left channel of a file at another rate."""
    path, made = job
    left_T = read_stereo(path)[0]
    check_samples(path, left_T)
    left_T = resample(left_T, read_header(path).sample_rate, sample_rate)
    write_wave(made, left_T.numpy(), sample_rate)


def _link(pool: UtterancePool, folder: Path) -> None:
    """Link every recording as SPEAKER/NUMBER_NAME, a name that tells no speaker."""
    for speaker, utterances in zip(pool.speakers, pool.by_speaker, strict=True):
        (folder / speaker).mkdir(parents=True, exist_ok=True)
        for number, utterance in enumerate(utterances):
            name = f"{number:05d}_{os.path.basename(utterance.path)}"
            link = folder / speaker / name
            if not link.is_symlink():
                link.symlink_to(utterance.path)


def _outputs(out: Path, datasets: dict[str, DynamicMixing], job: Job) -> list[Path]:
    """List the files of some mixtures; the table of who speaks in them comes last."""
    split, block = job
    parts = [f"s{k + 1}" for k in range(datasets[split].num_spks)]
    noisy = [NOISY_MIXTURE, *parts, "noise"]
    parts = noisy if datasets[split].noises else [MIXTURE, *parts]
    waves = [out / split / part / f"{k:05d}.wav" for k in block for part in parts]
    return [*waves, out / split / "utterances" / f"{block.start:05d}.csv"]


def _make_block(out: Path, datasets: dict[str, DynamicMixing], job: Job) -> None:
    """Write some mixtures; parts are rounded first, so that they add up exactly."""
    *paths, table = _outputs(out, datasets, job)
    split, block = job
    files, rows = iter(paths), []
    for k in block:
        example = datasets[split][k]
        parts = [*example.src, *([] if example.noise is None else [example.noise])]
        pcm_ST = np.round(np.stack(parts) * 2**15).astype(np.int16)
        for wave_T in (pcm_ST.sum(0, dtype=np.int16), *pcm_ST):
            write_wave(next(files), wave_T, datasets[split].sample_rate)
        rows.append((f"{k:05d}", example.id))
    write_table(table, ["mixture", "utterances"], rows)
