"""Whatever is read directly equals what soundfile reads."""

import struct

import numpy as np
import pytest
import soundfile

from modules.audio.wav import OpenFile, parse_header


def is_direct(path) -> bool:
    raw = path.read_bytes()
    return parse_header(raw[:512], len(raw)) is not None


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(
    ("form", "subtype", "direct"),
    [
        ("WAV", "PCM_16", True),
        ("WAV", "PCM_24", False),
        ("WAV", "FLOAT", False),
        ("WAVEX", "PCM_16", False),
        ("FLAC", "PCM_16", False),
        ("NIST", "PCM_16", False),
    ],
)
def test_parts_equal_those_of_soundfile(tmp_path, channels, form, subtype, direct):
    path = tmp_path / "a.wav"
    wave = np.random.default_rng(0).uniform(-1, 1, (1000, channels))
    wave[0], wave[1] = -1, 1
    soundfile.write(path, wave, 8000, format=form, subtype=subtype)
    assert is_direct(path) == direct
    expected, _ = soundfile.read(path, dtype="float32", always_2d=True)
    with OpenFile(path) as file:
        assert (file.samplerate, file.channels, file.frames) == (8000, channels, 1000)
        for start, frames in ((0, 1000), (0, 1), (3, 500), (999, 1), (990, 50)):
            part = file.read(start, frames)
            assert part.dtype == np.float32
            assert np.array_equal(part, expected[start : start + frames])


def test_chunks_before_the_samples_are_skipped(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.full(100, 0.25), 8000)
    raw = path.read_bytes()
    place = raw.index(b"data")
    odd = b"LIST" + struct.pack("<I", 5) + b"abcde\0"  # chunks are padded to even
    path.write_bytes(raw[:place] + odd + raw[place:])
    assert is_direct(path)
    with OpenFile(path) as file:
        assert file.frames == 100 and (file.read(0, 100) == 0.25).all()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda raw: raw[:-10],  # cut short: libsndfile says what there is
        lambda raw: b"RIFX" + raw[4:],
        lambda raw: raw.replace(b"data", b"junk"),
        lambda raw: raw[: raw.index(b"fmt ")] + raw[raw.index(b"data") :],
        lambda raw: raw[:20] + b"\3\0" + raw[22:],  # another coding
        lambda raw: raw[:30],
        lambda raw: b"",
    ],
)
def test_files_that_are_not_right_are_left_to_soundfile(tmp_path, spoil):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.full(100, 0.25), 8000)
    path.write_bytes(spoil(path.read_bytes()))
    assert not is_direct(path)
    try:
        expected = soundfile.info(path).frames
    except soundfile.LibsndfileError:
        with pytest.raises(soundfile.LibsndfileError):
            OpenFile(path)
    else:
        with OpenFile(path) as file:
            assert file.frames == expected


def test_missing_file_and_positions_outside(tmp_path):
    with pytest.raises(OSError, match="absent"):
        OpenFile(tmp_path / "absent.wav")
    soundfile.write(tmp_path / "a.wav", np.full(100, 0.25), 8000)
    with OpenFile(tmp_path / "a.wav") as file:
        assert len(file.read(101, 5)) == len(file.read(-1, 5)) == 0
