"""Show where the time of a training step goes, recipe by recipe.

    python -m benchmarks.step [RECIPE ...] [--steps=12] [--picture=step.png]

Recipes take turns (`benchmarks.pairs`). Each runs as `train.py` does, in a process of
its own, on synthetic talkers or songs, and the functions of the step are timed as they
are called: nothing of it is written again here. A function's time is its own, without
what it calls of the others, in processor seconds of all threads (on a GPU in seconds,
with a wait at either end).
The first steps are not counted, nor the first 20 batches of talkers. Examples are made
in the training process, so that "data" is all of their cost; with workers it is not in
the step at all.

What happens now and then is spread over the steps: a point of the curves by its
`log_every`; the end of an epoch (picture of the curves, audio of the validation,
checkpoints) by its steps, of 20 000 examples where the recipe names no number; and a
checkpoint by its `checkpoint_minutes`.

Published sizes run with few layers and short segments (`SHALLOW`): the share of
everything that is not network or loss is then no smaller than at the full size.
Adapters start from weights that one step of their recipe without adapters has left.
"""

import argparse
import contextlib
import functools
import json
import re
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

import recipes.step
import train
from benchmarks.pairs import ROOT, Results, report, run, spread, take_turns
from data_prep.synthetic import songs
from modules.data.batch import Batch
from modules.losses.choice import Chosen
from modules.monitor.logs import RunLog
from modules.runtime import distributed
from modules.runtime.batch_norm import RunningStatistics
from modules.runtime.cli import as_command
from modules.weights.checkpointer import AtomicCheckpointer
from modules.weights.ema import EMA
from recipes.evaluation import AudioKeeper
from recipes.report import Reporter
from recipes.separation import Separation

HPARAMS = ROOT / "hparams"
UNTIMED, UNTRAINED = 3, 20
EPOCH_EXAMPLES = 20_000

# Published recipes by how their names begin, and music: few of their layers, a segment
# and a batch that fit into the memory and the time.
SHORT = ["--segment_seconds=2", "--batch_size=1"]
MUSIC = {
    "htdemucs": ["--segment_seconds=4", "--batch_size=1"],
    "bs_roformer": ["--layers=1", *SHORT],
    "mel_roformer": ["--layers=1", "--mask_expansion=1", *SHORT],
    "scnet": ["--segment_seconds=4", "--batch_size=1"],
}
SHALLOW = MUSIC | {
    "mossformer2": ["--layers=4"],
    "sepformer": ["--separator={dual_layers: 1, intra_layers: 2, inter_layers: 2}"],
    "tf_locoformer": ["--layers=1", *SHORT],
    "sepreformer": SHORT,
}
# Not run by themselves, made of several runs, or another recipe on other data.
NO_STEP = "base", "speech", "music", "htdemucs_clean", "htdemucs_clean_tiny"
NO_STEP += "demo", "demo_music"
RECIPES = [path.stem for path in sorted(HPARAMS.glob("*.yaml"))]
RECIPES = [name for name in RECIPES if name not in NO_STEP]

# The first ones are what a step is for.
USEFUL = ("forward", "loss", "backward")
OTHERS = ("optimizer", "norm, clip", "choice", "batch", "data", "logs", "epochs")
OTHERS += ("saves", "rest")


