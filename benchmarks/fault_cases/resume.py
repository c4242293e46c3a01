"""R3: a resume inside an epoch ends with the same bits, whatever is random."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.fault_cases import Bench, Outcome, target
from benchmarks.fault_cases.jobs import Recipe, music, run, speech
from benchmarks.fault_cases.parallel import in_parallel
from benchmarks.fault_cases.remains import differences

ALL_NOISE = "[torch, numpy, python]"
DEATH = {"epoch": 2, "step": 4}  # the newest checkpoint is of step 2
AT_START = {"epoch": 2, "step": 1}  # the newest checkpoint is of the end of an epoch

#: What stock software was tried with, and what our recipes add: name, recipe,
#: settings, where the process dies.
CASES: list[tuple[str, str, dict, dict]] = [
    ("0 workers", "speech", {}, DEATH),
    ("2 workers", "speech", {"num_workers": 2}, DEATH),
    ("dropout", "speech", {"dropout": 0.1}, DEATH),
    ("torch noise", "speech", {"noise": "[torch]"}, DEATH),
    ("numpy noise", "speech", {"noise": "[numpy]"}, DEATH),
    ("python noise", "speech", {"noise": "[python]"}, DEATH),
    ("batch norm", "speech", {"norm": True, "batch_size": 2,
                              "examples_per_epoch": 14}, DEATH),
    ("EMA", "speech", {"ema_decay": 0.9}, DEATH),
    ("accumulation 2", "speech", {"grad_accumulation_factor": 2}, DEATH),
    ("accumulation 3", "speech", {"grad_accumulation_factor": 3,
                                  "ema_decay": 0.9}, {"epoch": 2, "step": 5}),
    ("static", "speech", {"dynamic_mixing": False, "num_workers": 2,
                          "ckpt_interval_steps": 1}, DEATH),
    ("no valid", "speech", {"valid_every": 0, "grad_accumulation_factor": 3}, AT_START),
    ("last step", "speech", {"examples_per_epoch": 8}, {"epoch": 2, "step": 8}),
    ("end of epoch", "speech", {"ema_decay": 0.9}, AT_START),
    ("everything", "speech", {"ema_decay": 0.9, "num_workers": 2, "dropout": 0.1,
                              "noise": ALL_NOISE, "norm": True, "batch_size": 2,
                              "examples_per_epoch": 14,
                              "grad_accumulation_factor": 2}, DEATH),
    ("music running", "music", {}, {"epoch": 2, "step": 4}),
    ("music running, 2 workers", "music", {"num_workers": 2, "noise": ALL_NOISE,
                                           "grad_accumulation_factor": 2}, DEATH),
    ("music ccom", "music", {"truncation": "ccom", "grad_accumulation_factor": 3},
     DEATH),
    ("music pooled", "music", {"truncation": "pooled", "ema_decay": 0.9,
                               "grad_accumulation_factor": 2}, DEATH),
    ("music no valid", "music", {"valid_every": 0, "ema_decay": 0.9,
                                 "dropout": 0.1}, AT_START),
    ("music no valid tracks", "music", {"valid_tracks": 0,
                                        "grad_accumulation_factor": 2}, DEATH),
]  # fmt: skip
BRIEF = ("torch noise", "everything", "music running, 2 workers")


def resume_one(name: str, recipe: Recipe, death: dict, folder: Path) -> str:
    """Run straight, then killed and resumed; return what is wrong, or nothing."""
    straight, killed = folder / "straight", folder / "killed"
    job = run(recipe.arguments(straight))
    if job.status:
        return f"{name}: {job.last_line}"
    job = run(recipe.arguments(killed), faults=[{"fault": "die", **death}])
    if job.status != -9:
        return f"{name}: did not die ({job.status}, {job.last_line})"
    job = run(recipe.arguments(killed))
    if job.status:
        return f"{name}, resumed: {job.last_line}"
    odd = differences(straight, killed)
    return f"{name}: differs in {', '.join(odd)}" if odd else ""


def same_for_any_workers(recipe: Recipe, folder: Path) -> str:
    """Run with 0, 1 and 3 workers; return what is wrong, or nothing."""
    for workers in (0, 1, 3):
        job = run(recipe.arguments(folder / str(workers), num_workers=workers))
        if job.status:
            return f"{workers} workers: {job.last_line}"
        odd = differences(folder / "0", folder / str(workers))
        if odd:
            return f"{workers} workers: differs in {', '.join(odd)}"
    return ""


@target(
    "R3",
    "resume inside an epoch: the same weights, optimizer, logged losses and scores; "
    "the same bits with any number of workers",
    "6 of 19 cases",
)
def resume_matrix(bench: Bench) -> Outcome:
    """Run two cases at a time."""
    outcome = Outcome()
    make = {"speech": speech, "music": music}
    names, work = [], []
    for name, kind, settings, death in CASES:
        if bench.brief and name not in BRIEF:
            continue
        recipe = make[kind](bench.folder, **settings)
        names.append(name)
        call: Callable = partial(
            resume_one, name, recipe, death, bench.folder / name.replace(" ", "_")
        )
        work.append(call)
    if not bench.brief:
        for kind in make:
            recipe = make[kind](bench.folder)
            names.append(f"{kind}: any workers")
            folder = bench.folder / f"workers_{kind}"
            work.append(partial(same_for_any_workers, recipe, folder))
    faults = in_parallel(work)
    for fault in faults:
        outcome.expect(not fault, fault)
    outcome.figure = f"{faults.count('')}/{len(names)} cases bit-identical"
    return outcome
