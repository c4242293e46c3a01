"""Which files make a mixture, by folder: what `data_prep.verify` finds in a data set.

A row is made for every mixture of every version that a folder holds, whatever training
uses of it. No audio is opened, so a row's file may be missing; `duration` is 0 (that of
the mixture), and so is `sample_rate` where the place of a file does not tell it.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from data_prep.common.layout import EACH, Tree, _rows_of
from data_prep.verify import stems as verify_stems
from modules.data.manifest import Row
from modules.runtime.errors import DataError

WSJ0 = ("tr", "cv", "tt")

SPEAKERS = ("2speakers", "3speakers")

IN_NOISE = {
    "mix_clean": (f"s{EACH}",),
    "mix_both": (f"s{EACH}", "noise"),
    "mix_single": ("s1", "noise"),
}

LIBRIMIX = ("train-100", "train-360", "dev", "test")

# A line adds a data set.
LAYOUTS: dict[str, tuple[Tree, ...]] = {
    "wsj0mix": (
        Tree(WSJ0, {"mix": (f"s{EACH}",)}, SPEAKERS),
        Tree(
            ("train", "valid", "test"), {"mixture": (f"source{EACH}",)}, SPEAKERS, ("",)
        ),
        Tree(("train", "val", "test"), {"mix": (f"s{EACH}",)}, SPEAKERS, ("",)),
    ),
    "librimix": (Tree(LIBRIMIX, IN_NOISE, ("Libri2Mix", "Libri3Mix")),),
    "wham": (Tree(WSJ0, IN_NOISE),),
    "whamr": (
        Tree(
            WSJ0,
            {
                f"{mixture}_{room}": tuple(
                    part if part == "noise" else f"{part}_{room}" for part in parts
                )
                for mixture, parts in IN_NOISE.items()
                for room in ("anechoic", "reverb")
            },
        ),
    ),
}

STEMS = "stems"

NAMES = (*LAYOUTS, STEMS)


def find_rows(
    folder: Path, layout: str | None = None, sources: Sequence[str] = ()
) -> tuple[str, list[Row]]:
    """All mixtures of a folder, and the name of its layout.

    Arguments
    ---------
    folder : Path
        A data set's folder.
    layout : str | None
        One of `NAMES`; None finds it by looking.
    sources : Sequence[str]
        Names of stems, where the layout is that of stems; none: found by looking.

    Raises
    ------
    DataError
        Nothing is found, or several layouts are, or there is no such folder.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: does not exist or is no folder")
    found = {}
    for name in [layout] if layout else LAYOUTS:
        rows = [] if name == STEMS else _rows_of(folder, LAYOUTS[name])
        if rows:
            found[name] = rows
    # Stems come last: folders of other things with like names could be some.
    if not found and layout in (None, STEMS):
        rows = verify_stems.list_rows(folder, sources)
        if rows:
            found[STEMS] = rows
    if len(found) == 1:
        return next(iter(found.items()))
    if found:
        raise DataError(f"{folder}: may be {' or '.join(found)}; set --layout")
    there = ", ".join(sorted(os.listdir(folder))[:8]) or "nothing"
    raise DataError(
        f"{folder}: no mixtures of the layout {layout or ' or '.join(NAMES)} found; "
        f"it holds {there}"
    )
