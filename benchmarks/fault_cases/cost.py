"""R13: the cost of saving."""

import logging
import math
import shutil
import statistics
import time
from pathlib import Path

from speechbrain.utils.checkpoints import Checkpointer
from torch import nn

from benchmarks.fault_cases import Bench, Outcome, target
from benchmarks.fault_cases.crash import Job
from modules.weights import checkpoint_files
from modules.weights.checkpointer import AtomicCheckpointer


@target(
    "R13",
    "the 300th save takes at most 1.5 times the first ones; digest and flush: at most "
    "4 times the CPU of a stock save, 3.5 times its time (1.5 times a flushed one's)",
    "grows by 2 to 3 ms a save",
)
def saving_cost(bench: Bench) -> Outcome:
    """Measure the CPU time of many small saves, and both times of large ones."""
    outcome = Outcome()
    job, seconds = Job(bench.folder / "many"), []
    saves = bench.count(100, 300, 300)
    logging.disable(logging.INFO)
    for _ in range(saves):
        started = time.process_time()
        job.checkpointer.save_and_keep_only()
        seconds.append(time.process_time() - started)
    early, late = statistics.median(seconds[:20]), statistics.median(seconds[-20:])
    outcome.expect(late <= 1.5 * early + 1e-3, f"{early:.4f} s, later {late:.4f} s")

    cpu, elapsed = _large_saves(bench.folder, bench.count(5, 15, 15))
    logging.disable(logging.NOTSET)
    ratio = cpu["ours"] / cpu["stock"]
    outcome.expect(ratio <= 4, f"{ratio:.1f} times the CPU of a stock save")
    slower = {name: elapsed["ours"] / elapsed[name] for name in ("stock", "flushed")}
    # Where the disk takes its time a flush alone is longer than such a save.
    outcome.expect(
        slower["stock"] <= 3.5 or slower["flushed"] <= 1.5,
        "{stock:.1f} times a stock save, {flushed:.1f} times a flushed one".format(
            **slower
        ),
    )
    outcome.figure = (
        f"save {saves} takes {late / early:.2f} of the first; {ratio:.1f} times the "
        f"CPU of stock, {slower['stock']:.1f} times its time ({slower['flushed']:.1f} "
        "flushed)"
    )
    return outcome


def _large_saves(folder: Path, rounds: int) -> tuple[dict, dict]:
    """Return the least CPU and elapsed seconds of a 64 MB save, by who saves.

    "flushed" is a stock save and then an fsync of what it wrote.
    """
    kinds = {
        "stock": Checkpointer,
        "flushed": Checkpointer,
        "ours": AtomicCheckpointer,
    }
    cpu, elapsed = (dict.fromkeys(kinds, math.inf) for _ in range(2))
    model = nn.Linear(4000, 4000)
    for _ in range(rounds):
        for name, kind in kinds.items():
            checkpointer = kind(folder / name, {"model": model})
            started, started_cpu = time.monotonic(), time.process_time()
            saved = checkpointer.save_checkpoint()
            if name == "flushed":
                for path in Path(saved.path).iterdir():
                    checkpoint_files.fsync(path)
            elapsed[name] = min(elapsed[name], time.monotonic() - started)
            cpu[name] = min(cpu[name], time.process_time() - started_cpu)
            shutil.rmtree(folder / name)
    return cpu, elapsed
