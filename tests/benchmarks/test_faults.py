"""That the fault bench notices what falls short; `make faults` runs its rows."""

import contextlib
import os

import pytest
import torch

from benchmarks import faults, mutations
from benchmarks.fault_cases import TARGETS, Bench, Outcome, Target, launch, long_runs
from benchmarks.fault_cases.mutations import MUTATIONS, apply


@pytest.fixture(autouse=True)
def one_thread():
    """Jobs are forked from this process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    launch.warm_up()
    yield
    torch.set_num_threads(threads)


def test_there_is_a_row_for_every_target():
    faults.load_cases()
    assert faults.in_order(list(TARGETS)) == [f"R{i}" for i in range(1, 20)]


def test_a_row_that_falls_short_fails_the_bench(tmp_path, monkeypatch, capsys):
    def falls_short(bench: Bench) -> Outcome:
        outcome = Outcome("1 of 2")
        outcome.expect(True, "never said")
        outcome.expect(False, "the second\none")
        return outcome

    def breaks(bench: Bench) -> Outcome:
        raise RuntimeError("no such disk")

    for case in (falls_short, breaks):
        row = Target("R1", "all is well", "none", case)
        monkeypatch.setitem(TARGETS, "R1", row)
        assert faults.run_bench(["R1"], tmp_path, False, True) == 1
    said = capsys.readouterr().out
    assert "| 1 of 2 | none | FAIL: the second one |" in said
    assert "FAIL: RuntimeError: no such disk" in said and "0 of 1 targets met" in said

    well = Target("R1", "all is well", "none", lambda bench: Outcome("2 of 2"))
    monkeypatch.setitem(TARGETS, "R1", well)
    assert faults.run_bench(["R1"], tmp_path, False, True) == 0


def test_unknown_targets_and_mutations_are_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        faults.main(["R99"])
    with pytest.raises(SystemExit, match="2"):
        mutations.main(["gravity"])
    assert "no target R99" in capsys.readouterr().err


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutation_disables_something_that_is_there(name):
    pid = os.fork()
    if pid == 0:
        status = 1
        with contextlib.suppress(BaseException):
            apply(name)
            status = 0
        os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.slow
def test_a_missing_safeguard_is_seen(capsys, monkeypatch):
    monkeypatch.delenv(launch.MUTATION, raising=False)
    assert mutations.run_mutations(["fsync"]) == 0
    assert "| fsync | files are not flushed | R1 |" in capsys.readouterr().out


def test_a_leak_has_a_slope():
    flat = [long_runs.Sample(i, 200 + i % 2, 9, 2) for i in range(50)]
    leak = [long_runs.Sample(i, 200 + 0.02 * i, 9, 2) for i in range(50)]
    assert abs(long_runs.slope_of(flat)) < 5
    assert long_runs.slope_of(leak) == pytest.approx(20)


@pytest.mark.slow
def test_a_short_long_run_leaks_nothing(tmp_path):
    recipes = long_runs.toys(tmp_path, steps=200, epochs=2)
    outcome = long_runs.long_runs(Bench(tmp_path), recipes, steps=200)
    # Memory needs more steps than these.
    assert [text for text in outcome.failures if "MB per" not in text] == []
