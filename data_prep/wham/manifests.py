"""Manifests of WHAM!."""

from collections.abc import Sequence
from pathlib import Path

from data_prep.common.folders import prepare_set
from data_prep.common.layout import SPLITS, Layout
from data_prep.common.versions import WSJ0_SPLITS

MIXTURES = {
    "mix_clean": ("s1", "s2"),
    "mix_single": ("s1", "noise"),
    "mix_both": ("s1", "s2", "noise"),
}
WHAM = Layout(WSJ0_SPLITS, MIXTURES)
LAYOUT = (WHAM,)


def prepare(
    data_folder: str | Path,
    save_folder: str | Path,
    num_spks: int = 2,
    sample_rate: int = 8000,
    mode: str = "min",
    task: str = "mix_both",
    test_folder: str | Path | None = None,
    splits: Sequence[str] = SPLITS,
) -> dict[str, str]:
    """Write manifests, unless nothing changed; return their paths by split.

    Errors and the other arguments are those of `data_prep.wsj0mix.prepare`.

    Arguments
    ---------
    data_folder : str | Path
        Holds `wav{8k,16k}/{min,max}/{tr,cv,tt}`.
    num_spks : int
        Sources in each mixture: 2, for mix_single 1.
    task : str
        "mix_both": two speakers in noise; "mix_single": the first in noise;
        "mix_clean": two without noise, the manifest's column `noise` is then empty.
    """
    WHAM.check_task(task, num_spks)
    where = (data_folder, save_folder, test_folder, splits)
    return prepare_set("wham", LAYOUT, *where, num_spks, sample_rate, mode, task)
