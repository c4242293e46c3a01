"""Start a model from weights on disk: the published layouts, and our own.

Files are read as data, never as code. The weights must fit the model entry by entry,
or the model is left as it was.
"""

import contextlib
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from modules.lora.adapters import matching
from modules.lora.files import foreign_adapters
from modules.models.htdemucs import HTDemucs
from modules.runtime.errors import (
    DamagedCheckpoint,
    LoraError,
    PretrainedError,
    first_of,
)
from modules.runtime.tensors import is_finite, mismatches, read_tensors, shapes_of
from modules.weights import demucs, msst
from modules.weights.checkpoint_files import read_checkpoint
from modules.weights.checkpointer import best_checkpoint, mean_of_epochs
from modules.weights.demucs import Package, State
from modules.weights.stated import CLEARERVOICE_RATE, Stated, averaged, stated_of
from modules.weights.transfer_sources import take_sources

PARTS = ("encoder", "masknet", "decoder")
POINTER = "last_best_checkpoint"
ESPNET = "config.yaml"
SINGLE = (".th", ".pth", ".ckpt", ".safetensors")
KINDS = f"{', '.join(SINGLE[:-1])} or {SINGLE[-1]}"
#: Where training checkpoints keep their weights: of ours, MSST, SepReformer and SCNet.
ENTRIES = ("model_state_dict", "state_dict", "state", "best_state")
_listed = partial(first_of, most=20, between="; ")

Weights = State | Package
Found = tuple[Weights, list[Path]]

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
        Read in the first layout of `LAYOUTS` that it has; or a file, ``.th``,
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
    with _errors_name(place):
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
        logger.info("pretrained_skip left out: %s", _listed(left_out))
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
    with _errors_name(bag.files[0]):
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


def read_weights(folder: str | Path) -> Found:
    """Return the weights in a folder or a file, and the files that were read."""
    folder = Path(folder).expanduser()
    if folder.is_file():
        return _read_file(folder)
    if not folder.exists():
        raise PretrainedError(
            f"pretrained: no folder {folder}; give a local one (nothing is "
            f"downloaded) that holds {KNOWN}"
        )
    if (folder / "adapters.safetensors").is_file():
        raise PretrainedError(
            f"pretrained: {folder} holds adapters in a file of their own, which would "
            "be left out; merge them first: python export.py RUN --out=FOLDER, and "
            "give that folder"
        )
    for layout in LAYOUTS:
        if found := layout.read(folder):
            return found
    names = _listed(sorted(path.name for path in folder.iterdir()))
    raise PretrainedError(
        f"pretrained: {folder} holds no known layout of weights (it has: "
        f"{names or 'nothing'}); known are {KNOWN}"
    )


def load_weights(model: nn.Module, weights: Weights, where: str | Path) -> None:
    """Load what `read_weights` read at `where` into the network that it describes."""
    with _errors_name(where):
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
        lines = [f"  {kind} ({len(v)}): {_listed(v)}" for kind, v in differ.items()]
        hint = hint if 0 < len(layers) <= 4 and len(differ) == 1 else ""
        raise PretrainedError(
            f"pretrained: {where} does not fit {type(model).__name__} "
            f"({len(mine)} entries); nothing was loaded{hint}\n" + "\n".join(lines)
        )
    # In the model's precision: a float64 may be too large for it.
    bad = [key for key, t in state.items() if not is_finite(t.to(mine[key].dtype))]
    if bad:
        raise PretrainedError(
            f"pretrained: {where} has NaN or Inf in {_listed(bad)}; nothing was loaded"
        )
    model.load_state_dict(state, strict=True)


@contextlib.contextmanager
def _errors_name(path: str | Path) -> Iterator[None]:
    """Turn errors that go on from the name of a file into PretrainedErrors."""
    try:
        yield
    except PretrainedError:
        raise
    except (ValueError, KeyError) as error:
        raise PretrainedError(f"pretrained: {path} {error}") from error


def _adapted(model: nn.Module, weights: Weights) -> State:
    """Return the weights under the model's keys."""
    if isinstance(weights, Package):
        weights = weights.state
    if what := foreign_adapters(weights):
        raise ValueError(f"{what}: merge it into its model and give the merged weights")
    state = {key.removeprefix("module."): value for key, value in weights.items()}
    return getattr(model, "adapt_keys", dict)(state)


# ---------------------------------------------------------------- layouts


def _read_named(name: str, folder: Path) -> Found | None:
    """Read the file of this name."""
    return _read_file(folder / name) if (folder / name).is_file() else None


