"""Judge whether a set of stems is fit to train on: a table, one line a requirement.

Part of `python -m data_prep.verify FOLDER --layout=stems`. Guides to adapting a music
model name these requirements: stems of equal length, a mixture that is their sum, no
clipping, no silence, similar loudness, long enough tracks at one rate and depth, and
enough of them. The figures are ours and can be set.

Legend: T sample, C channel.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_prep.common.tracks import MissingStems, stem_name
from data_prep.verify.alignment import Alignment
from data_prep.verify.rows import NOTE, Contents, Fault, Waves, row_faults
from modules.audio.faults import SUM_TOLERANCE
from modules.audio.io import Header, open_audio
from modules.audio.levels import active_level_db
from modules.data.manifest import Row
from modules.data.track_levels import level_fault
from modules.runtime.errors import AudioError

DEPTHS = {"PCM_16": 16, "PCM_24": 24, "PCM_32": 32, "FLOAT": 32, "DOUBLE": 64}
BROKEN = ("missing", "unreadable", "truncated", "empty", "non-finite", "level")


@dataclass(frozen=True)
class Requirements:
    """The requirements of a set of stems; each field is an option of the command.

    Arguments
    ---------
    min_train : int
        Tracks to train on.
    min_valid : int
        Tracks to validate on.
    min_seconds : float
        Length of a track: what a recipe cuts out of it.
    max_seconds : float
        Length of a track; longer ones are mostly whole albums.
    max_spread_db : float
        Difference between the loudest and the softest mixture.
    min_bits : int
        Bits of a sample.
    max_correlation : float
        Correlation of two stems of a track; bleed of -16 dB has 0.15.
    rates : Sequence[int]
        In Hz; every file must have one and the same of them.
    sources : Sequence[str]
        Names of the stems; found by looking if not given.
    missing_stems : str
        A stem that a track lacks is a fault (refuse) or silent (silent).
    """

    min_train: int = 20
    min_valid: int = 2
    min_seconds: float = 12.0
    max_seconds: float = 1200.0
    max_spread_db: float = 12.0
    min_bits: int = 16
    max_correlation: float = 0.15
    rates: Sequence[int] = (44100, 48000)
    sources: Sequence[str] = ()
    missing_stems: MissingStems = "refuse"

    @property
    def one_rate(self) -> str:
        """The rates in a message."""
        return f"one of {','.join(map(str, self.rates))} Hz"

    @property
    def lengths(self) -> str:
        """The lengths in a message."""
        return f"{self.min_seconds:g} to {self.max_seconds:g} s"


USUAL = Requirements()


class Figures(NamedTuple):
    """Length, rates, depths and level of the files of a track."""

    seconds: float
    rates: frozenset[int]
    bits: frozenset[int]
    level_db: float


# Requirement, what is wanted, what is found, and how many faults or of which kinds.
Line = tuple[str, str, str, int | Sequence[str]]


class StemsReport:
    """Check tracks one by one, then the set as a whole."""

    def __init__(self, wanted: Requirements) -> None:
        self.wanted = wanted
        self.figures: dict[str, Figures] = {}
        self.faults: dict[str, list[Fault]] = {}

    def check(self, row: Row, contents: Contents) -> list[Fault]:
        """Return the faults of a track, by reading all of it; threads call this."""
        headers: dict[str, Header] = {}
        bits: dict[str, int] = {}
        for path in row.files:
            # `row_faults` names those that cannot be read.
            with suppress(AudioError), open_audio(path) as file:
                headers[path], bits[path] = file.header, DEPTHS.get(file.subtype, 8)
        if not headers:
            self.faults[row.id] = row_faults(row, contents)
            return self.faults[row.id]
        rates = frozenset(header.sample_rate for header in headers.values())
        level: list[np.ndarray] = [np.zeros(1)]
        alignment = Alignment(row, max(rates), self.wanted.max_correlation)

        def observe(waves: Waves) -> None:
            """Keep the level of the mixture, or else of the sum of the stems."""
            chosen = [waves[row.mixture]] if row.mixture in waves else waves.values()
            whole_TC = np.zeros((max(map(len, chosen)), 2))
            for wave_TC in chosen:
                whole_TC[: len(wave_TC)] += wave_TC[:, :2]
            level.append(np.sqrt(np.square(whole_TC).mean(1)))
            alignment.add(waves)

        faults = row_faults(row, contents, observe)
        faults += [Fault(NOTE, text) for text in alignment.notes()]
        level_T = np.nan_to_num(np.concatenate(level))
        figures = Figures(
            min(header.frames / header.sample_rate for header in headers.values()),
            rates,
            frozenset(bits.values()),
            active_level_db(level_T, max(rates)),
        )
        faults += self._faults_of(headers, bits, figures)
        if quiet := level_fault(float(np.sqrt(np.square(level_T).mean()))):
            faults.append(Fault("silent", f"{row.place} {quiet}"))
        self.figures[row.id], self.faults[row.id] = figures, faults
        return faults

    def _faults_of(
        self, headers: Mapping[str, Header], bits: Mapping[str, int], figures: Figures
    ) -> Iterator[Fault]:
        """Yield what differs from the requirements, with the file in question."""
        wanted, (seconds, rates, _, _) = self.wanted, figures
        if not wanted.min_seconds <= seconds <= wanted.max_seconds:
            path = min(headers, key=lambda path: headers[path].frames)
            text = f"{path} lasts {seconds:.1f} s, wanted {wanted.lengths}"
            yield Fault("duration", text)
        if len(rates) == 1 and not rates <= set(wanted.rates):
            text = f"{next(iter(headers))} is at {min(rates)} Hz"
            yield Fault("rate", f"{text}, wanted {wanted.one_rate}")
        fewest, path = min((count, path) for path, count in bits.items())
        if fewest < wanted.min_bits:
            yield Fault("depth", f"{path} has {fewest} bits, wanted {wanted.min_bits}")

    def print_table(self, rows: Sequence[Row]) -> int:
        """Print a line for each requirement; return the faults of the whole set."""
        kinds = Counter(fault.kind for found in self.faults.values() for fault in found)
        table: list[list[str]] = [["requirement", "wanted", "found", "faults"]]
        whole_set = 0
        for *line, faults in self._lines(rows):
            if isinstance(faults, int):
                whole_set += faults
            else:
                faults = sum(kinds[kind] for kind in faults)
            table.append([*line, str(faults or "none")])
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        for line in table:
            print("  ".join(map(str.ljust, line, widths)).rstrip())
        return whole_set

    def _lines(self, rows: Sequence[Row]) -> list[Line]:
        """Return the requirements of each track, then those of the set."""
        wanted, figures = self.wanted, self.figures.values()
        files = f"{sum(len(row.files) for row in rows)} files"
        pairs = [(row, path) for row in rows for path in row.sources if path]
        names = ", ".join({stem_name(row, path): None for row, path in pairs})
        mixed = sum(bool(row.mixture) for row in rows)
        mixtures = f"{mixed} mixtures, {len(rows) - mixed} tracks without"
        within = f"within {round(SUM_TOLERANCE * 2**15)} LSB of 16 bits"
        lengths = [figure.seconds for figure in figures] or [0.0]
        minutes = sum(lengths) / 60
        spans = f"{min(lengths):.1f} to {max(lengths):.1f} s, {minutes:.1f} min"
        hours = f"{minutes / 60:.2f} h in all"
        rates = Counter(rate for figure in figures for rate in figure.rates)
        depths = _counted(Counter(n for one in figures for n in one.bits), "bits")
        spread, ends = self._spread()
        most, several = f"at most {wanted.max_spread_db:g} dB", int(len(rates) > 1)
        far = int(spread > wanted.max_spread_db)
        splits = Counter(Path(row.id).parts[0] for row in rows if "/" in row.id)
        # Without a folder for them, validation tracks are held out of the training set.
        sizes = splits or {"train": len(rows)}
        least = {"train": wanted.min_train, "valid": wanted.min_valid}
        return [
            ("whole files", names, files, BROKEN),
            ("aligned stems", "stereo, padded to one length", "", ["channels"]),
            ("mixture is the sum", within, mixtures, ["sum"]),
            ("clipping", "none", "", ["clipped"]),
            ("silence", "no silent file", "", ["silent"]),
            ("durations", wanted.lengths, spans, ["duration"]),
            ("hours of music", "2 to 3 to adapt a model", hours, 0),
            ("sample rate", wanted.one_rate, _counted(rates, "Hz"), ["rate"]),
            ("bit depth", f"at least {wanted.min_bits}", depths, ["depth"]),
            ("loudness spread", most, ends, far),
            ("one sample rate", "the same in all", str(len(rates)), several),
            *(
                (
                    f"size of {name}",
                    f"at least {few}",
                    f"{size} tracks",
                    int(size < few),
                )
                for name, few in least.items()
                if (size := sizes.get(name, 0)) or name == "train"
            ),
        ]

    def _spread(self) -> tuple[float, str]:
        """Return the spread of loudness in dB, and which tracks are at its ends."""
        levels = [(figure.level_db, name) for name, figure in self.figures.items()]
        levels = [pair for pair in levels if np.isfinite(pair[0])]
        if not levels:
            return 0.0, "no sound"
        (low, softest), (high, loudest) = min(levels), max(levels)
        ends = f"{softest} {low:.1f} to {loudest} {high:.1f} dBFS"
        return high - low, f"{high - low:.1f} dB: {ends}"


def _counted(counts: Mapping[int, int], unit: str) -> str:
    """Say how many tracks have each value."""
    return ", ".join(f"{n} at {value} {unit}" for value, n in sorted(counts.items()))
