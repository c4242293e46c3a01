"""Start a model from weights on disk: the published layouts, and our own.

Files are read as data, never as code: `weights_only=True` is given to each
`torch.load`, and an explicit value beats TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD. The weights
must fit the model entry by entry, or the model is left as it was.

demucs publishes packages: beside the weights stand the class and the arguments of its
constructor, in a pickle the class object itself. Neither that class nor any other is
looked up: the names that belong in such a file are read as `StandIn`s, which hold what
they are given and do nothing.
"""

import json
import logging
import re
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from modules.runtime.errors import DamagedCheckpoint, PretrainedError
from modules.weights.checkpoint_files import read_checkpoint

State = dict[str, Tensor]

PARTS = ("encoder", "masknet", "decoder")

POINTER = "last_best_checkpoint"

LISTED = 20  # names given in an error, of each kind

LAYOUTS = (
    "model.safetensors or separator.ckpt (ours: an exported model, a CKPT+ folder, a "
    f"run folder with CKPT+ folders), {POINTER} (ClearerVoice), encoder.ckpt + "
    "masknet.ckpt + decoder.ckpt or the same as .bin (SpeechBrain), pytorch_model.bin, "
    "one .th or .safetensors file (demucs)"
)

# Names in the pickles of demucs: its networks, lengths, and (in old files) the numbers
# of a training log.
STAND_INS = (
    "demucs.htdemucs.HTDemucs",
    "demucs.hdemucs.HDemucs",
    "demucs.demucs.Demucs",
    "fractions.Fraction",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
)

logger = logging.getLogger(__name__)


class StandIn:
    """Takes the place of an object of a pickle: keeps its arguments, runs nothing."""

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


def load_pretrained(model: nn.Module, folder: str | Path) -> list[Path]:
    """Load the weights in a folder, or in a file, into a model: all of them or none.

    The layout is the first of these that the folder holds:

    1. ``model.safetensors``: a state_dict of ours.
    2. ``separator.ckpt``: a checkpoint folder of ours. Where ``ema.ckpt`` stands
       beside it, its averaged weights go in, as they did when the run was scored.
    3. ``last_best_checkpoint``: a text that names a file in the same folder.
    4. ``encoder``, ``masknet`` and ``decoder``, each ``.ckpt`` or each ``.bin``.
    5. ``pytorch_model.bin``: one state_dict with these three as prefixes.
    6. One ``.th`` or ``.safetensors`` file, whatever its name: a package of demucs, or
       a state_dict.
    7. ``CKPT+*/separator.ckpt`` anywhere below: the run folder of ours. The newest
       checkpoint in order of saving is taken; for another, name its own folder.

    In the place of a folder, the file of 6 can be named itself.

    A model's ``adapt_keys(state) -> state``, if it has one, renames the keys first. Of
    a package, its ``adapt_package(klass, args, kwargs, state) -> state`` checks that
    the configuration is the model's own.

    Arguments
    ---------
    model : nn.Module
        Receives the weights in place, on its device and in its precision.
    folder : str | Path
        Local folder or file; nothing is downloaded.

    Returns
    -------
    list[Path]
        The files that were read.

    Raises
    ------
    PretrainedError
        No such folder, no known layout, a file that is damaged or holds more than
        it should, NaN or Inf in it, a package of another configuration (the message
        lists what differs), or a partial fit: then it lists what is missing,
        unexpected or of another shape. The model is untouched.

    Example
    -------
    >>> from safetensors.torch import save_model
    >>> folder, layer = getfixture("tmp_path"), nn.Linear(2, 3)
    >>> save_model(layer, folder / "model.safetensors")
    >>> load_pretrained(nn.Linear(2, 3), folder)[0].name
    'model.safetensors'
    """
    folder = Path(folder).expanduser()
    if not folder.exists():
        raise PretrainedError(
            f"pretrained: no folder {folder}; give a local one (nothing is "
            f"downloaded) that holds {LAYOUTS}"
        )
    weights, files = _read_file(folder) if folder.is_file() else _read(folder)
    try:
        state = _adapted(model, weights)
    except (ValueError, KeyError) as error:
        raise PretrainedError(f"pretrained: {folder}: {error}") from error
    load_state(model, state, folder)
    logger.info("Weights loaded from %s", ", ".join(map(str, files)))
    return files


