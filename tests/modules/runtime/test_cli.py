"""A signature becomes a command line, and errors become one line."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from modules.runtime.cli import run
from modules.runtime.errors import ExportError


@dataclass(frozen=True)
class Limits:
    """What a file may be.

    Arguments
    ---------
    most : int
        Largest number of samples.
    rate : float
        In Hz.
    """

    most: int = 7
    rate: float = 0.5


def work(
    folder: str | Path,
    /,
    out: str | Path,
    rates: Sequence[int] = (8000, 16000),
    names: Sequence[str] | None = None,
    kind: Literal["a", "b"] = "a",
    count: Sequence[str] | int | None = None,
    seed: int = 0,
    fast: bool = False,
    limits: Limits = Limits(),
) -> tuple:
    """Return what was given.

    Arguments
    ---------
    folder : str | Path
        Where the 50 % of the files lie.
    rates, names
        Said of both,
        on two lines.

    Returns
    -------
    out : tuple
        Not the help of --out.
    """
    return folder, out, rates, names, kind, count, seed, fast, limits


def fail(*paths: str, how: str = "user") -> None:
    """Raise an error."""
    raise {
        "user": ExportError(f"{' and '.join(paths)}: cannot be exported"),
        "file": FileNotFoundError(2, "No such file", "x.wav"),
        "stop": KeyboardInterrupt(),
    }[how]


COMMANDS = {"work": work, "fail": fail}


def call(*arguments: str) -> tuple:
    found = []
    assert run("prog", "Does work.", COMMANDS, arguments, found.append) == 0
    return found[0]


def test_types_and_defaults_are_those_of_the_signature():
    given = call("in", "--out=x")
    assert given == ("in", "x", (8000, 16000), None, "a", None, 0, False, Limits())
    given = call(
        *("work", "in", "--out", "x", "--rates", "8000", "16000", "--names=a,b"),
        *("--kind=b", "--count=3", "--seed=4", "--fast", "--most=9", "--rate=2"),
    )
    limits = Limits(9, 2.0)
    assert given == ("in", "x", [8000, 16000], ["a", "b"], "b", 3, 4, True, limits)
    assert call("in", "--out=x", "--rates=8000,16000")[2] == [8000, 16000]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["in"], "required: --out"),
        (["in", "--out=x", "--seed=y"], "--seed: invalid int value: 'y'"),
        (["in", "--out=x", "--rates=y"], "--rates: invalid int value: 'y'"),
        (["in", "--out=x", "--kind=c"], "--kind: invalid choice: 'c'"),
        (["in", "--out=x", "--kin=b"], "unrecognized arguments: --kin=b"),
        (["fail"], "required: paths"),
    ],
)
def test_a_wrong_command_line_is_refused(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        run("prog", "Does work.", COMMANDS, arguments)
    assert message in capsys.readouterr().err


def test_help_is_said_in_the_docstring(capsys):
    with pytest.raises(SystemExit, match="0"):
        run("prog", "Does work.", COMMANDS, ["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "usage: prog [-h] --out OUT" in text
    assert "Does work." in text
    assert "folder Where the 50 % of the files lie." in text
    assert "Said of both, on two lines. (default: 8000 16000)" in text
    assert "Largest number of samples. (default: 7)" in text
    assert "Not the help" not in text
    with pytest.raises(SystemExit, match="0"):
        run("prog", "Does work.", COMMANDS, ["fail", "--help"])
    text = capsys.readouterr().out
    assert "usage: prog fail" in text
    assert "A signature becomes" in text


def test_errors_are_one_line_and_a_status(capsys):
    for how, status, line in [
        ("user", 1, "error: a and b: cannot be exported\n"),
        ("file", 1, "error: x.wav: No such file\n"),
        ("stop", 130, "stopped; the same command continues\n"),
    ]:
        assert run("p", "d", COMMANDS, ["fail", "a", "b", f"--how={how}"]) == status
        assert capsys.readouterr().err == line


def test_a_bug_keeps_its_traceback():
    with pytest.raises(KeyError):
        run("prog", "d", COMMANDS, ["fail", "a", "--how=no such key"])


def test_what_is_made_is_printed(capsys):
    def several() -> dict[str, str]:
        return {"train": "train.csv", "test": "test.csv"}

    assert run("prog", "d", several, []) == 0
    assert capsys.readouterr().out == "train: train.csv\ntest: test.csv\n"
    assert run("prog", "d", several, [], lambda made: 3) == 3
