"""R1, R10, R13: the checkpoints themselves; a kill at every call, damage, cost.

A kill here is a forked child that leaves by `os._exit` just before its n-th call that
changes the disk. As a machine that loses its power may do, it takes along what was not
flushed: such files are left empty.
"""

import logging
import os
import shutil
import signal
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.epoch_loop import EpochCounter
from torch import nn

from benchmarks.fault_cases import Bench, Outcome, target
from modules import checkpoint_files
from modules.checkpoints import AtomicCheckpointer, DamagedCheckpoint

KILLED = 77  # exit status of a child that was stopped on purpose


class Job:
    """A model, its optimizer and an epoch counter, all put to one number."""

    def __init__(self, folder: Path, value: float = 0.0, width: int = 4) -> None:
        self.model = nn.Linear(width, width)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.0)
        self.epochs = EpochCounter(1000)
        self.checkpointer = AtomicCheckpointer(
            folder,
            {"model": self.model, "epochs": self.epochs, "optimizer": self.optimizer},
        )
        self.put(value)

    def put(self, value: float) -> None:
        """Set every tensor, and the counter."""
        for parameter in self.model.parameters():
            nn.init.constant_(parameter, value)
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()  # moves nothing at lr 0, but makes a state
        for state in self.optimizer.state.values():
            state["exp_avg"].fill_(value)
        self.epochs.current = int(value)

    def values(self) -> set[float]:
        """All distinct numbers held; one number unless two checkpoints were mixed."""
        tensors = [*self.model.parameters()]
        tensors += [state["exp_avg"] for state in self.optimizer.state.values()]
        return {float(self.epochs.current)}.union(
            *(t.unique().tolist() for t in tensors)
        )

    def save(self, value: float, **kwargs: object) -> None:
        """Put everything to a number and save it."""
        self.put(value)
        self.checkpointer.save_checkpoint(**kwargs)


def restarted(folder: Path, **criteria: object) -> set[float]:
    """The state that a new process recovers."""
    job = Job(folder, value=-1)
    job.checkpointer.recover_if_possible(**criteria)
    return job.values()


def leftovers(folder: Path) -> list[str]:
    """What lies in a folder beside checkpoints."""
    return [p.name for p in folder.iterdir() if not p.name.startswith("CKPT+")]


# ---------------------------------------------------------------- children and kills


def start_child(function: Callable[[], None]) -> int:
    """Fork; the child runs the function, leaves with 0 or 1 and dies after 60 s."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        signal.alarm(60)
        torch.set_num_threads(1)  # the parent's threads do not exist here
        function()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def exit_status(pid: int) -> int:
    """Wait for a child."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def in_child(function: Callable[[], None]) -> int:
    """Exit status of a forked child that runs the function; 0 when it returns."""
    return exit_status(start_child(function))


MUTATING = [
    (os, "makedirs"),
    (os, "mkdir"),
    (os, "rename"),
    (os, "fsync"),
    (os, "unlink"),
    (os, "rmdir"),
    (torch, "save"),
    (checkpoint_files.yaml, "safe_dump"),
]


def before_call(number: int, act: Callable[[], None], replace: Callable) -> None:
    """Make the n-th mutating call from now on run `act` first.

    Arguments
    ---------
    number : int
        From 1.
    act : Callable
        What happens then.
    replace : Callable
        Called with owner, name and the new function; pytest's `monkeypatch.setattr`.
    """
    count = 0

    def wrap(original: Callable) -> Callable:
        def wrapped(*args: object, **kwargs: object) -> object:
            nonlocal count
            count += 1
            if count == number:
                if original is torch_save:  # die in the middle of the file
                    with open(args[1], "wb") as file:
                        file.write(b"half")
                act()
            return original(*args, **kwargs)

        return wrapped

    torch_save = torch.save
    for owner, name in MUTATING:
        replace(owner, name, wrap(getattr(owner, name)))


