"""The loss of auxiliary estimates: the reference's values, and what it must not see."""

import pytest
import torch

from modules.losses.auxiliary import AuxiliaryLoss, pit_neg_magnitude_snr
from modules.losses.si_snr import pit_neg_si_snr
from modules.models.sepreformer import SepReformer
from tests.modules.models.goldens import read_golden


def test_values_equal_the_reference():
    config, weights, tensors = read_golden("sepreformer_16x2_2spk")
    model = SepReformer.from_config(config).eval()
    model.load_state_dict(weights)
    target = tensors["loss/target_BST"]
    with torch.no_grad():
        estimate, others = model(tensors["loss/mixture_BT"], auxiliary=True)
    main_B = pit_neg_si_snr(estimate, target, floor=-30).loss_B
    torch.testing.assert_close(2 * main_B.mean(), tensors["loss/time"])
    for k, other in enumerate(others):
        loss = 2 * pit_neg_magnitude_snr(other, target).loss_B.mean()
        torch.testing.assert_close(loss, tensors[f"loss/magnitude{k}"])
    mixed_B = AuxiliaryLoss(weight=0.4).mixed(main_B, others, target, None, epoch=1)
    torch.testing.assert_close(mixed_B.mean(), tensors["loss/total"])


def test_the_weight_falls_as_the_authors_have_it():
    auxiliary = AuxiliaryLoss(0.4, hold_epochs=100, factor=0.8, every_epochs=5)
    for epoch in (1, 100, 101, 105, 106, 140):
        falls = 0 if epoch <= 100 else 1 + (epoch - 101) // 5
        assert auxiliary.weight_at(epoch) == pytest.approx(0.4 * 0.8**falls)


def test_padding_order_and_level_do_not_count():
    target = torch.randn(2, 2, 700)
    estimate = target.flip(1) + 0.1 * torch.randn(2, 2, 700)
    truth = pit_neg_magnitude_snr(estimate, target)
    assert truth.permutation_BS.tolist() == [[1, 0], [1, 0]]
    junk = torch.full((2, 2, 68), 9.0)  # within the same number of frames
    padded = [torch.cat([wave, junk], dim=-1) for wave in (estimate, target)]
    given = pit_neg_magnitude_snr(*padded, torch.tensor([700, 700]))
    torch.testing.assert_close(given.loss_B, truth.loss_B)
    quieter = pit_neg_magnitude_snr(estimate, 3 * target).loss_B
    torch.testing.assert_close(quieter, truth.loss_B, rtol=1e-4, atol=1e-4)


def test_faults_stay_with_their_example():
    estimate = torch.randn(4, 2, 300)
    target = torch.randn(4, 2, 300)
    alone = pit_neg_magnitude_snr(estimate[3:], target[3:]).loss_B
    estimate[0, 0, 5] = torch.nan
    estimate[1] = 0
    target[2, 1] = 0
    estimate.requires_grad_()
    result = pit_neg_magnitude_snr(estimate, target)
    assert result.loss_B[0].isnan() and result.loss_B[1:].isfinite().all()
    assert result.active_BS[2].tolist() == [True, False]
    torch.testing.assert_close(result.loss_B[3:], alone)
    result.loss_B.nan_to_num().sum().backward()
    assert estimate.grad.isfinite().all()
    assert not estimate.grad[0].any() and estimate.grad[3].any()


def test_a_floor_takes_the_gradient_of_the_sources_below_it():
    target = torch.randn(1, 2, 300)
    estimate = target + torch.tensor([[[1e-3], [1.0]]]) * torch.randn(1, 2, 300)
    estimate.requires_grad_()
    result = pit_neg_si_snr(estimate, target, floor=-30)
    plain = pit_neg_si_snr(estimate, target)
    assert plain.loss_B < result.loss_B < 0
    result.loss_B.sum().backward()
    assert not estimate.grad[0, 0].any() and estimate.grad[0, 1].any()


@pytest.mark.parametrize(
    "options",
    [{"weight": 1.0}, {"factor": 0.0}, {"hold_epochs": -1}, {"every_epochs": 0}],
)
def test_a_bad_number_is_named(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name}="):
        AuxiliaryLoss(**{"weight": 0.4, **options})
