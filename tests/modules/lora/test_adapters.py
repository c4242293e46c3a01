"""Adapters: no-op at the start, every kind of layer, merging, files, wrong patterns."""

import copy

import pytest
import torch
from torch import nn

from modules.lora.adapters import (
    add_lora,
    lora_state_dict,
    matching,
    merge,
    plain_state_dict,
    trainable_share,
)
from modules.lora.files import load_lora_weights, save_lora
from modules.models.htdemucs import HTDemucs
from modules.models.mossformer2 import MossFormer2
from modules.models.sepformer import SepFormer
from modules.runtime.errors import LoraError
from modules.weights.ema import EMA


def htdemucs(**options) -> HTDemucs:
    settings = {
        "segment_seconds": 0.25, "sample_rate": 8000, "channels": 8, "depth": 2,
        "nfft": 256, "bottom_channels": 16, "t_layers": 2, "t_heads": 2,
        "dconv_comp": 4, "t_dropout": 0.0, **options,
    }  # fmt: skip
    return HTDemucs(["low", "high"], **settings)


def mossformer2() -> MossFormer2:
    return MossFormer2(
        encoder_channels=16, channels=16, layers=1, memory_channels=16, dropout=0
    )


def sepformer() -> SepFormer:
    return SepFormer(
        encoder_channels=16, dual_layers=1, chunk_size=20, intra_layers=1,
        inter_layers=1, heads=2, ffn_channels=16,
    )  # fmt: skip


class Attending(nn.Module):
    """torch's own attention; with values of another size it has three projections.

    In evaluation without gradients it takes a kernel that rounds otherwise, or not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.same = nn.MultiheadAttention(8, 2, batch_first=True)
        self.other = nn.MultiheadAttention(8, 2, kdim=8, vdim=6, batch_first=True)

    def forward(self, x_BT: torch.Tensor) -> torch.Tensor:
        x_BPD = x_BT[..., :64].reshape(x_BT.shape[0], -1, 8)
        x_BPD = self.same(x_BPD, x_BPD, x_BPD)[0]
        return self.other(x_BPD, x_BPD, x_BPD[..., :6])[0]


MODELS = {
    "htdemucs": (htdemucs, (2, 2, 2000)),
    "mossformer2": (mossformer2, (2, 800)),
    "sepformer": (sepformer, (2, 800)),
    "attention": (Attending, (2, 64)),
}


@pytest.fixture(params=MODELS)
def case(request) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    make, shape = MODELS[request.param]
    return make().eval(), torch.randn(shape)


def disturb(model: nn.Module) -> None:
    """Move the trainable parameters, as training would."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


@torch.no_grad()
def test_nothing_changes_at_first_and_every_adapter_learns(case):
    model, x = case
    before, keys = model(x), set(model.state_dict())
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ranks = add_lora(model, lora_rank=4)
    tolerance = 1e-6 if isinstance(model, Attending) else 0
    assert torch.allclose(model(x), before, rtol=0, atol=tolerance)
    assert set(plain_state_dict(model)) == keys
    assert all(torch.equal(model.state_dict()[name], base[name]) for name in keys)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == set(lora_state_dict(model)) and len(trained) == 2 * len(ranks)
    disturb(model)
    with torch.enable_grad():
        model.train()(x).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (name in trained), name


@torch.no_grad()
def test_a_merged_model_is_a_plain_one_with_the_same_output(case):
    model, x = case
    plain = copy.deepcopy(model)
    classes = [type(module) for module in model.modules()]
    trained = [p.requires_grad for p in model.parameters()]
    add_lora(model, lora_rank=3, alpha=6)
    disturb(model)
    adapted = model(x)
    assert not torch.allclose(adapted, plain(x), atol=1e-3)
    merge(model)
    tolerance = 1e-6 if isinstance(model, Attending) else 0
    assert torch.allclose(model(x), adapted, rtol=0, atol=tolerance)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [type(module) for module in model.modules()] == classes
    assert [p.requires_grad for p in model.parameters()] == trained
    plain.load_state_dict(model.state_dict())
    assert torch.equal(plain(x), model(x))


