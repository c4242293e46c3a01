"""Packages of demucs: what its files hold, and how their weights fit our HTDemucs.

demucs publishes weights with their class and the arguments of its constructor: in a
pickle (`.th`), which holds the class object itself, or in the metadata of a safetensors
file. No class is looked up: known names in a pickle are read as `StandIn`s. A file at
fault raises a `ValueError`, whose message goes on from the name of the file.
"""

import hashlib
import io
import json
import logging
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import yaml
from torch import Tensor

from modules.models import htdemucs
from modules.models.htdemucs import HTDemucs
from modules.runtime.errors import PretrainedError
from modules.runtime.files import write_whole

# Names in the pickles of demucs: networks, lengths, and numbers of a training log.
STAND_INS = (
    "demucs.htdemucs.HTDemucs",
    "demucs.hdemucs.HDemucs",
    "demucs.demucs.Demucs",
    "fractions.Fraction",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
)

# The constructor of demucs.htdemucs.HTDemucs has these defaults.
DEMUCS_DEFAULTS = {
    "audio_channels": 2,
    "channels": 48,
    "channels_time": None,
    "growth": 2,
    "depth": 4,
    "nfft": 4096,
    "dconv_mode": 1,
    "dconv_comp": 8,
    "dconv_depth": 2,
    "bottom_channels": 0,
    "t_layers": 5,
    "t_heads": 8,
    "t_dropout": 0.0,
    "samplerate": 44100,
    "segment": 10,
}

# Arguments that have another name here.
NAMES = {"samplerate": "sample_rate", "segment": "segment_seconds"}

# Its other arguments that change the output, and the values that make this network.
DEMUCS_FIXED = {
    **dict.fromkeys(("cac", "rewrite", "t_norm_in", "t_norm_first"), True),
    **dict.fromkeys(("t_norm_out", "t_layer_scale", "t_gelu"), True),
    "use_train_segment": True,
    **dict.fromkeys(("t_norm_in_group", "t_group_norm", "t_cross_first"), False),
    **dict.fromkeys(("t_sparse_self_attn", "t_sparse_cross_attn"), False),
    **dict.fromkeys(("context_enc", "t_sin_random_shift"), 0),
    **{"multi_freqs": None, "context": 1, "norm_starts": 4, "t_emb": "sin"},
    **{"t_hidden_scale": 4.0, "t_weight_pos_embed": 1.0},
    "freq_emb": htdemucs.EMBEDDING_WEIGHT,
    "emb_scale": htdemucs.EMBEDDING_SCALE,
    "kernel_size": htdemucs.KERNEL,
    "stride": htdemucs.STRIDE,
    "t_max_period": htdemucs.MAX_PERIOD,
}

# Arguments without effect once the weights are there and the others are as above.
DEMUCS_IGNORED = {
    *("wiener_iters", "end_iters", "wiener_residual", "multi_freqs_depth"),
    *("emb_smooth", "time_stride", "norm_groups", "dconv_init", "rescale"),
    *("t_max_positions", "t_weight_decay", "t_lr", "t_cape_mean_normalize"),
    *("t_cape_augment", "t_cape_glob_loc_scale", "t_mask_type", "t_sparsity"),
    *("t_mask_random_seed", "t_sparse_attn_window", "t_global_window"),
    "t_auto_sparsity",
}

State = dict[str, Tensor]

logger = logging.getLogger(__name__)


class StandIn:
    """An object of a pickle: keeps its arguments and does nothing."""

    name = ""
    arguments: tuple = ()

    def __new__(cls, *arguments: object) -> "StandIn":
        made = super().__new__(cls)
        made.arguments = arguments
        return made

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


@dataclass(frozen=True)
class Package:
    """Weights with the class and the arguments of the model that they belong to."""

    klass: str
    args: list
    kwargs: dict
    state: State


@dataclass(frozen=True)
class Bag:
    """The packages of models that estimate together, and how much each one counts.

    `weights_MS` has a row for each model, with a number for each source in the models'
    order; None counts them alike. The published bags weigh by one-hot rows.
    """

    files: list[Path]
    weights_MS: list[list[float]] | None = None
    segment_seconds: float | None = None


