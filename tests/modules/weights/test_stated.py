"""What weights say of themselves is compared with the model that gets them."""

import inspect
import json
import logging
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from modules.lora.files import load_lora_weights
from modules.models.htdemucs import HTDemucs
from modules.models.mossformer2 import MossFormer2
from modules.models.roformer import BSRoFormer, MelRoFormer
from modules.models.scnet import SCNet
from modules.models.sepformer import SepFormer
from modules.models.sepreformer import SepReformer
from modules.models.tf_locoformer import TFLocoformer
from modules.runtime.errors import LoraError, PretrainedError
from modules.weights.checkpointer import AtomicCheckpointer
from modules.weights.pretrained import load_pretrained
from modules.weights.stated import matters
from tests import ROOT
from tests.modules.weights.test_pretrained import write_parts, write_pointer
from tests.toy import same_weights

OWN = ["drums", "bass", "other", "vocals"]
SIZE = {
    "segment_seconds": 0.5, "sample_rate": 4000, "channels": 8, "depth": 2, "nfft": 256,
    "dconv_comp": 4, "bottom_channels": 0, "t_layers": 1, "t_heads": 4,
}  # fmt: skip
SEPFORMER = {
    "encoder_channels": 16, "chunk_size": 10, "intra_layers": 1, "inter_layers": 1,
    "dual_layers": 1, "heads": 2, "ffn_channels": 16,
}  # fmt: skip


def music(**options) -> HTDemucs:
    return HTDemucs(**{"sources": OWN, **SIZE, **options})


def export(source: torch.nn.Module, folder: Path, given: dict, **entries) -> Path:
    """A folder of `export.py`."""
    folder.mkdir(exist_ok=True)
    kind = type(source)
    config = {"format": "sepbrain.model.2", "arguments": given, "sample_rate": 4000}
    config["model"] = f"{kind.__module__}.{kind.__name__}"
    save_file(source.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**config, **entries}))
    return folder


def run(model: torch.nn.Module, folder: Path, given: dict, rate: int = 8000) -> Path:
    """The checkpoint of a run, with its settings."""
    kind = type(model)
    settings = {"separator": f"!new:{kind.__module__}.{kind.__name__}"}
    settings |= {f"separator.{name}": value for name, value in given.items()}
    checkpointer = AtomicCheckpointer(folder / "save", {"separator": model})
    meta = {"si_snr": 1.0, "settings": {**settings, "sample_rate": rate}}
    checkpointer.save_checkpoint(meta=meta)
    return folder


@pytest.mark.parametrize("form", ["sepbrain.model.1", "sepbrain.model.2", "run"])
def test_sources_in_another_order_are_put_in_order(tmp_path, form):
    source = music().eval()
    if form == "run":
        run(source, tmp_path, {**SIZE, "sources": f"[{', '.join(OWN)}]"}, 4000)
    elif form == "sepbrain.model.1":  # its names were others
        given = {**SIZE, "sources": OWN, "samplerate": SIZE["sample_rate"]}
        del given["sample_rate"]
        export(source, tmp_path, given, format=form, model="HTDemucs")
    else:
        export(source, tmp_path, {**SIZE, "sources": OWN})
    other = music(sources=["vocals", "drums", "bass", "other"]).eval()
    load_pretrained(other, tmp_path)
    mixture = torch.randn(1, 2, 4000)
    with torch.no_grad():
        truth, found = source(mixture), other(mixture)
    torch.testing.assert_close(found, truth[:, [3, 0, 1, 2]])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"sources": ["kick", "hats", "synth", "rest"]}, "kick starts from kick, but"),
        (
            {"sample_rate": 8000},
            "sample_rate 4000, here 8000; .*_rate=4000",
        ),
        ({"t_heads": 8}, "t_heads 4, here 8; .*--separator='{t_heads: 4}'"),
        ({"nfft": 512}, "nfft 256, here 512"),
        ({"growth": 3, "t_heads": 2}, "growth 2, here 3; t_heads 4, here 2"),
    ],
)
@pytest.mark.parametrize("place", ["export", "run"])
def test_what_differs_is_one_line_with_both_values(tmp_path, options, message, place):
    given = {name: v for name, v in SIZE.items() if name != "growth"}  # its default
    if place == "export":
        export(music(), tmp_path, {**given, "sources": OWN})
    else:
        run(music(), tmp_path, {**given, "sources": str(OWN)}, 4000)
    model = music(**options)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(PretrainedError, match=message) as error:
        load_pretrained(model, tmp_path)
    assert "\n" not in str(error.value)
    assert same_weights(before, model.state_dict())


