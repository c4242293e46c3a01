"""Exported folders give the model that the run tested, and hold no code."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_model

import export as export_command
import train
from benchmarks import int8
from modules.lora.files import load_lora_weights
from modules.models.htdemucs import HTDemucs
from modules.runtime.errors import ExportError, PretrainedError
from modules.weights.checkpointer import AtomicCheckpointer
from modules.weights.export import FORMAT, export, load_exported
from modules.weights.pretrained import load_pretrained
from recipes.separator import Separator
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
        command = [str(folders / "lora"), f"--out={out}", f"--lora={lora}"]
        assert export_command.main(command) == 0
        assert torch.equal(load_exported(out)(x), expected), lora
        has_adapters = lora == "separate"
        assert (out / "adapters.safetensors").exists() == has_adapters
        names = load_file(out / "model.safetensors").keys()
        assert names == HTDemucs(["low", "high"], 0.5, **SIZE).state_dict().keys()
        assert ("nsdr" in (out / "README.md").read_text()) == (lora != "none")
    model = HTDemucs(["low", "high"], 0.5, **SIZE).eval()
    for folder in (tmp_path / "separate", folders / "lora"):
        with pytest.raises(PretrainedError, match="merge them first"):
            load_pretrained(model, folder)
    load_pretrained(model, tmp_path / "merged")
    assert torch.equal(model(x), tested)


@torch.no_grad()
def test_a_run_without_adapters(folders, tmp_path):
    export(folders / "full", tmp_path / "out")
    model, x = plain(folders / "base"), torch.randn(1, 2, 4000)
    load_pretrained(model, folders / "full")
    assert torch.equal(load_exported(tmp_path / "out")(x), model(x))
    with pytest.raises(ExportError, match="trained no adapters"):
        export(folders / "full", tmp_path / "out", lora="separate")


@torch.no_grad()
@pytest.mark.parametrize("run, lora", [("full", "merged"), ("lora", "none")])
def test_int8_is_smaller_and_sounds_the_same(folders, tmp_path, capsys, run, lora):
    x = torch.randn(1, 2, 4000)
    expected = load_exported(export(folders / run, tmp_path / "float", lora))(x)
    out = tmp_path / "int8"
    command = [str(folders / run), f"--out={out}", f"--lora={lora}", "--int8"]
    assert export_command.main(command) == 0
    assert "MB of weights" in capsys.readouterr().out
    model = load_exported(out)
    noise = model(x) - expected
    assert 10 * torch.log10(expected.square().sum() / noise.square().sum()) > 30
    again = load_exported(export(folders / run, out, lora, int8=True))
    assert torch.equal(again(x), model(x))
    sizes = [
        (f / "model.safetensors").stat().st_size for f in (out, tmp_path / "float")
    ]
    assert sizes[0] < 0.7 * sizes[1]  # a toy: names and biases weigh much
    assert "int8" in (out / "README.md").read_text()
    modes = {path.stat().st_mode for path in out.iterdir()}
    assert len(modes) == 1  # what one may read, one may read whole
    with pytest.raises(PretrainedError, match="export without --int8"):
        load_pretrained(model, out)


def test_the_table_of_what_int8_loses(folders, tmp_path, capsys):
    int8.main([str(folders / "full"), f"--tracks={folders / 'songs'}"])
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert "; 4 tracks" in head
    found = {row.split("|")[1].strip(): row.split("|")[2:-1] for row in rows[2:]}
    assert list(found)[:3] == ["nsdr", "nsdr_low", "nsdr_high"]
    before, after, lost = found["nsdr"]
    mean, _, error = lost.split()
    # Rounding changes the score, but hardly: the output is 30 dB above the difference.
    assert 0 < abs(float(mean)) + float(error) < 0.2
    assert float(before) - float(after) == pytest.approx(float(mean), abs=2e-3)
    one = tmp_path / "one"
    one.mkdir()
    (one / "a").symlink_to(next((folders / "songs").iterdir()))
    int8.main([str(folders / "full"), f"--tracks={one}"])
    assert "; 1 tracks" in capsys.readouterr().out


def test_int8_and_separate_adapters_exclude_each_other(folders, tmp_path):
    with pytest.raises(ExportError, match="use --lora=merged"):
        export(folders / "lora", tmp_path / "out", "separate", int8=True)
    assert not (tmp_path / "out").exists()


def test_a_command_that_fails_says_why_in_one_line(tmp_path, capsys):
    assert export_command.main([str(tmp_path), f"--out={tmp_path / 'out'}"]) == 1
    line = capsys.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1
    assert "give the folder of a run" in line


def test_what_is_no_run_or_no_exported_model_is_refused(folders, tmp_path):
    with pytest.raises(ExportError, match="give the folder of a run"):
        export(tmp_path, tmp_path / "out")
    (tmp_path / "hyperparams.yaml").write_text("separator: !new:os.system [ls]\n")
    with pytest.raises(ExportError, match="separator is !new:os.system; only"):
        export(tmp_path, tmp_path / "out")
    with pytest.raises(ExportError, match="not a configuration"):
        load_exported(tmp_path)
    config = {"format": FORMAT, "model": "os.system", "arguments": {}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ExportError, match="'os.system'"):
        load_exported(tmp_path)
    for config in ({"format": FORMAT, "model": "HTDemucs", "weights": "x"}, []):
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(ExportError, match="give a folder that export.py"):
            load_exported(tmp_path)


ARGUMENTS = {"sources": ["low", "high"], "segment_seconds": 0.5, **SIZE}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The folder of a training in parts: two runs, and the bag of them."""
    folder = tmp_path / "path"
    for name in ("tune/low", "tune/high"):
        run = folder / name
        run.mkdir(parents=True)
        made = yaml.safe_dump(ARGUMENTS, default_flow_style=True, width=999)
        settings = "sources: [low, high]\nmonitor: nsdr\nsample_rate: 8000\n"
        network = f"separator: !new:modules.models.htdemucs.HTDemucs {made}"
        (run / "hyperparams.yaml").write_text(settings + network)
        own = {"separator": HTDemucs(**ARGUMENTS)}
        AtomicCheckpointer(run / "save", own).save_checkpoint(meta={"epoch": 1})
    rows = "weights: [[1, 0], [0.25, 1]]"
    (folder / "bag.yaml").write_text(f"models: [tune/low, tune/high]\n{rows}")
    return folder


