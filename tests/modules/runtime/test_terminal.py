"""Printing: a reader that dies, a full disk, any encoding, names with effects."""

import os
import subprocess
import sys

import pytest

from modules.runtime.errors import DataError
from modules.runtime.terminal import escaped

PRINTS = """
import sys, warnings
from modules.runtime.terminal import keep_printing
keep_printing()
for number in range(2000):
    print("progress \\u2588", number, flush=True)
    print("warning \\u2588 \\udcff", number, file=sys.stderr)
open(sys.argv[1], "w").write("came to its end")
"""


def run(tmp_path, **options) -> str:
    """Run the program; return what it wrote elsewhere."""
    note = tmp_path / "note"
    command = [sys.executable, "-c", PRINTS, str(note)]
    env = os.environ | {"PYTHONPATH": os.getcwd()} | options.pop("env", {})
    done = subprocess.run(command, env=env, timeout=60, **options)
    assert done.returncode == 0
    return note.read_text()


@pytest.mark.parametrize("which", ["stdout", "stderr"])
def test_a_reader_that_dies_ends_nothing(tmp_path, which):
    read, write = os.pipe()
    os.close(read)
    other = "stderr" if which == "stdout" else "stdout"
    streams = {which: write, other: subprocess.DEVNULL}
    assert run(tmp_path, **streams) == "came to its end"
    os.close(write)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux's full disk")
def test_neither_does_a_full_disk(tmp_path):
    with open("/dev/full", "w") as full:
        assert run(tmp_path, stdout=full, stderr=full) == "came to its end"


def test_closed_streams_are_not_taken_by_files(tmp_path):
    program = f"exec {sys.executable} -c '{PRINTS}' {tmp_path / 'note'} >&- 2>&-"
    env = os.environ | {"PYTHONPATH": os.getcwd()}
    done = subprocess.run(["sh", "-c", program], env=env, timeout=60)
    assert done.returncode == 0
    assert (tmp_path / "note").read_text() == "came to its end"


def test_any_encoding_prints(tmp_path):
    env = {"PYTHONIOENCODING": "ascii"}
    with open(tmp_path / "out", "wb") as out:
        assert run(tmp_path, stdout=out, stderr=out, env=env) == "came to its end"
    assert rb"progress \u2588 1999" in (tmp_path / "out").read_bytes()


def test_names_have_no_effect_on_a_terminal():
    name = "a\x1b[2J\x07\x9b\u202eb\n\tc é \u2588"
    assert escaped(name) == "a\\x1b[2J\\x07\\x9b\\u202eb\n\tc é \u2588"
    assert str(DataError("x\x1b]0;y")) == "x\\x1b]0;y"
