"""Files that are there whole or not at all, and how they are listed and compared."""

import hashlib
import os
from pathlib import Path


def one_line(error: Exception) -> str:
    """What to print of an error: of the system's, the file comes first."""
    if isinstance(error, OSError) and error.filename:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    return str(error)


def list_files(folder: Path, pattern: str) -> list[Path]:
    """Files of a pattern by name; not the hidden ones that macOS leaves (`._a.wav`)."""
    return sorted(p for p in folder.glob(pattern) if not p.name.startswith("."))


def write_text(path: str | Path, text: str, sync: bool = True) -> Path:
    """Write a file that is at any moment either the old one or the whole new one.

    `sync=False` is for one of many that can be made again: a power cut may take it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(partial, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:  # a full disk's names no file
        error.filename = str(path)
        raise
    finally:
        partial.unlink(missing_ok=True)
    return path


def fingerprint(path: Path) -> list[int | str]:
    """Size and digest of a file; SHA-256, which CPUs of today compute in hardware."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return [file.tell(), digest]


def fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
