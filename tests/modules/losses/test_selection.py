"""Selectors alone: losses in, mask out."""

import pytest
import torch

from modules.losses import selection
from modules.losses.selection import (
    KeepAll,
    RunningTruncation,
    ThresholdByLoss,
    dropped_of,
    truncation,
)

LOSS_N = torch.tensor([-12.0, -30.0, -31.0, 40.0, float("nan")])


def test_the_threshold_keeps_what_is_still_hard():
    assert ThresholdByLoss(-30)(LOSS_N).tolist() == [True, False, False, True, False]
    assert ThresholdByLoss(-40)(LOSS_N).tolist() == [True, True, True, True, False]


def test_switched_off_it_keeps_everything():
    assert ThresholdByLoss(-30, enabled=False)(LOSS_N).all()
    assert KeepAll()(LOSS_N).all()


def losses(count: int, stems: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, stems, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("quantile", [0.9, 0.7, 0.5, 0.3])
@pytest.mark.parametrize("batch", [2, 3, 4, 8])
def test_ccom_drops_what_lies_strictly_above_the_interpolated_quantile(quantile, batch):
    loss_BK = losses(batch)
    keep_BK = truncation("ccom", quantile)(loss_BK)
    for stem in range(4):
        ordered = loss_BK[:, stem].sort().values
        place = quantile * (batch - 1)
        low, part = int(place), place - int(place)
        high = min(low + 1, batch - 1)
        threshold = ordered[low] + part * (ordered[high] - ordered[low])
        expected = loss_BK[:, stem] <= threshold + 1e-7
        assert torch.equal(keep_BK[:, stem], expected)
    assert int((~keep_BK).sum()) == 4 * dropped_of(batch, quantile)


def test_the_published_counts_at_four_a_process():
    dropped = [dropped_of(4, quantile) for quantile in (0.9, 0.7, 0.5, 0.3)]
    assert dropped == [1, 1, 2, 3]
    assert [dropped_of(2, quantile) for quantile in (0.9, 0.3)] == [1, 1]
    assert [dropped_of(8, quantile) for quantile in (0.9, 0.7, 0.5, 0.3)] == [
        1,
        3,
        4,
        5,
    ]


def test_stems_are_judged_each_by_itself():
    loss_BK = torch.tensor([[1.0, 9.0], [2.0, 8.0], [3.0, 7.0], [4.0, 6.0]])
    keep_BK = truncation("ccom", 0.7)(loss_BK)
    assert keep_BK[:, 0].tolist() == [True, True, True, False]
    assert keep_BK[:, 1].tolist() == [False, True, True, True]


def test_equal_losses_are_all_kept():
    assert truncation("ccom", 0.5)(torch.ones(4, 2)).all()


def test_a_loss_that_is_missing_is_not_compared_with():
    loss_BK = losses(4)
    alone = truncation("ccom", 0.5)(loss_BK)
    padded = torch.cat([loss_BK, torch.full((3, 4), torch.nan)])
    keep = truncation("ccom", 0.5)(padded)
    assert torch.equal(keep[:4], alone) and not keep[4:].any()


def test_ranks_are_compared_apart_by_ccom_and_together_when_pooled(monkeypatch):
    monkeypatch.setattr(selection, "world_size", lambda: 2)
    # All the bad examples are on the second rank.
    loss_NK = torch.tensor([1.0, 1.1, 1.2, 1.3, 9.0, 9.1, 9.2, 9.3])[:, None]
    assert truncation("ccom", 0.5)(loss_NK).flatten().tolist() == [
        1,
        1,
        0,
        0,
        1,
        1,
        0,
        0,
    ]
    pooled = truncation("pooled", 0.5)(loss_NK)
    assert pooled.flatten().tolist() == [1, 1, 1, 1, 0, 0, 0, 0]


def test_pooled_compares_with_the_batches_accumulated_before():
    pooled = truncation("pooled", 0.5)
    pooled.batches = 2
    assert pooled(torch.full((4, 1), 1.0)).all()
    # All worse than the batch before: the middle of the eight losses divides them.
    assert not pooled(torch.full((4, 1), 5.0)).any()
    assert len(pooled.past_WK) == 8
    pooled(torch.full((4, 1), 5.0))  # the first batch is forgotten
    assert pooled(torch.full((4, 1), 5.0)).all()


def test_accumulation_makes_small_batches_comparable():
    pooled = truncation("pooled", 0.7)
    with pytest.raises(ValueError, match="drops none of 1 losses"):
        pooled.check(batch_size=1, world_size=1)
    pooled.batches = 4
    pooled.check(batch_size=1, world_size=1)


def test_the_mean_runs_over_the_batch_for_ccom_and_over_the_kept_otherwise():
    assert not truncation("ccom", 0.5).renormalise
    assert truncation("pooled", 0.5).renormalise
    assert truncation("running", 0.5).renormalise


def test_the_window_waits_until_it_is_full_and_then_compares_with_the_past():
    running = truncation("running", 0.75, memory=8)
    assert running(torch.full((4, 1), 1.0)).all()
    assert running(torch.tensor([[1.0], [1.0], [1.0], [99.0]]))[:3].all()
    # A clean batch loses nothing, unlike under a rule that looks at the batch alone.
    assert running(torch.full((4, 1), 1.0)).all()
    keep = running(torch.tensor([[1.0], [1.0], [99.0], [1.0]]))
    assert keep.flatten().tolist() == [True, True, False, True]


def test_the_window_is_a_window():
    running = truncation("running", 0.5, memory=4)
    running(torch.full((4, 1), 5.0))
    running(torch.full((4, 1), 1.0))
    assert running.past_WK.flatten().tolist() == [1.0] * 4
    assert running(torch.tensor([[1.0], [1.1]])).flatten().tolist() == [True, False]


def test_what_a_window_forgets_does_not_depend_on_the_ranks(monkeypatch):
    """Examples are dealt out in turns: rank 1 of 2 has the odd ones of a batch."""
    alone, shared = (truncation("running", 0.5, memory=6) for _ in range(2))
    for seed in range(3):
        loss_NK = losses(4, seed=seed)
        monkeypatch.setattr(selection, "world_size", lambda: 1)
        keep = alone(loss_NK)
        monkeypatch.setattr(selection, "world_size", lambda: 2)
        order = [0, 2, 1, 3]
        assert torch.equal(shared(loss_NK[order]), keep[order])
    assert torch.equal(alone.past_WK, shared.past_WK)


def test_a_window_continues_from_a_checkpoint():
    for rule in ("running", "pooled"):
        one, other = (truncation(rule, 0.6, memory=16) for _ in range(2))
        one.batches = other.batches = 3
        for seed in range(5):
            one(losses(4, seed=seed).index_fill(0, torch.tensor(seed % 4), torch.nan))
        one(losses(4).masked_fill(torch.eye(4, dtype=torch.bool), torch.nan))
        state = one.state_dict()
        assert state["past_WK"].isfinite().all(), "or the checkpoint is refused"
        other.load_state_dict(state)
        for seed in range(5, 9):
            assert torch.equal(one(losses(4, seed=seed)), other(losses(4, seed=seed)))
    assert truncation("running", 0.6).state_dict() == {}


def test_a_batch_too_small_to_drop_anything_is_refused_with_the_reason():
    with pytest.raises(ValueError, match="drops none of 1 losses.*at least 2"):
        truncation("ccom", 0.7).check(batch_size=1, world_size=8)
    truncation("pooled", 0.7).check(batch_size=1, world_size=8)
    truncation("running", 0.7).check(batch_size=1, world_size=1)
    truncation("ccom", 1.0).check(batch_size=1, world_size=1)


@pytest.mark.parametrize("arguments", [(0,), (1.1,), (0.5, 0)])
def test_arguments_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError):
        RunningTruncation(*arguments)
    with pytest.raises(ValueError, match="none, ccom, pooled, running"):
        truncation("best", 0.5)


