"""Read the folder of a run: which network it trained, and the weights that it tested.

Nothing in the folder is executed: `hyperparams.yaml` is read as data, and a class is
used only if it is a network that a file of `modules/models` defines.
"""

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from speechbrain.utils.checkpoints import METAFNAME, Checkpoint
from torch import nn

import modules.models
from modules.lora.adapters import merge
from modules.lora.files import load_lora_weights
from modules.runtime.errors import ExportError
from modules.weights.checkpoint_files import read_checkpoint
from modules.weights.checkpointer import best_checkpoint, mean_of_epochs
from modules.weights.pretrained import load_pretrained, load_state, read_averages
from modules.weights.stated import averaged, nodes_of, plain

SETTINGS, ADAPTERS = "hyperparams.yaml", "adapters.safetensors"

LORA = ("merged", "separate", "none")


@dataclass(frozen=True)
class Run:
    """A run's network (`kind` and its `arguments`) and the nodes of its YAML.

    `notes` are what `train.py` says at the head of the YAML; `checkpoint` is set if it
    was this one that was asked for, and not the run.
    """

    folder: Path
    kind: type[nn.Module]
    arguments: dict[str, Any]
    sample_rate: int | None
    settings: Mapping[str, yaml.Node]
    notes: Mapping[str, str]
    checkpoint: Path | None = None

    @property
    def has_adapters(self) -> bool:
        """Return whether the run trained low-rank adapters."""
        recipe = self.settings.get("recipe")
        return recipe is not None and "recipes.lora." in recipe.tag

    def value(self, name: str) -> Any:
        """Return a setting as plain data, for an object its arguments."""
        return plain(self.settings.get(name), f"{self.folder}: {name}")

    def said(self, name: str) -> str:
        """Return a setting as the YAML writes it; "" for none, and for objects."""
        node: Any = self.settings.get(name)
        is_plain = isinstance(node, yaml.ScalarNode) and node.tag.startswith("tag:")
        return node.value if is_plain and not node.tag.endswith(":null") else ""

    def make_network(self) -> nn.Module:
        """Return the network with its initial weights, in evaluation mode."""
        try:
            return self.kind(**self.arguments).eval()
        except (TypeError, ValueError) as error:
            raise ExportError(f"{self.folder}: separator: {error}") from error


def read_run(folder: str | Path) -> Run:
    """Read the settings in the folder of a run, in its YAML, or above a checkpoint.

    Raise an `ExportError` if they cannot be read or name no network of ours.
    """
    path, checkpoint = Path(folder), None
    if (path / METAFNAME).is_file():
        checkpoint = path
        above = [p for p in path.resolve().parents if (p / SETTINGS).is_file()]
        path = above[0] if above else path
    path = path if path.is_file() else path / SETTINGS
    settings = nodes_of(path)
    separator = settings.get("separator")
    tag = "missing" if separator is None else separator.tag
    kind = network_class(tag.removeprefix("!new:"))
    if kind is None:
        raise ExportError(
            f"{path}: its separator is {tag}; only networks in modules/models are "
            "read: put the file of the network there, and name it so in the YAML"
        )
    # A node without arguments is a scalar.
    has_arguments = isinstance(separator, yaml.MappingNode)
    arguments = plain(separator, f"{path}: separator") if has_arguments else {}
    for name in ("activation_checkpointing", "auxiliary_heads"):  # matter in training
        arguments.pop(name, None)
    sample_rate = plain(settings.get("sample_rate"), f"{path}: sample_rate")
    text = path.read_text(encoding="utf-8")
    notes = dict(re.findall(r"^# (command|versions): (.*)$", text, re.M))
    return Run(path.parent, kind, arguments, sample_rate, settings, notes, checkpoint)


def load_tested(folder: str | Path | Run, lora: str = "merged") -> nn.Module:
    """Return the network of a run in evaluation mode with the weights that it tested.

    These are the best checkpoint's, its averages, or the mean of the newest or best
    epochs (`average_last`, `average_best`), as the run tested. Adapters are
    `merged` into the weights, kept `separate` beside them, or left out (`none`).
    Raise an `ExportError`, `LoraError` or `PretrainedError` if there are none that fit,
    an `HparamsError` if there are too few.
    """
    run = folder if isinstance(folder, Run) else read_run(folder)
    if lora not in LORA:
        raise ExportError(f"--lora={lora}: use one of {', '.join(LORA)}")
    if lora != "merged" and not run.has_adapters:
        raise ExportError(f"--lora={lora}: {run.folder} trained no adapters")
    model = run.make_network()
    if not run.has_adapters:
        _load_tested(model, run)
        return model
    how = run.value("load_pretrained") or {}
    how.pop("segment_seconds", None)  # of runs before 2026-11-26
    load_pretrained(model, run.value("pretrained"), **how)
    if lora != "none" and (one := run.checkpoint) is not None:
        files = read_checkpoint(one, check_digests=True).paramfiles
        load_lora_weights(model, files["adapters"])
        model.load_state_dict(read_averages(one)[0], strict=False)
    elif lora != "none":
        load_lora_weights(model, run.folder / ADAPTERS)
    return merge(model) if lora == "merged" else model


def network_class(name: object) -> type[nn.Module] | None:
    """Return the class `modules.models.FILE.CLASS`; None for any other name.

    >>> network_class("modules.models.sepformer.SepFormer").__name__
    'SepFormer'
    >>> network_class("modules.models.sepformer.nn.Linear") is None
    True
    """
    match = re.fullmatch(r"(modules\.models\.([a-z]\w*))\.([A-Z]\w*)", str(name))
    folder = Path(modules.models.__file__).parent
    if match is None or not (folder / f"{match[2]}.py").is_file():
        return None
    kind = getattr(importlib.import_module(match[1]), match[3], None)
    is_network = isinstance(kind, type) and issubclass(kind, nn.Module)
    # The module must define the class: a name that it imports is foreign.
    return kind if is_network and kind.__module__ == match[1] else None


@torch.no_grad()
def source_names(network: nn.Module, sample_rate: int) -> list[str]:
    """Return the names of a network's estimates; voices are numbered: s1, s2."""
    if (names := getattr(network, "sources", None)) is not None:
        return list(names)
    count = network(torch.zeros(1, sample_rate // 10)).shape[1]
    return [f"s{number}" for number in range(1, count + 1)]


def tested_checkpoint(run: Run) -> Checkpoint:
    """Return the best checkpoint by the run's monitor, or else the newest."""
    found = best_checkpoint(_saved(run), run.value("monitor"))
    if found is None:
        raise ExportError(f"{_saved(run)}: no checkpoint; train first")
    return found


def _saved(run: Run) -> Path:
    """Return where the checkpoints are; the run may have been moved since."""
    beside, stated = run.folder / "save", run.said("save_folder")
    return beside if beside.is_dir() or not stated else Path(stated)


def _load_tested(model: nn.Module, run: Run) -> None:
    """Load the mean that was tested, or else one checkpoint."""
    number, metric = averaged(run.folder / SETTINGS)
    if run.checkpoint is None and number:
        mean = mean_of_epochs(_saved(run), number, metric)
        load_state(model, mean, run.folder)
        return
    load_pretrained(model, run.checkpoint or tested_checkpoint(run).path)
