"""Audio files come back as written, and a bad one is one line that names it."""

import re
import struct
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
import soundfile
import torch

from modules.audio.io import (
    named_waves,
    open_audio,
    parse_plain,
    read_audio,
    read_header,
    safe_name,
    write_audio,
)
from modules.audio.sets import write_set
from modules.runtime.errors import AudioError
from tests import ROOT

RATE = 8000


def test_a_wave_comes_back_bit_for_bit_even_beyond_full_scale(tmp_path):
    wave_T = 3 * torch.randn(1001, generator=torch.Generator().manual_seed(0))
    write_audio(tmp_path / "new" / "a.wav", wave_T, RATE)
    assert torch.equal(read_audio(tmp_path / "new" / "a.wav"), wave_T)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.wav"]


@pytest.mark.parametrize("kind", ["PCM_16", "PCM_24", "FLOAT", "flac"])
def test_full_scale_is_one_in_every_format(tmp_path, kind):
    wave = 0.5 * np.sin(np.arange(RATE) / 12)
    if kind == "flac":
        soundfile.write(tmp_path / "a.flac", wave, RATE)
        read_T = read_audio(tmp_path / "a.flac")
    else:
        soundfile.write(tmp_path / "a.wav", wave, RATE, subtype=kind)
        read_T = read_audio(tmp_path / "a.wav")
    assert np.abs(read_T.numpy() - wave).max() <= 2**-15


def test_a_crop_is_that_part_of_the_file(tmp_path):
    wave_T = torch.arange(100) / 100
    write_audio(tmp_path / "a.wav", wave_T, RATE)
    assert torch.equal(read_audio(tmp_path / "a.wav", 30, 20), wave_T[30:50])
    assert torch.equal(read_audio(tmp_path / "a.wav", 30), wave_T[30:])


@pytest.mark.parametrize("start, frames", [(90, 20), (100, None), (100, 1), (0, 0)])
def test_samples_that_are_not_there_are_an_error(tmp_path, start, frames):
    write_audio(tmp_path / "a.wav", torch.zeros(100), RATE)
    with pytest.raises(AudioError, match=r"a\.wav"):
        read_audio(tmp_path / "a.wav", start, frames)


def test_what_is_not_usable_is_named_in_one_line(tmp_path):
    stereo, slow, text = (tmp_path / name for name in ("s.wav", "r.wav", "t.wav"))
    soundfile.write(stereo, np.zeros((10, 2)), RATE)
    soundfile.write(slow, np.zeros(10), 11025)
    text.write_text("not audio")
    for path, reason in (
        (stereo, "2 channels"),
        (slow, "11025 Hz, expected 8000 Hz"),
        (text, "cannot be read as audio"),
        (tmp_path / "none.wav", "does not exist"),
    ):
        with pytest.raises(AudioError, match=reason) as error:
            read_audio(path, sample_rate=RATE)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("id_", ["a/../b", "..", "", "a b", "/etc/passwd", "ü\n"])
def test_an_id_becomes_one_harmless_file_name(tmp_path, id_):
    path = tmp_path / safe_name(id_)
    assert path.parent == tmp_path and path.resolve().parent == tmp_path.resolve()
    path.touch()
    assert [file.name for file in tmp_path.iterdir()] == [safe_name(id_)]


def test_every_wave_of_an_example_has_a_name():
    est_ST, target_ST = torch.ones(2, 5), torch.zeros(3, 5)
    waves = dict(named_waves(torch.full((5,), 2.0), est_ST, target_ST))
    assert list(waves) == [
        "mixture", "estimate_1", "estimate_2", "target_1", "target_2", "target_3"
    ]  # fmt: skip
    assert bool((waves["mixture"] == 2).all() and (waves["target_3"] == 0).all())


def is_direct(path) -> bool:
    """Whether a file is read without soundfile."""
    raw = path.read_bytes()
    return parse_plain(raw[:512], len(raw)) is not None


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
    parts = ((0, 1000), (0, 1), (1, 9), (3, 500), (999, 1), (990, 50), (0, None))
    with open_audio(path) as file:
        assert file.header == read_header(path) == (8000, channels, 1000)
        assert not file.fault and not file.note
        for dtype in ("float32", "float64"):
            expected, _ = soundfile.read(path, dtype=dtype, always_2d=True)
            for start, frames in parts:
                part = file.read(start, frames, dtype)
                assert part.dtype == dtype
                stop = None if frames is None else start + frames
                assert np.array_equal(part, expected[start:stop])


def test_chunks_before_the_samples_are_skipped(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.full(100, 0.25), 8000)
    raw = path.read_bytes()
    place = raw.index(b"data")
    odd = b"LIST" + struct.pack("<I", 5) + b"abcde\0"  # chunks are padded to even
    path.write_bytes(raw[:place] + odd + raw[place:])
    assert is_direct(path)
    with open_audio(path) as file:
        assert file.header.frames == 100 and (file.read(0, 100) == 0.25).all()


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
        with pytest.raises(AudioError, match="a.wav: cannot be read as audio"):
            open_audio(path)
    else:
        with open_audio(path) as file:
            assert file.header.frames == expected


def test_missing_file_and_positions_outside(tmp_path):
    with pytest.raises(AudioError, match="absent.wav: does not exist"):
        open_audio(tmp_path / "absent.wav")
    with pytest.raises(AudioError, match="cannot be read as audio .Is a directory"):
        open_audio(tmp_path)
    soundfile.write(tmp_path / "a.wav", np.full(100, 0.25), 8000)
    with open_audio(tmp_path / "a.wav") as file:
        assert len(file.read(101, 5)) == len(file.read(-1, 5)) == 0


