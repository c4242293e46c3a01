"""Three layouts, one manifest; the layout is found by looking into the folder."""

import os
import shutil
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
import soundfile

from data_prep.verify.__main__ import main as verify
from data_prep.wsj0mix.manifests import prepare
from modules.data.manifest import read_manifest
from modules.runtime.errors import DataError

LAYOUTS = {
    "original": ("wav8k/min", ("tr", "cv", "tt"), "mix", "s"),
    "long names": ("", ("train", "valid", "test"), "mixture", "source"),
    "guide": ("", ("train", "val", "test"), "mix", "s"),
}
FRAMES = {"zeta": 500, "Alpha": 700, "mid": 600}


def make(root, layout, num_spks=2, rate=8000, mode="min"):
    """A data set of three mixtures a split in one of the layouts."""
    prefix, splits, mixture, source = LAYOUTS[layout]
    prefix = prefix and f"wav{rate // 1000}k/{mode}"
    rng = np.random.default_rng(0)
    for split in splits:
        for stem, frames in FRAMES.items():
            src = rng.integers(-5000, 5000, (num_spks, frames)).astype(np.int16)
            waves = {mixture: src.sum(0, dtype=np.int16)}
            waves |= {f"{source}{k + 1}": wave for k, wave in enumerate(src)}
            for part, wave in waves.items():
                folder = root / prefix / split / part
                folder.mkdir(parents=True, exist_ok=True)
                soundfile.write(folder / f"{stem}.wav", wave, rate)
    return root


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("num_spks", [2, 3])
@pytest.mark.parametrize("parent", [False, True])
def test_layouts(tmp_path, layout, num_spks, parent):
    root = make(tmp_path / f"{num_spks}speakers", layout, num_spks)
    given = tmp_path if parent else root
    manifests = prepare(given, tmp_path / "out", num_spks)
    assert list(manifests) == ["train", "valid", "test"]
    folders = dict(zip(manifests, LAYOUTS[layout][1], strict=True))
    for split, path in manifests.items():
        rows = read_manifest(path, num_spks, 8000)
        assert [row.id for row in rows] == ["Alpha", "mid", "zeta"]
        for row in rows:
            assert row.frames == FRAMES[row.id]
            assert all(f"/{folders[split]}/" in file for file in row.files)
            waves = [soundfile.read(file, dtype="int16")[0] for file in row.files]
            assert np.array_equal(waves[0], sum(waves[1:]))


@pytest.mark.parametrize(("rate", "mode"), [(16000, "min"), (8000, "max")])
def test_rate_and_mode_choose_the_folder(tmp_path, rate, mode):
    make(tmp_path / "set", "original")
    make(tmp_path / "set", "original", rate=rate, mode=mode)
    manifests = prepare(tmp_path / "set", tmp_path / "out", 2, rate, mode)
    rows = read_manifest(manifests["test"], 2, rate)
    assert all(f"/wav{rate // 1000}k/{mode}/tt/mix/" in row.mixture for row in rows)


def test_names_of_parent_folders_do_not_matter(tmp_path):
    root = make(tmp_path / "wham_whamr_processed_Libri2Mix" / "3speakers", "guide")
    assert len(read_manifest(prepare(root, tmp_path / "out")["train"])) == 3


def test_nothing_found_says_what_was_looked_for(tmp_path):
    (tmp_path / "music").mkdir()
    with pytest.raises(DataError) as error:
        prepare(tmp_path, tmp_path / "out", 3, 16000)
    message = str(error.value)
    for text in ("wav16k/min/{tr,cv,tt}/{mix,s1,s2,s3}", "3speakers/", "holds music"):
        assert text in message
    assert "\n" not in message


