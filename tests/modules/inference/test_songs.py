"""Whole songs: equal to demucs.apply, and to what can be said without it."""

import importlib.util
import random
from fractions import Fraction

import pytest
import torch
from torch import nn

from benchmarks.models import reference_module
from modules.inference.songs import Bag, apply_model
from modules.models.htdemucs import HTDemucs

RATE = 100
MAX_SHIFT = 50


class Toy(nn.Module):
    """Estimates that depend on where a segment begins and on all of its samples."""

    def __init__(self, gain=1.0, segment=Fraction(7, 2)):
        super().__init__()
        self.sources = ["a", "b"]
        self.audio_channels = 2
        self.sample_rate = self.samplerate = RATE  # the latter is demucs' name
        self.segment = segment
        self.gain = nn.Parameter(torch.tensor(gain))
        self.calls = []

    def valid_length(self, length):
        """What demucs asks for, to fill up short segments as HTDemucs wants it."""
        return int(self.segment * self.sample_rate)

    def forward(self, mixture_BCT):
        assert not self.training
        self.calls.append(tuple(mixture_BCT.shape))
        place = torch.linspace(0, 1, mixture_BCT.shape[-1])
        first = self.gain * mixture_BCT * (1 + place) + mixture_BCT.mean(-1, True)
        return torch.stack([first, mixture_BCT - first], dim=1)


def song(samples, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 0.3 + torch.randn(batch, 2, samples, generator=generator)


# -------------------------------------------------------------------- PyPI demucs


@pytest.fixture
def reference(monkeypatch):
    """demucs.apply, and the offsets that it drew."""
    for name in ("demucs", "einops", "tqdm"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed (development only)")
    drawn = []

    def draw(low, high):
        drawn.append(generator.randint(low, high))
        return drawn[-1]

    generator = random.Random(7)
    module = reference_module("demucs.apply")
    monkeypatch.setattr(module.random, "randint", draw)
    return module, drawn


@pytest.mark.parametrize("samples", [1, 90, 350, 351, 1234])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"shifts": 0},
        {"shifts": 3, "overlap": 0.5},
        {"shifts": 0, "overlap": 0.0},
        {"overlap": 0.75},
    ],
)
def test_a_song_equals_demucs(reference, samples, options):
    module, drawn = reference
    model, mixture = Toy().eval(), song(samples)
    truth = module.apply_model(model, mixture, **options)
    estimate = apply_model(model, mixture, offsets=drawn, batch_size=3, **options)
    torch.testing.assert_close(estimate, truth, rtol=1e-5, atol=1e-6)


def test_a_bag_equals_demucs(reference):
    module, drawn = reference
    models, mixture = [Toy(1.0), Toy(2.0), Toy(3.0)], song(900)
    weights = [[1, 0], [0, 2], [0.5, 1]]
    truth = module.apply_model(
        module.BagOfModels(models, weights), mixture.clone(), shifts=2
    )
    estimate = apply_model(Bag(models, weights), mixture, shifts=2, offsets=drawn)
    assert len(drawn) == 6
    torch.testing.assert_close(estimate, truth, rtol=1e-5, atol=1e-6)


def test_htdemucs_equals_demucs(reference):
    module, drawn = reference
    sources, options = ["a", "b"], {"channels": 8, "t_layers": 1, "t_heads": 2}
    options |= {"dconv_mode": 3, "bottom_channels": 16, "t_dropout": 0.0}
    torch.manual_seed(0)
    theirs = reference_module("demucs.htdemucs").HTDemucs(
        sources, segment=Fraction(1, 2), samplerate=8000, **options
    )
    ours = HTDemucs(sources, (1, 2), 8000, **options)
    ours.load_state_dict(theirs.state_dict())
    mixture = 0.1 * song(10_000)
    truth = module.apply_model(theirs, mixture)
    estimate = apply_model(ours, mixture, offsets=drawn, batch_size=2)
    assert (estimate - truth).abs().max() < 1e-5 * truth.abs().max()


# -------------------------------------------------------------------- without it


class Identity(Toy):
    def forward(self, mixture_BCT):
        return torch.stack([mixture_BCT, 2 * mixture_BCT], dim=1)


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.9])
@pytest.mark.parametrize("samples", [1, 349, 350, 351, 2000])
@pytest.mark.parametrize("shifts", [0, 1, 2])
def test_what_does_not_depend_on_the_segment_is_kept(samples, overlap, shifts):
    mixture = song(samples)
    estimate = apply_model(Identity(), mixture, shifts=shifts, overlap=overlap)
    truth = torch.stack([mixture, 2 * mixture], dim=1)
    torch.testing.assert_close(estimate, truth, rtol=1e-5, atol=1e-6)


def test_batches_of_segments_give_the_same_in_fewer_calls():
    model, mixture = Toy(), song(2000)
    truth = apply_model(model, mixture, shifts=0)
    assert model.calls == [(2, 2, 350)] * 8
    model.calls.clear()
    estimate = apply_model(model, mixture, shifts=0, batch_size=5)
    assert model.calls == [(10, 2, 350), (6, 2, 350)]
    torch.testing.assert_close(estimate, truth)


