"""Files appear whole or not at all, and tensors come back as they were."""

import errno
import os

import pytest
import torch

from modules.audio.io import open_audio
from modules.runtime.errors import AudioError, DataError
from modules.runtime.files import (
    naming,
    one_line,
    open_file,
    write_text,
    write_whole,
)
from modules.runtime.tables import read_cells
from modules.runtime.tensors import first_mismatch, read_tensors, save_tensors


@pytest.mark.parametrize("sync", [True, False])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, sync):
    path = tmp_path / "folder" / "file"
    write_text(path, "old\r\n")
    with (
        pytest.raises(KeyboardInterrupt),
        write_whole(path, sync) as partial,
    ):
        partial.write_text("half of the n")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old\r\n"
    assert os.listdir(path.parent) == ["file"]
    with write_whole(path, sync) as partial:
        partial.write_text("new")
        assert path.read_bytes() == b"old\r\n"
    assert path.read_text() == "new"
    assert os.listdir(path.parent) == ["file"]


def test_a_pipe_is_refused_and_never_opened(tmp_path):
    """To open one waits for ever, where no signal is heard in a thread."""
    path = tmp_path / "a.wav"
    os.mkfifo(path)
    with pytest.raises(OSError, match="not an ordinary file") as error:
        open_file(path)
    assert error.value.filename == str(path)
    with pytest.raises(AudioError, match=r"a\.wav: cannot be read .*not an ordinary"):
        open_audio(path)
    with pytest.raises(DataError, match=r"a\.wav: cannot be read .*not an ordinary"):
        read_cells(path)


def test_an_error_without_a_name_gets_one(tmp_path):
    with pytest.raises(OSError) as error, naming(tmp_path):
        raise OSError(errno.ENOLCK, "No locks\x1b available")
    assert one_line(error.value) == f"{tmp_path}: No locks\\x1b available"


def test_the_error_of_a_full_disk_names_the_file(tmp_path):
    with (
        pytest.raises(OSError, match="No space left") as error,
        write_whole(tmp_path / "file"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert error.value.filename == str(tmp_path / "file")


def test_only_the_synced_file_is_flushed_to_the_disk(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(os, "fsync", flushed.append)
    for sync in (False, True):
        with write_whole(tmp_path / "file", sync) as partial:
            partial.write_text("")
        assert len(flushed) == sync


def test_tensors_come_back_and_whoever_reads_text_reads_them(tmp_path):
    weight = torch.arange(6.0).reshape(2, 3)
    state = {"a": weight, "shared": weight, "transposed": weight.T, "parameter": weight}
    state["parameter"] = torch.nn.Parameter(weight)
    save_tensors(tmp_path / "file.safetensors", state, {"key": "value"})
    found, metadata = read_tensors(tmp_path / "file.safetensors")
    assert metadata == {"key": "value"}
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    text = write_text(tmp_path / "text", "")
    mode = (tmp_path / "file.safetensors").stat().st_mode
    assert mode == text.stat().st_mode


def test_another_shape_is_named_before_what_is_absent():
    file, model = {"b": [1], "c": [2]}, {"a": [1], "b": [1], "c": [3]}
    found = first_mismatch(file, model)
    assert found.startswith("2 of 3 tensors differ, for instance c: [2] in the file, ")
    assert first_mismatch(model, model) is None
    assert "a: absent in the file, [1] in the model" in first_mismatch({}, {"a": [1]})
    assert "a: [1] in the file, absent in the model" in first_mismatch({"a": [1]}, {})
