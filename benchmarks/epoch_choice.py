"""Measure what a choice of weights without clean validation songs loses.

    python -m benchmarks.epoch_choice --test_folder=CLEAN RUN [RUN ...]

The runs are of one noisy set and hold out different tracks of it (`--valid_tracks`).
Each must have the checkpoints of all its epochs (`--keep_checkpoints`) and, for the row
of the EMA, `--ema_decay`; its `choice.json` keeps what is measured. Scores are nSDR in
dB. The epoch is chosen on the noisy hold-out by `nsdr_truncated`; the weights are
scored on the clean test songs, as is every epoch: the best of these is the choice by
the truth.
"""

import json
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from data_prep.music import prepare
from modules.data.manifest import Row, read_manifest
from modules.data.stems import StemDataset
from modules.inference.songs import apply_model
from modules.losses.selection import truncated_mean
from modules.metrics.scores import score_song
from modules.runtime.cli import run as run_command
from modules.runtime.files import write_text
from modules.weights.checkpointer import AtomicCheckpointer, recency
from modules.weights.ema import mean_state
from modules.weights.runs import Run, read_run

MEANS = (3, 5)  # epochs whose weights are averaged
AVERAGES = (*(f"last {count}" for count in MEANS), "best 5", "ema")
Songs = list[dict[str, float]]  # nSDR of each stem that is not silent


def measure(folder: Path, test_rows: Sequence[Row]) -> dict[str, Any]:
    """Score all epochs of a run on its hold-out and on the test songs, and averages.

    The result has lists over the epochs, "valid" and "test", and the test of "last 3",
    ..., "best 5" and "ema", for each the songs' scores.
    """
    if (path := folder / "choice.json").is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    run = read_run(folder)
    network, sources = run.make_network(), run.value("sources")
    saved = AtomicCheckpointer(folder / "save")
    files = [c.paramfiles for c in sorted(saved.list_checkpoints(), key=recency)]
    states = [torch.load(f["separator"], weights_only=True) for f in files]
    own_rows = read_manifest(folder / "save/valid.csv", len(sources), stems=True)

    def score(rows: Sequence[Row], state: Mapping[str, Tensor]) -> Songs:
        network.load_state_dict(state, strict=False)  # an EMA lacks the buffers
        return [*score_songs(network, rows, sources, run)]

    found: dict[str, Any] = {"valid": [score(own_rows, state) for state in states]}
    found["test"] = [score(test_rows, state) for state in states]
    found["quantile"] = quantiles(run)
    ranked = sorted(zip(truncated(found), range(len(states)), strict=True))
    chosen = {f"last {n}": states[-n:] for n in MEANS}
    chosen["best 5"] = [states[number] for _, number in ranked[-5:]]
    averages = {name: mean_state(some) for name, some in chosen.items()}
    if ema := files[-1].get("ema"):
        averages["ema"] = torch.load(ema, weights_only=True)["shadow"]
    found |= {name: score(test_rows, state) for name, state in averages.items()}
    write_text(path, json.dumps(found))
    return found


@torch.no_grad()
def score_songs(
    network: nn.Module, rows: Sequence[Row], sources: Sequence[str], run: Run
) -> Iterable[dict[str, float]]:
    """Yield the nSDR of each song's stems."""
    rate: Any = run.sample_rate
    for song in StemDataset(rows, rate):
        est_SCT = apply_model(network, song.mix[None], shifts=0, normalize=True)[0]
        scores = score_song(est_SCT, song.src, song.mix, rate, sources, ("nsdr",))
        stems = {name: scores[f"nsdr_{name}"] for name in sources}
        yield {name: value for name, value in stems.items() if value is not None}


def quantiles(run: Run) -> list[float]:
    """Return the share of losses that each epoch kept."""
    phases = run.value("lr_scheduler")
    pairs = zip(phases["epochs"], phases["quantile"], strict=True)
    return [quantile for epochs, quantile in pairs for _ in range(epochs)]


def truncated(found: Mapping[str, Any], only: int | None = None) -> list[float]:
    """Return `nsdr_truncated` of each epoch on the hold-out, or on one song of it."""
    means = []
    for songs, quantile in zip(found["valid"], found["quantile"], strict=True):
        stems: dict[str, list[float]] = {}
        for song in songs if only is None else [songs[only]]:
            for name, value in song.items():
                stems.setdefault(name, []).append(value)
        means.append(
            statistics.fmean(truncated_mean(x, quantile) for x in stems.values())
        )
    return means


def mean(songs: Songs) -> float:
    """Return the mean over songs of the mean over stems."""
    return statistics.fmean(statistics.fmean(song.values()) for song in songs)


def losses(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Return what each rule loses against the best epoch, in dB, run by run."""
    table: dict[str, list[float]] = {"best epoch by the truth": []}
    curves = [truncated(found) for found in runs]
    of_folds = [statistics.fmean(values) for values in zip(*curves, strict=True)]
    for found, curve in zip(runs, curves, strict=True):
        test = [mean(songs) for songs in found["test"]]

        def at(values: Sequence[float], test: list[float] = test) -> float:
            return test[values.index(max(values))]

        count = len(found["valid"][0])
        single = [at(truncated(found, number)) for number in range(count)]
        scores = {
            "hold-out of one song": statistics.fmean(single),
            f"hold-out of {count} songs": at(curve),
            f"folds, {count * len(runs)} songs": at(of_folds),
            "last epoch": test[-1],
        }
        scores |= {name: mean(found[name]) for name in AVERAGES if name in found}
        table["best epoch by the truth"].append(max(test))
        for name, value in scores.items():
            table.setdefault(name, []).append(max(test) - value)
    return table


def compare(*runs: Path, test_folder: Path) -> None:
    """Print a row for each rule: the mean loss, and that of each run.

    Arguments
    ---------
    runs : Path
        Folders of runs on one noisy set.
    test_folder : Path
        Songs in stems with right labels, laid out as `--test_folder` of a run.
    """
    sources = read_run(runs[0]).value("sources")
    with TemporaryDirectory() as folder:
        made = prepare(test_folder, folder, sources, 0, test_folder, splits=["test"])
        rows = read_manifest(made["test"], len(sources), stems=True)
    found = [measure(folder, rows) for folder in runs]
    print("| rule | mean | " + " | ".join(folder.name for folder in runs) + " |")
    print("|---" * (len(runs) + 2) + "|")
    for name, values in losses(found).items():
        cells = [f"{value:.2f}" for value in [statistics.fmean(values), *values]]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    sys.exit(run_command("python -m benchmarks.epoch_choice", __doc__, compare))
