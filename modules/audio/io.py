"""Audio files in and out.

soundfile reads and writes, except for crops of plain files: training opens a file for
every crop, and opening one by soundfile takes longer than mixing what was read. Files
of 16-bit PCM, mono or stereo, as long as their header says, are therefore read
directly. The samples are the same.

torch is imported only where tensors are made: it takes seconds to load, and the
processes that make a data set need none.

Legend: S source, C channel, T sample.
"""

import contextlib
import functools
import hashlib
import io
import os
import re
import struct
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import soundfile
from scipy.io import wavfile

from modules.audio.faults import length_fault, level_fault, promised_frames
from modules.runtime.errors import AudioError, DataError
from modules.runtime.files import folded, open_file, write_whole

if TYPE_CHECKING:
    from torch import Tensor

# Files that are listed in a folder of audio.
SUFFIXES = (".wav", ".flac")

UNSAFE = '/\\<>:"|?*'  # in a name made from an id
NAME_BYTES = 200  # of it; file systems take 255

PLAIN_HEADER_BYTES = 512
# Formats whose headers libsndfile believes, and how many samples are counted at a time.
UNSURE = ("FLAC", "MP3")
COUNTED_FRAMES = 2**12

FORMAT_PCM = 1  # the code of integer samples in a WAV's format chunk


class Header(NamedTuple):
    """What a file says of its samples."""

    sample_rate: int
    channels: int
    frames: int


class _Sound(soundfile.SoundFile):
    """A file in which soundfile does not seek after each read.

    It seeks to where the read ended, which libFLAC refuses at the end of a file whose
    header does not know its length.
    """

    def seekable(self) -> bool:
        """Return False, whatever the file."""
        return False


class AudioFile:
    """An open file: its `header`, and what is wrong with its length.

    `header.frames` is what the file holds, whatever its header claims. `fault` says
    that it is empty or truncated, `note` that it is a little shorter than claimed.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path
        self._plain = open_file(path, buffering=0)
        self._sound: _Sound | None = None
        self._position = 0
        self.fault = self.note = ""
        try:
            status = os.fstat(self._plain.fileno())
            plain = parse_plain(self._plain.read(PLAIN_HEADER_BYTES), status.st_size)
            if plain is not None:
                self.header, self._offset = plain
                return
            sound = self._sound = _Sound(os.fsencode(path))
            held = sound.frames
            if sound.format in UNSURE:
                held = _count_frames(os.fspath(path), _stamp(status))
            self.header = Header(sound.samplerate, sound.channels, held)
            self.fault, self.note = length_fault(sound, held, status.st_size)
        except BaseException:
            self.close()
            raise

    @property
    def subtype(self) -> str:
        """How samples are coded, in libsndfile's words."""
        return self._sound.subtype if self._sound is not None else "PCM_16"

    def __enter__(self) -> "AudioFile":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._plain.close()
        if self._sound is not None:
            self._sound.close()

    def read(
        self, start: int = 0, frames: int | None = None, dtype: str = "float32"
    ) -> np.ndarray:
        """Return samples [T, C] as float32 or float64; None reads to the end.

        The result is shorter than `frames` where the file ends.
        """
        try:
            if self._sound is None:
                return self._read_plain(start, frames, dtype)
            left = max(self.header.frames - start, 0)
            count = left if frames is None else min(frames, left)
            if count and self._position != start:
                self._sound.seek(start)
            self._position = start + count
            return self._sound.read(count, dtype=dtype, always_2d=True)
        except (OSError, RuntimeError) as error:
            raise unreadable(self.path, error) from error

    def _read_plain(self, start: int, frames: int | None, dtype: str) -> np.ndarray:
        _, channels, total = self.header
        if not 0 <= start <= total:
            return np.zeros((0, channels), dtype)
        frames = total - start if frames is None else min(frames, total - start)
        self._plain.seek(self._offset + 2 * channels * start)
        raw = self._plain.read(2 * channels * frames)
        short_TC = np.frombuffer(raw, "<i2").reshape(-1, channels)
        return np.multiply(short_TC, np.dtype(dtype).type(2**-15), dtype=dtype)


def open_audio(path: str | Path) -> AudioFile:
    """Open any file that libsndfile reads; use it as a context manager.

    An AudioError, whose message starts with the path, says why it cannot be read.
    """
    try:
        return AudioFile(path)
    except (OSError, RuntimeError) as error:  # of soundfile, too
        raise unreadable(path, error) from error


def open_whole(path: str | Path) -> AudioFile:
    """Open a file as `open_audio` does; an AudioError says that it is cut or empty."""
    file = open_audio(path)
    if file.fault:
        file.close()
        raise AudioError(f"{path} {file.fault}")
    return file


