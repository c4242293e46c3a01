"""The manifest refuses whatever training could stumble over, and names the place."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from modules.data.manifest import Row, check_audio, read_manifest, write_manifest
from modules.runtime.errors import DataError
from modules.runtime.files import write_text

RATE, FRAMES = 8000, 1234


@pytest.fixture
def rows(tmp_path):
    """Three rows of two sources each, with their audio."""
    rng = np.random.default_rng(0)
    made = []
    for name in ("b", "a", "c"):
        paths = [str(tmp_path / f"{name}-{part}.wav") for part in ("mix", "s1", "s2")]
        sources = rng.integers(-9000, 9000, (2, FRAMES)).astype(np.int16)
        for path, wave in zip(
            paths, [sources.sum(0, dtype=np.int16), *sources], strict=True
        ):
            soundfile.write(path, wave, RATE)
        made.append(Row(name, FRAMES / RATE, RATE, paths[0], tuple(paths[1:])))
    return made


@pytest.fixture
def manifest(tmp_path, rows):
    """A manifest of the rows."""
    return write_manifest(tmp_path / "set.csv", rows)


def test_round_trip_is_exact_and_sorted(manifest, rows):
    assert read_manifest(manifest) == sorted(rows, key=lambda row: row.id)


def test_duration_gives_back_the_number_of_samples():
    for rate in (8000, 16000, 44100):
        for frames in range(1, 3000, 7):
            assert Row("a", frames / rate, rate, "/m", ("/s",)).frames == frames


def test_image_columns_survive(tmp_path, rows):
    """Where the targets are not what is in the mixture, images say what is."""
    wet = [replace(row, images=row.sources[::-1], noise=row.mixture) for row in rows]
    path = write_manifest(tmp_path / "wet.csv", wet)
    read = read_manifest(path)
    assert [row.images for row in read] == [row.sources[::-1] for row in read]
    assert read[0].summands == (*read[0].images, read[0].noise)
    assert rows[0].summands == rows[0].sources
    assert len(read[0].files) == 6
    with pytest.raises(DataError, match="has 2 sources but 1 images"):
        write_manifest(path, [replace(row, images=row.sources[:1]) for row in rows])
    with pytest.raises(DataError, match="'b' has 2 sources but 2 images; 'a' has 0"):
        write_manifest(path, [wet[0], rows[1], rows[2]])
    text = path.read_text()
    path.write_text(text.replace("image_2", "image_9"))
    with pytest.raises(DataError, match="row 1: unknown column 'image_9'"):
        read_manifest(path)
    header, *lines = text.splitlines()
    cut = [line.rpartition(",")[0] for line in (header, *lines)]
    path.write_text("\n".join(cut))
    with pytest.raises(DataError, match="row 1: has images, but no column 'image_2'"):
        read_manifest(path)
    path.write_text("\n".join([header, f"{cut[1]},s2.wav", *lines[1:]]))
    with pytest.raises(DataError, match="row 2: image_2 is 's2.wav', expected an abs"):
        read_manifest(path)


def test_noise_column_survives(tmp_path, rows):
    noisy = [replace(row, noise=row.sources[0]) for row in rows]
    read = read_manifest(write_manifest(tmp_path / "noisy.csv", noisy))
    assert [row.noise for row in read] == [row.sources[0] for row in read]


@pytest.mark.parametrize("awkward", ["with space", "com,ma", 'quo"te', "$HOME", "ünï"])
def test_awkward_names_survive(tmp_path, rows, awkward):
    path = str(tmp_path / f"{awkward}.wav")
    os.rename(rows[0].mixture, path)
    row = replace(rows[0], id=awkward, mixture=path)
    assert read_manifest(write_manifest(tmp_path / "m.csv", [row])) == [row]


def test_bom_crlf_blank_lines_and_column_order_are_accepted(tmp_path, manifest, rows):
    lines = [line.split(",") for line in manifest.read_text().splitlines()]
    shuffled = [",".join(reversed(line)) for line in lines]
    path = tmp_path / "windows.csv"
    text = "\r\n".join([shuffled[0], "", *shuffled[1:], "", ""])
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_manifest(path) == read_manifest(manifest)


HEADER = "id,duration,sample_rate,mixture,noise,source_1,source_2\n"
GOOD = "x,1.0,8000,/m.wav,,/a.wav,/b.wav\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "row 1: column 'id' is missing"),
        (HEADER, "holds no rows"),
        ("ID" + HEADER[2:] + GOOD, "row 1: column 'id' is missing; the header must be"),
        (HEADER.replace("noise", "id") + GOOD, "row 1: column 'id' is there twice"),
        (HEADER.replace("source_2", "source_3") + GOOD, "column 'source_2' is missing"),
        (HEADER.replace("source_2", "s2") + GOOD, "row 1: unknown column 's2'"),
        (HEADER + GOOD + "y,1.0,8000\n", "row 3: has 3 fields, the header has 7"),
        (HEADER + GOOD[:-1] + ",extra\n", "row 2: has 8 fields"),
        (HEADER + GOOD + "\n" + GOOD, "row 4: id 'x' is already that of row 2"),
        (HEADER + GOOD.replace("x", "", 1), "row 2: id is empty"),
        (HEADER + GOOD.replace("1.0", "-1"), "row 2: duration is '-1'"),
        (HEADER + GOOD.replace("1.0", "nan"), "row 2: duration is 'nan'"),
        (HEADER + GOOD.replace("1.0", "1 s"), "row 2: duration is '1 s'"),
        (HEADER + GOOD.replace("8000", "8k"), "row 2: sample_rate is '8k'"),
        (HEADER + GOOD.replace("8000", "16000"), "16000 Hz, expected 8000 Hz; prepare"),
        (
            HEADER + GOOD.replace("/a.wav", "a.wav"),
            "row 2: source_1 is 'a.wav', expected",
        ),
        (HEADER + GOOD.replace("/b.wav", ""), "row 2: source_2 is ''"),
        (HEADER + GOOD.replace("/b.wav", '"/b'), "row 2: is not valid CSV"),
        (HEADER + GOOD.replace("x", "x\0", 1), "row 2: holds a zero byte"),
        (HEADER + GOOD, "row 2: /m.wav: does not exist"),
        (
            "id,duration,sample_rate,mixture,noise,source_1\n",
            "1 source columns, expected 2",
        ),
    ],
)
def test_bad_manifest_names_the_row_in_one_line(tmp_path, text, message):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(DataError) as error:
        read_manifest(path, num_sources=2, sample_rate=8000)
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_names_of_any_bytes_are_kept(tmp_path, rows):
    """As Python has them: a byte that is not UTF-8 is a surrogate."""
    folder = tmp_path / "caf\udce9"
    folder.mkdir()
    row = replace(rows[0], id="\udce9", mixture=str(folder / "x,\udce9.wav"))
    shutil.copy(rows[0].mixture, row.mixture)
    path = write_manifest(tmp_path / "set.csv", [row])
    assert b"caf\xe9/x,\xe9.wav" in path.read_bytes()
    assert read_manifest(path) == [row]
    os.unlink(row.mixture)
    message = "x,\udce9.wav: does not exist; its name is not UTF-8, as a table must be"
    with pytest.raises(DataError, match=message):
        read_manifest(path)


def test_missing_manifest(tmp_path):
    with pytest.raises(
        DataError, match="none.csv: no such manifest; run the data prep"
    ):
        read_manifest(tmp_path / "none.csv")


def _wave(frames=FRAMES, channels=1):
    return np.ones((frames, channels), np.int16)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: os.truncate(p, 44 + FRAMES), "is truncated: holds 617 of"),
        (lambda p: os.truncate(p, 0), "cannot be read as audio"),
        (lambda p: Path(p).write_text("<html>no</html>"), "cannot be read as audio"),
        (os.unlink, "does not exist"),
        (lambda p: soundfile.write(p, _wave(0), RATE), "is empty"),
        (lambda p: soundfile.write(p, _wave(FRAMES + 1), RATE), "has 1235 samples"),
        (lambda p: soundfile.write(p, _wave(FRAMES - 1), RATE), "has 1233 samples"),
        (
            lambda p: soundfile.write(p, _wave(), 16000),
            "at 16000 Hz, expected 8000",
        ),
        (lambda p: soundfile.write(p, _wave(channels=2), RATE), "has 2 channels"),
    ],
)
@pytest.mark.parametrize("part", [0, 2])
def test_bad_audio_names_row_and_file(manifest, rows, damage, message, part):
    path = rows[2].files[part]
    damage(path)
    with pytest.raises(DataError) as error:
        read_manifest(manifest)
    assert message in str(error.value)
    assert f"{manifest}, row 4: {path}" in str(error.value)
    assert "\n" not in str(error.value)
    assert len(read_manifest(manifest, check=False)) == 3


def test_first_fault_is_reported_and_the_others_are_counted(rows):
    for row in rows[1:]:
        os.unlink(row.mixture)
    with pytest.raises(DataError, match=r"row 'a': .*\(and 1 more\)"):
        check_audio(rows)


def test_write_refuses_what_read_would(tmp_path, rows):
    path = tmp_path / "out.csv"
    with pytest.raises(DataError, match="out.csv: no rows to write"):
        write_manifest(path, [])
    with pytest.raises(DataError, match="two rows have the id 'b'"):
        write_manifest(path, [rows[0], *rows])
    fewer = replace(rows[1], sources=rows[1].sources[:1])
    with pytest.raises(DataError, match="'a' has 1 sources but 'b' has 2"):
        write_manifest(path, [rows[0], fewer])
    assert list(tmp_path.glob("*.csv")) == []
    assert list(tmp_path.glob(".*")) == []


def test_interrupted_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = write_text(tmp_path / "file", "old")

    def die(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr("modules.runtime.files.os.replace", die)
    with pytest.raises(KeyboardInterrupt):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]
