"""Weights from disk: every layout, strict, and never code."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from modules.pretrained import PretrainedError, load_pretrained
from modules.sepformer import SepFormer
from tests.toy import same_weights


def make_model(seed: int) -> SepFormer:
    torch.manual_seed(seed)
    return SepFormer(
        encoder_channels=16, chunk_size=10, intra_layers=1, inter_layers=1, heads=2
    )


def write_parts(model: SepFormer, folder: Path) -> None:
    for name in ("encoder", "masknet", "decoder"):
        torch.save(getattr(model, name).state_dict(), folder / f"{name}.ckpt")


def write_safetensors(model: SepFormer, folder: Path) -> None:
    save_file(model.state_dict(), folder / "model.safetensors")


@pytest.mark.parametrize("write", [write_parts, write_safetensors])
def test_a_layout_loads(tmp_path, write):
    source, model = make_model(0), make_model(1)
    write(source, tmp_path)
    assert not same_weights(source.state_dict(), model.state_dict())
    load_pretrained(model, tmp_path)
    assert same_weights(source.state_dict(), model.state_dict())


def test_a_partial_fit_lists_what_is_missing_and_changes_nothing(tmp_path):
    source, model = make_model(0), make_model(1)
    write_parts(source, tmp_path)
    state = torch.load(tmp_path / "encoder.ckpt")
    state["extra"] = state.pop("conv1d.weight")
    torch.save(state, tmp_path / "encoder.ckpt")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(PretrainedError) as error:
        load_pretrained(model, tmp_path)
    assert "encoder.conv1d.weight" in str(error.value)
    assert "encoder.extra" in str(error.value)
    assert same_weights(before, model.state_dict())


def test_another_shape_is_named(tmp_path):
    write_safetensors(make_model(0), tmp_path)
    other = SepFormer(
        encoder_channels=32, chunk_size=10, intra_layers=1, inter_layers=1, heads=2
    )
    with pytest.raises(PretrainedError, match="encoder.conv1d.weight"):
        load_pretrained(other, tmp_path)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    source = make_model(0)
    source.decoder.weight.data[0, 0, 0] = float("nan")
    write_parts(source, tmp_path)
    with pytest.raises(PretrainedError, match="decoder.weight"):
        load_pretrained(make_model(1), tmp_path)


@pytest.mark.parametrize("name", ["../outside.pt", "/etc/passwd"])
def test_a_pointer_does_not_leave_its_folder(tmp_path, name):
    (tmp_path / "last_best_checkpoint").write_text(name)
    with pytest.raises(PretrainedError, match="last_best_checkpoint"):
        load_pretrained(make_model(0), tmp_path)


def test_an_unknown_or_missing_folder_is_named(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(PretrainedError, match=str(folder)):
            load_pretrained(make_model(0), folder)


class Canary:
    """Unpickling this makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("override", ["", "1"])
def test_nothing_in_a_file_is_executed(tmp_path, monkeypatch, override):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", override)
    write_parts(make_model(0), tmp_path)
    canary = tmp_path / "executed"
    torch.save({"conv1d.weight": Canary(canary)}, tmp_path / "encoder.ckpt")
    with pytest.raises(PretrainedError, match="encoder.ckpt"):
        load_pretrained(make_model(1), tmp_path)
    assert not canary.exists()
