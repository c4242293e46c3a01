"""WHAMR!: what is heard is the sum of its parts, and the targets are what is asked."""

import csv
import shutil

import numpy as np
import pytest
import soundfile

from data_prep.wham import generate as wham
from data_prep.whamr import generate as whamr
from data_prep.whamr.__main__ import main
from data_prep.whamr.manifests import prepare
from data_prep.whamr.rooms import COLUMNS, RT60_RANGES, draw_room, read_rooms, table_of
from modules.audio.rooms import Room
from modules.data.batch import ExampleKey
from modules.data.manifest import read_manifest
from modules.data.mixtures import ManifestDataset
from modules.runtime.errors import DataError
from tests import SHARED
from tests.data_prep.wham.wham_audio import NAMES, make_noise, make_wsj0mix

VERSIONS = [(8000, "min"), (16000, "min"), (8000, "max"), (16000, "max")]
SUMS = {"mix_clean": ["s1", "s2"], "mix_single": ["s1"], "mix_both": ["s1", "s2"]}


@pytest.fixture(scope="module")
def dry(tmp_path_factory):
    root = tmp_path_factory.mktemp("sources")
    folders = make_wsj0mix(root / "wsj0mix"), make_noise(root / "noise")
    wham.generate(*folders, root / "wham", workers=1)
    return root / "wham"


@pytest.fixture(scope="module")
def made(dry, tmp_path_factory):
    out = tmp_path_factory.mktemp("whamr") / "set"
    assert whamr.generate(dry, out, workers=1) == 6
    return out


def read(root, rate, mode, part, name=NAMES[0]):
    path = root / f"wav{rate // 1000}k" / mode / "tt" / part / f"{name}.wav"
    wave_T, found = soundfile.read(path)
    assert found == rate and soundfile.info(path).subtype == "FLOAT"
    return wave_T


def contents(root):
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {path.relative_to(root): path.read_bytes() for path in files}


@pytest.mark.parametrize(("rate", "mode"), VERSIONS)
@pytest.mark.parametrize("kind", ["anechoic", "reverb"])
def test_mixtures_are_sums_of_their_parts(dry, made, rate, mode, kind):
    for name in NAMES:
        noise_T = read(made, rate, mode, "noise", name)
        assert (noise_T == read(dry, rate, mode, "noise", name)).all()
        for task, parts in SUMS.items():
            total_T = sum(read(made, rate, mode, f"{p}_{kind}", name) for p in parts)
            if task != "mix_clean":
                total_T = total_T + noise_T
            mixture_T = read(made, rate, mode, f"{task}_{kind}", name)
            assert np.abs(mixture_T - total_T).max() < 1e-6


