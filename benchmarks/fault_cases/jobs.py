"""Start train.py under faults and wait for its progress.

A job is train.py's own `__main__` with its command line, exit status and signals, in a
process group of its own. It is forked from the bench, where the libraries are loaded
already (a fresh interpreter needs four seconds for that); `fresh=True` starts a new
interpreter, and ranks under torchrun are always new ones.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.fault_cases import launch
from tests.toy import make_corpus, make_songs

ROOT = launch.ROOT
HERE = Path(__file__).parent
#: Nothing here takes this long, even on a busy machine: it has hung.
PATIENCE = 240.0
#: A job ends after this many seconds, should the bench itself be killed.
LONGEST = 4 * 3600


class Hung(RuntimeError):
    """A job that should have ended, or moved, has not."""


@dataclass
class Recipe:
    """One of the toy recipes and the settings that make a run of it short."""

    yaml: Path
    settings: dict[str, object]

    @property
    def name(self) -> str:
        """Return the name, such as speech."""
        return self.yaml.stem

    def arguments(self, folder: Path, **overrides: object) -> list[str]:
        """Return the command line of train.py; a value of None gives a bare flag."""
        settings = self.settings | {"output_folder": folder} | overrides
        return [
            str(self.yaml),
            *(
                f"--{name}" if value is None else f"--{name}={value}"
                for name, value in settings.items()
            ),
        ]


COMMON = {
    "tensorboard": False,
    "device": "cpu",
    "num_workers": 0,
    "n_audio_to_save": 0,
    "log_every": 1,
    "ckpt_interval_steps": 2,
    "noprogressbar": None,
}


def speech(folder: Path, **settings: object) -> Recipe:
    """Return a recipe of dynamic mixing with speed changes, on a corpus made here."""
    corpus = folder / "2speakers"
    if not corpus.exists():
        make_corpus(folder)
    defaults = {"data_folder": corpus, "segment_seconds": 0.25, "N_epochs": 2}
    defaults |= {"examples_per_epoch": 7, "batch_size": 1}
    return Recipe(HERE / "speech.yaml", COMMON | defaults | settings)


def music(folder: Path, **settings: object) -> Recipe:
    """Return a recipe of remixed stems and a running truncation, with two phases."""
    songs = folder / "songs"
    if not songs.exists():
        make_songs(songs)
    defaults = {"data_folder": songs, "valid_tracks": 1}
    defaults |= {"truncation": "running", "loss_memory": 6}
    return Recipe(HERE / "music.yaml", COMMON | defaults | settings)


def both(
    folder: Path, steps: int, own: Mapping[str, Mapping], **shared: object
) -> dict[str, Recipe]:
    """Return both recipes by name, with `steps` steps an epoch on one process.

    Arguments
    ---------
    folder : Path
        Where their data is made.
    steps : int
        Of an epoch; each recipe has two epochs.
    own : Mapping[str, Mapping]
        Settings of one recipe. Give the two different ones (accumulation, workers,
        EMA, validation), so that a row covers more than either alone.
    **shared : object
        Settings of both.
    """
    recipes = {}
    for name, (make, batch_size) in {
        "speech": (speech, 1),
        "music": (music, 4),
    }.items():
        settings = shared | own[name]
        examples = steps * settings.get("batch_size", batch_size)
        recipes[name] = make(folder, **{"examples_per_epoch": examples} | settings)
    return recipes


# ------------------------------------------------------------------------ processes


class Job:
    """A running train.py.

    Arguments
    ---------
    arguments : Sequence[str]
        Its command line.
    faults : Sequence[Mapping]
        For `launch.inject`.
    env : Mapping[str, str]
        Added to the environment.
    dump : Path | None
        Where ranks write what they hold after an epoch.
    fresh : bool
        A new interpreter in the place of a fork.
    torchrun : Sequence[str] | None
        Options of torchrun; None runs one process without it.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        faults: Sequence[Mapping] = (),
        env: Mapping[str, str] | None = None,
        dump: Path | None = None,
        fresh: bool = False,
        torchrun: Sequence[str] | None = None,
    ) -> None:
        self.env = {"OMP_NUM_THREADS": "1", **(env or {})}
        if faults:
            self.env[launch.FAULTS] = json.dumps(list(faults))
        if dump is not None:
            dump.mkdir(parents=True, exist_ok=True)
            self.env[launch.DUMP] = str(dump)
        self._steps = os.memfd_create("steps", 0)
        self.env[launch.STEPS] = f"/proc/{os.getpid()}/fd/{self._steps}"
        self.status: int | None = None
        self.seconds = 0.0
        self._started = time.monotonic()
        self._output = os.memfd_create("output")
        module = ["-m", launch.__name__, *arguments]
        if torchrun is not None:
            run = ["-m", "torch.distributed.run", "--nproc_per_node=2", *torchrun]
            self.pid = self._spawn([sys.executable, *run, *module])
        elif fresh:
            self.pid = self._spawn([sys.executable, *module])
        else:
            self.pid = self._fork(list(arguments))

    def _spawn(self, command: list[str]) -> int:
        # Popen would warn of a child that is waited for elsewhere.
        return os.posix_spawnp(
            command[0],
            command,
            os.environ | self.env | {"PYTHONPATH": str(ROOT)},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, self._output, 1),
                (os.POSIX_SPAWN_DUP2, self._output, 2),
            ],
            setpgroup=0,
        )

    def _fork(self, arguments: list[str]) -> int:
        pid = os.fork()
        if pid:
            return pid
        status = 1
        try:
            os.setpgid(0, 0)
            os.dup2(self._output, 1)
            os.dup2(self._output, 2)
            sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
            sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
            sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr
            os.chdir(ROOT)
            os.environ.update(self.env)
            torch.set_num_threads(1)
            signal.alarm(LONGEST)
            launch.run_train(arguments)
            status = 0
        except SystemExit as stop:  # what the interpreter does with it
            if isinstance(stop.code, int) or stop.code is None:
                status = stop.code or 0
            else:
                print(stop.code, file=sys.stderr)
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)

    @property
    def output(self) -> str:
        """Return what both streams hold so far."""
        size = os.fstat(self._output).st_size
        return os.pread(self._output, size, 0).decode(errors="replace")

    @property
    def steps(self) -> list[int]:
        """Return, for every training step so far, the number of torchrun's attempt."""
        size = os.fstat(self._steps).st_size
        return [int(word) for word in os.pread(self._steps, size, 0).split()]

    @property
    def last_line(self) -> str:
        """Return the last line printed, which is all of an explained error."""
        lines = self.output.strip().splitlines()
        return lines[-1] if lines else ""

    def poll(self) -> int | None:
        """Return the exit status, negative for a signal; None while the job runs."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
                self.seconds = time.monotonic() - self._started
        return self.status

    def wait(self, seconds: float = PATIENCE) -> int:
        """Return the exit status; kill a job that takes longer and raise `Hung`."""
        self.until(lambda: False, seconds)
        if self.status is None:
            ranks = children(self.pid)  # torchrun's are in groups of their own
            self.signal(signal.SIGKILL, group=True)
            for rank in ranks:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(rank, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.status = -signal.SIGKILL
            raise Hung(f"no end after {seconds:g} s: {self.last_line}")
        return self.status

    def until(self, condition: Callable[[], bool], seconds: float = PATIENCE) -> bool:
        """Wait for a condition or the job's end; return whether the condition holds."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if condition():
                return True
            if self.poll() is not None:
                return condition()
            time.sleep(0.01)
        return condition()

    def signal(self, number: int, group: bool = False) -> None:
        """Send a signal to the job, or to it and all its children."""
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.pid, number)

    def __del__(self) -> None:
        for descriptor in (self._output, self._steps):
            with contextlib.suppress(OSError):
                os.close(descriptor)


def run(arguments: Sequence[str], **options: object) -> Job:
    """Run a job to its end and return it."""
    job = Job(arguments, **options)
    job.wait()
    return job


def run_ranks(arguments: Sequence[str], **options: object) -> list[Job]:
    """Run two ranks with torchrun's environment, forked as other jobs are."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = []
    for rank in range(2):
        env = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        ranks.append(Job(arguments, env=env, **options))
    try:
        for job in ranks:
            job.wait()
    except Hung:
        for job in ranks:
            job.signal(signal.SIGKILL, group=True)
            with contextlib.suppress(Hung):
                job.wait(10)
        raise
    return ranks


def children(pid: int) -> list[int]:
    """Return the ids of the processes that a process has started."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(child) for child in text.split()]


def is_running(pid: int) -> bool:
    """Return whether a process, of any user, has not ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] not in "XZ"


def quiet(command: Sequence[str], **options: object) -> subprocess.CompletedProcess:
    """Run a system command and capture its output."""
    return subprocess.run(command, capture_output=True, text=True, **options)
