"""Compare two things, or more: they take turns in one run, ratios are of neighbours.

A side is a function that measures itself once and returns figures, such as `run` of a
command in a process of its own or `call` of a function in this one. All sides are
measured one after the other, every second turn in the reverse order, so that a change
in the machine's load meets all of them. The ratio of a turn is that of a side's figure
to the first side's figure in the same turn; tables give the median of all turns with
their range. Where other jobs share the cores, CPU seconds say more than those of the
clock.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
WALL, CPU, MEMORY = "wall s", "CPU s", "peak MB"

Figures = dict[str, float]
Results = dict[str, list[Figures]]


def run(command: Sequence[str], **options: object) -> Figures:
    """Run a command from the project's folder; return its time and peak memory."""
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, **options)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"benchmark: exit code {process.returncode} of {' '.join(command)}")
    figures = {WALL: time.perf_counter() - start}
    figures[CPU] = usage.ru_utime + usage.ru_stime
    return figures | {MEMORY: usage.ru_maxrss / 1024}


def report(command: Sequence[str], **options: Any) -> Any:
    """Run a command from the project's folder; return the JSON that it prints last."""
    done = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, **options
    )
    if done.returncode:
        sys.exit(f"benchmark: exit code {done.returncode} of {' '.join(command)}")
    return json.loads(done.stdout.splitlines()[-1])


def call(work: Callable[[], object]) -> Figures:
    """Call a function of this process; return its seconds."""
    start, cpu = time.perf_counter(), time.process_time()
    work()
    return {CPU: time.process_time() - cpu, WALL: time.perf_counter() - start}


def call_each(
    works: Mapping[str, Callable[[], object]], turns: int, untimed: int = 1
) -> Results:
    """Let functions of this process take turns, the first ones as a warm-up."""
    sides = {name: partial(call, work) for name, work in works.items()}
    results = take_turns(sides, untimed + turns)
    return {name: figures[untimed:] for name, figures in results.items()}


def take_turns(
    sides: Mapping[str, Callable[[], Figures | None]],
    turns: int,
    seconds: float = float("inf"),
) -> Results:
    """Measure all sides, turn by turn, as long as another turn fits into `seconds`.

    There is one turn at least. A side that returns None is measured no more.
    """
    results: Results = {name: [] for name in sides}
    start, given_up = time.perf_counter(), set()
    for turn in range(turns):
        spent = time.perf_counter() - start
        if turn and spent * (turn + 1) / turn > seconds:
            break
        for name in list(sides)[:: 1 if turn % 2 == 0 else -1]:
            if name in given_up:
                continue
            figures = sides[name]()
            if figures is None:
                given_up.add(name)
                continue
            results[name].append(figures)
            shown = {kind: float(f"{value:.4g}") for kind, value in figures.items()}
            print(name, json.dumps(shown), file=sys.stderr, flush=True)
    return results


def median(results: Results, name: str, kind: str) -> float:
    """Return the median of a side's figures."""
    return statistics.median(figures[kind] for figures in results[name])


def ratio(results: Results, name: str, base: str, kind: str, power: int = 1) -> str:
    """Write the ratio of two sides; the power -1 turns it round, for rates."""
    pairs = zip(results[name], results[base], strict=False)
    ratios = [(a[kind] / b[kind]) ** power for a, b in pairs if b[kind] > 0]
    return spread(ratios, 2)


def spread(values: Sequence[float], digits: int) -> str:
    """Write a median with its range, where there are several values."""
    if not values:
        return ""
    middle = f"{statistics.median(values):.{digits}f}"
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def header(kinds: Sequence[str] = (WALL, CPU, MEMORY)) -> list[str]:
    """Return the first two lines of the table that `rows` continues."""
    cells = ["what", *(cell for kind in kinds for cell in (kind, "ratio"))]
    return [f"| {' | '.join(cells)} |", "|---" * len(cells) + "|"]


def rows(
    title: str, results: Results, kinds: Sequence[str] = (WALL, CPU, MEMORY)
) -> list[str]:
    """Return a line of Markdown for each side: medians, ratios to the first side."""
    lines, base = [], ""
    for name in (name for name, figures in results.items() if figures):
        base = base or name
        cells = [f"{title}{name}"]
        for kind in kinds:
            middle = median(results, name, kind)
            cells.append(f"{middle:.0f}" if middle >= 100 else f"{middle:.3g}")
            cells.append("" if name == base else ratio(results, name, base, kind))
        lines.append(f"| {' | '.join(cells)} |")
    return lines
