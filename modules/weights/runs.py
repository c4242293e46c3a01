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

import yaml
from torch import nn

import modules.models
from modules.lora.adapters import merge
from modules.lora.files import load_lora_weights
from modules.runtime.errors import ExportError
from modules.weights.checkpointer import best_checkpoint
from modules.weights.pretrained import load_pretrained
from modules.weights.stated import nodes_of, plain

SETTINGS, ADAPTERS = "hyperparams.yaml", "adapters.safetensors"

LORA = ("merged", "separate", "none")


@dataclass(frozen=True)
class Run:
    """A run's network (`kind` and its `arguments`) and the nodes of its YAML."""

    folder: Path
    kind: type[nn.Module]
    arguments: dict[str, Any]
    sample_rate: int | None
    settings: Mapping[str, yaml.Node]

    @property
    def has_adapters(self) -> bool:
        """Return whether the run trained low-rank adapters."""
        recipe = self.settings.get("recipe")
        return recipe is not None and "recipes.lora." in recipe.tag

    def value(self, name: str) -> Any:
        """Return a setting as plain data, for an object its arguments."""
        return plain(self.settings.get(name), f"{self.folder}: {name}")

    def make_network(self) -> nn.Module:
        """Return the network with its initial weights, in evaluation mode."""
        try:
            return self.kind(**self.arguments).eval()
        except (TypeError, ValueError) as error:
            raise ExportError(f"{self.folder}: separator: {error}") from error


def read_run(folder: str | Path) -> Run:
    """Read the settings in the folder of a run, or in its YAML.

    Raise an `ExportError` if they cannot be read or name no network of ours.
    """
    path = Path(folder)
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
    arguments.pop("activation_checkpointing", None)  # matters in training only
    sample_rate = plain(settings.get("sample_rate"), f"{path}: sample_rate")
    return Run(path.parent, kind, arguments, sample_rate, settings)


def load_tested(folder: str | Path | Run, lora: str = "merged") -> nn.Module:
    """Return the network of a run in evaluation mode with the weights that it tested.

    These are the best checkpoint's, or its averages if the run tested these. Adapters
    are `merged` into the weights, kept `separate` beside them, or left out (`none`).
    Raise an `ExportError`, `LoraError` or `PretrainedError` if there are none that fit.
    """
    run = folder if isinstance(folder, Run) else read_run(folder)
    if lora not in LORA:
        raise ExportError(f"--lora={lora}: use one of {', '.join(LORA)}")
    if lora != "merged" and not run.has_adapters:
        raise ExportError(f"--lora={lora}: {run.folder} trained no adapters")
    model = run.make_network()
    if not run.has_adapters:
        load_pretrained(model, _tested_checkpoint(run))
        return model
    how = run.value("load_pretrained") or {}
    how.pop("segment_seconds", None)  # of runs before 2026-11-26
    load_pretrained(model, run.value("pretrained"), **how)
    if lora != "none":
        load_lora_weights(model, run.folder / ADAPTERS)
    return merge(model) if lora == "merged" else model


def network_class(name: object) -> type[nn.Module] | None:
    """Return the class `modules.models.FILE.CLASS`; None for any other name.

    Example
    -------
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


def _tested_checkpoint(run: Run) -> Path:
    """Return the best checkpoint by the run's monitor, or else the newest."""
    if number := run.value("average_last"):
        raise ExportError(
            f"{run.folder}: tested the mean of {number} checkpoints, which is not "
            "kept; test the best one first: --test_only --average_last=0"
        )
    found = best_checkpoint(run.folder / "save", run.value("monitor"))
    if found is None:
        raise ExportError(f"{run.folder}/save: no checkpoint; train first")
    return found.path
