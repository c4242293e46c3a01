"""Load a separator, whoever wrote it, with what its use needs: rate and names.

Nothing in a model's place is executed: settings and weights are read as data, and the
networks are those of `modules/models`.
"""

import pydoc
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from speechbrain.utils.checkpoints import METAFNAME
from torch import nn

from modules.models.mossformer2 import MossFormer2
from modules.models.sepformer import SepFormer
from modules.models.sepreformer import SepReformer
from modules.models.tf_locoformer import TFLocoformer
from modules.runtime.errors import ExportError, PretrainedError
from modules.weights.demucs import Package, State, bag_file, model_at, read_bag
from modules.weights.export import CONFIG, WEIGHTS, load_exported, read_config
from modules.weights.hub import PREFIX, fetch
from modules.weights.pretrained import (
    ESPNET,
    LAYOUTS,
    PARTS,
    load_weights,
    read_weights,
)
from modules.weights.runs import SETTINGS, load_tested, read_run, source_names
from modules.weights.stated import number_in

# The three networks of MossFormer2's standalone release.
STANDALONE = {"wsj0mix-3spk": "mask", "librimix-2spk": "mask", "whamr-2spk": "map"}


class Loaded(NamedTuple):
    """A network in evaluation mode, its sampling rate in Hz and its sources' names.

    `tested` says how a run tested it: `shifts`, `seed`, `overlap`, `chunk_seconds`.
    """

    network: nn.Module
    sample_rate: int
    sources: list[str]
    tested: Mapping[str, Any] = {}


def load_separator(place: str | Path, sample_rate: int | None = None) -> Loaded:
    """Load a run, an exported folder, or published weights.

    Arguments
    ---------
    place : str | Path
        A run's folder (the weights that it tested), one of its checkpoints, a folder
        that `export.py` wrote, a folder or file in one of `pretrained.LAYOUTS`, or such
        a folder of huggingface.co, `hf:ORGANISATION/NAME[@REVISION]`.
    sample_rate : int | None
        For models that do not state theirs, in Hz.

    Raises
    ------
    ExportError, LoraError, PretrainedError
        The place holds none of these, or cannot be read; the message says why.
    """
    place = _local(place)
    rate: int | None
    sources, tested = None, {}
    if not place.exists():
        raise PretrainedError(f"model: {place} does not exist")
    # SpeechBrain's folders have files of the same names as ours.
    foreign = not (place / WEIGHTS).is_file() and any(
        list(place.glob(f"{part}.*")) for part in PARTS
    )
    if (place / CONFIG).is_file() and not foreign:
        network, rate = load_exported(place), read_config(place).get("sample_rate")
    elif any((place / x).is_file() for x in (SETTINGS, METAFNAME)) and not foreign:
        run = read_run(place)
        network, rate, sources = load_tested(run), run.sample_rate, run.value("sources")
        tested = {name: run.value(name) for name in ("shifts", "seed", "overlap")}
        tested["chunk_seconds"] = run.value("eval_chunk_seconds")
    else:
        network, rate = _published(place)
    rate = getattr(network, "sample_rate", rate) or sample_rate
    if rate is None:
        raise ExportError(f"{place}: states no sample rate; give --sample_rate")
    if sample_rate not in (None, rate):
        raise ExportError(f"--sample_rate={sample_rate}: {place} works at {rate} Hz")
    if hasattr(network, "sources") or sources is None:
        sources = source_names(network, rate)
    return Loaded(network, rate, list(sources), tested)


def load_separators(
    place: str | Path, sample_rate: int | None = None
) -> tuple[list[Loaded], list[list[float]] | None]:
    """Load one model by `load_separator`, or all that a list of models names.

    The second result has a row for each model with its weight for each source; None is
    all alike.

    Lists are bags (a file, or a folder with one and its models), and YAML or JSON of
    one's own with the same `models` and `weights`, whose models may be anything that
    `load_separator` takes; they lie relative to the list.
    """
    given, place = place, _local(place)
    bag = bag_file(place)
    if bag is None:
        return [load_separator(place, sample_rate)], None
    # Only a list that was named may choose other files of this computer.
    is_named = bag == Path(given).expanduser()
    read = read_bag(bag, model_at if is_named else None)
    if read.segment_seconds:
        raise PretrainedError(f"{bag}: states a segment, which is not supported")
    return [load_separator(file, sample_rate) for file in read.files], read.weights_MS


def _local(place: str | Path) -> Path:
    is_remote = str(place).startswith(PREFIX)
    return fetch(str(place)) if is_remote else Path(place).expanduser()


def _published(place: Path) -> tuple[nn.Module, int | None]:
    """The network that published weights belong to, and its rate if it is known."""
    weights, files = read_weights(place)
    names = ["klass"]
    if not isinstance(weights, Package):
        weights = {key.removeprefix("module."): v for key, v in weights.items()}
        names = list(weights)
    try:
        for layout in LAYOUTS:
            if layout.network and any(map(re.compile(layout.keys).search, names)):
                make: Any = pydoc.locate(f"modules.weights.{layout.network}")
                network = make(weights, files[0], place)
                break
        else:
            raise ValueError(
                "does not say which network its weights belong to; export the run that "
                "loaded them by --pretrained: python export.py RUN --out=FOLDER"
            )
    except (KeyError, TypeError, ValueError) as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else error
        raise PretrainedError(f"model: {place} {reason}") from error
    load_weights(network, weights, place)
    return network.eval(), layout.rate or _said(place, "sample_rate")


def sepformer(state: State, _file: Path, place: Path) -> SepFormer:
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


def mossformer2(state: State, _file: Path, place: Path) -> MossFormer2:
    """The network of these shapes, with ClearerVoice's norms."""
    is_clearervoice = any(key.startswith("enc.") for key in state)
    mask_mode = "mask" if is_clearervoice else _mask_mode(place)
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


def sepreformer(state: State, *_unused: Path) -> SepReformer:
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


def tf_locoformer(_state: State, file: Path, _place: Path) -> TFLocoformer:
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
