"""Weights from disk: every layout, strict, and never code."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from modules.checkpoints import AtomicCheckpointer
from modules.ema import EMA
from modules.mossformer2 import MossFormer2
from modules.pretrained import PretrainedError, load_pretrained
from modules.sepformer import SepFormer
from tests.toy import same_weights


def make_model(seed: int) -> SepFormer:
    torch.manual_seed(seed)
    return SepFormer(
        encoder_channels=16, chunk_size=10, intra_layers=1, inter_layers=1, heads=2
    )


def write_parts(
    model: SepFormer, folder: Path, suffix: str = ".ckpt", prefix: str = ""
) -> None:
    for name in ("encoder", "masknet", "decoder"):
        state = getattr(model, name).state_dict()
        state = {prefix + key: value for key, value in state.items()}
        torch.save(state, folder / f"{name}{suffix}")


def write_parts_bin(model: SepFormer, folder: Path) -> None:
    write_parts(model, folder, suffix=".bin")


def write_parts_of_data_parallel(model: SepFormer, folder: Path) -> None:
    write_parts(model, folder, prefix="module.")


def write_safetensors(model: SepFormer, folder: Path) -> None:
    save_file(model.state_dict(), folder / "model.safetensors")


def write_separator(model: SepFormer, folder: Path) -> None:
    torch.save(model.state_dict(), folder / "separator.ckpt")


def write_run(model: SepFormer, folder: Path) -> None:
    run = folder / "1234" / "save"
    AtomicCheckpointer(run, {"separator": model}).save_checkpoint(meta={"loss": 1.0})


def write_pytorch_model(model: SepFormer, folder: Path) -> None:
    torch.save(model.state_dict(), folder / "pytorch_model.bin")


def write_pointer(model: torch.nn.Module, folder: Path) -> None:
    state = {f"module.{key}": value for key, value in model.state_dict().items()}
    optimizer = torch.optim.Adam(model.parameters())
    content = {"model": state, "optimizer": optimizer.state_dict(), "epoch": 3}
    torch.save(content, folder / "last_best_checkpoint.pt")
    (folder / "last_best_checkpoint").write_text("last_best_checkpoint.pt\n")


@pytest.mark.parametrize(
    "write",
    [
        write_parts,
        write_parts_bin,
        write_parts_of_data_parallel,
        write_safetensors,
        write_separator,
        write_run,
        write_pytorch_model,
        write_pointer,
    ],
)
def test_a_layout_loads(tmp_path, write):
    source, model = make_model(0), make_model(1)
    write(source, tmp_path)
    assert not same_weights(source.state_dict(), model.state_dict())
    files = load_pretrained(model, tmp_path)
    assert files and all(path.is_file() for path in files)
    assert same_weights(source.state_dict(), model.state_dict())


def standalone(model: MossFormer2) -> dict[str, torch.Tensor]:
    """The state under the keys of MossFormer2's standalone release."""
    published = {}
    for key, value in model.state_dict().items():
        for ours, theirs in (
            ("mask_net.mdl.intra_mdl.norm.", "mask_net.mdl.intra_mdl.mdl.norm.norm."),
            (
                "mask_net.mdl.intra_mdl.mossformerM.",
                "mask_net.mdl.intra_mdl.mdl.flashT.",
            ),
            ("mask_net.mdl.", "masknet.dual_mdl.0."),
            ("mask_net.", "masknet."),
            ("enc.", "encoder."),
            ("dec.", "decoder."),
        ):
            if key.startswith(ours):
                key = theirs + key.removeprefix(ours)
        published[key] = value
    return published


def write_standalone(model: MossFormer2, folder: Path) -> None:
    for part in ("encoder", "masknet", "decoder"):
        mine = {
            key.removeprefix(f"{part}."): value
            for key, value in standalone(model).items()
            if key.startswith(f"{part}.")
        }
        torch.save(mine, folder / f"{part}.ckpt")


def write_standalone_joined(model: MossFormer2, folder: Path) -> None:
    torch.save(standalone(model), folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    "write", [write_pointer, write_standalone, write_standalone_joined]
)
def test_a_published_mossformer2_layout_loads(tmp_path, write):
    tiny = {"encoder_channels": 16, "channels": 16, "layers": 1}
    torch.manual_seed(0)
    source, model = MossFormer2(**tiny), MossFormer2(**tiny)
    write(source, tmp_path)
    assert not same_weights(source.state_dict(), model.state_dict())
    load_pretrained(model, tmp_path)
    assert same_weights(source.state_dict(), model.state_dict())


def test_the_newest_checkpoint_of_a_run_is_taken(tmp_path):
    source, model = make_model(0), make_model(1)
    checkpointer = AtomicCheckpointer(tmp_path / "save", {"separator": source})
    # Names in alphabetical order would choose the first.
    checkpointer.save_checkpoint(name="z")
    torch.nn.init.ones_(source.decoder.weight)
    newest = checkpointer.save_checkpoint(name="a")
    assert load_pretrained(model, tmp_path) == [newest.path / "separator.ckpt"]
    assert bool((model.decoder.weight == 1).all())


