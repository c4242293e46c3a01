"""The gap between wrong and true labels: made sets, and the table of what closes it."""

import numpy as np
import pytest
import soundfile

from benchmarks import gap
from modules.data.labels import COLUMNS
from modules.runtime.errors import DataError
from modules.runtime.tables import write_table

TRACKS = (
    "8dd2740f-03f3-5e79-99f2-ba629afcae3a",
    "9b3892bf-50bb-5c99-9367-ae3e42dad4b5",
)


def test_stems_bleed_where_the_truth_says_so(tmp_path):
    rng = np.random.default_rng(0)
    for track in TRACKS:
        (tmp_path / "clean" / track).mkdir(parents=True)
        for stem in gap.SOURCES:
            path = tmp_path / "clean" / track / f"{stem}.wav"
            soundfile.write(path, 0.1 * rng.standard_normal((500, 2)), gap.RATE)
    bleeds = gap.leak(tmp_path / "clean", tmp_path / "out")
    assert len(bleeds) == 8 and {*bleeds.values()} == {True, False}
    for (track, stem), does in bleeds.items():
        clean, found = (
            soundfile.read(tmp_path / folder / track / f"{stem}.wav")[0]
            for folder in ("clean", "out")
        )
        leak = 10 * np.log10(np.mean((found - clean) ** 2) / np.mean(clean**2) + 1e-9)
        if does:  # three others, as loud as the stem
            assert gap.LEAK_DB[0] < leak < gap.LEAK_DB[1] + 10 * np.log10(3) + 0.5
        else:
            assert leak < -60


def test_the_table_pairs_by_song_and_says_what_is_closed(tmp_path):
    wrong = {"true": 0, "a fifth wrong": 1, "two fifths wrong": 1}
    scores = {"none": [1.0, 3.0], "soft": [1.5, 3.5]}
    true = {"none": [2.0, 4.0], "soft": [2.0, 4.0]}
    for name in gap.SETS:
        rows = [("a", "bass", wrong.get(name, 1), ""), ("a", "drums", 0, "")]
        write_table(tmp_path / name / "truth.csv", COLUMNS, rows)
        of_set = true if name == "true" else scores
        for seed, more in ((1, -0.25), (2, 0.25)):
            lines = [
                (song, *(of_set[way][k] + more for way in of_set), 9.0)
                for k, song in enumerate("xy")
            ]
            header = ("id", "nsdr_none", "nsdr_soft", "nsdr_soft_bass")
            write_table(tmp_path / name / f"rules {seed}" / gap.TABLE, header, lines)
    lines = gap.table(tmp_path, [1, 2])
    assert "**a fifth wrong** (50 % of the stems)" in lines
    assert "| soft | 2.50 | +0.50 ± 0.00 | 50 % (50 to 50) |" in lines
    assert "| true labels | 3.00 | +1.00 ± 0.00 | 100 % |" in lines


def test_a_failed_training_is_named(tmp_path):
    folder = str(tmp_path / "rules 1")
    with pytest.raises(DataError, match=r"rules 1\.log: the training ended with 1"):
        gap.run(folder, ["--no_such_key=1"], [])
