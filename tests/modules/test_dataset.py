"""Sampling, cropping and batching."""

import pytest
import torch

from data_prep.manifest import read_manifest
from data_prep.wsj0mix import prepare
from modules.dataset import (
    EpochSampler,
    Example,
    ExampleKey,
    ManifestDataset,
    collate_crops,
    collate_whole,
)


@pytest.fixture(scope="module")
def rows(corpus, tmp_path_factory):
    manifests = prepare(corpus, tmp_path_factory.mktemp("save"))
    return read_manifest(manifests["train"], num_sources=2, sample_rate=8000)


@pytest.mark.parametrize("num_examples", [1, 5, 12, 13])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_share_an_epoch_without_gap_or_overlap(num_examples, world_size):
    shares = []
    for rank in range(world_size):
        sampler = EpochSampler(num_examples, 2, rank, world_size, seed=3)
        sampler.set_position(epoch=1)
        shares.append(list(sampler))
    assert len({len(share) for share in shares}) == 1, "as many steps on every rank"
    counted = [
        key.index for share in shares for batch in share for key in batch if key.counts
    ]
    assert sorted(counted) == list(range(num_examples))


def test_an_epoch_continues_where_it_stopped_and_the_next_is_another():
    sampler = EpochSampler(20, 2, seed=1)
    sampler.set_position(epoch=1)
    first = list(sampler)
    sampler.set_position(epoch=1, first_step=4)
    assert list(sampler) == first[4:]
    sampler.set_position(epoch=2)
    assert [[k.index for k in b] for b in sampler] != [
        [k.index for k in b] for b in first
    ]


def test_a_crop_is_a_function_of_epoch_and_index(rows):
    data = ManifestDataset(rows, 8000, segment_seconds=0.25, speed_changes=[95, 105])
    key = ExampleKey(epoch=2, index=1)
    once, again = data[key], data[key]
    assert torch.equal(once.mix, again.mix)
    assert not torch.equal(once.mix, data[ExampleKey(3, 1)].mix)
    assert once.mix.shape == (2000,)


@pytest.mark.parametrize("speeds", [None, [95, 100, 105]])
def test_the_mixture_is_the_sum_of_its_sources(rows, speeds):
    data = ManifestDataset(rows, 8000, 0.25, speeds)
    for index in range(len(data)):
        example = data[ExampleKey(1, index)]
        assert torch.allclose(example.mix, example.src.sum(0), atol=1e-6)


def test_training_crops_to_the_shortest_and_evaluation_pads():
    long = Example("long", torch.ones(10), torch.ones(2, 10))
    short = Example("short", torch.ones(6), torch.ones(2, 6))
    crops = collate_crops([(long, True), (short, False)])
    assert crops.mix.shape == (2, 6) and crops.length_B.tolist() == [6, 6]
    assert crops.counts_B.tolist() == [True, False]
    whole = collate_whole([(long, True), (short, True)])
    assert whole.src.shape == (2, 2, 10) and whole.length_B.tolist() == [10, 6]
    assert whole.mix[1, 6:].abs().sum() == 0


def test_a_nan_silences_its_own_example_only():
    examples = [Example(n, torch.ones(4), torch.ones(2, 4)) for n in "ab"]
    batch = collate_crops([(example, True) for example in examples])
    batch.src[1, 0, 2] = float("nan")
    assert batch.zero_nonfinite().tolist() == [True, False]
    assert batch.mix[0].sum() == 4 and batch.src[1].abs().sum() == 0


def test_an_empty_set_is_refused():
    with pytest.raises(ValueError, match="empty"):
        EpochSampler(0, 1)
