"""One job per folder that is written: two would overwrite each other's checkpoints.

The lock is `flock` on a file in each folder, whose text says who holds it. The system
drops it when the process dies, however it dies, so nobody has to remove the file.
"""

import contextlib
import fcntl
import os
import socket
import time
from pathlib import Path

from speechbrain.utils.distributed import get_rank

from modules.runtime.distributed import is_distributed, run_on_main
from modules.runtime.errors import FolderInUse
from modules.runtime.files import naming

LOCK_FILE = ".lock"


class RunLock:
    """Hold folders for this job; a context manager.

    Rank 0 takes the lock for all ranks of the job. Use it before anything is written
    or cleaned in the folder, which includes the checkpointer's leftovers. `patience` is
    how many seconds to wait for a holder that is about to die, such as the killed job
    that this one continues.

    >>> folder = getfixture("tmp_path")
    >>> with RunLock(folder):
    ...     RunLock(folder, patience=0).acquire()
    Traceback (most recent call last):
    modules.runtime.errors.FolderInUse: ... is in use by process ... on ...
    """

    def __init__(self, *folders: str | Path, patience: float = 3.0) -> None:
        self.folders = sorted({Path(folder).resolve() for folder in folders})
        self.patience = patience
        self._descriptors: list[int] = []
        # A forked data worker shares the lock with its parent and can outlive it by
        # seconds, in which it must not keep the next job out.
        os.register_at_fork(after_in_child=self.release)

    def acquire(self) -> "RunLock":
        """Take the lock or raise `FolderInUse`; call it on every rank."""
        if is_distributed():
            run_on_main(self._lock_all)
        elif get_rank() in (None, 0):
            self._lock_all()
        return self

    def release(self) -> None:
        """Give the lock back, if it is held."""
        while self._descriptors:
            os.close(self._descriptors.pop())

    def _lock_all(self) -> None:
        if not self._descriptors:
            try:
                for folder in self.folders:
                    with naming(folder / LOCK_FILE):
                        self._lock(folder)
            except BaseException:
                self.release()
                raise

    def _lock(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
        self._descriptors.append(descriptor)
        deadline = time.monotonic() + self.patience
        while True:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            if time.monotonic() >= deadline:
                holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
                raise FolderInUse(
                    f"{folder} is in use by {holder or 'another process'}; "
                    "wait until it ends or choose another output folder"
                )
            time.sleep(0.05)
        os.ftruncate(descriptor, 0)
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        holder = f"process {os.getpid()} on {socket.gethostname()} since {started}\n"
        os.pwrite(descriptor, holder.encode(), 0)

    def __enter__(self) -> "RunLock":
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()
