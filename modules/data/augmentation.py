"""How training segments of stems are augmented."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Augmentation:
    """Changes of a stem's segment; the defaults are demucs'."""

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

    def __post_init__(self) -> None:
        for name, low, high in (
            ("remix_group", 1, None),
            ("repitch_probability", 0, 1),
            ("shift_seconds", 0, None),
            ("pitch_semitones", 0, None),
            ("tempo_std", 0, None),
            ("tempo_limit", 0, 50),  # percent
        ):
            value = getattr(self, name)
            if not (low <= value and (high is None or value <= high)):
                expected = f"{low} or more" if high is None else f"{low} to {high}"
                raise ValueError(f"{name}={value}: expected {expected}")

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
