"""Write a trained run as a model folder: weights, configuration, card.

    python -m modules.export RUN --out=FOLDER [--lora=merged|separate|none] [--int8]

The folder holds `model.safetensors`, `config.json` and `README.md`, with
`--lora=separate` also `adapters.safetensors`. None of it is code, and neither writing
nor loading runs any: of the run's `hyperparams.yaml` the nodes are read, no object is
made of them, and `config.json` names one of the classes in `MODELS`.

    from modules.export import load_exported
    model = load_exported("FOLDER")

`--pretrained=FOLDER` takes such a folder too, unless its adapters are separate or its
weights are int8 (`modules/weights/quantization.py`), which are for inference.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import yaml
from safetensors.torch import save_file
from torch import nn

from modules.lora.adapters import merge, plain_state_dict
from modules.lora.files import load_lora_weights, save_lora
from modules.models.htdemucs import HTDemucs
from modules.models.mossformer2 import MossFormer2
from modules.models.sepformer import SepFormer
from modules.runtime.errors import (
    DamagedCheckpoint,
    ExportError,
    LoraError,
    PretrainedError,
)
from modules.runtime.files import write_text
from modules.weights.checkpointer import AtomicCheckpointer
from modules.weights.pretrained import load_pretrained
from modules.weights.quantization import dequantized, load_int8, quantized_state_dict
from modules.weights.transfer_sources import load_for_sources

MODELS = {kind.__name__: kind for kind in (HTDemucs, MossFormer2, SepFormer)}

LORA = ("merged", "separate", "none")

LOADERS = {"float": load_pretrained, "int8": load_int8}

FORMAT = "sepbrain.model.1"

WEIGHTS, ADAPTERS, CONFIG = "model.safetensors", "adapters.safetensors", "config.json"


def export(
    run: str | Path, out: str | Path, lora: str = "merged", int8: bool = False
) -> nn.Module:
    """Write the model that a run tested.

    Arguments
    ---------
    run : str | Path
        The run's folder, with `hyperparams.yaml` and a finished test.
    out : str | Path
        Made if it is not there; files of the same names are replaced.
    lora : str
        What becomes of adapters: `merged` into the weights, `separate` in a file of
        their own, `none`: the weights that they were trained on.
    int8 : bool
        Round the weights to eight bits, for a file of a quarter of the size.

    Returns
    -------
    nn.Module
        The model as it was written, in evaluation mode.

    Raises
    ------
    ExportError
        No run, no model of `MODELS`, no checkpoint, adapters asked of a run without.
    LoraError, PretrainedError
        Weights that do not belong together or cannot be read.
    """
    run, out = Path(run), Path(out)
    settings = _settings(run / "hyperparams.yaml")
    kind, arguments = _network(settings, run)
    model = MODELS[kind](**arguments).eval()
    has_adapters = "recipe" in settings and "recipes.lora." in settings["recipe"].tag
    if lora not in LORA:
        raise ExportError(f"--lora={lora}: use one of {', '.join(LORA)}")
    if int8 and lora == "separate":
        raise ExportError(
            "--int8 --lora=separate: adapters belong to the very weights that they "
            "were trained on, not to rounded ones; use --lora=merged"
        )
    if has_adapters:
        _load_base(model, settings)
        if lora != "none":
            load_lora_weights(model, run / ADAPTERS)
        if lora == "merged":
            merge(model)
    elif lora != "merged":
        raise ExportError(f"--lora={lora}: {run} trained no adapters")
    else:
        _load_tested(model, settings, run)

    state = quantized_state_dict(model) if int8 else plain_state_dict(model)
    out.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous().clone() for name, tensor in state.items()}
    save_file(tensors, out / WEIGHTS, {"format": "pt"})
    if int8:
        model.load_state_dict(dequantized(state, out / WEIGHTS))
    separate = has_adapters and lora == "separate"
    if separate:
        save_lora(model, out / ADAPTERS)
    else:
        (out / ADAPTERS).unlink(missing_ok=True)
    config = {
        "format": FORMAT,
        "model": kind,
        "arguments": arguments,
        "sample_rate": _value(settings.get("sample_rate")),
        "weights": "int8" if int8 else "float",
        "adapters": ADAPTERS if separate else None,
    }
    write_text(out / CONFIG, json.dumps(config, indent=2) + "\n")
    write_text(out / "README.md", _card(model, config, run, lora))
    for name in (WEIGHTS, ADAPTERS) if separate else (WEIGHTS,):
        # safetensors writes for nobody but the owner.
        shutil.copymode(out / CONFIG, out / name)
    return model


def load_exported(folder: str | Path) -> nn.Module:
    """The model in a folder of `export`, in evaluation mode; runs no code from it.

    Raises
    ------
    ExportError
        No configuration of ours, or arguments that its model does not take.
    LoraError, PretrainedError
        Weights that do not fit.
    """
    path = Path(folder) / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        weights = config.get("weights", "float")
        kind = config["format"], config["model"], weights
        if kind[0] != FORMAT or kind[1] not in MODELS or weights not in LOADERS:
            raise ValueError(", ".join(map(repr, kind)))
        model = MODELS[config["model"]](**config["arguments"]).eval()
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ExportError(
            f"{path}: no configuration of an exported model ({error}); give a folder "
            "that modules.export wrote"
        ) from error
    LOADERS[weights](model, Path(folder) / WEIGHTS)
    if config.get("adapters"):
        load_lora_weights(model, Path(folder) / ADAPTERS)
    return model


def main(arguments: list[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m modules.export", description="Write a run as a model folder."
    )
    parser.add_argument("run", help="folder of a run, with hyperparams.yaml")
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--lora", default="merged", choices=LORA)
    parser.add_argument("--int8", action="store_true", help="a quarter of the size")
    given = parser.parse_args(arguments)
    model = export(given.run, given.out, given.lora, given.int8)
    size = sum(path.stat().st_size for path in Path(given.out).glob("*.safetensors"))
    print(f"{type(model).__name__}, {size / 1e6:.1f} MB of weights: {given.out}")


# ---------------------------------------------------------------- the run


def _settings(path: Path) -> dict[str, yaml.Node]:
    """The nodes of a run's YAML, of which no object is made."""
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader)
    except (OSError, yaml.YAMLError) as error:
        raise ExportError(
            f"{path}: cannot be read ({' '.join(str(error).split())}); give the folder "
            "of a run"
        ) from error
    if not isinstance(root, yaml.MappingNode):
        raise ExportError(f"{path}: holds no settings of a run")
    return {key.value: value for key, value in root.value}


