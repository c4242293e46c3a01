"""R10: damaged files in the newest checkpoint."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

from benchmarks.fault_cases import Bench, Outcome, target
from benchmarks.fault_cases.crash import DAMAGES, FILES, Job, restarted
from benchmarks.fault_cases.jobs import Recipe, both, run
from benchmarks.fault_cases.parallel import side_by_side
from benchmarks.fault_cases.remains import differences, newest


class _Kept(logging.Handler):
    """Keep the messages of a logger."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@target(
    "R10",
    "flipped bit, truncated, empty or missing file in the newest checkpoint: falls "
    "back to the one before with a warning, never mixes two",
    "loads silently, or a crash loop",
)
def damaged_files(bench: Bench) -> Outcome:
    """Try every damage to every file in this process; then let a real run go on."""
    outcome, recovered, number = Outcome(), 0, 0
    log = _Kept()
    logger = logging.getLogger("modules.weights.checkpointer")
    logger.addHandler(log)
    logger.propagate = False
    for damage in DAMAGES:
        for file in FILES:
            number += 1
            folder = bench.folder / f"save{number}"
            job = Job(folder)
            job.save(1)
            job.save(2)
            path = job.checkpointer.find_checkpoint().path
            damage(path / file)
            log.messages.clear()
            what = f"{damage.__name__} of {file}"
            try:
                found = restarted(folder)
            except (RuntimeError, OSError) as error:
                outcome.expect(False, f"{what}: {error}")
                continue
            fell_back = outcome.expect(found == {1}, f"{what}: recovered {found}")
            said = any(str(path) in m and file in m for m in log.messages)
            outcome.expect(said or not fell_back, f"{what}: no warning names it")
            recovered += fell_back and said
    logger.removeHandler(log)
    logger.propagate = True

    own = {
        "speech": {"ema_decay": 0.9},
        "music": {"grad_accumulation_factor": 2, "valid_every": 0},
    }
    damages = {
        "speech": DAMAGES[: bench.count(1, 1, 4)],
        "music": DAMAGES[-bench.count(1, 1, 4) :],
    }
    recipes = both(bench.folder, 7, own)
    found = side_by_side(outcome, bench.folder, recipes, _damaged_run, damages)
    recovered += sum(count or 0 for count in found)
    number += sum(map(len, damages.values()))
    outcome.figure = f"{recovered}/{number} damages seen, fell back"
    return outcome


def _damaged_run(
    recipe: Recipe, folder: Path, outcome: Outcome, damages: dict[str, list[Callable]]
) -> int:
    """Return from how many kinds of damage a killed run recovers with the same bits."""
    straight, killed = folder / "straight", folder / "killed"
    run(recipe.arguments(straight))
    run(recipe.arguments(killed), faults=[{"fault": "die", "epoch": 2, "step": 4}])
    recovered = 0
    for damage in damages[recipe.name]:
        damaged = folder / damage.__name__
        shutil.copytree(killed, damaged)
        path = newest(damaged)
        damage(path / "optimizer.ckpt")
        job = run(recipe.arguments(damaged))
        what = f"{damage.__name__} in a run"
        if outcome.expect(job.status == 0, f"{what}: {job.last_line}"):
            said = f"{path.name} is damaged and left out" in job.output
            odd = differences(straight, damaged)
            outcome.expect(said, f"{what}: no warning")
            outcome.expect(not odd, f"{what}: differs in {odd}")
            recovered += said and not odd
    return recovered
