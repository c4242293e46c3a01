"""Muon for the matrices of a network, AdamW for its other weights."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import AdamW, Optimizer


class Muon(Optimizer):
    """torch's Muon (Jordan et al., 2024) for weights of two axes, AdamW for the rest.

    They share `lr` and `weight_decay`: Muon's steps are scaled to the size of AdamW's
    (Liu et al., arXiv 2502.16982). A ValueError says what is out of range, that there
    is no such weight, or that torch is too old.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        if not hasattr(torch.optim, "Muon"):
            raise ValueError(f"torch {torch.__version__} has no Muon; 2.9 and later do")
        kinds: dict[bool, list[nn.Parameter]] = {True: [], False: []}
        for weight in params:
            kinds[weight.ndim == 2].append(weight)
        if not kinds[True]:
            raise ValueError("Muon: no weight has two axes; use torch.optim.AdamW")
        muon = torch.optim.Muon(kinds[True], lr, weight_decay, momentum)
        muon.param_groups[0]["adjust_lr_fn"] = "match_rms_adamw"
        self.parts: list[Optimizer] = [muon]
        if kinds[False]:
            self.parts.append(AdamW(kinds[False], lr, betas, weight_decay=weight_decay))
        groups = [group for part in self.parts for group in part.param_groups]
        given = {"lr": lr, "weight_decay": weight_decay}
        super().__init__(groups, {**given, "momentum": momentum, "betas": betas})

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step; groups and state are those of the whole, as it was loaded."""
        for part, group in zip(self.parts, self.param_groups, strict=True):
            part.param_groups, part.state = [group], self.state
            part.step()
