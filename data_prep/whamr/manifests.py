"""Manifests of WHAMR!."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from data_prep.common.folders import prepare_set
from data_prep.common.layout import NOISE, SPLITS
from data_prep.wham.manifests import WHAM
from modules.runtime.errors import DataError

KINDS = ("anechoic", "reverb")
SPOKEN = (*WHAM.mixtures, "s1", "s2")

MIXTURES = {
    f"{mixture}_{kind}": tuple(p if p == NOISE else f"{p}_{kind}" for p in parts)
    for mixture, parts in WHAM.mixtures.items()
    for kind in KINDS
}
LAYOUT = (replace(WHAM, mixtures=MIXTURES),)


def prepare(
    data_folder: str | Path,
    save_folder: str | Path,
    num_spks: int = 2,
    sample_rate: int = 8000,
    mode: str = "min",
    task: str = "mix_both",
    mixture: str = "reverb",
    targets: str = "anechoic",
    test_folder: str | Path | None = None,
    splits: Sequence[str] = SPLITS,
) -> dict[str, str]:
    """Write manifests, unless nothing changed; return their paths by split.

    Errors and the other arguments are those of `data_prep.wham.prepare`.

    Arguments
    ---------
    mixture : str
        The input: "reverb" or "anechoic".
    targets : str
        The targets of training, validation and test: "anechoic" or, of a reverberant
        mixture, "reverb". Anechoic targets of a reverberant mixture do not add up to
        it; the manifest names the reverberant sources, which do, as images.
    """
    WHAM.check_task(task, num_spks)
    for name, value in (("mixture", mixture), ("targets", targets)):
        if value not in KINDS:
            raise DataError(f"{name} is {value!r}, expected {' or '.join(KINDS)}")
    if (mixture, targets) == ("anechoic", "reverb"):
        raise DataError("targets is 'reverb', but nobody can hear that in 'anechoic'")
    where = (data_folder, save_folder, test_folder, splits)
    heard, wanted = f"{task}_{mixture}", f"{task}_{targets}"
    version = (num_spks, sample_rate, mode, heard)
    return prepare_set("whamr", LAYOUT, *where, *version, wanted)
