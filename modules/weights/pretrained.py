"""Start a model from weights on disk: the published layouts, and our own.

Files are read as data, never as code. The weights must fit the model entry by entry,
or the model is left as it was.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from modules.lora.adapters import matching
from modules.lora.files import foreign_adapters
from modules.models.htdemucs import HTDemucs
from modules.runtime.errors import LoraError, PretrainedError
from modules.runtime.tensors import is_finite, mismatches, shapes_of
from modules.weights import demucs
from modules.weights.demucs import Package, State
from modules.weights.layouts import Weights, errors_name, listed, read_weights
from modules.weights.stated import Stated, stated_of
from modules.weights.transfer_sources import take_sources

logger = logging.getLogger(__name__)


def load_pretrained(
    model: nn.Module,
    folder: str | Path,
    *,
    sample_rate: int | None = None,
    sources: Sequence[str] | None = None,
    source_map: Mapping[str, str] | None = None,
    weights: Sequence[float] | None = None,
    skip: Sequence[str] = (),
    allow_changes: bool = False,
) -> list[Path]:
    """Load the weights in a folder or file into a model, and return the files read.

    What the weights say of themselves is compared with the model
    (`modules/weights/stated.py`), and their sources are put into its order.

    Arguments
    ---------
    model : nn.Module
        It keeps its device and precision; its method ``adapt_keys(state) -> state``, if
        it has one, renames the keys first.
    folder : str | Path
        Read in the first layout of `layouts.LAYOUTS` that it has; or a file, ``.th``,
        ``.pth``, ``.ckpt``, ``.safetensors`` or the YAML of a bag of demucs' models.
    sample_rate : int | None
        Of the audio, in Hz; None is not compared.
    sources : Sequence[str] | None
        Those of weights that do not name theirs.
    source_map : Mapping[str, str] | None
        Source of the weights that one of the model starts from, where names differ.
    weights : Sequence[float] | None
        Weight of each of the model's sources in the loss: they choose from a bag.
    skip : Sequence[str]
        Patterns of entries that are not loaded.
    allow_changes : bool
        Load weights of another rate or with other settings all the same.

    Raises
    ------
    PretrainedError
        The folder or its layout is unknown, a file is damaged or holds more than
        tensors, what the weights say or a tensor does not fit. The model is untouched.

    Example
    -------
    >>> from safetensors.torch import save_model
    >>> folder, layer = getfixture("tmp_path"), nn.Linear(2, 3)
    >>> save_model(layer, folder / "model.safetensors")
    >>> load_pretrained(nn.Linear(2, 3), folder)[0].name
    'model.safetensors'
    """
    place = Path(folder).expanduser()
    if place.suffix == ".yaml" and place.is_file():
        names = getattr(model, "sources", [])
        counts = list(weights) if weights else [1.0] * len(names)
        trained = [name for name, w in zip(names, counts, strict=False) if w > 0]
        place = _from_bag(place, [(source_map or {}).get(n, n) for n in trained])
    found, files = read_weights(place)
    with errors_name(place):
        stated = stated_of(found, files)
        _check(model, stated, sample_rate, place, allow_changes)
        state = _adapted(model, found)
    try:
        left_out = matching(skip, {**model.state_dict(), **state}, "pretrained_skip")
    except LoraError as error:
        raise PretrainedError(str(error)) from error
    state = {key: value for key, value in state.items() if key not in left_out}
    given = stated.sources or sources
    outputs = demucs.output_layers(model) if isinstance(model, HTDemucs) else state
    if given and any(key in state for key in outputs):
        state = take_sources(model, state, given, source_map)
        if (ours := list(getattr(model, "sources", given))) != list(given):
            told = ", ".join(given), ", ".join(ours)
            logger.info("%s: weights of %s, taken for %s", place, *told)
    load_state(model, state, place, left_out)
    silent = "" if stated.network else " (they do not say of which network)"
    logger.info("Weights loaded from %s%s", ", ".join(map(str, files)), silent)
    if left_out:
        logger.info("pretrained_skip left out: %s", listed(left_out))
    return files


def _check(
    model: nn.Module,
    stated: Stated,
    sample_rate: int | None,
    where: Path,
    allow_changes: bool,
) -> None:
    """Compare what weights say with the model; raise, or report in one line."""
    differ = stated.differences(model, sample_rate)
    told = "; ".join(f"{n} {old}, here {new}" for n, (old, new) in differ.items())
    if segments := stated.segments(model):
        logger.info("%s: was trained on segments of %g s, here %g s", where, *segments)
    if differ and not allow_changes:
        old = {name: theirs for name, (theirs, _) in differ.items()}
        rate, kind = old.pop("sample_rate", None), old.pop("network", None)
        inner = ", ".join(f"{name}: {value}" for name, value in old.items())
        options = [f"--sample_rate={rate}"] if rate else []
        options += [f"--separator='{{{inner}}}'"] if inner else []
        give = f"give these ({' '.join(options)}), or " if options and not kind else ""
        raise PretrainedError(
            f"pretrained: {where} was trained with {told}; {give}accept the difference "
            "by --allow_changes=True"
        )
    if differ:
        logger.warning(f"{where}: was trained with {told}")


def _from_bag(path: Path, stems: Sequence[str]) -> Path:
    """Return the model of a bag of demucs' that counts for the stems to train."""
    bag = demucs.read_bag(path)
    if len(bag.files) == 1:
        return bag.files[0]
    package, _ = read_weights(bag.files[0])
    with errors_name(bag.files[0]):
        if not isinstance(package, Package):
            raise ValueError("is no package of demucs")
        names = demucs.arguments_of(package)["sources"]
    chosen: dict[str, Path] = {}
    for name, *counts in zip(names, *bag.weights_MS or [], strict=False):
        if counts:
            chosen[name] = bag.files[counts.index(max(counts))]
    files = {chosen.get(stem) for stem in stems}
    if len(files) != 1 or None in files:
        models = [f"{name}: {file.name}" for name, file in chosen.items()]
        listed = ", ".join(models or [file.name for file in bag.files])
        raise PretrainedError(
            f"pretrained: {path} is a bag of {len(bag.files)} models ({listed}), and a "
            "run trains one: name its file, or train one stem, as --weights='[0,0,0,1]'"
        )
    return files.pop() or path


