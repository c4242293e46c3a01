"""The networks of published weights, with the sizes that shapes and settings give."""

import re
from pathlib import Path

import yaml
from torch import nn

from modules.models.mossformer2 import MossFormer2
from modules.models.sepformer import SepFormer
from modules.models.sepreformer import SepReformer
from modules.models.tf_locoformer import TFLocoformer
from modules.runtime.errors import PretrainedError
from modules.weights.demucs import Package, State
from modules.weights.demucs import network_of as demucs_network
from modules.weights.layouts import ESPNET, LAYOUTS, SETTINGS, Weights
from modules.weights.msst import network_of as msst_network
from modules.weights.stated import number_in

# The three networks of MossFormer2's standalone release.
STANDALONE = {"wsj0mix-3spk": "mask", "librimix-2spk": "mask", "whamr-2spk": "map"}


def network_of(
    weights: Weights, place: Path, file: Path
) -> tuple[nn.Module, int | None]:
    """Return the network that published weights belong to, and its rate if known."""
    names = ["klass"]
    if not isinstance(weights, Package):
        weights = {key.removeprefix("module."): v for key, v in weights.items()}
        names = list(weights)
    try:
        for layout in LAYOUTS:
            if layout.network and any(map(re.compile(layout.keys).search, names)):
                network = globals()[layout.network](weights, place, file)
                return network, layout.rate or _said(place, "sample_rate")
    except (KeyError, TypeError, ValueError) as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else error
        raise PretrainedError(f"model: {place} {reason}") from error
    raise PretrainedError(
        f"model: {place} does not say which network its weights belong to; export the "
        "run that loaded them by --pretrained: python export.py RUN --out=FOLDER"
    )


def sepformer(state: State, place: Path, _file: Path) -> nn.Module:
    """The network of these shapes; what leaves no trace in them is as published."""
    filters, _, kernel = state["encoder.conv1d.weight"].shape
    width = state["masknet.conv1d.weight"].shape[0]
    ffn = "masknet.dual_mdl.0.intra_mdl.mdl.layers.0.pos_ffn.ffn.0.weight"
    layers = r"masknet\.dual_mdl\.0\.{}_mdl\.mdl\.layers\.(\d+)\."
    return SepFormer(
        num_sources=len(state["masknet.conv2d.bias"]) // width,
        encoder_channels=filters,
        kernel_size=kernel,
        channels=width,
        dual_layers=_count(r"masknet\.dual_mdl\.(\d+)\.", state),
        chunk_size=_said(place, "K") or 250,
        intra_layers=_count(layers.format("intra"), state),
        inter_layers=_count(layers.format("inter"), state),
        heads=_said(place, "nhead") or 8,
        ffn_channels=state[ffn].shape[0],
    )


def clearervoice(state: State, _place: Path, _file: Path) -> nn.Module:
    """The network of ClearerVoice's MossFormer2."""
    return _mossformer2(state, "mask")


def mossformer2(state: State, place: Path, _file: Path) -> nn.Module:
    """The network of MossFormer2's standalone release."""
    return _mossformer2(state, _mask_mode(place))


def demucs(package: Package, _place: Path, _file: Path) -> nn.Module:
    """The network of a package of demucs."""
    return demucs_network(package)


def msst(state: State, _place: Path, file: Path) -> nn.Module:
    """The network that MSST's YAML describes."""
    return msst_network(state, file)


def _mask_mode(place: Path) -> str:
    """Return what the output of the standalone release's network is, by its name.

    The files do not say it: the network for WHAMR! makes the talkers' features, all
    others make masks.
    """
    for part in reversed(place.resolve().parts):
        for name, mode in STANDALONE.items():
            if name in part:
                return mode
    raise ValueError(
        "does not say whether it makes masks or features; give the folder its "
        f"published name, with one of {', '.join(STANDALONE)}"
    )


def _mossformer2(state: State, mask_mode: str) -> nn.Module:
    """The network of these shapes, with ClearerVoice's norms."""
    state = MossFormer2.adapt_keys(state)
    filters, _, kernel = state["enc.conv1d.weight"].shape
    width = state["mask_net.conv1d_encoder.weight"].shape[0]
    stack = "mask_net.mdl.intra_mdl.mossformerM."
    return MossFormer2(
        encoder_channels=filters,
        channels=width,
        layers=_count(re.escape(stack) + r"layers\.(\d+)\.", state),
        kernel_size=kernel,
        num_sources=state["mask_net.conv1d_out.weight"].shape[0] // width,
        memory_channels=state[f"{stack}fsmn.0.norm1.weight"].shape[0],
        mask_mode=mask_mode,
    )


def sepreformer(state: State, _place: Path, _file: Path) -> nn.Module:
    """The network of these shapes, with the authors' stride."""
    filters, _, kernel = state["audio_encoder.conv1d.weight"].shape
    width = state["feature_projector.conv1d.weight"].shape[0]
    positions, of_a_head = state["separator.pos_emb.pe_k.weight"].shape
    stage = "separator.enc_stages.0."
    splits = [
        key for key in state if re.search(r"spk_split_block.*linear\.2\.bias", key)
    ]
    return SepReformer(
        num_sources=len(state[splits[0]]) // width,
        stages=_count(r"separator\.enc_stages\.(\d+)\.", state),
        encoder_channels=filters,
        kernel_size=kernel,
        stride=kernel // 4,
        channels=width,
        heads=width // of_a_head,
        max_offset=positions // 2,
        local_taps=state[f"{stage}l_block_1.block.cla.dw_conv_1d.weight"].shape[-1],
        down_taps=state[f"{stage}downconv.down_conv.weight"].shape[-1],
        split_per_level=len(splits) > 1,
    )


def tf_locoformer(_state: State, _place: Path, file: Path) -> nn.Module:
    """The network that ESPnet's configuration beside the weights describes."""
    settings = file.parent / ESPNET
    if not settings.is_file():
        raise ValueError(
            f"needs ESPnet's {settings.name} beside it, which says n_fft and more"
        )
    try:
        config = yaml.safe_load(settings.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{settings.name} cannot be read: {reason}") from error
    if not isinstance(config, dict) or "separator_conf" not in config:
        raise ValueError(f"has a {settings.name} without separator_conf beside it")
    return TFLocoformer.from_config(config)


def _said(place: Path, name: str) -> int | None:
    """Return a number of SpeechBrain's settings."""
    path = place / SETTINGS
    return number_in(path.read_text(encoding="utf-8"), name) if path.is_file() else None


def _count(pattern: str, state: State) -> int:
    """How many numbers the group of a pattern takes in the keys."""
    matches = (re.match(pattern, key) for key in state)
    return len({found[1] for found in matches if found})
