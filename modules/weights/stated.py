"""What weights say of themselves: network, settings, sources and rate; nothing is run.

An exported folder says it in `config.json`, a checkpoint in the settings that it was
saved with (or its run's `hyperparams.yaml`), a package of demucs in its arguments,
SpeechBrain's folder in its `hyperparams.yaml`, a file of MSST in the YAML beside it.
"""

import inspect
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from modules.models.htdemucs import seconds
from modules.runtime.errors import DamagedCheckpoint, ExportError, PretrainedError
from modules.weights import msst
from modules.weights.checkpoint_files import read_checkpoint
from modules.weights.demucs import NAMES, Package, arguments_of

CLEARERVOICE_RATE = 16000  # of MossFormer2_SS_16K, whose files do not state it

#: Arguments that do not change what a trained network gives.
TRAINING_ONLY = ("dropout", "activation_checkpointing")


@dataclass(frozen=True)
class Stated:
    """The class, its arguments and the rate in Hz; empty where nothing is said."""

    network: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    sample_rate: int | None = None

    @property
    def sources(self) -> list[str] | None:
        """Return the names of the sources."""
        names = self.arguments.get("sources")
        return [str(name) for name in names] if isinstance(names, list) else None

    def differences(
        self, model: nn.Module, sample_rate: int | None
    ) -> dict[str, tuple[Any, Any]]:
        """Return the stated value and the model's of each setting that differs.

        A model's `config` names the arguments that are compared; sources are not here.
        """
        kinds = [kind.__name__ for kind in type(model).__mro__]
        kind = self.network.rpartition(".")[2]
        ours = {"sample_rate": getattr(model, "sample_rate", sample_rate)}
        theirs: dict[str, Any] = {"sample_rate": self.sample_rate}
        if kind and kind not in kinds:
            theirs["network"], ours["network"] = kind, kinds[0]
        else:
            ours |= getattr(model, "config", {})
            parameters = inspect.signature(type(model)).parameters if kind else {}
            theirs |= {name: p.default for name, p in parameters.items()}
            theirs |= self.arguments
            theirs = {k: [*v] if isinstance(v, tuple) else v for k, v in theirs.items()}
        pairs = {name: (theirs.get(name), ours[name]) for name in ours}
        return {
            name: pair
            for name, pair in pairs.items()
            if None not in pair and pair[0] != pair[1] and matters(name)
        }

    def segments(self, model: nn.Module) -> tuple[float, float] | None:
        """Return the stated length of an example and the model's if they differ."""
        theirs, ours = self.arguments.get("segment_seconds"), vars(model).get("segment")
        if theirs is None or ours is None or seconds(theirs) == ours:
            return None
        return float(seconds(theirs)), float(ours)


def matters(argument: str) -> bool:
    """Return whether an argument of a network may change what it gives."""
    return not argument.endswith(TRAINING_ONLY)


def stated_of(weights: object, files: Sequence[Path]) -> Stated:
    """Return what weights say that were read from these files."""
    if isinstance(weights, Package):
        arguments = arguments_of(weights)
        return Stated("HTDemucs", arguments, arguments["sample_rate"])
    if not files:
        return Stated()
    folder, name = files[0].parent, files[0].name
    if (folder / "CKPT.yaml").is_file() and name == "separator.ckpt":
        return _of_checkpoint(folder)
    if (folder / "last_best_checkpoint").is_file():
        return Stated(sample_rate=CLEARERVOICE_RATE)
    if (folder / "config.json").is_file() and name == "model.safetensors":
        return _of_export(folder / "config.json")
    if isinstance(weights, Mapping) and msst.kind_of(weights):
        return _of_msst(weights, files[0])
    return _of_yaml(folder / "hyperparams.yaml")


