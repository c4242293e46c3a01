"""What the speech recipe trains on: crops of a set's mixtures, or new ones."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from modules.audio.rooms import Room, RoomPool, impulse_responses
from modules.data.dynamic_mixing import DynamicMixing
from modules.data.manifest import Row
from modules.data.mixtures import ManifestDataset
from modules.data.utterances import UtterancePool
from modules.runtime.errors import DataError
from recipes.speech import SpeechSeparation

RATE = 8000
NAMES = ("19-1-0001_26-1-0001", "27-1-0001_32-1-0001")


def test_estimates_are_heard_beside_their_targets_at_their_level():
    t_T = torch.arange(RATE) / RATE
    target_ST = torch.stack([torch.sin(hertz * t_T) for hertz in (900, 2000, 5000)])
    est_ST = torch.stack([0.1 * target_ST[2], -10 * target_ST[0], target_ST[1]])
    heard_ST, notes = SpeechSeparation.to_hear(est_ST, target_ST)
    torch.testing.assert_close(heard_ST.abs(), target_ST.abs())
    assert notes == ["output 2, -20.0 dB", "output 3, +0.0 dB", "output 1, +20.0 dB"]
    target_ST[1] = 0
    heard_ST, notes = SpeechSeparation.to_hear(est_ST, target_ST)
    assert heard_ST.isfinite().all() and notes[0] == "output 2, -20.0 dB"
    assert 0 < heard_ST[1].std() < 1, "not at a level of its own"


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Two mixtures of two talkers in noise, exact sums in float."""
    folder = tmp_path_factory.mktemp("set")
    rng = np.random.default_rng(0)
    rows = []
    for name in NAMES:
        parts_PT = 0.1 * rng.standard_normal((3, RATE)).astype(np.float32)
        waves = [parts_PT.sum(0), *parts_PT]
        paths = []
        for part, wave_T in zip(("mix", "s1", "s2", "noise"), waves, strict=True):
            paths.append(str(folder / part / f"{name}.wav"))
            (folder / part).mkdir(exist_ok=True)
            soundfile.write(paths[-1], wave_T, RATE, subtype="FLOAT")
        mixture, *sources, noise = paths
        rows.append(Row(name, 1.0, RATE, mixture, tuple(sources), noise))
    return rows


def training_set(rows, **changes):
    config = {
        "sample_rate": RATE,
        "segment_seconds": 0.5,
        "speed_changes": None,
        "seed": 1,
        "num_spks": 2,
        "examples_per_epoch": 6,
        "dynamic_mixing": True,
        "noise_snr_db": [-3, 6],
        "room_pool": None,
        "base_folder_dm": None,
        "targets": "anechoic",
        "check_sums": True,
    }
    brain = SimpleNamespace(
        config=SimpleNamespace(**config | changes),
        _utterances=UtterancePool.from_manifest,
    )
    brain._rooms = partial(SpeechSeparation._rooms, brain)
    return SpeechSeparation._training_set(brain, rows)


@pytest.mark.parametrize("dynamic_mixing", [True, False])
def test_training_has_the_noise_of_its_set(rows, dynamic_mixing):
    dataset = training_set(rows, dynamic_mixing=dynamic_mixing)
    assert type(dataset) is (DynamicMixing if dynamic_mixing else ManifestDataset)
    for index in range(len(dataset)):
        example = dataset[index]
        assert example.noise.abs().max() > 0.01
        rest_T = example.mix - example.src.sum(0) - example.noise
        assert rest_T.abs().max() < 1e-6


def test_sets_without_noise_get_none(rows):
    clean = [Row(r.id, r.duration, RATE, r.mixture, r.sources) for r in rows]
    example = training_set(clean)[0]
    assert example.noise is None and torch.equal(example.mix, example.src.sum(0))


def test_reverberant_sets_are_mixed_in_rooms_or_not_at_all(rows, tmp_path):
    wet = [replace(row, images=row.sources) for row in rows]
    with pytest.raises(DataError, match="would be dry: set --room_pool"):
        training_set(wet)
    assert isinstance(training_set(wet, dynamic_mixing=False), ManifestDataset)
    places = ((3.0, 2.0, 1.0), (2.0, 3.0, 1.5))
    room = Room((5.0, 4.0, 3.0), (2.0, 2.0, 1.0), places, 0.2)
    path = tmp_path / "rooms.npz"
    RoomPool(
        RATE, *([impulse_responses(room, RATE, order)] for order in (0, None))
    ).save(path)
    example = training_set(wet, room_pool=str(path))[0]
    assert (example.mix - example.src.sum(0) - example.noise).abs().max() > 0.01
    with pytest.raises(DataError, match="into rooms again: set --base_folder_dm"):
        training_set(rows, room_pool=str(path), targets="reverb")
    with pytest.raises(DataError, match="8000 Hz, expected 16000 Hz"):
        training_set(wet, room_pool=str(path), sample_rate=16000)
