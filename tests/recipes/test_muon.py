"""Muon for matrices and AdamW for the rest: the same steps, exact resume, refusals."""

import copy
import io

import pytest
import torch
from torch import nn

from modules.runtime.errors import HparamsError
from recipes.muon import Muon
from tests.recipes.test_separation import (
    make_batch,
    make_brain,  # noqa: F401
    run,
)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(2, 4, 3), nn.Flatten(), nn.Linear(24, 3))


def train(module: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        module(torch.randn(5, 2, 8, generator=generator)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_matrices_go_the_way_of_muon_and_the_rest_that_of_adamw():
    mine, theirs = network(), network()
    train(mine, Muon(mine.parameters(), lr=0.01, weight_decay=0.1), range(4))
    both = {"lr": 0.01, "weight_decay": 0.1}
    of_muon = {**both, "momentum": 0.95, "adjust_lr_fn": "match_rms_adamw"}
    weights = list(theirs.parameters())
    parts = [
        torch.optim.Muon([w for w in weights if w.ndim == 2], **of_muon),
        torch.optim.AdamW([w for w in weights if w.ndim != 2], **both),
    ]
    for step in range(4):
        train(theirs, parts[0], range(0))
        generator = torch.Generator().manual_seed(step)
        theirs(torch.randn(5, 2, 8, generator=generator)).square().mean().backward()
        for part in parts:
            part.step()
            part.zero_grad()
    assert all(map(torch.equal, mine.parameters(), theirs.parameters()))


def test_a_saved_state_goes_on_with_the_same_bits():
    whole, module = network(), network()
    train(whole, Muon(whole.parameters()), range(6))
    first = Muon(module.parameters())
    train(module, first, range(3))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    resumed = Muon(module.parameters(), lr=1.0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    train(module, resumed, range(3, 6))
    assert all(map(torch.equal, module.parameters(), whole.parameters()))
    resumed.state.clear()  # as at the start of a phase
    train(module, resumed, range(6, 7))
    assert len(resumed.state) == 4


def test_the_rate_of_a_schedule_moves_both(make_brain):  # noqa: F811
    brain = make_brain(run_opts={"max_grad_norm": 0.5}, ema_decay=0.9, lr=0.02)
    brain.modules["separator"].extra = nn.Linear(3, 3)
    extra = brain.modules["separator"].extra
    forward = brain.compute_forward

    def with_matrix(batch, stage):
        return forward(batch, stage) * extra(torch.ones(3)).mean()

    brain.compute_forward = with_matrix
    brain.ema.attach(brain.modules["separator"])
    brain.opt_class = Muon
    brain.init_optimizers()
    brain.learning_rate.current = 0.0
    before = copy.deepcopy(brain.modules.state_dict())
    run(brain, make_batch(1))
    after = brain.modules.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    brain.learning_rate.current = 0.01
    run(brain, make_batch(1))
    after = brain.modules.state_dict()
    assert not any(torch.equal(before[name], after[name]) for name in before)
    assert brain.ema.steps == brain.optimizer_step == 2


def test_refusals_are_one_line(make_brain, monkeypatch):  # noqa: F811
    brain = make_brain()
    brain.opt_class = Muon
    with pytest.raises(HparamsError, match="optimizer: Muon: no weight has two axes"):
        brain.init_optimizers()
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(HparamsError, match="optimizer: torch .* has no Muon; 2.9 and"):
        brain.init_optimizers()
