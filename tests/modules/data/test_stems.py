"""Examples of stems: where they come from, what is done to them, and how often."""

import logging
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from data_prep.music.manifests import prepare
from modules.data.augmentation import Augmentation
from modules.data.batch import ExampleKey, collate_crops, collate_whole
from modules.data.loader import EpochSampler, make_loader
from modules.data.manifest import Row, read_manifest
from modules.data.stems import StemDataset
from modules.data.track_levels import Level, loud_enough, measure_levels
from modules.inference.songs import measure_songs
from modules.runtime.errors import AudioError, DataError
from tests import SHARED

RATE = 1000
#: One thing at a time: everything else is off.
OFF = {
    "shift_seconds": 0.0,
    "flip_channels": False,
    "flip_sign": False,
    "scale": None,
    "remix_group": 1,
    "repitch_probability": 0.0,
}


def make_row(
    folder: Path, name: str, waves: list[np.ndarray], rate=RATE, **more
) -> Row:
    """Write stems [T, C] or [T] as float files."""
    paths = []
    for number, wave in enumerate(waves):
        path = folder / name / f"{number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, wave, rate, subtype="FLOAT")
        paths.append(str(path))
    frames = min(map(len, waves))
    return Row(name, frames / rate, rate, "", tuple(paths), channels=2, **more)


@pytest.fixture
def ramps(tmp_path) -> list[Row]:
    """Three tracks of 10 s, 3 stems; a sample says track, stem, channel and time.

    In thousandths: thousands the stem, hundreds the channel, tens the track, then the
    seconds.
    """
    rows = []
    time = np.arange(10 * RATE) / RATE
    for track in range(3):
        waves = [
            np.stack(
                [1000 * stem + 100 * c + 10 * track + time for c in (0, 1)], axis=1
            )
            for stem in (1, 2, 3)
        ]
        rows.append(make_row(tmp_path, f"t{track}", [w / 1000 for w in waves]))
    return rows


def read_off(stem_CT: Tensor) -> tuple[int, int, float]:
    """Stem, track and start in seconds of an unscaled piece of a ramp."""
    stem, rest = divmod(1000 * float(stem_CT[0, 0]) + 5e-4, 1000)
    track, start = divmod(rest, 10)
    return int(stem), int(track), round(start, 2)


def test_every_segment_is_an_example_once_an_epoch(ramps):
    data = StemDataset(ramps, RATE, segment_seconds=4, stride_seconds=1.5)
    assert len(data) == 3 * 5, "0, 1.5, 3, 4.5, and one that reaches beyond the end"
    for epoch in (0, 1):
        seen = Counter()
        for index in range(len(data)):
            example = data[ExampleKey(epoch, index)]
            assert example.mix.shape == (2, 4000) and example.src.shape == (3, 2, 4000)
            assert torch.equal(example.mix, example.src.sum(0))
            found = [read_off(stem_CT) for stem_CT in example.src]
            assert [stem for stem, _, _ in found] == [1, 2, 3]
            assert len({(track, round(start, 1)) for _, track, start in found}) == 1
            assert example.origins == (f"t{found[0][1]}",) * 3
            assert example.id == f"t{found[0][1]}@{found[0][2]:.1f}s"
            seen[found[0][1], round(found[0][2], 1)] += 1
        assert set(seen.values()) == {1}
        assert {start for _, start in seen} == {0, 1.5, 3, 4.5, 6}


def test_a_remix_uses_every_stem_of_every_segment_once_within_its_group(ramps):
    settings = Augmentation(**{**OFF, "remix_group": 4})
    data = StemDataset(ramps, RATE, 4, 1.5, augmentation=settings)
    examples = [data[ExampleKey(3, index)] for index in range(len(data))]
    pieces = [[read_off(stem_CT) for stem_CT in e.src] for e in examples]
    assert all([p[0] for p in parts] == [1, 2, 3] for parts in pieces)
    for stem in range(3):
        taken = Counter((p[stem][1], round(p[stem][2], 1)) for p in pieces)
        assert len(taken) == 15 and set(taken.values()) == {1}
    for first in range(0, 15, 4):
        group = [
            {(p[stem][1], round(p[stem][2], 1)) for p in pieces[first : first + 4]}
            for stem in range(3)
        ]
        assert group[0] == group[1] == group[2], "stems stay in their group"
    mixed = sum(len({p[1:] for p in parts}) > 1 for parts in pieces)
    assert mixed > 7
    for example, parts in zip(examples, pieces, strict=True):
        assert example.origins == tuple(f"t{track}" for _, track, _ in parts)