@pytest.mark.parametrize("form", ["WAV", "RF64", "W64", "AIFF", "AU", "FLAC", "MP3"])
def test_a_truncated_file_says_how_much_is_missing(tmp_path, form):
    path = tmp_path / "a.wav"
    wave = np.random.default_rng(0).normal(0, 0.1, 20000)
    soundfile.write(path, wave, RATE, format=form)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with open_audio(path) as file:
        found = re.fullmatch(r"is truncated: holds (\d+) of (\d+) samples", file.fault)
        assert found and file.header.frames == int(found[1]) < 12000
        assert int(found[2]) == pytest.approx(20000, rel=0.01)
        # What is said to be there can be read.
        read = file.read(0, file.header.frames)
        assert len(read) == file.header.frames
    with pytest.raises(AudioError, match="a.wav is truncated: holds"):
        read_header(path)


@pytest.mark.parametrize(("missing", "is_fault"), [(70, False), (90, True)])
def test_a_header_may_claim_ten_milliseconds_too_much(tmp_path, missing, is_fault):
    path = tmp_path / "a.wav"
    for form in ("WAV", "FLAC"):
        soundfile.write(path, np.full(8000 - missing, 0.25), RATE, format=form)
        raw = bytearray(path.read_bytes())
        if form == "FLAC":
            raw[22:26] = struct.pack(">I", 8000)
        else:
            struct.pack_into("<I", raw, raw.index(b"data") + 4, 16000)
        path.write_bytes(raw)
        with open_audio(path) as file:
            assert file.header.frames == len(file.read()) == 8000 - missing
            assert bool(file.fault) == is_fault
            assert is_fault or file.note == (
                "holds 7930 of the 8000 samples that its header claims"
            )


def without_length(path) -> None:
    """Make a FLAC file what an encoder leaves that writes into a pipe."""
    raw = path.read_bytes()
    path.write_bytes(raw[:21] + bytes([raw[21] & 0xF0]) + bytes(4) + raw[26:])


def test_a_flac_file_of_unknown_length_is_read_and_counted_once(tmp_path, monkeypatch):
    path = tmp_path / "a.flac"
    wave = np.random.default_rng(0).integers(-9000, 9000, (50000, 2)).astype(np.int16)
    soundfile.write(path, wave, RATE)
    without_length(path)
    assert soundfile.info(path).frames > 2**40
    assert read_header(path) == (RATE, 2, 50000)
    # The second opening does not read the file again.
    monkeypatch.setattr("modules.audio.io.COUNTED_FRAMES", None)
    with open_audio(path) as file:
        assert not file.fault and not file.note
        for start, frames in ((0, None), (49990, 20), (100, 5), (50000, 1), (60000, 1)):
            stop = None if frames is None else start + frames
            expected = wave[start:stop] / 2**15
            assert np.array_equal(file.read(start, frames), expected)


def test_a_header_of_no_samples_with_samples_behind_it_says_that(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.full(8000, 0.25), RATE)
    raw = bytearray(path.read_bytes())
    struct.pack_into("<I", raw, raw.index(b"data") + 4, 0)
    path.write_bytes(raw)
    message = "a.wav has 0 samples by its header, but 16044 bytes: repair it"
    with pytest.raises(AudioError, match=message):
        read_header(path)


def test_a_link_to_nowhere_says_where(tmp_path):
    (tmp_path / "a.wav").symlink_to(tmp_path / "gone.wav")
    message = "a.wav: is a link to .*/gone.wav, which does not exist"
    for read in (open_audio, read_header):
        with pytest.raises(AudioError, match=message):
            read(tmp_path / "a.wav")


def test_files_are_opened_and_written_without_torch(tmp_path):
    code = (
        "import sys, numpy; from modules.audio.io import read_header, write_wave; "
        f"write_wave(sys.argv[1], numpy.zeros(5), {RATE}); "
        "assert read_header(sys.argv[1]).frames == 5; assert 'torch' not in sys.modules"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a.wav")]
    subprocess.run(command, cwd=ROOT, check=True)


def test_two_ids_never_share_a_name():
    ids = ["Ä", "Ö", "a b", "a_b", "a/b", "caf\udce9", "caf_", "Z" * 300, "Z" * 301]
    ids += [unicodedata.normalize(form, "Zoë") for form in ("NFC", "NFD")]
    names = [safe_name(id_) for id_ in ids]
    assert len(set(names)) == len(ids)
    assert len({unicodedata.normalize("NFC", name).casefold() for name in names}) == (
        len(ids)
    ), "nor on a disk that folds case and form"
    for name in names:
        assert "/" not in name and 0 < len(name.encode()) < 230
    assert safe_name("Zoë - (a) & b, c") == "Zoë - (a) & b, c"


@pytest.mark.parametrize("form", ["WAV", "FLAC"])
def test_a_name_of_any_bytes_can_be_read_and_written(tmp_path, form):
    path = tmp_path / f"caf\udce9.{form.lower()}"
    wave = np.round(np.random.default_rng(0).normal(0, 3000, (1, 500))) / 2**15
    write_set({"a": path}, [{"a": wave}], RATE, format=form.lower(), subtype="pcm16")
    assert read_header(path) == (RATE, 1, 500)
    with open_audio(path) as file:
        np.testing.assert_allclose(file.read()[:, 0], wave[0], atol=1e-4)
