"""Low-rank adapters: train a few percent of a network and leave the rest as it is.

Hu et al., "LoRA" (ICLR 2022, arXiv 2106.09685), on weights. An adapted weight reads

    weight + alpha / lora_rank * (up @ down)        up [R, r], down [r, C]

wherever the network reads it, through its layer or by hand. R is the size of the
weight's first dimension, C the product of the others and r the lora_rank; dilation,
stride, groups and transposition play no role. `up` starts at zero, so that nothing
changes at first.

The layer gets a subclass in which the weight is a property. Unlike
`torch.nn.utils.parametrize`, this keeps the base weight under its old key: the
state_dict of an adapted model is the plain one with `<layer>.lora_<weight>.{up,down}`
added. An adapted model can be deep-copied, but not pickled.
"""

import difflib
import fnmatch
import functools
import logging
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.runtime.errors import LoraError

LAYERS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.Linear)

logger = logging.getLogger(__name__)

PREFIX = "lora_"  # of an adapter's name in its layer


@dataclass(frozen=True)
class LoraConfig:
    """Everything but the weights needed to rebuild the adapters.

    `ranks` holds the rank of each tensor; `alpha` None means this rank, a factor of 1.
    """

    ranks: dict[str, int]
    alpha: float | None = None
    dropout: float = 0.0
    full: list[str] = field(default_factory=list)


class LowRank(nn.Module):
    """Adds `scale * up @ down` to a weight.

    In training, dropout leaves out input features of the layer: columns of `down`, the
    same ones for the whole batch.
    """

    def __init__(
        self, weight: Tensor, lora_rank: int, alpha: float, dropout: float, seed: int
    ) -> None:
        super().__init__()
        rows, columns = matrix_shape(weight)
        # Not from the global generator: the same in every process and on a resume.
        generator = torch.Generator().manual_seed(seed)
        down = torch.randn(lora_rank, columns, generator=generator) / math.sqrt(columns)
        self.down = nn.Parameter(down.to(weight))
        self.up = nn.Parameter(weight.new_zeros(rows, lora_rank))
        self.scale = alpha / lora_rank
        self.dropout = dropout

    def forward(self, weight: Tensor) -> Tensor:
        """Return the adapted weight."""
        down: Tensor = self.down
        if self.dropout and self.training:
            down = down * F.dropout(torch.ones_like(down[:1]), self.dropout)
        # Under autocast the product would be rounded, and differ from a merged weight.
        with torch.autocast(weight.device.type, enabled=False):
            change = (self.scale * self.up) @ down
        return weight + change.reshape(weight.shape)


def add_lora(
    model: nn.Module,
    lora_rank: int = 8,
    alpha: float | None = None,
    dropout: float = 0.0,
    lora_max_rank: int | None = None,
    layer_ranks: Mapping[str, int] | None = None,
    train_fully: Sequence[str] = (),
) -> dict[str, int]:
    """Freeze a model and adapt its convolutions, linear and attention projections.

    Arguments
    ---------
    model : nn.Module
        Changed in place, on its device; its output does not change.
    lora_rank : int
        The rank of every tensor; less where a tensor has fewer rows or columns.
    alpha : float | None
        The adapter counts `alpha / lora_rank`, by the tensor's own rank; None: 1.
    dropout : float
        Probability of `LowRank`'s dropout.
    lora_max_rank : int | None
        Upper limit of all ranks.
    layer_ranks : Mapping[str, int] | None
        Ranks by pattern, first match wins: `encoder.*`, `*.in_proj_weight`, matched
        with the names of weights and of their layers. 0 means no adapter.
    train_fully : Sequence[str]
        Patterns of parameters to train as a whole, without an adapter.

    Returns
    -------
    dict[str, int]
        The rank of each adapted tensor.

    Raises
    ------
    LoraError
        A number is out of range, a pattern matches nothing (near names are listed), the
        model has adapters already, or two layers share a weight.

    Example
    -------
    >>> model = nn.Sequential(nn.Conv1d(4, 16, 3), nn.ReLU(), nn.Conv1d(16, 1, 1))
    >>> add_lora(model, lora_rank=4)
    {'0.weight': 4, '2.weight': 1}
    >>> sorted(lora_state_dict(model))[:2]
    ['0.lora_weight.down', '0.lora_weight.up']
    """
    full = matching(train_fully, dict(model.named_parameters()), "train_fully")
    ranks = choose_ranks(model, lora_rank, lora_max_rank, layer_ranks)
    ranks = {name: value for name, value in ranks.items() if name not in full}
    attach(model, LoraConfig(ranks, alpha, dropout, full))
    return ranks


