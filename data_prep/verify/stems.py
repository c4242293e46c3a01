"""What a set of stems must be to train on: a table with a line for each requirement.

Part of `python -m data_prep.verify FOLDER --layout=stems`. The requirements are those
that guides to adapting a music model name: stems as long as each other, a mixture that
is their sum, no clipping, no silence, like loudness, long enough tracks at one rate
and depth, and enough of them. The figures are ours and can be set.

Legend: T sample, C channel.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from data_prep.verify.rows import Fault, Waves, row_faults
from modules.audio.faults import SUM_TOLERANCE
from modules.audio.levels import active_level_db
from modules.data.manifest import Row

DEPTHS = {"PCM_16": 16, "PCM_24": 24, "PCM_32": 32, "FLOAT": 32, "DOUBLE": 64}


@dataclass(frozen=True)
class Requirements:
    """What is wanted of a set of stems; each field is an option of the command.

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
    rates : Sequence[int]
        In Hz; every file must have one and the same of them.
    sources : Sequence[str]
        Names of the stems; found by looking if not given.
    """

    min_train: int = 20
    min_valid: int = 2
    min_seconds: float = 12.0
    max_seconds: float = 1200.0
    max_spread_db: float = 12.0
    min_bits: int = 16
    rates: Sequence[int] = (44100, 48000)
    sources: Sequence[str] = ()

    @property
    def rates_text(self) -> str:
        """The rates in a message."""
        return f"one of {','.join(map(str, self.rates))} Hz"


USUAL = Requirements()


@dataclass(frozen=True)
class Figures:
    """What the files of a track are."""

    seconds: float
    rates: frozenset[int]
    bits: frozenset[int]
    level_db: float


class StemsReport:
    """Checks tracks one by one, then the set as a whole.

    Arguments
    ---------
    wanted : Requirements
        What is compared with.
    """

    def __init__(self, wanted: Requirements) -> None:
        self.wanted = wanted
        self.figures: dict[str, Figures] = {}
        self.faults: dict[str, list[Fault]] = {}

    def check(self, row: Row) -> list[Fault]:
        """The faults of a track, by reading all of it; called by several threads."""
        mono: list[np.ndarray] = []

        def observe(waves: Waves) -> None:
            """Keep the mixture, or the sum where there is none."""
            chosen = [waves[row.mixture]] if row.mixture in waves else waves.values()
            shortest = min(map(len, chosen), default=0)
            mono.append(sum(wave[:shortest].mean(1) for wave in chosen))

        faults = row_faults(row, observe)
        headers = []
        for path in row.files:
            try:
                headers.append(soundfile.info(path))
            except (soundfile.LibsndfileError, OSError):
                continue  # `row_faults` has named it
        if headers:
            mono_T = np.nan_to_num(np.concatenate(mono or [np.zeros(0)]))
            rates = frozenset(header.samplerate for header in headers)
            figures = Figures(
                seconds=min(header.frames / header.samplerate for header in headers),
                rates=rates,
                bits=frozenset(DEPTHS.get(header.subtype, 8) for header in headers),
                level_db=active_level_db(mono_T, max(rates))
                if len(mono_T)
                else -np.inf,
            )
            faults += self._faults_of(row, figures)
            self.figures[row.id] = figures
        self.faults[row.id] = faults
        return faults

    def _faults_of(self, row: Row, figures: Figures) -> list[Fault]:
        """What of a track's figures is not as wanted."""
        folder, wanted, faults = Path(row.sources[0]).parent, self.wanted, []
        if not wanted.min_seconds <= figures.seconds <= wanted.max_seconds:
            text = (
                f"{folder} lasts {figures.seconds:.1f} s, wanted "
                f"{wanted.min_seconds:g} to {wanted.max_seconds:g} s"
            )
            faults.append(Fault("duration", text))
        if len(figures.rates) > 1 or not figures.rates <= set(wanted.rates):
            rates = " and ".join(map(str, sorted(figures.rates)))
            text = f"{folder} is at {rates} Hz, wanted {wanted.rates_text}"
            faults.append(Fault("rate", text))
        if min(figures.bits) < wanted.min_bits:
            text = f"{folder} has {min(figures.bits)} bits, wanted {wanted.min_bits}"
            faults.append(Fault("depth", text))
        return faults

    def print_table(self, rows: Sequence[Row]) -> int:
        """Print a line for each requirement; returns the faults of the whole set."""
        kinds = Counter(fault.kind for found in self.faults.values() for fault in found)
        lines = [*self._lines_of_tracks(rows), *self._lines_of_set(rows)]
        head = ("requirement", "wanted", "found", "faults")
        table = [head]
        whole_set = 0
        for name, wanted, found, faults in lines:
            count = faults if isinstance(faults, int) else sum(kinds[k] for k in faults)
            whole_set += faults if isinstance(faults, int) else 0
            table.append((name, wanted, found, str(count or "none")))
        widths = [max(len(line[k]) for line in table) for k in range(len(head))]
        for line in table:
            cells = (
                cell.ljust(width) for cell, width in zip(line, widths, strict=True)
            )
            print("  ".join(cells).rstrip())
        return whole_set

    def _lines_of_tracks(self, rows: Sequence[Row]) -> list[tuple]:
        """Requirements of each track: name, wanted, found, the kinds of its faults."""
        wanted, figures = self.wanted, self.figures.values()
        files = sum(len(row.files) for row in rows)
        mixtures = sum(1 for row in rows if row.mixture)
        lsb = round(SUM_TOLERANCE * 2**15)
        seconds = [figure.seconds for figure in figures]
        lengths = f"{min(seconds, default=0):.1f} to {max(seconds, default=0):.1f} s"
        names = ", ".join(Path(path).stem for path in rows[0].sources)
        broken = ("missing", "unreadable", "truncated", "empty", "non-finite", "level")
        return [
            ("whole files", f"{names}", f"{files} files", broken),
            ("aligned stems", "equal lengths, stereo", "", ("length", "channels")),
            (
                "mixture is the sum",
                f"within {lsb} LSB of 16 bits",
                f"{mixtures} mixtures, {len(rows) - mixtures} tracks without",
                ("sum",),
            ),
            ("clipping", "none", "", ("clipped",)),
            ("silence", "no silent file", "", ("silent",)),
            (
                "durations",
                f"{wanted.min_seconds:g} to {wanted.max_seconds:g} s",
                f"{lengths}, {sum(seconds) / 60:.1f} min",
                ("duration",),
            ),
            (
                "sample rate",
                wanted.rates_text,
                self._counted("rates", "Hz"),
                ("rate",),
            ),
            (
                "bit depth",
                f"at least {wanted.min_bits}",
                self._counted("bits", "bits"),
                ("depth",),
            ),
        ]

    def _counted(self, name: str, unit: str) -> str:
        """The values that tracks have, and how many have each."""
        counts = Counter(
            value for figure in self.figures.values() for value in getattr(figure, name)
        )
        return ", ".join(
            f"{n} at {value} {unit}" for value, n in sorted(counts.items())
        )

    def _lines_of_set(self, rows: Sequence[Row]) -> list[tuple]:
        """Requirements of the whole: name, wanted, found, its number of faults."""
        wanted = self.wanted
        levels = {
            name: figure.level_db
            for name, figure in self.figures.items()
            if np.isfinite(figure.level_db)
        }
        spread, found = 0.0, "no sound"
        if levels:
            softest = min(levels, key=levels.__getitem__)
            loudest = max(levels, key=levels.__getitem__)
            spread = levels[loudest] - levels[softest]
            found = (
                f"{spread:.1f} dB: {softest} {levels[softest]:.1f} to {loudest} "
                f"{levels[loudest]:.1f} dBFS"
            )
        rates = {rate for figure in self.figures.values() for rate in figure.rates}
        lines: list[tuple] = [
            (
                "loudness spread",
                f"at most {wanted.max_spread_db:g} dB",
                found,
                int(spread > wanted.max_spread_db),
            ),
            (
                "one sample rate",
                "the same in all",
                f"{len(rates)}",
                int(len(rates) > 1),
            ),
        ]
        splits = Counter(Path(row.id).parts[0] for row in rows if "/" in row.id)
        # Without a folder for them, validation tracks are held out of the training set.
        sizes = splits or Counter(train=len(rows))
        for split, least in (("train", wanted.min_train), ("valid", wanted.min_valid)):
            if split == "train" or split in splits:
                few = int(sizes[split] < least)
                size = f"{sizes[split]} tracks"
                lines.append((f"size of {split}", f"at least {least}", size, few))
        return lines
