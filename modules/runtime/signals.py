"""Stopping on request: a signal becomes a flag that training reads between steps.

Batch systems warn with SIGTERM or SIGUSR1, people with Ctrl-C, a terminal that closes
with SIGHUP (which `nohup` has ignored); each means "write a checkpoint and go".
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
from types import FrameType
from typing import Any

EXIT_REQUEUE = 75

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)

_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


class StopRun(Exception):
    """The run was asked to stop and has saved what it had to."""


class StopRequest:
    """Collects stop signals while it is entered; a second Ctrl-C interrupts at once.

    Example
    -------
    >>> with StopRequest() as stop:
    ...     signal.raise_signal(signal.SIGTERM)
    ...     stop.received
    'SIGTERM'
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._previous: dict[int, Any] = {}
        self._terminals: list[int] = []

    def __enter__(self) -> "StopRequest":
        self._terminals = [fd for fd in (1, 2) if os.isatty(fd)]
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
        if number == signal.SIGHUP:  # the terminal is gone: nobody reads it
            null = os.open(os.devnull, os.O_WRONLY)
            for descriptor in self._terminals:
                os.dup2(null, descriptor)
        name = signal.Signals(number).name
        if self.received is None and os.environ.get("RANK", "0") == "0":
            again = "; once more: at once" if number == signal.SIGINT else ""
            line = f"{name}: stops with a checkpoint after this optimizer step{again}"
            with contextlib.suppress(OSError):
                os.write(2, f"\n{line}\n".encode())
        self.received = name


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
