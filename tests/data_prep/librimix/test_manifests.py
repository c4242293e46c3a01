"""LibriMix's folders to manifests: which files a task takes, and what is refused."""

import shutil

import numpy as np
import pytest
import soundfile

from data_prep.librimix.__main__ import main
from data_prep.librimix.manifests import prepare
from modules.data.manifest import read_manifest
from modules.runtime.errors import DataError

NAMES = ("84-1-0001_174-2-0002_251-3-0003", "19-1-0000_26-2-0001_27-3-0002")
RATE = 8000


def make(root, num_spks=2, sets=("train-100", "dev", "test"), version="wav8k/min"):
    """Mixtures of random numbers, exact sums, in LibriMix's layout."""
    rng = np.random.default_rng(0)
    for place in (root / version / name for name in sets):
        for frames, name in enumerate(NAMES, start=400):
            name = "_".join(name.split("_")[:num_spks])
            src_ST = rng.integers(-4000, 4000, (num_spks, frames)).astype(np.int16)
            noise_T = rng.integers(-4000, 4000, frames).astype(np.int16)
            waves = {f"s{k + 1}": wave_T for k, wave_T in enumerate(src_ST)}
            waves |= {
                "noise": noise_T,
                "mix_clean": src_ST.sum(0, dtype=np.int16),
                "mix_both": src_ST.sum(0, dtype=np.int16) + noise_T,
                "mix_single": src_ST[0] + noise_T,
            }
            for part, wave_T in waves.items():
                (place / part).mkdir(parents=True, exist_ok=True)
                rate = 1000 * int(version[3 : version.index("k")])
                soundfile.write(place / part / f"{name}.wav", wave_T, rate)
    return root


@pytest.mark.parametrize("num_spks", [2, 3])
@pytest.mark.parametrize("task", ["mix_clean", "mix_both", "mix_single"])
def test_every_mixture_is_the_sum_of_what_its_row_names(tmp_path, num_spks, task):
    make(tmp_path / "set", num_spks)
    count = 1 if task == "mix_single" else num_spks
    manifests = prepare(tmp_path / "set", tmp_path / "out", count, task=task)
    assert list(manifests) == ["train", "valid", "test"]
    for name, path in zip(
        ("train-100", "dev", "test"), manifests.values(), strict=True
    ):
        rows = read_manifest(path, count, RATE)
        assert len(rows) == len(NAMES) and rows[0].id < rows[1].id
        for row in rows:
            assert f"/{name}/{task}/" in row.mixture
            assert bool(row.noise) == (task != "mix_clean")
            waves = [soundfile.read(file, dtype="int16")[0] for file in row.files]
            assert np.array_equal(waves[0], sum(waves[1:]))


@pytest.mark.parametrize("named", ["set", "Libri2Mix", "wham_Libri3Mix"])
def test_the_folder_is_found_by_looking(tmp_path, named):
    root = make(tmp_path / named)
    assert len(read_manifest(prepare(root, tmp_path / "out")["train"])) == 2


def test_the_parent_of_both_sets_will_do(tmp_path):
    make(tmp_path / "Libri2Mix"), make(tmp_path / "Libri3Mix", 3)
    for count in (2, 3):
        manifests = prepare(tmp_path, tmp_path / "out", count)
        assert f"/Libri{count}Mix/" in read_manifest(manifests["test"])[0].mixture
    with pytest.raises(DataError, match="found .*/Libri2Mix/.* and .*Libri3Mix/"):
        prepare(tmp_path, tmp_path / "out", 1, task="mix_single")


def test_rate_mode_and_training_set_are_chosen_or_asked_for(tmp_path):
    sets = ("train-100", "train-360", "dev", "test")
    root = make(tmp_path, sets=sets, version="wav16k/max")
    with pytest.raises(DataError, match="for wav8k/min/.*; generate it"):
        prepare(root, tmp_path / "out")
    with pytest.raises(DataError, match="train-100 and train-360; choose"):
        prepare(root, tmp_path / "out", 2, 16000, "max")
    for name in sets[:2]:
        manifests = prepare(root, tmp_path / "out", 2, 16000, "max", train_set=name)
        row = read_manifest(manifests["train"], 2, 16000)[0]
        assert f"/wav16k/max/{name}/mix_clean/" in row.mixture
    shutil.rmtree(root / "wav16k/max/train-100")
    prepare(root, tmp_path / "out", 2, 16000, "max")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "mean"}, "mode is 'mean', expected 'min' or"),
        ({"task": "clean"}, "task is 'clean', expected one of mix_clean, mix_both"),
        ({"train_set": "dev"}, "train_set is 'dev', expected train-100 or"),
        ({"task": "mix_single"}, "mix_single has 1 speakers; set --num_spks=1"),
        ({"num_spks": 1}, "more than 1 sources; set --num_spks=2"),
        ({"num_spks": 3}, "train-100/s3: does not exist"),
        ({"train_set": "train-360"}, "train-360: does not exist"),
    ],
)
def test_wrong_settings_are_one_clear_line(tmp_path, settings, message):
    root = make(tmp_path / "set")
    with pytest.raises(DataError, match=message) as error:
        prepare(root, tmp_path / "out", **settings)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_wrong_folders_are_named(tmp_path):
    with pytest.raises(DataError, match="nowhere does not exist"):
        prepare(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "music").mkdir()
    with pytest.raises(DataError, match="and in Libri2Mix/ for .*; it holds music"):
        prepare(tmp_path, tmp_path / "out")
    root = make(tmp_path / "three", 3)
    with pytest.raises(DataError, match="more than 2 sources; set --num_spks=3"):
        prepare(root, tmp_path / "out")
    shutil.rmtree(root / "wav8k/min/dev/noise")
    with pytest.raises(DataError, match="dev/noise: does not exist"):
        prepare(root, tmp_path / "out", 3, task="mix_both")


def test_bad_files_are_named_and_manifests_kept_while_nothing_changes(tmp_path):
    root, out = make(tmp_path / "set"), tmp_path / "out"
    first = prepare(root, out, task="mix_both")
    written = (out / "train.csv").stat().st_mtime_ns
    assert prepare(root, out, task="mix_both") == first
    assert (out / "train.csv").stat().st_mtime_ns == written
    prepare(root, out)  # another task of the same files is another manifest
    assert read_manifest(first["train"])[0].noise == ""
    bad = next((root / "wav8k/min/dev/noise").iterdir())
    soundfile.write(bad, np.ones(399, np.int16), RATE)
    with pytest.raises(DataError, match=f"noise/{bad.name} has 399 samples"):
        prepare(root, out, task="mix_both")
    bad.unlink()
    with pytest.raises(DataError, match=f"noise/{bad.name}: does not exist"):
        prepare(root, out, task="mix_both")


def test_command_line(tmp_path, capsys):
    root = make(tmp_path / "set")
    options = [f"--save_folder={tmp_path}/out", "--task=mix_both"]
    assert main([f"--data_folder={root}", *options]) == 0
    assert f"train: {tmp_path}/out/train.csv" in capsys.readouterr().out
    assert main([f"--data_folder={tmp_path}/no", *options]) == 1
    assert capsys.readouterr().err.count("\n") == 1