def choose_ranks(
    model: nn.Module,
    lora_rank: int,
    lora_max_rank: int | None = None,
    layer_ranks: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Return the rank of each tensor that `add_lora` would adapt; see there."""
    weights, patterns = adaptable(model), dict(layer_ranks or {})
    limits = {"lora_rank": (lora_rank, 1)}
    if lora_max_rank is not None:
        limits["lora_max_rank"] = (lora_max_rank, 1)
    limits |= {f"layer_ranks[{p}]": (value, 0) for p, value in patterns.items()}
    for name, (value, least) in limits.items():
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not (whole and value >= least):
            raise LoraError(f"{name}={value!r}: must be an integer, {least} or more")
    matching(list(patterns), weights, "layer_ranks")
    ranks = {}
    for name, weight in weights.items():
        given = next((r for p, r in patterns.items() if _matches(name, p)), lora_rank)
        if given:
            ranks[name] = min(given, *matrix_shape(weight), lora_max_rank or given)
    return ranks


def attach(model: nn.Module, config: LoraConfig) -> None:
    """Freeze a model and add the adapters of a configuration, at their start."""
    if not (isinstance(config.dropout, int | float) and 0 <= config.dropout < 1):
        raise LoraError(f"dropout={config.dropout!r}: must be in [0, 1)")
    alpha = 1 if config.alpha is None else config.alpha
    if not (isinstance(alpha, int | float) and alpha > 0):
        raise LoraError(f"alpha={alpha!r}: must be a number above 0, or null")
    if hasattr(model, "lora_config"):
        raise LoraError("the model has adapters already: merge them first")
    if not config.ranks and not config.full:
        raise LoraError(f"{type(model).__name__} has nothing to adapt, or no rank")
    frozen = [n for n, p in model.named_parameters() if p.requires_grad]
    model.requires_grad_(False)
    by_layer: dict[nn.Module, list[str]] = {}
    for name, lora_rank in config.ranks.items():
        layer_name, _, weight_name = name.rpartition(".")
        layer = model.get_submodule(layer_name)
        by_layer.setdefault(layer, []).append(weight_name)
        alpha = lora_rank if config.alpha is None else config.alpha
        seed, weight = zlib.crc32(name.encode()), layer.get_parameter(weight_name)
        adapter = LowRank(weight, lora_rank, alpha, config.dropout, seed)
        layer.add_module(PREFIX + weight_name, adapter.train(layer.training))
    for layer, weight_names in by_layer.items():
        kind: Any = type(layer)  # mypy holds that a class of modules has no hash
        layer.__class__ = _adapted_class(kind, tuple(weight_names))
    for name in config.full:
        model.get_parameter(name).requires_grad_(True)
    vars(model).update(lora_config=config, lora_frozen=frozen)


@functools.cache
def _adapted_class(kind: type, weight_names: tuple[str, ...]) -> type:
    """Return a layer's class with weights as properties, one for all such layers."""

    def read(weight_name: str) -> property:
        def adapted(layer: nn.Module) -> Tensor:
            adapter = getattr(layer, PREFIX + weight_name)
            return adapter(layer._parameters[weight_name])

        return property(adapted)

    members = {name: read(name) for name in weight_names}
    return type(f"Lora{kind.__name__}", (kind,), members | {"plain_class": kind})


def adaptable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weights that can get adapters, by name.

    These are the weights of convolutions and linear layers, and the bare parameters of
    attention: `in_proj_weight`, or `q_proj_weight` and its like.
    """
    found: dict[str, nn.Parameter] = {}
    names: dict[int, str] = {}
    for layer_name, layer in model.named_modules():
        for weight_name, weight in layer._parameters.items():
            of_layer = isinstance(layer, LAYERS) and weight_name == "weight"
            if weight is None or not (of_layer or weight_name.endswith("proj_weight")):
                continue
            name = f"{layer_name}.{weight_name}".lstrip(".")
            if (other := names.setdefault(id(weight), name)) != name:
                raise LoraError(f"{other} and {name} are one tensor: not supported")
            found[name] = weight
    return found


def lora_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of adapters and those that train fully."""
    full = set(config_of(model).full)
    return {
        name: tensor.detach()
        for name, tensor in model.named_parameters()
        if name in full or is_adapter(name)
    }


def plain_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return the state_dict of the plain model."""
    return {k: v for k, v in model.state_dict().items() if not is_adapter(k)}


@torch.no_grad()
def merge(model: nn.Module) -> nn.Module:
    """Add the adapters to the weights of a model for good, in place, and return it.

    Keys, classes and trainable parameters are those of the plain model again, and its
    output is that of the adapted one in evaluation.

    Example
    -------
    >>> layer = nn.Linear(4, 4)
    >>> _ = add_lora(layer, lora_rank=2)
    >>> sorted(merge(layer).state_dict())
    ['bias', 'weight']
    """
    config_of(model)
    for layer in model.modules():
        plain_class = getattr(type(layer), "plain_class", None)
        if plain_class is None:
            continue
        layer.__class__ = plain_class
        for name, adapter in list(layer.named_children()):
            if isinstance(adapter, LowRank):
                weight = layer.get_parameter(name.removeprefix(PREFIX))
                weight.copy_(adapter.eval()(weight))
                delattr(layer, name)
    for name in vars(model).pop("lora_frozen"):
        model.get_parameter(name).requires_grad_(True)
    del vars(model)["lora_config"]
    return model


def trainable_share(model: nn.Module) -> float:
    """Return the parameters that train over those of the plain model."""
    adapters = sum(p.numel() for n, p in model.named_parameters() if is_adapter(n))
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return trainable / (sum(p.numel() for p in model.parameters()) - adapters)


def matrix_shape(weight: Tensor) -> tuple[int, int]:
    """Return rows and columns of a weight as a matrix."""
    return weight.shape[0], weight[0].numel()


def config_of(model: nn.Module) -> LoraConfig:
    """Return the settings of an adapted model."""
    config = getattr(model, "lora_config", None)
    if config is None:
        raise LoraError(f"this {type(model).__name__} has no adapters")
    return config


def adapter_name(name: str) -> str:
    """Return the name of the adapter of a weight."""
    layer_name, _, weight_name = name.rpartition(".")
    return f"{layer_name}.{PREFIX}{weight_name}".lstrip(".")


def is_adapter(key: str) -> bool:
    """Return whether a state_dict key belongs to an adapter."""
    return any(part.startswith(PREFIX) for part in key.split("."))


def _matches(name: str, pattern: str) -> bool:
    """Return whether a pattern matches the name of a weight or of its layer."""
    layer_name = name.rpartition(".")[0]
    return any(fnmatch.fnmatchcase(n, pattern) for n in (name, layer_name))


def matching(
    patterns: Sequence[str], names: Mapping[str, object], setting: str
) -> list[str]:
    """Return the names that match a pattern; raise if a pattern matches none.

    Say so if the names have twins that all patterns leave out: `tencoder.*` beside
    `encoder.*` in an HTDemucs.
    """
    for pattern in patterns:
        if not any(_matches(name, pattern) for name in names):
            near = ", ".join(_near(pattern, names))
            raise LoraError(
                f"{setting}: {pattern!r} matches no weight; near are {near}"
            )
    found = [name for name in names if any(_matches(name, p) for p in patterns)]
    twins = [f"t{name}" for name in found if f"t{name}" in names]
    if left := [name for name in twins if name not in found]:
        first = next(p for p in patterns if _matches(left[0][1:], p))
        logger.warning(
            f"{setting}: {first} leaves the twin branch out: t{first} would match "
            f"{len(left)} more, as {left[0]}"
        )
    return found


def _near(pattern: str, names: Mapping[str, object]) -> list[str]:
    """Return patterns that match: the beginnings of names most like the given one."""
    heads: dict[str, str] = {}
    for name in names:
        parts = name.split(".")
        for end in range(1, len(parts)):
            heads[".".join(parts[:end])] = ".".join([*parts[:end], "*"])
        heads[name] = name
    near = difflib.get_close_matches(pattern.strip(".*"), heads, n=3, cutoff=0.4)
    return [heads[head] for head in near or list(heads)[:3]]
