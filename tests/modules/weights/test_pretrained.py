"""Weights from disk: every layout, strict, and never code."""

import json
import os
import sys
import types
from collections import OrderedDict
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from modules.models.htdemucs import HTDemucs
from modules.models.mossformer2 import MossFormer2
from modules.models.sepformer import SepFormer
from modules.runtime.errors import PretrainedError
from modules.weights.checkpointer import AtomicCheckpointer
from modules.weights.ema import EMA
from modules.weights.pretrained import load_pretrained
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


def test_the_best_checkpoint_of_a_run_is_taken_else_the_newest(tmp_path):
    source, model = make_model(0), make_model(1)
    checkpointer = AtomicCheckpointer(tmp_path / "save", {"separator": source})
    # Names in alphabetical order would choose the first.
    checkpointer.save_checkpoint(name="z")
    torch.nn.init.ones_(source.decoder.weight)
    newest = checkpointer.save_checkpoint(name="a")
    assert load_pretrained(model, tmp_path) == [newest.path / "separator.ckpt"]
    assert bool((model.decoder.weight == 1).all())
    best = checkpointer.save_checkpoint(meta={"si_snr": 3.0})
    checkpointer.save_checkpoint(meta={"si_snr": 2.0})
    assert load_pretrained(model, tmp_path) == [best.path / "separator.ckpt"]
    settings = {"separator": "!new:modules.models.sepformer.SepFormer", "monitor": "l"}
    settings |= {"separator.heads": 2, "separator.chunk_size": 10}
    checkpointer.save_checkpoint(meta={"l": 1.0, "settings": settings})
    last = checkpointer.save_checkpoint(meta={"l": 2.0, "settings": settings})
    assert load_pretrained(model, tmp_path) == [last.path / "separator.ckpt"]


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
    with pytest.raises(PretrainedError, match="not a state_dict"):
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
    shapes = r"encoder.conv1d.weight: \[16, 1, 16\] in the file, \[32, 1, 16\] in the"
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


# -------------------------------------------------------------------- demucs' packages

SOURCES = ["drums", "vocals"]
DEMUCS = {
    "samplerate": 1000,
    "segment": Fraction(6, 5),
    "channels": 8,
    "depth": 2,
    "nfft": 256,
    "dconv_mode": 3,
    "dconv_comp": 4,
    "bottom_channels": 8,
    "t_layers": 2,
    "t_heads": 2,
    "t_dropout": 0.02,
}


def make_htdemucs(seed: int, **options) -> HTDemucs:
    torch.manual_seed(seed)
    options = {"sources": SOURCES, **DEMUCS, **options}
    seconds, rate = options.pop("segment"), options.pop("samplerate")
    return HTDemucs(segment_seconds=seconds, sample_rate=rate, **options)


@pytest.fixture
def demucs_classes(monkeypatch) -> dict[str, type]:
    """Classes that pickle under demucs' names; `gone` takes the modules away again."""
    classes = {}
    monkeypatch.setitem(sys.modules, "demucs", types.ModuleType("demucs"))
    for module, name in (("htdemucs", "HTDemucs"), ("hdemucs", "HDemucs")):
        full = f"demucs.{module}"
        monkeypatch.setitem(sys.modules, full, types.ModuleType(full))
        classes[name] = type(name, (), {"__module__": full, "__init__": forbidden})
        setattr(sys.modules[full], name, classes[name])
    return classes


def forbidden(*args, **kwargs):
    raise AssertionError("a class of the package was used")


def package(klass: type, model: HTDemucs, **options) -> dict:
    """What demucs' export writes, weights in half precision."""
    return {
        "klass": klass,
        "args": (),
        "kwargs": {"sources": SOURCES, **DEMUCS, **options},
        "state": {key: value.half() for key, value in model.state_dict().items()},
        "training_args": {"optim": {"lr": 3e-4}, "dset": {"segment": 11}},
        "metrics": {"nsdr": np.float64(9.0)},
    }


