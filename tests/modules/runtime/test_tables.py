"""Tables come back as they were written, and every fault names file and row."""

import pytest

from modules.runtime.errors import DataError
from modules.runtime.tables import read_cells, read_table, write_table

ROWS = [("a,b", 0.1), ('quo"te', 1 / 3), ("ünï\nline", -2.0)]


def test_what_is_written_is_read(tmp_path):
    path = write_table(tmp_path / "new" / "t.csv", ["name", "level"], ROWS)
    found = list(read_table(path, ["level", "name"]))
    assert [(cells["name"], float(cells["level"])) for _, cells in found] == ROWS
    assert [place for place, _ in found] == [f"{path}, row {n}" for n in (2, 3, 4)]
    assert [file.name for file in path.parent.iterdir()] == ["t.csv"]


def test_other_columns_blank_lines_and_windows_are_accepted(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b"\xef\xbb\xbfmore,name\r\n1,a\r\n\r\n2,b\r\n")
    places, cells = zip(*read_table(path, ["name"]), strict=True)
    assert cells == ({"more": "1", "name": "a"}, {"more": "2", "name": "b"})
    assert places == (f"{path}, row 2", f"{path}, row 4")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, ": does not exist"),
        (b"", ", row 1: has no column 'name'"),
        (b"other\n", ", row 1: has no column 'name'"),
        (b"other,name\n1,a\n2\n", ", row 3: has too few fields"),
        (b"name\na\0\n", ", row 2: holds a zero byte"),
        (b'name\na\n"b\n', ", row 3: is not valid CSV"),
    ],
)
def test_a_fault_is_one_line_with_its_row(tmp_path, text, message):
    path = tmp_path / "t.csv"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(DataError) as error:
        list(read_table(path, ["name"]))
    assert str(error.value).startswith(f"{path}{message}")
    assert "\n" not in str(error.value)


def test_the_message_for_a_missing_file_can_be_given(tmp_path):
    with pytest.raises(DataError, match="none.csv: make it first"):
        read_cells(tmp_path / "none.csv", "make it first")
