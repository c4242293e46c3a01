"""The fault bench: everything that a run must survive, target by target.

    python -m benchmarks.faults [R1 R2 ...] [--nightly | --brief]
    python -m benchmarks.faults --long

Each row is a target of reliability: the requirement, the figure reached, beside it the
measured behaviour of stock software, and whether the target is met. The exit status is
1 when one falls short. Jobs are train.py on toy data; kills are triggered by
progress, and results are compared with those of an uninterrupted job of the same call.
`--nightly` does 100 kills and 20 kills of a rank, `--brief` as few as show anything.
`--long[=STEPS]` runs both demo recipes for 2 000 steps and looks for leaks.
`python -m benchmarks.mutations` disables each safeguard in turn and shows that its row
then fails.
"""

import argparse
import importlib
import pkgutil
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

import torch

from benchmarks import fault_cases
from benchmarks.fault_cases import TARGETS, Bench, Outcome, Target, launch, long_runs

LONG = "L1"


def load_cases() -> None:
    """Import all case files, which register their targets."""
    for module in pkgutil.iter_modules(fault_cases.__path__):
        importlib.import_module(f"{fault_cases.__name__}.{module.name}")


def in_order(names: list[str]) -> list[str]:
    """Return the names of targets in the order of their numbers."""
    return sorted(names, key=lambda name: int(name[1:]))


def run_target(target: Target, bench: Bench) -> tuple[Outcome, float]:
    """Return the outcome of a case and its seconds; an error counts as a failure."""
    started = time.monotonic()
    shutil.rmtree(bench.folder, ignore_errors=True)  # of an earlier call
    bench.folder.mkdir(parents=True, exist_ok=True)
    try:
        outcome = target.run(bench)
    except Exception as error:
        traceback.print_exc()
        outcome = Outcome("stopped", [f"{type(error).__name__}: {error}"])
    return outcome, time.monotonic() - started


def main(arguments: list[str] | None = None) -> int:
    """Run the bench; return 1 when a target falls short."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("targets", nargs="*", metavar="R1", help="default: all")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--nightly", action="store_true", help="100 kills")
    length.add_argument("--brief", action="store_true", help="as few as show anything")
    parser.add_argument(
        "--long",
        type=int,
        nargs="?",
        const=2000,
        metavar="STEPS",
        help="look for leaks",
    )
    parser.add_argument("--folder", type=Path, help="keep what the jobs write here")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # jobs are forked: no thread may be lost
    load_cases()
    if unknown := sorted(set(options.targets) - TARGETS.keys()):
        parser.error(
            f"no target {unknown[0]}; there are {', '.join(in_order(TARGETS))}"
        )
    if options.long:
        add_long_runs(options.long)
        options.targets = options.targets or [LONG]
    names = in_order(options.targets or list(TARGETS))
    folder = options.folder or Path(tempfile.mkdtemp(prefix="faults"))
    try:
        return run_bench(names, folder, options.nightly, options.brief)
    finally:
        if options.folder is None:
            shutil.rmtree(folder, ignore_errors=True)


def add_long_runs(steps: int) -> None:
    """Register the long runs as a row of their own."""
    statement = f"{steps} steps of each demo recipe: flat memory, nothing left behind"
    register = fault_cases.target(LONG, statement, "not measured")

    def run_demos(bench: Bench) -> Outcome:
        recipes = long_runs.demos(bench.folder, steps)
        return long_runs.long_runs(bench, recipes, steps)

    register(run_demos)


def run_bench(names: list[str], folder: Path, nightly: bool, brief: bool) -> int:
    """Run targets in a folder and print a table; return 1 when one falls short."""
    launch.warm_up()
    launch.disable_safeguard()
    print("| target | must be true | reached | stock | | seconds |")
    print("|---|---|---|---|---|---|", flush=True)
    short = 0
    for name in names:
        bench = Bench(folder.absolute() / name, nightly, brief)
        outcome, seconds = run_target(TARGETS[name], bench)
        short += not outcome.passed
        verdict = "pass" if outcome.passed else "FAIL: " + "; ".join(outcome.failures)
        row = (name, TARGETS[name].statement, outcome.figure, TARGETS[name].stock)
        print(f"| {' | '.join(row)} | {verdict} | {seconds:.0f} |", flush=True)
        shutil.rmtree(bench.folder, ignore_errors=True) if outcome.passed else None
    print(f"\n{len(names) - short} of {len(names)} targets met", flush=True)
    return int(short > 0)


if __name__ == "__main__":
    sys.exit(main())
