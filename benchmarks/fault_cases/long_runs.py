"""Long runs: flat memory, no process and no descriptor left behind."""

import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.fault_cases import Bench, Outcome
from benchmarks.fault_cases.jobs import ROOT, Job, Recipe, children, music, speech
from benchmarks.fault_cases.launch import DRAW
from benchmarks.fault_cases.parallel import side_by_side

#: Growth that a leak of one small batch a step would exceed by far, MB per 1000 steps.
LARGEST_SLOPE = 5.0
#: Batches on their way from the data workers hold descriptors, now more, now less.
SLACK = 8
WARM_UP = 0.5  # of the run: allocators and caches fill up
#: The test at the end of a demo, which separates and scores whole songs, in seconds.
LONGEST_TEST = 1800.0
#: Epochs and batch size of the demo recipes.
DEMOS = {"demo": (6, 1), "demo_music": (16, 4)}


@dataclass
class Sample:
    """What a process held after a number of steps."""

    step: int
    megabytes: float
    descriptors: int
    processes: int


def look(job: Job) -> Sample | None:
    """Return what a job holds now; None when it has ended."""
    place = Path(f"/proc/{job.pid}")
    try:
        pages = int((place / "statm").read_text().split()[1])
        descriptors = len(os.listdir(place / "fd"))
    except OSError:
        return None
    megabytes = pages * os.sysconf("SC_PAGE_SIZE") / 1e6
    return Sample(len(job.steps), megabytes, descriptors, len(children(job.pid)))


def slope_of(samples: list[Sample]) -> float:
    """Return MB per 1000 steps, by a line through the samples."""
    steps = [sample.step for sample in samples]
    megabytes = [sample.megabytes for sample in samples]
    return 1000 * float(np.polyfit(steps, megabytes, 1)[0])


def watch(recipe: Recipe, folder: Path, outcome: Outcome, steps: int) -> str:
    """Run a recipe for `steps` steps, sample it all the while; return the figures."""
    job, samples = Job(recipe.arguments(folder), env={DRAW: "1"}), []
    while job.poll() is None and len(job.steps) < steps:
        sample = look(job)
        due = samples[-1].step + steps // 100 if samples else WARM_UP * steps
        if sample is not None and sample.step >= due:
            samples.append(sample)
        time.sleep(0.02)
    group = job.pid
    job.wait(LONGEST_TEST)
    outcome.expect(job.status == 0, job.last_line)
    if not outcome.expect(len(samples) >= 10, f"{len(samples)} samples only"):
        return f"{len(samples)} samples"
    slope = slope_of(samples)
    counts = {
        what: sorted(getattr(sample, what) for sample in samples)
        for what in ("descriptors", "processes")
    }
    outcome.expect(slope <= LARGEST_SLOPE, f"{slope:.1f} MB per 1000 steps")
    half = len(samples) // 2
    for what in counts:
        # The middle value: between two epochs data workers come and go.
        early, late = (
            sorted(getattr(s, what) for s in part)[len(part) // 2]
            for part in (samples[:half], samples[half:])
        )
        outcome.expect(late <= early + SLACK, f"{what} {early}, later {late}")
    alive = [
        path.name for path in Path("/proc").glob("[0-9]*") if _group_of(path) == group
    ]
    outcome.expect(not alive, f"processes {alive} outlive the run")
    return (
        f"{len(job.steps)} steps, {samples[-1].megabytes:.0f} MB, {slope:+.1f} MB per "
        f"1000, "
        f"{counts['descriptors'][0]} to {counts['descriptors'][-1]} descriptors, "
        f"{counts['processes'][0]} to {counts['processes'][-1]} processes"
    )


def _group_of(process: Path) -> int:
    """Return the process group, by /proc; 0 when the process has gone."""
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[2])
    except OSError:
        return 0


def toys(folder: Path, steps: int, epochs: int) -> dict[str, Recipe]:
    """Return the toy recipes for `steps` steps in `epochs` epochs, an even number."""
    shared = {"ckpt_interval_steps": 50, "log_every": 10, "ema_decay": 0.9}
    return {
        "speech": speech(
            folder,
            **shared,
            num_workers=2,
            examples_per_epoch=steps // epochs,
            N_epochs=epochs,
        ),
        # Two steps of a recipe, of half the epochs each.
        "music": music(
            folder,
            **shared,
            examples_per_epoch=4 * (steps // epochs),
            lr_scheduler=f"{{epochs: [{epochs // 2}, {epochs // 2}]}}",
        ),
    }


def demos(folder: Path, steps: int) -> dict[str, Recipe]:
    """Return the demo recipes with longer epochs and nothing else changed."""
    recipes = {}
    for name, (epochs, batch_size) in DEMOS.items():
        settings = {"data_folder": folder / f"{name}_data", "noprogressbar": None}
        settings |= {"device": "cpu", "ckpt_interval_steps": 50}
        settings |= {"examples_per_epoch": batch_size * math.ceil(steps / epochs)}
        recipes[name] = Recipe(ROOT / "hparams" / f"{name}.yaml", settings)
    return recipes


def long_runs(bench: Bench, recipes: Mapping[str, Recipe], steps: int) -> Outcome:
    """Run recipes for `steps` steps, side by side."""
    outcome = Outcome()
    lines = side_by_side(outcome, bench.folder, recipes, watch, steps)
    outcome.figure = "; ".join(map("{}: {}".format, recipes, lines))
    return outcome
