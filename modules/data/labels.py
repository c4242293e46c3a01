"""Which stems hold what their name says: a table of probabilities.

A row says how probable it is that a stem of a track has the `wrong` label, from 0 to 1,
and which stem it `sounds_like` instead, if that is known. Further columns are evidence,
and readers pass over them. `data_prep.music.audit` writes `audit.csv`, and its page
writes `labels.csv`, what a listener decided.
"""

import math
from pathlib import Path
from typing import NamedTuple

from modules.runtime.errors import DataError
from modules.runtime.tables import read_table

COLUMNS = ("track", "stem", "wrong", "sounds_like")
Key = tuple[str, str]  # track, stem


class Label(NamedTuple):
    """How probably a stem is not what its name says, and what it is then, or ""."""

    wrong: float
    sounds_like: str = ""

    @property
    def is_wrong(self) -> bool:
        """Whether the stem is called wrong: more probably than not."""
        return self.wrong > 0.5


def read_labels(path: str | Path) -> dict[Key, Label]:
    """Read a table of labels by (track, stem).

    A DataError names the row of a stem that is there twice, or whose `wrong` is no
    number from 0 to 1.
    """
    found: dict[Key, Label] = {}
    for place, row in read_table(path, COLUMNS):
        key = row["track"], row["stem"]
        try:
            wrong = float(row["wrong"])
        except ValueError:
            wrong = math.nan
        if not 0 <= wrong <= 1:
            value = f"wrong={row['wrong']!r}"
            raise DataError(f"{place}: {value}, expected a probability from 0 to 1")
        if key in found:
            raise DataError(f"{place}: {key[1]} of {key[0]} is there twice")
        found[key] = Label(wrong, row["sounds_like"])
    return found