def write_metadata(path: Path, model: HTDemucs, **metadata: object) -> None:
    """demucs 4.1's layout: a fraction is a dict, all else is JSON already."""

    def encode(value: object) -> object:
        if isinstance(value, Fraction):
            parts = {"numerator": value.numerator, "denominator": value.denominator}
            return {"_type": "fraction", **parts}
        raise TypeError(value)

    content = {
        "klass": "demucs.htdemucs.HTDemucs",
        "args": [],
        "kwargs": {"sources": SOURCES, **DEMUCS},
        **metadata,
    }
    content = {
        key: value if isinstance(value, str) else json.dumps(value, default=encode)
        for key, value in content.items()
    }
    state = {key: value.half() for key, value in model.state_dict().items()}
    save_file(state, path, metadata=content)


def assert_halved(model: HTDemucs, source: HTDemucs) -> None:
    truth = {k: v.half().float() for k, v in source.state_dict().items()}
    assert same_weights(model.state_dict(), truth)


@pytest.mark.parametrize("override", ["", "1"])
@pytest.mark.parametrize("installed", [False, True])
@pytest.mark.parametrize("whole_folder", [False, True])
def test_a_package_of_demucs_loads(
    tmp_path, monkeypatch, demucs_classes, override, installed, whole_folder
):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", override)
    source, model = make_htdemucs(0), make_htdemucs(1, t_dropout=0.0)
    path = tmp_path / "955717e8-8726e21a.th"
    torch.save(package(demucs_classes["HTDemucs"], source), path)
    if not installed:
        for name in ("demucs", "demucs.htdemucs", "demucs.hdemucs"):
            monkeypatch.delitem(sys.modules, name)
    assert load_pretrained(model, tmp_path if whole_folder else path) == [path]
    assert_halved(model, source)
    assert installed or "demucs" not in sys.modules


@pytest.mark.parametrize("reduced", ["text", "integers"])
def test_either_pickle_of_a_fraction_is_read(
    tmp_path, monkeypatch, demucs_classes, reduced
):
    form = {
        "text": lambda self, *_: (Fraction, (str(self),)),  # up to Python 3.11
        "integers": lambda self, *_: (Fraction, (self.numerator, self.denominator)),
    }
    source, model = make_htdemucs(0), make_htdemucs(1)
    with monkeypatch.context() as patch:
        patch.setattr(Fraction, "__reduce__", form[reduced])
        content = package(demucs_classes["HTDemucs"], source)
        torch.save(content, tmp_path / "model.th")
    load_pretrained(model, tmp_path)
    assert_halved(model, source)


def test_demucs_safetensors_load(tmp_path):
    source = make_htdemucs(0)
    path = tmp_path / "955717e8.safetensors"
    write_metadata(path, source)
    for named in (path, tmp_path):
        model = make_htdemucs(1)
        assert load_pretrained(model, named) == [path]
        assert_halved(model, source)


def test_a_state_dict_in_a_single_file_loads(tmp_path):
    source = make_model(0)
    save_file(source.state_dict(), tmp_path / "a.safetensors")
    torch.save(source.state_dict(), tmp_path / "b.th")
    for name in ("a.safetensors", "b.th"):
        model = make_model(1)
        load_pretrained(model, tmp_path / name)
        assert same_weights(model.state_dict(), source.state_dict())
    with pytest.raises(PretrainedError, match="several models.*a.safetensors; b.th"):
        load_pretrained(make_model(1), tmp_path)


