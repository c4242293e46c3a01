"""Ways to damage audio files, for R11, and a call of `data_prep.verify`."""

import contextlib
import io
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile

from data_prep.verify import __main__ as verify
from tests.toy import RATE

Damage = Callable[[Path], None]
Change = Callable[[np.ndarray], np.ndarray]


def rewrite(change: Change, rate: int = RATE, **form: str) -> Damage:
    """Replace the samples of a file."""

    def damage(path: Path) -> None:
        wave = soundfile.read(path)[0]
        soundfile.write(path, change(wave), rate, **{"subtype": "FLOAT", **form})

    return damage


def put(value: float) -> Damage:
    """Set one sample to the value."""

    def change(wave: np.ndarray) -> np.ndarray:
        wave[len(wave) // 3] = value
        return wave

    return rewrite(change)


def cut_16_bit(path: Path) -> None:
    """Cut a 16-bit file, which is read directly, to half its bytes."""
    rewrite(lambda wave: wave, subtype="PCM_16")(path)
    os.truncate(path, path.stat().st_size // 2)


def cut(path: Path) -> None:
    """Cut a file to half its bytes."""
    os.truncate(path, path.stat().st_size // 2)


def web_page(path: Path) -> None:
    """Write what a failed download leaves."""
    path.write_text("<html>404</html>")


def empty(path: Path) -> None:
    """Empty a file."""
    path.write_bytes(b"")


def odd_header(path: Path) -> None:
    """Write a header that says 32 channels."""
    data = bytearray(path.read_bytes())
    struct.pack_into("<H", data, 22, 32)
    path.write_bytes(data)


def nothing(wave: np.ndarray) -> np.ndarray:
    """Return the samples unchanged."""
    return wave


def constant(wave: np.ndarray) -> np.ndarray:
    """Return an offset without any sound."""
    return 0 * wave + 0.1


def stereo(wave: np.ndarray) -> np.ndarray:
    """Turn [T] into [T, 2]."""
    return np.stack([wave, wave], 1)


def resampled(path: Path) -> None:
    """Write the file at another rate than its song."""
    wave, rate = soundfile.read(path)
    soundfile.write(path, wave, rate * 48 // 44, subtype="FLOAT")


#: What the header of a single file shows, or its first reading.
UNREADABLE: dict[str, Damage] = {
    "0 bytes": empty,
    "a web page": web_page,
    "no samples": rewrite(lambda wave: wave[:0]),
    "32 channels": odd_header,
}
#: Samples that are none.
NO_SIGNAL: dict[str, Damage] = {
    "NaN": put(np.nan),
    "Inf": put(-np.inf),
    "1e25": put(1e25),
}
SOUNDLESS: dict[str, Damage] = {
    "silent": rewrite(np.zeros_like),
    "constant": rewrite(constant),
}
#: Forms of WAV that are not the usual one, and right.
UNUSUAL: dict[str, Damage] = {
    "RF64": rewrite(nothing, format="RF64"),
    "WAVE_FORMAT_EXTENSIBLE": rewrite(nothing, format="WAVEX"),
    "24 bit": rewrite(nothing, subtype="PCM_24"),
    "64-bit float": rewrite(nothing, subtype="DOUBLE"),
    "32-bit float": rewrite(nothing),
}


def verified(arguments: list[str]) -> tuple[int, str]:
    """Return exit status and output of `python -m data_prep.verify`."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        status = verify.main(arguments)
    # The bar's line ends without a line feed.
    return status, text.getvalue().replace("\r", "\n")
