"""What separate.py writes of a test mixture is what the run scored."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from safetensors.torch import save_model

import separate
import train
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
                "--device=cpu", "--n_audio_to_save=1", "--ema_decay=0.5", "--shifts=0",
            ]
        )  # fmt: skip
    return root


@pytest.mark.parametrize("run", ["full", "lora", "exported"])
def test_the_files_are_what_the_run_scored(runs, tmp_path, run):
    model = runs / run
    if run == "exported":
        model = export(runs / "lora", tmp_path / "model", lora="separate")
    (song,) = (runs / ("full" if run == "full" else "lora") / "audio").iterdir()
    given = [str(model), str(song / "mixture.wav"), f"--out={tmp_path}", "--device=cpu"]
    assert separate.main(given) == 0
    for stem in ("low", "high"):
        scored, _ = soundfile.read(song / f"estimate_{stem}.wav")
        written, _ = soundfile.read(tmp_path / "mixture" / f"{stem}.wav")
        assert np.abs(scored).max() > 1e-3
        np.testing.assert_allclose(written, scored, atol=1e-5)
