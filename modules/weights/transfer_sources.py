"""Give a trained HTDemucs other sources than it was trained on.

Only four tensors of an HTDemucs depend on its sources: weight and bias of the last
transposed convolution of each branch, in which every source has a block of output
channels. A new source starts with the block of the old one that is closest to it:
before training its estimate is the old one's.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from modules.models.htdemucs import HTDemucs, Seconds
from modules.runtime.errors import PretrainedError
from modules.weights.pretrained import load_pretrained


def output_layers(model: HTDemucs) -> dict[str, int]:
    """The tensors that depend on the number of sources, and in which dimension."""
    last = len(model.decoder) - 1
    return {
        f"{branch}.{last}.conv_tr.{name}": dim
        for branch in ("decoder", "tdecoder")
        for name, dim in (("weight", 1), ("bias", 0))
    }


def copy_sources(
    old: HTDemucs, new: HTDemucs, source_map: Mapping[str, str] | None = None
) -> None:
    """Fill a model with the weights of one that differs in its sources alone.

    Arguments
    ---------
    old : HTDemucs
        The trained model.
    new : HTDemucs
        Receives the weights; its segment may have another length.
    source_map : Mapping[str, str] | None
        The old source that a new one starts from; those of equal names need none.

    Raises
    ------
    PretrainedError
        A new source that starts from nothing, or from no source of the old model; a
        model that differs in more. The new model is untouched.

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
    shapes = [{key: value.shape for key, value in s.items()} for s in (state, mine)]
    if old.config | {"t_dropout": 0} != new.config | {"t_dropout": 0} or (
        shapes[0] != shapes[1]
    ):
        raise PretrainedError(
            "pretrained: the model differs in more than its sources: "
            + ", ".join(
                f"{name} {value} -> {new.config[name]}"
                for name, value in old.config.items()
                if value != new.config[name]
            )
        )
    new.load_state_dict(state)


def origins(
    old: Sequence[str], new: Sequence[str], source_map: Mapping[str, str]
) -> list[int]:
    """Number of the old source that each new one starts from."""
    if unknown := [name for name in source_map if name not in new]:
        raise PretrainedError(
            f"source_map: {unknown[0]} is no source of the model ({', '.join(new)})"
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


def take_blocks(tensor: Tensor, dim: int, blocks: int, index: Sequence[int]) -> Tensor:
    """Blocks of a dimension in another order, some of them twice or not at all."""
    parts = tensor.unflatten(dim, (blocks, -1))
    return parts.index_select(dim, parts.new_tensor(index).long()).flatten(dim, dim + 1)


def load_for_sources(
    model: HTDemucs,
    folder: str | Path,
    *,
    sources: Sequence[str],
    segment_seconds: Seconds,
    source_map: Mapping[str, str] | None = None,
) -> list[Path]:
    """`load_pretrained` into a model with other sources, or another segment.

    Arguments
    ---------
    model : HTDemucs
        Receives the weights.
    folder : str | Path
        See `modules.weights.pretrained.load_pretrained`.
    sources, segment_seconds : Sequence[str], Seconds
        Of the pretrained model.
    source_map : Mapping[str, str] | None
        See `copy_sources`.

    Returns
    -------
    list[Path]
        The files that were read.
    """
    origins(sources, model.sources, source_map or {})
    old = HTDemucs(list(sources), segment_seconds, **model.config)
    files = load_pretrained(old, folder)
    copy_sources(old, model, source_map)
    return files
