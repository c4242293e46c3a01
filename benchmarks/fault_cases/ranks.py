"""R4, R5: two gloo ranks hold the same bits, whatever one of them sees."""

import re
import time
from pathlib import Path

import torch

from benchmarks.fault_cases import Bench, Outcome, target
from benchmarks.fault_cases.jobs import Hung, Job, Recipe, music, run, run_ranks, speech
from benchmarks.fault_cases.parallel import side_by_side
from benchmarks.fault_cases.remains import same


def dumps(folder: Path) -> dict[int, list[dict]]:
    """Return by epoch what each rank held after it."""
    found: dict[int, list[dict]] = {}
    for path in sorted(folder.glob("epoch*_rank*.pt")):
        epoch = int(re.match(r"epoch(\d+)", path.name)[1])
        found.setdefault(epoch, []).append(torch.load(path, weights_only=True))
    return found


def compare_ranks(folder: Path, what: str, outcome: Outcome) -> list[dict]:
    """Expect equal bits on two ranks after every epoch; return the last epoch's."""
    found = dumps(folder)
    outcome.expect(found, f"{what}: no epoch ended")
    for epoch, ranks in found.items():
        if outcome.expect(len(ranks) == 2, f"{what}: a rank left no dump"):
            odd = [
                name for name in ranks[0] if not same(ranks[0][name], ranks[1][name])
            ]
            outcome.expect(not odd, f"{what}, epoch {epoch}: ranks differ in {odd}")
    return found[max(found)] if found else []


def largest_difference(a: dict, b: dict) -> float:
    """Return the largest difference between two state dicts."""
    return max(
        float((a[name].double() - b[name].double()).abs().max())
        for name in a
        if a[name].numel()
    )


@target(
    "R4",
    "under torchrun weights, optimizer, rate and EMA are bit-equal on all ranks after "
    "every epoch; 2 x B equals 1 x 2B within 1e-6",
    "ranks train different models",
)
def ranks_agree(bench: Bench) -> Outcome:
    """Run torchrun as a user calls it, then one process with twice the batch."""
    outcome = Outcome()
    shared = {"ema_decay": 0.9, "clip_grad_norm": -1}
    recipes = {
        "speech": speech(
            bench.folder,
            **shared | {"grad_accumulation_factor": 2, "lr": 0.001},
            batch_size=1,
            examples_per_epoch=10,
        ),
        # A window of whole steps, for ranks fill it in another order.
        "music": music(
            bench.folder,
            **shared | {"grad_accumulation_factor": 3, "loss_memory": 8},
            batch_size=2,
            examples_per_epoch=28,
        ),
    }
    for name, recipe in recipes.items():
        # Adam would make full steps of the rounding of a gradient that is zero.
        recipe.yaml = recipe.yaml.with_name(f"{name}_sgd.yaml")
    off = side_by_side(outcome, bench.folder, recipes, _two_for_one)
    outcome.figure = (
        f"off 1 x 2B by {max(value or 0.0 for value in off):.1e}, ranks bit-equal"
        if outcome.passed
        else "see failures"
    )
    return outcome


def _two_for_one(recipe: Recipe, folder: Path, outcome: Outcome) -> float | None:
    """Return how far two ranks' weights are from those of one with twice the batch."""
    job = run(
        recipe.arguments(folder / "two"),
        dump=folder / "dump_two",
        torchrun=["--standalone"],
    )
    outcome.expect(job.status == 0, f"torchrun: {job.last_line}")
    ranks = compare_ranks(folder / "dump_two", "two ranks", outcome)
    twice = 2 * int(recipe.settings["batch_size"])
    job = run(
        recipe.arguments(folder / "one", batch_size=twice), dump=folder / "dump_one"
    )
    outcome.expect(job.status == 0, f"one process: {job.last_line}")
    alone = dumps(folder / "dump_one")
    if not (ranks and alone):
        return None
    off = largest_difference(ranks[0]["weights"], alone[max(alone)][0]["weights"])
    outcome.expect(off <= 1e-6, f"2 x B is off 1 x 2B by {off:.1e}")
    kept = [held["stats"]["kept_K"] for held in (ranks[0], alone[max(alone)][0])]
    outcome.expect(kept[0] == kept[1], f"2 x B and 1 x 2B kept {kept}")
    return off


