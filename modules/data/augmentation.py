"""How training segments of stems are augmented."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Augmentation:
    """What is done to a stem's segment; the defaults are demucs'.

    Arguments
    ---------
    shift_seconds : float
        A segment starts up to this much later, drawn for each stem.
    shift_same : bool
        One such draw for all stems of a segment.
    flip_channels, flip_sign : bool
        Exchange left and right, negate; each with probability 1/2, for each stem.
    scale : tuple[float, float] | None
        Range of the gain drawn for each stem.
    remix_group : int
        How many segments exchange stems; 1 leaves each as it is in the song.
    repitch_probability : float
        How often pitch and tempo are changed; 0 needs no longer segments.
    pitch_semitones : int
        Largest change of pitch, up or down; whole semitones are drawn.
    tempo_std, tempo_limit : float
        Standard deviation and bound of the change of tempo, in percent.
    repitch_same : bool
        One change of pitch and tempo for all stems of a segment.
    """

    shift_seconds: float = 1.0
    shift_same: bool = False
    flip_channels: bool = True
    flip_sign: bool = True
    scale: tuple[float, float] | None = (0.25, 1.25)
    remix_group: int = 4
    repitch_probability: float = 0.2
    pitch_semitones: int = 2
    tempo_std: float = 5.0
    tempo_limit: float = 12.0
    repitch_same: bool = True

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing."""
        if self.remix_group < 1:
            raise ValueError(f"remix_group={self.remix_group}: 1 or more")
        if not 0 <= self.repitch_probability <= 1:
            raise ValueError(
                f"repitch_probability={self.repitch_probability}: within 0 and 1"
            )
        if self.shift_seconds < 0 or self.pitch_semitones < 0 or self.tempo_std < 0:
            raise ValueError(
                f"shift_seconds={self.shift_seconds}, "
                f"pitch_semitones={self.pitch_semitones}, tempo_std={self.tempo_std}: "
                "0 or more"
            )
        if not 0 <= self.tempo_limit <= 50:
            raise ValueError(f"tempo_limit={self.tempo_limit}: 0 to 50 percent")

    def window(self, seconds: float) -> float:
        """Length in seconds to choose from a track for examples of `seconds`.

        As in demucs: room for the shift, and only then for the tempo.
        """
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
