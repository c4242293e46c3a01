"""Whether the stems of a track belong together: none delayed, none in another.

Legend: T sample, t sample of a coarse signal, F frequency, D lag, S stem.
"""

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_prep.common.tracks import stem_name
from modules.data.manifest import Row

KICK = "kick"
DRUMS = ("snare", "hihat", "hi-hat", "hats", "hat", "cymbals", "toms", "percussion")


class Signal(NamedTuple):
    """What is correlated, and when a delay is believed."""

    hz: int  # samples a second of the coarse signal
    limit: float  # the longest delay that is looked for, in seconds
    smallest: float  # the shortest that counts
    least: float  # the least correlation at the delay
    clear: float  # by how much it must exceed that at none


WAVES = Signal(4000, 0.5, 0.002, 0.05, 3.0)  # of a stem and the mixture
# Of drums: less than half a sixteenth of fast music, and drummers vary.
BEATS = Signal(500, 0.05, 0.008, 0.15, 1.4)

BLOCK_SECONDS = 10


class Alignment:
    """Correlations of the stems of a track, from its blocks {path: [T, C]}."""

    def __init__(self, row: Row, rate: int, max_correlation: float) -> None:
        self.row, self.rate, self.max_correlation = row, rate, max_correlation
        self.dots_SS: np.ndarray | float = 0.0
        # By the pair of files and the signals compared: cross and two power spectra.
        self.spectra: dict[tuple, np.ndarray] = defaultdict(lambda: np.zeros(1))
        self.sources = [path for path in row.sources if path]
        names = {stem_name(row, path).lower(): path for path in self.sources}
        others = [names[name] for name in DRUMS if name in names and KICK in names]
        self.pairs = [(names[KICK], other, BEATS) for other in others]
        if row.mixture:
            self.pairs += [(row.mixture, path, WAVES) for path in self.sources]

    def add(self, waves: Mapping[str, np.ndarray]) -> None:
        """Take in a block, if all files have it."""
        if len({wave.shape for wave in waves.values()}) != 1:
            return
        waves = {p: np.nan_to_num(x, posinf=0, neginf=0) for p, x in waves.items()}
        if all(path in waves for path in self.sources):
            flat_ST = np.stack([waves[path].ravel() for path in self.sources])
            self.dots_SS = self.dots_SS + flat_ST @ flat_ST.T
        for first, second, kind in self.pairs:
            if first in waves and second in waves:
                one_F, two_F = (self._spectrum(waves[p], kind) for p in (first, second))
                powers = abs(one_F) ** 2, abs(two_F) ** 2
                key, sums = (first, second, kind), (two_F * one_F.conj(), *powers)
                self.spectra[key] = self.spectra[key] + np.stack(sums)

    def _spectrum(self, wave_TC: np.ndarray, kind: Signal) -> np.ndarray:
        """Return the spectrum [F] of a wave at a low rate, or of its onsets."""
        step = max(round(self.rate / kind.hz), 1)
        parts_tT = wave_TC.mean(1)[: len(wave_TC) // step * step].reshape(-1, step)
        coarse_t = parts_tT.mean(1)
        if kind is BEATS:
            level_t = np.sqrt(np.square(parts_tT).mean(1))
            coarse_t = np.maximum(np.diff(level_t, prepend=0.0), 0.0)
        return np.fft.rfft(coarse_t, 1 << (2 * BLOCK_SECONDS * kind.hz).bit_length())

    def notes(self) -> Iterator[str]:
        """Yield what is suspicious."""
        for (first, second, kind), (cross_F, one_F, two_F) in self.spectra.items():
            if late := self._delay(cross_F, one_F.real, two_F.real, kind):
                how = f"{abs(late) * 1000:.0f} ms {'late' if late > 0 else 'early'}"
                what = "the beats of " if kind is BEATS else ""
                what += os.path.relpath(first, Path(second).parent)
                yield f"{second} seems {how} against {what}"
        if np.ndim(self.dots_SS):
            norm_S = np.sqrt(np.diag(self.dots_SS)) + 1e-12
            correlation_SS = abs(self.dots_SS / np.outer(norm_S, norm_S))
            for a, b in combinations(range(len(norm_S)), 2):
                found = correlation_SS[a, b]
                if self.max_correlation < found < 0.999:  # equal ones are noted anyway
                    one = self.sources[a]
                    two = os.path.relpath(self.sources[b], Path(one).parent)
                    yield f"{one} and {two} correlate by {found:.2f}: bleed?"

    def _delay(
        self, cross_F: np.ndarray, one_F: np.ndarray, two_F: np.ndarray, kind: Signal
    ) -> float:
        """Return the delay of the second signal in seconds, 0 if none is clear."""
        hz = self.rate / max(round(self.rate / kind.hz), 1)
        if kind is WAVES:  # all frequencies alike, where they are common to both
            cross_F = cross_F / (np.sqrt(one_F * two_F) + 1e-9 * one_F.max() + 1e-20)
            norm = 1.0
        else:
            norm = np.sqrt(np.fft.irfft(one_F)[0] * np.fft.irfft(two_F)[0]) + 1e-20
        lags_D = np.arange(-int(kind.limit * hz), int(kind.limit * hz) + 1)
        found_D = abs(np.fft.irfft(cross_F)[lags_D]) / norm
        best = int(found_D.argmax())
        near = found_D[abs(lags_D) <= kind.smallest * hz].max()
        is_clear = found_D[best] > max(kind.least, kind.clear * near)
        return float(lags_D[best] / hz) if is_clear else 0.0
