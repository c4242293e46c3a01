"""The files of a set appear together, at one level, in any format."""

import numpy as np
import pytest
import soundfile

from modules.audio import sets
from modules.audio.sets import subtype_of, write_set
from modules.runtime.errors import DataError

RATE = 8000


def blocks(samples: int = 1000, level: float = 0.5):
    rng = np.random.default_rng(0)
    for _ in range(3):
        wave_Ct = rng.uniform(-level, level, (2, samples)).astype(np.float32)
        yield {"a": wave_Ct, "b": wave_Ct / 2}


def paths(folder, suffix="wav"):
    return {name: folder / "set" / f"{name}.{suffix}" for name in "ab"}


def test_float_keeps_every_sample(tmp_path):
    assert write_set(paths(tmp_path), blocks(level=3), RATE) == 0
    whole_CT = np.concatenate([block["a"] for block in blocks(level=3)], axis=1)
    read_TC, rate = soundfile.read(tmp_path / "set/a.wav", dtype="float32")
    assert rate == RATE
    np.testing.assert_array_equal(read_TC.T, whole_CT)


@pytest.mark.parametrize("write_frames", [1, 700, 2**16])
def test_one_factor_for_all_files(tmp_path, monkeypatch, write_frames):
    monkeypatch.setattr(sets, "WRITE_FRAMES", write_frames)
    size = 50 if write_frames == 1 else 1000
    where = paths(tmp_path, "flac")
    lowered = write_set(where, blocks(size, 4), RATE, "flac", "pcm24")
    a_TC, b_TC = (soundfile.read(path)[0] for path in where.values())
    assert len(a_TC) == 3 * size
    np.testing.assert_allclose(b_TC, a_TC / 2, atol=1e-6)
    assert np.abs(a_TC).max() == pytest.approx(1, abs=1e-4)
    largest = max(np.abs(block["a"]).max() for block in blocks(size, 4))
    assert lowered == pytest.approx(20 * np.log10(largest))


def test_within_full_scale_nothing_is_changed(tmp_path):
    assert write_set(paths(tmp_path), blocks(level=1), RATE, "wav", "pcm16") == 0
    read_TC, _ = soundfile.read(tmp_path / "set/a.wav", dtype="int16")
    whole_CT = np.concatenate([block["a"] for block in blocks(level=1)], axis=1)
    assert np.abs(read_TC.T - whole_CT * 2**15).max() <= 1


def test_a_stream_that_breaks_leaves_the_old_files(tmp_path):
    where = paths(tmp_path)
    write_set(where, blocks(), RATE)
    before = [path.read_bytes() for path in where.values()]

    def broken():
        yield from blocks()
        raise DataError("broken")

    for subtype in ("float", "pcm16"):
        with pytest.raises(DataError, match="broken"):
            write_set(where, broken(), RATE, "wav", subtype)
    assert [path.read_bytes() for path in where.values()] == before
    assert len(list((tmp_path / "set").iterdir())) == 2


def test_long_files_are_rf64(tmp_path):
    write_set(paths(tmp_path), blocks(), RATE, frames=2**31)
    assert (tmp_path / "set/a.wav").read_bytes()[:4] == b"RF64"
    assert soundfile.info(tmp_path / "set/a.wav").frames == 3000


def test_subtypes():
    assert subtype_of("wav", None) == "FLOAT" and subtype_of("flac", None) == "PCM_24"
    with pytest.raises(DataError, match="flac files are pcm24 or pcm16"):
        subtype_of("flac", "float")
    with pytest.raises(DataError, match="ogg files are vorbis"):
        subtype_of("ogg", "pcm16")


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "set").write_text("a file")
    with pytest.raises(OSError):
        write_set(paths(tmp_path), blocks(), RATE)
