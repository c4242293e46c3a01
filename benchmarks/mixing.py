"""Compare our dynamic mixing with that of SpeechBrain's recipes on the same files.

    python -m benchmarks.mixing --folder=/data/wsj0/si_tr_s --copy=/tmp/si_tr_s_8k

The figures are mixtures per second of one thread's CPU time, so that other jobs matter
little. All variants read the same utterances, a copy of the folder at 8 kHz, which
SpeechBrain's recipes ask for (one row is ours from the folder itself). A mixture has
two talkers of up to 4 s with their sources, drawn levels and a peak of 0.9. The
variants take turns.

SpeechBrain's recipes are not in its package. `SpeechBrainMixing` does what they do for
a mixture with the classes and functions that are: the length of every file by
`audio_io.info` (for the shortest, then for the crop), `audio_io.load` of a random
window, the level by `rescale` to a mean amplitude (WSJ0Mix) or by BS.1770 loudness
measured in every draw (LibriMix, whose pyloudnorm is written out here because it is not
among our requirements), `SpeedPerturb` of each source, and the sum of what all cover.
Recipes run `SpeedPerturb` on the batch, in the training process; the work is the same,
and the rows "no speeds" leave it out on both sides.

Ours is `DynamicMixing` as the recipes here use it: draws by counter, no
pauses, active-speech levels. Lengths and levels are measured once, by the pool.

    python -m benchmarks.mixing --folder=/data/wsj0/si_tr_s --dummy_step=0.1

trains nothing: a step sleeps 100 ms, as if a GPU computed, and the table says how long
it then waits for a batch of four from four workers.
"""

import argparse
import itertools
import random
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import torch
from scipy.signal import lfilter
from speechbrain.augment.time_domain import SpeedPerturb
from speechbrain.dataio import audio_io
from speechbrain.processing.signal_processing import rescale

from benchmarks.pairs import CPU, Results, call_each, ratio, spread
from data_prep.common.jobs import make_all
from modules.audio.io import read_audio, write_wave
from modules.audio.levels import MIXTURE_PEAK
from modules.audio.resample import resample
from modules.data.batch import collate_crops
from modules.data.dynamic_mixing import DynamicMixing
from modules.data.loader import EpochSampler, make_loader
from modules.data.utterances import Utterance, UtterancePool
from modules.runtime.cli import as_command

RATE = 8000
SEGMENT = 4 * RATE
NUM_SPKS = 2
SPEEDS = (95, 100, 105)
BATCH, WORKERS = 4, 4


def loudness(wave_T: np.ndarray, rate: int) -> float:
    """Return the loudness in LUFS (ITU-R BS.1770-4), block by block as pyloudnorm does.

    Two filters (a shelf of 4 dB above 1.5 kHz, a high-pass at 38 Hz), power in blocks
    of 0.4 s that overlap by 75 %, a gate at -70 LUFS and one 10 LU under the mean.
    """
    filtered_T = wave_T
    for b, a in k_weighting(rate):
        filtered_T = lfilter(b, a, filtered_T)
    block, step = round(0.4 * rate), 0.1 * rate
    count = int(round((len(wave_T) - block) / step)) + 1
    powers = np.array(
        [
            np.sum(np.square(filtered_T[int(k * step) : int(k * step) + block])) / block
            for k in range(count)
        ]
    )
    levels = -0.691 + 10 * np.log10(powers + 1e-30)
    kept = powers[levels >= -70]
    if not len(kept):
        return -70.0
    gate = -0.691 + 10 * np.log10(kept.mean()) - 10
    return float(
        -0.691 + 10 * np.log10(powers[(levels >= -70) & (levels > gate)].mean())
    )


