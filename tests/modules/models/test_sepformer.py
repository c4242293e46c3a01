"""SepFormer against SpeechBrain's dual path with the same weights."""

import pytest
import torch
from speechbrain.lobes.models import dual_path
from speechbrain.lobes.models.dual_path import (
    Decoder,
    Dual_Path_Model,
    Encoder,
    SBTransformerBlock,
)

from modules.models import sepformer
from modules.models.sepformer import SepFormer
from tests.modules.models.goldens import check_large_product

SMALL = {
    "encoder_channels": 32,
    "chunk_size": 20,
    "intra_layers": 1,
    "inter_layers": 1,
    "heads": 4,
    "ffn_channels": 64,
}


def speechbrain_model(
    sources: int = 2,
    channels: int = 32,
    chunk_size: int = 20,
    layers: int = 1,
    heads: int = 4,
    ffn_channels: int = 64,
) -> torch.nn.ModuleDict:
    """The reference; two dual layers."""

    def block() -> SBTransformerBlock:
        return SBTransformerBlock(
            num_layers=layers,
            d_model=channels,
            nhead=heads,
            d_ffn=ffn_channels,
            dropout=0.0,
            use_positional_encoding=True,
            norm_before=True,
        )

    return torch.nn.ModuleDict(
        {
            "encoder": Encoder(kernel_size=16, out_channels=channels),
            "masknet": Dual_Path_Model(
                num_spks=sources,
                in_channels=channels,
                out_channels=channels,
                num_layers=2,
                K=chunk_size,
                intra_model=block(),
                inter_model=block(),
                norm="ln",
                linear_layer_after_inter_intra=False,
                skip_around_intra=True,
            ),
            "decoder": Decoder(channels, 1, kernel_size=16, stride=8, bias=False),
        }
    )


def pair(
    sources: int = 2, chunk_size: int = 20
) -> tuple[SepFormer, torch.nn.ModuleDict]:
    """Ours and the reference, small, with the same weights."""
    torch.manual_seed(0)
    reference = speechbrain_model(sources, chunk_size=chunk_size)
    with torch.no_grad():  # away from norms of one and biases of zero
        for parameter in reference.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    ours = SepFormer(num_sources=sources, **{**SMALL, "chunk_size": chunk_size})
    ours.load_state_dict(reference.state_dict(), strict=True)
    return ours, reference


def separate(reference: torch.nn.ModuleDict, mixture_BT: torch.Tensor) -> torch.Tensor:
    features = reference["encoder"](mixture_BT)
    masks = reference["masknet"](features)
    batch = len(mixture_BT)  # the reference's decoder squeezes a batch of one
    waves = [reference["decoder"](features * mask).view(batch, -1) for mask in masks]
    est_BST = torch.stack(waves, dim=1)
    missing = mixture_BT.shape[-1] - est_BST.shape[-1]
    return torch.nn.functional.pad(est_BST, (0, missing))


@pytest.mark.parametrize("sources", [2, 3])
@pytest.mark.parametrize("samples", [16, 1600, 1603])
@pytest.mark.parametrize("chunk_size", [20, 21])
def test_outputs_and_gradients_equal_speechbrain(sources, samples, chunk_size):
    ours, reference = pair(sources, chunk_size)
    mixture_BT = torch.randn(2, samples)
    expected = separate(reference, mixture_BT)
    got = ours(mixture_BT)
    assert got.shape == (2, sources, samples)
    assert (got - expected).abs().max() < 1e-5 * expected.abs().max()

    expected.square().mean().backward()
    got.square().mean().backward()
    theirs = dict(reference.named_parameters())
    largest = max(p.grad.norm() for p in theirs.values())
    for name, parameter in ours.named_parameters():
        gradient = theirs[name].grad
        error = (parameter.grad - gradient).norm()
        assert error < 1e-4 * gradient.norm() + 1e-7 * largest, name


def test_the_published_size_and_keys():
    model = SepFormer()
    published = speechbrain_model(
        channels=256, chunk_size=250, layers=8, heads=8, ffn_channels=1024
    )
    assert sum(p.numel() for p in model.parameters()) == 25_679_361
    assert len(model.state_dict()) == 417
    assert list(model.state_dict()) == list(published.state_dict())
    model.load_state_dict(published.state_dict(), strict=True)