def _value(node: yaml.Node | None) -> object:
    """Plain data of a node; of `!new:` and `!name:` only the arguments."""
    loader = yaml.SafeLoader("")
    if node is None:
        return None
    if node.tag.startswith("!") and isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    return loader.construct_object(node, deep=True)


def _network(settings: Mapping[str, yaml.Node], run: Path) -> tuple[str, dict]:
    """Class and arguments of the separator."""
    node = settings.get("separator")
    kind = "" if node is None else node.tag.rpartition(".")[2]
    known = kind in MODELS and node.tag == f"!new:{MODELS[kind].__module__}.{kind}"
    if not known:
        raise ExportError(
            f"{run}: its separator is {node.tag if node else 'not named'}; known are "
            + ", ".join(MODELS)
        )
    try:
        arguments = _value(node) if isinstance(node, yaml.MappingNode) else {}
    except yaml.YAMLError as error:
        raise ExportError(f"{run}: an argument of {kind} is no plain value") from error
    arguments.pop("activation_checkpointing", None)  # of training only
    return kind, arguments


def _load_base(model: nn.Module, settings: Mapping[str, yaml.Node]) -> None:
    """The weights that adapters were trained on, as the run loaded them."""
    folder, own = _value(settings["pretrained"]), settings.get("load_pretrained")
    if own is None:
        load_pretrained(model, folder)
    else:
        load_for_sources(model, folder, **_value(own))


def _load_tested(
    model: nn.Module, settings: Mapping[str, yaml.Node], run: Path
) -> None:
    """The best checkpoint's weights, averaged ones where the run tested these."""
    if number := _value(settings.get("average_last")):
        raise ExportError(
            f"{run}: tested the mean of {number} checkpoints, which is not exported; "
            "test the best one first: --test_only --average_last=0"
        )
    checkpointer = AtomicCheckpointer(run / "save")
    monitor = _value(settings.get("monitor")) or "si_snr"
    found = checkpointer.find_checkpoint(max_key=monitor)
    found = found or checkpointer.find_checkpoint()
    if found is None:
        raise ExportError(f"{run}/save: no checkpoint; train first")
    load_pretrained(model, found.path)


def _card(model: nn.Module, config: Mapping, run: Path, lora: str) -> str:
    """The README of the folder."""
    count = sum(p.numel() for p in model.parameters()) / 1e6
    lines = [
        f"# {config['model']}: {run.parent.name}/{run.name}",
        "",
        f"A separator trained with sepbrain, {count:.1f} M parameters, at "
        f"{config['sample_rate']} Hz.",
    ]
    if sources := config["arguments"].get("sources"):
        lines += ["", "Sources: " + ", ".join(sources) + "."]
    if config["weights"] == "int8":
        lines += [
            "",
            "Weights in int8 with a scale per output channel, read as floats. The "
            "scores are those of the weights before rounding.",
        ]
    if hasattr(model, "lora_config"):
        lines += ["", f"Its adapters are in `{ADAPTERS}` and belong to these weights."]
    elif lora == "none":
        lines += ["", "The weights that adapters were trained on, without these."]
    scores = run / "test_results.json"
    if lora != "none" and scores.is_file():
        metrics = json.loads(scores.read_text(encoding="utf-8"))["metrics"]
        lines += ["", "| test | mean, dB |", "|---|---|"]
        lines += [
            f"| {name} | {entry['mean']:.2f} |"
            for name, entry in metrics.items()
            if entry["mean"] is not None
        ]
    lines += [
        "",
        "```python",
        "from modules.export import load_exported",
        "",
        f'model = load_exported("{run.name}")  # this folder',
        "```",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ExportError, LoraError, PretrainedError, DamagedCheckpoint) as error:
        sys.exit(f"error: {error}")
