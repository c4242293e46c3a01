"""Draw what a run separated: `docs/demo.png`, the picture in the README.

    make demo
    .venv/bin/python -m docs.picture results/demo/1234 --out=docs/demo.png

It shows the median, by gain in SI-SNR, of the test mixtures whose audio the run saved:
neither the best case nor the worst. A network that is trained on SI-SNR gives talkers
in any order and at any level: estimates are put in the order of the targets, and each
panel is relative to its own loudest point.

Legend: S source, T sample.
"""

import argparse
import csv
import io
from pathlib import Path

import numpy as np
import scipy.signal
import soundfile
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from PIL import Image

from modules.losses.si_snr import pit_neg_si_snr, reorder

# Seconds of a frame and between frames; dB below the loudest point; number of colours.
FRAME, HOP, RANGE_DB, COLOURS = 0.032, 0.008, 50.0, 64

TALKERS = ("darkorange", "deepskyblue")


def median_example(run: Path) -> tuple[str, float]:
    """Return the saved mixture with the median gain in SI-SNR, and this gain in dB."""
    with open(run / "test_results.csv", encoding="utf-8", newline="") as file:
        gains = {row["id"]: float(row["si_snr_i"]) for row in csv.DictReader(file)}
    names = sorted((path.name for path in (run / "audio").iterdir()), key=gains.get)
    name = names[len(names) // 2]
    return name, gains[name]


def read(folder: Path, kind: str) -> tuple[torch.Tensor, int]:
    """Return the waveforms of both talkers, [S, T], and their rate."""
    parts = [soundfile.read(folder / f"{kind}_{k}.wav") for k in (1, 2)]
    return torch.from_numpy(np.stack([wave_T for wave_T, _ in parts])), parts[0][1]


def show(axis: Axes, wave_T: np.ndarray, rate: int, colour: str, title: str) -> None:
    """Draw a spectrogram from black over a colour to white."""
    frame, hop = round(FRAME * rate), round(HOP * rate)
    _, _, bins = scipy.signal.stft(wave_T, rate, nperseg=frame, noverlap=frame - hop)
    level_db = 20 * np.log10(np.abs(bins) + 1e-9)
    axis.imshow(
        level_db - level_db.max(),
        cmap=LinearSegmentedColormap.from_list(colour, ["black", colour, "white"]),
        vmin=-RANGE_DB,
        vmax=0,
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        extent=(0, len(wave_T) / rate, 0, rate / 2000),
    )
    axis.set_title(title, fontsize=10)


def draw(run: Path, out: Path) -> None:
    """Draw the mixture, what the network made of it, and what went in."""
    name, gain = median_example(run)
    folder = run / "audio" / name
    mix_T, rate = soundfile.read(folder / "mixture.wav")
    est_ST, target_ST = read(folder, "estimate")[0], read(folder, "target")[0]
    order_BS = pit_neg_si_snr(est_ST[None], target_ST[None]).permutation_BS
    est_ST = reorder(est_ST[None], order_BS)[0]
    figure = Figure(figsize=(10, 4), dpi=100, layout="constrained")
    axes = figure.subplot_mosaic(
        [["mixture", "out 1", "truth 1"], ["mixture", "out 2", "truth 2"]],
        sharex=True,
        sharey=True,
    )
    show(axes["mixture"], mix_T, rate, "grey", "in: two talkers at once")
    axes["mixture"].set(xlabel="s", ylabel="kHz")
    for k, colour in enumerate(TALKERS):
        for kind, waves_ST in (("out", est_ST), ("truth", target_ST)):
            title = f"{kind}: talker {k + 1}"
            show(axes[f"{kind} {k + 1}"], waves_ST[k].numpy(), rate, colour, title)
    picture = io.BytesIO()
    figure.savefig(picture)
    Image.open(picture).convert("RGB").quantize(COLOURS).save(out, optimize=True)
    print(f"{out}: {name}, SI-SNR improved by {gain:.1f} dB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a speech run, after its test")
    parser.add_argument("--out", type=Path, default=Path("docs/demo.png"))
    draw(**vars(parser.parse_args()))
