"""Write the model that a run tested as a folder, and load such folders.

    python export.py RUN --out=FOLDER [--lora=merged|separate|none] [--int8]
                                      [--hub] [--onnx]

The folder holds `model.safetensors`, `config.json` and `README.md`, with
`--lora=separate` also `adapters.safetensors`, and no code: `config.json` names a
network of `modules/models`. `--hub` adds what SpeechBrain needs to load the folder,
for most networks their code (`modules/weights/speechbrain_files.py`).

    from modules.weights.export import load_exported
    model = load_exported("FOLDER")

`--pretrained=FOLDER` takes such a folder too, unless its adapters are separate or its
weights are int8 (`modules/weights/quantization.py`), which are for inference.
"""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from torch import nn

from modules.lora.adapters import plain_state_dict
from modules.lora.files import load_lora_weights, save_lora
from modules.runtime.errors import ExportError
from modules.runtime.files import write_text
from modules.runtime.tensors import save_tensors
from modules.weights.card import model_card
from modules.weights.onnx_file import ONNX_FILE, write_onnx
from modules.weights.pretrained import load_pretrained
from modules.weights.quantization import load_int8, quantized_state_dict
from modules.weights.runs import (
    ADAPTERS,
    load_tested,
    network_class,
    read_run,
    source_names,
)
from modules.weights.speechbrain_files import HUB_FILES, write_hub_files

FORMAT = "sepbrain.model.2"
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
OPTIONAL = (ADAPTERS, ONNX_FILE, *HUB_FILES)

logger = logging.getLogger(__name__)

LOADERS: dict[str, Callable[..., Any]] = {"float": load_pretrained, "int8": load_int8}


def export(
    run: str | Path,
    /,
    out: str | Path,
    lora: Literal["merged", "separate", "none"] = "merged",
    int8: bool = False,
    hub: bool = False,
    onnx: bool = False,
    license: str = "unknown",
) -> Path:
    """Write the model that a run tested as a folder; see `load_exported`.

    Arguments
    ---------
    run : str | Path
        Folder of a run that was tested, or of one of its checkpoints.
    out : str | Path
        Folder to write; what an export wrote there before is replaced.
    lora : str
        Adapters go `merged` into the weights, `separate` into a file of their own, or
        nowhere (`none`: the weights that they were trained on).
    int8 : bool
        Round the weights to eight bits, for a file of a quarter of the size.
    hub : bool
        Add the files with which SpeechBrain loads the folder.
    onnx : bool
        Add the network as model.onnx.
    license : str
        Of the weights, as Hugging Face's hub names it, such as apache-2.0.

    Raises
    ------
    ExportError, HparamsError, LoraError, PretrainedError
        See `modules.weights.runs.load_tested` and `write_onnx`.
    """
    out = Path(out).absolute()
    taken = {"--int8": int8, "--lora=separate": lora == "separate"}
    for option in [name for name, given in taken.items() if given and (hub or onnx)]:
        other = "--hub" if hub else "--onnx"
        what = "float weights" if int8 else "one set of weights"
        raise ExportError(f"{other} {option}: {other} takes {what}; leave {option} out")
    if int8 and lora == "separate":
        raise ExportError(
            "--int8 --lora=separate: adapters belong to the very weights that they "
            "were trained on, not to rounded ones; use --lora=merged"
        )
    known = read_run(run)
    model = load_tested(known, lora)
    rate: int | None = getattr(model, "sample_rate", known.sample_rate)
    if rate is None:
        raise ExportError(f"{known.folder}: its YAML states no sample_rate")
    written = {ADAPTERS} if known.has_adapters and lora == "separate" else set()
    config = {
        "format": FORMAT,
        "model": f"{known.kind.__module__}.{known.kind.__name__}",
        "arguments": known.arguments,
        "sample_rate": rate,
        "weights": "int8" if int8 else "float",
        "adapters": ADAPTERS if written else None,
        "lora": lora,
    }
    if onnx:
        names = {"sample_rate": rate, "sources": source_names(model, rate)}
        difference = write_onnx(out / ONNX_FILE, model, names)
        logger.info("%s: %.1e of the peak from torch", ONNX_FILE, difference)
        written.add(ONNX_FILE)
    state = quantized_state_dict(model) if int8 else plain_state_dict(model)
    save_tensors(out / WEIGHTS, state)
    if ADAPTERS in written:
        save_lora(model, out / ADAPTERS)
    if hub:
        written |= write_hub_files(out, model, known.arguments, rate)
    for name in set(OPTIONAL) - written:  # they would belong to other weights
        (out / name).unlink(missing_ok=True)
    write_text(out / CONFIG, json.dumps(config, indent=2) + "\n")
    write_text(out / CARD, model_card(known, model, config, out, license, hub, onnx))
    if license == "unknown":
        logger.info("%s: the licence is unknown; --license=ID says it", CARD)
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
