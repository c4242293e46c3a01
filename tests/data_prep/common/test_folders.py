"""A first start opens each header once, and still sees a file that changes."""

import os
from pathlib import Path

import pytest
import soundfile

from data_prep.common.folders import list_rows
from data_prep.common.layout import Parts
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


class Entry:
    """A file in a listing; how often files were compared is counted."""

    compared = 0

    def __init__(self, folder, name):
        self.name, self.path = f"{name}.wav", f"{folder}/{name}.wav"

    __hash__ = object.__hash__

    def __eq__(self, other):
        Entry.compared += 1
        return self is other


def test_the_work_for_a_file_does_not_grow_with_their_number():
    parts = Parts(Path("mix"), (Path("s1"), Path("s2")))
    names = [f"{k:03d}" for k in range(300)]
    listing = {at: {n: Entry(at, n) for n in names} for at in parts.folders}
    listing[parts.sources[1]]["more"] = Entry("s2", "more")
    rows, spare = list_rows(parts, listing, 8000)
    assert len(rows) == 300
    assert spare == ["s2/more.wav is left out: no mix has its name"]
    assert Entry.compared < 1000  # each with each: 90 000
