"""Models of MSST: weights with a YAML that is read as data."""

import pytest
import torch

from modules.models.roformer import BSRoFormer, MelRoFormer
from modules.models.scnet import SCNet
from modules.runtime.errors import PretrainedError
from modules.weights.pretrained import load_pretrained
from modules.weights.separators import load_separator
from tests.toy import same_weights

BS = """
audio:
  chunk_size: 4410
  sample_rate: 11025
  hop_length: 99 # not read by these networks
model:
  dim: 8
  depth: 1
  stereo: true
  num_stems: 2
  time_transformer_depth: 1
  freq_transformer_depth: 1
  freqs_per_bands: !!python/tuple
  - 16
  - 17
  heads: 2
  dim_head: 4
  stft_n_fft: 64
  stft_hop_length: 16
  stft_win_length: 64
  mlp_expansion_factor: 1
  multi_stft_resolutions_window_sizes: !!python/tuple
  - 4096
training:
  instruments: [drums, bass]
  target_instrument: null
inference:
  normalize: false
"""
MEL = BS.replace("freqs_per_bands: !!python/tuple\n  - 16\n  - 17", "num_bands: 8")
ONE = MEL.replace("num_stems: 2", "num_stems: 1").replace("null", "bass")
SC = """
audio: {chunk_size: 8000, sample_rate: 8000}
model: {sources: [a, b], dims: [4, 4, 8], nfft: 256, hop_size: 64, win_size: 256,
  num_dplayer: 2}
training: {instruments: [a, b], target_instrument: null}
inference: {normalize: %s}
"""


def write(folder, kind, text, wrap=lambda state: state, name="model", **arguments):
    """A network's weights in a file of MSST with its YAML; returns network and file."""
    import yaml

    plain = yaml.safe_load(text.replace("!!python/tuple", ""))
    torch.manual_seed(0)
    network = kind.from_config(plain, **arguments).eval()
    torch.save(wrap(network.state_dict()), folder / f"{name}.ckpt")
    (folder / f"{name}.yaml").write_text(text)
    return network, folder / f"{name}.ckpt"


@pytest.mark.parametrize("kind, text", [(BSRoFormer, BS), (MelRoFormer, MEL)])
@pytest.mark.parametrize("as_file", [False, True])
def test_a_model_with_all_its_stems(tmp_path, kind, text, as_file):
    source, file = write(tmp_path, kind, text, sample_rate=11025)
    loaded = load_separator(file if as_file else tmp_path)
    assert type(loaded.network) is kind and loaded.sources == ["drums", "bass"]
    assert loaded.sample_rate == 11025 and loaded.network.segment * 11025 == 4410
    mix_BCT = torch.randn(1, 2, 300)
    assert torch.equal(loaded.network(mix_BCT), source(mix_BCT))


def test_a_model_of_one_instrument_gives_the_rest_too(tmp_path):
    source, file = write(tmp_path, MelRoFormer, ONE, sample_rate=11025)
    network, _, sources, _ = load_separator(file)
    assert sources == ["bass", "drums"]
    mix_BCT = torch.randn(1, 2, 300)
    bass_BCT = source(mix_BCT)[:, 0]
    assert torch.equal(network(mix_BCT)[:, 0], bass_BCT)
    assert torch.equal(network(mix_BCT)[:, 1], mix_BCT - bass_BCT)


@pytest.mark.parametrize("normalize", [True, False])
def test_an_scnet_says_whether_songs_get_a_level(tmp_path, normalize):
    text = SC % str(normalize).lower()
    source, file = write(tmp_path, SCNet, text, lambda state: {"best_state": state})
    network, rate, sources, _ = load_separator(file)
    assert (rate, sources, network.song_level) == (8000, ["a", "b"], normalize)
    assert same_weights(network.state_dict(), source.state_dict())


def test_half_precision_and_prefixes_of_newer_files(tmp_path):
    def wrap(state):
        return {"state_dict": {f"module.{k}": v.half() for k, v in state.items()}}

    source, file = write(tmp_path, BSRoFormer, BS, wrap)
    network = load_separator(file).network
    key = "layers.0.0.layers.0.0.rotary_embed.freqs"
    assert torch.equal(network.state_dict()[key], source.state_dict()[key])


def test_training_starts_from_it_and_compares_its_settings(tmp_path):
    source, file = write(tmp_path, BSRoFormer, BS)
    sizes = {"channels": 8, "layers": 1, "heads": 2, "head_channels": 4, "n_fft": 64}
    sizes |= {"bands": [16, 17], "mask_expansion": 1, "sample_rate": 11025}
    model = BSRoFormer(["drums", "bass"], hop=16, **sizes)
    load_pretrained(model, file)
    assert same_weights(model.state_dict(), source.state_dict())
    with pytest.raises(PretrainedError, match="trained with hop 16, here 8"):
        load_pretrained(BSRoFormer(["drums", "bass"], hop=8, **sizes), file)
    with pytest.raises(PretrainedError, match="starts from vocals"):
        load_pretrained(BSRoFormer(["vocals", "bass"], hop=16, **sizes), file)


@pytest.mark.parametrize(
    "change, message",
    [
        (("depth: 1", "depth: 2"), "does not fit BSRoFormer"),
        (("dim: 8", "dim: 80000000"), "does not fit BSRoFormer"),
        (("dim: 8", "dim: eight"), "model"),
        (("depth: 1", "depth: 1\n  sage: true"), "unknown sage"),
        (("tuple\n  - 16", "object/apply:os.system\n  - 16"), "os.system"),
        (("training:", "trained:"), "without sections model, audio and training"),
        (("instruments: [drums, bass]", "instruments: 2"), "training.instruments"),
        (("audio:", "audio: ["), "unreadable model.yaml"),
    ],
)
def test_a_yaml_that_does_not_fit_is_refused(tmp_path, change, message):
    _, file = write(tmp_path, BSRoFormer, BS)
    (tmp_path / "model.yaml").write_text(BS.replace(*change))
    with pytest.raises(PretrainedError, match=message) as error:
        load_separator(file)
    assert "model.ckpt" in str(error.value)


def test_the_yaml_must_be_there(tmp_path):
    _, file = write(tmp_path, BSRoFormer, BS)
    (tmp_path / "model.yaml").unlink()
    with pytest.raises(PretrainedError, match="needs MSST's YAML .* model.yaml"):
        load_separator(file)
