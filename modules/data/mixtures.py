"""Mixtures on disk as examples: what is read, cropped and changed in speed.

Legend: S source, T sample.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset

from modules.audio.io import check_samples, read_audio
from modules.audio.resample import change_speed, frames_before_speed
from modules.data.batch import Example, ExampleKey
from modules.data.manifest import Row
from modules.data.sums import sum_mismatch
from modules.runtime.errors import AudioError
from modules.runtime.randomness import Stream, numpy_rng


@dataclass(eq=False, repr=False)
class ManifestDataset(Dataset):
    """Mixtures on disk: whole for evaluation, random crops for training."""

    rows: Sequence[Row]  # read with `read_manifest`
    sample_rate: int  # in Hz; checked again at every read
    # Length of the random crop; None, or a shorter file, reads the file whole.
    segment_seconds: float | None = None
    # Percentages of which one is drawn for each source; the mixture is then the sum of
    # the changed sources, or their images, and the noise. None reads files as they are.
    speed_changes: Sequence[int] | None = None
    seed: int = 0
    # Raise an `AudioError` for a mixture that is not the sum of its sources (or images)
    # and noise, in the stretch of the example. Files that nothing else needs (images;
    # the mixture with `speed_changes`) are read in the first epoch only.
    check_sums: bool = True
    # Raise an `AudioError` for NaN, Inf and absurd levels too. The training step leaves
    # such examples out, but a score must be that of the whole set.
    strict: bool = False

    def __post_init__(self) -> None:
        self.segment = round((self.segment_seconds or 0) * self.sample_rate)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: ExampleKey | int) -> Example:
        epoch, index, _ = ExampleKey.of(key)
        row = self.rows[index]
        rng = numpy_rng(self.seed, epoch, index, Stream.CROP)
        speeds = [100] * len(row.sources)
        if self.speed_changes:
            speeds = [int(s) for s in rng.choice(self.speed_changes, len(speeds))]

        available = round(row.duration * self.sample_rate)
        shortest = min(available * 100 // max(speeds), available)
        length = min(self.segment or shortest, shortest)
        start = int(rng.integers(shortest - length + 1))

        def read(path: str, percent: int = 100) -> Tensor:
            first = start * percent // 100
            frames = min(frames_before_speed(length, percent), available - first)
            wave_T = read_audio(path, first, frames, self.sample_rate)
            if self.strict:
                check_samples(path, wave_T)
            return change_speed(wave_T, percent)[:length]

        def read_all(paths: Sequence[str], speeds: Sequence[int]) -> Tensor:
            pairs = zip(paths, speeds, strict=True)
            return torch.stack([read(path, speed) for path, speed in pairs])

        src_ST = read_all(row.sources, speeds)
        noise_T = read(row.noise) if row.noise else None
        if self.speed_changes:
            mix_T = (read_all(row.images, speeds) if row.images else src_ST).sum(0)
            mix_T = mix_T if noise_T is None else mix_T + noise_T
        else:
            mix_T = read(row.mixture)
        needs_more = bool(self.speed_changes or row.images)
        if self.check_sums and (epoch <= 1 or not needs_more):
            plain_ST = src_ST
            if needs_more:
                plain_ST = read_all(row.images or row.sources, [100] * len(speeds))
            whole_T = read(row.mixture) if self.speed_changes else mix_T
            noise = () if noise_T is None else (noise_T.numpy(),)
            fault = sum_mismatch(row, whole_T.numpy(), *plain_ST.numpy(), *noise)
            if fault:
                raise AudioError(
                    f"{fault}; make it anew, or, for recordings and coded mixtures, "
                    "set --check_sums=False --speed_changes=null"
                )
        return Example(row.id, mix_T, src_ST, noise_T)