def test_a_window_that_holds_nothing_is_refused():
    with pytest.raises(ValueError, match="memory=-8: must be 1 or more"):
        truncation("running", 0.7, memory=-8)


def test_frames_are_chosen_within_examples_and_stem_by_stem():
    loss_NKF = torch.ones(2, 2, 4)
    loss_NKF[0, 0, 3] = 9.0  # what bled into the first stem, at one place
    loss_NKF[1, 1, :2] = 5.0
    frames = truncation("frames", 0.7, frame_seconds=0.5)
    assert (
        frames.frame_seconds == 0.5 and truncation("pooled", 0.7).frame_seconds is None
    )
    keep_NKF = frames(loss_NKF)
    assert (~keep_NKF).nonzero().tolist() == [[0, 0, 3], [1, 1, 0], [1, 1, 1]]
    frames.check(batch_size=8, world_size=1)


def test_dropping_takes_its_threshold_anew_after_as_many_losses():
    dropping = truncation("dropping", 0.5, memory=4)
    assert dropping(torch.tensor([[1.0], [9.0]])).all()  # nothing is known yet
    assert dropping(torch.tensor([[3.0], [4.0]])).flatten().tolist() == [True, False]
    # The threshold of 3.5 holds, whatever comes, until four more were seen.
    assert not dropping(torch.tensor([[8.0], [7.0]])).any()
    assert dropping(torch.tensor([[7.0], [9.0]])).flatten().tolist() == [True, False]
    again = truncation("dropping", 0.5, memory=4)
    again.load_state_dict(dropping.state_dict())
    loss_NK = torch.tensor([[7.0], [7.6]])
    assert again(loss_NK).flatten().tolist() == [True, False]
    assert torch.equal(dropping(loss_NK), torch.tensor([[True], [False]]))
    assert again.age == dropping.age == 2


