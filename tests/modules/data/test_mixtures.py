"""Sampling, cropping and batching."""

from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

from data_prep.wsj0mix.manifests import prepare
from modules.data.batch import Example, ExampleKey, collate_crops, collate_whole
from modules.data.loader import EpochSampler, make_loader
from modules.data.manifest import read_manifest
from modules.data.mixtures import ManifestDataset
from modules.runtime.errors import AudioError, DataError


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


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e25, -101.0])
@pytest.mark.parametrize("channels", [(), (2,)])
def test_a_bad_sample_silences_its_own_example_only(bad, channels):
    shape = (*channels, 4)
    examples = [Example(n, torch.ones(shape), torch.ones(2, *shape)) for n in "ab"]
    batch = collate_crops([(example, True) for example in examples])
    batch.src[0, 0, ..., 2] = 99.0  # absurd, but a level
    batch.src[1, 0, ..., 2] = bad
    assert batch.zero_nonfinite().tolist() == [True, False]
    assert batch.mix[0].sum() == batch.mix[0].numel() and not batch.src[1].any()
    assert not batch.mix[1].any()


@pytest.fixture
def spoilt(rows, tmp_path):
    """A row of copies, and a function that changes the samples of one of them."""

    def copy(path):
        wave, rate = soundfile.read(path)
        name = path.replace("/", "_")
        soundfile.write(tmp_path / name, wave, rate, subtype="FLOAT")
        return str(tmp_path / name)

    def spoil(path, change):
        wave, rate = soundfile.read(path)
        soundfile.write(path, change(wave), rate, subtype="FLOAT")

    row = rows[0]
    sources = tuple(map(copy, row.sources))
    return replace(row, mixture=copy(row.mixture), sources=sources), spoil


def test_a_mixture_that_is_not_the_sum_is_named(spoilt):
    row, spoil = spoilt
    assert ManifestDataset([row], 8000, 0.25)[0].id == row.id
    spoil(row.mixture, lambda wave: wave + 0.01)
    with pytest.raises(AudioError) as error:
        ManifestDataset([row], 8000, 0.25)[0]
    assert str(error.value).startswith(f"{row.mixture}: is not the sum of its sources")
    assert "off by 0.01 of" in str(error.value) and "check_sums" in str(error.value)
    ManifestDataset([row], 8000, 0.25, check_sums=False)[0]
    # The file is not trained on with changes of speed, and is looked at once.
    changed = ManifestDataset([row], 8000, 0.25, speed_changes=[95, 105])
    with pytest.raises(AudioError, match="is not the sum of its sources"):
        changed[ExampleKey(1, 0)]
    changed[ExampleKey(2, 0)]
    spoil(row.mixture, lambda wave: wave - 0.01 + 1e-4)  # within the tolerance
    ManifestDataset([row], 8000, 0.25)[0]


def test_images_are_summed_in_the_first_epoch(spoilt):
    row, spoil = spoilt
    row = replace(row, images=row.sources, sources=row.sources[::-1])
    data = ManifestDataset([row], 8000)
    data[ExampleKey(1, 0)]
    spoil(row.images[0], lambda wave: 0.5 * wave)
    with pytest.raises(AudioError, match="is not the sum of its images"):
        data[ExampleKey(1, 0)]
    data[ExampleKey(2, 0)]


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e25])
@pytest.mark.parametrize("where", ["mixture", "source"])
def test_what_is_no_signal_is_an_error_only_where_it_is_scored(spoilt, bad, where):
    row, spoil = spoilt
    path = row.mixture if where == "mixture" else row.sources[1]
    spoil(path, lambda wave: np.where(np.arange(len(wave)) == 9, bad, wave))
    example = ManifestDataset([row], 8000)[0]  # for the training step to leave out
    assert not collate_whole([(example, True)]).zero_nonfinite().any()
    with pytest.raises(AudioError, match="holds NaN or Inf|has a peak of 1e") as error:
        ManifestDataset([row], 8000, strict=True)[0]
    assert str(error.value).startswith(f"{path}: ")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_error_in_a_worker_is_still_one_line(rows, num_workers):
    data = ManifestDataset([rows[0], replace(rows[1], mixture="/none.wav")], 8000)
    sampler = EpochSampler(2, 1, shuffle=False)
    batches = iter(make_loader(data, sampler, collate_crops, num_workers))
    assert next(batches).ids == [rows[0].id]
    with pytest.raises(AudioError) as error:
        next(batches)
    assert str(error.value).startswith("/none.wav: does not exist")
    assert "\n" not in str(error.value)


def test_how_workers_run_does_not_change_the_batches(rows):
    def epochs(workers, **options):
        data = ManifestDataset(rows, 8000, segment_seconds=0.1, seed=1)
        sampler = EpochSampler(len(rows), 2, seed=1)
        loader = make_loader(data, sampler, collate_crops, workers, **options)
        found = []
        for epoch in (1, 2):
            sampler.set_position(epoch)
            found += [batch.mix for batch in loader]
        return loader, torch.cat(found)

    _, plain = epochs(0, persistent_workers=True, prefetch_factor=4)  # no worker
    loader, kept = epochs(1, persistent_workers=True, prefetch_factor=4)
    assert loader.persistent_workers and loader.prefetch_factor == 4
    assert torch.equal(plain, kept)


def test_an_empty_set_is_refused():
    with pytest.raises(DataError, match="empty"):
        EpochSampler(0, 1)
