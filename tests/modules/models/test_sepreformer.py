"""SepReformer: equal to the published network, and the same on every path.

The goldens in ../shared were computed by the public reference code; everything else
runs on generated signals with tiny configurations.
"""

import json

import pytest
import torch

from modules.models.sepreformer import Attention, SepReformer
from tests.modules.models.goldens import check_gradients, close, golden, read_golden

TINY = {
    "stages": 2,
    "encoder_channels": 12,
    "channels": 8,
    "heads": 2,
    "max_offset": 6,
    "local_taps": 9,
    "dropout": 0.0,
    "auxiliary_heads": True,
}
GOLDEN = "sepreformer_16x2_2spk"


@pytest.fixture(params=["config", "nested_config"])
def reference(request):
    """The golden model with its weights, and the file's tensors by name."""
    config, weights, tensors = read_golden(GOLDEN, request.param)
    model = SepReformer.from_config(config).eval()
    model.load_state_dict(weights, strict=True)
    return model, tensors


def tiny(seed=0, **options):
    """A small model away from its initial state, where every branch counts."""
    torch.manual_seed(seed)
    model = SepReformer(**{**TINY, **options})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def test_outputs_equal_the_reference(reference):
    model, tensors = reference
    with torch.no_grad():
        for case in (0, 1):
            estimate = model(tensors[f"case{case}/mixture_BT"])
            close(estimate, tensors[f"case{case}/estimate_BST"])
        estimate, others = model(tensors["case0/mixture_BT"], auxiliary=True)
    close(estimate, tensors["case0/estimate_BST"])
    for k, other in enumerate(others):
        close(other, tensors[f"case0/auxiliary{k}_BST"])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_equals_the_reference(checkpointing):
    config, weights, tensors = read_golden(GOLDEN)
    options = {"activation_checkpointing": checkpointing}
    model = SepReformer.from_config(config, **options).train()
    model.load_state_dict(weights, strict=True)
    estimate, others = model(tensors["train/mixture_BT"], auxiliary=True)
    close(estimate, tensors["train/estimate_BST"])
    for k, other in enumerate(others):
        close(other, tensors[f"train/auxiliary{k}_BST"])
    sum(wave.sum() for wave in (estimate, *others)).backward()
    learnt = model.state_dict()
    names = [key for key in tensors if key.startswith("train/after/")]
    assert len(names) == 4
    for name in names:
        close(learnt[name.removeprefix("train/after/")], tensors[name])


def test_gradients_equal_the_reference(reference):
    check_gradients(*reference, expected=18)


@pytest.mark.parametrize("size", ["B_wsj0_2mix", "L_wsj0_2mix_dm", "L_wham_dm"])
def test_published_size_has_the_published_parameters(size):
    truth = json.loads(golden("sepreformer_keys.json").read_text())[size]
    apart = {"split_per_level": "wham" in size}
    with torch.device("meta"):
        model = SepReformer.from_config(truth["config"], **apart)
        bare = SepReformer.from_config(truth["config"], **apart, auxiliary_heads=False)
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert shapes == truth["state_dict"]
    number, least = (sum(p.numel() for p in net.parameters()) for net in (model, bare))
    assert number == truth["parameters"]
    assert number - least == truth["parameters_of_training_heads"]


@pytest.mark.parametrize("frames", [1, 2, 5, 11])
def test_relative_positions_are_those_of_the_formula(frames):
    model = tiny()  # max_offset 6: eleven frames go beyond it
    layer = Attention((8, 2, 9, 0.0, 2))
    table = model.separator.pos_emb["pe_k"].weight
    offset_R = torch.arange(frames, -frames, -1)
    x_XND = torch.randn(3, frames, 8)
    q, k, v = (part.transpose(1, 2) for part in layer._project(x_XND))
    i, j = torch.arange(frames)[:, None], torch.arange(frames)[None]
    vectors = table[(i - j).clamp(-6, 5) + 6]
    score = q @ k.mT + torch.einsum("xhic,ijc->xhij", q, vectors)
    seen = (score / 2).softmax(-1) @ v  # heads have 4 features
    truth = layer._merge(seen.transpose(1, 2))
    given = layer(x_XND, table[offset_R.clamp(-6, 5) + 6])
    torch.testing.assert_close(given, truth)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("sound", ["noise", "silence"])