class PowerLoss:
    """Knows which files were flushed and empties the others on `strike`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.safe = self._inodes()
        fsync = os.fsync

        def remember(descriptor: int) -> None:
            fsync(descriptor)
            self.safe.add(os.fstat(descriptor).st_ino)

        os.fsync = remember

    def _files(self) -> list[Path]:
        return [path for path in self.folder.rglob("*") if path.is_file()]

    def _inodes(self) -> set[int]:
        return {path.stat().st_ino for path in self._files()}

    def strike(self) -> None:
        """Leave the process without what it had not flushed."""
        for path in self._files():
            if path.stat().st_ino not in self.safe:
                with open(path, "wb"):
                    pass
        os._exit(KILLED)


def kill_at_every_call(
    folder: Path, prepare: Callable[[Path], None], action: Callable[[Path], None]
) -> list[set[float]]:
    """What each restart recovers after a kill before call 1, 2, 3, ... of an action.

    The last one is after the whole action, and a loss of power.
    """
    outcomes = []
    for number in range(1, 100):
        shutil.rmtree(folder, ignore_errors=True)
        prepare(folder)
        done, whole = os.pipe()

        def run(number: int = number, whole: int = whole) -> None:
            power = PowerLoss(folder)
            before_call(number, power.strike, setattr)
            action(folder)
            os.write(whole, b"!")
            power.strike()

        status = in_child(run)
        os.close(whole)
        with os.fdopen(done, "rb") as pipe:
            ended = pipe.read() == b"!"
        assert status == KILLED, f"the child left with {status}"
        outcomes.append(restarted(folder))
        assert leftovers(folder) == [], leftovers(folder)
        for ckpt in AtomicCheckpointer(folder).list_checkpoints():
            checkpoint_files.read_checkpoint(ckpt.path, check_digests=True)
        assert len(list(folder.iterdir())) == len(
            AtomicCheckpointer(folder).list_checkpoints()
        ), "a damaged folder is left"
        Job(folder).save(9)
        assert restarted(folder) == {9}
        if ended:
            return outcomes
    raise AssertionError("the action never ended")


@target(
    "R1",
    "kill (with loss of what is not flushed) at every call of a save and of a delete: "
    "the old state or the new one, no leftovers",
    "8 of 17 points",
)
def crash_points(bench: Bench) -> Outcome:
    """First save, later save, save with deletion."""
    outcome = Outcome()

    def keep(folder: Path) -> None:
        Job(folder, 2).checkpointer.save_and_keep_only()

    def save_one(folder: Path) -> None:
        Job(folder).save(1)

    def save_two(folder: Path) -> None:
        Job(folder).save(2)

    actions = {
        "first save": (Job, save_two, {-1}),
        "save": (save_one, save_two, {1}),
        "save and delete": (save_one, keep, {1}),
    }
    points = 0
    logging.disable(logging.WARNING)
    # In memory: what is flushed is counted above, the disk need not do it.
    room = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=room) as folder:
        for name, (prepare, action, old) in actions.items():
            try:
                found = kill_at_every_call(Path(folder) / "save", prepare, action)
            except (AssertionError, DamagedCheckpoint) as error:
                outcome.expect(False, f"{name}: {error}")
                continue
            points += len(found)
            outcome.expect(
                all(values in (old, {2}) for values in found),
                f"{name}: neither old nor new: {found}",
            )
            # One call publishes: no old state after a new one.
            outcome.expect(found == sorted(found, key=max), f"{name}: old after new")
            outcome.expect(found[-1] == {2}, f"{name}: lost after it was saved")
    logging.disable(logging.NOTSET)
    outcome.expect(points >= 26 or not outcome.passed, f"only {points} points")
    outcome.figure = f"{points} points" + (
        f", {points} old or new" if outcome.passed else ""
    )
    return outcome


# ------------------------------------------------------------------------ damage


def flip_a_bit(path: Path) -> None:
    """In the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    """To half."""
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    """To nothing."""
    os.truncate(path, 0)


DAMAGES = [flip_a_bit, truncate, empty, os.unlink]
FILES = ["model.ckpt", "optimizer.ckpt", "epochs.ckpt", "CKPT.yaml"]


