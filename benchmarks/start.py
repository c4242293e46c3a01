"""Measure how long it takes from the command to the first training step.

    python -m benchmarks.start FOLDER [--mixtures=20000] [--utterances=300000]

FOLDER gets two sets: one laid out as WSJ0-2mix (its validation and test as well, a
quarter and 15 % of the training's mixtures) and a tree of single utterances laid out as
LibriSpeech, for dynamic mixing. Their files are half a second long (those of the tree
are links to a few): a start reads headers, while levels are measured once, which takes
time in proportion to the length. A first start (which finds nothing kept), a second one
and the imports alone take turns, each in a fresh process.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pairs import CPU, MEMORY, ROOT, Figures, header, rows, run, take_turns
from modules.audio.io import write_wave
from modules.runtime.cli import as_command

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


def start(what: str, root: Path, imports_alone: bool = False) -> None:
    """List the utterances, or do what a run does until it has its first batch."""
    if what == "utterances":
        from modules.data.utterances import UtterancePool

        if not imports_alone:
            UtterancePool.scan(root / what, root / "run" / "utterances.csv")
        return
    import train
    from recipes.separation import Separation

    def stop(*_: Any) -> None:
        raise AtFirstStep

    recipe: Any = Separation
    step, recipe.fit_batch = recipe.fit_batch, stop
    options = ["--segment_seconds=0.4", "--num_workers=0", "--noprogressbar"]
    places = [f"--data_folder={root / what}", f"--output_folder={root / 'run'}"]
    try:
        if not imports_alone:
            yaml = ROOT / "hparams" / "sepformer_tiny.yaml"
            train.main([str(yaml), *places, *options])
    except AtFirstStep:
        pass
    finally:
        recipe.fit_batch = step


def measure(what: str, root: Path, kind: str) -> Figures:
    """Start in a process of its own."""
    if kind == "first start":
        shutil.rmtree(root / "run", ignore_errors=True)
        (root / "run").mkdir()
    command = [sys.executable, "-m", "benchmarks.start", str(root)]
    return run([*command, "--here", what, kind], stdout=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the sets unless they are there, and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.start",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--mixtures", type=int, default=20_000)
    parser.add_argument("--utterances", type=int, default=300_000)
    parser.add_argument("--repeats", type=int, default=2, help="turns")
    parser.add_argument("--here", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    root = options.folder.absolute()
    if options.here:
        what, kind = options.here
        start(what, root, kind == "imports")
        return
    makers = {"mixtures": make_mixtures, "utterances": make_utterances}
    lines, kinds = header([CPU, MEMORY]), ("first start", "second start", "imports")
    for what, make in makers.items():
        if not (root / what).exists():
            make(root / what, getattr(options, what))
        sides = {kind: partial(measure, what, root, kind) for kind in kinds}
        found = take_turns(sides, options.repeats)
        lines += rows(f"{what}, ", found, [CPU, MEMORY])
    print("\n".join(lines))


if __name__ == "__main__":
    sys.exit(as_command(main))
