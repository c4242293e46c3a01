"""Rooms: WHAMR!'s sum over images, whatever the absorption, and pools of rooms."""

import math
import subprocess
import sys

import numpy as np
import pyroomacoustics
import pytest
from pyroomacoustics.experimental import measure_rt60

from modules.audio.rooms import Room, RoomPool, impulse_responses
from modules.runtime.errors import DataError
from tests import ROOT

RATE = 16000


def draw(seed, rt60):
    rng = np.random.default_rng(seed)
    size = rng.uniform([5, 5, 3], [7, 7, 4])
    points = [rng.uniform(size * 0.2, size * 0.8) for _ in range(3)]
    ear, *sources = (tuple(point) for point in points)
    return Room(tuple(size), ear, tuple(sources), rt60)


@pytest.fixture
def no_high_pass():
    """Version 0.10 filters responses above 10 Hz; 0.3 and WHAMR! did not."""
    constants = pyroomacoustics.constants
    constants.set("rir_hpf_enable", False)
    yield
    constants.set("rir_hpf_enable", True)


def with_materials(room, order):
    """The form that version 0.10 documents: an absorbed share of the energy."""
    box = pyroomacoustics.ShoeBox(
        room.size,
        fs=RATE,
        materials=pyroomacoustics.Material(
            energy_absorption=1 - (1 - room.absorption) ** 2
        ),
        max_order=order,
    )
    for source in room.sources:
        box.add_source(source)
    box.add_microphone(room.microphone)
    box.compute_rir()
    frames = math.ceil(room.rt60 * RATE)
    return np.stack(
        [np.resize(np.append(r, np.zeros(frames)), frames) for r in box.rir[0]]
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("anechoic", [False, True])
def test_equals_pyroomacoustics_with_materials(no_high_pass, seed, anechoic):
    room = draw(seed, rt60=0.25)
    order = 0 if anechoic else room.max_order
    reference_ST = with_materials(room, order)
    response_ST = impulse_responses(room, RATE, 0 if anechoic else None)
    assert response_ST.shape == reference_ST.shape
    for response_T, reference_T in zip(response_ST, reference_ST, strict=True):
        error = np.linalg.norm(response_T - reference_T) / np.linalg.norm(reference_T)
        assert error < 1e-4


def test_threads_of_the_process_do_not_decide_the_last_bits():
    room = draw(1, rt60=0.25)
    response_ST = impulse_responses(room)
    pyroomacoustics.constants.set("num_threads", 4)
    assert np.array_equal(impulse_responses(room), response_ST)


def test_training_does_not_import_the_simulator():
    """It takes most of a second, and training reads pools that were made before."""
    code = "import sys, recipes.speech; sys.exit('pyroomacoustics' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def image_sum(room, source, rate, order):
    """The same written out: every image, its exact fractional delay, no table."""
    frames = math.ceil(room.rt60 * rate)
    wave_T, taps = np.zeros(frames + 200), np.arange(-40, 41)
    reflection = 1 - room.absorption
    span = range(-order, order + 1)
    for n in ((i, j, k) for i in span for j in span for k in span):
        reflections = sum(map(abs, n))
        image = [
            i * side + (x if i % 2 == 0 else side - x)
            for i, side, x in zip(n, room.size, source, strict=True)
        ]
        distance = math.dist(image, room.microphone)
        delay = distance * rate / 343
        if reflections <= order and delay < frames:
            start = math.floor(delay)
            sinc = np.sinc(taps - (delay - start)) * np.hanning(81)
            wave_T[start : start + 81] += reflection**reflections / distance * sinc
    return wave_T[:frames]


@pytest.mark.parametrize("rt60", [0.06, 0.15])
def test_equals_the_sum_over_images_also_when_absorption_is_above_one(rt60):
    room = Room((6.0, 5.0, 3.2), (3.0, 2.5, 1.3), ((4.1, 3.0, 1.5),), rt60)
    assert (room.absorption > 1) == (rt60 == 0.06)
    wave_T = impulse_responses(room, 8000)[0]
    expected_T = image_sum(room, room.sources[0], 8000, room.max_order)
    error = np.linalg.norm(wave_T - expected_T) / np.linalg.norm(expected_T)
    assert error < 2e-3  # float32, and a table that is interpolated
    if rt60 == 0.06:
        first = 40 + 8000 / 343 * math.dist(room.sources[0], room.microphone)
        later_T = wave_T[round(first) + 12 :]
        assert later_T.min() < -abs(later_T.max())  # one reflection: its sign changes


def test_decays_in_a_part_of_the_nominal_time():
    """Reflections of 1 - a instead of sqrt(1 - a): a property of WHAMR! itself."""
    for seed in range(4):
        room = draw(seed, rt60=0.4)
        for response_T in impulse_responses(room, RATE):
            assert 0.5 < measure_rt60(response_T, RATE, decay_db=30) / 0.4 < 0.75


def test_direct_path_comes_with_its_distance():
    room = draw(5, rt60=0.2)
    for source, wave_T in zip(
        room.sources, impulse_responses(room, RATE, 0), strict=True
    ):
        distance = math.dist(source, room.microphone)
        assert abs(wave_T.argmax() - 40 - distance * RATE / 343) <= 1
        delay = np.sum(np.arange(len(wave_T)) * wave_T) / wave_T.sum()
        assert delay == pytest.approx(40 + distance * RATE / 343, abs=0.1)
        assert wave_T.sum() == pytest.approx(1 / distance, rel=0.01)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rt60": 0.0}, "T60 is 0.0 s"),
        ({"rt60": math.nan}, "T60 is nan s"),
        ({"size": (5.0, -1.0, 3.0)}, "its size is"),
        ({"microphone": (5.5, 1.0, 1.0)}, "its microphone at .* is outside"),
        ({"sources": ((1.0, 1.0, 3.5),)}, "its source 1 at .* is outside"),
        ({"sources": ((2.0, 2.0, 1.0),)}, "source 1 is where the microphone is"),
    ],
)
def test_impossible_rooms_are_refused(change, message):
    good = {
        "size": (5.0, 4.0, 3.0),
        "microphone": (2.0, 2.0, 1.0),
        "sources": ((1.0, 1.0, 1.0),),
        "rt60": 0.1,
    }
    assert Room(**good).fault() == ""
    with pytest.raises(ValueError, match=message):
        impulse_responses(Room(**(good | change)))


