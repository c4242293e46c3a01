"""Load a separator, whoever wrote it, with what its use needs: rate and names.

Nothing in a model's place is executed: settings and weights are read as data, and the
networks are those of `modules/models`.
"""

import re
from pathlib import Path
from typing import NamedTuple

from torch import nn

from modules.models.mossformer2 import MossFormer2
from modules.models.sepformer import SepFormer
from modules.runtime.errors import ExportError, PretrainedError
from modules.weights.demucs import Package, State, network_of
from modules.weights.export import CONFIG, WEIGHTS, load_exported, read_config
from modules.weights.pretrained import PARTS, load_weights, read_weights
from modules.weights.runs import SETTINGS, load_tested, read_run, source_names

CLEARERVOICE_RATE = 16000  # of MossFormer2_SS_16K, whose files do not state it


class Loaded(NamedTuple):
    """A network in evaluation mode, its sampling rate in Hz and its sources' names."""

    network: nn.Module
    sample_rate: int
    sources: list[str]


def load_separator(place: str | Path, sample_rate: int | None = None) -> Loaded:
    """Load a run, an exported folder, or published weights.

    Arguments
    ---------
    place : str | Path
        A run's folder (the weights that it tested), a folder that `export.py` wrote, a
        package of demucs (`.th`, `.safetensors`, or a folder with one), SpeechBrain's
        folder of a SepFormer, or ClearerVoice's of a MossFormer2.
    sample_rate : int | None
        For models that do not state theirs, in Hz.

    Raises
    ------
    ExportError, LoraError, PretrainedError
        The place holds none of these, or cannot be read; the message says why.
    """
    place = Path(place).expanduser()
    rate: int | None
    sources = None
    if not place.exists():
        raise PretrainedError(f"model: {place} does not exist")
    # SpeechBrain's folders have files of the same names as ours.
    foreign = not (place / WEIGHTS).is_file() and any(
        list(place.glob(f"{part}.*")) for part in PARTS
    )
    if (place / CONFIG).is_file() and not foreign:
        network, rate = load_exported(place), read_config(place).get("sample_rate")
    elif (place / SETTINGS).is_file() and not foreign:
        run = read_run(place)
        network, rate, sources = load_tested(run), run.sample_rate, run.value("sources")
    else:
        network, rate = _published(place)
    rate = getattr(network, "sample_rate", rate) or sample_rate
    if rate is None:
        raise ExportError(f"{place}: states no sample rate; give --sample_rate")
    if sample_rate not in (None, rate):
        raise ExportError(f"--sample_rate={sample_rate}: {place} works at {rate} Hz")
    if hasattr(network, "sources") or sources is None:
        sources = source_names(network, rate)
    return Loaded(network, rate, list(sources))


def _published(place: Path) -> tuple[nn.Module, int | None]:
    """The network that published weights belong to, and its rate if it is known."""
    weights, _ = read_weights(place)
    rate: int | None = None
    network: nn.Module
    try:
        if isinstance(weights, Package):
            network = network_of(weights)
        elif any(".self_att.att.in_proj_weight" in key for key in weights):
            settings = place / SETTINGS
            text = settings.read_text(encoding="utf-8") if settings.is_file() else ""
            network, rate = _sepformer(weights, text), _stated("sample_rate", text)
        elif any(key.removeprefix("module.").startswith("enc.") for key in weights):
            network, rate = _mossformer2(weights), CLEARERVOICE_RATE
        else:
            raise ValueError(
                "does not say which network its weights belong to; export the run that "
                "loaded them by --pretrained: python export.py RUN --out=FOLDER"
            )
    except (KeyError, TypeError, ValueError) as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else error
        raise PretrainedError(f"model: {place} {reason}") from error
    load_weights(network, weights, place)
    return network.eval(), rate


def _stated(name: str, text: str) -> int | None:
    """A whole number of a YAML text, read as text: published YAML names classes."""
    found = re.search(rf"^\s*{name}:\s*(\d+)\s*(?:#.*)?$", text, re.MULTILINE)
    return int(found[1]) if found else None


def _sepformer(state: State, settings: str) -> SepFormer:
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
        chunk_size=_stated("K", settings) or 250,
        intra_layers=_count(layers.format("intra"), state),
        inter_layers=_count(layers.format("inter"), state),
        heads=_stated("nhead", settings) or 8,
        ffn_channels=state[ffn].shape[0],
    )


def _mossformer2(state: State) -> MossFormer2:
    """The network of these shapes, with ClearerVoice's masks and norms."""
    state = {key.removeprefix("module."): value for key, value in state.items()}
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
    )


def _count(pattern: str, state: State) -> int:
    """How many numbers the group of a pattern takes in the keys."""
    matches = (re.match(pattern, key) for key in state)
    return len({found[1] for found in matches if found})
