"""MossFormer2: equal to the published network, and the same on every path.

The goldens in ../shared were computed by the public reference code; everything else
runs on generated signals with tiny configurations.
"""

import json

import pytest
import torch
from safetensors import safe_open

from modules.models import mossformer2
from modules.models.mossformer2 import GROUP, MossFormer2, Rotary
from tests import SHARED
from tests.modules.models.goldens import check_large_product

TINY = {"encoder_channels": 16, "channels": 16, "layers": 2}


def golden(name):
    path = SHARED / "goldens" / name
    if not path.exists():
        pytest.skip(f"golden file not found at {path}")
    return path


@pytest.fixture(scope="module")
def reference():
    """The golden model with its weights, and the file's tensors by name."""
    path = golden("mossformer2_64x2_2src.safetensors")
    with safe_open(str(path), "pt") as file:
        config = json.loads(file.metadata()["config"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    model = MossFormer2(**config, dropout=0.0)
    weights = {
        key.removeprefix("weight/"): value
        for key, value in tensors.items()
        if key.startswith("weight/")
    }
    model.load_state_dict(weights, strict=True)
    return model, tensors


def tiny(seed=0, **options):
    """A small model away from its initial state, where every branch counts."""
    torch.manual_seed(seed)
    model = MossFormer2(**{**TINY, **options})
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn_like(parameter)
    return model


def relative(value, truth):
    return ((value - truth).norm() / truth.norm()).item()


# -------------------------------------------------------------------- goldens


@pytest.mark.parametrize(
    "size, channels, layers", [("full", 512, 24), ("small", 384, 25)]
)
def test_published_size_has_the_published_parameters(size, channels, layers):
    truth = json.loads(golden("mossformer2_keys.json").read_text())[size]
    with torch.device("meta"):
        model = MossFormer2(encoder_channels=channels, channels=channels, layers=layers)
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert shapes == truth["state_dict"]
    assert sum(p.numel() for p in model.parameters()) == truth["parameters"]
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trainable == truth["trainable"]


@pytest.mark.parametrize(
    "channels, layers, trainable", [(512, 24, 55_998_050), (384, 25, 37_903_206)]
)
def test_three_speakers_have_the_published_count(channels, layers, trainable):
    with torch.device("meta"):
        model = MossFormer2(channels, channels, layers, num_sources=3)
    assert trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("case", [0, 1, 2])
@pytest.mark.parametrize("fast", [True, False])
def test_outputs_equal_the_reference(reference, case, fast, monkeypatch):
    monkeypatch.setattr(mossformer2, "_fast_form", lambda x: fast)
    model, tensors = reference
    truth = tensors[f"case{case}/estimate_BST"]
    with torch.no_grad():
        estimate = model.eval()(tensors[f"case{case}/mixture_BT"])
    assert estimate.shape == truth.shape
    assert (estimate - truth).abs().max() < 1e-5 * truth.abs().max()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_equal_the_reference(reference, checkpointing):
    model, tensors = reference
    stack = model.mask_net.mdl.intra_mdl["mossformerM"]
    stack.activation_checkpointing = checkpointing
    model.train().zero_grad()
    estimate = model(tensors["grad/mixture_BT"])
    loss = (estimate - tensors["grad/target_BST"]).abs().mean()
    loss.backward()
    stack.activation_checkpointing = False
    assert loss.item() == pytest.approx(tensors["grad/loss_l1_mean"].item(), rel=1e-5)
    parameters = dict(model.named_parameters())
    compared = 0
    for key, truth in tensors.items():
        parameter = parameters.get(key.removeprefix("grad/"))
        if key.startswith("grad/") and parameter is not None:
            compared += 1
            assert relative(parameter.grad, truth) < 1e-4, key
    assert compared >= 12


# -------------------------------------------------------------------- kernels


KERNELS = {
    "depthwise": ([(2, 37, 6), (6, 5)], mossformer2.depthwise),
    "depthwise shorter than its kernel": ([(1, 3, 4), (4, 17)], mossformer2.depthwise),
    "paired, even": ([(2, 20, 4), (2, 20, 4), (4, 2, 5)], mossformer2.paired_depthwise),
    "paired, odd": ([(1, 21, 4), (1, 21, 4), (4, 2, 5)], mossformer2.paired_depthwise),
    "with skip": (
        [(2, 19, 3), (3, 5)],
        lambda x, w: mossformer2.depthwise(x, w, skip=True),
    ),
}


@pytest.mark.parametrize("name", KERNELS)
def test_cpu_form_equals_plain_form_and_its_own_derivative(name, monkeypatch):
    shapes, kernel = KERNELS[name]
    generator = torch.Generator().manual_seed(1)
    inputs = [
        torch.randn(shape, generator=generator, dtype=torch.double, requires_grad=True)
        for shape in shapes
    ]
    fast = kernel(*inputs)
    seed = torch.randn(fast.shape, generator=generator, dtype=torch.double)
    fast_grads = torch.autograd.grad(fast, inputs, seed)
    assert torch.autograd.gradcheck(kernel, inputs)
    monkeypatch.setattr(mossformer2, "_fast_form", lambda x: False)
    plain = kernel(*inputs)
    plain_grads = torch.autograd.grad(plain, inputs, seed)
    torch.testing.assert_close(fast, plain, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(fast_grads, plain_grads, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("frames", [3, 8, 13])
def test_attention_is_its_formula(frames, monkeypatch):
    """Written frame by frame, with A as one matrix of zeros outside the groups."""
    monkeypatch.setattr(mossformer2, "GROUP", 4)
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn((2, frames, 6), generator=generator, dtype=torch.double)
    heads = torch.randn((2, frames, 4, 5), generator=generator, dtype=torch.double)
    q, lin_q, k, lin_k = heads.unbind(2)
    group = torch.arange(frames) // 4
    A = ((q @ k.mT).clamp(min=0) / 4) ** 2 * (group[:, None] == group)
    (a_v, a_u), (v, u) = (
        x.chunk(2, dim=-1) for x in ((A + lin_q @ lin_k.mT / frames) @ hidden, hidden)
    )
    expected = a_u * v / (1 + torch.exp(-a_v * u))
    computed = mossformer2.gated_attention(hidden, heads, 0.0)
    torch.testing.assert_close(computed, expected, rtol=1e-10, atol=1e-12)


def test_attention_drops_its_share_of_the_weights_and_keeps_their_mean():
    torch.manual_seed(0)
    heads = torch.ones(1, 256, 4, 128) * torch.tensor([1.0, 0.0, 1.0, 0.0])[:, None]
    hidden = torch.ones(1, 256, 2)
    whole = mossformer2.gated_attention(hidden, heads, 0.0)
    dropped = mossformer2.gated_attention(hidden, heads, 0.1)
    share = (1 / whole.new_tensor(256 * 0.25)).item()  # of one weight in the sum
    assert whole[0, 0, 0].item() == pytest.approx(1 / share, rel=1e-3)
    assert dropped.mean().item() == pytest.approx(1 / share, rel=0.01)
    assert dropped.std().item() > share


def test_rotary_scores_depend_on_the_distance_only():
    torch.manual_seed(0)
    q, k = torch.randn(128), torch.randn(128)
    rows = torch.stack([q, k]).expand(50, 1, 2, 128).transpose(0, 1)
    q_L, k_L = Rotary.rotate(rows, Rotary().table(50))[0].unbind(1)
    torch.testing.assert_close(q_L[3] @ k_L[10], q_L[33] @ k_L[40])
    assert not torch.isclose(q_L[3] @ k_L[10], q_L[3] @ k_L[30])


# -------------------------------------------------------------------- whole model


def test_fast_and_plain_model_agree_with_gradients(monkeypatch):
    model = tiny(dropout=0.0).double()
    mixture = torch.randn(2, 8 * (2 * GROUP + 77), dtype=torch.double)

    def run():
        model.zero_grad()
        estimate = model(mixture)
        estimate.square().sum().backward()
        return estimate, [p.grad for p in model.parameters() if p.requires_grad]

    fast, fast_grads = run()
    monkeypatch.setattr(mossformer2, "_fast_form", lambda x: False)
    plain, plain_grads = run()
    torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-12)
    for fast_grad, plain_grad in zip(fast_grads, plain_grads, strict=True):
        torch.testing.assert_close(fast_grad, plain_grad, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("samples", [1, 2, 15, 16, 23, 24, 25, 1001, 8 * GROUP + 8])
@pytest.mark.parametrize("sound", ["noise", "silence"])
def test_any_length_is_finite(samples, sound):
    model = tiny(num_sources=3)
    torch.manual_seed(0)
    mixture = torch.zeros(1, samples) if sound == "silence" else torch.randn(1, samples)
    mixture.requires_grad_()
    estimate = model(mixture)
    assert estimate.shape == (1, 3, samples)
    assert estimate.isfinite().all()
    estimate.sum().backward()
    assert mixture.grad.isfinite().all()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.isfinite().all(), name
    if sound == "silence":  # encoder and decoder have no bias
        assert not estimate.any()


def test_a_long_file_is_separated():
    # Far beyond max_length; ten minutes take the same path and ten times the time.
    torch.manual_seed(0)
    model = MossFormer2(encoder_channels=4, channels=4, layers=1).eval()
    with torch.no_grad():
        estimate = model(torch.randn(1, 60 * 8000 + 1))
    assert estimate.shape == (1, 2, 480_001)
    assert estimate.isfinite().all()


def test_equally_long_examples_do_not_see_each_other():
    model = tiny().eval()
    torch.manual_seed(0)
    mixture = torch.randn(2, 5000) * torch.tensor([[1.0], [0.01]])
    with torch.no_grad():
        together = model(mixture)
        for index in range(2):
            alone = model(mixture[index : index + 1])[0]
            assert relative(together[index], alone) < 1e-5


def test_scaling_the_mixture_scales_the_estimate():
    model = tiny().eval()
    torch.manual_seed(0)
    mixture = torch.randn(1, 4000)
    with torch.no_grad():
        assert relative(model(10 * mixture), 10 * model(mixture)) < 1e-4


def test_checkpointing_gives_the_same_gradients_with_dropout_on():
    mixture = torch.randn(1, 3001, generator=torch.Generator().manual_seed(0))
    results = []
    for checkpointing in (False, True):
        model = tiny(activation_checkpointing=checkpointing, dropout=0.2).train()
        torch.manual_seed(5)
        model(mixture).abs().sum().backward()
        results.append([p.grad for p in model.parameters() if p.requires_grad])
    for kept, recomputed in zip(*results, strict=True):
        assert torch.equal(kept, recomputed)


def test_dropout_only_acts_in_training():
    model = tiny(dropout=0.3)
    mixture = torch.randn(1, 2000, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model.eval()(mixture), model(mixture))
        assert not torch.equal(model.train()(mixture), model(mixture))


@pytest.mark.parametrize("fast", [True, False])
def test_bfloat16_autocast_stays_close(fast, monkeypatch):
    monkeypatch.setattr(mossformer2, "_fast_form", lambda x: fast)
    torch.manual_seed(0)
    model = MossFormer2(**TINY, dropout=0.0)
    mixture = torch.randn(1, 8 * 700)
    truth = model(mixture)
    truth.square().sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        estimate = model(mixture)
    assert estimate.dtype == torch.float32
    assert relative(estimate, truth) < 0.03
    estimate.square().sum().backward()
    head = "mask_net.conv1d_out.weight"
    assert relative(dict(model.named_parameters())[head].grad, grads[head]) < 0.05
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_mapping_mode_drops_the_multiplication():
    mask, mapped = tiny(), tiny(mask_mode="map")
    mapped.load_state_dict(mask.state_dict())
    mixture = torch.randn(1, 800, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = mask.eval().encode(mixture)
        output_BLSN = mask.mask_net(features)
        torch.testing.assert_close(
            mapped.eval()(mixture), mask.decode(output_BLSN, 800)
        )
        assert not torch.allclose(mapped(mixture), mask(mixture))


def test_compiled_model_is_one_graph_and_gives_the_same():
    model = tiny(dropout=0.0, layers=1)
    mixture = torch.randn(1, 999, generator=torch.Generator().manual_seed(0))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    truth, estimate = model(mixture), compiled(mixture)
    torch.testing.assert_close(estimate, truth, rtol=1e-4, atol=1e-6)
    estimate.sum().backward()
    assert model.enc["conv1d"].weight.grad.isfinite().all()


# -------------------------------------------------------------------- arguments, keys


@pytest.mark.parametrize(
    "options",
    [
        {"channels": 15},
        {"kernel_size": 7},
        {"layers": 0},
        {"num_sources": 1.5},
        {"norm": "batch"},
        {"dropout": 1.0},
        {"mask_mode": "multiply"},
    ],
)
def test_bad_argument_is_named(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name}="):
        MossFormer2(**{**TINY, **options})


@pytest.mark.parametrize("shape", [(100,), (1, 0), (1, 1, 100)])
def test_bad_mixture_is_refused(shape):
    with pytest.raises(ValueError, match="shape"):
        tiny()(torch.zeros(shape))


@pytest.mark.parametrize("norm", ["ln", "gln", "cln"])
def test_every_norm_runs(norm):
    assert tiny(norm=norm)(torch.randn(1, 500)).isfinite().all()


def standalone(state):
    """Our state under the names of the standalone release, its three files joined."""
    renamed = {}
    for key, value in state.items():
        for ours, theirs in (
            (
                "mask_net.mdl.intra_mdl.norm.",
                "masknet.dual_mdl.0.intra_mdl.mdl.norm.norm.",
            ),
            (
                "mask_net.mdl.intra_mdl.mossformerM.",
                "masknet.dual_mdl.0.intra_mdl.mdl.flashT.",
            ),
            ("mask_net.mdl.intra_norm.", "masknet.dual_mdl.0.intra_norm."),
            ("mask_net.", "masknet."),
            ("enc.", "encoder."),
            ("dec.", "decoder."),
        ):
            if key.startswith(ours):
                key = theirs + key.removeprefix(ours)
                break
        renamed[key] = value
    return renamed


LAYOUTS = {
    "ours": dict,
    "standalone": standalone,
    "clearvoice": lambda s: {"model": s, "optimizer": {}, "epoch": 3, "step": 7},
    "data parallel": lambda s: {"model": {f"module.{k}": v for k, v in s.items()}},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_published_layouts_load_strictly(layout):
    source, target = tiny(seed=1), tiny(seed=2)
    published = LAYOUTS[layout](source.state_dict())
    target.load_state_dict(MossFormer2.adapt_keys(published), strict=True)
    mixture = torch.randn(1, 640, generator=torch.Generator().manual_seed(0))
    assert torch.equal(target.eval()(mixture), source.eval()(mixture))


@pytest.mark.parametrize("constant", ["layers.1.rotary_pos_emb.freqs", "inv_freq"])
def test_foreign_constants_are_refused(constant):
    state = tiny().state_dict()
    (key,) = (key for key in state if key.endswith(constant))
    state[key] = state[key] * 1.01
    with pytest.raises(ValueError, match=constant):
        MossFormer2.adapt_keys(state)


def test_a_large_matrix_gives_what_a_plain_one_gives():
    check_large_product(mossformer2._linear)


@pytest.mark.parametrize("shape", [(2, 260, 300, 400), (1, 400, 300, 260)])
@pytest.mark.parametrize("added", [True, False])
def test_large_matrices_in_pairs_give_what_bmm_gives(shape, added):
    pairs, rows, inner, columns = shape
    torch.manual_seed(0)
    x_XPL = torch.randn(pairs, rows, inner, requires_grad=True)
    y_XLC = torch.randn(pairs, inner, columns, requires_grad=True)
    add_XPC = torch.randn(pairs, rows, columns) if added else None
    found = mossformer2._bmm(x_XPL, y_XLC, add_XPC)
    plain = torch.bmm(x_XPL, y_XLC) + (add_XPC if added else 0)
    for ours, theirs in zip(
        (found, *torch.autograd.grad(found.square().sum(), (x_XPL, y_XLC))),
        (plain, *torch.autograd.grad(plain.square().sum(), (x_XPL, y_XLC))),
        strict=True,
    ):
        assert (ours - theirs).norm() < 1e-5 * theirs.norm()
