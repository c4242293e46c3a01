"""Files that are there whole or not at all, and how they are listed and compared."""

import contextlib
import errno
import hashlib
import itertools
import logging
import os
import stat
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from modules.runtime.terminal import escaped

logger = logging.getLogger(__name__)


def one_line(error: BaseException) -> str:
    """What to print of an error: of the system's, the file comes first."""
    if isinstance(error, OSError) and error.filename:
        return escaped(f"{error.filename}: {error.strerror or error}")
    return escaped(str(error))


@contextlib.contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Give a system's error in the block, that names no file, the name of this one."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def set_aside(path: Path) -> None:
    """Rename what is damaged, or in the place of something else, and say so."""
    names = (path.with_name(f"{path.name}.aside{n or ''}") for n in itertools.count())
    target = next(name for name in names if not os.path.lexists(name))
    os.rename(path, target)
    logger.warning(f"{path} is damaged or in the way: renamed to {target.name}")


def open_file(path: str | Path, buffering: int = -1) -> BinaryIO:
    """Open an ordinary file to read; a pipe, a socket or a device is never opened."""
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # a folder says so itself
        raise OSError(errno.EINVAL, "not an ordinary file", os.fspath(path))
    return open(path, "rb", buffering=buffering)


def folded(name: str) -> str:
    """Return what names have in common that differ in case or in Unicode form alone."""
    return unicodedata.normalize("NFC", name.casefold())


def found_path(path: Path) -> Path:
    """Return a path as it is spelt on the disk, if one and only one spelling is."""
    if path.exists() or path == path.parent:
        return path
    parent = found_path(path.parent)
    names = os.listdir(parent) if parent.is_dir() else []
    alike = [name for name in names if folded(name) == folded(path.name)]
    return parent / (alike[0] if len(alike) == 1 else path.name)


def list_files(folder: Path, pattern: str) -> list[Path]:
    """Files of a pattern by name; not the hidden ones that macOS leaves (`._a.wav`)."""
    return sorted(p for p in folder.glob(pattern) if not p.name.startswith("."))


def walk_files(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the folders under a root and their files; follow each link only once."""
    seen = set()
    for place, folders, names in os.walk(root, followlinks=True):
        folders.sort()
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield place, names


@contextlib.contextmanager
def write_whole(path: str | Path, sync: bool = True) -> Iterator[Path]:
    """Yield a temporary path; what the block writes there becomes the file at `path`.

    At any moment the file is the old one or the whole new one. With `sync` that holds
    after a power cut too; leave it out for tens of thousands of files that can be made
    again.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield partial
        if sync:
            fsync(partial)
        os.replace(partial, path)
    except OSError as error:  # the error of a full disk names no file
        error.filename = str(path)
        raise
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: str | Path, text: str, sync: bool = True) -> Path:
    """Write a text file whole or not at all, see `write_whole`.

    The bytes of names of files that are not UTF-8 are written as they are.
    """
    with write_whole(path, sync) as partial:
        partial.write_bytes(text.encode(errors="surrogateescape"))
    return Path(path)


def fingerprint(path: Path) -> list[int | str]:
    """Size and digest of a file; SHA-256, which CPUs of today compute in hardware."""
    with open_file(path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
        return [file.tell(), digest]


def fsync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
