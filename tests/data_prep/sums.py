"""Whether mixtures are the sum of what their rows name."""

from collections.abc import Sequence

import numpy as np
import soundfile

from modules.data.manifest import Row


def assert_sums(rows: Sequence[Row]) -> None:
    """Mixture = sources + noise but for the rounding of each; nothing is silent."""
    for row in rows:
        waves = [soundfile.read(file)[0] for file in row.files]
        assert all(wave_T.any() for wave_T in waves), row.id
        off = np.abs(waves[0] - sum(waves[1:])).max() * 2**15
        assert off <= 0.5 * len(waves) + 0.1, f"{row.id}: off by {off} LSB"
