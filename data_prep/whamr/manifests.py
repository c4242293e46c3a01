"""Manifests of WHAMR!."""

from pathlib import Path

from data_prep.common.folders import Parts, write_manifests
from data_prep.wham.manifests import TASKS, check_task, find_parts
from modules.runtime.errors import DataError

KINDS = ("anechoic", "reverb")

SPOKEN = (*TASKS, "s1", "s2")


def prepare(
    data_folder: str | Path,
    save_folder: str | Path,
    num_spks: int = 2,
    sample_rate: int = 8000,
    mode: str = "min",
    task: str = "mix_both",
    mixture: str = "reverb",
    targets: str = "anechoic",
) -> dict[str, str]:
    """Write train, valid and test manifests; leave them alone if nothing changed.

    Arguments
    ---------
    data_folder, save_folder, num_spks, sample_rate, mode, task
        As in `data_prep.wham.prepare`.
    mixture : str
        What is heard: "reverb" or "anechoic".
    targets : str
        What is wanted, in training, validation and test alike: "anechoic" or "reverb".
        Anechoic targets of a reverberant mixture do not add up to it; the manifest
        names the reverberant sources, which do, as images.

    Returns
    -------
    dict[str, str]
        Paths of the manifests under the keys train, valid and test.

    Raises
    ------
    DataError
        As in `data_prep.wham.prepare`; reverberant targets of an anechoic mixture.
    """
    check_task(task, num_spks)
    for name, value in (("mixture", mixture), ("targets", targets)):
        if value not in KINDS:
            raise DataError(f"{name} is {value!r}, expected {' or '.join(KINDS)}")
    if (mixture, targets) == ("anechoic", "reverb"):
        raise DataError("targets is 'reverb', but nobody can hear that in 'anechoic'")

    def find(kind: str) -> dict[str, Parts]:
        sources = [f"s{number + 1}_{kind}" for number in range(num_spks)]
        heard = f"{task}_{mixture}"
        return find_parts(data_folder, sample_rate, mode, heard, sources)

    splits = find(targets)
    if mixture != targets:
        images = find(mixture)
        splits = {
            split: parts._replace(images=images[split].sources)
            for split, parts in splits.items()
        }
    return write_manifests(splits, save_folder, sample_rate, "whamr")
