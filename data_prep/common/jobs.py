"""Make the many files of a data set in parallel, so that a repeated command continues.

Each job (a mixture, a room) writes files of its own and nothing else, so the result
does not depend on the number of workers. A file exists whole or not at all, and a job
whose files all exist is not done again. What decides the content of the files is noted
in the folder, so that no other command continues it by mistake.
"""

import hashlib
import json
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from modules.runtime.errors import DataError
from modules.runtime.files import write_text
from modules.runtime.signals import ignore_in_worker

Job = TypeVar("Job")

SETTINGS = "generated.json"

# Held by a worker while it works on a job.
BUSY = threading.Lock()


def claim_folder(folder: str | Path, settings: dict, name: str = SETTINGS) -> Path:
    """Note in an output folder what is being made there; return the folder.

    It must be absent, empty, or claimed before with equal settings, else a DataError
    says so. `settings` are all that decides the content of the files, as JSON can hold
    it, without paths that may change between two calls. The note is called `name`.
    """
    folder = Path(folder)
    note = folder / name
    if note.is_file():
        try:
            before = json.loads(note.read_text(encoding="utf-8"))
        except ValueError as error:
            hint = "give another folder, or remove this one"
            raise DataError(f"{note}: is damaged ({error}); {hint}") from None
        for key in sorted(before | settings):
            old, new = before.get(key), settings.get(key)
            if old != new:
                fault = f"was begun with {key}={old!r}, now it is {new!r}"
                hint = "give the same settings or another folder"
                raise DataError(f"{folder}: {fault}; {hint}")
    elif folder.exists() and any(folder.iterdir()):
        raise DataError(f"{folder}: is not empty; give an empty or a new folder")
    else:
        write_text(note, json.dumps(settings, indent=1, sort_keys=True) + "\n")
    return folder


def digest_of(text: str) -> str:
    """Return a short name for a text, to be noted in a folder."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_missing(missing: Sequence[str], total: int, hint: str) -> None:
    """List the files that are missing, all of them, and raise if there are any."""
    for line in missing:
        print(f"missing: {line}")
    if missing:
        count = f"one of {len(missing)} missing files of {total}"
        raise DataError(f"{missing[0]}: does not exist, {count}; {hint}")


def make_all(
    make: Callable[[Job], None],
    jobs: Sequence[Job],
    outputs: Callable[[Job], Iterable[Path]],
    workers: int | None = None,
    desc: str = "",
) -> int:
    """Do every job whose files are not all there; return how many were done.

    `make` writes the files of a job, each whole or not at all. It is sent to the
    workers, so it is a function of a module or a `functools.partial` of one, and jobs
    are small and picklable. `outputs` lists the files of a job. `workers` None starts a
    process for each core, 0 or 1 none; `desc` labels the progress bar.

    The DataError of the first job that fails is raised when the jobs under way are
    finished.
    """
    todo = [job for job in jobs if not all(map(_is_there, outputs(job)))]
    workers = min(os.cpu_count() or 1 if workers is None else workers, len(todo))
    bar = tqdm(total=len(jobs), initial=len(jobs) - len(todo), desc=desc, smoothing=0)
    with bar:
        if workers <= 1:
            for job in todo:
                make(job)
                bar.update()
            return len(todo)
        # Fresh processes: to fork one that has threads (torch, soundfile) can hang.
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(workers, context, initializer=_outlive_signals)
        try:
            for done in as_completed([pool.submit(_do, make, job) for job in todo]):
                done.result()
                bar.update()
        except BrokenProcessPool:
            fault = "a worker was killed, perhaps for want of memory"
            hint = "the same command with fewer --workers continues"
            raise DataError(f"{desc}: {fault}; {hint}") from None
        finally:
            pool.shutdown(cancel_futures=True)
    return len(todo)


def _is_there(path: Path) -> bool:
    """Return whether a file exists and is not empty, as a power cut can leave it."""
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:
        return False


def _outlive_signals() -> None:
    """Let workers finish their job: the parent alone decides to stop."""
    ignore_in_worker(0)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End a worker whose parent was killed: it would wait for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    BUSY.acquire()  # after the job under way
    os._exit(1)


def _do(make: Callable[[Job], None], job: Job) -> None:
    """Do a job in a worker."""
    with BUSY:
        make(job)
