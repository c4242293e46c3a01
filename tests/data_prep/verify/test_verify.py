"""Every fault is found, named by file, row and reason; a good set has none."""

import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data_prep.verify.__main__ import main
from data_prep.wsj0mix.manifests import prepare
from modules.data.manifest import Row, read_manifest, write_manifest
from modules.runtime.errors import DataError
from tests.toy import make_corpus

RATE = 8000


@pytest.fixture
def manifest(tmp_path):
    """Two mixtures that are exactly the sums of their sources and a noise."""
    rng = np.random.default_rng(1)
    rows = []
    for name in ("one", "two"):
        src = 0.2 * rng.standard_normal((3, 900))
        paths = [str(tmp_path / f"{name}_{p}.wav") for p in ("mix", "s1", "s2", "n")]
        for path, wave in zip(paths, [src.sum(0), *src], strict=True):
            soundfile.write(path, wave, RATE, subtype="FLOAT")
        row = Row(name, 900 / RATE, RATE, paths[0], tuple(paths[1:3]), paths[3])
        rows.append(row)
    return write_manifest(tmp_path / "set.csv", rows)


def change(wave, rate=RATE):
    """A function that replaces the samples of a file."""
    return lambda path: soundfile.write(
        path, wave(soundfile.read(path)[0]), rate, subtype="FLOAT"
    )


def put(value):
    """A function that puts one sample into a file."""
    return change(lambda wave: np.where(np.arange(len(wave)) == 5, value, wave))


FAULTS = [
    (os.unlink, "s1.wav: does not exist"),
    (lambda path: path.write_bytes(b""), "s1.wav: cannot be read as audio"),
    (lambda path: path.write_text("<html>"), "s1.wav: cannot be read as audio"),
    (lambda path: os.truncate(path, 2000), "s1.wav is truncated: holds "),
    (change(lambda wave: wave[:0]), "s1.wav is empty"),
    (put(np.nan), "s1.wav holds NaN or Inf"),
    (put(np.inf), "s1.wav holds NaN or Inf"),
    (put(1e25), "s1.wav has a peak of 1e+25 times full scale"),
    (change(lambda wave: np.clip(50 * wave, -1, 1)), "s1.wav is clipped: "),
    (change(np.zeros_like), "s1.wav is silent"),
    (change(lambda wave: wave, rate=2 * RATE), "s1.wav is at 16000 Hz, "),
    (change(lambda wave: np.stack([wave, wave], 1)), "s1.wav has 2 channels"),
    (change(lambda wave: wave[:-1]), "s1.wav has 899 samples, the row says 900"),
    (change(lambda wave: np.append(wave, 0.1)), "s1.wav has 901 samples"),
    (change(lambda wave: 0 * wave + 0.2), "s1.wav is silent: a constant (0.2)"),
    (change(lambda wave: 1e25 * wave), "s1.wav has a peak of "),
    (change(lambda wave: wave * 0.9), "mix.wav is not the sum of its sources"),
]


@pytest.mark.parametrize(("spoil", "message"), FAULTS)
def test_each_fault_of_a_manifest_is_listed(manifest, capsys, spoil, message):
    spoil(manifest.parent / "two_s1.wav")
    assert main([str(manifest)]) == 1
    *lines, last = capsys.readouterr().out.splitlines()
    assert last == f"{manifest}: 2 rows, 1 faults"
    (line,) = lines
    assert line.startswith(f"{manifest}, row 3 (two): {manifest.parent}/two_")
    assert message in line


def test_good_manifest_passes_and_the_noise_belongs_to_the_sum(manifest, capsys):
    assert main([str(manifest)]) == 0
    assert capsys.readouterr().out == f"{manifest}: 2 rows, 0 faults\n"
    change(lambda wave: wave * 0.9)(manifest.parent / "one_n.wav")
    assert main([str(manifest)]) == 1
    assert "one_mix.wav is not the sum of its sources and the noise" in (
        capsys.readouterr().out
    )