def test_the_averaged_weights_of_a_run_are_taken(tmp_path):
    source, model = make_model(0), make_model(1)
    ema = EMA(decay=0.5, warmup=False).attach(source)
    before = source.decoder.weight.detach().clone()
    torch.nn.init.ones_(source.decoder.weight)
    ema.update()
    checkpointer = AtomicCheckpointer(tmp_path, {"separator": source, "ema": ema})
    checkpointer.save_checkpoint()
    load_pretrained(model, tmp_path)
    assert torch.allclose(model.decoder.weight, 0.5 * before + 0.5)
    with ema.applied():
        assert same_weights(source.state_dict(), model.state_dict())


def test_checkpoints_of_several_runs_are_not_chosen_between(tmp_path):
    for run in ("one", "two"):
        AtomicCheckpointer(
            tmp_path / run, {"separator": make_model(0)}
        ).save_checkpoint()
    with pytest.raises(PretrainedError, match="2 runs.*one.*two"):
        load_pretrained(make_model(1), tmp_path)
    load_pretrained(make_model(1), tmp_path / "two")


def test_a_damaged_checkpoint_is_refused(tmp_path):
    checkpointer = AtomicCheckpointer(tmp_path, {"separator": make_model(0)})
    path = checkpointer.save_checkpoint().path / "separator.ckpt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(PretrainedError, match="separator.ckpt"):
        load_pretrained(make_model(1), tmp_path)


@pytest.mark.parametrize("content", [b"", b"<html>", b"PK\x03\x04 cut"])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_file_that_holds_no_weights_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PretrainedError, match=name):
        load_pretrained(make_model(0), tmp_path)


@pytest.mark.filterwarnings("ignore:Validating sparse")
@pytest.mark.parametrize(
    "content",
    [
        [torch.zeros(1)],
        {"epoch": 3},
        {1: torch.zeros(1)},
        {"a": torch.zeros(1, dtype=torch.complex64)},
        {"a": torch.eye(2).to_sparse()},
    ],
)
def test_a_file_of_something_else_is_named(tmp_path, content):
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(PretrainedError, match="no state_dict"):
        load_pretrained(make_model(0), tmp_path)


def test_two_of_three_files_are_not_enough(tmp_path):
    write_parts(make_model(0), tmp_path)
    (tmp_path / "masknet.ckpt").unlink()
    with pytest.raises(PretrainedError, match="lacks masknet.ckpt"):
        load_pretrained(make_model(1), tmp_path)


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
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    shapes = r"encoder.conv1d.weight is \[16, 1, 16\], the model's \[32, 1, 16\]"
    with pytest.raises(PretrainedError, match=shapes):
        load_pretrained(other, tmp_path)
    assert same_weights(before, other.state_dict())


def test_weights_that_are_not_finite_are_refused(tmp_path):
    source = make_model(0)
    model = make_model(1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for value in (float("nan"), float("inf"), 1e300):  # the last is Inf in float32
        weight = source.decoder.weight.double()
        weight[0, 0, 0] = value
        write_parts(source, tmp_path)
        torch.save({"weight": weight.detach()}, tmp_path / "decoder.ckpt")
        with pytest.raises(PretrainedError, match="decoder.weight"):
            load_pretrained(model, tmp_path)
        assert same_weights(before, model.state_dict())


@pytest.mark.parametrize("name", ["../outside.pt", "{}/outside.pt", "a\\b", "..", ""])
def test_a_pointer_does_not_leave_its_folder(tmp_path, name):
    folder = tmp_path / "folder"
    folder.mkdir()
    torch.save({"model": make_model(0).state_dict()}, tmp_path / "outside.pt")
    (folder / "last_best_checkpoint").write_text(name.format(tmp_path))
    with pytest.raises(PretrainedError, match="last_best_checkpoint"):
        load_pretrained(make_model(1), folder)


def test_a_pointer_to_nothing_is_named(tmp_path):
    (tmp_path / "last_best_checkpoint").write_text("gone.pt")
    with pytest.raises(PretrainedError, match="gone.pt, which is missing"):
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


@pytest.mark.parametrize("override", ["", "1", "true"])
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", ["encoder.ckpt", "pointed.pt", "pytorch_model.bin"])
def test_nothing_in_a_file_is_executed(tmp_path, monkeypatch, override, legacy, name):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", override)
    if name == "encoder.ckpt":
        write_parts(make_model(0), tmp_path)
    elif name == "pointed.pt":
        (tmp_path / "last_best_checkpoint").write_text(name)
    canary = tmp_path / "executed"
    content = {"model": {"conv1d.weight": Canary(canary)}}
    torch.save(content, tmp_path / name, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(PretrainedError, match=name):
        load_pretrained(make_model(1), tmp_path)
    assert not canary.exists()
    torch.load(tmp_path / name, weights_only=False)  # the canary does sing
    assert canary.exists()