@pytest.fixture
def pool():
    rooms = [draw(seed, rt60=0.2) for seed in range(2)]
    responses = [
        [impulse_responses(room, 8000, order).astype(np.float32) for room in rooms]
        for order in (0, None)
    ]
    return RoomPool(8000, *responses)


def test_talkers_in_a_room(pool):
    """Each through its own response, at the energy that it has when dry."""
    dry_ST = np.random.default_rng(0).standard_normal((2, 4000)).astype(np.float32)
    dry_ST[1] *= 0.01
    anechoic_ST, reverb_ST = pool.in_room(dry_ST, 1)
    assert anechoic_ST.dtype == reverb_ST.dtype == np.float32
    assert anechoic_ST.shape == reverb_ST.shape == dry_ST.shape
    for number in range(2):
        parts = []
        for responses in (pool.direct, pool.reverberant):
            parts.append(np.convolve(dry_ST[number], responses[1][number])[:4000])
        gain = np.linalg.norm(dry_ST[number]) / np.linalg.norm(parts[0])
        size = np.abs(dry_ST[number]).max()
        assert np.abs(anechoic_ST[number] - gain * parts[0]).max() < 1e-5 * size
        assert np.abs(reverb_ST[number] - gain * parts[1]).max() < 1e-5 * size
    late_ST = dry_ST.copy()
    late_ST[0, :-3] = 0  # cannot arrive before the end
    anechoic_late_ST, reverb_late_ST = pool.in_room(late_ST, 1)
    assert not anechoic_late_ST[0].any() and not reverb_late_ST[0].any()
    assert np.abs(anechoic_late_ST[1] - anechoic_ST[1]).max() < 1e-6
    alone_ST, _ = pool.in_room(dry_ST[:1], 1)
    assert np.abs(alone_ST - anechoic_ST[:1]).max() < 1e-5


def test_pool_file_round_trip_and_faults(pool, tmp_path):
    path = tmp_path / "rooms.npz"
    pool.save(path)
    again = RoomPool.load(path, 8000)
    for name in ("direct", "reverberant"):
        for one, other in zip(getattr(pool, name), getattr(again, name), strict=True):
            assert np.array_equal(one, other)
    with pytest.raises(DataError, match="are at 8000 Hz, expected 16000 Hz; make"):
        RoomPool.load(path, 16000)
    with pytest.raises(DataError, match="no such file; make it by python -m data_prep"):
        RoomPool.load(tmp_path / "none.npz")
    np.savez(tmp_path / "other.npz", a=1)
    path.write_bytes(path.read_bytes()[:-100])
    np.save(tmp_path / "array.npy", np.ones(3))
    for name in ("rooms.npz", "other.npz", "array.npy"):
        with pytest.raises(DataError, match=f"{name}: is not a pool of rooms"):
            RoomPool.load(tmp_path / name)
    assert len(list(tmp_path.iterdir())) == 3
