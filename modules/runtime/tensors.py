"""Files of tensors in safetensors, and how two sets of tensors compare."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from modules.runtime.files import write_whole

Shapes = Mapping[str, Sequence[int]]


def save_tensors(
    path: str | Path,
    state: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a safetensors file, whole or not at all."""
    # Tensors must be contiguous and may not share memory.
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in state.items()
    }
    # `save_file` would let nobody but the owner read the file.
    with write_whole(path) as partial:
        partial.write_bytes(save(tensors, dict(metadata or {"format": "pt"})))


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors and metadata of a safetensors file."""
    with safe_open(path, framework="pt", device="cpu") as file:
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return state, file.metadata() or {}


def shapes_of(state: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """Return the shape of each tensor by its name."""
    return {name: list(tensor.shape) for name, tensor in state.items()}


def first_mismatch(there: Shapes, here: Shapes) -> str | None:
    """Say how many names or shapes differ and name one; None if they are equal.

    Example
    -------
    >>> first_mismatch({"a": [2], "b": [3]}, {"a": [2], "b": [4]})
    '1 of 2 tensors differ, for instance b: [3] there, [4] here'
    """
    names = list(dict.fromkeys([*here, *there]))
    # A tensor of another shape says more than an absent one.
    differ = sorted(
        (name for name in names if here.get(name) != there.get(name)),
        key=lambda name: not (name in here and name in there),
    )
    if not differ:
        return None
    theirs, ours = (shapes.get(differ[0], "absent") for shapes in (there, here))
    return (
        f"{len(differ)} of {len(names)} tensors differ, for instance {differ[0]}: "
        f"{theirs} there, {ours} here"
    )


def is_finite(tensor: Tensor) -> bool:
    """Return whether a tensor holds neither NaN nor Inf.

    The smallest and the largest value tell it in a tenth of the time of
    `isfinite().all()`, which would take longer than writing a checkpoint.
    """
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    return all(bool(value.isfinite()) for value in torch.aminmax(tensor))
