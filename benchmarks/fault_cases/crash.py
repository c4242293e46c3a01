"""R1: a kill at every call of a save and of a delete.

A kill here is a forked child that leaves by `os._exit` just before its n-th call that
changes the disk. As a machine that loses its power may do, it takes along what was not
flushed: such files are left empty.
"""

import logging
import os
import shutil
import signal
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from speechbrain.utils.epoch_loop import EpochCounter
from torch import nn

from benchmarks.fault_cases import Bench, Outcome, target
from modules.runtime.errors import DamagedCheckpoint
from modules.weights import checkpoint_files
from modules.weights.checkpointer import AtomicCheckpointer

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
        """Return the distinct numbers held: one, unless two checkpoints were mixed."""
        tensors = [*self.model.parameters()]
        tensors += [state["exp_avg"] for state in self.optimizer.state.values()]
        return {float(self.epochs.current)}.union(
            *(t.unique().tolist() for t in tensors)
        )

    def save(self, value: float, **kwargs: object) -> None:
        """Set everything to a number and save it."""
        self.put(value)
        self.checkpointer.save_checkpoint(**kwargs)


def restarted(folder: Path, **criteria: object) -> set[float]:
    """Return the state that a new process recovers."""
    job = Job(folder, value=-1)
    job.checkpointer.recover_if_possible(**criteria)
    return job.values()


def leftovers(folder: Path) -> list[str]:
    """Return what lies in a folder beside checkpoints and the links to them."""
    known = ("CKPT+", "latest", "best")
    return [p.name for p in folder.iterdir() if not p.name.startswith(known)]


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
    """Run the function in a forked child; return the exit status, 0 if it returned."""
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
    """Track which files were flushed; `strike` empties the others."""

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
        """Leave the process and lose what it had not flushed."""
        for path in self._files():
            if path.stat().st_ino not in self.safe:
                with open(path, "wb"):
                    pass
        os._exit(KILLED)


def kill_at_every_call(
    folder: Path, prepare: Callable[[Path], None], action: Callable[[Path], None]
) -> list[set[float]]:
    """Return what a restart recovers after a kill before call 1, 2, ... of an action.

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
        links = [path for path in folder.iterdir() if path.is_symlink()]
        assert all(path.exists() for path in links), "a link leads nowhere"
        assert len(list(folder.iterdir())) - len(links) == len(
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
    """Kill a first save, a later save, and a save with deletion."""
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
    """Flip a bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    """Cut a file to half its length."""
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    """Cut a file to nothing."""
    os.truncate(path, 0)


DAMAGES = [flip_a_bit, truncate, empty, os.unlink]
FILES = ["model.ckpt", "optimizer.ckpt", "epochs.ckpt", "CKPT.yaml"]
