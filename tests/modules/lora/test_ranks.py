"""Rank rules: places of layers, and the gradient under a budget of parameters."""

import pytest
import torch

from modules.lora.adapters import adaptable, add_lora, trainable_share
from modules.lora.ranks import gradient_ranks, heuristic_ranks
from modules.models.htdemucs import HTDemucs
from modules.models.mossformer2 import MossFormer2
from modules.models.sepformer import SepFormer
from modules.runtime.errors import LoraError
from tests.modules.lora.test_adapters import Attending, htdemucs


def test_the_published_models_by_place():
    with torch.device("meta"):
        model = HTDemucs(["drums", "bass", "other", "vocals"])
        others = MossFormer2(), SepFormer()
    ranks = heuristic_ranks(model, 8)
    assert ranks.keys() == adaptable(model).keys()
    layers = [f"{half}.{i}" for half in ("tencoder", "decoder") for i in range(4)]
    assert [ranks[f"{layer}.rewrite.weight"] for layer in layers] == [
        16,
        12,
        8,
        4,
        8,
        6,
        4,
        2,
    ]
    assert {r for n, r in ranks.items() if "transformer" in n} == {8}
    doubled = heuristic_ranks(model, 16)
    assert all(abs(doubled[name] - 2 * ranks[name]) <= 1 for name in ranks)
    add_lora(model, layer_ranks=ranks)
    assert trainable_share(model) < 0.04
    for other in others:
        ranks = heuristic_ranks(other, 8)
        assert ranks.keys() == adaptable(other).keys()
        assert max(ranks.values()) == 16 and min(ranks.values()) == 2


def test_an_unknown_model_has_no_places():
    with pytest.raises(LoraError, match="knows HTDemucs, .*, not Attending"):
        heuristic_ranks(Attending(), 8)


def low_rank(rows: int, columns: int, rank: int, level: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows)
    a = torch.randn(rows, rank, generator=generator)
    return level * a @ torch.randn(rank, columns, generator=generator)


def cost(ranks: dict[str, int], gradients: dict[str, torch.Tensor]) -> int:
    sides = {name: (len(g), g[0].numel()) for name, g in gradients.items()}
    return sum(rank * sum(sides[name]) for name, rank in ranks.items())


def test_ranks_follow_the_gradient_within_the_budget():
    gradients = {
        "loud": low_rank(20, 30, 6, 10.0),
        "quiet": low_rank(24, 30, 6, 1e-3),
        "zero": torch.zeros(10, 5, 3),
        "tiny": low_rank(3, 9, 3, 10.0),
    }
    ranks = gradient_ranks(gradients, lora_rank=4, lora_max_rank=6)
    assert ranks["loud"] == 6 and ranks["tiny"] == 3
    assert 1 <= ranks["zero"] <= ranks["quiet"] <= ranks["loud"]
    uniform = {name: min(4, len(g)) for name, g in gradients.items()}
    assert cost(ranks, gradients) <= cost(uniform, gradients)
    assert ranks == gradient_ranks(dict(reversed(gradients.items())), 4, 1, 6)
    least = gradient_ranks(gradients, lora_rank=4, lora_min_rank=4, lora_max_rank=6)
    assert least == {"loud": 4, "quiet": 4, "zero": 4, "tiny": 3}
    none = gradient_ranks(gradients, lora_rank=2, lora_min_rank=0, lora_max_rank=6)
    assert none["zero"] == 0 and none["loud"] > 3


def test_a_real_gradient_spends_the_budget():
    torch.manual_seed(0)
    model = htdemucs()
    model(torch.randn(2, 2, 2000)).abs().mean().backward()
    gradients = {name: weight.grad for name, weight in adaptable(model).items()}
    ranks = gradient_ranks(gradients, lora_rank=3)
    uniform = {n: min(3, len(g), g[0].numel()) for n, g in gradients.items()}
    assert ranks.keys() == gradients.keys() and ranks != uniform
    spent = cost(ranks, gradients) / cost(uniform, gradients)
    assert 0.98 < spent <= 1


def test_a_rank_is_worth_what_it_explains_for_each_parameter_it_costs():
    """Per parameter, 8 / (4 + 4) is more than 10 / (4 + 12)."""
    gradients = {
        "long": 10**0.5 * torch.eye(4, 12),
        "short": 8**0.5 * torch.diag(torch.tensor([1.0, 1.0, 1.0, 0.0])),
    }
    ranks = gradient_ranks(gradients, lora_rank=1, lora_min_rank=0)
    assert ranks == {"long": 0, "short": 3}


@pytest.mark.parametrize("least, most", [(-1, 8), (5, 8), (1, 3)])
def test_limits_out_of_order_are_refused(least, most):
    with pytest.raises(LoraError, match="must not fall"):
        gradient_ranks({"a": torch.eye(8)}, 4, least, most)


def test_a_gradient_that_is_not_finite_is_refused():
    with pytest.raises(LoraError, match="the gradient of a is not finite"):
        gradient_ranks({"a": torch.full((3, 3), torch.nan)}, 2)
