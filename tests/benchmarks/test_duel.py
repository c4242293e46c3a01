"""The duel: both sides train and are scored alike, and the table pairs examples."""

import csv

import numpy as np
import pytest
import soundfile
from torch import nn

from benchmarks import duel, stock


def test_speechbrains_training_ends_with_a_score_for_each_mixture(corpus, tmp_path):
    rng = np.random.default_rng(0)
    for speaker in ("anna", "ben", "cleo"):
        (tmp_path / "people" / speaker).mkdir(parents=True)
        for number in (1, 2):
            path = tmp_path / "people" / speaker / f"{number}.wav"
            soundfile.write(path, 0.1 * rng.standard_normal(8000), 8000)
    options = {"data_folder": corpus, "base_folder_dm": tmp_path / "people"}
    options |= {"output_folder": tmp_path / "run", "examples_per_epoch": 3}
    options |= {"N_epochs": 2, "valid_every": 2, "segment_seconds": 0.5}
    options |= {"channels": 8, "layers": 1, "device": "cpu"}
    given = [f"--{key}={value}" for key, value in options.items()]
    stock.main(["hparams/sepformer_tiny.yaml", *given, "--noprogressbar"])
    with open(tmp_path / "run" / "test_results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    assert all(np.isfinite(float(row["si_snr_i"])) for row in rows)


def test_multiply_adds_are_those_of_the_formulas():
    assert duel.multiply_adds(nn.Conv1d(1, 1, 5), 1000) == pytest.approx(5000, rel=0.01)


def test_the_gain_is_paired_by_example():
    figures = {"parameters": 1e6, "multiply_adds": 1e9, "seconds_a_step": 0.1}
    figures |= {"steps": 10, "batch_size": 2}
    ours = [{"scores": {"x": 1.0, "y": 5.0}, **figures}]
    theirs = [{"scores": {"y": 6.0, "x": 2.0}, **figures}]
    *_, first, second = duel.table({"a": ours, "b": theirs})
    assert first.startswith("| a | 3.00 ± 2.00 | 3.00 |  |")
    assert second.startswith("| b | 4.00 ± 2.00 | 4.00 | 1.00 ± 0.00 |")
    assert first.endswith("| 20 |")
