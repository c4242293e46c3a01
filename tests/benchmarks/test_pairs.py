"""Sides take turns, in both orders; ratios are of neighbours; time bounds the turns."""

import sys

import pytest

from benchmarks import pairs


def test_ratios_are_of_neighbours():
    theirs = [{"wall s": w, "CPU s": 2.0, "peak MB": 100.0} for w in (10.0, 20.0, 40.0)]
    mine = [{"wall s": w, "CPU s": 1.0, "peak MB": 150.0} for w in (5.0, 5.0, 30.0)]
    results = {"demucs": theirs, "fp32": mine}
    first, second = pairs.rows("a song, ", results)
    assert first == "| a song, demucs | 20 |  | 2 |  | 100 |  |"
    assert second.startswith("| a song, fp32 | 5 | 0.50 (0.25 to 0.75) | 1 | 0.50 (0.5")
    assert second.endswith("| 150 | 1.50 (1.50 to 1.50) |")
    assert pairs.ratio(results, "fp32", "demucs", "wall s", -1) == "2.00 (1.33 to 4.00)"


def test_sides_take_turns_in_both_orders():
    order = []
    sides = {name: lambda name=name: order.append(name) or {"n": 1.0} for name in "abc"}
    results = pairs.take_turns(sides, 3)
    assert "".join(order) == "abccbaabc"
    assert {name: len(figures) for name, figures in results.items()} == dict(
        a=3, b=3, c=3
    )


def test_no_turn_begins_that_does_not_fit():
    results = pairs.take_turns({"a": lambda: {"n": 1.0}}, 5, seconds=0.0)
    assert len(results["a"]) == 1


def test_a_side_that_fails_is_measured_no_more():
    given = iter([{"n": 1.0}, None])
    results = pairs.take_turns({"a": lambda: {"n": 2.0}, "b": lambda: next(given)}, 4)
    assert len(results["a"]) == 4 and len(results["b"]) == 1
    assert pairs.rows("", results, ["n"])[1] == "| b | 1 | 0.50 |"


def test_functions_are_called_once_more_to_warm_up():
    calls = []
    results = pairs.call_each({"a": lambda: calls.append(1)}, 2)
    assert len(calls) == 3 and len(results["a"]) == 2


def test_a_process_is_measured_by_itself():
    script = "x = bytearray(300_000_000)"
    figures = pairs.run([sys.executable, "-c", script])
    assert figures["peak MB"] > 290 and figures["CPU s"] > 0
    with pytest.raises(SystemExit, match="exit code 3"):
        pairs.run([sys.executable, "-c", "raise SystemExit(3)"])


def test_a_process_reports_what_it_prints_last():
    script = "print('not this'); print('{\"a\": 1}')"
    assert pairs.report([sys.executable, "-c", script]) == {"a": 1}
    with pytest.raises(SystemExit, match="exit code 3"):
        pairs.report([sys.executable, "-c", "raise SystemExit(3)"])
