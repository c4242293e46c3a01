"""Give weights the sources of a model, by name.

Of an HTDemucs only the output layers depend on the sources, each of which has a block
of channels there. A new source starts with the block of an old one, and so with its
estimate.
"""

from collections.abc import Mapping, Sequence

from torch import nn

from modules.models.htdemucs import HTDemucs
from modules.runtime.errors import PretrainedError
from modules.weights.demucs import State, output_layers, take_blocks


def take_sources(
    model: nn.Module,
    state: State,
    sources: Sequence[str],
    source_map: Mapping[str, str] | None = None,
) -> State:
    """Return weights of the named sources with those of the model, in its order.

    `source_map` names the old source that a new one starts from; equal names need no
    entry. Raise a `PretrainedError` if a source of the model starts from none of them.

    >>> size = {"channels": 8, "depth": 1, "nfft": 64, "t_layers": 0, "dconv_mode": 0}
    >>> old = HTDemucs(["drums", "bass"], 1, 8000, bottom_channels=0, **size)
    >>> new = HTDemucs(["kick", "hihat", "bass"], 1, 8000, bottom_channels=0, **size)
    >>> begin = {"kick": "drums", "hihat": "drums"}
    >>> state = take_sources(new, old.state_dict(), old.sources, begin)
    >>> state["tdecoder.0.conv_tr.bias"].shape
    torch.Size([6])
    """
    ours = list(getattr(model, "sources", sources))
    index = origins(sources, ours, source_map or {})
    if index == list(range(len(sources))):
        return state
    if not isinstance(model, HTDemucs):
        raise PretrainedError(
            f"pretrained: the weights are of {', '.join(sources)}, the model is of "
            f"{', '.join(ours)}: give it the former in their order, because those of a "
            f"{type(model).__name__} cannot be exchanged"
        )
    blocks = {
        key: take_blocks(state[key], dim, len(sources), index)
        for key, dim in output_layers(model).items()
        if key in state and state[key].shape[dim] % len(sources) == 0
    }
    return {**state, **blocks}


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
                f"pretrained: the source {name} starts from {origin}, but the weights "
                f"are of {', '.join(old)}: name one of these, as --source_map="
                f"'{{{name}: {old[0]}}}', or leave the output layers out "
                "(--pretrained_skip)"
            )
        index.append(list(old).index(origin))
    return index
