"""The layouts of published weights: one table says all that the code knows of each.

Files are read as data, never as code.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from modules.runtime.errors import DamagedCheckpoint, PretrainedError
from modules.runtime.tensors import read_tensors
from modules.weights import demucs, msst
from modules.weights.checkpoint_files import read_checkpoint
from modules.weights.checkpointer import best_checkpoint
from modules.weights.demucs import Package, State
from modules.weights.stated import CLEARERVOICE_RATE

PARTS = ("encoder", "masknet", "decoder")
POINTER = "last_best_checkpoint"
SETTINGS = "hyperparams.yaml"
ESPNET = "config.yaml"
SINGLE = (".th", ".pth", ".ckpt", ".safetensors")
KINDS = f"{', '.join(SINGLE[:-1])} or {SINGLE[-1]}"
#: Where training checkpoints keep their weights: of ours, MSST, SepReformer and SCNet.
ENTRIES = ("model_state_dict", "state_dict", "state", "best_state")
LISTED = 20  # names given in an error, of each kind

SEPREFORMER_RATE = 8000  # of the authors' models, whose files do not state it
STANDALONE_RATE = 8000  # of MossFormer2's standalone release

Weights = State | Package
Found = tuple[Weights, list[Path]]


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
    names = listed(sorted(path.name for path in folder.iterdir()))
    raise PretrainedError(
        f"pretrained: {folder} holds no known layout of weights (it has: "
        f"{names or 'nothing'}); known are {KNOWN}"
    )


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
            + listed([path.name for path in single])
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
    """Read the best checkpoint below a folder, as the test of its run does."""
    found = folder.rglob("CKPT+*/separator.ckpt")
    runs = sorted({str(path.parents[1]) for path in found})
    if not runs:
        return None
    if len(runs) > 1:
        raise PretrainedError(
            f"pretrained: {folder} holds checkpoints of {len(runs)} runs; name one of "
            + listed(runs)
        )
    try:
        best = best_checkpoint(Path(runs[0]))
    except DamagedCheckpoint as error:
        raise PretrainedError(f"pretrained: {error}") from error
    return None if best is None else _read_checkpoint(best.path)


# ---------------------------------------------------------------- files


def _read_file(path: Path) -> Found:
    """Read a package of demucs or a state_dict."""
    if path.suffix == ".safetensors":
        state, metadata = read_safetensors(path)
        if "klass" not in metadata:
            return state, [path]
        with errors_name(path):
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
    with errors_name(path):
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
            + listed(odd)
        )
    return content


def _is_plain(key: object, value: object) -> bool:
    return (
        isinstance(key, str)
        and isinstance(value, Tensor)
        and value.layout == torch.strided
        and not (value.is_quantized or value.is_meta or value.is_complex())
    )


def listed(names: Sequence[str]) -> str:
    """Return the first names and how many more there are."""
    more = [f"... and {len(names) - LISTED} more"] if len(names) > LISTED else []
    return "; ".join([*names[:LISTED], *more])


@contextlib.contextmanager
def errors_name(path: str | Path) -> Iterator[None]:
    """Turn errors that go on from the name of a file into PretrainedErrors."""
    try:
        yield
    except PretrainedError:
        raise
    except (ValueError, KeyError) as error:
        raise PretrainedError(f"pretrained: {path} {error}") from error


# ---------------------------------------------------------------- the table


class Layout(NamedTuple):
    """A way in which weights are published: how to find, to read and to use them."""

    name: str  # as errors write it
    #: Reads a folder; returns None for another layout.
    read: Callable[[Path], Found | None]
    #: At a hub: the files that make it, and those that may lie beside, by alternatives.
    hub: Sequence[tuple[tuple[str, ...], tuple[str, ...]]] = ()
    #: A pattern of a key of its network alone; a package of demucs has the key `klass`.
    keys: str = ""
    network: str = ""  # the function of networks.py that makes it
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
        "clearervoice",
        CLEARERVOICE_RATE,
    ),
    Layout(
        "encoder.ckpt + masknet.ckpt + decoder.ckpt or the same as .bin (SpeechBrain)",
        _read_parts,
        [(tuple(p + end for p in PARTS), (SETTINGS,)) for end in (".ckpt", ".bin")],
        *(r"\.self_att\.att\.in_proj_weight", "sepformer"),
    ),
    Layout(
        "pytorch_model.bin",
        partial(_read_named, "pytorch_model.bin"),
        [(("pytorch_model.bin",), ())],
        r"\.intra_mdl\.mdl\.flashT\.",
        "mossformer2",
        STANDALONE_RATE,
    ),
    Layout(
        "one .pth with config.yaml (ESPnet)",
        _read_single,
        [(("*.pth",), (ESPNET,))],
        *(r"\.attn\.rope\.freqs$", "tf_locoformer"),
    ),
    Layout(
        "one .th or .safetensors (demucs)",
        _read_single,
        [(("*.th",), ("*.yaml",)), (("*.safetensors",), ("*.yaml",))],
        *("^klass$", "demucs"),
    ),
    Layout(
        *("one .pth (SepReformer)", _read_single, ()),
        *(r"\.pos_emb\.pe_k\.weight", "sepreformer", SEPREFORMER_RATE),
    ),
    Layout(
        *("one .ckpt with its YAML (MSST)", _read_single, ()),
        f"^({'|'.join(map(re.escape, msst.MARKS))})$",
        "msst",
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