def test_a_cut_segment_is_filled_up_with_what_lies_before_it():
    heard = []

    class Listener(Identity):
        def forward(self, mixture_BCT):
            heard.append(mixture_BCT)
            return super().forward(mixture_BCT)

    mixture = song(400, batch=1)
    apply_model(Listener(), mixture, shifts=0, overlap=0.0)
    # 50 samples are left for the second segment: 150 before them, 150 zeros after.
    assert torch.equal(heard[1][..., :200], mixture[..., 200:])
    assert not heard[1][..., 200:].any()


def test_a_seed_decides_the_shifts():
    model, mixture = Toy(), song(800)
    first = apply_model(model, mixture, seed=1)
    torch.manual_seed(5)
    random.seed(5)
    assert torch.equal(apply_model(model, mixture, seed=1), first)
    assert not torch.equal(apply_model(model, mixture, seed=2), first)


def test_shifts_are_averaged():
    model, mixture = Toy(), song(800)
    each = [apply_model(model, mixture, offsets=[offset]) for offset in (0, 50, 17)]
    mean = apply_model(model, mixture, shifts=3, offsets=[0, 50, 17])
    torch.testing.assert_close(mean, sum(each) / 3, rtol=1e-5, atol=1e-6)


def test_one_model_for_each_source():
    models, mixture = [Toy(1.0), Toy(2.0)], song(800)
    estimate = apply_model(
        Bag(models, [[1, 0], [0, 1]]), mixture, shifts=1, offsets=[3, 9]
    )
    for index, offset in enumerate((3, 9)):
        alone = apply_model(models[index], mixture, offsets=[offset])
        assert torch.equal(estimate[:, index], alone[:, index])


def test_normalising_is_undone_and_each_song_stands_alone():
    model, mixture = Toy(), song(800)
    mixture[1] = 5 * mixture[1] - 2
    plain = apply_model(model, mixture, shifts=0)
    # The first estimate is linear in the mixture but for an offset, as is the second.
    estimate = apply_model(model, mixture, shifts=0, normalize=True)
    mono = mixture.mean(dim=1, keepdim=True)
    mean, std = mono.mean(-1, True), mono.std(-1, keepdim=True) + 1e-8
    truth = apply_model(model, (mixture - mean) / std, shifts=0)
    truth = truth * std[:, None] + mean[:, None]
    torch.testing.assert_close(estimate, truth)
    assert not torch.allclose(estimate, plain)
    alone = apply_model(model, mixture[1:], shifts=0, normalize=True)
    torch.testing.assert_close(estimate[1:], alone)


@pytest.mark.parametrize("mixture", [torch.zeros(1, 2, 500), torch.ones(1, 2, 1)])
def test_a_constant_song_can_be_normalised(mixture):
    assert apply_model(Toy(), mixture, normalize=True).isfinite().all()


def test_the_model_is_left_as_it_was():
    bag = Bag([Toy().train(), Toy().eval()])
    mixture = song(800)
    before = mixture.clone()
    estimate = apply_model(bag, mixture)
    assert [model.training for model in bag.models] == [True, False]
    assert torch.equal(mixture, before)
    assert not estimate.requires_grad


def test_the_model_is_left_as_it_was_after_an_error():
    class Broken(Toy):
        def forward(self, mixture_BCT):
            raise RuntimeError("broken")

    model = Broken().train()
    with pytest.raises(RuntimeError, match="broken"):
        apply_model(model, song(800))
    assert model.training


@pytest.mark.parametrize(
    "options",
    [
        {"shifts": -1},
        {"overlap": 1.0},
        {"overlap": -0.1},
        {"batch_size": 0},
        {"offsets": [1, 2]},
        {"offsets": [MAX_SHIFT + 1]},
        {"overlap": 0.999},
    ],
)
def test_a_bad_argument_is_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        apply_model(Toy(), song(800), **options)


@pytest.mark.parametrize("shape", [(2, 100), (1, 2, 0)])
def test_a_bad_mixture_is_refused(shape):
    with pytest.raises(ValueError, match="the mixture must be"):
        apply_model(Toy(), torch.zeros(shape))


def test_a_bag_of_what_does_not_fit_is_refused():
    other = Toy()
    other.sources = ["b", "a"]
    with pytest.raises(ValueError, match="sources"):
        Bag([Toy(), other])
    with pytest.raises(ValueError, match="at least one"):
        Bag([])
    for weights in ([[1, 1]], [[1], [1]]):
        with pytest.raises(ValueError, match="2 rows"):
            Bag([Toy(), Toy()], weights)
    for weights in ([[1, 0], [1, 0]], [[1, -1], [1, 2]], [[1, float("nan")], [1, 1]]):
        with pytest.raises(ValueError, match="weights of b"):
            Bag([Toy(), Toy()], weights)
