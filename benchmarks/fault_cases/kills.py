"""R2, R7, R8: kills and signals at moments chosen by progress, never by the clock."""

import os
import random
import signal
import time
from pathlib import Path

from benchmarks.fault_cases import Bench, Outcome, target
from benchmarks.fault_cases.jobs import (
    PATIENCE,
    Job,
    Recipe,
    both,
    children,
    is_running,
    run,
    run_ranks,
)
from benchmarks.fault_cases.parallel import side_by_side
from benchmarks.fault_cases.remains import differences, logged_steps, saved_step

INTERVAL = 4  # steps between two checkpoints
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
#: Signals that torchrun is given; the brief form sends the first, the nightly all.
TO_TORCHRUN = {
    "speech": [signal.SIGTERM],
    "music": [signal.SIGKILL, signal.SIGINT],
}
GRACE = 30.0  # seconds that torchrun gives its ranks before it kills them
EXIT_REQUEUE = 75  # repeated here: the bench tests the promise, not the constant


def ends_alike(recipe: Recipe, straight: Path, folder: Path, outcome: Outcome) -> None:
    """Run the command of an interrupted run once more, and compare."""
    job = run(recipe.arguments(folder))
    if outcome.expect(job.status == 0, f"last restart: {job.last_line}"):
        odd = differences(straight, folder)
        outcome.expect(not odd, f"differs from the uninterrupted run: {odd}")


def straight_run(recipe: Recipe, folder: Path, outcome: Outcome) -> Path:
    """Run the same command without an interruption."""
    job = run(recipe.arguments(folder / "straight"))
    outcome.expect(job.status == 0, f"uninterrupted run: {job.last_line}")
    return folder / "straight"


@target(
    "R2",
    "kill -9 at random steps and during saves: every restart unaided, at most one "
    "checkpoint interval done twice, the same bits at the end",
    "28 % recover with 100 MB checkpoints",
)
def kill_9(bench: Bench) -> Outcome:
    """Kill both recipes; 4 MB of ballast make saving a good part of the time."""
    outcome, share = Outcome(), bench.count(2, 5, 50)
    own = {
        "speech": {"num_workers": 2, "ema_decay": 0.9, "grad_accumulation_factor": 2},
        "music": {"valid_every": 0},
    }
    heavy = {"ckpt_interval_steps": INTERVAL, "ballast": 1_000_000, "dropout": 0.1}
    recipes = both(bench.folder, 4 * share + 12, own, **heavy)
    reached = side_by_side(outcome, bench.folder, recipes, _kill_often, share)
    kills, again = zip(*(r or (0, 0) for r in reached), strict=True)
    outcome.figure = (
        f"{sum(kills)}/{2 * share} kills recovered, at most {max(again)} of {INTERVAL} "
        "steps done twice" + (", same bits" if outcome.passed else "")
    )
    return outcome


def _kill_often(
    recipe: Recipe, folder: Path, outcome: Outcome, kills: int
) -> tuple[int, int]:
    """Return how many kills a run has survived, and the most steps done twice."""
    rng = random.Random(2)
    straight = straight_run(recipe, folder, outcome)
    killed, most = folder / "killed", 0
    for number in range(kills):
        job = Job(recipe.arguments(killed))
        wanted = rng.randint(1, 3 * INTERVAL)
        moved = job.until(lambda job=job, n=wanted: len(job.steps) >= n)
        time.sleep(rng.uniform(0, 0.12) if moved else 0)
        if not outcome.expect(
            job.poll() is None, f"start {number}: ended ({job.last_line})"
        ):
            return number, most
        job.signal(signal.SIGKILL)
        job.wait()
        most = max(most, logged_steps(killed) - saved_step(killed))
    ends_alike(recipe, straight, killed, outcome)
    outcome.expect(most <= INTERVAL, f"{most} steps done twice, interval {INTERVAL}")
    return kills, most


