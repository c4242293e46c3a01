"""A separator is built from what its files say, and none of them is executed."""

import pytest
import torch

from modules.models.mossformer2 import MossFormer2
from modules.models.sepformer import SepFormer
from modules.runtime.errors import PretrainedError, UserError
from modules.weights.checkpointer import AtomicCheckpointer
from modules.weights.separators import load_separator
from tests.modules.weights.test_pretrained import (
    DEMUCS,
    SOURCES,
    assert_halved,
    demucs_classes,
    make_htdemucs,
    package,
    write_metadata,
    write_parts,
    write_pointer,
    write_standalone,
)
from tests.toy import same_weights

__all__ = ["demucs_classes"]  # a fixture

# As SpeechBrain publishes it: names of classes, which must stay names.
PUBLISHED = """
sample_rate: 16000  # Hz
num_spks: 3
Encoder: !new:speechbrain.lobes.models.dual_path.Encoder
    kernel_size: 16
SBtfintra: !new:os.system
    num_layers: 1
    nhead: 2
MaskNet: !new:speechbrain.lobes.models.dual_path.Dual_Path_Model
    K: 10
"""


def test_a_sepformer_of_speechbrain(tmp_path):
    source = SepFormer(
        num_sources=3,
        encoder_channels=16,
        channels=8,
        kernel_size=10,
        dual_layers=2,
        chunk_size=10,
        intra_layers=1,
        inter_layers=2,
        heads=2,
        ffn_channels=24,
    ).eval()
    write_parts(source, tmp_path)
    with pytest.raises(UserError, match="no sample rate; give --sample_rate"):
        load_separator(tmp_path)
    (tmp_path / "hyperparams.yaml").write_text(PUBLISHED)
    (tmp_path / "config.json").write_text('{"speechbrain_interface": "Sepformer"}')
    network, rate, sources = load_separator(tmp_path)
    assert (rate, sources) == (16000, ["s1", "s2", "s3"])
    mix_BT = torch.randn(1, 900)
    assert torch.equal(network(mix_BT), source(mix_BT))
    with pytest.raises(UserError, match="--sample_rate=8000: .* works at 16000 Hz"):
        load_separator(tmp_path, 8000)


def test_a_mossformer2_of_clearervoice(tmp_path):
    arguments = {"encoder_channels": 20, "channels": 24, "layers": 2, "kernel_size": 8}
    source = MossFormer2(**arguments, num_sources=3, memory_channels=32).eval()
    write_pointer(source, tmp_path)
    network, rate, sources = load_separator(tmp_path)
    assert (rate, sources) == (16000, ["s1", "s2", "s3"])
    mix_BT = torch.randn(1, 900)
    assert torch.equal(network(mix_BT), source(mix_BT))


@pytest.mark.parametrize("form", ["pickle", "metadata", "folder"])
def test_a_package_of_demucs(tmp_path, demucs_classes, form):
    source = make_htdemucs(0)
    path = tmp_path / ("955717e8.th" if form == "pickle" else "955717e8.safetensors")
    if form == "pickle":
        torch.save(package(demucs_classes["HTDemucs"], source), path)
    else:
        write_metadata(path, source)
    network, rate, sources = load_separator(tmp_path if form == "folder" else path)
    assert (rate, sources) == (DEMUCS["samplerate"], SOURCES)
    assert network.config == source.config and network.segment == source.segment
    assert_halved(network, source)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"t_emb": "cape"}, r"t_emb=cape \(supported is sin\)"),
        ({"channels_time": 4}, "has channels_time"),
        ({"channels": "many"}, "channels=.many.: must be an integer"),
        ({"segment": [1]}, "segment|fraction|seconds"),
        ({"sources": None}, "does not name its sources"),
    ],
)
def test_other_packages_of_demucs_are_refused(
    tmp_path, demucs_classes, options, message
):
    content = package(demucs_classes["HTDemucs"], make_htdemucs(0), **options)
    torch.save(content, tmp_path / "a.th")
    with pytest.raises(PretrainedError, match=message):
        load_separator(tmp_path / "a.th")
    content["klass"] = demucs_classes["HDemucs"]
    torch.save(content, tmp_path / "a.th")
    with pytest.raises(PretrainedError, match="holds a demucs.hdemucs.HDemucs"):
        load_separator(tmp_path / "a.th")


def test_the_run_of_a_network(tmp_path):
    size = "{encoder_channels: 16, channels: 16, layers: 1, num_sources: 3}"
    (tmp_path / "hyperparams.yaml").write_text(
        "sample_rate: 8000\nmonitor: loss\n"
        f"separator: !new:modules.models.mossformer2.MossFormer2 {size}\n"
    )
    source = MossFormer2(16, 16, 1, num_sources=3)
    checkpoints = AtomicCheckpointer(tmp_path / "save", {"separator": source})
    checkpoints.save_checkpoint(meta={"loss": 1.0})
    network, rate, sources = load_separator(tmp_path)
    assert (rate, sources, network.training) == (8000, ["s1", "s2", "s3"], False)
    assert same_weights(network.state_dict(), source.state_dict())


def test_weights_that_do_not_say_their_network_are_refused(tmp_path):
    write_standalone(MossFormer2(16, 16, 1), tmp_path)  # masks or a map?
    with pytest.raises(PretrainedError, match="does not say which network.*export"):
        load_separator(tmp_path)
    torch.save({"enc.x": torch.zeros(1)}, tmp_path / "a.th")
    with pytest.raises(PretrainedError, match="a.th lacks 'enc.conv1d.weight'"):
        load_separator(tmp_path / "a.th")
