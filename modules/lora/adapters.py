"""Low-rank adapters: train a few percent of a network and leave the rest as it is.

Hu et al., "LoRA" (ICLR 2022, arXiv 2106.09685), on weights. An adapted weight reads

    weight + alpha / lora_rank * (up @ down)        up [R, r], down [r, C]

wherever the network reads it, through its layer or by hand. R is the size of the
weight's first dimension, C the product of all others and r the lora_rank, so that
dilation, stride, groups and transposition need no thought. `up` starts at zero:
nothing changes at first.

The layer gets a subclass in which the weight is a property. Unlike
`torch.nn.utils.parametrize`, this leaves the base weight in its place under its old
key: the state_dict of an adapted model is the plain one and, in addition,
`<layer>.lora_<weight>.{up,down}`. The adapters are ordinary parameters, so that
DistributedDataParallel, an EMA and an optimizer treat them as any others. An adapted
model can be deep-copied, but not pickled.
"""

import difflib
import fnmatch
import functools
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.runtime.errors import LoraError

LAYERS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.Linear)

PREFIX = "lora_"  # of an adapter's name in its layer


@dataclass(frozen=True)
class LoraConfig:
    """Everything but the weights needed to rebuild the adapters.

    `ranks` holds the LoRA rank of each tensor; `alpha` None means this rank itself, a
    factor of 1.
    """

    ranks: dict[str, int]
    alpha: float | None = None
    dropout: float = 0.0
    full: list[str] = field(default_factory=list)


class LowRank(nn.Module):
    """Adds `scale * up @ down` to a weight.

    Dropout, in training, leaves out columns of `down` (input features of the layer),
    the same ones for the whole batch.
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
        """Return the adapted weight, in the shape of the given one."""
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
        No tensor gets more.
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
    weights = adaptable(model)
    patterns = dict(layer_ranks or {})
    limits = {"lora_rank": (lora_rank, 1)}
    if lora_max_rank is not None:
        limits["lora_max_rank"] = (lora_max_rank, 1)
    limits |= {f"layer_ranks[{p}]": (value, 0) for p, value in patterns.items()}
    for name, (value, least) in limits.items():
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not (whole and value >= least):
            raise LoraError(f"{name}={value!r}: must be an integer, {least} or more")
    for pattern in patterns:
        matching([pattern], weights, "layer_ranks")
    ranks = {}
    for name, weight in weights.items():
        given = next((r for p, r in patterns.items() if _matches(name, p)), lora_rank)
        most = min(*matrix_shape(weight), lora_max_rank or given)
        if given:
            ranks[name] = min(given, most)
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
    model.lora_frozen = [n for n, p in model.named_parameters() if p.requires_grad]
    model.requires_grad_(False)
    by_layer: dict[str, list[str]] = {}
    for name, lora_rank in config.ranks.items():
        layer_name, _, weight_name = name.rpartition(".")
        by_layer.setdefault(layer_name, []).append(weight_name)
        layer = model.get_submodule(layer_name)
        alpha = lora_rank if config.alpha is None else config.alpha
        seed, weight = zlib.crc32(name.encode()), base_weight(model, name)
        adapter = LowRank(weight, lora_rank, alpha, config.dropout, seed)
        adapter.train(layer.training)
        layer.add_module(PREFIX + weight_name, adapter)
    for layer_name, weight_names in by_layer.items():
        layer = model.get_submodule(layer_name)
        layer.__class__ = _adapted_class(type(layer), tuple(weight_names))
    for name in config.full:
        model.get_parameter(name).requires_grad_(True)
    model.lora_config = config


@functools.cache
def _adapted_class(kind: type, weight_names: tuple[str, ...]) -> type:
    """A layer's class with these weights as properties; one for all such layers."""

    def read(weight_name: str) -> property:
        def adapted(layer: nn.Module) -> Tensor:
            adapter = layer._modules[PREFIX + weight_name]
            return adapter(layer._parameters[weight_name])

        return property(adapted)

    members = {name: read(name) for name in weight_names}
    return type(f"Lora{kind.__name__}", (kind,), members | {"plain_class": kind})


