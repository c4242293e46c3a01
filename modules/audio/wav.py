"""Parts of audio files, read quickly: training opens a file for every crop.

Opening and reading by soundfile takes longer than mixing what was read. Plain files
(PCM of 16 bits, mono or stereo, as long as their header says) are therefore read
directly; all others, and those that are not right, by soundfile. The samples are the
same.

Legend: C channel, T sample.
"""

import os
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

HEADER_BYTES = 512

PCM = 1


class Header(NamedTuple):
    """Where the samples of a file lie."""

    sample_rate: int
    channels: int
    frames: int
    offset: int


def parse_header(head: bytes, file_bytes: int) -> Header | None:
    """Read the first bytes of a file; None unless it is plain.

    Arguments
    ---------
    head : bytes
        Its first `HEADER_BYTES`.
    file_bytes : int
        Its size.
    """
    if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
        return None
    place, form = 12, None
    while place + 8 <= len(head):
        name, size = (
            head[place : place + 4],
            int.from_bytes(head[place + 4 : place + 8], "little"),
        )
        place += 8
        if name == b"fmt " and size >= 16 and place + 16 <= len(head):
            form = struct.unpack_from("<HHIIHH", head, place)
        elif name == b"data":
            if form is None:
                return None
            kind, channels, rate, _, block, bits = form
            plain = kind == PCM and bits == 16 and channels in (1, 2)
            whole = size > 0 and size % (2 * channels) == 0
            if not (plain and whole and rate and block == 2 * channels):
                return None
            if place + size > file_bytes:
                return None
            return Header(rate, channels, size // block, place)
        place += size + size % 2
    return None


class OpenFile:
    """An audio file to read from, in the quickest way for what it is.

    Arguments
    ---------
    path : str | Path
        Any file that libsndfile reads.

    Raises
    ------
    OSError, soundfile.LibsndfileError
        It cannot be opened or is no audio.
    """

    def __init__(self, path: str | Path) -> None:
        self._plain = open(path, "rb", buffering=0)  # noqa: SIM115, closed by __exit__
        try:
            size = os.fstat(self._plain.fileno()).st_size
            header = parse_header(self._plain.read(HEADER_BYTES), size)
            self._sound = None if header else soundfile.SoundFile(os.fspath(path))
        except BaseException:
            self._plain.close()
            raise
        if header is None:
            sound = self._sound
            header = Header(sound.samplerate, sound.channels, sound.frames, 0)
        self.samplerate, self.channels, self.frames, self._offset = header

    def __enter__(self) -> "OpenFile":
        return self

    def __exit__(self, *exception: object) -> None:
        self._plain.close()
        if self._sound is not None:
            self._sound.close()

    def read(self, start: int, frames: int) -> np.ndarray:
        """float32 [T, C], full scale at 1; fewer than asked for at the end."""
        if self._sound is not None:
            self._sound.seek(start)
            return self._sound.read(frames, dtype="float32", always_2d=True)
        if not 0 <= start <= self.frames:
            return np.zeros((0, self.channels), np.float32)
        frame_bytes = 2 * self.channels
        self._plain.seek(self._offset + frame_bytes * start)
        raw = self._plain.read(frame_bytes * min(frames, self.frames - start))
        short_TC = np.frombuffer(raw, "<i2").reshape(-1, self.channels)
        return np.multiply(short_TC, np.float32(2**-15), dtype=np.float32)