class _Kept(logging.Handler):
    """Keeps messages."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@target(
    "R10",
    "flipped bit, truncated, empty or missing file in the newest checkpoint: falls "
    "back to the one before with a warning, never mixes two",
    "loads silently, or a crash loop",
)
def damaged_files(bench: Bench) -> Outcome:
    """Every damage to every file in process; then the real run goes on."""
    from benchmarks.fault_cases.jobs import differences, newest, run, speech

    outcome, recovered, number = Outcome(), 0, 0
    log = _Kept()
    logger = logging.getLogger("modules.checkpoints")
    logger.addHandler(log)
    logger.propagate = False
    for damage in DAMAGES:
        for file in FILES:
            number += 1
            folder = bench.folder / f"save{number}"
            job = Job(folder)
            job.save(1)
            job.save(2)
            path = job.checkpointer.find_checkpoint().path
            damage(path / file)
            log.messages.clear()
            what = f"{damage.__name__} of {file}"
            try:
                found = restarted(folder)
            except (RuntimeError, OSError) as error:
                outcome.expect(False, f"{what}: {error}")
                continue
            fell_back = outcome.expect(found == {1}, f"{what}: recovered {found}")
            said = any(str(path) in m and file in m for m in log.messages)
            outcome.expect(said or not fell_back, f"{what}: no warning names it")
            recovered += fell_back and said
    logger.removeHandler(log)
    logger.propagate = True

    recipe = speech(bench.folder, ema_decay=0.9)
    straight, damaged = bench.folder / "straight", bench.folder / "damaged"
    run(recipe.arguments(straight))
    spec = {"fault": "die", "epoch": 2, "step": 4}
    run(recipe.arguments(damaged), faults=[spec])
    for damage in DAMAGES[: bench.count(1, 2, 4)]:
        folder = bench.folder / f"damaged_{damage.__name__}"
        shutil.copytree(damaged, folder)
        path = newest(folder)
        damage(path / "optimizer.ckpt")
        job = run(recipe.arguments(folder))
        number += 1
        what = f"{damage.__name__} in a run"
        if outcome.expect(job.status == 0, f"{what}: {job.last_line}"):
            said = f"{path.name} is damaged and left out" in job.output
            odd = differences(straight, folder)
            outcome.expect(said, f"{what}: no warning")
            outcome.expect(not odd, f"{what}: differs in {odd}")
            recovered += said and not odd
    outcome.figure = f"{recovered}/{number} damages seen, fell back"
    return outcome


# -------------------------------------------------------------------------- cost


@target(
    "R13",
    "the 300th save takes at most 1.5 times the first ones; digest and flush cost at "
    "most 3.5 times a stock save",
    "grows by 2 to 3 ms a save",
)
def saving_cost(bench: Bench) -> Outcome:
    """CPU time of many small saves; elapsed time of a few large ones, interleaved."""
    outcome = Outcome()
    job, seconds = Job(bench.folder / "many"), []
    saves = bench.count(100, 300, 300)
    logging.disable(logging.INFO)
    for _ in range(saves):
        started = time.process_time()
        job.checkpointer.save_and_keep_only()
        seconds.append(time.process_time() - started)
    early, late = statistics.median(seconds[:20]), statistics.median(seconds[-20:])
    outcome.expect(late <= 1.5 * early + 1e-3, f"{early:.4f} s, later {late:.4f} s")

    width = 2000 if bench.brief else 4000  # 16 or 64 MB
    times: dict[str, list[float]] = {"ours": [], "stock": []}
    model = nn.Linear(width, width)
    for _ in range(5):
        for name, kind in (("stock", Checkpointer), ("ours", AtomicCheckpointer)):
            folder = bench.folder / name
            checkpointer = kind(folder, {"model": model})
            started = time.monotonic()
            checkpointer.save_checkpoint()
            times[name].append(time.monotonic() - started)
            shutil.rmtree(folder)
    logging.disable(logging.NOTSET)
    ratio = min(times["ours"]) / min(times["stock"])
    outcome.expect(ratio <= 3.5, f"{ratio:.1f} times a stock save")
    outcome.figure = (
        f"save {saves} takes {late / early:.2f} of the first, {ratio:.1f} times stock"
    )
    return outcome
