"""Measure how long it takes from the command to the first training step.

    python -m benchmarks.start FOLDER [--mixtures=20000] [--utterances=300000]

FOLDER gets two sets: one laid out as WSJ0-2mix (its validation and test as well, a
quarter and 15 % of the training's mixtures) and a tree of single utterances laid out as
LibriSpeech, for dynamic mixing. Their files are half a second long (those of the tree
are links to a few): a start reads headers, while levels are measured once, which takes
time in proportion to the length. Each set is started on twice, in a fresh process.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import train
from modules.audio.io import write_wave
from modules.data.utterances import UtterancePool
from modules.runtime.cli import as_command
from recipes.separation import Separation

ROOT = Path(__file__).resolve().parents[1]
RATE, FRAMES = 8000, 4200
SPOKEN, SPEAKERS = 10_000, 100  # utterances in the mixtures, and who speaks them
FILES_A_SPEAKER = 125


def make_mixtures(root: Path, count: int) -> None:
    """Write mixtures and sources, named as WSJ0-mix names them."""
    noise = np.random.default_rng(0).integers(-2000, 2000, 2 * FRAMES).astype(np.int16)
    for split, number in (("tr", count), ("cv", count // 4), ("tt", count * 3 // 20)):
        for index in range(number):
            first, second = index % SPOKEN, (7 * index + 3 + index // SPOKEN) % SPOKEN
            names = [f"{u % SPEAKERS:03d}a{u:04d}_0.{index}" for u in (first, second)]
            waves = [noise[u % 997 :][:FRAMES] for u in (first, second + 500)]
            parts = {"s1": waves[0], "s2": waves[1], "mix": waves[0] + waves[1]}
            for part, wave in parts.items():
                path = root / "wav8k" / "min" / split / part / f"{'_'.join(names)}.wav"
                write_wave(path, wave, RATE)


def make_utterances(root: Path, count: int) -> None:
    """Write a tree of utterances in which a speaker's files are links to one."""
    noise = np.random.default_rng(0).integers(-2000, 2000, FRAMES).astype(np.int16)
    for speaker in range(-(-count // FILES_A_SPEAKER)):
        first = root / f"{speaker}" / "1" / f"{speaker}-1-0000.wav"
        write_wave(first, noise, RATE)
        for number in range(1, FILES_A_SPEAKER):
            os.link(first, first.with_name(f"{speaker}-1-{number:04d}.wav"))


class AtFirstStep(Exception):
    """Ends a run before its first step."""


def start(root: Path) -> None:
    """Do what a run does until it has its first batch."""

    def stop(*_: Any) -> None:
        raise AtFirstStep

    recipe: Any = Separation
    step, recipe.fit_batch = recipe.fit_batch, stop
    options = ["--segment_seconds=0.4", "--num_workers=0", "--noprogressbar"]
    places = [f"--data_folder={root / 'mixtures'}", f"--output_folder={root / 'run'}"]
    try:
        train.main([str(ROOT / "hparams" / "sepformer_tiny.yaml"), *places, *options])
    except AtFirstStep:
        pass
    finally:
        recipe.fit_batch = step


def measure(what: str, root: Path) -> dict[str, float]:
    """Start here; return processor seconds and megabytes, of which before it began."""
    before = time.process_time(), peak_mb()
    if what == "mixtures":
        start(root)
    else:
        UtterancePool.scan(root / "utterances", root / "utterances.csv")
    return {
        "imports": before[0],
        "cpu": time.process_time(),
        "mb": peak_mb(),
        "more_mb": peak_mb() - before[1],
    }


def peak_mb() -> float:
    """Return the most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the sets unless they are there, and print a line for each start."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.start",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--mixtures", type=int, default=20_000)
    parser.add_argument("--utterances", type=int, default=300_000)
    parser.add_argument("--here", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    root = options.folder.absolute()
    if options.here:
        print(json.dumps(measure(options.here, root)))
        return
    makers = {"mixtures": make_mixtures, "utterances": make_utterances}
    print("| set | start | CPU s | imports | peak MB | more than imports |")
    print("|---|---|---|---|---|---|")
    for what, make in makers.items():
        if not (root / what).exists():
            make(root / what, getattr(options, what))
        for number in ("first", "second"):
            command = [sys.executable, "-m", "benchmarks.start", str(root)]
            done = subprocess.run(
                [*command, "--here", what], cwd=ROOT, stdout=subprocess.PIPE, text=True
            )
            if done.returncode:
                raise SystemExit(f"benchmark: exit code {done.returncode} of {what}")
            found = json.loads(done.stdout.splitlines()[-1])
            values = f"{found['cpu']:.1f} | {found['imports']:.1f} | {found['mb']:.0f}"
            print(f"| {what} | {number} | {values} | {found['more_mb']:.0f} |")


if __name__ == "__main__":
    sys.exit(as_command(main))