def test_a_stem_without_losses_has_no_threshold():
    dropping = truncation("dropping", 0.5, memory=2)
    keep = dropping(torch.tensor([[1.0, torch.nan], [2.0, torch.nan]]))
    assert keep[:, 0].tolist() == [True, False]
    assert dropping(torch.tensor([[torch.nan, 5.0]]))[0, 1]


def test_soft_weights_are_the_probability_of_the_low_losses():
    generator = torch.Generator().manual_seed(0)
    low_W1 = 1 + 0.1 * torch.randn(40, 1, generator=generator)
    high_W1 = 3 + 0.3 * torch.randn(20, 1, generator=generator)
    soft = truncation("soft", 0.7, memory=60)
    assert soft(low_W1).eq(1).all()  # too few to tell
    soft(high_W1)
    asked = torch.tensor([[-5.0], [1.0], [1.3], [2.0], [3.0], [50.0], [torch.nan]])
    weight_N = soft(asked).flatten()
    assert weight_N[:2].min() > 0.99 and weight_N[4:6].max() < 0.01
    assert weight_N[:6].diff().max() <= 0  # a larger loss never weighs more
    soft.quantile = 1.0
    assert soft(asked).eq(1).all()


def test_a_stem_that_lacks_losses_leaves_the_others_their_weights():
    loss_WK = torch.cat([torch.ones(30, 1), torch.full((10, 1), 5.0)])
    whole = truncation("soft", 0.7, memory=40)
    part = truncation("soft", 0.7, memory=40)
    weight = whole(loss_WK)
    unknown = torch.full((40, 1), torch.nan)
    unknown[:10] = 1.0
    assert torch.equal(part(torch.cat([loss_WK, unknown], 1))[:, :1], weight)


@pytest.mark.parametrize("rule", ["frames", "dropping", "soft"])
def test_a_rule_goes_on_as_if_it_had_not_been_interrupted(rule):
    shape = (4, 3, 5) if rule == "frames" else (4, 3)
    batches = [
        torch.rand(shape, generator=torch.Generator().manual_seed(n)) for n in range(9)
    ]
    whole, first, second = (truncation(rule, 0.6, memory=8) for _ in range(3))
    expected = [whole(batch) for batch in batches]
    found = [first(batch) for batch in batches[:5]]
    second.load_state_dict(first.state_dict())
    found += [second(batch) for batch in batches[5:]]
    assert all(map(torch.equal, found, expected))
    assert all(value.isfinite().all() for value in first.state_dict().values())
