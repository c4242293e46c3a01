"""Write the model that a run tested as a folder, and load such folders.

    python export.py RUN --out=FOLDER [--lora=merged|separate|none] [--int8]

The folder holds `model.safetensors`, `config.json` and `README.md`, with
`--lora=separate` also `adapters.safetensors`, and no code: `config.json` names a
network of `modules/models`.

    from modules.weights.export import load_exported
    model = load_exported("FOLDER")

`--pretrained=FOLDER` takes such a folder too, unless its adapters are separate or its
weights are int8 (`modules/weights/quantization.py`), which are for inference.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from torch import nn

from modules.lora.adapters import plain_state_dict
from modules.lora.files import load_lora_weights, save_lora
from modules.runtime.errors import ExportError
from modules.runtime.files import write_text
from modules.runtime.tensors import save_tensors
from modules.weights.pretrained import load_pretrained
from modules.weights.quantization import load_int8, quantized_state_dict
from modules.weights.runs import ADAPTERS, load_tested, network_class, read_run

FORMAT = "sepbrain.model.2"
WEIGHTS, CONFIG = "model.safetensors", "config.json"
USAGE = """```python
from modules.weights.export import load_exported

model = load_exported("{run}")  # this folder
```
"""

LOADERS: dict[str, Callable[..., Any]] = {"float": load_pretrained, "int8": load_int8}


def export(
    run: str | Path,
    /,
    out: str | Path,
    lora: Literal["merged", "separate", "none"] = "merged",
    int8: bool = False,
) -> Path:
    """Write the model that a run tested as a folder; see `load_exported`.

    Arguments
    ---------
    run : str | Path
        Folder of a run that was tested.
    out : str | Path
        Folder to write; files of the same names are replaced.
    lora : str
        Adapters go `merged` into the weights, `separate` into a file of their own, or
        nowhere (`none`: the weights that they were trained on).
    int8 : bool
        Round the weights to eight bits, for a file of a quarter of the size.

    Raises
    ------
    ExportError, LoraError, PretrainedError
        See `modules.weights.runs.load_tested`.
    """
    out = Path(out)
    if int8 and lora == "separate":
        raise ExportError(
            "--int8 --lora=separate: adapters belong to the very weights that they "
            "were trained on, not to rounded ones; use --lora=merged"
        )
    known = read_run(run)
    model = load_tested(known, lora)
    state = quantized_state_dict(model) if int8 else plain_state_dict(model)
    save_tensors(out / WEIGHTS, state)
    separate = known.has_adapters and lora == "separate"
    if separate:
        save_lora(model, out / ADAPTERS)
    else:
        (out / ADAPTERS).unlink(missing_ok=True)
    config = {
        "format": FORMAT,
        "model": f"{known.kind.__module__}.{known.kind.__name__}",
        "arguments": known.arguments,
        "sample_rate": known.sample_rate,
        "weights": "int8" if int8 else "float",
        "adapters": ADAPTERS if separate else None,
    }
    write_text(out / CONFIG, json.dumps(config, indent=2) + "\n")
    write_text(out / "README.md", _card(model, config, known.folder, lora))
    return out


def load_exported(folder: str | Path) -> nn.Module:
    """Return the model in a folder of `export`, in evaluation mode; run no code of it.

    Raise an `ExportError` if the configuration is not ours or does not fit its model, a
    `LoraError` or `PretrainedError` if the weights do not fit.
    """
    path = Path(folder) / CONFIG
    try:
        config = read_config(folder)
        weights, kind = config.get("weights", "float"), network_class(config["model"])
        if config["format"] != FORMAT or kind is None or weights not in LOADERS:
            given = config["format"], config["model"], weights
            raise ValueError(", ".join(map(repr, given)))
        model = kind(**config["arguments"]).eval()
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ExportError(
            f"{path}: not a configuration of an exported model ({error}); give a "
            "folder that export.py wrote"
        ) from error
    LOADERS[weights](model, Path(folder) / WEIGHTS)
    if config.get("adapters"):
        load_lora_weights(model, Path(folder) / ADAPTERS)
    return model


def read_config(folder: str | Path) -> dict:
    """Return the configuration in a folder of `export`, as it is."""
    return json.loads((Path(folder) / CONFIG).read_text(encoding="utf-8"))


def _card(model: nn.Module, config: Mapping, run: Path, lora: str) -> str:
    """Return the README of the folder."""
    name, count = type(model).__name__, sum(p.numel() for p in model.parameters())
    parts = [
        f"# {name}: {run.parent.name}/{run.name}",
        f"A separator trained with sepbrain, {count / 1e6:.1f} M parameters, at "
        f"{config['sample_rate']} Hz.",
    ]
    if sources := config["arguments"].get("sources"):
        parts.append(f"Sources: {', '.join(sources)}.")
    if config["weights"] == "int8":
        parts.append(
            "Weights in int8 with a scale per output channel, read as floats. The "
            "scores are those of the weights before rounding."
        )
    if config["adapters"]:
        parts.append(f"Its adapters are in `{ADAPTERS}` and belong to these weights.")
    elif lora == "none":
        parts.append("The weights that adapters were trained on, without these.")
    scores = run / "test_results.json"
    if lora != "none" and scores.is_file():
        metrics = json.loads(scores.read_text(encoding="utf-8"))["metrics"]
        means = {key: entry["mean"] for key, entry in metrics.items()}
        rows = [f"| {k} | {v:.2f} |" for k, v in means.items() if v is not None]
        parts.append("\n".join(["| test | mean, dB |", "|---|---|", *rows]))
    return "\n\n".join([*parts, USAGE.format(run=run.name)])
