"""Averages of weights, for evaluation: over the steps (EMA), or of some checkpoints.

torch's `AveragedModel` copies the whole module in the precision of its weights, frozen
ones included, and starts from the weights after the first step; hence our own.
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from modules.runtime.distributed import unwrap
from modules.runtime.tensors import first_mismatch, shapes_of


class EMA:
    """Averages the trainable parameters of one module, in float32 or wider.

    After optimizer step t: shadow <- d * shadow + (1 - d) * weight. Buffers and frozen
    parameters stay as they are. Ranks with equal weights hold equal averages, and a
    run that resumes continues its average exactly.

    With `warmup`, d = min(decay, (1 + t) / (10 + t)), as in TensorFlow, to forget the
    first weights after a few steps instead of 1 / (1 - decay) of them.

    >>> layer = nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.zeros_(layer.weight)
    >>> ema = EMA(decay=0.5, warmup=False).attach(layer)
    >>> _ = nn.init.ones_(layer.weight)
    >>> ema.update()
    >>> with ema.applied():
    ...     layer.weight.item()
    0.5
    >>> layer.weight.item()
    1.0
    """

    def __init__(self, decay: float = 0.999, warmup: bool = True) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        self.decay = decay
        self.warmup = warmup
        self.steps = 0
        self._module: nn.Module | None = None
        self._weights: dict[str, nn.Parameter] = {}
        self._shadow: dict[str, Tensor] = {}
        self._is_applied = False

    def attach(self, module: nn.Module) -> "EMA":
        """Start from the weights of a module, wrapped or not, on its final device."""
        self._module = unwrap(module)
        self._weights = {
            name: weight
            for name, weight in self._module.named_parameters()
            if weight.requires_grad
        }
        if not self._weights:
            raise ValueError("EMA: the module has no trainable parameters to average")
        self._shadow = {
            name: weight.detach().to(_wide(weight.dtype), copy=True)
            for name, weight in self._weights.items()
        }
        self.steps = 0
        return self

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the weights; call it after each optimizer step."""
        self._idle("update")
        decay = self.decay
        if self.warmup:
            decay = min(decay, (1 + self.steps) / (10 + self.steps))
        shadow = list(self._shadow.values())
        weights = [w.detach().to(_wide(w.dtype)) for w in self._weights.values()]
        torch._foreach_lerp_(shadow, weights, 1 - decay)
        self.steps += 1

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Give the module the averaged weights in a `with` block, then restore it.

        Inside, `update` and `state_dict` raise: a checkpoint saved there would keep the
        average in place of the weights.
        """
        module = self._idle("applied")
        live = [*module.parameters(), *module.buffers()]
        saved = [tensor.detach().clone() for tensor in live]
        self._is_applied = True
        try:
            with torch.no_grad():
                for name, weight in self._weights.items():
                    weight.copy_(self._shadow[name])
            yield
        finally:
            with torch.no_grad():
                for tensor, before in zip(live, saved, strict=True):
                    tensor.copy_(before)
            self._is_applied = False

    def averaged_state_dict(self) -> dict[str, Tensor]:
        """Return a copy of the module's `state_dict` with the averaged weights."""
        module = self._idle("averaged_state_dict")
        with self.applied():
            state = module.state_dict()
            return {name: tensor.clone() for name, tensor in state.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return what a resume needs: the number of updates and the average itself."""
        self._idle("state_dict")
        return {"steps": self.steps, "shadow": dict(self._shadow)}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`; raise if names or shapes of weights differ."""
        self._idle("load_state_dict")
        shadow = state["shadow"]
        if differ := first_mismatch(shapes_of(shadow), shapes_of(self._shadow)):
            raise RuntimeError(f"EMA: {differ}")
        for name, mine in self._shadow.items():
            mine.copy_(shadow[name])
        self.steps = int(state["steps"])

    def _idle(self, what: str) -> nn.Module:
        """Return the attached module; raise without one, or inside `applied`."""
        if self._module is None:
            raise RuntimeError(f"EMA.{what}: call attach(module) first")
        if self._is_applied:
            raise RuntimeError(f"EMA.{what} must not be called inside applied()")
        return self._module


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Return float32 or wider: in bfloat16 a small update rounds to nothing."""
    return torch.promote_types(dtype, torch.float32)


def mean_state(states: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of state_dicts, computed in float64.

    SpeechBrain's `average_state_dicts` adds in place, and so adds entries that share
    memory, as MossFormer2's rotary frequencies do, several times.

    >>> mean_state([{"weight": torch.tensor([1.0])}, {"weight": torch.tensor([2.0])}])
    {'weight': tensor([1.5000])}
    """
    totals: dict[str, Tensor] = {}
    count = 0
    for count, state in enumerate(states, start=1):  # noqa: B007
        for name, tensor in state.items():
            totals[name] = totals.get(name, 0) + tensor.double()
    return {name: (total / count).to(state[name]) for name, total in totals.items()}
