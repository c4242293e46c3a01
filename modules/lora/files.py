"""Files of adapters: a few megabytes beside the weights that they were trained on."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from modules.lora import adapters
from modules.lora.adapters import LoraConfig
from modules.runtime import tensors
from modules.runtime.errors import LoraError

FORMAT = "sepbrain.lora.1"


def save_lora(model: nn.Module, path: str | Path) -> None:
    """Write the adapters, their settings and the digest of their base weights."""
    metadata = {
        "format": FORMAT,
        "model": type(model).__name__,
        "config": json.dumps(asdict(adapters.config_of(model))),
        "base": base_digest(model, adapters.config_of(model)),
    }
    tensors.save_tensors(path, adapters.lora_state_dict(model), metadata)


def load_lora_weights(
    model: nn.Module, path: str | Path, check_base: bool = True
) -> LoraConfig:
    """Load the adapters in a file of `save_lora` into a model.

    A plain model is adapted first, as the file says, and frozen; a model with
    adapters must have the same ones. `merge` makes it a plain model again.

    Arguments
    ---------
    model : nn.Module
        Holds the base weights that the adapters were trained on.
    path : str | Path
        The file.
    check_base : bool
        Refuse a base that differs in a single bit. Give False for one that is meant to
        differ, for instance in its precision.

    Raises
    ------
    LoraError
        The file is missing or in another format, or its adapters belong to another
        model or base or hold NaN. The model is untouched.

    Example
    -------
    >>> from modules.lora.adapters import add_lora
    >>> file = getfixture("tmp_path") / "adapters.safetensors"
    >>> adapted, plain = nn.Linear(9, 9), nn.Linear(9, 9)
    >>> _ = plain.load_state_dict(adapted.state_dict()), add_lora(adapted, lora_rank=2)
    >>> save_lora(adapted, file)
    >>> load_lora_weights(plain, file).ranks
    {'weight': 2}
    """
    config, metadata, state = read_lora(Path(path))
    name = type(model).__name__
    present = getattr(model, "lora_config", None)
    if present is not None:
        _check_settings(config, present, path)
    _check_fit(model, config, state, f"{path} does not fit this {name}")
    if check_base and base_digest(model, config) != metadata.get("base"):
        raise LoraError(
            f"{path}: the adapters were trained on other weights than this {name} has: "
            "load the base that they belong to first"
        )
    if present is None:
        adapters.attach(model, config)
    with torch.no_grad():
        for key, tensor in adapters.lora_state_dict(model).items():
            tensor.copy_(state[key])
    return config


def base_digest(model: nn.Module, config: LoraConfig) -> str:
    """Return the SHA-256 of the frozen weights under adapters, or else of all."""
    weights = dict(model.named_parameters(remove_duplicate=False))
    plain = [n for n, _ in model.named_parameters() if not adapters.is_adapter(n)]
    digest = hashlib.sha256()
    for name in sorted(config.ranks or set(plain).difference(config.full)):
        weight = weights[name].detach().cpu().contiguous()
        digest.update(name.encode() + weight.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_lora(path: Path) -> tuple[LoraConfig, dict[str, str], dict[str, Tensor]]:
    """Return settings, metadata and tensors of a file of adapters."""
    try:
        state, metadata = tensors.read_tensors(path)
    except (OSError, SafetensorError) as error:
        raise LoraError(f"{path}: no readable file of adapters ({error})") from error
    try:
        if metadata["format"] != FORMAT:
            raise ValueError(f"format {metadata['format']!r}")
        config = LoraConfig(**json.loads(metadata["config"]))
    except (KeyError, TypeError, ValueError) as error:
        what = foreign_adapters(state) or f"holds no adapters of `save_lora` ({error})"
        raise LoraError(f"{path}: {what}; give a file that a run here wrote") from error
    return config, metadata, state


def foreign_adapters(state: Mapping[str, Tensor]) -> str:
    """Say what a file of adapters is by its keys; empty for other weights.

    Example
    -------
    >>> foreign_adapters({"base_model.model.net.lora_A.weight": torch.zeros(4, 9)})
    'holds adapters (LoRA) of PEFT, of rank 4, for net'
    """
    down = [key for key in state if re.search(r"\.lora_(A|\w+\.down)\b", key)]
    if not down:
        return ""
    tool = "PEFT" if down[0].startswith("base_model.model.") else "another tool"
    tool = "a run of ours" if down[0].endswith(".down") else tool
    layer = down[0].removeprefix("base_model.model.").rpartition(".lora_")[0]
    more = f" and {len(down) - 1} more" if len(down) > 1 else ""
    rank = state[down[0]].shape[0]
    return f"holds adapters (LoRA) of {tool}, of rank {rank}, for {layer}{more}"


def _check_settings(file: LoraConfig, model: LoraConfig, path: str | Path) -> None:
    """Raise unless two sets of adapters have equal ranks and settings."""
    if differ := tensors.first_mismatch(file.ranks, model.ranks):
        raise LoraError(f"{path}: the ranks of {differ}")
    for name in ("full", "alpha"):
        if (theirs := getattr(file, name)) != (ours := getattr(model, name)):
            raise LoraError(
                f"{path}: was trained with {name} {theirs}, the model has {ours}"
            )


def _check_fit(
    model: nn.Module, config: LoraConfig, state: Mapping[str, Tensor], what: str
) -> None:
    """Raise unless adapters have the names and shapes of the model and are finite."""
    plain = dict(model.named_parameters())
    for name in (*config.ranks, *config.full):
        if name not in plain:
            raise LoraError(f"{what}: it has no {name}")
    shapes = {name: list(plain[name].shape) for name in config.full}
    for name, lora_rank in config.ranks.items():
        rows, columns = adapters.matrix_shape(plain[name])
        shapes[f"{adapters.adapter_name(name)}.down"] = [lora_rank, columns]
        shapes[f"{adapters.adapter_name(name)}.up"] = [rows, lora_rank]
    if differ := tensors.first_mismatch(tensors.shapes_of(state), shapes):
        raise LoraError(f"{what}: {differ}")
    if bad := [name for name, tensor in state.items() if not tensors.is_finite(tensor)]:
        raise LoraError(f"{what}: NaN or Inf in {bad[0]}")
