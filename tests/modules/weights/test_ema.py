"""EMA: the recursion itself, exact swapping, exact resume, refusals."""

import copy

import pytest
import torch
from torch import nn

from modules.weights.ema import EMA


def network(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).to(dtype)


def train(module: nn.Module, ema: EMA, steps: range) -> None:
    """SGD steps on data that depend on the step number alone."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(8, 3, generator=generator)
        module(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        ema.update()


def bits(module: nn.Module) -> dict[str, bytes]:
    return {k: v.numpy().tobytes() for k, v in module.state_dict().items()}


@pytest.mark.parametrize("warmup", [False, True])
@pytest.mark.parametrize("largest", [0.3, 0.9])
def test_follows_the_recursion_in_float64_step_by_step(warmup, largest):
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, 5.0)
    ema = EMA(decay=largest, warmup=warmup).attach(layer)
    expected = 5.0
    for t in range(200):
        value = float(torch.tensor(t % 7, dtype=torch.float32))
        nn.init.constant_(layer.weight, value)
        ema.update()
        decay = min(largest, (1 + t) / (10 + t)) if warmup else largest
        expected = decay * expected + (1 - decay) * value
        average = ema.state_dict()["shadow"]["weight"].item()
        assert average == pytest.approx(expected, 1e-5)


def test_warmup_forgets_the_initial_weights_sooner():
    remaining = []
    for warmup in (False, True):
        layer = nn.Linear(1, 1, bias=False)
        nn.init.ones_(layer.weight)
        ema = EMA(decay=0.999, warmup=warmup).attach(layer)
        nn.init.zeros_(layer.weight)
        for _ in range(20):
            ema.update()
        remaining.append(ema.state_dict()["shadow"]["weight"].item())
    assert remaining[0] > 0.95
    assert remaining[1] < 0.01


def test_average_of_bfloat16_weights_is_kept_in_float32():
    """In bfloat16 itself 1 + 0.001 * (2 - 1) would round to 1 for ever."""
    layer = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    nn.init.ones_(layer.weight)
    ema = EMA(decay=0.999, warmup=False).attach(layer)
    nn.init.constant_(layer.weight, 2.0)
    for _ in range(1000):
        ema.update()
    shadow = ema.state_dict()["shadow"]["weight"]
    assert shadow.dtype == torch.float32
    assert shadow.item() == pytest.approx(2 - 0.999**1000, abs=1e-3)
    with ema.applied():
        assert layer.weight.dtype == torch.bfloat16
        assert layer.weight.item() == pytest.approx(shadow.item(), rel=2**-8)


def test_applied_swaps_and_restores_every_bit():
    module = network()
    ema = EMA(decay=0.9).attach(module)
    train(module, ema, range(5))
    before = bits(module)
    with ema.applied():
        inside = bits(module)
        module.train()
        module(torch.randn(8, 3))  # moves the batch norm's statistics
    assert bits(module) == before
    changed = {name for name in before if inside[name] != before[name]}
    # Batch norm cancels the bias before it, whose gradient is therefore nil.
    assert changed >= {n for n, _ in module.named_parameters()} - {"0.bias"}
    assert not changed & {name for name, _ in module.named_buffers()}


def test_applied_restores_nan_and_negative_zero_and_after_an_exception():
    module = network()
    ema = EMA().attach(module)
    with torch.no_grad():
        module[0].weight[0, 0] = float("nan")
        module[0].weight[0, 1] = -0.0
    before = bits(module)
    with pytest.raises(KeyboardInterrupt), ema.applied():
        assert torch.isfinite(module[0].weight).all()
        raise KeyboardInterrupt
    assert bits(module) == before
    ema.update()  # usable again


def test_training_is_the_same_with_and_without_evaluating_the_average():
    straight, visited = network(), network()
    ema_straight, ema_visited = EMA(0.9).attach(straight), EMA(0.9).attach(visited)
    train(straight, ema_straight, range(6))
    for step in range(6):
        train(visited, ema_visited, range(step, step + 1))
        with ema_visited.applied():
            visited(torch.randn(8, 3))
    assert bits(straight) == bits(visited)
    assert bits_of(ema_straight) == bits_of(ema_visited)


def bits_of(ema: EMA) -> dict[str, bytes]:
    return {k: v.numpy().tobytes() for k, v in ema.state_dict()["shadow"].items()}


def test_resume_continues_bit_for_bit(tmp_path):
    straight = network()
    ema_straight = EMA(0.99).attach(straight)
    train(straight, ema_straight, range(8))

    first = network()
    ema_first = EMA(0.99).attach(first)
    train(first, ema_first, range(3))
    torch.save([first.state_dict(), ema_first.state_dict()], tmp_path / "state")
    weights, average = torch.load(tmp_path / "state", weights_only=True)
    resumed = network()
    ema_resumed = EMA(0.99).attach(resumed)
    resumed.load_state_dict(weights)
    ema_resumed.load_state_dict(average)
    train(resumed, ema_resumed, range(3, 8))

    assert bits(resumed) == bits(straight)
    assert bits_of(ema_resumed) == bits_of(ema_straight)
    assert ema_resumed.steps == 8


def test_frozen_parameters_are_left_out():
    module = network()
    module[0].requires_grad_(False)
    ema = EMA().attach(module)
    assert set(ema.state_dict()["shadow"]) == {
        name for name, p in module.named_parameters() if p.requires_grad
    }
    assert not any(name.startswith("0.") for name in ema.state_dict()["shadow"])


def test_tied_weights_are_averaged_once():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[1].weight = module[0].weight
    ema = EMA(0.5, warmup=False).attach(module)
    assert set(ema.state_dict()["shadow"]) == {"0.weight", "0.bias", "1.bias"}
    with torch.no_grad():
        module[0].weight.add_(1.0)
    expected = module[0].weight - 0.5
    ema.update()
    with ema.applied():
        torch.testing.assert_close(module[1].weight, expected)


def test_wrappers_are_looked_through():
    module = network()
    wrapper = nn.DataParallel(module)  # keeps the network in .module, as DDP does
    ema = EMA().attach(wrapper)
    assert set(ema.state_dict()["shadow"]) == {n for n, _ in module.named_parameters()}


def test_refuses_misuse():
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\), got 1"):
        EMA(decay=1.0)
    with pytest.raises(ValueError, match="no trainable parameters"):
        EMA().attach(nn.ReLU())
    with pytest.raises(RuntimeError, match="attach"):
        EMA().update()
    ema = EMA().attach(network())
    with ema.applied():
        for method in (ema.update, ema.state_dict):
            with pytest.raises(RuntimeError, match=r"inside applied"):
                method()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (nn.Sequential(nn.Linear(3, 4)), "1.weight: absent in the file"),
        (
            nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)),
            "0.weight",
        ),
    ],
)
def test_refuses_the_average_of_another_network_and_stays_as_it_was(other, message):
    ema = EMA().attach(network())
    before = bits_of(ema)
    with pytest.raises(RuntimeError, match=message):
        ema.load_state_dict(EMA().attach(other).state_dict())
    assert bits_of(ema) == before


def test_several_decays_are_as_many_averages():
    module = network()
    alone = [EMA(decay).attach(module) for decay in (0.0, 0.5, 0.9)]
    several = EMA([0.0, 0.5, 0.9]).attach(module)
    for _ in range(5):
        train(module, several, range(1))
        for ema in alone:
            ema.update()
    for number, ema in enumerate(alone):
        several.best = number
        with ema.applied():
            expected = bits(module)
        with several.applied():
            assert bits(module) == expected
        # A reader of one average finds the best in its place.
        mine, theirs = several.state_dict()["shadow"], ema.state_dict()["shadow"]
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
        assert ema.state_dict().keys() == {"steps", "shadow"}, "as it always was"


def test_several_decays_resume_exactly_and_may_become_others():
    whole = network()
    ema = EMA([0.5, 0.9]).attach(whole)
    train(whole, ema, range(10))
    module = network()
    first = EMA([0.5, 0.9]).attach(module)
    train(module, first, range(4))
    first.best = 1
    resumed = EMA([0.5, 0.9]).attach(module)
    resumed.load_state_dict(copy.deepcopy(first.state_dict()))
    assert resumed.best == 1
    train(module, resumed, range(4, 10))
    ema.best = 1
    for name in ("shadow", "shadows"):
        torch.testing.assert_close(
            resumed.state_dict()[name], ema.state_dict()[name], rtol=0, atol=0
        )
    one, three = EMA(0.9).attach(module), EMA([0.0, 0.5, 0.9]).attach(module)
    for other in (one, three):
        other.load_state_dict(first.state_dict())
        for shadow in other.state_dict().get("shadows", [other.state_dict()["shadow"]]):
            torch.testing.assert_close(shadow, first.state_dict()["shadow"])
    with pytest.raises(ValueError, match="decay must be in"):
        EMA([0.5, 1.0])
