"""The rooms of WHAMR!: read from `reverb_params_{tr,cv,tt}.csv`, or drawn like them.

The ranges are those of the WHAMR! paper; how often a set has which T60 range, and the
spacings of the microphones, were measured on the public files of cv and tt. The file of
tr is not public; its shares are taken from cv, which has the same speakers.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.common.versions import pick
from modules.audio.rooms import Point, Room
from modules.runtime.errors import DataError
from modules.runtime.randomness import named_rng
from modules.runtime.tables import read_table, table_text

COLUMNS = (
    *("utterance_id", "room_x", "room_y", "room_z"),
    *("micL_x", "micL_y", "micR_x", "micR_y", "mic_z"),
    *("s1_x", "s1_y", "s1_z", "s2_x", "s2_y", "s2_z", "T60"),
)

RT60_RANGES = {"low": (0.1, 0.3), "medium": (0.2, 0.6), "high": (0.4, 1.0)}
CV_SHARES = (0.0, 0.46, 0.54)
RT60_SHARES = {"tr": CV_SHARES, "cv": CV_SHARES, "tt": (0.06, 0.36, 0.58)}
SPACINGS = (0.15, 0.16, 0.17)
NUM_SPKS = 2


@dataclass(frozen=True)
class Placed:
    """A room of WHAMR! with two talkers and two microphones; the left one is heard."""

    utterance_id: str
    room: Room
    right: Point

    def cells(self) -> list[str | float]:
        """Return the room in the order of `COLUMNS`."""
        left, (first, second) = self.room.microphone, self.room.sources
        ears = [*left[:2], *self.right[:2], left[2]]
        places = [*self.room.size, *ears, *first, *second]
        return [f"{self.utterance_id}.wav", *places, self.room.rt60]


def draw_room(split: str, name: str, seed: int) -> Placed:
    """Draw the room of a mixture by its name; `split` decides the shares of T60.

    >>> placed = draw_room("tt", "a", seed=1)
    >>> placed == draw_room("tt", "a", seed=1), placed.room.fault()
    (True, '')
    """
    rng = named_rng(seed, f"whamr/{split}/{name}")
    size = rng.uniform([5, 5, 3], [10, 10, 4])
    middle = size[:2] / 2 + rng.uniform(-0.2, 0.2, 2)
    ear_height, *heights = rng.uniform(0.9, 1.8, 1 + NUM_SPKS).tolist()
    half = rng.choice(SPACINGS) / 2
    angle, *angles = rng.uniform(0, 2 * math.pi, 1 + NUM_SPKS)
    toward = half * np.array([math.cos(angle), math.sin(angle)])
    sources = []
    for direction, height in zip(angles, heights, strict=True):
        distance = rng.uniform(0.66, 2)
        place = middle + distance * np.array([math.cos(direction), math.sin(direction)])
        sources.append((*place.tolist(), height))
    level = rng.choice(list(RT60_RANGES), p=RT60_SHARES[split])
    rt60 = float(rng.uniform(*RT60_RANGES[level]))
    left = (*(middle - toward).tolist(), ear_height)
    right = (*(middle + toward).tolist(), ear_height)
    return Placed(name, Room(tuple(size.tolist()), left, tuple(sources), rt60), right)


def table_of(rooms: Iterable[Placed]) -> str:
    """Return rooms as CSV, with the columns of the public files."""
    return table_text(COLUMNS, (placed.cells() for placed in rooms))


def read_rooms(path: Path, names: Sequence[str]) -> list[Placed]:
    """Read the rooms of the named mixtures; a DataError names a row at fault."""
    found = {}
    for place, cells in read_table(path, COLUMNS):
        try:
            value = {name: float(cells[name]) for name in COLUMNS[1:]}
        except ValueError as error:
            raise DataError(f"{place}: {error}") from None
        room = Room(
            size=(value["room_x"], value["room_y"], value["room_z"]),
            microphone=(value["micL_x"], value["micL_y"], value["mic_z"]),
            sources=tuple(
                (value[f"{part}_x"], value[f"{part}_y"], value[f"{part}_z"])
                for part in ("s1", "s2")
            ),
            rt60=value["T60"],
        )
        if fault := room.fault():
            raise DataError(f"{place}: the room is impossible: {fault}")
        name = cells["utterance_id"].removesuffix(".wav")
        right = (value["micR_x"], value["micR_y"], value["mic_z"])
        found[name] = Placed(name, room, right)
    return pick(path, found, names)
