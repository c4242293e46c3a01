"""A data set, a network, a loss and a rule, added from outside the packages.

`tests/additions` holds all that each of them takes: a file of Python and a YAML. They
import nothing but `modules`, and no file of the product names them.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import train
from benchmarks.imports import import_closure, imported_names, names_in_recipe
from modules.data.manifest import read_manifest
from recipes.separation import Separation
from tests import ROOT
from tests.additions.harder_half import HarderHalf
from tests.additions.masker import Masker
from tests.toy import RATE, weights_of

ADDITIONS = ROOT / "tests" / "additions"


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8, 2 and 2 mixtures of two talkers, laid out as `recordings.prepare` asks."""
    root = tmp_path_factory.mktemp("recordings")
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("valid", 2), ("test", 2)):
        for number in range(count):
            folder = root / split / f"{number:02d}"
            folder.mkdir(parents=True)
            low, high = 0.1 * rng.standard_normal((2, 4000 + 10 * number))
            low = np.convolve(low, np.ones(8) / 3, mode="same")
            parts = {"talker1": low, "talker2": high, "mixture": low + high}
            for name, wave in parts.items():
                soundfile.write(folder / f"{name}.wav", wave, RATE, subtype="FLOAT")
    return root


@pytest.fixture
def arguments(recordings: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Command line of a short run on the added data set."""

    def make(yaml: str, **overrides: object) -> list[str]:
        settings = {
            "dataset": ADDITIONS / "recordings.yaml",
            "data_folder": recordings,
            "output_folder": tmp_path / "run",
            "segment_seconds": 0.25,
            "batch_size": 4,
            "dynamic_mixing": False,
            "N_epochs": 2,
            "num_workers": 0,
            "tensorboard": False,
            "device": "cpu",
            **overrides,
        }
        options = (f"--{name}={value}" for name, value in settings.items())
        return [str(ADDITIONS / yaml), *options]

    return make


def test_an_added_network_trains_on_an_added_data_set(arguments, tmp_path):
    train.main(arguments("masker.yaml", N_epochs=1, n_audio_to_save=1))
    run = tmp_path / "run"
    first = weights_of(run)
    train.main(arguments("masker.yaml", n_audio_to_save=1))  # resumes after epoch 1
    log = (run / "train_log.txt").read_text()
    assert "epoch: 1" in log and "epoch: 2" in log and "valid si_snr_i" in log
    second = weights_of(run)
    assert second.keys() == Masker(2, channels=8).state_dict().keys()
    assert not any(torch.equal(first[name], second[name]) for name in first)
    summary = json.loads((run / "test_results.json").read_text())
    assert summary["count"] == 2 and summary["non_finite"] == 0
    assert {"si_snr_i", "sdr_i"} <= summary["metrics"].keys()
    (saved,) = (run / "audio").iterdir()
    assert len(list(saved.iterdir())) == 5, "mixture, estimates and targets"
    rows = read_manifest(run / "save" / "train.csv", num_sources=2, sample_rate=RATE)
    assert [row.id for row in rows] == [f"{number:02d}" for number in range(8)]


def test_an_added_data_set_serves_the_recipes_that_exist(arguments, tmp_path):
    _, *options = arguments("masker.yaml", N_epochs=1, segment_seconds=0.125)
    recipe = tmp_path / "small.yaml"
    recipe.write_text(
        f"extends: {ROOT / 'hparams' / 'mossformer2_tiny.yaml'}\n"
        "channels: 8\nlayers: 1\nspeed_changes: null\n"
    )
    train.main([str(recipe), *options])
    assert (tmp_path / "run" / "test_results.csv").is_file()


def test_an_added_rule_says_which_examples_count(arguments, tmp_path, monkeypatch):
    kept = []
    on_choice = Separation.on_choice

    def spy(self, choice, batch):
        assert isinstance(self.config.select, HarderHalf)
        kept.append((choice.usable_K, choice.kept_K))
        on_choice(self, choice, batch)

    monkeypatch.setattr(Separation, "on_choice", spy)
    train.main(arguments("harder_half.yaml"))
    # Of four losses, `nanmedian` is the second: three are not below it.
    assert kept == [([4], [3])] * 4, "two epochs of two steps"
    log = (tmp_path / "run" / "train_log.txt").read_text()
    assert log.count("kept_share: 7.50e-01") == 2


def test_an_added_loss_is_trained_on(arguments, tmp_path):
    told = []
    train.main(
        arguments("waveform_loss.yaml", log_every=1),
        on_metrics=lambda kind, number, values: told.append((kind, values)),
    )
    losses = [values["loss"] for kind, values in told if kind == "batch"]
    # An absolute error, not decibels: the waveforms' levels are about 0.1.
    assert len(losses) == 4 and all(0.01 < loss < 0.2 for loss in losses)
    log = (tmp_path / "run" / "train_log.txt").read_text()
    assert log.count("kept_share: 1.00e+00") == 2


def test_nothing_else_was_needed():
    """Each addition is one file and a YAML, on top of `modules` alone.

    A loss also needs the class that it changes.
    """
    names = {"recordings", "masker", "waveform_loss", "harder_half"}
    changed = {("waveform_loss", "recipes.speech.SpeechSeparation")}
    files = {path.name for path in ADDITIONS.iterdir() if path.is_file()}
    assert files == {"__init__.py"} | {
        f"{n}{e}" for n in names for e in (".py", ".yaml")
    }
    for name in names:
        for imported in imported_names(ADDITIONS / f"{name}.py"):
            beyond = imported.split(".")[0] in (
                "tests",
                "recipes",
                "data_prep",
                "train",
            )
            assert not beyond or (name, imported) in changed, imported
    product = import_closure(["train", *names_in_recipe(ADDITIONS / "masker.yaml")])
    product = [path for path in product if path.parts[-3:-1] != ("tests", "additions")]
    texts = [*product, *(ROOT / "hparams").rglob("*.yaml")]
    for path in texts:
        named = re.search("additions|Masker|HarderHalf|WaveformSep", path.read_text())
        assert named is None, path