def _of_export(path: Path) -> Stated:
    """Read the configuration of an exported model; another tool's says nothing."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not str(content.get("format")).startswith("sepbrain.model."):
            return Stated()
        given = {NAMES.get(k, k): v for k, v in content["arguments"].items()}
        return Stated(content["model"], given, content.get("sample_rate"))
    except (OSError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise PretrainedError(f"pretrained: {path}: not readable ({error})") from error


def _of_msst(weights: Any, file: Path) -> Stated:
    """Read the YAML of MSST beside a file of weights; without one nothing is said."""
    if not msst.settings_of(file):
        return Stated()
    network = msst.network_of(weights, file)
    own = {**network.config, "sources": network.sources}
    own |= {name: getattr(network, name) for name in ("sample_rate", "audio_channels")}
    own["segment_seconds"] = str(network.segment)
    return Stated(type(network).__name__, own, network.sample_rate)


def _of_checkpoint(folder: Path) -> Stated:
    """Read the settings in a checkpoint, else those in the folder of its run."""
    try:
        settings = read_checkpoint(folder).meta.get("settings")
        return _of_settings(settings, folder.parents[1] / "hyperparams.yaml")
    except (DamagedCheckpoint, yaml.YAMLError) as error:
        raise PretrainedError(f"pretrained: {folder}: {error}") from error


def _of_settings(settings: object, beside: Path) -> Stated:
    if not isinstance(settings, Mapping):
        return _of_yaml(beside)
    own = {}
    for name, value in settings.items():
        key, _, argument = name.partition(".")
        if key == "separator" and argument:
            is_list = isinstance(value, str) and value.startswith("[")
            own[argument] = yaml.safe_load(value) if is_list else value
    network = str(settings.get("separator", "")).removeprefix("!new:")
    return Stated(network, own, settings.get("sample_rate"))


def _of_yaml(path: Path) -> Stated:
    """Read the YAML of a run of ours, or of SpeechBrain's folder of a SepFormer."""
    try:
        settings = nodes_of(path)
        rate = plain(settings.get("sample_rate"), f"{path}: sample_rate")
        separator = settings.get("separator")
        if isinstance(separator, yaml.MappingNode):
            given = plain(separator, f"{path}: separator")
            return Stated(separator.tag.removeprefix("!new:"), given, rate)
    except ExportError:  # none, or more than plain values: the shapes must tell
        return Stated()
    text = path.read_text(encoding="utf-8")
    names = {"chunk_size": "K", "heads": "nhead"}
    given = {ours: number_in(text, theirs) for ours, theirs in names.items()}
    return Stated("", given, rate if isinstance(rate, int) else None)


def number_in(text: str, name: str) -> int | None:
    """A whole number of a YAML text, read as text: published YAML names classes."""
    found = re.search(rf"^\s*{name}:\s*(\d+)\s*(?:#.*)?$", text, re.MULTILINE)
    return int(found[1]) if found else None


def nodes_of(path: Path) -> dict[str, yaml.Node]:
    """Return the nodes of a run's YAML by key, or raise an ExportError."""
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ExportError(
            f"{path}: cannot be read ({' '.join(str(error).split())}); give the folder "
            "of a run"
        ) from error
    if not isinstance(root, yaml.MappingNode):
        raise ExportError(f"{path}: holds no settings of a run")
    return {str(key.value): node for key, node in root.value}


def averaged(path: Path) -> tuple[int, str | None]:
    """Return how many epochs a run of this YAML averages to test, by which metric."""
    settings = nodes_of(path) if path.is_file() else {}
    names = "average_best", "average_last", "monitor"
    best, last, monitor = (plain(settings.get(name), name) for name in names)
    return (best, monitor or "si_snr") if best else (last or 0, None)


def plain(node: yaml.Node | None, where: str) -> Any:
    """Return the plain data of a node, for `!new:` and `!name:` the arguments."""
    loader = yaml.SafeLoader("")
    try:
        if node is None:
            return None
        if node.tag.startswith("!") and isinstance(node, yaml.MappingNode):
            return loader.construct_mapping(node, deep=True)
        return loader.construct_object(node, deep=True)
    except (TypeError, ValueError, yaml.YAMLError) as error:
        raise ExportError(f"{where}: holds more than plain values") from error