@pytest.mark.parametrize("samples", [1, 3, 16, 17, 31, 333])
def test_any_length_is_finite(samples, sound, training):
    model = SepReformer(**TINY, num_sources=3).train(training)
    mixture = torch.zeros(1, samples) if sound == "silence" else torch.randn(1, samples)
    estimate, others = model(mixture.requires_grad_(), auxiliary=True)
    assert all(wave.shape == (1, 3, samples) for wave in (estimate, *others))
    assert all(wave.isfinite().all() for wave in (estimate, *others))
    sum(wave.sum() for wave in (estimate, *others)).backward()
    assert mixture.grad.isfinite().all()
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert tensor.isfinite().all(), name
        assert tensor.grad is None or tensor.grad.isfinite().all(), name


@pytest.mark.parametrize("kernel_size, stride", [(16, 4), (10, 5), (9, 4), (3, 3)])
def test_filters_of_any_size_cover_all_samples(kernel_size, stride):
    model = tiny(kernel_size=kernel_size, stride=stride).eval()
    with torch.no_grad():
        estimate = model(torch.randn(1, 101))
    assert estimate.shape == (1, 2, 101) and estimate[..., -1].all()


@pytest.mark.parametrize("per_level", [False, True])
def test_equally_long_examples_do_not_see_each_other(per_level):
    model = tiny(split_per_level=per_level).eval()
    mixture = torch.randn(2, 700) * torch.tensor([[1.0], [0.01]])
    with torch.no_grad():
        together = model(mixture)
        for index in range(2):
            close(together[index], model(mixture[index : index + 1])[0], 2e-5)


def test_checkpointing_changes_nothing_that_is_learnt():
    mixture, results = torch.randn(2, 301), []
    for checkpointing in (False, True):
        model = tiny(activation_checkpointing=checkpointing, dropout=0.2).train()
        torch.manual_seed(5)
        estimate, others = model(mixture, auxiliary=True)
        (estimate.abs().sum() + others[0].sum() + others[1].sum()).backward()
        gradients = [p.grad for p in model.parameters()]
        results.append([*gradients, *model.buffers()])
    for kept, recomputed in zip(*results, strict=True):
        assert torch.equal(kept, recomputed)


def test_bfloat16_autocast_stays_close():
    model, mixture = tiny().eval(), torch.randn(1, 900)
    truth = model(mixture)
    with torch.autocast("cpu", torch.bfloat16):
        estimate = model(mixture)
    assert estimate.dtype == torch.float32
    close(estimate, truth, 0.05)
    estimate.square().sum().backward()
    assert model.out_layer["end_conv1x1"][0].weight.grad.isfinite().all()


def test_compiled_model_is_one_graph_and_learns_the_same():
    mixture, small = torch.randn(1, 333), {"stages": 1, "auxiliary_heads": False}
    plain, model = tiny(**small), tiny(**small, activation_checkpointing=True)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    estimate = compiled(mixture)
    close(estimate, plain(mixture))
    estimate.sum().backward()
    for ours, theirs in zip(model.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    "options",
    [
        {"channels": 9},
        {"stages": 0},
        {"local_taps": 8},
        {"down_taps": 4},
        {"stride": 17},
        {"dropout": 1.0},
        {"num_sources": 1.5},
    ],
)
def test_bad_argument_is_named(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name}="):
        SepReformer(**{**TINY, **options})


@pytest.mark.parametrize("shape", [(100,), (1, 0), (1, 1, 100)])
def test_bad_mixture_is_refused(shape):
    with pytest.raises(ValueError, match="shape"):
        tiny()(torch.zeros(shape))


def test_heads_that_are_not_there_are_asked_for():
    with pytest.raises(ValueError, match="auxiliary_heads=True"):
        tiny(auxiliary_heads=False)(torch.zeros(1, 100), auxiliary=True)


@pytest.mark.parametrize(
    "config, message",
    [
        ({"lstm": 3}, "unknown key  lstm"),
        ({"module_audio_enc": {"bias": True}}, "bias is True, not False"),
        ({"module_audio_enc": {"groups": 2}}, "groups is 2, not 1"),
        (
            {
                "module_separator": {
                    "a": {"dropout_rate": 0.1},
                    "b": {"dropout_rate": 0},
                }
            },
            "dropout_rate is 0, not 0.1",
        ),
    ],
)
def test_what_is_not_known_in_a_configuration_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        SepReformer.from_config(config)


def test_a_checkpoint_gives_its_weights_and_heads_are_left_out():
    source = tiny(1)
    content = {"epoch": 3, "model_state_dict": source.state_dict()}
    for heads in (True, False):
        target = tiny(2, auxiliary_heads=heads).eval()
        target.load_state_dict(target.adapt_keys(content), strict=True)
        mixture = torch.randn(1, 200)
        assert torch.equal(target(mixture), source.eval()(mixture))