class Clock:
    """Adds up the time of functions by part, each without what it calls of others."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.seconds: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.within: list[float] = []  # of the functions under way: spent in others

    def now(self) -> float:
        """Return processor seconds, or seconds once the GPU has done its work."""
        if self.device == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def timed(self, part: str, call: Callable) -> Callable:
        """Return a function that is timed as a part."""

        @functools.wraps(call)
        def run(*args: Any, **kwargs: Any) -> Any:
            start = self.now()
            self.within.append(0.0)
            try:
                return call(*args, **kwargs)
            finally:
                seconds = self.now() - start
                self.seconds[part] += seconds - self.within.pop()
                self.calls[part] += 1
                if self.within:
                    self.within[-1] += seconds

        return run

    def watch(self, owner: Any, **parts: str) -> None:
        """Time functions of a class or module from now on, by name and part."""
        for name, part in parts.items():
            setattr(owner, name, self.timed(part, getattr(owner, name)))


class Enough(Exception):
    """Ends the run after its epoch."""


def measure(recipe: str, options: Sequence[str], steps: int, device: str) -> dict:
    """Run a recipe here; return the milliseconds of a step by part."""
    clock, brain, whole, every = Clock(device), None, 0.0, 1

    def watched(batches: Any) -> Iterator[Any]:
        """Time how long each batch takes to come, and begin when all is warm."""
        nonlocal whole
        take = clock.timed("data", iter(batches).__next__)
        for _ in range(0 if recipe.startswith(tuple(MUSIC)) else UNTRAINED):
            take()  # by then most changes of speed have their filter
        for number in range(UNTIMED + steps):
            if number == UNTIMED:
                clock.seconds.clear()
                begin = clock.now()
            yield take()
        whole = clock.now() - begin

    def fit_batch(self: Any, batch: Any) -> Any:
        nonlocal brain, every
        if brain is None:
            brain = self
            kind = type(self)
            clock.watch(kind, compute_forward="forward", compute_objectives="loss")
            clock.watch(self.optimizer, step="optimizer")
            # Every point is timed; their share is that of the recipe.
            every, self.reporter.every = self.reporter.every, 1
        return step(self, batch)

    def on_epoch_end(self: Any, *arguments: Any) -> None:
        end(self, *arguments)
        raise Enough

    base: Any = Separation
    step, end = base.fit_batch, clock.timed("epochs", base.on_epoch_end)
    base.fit_batch, base.on_epoch_end = fit_batch, on_epoch_end
    agreed = distributed.agreed
    vars(distributed)["agreed"] = lambda bar: agreed(watched(bar))
    clock.watch(base, _norm_of_sum="norm, clip", optimizers_step="norm, clip")
    clock.watch(base, on_choice="choice", _log_batch="logs")
    clock.watch(recipes.step, choose="choice", masked_sum="loss", seed_step="batch")
    clock.watch(Chosen, read="choice")
    clock.watch(torch.Tensor, backward="backward")
    clock.watch(Batch, to="batch", zero_nonfinite="batch")
    clock.watch(RunningStatistics, begin_batch="batch", end_step="batch")
    clock.watch(EMA, update="optimizer")
    clock.watch(RunLog, scalars="points", audio="epochs", spectrogram="epochs")
    clock.watch(AtomicCheckpointer, save_and_keep_only="saves")
    clock.watch(AudioKeeper, keep="epochs")
    clock.watch(Reporter, validation="epochs")
    fixed = ["--N_epochs=1", "--num_workers=0", "--noprogressbar", f"--device={device}"]
    with contextlib.suppress(Enough):
        train.main([str(HPARAMS / f"{recipe}.yaml"), *options, *fixed])
    config: Any = vars(brain)["config"]
    examples = getattr(config, "examples_per_epoch", None) or EPOCH_EXAMPLES
    spent = clock.seconds
    # An epoch saves as often as this one did.
    epoch = (spent.pop("epochs") + spent["saves"]) * config.batch_size / examples
    save = spent.pop("saves") / clock.calls["saves"] / (60 * config.checkpoint_minutes)
    point, parts = spent.pop("points"), {part: spent[part] / steps for part in spent}
    parts["rest"] = (whole - point) / steps - sum(parts.values())
    parts["logs"] += point / steps / every
    parts["epochs"], parts["saves"] = epoch, save * whole / steps
    return {part: 1000 * seconds for part, seconds in parts.items()}


def arguments_of(recipe: str, folder: Path) -> list[str]:
    """Return data and size of a recipe's run."""
    few: list[str] = []
    if not recipe.endswith("_tiny"):
        few = next(few for name, few in SHALLOW.items() if recipe.startswith(name))
    if "_lora" in recipe:
        base = folder / re.sub("_lora(_5stem)?", "", recipe)
        if not base.exists():
            command = [sys.executable, "train.py", str(HPARAMS / f"{base.name}.yaml")]
            command += [*arguments_of(base.name, folder), f"--output_folder={base}"]
            run([*command, "--optimizer_step_limit=1", "--valid_every=0"], stdout=2)
        few = [*few, f"--pretrained={base}"]
        if recipe.startswith("htdemucs"):  # also those with five stems
            few += ["--sources=[drums,bass,other,vocals]", "--source_map=null"]
    values = [*few, f"--output_folder={tempfile.mkdtemp(dir=folder)}"]
    if not recipe.startswith(tuple(MUSIC)):
        return [*values, "--dataset=synthetic", f"--data_folder={folder / 'talkers'}"]
    songs.generate(folder / "songs", songs.Parameters())
    return [*values, f"--data_folder={folder / 'songs' / 'clean'}"]


