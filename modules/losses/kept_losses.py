"""The losses of each stem of each track, kept through training.

A stem whose loss stays large, or that truncation leaves out again and again, is hard
to separate, or has the wrong label. The sums are taken from the choice of the global
batch, so all ranks hold the same ones, and they are part of the checkpoint. They are
integers: no order of adding changes them.

Legend: N examples of the global batch, K stems, R tracks, E epochs, Q sums.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modules.runtime.errors import CheckpointMismatch
from modules.runtime.tables import write_table

COLUMNS = ("track", "stem", "epoch", "loss", "offered", "dropped")
UNIT = 2.0**-20  # of the sum of losses
LARGEST = 1000.0  # loss that counts, relative to the level of the target


class KeptLosses:
    """Sums by epoch, track and stem; `stems` are in the order of the loss terms.

    Example
    -------
    >>> losses = KeptLosses(["song"], ["drums", "bass"])
    >>> loss, one = torch.tensor([[0.5, 2.0]]), torch.ones(1, 2, dtype=torch.bool)
    >>> losses.add(1, torch.zeros(1, 2), loss, one, torch.tensor([[True, False]]))
    >>> [row[1:] for row in losses.rows()]
    [('drums', 1, 0.5, 1, 0), ('bass', 1, 2.0, 1, 1)]
    """

    def __init__(self, tracks: Sequence[str], stems: Sequence[str]) -> None:
        self.tracks, self.stems = list(tracks), list(stems)
        self.numbers = {track: number for number, track in enumerate(self.tracks)}
        # Sums of losses, times offered and times dropped.
        shape = (0, 3, len(self.tracks), len(self.stems))
        self.sums_EQRK = torch.zeros(shape, dtype=torch.int64)

    def add(
        self,
        epoch: int,
        origin_NK: Tensor,
        loss_NK: Tensor,
        usable_NK: Tensor,
        keep_NK: Tensor,
    ) -> None:
        """Add one choice of an epoch, from 1 on; `origin_NK` numbers the tracks.

        `loss_NK` are relative to the level of the target.
        """
        # Summed where the losses are: nothing here waits for the device.
        sums_EQRK = self.sums_EQRK.to(origin_NK.device)
        if (missing := epoch - len(sums_EQRK)) > 0:
            new_EQRK = sums_EQRK.new_zeros((missing, *sums_EQRK.shape[1:]))
            sums_EQRK = torch.cat([sums_EQRK, new_EQRK])
        self.sums_EQRK = sums_EQRK
        columns_K = torch.arange(len(self.stems), device=origin_NK.device)
        places_NK = origin_NK.nan_to_num().long() * len(self.stems) + columns_K
        units_NK = (loss_NK.clamp(max=LARGEST).double() / UNIT).round().long()
        added = units_NK * usable_NK, usable_NK.long(), (usable_NK & ~keep_NK).long()
        for sums_RK, values_NK in zip(sums_EQRK[epoch - 1], added, strict=True):
            sums_RK.view(-1).index_add_(0, places_NK.flatten(), values_NK.flatten())

    def rows(self) -> Iterator[tuple[str, str, int, float, int, int]]:
        """Yield `COLUMNS` of each stem and epoch in which it was offered."""
        for epoch, sums_QRK in enumerate(self.sums_EQRK.tolist(), start=1):
            for track, *of_track in zip(self.tracks, *sums_QRK, strict=True):
                for stem, loss, offered, dropped in zip(
                    self.stems, *of_track, strict=True
                ):
                    if offered:
                        mean = loss * UNIT / offered
                        yield track, stem, epoch, mean, offered, dropped

    def write_csv(self, path: str | Path) -> Path:
        """Write the rows in one atomic step."""
        return write_table(path, COLUMNS, self.rows())

    def state_dict(self) -> dict[str, Any]:
        """Return the sums, and the tracks in their order."""
        return {"sums_EQRK": self.sums_EQRK.cpu(), "tracks": self.tracks}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue the sums of a checkpoint, each with the track of its name.

        New tracks begin at zero, and the sums of those that are gone are dropped.
        """
        sums_EQRK = state["sums_EQRK"]
        saved = state.get("tracks", self.tracks)  # older checkpoints have no names
        found, wanted = [*sums_EQRK.shape[2:]], [len(saved), len(self.stems)]
        if found != wanted:
            raise CheckpointMismatch(
                f"it has sums of {found} tracks and stems, this run of {wanted}; give "
                "the same data and stems as before, or another output_folder"
            )
        places = {track: place for place, track in enumerate(saved)}
        both = [track for track in self.tracks if track in places]
        shape = (len(sums_EQRK), 3, len(self.tracks), len(self.stems))
        self.sums_EQRK = sums_EQRK.new_zeros(shape)
        old, new = [places[t] for t in both], [self.numbers[t] for t in both]
        self.sums_EQRK[:, :, new] = sums_EQRK[:, :, old]
