"""Stopping on request: at once, or where nothing is lost.

Batch systems warn with SIGTERM or SIGUSR1, people with Ctrl-C, a terminal that closes
with SIGHUP (which `nohup` has ignored); each means "write a checkpoint and go". While
data are prepared, in a validation and in the test the handler itself raises `StopRun`:
no song is too long to be broken off. Training waits for a step to end (`later`).
`EXIT_REQUEUE` (75, EX_TEMPFAIL) tells a batch system that the same command continues
the run.

torchrun passes SIGTERM and SIGINT on to its ranks and then exits with 1, whatever the
ranks said. Other signals kill torchrun alone; the kernel then sends SIGTERM to its
ranks (`follow_torchrun`).
"""

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

EXIT_REQUEUE = 75

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)

_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


class StopRun(BaseException):
    """The run was asked to stop and has saved what it had to; no mere error."""


class StopRequest:
    """Raises `StopRun` at a stop signal, once; a second Ctrl-C always interrupts.

    >>> with StopRequest() as stop:
    ...     with stop.later():
    ...         signal.raise_signal(signal.SIGTERM)
    ...         print(stop.received)
    Traceback (most recent call last):
    modules.runtime.signals.StopRun: stopped by SIGTERM; the same command continues
    """

    #: Whether a signal is only noted; of the process, as its signal handlers are.
    waits = False

    def __init__(self) -> None:
        self.received: str | None = None
        self._previous: dict[int, Any] = {}

    @contextlib.contextmanager
    def later(self) -> Iterator[None]:
        """In this block only note a request; raise it at the end."""
        with waiting(True):
            yield
        if not StopRequest.waits:
            self.check()

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """In a block of `later`, raise at once all the same."""
        with waiting(False):
            self.check()
            yield

    def check(self) -> None:
        """Raise `StopRun` if a stop was asked for."""
        if self.received is not None:
            raise StopRun(f"stopped by {self.received}; the same command continues")

    def __enter__(self) -> "StopRequest":
        for number in _SIGNALS:
            # An ignored SIGHUP is meant (nohup). An ignored SIGINT is not: a shell sets
            # it for all that it starts in the background.
            is_ignored = signal.getsignal(number) is signal.SIG_IGN
            if not (is_ignored and number == signal.SIGHUP):
                self._previous[number] = signal.signal(number, self._handle)
        follow_torchrun()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == "SIGINT":
            raise KeyboardInterrupt
        is_first = self.received is None
        self.received = signal.Signals(number).name
        if not is_first:
            return
        if not StopRequest.waits:
            self.check()
        if os.environ.get("RANK", "0") == "0":
            again = "; once more: at once" if number == signal.SIGINT else ""
            what = "stops with a checkpoint after this optimizer step"
            with contextlib.suppress(OSError):
                os.write(2, f"\n{self.received}: {what}{again}\n".encode())


@contextlib.contextmanager
def waiting(waits: bool = True) -> Iterator[None]:
    """Decide whether a stop signal in this block waits to be asked for."""
    before, StopRequest.waits = StopRequest.waits, waits
    try:
        yield
    finally:
        StopRequest.waits = before


def follow_torchrun() -> None:
    """Ask the kernel for a SIGTERM when torchrun, the parent, has died (Linux).

    Otherwise its ranks train on, and the same command finds the folder in use.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))


def ignore_in_worker(worker_id: int) -> None:
    """Ignore the stop signals; a `worker_init_fn` of DataLoader.

    Ctrl-C and batch systems signal the whole process group; a worker that died of it
    would take the checkpoint down with it. Workers end when the main process does.
    """
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
