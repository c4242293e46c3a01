"""Changes of the sampling rate and of the speed, by torchaudio's windowed-sinc filters.

Legend: C channel, T sample, L window, K tap, P phase of a filter.
"""

import functools
import math
from collections.abc import Iterable, Iterator

import torch
import torchaudio
from torch import Tensor

# Most samples of a channel that `resample` holds in overlapping windows at a time.
LARGEST_PART = 2**22

# A product with this many columns (or a multiple) and rows has the same bits on any
# number of threads, as the test sees: a worker has one, the main process may have more.
# (To set that number around the product breaks MKL's batched solvers, torch 2.14.)
COLUMNS = 16
FEWEST_ROWS = 64


def resample(wave_T: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """Change the sampling rate: [..., T] becomes [..., ceil(T * to / from)].

    The filters are those of `torchaudio.functional.resample`, made once, and applied by
    a matrix product: several times faster than its convolution of one channel.
    """
    if from_rate == to_rate:
        return wave_T
    divisor = math.gcd(from_rate, to_rate)
    step, phases = from_rate // divisor, to_rate // divisor
    kind = (wave_T.dtype, wave_T.device)
    filters_KP, columns, width = _sinc_filters(step, phases, *kind)
    stride = step * columns // phases
    missing = max(0, FEWEST_ROWS - wave_T.shape[-1] // stride) * stride
    padded_T = torch.nn.functional.pad(wave_T, (width, width + stride + missing))
    window_LK = padded_T.unfold(-1, len(filters_KP), stride)
    # In parts: windows overlap, so that all of a song's would take many times its size.
    parts = window_LK.split(max(1, LARGEST_PART // len(filters_KP)), dim=-2)
    out_LP = torch.cat([(part_LK @ filters_KP)[..., :columns] for part_LK in parts], -2)
    return out_LP.flatten(-2)[..., : -(-phases * wave_T.shape[-1] // step)]


def resample_blocks(
    blocks: Iterable[Tensor], from_rate: int, to_rate: int
) -> Iterator[Tensor]:
    """Yield what `resample` returns for the blocks [..., T] behind each other.

    Only a block and the reach of the filters are held; the blocks that come out have
    other lengths than those that go in. The values differ by rounding alone.
    """
    if from_rate == to_rate:
        yield from blocks
        return
    divisor = math.gcd(from_rate, to_rate)
    step, phases = from_rate // divisor, to_rate // divisor
    held_T: Tensor | None = None  # `margin` samples of the past, then what came since
    for block_T in blocks:
        if held_T is None:
            *_, width = _sinc_filters(step, phases, block_T.dtype, block_T.device)
            steps = -(-width // step) + 1  # those before and after that filters reach
            margin, lead = steps * step, steps * phases
            held_T = block_T.new_zeros((*block_T.shape[:-1], margin))
        held_T = torch.cat([held_T, block_T], dim=-1)
        ready = (held_T.shape[-1] - 2 * margin) // step
        if ready > 0:
            known_T = held_T[..., : 2 * margin + ready * step]
            out_T = resample(known_T, from_rate, to_rate)
            yield out_T[..., lead : lead + ready * phases]
            held_T = held_T[..., ready * step :]
    if held_T is not None:
        yield resample(held_T, from_rate, to_rate)[..., lead:]


@functools.lru_cache(maxsize=64)
def _sinc_filters(
    step: int, phases: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, int, int]:
    """Return torchaudio's filters as columns [K, P], their number and their reach.

    The filters of all phases stand side by side, those of several steps where phases
    are few: the product needs columns to be quick. Zeros that do not count in the
    number fill up to a multiple of `COLUMNS`.
    """
    made_in = dtype if dtype == torch.float64 else None
    made = torchaudio.transforms.Resample(step, phases, dtype=made_in)
    one_step_KP = made.kernel[:, 0].T
    copies = -(-COLUMNS // phases)
    columns = phases * copies
    shape = (len(one_step_KP) + step * (copies - 1), COLUMNS * -(-columns // COLUMNS))
    filters_KP = torch.zeros(shape, dtype=one_step_KP.dtype)
    for copy in range(copies):
        rows = slice(step * copy, step * copy + len(one_step_KP))
        filters_KP[rows, phases * copy : phases * (copy + 1)] = one_step_KP
    return filters_KP.to(device=device, dtype=dtype), columns, made.width


def frames_before_speed(num_frames: int, percent: int) -> int:
    """Return how many input samples give `num_frames` of output in `change_speed`."""
    return -(-num_frames * percent // 100)


def change_speed(wave_T: Tensor, percent: int) -> Tensor:
    """Play at `percent` of the speed and pitch: [..., ceil(T * 100 / percent)]."""
    return wave_T if percent == 100 else resample(wave_T, percent, 100)
