"""Printing to a terminal that may go, in any encoding, names without effects."""

import io
import os
import re
import sys
from typing import Any

# Control characters, and those that turn the direction of what follows.
_EFFECTS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def escaped(text: str) -> str:
    r"""Return a text whose characters only print; line ends and tabs stay.

    >>> print(escaped("song\x1b[2J.wav"))
    song\x1b[2J.wav
    """
    return _EFFECTS.sub(lambda match: ascii(match[0])[1:-1], text)


class _Stream(io.FileIO):
    """A descriptor that takes everything, though its reader may have gone."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or len(data)  # None where it would have to wait
        except OSError:
            return len(data)


def keep_printing() -> None:
    """Make standard output and error of this process unable to fail.

    A closed pipe, a full disk or a lost connection only silences them, and what their
    encoding lacks is escaped.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:  # closed: the next file opened would take its place
            os.open(os.devnull, os.O_RDWR)
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        before = getattr(sys, name)
        if before is not None and before is not getattr(sys, f"__{name}__"):
            continue  # a notebook's or a test's
        raw = _Stream(descriptor, "w", closefd=False)
        is_shown = descriptor == 2 or raw.isatty()
        stream = io.TextIOWrapper(
            io.BufferedWriter(raw),
            encoding=getattr(before, "encoding", "utf-8"),
            errors="backslashreplace",
            line_buffering=is_shown,
            write_through=getattr(before, "write_through", False),
        )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
