"""Which adapter gets which rank: the rules behind `lora_mode`.

uniform    Every tensor has the base rank.
heuristic  By the place of a layer, see `HEURISTICS`: with the base rank 8, early layers
           16 to 8, transformers 8, the way out 8 to 2.
gradient   By what the first batches ask for: `gradient_ranks`.

Each rule is a function of its arguments alone; nothing is drawn at random.
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


def heuristic_ranks(model: nn.Module, rank: int) -> dict[str, int]:
    """Ranks of a known model's tensors by the place of their layer.

    Arguments
    ---------
    model : nn.Module
        Its class must stand in `HEURISTICS`.
    rank : int
        The base rank, which the factors scale; at least 1 comes out.

    Raises
    ------
    LoraError
        Another model.
    """
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
        found = {name: re.fullmatch(expression, name) for name in rest}
        found = {name: match for name, match in found.items() if match}
        rest = [name for name in rest if name not in found]
        numbers = {n: int((m.groups() or "0")[0]) for n, m in found.items()}
        low, high = min(numbers.values(), default=0), max(numbers.values(), default=0)
        for name, number in numbers.items():
            part = (number - low) / max(1, high - low)
            ranks[name] = max(1, round(rank * (first + part * (last - first))))
    return ranks


def gradient_ranks(
    gradients: Mapping[str, Tensor],
    rank: int,
    min_rank: int = 1,
    max_rank: int | None = None,
) -> dict[str, int]:
    """Ranks that catch most of a gradient for the parameters of uniform ones.

    One more rank of a tensor [R, C] costs R + C parameters and catches one more
    singular value of the gradient. From `min_rank` on, the next rank goes wherever
    (singular value)^2 / (R + C) is largest (by name where equal) and still fits into
    the budget: what `rank` for every tensor would cost.

    Arguments
    ---------
    gradients : Mapping[str, Tensor]
        The mean gradient of the loss by each weight.
    rank : int
        Base rank; sets the budget.
    min_rank, max_rank : int, int | None
        Least and most for a tensor, as far as its size allows; None: 4 * rank.

    Raises
    ------
    LoraError
        Not 0 <= min_rank <= rank <= max_rank; a gradient that is not finite.

    Example
    -------
    >>> flat, steep = torch.eye(4), torch.diag(torch.tensor([9.0, 0, 0, 0]))
    >>> gradient_ranks({"flat": flat, "steep": steep}, rank=2)
    {'flat': 3, 'steep': 1}
    """
    most = 4 * rank if max_rank is None else max_rank
    if not 0 <= min_rank <= rank <= most:
        raise LoraError(
            f"lora_min_rank={min_rank}, lora_rank={rank}, lora_max_rank={max_rank}: "
            "must not fall, from 0 on"
        )
    ranks, costs, values, budget = {}, {}, {}, 0
    for name in sorted(gradients):
        gradient = gradients[name]
        if not bool(gradient.isfinite().all()):
            raise LoraError(f"lora_mode=gradient: the gradient of {name} is not finite")
        sides = matrix_shape(gradient)
        matrix = gradient.reshape(sides).double()
        values[name] = torch.linalg.svdvals(matrix).square().tolist()[:most]
        costs[name] = sum(sides)
        ranks[name] = min(min_rank, *sides)
        budget += (min(rank, *sides) - ranks[name]) * costs[name]

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