@torch.no_grad()
def test_a_file_of_adapters_makes_the_adapted_model_of_the_plain_one(case, tmp_path):
    model, x = case
    plain = copy.deepcopy(model)
    add_lora(model, lora_rank=2, alpha=3.0, dropout=0.2)
    disturb(model)
    save_lora(model, tmp_path / "adapters.safetensors")
    config = load_lora_weights(plain, tmp_path / "adapters.safetensors")
    assert (config.alpha, config.dropout) == (3.0, 0.2)
    assert torch.equal(plain(x), model(x))
    disturb(plain)
    load_lora_weights(plain, tmp_path / "adapters.safetensors")  # into the adapted one
    assert torch.equal(plain(x), model(x))


def test_a_twenty_fifth_of_the_published_htdemucs_trains_at_rank_8():
    with torch.device("meta"):
        model = HTDemucs(["drums", "bass", "other", "vocals"])
    assert len(add_lora(model)) == 140
    assert trainable_share(model) < 0.04
    megabytes = sum(t.numel() * 4 for t in lora_state_dict(model).values()) / 1e6
    assert megabytes < 5


def test_adapters_survive_copies_averages_autocast_and_checkpointing():
    torch.manual_seed(0)
    model, x = htdemucs(activation_checkpointing=True), torch.randn(1, 2, 2000)
    add_lora(model, lora_rank=2)
    ema = EMA(decay=0.5).attach(model)
    disturb(model)
    ema.update()
    twin = copy.deepcopy(model)
    model.activation_checkpointing = False
    with torch.autocast("cpu", torch.bfloat16):
        model(x).abs().mean().backward()
        twin(x).abs().mean().backward()
    for mine, other in zip(model.parameters(), twin.parameters(), strict=True):
        if mine.grad is not None:
            assert torch.allclose(mine.grad, other.grad, rtol=1e-3, atol=1e-6)
    with ema.applied():
        assert not torch.equal(model(x), twin(x))
    assert torch.equal(model.eval()(x), twin.eval()(x))


def test_adapters_alone_learn_what_another_model_does():
    torch.manual_seed(0)
    model, x = htdemucs(), torch.randn(4, 2, 2000)
    target = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in target.parameters():
            parameter *= 1 + 0.2 * torch.randn_like(parameter)
    add_lora(model, lora_rank=4)
    optimizer = torch.optim.Adam(
        [p for p in model.parameters() if p.requires_grad], lr=0.003
    )
    losses = []
    for _ in range(30):
        loss = (model(x) - target(x).detach()).abs().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_a_compiled_model_reads_the_adapted_weights():
    torch.manual_seed(0)
    model, x = sepformer(), torch.randn(1, 800)
    add_lora(model, lora_rank=2)
    disturb(model)
    compiled = torch.compile(copy.deepcopy(model), backend="eager")
    out = compiled(x)
    assert torch.allclose(out, model(x), atol=1e-6)
    out.square().mean().backward()
    assert all(p.grad is not None for p in compiled.parameters() if p.requires_grad)


def test_dropout_acts_in_training_only():
    model, x = nn.Linear(64, 64), torch.ones(1, 64)
    add_lora(model, lora_rank=4, dropout=0.5)
    disturb(model)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_ranks_by_pattern_the_first_match_wins():
    layer_ranks = {
        "*.in_proj_weight": 5,
        "encoder.0.*": 3,
        "encoder.*": 6,
        "channel_upsampler": 1,
        "tencoder.*": 0,
        "tdecoder.*": 30,
    }
    ranks = add_lora(htdemucs(), lora_rank=4, lora_max_rank=8, layer_ranks=layer_ranks)
    assert ranks["crosstransformer.layers.0.self_attn.in_proj_weight"] == 5
    assert ranks["encoder.0.conv.weight"] == 3
    assert ranks["encoder.1.conv.weight"] == 6
    assert ranks["channel_upsampler.weight"] == 1
    assert ranks["decoder.0.rewrite.weight"] == 4
    assert ranks["tdecoder.0.rewrite.weight"] == 8  # lora_max_rank
    assert ranks["encoder.0.dconv.layers.0.0.weight"] == 2  # rows
    assert not any(name.startswith("tencoder") for name in ranks)