def test_more_and_fewer_examples_than_segments(ramps):
    more = StemDataset(ramps, RATE, 4, 1.5, examples_per_epoch=30)
    seen = Counter(more[index].id for index in range(30))
    assert len(seen) == 15 and set(seen.values()) == {2}
    fewer = StemDataset(ramps, RATE, 4, 1.5, examples_per_epoch=5)
    epochs = [{fewer[ExampleKey(e, i)].id for i in range(5)} for e in (1, 2)]
    assert epochs[0] != epochs[1] and all(len(ids) == 5 for ids in epochs)
    with pytest.raises(IndexError):
        fewer[5]


@pytest.mark.parametrize("independent", [False, True])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_example_does_not_depend_on_workers_ranks_or_order(
    ramps, independent, num_workers
):
    settings = Augmentation(
        repitch_probability=0.5, takes=(0.5, 0.5), reverse=0.5, eq=0.5, noise=0.5
    )
    data = StemDataset(
        ramps, RATE, 4, 2, settings, independent=independent, examples_per_epoch=8,
        stem_balance=0.5,
    )  # fmt: skip
    alone = {index: data[ExampleKey(2, index)] for index in reversed(range(8))}
    for rank in range(2):
        sampler = EpochSampler(8, 2, rank, world_size=2, seed=7)
        sampler.set_position(2)
        order = [key.index for batch in sampler for key in batch]
        loader = make_loader(data, sampler, collate_crops, num_workers)
        batches = list(loader)
        ids = [name for batch in batches for name in batch.ids]
        src = torch.cat([batch.src for batch in batches])
        origins = [origin for batch in batches for origin in batch.origins]
        assert ids == [alone[index].id for index in order]
        assert origins == [alone[index].origins for index in order]
        assert torch.equal(src, torch.stack([alone[index].src for index in order]))
    assert not torch.equal(alone[0].src, data[ExampleKey(3, 0)].src)


def test_independent_stems_come_from_usable_tracks_anywhere(ramps, tmp_path):
    rows = [
        Row(**{**vars(row), "unused": unused})
        for row, unused in zip(ramps, [(1,), (2,), ()], strict=True)
    ]
    data = StemDataset(rows, RATE, 4, independent=True, examples_per_epoch=300)
    found = [[read_off(stem_CT) for stem_CT in data[k].src] for k in range(300)]
    for stem, tracks in enumerate([{1, 2}, {0, 2}, {0, 1, 2}]):
        counts = Counter(parts[stem][1] for parts in found)
        assert set(counts) == tracks
        assert min(counts.values()) > 300 / len(tracks) * 0.7
        starts = [parts[stem][2] for parts in found]
        assert min(starts) < 0.3 and 5.7 < max(starts) <= 6.001
    with pytest.raises(DataError, match="only 2 of 3 tracks may use source_1"):
        StemDataset(rows, RATE, 4)
    unusable = [Row(**{**vars(row), "unused": (2,)}) for row in ramps]
    with pytest.raises(DataError, match="no track has a source_2 that may be used"):
        StemDataset(unusable, RATE, 4, independent=True)


@pytest.mark.parametrize("same", [False, True])
def test_shift_is_within_its_range_for_each_stem_or_all(ramps, same):
    settings = Augmentation(**{**OFF, "shift_seconds": 1.0, "shift_same": same})
    data = StemDataset(ramps, RATE, 4, 1, settings, examples_per_epoch=100)
    assert data.seconds_to_read == 5
    shifts, equal = [], 0
    for index in range(100):
        example = data[index]
        starts = [read_off(stem_CT)[2] for stem_CT in example.src]
        first = float(example.id.split("@")[1].rstrip("s"))
        shifts += [start - first for start in starts]
        equal += max(starts) - min(starts) < 0.02
    assert -0.01 <= min(shifts) < 0.1 and 0.9 < max(shifts) <= 1.01
    assert equal == 100 if same else equal < 5


