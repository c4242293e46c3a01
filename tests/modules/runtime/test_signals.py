"""Signals: a flag for the run, nothing for data workers, the death of torchrun."""

import contextlib
import os
import pty
import signal
import subprocess
import sys
import time

import pytest

from modules.runtime.signals import StopRequest, StopRun, ignore_in_worker
from modules.runtime.terminal import keep_printing

RANK = """
import os, time
from modules.runtime.signals import StopRequest
with StopRequest() as stop, stop.later():
    print(os.getpid(), flush=True)
    deadline = time.monotonic() + 20
    while stop.received is None and time.monotonic() < deadline:
        time.sleep(0.01)
    print(stop.received, flush=True)
    os._exit(0)
"""
TORCHRUN = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", sys.argv[1]])
time.sleep(30)
"""


@pytest.fixture(autouse=True)
def default_signals():
    """As for a program in the foreground, wherever the tests run."""
    numbers = (signal.SIGINT, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def test_what_the_shell_ignores_for_the_background_is_heard():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with pytest.raises(StopRun, match="SIGINT"), StopRequest():
        signal.raise_signal(signal.SIGINT)


def test_the_first_ctrl_c_asks_and_the_second_interrupts():
    before = signal.getsignal(signal.SIGINT)
    with StopRequest() as stop, pytest.raises(KeyboardInterrupt), stop.later():
        signal.raise_signal(signal.SIGINT)
        assert stop.received == "SIGINT"
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before


def test_a_request_is_heard_at_once_unless_it_has_to_wait():
    reached = []
    with pytest.raises(StopRun, match="SIGTERM"), StopRequest() as stop:
        with stop.later():
            reached.append("step")
            signal.raise_signal(signal.SIGTERM)
            reached.append("checkpoint")
            with contextlib.suppress(StopRun), stop.at_once():
                reached.append("validation")
            assert StopRequest.waits
        reached.append("test")
    assert reached == ["step", "checkpoint"] and not StopRequest.waits
    with StopRequest() as stop, stop.later():
        with pytest.raises(StopRun), stop.at_once():
            signal.raise_signal(signal.SIGTERM)
            reached.append("validation")
        signal.raise_signal(signal.SIGTERM)  # only the first one is raised
        stop.received = None
    assert reached == ["step", "checkpoint"]


def test_asking_says_so_once(capfd):
    with pytest.raises(StopRun), StopRequest() as stop, stop.later():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
    said = capfd.readouterr().err
    assert said.count("stops with a checkpoint") == 1 and "once more: at once" in said


def test_a_closed_terminal_asks_too_unless_it_is_ignored():
    with pytest.raises(StopRun, match="SIGHUP"), StopRequest():
        signal.raise_signal(signal.SIGHUP)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with StopRequest() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert stop.received is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_writing_to_a_terminal_that_has_closed_is_no_error():
    """A pseudo terminal whose other end goes away: the kernel sends SIGHUP."""
    pid, terminal = pty.fork()
    if pid == 0:
        status = 1
        with contextlib.suppress(BaseException):
            sys.stdout = sys.__stdout__  # not pytest's
            keep_printing()
            try:
                with StopRequest():
                    os.write(1, b"ready")
                    time.sleep(20)
            except StopRun:
                print("not an error", flush=True)
                status = 3
        os._exit(status)
    assert os.read(terminal, 5) == b"ready"
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3


def test_a_data_worker_outlives_the_signals():
    pid = os.fork()
    if pid == 0:
        ignore_in_worker(0)
        numbers = signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP
        for number in numbers:
            os.kill(os.getpid(), number)
        os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal is Linux's")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGUSR1])
def test_a_rank_is_asked_to_stop_when_its_torchrun_dies(number):
    torchrun = subprocess.Popen(
        [sys.executable, "-c", TORCHRUN, RANK],
        env=os.environ | {"TORCHELASTIC_RUN_ID": "one", "PYTHONPATH": os.getcwd()},
        stdout=subprocess.PIPE,
        text=True,
    )
    int(torchrun.stdout.readline())  # the rank listens
    started = time.monotonic()
    torchrun.send_signal(number)
    assert torchrun.wait() == -number
    assert torchrun.stdout.readline() == "SIGTERM\n"
    assert time.monotonic() - started < 10