def test_a_difference_can_be_accepted(tmp_path, caplog):
    model, source = music(t_heads=8, segment_seconds=3), music()
    export(source, tmp_path, {**SIZE, "sources": OWN, "t_dropout": 0.5})
    with caplog.at_level(logging.INFO):
        load_pretrained(model, tmp_path, allow_changes=True)
    assert "trained with t_heads 4, here 8" in caplog.text
    assert "segments of 0.5 s, here 3 s" in caplog.text and "dropout" not in caplog.text
    assert same_weights(model.state_dict(), source.state_dict())


def test_a_speech_network_states_its_rate_and_what_leaves_no_shape(tmp_path):
    source = SepFormer(**SEPFORMER)
    run(source, tmp_path, SEPFORMER)
    load_pretrained(SepFormer(**SEPFORMER), tmp_path, sample_rate=8000)
    with pytest.raises(PretrainedError, match="sample_rate 8000, here 16000"):
        load_pretrained(SepFormer(**SEPFORMER), tmp_path, sample_rate=16000)
    other = SepFormer(**{**SEPFORMER, "chunk_size": 20, "heads": 4})
    with pytest.raises(PretrainedError, match="chunk_size 10, here 20; heads 2, here"):
        load_pretrained(other, tmp_path)
    load_pretrained(other, tmp_path, sample_rate=16000, allow_changes=True)
    size = {"encoder_channels": 16, "channels": 16, "layers": 1}
    run(MossFormer2(**size), tmp_path / "moss", size)
    with pytest.raises(PretrainedError, match="mask_mode mask, here map"):
        load_pretrained(MossFormer2(**size, mask_mode="map"), tmp_path / "moss")


def test_a_run_of_old_says_it_in_its_yaml(tmp_path):
    source = SepFormer(**SEPFORMER)
    AtomicCheckpointer(tmp_path / "save", {"separator": source}).save_checkpoint()
    load_pretrained(SepFormer(**SEPFORMER), tmp_path, sample_rate=16000)  # is silent
    given = ", ".join(f"{name}: {value}" for name, value in SEPFORMER.items())
    text = f"separator: !new:modules.models.sepformer.SepFormer {{{given}}}\n"
    (tmp_path / "hyperparams.yaml").write_text(f"sample_rate: 8000\n{text}")
    with pytest.raises(PretrainedError, match="sample_rate 8000, here 16000"):
        load_pretrained(SepFormer(**SEPFORMER), tmp_path, sample_rate=16000)


def test_published_folders_state_their_rate(tmp_path):
    write_parts(SepFormer(**SEPFORMER), tmp_path)
    published = "sample_rate: 8000\nMaskNet: !new:a.B\n    K: 10\n    nhead: 2\n"
    (tmp_path / "hyperparams.yaml").write_text(published)
    load_pretrained(SepFormer(**SEPFORMER), tmp_path, sample_rate=8000)
    other = SepFormer(**{**SEPFORMER, "chunk_size": 20})
    with pytest.raises(PretrainedError, match="chunk_size 10, here 20"):
        load_pretrained(other, tmp_path)
    with pytest.raises(PretrainedError, match="sample_rate 8000, here 16000"):
        load_pretrained(SepFormer(**SEPFORMER), tmp_path, sample_rate=16000)
    size = {"encoder_channels": 16, "channels": 16, "layers": 1}
    (tmp_path / "clear").mkdir()
    write_pointer(MossFormer2(**size), tmp_path / "clear")
    with pytest.raises(PretrainedError, match="sample_rate 16000, here 8000"):
        load_pretrained(MossFormer2(**size), tmp_path / "clear", sample_rate=8000)


def test_a_configuration_of_another_tool_says_nothing(tmp_path):
    export(music(), tmp_path, {}, format="theirs")
    load_pretrained(music(t_heads=8), tmp_path)
    export(music(), tmp_path, {}, arguments=[])
    with pytest.raises(PretrainedError, match=r"^pretrained: \S+config.json: not read"):
        load_pretrained(music(), tmp_path)
    export(music(), tmp_path, {**SIZE, "sources": OWN, "segment_seconds": "long"})
    with pytest.raises(PretrainedError, match="segment.*long"):
        load_pretrained(music(), tmp_path)


