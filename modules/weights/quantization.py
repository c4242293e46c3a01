"""Weights in eight bits: a file of a quarter of the size, for inference.

The weights of convolutions, linear layers and attention projections are kept as int8
with one float scale for each output channel, symmetric around zero:

    scale = max |w| / 127 over the channel        w is read as  int8 * scale

so that no weight moves by more than half a step, scale / 2. Biases, norms and
embeddings stay as they are. A reader gets a plain float model: the file is smaller, the
arithmetic and the memory of a run are not.

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
    """Round a finite weight to 255 steps in each output channel, dimension `dim`.

    Returns the weight in int8, from -127 to 127, and its float32 scales, of size 1 in
    all other dimensions; a scale is 0 where a channel is all zeros.

    Example
    -------
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
    """Return the plain state_dict of a quantized one.

    Raise a `PretrainedError` that names the file `where` if there is no int8 weight, or
    the scales of one are missing, do not fit it, or are negative, NaN or Inf.
    """
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
        sound = scale.is_floating_point() and bool(
            (scale.isfinite() & (scale >= 0)).all()
        )
        if not (fits and sound):
            raise PretrainedError(
                f"{where}: the scales of {name} are damaged ({list(scale.shape)} for "
                f"{list(shape)}); export it anew"
            )
        state[name] = state[name].to(scale.dtype) * scale
    return state


def load_int8(model: nn.Module, path: str | Path) -> None:
    """Load a file of `quantized_state_dict` whole, or raise a `PretrainedError`."""
    load_state(model, dequantized(read_safetensors(Path(path)), path), path)
