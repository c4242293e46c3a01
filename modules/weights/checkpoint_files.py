"""The files of one checkpoint on disk: digests, flushing and reading back.

CKPT.yaml holds the meta values and a manifest (name, size and digest of every other
file); its last line is the digest of those above.
"""

import contextlib
import hashlib
import math
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from speechbrain.utils.checkpoints import METAFNAME, PARAMFILE_EXT, Checkpoint
from torch import Tensor

from modules.runtime.errors import (
    CheckpointMismatch,
    DamagedCheckpoint,
    NonFiniteWeights,
)
from modules.runtime.files import fingerprint, fsync, open_file
from modules.runtime.tensors import first_mismatch, is_finite, shapes_of

MANIFEST = "manifest"
DIGEST_LINE = b"# digest: "

# The same safe loader in C, where PyYAML has it: every save reads all CKPT.yaml.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# A scheduler fed with a numpy loss keeps numpy scalars; they are data, not code.
_NUMPY_SCALARS = [
    np._core.multiarray.scalar,  # type: ignore[attr-defined]
    np.dtype,
    *(type(np.dtype(t)) for t in (np.float32, np.float64, np.int32, np.int64)),
]


def check_fit(model: torch.nn.Module, state: Mapping[str, Tensor]) -> None:
    """Raise a `CheckpointMismatch` unless names and shapes are those of the model."""
    if differ := first_mismatch(shapes_of(state), shapes_of(model.state_dict())):
        raise CheckpointMismatch(
            f"{differ}; give the same sizes as before, or another output_folder"
        )


def seal(folder: Path, meta: dict) -> None:
    """Flush the files of a checkpoint, and write CKPT.yaml with `meta` and manifest."""
    paths = sorted(folder.iterdir())
    # In parallel, because flushing waits for the disk and a digest for the CPU.
    with ThreadPoolExecutor(max_workers=1) as flusher:
        flushed = [flusher.submit(fsync, path) for path in paths]
        meta[MANIFEST] = {path.name: fingerprint(path) for path in paths}
    for result in flushed:
        result.result()  # raises what the flush of that file did
    body = yaml.safe_dump(meta, allow_unicode=True).encode()
    with open(folder / METAFNAME, "wb") as file:
        file.write(body + DIGEST_LINE + _digest(body).encode() + b"\n")
    fsync(folder / METAFNAME)
    fsync(folder)


def read_checkpoint(path: Path, check_digests: bool = False) -> Checkpoint:
    """Return a checkpoint whose files have the sizes, or digests, of its manifest.

    Raise a `DamagedCheckpoint` that says which file is missing or differs.
    """
    try:
        if path.is_symlink():
            raise DamagedCheckpoint("it is a link, not a folder")
        with open_file(path / METAFNAME) as file:
            body, mark, line = file.read().rpartition(DIGEST_LINE)
        if not mark or line != _digest(body).encode() + b"\n":
            raise DamagedCheckpoint(
                f"{METAFNAME} is damaged or not written by AtomicCheckpointer"
            )
        meta = yaml.load(body, _LOADER)
        for name, (size, digest) in meta[MANIFEST].items():
            if name != Path(name).name or (path / name).is_symlink():
                raise DamagedCheckpoint(f"{name!r} is no file in its folder")
            present = (path / name).stat().st_size
            if present != size:
                raise DamagedCheckpoint(f"{name} has {present} of {size} bytes")
            if check_digests and fingerprint(path / name)[1] != digest:
                raise DamagedCheckpoint(f"{name} does not match its digest")
        files = {
            name.removesuffix(PARAMFILE_EXT): path / name for name in meta[MANIFEST]
        }
    except OSError as error:
        raise DamagedCheckpoint(f"{error.filename}: {error.strerror}") from error
    except (yaml.YAMLError, LookupError, TypeError, ValueError) as error:
        raise DamagedCheckpoint(f"{METAFNAME} cannot be read: {error}") from error
    return Checkpoint(path, meta, files)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def named_tensors(state: object, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor in nested containers with a dotted name."""
    if isinstance(state, Tensor):
        yield name, state
    elif isinstance(state, Mapping | list | tuple):
        items = state.items() if isinstance(state, Mapping) else enumerate(state)
        for key, value in items:
            yield from named_tensors(value, f"{name}.{key}" if name else str(key))


def check_finite(states: dict[str, object]) -> None:
    """Raise `NonFiniteWeights` if any tensor holds NaN or Inf."""
    bad = [name for name, tensor in named_tensors(states) if not is_finite(tensor)]
    if bad:
        more = f" and {len(bad) - 1} more tensors" if len(bad) > 1 else ""
        raise NonFiniteWeights(
            f"not saved: NaN or Inf in '{bad[0]}'{more}; the checkpoints saved before "
            "are intact, lower lr before going on from them"
        )


def plain(value: Any, name: str = "meta") -> Any:
    """Return the value in types that YAML keeps; `name` is for the error."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Tensor | np.ndarray | np.generic):
        return value.item() if math.prod(value.shape) == 1 else value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {plain(k, name): plain(v, f"{name}.{k}") for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item, name) for item in value]
    raise TypeError(f"{name} has a value that cannot be saved: {value!r}")


@contextlib.contextmanager
def weights_only_loading() -> Iterator[None]:
    """Make every `torch.load`, also in foreign hooks, read data and never code."""
    force, forbid = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
    before = {key: os.environ.pop(key, None) for key in (force, forbid)}
    os.environ[force] = "1"
    try:
        with torch.serialization.safe_globals(_NUMPY_SCALARS):
            yield
    finally:
        del os.environ[force]
        os.environ.update({k: v for k, v in before.items() if v is not None})
