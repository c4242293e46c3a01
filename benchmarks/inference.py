"""Compare `separate.py` with the commands that people use today: time and memory.

    python -m benchmarks.inference --reference FOLDER      # a minute of music, 20 s
    python -m benchmarks.inference --reference FOLDER --only music --song 240
    python -m benchmarks.inference --only speech --speech 20 120

Music is separated by demucs' own command (HTDemucs as published, random weights in a
package of demucs), speech by SpeechBrain's `separate_file` (SepFormer as published),
and both by `separate.py` from the very same files. Every figure is that of a fresh
process, its start included, on noise in a file; the sides take turns
(`benchmarks.pairs`).

The stems of demucs and ours are compared. SpeechBrain separates a file whole, ours in
chunks of 16 s, so that talkers of longer files are not.

FOLDER holds demucs, a development dependency only:

    pip install --no-deps --target FOLDER demucs==4.1.0 einops julius lameenc \
        openunmix sphn dora-search omegaconf antlr4-python3-runtime==4.9.3 retrying \
        treetable submitit cloudpickle
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import torch

from benchmarks.pairs import Figures, header, rows, run, take_turns
from modules.models.sepformer import SepFormer
from modules.weights.speechbrain_files import write_hub_files

SONG_RATE, SPEECH_RATE = 44100, 8000
SIGNATURE = "0a0b0c0d"

# Run with demucs on its path: only demucs' own class makes its package.
MAKE_PACKAGE = f"""
import sys
import torch
from benchmarks.models import reference_htdemucs
torch.manual_seed(0)
model = reference_htdemucs(int(sys.argv[2]), 10**9)
args, kwargs = model._init_args_kwargs
state = {{key: value.half() for key, value in model.state_dict().items()}}
package = {{"klass": type(model), "args": args, "kwargs": kwargs, "state": state}}
torch.save(package, sys.argv[1] + "/{SIGNATURE}.th")
"""

SEPARATE_FILE = """
import sys
import soundfile
from speechbrain.inference.separation import SepformerSeparation
model, path, out = sys.argv[1:]
separator = SepformerSeparation.from_hparams(source=model, savedir=model)
for number, wave in enumerate(separator.separate_file(path)[0].T, start=1):
    soundfile.write(f"{out}/s{number}.wav", wave.numpy(), 8000, "FLOAT")
"""


def write_noise(path: Path, seconds: float, rate: int, channels: int) -> Path:
    """Write noise that swells, minute by minute."""
    rng = np.random.default_rng(0)
    with soundfile.SoundFile(path, "w", rate, channels, "PCM_16") as file:
        for start in range(0, round(seconds * rate), 60 * rate):
            samples = min(60 * rate, round(seconds * rate) - start)
            swell_T1 = 0.6 + 0.4 * np.sin(np.arange(samples) / rate)[:, None]
            file.write(0.1 * swell_T1 * rng.standard_normal((samples, channels)))
    return path


def ours(model: Path, path: Path, out: Path, precision: str) -> list[str]:
    """Return the command of `separate.py`."""
    command = [sys.executable, "separate.py", str(model), str(path), f"--out={out}"]
    return [
        *command,
        "--device=cpu",
        f"--precision={precision}",
        "--name={stem}_{name}",
    ]


def compare(
    title: str, sides: dict[str, Callable[[Path], list[str]]], turns: int, folder: Path
) -> list[str]:
    """Let the commands take turns, each into a new folder; return lines of a table."""

    def side(name: str) -> Figures:
        out = folder / f"{name} {len(list(folder.glob(f'{name} *')))}"
        out.mkdir()
        return run(sides[name](out), stdout=subprocess.DEVNULL)

    return rows(title, take_turns({name: partial(side, name) for name in sides}, turns))


def music(arguments: argparse.Namespace, folder: Path) -> list[str]:
    """Compare with demucs' command."""
    if arguments.reference:
        paths = [os.environ.get("PYTHONPATH"), str(Path(arguments.reference).resolve())]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    song = write_noise(folder / "song.wav", arguments.song, SONG_RATE, 2)
    make = [sys.executable, "-c", MAKE_PACKAGE, str(folder), str(arguments.layers or 5)]
    run(make)

    def demucs(out: Path) -> list[str]:
        command = [sys.executable, "-m", "demucs", "--repo", str(folder)]
        command += ["-n", SIGNATURE, "-d", "cpu", "--shifts", "0", "--float32"]
        return [*command, "-o", str(out), "--filename", "{stem}_song.{ext}", str(song)]

    sides = {"demucs": demucs}
    for precision in arguments.precisions:
        sides[precision] = lambda out, precision=precision: ours(
            folder / f"{SIGNATURE}.th", song, out, precision
        )
    title = f"song of {arguments.song:g} s, "
    lines = compare(title, sides, arguments.repeats, folder)
    theirs = folder / "demucs 0" / SIGNATURE
    for precision in arguments.precisions:
        ratio = min(
            agreement_db(folder / f"{precision} 0" / path.name, path)
            for path in theirs.iterdir()
        )
        lines.append(f"\n{precision} agrees with demucs to {ratio:.0f} dB.")
    return lines


def agreement_db(path: Path, other: Path) -> float:
    """Level of a file over that of the difference to another."""
    wave_TC, _ = soundfile.read(path, always_2d=True)
    other_TC, _ = soundfile.read(other, always_2d=True)
    power, error = (float(np.mean(x**2)) for x in (wave_TC, wave_TC - other_TC))
    return 10 * np.log10(power / max(error, 1e-30))


def write_sepformer(folder: Path, layers: int) -> Path:
    """Write a SepFormer with random weights as SpeechBrain publishes it."""
    torch.manual_seed(0)
    folder.mkdir()
    arguments = {"intra_layers": layers, "inter_layers": layers}
    write_hub_files(folder, SepFormer(**arguments), arguments, SPEECH_RATE)
    return folder


def speech(arguments: argparse.Namespace, folder: Path) -> list[str]:
    """Compare with SpeechBrain's `separate_file`."""
    model = write_sepformer(folder / "sepformer", arguments.layers or 8)
    lines = []
    for seconds in arguments.speech:
        place = folder / f"{seconds:g}"
        place.mkdir()
        mixture = write_noise(place / "mixture.wav", seconds, SPEECH_RATE, 1)
        sides = {
            "SpeechBrain": lambda out, mixture=mixture: [
                *(sys.executable, "-c", SEPARATE_FILE),
                *map(str, (model, mixture, out)),
            ]
        }
        for precision in arguments.precisions:
            sides[precision] = lambda out, mixture=mixture, precision=precision: ours(
                model, mixture, out, precision
            )
        title = f"speech of {seconds:g} s, "
        lines += compare(title, sides, arguments.repeats, place)
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.inference",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--reference", help="folder that holds demucs (pip's --target)")
    add("--song", type=float, default=60.0, help="length of the song in seconds")
    add("--speech", type=float, nargs="+", default=[20.0], help="lengths of mixtures")
    add("--repeats", type=int, default=2, help="turns")
    add("--only", choices=["music", "speech"], help="one of both")
    add("--precisions", nargs="+", choices=["fp32", "bf16"], default=["fp32"])
    add("--layers", type=int, help="fewer layers (default: as published)")
    arguments = parser.parse_args(argv)
    lines = header()
    with tempfile.TemporaryDirectory(prefix="inference-") as folder:
        for name, measure in (("speech", speech), ("music", music)):
            if arguments.only in (None, name):
                place = Path(folder, name)
                place.mkdir()
                lines += measure(arguments, place)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
