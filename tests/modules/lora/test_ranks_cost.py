"""The price of a rank in the choice by gradients."""

import torch

from modules.lora.ranks import gradient_ranks


def test_a_rank_is_worth_what_it_explains_for_each_parameter_it_costs():
    """Per parameter, 8 / (4 + 4) is more than 10 / (4 + 12)."""
    gradients = {
        "long": 10**0.5 * torch.eye(4, 12),
        "short": 8**0.5 * torch.diag(torch.tensor([1.0, 1.0, 1.0, 0.0])),
    }
    ranks = gradient_ranks(gradients, lora_rank=1, lora_min_rank=0)
    assert ranks == {"long": 0, "short": 3}
