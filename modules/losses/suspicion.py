"""The suspicion score: how often each stem of each track was left out of training.

A stem that truncation drops again and again is hard to separate, or has the wrong
label. The counts are taken from the choice of the global batch, so all ranks hold the
same ones, and they are part of the checkpoint.

Legend: N examples of the global batch, K stems, R tracks.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from modules.runtime.tables import write_table

COLUMNS = ("track", "stem", "offered", "dropped", "suspicion")


class Suspicion:
    """Counts by track and stem; `stems` are in the order of the loss terms.

    Example
    -------
    >>> suspicion = Suspicion(["song"], ["drums", "bass"])
    >>> zero, one = torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool)
    >>> suspicion.add(zero, usable_NK=one, keep_NK=torch.tensor([[True, False]]))
    >>> [(row["stem"], row["suspicion"]) for row in suspicion.rows()]
    [('bass', 1.0), ('drums', 0.0)]
    """

    def __init__(self, tracks: Sequence[str], stems: Sequence[str]) -> None:
        self.tracks, self.stems = list(tracks), list(stems)
        self.numbers = {track: number for number, track in enumerate(self.tracks)}
        shape = (len(self.tracks), len(self.stems))
        self.offered_RK = torch.zeros(shape, dtype=torch.int64)
        self.dropped_RK = torch.zeros(shape, dtype=torch.int64)

    def add(self, origin_NK: Tensor, usable_NK: Tensor, keep_NK: Tensor) -> None:
        """Count one choice; `origin_NK` numbers the track of each usable stem."""
        # Counted where the losses are: nothing here waits for the device.
        self.offered_RK = self.offered_RK.to(origin_NK.device)
        self.dropped_RK = self.dropped_RK.to(origin_NK.device)
        columns_K = torch.arange(len(self.stems), device=origin_NK.device)
        places_NK = origin_NK.nan_to_num().long() * len(self.stems) + columns_K
        for counts_RK, mask_NK in (
            (self.offered_RK, usable_NK),
            (self.dropped_RK, usable_NK & ~keep_NK),
        ):
            mask = mask_NK.flatten().long()
            counts_RK.view(-1).index_add_(0, places_NK.flatten(), mask)

    def rows(self) -> list[dict[str, str | int | float]]:
        """Return counts and share dropped of each stem offered, highest share first."""
        keys = itertools.product(self.tracks, self.stems)
        counts = (
            self.offered_RK.flatten().tolist(),
            self.dropped_RK.flatten().tolist(),
        )
        rows = [
            dict(zip(COLUMNS, (*key, offered, dropped, dropped / offered), strict=True))
            for key, offered, dropped in zip(keys, *counts, strict=True)
            if offered
        ]
        return sorted(rows, key=lambda r: (-r["suspicion"], r["track"], r["stem"]))

    def write_csv(self, path: str | Path) -> Path:
        """Write the rows in one atomic step."""
        return write_table(path, COLUMNS, (row.values() for row in self.rows()))

    def state_dict(self) -> dict[str, Tensor]:
        """Return the counts."""
        offered_RK, dropped_RK = self.offered_RK.cpu(), self.dropped_RK.cpu()
        return {"offered_RK": offered_RK, "dropped_RK": dropped_RK}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue the counts of a checkpoint."""
        if state["offered_RK"].shape != self.offered_RK.shape:
            raise ValueError(
                f"the checkpoint counts {list(state['offered_RK'].shape)} tracks and "
                f"stems, this run has {list(self.offered_RK.shape)}"
            )
        self.offered_RK.copy_(state["offered_RK"])
        self.dropped_RK.copy_(state["dropped_RK"])
