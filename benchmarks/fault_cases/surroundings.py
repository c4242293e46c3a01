"""R15, R16, R17: stops between training steps, one rank's refusal, the surroundings."""

import os
import shutil
import signal
import socket
import time
from pathlib import Path

import soundfile

from benchmarks.fault_cases import Bench, Outcome, target
from benchmarks.fault_cases.jobs import Job, Recipe, both, run, run_ranks, speech
from benchmarks.fault_cases.kills import EXIT_REQUEUE, SIGNALS, ends_alike, straight_run
from benchmarks.fault_cases.launch import SLOW
from benchmarks.fault_cases.parallel import side_by_side
from benchmarks.fault_cases.remains import newest, saved_step

LONGEST_STOP = 5.0
WHERE = ("levels", "valid", "test")


@target(
    "R15",
    "a stop while levels are measured, in a validation, in the test: within 5 s, how "
    "long the example may be; the epoch's training is saved, exit 75, the same bits",
    "none saves",
)
def stops(bench: Bench) -> Outcome:
    """Stop both recipes, and two ranks of one, in examples that last a minute."""
    outcome = Outcome()
    own = {
        "speech": {"ema_decay": 0.9, "grad_accumulation_factor": 2},
        "music": {"num_workers": 1},
    }
    recipes = both(bench.folder, 6, own, ckpt_interval_steps=1000)
    seconds = side_by_side(outcome, bench.folder, recipes, _stops)
    slowest = max(value or 0.0 for value in seconds)
    outcome.figure = f"{len(WHERE) * 2 + 1} stops, slowest {slowest:.1f} s" + (
        ", same bits" if outcome.passed else ""
    )
    return outcome


def _stops(recipe: Recipe, folder: Path, outcome: Outcome) -> float:
    """Return the longest stop in seconds."""
    straight = straight_run(recipe, folder, outcome)
    stopped, slowest = folder / "stopped", 0.0
    for where, number in zip(WHERE, SIGNALS, strict=True):
        job = Job(recipe.arguments(stopped), faults=[{"fault": "slow", "in": where}])
        outcome.expect(
            job.until(lambda job=job: SLOW in job.output),
            f"{where}: not reached ({job.last_line})",
        )
        started = time.monotonic()
        job.signal(number, group=True)
        job.wait()
        slowest = max(slowest, time.monotonic() - started)
        outcome.expect(
            job.status == EXIT_REQUEUE, f"{where}: exit {job.status} ({job.last_line})"
        )
        if where == "valid":
            saved = saved_step(stopped)
            outcome.expect(saved == 6, f"{where}: {saved} of 6 steps are saved")
    ends_alike(recipe, straight, stopped, outcome)
    if recipe.name == "speech":
        only_one = {"fault": "slow", "in": "valid", "rank": 1, "signal": signal.SIGTERM}
        for rank, job in enumerate(run_ranks(recipe.arguments(folder / "ranks"),
                                             faults=[only_one])):  # fmt: skip
            outcome.expect(
                job.status == EXIT_REQUEUE,
                f"rank {rank}: exit {job.status} ({job.last_line})",
            )
    outcome.expect(slowest <= LONGEST_STOP, f"took {slowest:.1f} s")
    return slowest


@target(
    "R16",
    "what one of two ranks refuses, in training, validation, at the start or by a full "
    "disk, both refuse: one line, one status, no word of lost connections",
    "a traceback on each rank, or a hang",
)
def refusals(bench: Bench) -> Outcome:
    """Damage what only one rank reads, or refuse on one rank alone."""
    outcome = Outcome()
    recipe = speech(bench.folder, dynamic_mixing=False, N_epochs=1, ddp_timeout=60)
    corpus = Path(str(recipe.settings["data_folder"]))
    cases: dict[str, tuple[list, str]] = {
        "training": ([], "is not the sum"),
        "validation": ([], "is not the sum"),
        "device": ([{"fault": "no_device", "rank": 1}], "no such device"),
        "full disk": ([{"fault": "full_disk", "rank": 0}], "No space left"),
    }
    for name, (faults, text) in cases.items():
        part = {"training": "tr", "validation": "cv"}.get(name)
        data = shutil.copytree(corpus, bench.folder / f"data_{name}")
        if part:
            path = sorted(data.glob(f"wav8k/min/{part}/mix/*.wav"))[1]
            wave, rate = soundfile.read(path)
            soundfile.write(path, wave[::-1], rate, subtype="FLOAT")
        arguments = recipe.arguments(bench.folder / f"run_{name}", data_folder=data)
        jobs = run_ranks(arguments, faults=faults)
        said = "".join(job.output for job in jobs)
        lines = [line for line in said.splitlines() if line.startswith("error: ")]
        outcome.expect(
            len(lines) == 1 and text in lines[0], f"{name}: the lines are {lines}"
        )
        statuses = [job.status for job in jobs]
        outcome.expect(statuses == [1, 1], f"{name}: exit {statuses}")
        for noise in ("Traceback", "onnection"):
            outcome.expect(noise not in said, f"{name}: {noise} in {said[-300:]!r}")
    outcome.figure = f"{len(cases) - len(outcome.failures)}/{len(cases)} with one line"
    return outcome


