"""Draw what a run separated: `docs/demo.png`, the picture in the README.

    make demo
    .venv/bin/python docs/picture.py results/demo/1234 --out=docs/demo.png

Of the test mixtures whose audio the run saved, it takes the one with the median gain in
SI-SNR, so the picture is neither the best case nor the worst.
"""

import argparse
import csv
import io
from pathlib import Path

import numpy as np
import scipy.signal
import soundfile
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

# Frames of 32 ms with steps of 8 ms; dB below the loudest bin of the mixture; colours.
FRAME, HOP, RANGE_DB, COLOURS = 0.032, 0.008, 60.0, 64


def median_example(run: Path) -> tuple[str, float]:
    """Return the saved mixture with the median gain in SI-SNR, and this gain in dB."""
    with open(run / "test_results.csv", encoding="utf-8", newline="") as file:
        gains = {row["id"]: float(row["si_snr_i"]) for row in csv.DictReader(file)}
    saved = sorted(
        (gains[folder.name], folder.name) for folder in (run / "audio").iterdir()
    )
    gain, name = saved[len(saved) // 2]
    return name, gain


def show(axis: Axes, path: Path, title: str, top_db: float | None = None) -> float:
    """Draw a spectrogram; return the level of its loudest bin, or `top_db`."""
    wave_T, rate = soundfile.read(path)
    frame, hop = round(FRAME * rate), round(HOP * rate)
    _, _, bins = scipy.signal.stft(wave_T, rate, nperseg=frame, noverlap=frame - hop)
    level_db = 20 * np.log10(np.abs(bins) + 1e-9)
    top_db = float(level_db.max()) if top_db is None else top_db
    extent = (0, len(wave_T) / rate, 0, rate / 2000)
    axis.imshow(
        level_db,
        **{"origin": "lower", "aspect": "auto", "extent": extent, "cmap": "magma"},
        **{"vmin": top_db - RANGE_DB, "vmax": top_db, "interpolation": "nearest"},
    )
    axis.set_title(title, fontsize=10)
    return top_db


def draw(run: Path, out: Path) -> None:
    """Draw the mixture, what the network made of it, and what went in."""
    name, gain = median_example(run)
    folder = run / "audio" / name
    figure = Figure(figsize=(10, 4), dpi=100, layout="constrained")
    axes = figure.subplot_mosaic(
        [["mixture", "estimate_1", "target_1"], ["mixture", "estimate_2", "target_2"]],
        sharex=True,
        sharey=True,
    )
    top_db = show(axes["mixture"], folder / "mixture.wav", "in: two people at once")
    for talker in (1, 2):
        for kind, words in (("estimate", "out: talker"), ("target", "truth: talker")):
            part = f"{kind}_{talker}"
            show(axes[part], folder / f"{part}.wav", f"{words} {talker}", top_db)
        axes[f"target_{talker}"].tick_params(labelleft=False)
    axes["mixture"].set(xlabel="s", ylabel="kHz")
    picture = io.BytesIO()
    figure.savefig(picture)
    Image.open(picture).convert("RGB").quantize(COLOURS).save(out, optimize=True)
    print(f"{out}: {name}, SI-SNR improved by {gain:.1f} dB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a speech run, after its test")
    parser.add_argument("--out", type=Path, default=Path("docs/demo.png"))
    draw(**vars(parser.parse_args()))