def test_wrong_folder_mode_or_number_of_speakers(tmp_path):
    with pytest.raises(DataError, match="nowhere does not exist"):
        prepare(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(DataError, match="mode is 'mean', expected 'min' or 'max'"):
        prepare(tmp_path, tmp_path / "out", mode="mean")
    root = make(tmp_path / "set", "guide", num_spks=3)
    with pytest.raises(DataError, match="more than 2 sources; set --num_spks=3"):
        prepare(root, tmp_path / "out", 2)
    make(tmp_path / "set" / "3speakers", "original", num_spks=3)
    with pytest.raises(DataError, match="point data_folder at one of them"):
        prepare(root, tmp_path / "out", 3)


@pytest.mark.parametrize("gone", ["val", "test/s2", "train/mix"])
def test_missing_folder_is_named(tmp_path, gone):
    root = make(tmp_path / "set", "guide")
    shutil.rmtree(root / gone)
    with pytest.raises(DataError, match=f"set/{gone}.* does not exist, but other"):
        prepare(root, tmp_path / "out")


def to_nowhere(path):
    """Replace a file by a link that leads to none."""
    path.unlink()
    path.symlink_to("nowhere.wav")


def replace_with(frames=FRAMES["mid"], rate=8000, channels=1):
    """A function that overwrites a file by ones."""
    wave = np.ones((frames, channels), np.int16)
    return lambda path: soundfile.write(path, wave, rate)


@pytest.mark.parametrize(
    ("part", "damage", "message"),
    [
        ("s2", os.unlink, "s2/mid.wav: does not exist"),
        ("s1", to_nowhere, "s1/mid.wav: is a link to"),
        ("s1", replace_with(frames=599), "s1/mid.wav has 599 samples"),
        ("s1", replace_with(frames=601), "s1/mid.wav has 601 samples"),
        ("s1", replace_with(rate=16000), "s1/mid.wav is at 16000 Hz"),
        ("s1", replace_with(channels=2), "s1/mid.wav has 2 channels"),
        ("mix", replace_with(channels=2), "mix/mid.wav has 2 channels"),
        (
            "mix",
            replace_with(rate=16000),
            "mid.wav is at 16000 Hz, expected 8000 Hz; resample",
        ),
        ("mix", replace_with(frames=0), "mix/mid.wav is empty"),
        ("mix", lambda path: os.truncate(path, 100), "mix/mid.wav is truncated"),
        (
            "mix",
            lambda path: os.truncate(path, 0),
            "mix/mid.wav: cannot be read as audio",
        ),
        ("mix", lambda path: path.with_suffix(".flac").touch(), "there is mid."),
    ],
)
def test_bad_file_is_named_and_no_manifest_is_left(tmp_path, part, damage, message):
    root = make(tmp_path / "set", "guide")
    damage(root / "val" / part / "mid.wav")
    with pytest.raises(DataError) as error:
        prepare(root, tmp_path / "out")
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not list(tmp_path.glob("out/*.csv"))


def test_empty_split_is_an_error(tmp_path):
    root = make(tmp_path / "set", "guide")
    for stem in FRAMES:
        os.unlink(root / "test" / "mix" / f"{stem}.wav")
    with pytest.raises(DataError, match=r"test/mix: holds no .wav or .flac file"):
        prepare(root, tmp_path / "out")


def test_spare_sources_are_left_out_with_a_warning(tmp_path, caplog):
    root = make(tmp_path / "set", "guide")
    os.unlink(root / "train" / "mix" / "mid.wav")
    (root / "train" / "mix" / "._zeta.wav").write_text("left by a file manager")
    assert len(read_manifest(prepare(root, tmp_path / "out")["train"])) == 2
    for part in ("s1", "s2"):
        spare = root / "train" / part / "mid.wav"
        assert f"{spare} is left out: no mix has its name" in caplog.text


def test_manifests_are_reused_only_while_nothing_changes(tmp_path):
    root, out = make(tmp_path / "set", "guide"), tmp_path / "out"

    def written():
        prepare(root, out)
        return (out / "train.csv").stat().st_mtime_ns

    first = written()
    assert written() == first
    os.utime(root / "val" / "s1" / "mid.wav", ns=(0, 0))  # a file was replaced
    second = written()
    assert second != first
    os.unlink(root / "val" / "mix" / "mid.wav")  # a file went
    third = written()
    assert third != second
    assert len(read_manifest(out / "valid.csv")) == 2
    (out / "test.csv").write_text("cut off")  # a manifest was spoilt
    assert written() != third
    assert len(read_manifest(out / "test.csv")) == 3
    moved = root.rename(tmp_path / "moved")
    prepare(moved, out)
    assert str(moved) in read_manifest(out / "train.csv")[0].mixture


def test_command_line(tmp_path):
    make(tmp_path / "set", "guide")
    command = [
        sys.executable,
        "-m",
        "data_prep.wsj0mix",
        f"--save_folder={tmp_path}/out",
    ]
    good = subprocess.run(
        [*command, f"--data_folder={tmp_path}/set"], capture_output=True, text=True
    )
    assert good.returncode == 0 and f"train: {tmp_path}/out/train.csv" in good.stdout
    bad = subprocess.run(
        [*command, f"--data_folder={tmp_path}/no"], capture_output=True, text=True
    )
    assert bad.returncode == 1 and bad.stderr.count("\n") == 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_test_set_needs_no_other_folder(tmp_path, layout):
    root = make(tmp_path / "set", layout)
    prefix, splits, _, _ = LAYOUTS[layout]
    for split in splits[:2]:
        shutil.rmtree(root / prefix / split)
    manifests = prepare(root, tmp_path / "out", splits=["test"])
    assert list(manifests) == ["test"]
    assert len(read_manifest(manifests["test"], 2, 8000)) == 3
    with pytest.raises(DataError, match=f"{splits[0]}: does not exist"):
        prepare(root, tmp_path / "out")
    with pytest.raises(DataError, match=r"splits: \['tt'\], expected some of"):
        prepare(root, tmp_path / "out", splits=["tt"])


def test_the_test_set_of_another_folder(tmp_path):
    mine, other = (make(tmp_path / name, "guide") for name in ("mine", "other"))
    shutil.rmtree(other / "train")
    manifests = prepare(mine, tmp_path / "out", test_folder=other)
    assert list(manifests) == ["train", "valid", "test"]
    for split, root in (("train", mine), ("valid", mine), ("test", other)):
        assert str(root) in read_manifest(manifests[split])[0].mixture
    shutil.rmtree(mine)  # what a run does not read is not asked for
    alone = {"test_folder": other, "splits": ["test"]}
    assert list(prepare(mine, tmp_path / "out", **alone)) == ["test"]
    shutil.rmtree(other / "test" / "s2")
    with pytest.raises(DataError, match="other/test/s2: does not exist"):
        prepare(mine, tmp_path / "out", **alone)


def test_folders_and_files_are_found_whatever_their_case_and_form(tmp_path, capsys):
    """And verify looks as the preparation does: it accepts what that accepts."""
    root = make(tmp_path / "set", "guide")
    (root / "train").rename(root / "Train")
    (root / "val" / "s1").rename(root / "val" / "S1")
    for part, form in (("mix", "NFC"), ("S1", "NFD"), ("s2", "NFC")):
        name = unicodedata.normalize(form, "Zoë.wav")
        (root / "val" / part / "mid.wav").rename(root / "val" / part / name)
    manifests = prepare(root, tmp_path / "out")
    rows = {row.id: row for row in read_manifest(manifests["valid"], 2, 8000)}
    name = unicodedata.normalize("NFD", "Zoë.wav")
    assert rows["Zoë"].sources[0] == str(root / "val" / "S1" / name)
    assert verify([str(root)]) == 0
    assert capsys.readouterr().out.endswith("9 mixtures, 0 faults\n")


def test_a_split_that_is_missing_is_so_for_both(tmp_path, capsys):
    root = make(tmp_path / "set", "guide")
    shutil.rmtree(root / "test")
    with pytest.raises(DataError) as error:
        prepare(root, tmp_path / "out")
    assert verify([str(root)]) == 1
    place = str(root / "test")
    assert str(error.value).startswith(place) and f"{place}: does not" in (
        capsys.readouterr().out
    )
    prepare(root, tmp_path / "out", splits=["train", "valid"])
    assert verify([str(root), "--splits=train,valid"]) == 0
