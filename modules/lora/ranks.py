"""Which adapter gets which rank: the rules behind `lora_mode`.

uniform    Every tensor has the base rank.
heuristic  The place of a layer decides, see `HEURISTICS`: the way in gets more.
gradient   The gradient of the first batches decides, see `gradient_ranks`.
"""

import heapq
import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from modules.lora.adapters import adaptable, matrix_shape
from modules.runtime.errors import LoraError

MODES = ("uniform", "heuristic", "gradient")

# By model: patterns (first match wins), and the factors of the base rank for the lowest
# and the highest number that stands in the place of `#`; between them on a line.
HEURISTICS: dict[str, list[tuple[str, float, float]]] = {
    "HTDemucs": [
        ("*encoder.#.*", 2, 0.5),  # both branches, from the input down
        ("crosstransformer.*", 1, 1),
        ("channel_*", 1, 1),
        ("*decoder.#.*", 1, 0.25),  # decoder.0 is the deepest, the last the output
    ],
    "MossFormer2": [
        ("enc.*", 2, 2),
        ("mask_net.conv1d_encoder.*", 2, 2),
        ("*.mossformerM.layers.#.*", 1.5, 0.5),
        ("*.mossformerM.fsmn.#.*", 1.5, 0.5),
        ("mask_net.*", 0.5, 0.5),  # what makes masks of the features
        ("dec.*", 0.25, 0.25),
    ],
    "SepFormer": [
        ("encoder.*", 2, 2),
        ("masknet.conv1d.*", 2, 2),
        ("masknet.dual_mdl.#.*", 1.5, 0.5),  # the first dual-path block, the last one
        ("masknet.*", 0.5, 0.5),
        ("decoder.*", 0.25, 0.25),
    ],
}


def heuristic_ranks(model: nn.Module, lora_rank: int) -> dict[str, int]:
    """Return ranks by the place of a layer: `lora_rank` times a factor, at least 1."""
    kind = type(model).__name__
    if kind not in HEURISTICS:
        raise LoraError(
            f"lora_mode=heuristic knows {', '.join(HEURISTICS)}, not {kind}: use "
            "uniform or gradient, or give layer_ranks"
        )
    ranks: dict[str, int] = {}
    rest = list(adaptable(model))
    for pattern, first, last in HEURISTICS[kind]:
        expression = re.escape(pattern).replace(r"\*", ".*").replace(r"\#", r"(\d+)")
        matches = ((name, re.fullmatch(expression, name)) for name in rest)
        found = {name: match for name, match in matches if match}
        rest = [name for name in rest if name not in found]
        numbers = {n: int((m.groups() or "0")[0]) for n, m in found.items()}
        low, high = min(numbers.values(), default=0), max(numbers.values(), default=0)
        for name, number in numbers.items():
            part = (number - low) / max(1, high - low)
            ranks[name] = max(1, round(lora_rank * (first + part * (last - first))))
    return ranks


def gradient_ranks(
    gradients: Mapping[str, Tensor],
    lora_rank: int,
    lora_min_rank: int = 1,
    lora_max_rank: int | None = None,
) -> dict[str, int]:
    """Return ranks that catch most of a gradient for the parameters of uniform ones.

    `gradients` holds the mean gradient by each weight. One more rank of a tensor [R, C]
    costs R + C parameters and catches one more singular value. From `lora_min_rank`, as
    far as the size allows, to `lora_max_rank` (None: 4 * lora_rank), the next rank goes
    wherever (singular value)^2 / (R + C) is largest, by name where equal, and fits into
    the budget: the cost of `lora_rank` for every tensor. Raise a `LoraError` if limits
    are not in order or a gradient is not finite.

    Example
    -------
    >>> flat, steep = torch.eye(4), torch.diag(torch.tensor([9.0, 0, 0, 0]))
    >>> gradient_ranks({"flat": flat, "steep": steep}, lora_rank=2)
    {'flat': 3, 'steep': 1}
    """
    most = 4 * lora_rank if lora_max_rank is None else lora_max_rank
    if not 0 <= lora_min_rank <= lora_rank <= most:
        raise LoraError(
            f"{lora_min_rank=}, {lora_rank=}, {lora_max_rank=}: must not fall, and "
            "start from 0 or more"
        )
    ranks, costs, values, budget = {}, {}, {}, 0
    for name in sorted(gradients):
        gradient = gradients[name]
        if not gradient.isfinite().all():
            raise LoraError(f"lora_mode=gradient: the gradient of {name} is not finite")
        sides = matrix_shape(gradient)
        matrix = gradient.reshape(sides).double()
        values[name] = torch.linalg.svdvals(matrix).square().tolist()[:most]
        costs[name] = sum(sides)
        ranks[name] = min(lora_min_rank, *sides)
        budget += (min(lora_rank, *sides) - ranks[name]) * costs[name]

    def offer(name: str) -> tuple[float, str]:
        return -values[name][ranks[name]] / costs[name], name

    queue = [offer(name) for name in ranks if ranks[name] < len(values[name])]
    heapq.heapify(queue)
    while queue:
        _, name = heapq.heappop(queue)
        if costs[name] > budget:
            continue  # a smaller tensor may still fit
        budget -= costs[name]
        ranks[name] += 1
        if ranks[name] < len(values[name]):
            heapq.heappush(queue, offer(name))
    return ranks
