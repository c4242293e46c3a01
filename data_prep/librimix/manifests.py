"""Manifests of Libri2Mix and Libri3Mix (Cosentino et al., arXiv 2005.11262)."""

from collections.abc import Sequence
from pathlib import Path

from data_prep.common.folders import prepare_set
from data_prep.common.layout import SPLITS, Layout

LIBRIMIX = Layout(
    {"train-100": "train", "train-360": "train", "dev": "valid", "test": "test"},
    {"mix_clean": ("s#",), "mix_both": ("s#", "noise"), "mix_single": ("s1", "noise")},
    "Libri#Mix",
)

LAYOUT = (LIBRIMIX,)


def prepare(
    data_folder: str | Path,
    save_folder: str | Path,
    num_spks: int = 2,
    sample_rate: int = 8000,
    mode: str = "min",
    task: str = "mix_clean",
    train_set: str | None = None,
    test_folder: str | Path | None = None,
    splits: Sequence[str] = SPLITS,
) -> dict[str, str]:
    """Write manifests, unless nothing changed; return their paths by split.

    Errors and the other arguments are those of `data_prep.wsj0mix.prepare`.

    Arguments
    ---------
    data_folder : str | Path
        The folder that holds `wav8k` or `wav16k`, or the parent of such folders named
        `Libri2Mix` and `Libri3Mix`.
    num_spks : int
        Talkers in each mixture; 1 for the task mix_single.
    task : str
        Which mixture is the input: mix_clean, mix_both or mix_single.
    train_set : str | None
        "train-100" or "train-360"; None takes the only one.
    """
    LIBRIMIX.check_task(task, num_spks)
    where = (data_folder, save_folder, test_folder, splits)
    version = (num_spks, sample_rate, mode, task)
    return prepare_set("librimix", LAYOUT, *where, *version, train_set=train_set)
