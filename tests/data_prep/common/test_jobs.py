"""Files made in parallel: the same bits for any workers, whole or not there at all."""

import functools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data_prep.common.jobs import SETTINGS, claim_folder, make_all
from modules.audio.io import write_wave
from modules.runtime.cli import as_command
from modules.runtime.errors import DataError
from tests import ROOT

RATE = 8000


def make_noise(folder: Path, seed: int) -> None:
    if seed < 0:
        raise DataError(f"job {seed}: cannot be made")
    wave_T = np.random.default_rng(seed).uniform(-0.9, 0.9, 100)
    write_wave(folder / f"{seed}.wav", wave_T, RATE)


def make_set(folder: Path, seeds, workers: int) -> int:
    return make_all(
        functools.partial(make_noise, folder),
        seeds,
        outputs=lambda seed: [folder / f"{seed}.wav"],
        workers=workers,
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_workers_do_not_change_a_bit(tmp_path):
    assert make_set(tmp_path / "one", range(5), workers=1) == 5
    assert make_set(tmp_path / "two", range(5), workers=2) == 5
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_repeated_command_makes_only_what_is_missing(tmp_path):
    make_set(tmp_path, range(4), workers=1)
    before = contents(tmp_path)
    (tmp_path / "2.wav").unlink()
    (tmp_path / "1.wav").write_bytes(b"untouched")
    assert make_set(tmp_path, range(4), workers=1) == 1
    assert contents(tmp_path) == before | {"1.wav": b"untouched"}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_job_that_fails_is_named_and_leaves_no_half_file(tmp_path, workers):
    with pytest.raises(DataError, match="job -1: cannot be made"):
        make_set(tmp_path, [0, -1, 1], workers)
    assert not list(tmp_path.glob(".*"))


def note_worker(folder: Path, seed: int) -> None:
    make_noise(folder, seed)
    (folder / f"{os.getpid()}.pid").touch()
    time.sleep(0.1)


def make_slow_set(folder: Path) -> None:
    note = functools.partial(note_worker, folder)
    make_all(note, range(200), lambda seed: [folder / f"{seed}.wav"], workers=2)


def is_alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    # In a container nobody may collect an orphan that has ended: a zombie.
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def wait_for(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    code = (
        "from pathlib import Path; from tests.data_prep.common.test_jobs import "
        f"make_slow_set; make_slow_set(Path({str(tmp_path)!r}))"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    wait_for(lambda: len(list(tmp_path.glob("*.pid"))) == 2)
    parent.kill()
    parent.wait()
    workers = [int(path.stem) for path in tmp_path.glob("*.pid")]
    wait_for(lambda: not any(map(is_alive, workers)))
    assert len(list(tmp_path.glob("*.wav"))) < 200
    assert not list(tmp_path.glob(".*"))  # the job under way was finished


def test_wave_is_whole_or_absent(tmp_path):
    with pytest.raises(ValueError, match="complex"):
        write_wave(tmp_path / "bad.wav", np.zeros(3, dtype=complex), RATE)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_is_one_line_that_names_it(tmp_path, capsys):
    """A file in the place of a folder; a disk that is full (here: a limit of 4 kB)."""
    (tmp_path / "file").touch()
    assert as_command(lambda: claim_folder(tmp_path / "file" / "set", {})) == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}/file")
    code = (
        "import resource, signal, numpy, sys; "
        "from modules.runtime.cli import as_command; "
        "from modules.audio.io import write_wave\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        f"path = {str(tmp_path)!r} + '/long.wav'\n"
        "sys.exit(as_command(lambda: write_wave(path, numpy.zeros(10000), 8000)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr == (
        f"error: {tmp_path}/long.wav: cannot be written (File too large)\n"
    )
    assert os.listdir(tmp_path) == ["file"]


def test_int16_is_written_as_it_is_and_float_at_true_level(tmp_path):
    wave_T = np.array([-32768, -1, 0, 1, 32767], dtype=np.int16)
    write_wave(tmp_path / "int.wav", wave_T, RATE)
    assert (soundfile.read(tmp_path / "int.wav", dtype="int16")[0] == wave_T).all()
    loud_T = np.array([-1.5, 0.25], dtype=np.float32)
    write_wave(tmp_path / "float.wav", loud_T, RATE, subtype="FLOAT")
    assert (soundfile.read(tmp_path / "float.wav", dtype="float32")[0] == loud_T).all()
    assert soundfile.info(tmp_path / "float.wav").subtype == "FLOAT"
    # libsndfile's PEAK chunk holds the time: two files would never be equal.
    assert b"PEAK" not in (tmp_path / "float.wav").read_bytes()
    with pytest.raises(TypeError, match="complex128 samples cannot be FLOAT"):
        write_wave(tmp_path / "bad.wav", loud_T.astype(complex), RATE, subtype="FLOAT")


def test_folder_keeps_its_settings(tmp_path):
    out = tmp_path / "set"
    settings = {"sample_rates": [8000], "seed": 1}
    assert claim_folder(out, settings) == out
    claim_folder(out, settings)
    with pytest.raises(DataError, match=r"begun with seed=1, now it is 2"):
        claim_folder(out, settings | {"seed": 2})
    assert json.loads((out / SETTINGS).read_text()) == settings


def test_damaged_settings_are_one_line_that_names_them(tmp_path):
    (tmp_path / SETTINGS).write_text("{")
    with pytest.raises(DataError, match=f"{SETTINGS}: is damaged .*; give another"):
        claim_folder(tmp_path, {})


def test_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(DataError, match="is not empty"):
        claim_folder(tmp_path, {})
    assert (tmp_path / "mine.txt").read_text() == "keep me"


def test_command_gives_one_line_and_a_status(capsys):
    def fail():
        raise DataError("a.wav: is empty")

    def interrupted():
        raise KeyboardInterrupt

    assert as_command(lambda: None) == 0
    assert as_command(fail) == 1
    assert capsys.readouterr().err == "error: a.wav: is empty\n"
    assert as_command(interrupted) == 130
    assert "same command continues" in capsys.readouterr().err