def _read_single(folder: Path) -> Found | None:
    """Read the only file of a model."""
    single = sorted(path for kind in SINGLE for path in folder.glob(f"*{kind}"))
    if len(single) > 1:
        single += sorted(folder.glob("*.yaml"))  # demucs' bags
        raise PretrainedError(
            f"pretrained: {folder} holds several models; name one of the files: "
            + _listed([path.name for path in single])
        )
    return _read_file(single[0]) if single else None


def _read_checkpoint(folder: Path) -> Found | None:
    """Read a checkpoint of ours, with the averaged weights if it has any."""
    path = folder / "separator.ckpt"
    if not path.is_file():
        return None
    if (folder / "CKPT.yaml").exists():
        try:
            read_checkpoint(folder, check_digests=True)
        except DamagedCheckpoint as error:
            raise PretrainedError(f"pretrained: {folder}: {error}") from error
    state = _tensors(_load(path), path)
    average, files = read_averages(folder)
    return {**state, **average}, [path, *files]


def read_averages(folder: Path) -> tuple[State, list[Path]]:
    """Return the averaged weights of a checkpoint; nothing where it has none."""
    path = folder / "ema.ckpt"
    if not path.is_file():
        return {}, []
    return _tensors(_entry(_load(path), "shadow"), path), [path]


def _read_pointer(folder: Path) -> Found | None:
    """Read the checkpoint that the text in `last_best_checkpoint` names."""
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
    return _tensors(_entry(_load(path), "model"), path), [path]


def _read_parts(folder: Path) -> Found | None:
    """Read SpeechBrain's file for each of the three modules."""
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


def _read_run(folder: Path) -> Found | None:
    """Read what a run below a folder tests: the best checkpoint, or a mean."""
    found = folder.rglob("CKPT+*/separator.ckpt")
    runs = sorted({str(path.parents[1]) for path in found})
    if not runs:
        return None
    if len(runs) > 1:
        raise PretrainedError(
            f"pretrained: {folder} holds checkpoints of {len(runs)} runs; name one of "
            + _listed(runs)
        )
    try:
        best = best_checkpoint(Path(runs[0]))
        number, metric = averaged(Path(runs[0]).parent / "hyperparams.yaml")
        if best is not None and number:
            files = [best.path / "separator.ckpt"]
            return mean_of_epochs(runs[0], number, metric), files
    except DamagedCheckpoint as error:
        raise PretrainedError(f"pretrained: {error}") from error
    return None if best is None else _read_checkpoint(best.path)


class Layout(NamedTuple):
    """A way in which weights are published: how to find, to read and to use them."""

    name: str  # as errors write it
    #: Reads a folder; returns None for another layout.
    read: Callable[[Path], Found | None]
    #: At a hub: the files that make it, and those that may lie beside, by alternatives.
    hub: Sequence[tuple[tuple[str, ...], tuple[str, ...]]] = ()
    #: A pattern of a key of its network alone; a package of demucs has the key `klass`.
    keys: str = ""
    network: str = ""  # what makes it, in modules/weights
    rate: int | None = None  # in Hz, where the files do not state it


#: In the order of trying.
LAYOUTS = (
    Layout(
        "model.safetensors (an exported model of ours)",
        partial(_read_named, "model.safetensors"),
        [(("model.safetensors", "config.json"), ("adapters.safetensors",))],
    ),
    Layout("separator.ckpt (a CKPT+ folder of ours)", _read_checkpoint),
    Layout(
        f"{POINTER} (ClearerVoice)",
        _read_pointer,
        [((POINTER,), (f"{POINTER}.*",))],
        r"^enc\.",
        "separators.mossformer2",
        CLEARERVOICE_RATE,
    ),
    Layout(
        "encoder.ckpt + masknet.ckpt + decoder.ckpt or the same as .bin (SpeechBrain)",
        _read_parts,
        [
            (tuple(p + end for p in PARTS), ("hyperparams.yaml",))
            for end in (".ckpt", ".bin")
        ],
        *(r"\.self_att\.att\.in_proj_weight", "separators.sepformer"),
    ),
    Layout(
        "pytorch_model.bin",
        partial(_read_named, "pytorch_model.bin"),
        [(("pytorch_model.bin",), ())],
        r"\.intra_mdl\.mdl\.flashT\.",
        "separators.mossformer2",
        8000,
    ),
    Layout(
        "one .pth with config.yaml (ESPnet)",
        _read_single,
        [(("*.pth",), (ESPNET,))],
        *(r"\.attn\.rope\.freqs$", "separators.tf_locoformer"),
    ),
    Layout(
        "one .th or .safetensors (demucs)",
        _read_single,
        [(("*.th",), ("*.yaml",)), (("*.safetensors",), ("*.yaml",))],
        *("^klass$", "demucs.network_of"),
    ),
    Layout(
        *("one .pth (SepReformer)", _read_single, ()),
        *(r"\.pos_emb\.pe_k\.weight", "separators.sepreformer", 8000),
    ),
    Layout(
        *("one .ckpt with its YAML (MSST)", _read_single, ()),
        f"^({'|'.join(map(re.escape, msst.MARKS))})$",
        "msst.network_of",
    ),
    Layout("CKPT+*/separator.ckpt (a run folder of ours)", _read_run),
)

