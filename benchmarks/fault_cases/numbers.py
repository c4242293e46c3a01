"""R6: NaN in gradients, weights and data of a single process."""

import re
from pathlib import Path

from benchmarks.fault_cases import Bench, Outcome, target
from benchmarks.fault_cases.jobs import differences, held, read_state, run, speech
from modules.checkpoint_files import is_finite, named_tensors

PATIENCE = 3


def not_finite(run_folder: Path) -> list[str]:
    """Names of the tensors with NaN or Inf in any checkpoint of a run."""
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
    """A NaN once, then for good, then in the weights; and the run after that."""
    outcome = Outcome()
    recipe = speech(bench.folder, examples_per_epoch=12, nonfinite_patience=PATIENCE)
    folder = bench.folder / "once"
    spec = {"fault": "nan_gradient", "epoch": 1, "step": 3}
    job = run(recipe.arguments(folder), faults=[spec])
    outcome.expect(job.status == 0, f"one NaN gradient: {job.last_line}")
    outcome.expect(not not_finite(folder), "one NaN gradient: NaN in a checkpoint")
    log = (folder / "train_log.txt").read_text() if job.status == 0 else ""
    skipped = re.findall(r"steps_skipped: (\d+)", log)
    outcome.expect(skipped == ["1", "0"], f"one NaN gradient: skipped {skipped}")

    # A NaN in the data leaves the mean of the others: that of a run where it is silent.
    means = {}
    for fault in ("nan_item", "silent"):
        folder = bench.folder / fault
        job = run(
            recipe.arguments(folder, N_epochs=1),
            faults=[{"fault": fault, "epoch": 1, "step": 3}],
        )
        outcome.expect(job.status == 0, f"{fault}: {job.last_line}")
        text = (folder / "train_log.txt").read_text()
        means[fault] = re.search(r"train loss: (\S+?),", text)[1]
    outcome.expect(
        means["nan_item"] == means["silent"], f"mean loss with a NaN item: {means}"
    )

    straight = bench.folder / "straight"
    run(recipe.arguments(straight))
    for fault in ("nan_gradient", "nan_weights"):
        folder = bench.folder / fault
        spec = {"fault": fault, "epoch": 2, "from_step": 3}
        job = run(recipe.arguments(folder), faults=[spec])
        outcome.expect(job.status == 1, f"{fault} for good: exit {job.status}")
        outcome.expect(
            job.last_line.startswith("error: "),
            f"{fault}: the last line is {job.last_line!r}",
        )
        outcome.expect(not not_finite(folder), f"{fault}: NaN in a checkpoint")
        outcome.expect(held(folder), f"{fault}: no checkpoint is left")
        job = run(recipe.arguments(folder))
        restarts = outcome.expect(job.status == 0, f"after {fault}: {job.last_line}")
        # Steps that were left out for their gradient are part of the run.
        if restarts and fault == "nan_weights":
            odd = differences(straight, folder)
            outcome.expect(not odd, f"after {fault}: differs in {odd}")
    outcome.figure = (
        f"finite after 1 NaN, exit 1 after {PATIENCE} in a row, restart ends with the "
        "same bits"
        if outcome.passed
        else "see failures"
    )
    return outcome
