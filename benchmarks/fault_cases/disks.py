"""R9: a full disk, a quota, a folder that turns read-only."""

import contextlib
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

from benchmarks.fault_cases import Bench, Outcome, target
from benchmarks.fault_cases.jobs import Job, Recipe, both, quiet, run
from benchmarks.fault_cases.parallel import side_by_side
from benchmarks.fault_cases.remains import differences, saved_step

BALLAST = 1_000_000  # 4 MB a checkpoint
LONGER = 240  # examples of an epoch that cannot end before the disk changes
ROOM = 10  # MB of the small disk: two checkpoints fit, a third does not


@contextlib.contextmanager
def mounted(folder: Path, *options: str) -> Iterator[bool]:
    """Mount something at a folder; yield whether that was allowed (it needs root)."""
    folder.mkdir(parents=True, exist_ok=True)
    allowed = quiet(["mount", *options, str(folder)]).returncode == 0
    try:
        yield allowed
    finally:
        if allowed:
            quiet(["umount", "--lazy", str(folder)])


def small_disk(straight: Path, recipe: Recipe, folder: Path, outcome: Outcome) -> str:
    """Run on a disk that becomes full, enlarge it, and run again."""
    with mounted(folder, "-t", "tmpfs", "-o", f"size={ROOM}m", "tmpfs") as allowed:
        if not allowed:
            return "full disk not tried (mount is not allowed here)"
        job = run(recipe.arguments(folder / "run"))
        check_refusal(job, folder, "disk full", outcome)
        check_leftovers(folder, "disk full", outcome)
        before = saved_step(folder / "run")
        outcome.expect(before > 0, "disk full: no earlier checkpoint is left")
        quiet(["mount", "-o", "remount,size=200m", str(folder)])
        job = run(recipe.arguments(folder / "run"))
        if outcome.expect(job.status == 0, f"space freed: {job.last_line}"):
            odd = differences(straight, folder / "run")
            outcome.expect(not odd, f"space freed: differs in {odd}")
    return "full disk"


def check_refusal(job: Job, folder: Path, what: str, outcome: Outcome) -> None:
    """Expect one line with the path and the bytes."""
    outcome.expect(job.status == 1, f"{what}: exit {job.status} ({job.last_line})")
    line = job.last_line
    outcome.expect(
        line.startswith("error: cannot save") and str(folder) in line,
        f"{what}: the last line is {line!r}",
    )
    outcome.expect(
        re.search(r"\d+ bytes needed", line), f"{what}: does not say the bytes needed"
    )


def check_leftovers(folder: Path, what: str, outcome: Outcome) -> None:
    """Expect that nothing half-written stays."""
    left = [p.name for p in (folder / "run" / "save").glob(".tmp-*")]
    outcome.expect(not left, f"{what}: {left} stays")


def quota(straight: Path, recipe: Recipe, folder: Path, outcome: Outcome) -> str:
    """Limit the size of files in place of a quota, so that writes really fail."""
    spec = {"fault": "die", "epoch": 2, "step": 4}
    run(recipe.arguments(folder / "run"), faults=[spec])
    before = saved_step(folder / "run")
    limit = {"fault": "file_size", "bytes": 2_000_000}
    job = run(recipe.arguments(folder / "run"), faults=[limit])
    check_refusal(job, folder, "quota", outcome)
    check_leftovers(folder, "quota", outcome)
    outcome.expect(saved_step(folder / "run") == before, "quota: checkpoint is lost")
    job = run(recipe.arguments(folder / "run"))
    if outcome.expect(job.status == 0, f"quota lifted: {job.last_line}"):
        odd = differences(straight, folder / "run")
        outcome.expect(not odd, f"quota lifted: differs in {odd}")
    return "quota"


def remount_read_only(job: Job, save: Path) -> None:
    """Mount a folder read-only over itself, whose lock the job holds open to write."""
    job.signal(signal.SIGSTOP)  # it shall not end meanwhile
    quiet(["mount", "--bind", str(save), str(save)])
    quiet(["mount", "-o", "remount,ro,bind", str(save)])
    job.signal(signal.SIGCONT)


def read_only(straight: Path, recipe: Recipe, folder: Path, outcome: Outcome) -> str:
    """Turn the checkpoints' folder read-only while the run trains."""
    save = folder / "run" / "save"
    save.mkdir(parents=True)
    if quiet(["mount", "--bind", str(save), str(save)]).returncode:
        return "read-only not tried (mount is not allowed here)"
    quiet(["umount", str(save)])
    try:
        job = Job(recipe.arguments(folder / "run", examples_per_epoch=LONGER))
        job.until(lambda: len(job.steps) >= 5)
        remount_read_only(job, save)
        job.wait()
        check_refusal(job, folder, "read-only", outcome)
        quiet(["mount", "-o", "remount,rw,bind", str(save)])
        outcome.expect(saved_step(folder / "run") > 0, "read-only: checkpoint is lost")
        job = run(recipe.arguments(folder / "run", examples_per_epoch=LONGER))
        outcome.expect(job.status == 0, f"writable again: {job.last_line}")
        check_leftovers(folder, "writable again", outcome)
    finally:
        quiet(["umount", "--lazy", str(save)])
    # From the start it is an error before anything is trained.
    locked = folder / "locked"
    locked.mkdir()
    if quiet(["mount", "--bind", str(locked), str(locked)]).returncode == 0:
        try:
            quiet(["mount", "-o", "remount,ro,bind", str(locked)])
            job = run(recipe.arguments(locked / "run"))
            outcome.expect(
                job.status == 1 and str(locked) in job.last_line,
                f"read-only at the start: {job.status}, {job.last_line}",
            )
        finally:
            quiet(["umount", "--lazy", str(locked)])
    return "read-only"


@target(
    "R9",
    "disk full, quota, read-only: the checkpoint before is intact, one line names path "
    "and bytes, the same command goes on once there is space",
    "poisoned for good",
)
def no_space(bench: Bench) -> Outcome:
    """Use tmpfs mounts as small disks, bind mounts as read-only folders (as root)."""
    outcome = Outcome()
    own = {
        "speech": {},
        "music": {
            "grad_accumulation_factor": 2,
            "ema_decay": 0.9,
            "valid_every": 0,
        },
    }
    recipes = both(bench.folder, 7, own, ballast=BALLAST)
    tried = side_by_side(outcome, bench.folder, recipes, _disks, bench.brief)
    said = dict.fromkeys(text for texts in tried for text in texts or ())
    outcome.figure = ", ".join(said) + (": intact" if outcome.passed else "")
    return outcome


def _disks(recipe: Recipe, folder: Path, outcome: Outcome, brief: bool) -> list[str]:
    """Return the faults that were tried, in words."""
    straight = folder / "straight"
    run(recipe.arguments(straight))
    tried = []
    for fault in (quota,) if brief else (small_disk, quota, read_only):
        place = folder / fault.__name__
        tried.append(fault(straight, recipe, place, outcome))
        shutil.rmtree(place, ignore_errors=True)
    return tried