# Per fault on rank 1 in step 2 of 3, two examples a rank: examples kept and not finite,
# optimizer steps left out. NaN from inside the network reaches every gradient.
SPEECH = {
    "nan_item": (11, 1, 0),
    "inf_batch": (10, 2, 0),
    "silent": (10, 0, 0),
    "easy": (10, 0, 0),
    "nan_inside": (10, 2, 1),
    "nan_gradient": (12, 0, 1),
}


@target(
    "R5",
    "NaN, Inf, all-easy, silent or no examples on one rank: no hang, ranks equal, "
    "nothing else lost, counts equal and logged with ids",
    "hang until the timeout of 7200 s",
)
def one_rank_sees(bench: Bench) -> Outcome:
    """Use static mixtures, so that the ids are those of files."""
    outcome = Outcome()
    slowest, runs = 0.0, 0

    def ranks_of(name: str, job_arguments: list[str], faults: list[dict]) -> list[Job]:
        nonlocal slowest, runs
        started = time.monotonic()
        try:
            jobs = run_ranks(
                job_arguments, dump=bench.folder / f"d_{name}", faults=faults
            )
        except Hung as error:
            outcome.expect(False, f"{name}: {error}")
            return []
        slowest, runs = max(slowest, time.monotonic() - started), runs + 1
        outcome.expect(not any(j.status for j in jobs), f"{name}: {jobs[0].last_line}")
        return jobs

    base = {"N_epochs": 1, "ddp_timeout": 20, "batch_size": 2}
    recipe = speech(bench.folder, **base, examples_per_epoch=12)
    for fault, expected in SPEECH.items():
        folder = bench.folder / fault
        where = {"fault": fault, "rank": 1, "epoch": 1, "step": 2}
        ranks_of(fault, recipe.arguments(folder), [where])
        held = compare_ranks(bench.folder / f"d_{fault}", fault, outcome)
        if not held:
            continue
        stats = held[0]["stats"]
        counts = (sum(stats["kept_K"]), stats["nonfinite"], stats["steps_skipped"])
        outcome.expect(counts == expected, f"{fault}: counts {counts}, not {expected}")
        log = (folder / "log.txt").read_text()
        if expected[1] or expected[2]:
            outcome.expect("step 2: " in log and "+" in log.split("step 2: ")[-1][:200],
                           f"{fault}: no example is named in log.txt")  # fmt: skip
        weights = held[0]["weights"].values()
        finite = all(bool(tensor.isfinite().all()) for tensor in weights)
        outcome.expect(finite, f"{fault}: weights are not finite")

    empty = speech(bench.folder, **base, examples_per_epoch=9)
    ranks_of("empty", empty.arguments(bench.folder / "empty"), [])
    held = compare_ranks(bench.folder / "d_empty", "empty", outcome)
    kept = sum(held[0]["stats"]["kept_K"]) if held else 0
    outcome.expect(kept == 9, f"empty: {kept} of 9 examples kept")

    songs = music(
        bench.folder,
        batch_size=2,
        ddp_timeout=20,
        ema_decay=0.9,
        grad_accumulation_factor=2,
    )
    for fault in ("nan_item", "nan_inside"):
        where = {"fault": fault, "rank": 1, "epoch": 1, "step": 2}
        name = f"music_{fault}"
        ranks_of(name, songs.arguments(bench.folder / name), [where])
        compare_ranks(bench.folder / f"d_{name}", name, outcome)
    outcome.figure = f"{runs}/9 runs end, slowest {slowest:.0f} s" + (
        ", ranks equal" if outcome.passed else ""
    )
    return outcome
