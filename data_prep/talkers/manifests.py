"""Manifests of the mixtures that `data_prep.talkers` makes."""

from collections.abc import Sequence
from pathlib import Path

from data_prep.common.folders import prepare_set
from data_prep.common.jobs import SETTINGS
from data_prep.common.layout import SPLITS, Layout
from modules.runtime.errors import DataError

MIXTURE, NOISY_MIXTURE = "mix_clean", "mix_both"
LAYOUT = tuple(
    Layout(dict(zip(SPLITS, SPLITS, strict=True)), {mixture: parts}, versioned=False)
    for mixture, parts in ((MIXTURE, ("s#",)), (NOISY_MIXTURE, ("s#", "noise")))
)

# Table of the people in each set; written last, so that its folder is complete.
SPEAKERS = "speakers.csv"


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

    Arguments are those of `data_prep.wsj0mix.prepare`; only mode "min" is made.
    """
    if mode != "min":
        raise DataError(f"mode is {mode!r}, but these mixtures are of mode 'min'")
    for folder in map(Path, (data_folder, test_folder or data_folder)):
        if (folder / SETTINGS).is_file() and not (folder / SPEAKERS).is_file():
            raise DataError(f"{folder}: is not finished; the same command continues it")
    where = (data_folder, save_folder, test_folder, splits)
    return prepare_set("talkers", LAYOUT, *where, num_spks, sample_rate, mode)