@target(
    "R7",
    "SIGKILL of one rank under torchrun --max-restarts: goes on within 60 s, the same "
    "bits at the end",
    "7 of 11 recover, 4 hang",
)
def kill_rank(bench: Bench) -> Outcome:
    """Kill ranks of both recipes; torchrun starts each as a new interpreter."""
    outcome, kills = Outcome(), bench.count(1, 1, 10)
    own = {
        "speech": {"ema_decay": 0.9},
        "music": {"num_workers": 1, "valid_every": 0, "grad_accumulation_factor": 2},
    }
    steps = 8 * kills + 24  # half of them on each rank
    recipes = both(bench.folder, steps, own, ckpt_interval_steps=INTERVAL)
    reached = side_by_side(outcome, bench.folder, recipes, _kill_ranks, kills)
    recovered, slowest = zip(*(r or (0, 0.0) for r in reached), strict=True)
    outcome.figure = (
        f"{sum(recovered)}/{2 * kills} recovered, slowest {max(slowest):.0f} s"
        + (", same bits" if outcome.passed else "")
    )
    return outcome


def _kill_ranks(
    recipe: Recipe, folder: Path, outcome: Outcome, wanted: int
) -> tuple[int, float]:
    """Return how many kills a run has survived, and the longest recovery in seconds."""
    rng = random.Random(7)
    torchrun = ["--standalone", f"--max-restarts={wanted}"]
    for job in run_ranks(recipe.arguments(folder / "straight")):
        outcome.expect(job.status == 0, f"uninterrupted run: {job.last_line}")

    job = Job(recipe.arguments(folder / "killed"), torchrun=torchrun)
    recovered, slowest = 0, 0.0
    for attempt in range(wanted):
        ahead = rng.randint(1, 8)
        job.until(lambda a=attempt, n=ahead: job.steps.count(a) >= n)
        ranks = children(job.pid)
        if job.poll() is not None or len(ranks) < 2:
            outcome.expect(False, f"attempt {attempt} ended early: {job.last_line}")
            break
        started = time.monotonic()
        os.kill(rng.choice(ranks), signal.SIGKILL)
        recovered += job.until(lambda a=attempt: (a + 1) in job.steps)
        slowest = max(slowest, time.monotonic() - started)
    job.wait()
    outcome.expect(job.status == 0, f"torchrun: {job.last_line}")
    outcome.expect(slowest <= 60, f"took {slowest:.0f} s to go on")
    if job.status == 0:
        odd = differences(folder / "straight", folder / "killed")
        outcome.expect(not odd, f"differs from the uninterrupted run: {odd}")
    return recovered, slowest


@target(
    "R8",
    "SIGTERM, SIGINT, SIGUSR1, also to torchrun: checkpoint at the next boundary, no "
    "step lost, within 10 s (ranks: 30 s); exit 75, of torchrun 1",
    "none saves",
)
def signals(bench: Bench) -> Outcome:
    """Signal both recipes in the middle of an accumulation, with data workers."""
    outcome, rounds = Outcome(), bench.count(1, 2, 4)
    own = {
        "speech": {"num_workers": 2, "grad_accumulation_factor": 3},
        "music": {
            "valid_every": 0,
            "ema_decay": 0.9,
            "grad_accumulation_factor": 2,
        },
    }
    steps = 30 * rounds + 60
    recipes = both(bench.folder, steps, own, ckpt_interval_steps=1000)
    to_torchrun = {
        name: [*SIGNALS, signal.SIGKILL] if bench.nightly else few[: 1 + (rounds > 1)]
        for name, few in TO_TORCHRUN.items()
    }
    reached = side_by_side(
        outcome, bench.folder, recipes, _signals, rounds, to_torchrun
    )
    numbers, lost, slowest, ranks = zip(
        *(r or (0, 0, 0.0, 0.0) for r in reached), strict=True
    )
    outcome.figure = (
        f"{sum(numbers)} signals, {max(lost)} steps lost, slowest {max(slowest):.1f} "
        f"s, ranks {max(ranks):.1f} s" + (", same bits" if outcome.passed else "")
    )
    return outcome


