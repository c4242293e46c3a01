"""Impulse responses of shoe-box rooms by the image method, as WHAMR! simulates them.

WHAMR! was made with pyroomacoustics 0.3: walls reflect 1 - a of the amplitude, where a
is Sabine's absorption for the T60 wanted; images up to the order that fills T60 along
the shortest side; the response cut to T60. pyroomacoustics 0.10 computes the same from
`Material(energy_absorption=1 - (1 - a) ** 2)`, except where a > 1 (short T60): 0.3 then
reflected with changing sign, and so does this, which no energy absorption can. Taking
1 - a for amplitude has a price: rooms decay in about 0.6 of their nominal T60. That
is a property of WHAMR! and kept.

The sum over images is that of pyroomacoustics (sinc with a Hann window of 81 samples
from a table of 20 steps a sample, linearly interpolated, all 40 samples late), written
so that it takes a small part of the time (`benchmarks/RESULTS.md`):

1. images beyond the cut are never made, and no image is looked up one by one: the grid
   of a shoe-box is a sum of squares along its axes;
2. two neighbours in a table are a linear function of the amplitude, so amplitudes are
   gathered first, by whole sample and table step, and each step's 81 taps are applied
   to all of them at once, by FFT.

`RoomPool` is what dynamic mixing draws rooms from: responses made once, by
`python -m data_prep.whamr pool`.

Legend: S source, T sample, G step of the table.
"""

import math
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import scipy.fft
import scipy.signal

from modules.runtime.errors import DataError

SPEED_OF_SOUND = 343.0

TAPS = 81

STEPS = 20

# A source with less of its energy than this at the microphone has not arrived; what
# there is comes of rounding in the convolution.
ARRIVED = 1e-9

# Images are worked on so many at a time: what fits into a processor's cache.
CHUNK = 2**15

Point = tuple[float, float, float]


@dataclass(frozen=True)
class Room:
    """A shoe-box room from the origin to `size`; metres and seconds."""

    size: Point
    microphone: Point
    sources: tuple[Point, ...]
    rt60: float

    def fault(self) -> str:
        """What makes it impossible; empty when nothing does."""
        if not (math.isfinite(self.rt60) and self.rt60 > 0):
            return f"T60 is {self.rt60} s"
        if not all(math.isfinite(side) and side > 0 for side in self.size):
            return f"its size is {self.size} m"
        for name, point in (
            ("microphone", self.microphone),
            *((f"source {k + 1}", point) for k, point in enumerate(self.sources)),
        ):
            if not all(0 < x < side for x, side in zip(point, self.size, strict=True)):
                return f"its {name} at {point} m is outside"
            if name != "microphone" and math.dist(point, self.microphone) < 0.01:
                return f"its {name} is where the microphone is"
        return ""

    @property
    def absorption(self) -> float:
        """Sabine's; above 1 for a T60 that is short for the room."""
        x, y, z = self.size
        surface = 2 * (x * y + x * z + y * z)
        volume = x * y * z
        return 24 * math.log(10) * volume / (SPEED_OF_SOUND * surface * self.rt60)

    @property
    def max_order(self) -> int:
        """Reflections that fill T60 along the shortest side."""
        return math.ceil(self.rt60 * SPEED_OF_SOUND / min(self.size))