def test_sources_of_a_package_are_mapped_by_name(tmp_path, demucs_classes):
    source = make_htdemucs(0, sources=["vocals", "drums"])
    content = package(demucs_classes["HTDemucs"], source, sources=source.sources)
    torch.save(content, tmp_path / "model.th")
    model = make_htdemucs(1)
    load_pretrained(model, tmp_path)
    mixture = torch.randn(1, 2, 800, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        truth, estimate = source.eval()(mixture), model.eval()(mixture)
    error = (estimate - truth[:, [1, 0]]).abs().max()
    assert error < 0.01 * truth.abs().max() < (estimate - truth).abs().max()


def test_a_package_of_another_configuration_lists_what_differs(
    tmp_path, demucs_classes
):
    changed = {"nfft": 512, "t_heads": 4}
    content = package(demucs_classes["HTDemucs"], make_htdemucs(0), **changed)
    torch.save(content, tmp_path / "model.th")
    whole = {**DEMUCS, "sources": SOURCES, **changed}
    whole["segment"] = "6/5"
    write_metadata(tmp_path / "other.safetensors", make_htdemucs(0), kwargs=whole)
    model = make_htdemucs(1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name in ("model.th", "other.safetensors"):
        with pytest.raises(PretrainedError) as error:
            load_pretrained(model, tmp_path / name)
        assert "nfft 512, here 256; t_heads 4, here 2; give" in str(error.value)
    assert same_weights(before, model.state_dict())


def test_a_package_of_another_class_is_named(tmp_path, demucs_classes):
    path = tmp_path / "model.th"
    torch.save(package(demucs_classes["HDemucs"], make_htdemucs(0)), path)
    with pytest.raises(PretrainedError, match="holds a demucs.hdemucs.HDemucs"):
        load_pretrained(make_htdemucs(1), path)
    torch.save(package(demucs_classes["HTDemucs"], make_htdemucs(0)), path)
    with pytest.raises(PretrainedError, match="network HTDemucs, here SepFormer"):
        load_pretrained(make_model(1), path)


@pytest.mark.parametrize(
    "entries, message",
    [
        ({"klass": "demucs.htdemucs.HTDemucs"}, "names no class"),
        ({"klass": OrderedDict}, "names no class"),
        ({"state": None}, "not a state_dict"),
        ({"state": {"__quantized": True}}, "quantized"),
        ({"kwargs": []}, "no list and dict"),
        ({"kwargs": {"sources": torch.zeros(2)}}, "not plain values"),
        ({"kwargs": {"segment": Fraction(10**40, 3)}}, "not plain values"),
        ({"kwargs": {"sources": 3}}, "does not name its sources"),
    ],
)
def test_a_package_of_something_else_is_named(
    tmp_path, monkeypatch, demucs_classes, entries, message
):
    content = package(demucs_classes["HTDemucs"], make_htdemucs(0))
    with monkeypatch.context() as patch:
        patch.setattr(Fraction, "__reduce__", lambda self: (Fraction, (str(self),)))
        torch.save({**content, **entries}, tmp_path / "model.th")
    with pytest.raises(PretrainedError, match=message):
        load_pretrained(make_htdemucs(1), tmp_path)


@pytest.mark.parametrize(
    "metadata, message",
    [
        ({"structure": "{}"}, "quantized"),
        ({"kwargs": "{"}, "no arguments"),
        ({"kwargs": "[" * 100_000}, "no arguments"),
        ({"kwargs": '{"segment": {"_type": "fraction"}}'}, "not plain values"),
        ({"klass": "os.mkdir"}, "holds a os.mkdir"),
    ],
)
def test_bad_metadata_is_named(tmp_path, metadata, message):
    write_metadata(tmp_path / "model.safetensors", make_htdemucs(0), **metadata)
    with pytest.raises(PretrainedError, match=message):
        load_pretrained(make_htdemucs(1), tmp_path)


def test_a_file_of_another_kind_is_named(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("none")
    with pytest.raises(PretrainedError, match="notes.txt is not a .th, .pth, .ckpt or"):
        load_pretrained(make_model(1), path)


@pytest.mark.parametrize("override", ["", "1", "true"])
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("place", ["klass", "kwargs", "state", "training_args"])
def test_nothing_in_a_package_is_executed(
    tmp_path, monkeypatch, demucs_classes, override, legacy, place
):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", override)
    canary, path = tmp_path / "executed", tmp_path / "model.th"
    content = package(demucs_classes["HTDemucs"], make_htdemucs(0))
    content[place] = {"x": Canary(canary)} if place != "klass" else Canary(canary)
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(PretrainedError, match="model.th"):
        load_pretrained(make_htdemucs(1), tmp_path)
    assert not canary.exists()
    torch.load(path, weights_only=False)  # the canary does sing
    assert canary.exists()


def test_a_stand_in_that_is_called_does_nothing(tmp_path, demucs_classes):
    """A pickle may call what it names: the class of demucs, with arguments."""

    class Caller:
        def __reduce__(self):
            return demucs_classes["HTDemucs"], (SOURCES,), {"state": 1}

    path = tmp_path / "model.th"
    content = package(demucs_classes["HTDemucs"], make_htdemucs(0))
    torch.save({**content, "metrics": Caller()}, path)
    load_pretrained(make_htdemucs(1), path)
    torch.save({**content, "state": Caller()}, path)
    with pytest.raises(PretrainedError, match="not a state_dict"):
        load_pretrained(make_htdemucs(1), path)
