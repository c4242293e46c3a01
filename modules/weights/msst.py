"""Models of MSST: a YAML of its settings and a file of weights.

The YAML has tuples (`!!python/tuple`) and no other tag of Python; it is read as data.
It does not say which network it is for: the names of the weights do.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from modules.models.roformer import BSRoFormer, MelRoFormer
from modules.models.scnet import SCNet
from modules.runtime.tensors import mismatches, shapes_of
from modules.weights.demucs import State

#: A name among the weights of each network; the first that is there decides.
MARKS: dict[str, type[nn.Module]] = {
    "final_norm.gamma": BSRoFormer,
    "band_split.to_features.0.0.gamma": MelRoFormer,
    "separation_net.dp_modules.0.norm_layers.0.weight": SCNet,
}


class _Loader(yaml.SafeLoader):
    """Reads plain values and tuples, which become lists."""


_Loader.add_constructor(
    "tag:yaml.org,2002:python/tuple",
    lambda loader, node: loader.construct_sequence(node, deep=True),
)


def kind_of(state: Mapping[str, Any]) -> type[nn.Module] | None:
    """Return the class of the network whose weights these are; None: of no such one."""
    names = {key.removeprefix("module.") for key in state}
    return next((kind for mark, kind in MARKS.items() if mark in names), None)


def network_of(state: State, file: Path, *_: Path) -> Any:
    """Return the network that the YAML beside a file of weights describes.

    A model of one instrument (`target_instrument`) has two sources: it, and the mixture
    minus it. The network holds initial weights; on the device `meta` if those of the
    file do not fit. A ValueError or TypeError goes on from the name of the file.
    """
    path = settings_of(file)
    if path is None:
        named = file.with_suffix(".yaml").name
        raise ValueError(f"needs MSST's YAML with its settings beside it: {named}")
    try:
        config: Any = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"has an unreadable {path.name} beside it: {reason}"
        ) from error
    given = config if isinstance(config, dict) else {}
    sections: Any = [given.get(name) for name in ("model", "audio", "training")]
    if not all(isinstance(section, dict) for section in sections):
        raise ValueError(
            f"has {path.name} beside it, without sections model, audio and training"
        )
    model, audio, training = sections
    names, target = training.get("instruments"), training.get("target_instrument")
    if not isinstance(names, list) or not names:
        raise ValueError(f"has {path.name} beside it, without training.instruments")
    arguments: dict[str, Any] = {"sources": [str(name) for name in names]}
    if target is not None:
        others = [name for name in arguments["sources"] if name != target]
        rest = others[0] if len(others) == 1 else "rest"
        arguments |= {"sources": [str(target), rest], "residual": True}
    kind: Any = kind_of(state)
    rate = audio.get("sample_rate", 44100)
    if "sample_rate" not in model:
        arguments["sample_rate"] = rate
    if chunk := audio.get("chunk_size"):
        arguments["segment_seconds"] = f"{chunk}/{rate}"
    if kind is SCNet:
        level = (config.get("inference") or {}).get("normalize", False)
        arguments["song_level"] = bool(level)
    # Without memory at first: the file, and not the YAML, says how large it may be.
    with torch.device("meta"):
        network = kind.from_config(model, **arguments)
    known = {key.removeprefix("module."): value for key, value in state.items()}
    if mismatches(shapes_of(known), shapes_of(network.state_dict())):
        return network
    return kind.from_config(model, **arguments)


def settings_of(file: Path) -> Path | None:
    """Return the YAML of the same name as a file, or else the only one beside it."""
    named = file.with_suffix(".yaml")
    found = [named] if named.is_file() else sorted(file.parent.glob("*.y*ml"))
    return found[0] if len(found) == 1 else None
