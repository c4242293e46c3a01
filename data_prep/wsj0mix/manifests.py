"""WSJ0-2mix and WSJ0-3mix, or any data set laid out as they are, into manifests.

    python -m data_prep.wsj0mix --data_folder=/data/wsj0-mix/2speakers \
        --save_folder=results/manifests [--num_spks=2] [--sample_rate=8000] [--mode=min]
    python -m data_prep.wsj0mix generate --help     makes them, from WSJ0 and the lists

Three layouts are in use; which one a folder has is found by looking into it, never
from its name:

    wav8k/min/{tr,cv,tt}/{mix,s1,s2[,s3]}                 the original
    {train,valid,test}/{mixture,source1,source2[,source3]}
    {train,val,test}/{mix,s1,s2[,s3]}

A mixture and its sources have the same file name, WAV or FLAC.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from data_prep.common.folders import Parts, write_manifests
from modules.runtime.errors import DataError

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Layout:
    """Where a data set keeps its files, relative to its folder."""

    pattern: str
    splits: tuple[str, str, str]
    mixture: str
    source: str

    def folders(self, root: Path, num_spks: int) -> dict[str, list[Path]]:
        """For each split the folder of the mixtures, then those of the sources."""
        parts = [self.mixture, *(f"{self.source}{k + 1}" for k in range(num_spks))]
        return {
            name: [root / self.pattern / split / part for part in parts]
            for name, split in zip(SPLITS, self.splits, strict=True)
        }

    def describe(self, num_spks: int) -> str:
        """The layout in the notation of the shell."""
        parts = [self.mixture, *(f"{self.source}{k + 1}" for k in range(num_spks))]
        prefix = f"{self.pattern}/" if self.pattern else ""
        return f"{prefix}{{{','.join(self.splits)}}}/{{{','.join(parts)}}}"


def prepare(
    data_folder: str | Path,
    save_folder: str | Path,
    num_spks: int = 2,
    sample_rate: int = 8000,
    mode: str = "min",
) -> dict[str, str]:
    """Write train, valid and test manifests; leave them alone if nothing changed.

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

    Returns
    -------
    dict[str, str]
        Paths of the manifests under the keys train, valid and test.

    Raises
    ------
    DataError
        No layout fits, or a file is missing, unreadable, at another rate, or of
        another length than its mixture; the message names it.
    """
    if mode not in ("min", "max"):
        raise DataError(f"mode is {mode!r}, expected 'min' or 'max'")
    folders = find_folders(Path(data_folder).absolute(), num_spks, sample_rate, mode)
    splits = {
        split: Parts(mixture, tuple(sources))
        for split, (mixture, *sources) in folders.items()
    }
    return write_manifests(splits, save_folder, sample_rate, "wsj0mix")


def find_folders(
    data_folder: Path, num_spks: int, sample_rate: int, mode: str
) -> dict[str, list[Path]]:
    """Find the layout by looking: the folders of mixtures and sources of each split.

    Arguments
    ---------
    data_folder : Path
        The data set's folder or its parent.
    num_spks, sample_rate, mode
        As in `prepare`.

    Returns
    -------
    dict[str, list[Path]]
        For each split the mixtures' folder, then one for each source.

    Raises
    ------
    DataError
        None or more than one layout fits.
    """
    original = f"wav{sample_rate // 1000}k/{mode}"
    layouts = [
        Layout(original, ("tr", "cv", "tt"), "mix", "s"),
        Layout("", ("train", "valid", "test"), "mixture", "source"),
        Layout("", ("train", "val", "test"), "mix", "s"),
    ]
    if not data_folder.is_dir():
        raise DataError(f"data_folder {data_folder} does not exist or is no folder")
    complete, incomplete = [], []
    for root in (data_folder, data_folder / f"{num_spks}speakers"):
        for layout in layouts:
            folders = layout.folders(root, num_spks)
            missing = [p for ps in folders.values() for p in ps if not p.is_dir()]
            if not missing:
                complete.append((layout, root, folders))
            else:
                incomplete.append((len(missing), str(missing[0]), folders))
    if len(complete) > 1:
        found = " and ".join(
            f"{root}/{la.describe(num_spks)}" for la, root, _ in complete
        )
        raise DataError(
            f"{data_folder}: found {found}; point data_folder at one of them"
        )
    if not complete:
        _raise_nothing_found(data_folder, num_spks, layouts, incomplete)
    layout, root, folders = complete[0]
    one_more = layout.folders(root, num_spks + 1)["train"][-1]
    if one_more.is_dir():
        raise DataError(
            f"{one_more} exists, so the mixtures have more than {num_spks} sources; "
            f"set --num_spks={num_spks + 1}"
        )
    return folders


def _raise_nothing_found(
    data_folder: Path,
    num_spks: int,
    layouts: Sequence[Layout],
    incomplete: Sequence[tuple[int, str, dict[str, list[Path]]]],
) -> NoReturn:
    """Say what was looked for and what lies there instead."""
    count, missing, folders = min(incomplete, key=lambda item: item[0])
    looked_for = ", ".join(layout.describe(num_spks) for layout in layouts)
    there = sorted(entry.name for entry in data_folder.iterdir())[:8]
    if count < sum(map(len, folders.values())):
        raise DataError(f"{missing} does not exist, but other folders of its layout do")
    raise DataError(
        f"{data_folder}: no mixtures found; looked there and in {num_spks}speakers/ "
        f"for {looked_for}; it holds {', '.join(there) or 'nothing'}"
    )