def load_weights(model: nn.Module, weights: Weights, where: str | Path) -> None:
    """Load what `read_weights` read at `where` into the network that it describes."""
    with errors_name(where):
        state = _adapted(model, weights)
    load_state(model, state, where)


def load_state(
    model: nn.Module, state: State, where: str | Path, left_out: Sequence[str] = ()
) -> None:
    """Load a state_dict that fits exactly and is finite, or raise PretrainedError.

    The entries `left_out` of the model keep their values.
    """
    mine = model.state_dict()
    int8 = [key for key in mine if key in state and state[key].dtype == torch.int8]
    if any(mine[key].is_floating_point() for key in int8):
        raise PretrainedError(
            f"pretrained: {where} holds int8 weights, which are for inference "
            "(modules.weights.export.load_exported); to train, export without --int8"
        )
    state = {**state, **{key: mine[key] for key in left_out if key in mine}}
    if differ := mismatches(shapes_of(state), shapes_of(mine)):
        other = [line.split(":")[0] for line in differ.get("another shape", [])]
        layers = sorted({f"{key.rpartition('.')[0]}.*" for key in other})
        hint = f"; --pretrained_skip='[{', '.join(layers)}]' leaves these layers out"
        lines = [f"  {kind} ({len(v)}): {listed(v)}" for kind, v in differ.items()]
        hint = hint if 0 < len(layers) <= 4 and len(differ) == 1 else ""
        raise PretrainedError(
            f"pretrained: {where} does not fit {type(model).__name__} "
            f"({len(mine)} entries); nothing was loaded{hint}\n" + "\n".join(lines)
        )
    # In the model's precision: a float64 may be too large for it.
    bad = [key for key, t in state.items() if not is_finite(t.to(mine[key].dtype))]
    if bad:
        raise PretrainedError(
            f"pretrained: {where} has NaN or Inf in {listed(bad)}; nothing was loaded"
        )
    model.load_state_dict(state, strict=True)


def _adapted(model: nn.Module, weights: Weights) -> State:
    """Return the weights under the model's keys."""
    if isinstance(weights, Package):
        weights = weights.state
    if what := foreign_adapters(weights):
        raise ValueError(f"{what}: merge it into its model and give the merged weights")
    state = {key.removeprefix("module."): value for key, value in weights.items()}
    return getattr(model, "adapt_keys", dict)(state)