def load_state(model: nn.Module, state: State, where: str | Path) -> None:
    """Load a state_dict that fits exactly and is finite; else a PretrainedError."""
    _check_fit(model, state, where)
    model.load_state_dict(state, strict=True)


def read_safetensors(path: Path) -> State:
    """The tensors of one file; a PretrainedError where it cannot be read."""
    return _safetensors(path)[0]


def _adapted(model: nn.Module, weights: State | Package) -> State:
    """The weights under the model's keys."""
    if isinstance(weights, Package):
        adapt = getattr(model, "adapt_package", None)
        if adapt is None:
            raise ValueError(f"holds a {weights.klass}, no {type(model).__name__}")
        return adapt(weights.klass, weights.args, weights.kwargs, weights.state)
    state = {key.removeprefix("module."): value for key, value in weights.items()}
    adapt = getattr(model, "adapt_keys", None)
    return state if adapt is None else adapt(state)


def _read(folder: Path) -> tuple[State | Package, list[Path]]:
    """The weights of a folder with prefixed keys, and the files they came from."""
    if (folder / "adapters.safetensors").is_file():
        raise PretrainedError(
            f"pretrained: {folder} holds adapters in a file of their own, which would "
            "be left out; merge them first: python -m modules.export RUN --out=FOLDER, "
            "and give that folder"
        )
    for read in (_read_safetensors, _read_checkpoint, _read_pointer, _read_parts):
        if found := read(folder):
            return found
    if (path := folder / "pytorch_model.bin").is_file():
        return _tensors(_load(path), path), [path]
    single = sorted([*folder.glob("*.th"), *folder.glob("*.safetensors")])
    if len(single) > 1:
        raise PretrainedError(
            f"pretrained: {folder} holds several models; name one of the files: "
            + "; ".join(_first([path.name for path in single]))
        )
    if single:
        return _read_file(single[0])
    if found := _read_checkpoint(_newest_checkpoint(folder)):
        return found
    inside = sorted(path.name for path in folder.iterdir())
    names = ", ".join(inside[:LISTED]) + (", ..." if len(inside) > LISTED else "")
    raise PretrainedError(
        f"pretrained: {folder} holds no known layout of weights (it has: "
        f"{names or 'nothing'}); known are {LAYOUTS}"
    )


def _read_file(path: Path) -> tuple[State | Package, list[Path]]:
    """The weights of one file: a package of demucs, or a state_dict."""
    if path.suffix == ".safetensors":
        return _open_safetensors(path), [path]
    if path.suffix != ".th":
        raise PretrainedError(
            f"pretrained: {path} is no .th or .safetensors file; give one, or a folder "
            f"that holds {LAYOUTS}"
        )
    content = _load(path, STAND_INS)
    if not isinstance(content, dict) or "klass" not in content:
        return _tensors(content, path), [path]
    klass, state = content["klass"], content.get("state")
    if not (isinstance(klass, type) and issubclass(klass, StandIn)):
        raise PretrainedError(f"pretrained: {path} names no class of demucs")
    if isinstance(state, dict) and "__quantized" in state:
        raise PretrainedError(f"pretrained: {path} is quantized, which is not read")
    args, kwargs = content.get("args", ()), content.get("kwargs", {})
    return _package(klass.name, args, kwargs, _tensors(state, path), path), [path]


def _read_safetensors(folder: Path) -> tuple[State | Package, list[Path]] | None:
    path = folder / "model.safetensors"
    return (_open_safetensors(path), [path]) if path.is_file() else None


def _open_safetensors(path: Path) -> State | Package:
    """Tensors, and what demucs 4.1 writes into the file's metadata as JSON."""
    state, metadata = _safetensors(path)
    if "klass" not in metadata:
        return state
    if "structure" in metadata:
        raise PretrainedError(f"pretrained: {path} is quantized, which is not read")
    try:
        args, kwargs = (json.loads(metadata[name]) for name in ("args", "kwargs"))
    except (KeyError, ValueError, RecursionError) as error:
        raise PretrainedError(
            f"pretrained: {path} has no arguments of a model in its metadata ({error})"
        ) from error
    return _package(metadata["klass"], args, kwargs, state, path)


