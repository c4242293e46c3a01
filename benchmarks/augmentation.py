"""Compare our change of pitch and tempo with demucs' on the same songs.

    python -m benchmarks.augmentation --data_folder=/data/musdb18hq

The figures are the CPU seconds of an example, its programs included: 11 s of four
stereo stems are read, changed and cut to 88 %. "Every example" changes all of them, by
default both change one of five. The two take turns.

demucs writes each stem to a WAV file, has the program `soundstretch` change it (Debian:
`apt-get install soundstretch`), and reads what that wrote. `demucs_way` does the same,
because demucs reads through a torchaudio that could still read files. Gains, signs,
shifts and the exchange of stems are left out: demucs draws them on the GPU.
"""

import argparse
import itertools
import random
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import soundfile
import torch
from torch import Tensor

from benchmarks.pairs import CPU, Figures, ratio, spread, take_turns
from data_prep.music import prepare
from data_prep.music.manifests import SOURCES
from modules.data.augmentation import NO_AUGMENTATION, Augmentation
from modules.data.manifest import Row, read_manifest
from modules.data.stems import StemDataset
from modules.runtime.cli import as_command

SECONDS, KEPT = 11.0, 0.88
DEMUCS = Augmentation()  # whose defaults are those of demucs


def demucs_way(rows: Sequence[Row], probability: float, index: int) -> Tensor:
    """Return stems [S, C, T] changed as demucs' `RepitchedWrapper` does."""
    rng = random.Random(index)
    row = rng.choice(rows)
    start = rng.uniform(0, max(0.0, row.duration - SECONDS))
    rate = soundfile.info(row.sources[0]).samplerate
    span = {"start": int(start * rate), "frames": int(SECONDS * rate)}
    stems = [soundfile.read(path, dtype="float32", **span)[0] for path in row.sources]
    if rng.random() < probability:
        semitones = rng.randint(-DEMUCS.pitch_semitones, DEMUCS.pitch_semitones)
        limit = DEMUCS.tempo_limit
        percent = max(-limit, min(rng.gauss(0, DEMUCS.tempo_std), limit))
        options = [f"-pitch={semitones}", f"-tempo={percent:.6f}"]
        with tempfile.TemporaryDirectory() as folder:
            given, made = f"{folder}/in.wav", f"{folder}/out.wav"
            for number, name in enumerate(SOURCES):
                soundfile.write(given, stems[number].clip(-1, 1), rate)
                voice = ["-speech"] * (name == "vocals")
                command = ["soundstretch", given, made, *options, *voice]
                subprocess.run(command, capture_output=True, check=True)
                stems[number] = soundfile.read(made, dtype="float32")[0]
    length = int(KEPT * span["frames"])
    return torch.stack([torch.from_numpy(stem[:length].T) for stem in stems])


def our_way(rows: Sequence[Row], probability: float) -> Callable[[int], object]:
    """Return the data set as the recipes use it, with nothing else drawn."""
    rate = soundfile.info(rows[0].sources[0]).samplerate
    return StemDataset(
        rows,
        rate,
        segment_seconds=KEPT * SECONDS,
        augmentation=replace(NO_AUGMENTATION, repitch_probability=probability),
        examples_per_epoch=10**9,
    ).__getitem__


def cpu_seconds() -> float:
    """Return the processor time of this process and of the programs it has run."""
    both = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in both)


def measure(make: Callable[[int], object], indices: itertools.count, n: int) -> Figures:
    """Return the CPU seconds of an example."""
    before = cpu_seconds()
    for index in itertools.islice(indices, n):
        make(index)
    return {CPU: (cpu_seconds() - before) / n}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.augmentation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data_folder", type=Path, required=True)
    parser.add_argument("--examples", type=int, default=20, help="of a turn")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(arguments)
    if not shutil.which("soundstretch"):
        raise SystemExit("benchmark: soundstretch is missing; see --help")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        made = prepare(options.data_folder, folder, SOURCES, splits=["train"])
        rows = read_manifest(made["train"], len(SOURCES), stems=True)
        print("| changed | demucs, ms | ours, ms | demucs / ours |\n|---|---|---|---|")
        for name, probability in (("every example", 1.0), ("one of five", 0.2)):
            makers = {
                "demucs": partial(demucs_way, rows, probability),
                "ours": our_way(rows, probability),
            }
            sides = {
                side: partial(measure, make, itertools.count(), options.examples)
                for side, make in makers.items()
            }
            found = take_turns(sides, options.repeats)
            ms = [spread([1000 * f[CPU] for f in found[side]], 0) for side in makers]
            gain = ratio(found, "ours", "demucs", CPU, power=-1)
            print(f"| {name} | {' | '.join(ms)} | {gain} |")


if __name__ == "__main__":
    sys.exit(as_command(main))
