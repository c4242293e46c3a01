"""R12: two jobs in a folder, changed settings, a clock set back, odd meta values."""

import signal
from pathlib import Path

import numpy as np
import torch

from benchmarks.fault_cases import Bench, Outcome, target
from benchmarks.fault_cases.jobs import Job, Recipe, both, run, run_ranks
from benchmarks.fault_cases.parallel import side_by_side
from benchmarks.fault_cases.remains import differences, saved_step
from modules.weights.checkpointer import AtomicCheckpointer

DAY = 86_400


def two_jobs(recipe: Recipe, straight: Path, folder: Path, outcome: Outcome) -> None:
    """Check that a second job is told of the first, which does not notice."""
    first = Job(recipe.arguments(folder))
    first.until(lambda: len(first.steps) >= 2)
    first.signal(signal.SIGSTOP)  # it shall not end too early
    second = run(recipe.arguments(folder))
    first.signal(signal.SIGCONT)
    outcome.expect(
        second.status == 1 and f"in use by process {first.pid}" in second.last_line,
        f"second job: exit {second.status}, {second.last_line}",
    )
    first.wait()
    odd = differences(straight, folder)
    outcome.expect(not (first.status or odd), f"first job: {first.last_line}, {odd}")


#: Changed settings of each recipe: the value, and what a refusal must say.
CHANGES: dict[str, dict[str, tuple[object, str]]] = {
    "speech": {
        "lr": (0.002, "lr: 0.00015 -> 0.002"),
        "batch_size": (2, "batch_size: 1 -> 2"),
        "grad_accumulation_factor": (3, "grad_accumulation_factor: 1 -> 3"),
        "seed": (5, "seed: 1234 -> 5"),
        "examples_per_epoch": (9, "examples_per_epoch: 7 -> 9"),
    },
    "music": {
        "lr_scheduler": ("{lr: [0.01, 0.002]}", "[0.01, 0.001] -> [0.01, 0.002]"),
        "batch_size": (2, "batch_size: 4 -> 2"),
        "grad_accumulation_factor": (3, "grad_accumulation_factor: 2 -> 3"),
        "truncation": ("pooled", "truncation: running -> pooled"),
        "loss_memory": (8, "loss_memory: 6 -> 8"),
    },
}


def changed(recipe: Recipe, folder: Path, outcome: Outcome) -> None:
    """Check that each change is listed with both values, and accepted with the flag."""
    run(recipe.arguments(folder), faults=[{"fault": "die", "epoch": 2, "step": 4}])
    before = saved_step(folder)
    for key, (value, text) in CHANGES[recipe.name].items():
        job = run(recipe.arguments(folder, **{key: value}))
        outcome.expect(
            job.status == 1 and text in job.last_line,
            f"{key}={value}: exit {job.status}, {job.last_line}",
        )
    ranks = run_ranks(recipe.arguments(folder))
    outcome.expect(
        ranks[0].status == 1 and "(torchrun): 1 -> 2" in ranks[0].last_line,
        f"2 processes for 1: exit {ranks[0].status}, {ranks[0].last_line}",
    )
    outcome.expect(saved_step(folder) == before, "a refused job changed something")
    everything = {key: value for key, (value, _) in CHANGES[recipe.name].items()}
    job = run(recipe.arguments(folder, **everything, allow_changes=True))
    log = (folder / "train_log.txt").read_text()
    outcome.expect(
        job.status == 0 and "epoch: 2, lr: 2.00e-03" in log,
        f"accepted changes: exit {job.status}, {job.last_line}",
    )


def free_settings(
    recipe: Recipe, straight: Path, folder: Path, outcome: Outcome
) -> None:
    """Check that settings without effect on the result may change without the flag."""
    run(recipe.arguments(folder), faults=[{"fault": "die", "epoch": 2, "step": 4}])
    job = run(recipe.arguments(folder, num_workers=2, eval_batch_size=2))
    odd = differences(straight, folder) if job.status == 0 else job.last_line
    outcome.expect(not odd, f"other workers: {odd}")


def clock_set_back(
    recipe: Recipe, straight: Path, folder: Path, outcome: Outcome
) -> None:
    """Resume a run with a clock that is a day behind."""
    run(recipe.arguments(folder), faults=[{"fault": "die", "epoch": 1, "step": 6}])
    behind = {"fault": "clock", "rate": 1, "seconds": -DAY}
    death = {"fault": "die", "epoch": 2, "step": 4}
    run(recipe.arguments(folder), faults=[behind, death])
    reached = saved_step(folder)
    outcome.expect(reached == 9, f"clock set back: newest is of step {reached}, not 9")
    job = run(recipe.arguments(folder))
    odd = differences(straight, folder) if job.status == 0 else job.last_line
    outcome.expect(not odd, f"clock set back: {odd}")


def odd_meta(folder: Path, outcome: Outcome) -> None:
    """Save values that YAML writes as tags which no safe loader reads."""
    meta = {
        "numpy": np.float64(0.5),
        "tensor": torch.tensor(2.0),
        "path": Path("/data/x"),
        "tuple": (1, np.int64(2)),
    }
    checkpointer = AtomicCheckpointer(folder, {"model": torch.nn.Linear(2, 2)})
    checkpointer.save_checkpoint(meta=meta)
    found = AtomicCheckpointer(folder).find_checkpoint().meta
    read = {name: found[name] for name in meta}
    wanted = {"numpy": 0.5, "tensor": 2.0, "path": "/data/x", "tuple": [1, 2]}
    outcome.expect(read == wanted, f"meta values come back as {read}")


@target(
    "R12",
    "a second job in the folder, changed lr, batch size or world size: refused with "
    "the reason; clock set back, numpy in the meta values: no effect",
    "silent, or a crash",
)
def wrong_use(bench: Bench) -> Outcome:
    """Run the commands of a user who errs."""
    outcome = Outcome()
    own = {
        "speech": {},
        "music": {"grad_accumulation_factor": 2, "num_workers": 1, "ema_decay": 0.9},
    }
    recipes = both(bench.folder, 7, own)
    side_by_side(outcome, bench.folder, recipes, _wrong_use, bench.brief)
    odd_meta(bench.folder / "meta", outcome)
    count = 17 if bench.brief else 21
    outcome.figure = f"{count - len(outcome.failures)}/{count} as they should"
    return outcome


def _wrong_use(recipe: Recipe, folder: Path, outcome: Outcome, brief: bool) -> None:
    """Run every mistake that a user of this recipe may make."""
    straight = folder / "straight"
    run(recipe.arguments(straight))
    two_jobs(recipe, straight, folder / "two", outcome)
    changed(recipe, folder / "changed", outcome)
    if not brief:
        free_settings(recipe, straight, folder / "free", outcome)
        clock_set_back(recipe, straight, folder / "clock", outcome)
