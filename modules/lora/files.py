"""Files of adapters: a few megabytes beside the weights that they were trained on."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from modules.lora.adapters import (
    LoraConfig,
    adapter_name,
    attach,
    base_weight,
    config_of,
    is_adapter,
    lora_state_dict,
    matrix_shape,
)
from modules.runtime.errors import LoraError
from modules.runtime.tensors import (
    read_tensors,
    save_tensors,
)

FORMAT = "sepbrain.lora.1"


def save_lora(model: nn.Module, path: str | Path) -> None:
    """Write the adapters of a model to a safetensors file.

    Its metadata holds the ranks and the other settings as JSON, and the digest of the
    base weights that the adapters belong to.

    Arguments
    ---------
    model : nn.Module
        An adapted one.
    path : str | Path
        The file; replaced if it is there.
    """
    metadata = {
        "format": FORMAT,
        "model": type(model).__name__,
        "config": json.dumps(asdict(config_of(model))),
        "base": base_digest(model, config_of(model)),
    }
    save_tensors(path, lora_state_dict(model), metadata)


def load_lora_weights(
    model: nn.Module, path: str | Path, check_base: bool = True
) -> LoraConfig:
    """Give a model the adapters of a file.

    A plain model is adapted first, as the file says, and frozen; a model with
    adapters must have the same ones. `merge` makes it a plain model again.

    Arguments
    ---------
    model : nn.Module
        Holds the base weights that the adapters were trained on.
    path : str | Path
        Written by `save_lora`.
    check_base : bool
        Refuse a base that differs in a single bit. False where it is the same in
        another precision, or meant to be another one.

    Returns
    -------
    LoraConfig
        Ranks and settings of the adapters.

    Raises
    ------
    LoraError
        No such file, another format, adapters of another model or base, or NaN. The
        model is untouched.

    Example
    -------
    >>> from modules.lora.adapters import add_lora
    >>> file = getfixture("tmp_path") / "adapters.safetensors"
    >>> adapted, plain = nn.Linear(9, 9), nn.Linear(9, 9)
    >>> _ = plain.load_state_dict(adapted.state_dict()), add_lora(adapted, rank=2)
    >>> save_lora(adapted, file)
    >>> load_lora_weights(plain, file).ranks
    {'weight': 2}
    """
    config, metadata, state = read_lora(Path(path))
    name = type(model).__name__
    present = getattr(model, "lora_config", None)
    if present is not None and any(
        getattr(present, name) != getattr(config, name)
        for name in ("ranks", "full", "alpha")
    ):
        raise LoraError(f"{path}: {_difference(config, present)}")
    _check_fit(model, config, state, f"{path} does not fit this {name}")
    if check_base and base_digest(model, config) != metadata.get("base"):
        raise LoraError(
            f"{path}: the adapters were trained on other weights than this {name} has: "
            "load the base that they belong to first"
        )
    if present is None:
        attach(model, config)
    with torch.no_grad():
        for key, tensor in lora_state_dict(model).items():
            tensor.copy_(state[key])
    return config


def base_digest(model: nn.Module, config: LoraConfig) -> str:
    """SHA-256 of the frozen weights under adapters; of all frozen ones without any."""
    names = config.ranks or [
        name
        for name, _ in model.named_parameters()
        if name not in config.full and not is_adapter(name)
    ]
    digest = hashlib.sha256()
    for name in sorted(names):
        weight = base_weight(model, name).detach().cpu().contiguous()
        digest.update(name.encode() + weight.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_lora(path: Path) -> tuple[LoraConfig, dict[str, str], dict[str, Tensor]]:
    """Configuration, metadata and tensors of a file of adapters."""
    try:
        state, metadata = read_tensors(path)
    except (OSError, SafetensorError) as error:
        raise LoraError(f"{path}: no readable file of adapters ({error})") from error
    try:
        if metadata["format"] != FORMAT:
            raise ValueError(f"format {metadata['format']!r}")
        config = LoraConfig(**json.loads(metadata["config"]))
    except (KeyError, TypeError, ValueError) as error:
        raise LoraError(
            f"{path}: holds no adapters of `save_lora` ({error}); give a file that "
            "it wrote"
        ) from error
    return config, metadata, state


def _difference(theirs: LoraConfig, ours: LoraConfig) -> str:
    """What tells two sets of adapters apart, in one line."""
    names = sorted(
        name
        for name in theirs.ranks.keys() | ours.ranks.keys()
        if theirs.ranks.get(name) != ours.ranks.get(name)
    )
    if not names and theirs.full != ours.full:
        return f"trains {theirs.full} fully, the model {ours.full}"
    if not names:
        return f"was trained with alpha {theirs.alpha}, the model has {ours.alpha}"
    first = names[0]
    return (
        f"the ranks of {len(names)} tensors differ from the model's, first {first}: "
        f"{theirs.ranks.get(first, 'no adapter')} in the file, "
        f"{ours.ranks.get(first, 'no adapter')} here"
    )


def _check_fit(
    model: nn.Module, config: LoraConfig, state: Mapping[str, Tensor], what: str
) -> None:
    """Refuse adapters whose names or shapes are not those of the model, or NaN."""
    plain = dict(model.named_parameters())
    shapes: dict[str, tuple[int, ...]] = {}
    for name, rank in config.ranks.items():
        if name not in plain:
            raise LoraError(f"{what}: it has no {name}")
        rows, columns = matrix_shape(plain[name])
        adapter = adapter_name(name)
        shapes |= {f"{adapter}.down": (rank, columns), f"{adapter}.up": (rows, rank)}
    for name in config.full:
        if name not in plain:
            raise LoraError(f"{what}: it has no {name}")
        shapes[name] = tuple(plain[name].shape)
    if odd := sorted(shapes.keys() ^ state.keys()):
        raise LoraError(f"{what}: {odd[0]} and {len(odd) - 1} more are amiss")
    for name, shape in shapes.items():
        if tuple(state[name].shape) != shape:
            raise LoraError(
                f"{what}: {name} is {list(state[name].shape)} in the file, "
                f"{list(shape)} in the model"
            )
        if not bool(state[name].isfinite().all()):
            raise LoraError(f"{what}: NaN or Inf in {name}")