def impulse_responses(
    room: Room, sample_rate: int = 16000, max_order: int | None = None
) -> np.ndarray:
    """Responses from every source to the microphone.

    Arguments
    ---------
    room : Room
        The room.
    sample_rate : int
        In Hz; WHAMR! works at 16000 and resamples the audio.
    max_order : int | None
        Most reflections; 0 leaves the direct path ("anechoic"), None is the room's.

    Returns
    -------
    np.ndarray
        float64, shape [S, T], T = ceil(T60 * sample_rate); a path of length d has an
        amplitude of 1/d and is d/c seconds and 40 samples late.

    Raises
    ------
    ValueError
        The room is impossible.

    Example
    -------
    >>> room = Room((5, 4, 3), (2, 2, 1), ((3, 2, 1), (2, 3, 1.5)), rt60=0.2)
    >>> impulse_responses(room).shape
    (2, 3200)
    >>> int(impulse_responses(room, max_order=0)[0].argmax())  # 40 + 16000 / 343
    87
    """
    if fault := room.fault():
        raise ValueError(f"a room is impossible: {fault}")
    frames = math.ceil(room.rt60 * sample_rate)
    order = room.max_order if max_order is None else max_order
    return np.stack(
        [
            _response(room, source, order, frames, sample_rate / SPEED_OF_SOUND)
            for source in room.sources
        ]
    )


def _response(
    room: Room, source: Point, max_order: int, frames: int, per_metre: float
) -> np.ndarray:
    """The response from one source, shape [T]; distances are counted in samples."""
    axes = []
    for side, x, ear in zip(room.size, source, room.microphone, strict=True):
        most = min(int(frames / per_metre / side) + 2, max_order)
        order = np.arange(-most, most + 1)
        image = order * side + np.where(order % 2 == 0, x, side - x)
        axes.append((np.abs(order), np.square((image - ear) * per_metre)))
    # Slices across the shortest list, each the images of the other two by distance.
    axes.sort(key=lambda axis: len(axis[0]))
    (first_order, first_square), *others = axes
    (order_y, square_y), (order_z, square_z) = others
    square = (square_y[:, None] + square_z).ravel()
    nearest = np.argsort(square, kind="stable")
    square = square[nearest]
    order = (order_y[:, None] + order_z).ravel()[nearest]
    counts = np.searchsorted(square, float(frames) ** 2 - first_square)

    # By number of reflections; 0 beyond the highest order.
    most = len(first_order) + len(order_y) + len(order_z)
    reflected = np.zeros(most)
    allowed = np.arange(min(max_order + 1, most))
    reflected[allowed] = per_metre * (1 - room.absorption) ** allowed

    grid = np.zeros((frames + 1) * (STEPS + 2))
    distance, gain = np.empty((2, CHUNK + len(square)))
    used = 0
    for number, (reflections, away) in enumerate(
        zip(first_order, first_square, strict=True)
    ):
        count = counts[number]
        part = slice(used, used + count)
        np.add(square[:count], away, out=distance[part])
        np.take(reflected[reflections:], order[:count], out=gain[part])
        used += count
        if used >= CHUNK or number + 1 == len(first_order):
            _gather(grid, distance[:used], gain[:used])
            used = 0
    taps_GT = _table()
    grid_GT = grid.reshape(frames + 1, STEPS + 2).T[: len(taps_GT)]
    size = scipy.fft.next_fast_len(frames + TAPS, real=True)
    spectrum = scipy.fft.rfft(grid_GT, size) * scipy.fft.rfft(taps_GT, size)
    return scipy.fft.irfft(spectrum.sum(0), size)[:frames]


def _gather(grid: np.ndarray, delay: np.ndarray, gain: np.ndarray) -> None:
    """Add images to the grid [T, G], flat; `delay` holds squares."""
    np.sqrt(delay, out=delay)
    np.divide(gain, delay, out=gain)
    whole = delay.astype(np.int64)
    np.subtract(delay, whole, out=delay)
    np.subtract(1.0, delay, out=delay)
    np.multiply(delay, STEPS, out=delay)
    step = delay.astype(np.int64)
    np.subtract(delay, step, out=delay)
    next_gain = delay * gain
    gain -= next_gain
    place = whole * (STEPS + 2) + step
    np.add.at(grid, place, gain)
    np.add.at(grid, place + 1, next_gain)


@cache
def _table() -> np.ndarray:
    """Taps of the windowed sinc for each step of the fraction, shape [G + 1, T]."""
    taps = np.arange(TAPS)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * taps / (TAPS - 1))
    steps = np.arange(STEPS + 1)[:, None]
    return window * np.sinc(taps - (TAPS + 1) / 2 + steps / STEPS)


