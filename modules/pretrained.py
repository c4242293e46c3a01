"""Start a model from weights on disk: the published layouts, and our own.

Files are read as data, never as code: `weights_only=True` is given to each
`torch.load`, and an explicit value beats TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD. The weights
must fit the model entry by entry, or the model is left as it was.
"""

import logging
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from modules.checkpoint_files import DamagedCheckpoint, read_checkpoint

State = dict[str, Tensor]

PARTS = ("encoder", "masknet", "decoder")
POINTER = "last_best_checkpoint"
LISTED = 20  # names given in an error, of each kind
LAYOUTS = (
    "model.safetensors or separator.ckpt (ours: an exported model, a CKPT+ folder, a "
    f"run folder with CKPT+ folders), {POINTER} (ClearerVoice), encoder.ckpt + "
    "masknet.ckpt + decoder.ckpt or the same as .bin (SpeechBrain), pytorch_model.bin"
)

logger = logging.getLogger(__name__)


class PretrainedError(ValueError):
    """The weights cannot be used; the message says which file and why."""


def load_pretrained(model: nn.Module, folder: str | Path) -> list[Path]:
    """Load the weights in a folder into a model, all of them or none.

    The layout is the first of these that the folder holds:

    1. ``model.safetensors``: a state_dict of ours.
    2. ``separator.ckpt``: a checkpoint folder of ours. Where ``ema.ckpt`` stands
       beside it, its averaged weights go in, as they did when the run was scored.
    3. ``last_best_checkpoint``: a text that names a file in the same folder.
    4. ``encoder``, ``masknet`` and ``decoder``, each ``.ckpt`` or each ``.bin``.
    5. ``pytorch_model.bin``: one state_dict with these three as prefixes.
    6. ``CKPT+*/separator.ckpt`` anywhere below: the run folder of ours. The newest
       checkpoint in order of saving is taken; for another, name its own folder.

    A model's ``adapt_keys(state) -> state``, if it has one, renames the keys first.

    Arguments
    ---------
    model : nn.Module
        Receives the weights in place, on its device and in its precision.
    folder : str | Path
        Local folder; nothing is downloaded.

    Returns
    -------
    list[Path]
        The files that were read.

    Raises
    ------
    PretrainedError
        No such folder, no known layout, a file that is damaged or holds more than
        tensors, NaN or Inf in it, or a partial fit: then the message lists what is
        missing, unexpected or of another shape. The model is untouched.

    Example
    -------
    >>> from safetensors.torch import save_model
    >>> folder, layer = getfixture("tmp_path"), nn.Linear(2, 3)
    >>> save_model(layer, folder / "model.safetensors")
    >>> load_pretrained(nn.Linear(2, 3), folder)[0].name
    'model.safetensors'
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise PretrainedError(
            f"pretrained: no folder {folder}; give a local one (nothing is "
            f"downloaded) that holds {LAYOUTS}"
        )
    state, files = _read(folder)
    state = {key.removeprefix("module."): value for key, value in state.items()}
    adapt = getattr(model, "adapt_keys", None)
    if adapt is not None:
        try:
            state = adapt(state)
        except (ValueError, KeyError) as error:
            raise PretrainedError(f"pretrained: {folder}: {error}") from error
    _check_fit(model, state, folder)
    model.load_state_dict(state, strict=True)
    logger.info("Weights loaded from %s", ", ".join(map(str, files)))
    return files


def _read(folder: Path) -> tuple[State, list[Path]]:
    """The weights of a folder with prefixed keys, and the files they came from."""
    for read in (_read_safetensors, _read_checkpoint, _read_pointer, _read_parts):
        if found := read(folder):
            return found
    if (path := folder / "pytorch_model.bin").is_file():
        return _tensors(_load(path), path), [path]
    if found := _read_checkpoint(_newest_checkpoint(folder)):
        return found
    inside = sorted(path.name for path in folder.iterdir())
    names = ", ".join(inside[:LISTED]) + (", ..." if len(inside) > LISTED else "")
    raise PretrainedError(
        f"pretrained: {folder} holds no known layout of weights (it has: "
        f"{names or 'nothing'}); known are {LAYOUTS}"
    )


def _read_safetensors(folder: Path) -> tuple[State, list[Path]] | None:
    path = folder / "model.safetensors"
    if not path.is_file():
        return None
    try:
        return load_file(path, device="cpu"), [path]
    except Exception as error:  # the library raises its own, and OSError
        raise _unreadable(path, error) from error


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


def _load(path: Path) -> object:
    """Read a file of torch.save; data only, whatever the environment says."""
    try:
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


def _check_fit(model: nn.Module, state: State, folder: Path) -> None:
    """Refuse weights that are not exactly those of the model, or not finite."""
    mine = model.state_dict()
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