def test_a_bag_separates_alike_wherever_it_is_loaded(path, tmp_path):
    wave_CT, out = 0.1 * torch.randn(2, 9000), tmp_path / "out"

    def separated(place):
        found = Separator.load(place, device="cpu").separate(wave_CT, 8000)
        return torch.stack(list(found.values()))

    expected = separated(path / "bag.yaml")
    assert export_command.main([str(path), f"--out={out}", "--hub", "--demucs"]) == 0
    assert torch.equal(separated(out), expected)
    assert (out / "tune_low/custom.py").is_file()  # --hub is of each
    for folder in ("tune_low", "tune_high"):  # what is left is a bag of demucs
        shutil.rmtree(out / folder)
    assert torch.equal(separated(out), expected)


def test_an_export_in_the_place_of_a_bag_leaves_nothing_of_it(path, tmp_path):
    out = tmp_path / "out"
    export(path, out, hub=True, demucs=True)
    export(path, out, int8=True)
    kept = {file.name for file in out.iterdir()}
    assert kept == {"bag.yaml", "README.md", "tune_low", "tune_high"}
    export(path / "tune/low", out, demucs=True)
    assert not (out / "bag.yaml").exists() and len(list(out.glob("out-*.th"))) == 1
    export(path, out)
    assert not list(out.glob("*.safetensors"))
    with pytest.raises(ExportError, match="--demucs --int8: .* leave --int8 out"):
        export(path, out, demucs=True, int8=True)