def _safetensors(path: Path) -> tuple[State, dict[str, str]]:
    """Tensors and metadata."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            return {key: file.get_tensor(key) for key in file.keys()}, metadata  # noqa: SIM118
    except Exception as error:  # the library raises its own, and OSError
        raise _unreadable(path, error) from error


def _package(
    klass: str, args: object, kwargs: object, state: State, path: Path
) -> Package:
    """A package whose arguments are plain values."""
    try:
        args, kwargs = _plain(args), _plain(kwargs)
    except (ValueError, RecursionError) as error:
        raise PretrainedError(
            f"pretrained: {path} has arguments that are no plain values ({error})"
        ) from error
    if not (isinstance(args, list) and isinstance(kwargs, dict)):
        raise PretrainedError(f"pretrained: {path} has no list and dict of arguments")
    return Package(klass, args, kwargs, state)


def _plain(value: object) -> object:
    """Numbers, texts, lists and dicts; fractions from either form of demucs."""
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


def _fraction(*arguments: object) -> Fraction:
    """A fraction from two integers, or from the text that Python 3.11 pickles."""
    if len(arguments) == 1 and re.fullmatch(r"\d{1,18}(/\d{1,18})?", str(arguments[0])):
        arguments = tuple(int(part) for part in str(arguments[0]).split("/"))
    if not all(isinstance(value, int) for value in arguments) or not all(arguments):
        raise ValueError(f"it holds a fraction of {str(arguments)[:80]}")
    return Fraction(*arguments)


def _read_checkpoint(folder: Path | None) -> tuple[State, list[Path]] | None:
    """Weights of our checkpoint folder, averaged ones where the run kept them."""
    if folder is None or not (folder / "separator.ckpt").is_file():
        return None
    if (folder / "CKPT.yaml").exists():
        try:
            read_checkpoint(folder, check_digests=True)
        except DamagedCheckpoint as error:
            raise PretrainedError(f"pretrained: {folder}: {error}") from error
    path, average = folder / "separator.ckpt", folder / "ema.ckpt"
    state = _tensors(_load(path), path)
    if not average.is_file():
        return state, [path]
    shadow = _tensors(_entry(_load(average), "shadow", average), average)
    return {**state, **shadow}, [path, average]


def _read_pointer(folder: Path) -> tuple[State, list[Path]] | None:
    """ClearerVoice's layout: a text with the name of a checkpoint beside it."""
    pointer = folder / POINTER
    if not pointer.is_file():
        return None
    name = pointer.read_bytes()[:4096].decode(errors="replace").strip()
    # A published folder must not choose other files of this computer.
    if not name.isprintable() or name in ("", ".", "..") or set("/\\") & set(name):
        raise PretrainedError(
            f"pretrained: {pointer} must hold the name of a file beside it, "
            f"not {name[:80]!r}"
        )
    path = folder / name
    if not path.is_file():
        raise PretrainedError(f"pretrained: {pointer} names {name}, which is missing")
    return _tensors(_entry(_load(path), "model", path), path), [path]


def _read_parts(folder: Path) -> tuple[State, list[Path]] | None:
    """SpeechBrain's layout: a state_dict for each of the three modules."""
    for suffix in (".ckpt", ".bin"):
        paths = [folder / (part + suffix) for part in PARTS]
        missing = [path.name for path in paths if not path.is_file()]
        if not missing:
            return {
                f"{part}.{key.removeprefix('module.')}": value
                for part, path in zip(PARTS, paths, strict=True)
                for key, value in _tensors(_load(path), path).items()
            }, paths
        if len(missing) < len(PARTS):
            raise PretrainedError(f"pretrained: {folder} lacks {', '.join(missing)}")
    return None


