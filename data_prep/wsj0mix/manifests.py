"""Manifests of WSJ0-2mix and WSJ0-3mix, or of any folder laid out as they are."""

from collections.abc import Sequence
from pathlib import Path

from data_prep.common.folders import prepare_set
from data_prep.common.layout import SPLITS, Layout
from data_prep.common.versions import WSJ0_SPLITS

PARENT = "#speakers"
PLAIN = dict(zip(SPLITS, SPLITS, strict=True))
SHORT = {"train": "train", "val": "valid", "test": "test"}
LAYOUT = (
    Layout(WSJ0_SPLITS, {"mix": ("s#",)}, PARENT),
    Layout(PLAIN, {"mixture": ("source#",)}, PARENT, versioned=False),
    Layout(SHORT, {"mix": ("s#",)}, PARENT, versioned=False),
)


def prepare(
    data_folder: str | Path,
    save_folder: str | Path,
    num_spks: int = 2,
    sample_rate: int = 8000,
    mode: str = "min",
    test_folder: str | Path | None = None,
    splits: Sequence[str] = SPLITS,
) -> dict[str, str]:
    """Write manifests, unless nothing changed; return their paths by split.

    Arguments
    ---------
    data_folder : str | Path
        The folder of the mixtures (`2speakers`) or its parent.
    save_folder : str | Path
        Where `train.csv`, `valid.csv` and `test.csv` go.
    num_spks : int
        Sources in each mixture.
    sample_rate : int
        In Hz; every file must have it.
    mode : str
        "min" or "max": mixtures as long as the shortest or the longest utterance.
        Only the first layout has both.
    test_folder : str | Path | None
        Another data set of these layouts, whose test set is taken.
    splits : Sequence[str]
        The manifests that are wanted; the folders of others need not exist.

    Raises
    ------
    DataError
        No layout fits, or a file is missing, unreadable, at another rate, or of
        another length than its mixture; the message names it.
    """
    where = (data_folder, save_folder, test_folder, splits)
    return prepare_set("wsj0mix", LAYOUT, *where, num_spks, sample_rate, mode)
