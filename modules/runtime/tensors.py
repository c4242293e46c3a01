"""Files of tensors in safetensors, and how two sets of tensors compare."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from modules.runtime.files import write_whole

Shapes = Mapping[str, object]  # anything that can be compared, by name


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


def mismatches(file: Shapes, model: Shapes) -> dict[str, list[str]]:
    """Return what differs between a file and a model, by kind; {} if they are equal.

    >>> mismatches({"a": [2], "b": [3]}, {"a": [4], "b": [3]})
    {'another shape': ['a: [2] in the file, [4] in the model']}
    """

    def line(name: str) -> str:
        theirs, ours = (shapes.get(name, "absent") for shapes in (file, model))
        return f"{name}: {theirs} in the file, {ours} in the model"

    common = [name for name in model if name in file]
    names = {
        "another shape": [name for name in common if file[name] != model[name]],
        "missing": [name for name in model if name not in file],
        "unexpected": [name for name in file if name not in model],
    }
    return {kind: list(map(line, found)) for kind, found in names.items() if found}


def first_mismatch(file: Shapes, model: Shapes) -> str | None:
    """Say how many tensors differ and name one; None if a file fits a model."""
    lines = [line for found in mismatches(file, model).values() for line in found]
    if not lines:
        return None
    count = f"{len(lines)} of {len(file.keys() | model.keys())} tensors differ"
    return f"{count}, for instance {lines[0]}"


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


def song_level(count: int, mean_X: Tensor, mono_X: Tensor, power_X: Tensor) -> Tensor:
    """Return the levels by which songs of `count` samples are normalised.

    A level is the deviation of the mean of all channels, as in demucs, but at least
    half of all channels' root mean square: channels that cancel would leave nothing to
    divide by. The two are equal where channels of one power correlate by -0.5.

    `mono_X` is the sum of the squares of the channels' mean, `power_X` the sum over
    samples of the mean over channels of the squares; `mean_X` is what to subtract.
    """
    mean_power_X = count * mean_X.square()
    variance_X = (mono_X - mean_power_X).maximum((power_X - mean_power_X) / 4)
    return (variance_X.clamp(min=0) / max(count - 1, 1)).sqrt()
