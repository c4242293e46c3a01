"""Dynamic mixing: the rule for levels, different speakers, and one result for all."""

import multiprocessing
import pickle

import numpy as np
import pytest
import soundfile
import torch

from modules.audio.levels import loudness_db
from modules.audio.rooms import Room, RoomPool, impulse_responses
from modules.data.batch import ExampleKey, collate_crops
from modules.data.dynamic_mixing import DynamicMixing, frames_at, read_crop
from modules.data.loader import EpochSampler, make_loader
from modules.data.utterances import Utterance, UtterancePool
from modules.runtime.errors import AudioError, DataError, HparamsError

RATE = 8000


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """Six speakers with 1 to 6 utterances of noise, 1.5 to 2 s, at many levels."""
    folder = tmp_path_factory.mktemp("talkers")
    rng = np.random.default_rng(0)
    for count in range(1, 7):
        for take in range(count):
            path = folder / f"spk{count}" / f"spk{count}-{take}.wav"
            path.parent.mkdir(exist_ok=True)
            wave = 10 ** rng.uniform(-3, -0.6) * rng.standard_normal(12000 + 700 * take)
            soundfile.write(path, wave, RATE, subtype="FLOAT")
    return UtterancePool.scan(folder)


def same(one, other):
    return (
        one.id == other.id
        and torch.equal(one.mix, other.mix)
        and torch.equal(one.src, other.src)
    )


@pytest.mark.parametrize("num_spks", [1, 2, 3, 6])
def test_mixture_is_the_sum_peaks_at_0_9_and_speakers_differ(pool, num_spks):
    dataset = DynamicMixing(pool, num_spks, segment_seconds=0.5)
    for index in range(len(dataset)):
        example = dataset[index]
        assert example.src.shape == (num_spks, 4000)
        assert example.src.dtype == example.mix.dtype == torch.float32
        assert torch.equal(example.mix, example.src.sum(0))
        peak = max(example.mix.abs().max(), example.src.abs().max())
        assert abs(peak - 0.9) < 1e-5
        speakers = [name.split("-")[0] for name in example.id.split("+")]
        assert len(set(speakers)) == num_spks
        assert (example.src.square().mean(-1) > 0).all()


def test_an_example_depends_on_seed_epoch_and_index_alone(pool):
    dataset = DynamicMixing(pool, segment_seconds=0.5, seed=3)
    copy = pickle.loads(pickle.dumps(dataset))
    first = dataset[ExampleKey(2, 5)]
    np.random.seed(0), torch.manual_seed(0)
    for _ in range(3):
        dataset[ExampleKey(1, 0)]
    assert same(first, dataset[ExampleKey(2, 5)])
    assert same(first, dataset[ExampleKey(2, 5, counts=False)])
    assert same(first, copy[ExampleKey(2, 5)])
    assert same(dataset[ExampleKey(0, 5)], dataset[5])
    other_seed = DynamicMixing(pool, segment_seconds=0.5, seed=4)
    for other in (
        dataset[ExampleKey(2, 6)],
        dataset[ExampleKey(3, 5)],
        other_seed[ExampleKey(2, 5)],
    ):
        assert not torch.equal(first.mix, other.mix)


def epoch_of(dataset, workers, world_size, epoch=1):
    """All examples of an epoch by index, over all ranks; no index twice."""
    found = {}
    for rank in range(world_size):
        sampler = EpochSampler(len(dataset), 2, rank, world_size, seed=7)
        sampler.set_position(epoch)
        keys = [key for batch in sampler for key in batch if key.counts]
        loader = make_loader(dataset, sampler, collate_crops, num_workers=workers)
        rows = [
            (name, mix_T)
            for batch in loader
            for name, mix_T, counts in zip(
                batch.ids, batch.mix, batch.counts_B, strict=True
            )
            if counts
        ]
        for key, row in zip(keys, rows, strict=True):
            assert key.index not in found
            found[key.index] = row
    return found