def read_header(path: str | Path, remember: bool = False) -> Header:
    """Return rate, channels and length of a file.

    An AudioError says that it cannot be read, is empty or truncated. With `remember`
    the next call opens the file again only if it has changed: preparing a data set
    reads every header, and training checks the same files right after.
    """
    try:
        stamp = _stamp(os.stat(path))
    except OSError as error:
        raise unreadable(path, error) from error
    known, header = _REMEMBERED.pop(str(path), (None, None))
    if header is None or known != stamp:
        with open_whole(path) as file:
            header = file.header
    if remember:
        _REMEMBERED[str(path)] = (stamp, header)
    return header


# What files said of themselves, by path, with the marks of a changed file.
_REMEMBERED: dict[str, tuple[tuple[int, ...], Header]] = {}


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    """Return the marks of a changed file."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


@functools.lru_cache(maxsize=2**16)
def _count_frames(path: str, stamp: tuple[int, ...]) -> int:
    """Return how many samples a file holds, by reading it if its header is wrong."""
    ends_early = contextlib.suppress(soundfile.LibsndfileError)
    with _Sound(os.fsencode(path)) as file, ends_early:
        if promised := promised_frames(file):
            file.seek(promised - 1)
            if len(file.read(1)):
                return promised
    count = 0
    with _Sound(os.fsencode(path)) as file, ends_early:
        while found := len(file.read(COUNTED_FRAMES, dtype="float32")):
            count += found
    return count


def unreadable(path: str | Path, error: Exception) -> AudioError:
    """Return an error of one line, in which the path stands once."""
    if isinstance(error, FileNotFoundError):
        return AudioError(f"{path}: {_missing(Path(path))}")
    reason = getattr(error, "strerror", None) or getattr(error, "error_string", error)
    return AudioError(f"{path}: cannot be read as audio ({reason})")


def _missing(path: Path) -> str:
    """Say that a file does not exist, and what there is instead."""
    if path.is_symlink():
        return f"is a link to {os.readlink(path)}, which does not exist"
    there = ""
    if path.parent.is_dir():
        named = _names_in(path.parent, path.parent.stat().st_mtime_ns)
        alike = named.get(folded(path.stem), ())
        there = f"; there is {', '.join(alike)}" if alike else ""
    if re.search("[\udc80-\udcff]", str(path)):
        there += "; its name is not UTF-8, as a table must be that names other files"
    return f"does not exist{there}"


@functools.lru_cache(maxsize=16)
def _names_in(folder: Path, changed: int) -> dict[str, list[str]]:
    """Return the names in a folder by what stands before each of their dots."""
    named: dict[str, list[str]] = {}
    for name in sorted(os.listdir(folder)):
        for dot in re.finditer(r"\.", name):
            named.setdefault(folded(name[: dot.start()]), []).append(name)
    return named


def parse_plain(head: bytes, file_bytes: int) -> tuple[Header, int] | None:
    """Return header and place of the samples of a plain file, None for another."""
    if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
        return None
    place, form = 12, None
    while place + 8 <= len(head):
        name, size = struct.unpack_from("<4sI", head, place)
        place += 8
        if name == b"fmt " and size >= 16 and place + 16 <= len(head):
            form = struct.unpack_from("<HHIIHH", head, place)
        elif name == b"data":
            code, channels, rate, _, frame_bytes, bits = form or (0,) * 6
            plain = code == FORMAT_PCM and bits == 16 and channels in (1, 2) and rate
            if not plain or frame_bytes != 2 * channels:
                return None
            if not size or size % frame_bytes or place + size > file_bytes:
                return None
            return Header(rate, channels, size // frame_bytes), place
        place += size + size % 2  # chunks are padded to an even length
    return None


def read_audio(
    path: str | Path,
    start: int = 0,
    frames: int | None = None,
    sample_rate: int | None = None,
) -> "Tensor":
    """Read `frames` samples of a mono file from `start` on; None reads to the end.

    Returns float32 [T], full scale at 1. An AudioError says that the file cannot be
    read, is shorter, is not mono or is not at `sample_rate` (None accepts any).
    """
    return _read(path, start, frames, sample_rate, channels=(1,))[0]


def read_stereo(
    path: str | Path,
    start: int = 0,
    frames: int | None = None,
    sample_rate: int | None = None,
) -> "Tensor":
    """Read a stereo file as `read_audio` reads a mono one: float32, shape [2, T].

    A mono file gives two equal channels; more than two are an AudioError. Silence
    follows where a file ends early.
    """
    wave_CT = _read(path, start, frames, sample_rate, channels=(1, 2), pad=True)
    return wave_CT if len(wave_CT) == 2 else wave_CT.repeat(2, 1)


def _read(
    path: str | Path,
    start: int,
    frames: int | None,
    sample_rate: int | None,
    channels: tuple[int, ...],
    pad: bool = False,
) -> "Tensor":
    """Read [C, T] from a file that must have one of the given numbers of channels."""
    import torch

    with open_audio(path) as file:
        found, fault = file.header, file.fault
        if found.channels not in channels:
            expected = "mono" if channels == (1,) else "stereo or mono"
            fault = f"has {found.channels} channels, expected a {expected} file"
            raise AudioError(f"{path}: {fault}")
        if sample_rate not in (None, found.sample_rate):
            fault = f"is at {found.sample_rate} Hz, expected {sample_rate} Hz"
            raise AudioError(f"{path}: {fault}; resample it or set --sample_rate")
        wanted = found.frames - start if frames is None else frames
        wave_TC = file.read(start, wanted)
    held = min(max(found.frames - start, 0), wanted)
    if pad and not fault and len(wave_TC) == held:
        wave_TC = np.pad(wave_TC, ((0, max(wanted, 0) - held), (0, 0)))
    if len(wave_TC) != wanted or wanted <= 0:
        fault = f"holds {len(wave_TC)} of the {wanted} samples expected from sample"
        raise AudioError(f"{path}: {fault} {start} on; it is truncated or has changed")
    return torch.from_numpy(wave_TC.T).contiguous()


def sample_fault(wave: "Tensor | np.ndarray") -> str:
    """Apply `modules.audio.faults.level_fault` to samples of any shape."""
    return level_fault(float(wave.min()), float(wave.max()))


def check_samples(path: str | Path, wave: "Tensor | np.ndarray") -> None:
    """Raise an AudioError for NaN, Inf, or a peak beyond `faults.LARGEST_PEAK`."""
    if fault := sample_fault(wave):
        hint = "python -m data_prep.verify lists all such files"
        raise AudioError(f"{path}: {fault}; repair or remove it ({hint})")


def write_wave(
    path: str | Path, wave: np.ndarray, sample_rate: int, subtype: str = "PCM_16"
) -> None:
    """Write a WAV that appears only when it is whole; its folder is made.

    `wave` is [T] or [T, C]. For `PCM_16` int16 is written as it is, and float, full
    scale at 1, is rounded as libsndfile does (times 32767). `FLOAT` neither rescales
    nor clips. The file is made in memory: soundfile syncs every file it closes to the
    disk, which takes longer than mixing what is in it.
    """
    encoded = io.BytesIO()
    if subtype == "FLOAT":
        # libsndfile would note the time of day in the file (its PEAK chunk).
        wave = np.asarray(wave)
        if not np.issubdtype(wave.dtype, np.floating):
            raise TypeError(f"{path}: {wave.dtype} samples cannot be FLOAT")
        wavfile.write(encoded, sample_rate, wave.astype(np.float32))
    else:
        soundfile.write(encoded, wave, sample_rate, subtype=subtype, format="WAV")
    try:
        with write_whole(path, sync=False) as partial:
            partial.write_bytes(encoded.getbuffer())
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror})") from None


def write_audio(path: str | Path, wave: "Tensor", sample_rate: int) -> None:
    """Write a tensor [T] or [C, T] as a float32 WAV by `write_wave`."""
    write_wave(path, wave.detach().float().cpu().numpy().T, sample_rate, "FLOAT")


def safe_name(id_: str) -> str:
    """Return an example's id as a name of a file or tag: no separators, no leading dot.

    Where that changes the id, a digest of it follows: two ids never share a name.

    Example
    -------
    >>> safe_name("Zoë - 1.5"), safe_name("live/Zoë 1")
    ('Zoë - 1.5', 'live_Zoë 1-8835f734')
    """
    kept = (c if c.isprintable() and c not in UNSAFE else "_" for c in id_)
    name = unicodedata.normalize("NFC", "".join(kept)).strip(". ")
    name = name.encode()[:NAME_BYTES].decode(errors="ignore")
    digest = hashlib.sha256(id_.encode(errors="surrogateescape")).hexdigest()[:8]
    return name if name and name == id_ else f"{name}-{digest}"


def named_waves(
    mix: "Tensor",
    est: "Tensor",
    target: "Tensor",
    est_names: Sequence[str] = (),
    target_names: Sequence[str] = (),
) -> "Iterator[tuple[str, Tensor]]":
    """Yield the waves of one separated example with the names of their files.

    Sources stand in the first dimension; those without a name are numbered from 1.
    """
    yield "mixture", mix
    sides = (("estimate", est, est_names), ("target", target, target_names))
    for kind, waves, names in sides:
        for number, wave in enumerate(waves):
            name = names[number] if number < len(names) else number + 1
            yield f"{kind}_{name}", wave