def test_sequences_longer_than_the_positional_table():
    ours, reference = pair(chunk_size=2)
    mixture_BT = torch.randn(1, 8 * (sepformer.TABLE_LENGTH + 100))
    with pytest.raises(RuntimeError, match="2500"):  # the reference ends there
        separate(reference, mixture_BT)
    long_table = dual_path.PositionalEncoding(32, max_len=4000)
    for block in reference["masknet"].dual_mdl:
        block.inter_mdl.pos_enc = long_table
    with torch.no_grad():
        expected, got = separate(reference, mixture_BT), ours(mixture_BT)
    assert (got - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("samples", [1, 15, 16, 17, 999])
def test_any_length_and_silence_are_finite(samples):
    ours, _ = pair()
    for mixture_BT in (torch.randn(1, samples), torch.zeros(1, samples)):
        ours.zero_grad()
        est_BST = ours(mixture_BT)
        assert est_BST.shape == (1, 2, samples)
        est_BST.sum().backward()
        assert torch.isfinite(est_BST).all()
        assert all(torch.isfinite(p.grad).all() for p in ours.parameters())


@pytest.mark.parametrize("shape", [(100,), (1, 1, 100), (1, 0)])
def test_a_mixture_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match="mixture"):
        SepFormer(**SMALL)(torch.zeros(shape))


@pytest.mark.parametrize(
    "wrong", [{"kernel_size": 15}, {"heads": 3}, {"chunk_size": 1}]
)
def test_a_configuration_that_cannot_work_is_named(wrong):
    with pytest.raises(ValueError, match="kernel_size|channels|chunk_size"):
        SepFormer(**{**SMALL, **wrong})


def test_an_example_does_not_see_its_neighbours():
    ours, _ = pair()
    mixture_BT = torch.randn(3, 4003) * torch.tensor([[1.0], [100.0], [0.0]])
    with torch.no_grad():
        together = ours(mixture_BT)
        alone = torch.cat([ours(mixture_T[None]) for mixture_T in mixture_BT])
    error = (together - alone).abs().amax(dim=(1, 2))
    assert (error <= 1e-5 * alone.abs().amax(dim=(1, 2)) + 1e-9).all()


def test_slices_change_nothing(monkeypatch):
    ours, _ = pair()
    mixture_BT = torch.randn(2, 3000)
    results = []
    for size in (1, 100, 10**9):
        monkeypatch.setattr(sepformer, "CPU_SLICE", size)
        ours.zero_grad()
        est_BST = ours(mixture_BT)
        est_BST.abs().mean().backward()
        results.append([est_BST, *(p.grad for p in ours.parameters())])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert (a - b).norm() <= 1e-5 * a.norm()


def test_checkpointing_changes_no_gradient():
    ours, _ = pair()
    lean = SepFormer(**SMALL, activation_checkpointing=True)
    lean.load_state_dict(ours.state_dict())
    calls = []
    for layer in lean.masknet.dual_mdl[0].intra_mdl.mdl.layers:
        layer.register_forward_pre_hook(lambda *_: calls.append(1))
    mixture_BT = torch.randn(1, 800)
    for model in (ours, lean):
        model(mixture_BT).abs().mean().backward()
    assert len(calls) == 2  # forward, and again in the backward pass
    for a, b in zip(ours.parameters(), lean.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


def test_checkpointing_repeats_the_dropout():
    torch.manual_seed(0)
    plain = SepFormer(**SMALL, dropout=0.3)
    lean = SepFormer(**SMALL, dropout=0.3, activation_checkpointing=True)
    lean.load_state_dict(plain.state_dict())
    mixture_BT = torch.randn(1, 800)
    for model in (plain, lean):
        torch.manual_seed(1)
        model(mixture_BT).abs().mean().backward()
    for a, b in zip(plain.parameters(), lean.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=1e-4, atol=1e-8)


def test_bfloat16_stays_near_float32():
    ours, _ = pair()
    mixture_BT = torch.randn(1, 1603)
    expected = ours(mixture_BT)
    expected.abs().mean().backward()
    gradient = torch.cat([p.grad.flatten() for p in ours.parameters()])
    ours.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        got = ours(mixture_BT)
    assert got.dtype == torch.float32
    assert (got - expected).norm() < 0.05 * expected.norm()
    got.abs().mean().backward()
    error = torch.cat([p.grad.flatten() for p in ours.parameters()]) - gradient
    assert error.norm() < 0.1 * gradient.norm()


def test_compiled_equals_eager():
    torch.manual_seed(0)
    ours = SepFormer(**SMALL, dual_layers=1)
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    mixture_BT = torch.randn(1, 801)
    gradients = []
    for model in (ours, compiled):
        model(mixture_BT).square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in ours.parameters()]))
        ours.zero_grad()
    assert (gradients[0] - gradients[1]).norm() < 1e-5 * gradients[0].norm()


def test_a_large_matrix_gives_what_a_plain_one_gives():
    check_large_product(sepformer.linear)
