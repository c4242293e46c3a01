"""Make a pool of WHAMR!'s rooms, from which dynamic mixing draws.

    python -m data_prep.whamr pool --out=rooms.npz --rooms=2000 [--sample_rate=8000]

Legend: S source, T sample.
"""

import functools
import shutil
from pathlib import Path

import numpy as np
from scipy.signal import resample_poly

from data_prep.common.jobs import claim_folder, make_all
from data_prep.common.versions import NOISE_RATE
from data_prep.whamr.rooms import draw_room
from modules.audio.rooms import RoomPool, impulse_responses
from modules.runtime.errors import DataError

# Number of rooms that are made and kept together: a job of a few seconds.
BLOCK = 10


def make_pool(
    out: str | Path,
    rooms: int,
    sample_rate: int = 8000,
    seed: int = 0,
    workers: int | None = None,
) -> Path:
    """Write rooms for dynamic mixing, drawn as those of WHAMR!'s training set.

    Arguments
    ---------
    out : str | Path
        The `.npz` to write. Until it is whole, a folder `<out>.parts` lies beside it.
    rooms : int
        Number of rooms; 1000 take about 40 MB at 8 kHz and 6 minutes of one core.
    sample_rate : int
        Rate of the mixtures to be made, in Hz. Responses are computed at 16 kHz.
    seed : int
        Decides the rooms, which differ from those of `generate`.
    workers : int | None
        Number of processes, which does not change the file; None: one for each core.
    """
    out = Path(out).absolute()
    if rooms < 1 or sample_rate < 1:
        found = f"rooms is {rooms}, sample_rate {sample_rate}"
        raise DataError(f"{found}; both must be > 0")
    if out.suffix != ".npz":
        raise DataError(f"{out}: the name of a pool ends in .npz")
    if out.exists():
        raise DataError(f"{out}: is there already; give another name or remove it")
    content = {"rooms": rooms, "sample_rate": sample_rate, "seed": seed}
    parts = claim_folder(out.with_name(f"{out.name}.parts"), {"set": "rooms"} | content)
    blocks = [range(k, min(k + BLOCK, rooms)) for k in range(0, rooms, BLOCK)]
    paths = {block: parts / f"{block.start:08d}.npz" for block in blocks}
    make = functools.partial(_make_block, parts, sample_rate, seed)
    make_all(make, blocks, lambda block: [paths[block]], workers, f"{BLOCK} rooms")
    pools = [RoomPool.load(path) for path in paths.values()]
    direct = [response for pool in pools for response in pool.direct]
    reverberant = [response for pool in pools for response in pool.reverberant]
    RoomPool(sample_rate, direct, reverberant).save(out)
    shutil.rmtree(parts)
    return out


def _make_block(parts: Path, sample_rate: int, seed: int, block: range) -> None:
    """Write the responses of some rooms of a pool."""
    direct: list[np.ndarray] = []
    reverberant: list[np.ndarray] = []
    for number in block:
        room = draw_room("tr", f"pool/{number}", seed).room
        for responses, order in ((direct, 0), (reverberant, None)):
            wave_ST = impulse_responses(room, NOISE_RATE, order)
            if order == 0:  # only zeros follow the direct path
                wave_ST = wave_ST[:, : np.flatnonzero(wave_ST.any(0))[-1] + 1]
            slow_ST = resample_poly(wave_ST, sample_rate, NOISE_RATE, axis=1)
            responses.append((slow_ST * NOISE_RATE / sample_rate).astype(np.float32))
    RoomPool(sample_rate, direct, reverberant).save(parts / f"{block.start:08d}.npz")
