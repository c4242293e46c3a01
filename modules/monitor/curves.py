"""The file in which a run keeps its curves, and the picture of it.

`curves.csv` has one value a line (`kind,step,name,value`), so that new names can come
at any time and a kill can damage no more than the last line.
"""

import csv
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from modules.runtime.files import set_aside, write_whole
from modules.runtime.tables import table_text

if TYPE_CHECKING:  # slow to import, and only needed for a picture
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

COLUMNS = ("kind", "step", "name", "value")

# Titles of panels; others have the name of their values.
TITLES = {
    "lr": "learning rate",
    "grad_norm": "gradient norm",
    "skipped": "steps skipped",
}

MAX_POINTS = 1000  # of a line in the picture; a longer one shows means over blocks


class Point(NamedTuple):
    """A row of curves.csv; `kind` is "step" or "epoch", and `step` is its number."""

    kind: str
    step: int
    name: str
    value: float


def read_points(path: Path) -> list[Point]:
    """Read a `curves.csv`; damaged lines are left out with a warning."""
    points, damaged = [], 0
    with open(path, encoding="utf-8", errors="replace", newline="") as file:
        next(file, None)  # header
        for line in file:
            try:
                # line by line: in a damaged one, a quote must not swallow the rest
                ((kind, step, name, value),) = csv.reader((line,))
                if kind not in ("step", "epoch"):
                    raise ValueError(kind)
                points.append(Point(kind, int(step), name, float(value)))
            except (ValueError, csv.Error):
                damaged += 1
    if damaged:
        logger.warning(f"{path}: ignored {damaged} damaged lines")
    return points


def repair(path: Path) -> None:
    """Write the header if it is missing, and drop a last line that a kill cut off.

    What is no log of this program is set aside.
    """
    header = table_text(COLUMNS, []).encode()
    with open(path, "ab+") as file:
        file.seek(0)
        start = file.read(len(header))
        if not header.startswith(start):
            set_aside(path)
            return repair(path)
        if start != header:
            file.truncate(0)
            file.write(header)
            return
        file.truncate(len(start) + file.read().rfind(b"\n") + 1)


def draw_curves(points: list[Point], path: Path) -> Path:
    """Draw a panel for each quantity and axis into a PNG, atomically."""
    from matplotlib.figure import Figure  # slow to import; needs no display

    panels: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
    for kind, step, name, value in points:
        lines = panels.setdefault((kind, _topic(name)), {})
        lines.setdefault(name, {})[step] = value if math.isfinite(value) else math.nan
    columns = 3
    rows = max(1, math.ceil(len(panels) / columns))
    figure = Figure(figsize=(5 * columns, 3.2 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    # panels by step before panels by epoch, each in the order of their first value
    for key in sorted(panels, key=lambda key: key[0] != "step"):
        axis = next(axes)
        for name, values in panels[key].items():
            marker = "." if len(values) < 60 else None
            axis.plot(*_thinned(values), label=name, marker=marker)
        axis.set(xlabel=key[0], title=f"{key[1]}, by {key[0]}")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        if len(panels[key]) > 1:
            axis.legend(fontsize="small")
    for axis in axes:
        axis.set_axis_off()
    return save_figure(figure, path)


def save_figure(figure: "Figure", path: Path) -> Path:
    """Write a figure of matplotlib as a PNG, atomically."""
    with write_whole(path, sync=False) as partial:
        figure.savefig(partial, format="png", dpi=100)
    return path


def _thinned(values: dict[int, float]) -> tuple[list[float], list[float]]:
    """Return steps and values in order, as means over blocks if there are many."""
    steps = sorted(values)
    size = math.ceil(len(steps) / MAX_POINTS)
    blocks = [steps[i : i + size] for i in range(0, len(steps), size)]
    means = [_mean([values[step] for step in block]) for block in blocks]
    return [_mean(block) for block in blocks], means


def _mean(values: list) -> float:
    """Return the mean of the finite values, NaN if there are none."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def _topic(name: str) -> str:
    """Return the panel of a name: `valid/si_snr_i` and `test/sdr` belong together."""
    name = name.rsplit("/", 1)[-1]
    if "loss" in name:
        return "loss"
    if "kept" in name:
        return "share kept"
    if "snr" in name or "sdr" in name:
        return "SI-SNR, SDR (dB)"
    return TITLES.get(name, name.replace("_", " "))