def test_any_number_of_workers_and_ranks_gives_the_same_epoch(pool):
    dataset = DynamicMixing(pool, segment_seconds=0.25, examples_per_epoch=11)
    alone = epoch_of(dataset, 0, 1)
    assert sorted(alone) == list(range(11))
    for workers, world_size in ((2, 1), (0, 2), (1, 3)):
        shared = epoch_of(dataset, workers, world_size)
        assert sorted(shared) == list(range(11))
        for index, (name, mix_T) in alone.items():
            assert shared[index][0] == name
            assert torch.equal(shared[index][1], mix_T)
    assert multiprocessing.active_children() == []


def test_levels_follow_the_rule(pool):
    """Noise has the same level everywhere, so ratios of crops show the drawn levels."""
    dataset = DynamicMixing(pool, segment_seconds=1.0, speed_changes=None)
    ratios = []
    for index in range(800):
        power_S = dataset[ExampleKey(index, 0)].src.square().mean(-1)
        ratios.append(10 * float(torch.log10(power_S[1] / power_S[0])))
    error = 2.66 / np.sqrt(len(ratios))
    assert abs(np.mean(ratios) + 2.51) < 4 * error
    assert abs(np.std(ratios) - 2.66) < 4 * error / np.sqrt(2)


def test_first_level_and_clipping(pool):
    rng = np.random.default_rng(0)
    dataset = DynamicMixing(pool, num_spks=3)
    levels = np.array([dataset._levels_db(rng) for _ in range(4000)])
    assert (
        abs(levels[:, 0].mean() + 27.43) < 0.2 and abs(levels[:, 0].std() - 2.57) < 0.2
    )
    # The others are drawn apart, each from the first.
    changes = levels[:, 1:] - levels[:, :1]
    assert abs(np.corrcoef(changes.T)[0, 1]) < 0.05
    loud = DynamicMixing(pool, first_level_db=(0, 30))
    levels = np.array([loud._levels_db(rng) for _ in range(500)])
    assert levels.min() == -45 and levels.max() == 0


def test_speakers_are_drawn_in_proportion_to_their_utterances(pool):
    dataset = DynamicMixing(pool, num_spks=1, segment_seconds=0.01, speed_changes=None)
    drawn = [dataset[ExampleKey(epoch, 0)].id[3] for epoch in range(2100)]
    for count in range(1, 7):
        expected = 2100 * count / 21
        assert abs(drawn.count(str(count)) - expected) < 4.5 * np.sqrt(expected)


def ramp_file(path, frames, rate):
    """A file whose samples tell their position."""
    soundfile.write(
        path, np.arange(frames, dtype=np.int32) << 8, rate, subtype="PCM_24"
    )
    return Utterance(str(path), "ramp", "a", rate, frames, -10.0)


def test_crop_starts_where_it_is_asked_to(tmp_path):
    ramp = ramp_file(tmp_path / "ramp.wav", 5000, RATE)
    crop_T = read_crop(ramp, 1234, 100, RATE)
    assert torch.equal((crop_T * 2**23).long(), torch.arange(1234, 1334))


