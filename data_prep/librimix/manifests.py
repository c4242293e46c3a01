"""Libri2Mix and Libri3Mix into manifests, in the layout of the original.

The layout (Cosentino et al., arXiv 2005.11262):

    wav{8k,16k}/{min,max}/{train-100,train-360,dev,test}/
        {mix_clean,mix_both,mix_single,s1,s2[,s3],noise}/<utterance>_<utterance>.wav
"""

from pathlib import Path

from data_prep.common.folders import Parts, write_manifests
from data_prep.librimix.generate import TYPES as TASKS
from modules.runtime.errors import DataError

TRAIN_SETS = ("train-100", "train-360")


def prepare(
    data_folder: str | Path,
    save_folder: str | Path,
    num_spks: int = 2,
    sample_rate: int = 8000,
    mode: str = "min",
    task: str = "mix_clean",
    train_set: str | None = None,
) -> dict[str, str]:
    """Write train, valid and test manifests; leave them alone if nothing changed.

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
        "train-100" or "train-360"; None takes the one that there is.

    Returns
    -------
    dict[str, str]
        Paths of the manifests under the keys train, valid and test.

    Raises
    ------
    DataError
        A folder or a file is missing, or one does not fit the others; the message
        names it.
    """
    splits = find_folders(data_folder, num_spks, sample_rate, mode, task, train_set)
    return write_manifests(splits, save_folder, sample_rate, "librimix")


def find_folders(
    data_folder: str | Path,
    num_spks: int,
    sample_rate: int,
    mode: str,
    task: str,
    train_set: str | None,
) -> dict[str, Parts]:
    """The folders of train, valid and test; arguments and errors as in `prepare`."""
    for name, value, valid in (
        ("mode", mode, ("min", "max")),
        ("task", task, TASKS),
        ("train_set", train_set, (None, *TRAIN_SETS)),
    ):
        if value not in valid:
            expected = " or ".join(str(item) for item in valid if item)
            raise DataError(f"{name} is {value!r}, expected {expected}")
    if (task == "mix_single") != (num_spks == 1):
        wanted = "1 (the first talker)" if task == "mix_single" else "2 or 3"
        raise DataError(f"task {task} needs --num_spks={wanted}, not {num_spks}")
    root = _find_root(Path(data_folder).absolute(), num_spks)
    version = root / f"wav{sample_rate // 1000}k" / mode
    if not version.is_dir():
        raise DataError(
            f"{version} does not exist; generate it, or choose another --sample_rate "
            "or --mode"
        )
    there = [name for name in TRAIN_SETS if (version / name / task).is_dir()]
    if train_set is None and len(there) != 1:
        found = " and ".join(there) or "no training set"
        raise DataError(
            f"{version}: holds {found} of {task}; "
            + (f"choose by --train_set={there[0]}" if there else "generate one")
        )
    names = {"train": train_set or there[0], "valid": "dev", "test": "test"}
    splits = {}
    for split, name in names.items():
        place = version / name
        parts = Parts(
            place / task,
            tuple(place / f"s{number + 1}" for number in range(num_spks)),
            place / "noise" if task != "mix_clean" else None,
        )
        for folder in parts.folders:
            if not folder.is_dir():
                raise DataError(f"{folder} does not exist; generate the mixtures anew")
        one_more = place / f"s{num_spks + 1}"
        if task != "mix_single" and one_more.is_dir():
            raise DataError(
                f"{one_more} exists, so the mixtures have more than {num_spks} "
                f"sources; set --num_spks={num_spks + 1}"
            )
        splits[split] = parts
    return splits


def _find_root(data_folder: Path, num_spks: int) -> Path:
    """The folder that holds the versions: the one given, or one below it."""
    if not data_folder.is_dir():
        raise DataError(f"data_folder {data_folder} does not exist or is no folder")
    counts = [num_spks] if num_spks > 1 else [2, 3]
    places = [data_folder, *(data_folder / f"Libri{count}Mix" for count in counts)]
    found = [p for p in places if any((p / f"wav{k}k").is_dir() for k in (8, 16))]
    if len(found) == 1:
        return found[0]
    if found:
        both = " and ".join(str(place) for place in found)
        raise DataError(f"{data_folder}: {both} fit; point data_folder at one of them")
    there = sorted(entry.name for entry in data_folder.iterdir())[:8]
    raise DataError(
        f"{data_folder}: holds no wav8k or wav16k, nor does "
        f"{' or '.join(place.name for place in places[1:])} in it; it holds "
        f"{', '.join(there) or 'nothing'}"
    )