KNOWN = ", ".join(layout.name for layout in LAYOUTS)


def files_of_a_layout(names: Sequence[str]) -> list[str]:
    """Return the files of the first layout that a repository has whole.

    >>> files_of_a_layout(["run.py", "a.safetensors", "weights/a.th"])
    ['a.safetensors']
    """
    beside = [name for name in names if "/" not in name]
    for made_of, optional in (files for layout in LAYOUTS for files in layout.hub):
        if all(any(fnmatchcase(n, p) for n in beside) for p in made_of):
            patterns = (*made_of, *optional)
            return [n for n in beside if any(fnmatchcase(n, p) for p in patterns)]
    return []


# ---------------------------------------------------------------- files


def _read_file(path: Path) -> Found:
    """Read a package of demucs or a state_dict."""
    if path.suffix == ".safetensors":
        state, metadata = read_safetensors(path)
        if "klass" not in metadata:
            return state, [path]
        with _errors_name(path):
            return demucs.package_of_metadata(metadata, state), [path]
    if path.suffix in (".bin", ".pth", ".ckpt"):
        return _tensors(_entry(_load(path), *ENTRIES), path), [path]
    if path.suffix != ".th":
        raise PretrainedError(
            f"pretrained: {path} is not a {KINDS} file; give one, or a folder that "
            f"holds {KNOWN}"
        )
    content = _load(path, demucs.stand_ins())
    if not (isinstance(content, dict) and "klass" in content):
        return _tensors(content, path), [path]
    with _errors_name(path):
        package = demucs.package_of_pickle(content)
    _tensors(package.state, path)
    return package, [path]


def read_safetensors(path: Path) -> tuple[State, dict[str, str]]:
    """Return tensors and metadata of a file, or raise a PretrainedError."""
    with _short_errors(path):
        return read_tensors(path)


def _load(path: Path, known: Sequence[tuple[type, str]] = ()) -> object:
    """Read a file of torch.save as data, with stand-ins for the known names."""
    # An explicit `weights_only` beats TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD.
    with _short_errors(path), torch.serialization.safe_globals(list(known)):
        return torch.load(path, weights_only=True, map_location="cpu")


@contextlib.contextmanager
def _short_errors(path: Path) -> Iterator[None]:
    """Cut the errors of a library, a dozen kinds for a foreign file, to the reason."""
    try:
        yield
    except Exception as error:
        # torch's explanation runs over many lines and advises to switch safety off.
        lines = [line.strip() for line in str(error).splitlines()]
        telling = (x for x in lines if "WeightsUnpickler error" in x or "GLOBAL" in x)
        reason = next(telling, f"{type(error).__name__}: {lines[0] if lines else ''}")
        raise PretrainedError(
            f"pretrained: {path} is damaged or holds more than tensors, and is not "
            f"loaded ({reason[:200]})"
        ) from error


def _entry(content: object, *keys: str) -> object:
    """Return the first entry of a training checkpoint; a bare state_dict as it is."""
    entries = content if isinstance(content, dict) else {}
    found = (entries[key] for key in keys if isinstance(entries.get(key), dict))
    return next(found, content)


def _tensors(content: Any, path: Path) -> State:
    """Return the content if it is a state_dict of ordinary tensors."""
    odd = [f"a {type(content).__name__}"]
    if isinstance(content, dict):
        odd = [str(key) for key, v in content.items() if not _is_plain(key, v)]
    if odd:
        raise PretrainedError(
            f"pretrained: {path} is not a state_dict of tensors, but holds "
            + _listed(odd)
        )
    return content


def _is_plain(key: object, value: object) -> bool:
    return (
        isinstance(key, str)
        and isinstance(value, Tensor)
        and value.layout == torch.strided
        and not (value.is_quantized or value.is_meta or value.is_complex())
    )
