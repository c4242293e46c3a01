"""Fill a folder with synthetic talkers or songs, whole or not at all."""

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Protocol

from modules.runtime.errors import DataError
from modules.runtime.files import write_text

logger = logging.getLogger(__name__)

MARKER = ".completed"  # holds the parameters of a complete folder

# Goes into the marker: raise it when the same parameters would give other audio.
FORMAT = 1


class Parameters(Protocol):
    """A dataclass of everything that decides what is made."""

    def check(self) -> None:
        """Raise a DataError for parameters that nothing can meet."""

    def fill(self, folder: Path) -> None:
        """Write everything into a folder."""


def make(folder: str | Path, parameters: Parameters, made_by: str) -> Path:
    """Fill a folder, unless it was filled with equal parameters before.

    It is filled beside its place and renamed when complete, so an interrupted call
    leaves nothing that could be taken for the data. A folder that holds something else
    is a DataError, which names `made_by`. One process at a time may call this.
    """
    parameters.check()
    text = json.dumps({"format": FORMAT, **vars(parameters)}, indent=1) + "\n"
    folder = Path(folder).absolute()
    if folder.is_symlink():  # to rename the link would leave the data beside it
        folder = folder.resolve()
    known = folder / MARKER
    if known.is_file() and known.read_text() == text:
        logger.info("%s: is there already", folder)
        return folder
    if folder.exists() and not known.is_file() and any(folder.iterdir()):
        fault = f"is not empty and was not made by {made_by}"
        raise DataError(f"{folder}: {fault}; give an empty or a new folder")
    partial_folder = folder.with_name(f".{folder.name}.part")
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(partial_folder, ignore_errors=True)
    parameters.fill(partial_folder)
    write_text(partial_folder / MARKER, text)
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.rename(folder, old)
    os.rename(partial_folder, folder)
    shutil.rmtree(old, ignore_errors=True)
    logger.info("%s: made by %s", folder, made_by)
    return folder