def read_bag(path: str | Path, find: Callable[[Path, str], Path] | None = None) -> Bag:
    """Read demucs' YAML of a bag, as `htdemucs_ft.yaml`; its models lie beside it.

    `find(path, name)` finds what a name of a model means, if not that. Raise a
    `PretrainedError` if it is no such file or lacks a model.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        names, weights_MS = content["models"], content.get("weights")
        # A published file must not choose other files of this computer.
        allowed = r"\w+(/\w+)*" if find is None else ".+"
        if not names or not all(re.fullmatch(allowed, name) for name in names):
            raise ValueError(f"models: {names}")
        if weights_MS is not None:
            weights_MS = [[float(value) for value in row] for row in weights_MS]
            ours = all(0 <= v < math.inf for row in weights_MS for v in row)
            ours = ours and all(map(any, zip(*weights_MS, strict=True)))
            if len(weights_MS) != len(names) or not ours:
                raise ValueError(f"weights: {weights_MS}")
        seconds = content.get("segment") and float(content["segment"])
    except (OSError, AttributeError, LookupError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise PretrainedError(f"{path}: no bag of demucs' models ({reason})") from error
    except yaml.YAMLError as error:
        raise PretrainedError(f"{path}: is not valid YAML") from error
    find = find or model_beside
    return Bag([find(path, name) for name in names], weights_MS, seconds)


def bag_file(place: Path) -> Path | None:
    """Return the file that lists several models, if the place is or holds one."""
    if place.is_file():
        return place if place.suffix in (".yaml", ".yml", ".json") else None
    lists = re.compile(rb"^models\s*:", re.MULTILINE).search
    found = [path for path in place.glob("*.yaml") if lists(path.read_bytes())]
    return found[0] if len(found) == 1 else None


def model_at(path: Path, name: str) -> Path:
    """Return what a list of one's own means by a name: a path, or as in a bag."""
    model = path.parent / Path(name).expanduser()
    return model if model.exists() else model_beside(path, name)


def model_beside(path: Path, name: str) -> Path:
    """Return a folder, or the package SIGNATURE[-CHECKSUM].th or .safetensors."""
    if (path.parent / name).is_dir():
        return path.parent / name
    for file in sorted(path.parent.glob(f"{name}*")):
        if re.fullmatch(rf"{name}(-\w+)?\.(th|safetensors)", file.name):
            return file
    raise PretrainedError(f"{path}: lacks its model {name}.th beside it")


def stand_ins() -> list[tuple[type, str]]:
    """Return a stand-in for each known name, as `safe_globals` of torch takes them."""
    return [(type("StandIn", (StandIn,), {"name": n}), n) for n in STAND_INS]


def package_of_pickle(content: Mapping) -> Package:
    """Return the package in a pickle that was read with `stand_ins`."""
    klass, state = content["klass"], content.get("state")
    if not (isinstance(klass, type) and issubclass(klass, StandIn)):
        raise ValueError("names no class of demucs")
    if isinstance(state, dict) and "__quantized" in state:
        raise ValueError("is quantized, which is not read")
    args, kwargs = content.get("args", ()), content.get("kwargs", {})
    return _package(klass.name, args, kwargs, state)


def package_of_metadata(metadata: Mapping[str, str], state: State) -> Package:
    """Return the package in a safetensors file, whose arguments are JSON."""
    if "structure" in metadata:
        raise ValueError("is quantized, which is not read")
    try:
        args, kwargs = (json.loads(metadata[name]) for name in ("args", "kwargs"))
    except (KeyError, ValueError, RecursionError) as error:
        raise ValueError(
            f"has no arguments of a model in its metadata ({error})"
        ) from error
    return _package(metadata["klass"], args, kwargs, state)


def _package(klass: str, args: object, kwargs: object, state: Any) -> Package:
    """Return a package with plain arguments."""
    try:
        args, kwargs = _plain(args), _plain(kwargs)
    except (ValueError, RecursionError) as error:
        message = f"has arguments that are not plain values ({error})"
        raise ValueError(message) from error
    if not (isinstance(args, list) and isinstance(kwargs, dict)):
        raise ValueError("has no list and dict of arguments")
    return Package(klass, args, kwargs, state)


