"""Manifests of Libri2Mix and Libri3Mix (Cosentino et al., arXiv 2005.11262)."""

from collections.abc import Sequence
from pathlib import Path

from data_prep.common.folders import write_manifests
from data_prep.common.layout import SPLITS, Layout, find_parts

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
    """Write train, valid and test manifests; leave them alone if nothing changed.

    Result, errors and the last arguments are those of `data_prep.wsj0mix.prepare`.

    Arguments
    ---------
    data_folder : str | Path
        The folder that holds `wav8k` or `wav16k`, or the parent of such folders named
        `Libri2Mix` and `Libri3Mix`.
    save_folder : str | Path
        Where `train.csv`, `valid.csv` and `test.csv` go.
    num_spks : int
        Talkers in each mixture; 1 for the task mix_single.
    sample_rate : int
        In Hz; 8000 or 16000 are made.
    mode : str
        "min" or "max": mixtures as long as the shortest or the longest utterance.
    task : str
        Which mixture is the input: mix_clean, mix_both or mix_single.
    train_set : str | None
        "train-100" or "train-360"; None takes the only one.
    """
    LIBRIMIX.check_task(task, num_spks)
    where = (data_folder, test_folder, splits)
    choice = (num_spks, sample_rate, mode, task, None, train_set)
    parts = find_parts(LAYOUT, where, *choice)
    return write_manifests(parts, save_folder, sample_rate, "librimix")