def test_flips_and_gains_have_their_odds(ramps):
    settings = Augmentation(
        **{**OFF, "flip_channels": True, "flip_sign": True, "scale": (0.25, 1.25)}
    )
    plain = StemDataset(ramps, RATE, 4, 1, examples_per_epoch=200)
    data = StemDataset(ramps, RATE, 4, 1, settings, examples_per_epoch=200)
    gains, swaps = [], 0
    for index in range(200):
        before, after = plain[index].src, data[index].src
        for old_CT, new_CT in zip(before, after, strict=True):
            straight, crossed = (
                (new_CT / o).flatten() for o in (old_CT, old_CT.flip(0))
            )
            is_swapped = float(crossed.std()) < float(straight.std())
            swaps += is_swapped
            gain = crossed if is_swapped else straight
            assert float(gain.std()) < 1e-5
            gains.append(float(gain.mean()))
    gains = np.array(gains)
    assert 0.4 < swaps / 600 < 0.6 and 0.4 < (gains < 0).mean() < 0.6
    sizes = np.abs(gains)
    assert 0.25 <= sizes.min() < 0.28 and 1.22 < sizes.max() <= 1.25
    assert abs(sizes.mean() - 0.75) < 0.05


def test_repitch_changes_some_segments_all_stems_alike(tmp_path):
    rate = 8000
    time = np.arange(6 * rate) / rate
    waves = [np.sin(2 * np.pi * hertz * time) for hertz in (400, 1000)]
    rows = [make_row(tmp_path, "tones", waves, rate)]

    def pitches(same: bool) -> np.ndarray:
        """Change in semitones of each stem of 60 examples."""
        settings = Augmentation(
            **{**OFF, "repitch_probability": 0.5, "repitch_same": same}
        )
        data = StemDataset(rows, rate, 2.0, 1.0, settings, examples_per_epoch=60)
        assert data.seconds_to_read == pytest.approx(2 / 0.88), "as in demucs"
        found = []
        for index in range(60):
            src = data[index].src
            assert src.shape == (2, 2, 2 * rate)
            peaks = torch.fft.rfft(src[:, 0] * torch.hann_window(2 * rate)).abs()
            hertz = peaks.argmax(-1).numpy() / 2
            found.append(12 * np.log2(hertz / np.array([400, 1000])))
        return np.array(found)

    together = pitches(same=True)
    assert np.abs(together - together.round()).max() < 0.1
    assert np.array_equal(together[:, 0].round(), together[:, 1].round())
    assert set(together[:, 0].round()) == {-2, -1, 0, 1, 2}
    # 0 also where the pitch stays and only the tempo changes: 0.5 + 0.5 / 5.
    assert 0.4 < (together[:, 0].round() == 0).mean() < 0.8
    apart = pitches(same=False)
    assert (apart[:, 0].round() != apart[:, 1].round()).mean() > 0.3


