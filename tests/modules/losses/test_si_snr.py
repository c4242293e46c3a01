"""Truths about SI-SNR and PIT, on generated signals.

Shapes: B batch, S source, T sample.
"""

import fast_bss_eval
import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeTensorMode,
)

from modules.losses.si_snr import (
    _permutation_table,
    best_permutation,
    pairwise_neg_si_snr,
    pit_neg_si_snr,
    reorder,
)


def noise(*shape: int, seed: int = 0) -> Tensor:
    samples = np.random.default_rng(seed).standard_normal(shape)
    return torch.from_numpy(samples).float() * 0.1


def orthogonal_pair(samples: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Zero-mean, equal-energy, exactly orthogonal signals in float64."""
    x_2T = np.random.default_rng(seed).standard_normal((2, samples))
    x_2T -= x_2T.mean(axis=1, keepdims=True)
    q_T2, _ = np.linalg.qr(x_2T.T)
    return tuple(torch.from_numpy(q_T2.T.copy()) * 0.1 * samples**0.5)


def formula_db(est_T: Tensor, target_T: Tensor) -> float:
    """SI-SNR by its definition, float64, no floors."""
    e, s = est_T.double() - est_T.double().mean(), target_T.double()
    s = s - s.mean()
    p = (e @ s) / (s @ s) * s
    return float(10 * torch.log10((p @ p) / ((e - p) @ (e - p))))


@pytest.mark.parametrize("snr_db", [-30, -10, 0, 10, 30, 45, 60])
def test_orthogonal_noise_of_known_level_gives_that_snr(snr_db):
    target_T, noise_T = orthogonal_pair(32000)
    est_T = target_T + noise_T * 10 ** (-snr_db / 20)
    args = est_T[None, None], target_T[None, None]
    assert pairwise_neg_si_snr(*args).item() == pytest.approx(-snr_db, abs=1e-3)
    in_float32 = pairwise_neg_si_snr(*(x.float() for x in args))
    assert in_float32.dtype == torch.float32
    assert in_float32.item() == pytest.approx(-snr_db, abs=1e-3)


def test_all_pairs_equal_the_formula_and_fast_bss_eval():
    target_BST = noise(3, 4, 8000, seed=1)
    est_BST = target_BST.roll(1, dims=1) + 0.3 * noise(3, 4, 8000, seed=2) + 0.05
    loss_BSS = pairwise_neg_si_snr(est_BST, target_BST)
    ours_SS = -loss_BSS[2]
    for i in range(4):
        for j in range(4):
            true_db = formula_db(est_BST[2, i], target_BST[2, j])
            assert ours_SS[i, j].item() == pytest.approx(true_db, abs=1e-3)
    theirs_BS = fast_bss_eval.si_sdr(
        target_BST.double(), est_BST.double(), zero_mean=True
    )
    best_B = pit_neg_si_snr(est_BST, target_BST).loss_B
    torch.testing.assert_close(-best_B.double(), theirs_BS.mean(1), atol=1e-3, rtol=0)


@pytest.mark.parametrize("gain", [1e-3, 0.5, -1.0, 1e3])
@pytest.mark.parametrize("snr_db", [0, 60])
def test_score_ignores_scale_sign_and_mean_of_the_estimate(gain, snr_db):
    target_T, noise_T = orthogonal_pair(16000)
    est_T = (target_T + noise_T * 10 ** (-snr_db / 20)).float()
    shifted_T = est_T * gain + abs(gain) * 0.02
    loss = pairwise_neg_si_snr(shifted_T[None, None], target_T[None, None].float())
    assert loss.item() == pytest.approx(-snr_db, abs=1e-3)
    moved = pairwise_neg_si_snr(est_T[None, None], target_T[None, None].float() + 0.02)
    assert moved.item() == pytest.approx(-snr_db, abs=1e-3)


@pytest.mark.parametrize("sources", [1, 2, 3, 4, 5, 6])
def test_the_true_order_is_found_and_undone_per_example(sources):
    target_BST = noise(5, sources, 2000, seed=sources)
    rng = np.random.default_rng(sources)
    order_BS = torch.from_numpy(np.stack([rng.permutation(sources) for _ in range(5)]))
    est_BST = reorder(target_BST, order_BS) + 0.01 * noise(5, sources, 2000, seed=9)
    result = pit_neg_si_snr(est_BST, target_BST)
    assert torch.equal(result.permutation_BS, order_BS.argsort(dim=1))
    in_order_BST = reorder(est_BST, result.permutation_BS)
    diagonal_BS = pairwise_neg_si_snr(in_order_BST, target_BST).diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(diagonal_BS.mean(1), result.loss_B)
    assert (result.loss_B < -35).all()


@pytest.mark.parametrize("sources", [1, 2, 3, 4, 5, 6])
def test_assignment_is_optimal_on_random_costs(sources):
    costs = np.random.default_rng(sources).standard_normal((50, sources, sources))
    permutation_BS = best_permutation(torch.from_numpy(costs))
    for cost_SS, permutation_S in zip(costs, permutation_BS, strict=True):
        rows, columns = linear_sum_assignment(cost_SS)
        expected_S = np.empty(sources, dtype=int)
        expected_S[columns] = rows
        assert permutation_S.tolist() == expected_S.tolist()


@pytest.mark.parametrize("garbage", [0.0, 1e6, float("nan"), float("inf")])
def test_padding_changes_neither_loss_nor_gradient(garbage):
    """Each example padded within a batch equals that example alone."""
    lengths = [3000, 1777, 64]
    target_BST = noise(3, 2, 3000, seed=3) + 0.03
    est_BST = target_BST.flip(1) + 0.5 * noise(3, 2, 3000, seed=4)
    for b, length in enumerate(lengths):
        est_BST[b, :, length:] = garbage
        target_BST[b, :, length:] = garbage
    est_BST.requires_grad_()
    batch = pit_neg_si_snr(est_BST, target_BST, torch.tensor(lengths))
    batch.loss_B.sum().backward()
    for b, length in enumerate(lengths):
        alone_1ST = est_BST[b : b + 1, :, :length].detach().requires_grad_()
        alone = pit_neg_si_snr(alone_1ST, target_BST[b : b + 1, :, :length])
        alone.loss_B.sum().backward()
        torch.testing.assert_close(alone.loss_B[0], batch.loss_B[b], atol=1e-4, rtol=0)
        assert torch.equal(alone.permutation_BS[0], batch.permutation_BS[b])
        torch.testing.assert_close(
            est_BST.grad[b, :, :length], alone_1ST.grad[0], atol=1e-5, rtol=1e-4
        )
        assert (est_BST.grad[b, :, length:] == 0).all()


def test_the_gradient_is_the_derivative():
    target_BST = noise(2, 2, 20, seed=5).double()
    est_BST = (target_BST.flip(1) + noise(2, 2, 20, seed=6)).double().requires_grad_()
    length_B = torch.tensor([20, 13])
    assert torch.autograd.gradcheck(
        lambda x: pit_neg_si_snr(x, target_BST, length_B).loss_B, est_BST
    )


def test_a_silent_target_is_left_out_of_choice_mean_and_gradient():
    target_BST = noise(1, 3, 4000, seed=7)
    target_BST[0, 1] = 0.25  # constant: nothing is left once the mean is removed
    est_BST = target_BST[:, [2, 0, 1]] + 0.1 * noise(1, 3, 4000, seed=8)
    est_BST.requires_grad_()
    result = pit_neg_si_snr(est_BST, target_BST)
    result.loss_B.sum().backward()
    assert result.active_BS.tolist() == [[True, False, True]]
    assert result.permutation_BS.tolist() == [[1, 2, 0]]
    mean = (
        formula_db(est_BST[0, 1].detach(), target_BST[0, 0])
        + formula_db(est_BST[0, 0].detach(), target_BST[0, 2])
    ) / 2
    assert result.loss_B.item() == pytest.approx(-mean, abs=1e-3)
    assert (pairwise_neg_si_snr(est_BST, target_BST)[0, :, 1] == 0).all()
    assert (est_BST.grad[0, 2] == 0).all()
    assert (est_BST.grad[0, :2].abs().sum(dim=-1) > 0).all()


def test_silence_is_decided_by_the_energy_at_the_threshold():
    unit_T = torch.tensor([1.0, -1.0]).repeat(2000)
    target_BST = torch.stack([0.9e-5 * unit_T, 1.1e-5 * unit_T])[None]
    est_BST = noise(1, 2, 4000)
    assert pit_neg_si_snr(est_BST, target_BST).active_BS.tolist() == [[False, True]]
    loud = pit_neg_si_snr(est_BST, target_BST, silence=2e-10)
    assert not loud.active_BS.any()


def test_an_example_without_any_active_source_has_loss_and_gradient_zero():
    target_BST = noise(2, 2, 1000)
    target_BST[0] = 0
    est_BST = noise(2, 2, 1000, seed=1).requires_grad_()
    result = pit_neg_si_snr(est_BST, target_BST)
    result.loss_B.sum().backward()
    assert result.loss_B[0] == 0 and result.loss_B[1] != 0
    assert result.active_BS.tolist() == [[False, False], [True, True]]
    assert (est_BST.grad[0] == 0).all() and (est_BST.grad[1] != 0).any()
    empty = pit_neg_si_snr(est_BST, target_BST, torch.tensor([1000, 0]))
    assert empty.loss_B[1] == 0 and not empty.active_BS[1].any()


@pytest.mark.parametrize("level", [0.0, 1e-38, 1e-25, 1e-15, 1e-8])
def test_near_silent_estimates_are_finite_and_bounded(level):
    target_BST = noise(1, 2, 4000)
    est_BST = (noise(1, 2, 4000, seed=1) * level).requires_grad_()
    loss_B = pit_neg_si_snr(est_BST, target_BST).loss_B
    loss_B.sum().backward()
    assert est_BST.grad.isfinite().all()
    assert est_BST.grad.norm() < 1e12  # its square is far from overflow
    assert 0 < loss_B.item() <= 100.001
    if level == 0:
        assert loss_B.item() == pytest.approx(100, abs=1e-3)
        assert (est_BST.grad == 0).all()


def test_the_range_ends_at_100_db_with_finite_gradients():
    target_T, other_T = orthogonal_pair(8000)
    target_BST = torch.stack([target_T, other_T])[None]
    est_BST = target_BST.clone().requires_grad_()
    loss_BSS = pairwise_neg_si_snr(est_BST, target_BST)
    expected = torch.tensor([[[-100.0, 100.0], [100.0, -100.0]]]).double()
    torch.testing.assert_close(loss_BSS, expected, atol=1e-3, rtol=0)
    loss_BSS.square().sum().backward()
    assert est_BST.grad.isfinite().all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["estimate", "target", "estimate of a silent one"])
def test_a_non_finite_example_is_nan_and_alone(bad, where):
    target_BST = noise(3, 2, 1000)
    est_BST = noise(3, 2, 1000, seed=1)
    if where == "estimate of a silent one":
        target_BST[1] = 0
    clean = pit_neg_si_snr(est_BST, target_BST).loss_B
    (target_BST if where == "target" else est_BST)[1, 0, 500] = bad
    est_BST.requires_grad_()
    result = pit_neg_si_snr(est_BST, target_BST)
    assert result.loss_B.isnan().tolist() == [False, True, False]
    assert torch.equal(result.loss_B[[0, 2]], clean[[0, 2]])
    assert result.active_BS[1].all()
    # a caller who drops the example gets a clean gradient for the others
    torch.where(result.loss_B.isfinite(), result.loss_B, 0).sum().backward()
    assert est_BST.grad.isfinite().all() and (est_BST.grad[1] == 0).all()
    assert (est_BST.grad[[0, 2]] != 0).any()


def test_autocast_and_low_precision_inputs_are_computed_in_float32():
    target_T, noise_T = orthogonal_pair(16000)
    target_BST = target_T.float()[None, None]
    est_BST = (target_T + 0.01 * noise_T).float()[None, None]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = pairwise_neg_si_snr(est_BST, target_BST)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(-40, abs=1e-3)
    rounded_BST = est_BST.bfloat16()
    loss = pairwise_neg_si_snr(rounded_BST, target_BST)
    expected = formula_db(rounded_BST[0, 0], target_BST[0, 0])
    assert -loss.item() == pytest.approx(expected, abs=1e-3)


def test_a_first_call_in_inference_mode_does_not_break_training():
    _permutation_table.cache_clear()
    with torch.inference_mode():
        pit_neg_si_snr(noise(1, 3, 100), noise(1, 3, 100, seed=1))
    est_BST = noise(1, 3, 100).requires_grad_()
    pit_neg_si_snr(est_BST, noise(1, 3, 100, seed=1)).loss_B.sum().backward()
    assert est_BST.grad.isfinite().all()


def test_nothing_is_read_back_from_the_device():
    """Fake tensors have shapes and no values: reading one (`.item()`) raises."""
    _permutation_table.cache_clear()
    try:
        with FakeTensorMode():
            est_BST, target_BST = torch.randn(2, 4, 3, 100)[:2]
            with pytest.raises(DataDependentOutputException):
                est_BST.sum().item()
            result = pit_neg_si_snr(est_BST, target_BST, torch.tensor([100, 50, 3, 0]))
            assert result.loss_B.shape == (4,)
            assert result.permutation_BS.shape == (4, 3)
    finally:
        _permutation_table.cache_clear()


def test_wrong_input_is_refused_by_name():
    with pytest.raises(ValueError, match=r"\(1, 2, 9\) and \(1, 2, 8\)"):
        pit_neg_si_snr(noise(1, 2, 9), noise(1, 2, 8))
    with pytest.raises(ValueError, match="multiply relative lengths by T"):
        pit_neg_si_snr(noise(1, 2, 9), noise(1, 2, 9), torch.tensor([0.5]))
    with pytest.raises(ValueError, match="at most 8 sources"):
        pit_neg_si_snr(noise(1, 9, 9), noise(1, 9, 9))
