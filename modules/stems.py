"""Examples of music: segments of stems from disk, augmented, remixed into mixtures.

A training example is a sum of stems, each cut from somewhere, changed a little and
put together anew. Two ways to choose the pieces:

- *segments* (demucs): every stretch of every track, a stride apart, is an example of
  the epoch; `remix_group` of them then exchange stems among themselves.
- *independent* (CCOM, part 2): each stem comes from another random place of another
  random track.

Everything drawn is a function of (seed, epoch, index) alone, the remix too: a
permutation of the epoch's segments says which group an example is in, and one per
stem and group says whose stem it takes. So the example is the same for any number of
workers, ranks or resumes, and no batch operation is needed.

Legend: S source, C channel (always 2), T sample.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch.utils.data import Dataset

from data_prep.manifest import Row
from modules.dataset import Example, ExampleKey


@dataclass(frozen=True)
class Level:
    """Mean and standard deviation of a track's mixture, its channels averaged."""

    mean: float
    std: float


def measure_levels(rows: Sequence[Row], index: str | Path) -> dict[str, Level]:
    """Levels of all tracks by id, measured once and kept in the CSV `index`.

    For `distributed.run_on_main(measure_levels, rows, index)`.
    """
    raise NotImplementedError


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


class StemDataset(Dataset):
    """Stems on disk: whole tracks for evaluation, augmented segments for training.

    Arguments
    ---------
    rows : Sequence[Row]
        The manifest, read with `read_manifest(path, len(sources), stems=True)`.
    sample_rate : int
        Rate in Hz of the examples; files at another are resampled.
    segment_seconds : float | None
        Length of the examples; None gives whole tracks, in the order of `rows`,
        without any augmentation. What is read of a track is longer, see
        `window_seconds`: 7.8 s of training needs 10 s with the default augmentation.
    stride_seconds : float
        Distance of the segments of a track.
    augmentation : Augmentation | None
        None takes the segments as they are.
    levels : Mapping[str, Level] | None
        By track id: each stem has its track's mean subtracted and is divided by its
        track's standard deviation. None leaves the levels as they are on disk.
    independent : bool
        Draw each stem from a random place of a random track; the unused stems of a
        manifest (`Row.unused`) are then left out. Nothing is remixed.
    examples_per_epoch : int | None
        Length of the data set; None takes the number of segments. With less than
        that an epoch sees a random part of them, with more it begins again.
    seed : int
        Together with (epoch, index) it decides every draw.

    Raises
    ------
    DataError
        A source without a usable stem; a track without a level; unused stems
        although `independent` is False.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        sample_rate: int = 44100,
        segment_seconds: float | None = None,
        stride_seconds: float = 1.0,
        augmentation: Augmentation | None = None,
        levels: Mapping[str, Level] | None = None,
        independent: bool = False,
        examples_per_epoch: int | None = None,
        seed: int = 0,
    ) -> None:
        raise NotImplementedError

    def __getitem__(self, key: ExampleKey | int) -> Example:
        """The example of (seed, epoch, index); a bare index means epoch 0.

        Returns
        -------
        Example
            mix [C, T], src [S, C, T], C = 2. In training the mixture is the sum of
            the stems; for a whole track it is its mixture file, where there is one.
            `origins` names the track each stem is from; the id says what was cut
            where.
        """
        raise NotImplementedError