def k_weighting(rate: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the coefficients (b, a) of both filters, as pyloudnorm computes them."""
    w, gain = 2 * np.pi * 1500.0 / rate, 10 ** (4.0 / 40)
    alpha, cos = np.sin(w) / np.sqrt(2), np.cos(w)
    root = 2 * np.sqrt(gain) * alpha
    plus, minus = gain + 1, gain - 1
    shelf = (
        np.array(
            [
                gain * (plus + minus * cos + root),
                -2 * gain * (minus + plus * cos),
                gain * (plus + minus * cos - root),
            ]
        ),
        np.array(
            [
                plus - minus * cos + root,
                2 * (minus - plus * cos),
                plus - minus * cos - root,
            ]
        ),
    )
    w = 2 * np.pi * 38.0 / rate
    alpha, cos = np.sin(w), np.cos(w)  # q = 0.5
    high_pass = (
        np.array([(1 + cos) / 2, -(1 + cos), (1 + cos) / 2]),
        np.array([1 + alpha, -2 * cos, 1 - alpha]),
    )
    return [(b / a[0], a / a[0]) for b, a in (shelf, high_pass)]


class SpeechBrainMixing:
    """Do the work of SpeechBrain's dynamic mixing for each mixture; see the module.

    Arguments
    ---------
    pool : UtterancePool
        Its paths and speakers are used, nothing that was measured.
    level : str
        "amplitude" as the recipe for WSJ0Mix, "loudness" as that for LibriMix.
    speeds : Sequence[int]
        Percentages of `SpeedPerturb`; none: no change of speed.
    segment : int
        Samples of a mixture at most.
    """

    def __init__(
        self,
        pool: UtterancePool,
        level: str,
        speeds: Sequence[int] = SPEEDS,
        segment: int = SEGMENT,
    ) -> None:
        self.files = {
            name: [utterance.path for utterance in utterances]
            for name, utterances in zip(pool.speakers, pool.by_speaker, strict=True)
        }
        self.speakers = list(self.files)
        counts = np.array([len(paths) for paths in self.files.values()])
        self.weights = counts / counts.sum()
        self.level, self.segment = level, segment
        self.perturb = SpeedPerturb(RATE, list(speeds)) if speeds else None

    def __call__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a mixture [T] and its sources [S, T]."""
        chosen = np.random.choice(
            self.speakers, NUM_SPKS, replace=False, p=self.weights
        )
        paths = [np.random.choice(self.files[speaker]) for speaker in chosen]
        shortest = min(
            self.segment, *(audio_io.info(path).num_frames for path in paths)
        )
        sources = []
        for path in paths:
            length = audio_io.info(path).num_frames
            start = np.random.randint(0, length - shortest) if length > shortest else 0
            wave_CT, _ = audio_io.load(path, frame_offset=start, num_frames=shortest)
            sources.append(self._to_level(wave_CT[0], not sources))
        if self.perturb is not None:
            sources = [self.perturb(wave_T[None])[0] for wave_T in sources]
        shortest = min(map(len, sources))
        src_ST = torch.stack([wave_T[:shortest] for wave_T in sources])
        mix_T = src_ST.sum(0)
        scale = MIXTURE_PEAK / max(
            mix_T.abs().max().item(), *src_ST.abs().amax(1).tolist()
        )
        return scale * mix_T, scale * src_ST

    def _to_level(self, wave_T: torch.Tensor, is_first: bool) -> torch.Tensor:
        """Return the source at a drawn level."""
        if self.level == "loudness":
            target = random.uniform(-33.0, -25.0)
            gain_db = target - loudness(wave_T.numpy(), RATE)
            wave_T = wave_T * 10 ** (gain_db / 20)
            peak = wave_T.abs().max().item()
            return wave_T * MIXTURE_PEAK / peak if peak >= 1 else wave_T
        if is_first:
            self.first = float(np.clip(random.normalvariate(-27.43, 2.57), -45, 0))
            level_db = self.first
        else:
            change = random.normalvariate(-2.51, 2.66)
            level_db = float(np.clip(self.first + change, -45, 0))
        return rescale(wave_T, torch.tensor(len(wave_T)), level_db, scale="dB")


def copy_of(utterance: Utterance, root: Path, out: Path) -> Path:
    """Return where the copy of a file lies; the copy is a WAV."""
    return (out / Path(utterance.path).relative_to(root)).with_suffix(".wav")


def make_copy(utterance: Utterance, root: Path, out: Path) -> None:
    """Write one utterance at 8 kHz."""
    wave_T = read_audio(utterance.path)
    wave_T = resample(wave_T, utterance.sample_rate, RATE)
    write_wave(copy_of(utterance, root, out), wave_T.numpy(), RATE)


def copy_at_8k(folder: Path, out: Path) -> None:
    """Make the copy that SpeechBrain's recipes make before they mix."""
    pool = UtterancePool.scan(folder)
    make_all(
        lambda utterance: make_copy(utterance, folder, out),
        [utterance for utterances in pool.by_speaker for utterance in utterances],
        lambda utterance: [copy_of(utterance, folder, out)],
        workers=1,
        desc="copy at 8 kHz",
    )


def variants(folder: Path, copy: Path) -> dict[str, Callable[[int], object]]:
    """Return the variants by their name in the table."""
    pool = UtterancePool.scan(copy)
    original = UtterancePool.scan(folder)
    settings = {"sample_rate": RATE, "examples_per_epoch": 10**9}
    return {
        "SpeechBrain, WSJ0Mix": SpeechBrainMixing(pool, "amplitude"),
        "SpeechBrain, LibriMix": SpeechBrainMixing(pool, "loudness"),
        "ours": DynamicMixing(pool, **settings).__getitem__,
        "ours, from the original files": DynamicMixing(
            original, **settings
        ).__getitem__,
        "SpeechBrain, WSJ0Mix, no speeds": SpeechBrainMixing(pool, "amplitude", ()),
        "SpeechBrain, LibriMix, no speeds": SpeechBrainMixing(pool, "loudness", ()),
        "ours, no speeds": DynamicMixing(
            pool, speed_changes=None, **settings
        ).__getitem__,
    }


def measure(
    makers: dict[str, Callable[[int], object]], mixtures: int, turns: int
) -> Results:
    """Return the time that each variant takes for so many other mixtures a turn."""

    def work(make: Callable[[int], object], indices: Iterator[int]) -> None:
        for index in itertools.islice(indices, mixtures):
            make(index)

    works = {
        name: partial(work, make, itertools.count()) for name, make in makers.items()
    }
    return call_each(works, turns)


def table(results: Results, mixtures: int) -> list[str]:
    """Return median and range of each variant, and ours against SpeechBrain's two."""
    lines = ["| | mixtures a second (range) |", "|---|---|"]
    for name, figures in results.items():
        rates = [mixtures / seconds[CPU] for seconds in figures]
        lines.append(f"| {name} | {spread(rates, 0)} |")
    pairs = itertools.product(("", ", no speeds"), ("WSJ0Mix", "LibriMix"))
    for speeds, recipe in pairs:
        theirs = f"SpeechBrain, {recipe}{speeds}"
        gain = ratio(results, f"ours{speeds}", theirs, CPU, power=-1)
        lines.append(f"| ours / {theirs} | {gain} |")
    return lines


def waits(pool: UtterancePool, step_seconds: float, steps: int) -> list[float]:
    """Return the seconds that each step waited for its batch, without the first."""
    mixing = DynamicMixing(pool, sample_rate=RATE, examples_per_epoch=BATCH * steps)
    sampler = EpochSampler(len(mixing), BATCH)
    batches = iter(make_loader(mixing, sampler, collate_crops, WORKERS))
    found = []
    for _ in range(steps):
        before = time.perf_counter()
        next(batches)
        found.append(time.perf_counter() - before)
        time.sleep(step_seconds)
    del batches  # its workers end, and are counted
    return found[1:]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.mixing",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--folder", type=Path, required=True, help="utterances, a folder a speaker")
    add("--copy", type=Path, help="where the copy at 8 kHz goes")
    add("--dummy_step", type=float, help="seconds that a step sleeps; no other table")
    add("--mixtures", type=int, default=300)
    add("--repeats", type=int, default=5)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    folder = options.folder.absolute()
    if options.dummy_step:
        found = waits(UtterancePool.scan(folder), options.dummy_step, options.mixtures)
        ms = [1000 * seconds for seconds in sorted(found)]
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_ms = 1000 * (used.ru_utime + used.ru_stime) / options.mixtures
        print("| steps | median wait ms | longest | CPU ms of all workers a batch |")
        print("|---|---|---|---|")
        print(
            f"| {len(ms)} | {statistics.median(ms):.2f} | {ms[-1]:.0f} | {cpu_ms:.1f} |"
        )
        return
    if options.copy is None:
        parser.error("--copy=FOLDER is needed")
    copy_at_8k(folder, options.copy)
    first = next(options.copy.rglob("*.wav"))
    print(f"files like {first}: {soundfile.info(first).duration:.1f} s")
    makers = variants(folder, options.copy)
    results = measure(makers, options.mixtures, options.repeats)
    print("\n".join(table(results, options.mixtures)))


if __name__ == "__main__":
    sys.exit(as_command(main))
