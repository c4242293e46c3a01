"""A folder of generated data: made when it is missing, whole or not at all."""

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from modules.runtime.errors import DataError
from modules.runtime.files import write_text

logger = logging.getLogger(__name__)


def make_once(
    folder: str | Path,
    fill: Callable[[Path], None],
    marker: str,
    text: str,
    made_by: str,
) -> Path:
    """Fill a folder, unless it holds just what is wanted already.

    It is filled beside its place and renamed when complete, so an interrupted call
    leaves nothing that could be taken for the data. One process at a time.

    Arguments
    ---------
    folder : str | Path
        Where to; absent, empty, or made before, and then replaced when `text` differs.
    fill : Callable
        Writes everything into the folder that it is given.
    marker : str
        Name of the file that says that the folder is complete.
    text : str
        What it holds: everything that decides what is made.
    made_by : str
        Name of the module, for the message.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    DataError
        The folder holds something else.
    """
    folder = Path(folder).absolute()
    if folder.is_symlink():  # to rename the link would leave the data beside it
        folder = folder.resolve()
    known = folder / marker
    if known.is_file() and known.read_text() == text:
        logger.info("%s: is there already", folder)
        return folder
    if folder.exists() and not known.is_file() and any(folder.iterdir()):
        raise DataError(
            f"{folder}: is not empty and was not made by {made_by}; give an empty or "
            "a new folder"
        )
    partial_folder = folder.with_name(f".{folder.name}.part")
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(partial_folder, ignore_errors=True)
    fill(partial_folder)
    write_text(partial_folder / marker, text)
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.rename(folder, old)
    os.rename(partial_folder, folder)
    shutil.rmtree(old, ignore_errors=True)
    logger.info("%s: made by %s", folder, made_by)
    return folder