def _signals(
    recipe: Recipe,
    folder: Path,
    outcome: Outcome,
    rounds: int,
    to_torchrun: dict[str, list[signal.Signals]],
) -> tuple[int, int, float, float]:
    """Return the number of signals, steps lost, and the longest stops in seconds."""
    rng = random.Random(8)
    straight = straight_run(recipe, folder, outcome)
    stopped = folder / "stopped"
    lost, slowest, slowest_ranks = 0, 0.0, 0.0
    for number in SIGNALS * rounds:
        job = Job(recipe.arguments(stopped))
        ahead = rng.randint(1, 9)
        job.until(lambda job=job, n=ahead: len(job.steps) >= n)
        started = time.monotonic()
        # Ctrl-C and batch systems signal the data workers as well.
        job.signal(number, group=rng.random() < 0.5)
        job.wait()
        slowest = max(slowest, time.monotonic() - started)
        outcome.expect(
            job.status == EXIT_REQUEUE,
            f"{number.name}: exit {job.status} ({job.last_line})",
        )
        lost = max(lost, logged_steps(stopped) - saved_step(stopped))
    ends_alike(recipe, straight, stopped, outcome)

    straight, stopped = folder / "straight_ranks", folder / "stopped_ranks"
    run_ranks(recipe.arguments(straight))
    for number in to_torchrun[recipe.name]:
        seconds = _signal_torchrun(recipe, stopped, number, outcome)
        lost = max(lost, logged_steps(stopped) - saved_step(stopped))
        slowest_ranks = max(slowest_ranks, seconds)
    last = run_ranks(recipe.arguments(stopped))[0]
    if outcome.expect(last.status == 0, f"last restart of ranks: {last.last_line}"):
        odd = differences(straight, stopped)
        outcome.expect(not odd, f"ranks differ from the uninterrupted run: {odd}")
    outcome.expect(lost == 0, f"{lost} steps lost")
    outcome.expect(slowest <= 10, f"took {slowest:.1f} s")
    outcome.expect(slowest_ranks <= GRACE, f"ranks took {slowest_ranks:.1f} s")
    return 3 * rounds + len(to_torchrun[recipe.name]), lost, slowest, slowest_ranks


def _signal_torchrun(
    recipe: Recipe, folder: Path, number: signal.Signals, outcome: Outcome
) -> float:
    """Signal torchrun alone; return the seconds until its ranks have stopped.

    SIGTERM and SIGINT it passes on and exits with 1. Of others it dies at once, and
    the ranks are told so by the kernel. In neither case it may start them again.
    """
    torchrun = ["--standalone", "--max-restarts=2"]
    job = Job(recipe.arguments(folder), torchrun=torchrun)
    what = f"{number.name} to torchrun"
    if not outcome.expect(
        job.until(lambda: len(job.steps) >= 4), f"{what}: no step ({job.last_line})"
    ):
        return 0.0
    ranks, started = children(job.pid), time.monotonic()
    job.signal(number)
    while any(map(is_running, ranks)) and time.monotonic() - started < PATIENCE:
        time.sleep(0.01)
    seconds = time.monotonic() - started
    job.wait()
    passed_on = number in (signal.SIGTERM, signal.SIGINT)
    expected = 1 if passed_on else -number
    outcome.expect(job.status == expected, f"{what}: exit {job.status}")
    for rank in filter(is_running, ranks):
        os.kill(rank, signal.SIGKILL)
        outcome.expect(False, f"{what}: a rank goes on by itself")
    said = "the same command continues" in job.output
    outcome.expect(said, f"{what}: does not say that it stopped")
    outcome.expect(max(job.steps) == 0, f"{what}: the ranks were started again")
    return seconds