def test_tempo_moves_the_end_and_leaves_no_gap(tmp_path):
    rate = 8000
    rng = np.random.default_rng(0)
    rows = [make_row(tmp_path, "noise", [rng.standard_normal(6 * rate)], rate)]
    settings = Augmentation(
        **{**OFF, "repitch_probability": 1, "pitch_semitones": 0, "tempo_std": 50}
    )
    data = StemDataset(rows, rate, 4.0, 1.0, settings, examples_per_epoch=10)
    for index in range(10):
        tail = data[index].src[0, 0, -rate // 10 :]
        if "@0.0" in data[index].id:
            assert tail.std() > 0.5, "full to the end, however fast"


def test_levels_are_those_of_the_mixture_measured_once(ramps, tmp_path, caplog):
    rng = np.random.default_rng(1)
    waves = [0.1 + 0.2 * rng.standard_normal((25 * RATE, 2)) for _ in range(3)]
    row = make_row(tmp_path, "noise", waves, unused=(2,))
    index = tmp_path / "save" / "levels.csv"
    with caplog.at_level(logging.INFO):
        levels = measure_levels([row, *ramps], index)
    assert "levels.csv: measuring 4 levels" in caplog.text
    mono = sum(waves).mean(1)
    assert levels["noise"].mean == pytest.approx(mono.mean(), rel=1e-5)
    assert levels["noise"].std == pytest.approx(mono.std(ddof=1), rel=1e-5)
    whole = StemDataset([row], RATE, levels=levels)[0]
    assert whole.src.shape == (3, 2, 25 * RATE)
    expected = (torch.tensor(waves[0].T) - levels["noise"].mean) / levels["noise"].std
    assert torch.allclose(whole.src[0], expected.float(), atol=1e-4)

    caplog.clear()
    before = index.read_bytes()
    with caplog.at_level(logging.INFO):
        assert measure_levels([*ramps, row], index) == levels
    assert not caplog.text and index.read_bytes() == before
    soundfile.write(row.sources[0], 2 * waves[0], RATE, subtype="DOUBLE")
    assert measure_levels([row], index)["noise"].std > levels["noise"].std
    index.write_text("id,key\nbroken")
    assert measure_levels(ramps, index)["t0"] == levels["t0"]
    with pytest.raises(DataError, match="track 't1' has no level"):
        StemDataset(ramps, RATE, levels={"t0": levels["t0"]})


@pytest.mark.parametrize("correlation", [1.0, 0.0, -0.4, -0.9, -1.0])
def test_channels_that_cancel_have_a_level(tmp_path, correlation):
    """The deviation of the channels' mean, as in demucs, but half of all power."""
    left, other = 0.1 * np.random.default_rng(0).standard_normal((2, 20 * RATE))
    right = correlation * left + (1 - correlation**2) ** 0.5 * other
    wave = np.stack([left, right], 1)
    row = make_row(tmp_path, "x", [wave])
    level = measure_levels([row], tmp_path / "levels.csv")["x"]
    mono, whole = wave.mean(1).std(ddof=1), wave.std()
    expected = mono if correlation > -0.5 else whole / 2
    assert level.std == pytest.approx(expected, rel=1e-4)
    peak = float(StemDataset([row], RATE, 1.0, levels={"x": level})[0].src.abs().max())
    assert 2 < peak < 12
    # Separation uses the same level.
    song = torch.from_numpy(wave.T).float()[None]
    assert float(measure_songs(song.split(RATE, -1))[1]) == pytest.approx(level.std)


def test_tracks_too_quiet_to_be_normalised_are_left_out_and_named(tmp_path, caplog):
    loud = 0.1 * np.random.default_rng(0).standard_normal((2000, 2))
    rows = [
        make_row(tmp_path, "loud", [loud, loud]),
        make_row(tmp_path, "cancel", [loud, -loud]),
        with_mixture(make_row(tmp_path, "quiet", [loud]), 2e-5 * loud),
    ]
    levels = measure_levels(rows, tmp_path / "levels.csv")
    assert loud_enough(rows, levels) == rows[:1]
    assert "2 tracks are left out of training" in caplog.text
    assert (
        f"{rows[2].mixture} cannot be normalised: its mixture is at -1" in caplog.text
    )
    assert f"{Path(rows[1].sources[0]).parent} cannot be normalised" in caplog.text
    with pytest.raises(DataError, match="cannot be normalised"):
        loud_enough(rows[1:], levels)


def test_a_mixture_file_counts_for_the_level_and_for_whole_tracks(tmp_path):
    wave = np.tile([[0.01], [-0.01]], (1000, 2))
    row = make_row(tmp_path, "x", [wave + 0.1, wave + 0.2])
    row = with_mixture(row, wave + 0.4)
    assert measure_levels([row], tmp_path / "l.csv")["x"].mean == pytest.approx(0.4)
    data = StemDataset([row], RATE, check_sums=False)
    assert float(data[0].mix.mean()) == pytest.approx(0.4)
    training = StemDataset([row], RATE, segment_seconds=1)
    assert float(training[0].mix.mean()) == pytest.approx(0.3), "sum of the stems"


def with_mixture(row: Row, wave: np.ndarray, subtype: str = "FLOAT") -> Row:
    """The track with a mixture file."""
    mixture = Path(row.sources[0]).with_name("mixture.wav")
    soundfile.write(mixture, wave, RATE, subtype=subtype)
    return Row(**{**vars(row), "mixture": str(mixture)})


def test_a_mixture_file_that_is_not_the_sum_of_all_stems_is_noted(tmp_path):
    rng = np.random.default_rng(0)
    waves = [0.5 * rng.standard_normal((2000, 2)) for _ in range(3)]
    row = make_row(tmp_path, "x", waves)
    assert StemDataset([with_mixture(row, sum(waves))], RATE)[0].note == ""
    # 16 bits cannot hold what is over full scale.
    assert np.abs(sum(waves)).max() > 1.5
    clipped = with_mixture(row, sum(waves), "PCM_16")
    assert StemDataset([clipped], RATE)[0].note == ""
    wrong = with_mixture(row, sum(waves) + 0.01)
    note = StemDataset([wrong], RATE)[0].note
    assert "mixture.wav: is not the sum of its stems (off by 0.01 of" in note
    assert StemDataset([wrong], RATE, check_sums=False)[0].note == ""
    some = Row(**{**vars(with_mixture(row, sum(waves))), "sources": row.sources[:2]})
    example = StemDataset([some], RATE)[0]
    assert len(example.src) == 2 and not example.note, (
        "a part of the stems is asked for"
    )


@pytest.mark.parametrize("bad", [np.nan, -np.inf, 1e25, 150.0])
def test_no_signal_is_left_to_the_step_or_an_error_where_it_is_scored(tmp_path, bad):
    wave = 0.1 * np.random.default_rng(0).standard_normal((2000, 2))
    spoilt = wave.copy()
    spoilt[700, 1] = bad
    row = with_mixture(make_row(tmp_path, "x", [wave, spoilt]), wave)
    levels = {"x": Level(0.0, 1e-3)}  # a quiet track: 0.1 is 100 of these
    settings = Augmentation(**{**OFF, "repitch_probability": 1.0})
    example = StemDataset([row], RATE, 1.8, 1.0, settings, levels)[0]
    assert example.src[0].isfinite().all() and not example.src[1].isfinite().any()
    assert float(example.src[0].abs().max()) > 100
    with pytest.raises(AudioError, match="1.wav: h"):
        StemDataset([row], RATE)[0]
    with pytest.raises(DataError, match="1.wav: h.* repair or remove it"):
        measure_levels([replace(row, mixture="")], tmp_path / "levels.csv")


def test_a_constant_is_silence(tmp_path):
    wave = 0.1 * np.random.default_rng(0).standard_normal((2000, 2))
    dither = np.random.default_rng(1).integers(0, 2, (2000, 2)) / 2**15
    waves = [wave, 0 * wave + [0.3, -0.2] + dither, dither]
    row = make_row(tmp_path, "x", waves)
    for segment in (None, 1.0):
        src_SCT = StemDataset([row], RATE, segment)[0].src
        assert not src_SCT[1].any()
        assert src_SCT[0].any() and src_SCT[2].any(), "all else is as it was"


def test_faulty_audio_is_named(tmp_path):
    wave = np.zeros((2000, 2))
    wave[700, 1] = np.nan
    row = make_row(tmp_path, "bad", [wave])
    with pytest.raises(DataError, match="0.wav: holds NaN or Inf; repair or remove"):
        measure_levels([row], tmp_path / "levels.csv")
    os.truncate(row.sources[0], 8000)
    with pytest.raises(DataError, match="0.wav: is truncated or has changed"):
        measure_levels([row], tmp_path / "levels.csv")
    with pytest.raises(ValueError, match="0.wav: holds .* of the 2000 samples"):
        StemDataset([row], RATE)[0]
    silent = make_row(tmp_path, "silent", [np.zeros((2000, 2))])
    levels = measure_levels([silent], tmp_path / "levels.csv")
    example = StemDataset([silent], RATE, 1.0, levels=levels)[0]
    assert example.src.isfinite().all() and not example.src.any()


def test_short_long_mono_and_other_rates(tmp_path):
    time = np.arange(3000) / 2000
    tone = np.sin(2 * np.pi * 50 * time)
    waves = [np.stack([tone, 0.5 * tone], 1), tone, np.pad(tone, (0, 500))]
    row = make_row(tmp_path, "x", waves, rate=2000)
    assert row.frames == 3000
    whole = StemDataset([row], RATE)[0]
    assert whole.src.shape == (3, 2, 1500), "cut to the shortest and resampled"
    assert torch.equal(whole.src[1, 0], whole.src[1, 1]), "mono on both channels"
    expected = torch.sin(2 * torch.pi * 50 * torch.arange(1500) / RATE)
    assert (whole.src[:, 0] - expected)[:, 50:-50].abs().max() < 0.01
    padded = StemDataset([row], RATE, segment_seconds=2.0)
    assert len(padded) == 1 and padded[0].src.shape == (3, 2, 2000)
    assert not padded[0].src[..., 1500:].any()
    batch = collate_whole([(whole, True), (padded[0], True)])
    assert batch.mix.shape == (2, 2, 2000) and batch.length_B.tolist() == [1500, 2000]


@pytest.mark.parametrize(
    "settings",
    [
        {"remix_group": 0},
        {"repitch_probability": 1.1},
        {"shift_seconds": -1},
        {"tempo_limit": 100},
    ],
)
def test_settings_that_mean_nothing(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Augmentation(**settings)


@pytest.mark.shared
@pytest.mark.slow
def test_real_songs_with_label_noise(tmp_path):
    corpora = SHARED / "corpora"
    if not (corpora / "materialise.py").is_file():
        pytest.skip(f"{corpora} is absent: no real songs")
    command = [sys.executable, "materialise.py", "dev", str(tmp_path)]
    subprocess.run([*command, "--what", "labelnoise"], cwd=corpora, check=True)
    folder = tmp_path / "labelnoise"
    rows = read_manifest(prepare(folder, tmp_path / "save")["train"], 4, stems=True)
    levels = measure_levels(rows, tmp_path / "levels.csv")
    data = StemDataset(rows, 44100, 2.0, 1.0, Augmentation(), levels)
    for index in range(8):
        example = data[ExampleKey(1, index)]
        assert example.src.shape == (4, 2, 88200) and example.src.isfinite().all()
        assert set(example.origins) <= levels.keys()


def test_takes_of_the_same_stem_are_added(ramps):
    settings = Augmentation(**{**OFF, "takes": (0.5, 0.25)})
    data = StemDataset(ramps, RATE, 4, 1.5, settings, examples_per_epoch=80)
    plain = StemDataset(ramps, RATE, 4, 1.5, examples_per_epoch=80)
    counts, tracks = Counter(), Counter()
    for index in range(80):
        example = data[index]
        rest = example.src - plain[index].src
        assert torch.equal(example.mix, example.src.sum(0))
        for stem, rest_CT in enumerate(rest, start=1):
            more = round(float(rest_CT[0, 0]) / stem)
            counts[more] += 1
            if more == 1:
                found, track, start = read_off(rest_CT)
                assert found == stem and 0 <= start <= 6.001
                tracks[track] += 1
    # 3/8 get none, 1/2 get one, 1/8 both.
    assert 65 < counts[0] < 115 and 90 < counts[1] < 150 and 12 < counts[2] < 50
    assert min(tracks[k] for k in range(3)) > 20


def test_settings_of_one_stem_do_not_reach_another(ramps):
    def stems(per_stem: dict | None) -> Tensor:
        settings = Augmentation(**OFF, noise=0.5, per_stem=per_stem)
        names = ["a", "b", "c"]
        data = StemDataset(ramps, RATE, 4, 1.5, settings, sources=names)
        return torch.stack([data[index].src for index in range(15)])

    plain = stems(None)
    for number, name in enumerate("abc"):
        other = stems({name: {"reverse": 1.0, "noise": 0.0, "scale": [2.0, 2.0]}})
        for stem in range(3):
            assert torch.equal(plain[:, stem], other[:, stem]) == (stem != number)
    with pytest.raises(DataError, match="per_stem has 'd', expected a, b, c"):
        stems({"d": {}})


def noise_rows(folder: Path, count: int, rate: int = 8000) -> list[Row]:
    rng = np.random.default_rng(0)
    return [
        make_row(folder, f"t{k}", list(0.1 * rng.standard_normal((2, rate, 2))), rate)
        for k in range(count)
    ]


def test_mp3_of_the_mixture_leaves_the_targets(tmp_path):
    settings = Augmentation(**OFF, mixture_mp3=1.0)
    data = StemDataset(noise_rows(tmp_path, 1), 8000, 0.5, 0.25, settings)
    example = data[0]
    sum_CT = example.src.sum(0)
    assert torch.equal(example.src, StemDataset(data.rows, 8000, 0.5, 0.25)[0].src)
    error = (example.mix - sum_CT).square().mean() / sum_CT.square().mean()
    assert 1e-6 < float(error) < 0.5
    with pytest.raises(DataError, match="augmentation: mp3 at 1000 Hz needs"):
        StemDataset(data.rows, 1000, 0.5, 1.0, Augmentation(mp3=0.1))


def test_an_own_mixture_is_cut_and_changed_as_its_stems_are(tmp_path):
    rows = noise_rows(tmp_path, 2, RATE)
    mastered = []
    for row in rows:
        stems = [soundfile.read(path)[0] for path in row.sources]
        mastered.append(with_mixture(row, 0.5 * np.tanh(sum(stems))))
    settings = Augmentation(shift_seconds=0.2)  # and flips, gains, remix by default
    levels = {row.id: Level(0.01, 0.2) for row in rows}
    args = (RATE, 0.3, 0.1, settings, levels)
    data = StemDataset(mastered, *args, own_mixture=True)
    gains = set()
    for index in range(len(data)):
        example = data[ExampleKey(1, index)]
        assert len(set(example.origins)) == 1, "whole segments of one song"
        # Each stem lacks the mean, which the mixture lacks once.
        sign_and_gain = float((example.mix + example.src.sum(0)).std())
        gains.add(round(sign_and_gain, 4))
        own, total = example.mix, example.src.sum(0)
        similarity = torch.corrcoef(torch.stack([own.ravel(), total.ravel()]))[0, 1]
        assert similarity > 0.99 and not torch.allclose(own, total, atol=0.05)
    assert len(gains) > 3
    without = StemDataset(rows[:1] + mastered[1:], *args, own_mixture=True)
    sums = [torch.equal(e.mix, e.src.sum(0)) for e in (without[k] for k in range(9))]
    assert any(sums) and not all(sums), "where there is no mixture, the sum"
    for more, message in (
        ({"independent": True}, "own_mixture=True: independent would change stems"),
        ({"augmentation": Augmentation(eq=0.1, takes=(0.2,))}, "takes, eq would"),
        ({"rows": rows}, "no track has a mixture file"),
    ):
        given = {"rows": mastered, "segment_seconds": 0.3, **more}
        with pytest.raises(DataError, match=message):
            StemDataset(**given, own_mixture=True)


@pytest.fixture
def sparse(ramps, tmp_path) -> list[Row]:
    """Twenty tracks; only the last has the second stem."""
    lacking = [replace(ramps[0], id=f"n{k}") for k in range(19)]
    sources = (ramps[0].sources[0], "", ramps[0].sources[2])
    return [*(replace(row, sources=sources) for row in lacking), ramps[1]]


def test_a_stem_that_a_song_lacks_is_silence(sparse, tmp_path):
    levels = measure_levels(sparse, tmp_path / "l.csv")
    whole = StemDataset(sparse, RATE)[0]
    assert not whole.src[1].any() and torch.equal(whole.mix, whole.src.sum(0))
    assert levels["n0"].mean == pytest.approx(float(whole.mix.mean()), rel=1e-4)
    data = StemDataset(sparse, RATE, 4, 1.5, levels=levels)
    silent = [not data[index].src[1].any() for index in range(len(data))]
    assert sum(silent) == len(data) * 19 / 20
    none = [replace(row, sources=sparse[0].sources) for row in sparse]
    with pytest.raises(DataError, match="no track has a source_2 that may be used"):
        StemDataset(none, RATE, 4)


@pytest.mark.parametrize(
    ("independent", "balance", "share"),
    # A third of what is balanced goes to each stem; independent ones are always there.
    [(False, 0.0, 0.05), (False, 0.6, 0.22), (True, 0.0, 1.0)],
)
def test_examples_can_be_balanced_by_stem(sparse, independent, balance, share):
    settings = Augmentation(**{**OFF, "remix_group": 4})
    data, again = (
        StemDataset(
            sparse, RATE, 0.5, 1.5, settings, independent=independent,
            stem_balance=balance, examples_per_epoch=150,
        )
        for _ in range(2)
    )  # fmt: skip
    examples = [data[index] for index in range(150)]
    having = sum(bool(example.src[1].any()) for example in examples)
    assert abs(having - 150 * share) < 18
    assert torch.equal(again[149].src, examples[149].src)
