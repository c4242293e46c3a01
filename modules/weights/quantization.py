"""Weights in eight bits: a file of a quarter of the size, for inference.

Weights of convolutions, linear layers and attention projections are kept as int8 with a
float scale for each output channel, max |w| / 127, and are read as int8 * scale: none
moves by more than scale / 2. A reader gets a plain float model, so only the file gets
smaller, not the memory and arithmetic of a run.

torchao 0.18 quantises `nn.Linear` alone, 12 of the 64 weight tensors of a small
HTDemucs, and its files need its own tensor classes to be read.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from modules.lora.adapters import adaptable
from modules.runtime.errors import PretrainedError
from modules.weights.pretrained import load_state, read_safetensors

SUFFIX = "_scale"  # a key's, for the scales of the weight of that name

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d)


def quantize(weight: Tensor, dim: int = 0) -> tuple[Tensor, Tensor]:
    """Return a finite weight as int8 and the float32 scales of its channels in `dim`.

    The scales have size 1 in all other dimensions; that of an all-zero channel is 0.

    >>> weight_int8, scale = quantize(torch.tensor([[1.27, 0.5], [0.0, 0.0]]))
    >>> weight_int8.tolist(), round(scale[0].item(), 4)
    ([[127, 50], [0, 0]], 0.01)
    """
    weight = weight.detach().float()
    others = [d for d in range(weight.ndim) if d != dim]
    scale = weight.abs().amax(others, keepdim=True) / 127
    # A channel so small that its scale is no longer a normal number counts as zero.
    tiny = scale < torch.finfo(torch.float32).tiny
    steps = (weight / scale.masked_fill(tiny, 1)).round().masked_fill(tiny, 0)
    return steps.clamp(-127, 127).to(torch.int8), scale.masked_fill(tiny, 0)


def quantized_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return the state_dict with int8 weights and their scales under `<key>_scale`."""
    state = dict(model.state_dict())
    for name in adaptable(model):
        layer = model.get_submodule(name.rpartition(".")[0])
        dim = 1 if isinstance(layer, TRANSPOSED) else 0
        state[name], state[name + SUFFIX] = quantize(state[name], dim)
    return state


def dequantized(state: Mapping[str, Tensor], where: str | Path) -> dict[str, Tensor]:
    """Return the plain state_dict; raise `PretrainedError` unless all scales fit."""
    state = dict(state)
    names = [name for name, tensor in state.items() if tensor.dtype == torch.int8]
    if not names:
        raise PretrainedError(f"{where}: holds no int8 weights; export it anew")
    for name in names:
        scale = state.pop(name + SUFFIX, None)
        if scale is None:
            raise PretrainedError(f"{where}: {name} has no scales; export it anew")
        shape = state[name].shape
        fits = len(scale.shape) == len(shape) and all(
            size in (1, full) for size, full in zip(scale.shape, shape, strict=True)
        )
        valid = scale.isfinite() & (scale >= 0)
        if not (fits and scale.is_floating_point() and valid.all()):
            raise PretrainedError(
                f"{where}: the scales of {name} are damaged ({list(scale.shape)} for "
                f"{list(shape)}); export it anew"
            )
        state[name] = state[name].to(scale.dtype) * scale
    return state


def load_int8(model: nn.Module, path: str | Path) -> None:
    """Load a file of `quantized_state_dict` whole, or raise a `PretrainedError`."""
    state, _ = read_safetensors(Path(path))
    load_state(model, dequantized(state, path), path)