def table(results: Results) -> list[str]:
    """Return a line for each recipe: milliseconds of a step, then percent of it."""
    names = ["ms a step", *USEFUL, *OTHERS, "not network or loss"]
    lines = [f"| recipe | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for recipe, turns in results.items():
        steps = [sum(parts.values()) for parts in turns]
        shares = percent(turns)
        rest = [sum(each) for each in zip(*(shares[p] for p in OTHERS), strict=True)]
        middles = [f"{statistics.median(shares[p]):.1f}" for p in (*USEFUL, *OTHERS)]
        cells = [f"{statistics.median(steps):.0f}", *middles, spread(rest, 1)]
        size = "" if recipe.endswith("_tiny") else " (few layers)"
        lines.append(f"| {recipe}{size} | {' | '.join(cells)} |")
    return lines


def percent(turns: Sequence[dict[str, float]]) -> dict[str, list[float]]:
    """Return the share of each part, turn by turn."""
    return {
        part: [100 * parts.get(part, 0.0) / sum(parts.values()) for parts in turns]
        for part in (*USEFUL, *OTHERS)
    }


def draw(results: Results, path: Path) -> None:
    """Draw a bar for each recipe, divided into the parts of a step."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 1.2 + 0.4 * len(results)), layout="constrained")
    axes, left = figure.subplots(), [0.0] * len(results)
    for number, part in enumerate((*USEFUL, *OTHERS)):
        shares = [statistics.median(percent(p)[part]) for p in results.values()]
        axes.barh(
            list(results),
            shares,
            left=left,
            label=part,
            color=colormaps["tab20"](number),
        )
        left = [begin + share for begin, share in zip(left, shares, strict=True)]
    axes.invert_yaxis()
    axes.set(xlabel="percent of a training step", xlim=(0, 100))
    figure.legend(loc="outside lower center", ncols=6, frameon=False)
    figure.savefig(path, dpi=110)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table and draw the picture."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("recipes", nargs="*", metavar="RECIPE", default=RECIPES)
    add("--steps", type=int, default=12, help="timed steps")
    add("--repeats", type=int, default=1, help="turns")
    add("--device", default="cpu")
    add("--picture", type=Path, help="draw the table into this PNG")
    add("--here", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.here:
        (recipe,) = options.recipes
        values = [*arguments_of(recipe, options.here)]
        values += [f"--optimizer_step_limit={UNTIMED + options.steps}"]
        parts = measure(recipe, values, options.steps, options.device)
        print(json.dumps(parts))
        return
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.step", f"--here={folder}"]
        command += [f"--steps={options.steps}", f"--device={options.device}"]
        sides = {name: partial(report, [*command, name]) for name in options.recipes}
        results = take_turns(sides, options.repeats)
    print("\n".join(table(results)))
    if options.picture:
        draw(results, options.picture)


if __name__ == "__main__":
    sys.exit(as_command(main))
