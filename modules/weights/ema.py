"""Averages of weights, for evaluation: over the steps (EMA), or of some checkpoints.

torch's `AveragedModel` copies the whole module in the precision of its weights, frozen
ones included, and starts from the weights after the first step; hence our own.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
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

    Of several decays each has an average, and `best` says by number which is applied.

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

    def __init__(
        self, decay: float | Sequence[float] = 0.999, warmup: bool = True
    ) -> None:
        self.decays = [*decay] if isinstance(decay, Sequence) else [decay]
        if not all(0 <= decay < 1 for decay in self.decays):
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        self.best = 0
        self.warmup = warmup
        self.steps = 0
        self._module: nn.Module | None = None
        self._weights: dict[str, nn.Parameter] = {}
        self._shadows: list[dict[str, Tensor]] = []
        self._is_applied = False

    def attach(self, module: nn.Module) -> "EMA":
        """Start from the weights of a module, wrapped or not, on its final device."""
        self._module = unwrap(module)
        named = self._module.named_parameters()
        self._weights = weights = {n: w for n, w in named if w.requires_grad}
        if not self._weights:
            raise ValueError("EMA: the module has no trainable parameters to average")
        self._shadows = [
            {n: w.detach().to(_wide(w.dtype), copy=True) for n, w in weights.items()}
            for _ in self.decays
        ]
        self.steps = 0
        return self

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the weights; call it after each optimizer step."""
        self._idle("update")
        weights = [w.detach().to(_wide(w.dtype)) for w in self._weights.values()]
        for decay, shadow in zip(self.decays, self._shadows, strict=True):
            if self.warmup:
                decay = min(decay, (1 + self.steps) / (10 + self.steps))
            torch._foreach_lerp_(list(shadow.values()), weights, 1 - decay)
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
                    weight.copy_(self._shadows[self.best][name])
            yield
        finally:
            with torch.no_grad():
                for tensor, before in zip(live, saved, strict=True):
                    tensor.copy_(before)
            self._is_applied = False

    def state_dict(self) -> dict[str, Any]:
        """Return what a resume needs: the number of updates and the averages.

        The best one stands where that of a single decay does.
        """
        self._idle("state_dict")
        state = {"steps": self.steps, "shadow": dict(self._shadows[self.best])}
        if len(self.decays) > 1:
            state |= {"best": self.best, "shadows": [dict(s) for s in self._shadows]}
        return state

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`; raise if names or shapes of weights differ.

        Where the number of decays was another one, all go on from the best.
        """
        self._idle("load_state_dict")
        shadows, best = state.get("shadows", []), state.get("best", 0)
        if len(shadows) != len(self.decays):
            shadows, best = [state["shadow"]] * len(self.decays), 0
        for shadow in shadows:
            if differ := first_mismatch(shapes_of(shadow), shapes_of(self._shadows[0])):
                raise RuntimeError(f"EMA: {differ}")
        for mine, shadow in zip(self._shadows, shadows, strict=True):
            for name, tensor in mine.items():
                tensor.copy_(shadow[name])
        self.steps, self.best = int(state["steps"]), best

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
