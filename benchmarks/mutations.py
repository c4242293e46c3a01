"""Check that the fault bench notices when a safeguard is gone.

    python -m benchmarks.mutations [fsync rename digest ...]

Disables one safeguard at a time (in the processes of the bench alone, see
`benchmarks/fault_cases/mutations.py`) and runs the row that guards it, in its shortest
form. The row must fail; the exit status is 1 when one passes all the same.
"""

import argparse
import os
import subprocess
import sys
import time

from benchmarks.fault_cases.launch import MUTATION, ROOT
from benchmarks.fault_cases.mutations import MUTATIONS


def run_mutations(names: list[str]) -> int:
    """Run each row without its safeguard; return 1 if one passes all the same."""
    print("| safeguard | disabled | row | the row says | | seconds |")
    print("|---|---|---|---|---|---|", flush=True)
    unseen = 0
    for name in names or MUTATIONS:
        mutation, started = MUTATIONS[name], time.monotonic()
        result = subprocess.run(
            [sys.executable, "-m", "benchmarks.faults", mutation.target, "--brief"],
            cwd=ROOT,
            env=os.environ | {MUTATION: name},
            capture_output=True,
            text=True,
        )
        lines = result.stdout.splitlines()
        start = f"| {mutation.target} "
        row = next((x for x in lines if x.startswith(start)), result.stderr[-300:])
        seen = result.returncode == 1 and "FAIL: " in row
        said = row.partition("FAIL: ")[2].split("; ")[0].rpartition(" | ")
        said = (said[0] or said[2])[:120]
        unseen += not seen
        verdict = "seen" if seen else "NOT SEEN"
        cells = (name, mutation.what, mutation.target, said if seen else row, verdict)
        seconds = time.monotonic() - started
        print(f"| {' | '.join(cells)} | {seconds:.0f} |", flush=True)
    print(f"\n{len(names or MUTATIONS) - unseen} mutations seen", flush=True)
    return int(unseen > 0)


def main(arguments: list[str] | None = None) -> int:
    """Disable the named safeguards; return 1 if the bench does not notice."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.mutations",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    names = parser.parse_args(arguments).names
    if unknown := sorted(set(names) - MUTATIONS.keys()):
        parser.error(f"no mutation {unknown[0]}; there are {', '.join(MUTATIONS)}")
    return run_mutations(names)


if __name__ == "__main__":
    sys.exit(main())
