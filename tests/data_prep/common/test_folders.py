"""A first start opens each header once, and still sees a file that changes."""

import os

import pytest
import soundfile

from data_prep.wsj0mix.manifests import prepare
from modules.audio import io
from modules.data.manifest import read_manifest
from modules.runtime.errors import DataError
from tests.toy import make_corpus


def test_each_header_is_opened_once_on_a_first_start(tmp_path, monkeypatch):
    root = make_corpus(tmp_path)
    opened = []

    class Counted(io.AudioFile):
        def __init__(self, path):
            opened.append(str(path))
            super().__init__(path)

    monkeypatch.setattr(io, "AudioFile", Counted)
    manifests = prepare(root, tmp_path / "out")
    rows = [row for path in manifests.values() for row in read_manifest(path, 2, 8000)]
    assert sorted(opened) == sorted(path for row in rows for path in row.files)
    opened.clear()
    prepare(root, tmp_path / "out")
    for path in manifests.values():
        read_manifest(path, 2, 8000)
    assert len(opened) == len(set(opened)) == sum(len(row.files) for row in rows)
    assert not [path for path in io._REMEMBERED if path.startswith(str(tmp_path))]


@pytest.mark.parametrize("same_size", [False, True])
def test_a_file_that_changes_after_preparing_is_opened_again(tmp_path, same_size):
    root = make_corpus(tmp_path)
    manifest = prepare(root, tmp_path / "out")["train"]
    path = next((root / "wav8k" / "min" / "tr" / "s1").iterdir())
    wave, _ = soundfile.read(path, dtype="int16")
    if same_size:
        soundfile.write(path, wave, 16000)
        os.utime(path, ns=(0, 0))
    else:
        soundfile.write(path, wave[:-1], 8000)
    with pytest.raises(DataError, match="is at 16000 Hz" if same_size else "samples"):
        read_manifest(manifest, 2, 8000)