def _newest_checkpoint(folder: Path) -> Path | None:
    """Our checkpoint that was saved last below a folder, by its save counter."""
    found = sorted(path.parent for path in folder.rglob("CKPT+*/separator.ckpt"))
    if not found:
        return None
    runs = sorted({str(path.parent) for path in found})
    if len(runs) > 1:
        raise PretrainedError(
            f"pretrained: {folder} holds checkpoints of {len(runs)} runs; name one of "
            + ", ".join(runs[:LISTED])
        )
    try:
        counters = [read_checkpoint(path).meta["save_counter"] for path in found]
    except DamagedCheckpoint as error:
        raise PretrainedError(
            f"pretrained: a checkpoint in {runs[0]} is damaged ({error}); "
            "name the CKPT+ folder to load"
        ) from error
    return max(zip(counters, found, strict=True))[1]


def _load(path: Path, names: tuple[str, ...] = ()) -> object:
    """Read a file of torch.save; data only, whatever the environment says.

    The names, and no others, are read as stand-ins.
    """
    kinds = [(type("StandIn", (StandIn,), {"name": name}), name) for name in names]
    known = torch.serialization.safe_globals(kinds) if kinds else nullcontext()
    try:
        with known:
            return torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # torch raises a dozen kinds for a foreign file
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> PretrainedError:
    # torch's explanation runs over many lines and advises to switch safety off.
    reason = next(
        (
            line.strip()
            for line in str(error).splitlines()
            if "WeightsUnpickler error" in line or "GLOBAL" in line
        ),
        f"{type(error).__name__}: {str(error).partition(chr(10))[0]}",
    )
    return PretrainedError(
        f"pretrained: {path} is damaged or holds more than tensors, and is not "
        f"loaded ({reason[:200]})"
    )


def _entry(content: object, key: str, path: Path) -> object:
    """The named entry of a training checkpoint; a bare state_dict stays as it is."""
    if isinstance(content, dict) and isinstance(content.get(key), dict):
        return content[key]
    return content


def _tensors(content: object, path: Path) -> State:
    """The content if it is a state_dict of ordinary tensors."""
    if isinstance(content, dict):
        odd = [str(key) for key, v in content.items() if not _is_plain(key, v)]
    else:
        odd = [f"a {type(content).__name__}"]
    if odd:
        raise PretrainedError(
            f"pretrained: {path} is no state_dict of tensors: it holds "
            + "; ".join(_first(odd))
        )
    return content


def _is_plain(key: object, value: object) -> bool:
    return (
        isinstance(key, str)
        and isinstance(value, Tensor)
        and value.layout == torch.strided
        and not (value.is_quantized or value.is_meta or value.is_complex())
    )


def _check_fit(model: nn.Module, state: State, folder: str | Path) -> None:
    """Refuse weights that are not exactly those of the model, or not finite."""
    mine = model.state_dict()
    int8 = (key for key in mine if key in state and state[key].dtype == torch.int8)
    if any(mine[key].is_floating_point() for key in int8):
        raise PretrainedError(
            f"pretrained: {folder} holds int8 weights, which are for inference "
            "(modules.weights.export.load_exported); to train, export without --int8"
        )
    differ = {
        "missing": sorted(mine.keys() - state.keys()),
        "unexpected": sorted(state.keys() - mine.keys()),
        "another shape": [
            f"{key} is {list(state[key].shape)}, the model's {list(value.shape)}"
            for key, value in mine.items()
            if key in state and state[key].shape != value.shape
        ],
    }
    lines = [
        f"  {kind} ({len(names)}): " + "; ".join(_first(names))
        for kind, names in differ.items()
        if names
    ]
    if lines:
        raise PretrainedError(
            f"pretrained: {folder} does not fit {type(model).__name__} "
            f"({len(mine)} entries); nothing was loaded\n" + "\n".join(lines)
        )
    # In the model's precision: a float64 may be too large for it.
    bad = [
        key
        for key, value in state.items()
        if not bool(value.to(mine[key].dtype).isfinite().all())
    ]
    if bad:
        raise PretrainedError(
            f"pretrained: {folder} has NaN or Inf in {'; '.join(_first(bad))}; "
            "nothing was loaded"
        )


def _first(names: list[str]) -> Iterator[str]:
    """The first names, and how many more there are."""
    yield from names[:LISTED]
    if len(names) > LISTED:
        yield f"... and {len(names) - LISTED} more"
