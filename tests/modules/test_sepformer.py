"""SepFormer against SpeechBrain's dual path with the same weights."""

import pytest
import torch
from speechbrain.lobes.models.dual_path import (
    Decoder,
    Dual_Path_Model,
    Encoder,
    SBTransformerBlock,
)

from modules.sepformer import SepFormer


def pair(sources: int = 2) -> tuple[SepFormer, torch.nn.ModuleDict]:
    """Ours and the reference, small, with the same weights."""

    def block() -> SBTransformerBlock:
        return SBTransformerBlock(
            num_layers=1,
            d_model=32,
            nhead=4,
            d_ffn=64,
            dropout=0.0,
            use_positional_encoding=True,
            norm_before=True,
        )

    torch.manual_seed(0)
    reference = torch.nn.ModuleDict(
        {
            "encoder": Encoder(kernel_size=16, out_channels=32),
            "masknet": Dual_Path_Model(
                num_spks=sources,
                in_channels=32,
                out_channels=32,
                num_layers=2,
                K=20,
                intra_model=block(),
                inter_model=block(),
                norm="ln",
                linear_layer_after_inter_intra=False,
                skip_around_intra=True,
            ),
            "decoder": Decoder(32, 1, kernel_size=16, stride=8, bias=False),
        }
    )
    ours = SepFormer(
        num_sources=sources,
        encoder_channels=32,
        kernel_size=16,
        dual_layers=2,
        chunk_size=20,
        intra_layers=1,
        inter_layers=1,
        heads=4,
        ffn_channels=64,
    )
    ours.load_state_dict(reference.state_dict(), strict=True)
    return ours, reference


def separate(reference: torch.nn.ModuleDict, mixture_BT: torch.Tensor) -> torch.Tensor:
    features = reference["encoder"](mixture_BT)
    masks = reference["masknet"](features)
    waves = [reference["decoder"](features * mask) for mask in masks]
    est_BST = torch.stack(waves, dim=1)
    missing = mixture_BT.shape[-1] - est_BST.shape[-1]
    return torch.nn.functional.pad(est_BST, (0, missing))


@pytest.mark.parametrize("sources", [2, 3])
@pytest.mark.parametrize("frames", [1600, 1603])
def test_outputs_and_gradients_equal_speechbrain(sources, frames):
    ours, reference = pair(sources)
    mixture_BT = torch.randn(2, frames)
    expected = separate(reference, mixture_BT)
    got = ours(mixture_BT)
    assert got.shape == (2, sources, frames)
    assert (got - expected).abs().max() < 1e-5 * expected.abs().max()

    expected.abs().mean().backward()
    got.abs().mean().backward()
    theirs = dict(reference.named_parameters())
    for name, parameter in ours.named_parameters():
        gradient = theirs[name].grad
        error = (parameter.grad - gradient).norm() / (gradient.norm() + 1e-8)
        assert error < 1e-3, name


def test_the_published_size():
    model = SepFormer()
    assert sum(p.numel() for p in model.parameters()) == 25_679_361
    assert len(model.state_dict()) == 417


@pytest.mark.parametrize("frames", [1, 15, 16, 17, 999])
def test_any_length_and_silence_are_finite(frames):
    ours, _ = pair()
    for mixture_BT in (torch.randn(1, frames), torch.zeros(1, frames)):
        est_BST = ours(mixture_BT)
        assert est_BST.shape == (1, 2, frames)
        est_BST.sum().backward()
        assert torch.isfinite(est_BST).all()
        assert all(torch.isfinite(p.grad).all() for p in ours.parameters())


def test_checkpointing_changes_no_gradient():
    ours, reference = pair()
    lean = SepFormer(
        encoder_channels=32,
        chunk_size=20,
        intra_layers=1,
        inter_layers=1,
        heads=4,
        ffn_channels=64,
        activation_checkpointing=True,
    )
    lean.load_state_dict(reference.state_dict())
    mixture_BT = torch.randn(1, 800)
    for model in (ours, lean):
        model(mixture_BT).abs().mean().backward()
    for a, b in zip(ours.parameters(), lean.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, atol=1e-7)
