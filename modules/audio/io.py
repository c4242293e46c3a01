"""Audio files in and out, and the two resamplings that training needs.

soundfile does the file I/O (torchaudio 2.11 has none of its own), torchaudio's
windowed-sinc filters the rate changes.

Legend: S source, C channel, T sample.
"""

import functools
import io
import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio
from scipy.io import wavfile
from torch import Tensor

from modules.audio.faults import level_fault
from modules.audio.wav import OpenFile
from modules.runtime.errors import AudioError, DataError


def write_wave(
    path: str | Path, wave_T: np.ndarray, sample_rate: int, subtype: str = "PCM_16"
) -> None:
    """Write a WAV that appears only when it is whole.

    It is made in memory: soundfile syncs every file it closes to the disk, which takes
    longer than mixing what is in it.

    Arguments
    ---------
    path : str | Path
        Where to; its folder is made.
    wave_T : np.ndarray
        Shape [T] or [T, C]. int16 is written as it is, float is full scale at 1 and
        rounded as libsndfile does (times 32767).
    sample_rate : int
        In Hz.
    subtype : str
        `PCM_16` or `FLOAT`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    encoded = io.BytesIO()
    if subtype == "FLOAT":
        # libsndfile would note the time of day in the file (its PEAK chunk).
        wave_T = np.asarray(wave_T)
        if not np.issubdtype(wave_T.dtype, np.floating):
            raise TypeError(f"{path}: {wave_T.dtype} samples cannot be FLOAT")
        wavfile.write(encoded, sample_rate, wave_T.astype(np.float32))
    else:
        soundfile.write(encoded, wave_T, sample_rate, subtype=subtype, format="WAV")
    try:
        partial.write_bytes(encoded.getbuffer())
        os.replace(partial, path)
    except OSError as error:  # a full disk's names no file
        raise DataError(f"{path}: cannot be written ({error.strerror})") from None
    finally:
        partial.unlink(missing_ok=True)


# What `resample` holds of the windows it makes, in samples of a channel.
LARGEST_PART = 2**22

# A product with this many columns (or a multiple) and rows has the same bits on any
# number of threads, as the test sees: a worker has one, the main process may have more.
# (To set that number around the product breaks MKL's batched solvers, torch 2.14.)
COLUMNS = 16

FEWEST_ROWS = 64


def read_audio(
    path: str | Path,
    start: int = 0,
    frames: int | None = None,
    sample_rate: int | None = None,
) -> Tensor:
    """Read a mono file, or only the part of it that is needed.

    Arguments
    ---------
    path : str | Path
        Any file libsndfile can read.
    start : int
        First sample to read.
    frames : int | None
        How many samples to read; None reads to the end.
    sample_rate : int | None
        Rate in Hz that the file must have; None accepts any.

    Returns
    -------
    Tensor
        float32, shape [T], full scale at 1.

    Raises
    ------
    AudioError
        Unreadable, shorter than asked, not mono, or at another rate.
    """
    return _read(path, start, frames, sample_rate, channels=(1,))[0]


def read_stereo(
    path: str | Path,
    start: int = 0,
    frames: int | None = None,
    sample_rate: int | None = None,
) -> Tensor:
    """Read a stereo file or a part of it; a mono file gives two equal channels.

    Arguments
    ---------
    path, start, frames, sample_rate
        As for `read_audio`.

    Returns
    -------
    Tensor
        float32, shape [2, T], full scale at 1.

    Raises
    ------
    AudioError
        As for `read_audio`; more than two channels.
    """
    wave_CT = _read(path, start, frames, sample_rate, channels=(1, 2))
    return wave_CT if len(wave_CT) == 2 else wave_CT.repeat(2, 1)


def _read(
    path: str | Path,
    start: int,
    frames: int | None,
    sample_rate: int | None,
    channels: tuple[int, ...],
) -> Tensor:
    """Read [C, T] from a file that must have one of the given numbers of channels."""
    try:
        with OpenFile(path) as file:
            if file.channels not in channels:
                expected = "mono" if channels == (1,) else "stereo or mono"
                raise AudioError(
                    f"{path}: has {file.channels} channels, expected a {expected} file"
                )
            if sample_rate is not None and file.samplerate != sample_rate:
                raise AudioError(
                    f"{path}: sample rate is {file.samplerate} Hz, expected "
                    f"{sample_rate} Hz; resample it or set --sample_rate"
                )
            wanted = file.frames - start if frames is None else frames
            wave_TC = file.read(start, wanted)
    except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
        raise AudioError(f"{path}: cannot be read as audio ({error})") from error
    if len(wave_TC) != wanted or wanted <= 0:
        raise AudioError(
            f"{path}: holds {len(wave_TC)} of the {wanted} samples expected from "
            f"sample {start} on; the file is truncated or has changed"
        )
    return torch.from_numpy(wave_TC.T).contiguous()


def sample_fault(wave: Tensor) -> str:
    """`modules.audio.faults.level_fault` of samples of any shape, full scale at 1."""
    low, high = torch.aminmax(wave)
    return level_fault(float(low), float(high))


def check_samples(path: str | Path, wave: Tensor) -> None:
    """Raise for samples that are no signal at any level.

    Arguments
    ---------
    path : str | Path
        What they were read from.
    wave : Tensor
        Any shape, full scale at 1.

    Raises
    ------
    AudioError
        NaN, Inf, or a peak beyond `modules.audio.faults.LARGEST_PEAK`.
    """
    if fault := sample_fault(wave):
        raise AudioError(
            f"{path}: {fault}; repair or remove it (python -m data_prep.verify lists "
            "all such files)"
        )


def write_audio(path: str | Path, wave_T: Tensor, sample_rate: int) -> None:
    """Write a float32 WAV at its true level: never rescaled, never clipped.

    Arguments
    ---------
    path : str | Path
        Where to; appears only when it is whole.
    wave_T : Tensor
        Shape [T], or [C, T].
    sample_rate : int
        In Hz.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    soundfile.write(
        partial,
        wave_T.detach().float().cpu().numpy().T,
        sample_rate,
        subtype="FLOAT",
        format="WAV",
    )
    os.replace(partial, path)