#: Of each network a small one, and another value of each of its arguments.
NETWORKS: dict[type, tuple[dict, dict]] = {
    HTDemucs: (
        {"sources": OWN, **SIZE},
        {"sample_rate": 8000, "audio_channels": 1, "channels": 16, "growth": 3,
         "depth": 1, "nfft": 512, "dconv_mode": 1, "dconv_comp": 2, "dconv_depth": 1,
         "bottom_channels": 16, "t_layers": 2, "t_heads": 2},
    ),
    MossFormer2: (
        {"encoder_channels": 16, "channels": 16, "layers": 1},
        {"encoder_channels": 32, "kernel_size": 8, "channels": 32, "layers": 2,
         "norm": "gln", "mask_mode": "map", "memory_channels": 8},
    ),
    SepFormer: (
        SEPFORMER,
        {"encoder_channels": 32, "kernel_size": 8, "dual_layers": 2, "chunk_size": 20,
         "intra_layers": 2, "inter_layers": 2, "heads": 4, "ffn_channels": 8,
         "channels": 8},
    ),
    TFLocoformer: (
        {"layers": 1, "channels": 8, "attention_channels": 8, "heads": 2,
         "ffn_channels": (8, 8), "n_fft": 32, "hop": 8, "kernel_size": 4},
        {"layers": 2, "channels": 4, "attention_channels": 16, "heads": 1,
         "ffn_channels": (4, 8), "kernel_size": 2, "kernel_shift": 2, "order": "tf",
         "norm_groups": 2, "n_fft": 64, "hop": 16, "normalize": False, "eps": 1e-8},
    ),
    **{
        kind: (
            {"sources": OWN, "channels": 8, "layers": 1, "heads": 2, "head_channels": 4,
             "n_fft": 64, "hop": 16, "bands": bands},
            {"audio_channels": 1, "bands": others, "channels": 16, "layers": 2,
             "time_layers": 2, "band_layers": 2, "linear_layers": 1, "heads": 1,
             "head_channels": 8, "mask_hidden_layers": 2, "mask_expansion": 2},
        )
        for kind, bands, others in (
            (BSRoFormer, [2] * 8 + [8, 9], [4] * 4 + [8, 9]), (MelRoFormer, 8, 6)
        )
    },
    SCNet: (
        {"channels": (4, 8), "n_fft": 256, "hop": 64, "dual_layers": 2},
        {"audio_channels": 1, "channels": (4, 16), "band_shares": (0.2, 0.4, 0.4),
         "band_strides": (1, 2, 8), "band_kernels": (3, 4, 8), "conv_depths": (1, 1, 1),
         "compression": 2, "kernel_size": 5, "dual_layers": 4, "expansion": 2},
    ),
    SepReformer: (
        {"stages": 1, "encoder_channels": 8, "channels": 8, "heads": 2},
        {"stages": 2, "encoder_channels": 16, "kernel_size": 8, "stride": 8,
         "channels": 16, "heads": 4, "max_offset": 100, "local_taps": 9,
         "down_taps": 3, "split_per_level": True, "auxiliary_heads": True},
    ),
}  # fmt: skip
#: Other checks know these; a window of 0 samples is one of n_fft.
NOT_COMPARED = {"sources", "num_sources", "segment_seconds", "max_length"}
NOT_COMPARED |= {"sample_rate", "window_length"}


def test_an_argument_changes_the_shapes_or_is_compared():
    texts = [path.read_text() for path in (ROOT / "hparams").rglob("*.yaml")]
    named = {
        name for t in texts for name in re.findall(r"^separator: !new:(\S+)", t, re.M)
    }
    assert named == {f"{kind.__module__}.{kind.__name__}" for kind in NETWORKS}
    for kind, (small, others) in NETWORKS.items():
        model = kind(**small)
        shapes = {key: value.shape for key, value in model.state_dict().items()}
        for name in inspect.signature(kind).parameters:
            if name in NOT_COMPARED or not matters(name) or name in model.config:
                continue
            assert name in others, f"{kind.__name__}: give another value of {name} here"
            other = kind(**{**small, name: others[name]}).state_dict()
            changed = {key: value.shape for key, value in other.items()}
            assert changed != shapes, f"{kind.__name__}.config lacks {name}"


# ---------------------------------------------------------------------- partial fits


