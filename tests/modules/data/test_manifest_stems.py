"""The two columns of stems in a manifest: channels and unused, read and refused."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from modules.data.manifest import Row, check_audio, read_manifest, write_manifest
from modules.runtime.errors import DataError

RATE, FRAMES = 8000, 400


@pytest.fixture
def row(tmp_path: Path) -> Row:
    """A stereo row of two stems, with its audio."""
    paths = [str(tmp_path / f"{name}.wav") for name in ("low", "high")]
    for path in paths:
        soundfile.write(path, np.ones((FRAMES, 2), np.int16), RATE)
    return Row("song", FRAMES / RATE, RATE, "", tuple(paths), channels=2, unused=(2,))


def test_a_row_of_stems_comes_back_as_it_was(tmp_path, row):
    path = write_manifest(tmp_path / "set.csv", [row])
    assert read_manifest(path, stems=True) == [row]


@pytest.mark.parametrize("cell", ["0", "3", "", "2.0", "-1", "stereo"])
def test_channels_are_one_or_two(tmp_path, row, cell):
    path = write_manifest(tmp_path / "set.csv", [row])
    path.write_text(path.read_text().replace(",2,2\n", f",{cell},2\n"))
    expected = f"set.csv, row 2: channels is '{cell}', expected 1 or 2"
    with pytest.raises(DataError, match=expected):
        read_manifest(path, stems=True)


@pytest.mark.parametrize("stems", [True, False])
def test_stereo_is_for_stems_and_mono_for_talkers(tmp_path, row, stems):
    mono = Row("talk", row.duration, RATE, row.sources[0], row.sources)
    path = write_manifest(tmp_path / "set.csv", [mono if stems else row])
    wanted = "1, expected stereo stems" if stems else "2, expected mono files"
    with pytest.raises(DataError, match=f"row 2: channels is {wanted}"):
        read_manifest(path, stems=stems, check=False)
    assert len(read_manifest(path, stems=not stems, check=False)) == 1


@pytest.mark.parametrize("unused", ["0", "3", "low", "1 3"])
def test_unused_names_sources_by_their_number(tmp_path, row, unused):
    path = write_manifest(tmp_path / "set.csv", [row])
    path.write_text(path.read_text().replace(",2,2\n", f",2,{unused}\n"))
    with pytest.raises(DataError, match=f"unused is '{unused}', .* sources, 1 to 2"):
        read_manifest(path, stems=True)


@pytest.mark.parametrize(
    ("frames", "channels", "fault"),
    [
        (FRAMES, 1, ""),
        (FRAMES + 9, 2, ""),
        (FRAMES, 3, "has 3 channels, expected stereo"),
        (FRAMES - 1, 2, "has 399 samples"),  # none is as long as the row says
    ],
)
def test_a_stem_may_be_mono_or_longer_and_nothing_else(row, frames, channels, fault):
    wave = np.ones((frames, channels), np.int16)
    for path in row.files if frames < FRAMES else row.sources[1:]:
        soundfile.write(path, wave, RATE)
    if not fault:
        check_audio([row])
        return
    with pytest.raises(DataError, match=f"row 'song': .*wav {fault}"):
        check_audio([row])