@pytest.mark.parametrize("file_rate", [8000, 16000, 22050, 44100])
@pytest.mark.parametrize("percent", [90, 95, 100, 105, 133])
def test_every_position_gives_exactly_the_length(tmp_path, file_rate, percent):
    ramp = ramp_file(tmp_path / "r.wav", 3 * file_rate // 10 + 1, file_rate)
    available = frames_at(ramp, RATE, percent)
    assert abs(available - ramp.frames * RATE / file_rate * 100 / percent) < 1
    for start in (0, 1, available // 3, available - 500):
        assert len(read_crop(ramp, start, 500, RATE, percent)) == 500
    assert len(read_crop(ramp, 0, available, RATE, percent)) == available


@pytest.mark.parametrize("file_rate", [8000, 16000])
@pytest.mark.parametrize("percent", [95, 100, 105])
def test_speed_moves_the_pitch(tmp_path, file_rate, percent):
    path = tmp_path / "tone.wav"
    wave = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(2 * file_rate) / file_rate)
    soundfile.write(path, wave, file_rate, subtype="FLOAT")
    tone = Utterance(str(path), "tone", "a", file_rate, len(wave), -9.0)
    crop = read_crop(tone, 2000, 8000, RATE, percent).numpy() * np.hanning(8000)
    peak_hz = np.argmax(np.abs(np.fft.rfft(crop)))
    assert peak_hz == 10 * percent


def test_crop_reads_only_the_samples_it_needs(tmp_path, monkeypatch):
    long = ramp_file(tmp_path / "long.wav", 400000, 16000)
    read = []
    read_samples = soundfile.SoundFile.read

    def spy(self, frames=-1, *args, **kwargs):
        wave = read_samples(self, frames, *args, **kwargs)
        read.append(len(wave))
        return wave

    monkeypatch.setattr(soundfile.SoundFile, "read", spy)
    read_crop(long, 90000, 8000, RATE, 105)
    assert read == [16800]


def test_examples_are_shorter_only_where_an_utterance_is(tmp_path):
    for name, seconds in (("a", 1.0), ("b", 3.0), ("c", 3.0)):
        (tmp_path / name).mkdir()
        wave = 0.1 * np.random.default_rng(1).standard_normal(round(seconds * RATE))
        soundfile.write(tmp_path / name / f"{name}.wav", wave, RATE)
    pool = UtterancePool.scan(tmp_path)
    for segment in (2.0, None):
        dataset = DynamicMixing(pool, segment_seconds=segment, speed_changes=None)
        for epoch in range(10):
            example = dataset[ExampleKey(epoch, 0)]
            seconds = 1.0 if "a" in example.id else segment or 3.0
            assert len(example.mix) == seconds * RATE


def test_pauses_are_drawn_again(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        wave = 1e-4 * np.random.default_rng(1).standard_normal(10 * RATE)
        wave[-2 * RATE :] *= 1000  # eight seconds of pause, two of speech
        soundfile.write(tmp_path / name / f"{name}.wav", wave, RATE, subtype="FLOAT")
    dataset = DynamicMixing(UtterancePool.scan(tmp_path), segment_seconds=0.5)
    for epoch in range(20):
        levels_S = dataset[ExampleKey(epoch, 1)].src.square().mean(-1).sqrt()
        assert (levels_S > 0.01).all()


def test_utterances_of_pauses_alone_end_in_an_error(pool):
    louder = [
        u._replace(level_db=u.level_db + 60) for us in pool.by_speaker for u in us
    ]
    dataset = DynamicMixing(UtterancePool(louder), segment_seconds=0.5)
    with pytest.raises(DataError, match="50 draws for example 0 of epoch 0 all hit"):
        dataset[0]


def test_file_that_went_bad_after_the_scan_is_named(tmp_path):
    paths = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        paths.append(tmp_path / name / f"{name}.wav")
        wave = 0.1 * np.random.default_rng(1).standard_normal(RATE)
        soundfile.write(paths[-1], wave, RATE, subtype="FLOAT")
    dataset = DynamicMixing(UtterancePool.scan(tmp_path), speed_changes=None)
    soundfile.write(paths[0], np.full(RATE, np.nan), RATE, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"a.wav: has changed .* \(holds NaN or Inf\)"):
        dataset[0]
    soundfile.write(paths[0], wave[:4000], RATE, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"a.wav: has changed .* \(other samples\)"):
        dataset[0]
    paths[0].unlink()
    with pytest.raises(AudioError, match="a.wav: does not exist"):
        dataset[0]


@pytest.fixture(scope="module")
def noises(tmp_path_factory):
    """Three noises of 1, 2 and 3 s."""
    folder = tmp_path_factory.mktemp("noises")
    rng = np.random.default_rng(5)
    found = []
    for number, frames in enumerate((8000, 16000, 24000)):
        path = folder / f"{number}.wav"
        soundfile.write(path, 0.1 * rng.standard_normal(frames), RATE, subtype="FLOAT")
        found.append((str(path), frames))
    return found


@pytest.mark.parametrize("num_spks", [1, 2])
def test_noise_of_an_example_is_exactly_that_in_its_mixture(pool, noises, num_spks):
    dataset = DynamicMixing(pool, num_spks, segment_seconds=0.5, noises=noises)
    files = [soundfile.read(path, dtype="float32")[0] for path, _ in noises]
    heard = set()
    for index in range(len(dataset)):
        example = dataset[index]
        assert torch.equal(example.mix, example.src.sum(0) + example.noise)
        waves = (example.mix, example.src, example.noise)
        assert abs(max(wave.abs().max() for wave in waves) - 0.9) < 1e-5
        # It is a crop of a file, times a factor.
        for number, file in enumerate(files):
            windows = np.lib.stride_tricks.sliding_window_view(file, 4000)
            match = windows[:, :8] @ example.noise.numpy()[:8]
            match /= np.linalg.norm(windows[:, :8], axis=1)
            start = int(match.argmax())
            ratio = example.noise.numpy() / windows[start]
            if np.ptp(ratio) < 1e-4 * ratio.mean():
                heard.add(number)
                break
        else:
            pytest.fail(f"example {index}: its noise is no crop of a file")
    assert heard == {0, 1, 2}


def test_first_source_is_above_the_noise_by_whams_rule(pool, noises):
    def snrs_db(**settings):
        dataset = DynamicMixing(pool, segment_seconds=0.5, noises=noises, **settings)
        for epoch in range(60):
            example = dataset[ExampleKey(epoch, 3)]
            first_db = loudness_db(example.src[0].numpy(), RATE)
            yield first_db - loudness_db(example.noise.numpy(), RATE)

    found = np.array(list(snrs_db()))
    assert -3 <= found.min() < -2 and 5 < found.max() <= 6.001
    assert abs(found.mean() - 1.5) < 4 * 9 / np.sqrt(12 * len(found))
    assert np.allclose(list(snrs_db(noise_snr_db=(10, 10))), 10, atol=1e-3)


def test_noise_is_drawn_by_counter_and_bounds_the_length(pool, noises):
    dataset = DynamicMixing(pool, segment_seconds=None, noises=noises[:1])
    copy = pickle.loads(pickle.dumps(dataset))
    for index in range(6):
        example, again = dataset[index], copy[ExampleKey(0, index)]
        assert same(example, again) and torch.equal(example.noise, again.noise)
        assert len(example.mix) == len(example.noise) == noises[0][1]
    other = dataset[ExampleKey(1, 0)]
    assert not torch.equal(other.noise, dataset[0].noise)


def test_silent_and_spoilt_noise_is_not_mixed(pool, noises, tmp_path):
    path = tmp_path / "silent.wav"
    soundfile.write(path, np.zeros(8000), RATE, subtype="FLOAT")
    both = DynamicMixing(
        pool, segment_seconds=0.5, noises=[(str(path), 8000), *noises[:1]]
    )
    assert all(both[index].noise.any() for index in range(10))
    alone = DynamicMixing(pool, segment_seconds=0.5, noises=[(str(path), 8000)])
    with pytest.raises(DataError, match="all hit pauses.* or the noises"):
        alone[0]
    soundfile.write(path, np.full(8000, np.nan), RATE, subtype="FLOAT")
    with pytest.raises(AudioError, match="silent.wav: holds NaN or Inf"):
        alone[0]


def test_wrong_use_is_refused(pool):
    with pytest.raises(DataError, match="7 speakers needs as many, .* 6 speakers"):
        DynamicMixing(pool, num_spks=7)
    for snr_db in ((6, -3), (1,)):
        with pytest.raises(HparamsError, match="noise_snr_db is .least, most. in dB"):
            DynamicMixing(pool, noise_snr_db=snr_db)
    dataset = DynamicMixing(pool)
    assert len(dataset) == 21
    with pytest.raises(IndexError):
        dataset[21]


@pytest.fixture(scope="module")
def rooms():
    """Three rooms for two talkers, short so that they are made at once."""
    places = ((3.0, 2.0, 1.0), (2.0, 3.0, 1.5))
    boxes = [Room((5.0, 4.0, 3.0), (2, 2, 1 + k / 9), places, 0.2) for k in range(3)]
    kinds = [
        [impulse_responses(box, RATE, order).astype(np.float32) for box in boxes]
        for order in (0, None)
    ]
    return RoomPool(RATE, *kinds)


@pytest.mark.parametrize("with_noise", [False, True])
def test_mixtures_in_rooms(pool, rooms, tmp_path, with_noise):
    """One mixture, whatever is wanted of it; the targets are what is named."""
    noises = []
    if with_noise:
        wave_T = 0.1 * np.random.default_rng(7).standard_normal(9000)
        soundfile.write(tmp_path / "n.wav", wave_T, RATE, subtype="FLOAT")
        noises = [(str(tmp_path / "n.wav"), 9000)]
    settings = {"segment_seconds": 0.5, "seed": 5, "noises": noises}
    dry = DynamicMixing(pool, **settings)
    sets = {
        targets: DynamicMixing(pool, **settings, rooms=rooms, targets=targets)
        for targets in ("anechoic", "reverb")
    }
    for index in range(8):
        plain = dry[index]
        wet = {targets: dataset[index] for targets, dataset in sets.items()}
        heard, wanted = wet["reverb"], wet["anechoic"]
        assert heard.id == wanted.id == plain.id  # the same talkers as without rooms
        zero_T = torch.zeros(4000)
        noise_T = heard.noise if with_noise else zero_T
        assert (heard.mix - heard.src.sum(0) - noise_T).abs().max() < 1e-6
        peak = max(w.abs().max() for w in (heard.mix, heard.src, noise_T))
        assert abs(peak - 0.9) < 1e-5
        # Scaled apart, by what peaks highest; but one mixture, and one room.
        scale = float(wanted.mix.norm() / heard.mix.norm())
        assert (wanted.mix - scale * heard.mix).abs().max() < 1e-4
        fits = [
            rooms.in_room(plain.src.numpy(), number)[0] for number in range(len(rooms))
        ]
        gain = float(wanted.src.norm() / plain.src.norm())
        errors = [np.abs(gain * fit - wanted.src.numpy()).max() for fit in fits]
        assert min(errors) < 1e-4 < sorted(errors)[1]
        if with_noise:
            assert (wanted.noise - gain * plain.noise).abs().max() < 1e-4


def test_rooms_are_drawn_by_seed_epoch_and_index(pool, rooms):
    dataset = DynamicMixing(pool, segment_seconds=0.25, rooms=rooms, seed=2)
    again = pickle.loads(pickle.dumps(dataset))
    for key in (ExampleKey(0, 3), ExampleKey(2, 3), ExampleKey(2, 4)):
        assert same(dataset[key], again[key])
    assert not same(dataset[ExampleKey(0, 3)], dataset[ExampleKey(2, 3)])


def test_rooms_that_do_not_fit_are_refused(pool, rooms):
    with pytest.raises(DataError, match="places for 2 talkers, not 3"):
        DynamicMixing(pool, num_spks=3, rooms=rooms)
    with pytest.raises(DataError, match="at 8000 Hz, mixtures at 16000 Hz"):
        DynamicMixing(pool, sample_rate=16000, rooms=rooms)
    with pytest.raises(HparamsError, match="targets is 'dry', expected 'anechoic' or"):
        DynamicMixing(pool, rooms=rooms, targets="dry")
