"""Write the model that a run tested as a folder, and load such folders.

    python export.py RUN --out=FOLDER [--lora=merged|separate|none] [--int8]
                                      [--hub] [--onnx] [--demucs]

The folder holds `model.safetensors`, `config.json` and `README.md`, with
`--lora=separate` also `adapters.safetensors`, and no code: `config.json` names a
network of `modules/models`. `--hub` adds what SpeechBrain needs to load the folder,
for most networks their code. Each run of a list (a bag) gets a folder of its own.

    from modules.weights.export import load_exported
    model = load_exported("FOLDER")

`--pretrained=FOLDER` takes such a folder too, unless its adapters are separate or its
weights are int8 (`modules/weights/quantization.py`), which are for inference.
"""

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import yaml
from torch import nn

from modules.lora.adapters import plain_state_dict
from modules.lora.files import load_lora_weights, save_lora
from modules.models.htdemucs import HTDemucs
from modules.runtime.errors import ExportError
from modules.runtime.files import write_text
from modules.runtime.tensors import save_tensors
from modules.weights.card import model_card
from modules.weights.demucs import bag_file, model_at, read_bag, write_package
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
BAG = "bag.yaml"
OPTIONAL = (ADAPTERS, ONNX_FILE, BAG, *HUB_FILES)
BAG_CARD = """# {0}

Models that separate together, each in a folder with a card; `bag.yaml` weighs them. In
sepbrain's folder: `python separate.py {0} song.wav --out=stems`
"""

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
    demucs: bool = False,
    license: str = "unknown",
) -> Path:
    """Write the model that a run tested as a folder; see `load_exported`.

    Arguments
    ---------
    run : str | Path
        Folder of a run that was tested, or of one of its checkpoints; or a list of such
        runs (a YAML as `bag.yaml`, or the folder of one).
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
    demucs : bool
        Add an HTDemucs as a package of demucs, NAME-CHECKSUM.th.
    license : str
        Of the weights, as Hugging Face's hub names it, such as apache-2.0.

    Raises
    ------
    ExportError, HparamsError, LoraError, PretrainedError
        See `modules.weights.runs.load_tested` and `write_onnx`.
    """
    out = Path(out).absolute()
    taken = {"--int8": int8, "--lora=separate": lora == "separate"}
    added = {"--hub": hub, "--onnx": onnx, "--demucs": demucs}
    given = [name for name, wanted in added.items() if wanted]
    for option in [name for name, wanted in taken.items() if wanted and given]:
        what = "float weights" if int8 else "one set of weights"
        why = f"{given[0]} takes {what}; leave {option} out"
        raise ExportError(f"{given[0]} {option}: {why}")
    if int8 and lora == "separate":
        raise ExportError(
            "--int8 --lora=separate: adapters belong to the very weights that they "
            "were trained on, not to rounded ones; use --lora=merged"
        )
    if (listed := bag_file(Path(run))) is not None:
        own = {"lora": lora, "int8": int8, "hub": hub, "onnx": onnx, "license": license}
        return _export_bag(listed, out, demucs, own)
    known = read_run(run)
    model = load_tested(known, lora)
    rate: int | None = getattr(model, "sample_rate", known.sample_rate)
    if rate is None:
        raise ExportError(f"{known.folder}: its YAML states no sample_rate")
    _write_package(out / out.name, model if demucs else None)
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


def _export_bag(listed: Path, out: Path, demucs: bool, own: dict[str, Any]) -> Path:
    """Export each model of a list, with options of its `own`, then the list."""
    bag = read_bag(listed, model_at)
    places = ["_".join(file.absolute().parts[-2:]) for file in bag.files]
    names = [re.sub(r"\W", "_", place) for place in places]
    if len({*names}) < len(names):
        raise ExportError(f"{listed}: two models would be named alike: {names}")
    for file, name in zip(bag.files, names, strict=True):
        export(file, out / name, **own)
        _write_package(out / name, load_exported(out / name) if demucs else None)
    for name in {WEIGHTS, CONFIG, *OPTIONAL} - {BAG}:
        (out / name).unlink(missing_ok=True)
    write_text(out / BAG, yaml.safe_dump({"models": names, "weights": bag.weights_MS}))
    write_text(out / CARD, BAG_CARD.format(out.name))
    return out


def _write_package(place: Path, model: nn.Module | None) -> None:
    """Write demucs' package of a model, if there is one; remove that of others."""
    ours = re.compile(rf"{re.escape(place.name)}-[0-9a-f]{{8}}\.th").fullmatch
    old = {path for path in place.parent.glob("*.th") if ours(path.name)}
    if model is not None:
        if not isinstance(model, HTDemucs):
            raise ExportError(f"--demucs takes HTDemucs, not {type(model).__name__}")
        old -= {write_package(place, model)}
    for path in old:
        path.unlink()


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
