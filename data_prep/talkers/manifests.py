"""Manifests of the mixtures that `data_prep.talkers` makes."""

from collections.abc import Sequence
from pathlib import Path

from data_prep.common.folders import write_manifests
from data_prep.common.jobs import SETTINGS
from data_prep.common.layout import SPLITS, Layout, find_parts
from modules.runtime.errors import DataError

MIXTURE, NOISY_MIXTURE = "mix_clean", "mix_both"
MIXTURES = {MIXTURE: ("s#",), NOISY_MIXTURE: ("s#", "noise")}
LAYOUT = (Layout({split: split for split in SPLITS}, MIXTURES, versioned=False),)

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
    """Write train, valid and test manifests; leave them alone if nothing changed.

    Arguments and result are those of `data_prep.wsj0mix.prepare`; mixtures in noise
    were made in noise, and only mode "min" is made.
    """
    if mode != "min":
        raise DataError(f"mode is {mode!r}, but these mixtures are of mode 'min'")
    only_test = list(splits) == ["test"]
    folder = Path((only_test and test_folder) or data_folder).absolute()
    # A test set may have been copied without the rest of its folder.
    copied = only_test and not (folder / SETTINGS).is_file()
    whole = copied or (folder / SPEAKERS).is_file()
    if folder.is_dir() and not whole:
        raise DataError(
            f"{folder}: was not made by data_prep.talkers, or not to the end; the same "
            "command continues"
        )
    noisy = any((folder / split / NOISY_MIXTURE).is_dir() for split in splits)
    mixture = NOISY_MIXTURE if noisy else MIXTURE
    parts = find_parts(
        *(LAYOUT, folder, num_spks, sample_rate, mode, mixture),
        test_folder=test_folder,
        splits=splits,
    )
    return write_manifests(parts, save_folder, sample_rate, "talkers")