class RoomPool:
    """Responses of many rooms, to put the talkers of a mixture into one of them.

    Arguments
    ---------
    sample_rate : int
        Of the responses, in Hz.
    direct, reverberant : Sequence[np.ndarray]
        For each room float32 [S, T]: the direct path alone, and all of it.
    """

    def __init__(
        self,
        sample_rate: int,
        direct: Sequence[np.ndarray],
        reverberant: Sequence[np.ndarray],
    ) -> None:
        self.sample_rate = sample_rate
        self.direct = list(direct)
        self.reverberant = list(reverberant)
        self.num_sources = len(direct[0])

    def __len__(self) -> int:
        return len(self.direct)

    def in_room(self, src_ST: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Sources as heard in a room, by WHAMR!'s rule for their gain.

        Arguments
        ---------
        src_ST : np.ndarray
            Dry sources at the pool's rate, shape [S, T]; at most as many as a room has.
        number : int
            Of the room.

        Returns
        -------
        tuple[np.ndarray, np.ndarray]
            Anechoic and reverberant sources, float32 [S, T]. An anechoic source has the
            energy of the dry one, its reverberant twin the same gain. A source that
            does not arrive before the end is silent.
        """
        anechoic_ST, reverb_ST = (
            scipy.signal.oaconvolve(src_ST, response_ST[: len(src_ST)], axes=1)
            for response_ST in (self.direct[number], self.reverberant[number])
        )
        frames = src_ST.shape[1]
        anechoic_ST, reverb_ST = anechoic_ST[:, :frames], reverb_ST[:, :frames]
        energy_S, dry_S = (
            np.square(wave_ST).sum(1, keepdims=True)
            for wave_ST in (anechoic_ST, src_ST)
        )
        power_S = np.divide(
            dry_S, energy_S, out=0 * dry_S, where=energy_S > ARRIVED * dry_S
        )
        gain_S = np.sqrt(power_S)
        return (
            np.asarray(gain_S * anechoic_ST, np.float32),
            np.asarray(gain_S * reverb_ST, np.float32),
        )

    def save(self, path: str | Path) -> None:
        """Write one file, which appears only when it is whole."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.part")
        arrays = {"sample_rate": self.sample_rate, "num_sources": self.num_sources}
        for name in ("direct", "reverberant"):
            responses = getattr(self, name)
            arrays[name] = np.concatenate([r.ravel() for r in responses])
            arrays[f"{name}_frames"] = [r.shape[1] for r in responses]
        try:
            with open(partial, "wb") as file:
                np.savez(file, **arrays)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path, sample_rate: int | None = None) -> "RoomPool":
        """Read a file that `save` wrote.

        Raises
        ------
        DataError
            It cannot be read, is no pool, or is at another rate than wanted.
        """
        try:
            arrays = np.load(path, allow_pickle=False)
            if isinstance(arrays, np.ndarray):
                raise ValueError("it is a single array")
            with arrays:
                rate, sources = int(arrays["sample_rate"]), int(arrays["num_sources"])
                pools = []
                for name in ("direct", "reverberant"):
                    sizes = arrays[f"{name}_frames"] * sources
                    parts = np.split(arrays[name], np.cumsum(sizes)[:-1])
                    pools.append([part.reshape(sources, -1) for part in parts])
        except FileNotFoundError:
            raise DataError(
                f"{path}: no such file; make it by python -m data_prep.whamr pool"
            ) from None
        except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"{path}: is not a pool of rooms ({error})") from None
        if sample_rate not in (None, rate):
            raise DataError(
                f"{path}: its rooms are at {rate} Hz, expected {sample_rate} Hz; make "
                f"a pool with --sample_rate={sample_rate}"
            )
        return cls(rate, *pools)
