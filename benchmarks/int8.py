"""Measure what int8 weights cost a music model: SDR of its float and int8 exports.

    python -m benchmarks.int8 results/htdemucs/1234 --tracks=musdb18hq/test

Both exports of a run are written to a temporary folder, loaded as a user would, and
separate the same tracks (folders of stems) in the same overlapping segments. Scores are
in dB: means over the tracks, and the standard error of the differences between tracks.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from benchmarks.adapt import mean_and_error
from data_prep.music import manifests as stems
from modules.data.batch import Example
from modules.data.manifest import read_manifest
from modules.data.stems import StemDataset
from modules.inference.songs import apply_model
from modules.metrics.scores import score_song
from modules.runtime.errors import DataError, ExportError, LoraError, PretrainedError
from modules.weights.export import CONFIG, WEIGHTS, export, load_exported


@torch.no_grad()
def compare(
    models: dict[str, nn.Module], song: Example, rate: int, shifts: int
) -> dict[str, dict[str, float]]:
    """Return the scores of a song by each model; `snr` is of int8 against float."""
    scores, outputs = {}, {}
    for name, model in models.items():
        est_BSCT = apply_model(model, song.mix[None], shifts=shifts, normalize=True)
        outputs[name] = est_BSCT[0]
        scores[name] = score_song(
            outputs[name], song.src, song.mix, rate, model.sources
        )
    noise = outputs["int8"] - outputs["float"]
    ratio = outputs["float"].square().sum() / noise.square().sum()
    scores["int8"]["snr"] = 10 * torch.log10(ratio).item()
    return scores


def table(songs: Sequence[dict[str, dict[str, float]]]) -> list[str]:
    """Return lines of Markdown, a row per score; skip songs without it."""
    lines = ["| score | float | int8 | lost |", "|---|---|---|---|"]
    for name in songs[0]["float"]:
        pairs = [(song["float"][name], song["int8"][name]) for song in songs]
        pairs = [pair for pair in pairs if None not in pair]
        if not pairs:
            continue
        means = [statistics.fmean(column) for column in zip(*pairs, strict=True)]
        lost = [a - b for a, b in pairs]
        lines.append(
            f"| {name} | {means[0]:.3f} | {means[1]:.3f} | {mean_and_error(lost, 4)} |"
        )
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    """Export the run twice, separate the tracks and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.int8",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("run", type=Path, help="folder of a tested run of a music recipe")
    add("--tracks", type=Path, required=True, help="holds folders of stems")
    add("--shifts", type=int, default=0)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        models, sizes = {}, {}
        for name in ("float", "int8"):
            out = Path(folder) / name
            export(options.run, out, int8=name == "int8")
            models[name] = load_exported(out)
            sizes[name] = os.path.getsize(out / WEIGHTS) / 1e6
        config = json.loads((out / CONFIG).read_text(encoding="utf-8"))
        rate, sources = config["sample_rate"], config["arguments"].get("sources")
        if not sources:
            sys.exit(f"error: {options.run} separates no stems: give a music run")
        manifests = stems.prepare(
            options.tracks, folder, sources, 0, test_folder=options.tracks
        )
        rows = read_manifest(manifests["test"], len(sources), stems=True)
        dataset = StemDataset(rows, rate)
        songs = [
            compare(models, dataset[index], rate, options.shifts)
            for index in range(len(dataset))
        ]
    snr = [song["int8"]["snr"] for song in songs]
    lines = [
        f"{sizes['float']:.2f} MB as float, {sizes['int8']:.2f} MB as int8; output of "
        f"int8 against float {mean_and_error(snr, 1)} dB; {len(songs)} tracks",
        "",
        *table(songs),
    ]
    print("\n".join(lines))


if __name__ == "__main__":
    try:
        main()
    except (DataError, ExportError, LoraError, PretrainedError) as error:
        sys.exit(f"error: {error}")