def test_a_pattern_that_leaves_the_twin_branch_out_says_so(caplog):
    size = {"channels": 8, "depth": 1, "nfft": 64, "t_layers": 0, "dconv_mode": 0}
    names = dict(HTDemucs(["a"], 1, 8000, bottom_channels=0, **size).named_parameters())
    found = matching(["encoder.0.*"], names, "layer_ranks")
    said = "layer_ranks: encoder.0.* leaves the twin branch out: tencoder.0.* would"
    assert said in caplog.text
    assert found and all(name.startswith("encoder.0.") for name in found)
    caplog.clear()
    matching(["encoder.0.*", "tencoder.0.*"], names, "layer_ranks")
    matching(["*coder.0.*", "freq_emb*"], names, "layer_ranks")
    assert not caplog.records


def test_layers_that_train_fully_have_no_adapter(tmp_path):
    model, plain = htdemucs(), htdemucs()
    plain.load_state_dict(model.state_dict())
    ranks = add_lora(model, train_fully=["*decoder.1.conv_tr.*"])
    assert "decoder.1.conv_tr.weight" not in ranks
    assert {"decoder.1.conv_tr.bias", "tdecoder.1.conv_tr.weight"} <= set(
        lora_state_dict(model)
    )
    disturb(model)
    save_lora(model, tmp_path / "adapters.safetensors")
    load_lora_weights(plain, tmp_path / "adapters.safetensors")
    x = torch.randn(1, 2, 2000)
    assert torch.equal(plain.eval()(x), model.eval()(x))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"layer_ranks": {"transformer.*": 4}}, r"near are crosstransformer\.\*"),
        ({"layer_ranks": {"encoder.9.conv": 4}}, r"'encoder.9.conv' matches no"),
        ({"train_fully": ["decoder.7.*"]}, "train_fully: 'decoder.7.*' matches no"),
        ({"layer_ranks": {"encoder.*": -1}}, r"layer_ranks\[encoder\.\*\]=-1"),
        ({"layer_ranks": {"*": 0}}, "nothing to adapt"),
        ({"lora_rank": 0}, "lora_rank=0: must be an integer, 1 or more"),
        ({"lora_rank": 2.5}, "lora_rank=2.5"),
        ({"lora_rank": None}, "lora_rank=None"),
        ({"lora_max_rank": 0}, "lora_max_rank=0"),
        ({"dropout": 1}, r"dropout=1: must be in \[0, 1\)"),
        ({"alpha": 0}, "alpha=0"),
    ],
)
def test_wrong_settings_are_refused_and_leave_the_model_alone(options, message):
    model = htdemucs()
    with pytest.raises(LoraError, match=message):
        add_lora(model, **options)
    assert not hasattr(model, "lora_config")
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_adapters_twice_or_on_shared_weights_are_refused():
    model = htdemucs()
    add_lora(model)
    with pytest.raises(LoraError, match="has adapters already"):
        add_lora(model)
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    with pytest.raises(LoraError, match="0.weight and 1.weight are one tensor"):
        add_lora(tied)
    with pytest.raises(LoraError, match="has no adapters"):
        merge(htdemucs())


def test_files_that_do_not_belong_to_the_model_are_refused(tmp_path):
    file = tmp_path / "adapters.safetensors"
    model = htdemucs()
    add_lora(model, lora_rank=2)
    save_lora(model, file)
    with pytest.raises(LoraError, match="does not fit this SepFormer: it has no"):
        load_lora_weights(sepformer(), file)
    with pytest.raises(LoraError, match="does not fit this HTDemucs: .* in the model"):
        load_lora_weights(htdemucs(channels=16), file)
    other = htdemucs()
    with pytest.raises(LoraError, match="trained on other weights"):
        load_lora_weights(other, file)
    assert not hasattr(other, "lora_config")
    load_lora_weights(other, file, check_base=False)
    other = htdemucs()
    other.load_state_dict(plain_state_dict(model))
    add_lora(other, lora_rank=3)
    with pytest.raises(LoraError, match="ranks of .* differ.*: 2 in the file, 3 in"):
        load_lora_weights(other, file)
    with pytest.raises(LoraError, match="no readable file"):
        load_lora_weights(htdemucs(), tmp_path / "none.safetensors")
    (tmp_path / "junk").write_bytes(b"junk")
    with pytest.raises(LoraError, match="no readable file"):
        load_lora_weights(htdemucs(), tmp_path / "junk")
    with torch.no_grad():
        next(iter(lora_state_dict(model).values())).fill_(float("nan"))
    save_lora(model, file)
    plain = htdemucs()
    plain.load_state_dict(plain_state_dict(model))
    with pytest.raises(LoraError, match="NaN or Inf"):
        load_lora_weights(plain, file)
