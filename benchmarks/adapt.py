"""Compare ways to adapt a trained HTDemucs to other stems.

A base on four stems (960 steps, about 10 minutes on two cores), and the arms (about
20 minutes):

    OMP_NUM_THREADS=1 torchrun --standalone --nproc_per_node=2 train.py \
        hparams/htdemucs_tiny.yaml --data_folder=musdb18hq \
        --output_folder=results/base --sample_rate=22050 --channels=8 --seed=1 \
        --valid_tracks=1 --valid_every=2 --examples_per_epoch=1280 --n_audio_to_save=0 \
        --lr_scheduler="{epochs: [4, 2], lr: [0.002, 0.0005], quantile: [1, 1]}"
    OMP_NUM_THREADS=2 python -m benchmarks.adapt --base=results/base \
        --data_folder=fivestem --out=results/adapt --steps=400 --seed=1 \
        --sample_rate=22050 --channels=8

From one pretrained model, each arm is a run of `train.py` in a process of its own, one
after another, with the same steps on the same examples in the same order:

    before      nothing trains: new stems are the old ones that they start from
    full        everything trains
    uniform, heuristic, gradient    LoRA of each rank mode, and the output layers
    outputs     only the output layers, which depend on the number of sources

What trains fully and the ranks are those of `--recipe`. `--lr=0.001 full=0.0003` sets
the rate of all arms and that of one. Any other `--key=value` goes to every run. Nothing
is chosen by the scores: tested are the weights after the last step. The same command
again goes on after the last finished arm.

Scores are means over the test tracks with their standard error; the gain is over
`before`, track by track. Peak memory is the resident memory of the whole process (of
`before`: of the test alone); seconds per step are the median over the run, with data.
The file is `adapters.safetensors`: all that has to be kept beside the pretrained model.
"""

import argparse
import csv
import json
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import pairs
from benchmarks.pairs import ROOT
from modules.lora.files import read_lora
from modules.runtime.files import write_text
from modules.weights.export import export, load_exported

ARMS = {
    "before": ["--test_only"],
    "full": ["--train_fully=['*']"],
    "uniform": ["--lora_mode=uniform"],
    "heuristic": ["--lora_mode=heuristic"],
    "gradient": ["--lora_mode=gradient"],
    "outputs": ["--layer_ranks={'*': 0}"],
}
LOGGED = 20  # points of a run's curves
FIGURES = "measured.json"


def command_of(arm: str, options: argparse.Namespace, further: list[str]) -> list[str]:
    """Return the command line of an arm, as a user would type it."""
    rates = options.lr
    rate = rates.get(arm, rates.get(""))
    batch = options.batch_size
    return [
        sys.executable,
        "train.py",
        str(options.recipe.resolve()),
        f"--data_folder={options.data_folder.resolve()}",
        f"--pretrained={options.base.resolve()}",
        f"--output_folder={options.out.resolve() / arm}",
        f"--seed={options.seed}",
        f"--batch_size={batch}",
        # One epoch of all steps: validated once, so that there is nothing to choose.
        f"--examples_per_epoch={options.steps * batch}",
        "--lr_scheduler={epochs: [1]}",
        f"--log_every={max(1, options.steps // LOGGED)}",
        "--n_audio_to_save=0",
        "--tensorboard=False",
        "--segments_per_call=1",  # else a test may need more memory than training
        *([f"--lr={rate}"] if rate is not None else []),
        *further,
        *ARMS[arm],
    ]


def run(arm: str, options: argparse.Namespace, further: list[str]) -> dict:
    """Train and test an arm, unless it is done; return its figures."""
    folder = options.out / arm
    command = command_of(arm, options, further)
    done = folder / FIGURES
    if done.is_file():
        figures = json.loads(done.read_text(encoding="utf-8"))
        if figures["command"] != command[1:]:
            sys.exit(
                f"error: {folder} was measured by another command: give another --out, "
                "or remove the folder"
            )
        return figures
    print(" ".join(command[1:]), file=sys.stderr)
    measured = pairs.run(command, stdout=2)  # stderr, as here
    figures = {
        "command": command[1:],
        "lr": rate_in(folder / "hyperparams.yaml"),
        "peak_mb": measured[pairs.MEMORY],
        "seconds": seconds_per_step(folder / "curves.csv", options.batch_size),
        **trained(folder),
    }
    write_text(done, json.dumps(figures, indent=1))
    return figures


def seconds_per_step(curves: Path, batch_size: int) -> float | None:
    """Return the median over the logged points of a run; None without training."""
    if not curves.is_file():
        return None
    with open(curves, newline="", encoding="utf-8") as file:
        rates = [
            float(row["value"])
            for row in csv.DictReader(file)
            if row["name"] == "examples_per_second"
        ]
    return batch_size / statistics.median(rates) if rates else None