@target(
    "R17",
    "a terminal that goes, or of any encoding, clocks that stand still, damaged or "
    "foreign files beside the checkpoints: the run ends well; links: refused",
    "broken pipes end it; the rest not measured",
)
def surroundings(bench: Bench) -> Outcome:
    """Run one recipe again and again in its folder, each time with another nuisance."""
    outcome = Outcome()
    recipe = speech(bench.folder, N_epochs=1)
    del recipe.settings["noprogressbar"]
    folder, tried = bench.folder / "run", 0

    def ends_well(what: str, **options: object) -> None:
        nonlocal tried
        tried += 1
        epochs = {"N_epochs": tried}
        job = run(recipe.arguments(folder, **epochs), **options)
        outcome.expect(job.status == 0, f"{what}: {job.status}, {job.last_line}")

    for descriptors in ([1], [2], [1, 2]):
        for to in ("broken pipe", "/dev/full"):
            spec = {"fault": "terminal", "streams": descriptors, "to": to}
            ends_well(f"{to} as {descriptors}", faults=[spec])
    ends_well("ascii", env={"PYTHONIOENCODING": "ascii"}, fresh=True)
    for rate, names in ((0, ["time", "monotonic"]), (-1, ["time"])):
        clock = {"fault": "clock", "rate": rate, "seconds": 0, "names": names}
        ends_well(f"{names} at rate {rate}", faults=[clock])
    for name in ("curves.csv", "train_log.txt", "log.txt", "env.log", "validation"):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        path.write_bytes(b"\xff\0") if name == "validation" else path.mkdir()
        ends_well(f"{name}: something else")
        outcome.expect((folder / f"{name}.aside").exists(), f"{name} is not set aside")
    for name in ("curves.csv", "train_log.txt", "save/utterances.csv"):
        (folder / name).write_bytes(b"\xff\0\n")
        ends_well(f"{name}: damaged")
    link = folder / "save" / "CKPT+99999999"
    link.symlink_to(newest(folder), target_is_directory=True)
    for name in ("latest", "best"):
        place = folder / "save" / name
        place.unlink(missing_ok=True)
        place.symlink_to(newest(folder).name, target_is_directory=True)
    ends_well("a checkpoint that is a link")
    link.unlink()
    _refuses_special_files(bench.folder, recipe, outcome)
    outcome.figure = f"{tried + 2 - len(outcome.failures)}/{tried + 2} as they should"
    return outcome


def _refuses_special_files(folder: Path, recipe: Recipe, outcome: Outcome) -> None:
    """Put a pipe and a socket into the place of recordings: one line, and no hang."""
    for kind in ("pipe", "socket"):
        corpus = Path(str(recipe.settings["data_folder"]))
        data = shutil.copytree(corpus, folder / f"data_{kind}")
        path = sorted(data.glob("wav8k/min/tr/s1/*.wav"))[0]
        path.unlink()
        if kind == "pipe":
            os.mkfifo(path)
        else:
            place = os.open(path.parent, os.O_RDONLY)  # a socket's path must be short
            with socket.socket(socket.AF_UNIX) as one:
                one.bind(f"/proc/self/fd/{place}/{path.name}")
            os.close(place)
        job = run(recipe.arguments(folder / f"run_{kind}", data_folder=data))
        outcome.expect(
            job.status == 1
            and path.name in job.last_line
            and job.last_line.startswith("error: "),
            f"{kind}: {job.status}, {job.last_line}",
        )