def test_images_are_what_is_summed_where_targets_are_others(manifest, capsys):
    (row, _), folder = read_manifest(manifest), manifest.parent
    images = []
    for path in row.sources:
        images.append(path.replace("one_", "image_"))
        os.rename(path, images[-1])
        wave = 0.1 * np.sin(np.arange(900))
        soundfile.write(path, wave, RATE, subtype="FLOAT")
    write_manifest(manifest, [replace(row, images=tuple(images))])
    assert main([str(manifest)]) == 0
    change(lambda wave: wave * 0.9)(folder / "image_s1.wav")
    assert main([str(manifest)]) == 1
    assert "is not the sum of its images and the noise" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".flac", ".wav"])
def test_a_short_file_beside_long_ones_is_one_fault(tmp_path, capsys, suffix):
    """At this rate a block has 1000 samples: the short file ends in the second."""
    rng = np.random.default_rng(3)
    src = 0.2 * rng.standard_normal((2, 3500))
    paths = [str(tmp_path / f"{name}{suffix}") for name in ("mix", "s1", "s2")]
    for path, wave in zip(paths, [src.sum(0), *src], strict=True):
        soundfile.write(path, wave[: 1500 if "s2" in path else 3500], 100)
    row = Row("x", 35.0, 100, paths[0], tuple(paths[1:]))
    assert main([str(write_manifest(tmp_path / "set.csv", [row]))]) == 1
    line, _ = capsys.readouterr().out.splitlines()
    assert f"s2{suffix} has 1500 samples, the row says 3500" in line


def test_rounding_to_16_bit_is_no_fault(manifest):
    for path in manifest.parent.glob("*.wav"):
        wave, _ = soundfile.read(path)
        soundfile.write(path, wave * 0.5, RATE, subtype="PCM_16")
    assert main([str(manifest)]) == 0


def test_the_tolerance_of_a_sum_grows_with_a_peak_over_full_scale(manifest):
    (row, _) = read_manifest(manifest)
    for factor, status in ((1.0, 1), (20.0, 0)):
        part = factor * np.sin(np.arange(900))
        for path in row.summands:
            soundfile.write(path, part, RATE, subtype="FLOAT")
        mixture = len(row.summands) * part + 0.005
        soundfile.write(row.mixture, mixture, RATE, subtype="FLOAT")
        only = write_manifest(manifest, [row])
        assert main([str(only)]) == status


