"""Files with which a stock SpeechBrain loads an exported model.

A SepFormer gets the YAML of SpeechBrain's own classes. Any other network brings its
code: `custom.py` is the network's one file with `hub_interface.py` after it.
"""

import ast
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor, nn

from modules.models.sepformer import SepFormer
from modules.runtime.files import write_text, write_whole
from modules.weights.pretrained import PARTS
from modules.weights.runs import SETTINGS, source_names

CODE, WHOLE = "custom.py", "separator.ckpt"
HUB_FILES = (SETTINGS, CODE, WHOLE, *(f"{part}.ckpt" for part in PARTS))

CHUNK_SECONDS = 16.0  # of speech, as separate.py has it

# The YAML of SpeechBrain's own classes of a SepFormer.
STOCK = Path(__file__).with_name("stock_sepformer.yaml")


class Loader(NamedTuple):
    """Module, name and method of what loads a folder in SpeechBrain."""

    module: str
    name: str
    call: str


def write_hub_files(
    folder: Path, model: nn.Module, arguments: Mapping[str, Any], sample_rate: int
) -> set[str]:
    """Write the files beside those of an export, and return their names.

    `arguments` are those that the model was made with.
    """
    state = {key: value.detach().cpu() for key, value in model.state_dict().items()}
    if isinstance(model, SepFormer):
        text, modules = _stock(model, arguments, sample_rate), list(PARTS)
        for part in PARTS:
            own = {k: v for k, v in state.items() if k.startswith(f"{part}.")}
            own = {key.removeprefix(f"{part}."): v for key, v in own.items()}
            _save(folder / f"{part}.ckpt", own)
    else:
        text, modules = _custom(model, arguments, sample_rate), ["separator"]
        write_text(folder / CODE, code_of(type(model)))
        _save(folder / WHOLE, state)
    listed = "".join(f"    {name}: !ref <{name}>\n" for name in modules)
    loader = "!new:speechbrain.utils.parameter_transfer.Pretrainer"
    listed += f"pretrainer: {loader}\n    loadables: !ref <modules>\n"
    head = "# Made by sepbrain's export.py; README.md says how to load it.\n"
    write_text(folder / SETTINGS, f"{head}{text}modules:\n{listed}")
    code = set() if loaded_by(model).call else {CODE}
    return {SETTINGS, *code, *(f"{name}.ckpt" for name in modules)}


def loaded_by(model: nn.Module) -> Loader:
    """Return what loads the folder of a model in SpeechBrain."""
    if isinstance(model, SepFormer):
        return Loader("separation", "SepformerSeparation", ".from_hparams")
    return Loader("interfaces", "foreign_class", "")


def code_of(kind: type[nn.Module]) -> str:
    """Return the text of `custom.py` for a network: its file, and the interface."""
    network = Path(inspect.getfile(kind)).read_text(encoding="utf-8")
    path = Path(__file__).with_name("hub_interface.py")
    interface = path.read_text(encoding="utf-8").splitlines(keepends=True)
    first = ast.parse("".join(interface)).body[1].lineno  # behind the docstring
    line = "# ---------------------------------------------------------------- "
    return f"{network}\n\n{line}SpeechBrain\n\n{''.join(interface[first - 1 :])}"


def _stock(model: nn.Module, arguments: Mapping[str, Any], sample_rate: int) -> str:
    given = inspect.signature(SepFormer).bind(**arguments)
    given.apply_defaults()
    values = given.arguments | {"sample_rate": sample_rate}
    values["sources"] = source_names(model, sample_rate)
    values["channels"] = values["channels"] or values["encoder_channels"]
    values["stride"] = values["kernel_size"] // 2
    return STOCK.read_text(encoding="utf-8").format(**values)


def _custom(model: Any, arguments: Mapping[str, Any], sample_rate: int) -> str:
    is_music = hasattr(model, "segment")
    seconds = model.segment if is_music else CHUNK_SECONDS
    settings = {
        "sample_rate": sample_rate,
        "chunk_samples": int(seconds * sample_rate),
        "audio_channels": getattr(model, "audio_channels", 2) if is_music else None,
        "sources": source_names(model, sample_rate),
    }
    body = yaml.safe_dump({"separator": dict(arguments)}, sort_keys=False)
    body = body.partition("\n")[2] if arguments else ""
    return (
        yaml.safe_dump(settings, sort_keys=False)
        + f"separator: !new:custom.{type(model).__name__}\n"
        + body
    )


def _save(path: Path, state: Mapping[str, Tensor]) -> None:
    with write_whole(path) as partial:
        torch.save({key: value.clone() for key, value in state.items()}, partial)
