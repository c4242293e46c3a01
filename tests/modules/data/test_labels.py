"""The table of labels."""

from pathlib import Path

import pytest

from modules.data.labels import Label, read_labels
from modules.runtime.errors import DataError

HEADER = "track,stem,wrong,sounds_like,loss\n"


def test_a_table_is_read_whatever_evidence_follows(tmp_path: Path) -> None:
    path = tmp_path / "audit.csv"
    path.write_text(HEADER + '"a, b",bass,0.9,drums,3.1\na,vocals,0,,\n')
    assert read_labels(path) == {
        ("a, b", "bass"): Label(0.9, "drums"),
        ("a", "vocals"): Label(0.0),
    }


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        ("a,bass,1.5,,\n", "row 2: wrong='1.5', expected a probability"),
        ("a,bass,nan,,\n", "row 2: wrong='nan'"),
        ("a,bass,yes,,\n", "row 2: wrong='yes'"),
        ("a,bass,1,,\na,drums,0,,\na,bass,0,,\n", "row 4: bass of a is there twice"),
        ("a,bass\n", "row 2: has too few fields"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, rows: str, fault: str) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(HEADER + rows)
    with pytest.raises(DataError, match=fault):
        read_labels(path)