@pytest.mark.parametrize(("rate", "mode"), VERSIONS)
def test_anechoic_is_the_dry_source_later_and_as_strong(dry, made, rate, mode):
    for part in ("s1", "s2"):
        dry_T = read(dry, rate, mode, part)
        wave_T = read(made, rate, mode, f"{part}_anechoic")
        assert len(wave_T) == len(dry_T)
        assert np.sum(wave_T**2) == pytest.approx(np.sum(dry_T**2), rel=1e-5)
        lags = np.fft.irfft(
            np.fft.rfft(wave_T, 2 * len(dry_T))
            * np.fft.rfft(dry_T, 2 * len(dry_T)).conj()
        )
        delay_seconds = lags[: rate // 10].argmax() / rate - 40 / 16000
        assert 0.58 / 343 - 1 / rate < delay_seconds < 2.3 / 343 + 1 / rate
        assert lags.max() > 0.9 * np.sum(dry_T**2)


def test_reverberation_follows_the_direct_path(made):
    for part in ("s1", "s2"):
        direct_T = read(made, 16000, "max", f"{part}_anechoic")
        heard_T = read(made, 16000, "max", f"{part}_reverb")
        # Before the first reflection both are the same; after the last word one is not.
        sounds = np.flatnonzero(np.abs(direct_T) > 0.05 * np.abs(direct_T).max())
        early = slice(0, sounds[0] + 10)
        difference_T = np.abs(heard_T - direct_T)
        assert difference_T[early].max() < 0.3 * np.abs(direct_T[early]).max()
        ended = sounds[-1] + 300
        assert np.abs(direct_T[ended:]).max() < 1e-6
        assert np.abs(heard_T[ended : ended + 800]).max() > 1e-4


def test_versions_agree(made):
    """8 kHz is the same room as 16 kHz, and min is the beginning of max's speech."""
    slow_T = read(made, 8000, "min", "s1_reverb")
    fast_T = read(made, 16000, "min", "s1_reverb")
    spectra = [
        np.abs(np.fft.rfft(w, 2**16)) for w in (fast_T[::2][: len(slow_T)], slow_T)
    ]
    below = slice(500, 2**14)
    similarity = np.corrcoef(spectra[0][below], spectra[1][below])[0, 1]
    assert similarity > 0.9


def test_workers_restart_and_other_settings(dry, made, tmp_path):
    out, options = tmp_path / "out", {"sample_rates": [8000], "modes": ["min"]}
    alone = tmp_path / "alone"
    whamr.generate(dry, out, **options, workers=2)
    (out / "wav8k/min/cv/s1_reverb" / f"{NAMES[1]}.wav").unlink()
    assert whamr.generate(dry, out, **options, workers=1) == 1
    whamr.generate(dry, alone, **options, workers=1)
    assert contents(out) == contents(alone)
    with pytest.raises(DataError, match="begun with rooms="):
        whamr.generate(dry, out, **options, seed=2)
    with pytest.raises(DataError, match="begun with sample_rates="):
        whamr.generate(dry, out, sample_rates=[16000], modes=["min"])


def test_written_rooms_make_the_same_set(dry, made, tmp_path):
    tables = tmp_path / "tables"
    shutil.copytree(made / "metadata", tables)
    whamr.generate(dry, tmp_path / "out", rooms=tables, seed=7, workers=1)
    assert contents(tmp_path / "out") == contents(made)


def test_a_set_without_its_table_is_drawn_and_said(dry, made, tmp_path, capsys):
    tables = tmp_path / "tables"
    shutil.copytree(made / "metadata", tables)
    (tables / "reverb_params_tr.csv").unlink()
    small = {"sample_rates": [8000], "modes": ["min"], "workers": 1}
    whamr.generate(dry, tmp_path / "out", rooms=tables, seed=5, **small)
    said = capsys.readouterr().out
    assert "tr: 2 rooms from seed 5" in said
    assert f"cv: 2 rooms from {tables}/reverb_params_cv.csv" in said
    with pytest.raises(DataError, match="holds no reverb_params_"):
        whamr.generate(dry, tmp_path / "none", rooms=tmp_path)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("T60", "0", "row 3: the room is impossible: T60 is 0.0 s"),
        ("s1_x", "99", "row 3: the room is impossible: its source 1 at .* is outside"),
        ("mic_z", "high", "row 3: could not convert string to float: 'high'"),
        ("utterance_id", "b.wav", "has no row for '03ca0103_0.2_04da0104_-0.2'"),
        ("room_x", None, "row 1: has no column 'room_x'"),
    ],
)
def test_bad_rooms_are_named(dry, made, tmp_path, column, value, message):
    tables = tmp_path / "tables"
    shutil.copytree(made / "metadata", tables)
    path = tables / "reverb_params_tt.csv"
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    rows[1][column] = value
    columns = [name for name in rows[0] if value is not None or name != column]
    with open(path, "w", newline="") as file:
        table = csv.DictWriter(file, columns, extrasaction="ignore")
        table.writeheader()
        table.writerows(rows)
    with pytest.raises(DataError, match=f"reverb_params_tt.csv.*{message}"):
        whamr.generate(dry, tmp_path / "out", rooms=tables)
    assert not (tmp_path / "out").exists()


@pytest.mark.shared
@pytest.mark.parametrize("split", ["cv", "tt"])
def test_public_files_are_read_and_written_back(tmp_path, split):
    folder = SHARED / "corpora/meta/whamr/whamr_scripts/data"
    path = folder / f"reverb_params_{split}.csv"
    if not path.is_file():
        pytest.skip(f"no {path}")
    names = [line.split(",")[0].removesuffix(".wav") for line in path.open()][1:]
    rooms = read_rooms(path, names)
    over_one = sum(placed.room.absorption > 1 for placed in rooms)
    assert (len(rooms), over_one) == {"cv": (5000, 0), "tt": (3000, 34)}[split]
    (tmp_path / "again.csv").write_text(table_of(rooms))
    assert read_rooms(tmp_path / "again.csv", names) == rooms
    assert path.open().readline().strip().split(",") == list(COLUMNS)
    # What is drawn is drawn alike: shares of T60 and of what it leads to.
    drawn = [draw_room(split, name, 0).room for name in names]
    for share in (0.1, 0.5, 0.9):
        times = [
            np.quantile([r.rt60 for r in rs], share)
            for rs in (drawn, [p.room for p in rooms])
        ]
        assert times[0] == pytest.approx(times[1], abs=0.03)


