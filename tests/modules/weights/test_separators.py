"""A separator is built from what its files say, and none of them is executed."""

import pytest
import torch

from modules.models.mossformer2 import MossFormer2
from modules.models.sepformer import SepFormer
from modules.models.sepreformer import SepReformer
from modules.models.tf_locoformer import TFLocoformer
from modules.runtime.errors import PretrainedError, UserError
from modules.weights.checkpointer import AtomicCheckpointer
from modules.weights.separators import load_separator, load_separators
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
    network, rate, sources, _ = load_separator(tmp_path)
    assert (rate, sources) == (16000, ["s1", "s2", "s3"])
    mix_BT = torch.randn(1, 900)
    assert torch.equal(network(mix_BT), source(mix_BT))
    with pytest.raises(UserError, match="--sample_rate=8000: .* works at 16000 Hz"):
        load_separator(tmp_path, 8000)


def test_a_mossformer2_of_clearervoice(tmp_path):
    arguments = {"encoder_channels": 20, "channels": 24, "layers": 2, "kernel_size": 8}
    source = MossFormer2(**arguments, num_sources=3, memory_channels=32).eval()
    write_pointer(source, tmp_path)
    network, rate, sources, _ = load_separator(tmp_path)
    assert (rate, sources) == (16000, ["s1", "s2", "s3"])
    mix_BT = torch.randn(1, 900)
    assert torch.equal(network(mix_BT), source(mix_BT))


@pytest.mark.parametrize(
    "name, mode", [("mossformer2-librimix-2spk", "mask"), ("my-whamr-2spk", "map")]
)
def test_a_mossformer2_of_the_standalone_release(tmp_path, name, mode):
    source = MossFormer2(16, 16, 1, mask_mode=mode).eval()
    (tmp_path / "unknown").mkdir()
    write_standalone(source, tmp_path / "unknown")
    with pytest.raises(PretrainedError, match="masks or features; give .* whamr-2spk"):
        load_separator(tmp_path / "unknown")
    (tmp_path / "unknown").rename(tmp_path / name)
    network, rate, sources, _ = load_separator(tmp_path / name)
    assert (rate, sources) == (8000, ["s1", "s2"])
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
    network, rate, sources, _ = load_separator(tmp_path if form == "folder" else path)
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
    saved = checkpoints.save_checkpoint(meta={"loss": 1.0})
    for place in (tmp_path, saved.path):
        network, rate, sources, _ = load_separator(place)
        assert (rate, sources, network.training) == (8000, ["s1", "s2", "s3"], False)
        assert same_weights(network.state_dict(), source.state_dict())


def test_weights_that_do_not_say_their_network_are_refused(tmp_path):
    torch.save({"a.weight": torch.zeros(1)}, tmp_path / "a.th")
    with pytest.raises(PretrainedError, match="does not say which network.*export"):
        load_separator(tmp_path)
    torch.save({"enc.x": torch.zeros(1)}, tmp_path / "a.th")
    with pytest.raises(PretrainedError, match="a.th lacks 'enc.conv1d.weight'"):
        load_separator(tmp_path / "a.th")


@pytest.mark.parametrize("place", ["file", "folder"])
def test_a_bag_of_demucs(tmp_path, demucs_classes, place):
    """As published: signatures of packages that lie beside it."""
    sources = [make_htdemucs(seed) for seed in (0, 1)]
    for name, source in zip(("f7e0c4bc-ba3fe64a", "d12395a8"), sources, strict=True):
        content = package(demucs_classes["HTDemucs"], source)
        torch.save(content, tmp_path / f"{name}.th")
    weights = [[float(row == column) for column in range(2)] for row in range(2)]
    (tmp_path / "htdemucs_ft.yaml").write_text(
        f"models: ['f7e0c4bc', 'd12395a8']\nweights: {weights}"
    )
    given = tmp_path / "htdemucs_ft.yaml" if place == "file" else tmp_path
    models, weights_MS = load_separators(given)
    assert weights_MS == weights
    for loaded, source in zip(models, sources, strict=True):
        assert (loaded.sample_rate, loaded.sources) == (DEMUCS["samplerate"], SOURCES)
        assert_halved(loaded.network, source)
    # A list that somebody published must not choose other files of this computer.
    text = f"models: ['{tmp_path}/d12395a8.th']"
    (tmp_path / "htdemucs_ft.yaml").write_text(text)
    if place == "file":
        assert len(load_separators(given)[0]) == 1
    else:
        with pytest.raises(PretrainedError, match="no bag of demucs"):
            load_separators(given)
    (tmp_path / "htdemucs_ft.yaml").write_text("models: ['d12395a8']\nsegment: 44")
    with pytest.raises(PretrainedError, match="states a segment"):
        load_separators(given)


@pytest.mark.parametrize("per_level", [False, True])
def test_a_checkpoint_of_sepreformer(tmp_path, per_level):
    sizes = {"stages": 2, "encoder_channels": 8, "channels": 6, "heads": 3}
    sizes |= {"max_offset": 9, "local_taps": 7, "down_taps": 3, "num_sources": 3}
    options = {"split_per_level": per_level, "auxiliary_heads": True}
    source = SepReformer(**sizes, **options).eval()
    content = {"epoch": 3, "model_state_dict": source.state_dict(), "train_loss": 0.5}
    torch.save(content, tmp_path / "epoch.0180.pth")
    network, rate, sources, _ = load_separator(tmp_path)
    assert (rate, sources) == (8000, ["s1", "s2", "s3"])
    mixture = torch.randn(1, 500)
    assert torch.equal(network(mixture), source(mixture))
    assert not network.auxiliary_heads


def test_a_tf_locoformer_of_espnet(tmp_path):
    source = TFLocoformer(
        num_sources=3, layers=1, channels=8, ffn_channels=(4, 6), n_fft=64, hop=16
    )
    state = {f"separator.{key}": value for key, value in source.state_dict().items()}
    path = tmp_path / "valid.loss.ave_5best.pth"
    torch.save(state, path)
    with pytest.raises(PretrainedError, match="needs ESPnet's config.yaml beside it"):
        load_separator(path)
    settings = tmp_path / "config.yaml"
    settings.write_text("separator: !!python/object/apply:os.system [exit]")
    with pytest.raises(PretrainedError, match="config.yaml cannot be read"):
        load_separator(path)
    settings.write_text(
        "separator: tflocoformer\nbatch_size: 4\n"
        "separator_conf: {num_spk: 3, n_layers: 1, emb_dim: 8,"
        " ffn_hidden_dim: [4, 6]}\n"
        "encoder_conf: {n_fft: 64, hop_length: 16}\n"
        "model_conf: {normalize_variance: true}\n"
    )
    network, rate, sources, _ = load_separator(tmp_path, 8000)
    assert (rate, sources) == (8000, ["s1", "s2", "s3"])
    mixture = torch.randn(1, 500)
    assert torch.equal(network(mixture), source.eval()(mixture))
