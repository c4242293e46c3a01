"""Read the scales in WHAM!'s noise archive: `metadata/scaling_{tr,cv,tt}.npz`.

Its arrays have an entry for each mixture: `utterance_id`, `speech_start_sample_16k`,
and for each version such as 8k_min the gains `scaling_wham_speech_8k_min` and
`scaling_wham_noise_8k_min`. The gains from WSJ0 to WSJ0-2mix are not needed here.
"""

import itertools
import pickle
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from modules.runtime.errors import DataError

STARTS = "speech_start_sample_16k"


@dataclass(frozen=True)
class Scales:
    """A mixture's gains (speech, noise) by version, start of the speech at 16 kHz."""

    speech_start: int
    by_version: dict[tuple[int, str], tuple[float, float]]


class _StringsOnly(pickle.Unpickler):
    """Unpickle an array of strings and refuse all else that a pickle may call.

    Old numpy files keep strings as Python objects, and a pickle is a program.
    """

    ALLOWED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
        }
    )

    def find_class(self, module: str, name: str) -> object:
        """Allow only what makes up an array."""
        if (module, name) == ("_codecs", "encode"):
            return _latin1  # how numpy before 1.17 wrote bytes
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it wants to run {module}.{name}")
        return super().find_class(module, name)


def _latin1(text: str, encoding: str) -> bytes:
    """Do the one thing that a pickle of an array calls `codecs.encode` for."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it wants to encode by {encoding}")
    return text.encode("latin1")


def read_scales(
    path: Path, names: Iterable[str], versions: Sequence[tuple[int, str]]
) -> dict[str, Scales]:
    """Return the scales of the named mixtures, for each pair of rate and mode.

    Nothing in the file is executed. A DataError names what it lacks.
    """
    kinds = ("speech", "noise")
    keys = {
        (rate, mode): [f"scaling_wham_{kind}_{rate // 1000}k_{mode}" for kind in kinds]
        for rate, mode in versions
    }
    try:
        with np.load(path, allow_pickle=False) as arrays:
            for key in ("utterance_id", STARTS, *itertools.chain(*keys.values())):
                if key not in arrays.files:
                    raise DataError(f"{path}: has no array {key!r}")
            gains = {
                version: [np.asarray(arrays[key], np.float64) for key in pair]
                for version, pair in keys.items()
            }
            starts = np.asarray(arrays[STARTS]).astype(np.int64)
        ids = [str(name).removesuffix(".wav") for name in _strings(path)]
    except DataError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    except pickle.UnpicklingError as error:
        raise DataError(f"{path}: is not WHAM!'s file: {error}") from None
    sizes = {len(starts), *(gain.size for pair in gains.values() for gain in pair)}
    if sizes != {len(ids)}:
        raise DataError(f"{path}: its arrays differ in length")
    number = {name: k for k, name in enumerate(ids)}
    scales = {}
    for name in names:
        if name not in number:
            raise DataError(f"{path}: has no scales for {name!r}")
        k = number[name]
        by_version = {
            version: (float(speech.flat[k]), float(noise.flat[k]))
            for version, (speech, noise) in gains.items()
        }
        scales[name] = Scales(int(starts.flat[k]), by_version)
    return scales


def _strings(path: Path) -> Sequence[str]:
    """Return the array `utterance_id`."""
    with zipfile.ZipFile(path) as archive, archive.open("utterance_id.npy") as file:
        version = np.lib.format.read_magic(file)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        _, _, dtype = read(file)
        if not dtype.hasobject:
            with np.load(path, allow_pickle=False) as arrays:
                return arrays["utterance_id"].ravel().tolist()
        return _StringsOnly(file).load().ravel().tolist()
