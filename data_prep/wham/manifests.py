"""Manifests of WHAM!."""

from collections.abc import Sequence
from pathlib import Path

from data_prep.common.folders import Parts, write_manifests
from data_prep.common.versions import SETS, check_versions, folder_of
from modules.runtime.errors import DataError

TASKS = {"mix_clean": 2, "mix_single": 1, "mix_both": 2}  # with their speakers


def prepare(
    data_folder: str | Path,
    save_folder: str | Path,
    num_spks: int = 2,
    sample_rate: int = 8000,
    mode: str = "min",
    task: str = "mix_both",
) -> dict[str, str]:
    """Write train, valid and test manifests; leave them alone if nothing changed.

    Arguments
    ---------
    data_folder : str | Path
        Holds `wav{8k,16k}/{min,max}/{tr,cv,tt}`.
    save_folder : str | Path
        Where `train.csv`, `valid.csv` and `test.csv` go.
    num_spks : int
        Sources in each mixture: 2, for mix_single 1.
    sample_rate, mode
        Which version.
    task : str
        "mix_both": two speakers in noise; "mix_single": the first in noise;
        "mix_clean": two without noise, the manifest's column `noise` is then empty.

    Returns
    -------
    dict[str, str]
        Paths of the manifests under the keys train, valid and test.

    Raises
    ------
    DataError
        A wrong argument; a folder or file is missing, unreadable or of another rate
        or length than its mixture; the message names it.
    """
    check_task(task, num_spks)
    sources = [f"s{number + 1}" for number in range(num_spks)]
    splits = find_parts(data_folder, sample_rate, mode, task, sources)
    return write_manifests(splits, save_folder, sample_rate, "wham")


def check_task(task: str, num_spks: int) -> None:
    """A task that there is, with as many speakers as it has."""
    if task not in TASKS:
        raise DataError(f"task is {task!r}, expected one of {', '.join(TASKS)}")
    if num_spks != TASKS[task]:
        raise DataError(
            f"{task} has {TASKS[task]} speakers; set --num_spks={TASKS[task]}"
        )


def find_parts(
    data_folder: str | Path,
    sample_rate: int,
    mode: str,
    mixture: str,
    sources: Sequence[str],
) -> dict[str, Parts]:
    """Train, valid and test of a version, by the names of their folders."""
    check_versions([sample_rate], [mode])
    root = Path(data_folder).absolute() / folder_of(sample_rate, mode)
    splits = {}
    for split, name in zip(("train", "valid", "test"), SETS, strict=True):
        parts = splits[split] = Parts(
            root / name / mixture,
            tuple(root / name / source for source in sources),
            None if mixture.startswith("mix_clean") else root / name / "noise",
        )
        for folder in parts.folders:
            if not folder.is_dir():
                raise DataError(
                    f"{folder}: does not exist; generate it, or choose another "
                    "--data_folder, --sample_rate or --mode"
                )
    return splits
