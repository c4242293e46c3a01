"""A pool of rooms: made in blocks by any number of workers, whole or not there."""

import numpy as np
import pytest

from data_prep.whamr import pool as whamr_pool
from data_prep.whamr.__main__ import main
from data_prep.whamr.pool import make_pool
from data_prep.whamr.rooms import draw_room
from modules.audio.rooms import RoomPool, impulse_responses
from modules.runtime.errors import DataError


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(whamr_pool, "BLOCK", 2)


def test_pool_holds_the_drawn_rooms(tmp_path, small_blocks):
    path = make_pool(tmp_path / "rooms.npz", 5, sample_rate=16000, seed=3, workers=1)
    assert [file.name for file in tmp_path.iterdir()] == ["rooms.npz"]
    pool = RoomPool.load(path, 16000)
    assert (len(pool), pool.num_sources, pool.sample_rate) == (5, 2, 16000)
    for number in range(5):
        room = draw_room("tr", f"pool/{number}", 3).room
        reverb_ST, direct_ST = (
            impulse_responses(room),
            impulse_responses(room, 16000, 0),
        )
        assert np.abs(pool.reverberant[number] - reverb_ST).max() < 1e-6
        frames = pool.direct[number].shape[1]
        assert frames < 300
        assert np.abs(pool.direct[number] - direct_ST[:, :frames]).max() < 1e-6
        assert np.abs(direct_ST[:, frames:]).max() < 1e-6


def test_restart_keeps_what_is_done_and_seed_decides(
    tmp_path, small_blocks, monkeypatch
):
    whole = make_pool(tmp_path / "whole.npz", 4, workers=1)
    first, again = tmp_path / "first.npz", tmp_path / "first.npz.parts"

    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(whamr_pool.RoomPool, "load", stop)
        make_pool(first, 4, workers=1)
    assert not first.exists() and len(list(again.glob("*.npz"))) == 2
    with pytest.raises(DataError, match="begun with rooms=4, now it is 6"):
        make_pool(first, 6, workers=1)
    assert make_pool(first, 4, workers=1).read_bytes() == whole.read_bytes()
    other = make_pool(tmp_path / "other.npz", 4, seed=1, workers=1)
    assert other.read_bytes() != whole.read_bytes()


def test_command_line(tmp_path, capsys):
    out = tmp_path / "rooms.npz"
    command = ["pool", f"--out={out}", "--rooms=1", "--workers=1"]
    assert main(command) == 0
    assert len(RoomPool.load(out, 8000)) == 1
    assert main(command) == 1
    assert "rooms.npz: is there already" in capsys.readouterr().err
    assert main(["pool", f"--out={tmp_path}/x", "--rooms=1"]) == 1
    assert "the name of a pool ends in .npz" in capsys.readouterr().err
    assert main(["pool", f"--out={tmp_path}/y.npz", "--rooms=0"]) == 1
    assert "rooms is 0" in capsys.readouterr().err
