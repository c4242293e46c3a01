"""Training adapters as a user does: every mode, resume, new stems, refusals."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_model
from torch import Tensor

import train
from modules.lora.adapters import add_lora, merge, trainable_share
from modules.lora.files import load_lora_weights
from modules.lora.ranks import MODES
from modules.models.htdemucs import HTDemucs
from modules.runtime.errors import (
    CheckpointMismatch,
    HparamsError,
    LoraError,
    UserError,
)
from recipes.config.load import load_hparams
from recipes.separation import Separation
from tests.e2e.test_ddp import torchrun
from tests.e2e.test_music import Killed, epochs_of
from tests.toy import ToySeparator, make_songs, same_weights

TOY = str(Path(__file__).parents[1] / "toy_lora.yaml")
SIZE = {
    "sample_rate": 8000, "channels": 8, "depth": 2, "nfft": 256, "dconv_comp": 4,
    "bottom_channels": 0, "t_layers": 1, "t_heads": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_songs(tmp_path_factory.mktemp("songs"))


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(7)
    folder = tmp_path_factory.mktemp("pretrained")
    save_model(HTDemucs(["low", "high"], 0.5, **SIZE), folder / "model.safetensors")
    return folder


@pytest.fixture
def arguments(songs: Path, pretrained: Path, tmp_path: Path) -> Callable:
    def make(*options: str, **overrides: object) -> list[str]:
        settings = {
            "data_folder": songs, "valid_tracks": 1, "output_folder": tmp_path / "run",
            "pretrained": pretrained, "num_workers": 0, "tensorboard": False,
            "device": "cpu", "n_audio_to_save": 0, "log_every": 1, **overrides,
        }  # fmt: skip
        return [TOY, *(f"--{key}={value}" for key, value in settings.items()), *options]

    return make


def plain(pretrained: Path, sources: tuple[str, ...] = ("low", "high")) -> HTDemucs:
    model = HTDemucs(sources, 0.5, **SIZE).eval()
    if len(sources) == 2:
        model.load_state_dict(load_file(pretrained / "model.safetensors"))
    return model


def adapters_of(run: Path) -> dict[str, Tensor]:
    return load_file(sorted((run / "save").glob("CKPT+*"))[-1] / "adapters.ckpt")


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_trains_saves_and_loads_adapters_alone(
    arguments, tmp_path, pretrained, mode
):
    train.main(arguments(lora_mode=mode))
    run = tmp_path / "run"
    newest = sorted((run / "save").glob("CKPT+*"))[-1]
    assert not (newest / "separator.ckpt").exists()
    state = load_file(newest / "adapters.ckpt")
    assert all(".lora_" in name for name in state)
    assert all(bool(t.any()) for name, t in state.items() if name.endswith(".up"))
    optimizer = torch.load(newest / "optimizer.ckpt", weights_only=True)
    assert len(optimizer["param_groups"][0]["params"]) == len(state)
    # The file of the test goes on the plain model, whose weights nobody touched.
    model, x = plain(pretrained), torch.randn(1, 2, 4000)
    before = model(x)
    config = load_lora_weights(model, run / "adapters.safetensors")
    assert not torch.allclose(model(x), before, atol=1e-4)
    after = model(x)
    assert torch.equal(merge(model)(x), after)
    assert (len(set(config.ranks.values())) == 1) == (mode == "uniform")
    scores = (run / "test_results.csv").read_text()
    train.main(arguments("--test_only", lora_mode=mode))
    assert (run / "test_results.csv").read_text() == scores


UNIFORM = {"lora_dropout": 0.2, "ema_decay": 0.9, "warmup_steps": 3}
GRADIENT = {
    "lora_mode": "gradient", "lr_decay": "cosine", "grad_accumulation_factor": 2
}  # fmt: skip


@pytest.mark.parametrize(
    "stop_after, options", [(2, UNIFORM), (5, UNIFORM), (0, GRADIENT), (6, GRADIENT)]
)
def test_a_killed_run_ends_with_the_same_bits(
    arguments, tmp_path, monkeypatch, options, stop_after
):
    from recipes.lora import MusicLora

    options = {"ckpt_interval_steps": 1, **options}
    train.main(arguments(**options, output_folder=tmp_path / "whole"))
    original, calls = MusicLora.fit_batch, []

    def dies(self, batch):
        if len(calls) == stop_after:
            raise Killed
        calls.append(batch.ids)
        return original(self, batch)

    monkeypatch.setattr(MusicLora, "fit_batch", dies)
    with pytest.raises(Killed):
        train.main(arguments(**options, output_folder=tmp_path / "killed"))
    monkeypatch.setattr(MusicLora, "fit_batch", original)
    if stop_after:  # the ranks are those of the first start, not chosen again
        monkeypatch.setattr(MusicLora, "_gradients", None)
    train.main(arguments(**options, output_folder=tmp_path / "killed"))
    whole, killed = (adapters_of(tmp_path / name) for name in ("whole", "killed"))
    assert same_weights(whole, killed)
    texts = [
        (tmp_path / run / "test_results.csv").read_text() for run in ("whole", "killed")
    ]
    assert texts[0] == texts[1]


def test_new_stems_start_as_old_ones_and_their_layers_train(
    arguments, tmp_path, monkeypatch
):
    torch.manual_seed(8)
    old = HTDemucs(["noise", "music", "voice"], 0.25, **SIZE)
    (tmp_path / "old").mkdir()
    save_model(old, tmp_path / "old" / "model.safetensors")
    options = {
        "pretrained": tmp_path / "old",
        "pretrained_sources": "[noise,music,voice]",
        "source_map": "{low: music, high: music}",
        "train_fully": "[decoder.1.conv_tr.*, tdecoder.1.conv_tr.*]",
    }
    train.main(arguments(**options))
    state = load_file(tmp_path / "run" / "adapters.safetensors")
    layers = [f"{b}.1.conv_tr" for b in ("decoder", "tdecoder")]
    for name in (f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")):
        dim = name.endswith("weight")
        low, high = state[name].chunk(2, dim=int(dim))
        start = old.state_dict()[name].chunk(3, dim=int(dim))[1]
        assert low.shape == start.shape
        assert not torch.equal(low, start) and not torch.equal(low, high)


@pytest.mark.parametrize("recipe", ["lora.MusicLora", "music.MusicSeparation"])
def test_the_rate_warms_up_and_decays_by_optimizer_steps(
    arguments, tmp_path, monkeypatch, recipe
):
    rates, original = [], Separation.optimizers_step

    def watched(self):
        original(self)
        rates.append(self.optimizer.param_groups[0]["lr"])

    monkeypatch.setattr(Separation, "optimizers_step", watched)
    yaml = tmp_path / "run.yaml"
    yaml.write_text(f"extends: {TOY}\nrecipe: !name:recipes.{recipe}\n")
    train.main([str(yaml), *arguments(warmup_steps=2, lr_decay="linear")[1:]])
    assert rates[:3] == pytest.approx([0.005, 0.01, 0.01])
    falls = [a - b for a, b in zip(rates[2:], rates[3:], strict=False)]
    assert falls == pytest.approx([0.01 / (len(rates) - 2)] * len(falls))
    assert len(epochs_of(tmp_path / "run")) == 2


@pytest.mark.parametrize(
    "options, message",
    [
        ({"pretrained": "null"}, "adapters need a trained model"),
        ({"lora_mode": "best"}, "lora_mode=best: use one of uniform, heuristic"),
        ({"layer_ranks": "{transformer.*: 3}"}, r"near are crosstransformer\.\*"),
        (
            {"layer_ranks": "{encoder.5.*: 3}", "lora_mode": "gradient"},
            "'encoder.5.*' matches no weight",
        ),
        ({"train_fully": "[decoder.9.*]"}, "'decoder.9.*' matches no weight"),
        ({"lora_mode": "gradient", "lora_min_rank": 3}, "must not fall"),
        ({"average_last": 2, "keep_checkpoints": 2}, "use ema_decay"),
        ({"lora_rank": 0}, "lora_rank=0"),
        ({"lora_alpha": "much"}, "lora_alpha=much: expected a number above 0 or null"),
        ({"lora_alpha": -1}, "lora_alpha=-1: must be above 0"),
        ({"lora_gradient_steps": 0}, "lora_gradient_steps=0: must be 1 or more"),
        ({"layer_ranks": "[encoder.*]"}, "expected keys and values, as"),
        ({"train_fully": "decoder.*"}, "expected a list"),
        ({"lr_decay": "fast"}, "lr_decay=fast: use none, linear or cosine"),
    ],
)
def test_wrong_settings_are_refused_with_the_reason(arguments, options, message):
    with pytest.raises(UserError, match=message):
        train.main(arguments(**options))


def test_going_on_with_other_settings_is_refused(arguments, tmp_path, pretrained):
    train.main(arguments(lora_mode="gradient"))
    with pytest.raises(HparamsError, match=r"other settings: .*lora_mode"):
        train.main(arguments(lora_mode="uniform"))
    # Where changes are allowed, these do not fit the adapters.
    other_rank = arguments(lora_mode="gradient", lora_rank=3, allow_changes=True)
    with pytest.raises(HparamsError, match="chosen with lora_rank=2, not 3"):
        train.main(other_rank)
    differ = "'adapters' from .* tensors differ.*another output_folder"
    with pytest.raises(CheckpointMismatch, match=differ):
        train.main(arguments(lora_mode="uniform", allow_changes=True))
    other = tmp_path / "other"
    other.mkdir()
    save_model(HTDemucs(["low", "high"], 0.5, **SIZE), other / "model.safetensors")
    with pytest.raises(CheckpointMismatch, match="trained on other weights"):
        train.main(arguments(lora_mode="gradient", pretrained=other))


def test_adapters_are_not_tested_at_another_scale(arguments, tmp_path):
    train.main(arguments(lora_alpha=16))
    file = tmp_path / "run" / "adapters.safetensors"
    before = file.read_bytes()
    with pytest.raises(CheckpointMismatch, match=r"alpha 16, the model has None"):
        train.main([*arguments(), "--test_only"])
    assert file.read_bytes() == before
    train.main([*arguments(lora_alpha=16.0), "--test_only"])


LAYERS = ["decoder.1.conv_tr", "tdecoder.1.conv_tr"]


@pytest.mark.parametrize(
    "options",
    [
        {"train_fully": "['*']"},
        {"train_fully": [f"{n}.*" for n in LAYERS], "layer_ranks": "{'*': 0}"},
    ],
)
def test_without_adapters_all_of_it_or_the_output_layers_train(
    arguments, tmp_path, pretrained, options
):
    train.main(arguments(**options))
    state = load_file(tmp_path / "run" / "adapters.safetensors")
    model = plain(pretrained)
    base = dict(model.named_parameters())
    if "layer_ranks" in options:
        expected = {f"{layer}.{n}" for layer in LAYERS for n in ("weight", "bias")}
    else:
        expected = base.keys()
    assert state.keys() == expected
    assert all(not torch.equal(state[name], base[name]) for name in state)
    config = load_lora_weights(model, tmp_path / "run" / "adapters.safetensors")
    assert not config.ranks and len(config.full) == len(expected)
    if "layer_ranks" in options:
        other = HTDemucs(["low", "high"], 0.5, **SIZE)
        with pytest.raises(LoraError, match="trained on other weights"):
            load_lora_weights(other, tmp_path / "run" / "adapters.safetensors")


def test_gradient_ranks_where_patterns_decide_everything(arguments, tmp_path):
    options = {"lora_mode": "gradient", "layer_ranks": "{'*': 1}"}
    train.main([*arguments(**options), "--debug"])
    ranks = load_lora_weights(
        HTDemucs(["low", "high"], 0.5, **SIZE),
        tmp_path / "run" / "debug" / "adapters.safetensors",
        check_base=False,
    ).ranks
    assert set(ranks.values()) == {1}


def test_a_pattern_comes_before_the_rule(arguments, tmp_path):
    train.main(arguments(lora_mode="gradient", layer_ranks="{encoder.0.*: 3}"))
    state = load_file(tmp_path / "run" / "adapters.safetensors")
    assert state["encoder.0.conv.lora_weight.up"].shape[1] == 3
    chosen = json.loads((tmp_path / "run" / "save" / "lora_ranks.json").read_text())
    assert "encoder.0.conv.weight" not in chosen["ranks"]


def test_mixed_precision_and_clipping(arguments, tmp_path):
    train.main(arguments(precision="bf16", max_grad_norm=0.5, lora_mode="gradient"))
    state = adapters_of(tmp_path / "run")
    assert all(tensor.dtype == torch.float32 for tensor in state.values())
    assert all(bool(t.any()) for name, t in state.items() if name.endswith(".up"))


@pytest.mark.parametrize("mode", ["uniform", "gradient"])
def test_a_speech_separator_too(toy_arguments, tmp_path, mode):
    model = ToySeparator()
    folder = tmp_path / "base"
    folder.mkdir()
    save_model(model, folder / "model.safetensors")
    block = Path(__file__).parents[2] / "hparams" / "blocks" / "lora.yaml"
    yaml = tmp_path / "speech_lora.yaml"
    yaml.write_text(
        f"extends: [{Path(__file__).parents[1] / 'toy.yaml'}, {block}]\n"
        "recipe: !name:recipes.lora.SpeechLora\n"
    )
    options = toy_arguments(pretrained=folder, lora_mode=mode, lora_rank=1)[1:]
    train.main([str(yaml), *options])
    load_lora_weights(model, tmp_path / "run" / "adapters.safetensors")
    assert bool(model.conv.lora_weight.up.any())


@pytest.mark.parametrize(
    "recipe, share", [("htdemucs_lora", 0.0276), ("htdemucs_lora_5stem", 0.0278)]
)
def test_the_published_size(recipe, share, tmp_path):
    path = Path(__file__).parents[2] / "hparams" / f"{recipe}.yaml"
    with torch.device("meta"):
        settings = {"data_folder": "/none", "output_folder": str(tmp_path)}
        hparams, _ = load_hparams(path, settings)
    add_lora(hparams["separator"], train_fully=hparams["train_fully"])
    assert trainable_share(hparams["separator"]) == pytest.approx(share, abs=1e-4)


@pytest.mark.ddp
@pytest.mark.parametrize("mode", ["uniform", "gradient"])
def test_two_ranks_train_the_adapters_of_one_process(arguments, tmp_path, mode):
    options = {"lora_mode": mode, "valid_every": 2, "t_dropout": 0.0}
    train.main(arguments(**options, output_folder=tmp_path / "one"))
    two = arguments(**options, batch_size=2, output_folder=tmp_path / "two")
    torchrun("train.py", *two)
    one, two = (adapters_of(tmp_path / name) for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert torch.allclose(tensor, two[name], atol=1e-4), name
