"""Give a trained HTDemucs other sources than it was trained on.

Only its output layers depend on the sources, each of which has a block of channels
there. A new source starts with the block of an old one, and so with its estimate.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from modules.models.htdemucs import HTDemucs, Seconds
from modules.runtime.errors import PretrainedError
from modules.runtime.tensors import first_mismatch, shapes_of
from modules.weights.demucs import output_layers, take_blocks
from modules.weights.pretrained import load_pretrained


def copy_sources(
    old: HTDemucs, new: HTDemucs, source_map: Mapping[str, str] | None = None
) -> None:
    """Copy a trained model into one that differs in its sources and segment alone.

    `source_map` names the old source that a new one starts from; equal names need no
    entry. Raise a `PretrainedError`, and leave the new model as it was, if a new source
    starts from none of the old ones or the models differ in more.

    Example
    -------
    >>> size = {"channels": 8, "depth": 1, "nfft": 64, "t_layers": 0, "dconv_mode": 0}
    >>> old = HTDemucs(["drums", "bass"], 1, 8000, bottom_channels=0, **size)
    >>> new = HTDemucs(["kick", "hihat", "bass"], 1, 8000, bottom_channels=0, **size)
    >>> copy_sources(old, new, {"kick": "drums", "hihat": "drums"})
    >>> new.tdecoder[0].conv_tr.bias.shape
    torch.Size([6])
    """
    state, mine = old.state_dict(), new.state_dict()
    index = origins(old.sources, new.sources, source_map or {})
    for key, dim in output_layers(new).items():
        if key in state:
            state[key] = take_blocks(state[key], dim, len(old.sources), index)
    settings = ", ".join(
        f"{name} {value} -> {new.config[name]}"
        for name, value in old.config.items()
        if value != new.config[name] and name != "t_dropout"
    )
    if differ := settings or first_mismatch(shapes_of(state), shapes_of(mine)):
        raise PretrainedError(
            f"pretrained: the model differs in more than its sources: {differ}"
        )
    new.load_state_dict(state)


def origins(
    old: Sequence[str], new: Sequence[str], source_map: Mapping[str, str]
) -> list[int]:
    """Return the number of the old source that each new one starts from."""
    if unknown := [name for name in source_map if name not in new]:
        raise PretrainedError(
            f"source_map: the model has no source {unknown[0]} ({', '.join(new)})"
        )
    index = []
    for name in new:
        origin = source_map.get(name, name)
        if origin not in old:
            raise PretrainedError(
                f"source_map: the source {name} starts from {origin}, which the "
                f"pretrained model does not have: name one of {', '.join(old)}"
            )
        index.append(list(old).index(origin))
    return index


def load_for_sources(
    model: nn.Module,
    folder: str | Path,
    *,
    sources: Sequence[str],
    segment_seconds: Seconds,
    source_map: Mapping[str, str] | None = None,
) -> list[Path]:
    """Load weights, as `load_pretrained`, into a model with other sources or segment.

    `sources` and `segment_seconds` are the pretrained model's; for `source_map` see
    `copy_sources`.
    """
    if not isinstance(model, HTDemucs):
        raise PretrainedError(
            f"load_pretrained: a {type(model).__name__} cannot get other sources, only "
            "an HTDemucs; leave this key out of the YAML"
        )
    origins(sources, model.sources, source_map or {})
    old = HTDemucs(list(sources), segment_seconds, **model.config)
    files = load_pretrained(old, folder)
    copy_sources(old, model, source_map)
    return files