def test_every_bad_row_is_listed_and_the_good_ones_are_read(manifest, capsys):
    change(np.zeros_like)(manifest.parent / "two_s1.wav")
    good, text = manifest.read_text().splitlines()[1], manifest.read_text()
    bad = [good, "a,b", good.replace("0.1125", "long").replace("one,", "three,")]
    manifest.write_text(text + "\n".join(bad) + "\n")
    assert main([str(manifest)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert f"{manifest}, row 4: id 'one' is already that of row 2" in lines
    assert lines[1].startswith(f"{manifest}, row 5: has 2 fields")
    assert lines[2].startswith(f"{manifest}, row 6: duration is 'long'")
    assert "row 3 (two)" in lines[3] and "is silent" in lines[3]
    assert lines[4] == f"{manifest}: 2 rows, 4 faults"


def test_bad_manifest_and_no_argument(tmp_path, capsys):
    assert main([str(tmp_path / "none.csv")]) == 1
    assert "no such manifest" in capsys.readouterr().out
    with pytest.raises(SystemExit) as error:
        main([])
    assert error.value.code == 2


@pytest.mark.parametrize("num_spks", [2, 3])
def test_good_folder_passes_whoever_is_named(tmp_path, capsys, num_spks):
    root = make_corpus(tmp_path, num_spks=num_spks)
    make_corpus(tmp_path, num_spks=num_spks, rate=16000)
    for path in (root, tmp_path):
        assert main([str(path)]) == 0
        assert capsys.readouterr().out == f"{path} (wsj0mix): 22 mixtures, 0 faults\n"


@pytest.mark.parametrize(
    ("guide", "spoil", "message"),
    [(False, *fault) for fault in FAULTS] + [(True, *fault) for fault in FAULTS[::5]],
)
def test_each_fault_of_a_folder_is_listed(tmp_path, capsys, guide, spoil, message):
    root = make_corpus(tmp_path, (1, 1, 1))
    if guide:
        names = {"tr": "train", "cv": "val", "tt": "test"}
        for old, new in names.items():
            (root / "wav8k" / "min" / old).rename(root / new)
    path = sorted(root.rglob("s1/*.wav"))[-1]
    shutil.copy(path, path.with_name("s1.wav"))
    for part in ("mix", "s2"):
        other = path.parents[1] / part
        (other / path.name).rename(other / "s1.wav")
    path.unlink()
    spoil(path.with_name("s1.wav"))
    assert main([str(root)]) == 1
    *lines, last = capsys.readouterr().out.splitlines()
    assert last == f"{root} (wsj0mix): 3 mixtures, 1 faults"
    (line,) = lines
    place = "val" if guide else "wav8k/min/tt"
    assert line.startswith(f"{place}/mix/s1: {root}/{place}/")
    reason = message.removeprefix("s1.wav ").removeprefix("mix.wav ")
    if "samples" not in reason:  # this mixture is longer, and it says so
        assert reason in line
    else:
        assert re.search(r"has (3999|4001) samples, its mixture has 4000$", line)


def spare(root):
    """Remove the mixture of a source."""
    sorted(root.rglob("tr/mix/*.wav"))[0].unlink()


FOLDERS = [
    lambda root: shutil.rmtree(root / "wav8k/min/tt/s2"),
    lambda root: shutil.rmtree(root / "wav8k/min/cv"),
    lambda root: shutil.rmtree(root / "wav8k/min/tr/mix"),
    lambda root: sorted(root.rglob("cv/s1/*.wav"))[0].unlink(),
    lambda root: os.truncate(sorted(root.rglob("cv/mix/*.wav"))[0], 10),
    lambda root: change(lambda wave: wave[:-1])(sorted(root.rglob("cv/s2/*.wav"))[0]),
    lambda root: change(lambda wave: wave, 9000)(sorted(root.rglob("cv/s2/*.wav"))[0]),
    lambda root: change(lambda w: np.stack([w, w], 1))(
        sorted(root.rglob("cv/mix/*.wav"))[0]
    ),
    lambda root: sorted(root.rglob("cv/s1/*.wav"))[0].with_suffix(".flac").touch(),
]


@pytest.mark.parametrize("spoil", FOLDERS)
def test_what_preparing_refuses_is_a_fault_in_the_same_words(tmp_path, capsys, spoil):
    root = make_corpus(tmp_path, (2, 2, 2))
    spoil(root)
    with pytest.raises(DataError) as refused:
        prepare(root, tmp_path / "save")
    reason = re.sub(r"^mixture \S+: | \(and \d+ more\)", "", str(refused.value))
    assert main([str(root)]) == 1
    output = capsys.readouterr()
    assert reason in output.out + output.err


def test_what_preparing_leaves_out_is_a_note_in_the_same_words(
    tmp_path, capsys, caplog
):
    root = make_corpus(tmp_path, (3, 1, 1))
    for _ in range(2):
        spare(root)
    assert len(read_manifest(prepare(root, tmp_path / "save")["train"])) == 1
    left_out = [m for m in caplog.messages if "is left out: no mix has its name" in m]
    assert len(left_out) == 4  # two sources of two mixtures
    assert main([str(root)]) == 0
    *notes, last = capsys.readouterr().out.splitlines()
    assert last.endswith("3 mixtures, 0 faults")
    assert notes == [f"note: folder: {text}" for text in left_out]


def test_the_test_in_the_training_set_is_noted(tmp_path, capsys):
    root = make_corpus(tmp_path, (2, 1, 1))
    (name,) = (path.name for path in root.rglob("tt/mix/*.wav"))
    for part in ("mix", "s1", "s2"):
        tt = root / "wav8k" / "min" / "tt" / part / name
        shutil.copy(tt, tt.parents[2] / "tr" / part / name)
    assert main([str(root)]) == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if "note" in line]
    assert f"note: test: 1 mixtures are in the training set: {Path(name).stem}" in notes
    speakers = ", ".join(sorted({part[:3] for part in Path(name).stem.split("_")[::2]}))
    assert f"note: test: 2 talkers are in the training set: {speakers}" in notes
    manifests = prepare(root, tmp_path / "save")
    assert main([manifests["train"], manifests["test"]]) == 0
    again = [line for line in capsys.readouterr().out.splitlines() if "note: " in line]
    assert again[:2] == notes[:2]


def test_a_folder_of_nothing_known(tmp_path, capsys):
    (tmp_path / "notes").mkdir()
    assert main([str(tmp_path)]) == 1
    assert "no mixtures of the layout" in capsys.readouterr().err
    assert main(["--layout=wsj0mix", str(tmp_path / "absent")]) == 1
    assert "absent does not exist" in capsys.readouterr().err


def test_workers_do_not_change_the_report(tmp_path, capsys):
    root = make_corpus(tmp_path, (6, 1, 1))
    for path in sorted(Path(root).rglob("tr/s1/*.wav"))[::2]:
        path.unlink()
    reports = []
    for workers in (1, 4):
        assert main([f"--workers={workers}", str(root)]) == 1
        reports.append(capsys.readouterr().out)
    assert reports[0] == reports[1] and reports[0].count("does not exist") == 3


def test_equal_samples_under_two_names_are_notes(manifest, capsys):
    folder = manifest.parent
    shutil.copy(folder / "one_s1.wav", folder / "two_s1.wav")
    first, second = (soundfile.read(folder / f"two_{s}.wav")[0] for s in ("s1", "s2"))
    noise = soundfile.read(folder / "two_n.wav")[0]
    mix = first + second + noise
    soundfile.write(folder / "two_mix.wav", mix, RATE, subtype="FLOAT")
    assert main([str(manifest)]) == 0
    last, note = capsys.readouterr().out.splitlines()
    assert last == f"{manifest}: 2 rows, 0 faults"
    wanted = f"/one: {folder}/one_s1.wav holds the samples of {folder}/two_s1.wav"
    assert note.startswith("note: ") and note.endswith(wanted)


def test_sources_that_equal_each_other_are_a_note(manifest, capsys):
    folder = manifest.parent
    shutil.copy(folder / "one_s1.wav", folder / "one_s2.wav")
    source, noise = (soundfile.read(folder / f"one_{p}.wav")[0] for p in ("s1", "n"))
    soundfile.write(folder / "one_mix.wav", 2 * source + noise, RATE, subtype="FLOAT")
    assert main([str(manifest)]) == 0
    note, _ = capsys.readouterr().out.splitlines()
    assert note.startswith("note: ") and "one_s2.wav holds the samples of" in note


def test_versions_of_a_data_set_may_share_samples(tmp_path, capsys):
    """The noise of one mixture is the same in all tasks; silence is no content."""
    rng = np.random.default_rng(0)
    for split in ("tr", "cv", "tt"):
        wave = np.round(rng.normal(0, 3000, (2, 900))) / 2**15
        for mode in ("min", "max"):
            for part, x in (("mix", wave.sum(0)), ("s1", wave[0]), ("s2", wave[1])):
                path = tmp_path / "wav8k" / mode / split / part / "x.wav"
                path.parent.mkdir(parents=True)
                soundfile.write(path, x, RATE)
    assert main([str(tmp_path)]) == 0
    assert "note" not in capsys.readouterr().out
    # A mixture of the test set in the training set is another matter.
    for path in tmp_path.rglob("tt/*/*.wav"):
        shutil.copy(path, str(path).replace("/tt/", "/tr/"))
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("note: t") == 3
