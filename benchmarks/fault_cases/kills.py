"""R2, R7, R8: kills and signals at moments chosen by progress, never by the clock."""

import os
import random
import signal
import time
from pathlib import Path

from benchmarks.fault_cases import Bench, Outcome, target
from benchmarks.fault_cases.jobs import (
    Job,
    Recipe,
    children,
    differences,
    logged_steps,
    music,
    run,
    saved_step,
    speech,
)

INTERVAL = 4  # steps between two checkpoints
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
EXIT_REQUEUE = 75  # repeated here: the bench tests the promise, not the constant


def ends_alike(recipe: Recipe, straight: Path, folder: Path, outcome: Outcome) -> None:
    """Start the command of an interrupted run once more, and compare."""
    job = run(recipe.arguments(folder))
    if outcome.expect(job.status == 0, f"last restart: {job.last_line}"):
        odd = differences(straight, folder)
        outcome.expect(not odd, f"differs from the uninterrupted run: {odd}")


def straight_run(recipe: Recipe, folder: Path, outcome: Outcome) -> Path:
    """The same command, never interrupted."""
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
    """Both recipes; 4 MB of ballast make saving a good part of the time."""
    outcome, rng = Outcome(), random.Random(2)
    share = bench.count(2, 5, 50)
    heavy = {"ckpt_interval_steps": INTERVAL, "ballast": 1_000_000, "dropout": 0.1}
    recipes = {
        "speech": speech(
            bench.folder,
            **heavy | {"num_workers": 2, "ema_decay": 0.9, "batch_size": 1},
            grad_accumulation_factor=2,
            examples_per_epoch=4 * share + 12,
        ),
        "music": music(
            bench.folder,
            **heavy | {"grad_accumulation_factor": 1},
            examples_per_epoch=4 * (4 * share + 12),
        ),
    }
    kills, most = 0, 0
    for name, recipe in recipes.items():
        straight = straight_run(recipe, bench.folder / name, outcome)
        killed = bench.folder / name / "killed"
        for number in range(share):
            job = Job(recipe.arguments(killed))
            wanted = rng.randint(1, 3 * INTERVAL)
            moved = job.until(lambda job=job, n=wanted: len(job.steps) >= n)
            time.sleep(rng.uniform(0, 0.12) if moved else 0)
            if not outcome.expect(
                job.poll() is None, f"{name}, start {number}: ended ({job.last_line})"
            ):
                break
            job.signal(signal.SIGKILL)
            job.wait()
            kills += 1
            most = max(most, logged_steps(killed) - saved_step(killed))
        ends_alike(recipe, straight, killed, outcome)
    outcome.expect(most <= INTERVAL, f"{most} steps done twice, interval {INTERVAL}")
    outcome.figure = (
        f"{kills}/{2 * share} kills recovered, at most {most} of {INTERVAL} steps done "
        "twice" + (", same bits" if outcome.passed else "")
    )
    return outcome


@target(
    "R7",
    "SIGKILL of one rank under torchrun --max-restarts: goes on within 60 s, the same "
    "bits at the end",
    "7 of 11 recover, 4 hang",
)
def kill_rank(bench: Bench) -> Outcome:
    """Ranks are new interpreters, as torchrun starts them."""
    outcome, rng = Outcome(), random.Random(7)
    wanted = bench.count(1, 2, 20)
    recipe = speech(
        bench.folder,
        ema_decay=0.9,
        ckpt_interval_steps=INTERVAL,
        examples_per_epoch=2 * (8 * wanted + 24),
        N_epochs=1,
    )
    torchrun = ["--standalone", f"--max-restarts={wanted}"]
    folders = {name: bench.folder / name for name in ("straight", "killed")}
    job = run(recipe.arguments(folders["straight"]), torchrun=torchrun)
    outcome.expect(job.status == 0, f"uninterrupted run: {job.last_line}")

    job = Job(recipe.arguments(folders["killed"]), torchrun=torchrun)
    kills, slowest = 0, 0.0
    for attempt in range(wanted):
        ahead = rng.randint(1, 8)
        job.until(lambda a=attempt, n=ahead: job.steps.count(a) >= n)
        ranks = children(job.pid)
        if job.poll() is not None or len(ranks) < 2:
            outcome.expect(False, f"attempt {attempt} ended early: {job.last_line}")
            break
        started = time.monotonic()
        os.kill(rng.choice(ranks), signal.SIGKILL)
        kills += 1
        job.until(lambda a=attempt: (a + 1) in job.steps)
        slowest = max(slowest, time.monotonic() - started)
    job.wait()
    outcome.expect(job.status == 0, f"torchrun: {job.last_line}")
    outcome.expect(slowest <= 60, f"took {slowest:.0f} s to go on")
    if job.status == 0:
        odd = differences(folders["straight"], folders["killed"])
        outcome.expect(not odd, f"differs from the uninterrupted run: {odd}")
    outcome.figure = f"{kills}/{wanted} recovered, slowest {slowest:.0f} s" + (
        ", same bits" if outcome.passed else ""
    )
    return outcome


@target(
    "R8",
    "SIGTERM, SIGINT, SIGUSR1: checkpoint at the next boundary, no step lost, exit 75 "
    "within 10 s",
    "none saves",
)
def signals(bench: Bench) -> Outcome:
    """Each signal in the middle of an accumulation of 3, data workers included."""
    outcome, rng = Outcome(), random.Random(8)
    rounds = bench.count(1, 2, 4)
    recipe = speech(
        bench.folder,
        ckpt_interval_steps=1000,
        num_workers=2,
        grad_accumulation_factor=3,
        examples_per_epoch=30 * rounds + 60,
    )
    straight = straight_run(recipe, bench.folder, outcome)
    stopped = bench.folder / "stopped"
    lost, slowest = 0, 0.0
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
    outcome.expect(lost == 0, f"{lost} steps lost")
    outcome.expect(slowest <= 10, f"took {slowest:.1f} s")
    ends_alike(recipe, straight, stopped, outcome)
    outcome.figure = (
        f"{3 * rounds} signals, {lost} steps lost, slowest {slowest:.1f} s"
        + (", same bits" if outcome.passed else "")
    )
    return outcome
