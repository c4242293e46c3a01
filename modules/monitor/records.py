"""What a run writes of itself at its start: `log.txt`, `env.log`, a copy of `train.py`.

No file or folder that lies in the place of one of them keeps a run from starting.
"""

import importlib.metadata
import logging
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from speechbrain.core import DEFAULT_LOG_CONFIG
from speechbrain.utils.logger import setup_logging

from modules.runtime.files import naming, set_aside, write_text
from modules.runtime.terminal import escaped

#: Names in a run's folder that others may have given to something else.
FILES = (
    *("log.txt", "train_log.txt", "train.py", "env.log", "hyperparams.yaml"),
    *("curves.csv", "curves.png", "test_results.csv", "test_results.json"),
)
FOLDERS = ("audio", "tensorboard", "validation")

#: Where our loggers are; of others, details are not kept.
OURS = ("modules", "recipes", "data_prep")


class _Filter(logging.Filter):
    """Escapes names in texts; keeps details of libraries out."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = escaped(record.getMessage()), None
        return record.levelno >= logging.INFO or record.name.startswith(OURS)


def begin_records(folder: Path, command: Path) -> None:
    """Make the folder of a run, log into it, and describe the environment."""
    with naming(folder):
        for names, is_right in ((FILES, Path.is_file), (FOLDERS, Path.is_dir)):
            for path in (folder / name for name in names):
                if path.exists() and not is_right(path):
                    set_aside(path)
        folder.mkdir(parents=True, exist_ok=True)
        log = {"filename": str(folder / "log.txt")}
        setup_logging(DEFAULT_LOG_CONFIG, {"handlers": {"file_handler": log}})
        root = logging.getLogger()
        for handler in root.handlers:
            handler.addFilter(_Filter())
        sys.excepthook = lambda *error: root.error("Exception:", exc_info=error)
        root.info(f"Folder of the run: {folder}")
        shutil.copy(command, folder)
        write_text(folder / "env.log", describe_environment(command.parent))


def describe_environment(repository: Path) -> str:
    """Return versions and machine of this very process, as text."""
    packages = {f"{d.name}=={d.version}" for d in importlib.metadata.distributions()}
    cards = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    git = ["git", "-C", str(repository), "describe", "--always", "--dirty"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    except OSError:  # there is no git
        commit = ""
    lines = {
        "command": " ".join(sys.argv),
        "python": f"{' '.join(sys.version.split())} ({sys.executable})",
        "machine": f"{platform.platform()}, {platform.node()}",
        "threads": torch.get_num_threads(),
        "devices": ", ".join(cards) or "no GPU",
        "CUDA": torch.version.cuda,
        "commit": commit or "not known",
    }
    said = [f"{name}: {value}" for name, value in lines.items()]
    return "\n".join([*said, "packages:", *sorted(packages, key=str.lower), ""])
