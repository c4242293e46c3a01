"""Read what a run has left in its folder, and tell two runs apart."""

import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
import yaml


def logged_steps(run_folder: Path) -> int:
    """Return the last training step in the curves; 0 before the first."""
    try:
        lines = (run_folder / "curves.csv").read_text().splitlines()
    except OSError:
        return 0
    steps = [line.split(",")[1] for line in lines if line.startswith("step,")]
    return max((int(step) for step in steps if step.isdecimal()), default=0)


def log_of(run_folder: Path) -> tuple[str, str]:
    """Return the counts of the epochs, and the warnings."""
    counts = run_folder / "train_log.txt"
    lines = (run_folder / "log.txt").read_text().splitlines()
    said = "\n".join(line for line in lines if "WARNING" in line)
    return counts.read_text() if counts.exists() else "", said


def newest(run_folder: Path) -> Path:
    """Return the checkpoint saved last."""
    return max(
        (run_folder / "save").glob("CKPT+*"), key=lambda p: p.name.rsplit("+", 1)[1]
    )


def saved_step(run_folder: Path) -> int:
    """Return the steps done when the newest checkpoint was saved; 0 without one."""
    if not list((run_folder / "save").glob("CKPT+*")):
        return 0
    text = (newest(run_folder) / "CKPT.yaml").read_text()
    return yaml.safe_load(text)["global_step"]


def read_state(path: Path) -> object:
    """Read a file of a checkpoint: torch's objects, or the bytes of a text."""
    if zipfile.is_zipfile(path):
        return torch.load(path, "cpu", weights_only=True)
    return path.read_bytes()


def held(run_folder: Path) -> dict[str, object]:
    """Return everything that the newest checkpoint holds, by file."""
    files = sorted(newest(run_folder).glob("*.ckpt"))
    return {path.name: read_state(path) for path in files}


def same(a: object, b: object) -> bool:
    """Return whether two nested containers hold the same bits."""
    if isinstance(a, torch.Tensor):
        return (
            isinstance(b, torch.Tensor)
            and a.dtype == b.dtype
            and (torch.equal(a, b) or torch.equal(a.view(-1), b.view(-1)))
        )
    if isinstance(a, Mapping):
        return (
            isinstance(b, Mapping)
            and a.keys() == b.keys()
            and all(same(a[key], b[key]) for key in a)
        )
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)  # NaN is NaN


def differences(straight: Path, other: Path) -> list[str]:
    """Return how two finished runs differ: state, curves, logs, losses of stems."""
    found = []
    one, two = held(straight), held(other)
    if one.keys() != two.keys():
        return [f"checkpoints hold {sorted(one.keys() ^ two.keys())} once only"]
    found += [name for name in one if not same(one[name], two[name])]
    for name in ("curves.csv", "train_log.txt", "test_results.csv", "stem_losses.csv"):
        lines = []
        for folder in (straight, other):
            path = folder / name
            text = path.read_text() if path.exists() else ""
            lines.append(
                [x for x in text.splitlines() if "examples_per_second" not in x]
            )
        if name == "train_log.txt":  # a kill between a line and its checkpoint
            lines = [list(dict.fromkeys(part)) for part in lines]
        if lines[0] != lines[1]:
            found.append(name)
    return found
