"""The benchmark of rooms: both forms make the same rooms."""

import re

from benchmarks import rooms
from data_prep.whamr.rooms import draw_room, table_of


def test_both_forms_agree(tmp_path, capsys):
    drawn = (draw_room("tt", f"{n}", 0) for n in range(200))
    short = [placed for placed in drawn if placed.room.rt60 < 0.35][:3]
    table = tmp_path / "reverb_params_tt.csv"
    table.write_text(table_of(short))
    assert rooms.main(["--rooms=3", f"--table={table}"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("3 rooms, nominal T60 0.")
    assert float(re.search(r"difference: (\S+) of", text)[1]) < 3e-3
    assert 0.4 < float(re.search(r"over nominal: ([\d.]+),", text)[1]) < 0.8
