"""How training segments of stems are augmented."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

# Pairs of numbers, switches, and all that may be otherwise for one stem.
RANGES = ("scale", "noise_snr_db", "mp3_compression")
FLIPS = ("flip_channels", "flip_sign")
PER_STEM = (*RANGES, *FLIPS, "takes", "reverse", "eq", "noise", "mp3", "eq_gain_db")


@dataclass(frozen=True)
class Augmentation:
    """Changes of a stem's segment; the defaults are demucs'.

    docs/music.md has their order. The targets are the stems that come out.
    """

    # A segment starts up to this much later, drawn for each stem or once for all.
    shift_seconds: float = 1.0
    shift_same: bool = False
    # Exchange left and right, negate; each with probability 1/2, for each stem.
    flip_channels: bool = True
    flip_sign: bool = True
    # Range of the gain drawn for each stem.
    scale: tuple[float, float] | None = (0.25, 1.25)
    # How many segments exchange stems; 1 leaves each as it is in the song.
    remix_group: int = 4
    # How often pitch and tempo are changed; 0 needs no longer segments.
    repitch_probability: float = 0.2
    # Largest change of pitch, up or down; whole semitones are drawn.
    pitch_semitones: int = 2
    # Standard deviation and bound of the change of tempo, in percent.
    tempo_std: float = 5.0
    tempo_limit: float = 12.0
    # Draw one change of pitch and tempo for all stems of a segment.
    repitch_same: bool = True
    # How often a second take of the stem, from a random place of a random track, is
    # added to the first, how often a third, and so on.
    takes: tuple[float, ...] = ()
    # How often a stem is played backwards, equalized, or gets noise or MP3's loss.
    reverse: float = 0.0
    eq: float = 0.0
    noise: float = 0.0
    mp3: float = 0.0
    # Largest gain of a band of the equalizer, up or down.
    eq_gain_db: float = 9.0
    # Range of the stem's level over that of the noise.
    noise_snr_db: tuple[float, float] = (20.0, 50.0)
    # Range of libsndfile's compression: 0 is about 240 kbit/s, 0.9 about 80.
    mp3_compression: tuple[float, float] = (0.0, 0.9)
    # How often the mixture alone, not its targets, gets MP3's loss.
    mixture_mp3: float = 0.0
    # What is otherwise for a stem: {vocals: {eq: 0.25}}; the keys of PER_STEM.
    per_stem: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        for names, low, high in (
            ("remix_group", 1, math.inf),
            ("shift_seconds pitch_semitones tempo_std scale", 0, math.inf),
            ("repitch_probability takes reverse eq noise mp3 mixture_mp3", 0, 1),
            (" ".join(FLIPS), False, True),
            ("tempo_limit", 0, 50),  # percent
            ("eq_gain_db", 0, 40),
            ("noise_snr_db", -100, 200),
            ("mp3_compression", 0, 0.99),
        ):
            for name in names.split():
                self._check(name, low, high)
        for stem, changes in (self.per_stem or {}).items():
            if not (isinstance(changes, Mapping) and changes.keys() <= set(PER_STEM)):
                given = f"per_stem={{{stem}: {changes}}}"
                raise ValueError(f"{given}: expected {{{', '.join(PER_STEM)}: VALUE}}")
            self.of_stem(stem)

    def _check(self, name: str, low: float, high: float) -> None:
        value = getattr(self, name)
        numbers = list(value) if isinstance(value, list | tuple) else [value]
        fits = all(isinstance(n, int | float) and low <= n <= high for n in numbers)
        expected = f"{low} or more" if high == math.inf else f"{low} to {high}"
        if name in RANGES:
            fits = fits and len(numbers) == 2 and numbers == sorted(numbers)
            expected = f"two numbers of {expected}, the lower first"
        if not (fits or (name == "scale" and value is None)):
            raise ValueError(f"{name}={value}: expected {expected}")

    def of_stem(self, stem: str) -> Self:
        """Return the settings of a stem."""
        changes = (self.per_stem or {}).get(stem, {})
        return replace(self, **{**changes, "per_stem": None})

    def of_mixture(self) -> Self:
        """Return the settings of the mixture, once it is there."""
        return replace(self, reverse=0.0, eq=0.0, noise=0.0, mp3=self.mixture_mp3)

    def seconds_to_read(self, seconds: float) -> float:
        """Return the length of a track that an example of `seconds` may use."""
        # As in demucs: there is room for the shift, and only then for the tempo.
        room = 1 - self.tempo_limit / 100 if self.repitch_probability else 1.0
        return (seconds + self.shift_seconds) / room


#: The stems as they are.
NO_AUGMENTATION = Augmentation(
    shift_seconds=0.0,
    flip_channels=False,
    flip_sign=False,
    scale=None,
    remix_group=1,
    repitch_probability=0.0,
)