def _plain(value: object) -> object:
    """Return the value in numbers, texts, lists, dicts and fractions, or raise."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        if value.get("_type") == "fraction":
            return _fraction(value.get("numerator"), value.get("denominator"))
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, StandIn) and value.name == "fractions.Fraction":
        return _fraction(*value.arguments)
    raise ValueError(f"it holds a {getattr(value, 'name', type(value).__name__)}")


def _fraction(*arguments: Any) -> Fraction:
    """Return a fraction of two integers, or of the text that Python 3.11 pickles."""
    if len(arguments) == 1 and re.fullmatch(r"\d{1,18}(/\d{1,18})?", str(arguments[0])):
        arguments = tuple(int(part) for part in str(arguments[0]).split("/"))
    if not all(isinstance(value, int) for value in arguments) or not all(arguments):
        raise ValueError(f"it holds a fraction of {str(arguments)[:80]}")
    numerator, denominator = (*arguments, 1)[:2]
    return Fraction(numerator, denominator)


def network_of(package: Package, *_: Path) -> HTDemucs:
    """Return the network that a package describes, with its initial weights."""
    try:
        return HTDemucs(**arguments_of(package))
    except TypeError as error:
        raise ValueError(f"has arguments of another type ({error})") from error


def arguments_of(package: Package) -> dict[str, Any]:
    """Return what a package says of its network, as arguments of our HTDemucs.

    Raise a ValueError for another class, or arguments that make no HTDemucs of ours.
    """
    if package.klass != "demucs.htdemucs.HTDemucs":
        raise ValueError(f"holds a {package.klass}, not a demucs.htdemucs.HTDemucs")
    args, given = package.args, dict(package.kwargs)
    if len(args) > 1 or (args and "sources" in given):
        raise ValueError(f"has {len(args)} positional arguments; known is sources")
    sources = args[0] if args else given.pop("sources", None)
    if not (isinstance(sources, (list, tuple)) and sources):
        raise ValueError("does not name its sources")
    arguments = {n: given.pop(n, default) for n, default in DEMUCS_DEFAULTS.items()}
    if arguments.pop("channels_time") is not None:
        raise ValueError("has channels_time, which is not supported")
    differ = [
        f"{name}={value} (supported is {needed})"
        for name, needed in DEMUCS_FIXED.items()
        if ((value := given.pop(name, needed)) or None) != (needed or None)
    ]
    if differ:
        raise ValueError(f"holds another kind of HTDemucs: {'; '.join(differ)}")
    if unknown := sorted(given.keys() - DEMUCS_IGNORED):
        # demucs itself drops the arguments that its constructor does not have.
        logger.warning("Unknown arguments in the package: %s", ", ".join(unknown))
    named = {NAMES.get(name, name): value for name, value in arguments.items()}
    return {"sources": list(map(str, sources)), **named}


def write_package(place: Path, model: HTDemucs) -> Path:
    """Write demucs' package of a model, PLACE-CHECKSUM.th, and return its path."""
    names = {ours: theirs for theirs, ours in NAMES.items()}
    given = {names.get(name, name): value for name, value in model.config.items()}
    given |= {"sources": model.sources, "segment": model.segment}
    state = {key: value.detach().cpu() for key, value in model.state_dict().items()}
    # A pickle names the class, which must be found where its name says.
    kind = type("HTDemucs", (), {"__module__": "demucs.htdemucs"})
    found = dict.fromkeys((kind.__module__, "demucs"), SimpleNamespace(HTDemucs=kind))
    content, file = {"klass": kind, "args": (), "kwargs": given}, io.BytesIO()
    with mock.patch.dict(sys.modules, found):
        torch.save({**content, "state": state}, file)
    checksum = hashlib.sha256(file.getvalue()).hexdigest()[:8]
    path = place.with_name(f"{place.name}-{checksum}.th")
    with write_whole(path) as partial:
        partial.write_bytes(file.getvalue())
    return path


def output_layers(model: HTDemucs) -> dict[str, int]:
    """Return the tensors with a block of channels per source, and their dimension."""
    last = len(model.decoder) - 1
    return {
        f"{branch}.{last}.conv_tr.{name}": dim
        for branch in ("decoder", "tdecoder")
        for name, dim in (("weight", 1), ("bias", 0))
    }


def take_blocks(tensor: Tensor, dim: int, blocks: int, index: Sequence[int]) -> Tensor:
    """Return the blocks `index` of a dimension, in this order."""
    parts = tensor.unflatten(dim, (blocks, -1))
    return parts.index_select(dim, parts.new_tensor(index).long()).flatten(dim, dim + 1)
