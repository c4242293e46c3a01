"""When a checkpoint within an epoch is due."""

import time

import pytest

from recipes.checkpoints import SaveClock


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """The time, as the first item of a list."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_minutes_are_counted_from_the_last_checkpoint(clock):
    saves = SaveClock(minutes=1.5, steps=0)
    clock[0] += 89
    assert not saves.minutes_passed()
    clock[0] += 1
    assert saves.minutes_passed() and not saves.steps_passed(10**6)
    saves.restart(7)
    assert not saves.minutes_passed()
    clock[0] += 90
    assert saves.minutes_passed()


def test_steps_are_counted_from_the_last_checkpoint(clock):
    saves = SaveClock(minutes=0, steps=4)
    due = [saves.steps_passed(step) for step in (0, 3, 4, 5)]
    assert due == [False, False, True, True]
    saves.restart(6)
    assert [saves.steps_passed(step) for step in (9, 10)] == [False, True]
    clock[0] += 10**9
    assert not saves.minutes_passed(), "0 switches the rule off"