def rate_in(hyperparams: Path) -> float:
    """Return the highest learning rate of a run."""
    lines = hyperparams.read_text(encoding="utf-8").splitlines()
    return float(next(line for line in lines if line.startswith("lr:"))[3:])


def trained(folder: Path) -> dict[str, float]:
    """Return the share of the model that trained, and the size of its file."""
    adapters = folder / "adapters.safetensors"
    numbers = sum(tensor.numel() for tensor in read_lora(adapters)[2].values())
    model = load_exported(export(folder, folder / "model"))
    total = sum(parameter.numel() for parameter in model.parameters())
    return {"share": numbers / total, "file_mb": adapters.stat().st_size / 1e6}


def scores_of(folder: Path) -> dict[str, dict[str, float]]:
    """Return the metrics of each test track."""
    path = folder / "test_results.csv"
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {
        row["id"]: {name: float(row[name]) for name in ("nsdr", "sdr")} for row in rows
    }


def mean_and_error(values: Sequence[float], places: int = 2) -> str:
    """Write `mean ± standard error of the mean`; one value has no error."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:.{places}f}"
    error = statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:.{places}f} ± {error:.{places}f}"


def table(
    figures: Mapping[str, Mapping], scores: Mapping[str, Mapping[str, Mapping]]
) -> list[str]:
    """Return the results as lines of Markdown.

    Arguments
    ---------
    figures : Mapping[str, Mapping]
        By arm: `lr`, `share`, `peak_mb`, `file_mb`, `seconds`.
    scores : Mapping[str, Mapping[str, Mapping]]
        By arm and track: `nsdr` and `sdr` in dB.
    """
    lines = [
        "| arm | lr | nSDR | gain | SDR | trains | peak MB | file MB | s / step |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for arm, entry in figures.items():
        tracks = scores[arm]
        gain = ""
        if arm != "before" and "before" in scores:
            before = scores["before"]
            gain = mean_and_error(
                [tracks[t]["nsdr"] - before[t]["nsdr"] for t in tracks]
            )
        trains = arm != "before"
        cells = [
            arm,
            f"{entry['lr']:g}" if trains else "",
            mean_and_error([row["nsdr"] for row in tracks.values()]),
            gain,
            mean_and_error([row["sdr"] for row in tracks.values()]),
            f"{entry['share']:.1%}" if trains else "0",
            f"{entry['peak_mb']:.0f}",
            f"{entry['file_mb']:.2f}" if trains else "",
            "" if entry["seconds"] is None else f"{entry['seconds']:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def rate_of(text: str) -> tuple[str, float]:
    """Read `0.001` or `full=0.001` as (arm or nothing, rate)."""
    arm, equals, value = text.rpartition("=")
    if equals and arm not in ARMS:
        raise argparse.ArgumentTypeError(f"{arm!r} is none of {', '.join(ARMS)}")
    return arm, float(value)


def parse(argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """Return our options, and the arguments that go to every run."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.adapt",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--base", type=Path, required=True, help="run or folder of the trained model")
    add("--data_folder", type=Path, required=True)
    add("--out", type=Path, required=True, help="folder of the runs and the table")
    add("--recipe", type=Path, default=ROOT / "hparams" / "htdemucs_lora_tiny.yaml")
    add("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    add("--steps", type=int, default=300)
    add("--batch_size", type=int, default=4)
    add("--seed", type=int, default=1)
    add("--lr", type=rate_of, nargs="+", default=[], metavar="[ARM=]RATE")
    options, further = parser.parse_known_args(argv)
    for argument in further:
        if not argument.startswith("--") or "=" not in argument:
            parser.error(f"{argument!r}: write --key=value")
    if options.steps < 1 or options.batch_size < 1:
        parser.error("--steps and --batch_size must be 1 or more")
    options.lr = dict(options.lr)
    return options, further


def main(argv: Sequence[str] | None = None) -> None:
    """Run the arms, print the table and write it beside them."""
    options, further = parse(argv)
    if not options.base.exists():
        sys.exit(f"error: --base={options.base} does not exist")
    figures, scores = {}, {}
    for arm in options.arms:
        figures[arm] = run(arm, options, further)
        scores[arm] = scores_of(options.out / arm)
    lines = [
        f"{options.steps} steps of {options.batch_size} examples, seed {options.seed}, "
        f"{len(next(iter(scores.values())))} test tracks, "
        f"{os.environ.get('OMP_NUM_THREADS', 'all')} threads",
        "",
        *table(figures, scores),
    ]
    text = "\n".join(lines) + "\n"
    write_text(options.out / "table.md", text)
    print(text)


if __name__ == "__main__":
    main()
