"""Impulse responses of shoe-box rooms as in WHAMR!, and pools of them for training.

WHAMR! was made with version 0.3 of pyroomacoustics, in which a wall reflects 1 - a of
the amplitude, where a is Sabine's absorption for the T60 wanted. Version 0.10 reflects
sqrt(1 - share) >= 0 for an absorbed share of the energy. That cannot say the same where
T60 is short for the room: then a > 1, and version 0.3 reflected with changing sign.
`impulse_responses` sets the amplitudes of the images itself, so it agrees with version
0.3 in every room (to -64 dB, since 0.10 counts in float32; a constant gain apart).

To reflect 1 - a instead of sqrt(1 - a) makes rooms decay in about 0.6 of their nominal
T60. That is a property of WHAMR!, and it is kept.

Legend: S source, T sample.
"""

import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.signal

from modules.runtime.errors import DataError
from modules.runtime.files import write_whole

SPEED_OF_SOUND = 343.0

# A source with a smaller share of its energy than this at the microphone has not
# arrived yet: the convolution leaves rounding errors of that size.
ARRIVED = 1e-9

Point = tuple[float, float, float]


@dataclass(frozen=True)
class Room:
    """A shoe-box room from the origin to `size`; metres and seconds."""

    size: Point
    microphone: Point
    sources: tuple[Point, ...]
    rt60: float

    def fault(self) -> str:
        """Return what makes the room impossible, or an empty string."""
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
        """Sabine's absorption; above 1 for a T60 that is short for the room."""
        x, y, z = self.size
        surface = 2 * (x * y + x * z + y * z)
        volume = x * y * z
        return 24 * math.log(10) * volume / (SPEED_OF_SOUND * surface * self.rt60)

    @property
    def max_order(self) -> int:
        """Number of reflections that fill T60 along the shortest side."""
        return math.ceil(self.rt60 * SPEED_OF_SOUND / min(self.size))


def impulse_responses(
    room: Room, sample_rate: int = 16000, max_order: int | None = None
) -> np.ndarray:
    """Simulate the responses from every source to the microphone.

    Returns float32 [S, T], T = ceil(T60 * sample_rate). A path of length d has an
    amplitude of 1/d and a delay of d/c seconds and 40 samples. `max_order` is the
    largest number of reflections; 0 leaves the direct path ("anechoic"), None is the
    room's own. WHAMR! works at 16000 Hz and resamples the audio. An impossible room is
    a ValueError.

    Example
    -------
    >>> room = Room((5, 4, 3), (2, 2, 1), ((3, 2, 1), (2, 3, 1.5)), rt60=0.2)
    >>> impulse_responses(room).shape
    (2, 3200)
    >>> int(impulse_responses(room, max_order=0)[0].argmax())  # 40 + 16000 / 343
    87
    """
    # Here, because it takes longer to import than all the rest of this package, and
    # training, which only reads pools, does not need it.
    import pyroomacoustics

    if fault := room.fault():
        raise ValueError(f"a room is impossible: {fault}")
    constants = pyroomacoustics.parameters.constants
    constants.set("rir_hpf_enable", False)  # version 0.3 had no high-pass filter
    constants.set("num_threads", 1)  # the order of the sum decides its last bits
    order = room.max_order if max_order is None else max_order
    box = pyroomacoustics.ShoeBox(room.size, fs=sample_rate, max_order=order)
    for place in room.sources:
        box.add_source(place)
    box.add_microphone(room.microphone)
    box.image_source_model()
    for source in box.sources:
        source.damping = (1 - room.absorption) ** source.orders[None].astype(float)
    box.compute_rir()
    frames = math.ceil(room.rt60 * sample_rate)
    responses_ST = np.zeros((len(room.sources), frames), np.float32)
    for response_T, computed_T in zip(responses_ST, box.rir[0], strict=True):
        computed_T = computed_T[: len(response_T)]
        response_T[: len(computed_T)] = computed_T
    return responses_ST


@dataclass(frozen=True, eq=False)
class RoomPool:
    """Responses of many rooms, to put the talkers of a mixture into one of them.

    `python -m data_prep.whamr pool` makes the file, dynamic mixing draws from it.
    `direct` and `reverberant` hold for each room float32 [S, T]: the direct path alone,
    and the whole response.
    """

    sample_rate: int
    direct: Sequence[np.ndarray]
    reverberant: Sequence[np.ndarray]

    def __len__(self) -> int:
        return len(self.direct)

    @property
    def num_sources(self) -> int:
        """Number of places for talkers in each room."""
        return len(self.direct[0])

    def in_room(self, src_ST: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return dry sources [S, T] as heard in a room, anechoic and reverberant.

        An anechoic source has the energy of the dry one and its reverberant twin the
        same gain, which is WHAMR!'s rule. A source that does not arrive before the end
        is silent.
        """
        sources, frames = src_ST.shape
        heard = [
            scipy.signal.oaconvolve(src_ST, response_ST[:sources], axes=1)[:, :frames]
            for response_ST in (self.direct[number], self.reverberant[number])
        ]
        energy_S1 = np.square(heard[0]).sum(1, keepdims=True)
        dry_S1 = np.square(src_ST).sum(1, keepdims=True)
        arrived_S1 = energy_S1 > ARRIVED * dry_S1
        power_S1 = np.divide(dry_S1, energy_S1, out=0 * dry_S1, where=arrived_S1)
        gain_S1 = np.sqrt(power_S1)
        anechoic_ST, reverb_ST = (np.asarray(gain_S1 * h, np.float32) for h in heard)
        return anechoic_ST, reverb_ST

    def save(self, path: str | Path) -> None:
        """Write one `.npz` file, which appears only when it is whole."""
        arrays: dict[str, Any] = {"sample_rate": self.sample_rate}
        arrays["num_sources"] = self.num_sources
        for name in ("direct", "reverberant"):
            responses = getattr(self, name)
            arrays[name] = np.concatenate([r.ravel() for r in responses])
            arrays[f"{name}_frames"] = [r.shape[1] for r in responses]
        with write_whole(path) as partial, open(partial, "wb") as file:
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path: str | Path, sample_rate: int | None = None) -> "RoomPool":
        """Read a file that `save` wrote, or raise a DataError."""
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
            hint = "make it by python -m data_prep.whamr pool"
            raise DataError(f"{path}: no such file; {hint}") from None
        except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"{path}: is not a pool of rooms ({error})") from None
        if sample_rate not in (None, rate):
            fault = f"its rooms are at {rate} Hz, expected {sample_rate} Hz"
            hint = f"make a pool with --sample_rate={sample_rate}"
            raise DataError(f"{path}: {fault}; {hint}")
        return cls(rate, *pools)
