"""R6: NaN in gradients, weights and data of a single process."""

import re
from pathlib import Path

from benchmarks.fault_cases import Bench, Outcome, target
from benchmarks.fault_cases.jobs import Recipe, both, run
from benchmarks.fault_cases.parallel import side_by_side
from benchmarks.fault_cases.remains import differences, held, read_state
from modules.runtime.tensors import is_finite
from modules.weights.checkpoint_files import named_tensors

PATIENCE = 3


def not_finite(run_folder: Path) -> list[str]:
    """Return the names of tensors with NaN or Inf in any checkpoint of a run."""
    found = []
    for path in (run_folder / "save").glob("CKPT+*/*.ckpt"):
        tensors = named_tensors(read_state(path))
        found += [name for name, tensor in tensors if not is_finite(tensor)]
    return found


@target(
    "R6",
    "one NaN gradient: the run goes on with finite weights; bad steps in a row: exit "
    "not 0; nothing non-finite saved; skipped batches not in the mean",
    "dead model, exit 0, only NaN left on disk",
)
def nan_in_training(bench: Bench) -> Outcome:
    """Inject a NaN once, then for good, then in the weights; then resume."""
    outcome = Outcome()
    own = {
        "speech": {},
        "music": {"grad_accumulation_factor": 2, "ema_decay": 0.9, "num_workers": 1},
    }
    recipes = both(bench.folder, 12, own, nonfinite_patience=PATIENCE)
    for fault in (nan_once, mean_without, nan_for_good):
        side_by_side(outcome, bench.folder, recipes, fault)
    outcome.figure = (
        f"finite after 1 NaN, exit 1 after {PATIENCE} in a row, restart ends with the "
        "same bits"
        if outcome.passed
        else "see failures"
    )
    return outcome


def nan_once(recipe: Recipe, folder: Path, outcome: Outcome) -> None:
    """Check that one optimizer step is left out, and counted."""
    spec = {"fault": "nan_gradient", "epoch": 1, "step": 3}
    job = run(recipe.arguments(folder / "once"), faults=[spec])
    outcome.expect(job.status == 0, f"one NaN gradient: {job.last_line}")
    bad = not_finite(folder / "once")
    outcome.expect(not bad, "one NaN gradient: NaN in a checkpoint")
    log = (folder / "once" / "train_log.txt").read_text() if job.status == 0 else ""
    skipped = re.findall(r"steps_skipped: (\d+)", log)
    outcome.expect(skipped == ["1", "0"], f"one NaN gradient: skipped {skipped}")


def mean_without(recipe: Recipe, folder: Path, outcome: Outcome) -> None:
    """Check that a NaN in the data leaves the mean loss of the other examples."""
    means = {}
    for fault in ("nan_item", "uncounted"):
        job = run(
            recipe.arguments(folder / fault),
            faults=[{"fault": fault, "epoch": 1, "step": 3}],
        )
        if not outcome.expect(job.status == 0, f"{fault}: {job.last_line}"):
            return
        text = (folder / fault / "train_log.txt").read_text()
        means[fault] = re.findall(r"train loss: (\S+?),", text)
    outcome.expect(
        means["nan_item"] == means["uncounted"], f"mean loss with a NaN item: {means}"
    )


def nan_for_good(recipe: Recipe, folder: Path, outcome: Outcome) -> None:
    """Check that the run stops, and goes on from its checkpoints, which are finite."""
    straight = folder / "straight"
    run(recipe.arguments(straight))
    for fault in ("nan_gradient", "nan_weights"):
        spoilt = folder / fault
        spec = {"fault": fault, "epoch": 2, "from_step": 3}
        job = run(recipe.arguments(spoilt), faults=[spec])
        outcome.expect(job.status == 1, f"{fault} for good: exit {job.status}")
        outcome.expect(
            job.last_line.startswith("error: "),
            f"{fault}: the last line is {job.last_line!r}",
        )
        outcome.expect(not not_finite(spoilt), f"{fault}: NaN in a checkpoint")
        outcome.expect(held(spoilt), f"{fault}: no checkpoint is left")
        job = run(recipe.arguments(spoilt))
        restarts = outcome.expect(job.status == 0, f"after {fault}: {job.last_line}")
        # Steps that were left out for their gradient are part of the run.
        if restarts and fault == "nan_weights":
            odd = differences(straight, spoilt)
            outcome.expect(not odd, f"after {fault}: differs in {odd}")
