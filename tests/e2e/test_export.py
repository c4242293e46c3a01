"""Exported folders give the model that the run tested, and hold no code."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_model

import train
from modules import export
from modules.export import ExportError, load_exported
from modules.htdemucs import HTDemucs
from modules.lora_files import load_lora_weights
from modules.pretrained import load_pretrained
from tests.e2e.test_lora import SIZE, TOY, plain
from tests.toy import make_songs


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base`, a model; `lora`, a run of adapters; `full`, a run without."""
    root = tmp_path_factory.mktemp("export")
    (root / "base").mkdir()
    save_model(HTDemucs(["low", "high"], 0.5, **SIZE), root / "base/model.safetensors")
    music = root / "music.yaml"
    music.write_text(f"extends: {TOY}\nrecipe: !name:recipes.music.MusicSeparation\n")
    options = [
        f"--data_folder={make_songs(root / 'songs')}", "--valid_tracks=1",
        f"--pretrained={root / 'base'}", "--num_workers=0", "--tensorboard=False",
        "--device=cpu", "--n_audio_to_save=0", "--ema_decay=0.5",
    ]  # fmt: skip
    train.main([TOY, *options, f"--output_folder={root / 'lora'}"])
    train.main([str(music), *options, f"--output_folder={root / 'full'}"])
    return root


@torch.no_grad()
def test_adapters_merged_separate_or_left_out(folders, tmp_path):
    x = torch.randn(1, 2, 4000)
    base = plain(folders / "base")
    before = base(x)
    load_lora_weights(base, folders / "lora" / "adapters.safetensors")
    tested = base(x)
    assert not torch.equal(tested, before)
    for lora, expected in (
        ("merged", tested), ("separate", tested), ("none", before)
    ):  # fmt: skip
        out = tmp_path / lora
        export.main([str(folders / "lora"), f"--out={out}", f"--lora={lora}"])
        assert torch.equal(load_exported(out)(x), expected), lora
        has_adapters = lora == "separate"
        assert (out / "adapters.safetensors").exists() == has_adapters
        names = load_file(out / "model.safetensors").keys()
        assert names == HTDemucs(["low", "high"], 0.5, **SIZE).state_dict().keys()
        assert ("nsdr" in (out / "README.md").read_text()) == (lora != "none")
    model = HTDemucs(["low", "high"], 0.5, **SIZE).eval()
    load_pretrained(model, tmp_path / "merged")
    assert torch.equal(model(x), tested)


@torch.no_grad()
def test_a_run_without_adapters(folders, tmp_path):
    export.export(folders / "full", tmp_path / "out")
    model, x = plain(folders / "base"), torch.randn(1, 2, 4000)
    load_pretrained(model, folders / "full")
    assert torch.equal(load_exported(tmp_path / "out")(x), model(x))
    with pytest.raises(ExportError, match="trained no adapters"):
        export.export(folders / "full", tmp_path / "out", lora="separate")


def test_what_is_no_run_or_no_exported_model_is_refused(folders, tmp_path):
    with pytest.raises(ExportError, match="give the folder of a run"):
        export.export(tmp_path, tmp_path / "out")
    (tmp_path / "hyperparams.yaml").write_text("separator: !new:os.system [ls]\n")
    with pytest.raises(ExportError, match="its separator is !new:os.system; known"):
        export.export(tmp_path, tmp_path / "out")
    with pytest.raises(ExportError, match="no configuration of an exported model"):
        load_exported(tmp_path)
    config = {"format": export.FORMAT, "model": "os.system", "arguments": {}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ExportError, match="'os.system'"):
        load_exported(tmp_path)
