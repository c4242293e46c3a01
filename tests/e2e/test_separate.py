"""What separate.py writes of a test mixture is what the run scored."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import save_model
from torch import Tensor

import separate
import train
from modules.metrics.scores import score_example, score_song
from modules.models.htdemucs import HTDemucs
from modules.weights.export import export
from tests.e2e.test_lora import SIZE, TOY
from tests.toy import make_songs


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs with their separated test songs: `lora` of adapters, `full` without."""
    root = tmp_path_factory.mktemp("separate")
    (root / "base").mkdir()
    save_model(HTDemucs(["low", "high"], 0.5, **SIZE), root / "base/model.safetensors")
    music = root / "music.yaml"
    music.write_text(f"extends: {TOY}\nrecipe: !name:recipes.music.MusicSeparation\n")
    for yaml, name in ((TOY, "lora"), (music, "full")):
        train.main(
            [
                str(yaml), f"--data_folder={make_songs(root / 'songs')}",
                f"--output_folder={root / name}", f"--pretrained={root / 'base'}",
                "--valid_tracks=1", "--num_workers=0", "--tensorboard=False",
                "--device=cpu", "--n_audio_to_save=1", "--ema_decay=0.5", "--shifts=1",
            ]
        )  # fmt: skip
    return root


@pytest.mark.parametrize("run", ["full", "lora", "exported"])
def test_the_files_are_what_the_run_scored(runs, tmp_path, run):
    model, options = runs / run, []
    if run == "exported":  # the folder does not say how the run tested
        model = export(runs / "lora", tmp_path / "model", lora="separate")
        options = ["--shifts=1", "--seed=1234"]
    (song,) = (runs / ("full" if run == "full" else "lora") / "audio").iterdir()
    given = [str(model), str(song / "mixture.wav"), f"--out={tmp_path}", "--device=cpu"]
    assert separate.main([*given, *options]) == 0
    for stem in ("low", "high"):
        scored, _ = soundfile.read(song / f"estimate_{stem}.wav")
        written, _ = soundfile.read(tmp_path / "mixture" / f"{stem}.wav")
        assert np.abs(scored).max() > 1e-3
        np.testing.assert_allclose(written, scored, atol=1e-5)


def scores_of(run: Path) -> dict[str, dict[str, str]]:
    """The rows of a run's test by id."""
    with open(run / "test_results.csv", encoding="utf-8", newline="") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def waves_of(folder: Path, pattern: str) -> Tensor:
    """The files of a pattern, by name, [S, C, T]."""
    parts = [
        soundfile.read(p, always_2d=True)[0].T for p in sorted(folder.glob(pattern))
    ]
    return torch.tensor(np.stack(parts))


def assert_same_scores(scores: dict, row: dict[str, str], names: Sequence[str]) -> None:
    for name in names:
        assert abs(scores[name] - float(row[name])) < 0.01, name


def test_a_song_scores_as_in_its_run(runs, tmp_path):
    """Shifts, level and segments are the run's, without an option."""
    (song,) = (runs / "full" / "audio").iterdir()
    given = [str(runs / "full"), str(song / "mixture.wav"), f"--out={tmp_path}"]
    assert separate.main([*given, "--device=cpu"]) == 0
    est_SCT = waves_of(tmp_path / "mixture", "*.wav")
    target_SCT = waves_of(song, "target_*.wav")
    scores = score_song(est_SCT, target_SCT, target_SCT.sum(0), 8000, ["high", "low"])
    names = ("nsdr", "nsdr_low", "nsdr_high", "sdr")
    assert_same_scores(scores, scores_of(runs / "full")[song.name], names)


def test_talkers_score_as_in_their_run(corpus, tmp_path):
    """A run that tested the mean of two epochs in chunks, on its files of speech."""
    run, test_set = tmp_path / "run", corpus / "wav8k/min/tt"
    train.main(
        [
            "hparams/mossformer2_tiny.yaml", f"--data_folder={corpus}",
            f"--output_folder={run}", "--segment_seconds=0.25", "--N_epochs=2",
            "--average_last=2", "--eval_chunk_seconds=0.3",
            "--num_workers=0", "--tensorboard=False", "--device=cpu", "--batch_size=2",
            "--lr=0.01", "--n_audio_to_save=0", "--examples_per_epoch=4", "--layers=1",
        ]
    )  # fmt: skip
    given = [str(run), str(test_set / "mix"), f"--out={tmp_path}", "--device=cpu"]
    assert separate.main([*given, "--name={name}/{stem}"]) == 0
    rows = scores_of(run)
    assert len(rows) == 2
    for id_, row in rows.items():
        est_ST = waves_of(tmp_path / id_, "*.wav")[:, 0]
        files = [soundfile.read(test_set / x / f"{id_}.wav")[0] for x in ("s1", "s2")]
        mix_T = torch.tensor(soundfile.read(test_set / "mix" / f"{id_}.wav")[0])
        scores = score_example(est_ST, torch.tensor(np.stack(files)), mix_T, 8000)
        assert_same_scores(scores, row, ("si_snr", "si_snr_i", "sdr", "sdr_i"))