def test_three_talkers_start_from_two_where_it_is_asked_for(tmp_path, caplog):
    source, model = SepFormer(**SEPFORMER), SepFormer(3, **SEPFORMER)
    run(source, tmp_path, SEPFORMER)
    with pytest.raises(PretrainedError, match="pretrained_skip='.masknet.conv2d...'"):
        load_pretrained(model, tmp_path)
    own = model.masknet.conv2d.weight.clone()
    with caplog.at_level(logging.INFO):
        load_pretrained(model, tmp_path, skip=["masknet.conv2d.*"])
    assert "left out: masknet.conv2d.weight; masknet.conv2d.bias" in caplog.text
    assert torch.equal(model.masknet.conv2d.weight, own)
    assert torch.equal(model.decoder.weight, source.decoder.weight)


def test_another_kernel_and_other_stems(tmp_path):
    source, model = SepFormer(**SEPFORMER), SepFormer(kernel_size=8, **SEPFORMER)
    run(source, tmp_path, SEPFORMER)
    load_pretrained(model, tmp_path, skip=["encoder.*", "decoder.*"])
    with pytest.raises(PretrainedError, match="pretrained_skip: 'coder.*' matches no"):
        load_pretrained(model, tmp_path, skip=["coder.*"])
    four = music()
    export(four, tmp_path / "four", {**SIZE, "sources": OWN})
    outputs = ["decoder.1.conv_tr.*", "tdecoder.1.conv_tr.*"]
    five = music(sources=["kick", "hats", "synth", "rest", "voice"])
    load_pretrained(five, tmp_path / "four", skip=outputs)
    assert torch.equal(five.freq_emb.embedding.weight, four.freq_emb.embedding.weight)


def test_adapters_of_another_tool_are_named(tmp_path):
    state = {}
    for part, shape in (("A", (4, 16)), ("B", (16, 4))):
        for layer in ("net.0", "net.1"):
            state[f"base_model.model.{layer}.lora_{part}.weight"] = torch.zeros(shape)
    save_file(state, tmp_path / "adapter_model.safetensors")
    what = "holds adapters .LoRA. of PEFT, of rank 4, for net.0 and 1 more"
    for place in (tmp_path, tmp_path / "adapter_model.safetensors"):
        with pytest.raises(PretrainedError, match=f"{what}: merge it"):
            load_pretrained(music(), place)
    with pytest.raises(LoraError, match=what):
        load_lora_weights(music(), tmp_path / "adapter_model.safetensors")


# ---------------------------------------------------------------------- demucs' bags


def write_bag(folder: Path, rows: list | None, models: int = 2) -> Path:
    """Packages of `OWN` in a bag, whose weights tell them apart."""
    names = [f"aa{number}" for number in range(models)]
    for number, name in enumerate(names):
        torch.manual_seed(number)
        given = {NAMES_THERE.get(k, k): v for k, v in SIZE.items()}
        given |= {"sources": OWN, "dconv_mode": 3}
        metadata = {"klass": "demucs.htdemucs.HTDemucs", "args": "[]"}
        metadata["kwargs"] = json.dumps(given)
        save_file(music().state_dict(), folder / f"{name}-1f.safetensors", metadata)
    weights = "" if rows is None else f"weights: {rows}\n"
    (folder / "bag.yaml").write_text(f"models: {names}\n{weights}")
    return folder / "bag.yaml"


NAMES_THERE = {"sample_rate": "samplerate", "segment_seconds": "segment"}


def test_a_bag_gives_the_model_of_the_stem_to_train(tmp_path):
    bag = write_bag(tmp_path, [[1, 1, 0, 0], [0, 0, 1, 1]])
    for weights, file in (([0, 0, 0, 1], "aa1"), ([1, 2, 0, 0], "aa0")):
        (read,) = load_pretrained(music(), bag, weights=weights)
        assert read.name == f"{file}-1f.safetensors"
    vocals = music(sources=["voice"])
    (read,) = load_pretrained(vocals, bag, source_map={"voice": "vocals"})
    assert read.name == "aa1-1f.safetensors"
    for weights in (None, [1, 0, 0, 1]):
        with pytest.raises(PretrainedError, match="a bag of 2 models .drums: aa0-1f"):
            load_pretrained(music(), bag, weights=weights)
    with pytest.raises(PretrainedError, match="several models.*bag.yaml"):
        load_pretrained(music(), tmp_path)
    write_bag(tmp_path, None)
    with pytest.raises(PretrainedError, match="aa0-1f.safetensors, aa1-1f.safetensors"):
        load_pretrained(music(), bag, weights=[0, 0, 0, 1])
    (read,) = load_pretrained(music(), write_bag(tmp_path, None, models=1))
    assert read.name == "aa0-1f.safetensors"