def safe_name(id_: str) -> str:
    """An example's id as a file name: no separators, no dots in front, never empty.

    Example
    -------
    >>> safe_name("../a b/c.wav")
    '_a_b_c.wav'
    """
    return re.sub(r"[^A-Za-z0-9._+-]+", "_", id_).lstrip(".") or "_"


def named_waves(
    mix_T: Tensor,
    est_ST: Tensor,
    target_ST: Tensor,
    est_names: Sequence[str] = (),
    target_names: Sequence[str] = (),
) -> Iterator[tuple[str, Tensor]]:
    """The waves of one separated example with the names their files get.

    Sources without a name are numbered from 1; waves may have a channel dimension.
    """
    yield "mixture", mix_T
    for kind, waves, names in (
        ("estimate", est_ST, est_names),
        ("target", target_ST, target_names),
    ):
        for number, wave_T in enumerate(waves):
            name = names[number] if number < len(names) else number + 1
            yield f"{kind}_{name}", wave_T


def resample(wave_T: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """Band-limited resampling; [..., T] becomes [..., ceil(T * to / from)].

    The filters of `torchaudio.functional.resample`, made once, and applied by a matrix
    product, which is several times faster than a convolution of one channel.
    """
    if from_rate == to_rate:
        return wave_T
    divisor = math.gcd(from_rate, to_rate)
    step, phases = from_rate // divisor, to_rate // divisor
    filters_KP, columns, width = _sinc_filters(
        step, phases, wave_T.dtype, wave_T.device
    )
    stride = step * columns // phases
    missing = max(0, FEWEST_ROWS - wave_T.shape[-1] // stride) * stride
    padded_T = torch.nn.functional.pad(wave_T, (width, width + stride + missing))
    window_LK = padded_T.unfold(-1, len(filters_KP), stride)
    # In parts: windows overlap, so that all of a song's would take many times its size.
    parts = window_LK.split(max(1, LARGEST_PART // len(filters_KP)), dim=-2)
    out_LP = torch.cat([(part_LK @ filters_KP)[..., :columns] for part_LK in parts], -2)
    return out_LP.flatten(-2)[..., : -(-phases * wave_T.shape[-1] // step)]


@functools.lru_cache(maxsize=64)
def _sinc_filters(
    step: int, phases: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, int, int]:
    """torchaudio's filters as columns [K, P], how many are used, how far they reach.

    Used are those of all phases, or of several steps side by side, so that the product
    has enough columns to be quick. Zeros fill up to a multiple of `COLUMNS`.
    """
    made = torchaudio.transforms.Resample(
        step, phases, dtype=dtype if dtype == torch.float64 else None
    )
    one_step_KP = made.kernel[:, 0].T
    copies = -(-COLUMNS // phases)
    columns = phases * copies
    filters_KP = torch.zeros(
        len(one_step_KP) + step * (copies - 1),
        COLUMNS * -(-columns // COLUMNS),
        dtype=one_step_KP.dtype,
    )
    for copy in range(copies):
        rows = slice(step * copy, step * copy + len(one_step_KP))
        filters_KP[rows, phases * copy : phases * (copy + 1)] = one_step_KP
    return filters_KP.to(device=device, dtype=dtype), columns, made.width


def frames_before_speed(num_frames: int, percent: int) -> int:
    """Input samples that `change_speed` needs to give `num_frames` of output.

    Example
    -------
    >>> frames_before_speed(8000, 105)
    8400
    """
    return -(-num_frames * percent // 100)


def check_speeds(percents: Sequence[int] | None) -> None:
    """Refuse speeds that `change_speed` cannot make; None and none are right.

    Raises
    ------
    ValueError
        One is not a whole percentage above 0.
    """
    if any(percent != int(percent) or percent < 1 for percent in percents or ()):
        raise ValueError(f"speed_changes are whole percentages above 0, not {percents}")


def change_speed(wave_T: Tensor, percent: int) -> Tensor:
    """Play at `percent` of the speed; pitch and tempo move together.

    Arguments
    ---------
    wave_T : Tensor
        Shape [..., T].
    percent : int
        100 changes nothing, 105 is 5 % faster and therefore shorter.

    Returns
    -------
    Tensor
        Shape [..., ceil(T * 100 / percent)].
    """
    return wave_T if percent == 100 else resample(wave_T, percent, 100)