def test_drawn_rooms_keep_to_the_ranges():
    drawn = [draw_room(split, f"{n}", 0) for split in ("cv", "tt") for n in range(400)]
    for placed in drawn:
        room = placed.room
        assert room.fault() == ""
        assert all(5 <= side <= 10 for side in room.size[:2]) and 3 <= room.size[2] <= 4
        middle = (np.array(room.microphone) + placed.right)[:2] / 2
        assert np.abs(middle - np.array(room.size[:2]) / 2).max() <= 0.2 + 1e-9
        for source in room.sources:
            assert 0.66 <= np.linalg.norm(np.array(source[:2]) - middle) <= 2
            assert 0.9 <= source[2] <= 1.8
    times = np.array([placed.room.rt60 for placed in drawn])
    assert times[:400].min() >= 0.2 and times.max() <= 1.0
    assert np.median(times) == pytest.approx(0.54, abs=0.03)  # as in the public files
    assert 0.1 <= times[400:].min() < RT60_RANGES["medium"][0]
    assert isinstance(drawn[0].room, Room)


@pytest.mark.parametrize(
    ("mixture", "targets"),
    [("reverb", "anechoic"), ("reverb", "reverb"), ("anechoic", "anechoic")],
)
@pytest.mark.parametrize("task", SUMS)
def test_targets_are_the_same_in_every_split(made, tmp_path, task, mixture, targets):
    speakers = len(SUMS[task])
    manifests = prepare(
        *(made, tmp_path, speakers, 8000, "min", task, mixture, targets)
    )
    for split, folder in (("train", "tr"), ("valid", "cv"), ("test", "tt")):
        rows = read_manifest(manifests[split], speakers, 8000)
        assert [row.id for row in rows] == list(NAMES)
        for row in rows:
            assert f"/{folder}/{task}_{mixture}/" in row.mixture
            assert [path.split("/")[-2] for path in row.sources] == [
                f"{part}_{targets}" for part in SUMS[task]
            ]
            assert bool(row.images) == (mixture != targets)
            mixture_T, _ = soundfile.read(row.mixture)
            total_T = sum(soundfile.read(path)[0] for path in row.summands)
            assert np.abs(mixture_T - total_T).max() < 1e-6


def test_speed_changes_keep_the_reverberation(made, tmp_path):
    """The mixture is made again of reverberant images, never of anechoic targets."""
    manifests = prepare(made, tmp_path)
    rows = read_manifest(manifests["train"], 2, 8000)
    changed = ManifestDataset(rows, 8000, 0.5, speed_changes=[100])
    plain = ManifestDataset(rows, 8000, 0.5)
    for index in range(2):
        key = ExampleKey(0, index)
        row = rows[index]
        example, whole = changed[key], ManifestDataset(rows, 8000, None, [100])[key]
        mixture_T, _ = soundfile.read(row.mixture, dtype="float32")
        assert np.abs(whole.mix.numpy() - mixture_T).max() < 1e-6
        target_T, _ = soundfile.read(row.sources[0], dtype="float32")
        assert np.abs(whole.src[0].numpy() - target_T).max() < 1e-6
        assert example.mix.shape == plain[key].mix.shape
        slower = ManifestDataset(rows, 8000, 0.5, speed_changes=[95])[key]
        assert not np.allclose(
            (slower.src.sum(0) + slower.noise), slower.mix, atol=1e-3
        )


def test_wrong_arguments_of_prepare(made, dry, tmp_path):
    with pytest.raises(
        DataError, match="targets is 'dry', expected anechoic or reverb"
    ):
        prepare(made, tmp_path, targets="dry")
    with pytest.raises(DataError, match="nobody can hear that"):
        prepare(made, tmp_path, mixture="anechoic", targets="reverb")
    with pytest.raises(DataError, match="set --num_spks=1"):
        prepare(made, tmp_path, task="mix_single")
    with pytest.raises(DataError, match="mix_both_reverb: does not exist"):
        prepare(dry, tmp_path)
    assert not list(tmp_path.iterdir())


def test_generate_names_what_is_missing(dry, tmp_path):
    partial = tmp_path / "wham"
    shutil.copytree(dry, partial)
    shutil.rmtree(partial / "wav16k" / "max")
    with pytest.raises(DataError, match="wav16k/max/tr/s1: does not exist"):
        whamr.generate(partial, tmp_path / "out", sample_rates=[8000])
    (partial / "wav8k/min/tr/noise" / f"{NAMES[0]}.wav").unlink()
    with pytest.raises(DataError, match="tr/noise/.*: does not exist"):
        whamr.generate(*(partial, tmp_path / "out", None, [8000], ["min"]), workers=1)


def test_command_line(dry, tmp_path, capsys):
    versions = ["--sample_rates", "8000", "--modes", "min", "--workers=1"]
    out = f"--out={tmp_path}/set"
    assert main(["generate", f"--wham={dry}", out, *versions]) == 0
    folders = [f"--data_folder={tmp_path}/set", f"--save_folder={tmp_path}/manifests"]
    assert main([*folders, "--targets=reverb"]) == 0
    assert f"test: {tmp_path}/manifests/test.csv" in capsys.readouterr().out
    assert main([*folders, "--targets=dry"]) == 1
    assert capsys.readouterr().err.startswith("error: targets is 'dry'")