def adaptable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weights that can get adapters, by name.

    These are the weights of every convolution and linear layer, and the bare parameters
    of attention layers: `in_proj_weight`, or `q_proj_weight` and its like.
    """
    found: dict[str, nn.Parameter] = {}
    names: dict[int, str] = {}
    for layer_name, layer in model.named_modules():
        for weight_name, weight in layer._parameters.items():
            is_weight = isinstance(layer, LAYERS) and weight_name == "weight"
            is_weight = is_weight or weight_name.endswith("proj_weight")
            if weight is None or not is_weight:
                continue
            name = f"{layer_name}.{weight_name}".lstrip(".")
            if (other := names.setdefault(id(weight), name)) != name:
                raise LoraError(f"{other} and {name} are one tensor: not supported")
            found[name] = weight
    return found


def lora_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of adapters and those that train fully, by their keys."""
    full = set(config_of(model).full)
    return {
        name: tensor.detach()
        for name, tensor in model.named_parameters()
        if name in full or is_adapter(name)
    }


def plain_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return the state_dict of the plain model, with its base weights."""
    return {k: v for k, v in model.state_dict().items() if not is_adapter(k)}


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
        for child in [n for n in layer._modules if n.startswith(PREFIX)]:
            weight = layer._parameters[child.removeprefix(PREFIX)]
            with torch.no_grad():
                weight.copy_(layer._modules[child].eval()(weight))
            del layer._modules[child]
        layer.__class__ = plain_class
    for name in model.lora_frozen:
        model.get_parameter(name).requires_grad_(True)
    del model.lora_config, model.lora_frozen
    return model


def trainable_share(model: nn.Module) -> float:
    """Return parameters that train by those of the model without adapters."""
    adapters = sum(p.numel() for n, p in model.named_parameters() if is_adapter(n))
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return trainable / (sum(p.numel() for p in model.parameters()) - adapters)


def matrix_shape(weight: Tensor) -> tuple[int, int]:
    """Return rows and columns of a weight as a matrix."""
    return weight.shape[0], weight[0].numel()


def config_of(model: nn.Module) -> LoraConfig:
    """Return the settings of an adapted model."""
    if not hasattr(model, "lora_config"):
        raise LoraError(f"this {type(model).__name__} has no adapters")
    return model.lora_config


def base_weight(model: nn.Module, name: str) -> Tensor:
    """Return the frozen weight under an adapter, or the weight of a plain model."""
    layer_name, _, weight_name = name.rpartition(".")
    return model.get_submodule(layer_name)._parameters[weight_name]


def adapter_name(name: str) -> str:
    """Return the name of the adapter of a weight."""
    layer_name, _, weight_name = name.rpartition(".")
    return f"{layer_name}.{PREFIX}{weight_name}".lstrip(".")


def is_adapter(key: str) -> bool:
    """Return whether a state_dict key belongs to an adapter."""
    return any(part.startswith(PREFIX) for part in key.split("."))


def _matches(name: str, pattern: str) -> bool:
    """Whether a pattern means a weight: by its own name or by its layer's."""
    layer_name = name.rpartition(".")[0]
    return any(fnmatch.fnmatchcase(n, pattern) for n in (name, layer_name))


def matching(
    patterns: Sequence[str], names: Mapping[str, object], setting: str
) -> list[str]:
    """Return the names that match a pattern; raise if a pattern matches none."""
    found: set[str] = set()
    for pattern in patterns:
        matched = {name for name in names if _matches(name, pattern)}
        if not matched:
            raise LoraError(
                f"{setting}: {pattern!r} matches no weight; near are "
                + ", ".join(_near(pattern, names))
            )
        found |= matched
    return [name for name in names if name in found]


def _near(pattern: str, names: Mapping[str, object]) -> Iterator[str]:
    """Patterns that do match: the beginnings of names most like the wrong one."""
    heads: dict[str, str] = {}
    for name in names:
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            head = ".".join(parts[:end])
            heads[head] = head if end == len(parts) else f"{head}.*"
    near = difflib.get_close_matches(pattern.strip(".*"), heads, n=3, cutoff=0.4)
    yield from (heads[head] for head in near or list(heads)[:3])
