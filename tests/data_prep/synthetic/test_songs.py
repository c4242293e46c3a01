"""Synthetic songs: the same each time, songs differ, and the noise is what is said."""

import csv

import numpy as np
import pytest
import soundfile

from data_prep.music.manifests import SOURCES
from data_prep.synthetic import songs as synthetic
from data_prep.synthetic.songs import TRUTH_COLUMNS, Parameters, prepare
from data_prep.verify.__main__ import main as check
from modules.data.manifest import read_manifest
from modules.runtime.errors import DataError

SETTINGS = {
    "sample_rate": 8000,
    "seconds": 3.0,
    "train_songs": 4,
    "valid_songs": 1,
    "test_songs": 1,
    "noise_probability": 0.4,
}


def generate(folder, **parameters):
    return synthetic.generate(folder, Parameters(**parameters))


@pytest.fixture(scope="module")
def songs(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("songs") / "a", **SETTINGS)


def read(path):
    return soundfile.read(path, dtype="int16")[0].astype(int)


def test_made_again_bit_for_bit(songs, tmp_path):
    again = generate(tmp_path / "b", **SETTINGS)
    files = sorted(path.relative_to(songs) for path in songs.rglob("*.*"))
    assert files == sorted(path.relative_to(again) for path in again.rglob("*.*"))
    assert len(files) == 1 + 6 * 5 + 4 * 4 + 1
    assert all((songs / f).read_bytes() == (again / f).read_bytes() for f in files)


def test_mixtures_are_sums_and_every_stem_sounds(songs, tmp_path, capsys):
    manifests = prepare(songs, tmp_path / "save", **SETTINGS)
    assert check(list(manifests.values())) == 0, capsys.readouterr().out
    rows = [r for m in manifests.values() for r in read_manifest(m, 4, stems=True)]
    assert len(rows) == 6
    sounds = {read(path).tobytes() for row in rows for path in row.sources}
    assert len(sounds) == 24, "no two stems are the same"
    for row in rows:
        assert soundfile.info(row.mixture).channels == 2
        assert row.duration == 3


def test_label_noise_moves_instruments_and_the_truth_tells(songs):
    with open(songs / "label_noise_truth.csv", newline="") as file:
        truth = list(csv.DictReader(file))
    assert tuple(truth[0]) == TRUTH_COLUMNS
    assert len(truth) == 16
    assert 0 < sum(row["is_clean"] == "1" for row in truth) < 16
    for row in truth:
        noisy = read(songs / "label_noise" / row["track"] / f"{row['stem']}.wav")
        clean = read(songs / "clean/train" / row["source_track"] / f"{row['stem']}.wav")
        is_clean = row["is_clean"] == "1"
        assert is_clean == np.array_equal(noisy, clean)
        assert is_clean == (not row["moved_in"] and not row["moved_out"])
        if not is_clean:
            sdr = 10 * np.log10((clean**2).sum() / ((noisy - clean) ** 2).sum())
            assert float(row["sdr_vs_true_stem_db"]) == pytest.approx(sdr, abs=0.006)
    for name in {(row["track"], row["source_track"]) for row in truth}:
        noisy, clean = (
            sum(read(folder / f"{source}.wav") for source in SOURCES)
            for folder in (
                songs / "label_noise" / name[0],
                songs / "clean" / "train" / name[1],
            )
        )
        assert np.array_equal(noisy, clean), "what left one stem is in another"


def test_noisy_songs_train_and_clean_ones_test(songs, tmp_path):
    manifests = prepare(songs, tmp_path / "save", label_noise=True, **SETTINGS)
    train, valid, test = (
        read_manifest(path, stems=True) for path in manifests.values()
    )
    assert (len(train), len(valid), len(test)) == (3, 1, 1)
    assert not train[0].mixture and test[0].mixture


def test_folders_and_parameters_that_will_not_do(songs, tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(DataError, match="was not made by data_prep.synthetic.songs"):
        generate(tmp_path, **SETTINGS)
    with pytest.raises(DataError, match="test_songs=0: at least 1"):
        generate(tmp_path / "new", test_songs=0)
    with pytest.raises(DataError, match="noise_probability=2: within 0, 1"):
        generate(tmp_path / "new", noise_probability=2)
    with pytest.raises(TypeError, match="tempo"):
        generate(tmp_path / "new", tempo=120)
