"""Waveform above spectrogram: the picture of a track, made while it is read.

Legend: C channel, t sample of a block, L column, W sample of a window, F frequency,
R row of the picture.
"""

import io
import zlib

import numpy as np
import scipy.fft
from PIL import Image

COLUMNS, WAVE_ROWS, ROWS = 600, 40, 96
WINDOW_SECONDS, RANGE_DB = 0.03, 70.0

# From silence to the loudest point, then the waveform: red, green, blue.
ANCHORS = [(0, 0, 4), (81, 18, 124), (183, 55, 121), (252, 137, 97), (252, 253, 191)]
LEVELS = 24
WAVE = (120, 190, 255)


def _palette() -> bytes:
    places = np.linspace(0, len(ANCHORS) - 1, LEVELS)
    channels = np.array(ANCHORS).T
    colours = [np.interp(places, range(len(ANCHORS)), channel) for channel in channels]
    return (
        np.vstack([np.stack(colours, axis=1), WAVE]).round().astype(np.uint8).tobytes()
    )


PALETTE = _palette()


def finite(wave: np.ndarray) -> np.ndarray:
    """Return samples with 0 for NaN and infinity."""
    return np.nan_to_num(wave, nan=0.0, posinf=0.0, neginf=0.0)


class Sketch:
    """Extremes and spectrum of a track of known length, in constant memory.

    Samples that are not finite count as 0.
    """

    def __init__(self, frames: int, sample_rate: int) -> None:
        self.frames = frames
        self.columns = min(COLUMNS, frames)
        self.peak = 0.0
        self._low_L, self._high_L = np.zeros((2, self.columns), np.float32)
        self._power_LR = np.zeros((self.columns, ROWS), np.float32)
        self._windows_L = np.zeros(self.columns, np.int64)
        size = 2 ** round(np.log2(max(2, WINDOW_SECONDS * sample_rate)))
        self._window_W = np.hanning(size + 1)[:-1].astype(np.float32)
        self._hop = max(1, min(size // 2, frames // self.columns))
        self._bins_R = _mel_bins(size // 2 + 1, sample_rate)
        self._done = 0  # samples, and windows below
        self._begun = 0
        self._rest_t = np.zeros(size // 2, np.float32)  # windows are centred

    def add(self, wave_tC: np.ndarray) -> None:
        """Take the next block."""
        wave_tC = finite(wave_tC)
        self.peak = max(self.peak, float(np.abs(wave_tC).max(initial=0)))
        mono_t = wave_tC.mean(axis=1, dtype=np.float32)
        column_t = np.arange(self._done, self._done + len(mono_t)) * self.columns
        column_t //= self.frames
        self._done += len(mono_t)
        starts = np.flatnonzero(np.diff(column_t, prepend=-1))
        if len(starts):
            at = column_t[starts]
            low, high = self._low_L, self._high_L
            low[at] = np.minimum(low[at], np.minimum.reduceat(mono_t, starts))
            high[at] = np.maximum(high[at], np.maximum.reduceat(mono_t, starts))
        self._transform(mono_t)

    def finish(self) -> float:
        """Take the last windows; return the largest power in the spectrogram."""
        self._transform(np.zeros(len(self._window_W) // 2, np.float32))
        self._power_LR /= np.maximum(self._windows_L, 1)[:, None]
        return float(self._power_LR.max())

    def _transform(self, mono_t: np.ndarray) -> None:
        wave_t = np.concatenate([self._rest_t, mono_t])
        if len(wave_t) < len(self._window_W):
            self._rest_t = wave_t
            return
        view = np.lib.stride_tricks.sliding_window_view(wave_t, len(self._window_W))
        wave_LW = view[:: self._hop]
        self._rest_t = wave_t[len(wave_LW) * self._hop :]
        spectrum_LF = scipy.fft.rfft(wave_LW * self._window_W)
        power_LF = spectrum_LF.real**2 + spectrum_LF.imag**2
        power_LR = np.maximum.reduceat(power_LF, self._bins_R, axis=1)
        centre_L = (self._begun + np.arange(len(wave_LW))) * self._hop
        self._begun += len(wave_LW)
        column_L = np.minimum(centre_L * self.columns // self.frames, self.columns - 1)
        starts = np.flatnonzero(np.diff(column_L, prepend=-1))
        self._power_LR[column_L[starts]] += np.add.reduceat(power_LR, starts)
        self._windows_L[column_L[starts]] += np.diff(starts, append=len(column_L))

    def png(self, peak: float, power: float) -> bytes:
        """Draw with the full height at `peak` and the brightest colour at `power`."""
        level_LR = 10 * np.log10(self._power_LR / max(power, 1e-20) + 1e-20)
        index_LR = (1 + level_LR / RANGE_DB).clip(0, 1) * (LEVELS - 1)
        y_R1 = np.linspace(1, -1, WAVE_ROWS)[:, None]
        half = 1 / WAVE_ROWS  # silence is a line
        reach = max(peak, 1e-9)
        is_wave_RL = (y_R1 <= self._high_L / reach + half) & (
            y_R1 >= self._low_L / reach - half
        )
        image_RL = np.vstack([is_wave_RL * LEVELS, index_LR.T[::-1]])
        picture = Image.fromarray(image_RL.astype(np.uint8))
        picture.putpalette(PALETTE)
        encoded = io.BytesIO()
        picture.save(encoded, "PNG", compress_level=1, compress_type=zlib.Z_RLE)
        return encoded.getvalue()


def _mel_bins(bins: int, sample_rate: int) -> np.ndarray:
    """First bin of each row: rows are of equal height in mel, from 0 Hz upwards."""
    top = np.log1p(sample_rate / 2 / 700)
    hertz = 700 * np.expm1(np.linspace(0, top, ROWS, endpoint=False))
    return (hertz / (sample_rate / 2) * (bins - 1)).astype(np.int64)
