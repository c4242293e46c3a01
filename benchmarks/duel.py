"""Train several recipes, or one with several settings, for equal CPU time and compare.

    OMP_NUM_THREADS=1 python -m benchmarks.duel --out=/tmp/duel --minutes=12 \
        --seeds 1 2 3 --side "tf=hparams/tf_locoformer_tiny.yaml" \
        --side "slow=hparams/sepformer_tiny.yaml --speed_changes=[95,100,105]" \
        -- --data_folder=wsj0mix/2speakers --base_folder_dm=wsj0/si_tr_s

A side is a name and a command line of `train.py`; what follows `--` goes to every side.
With `stock` before it the side is trained as SpeechBrain's recipe does
(`benchmarks/stock.py`; SepFormers only):
`--side "speechbrain=stock hparams/sepformer_tiny.yaml"`.
Two short runs say how many CPU seconds a step costs, data workers included. Then each
side trains as many steps as the minutes allow, in the epochs that its YAML names, and
is tested. Start-up, validations and the test are not counted. Only CPU time counts, so
that other jobs matter little. The same command again goes on after the last finished
run.

Scores are means over the test's examples and the seeds, with the standard error over
the examples (of their means over the seeds); the gain is over the first side, example
by example. Multiply-adds are those of one second of audio: torch's counter, and LSTMs
by their formula; Fourier transforms are not counted.
"""

import argparse
import csv
import json
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import pairs
from benchmarks.adapt import mean_and_error
from modules.runtime.cli import as_command
from modules.runtime.files import write_text
from recipes.config.load import load

STOCK = "stock"
PROBES = (30, 90)  # steps of the two short runs
SCORES = ("si_snr_i", "nsdr")  # of an example; a recipe has one of them
SECONDS = 4  # of audio whose multiply-adds are counted


def train(line: Sequence[str], *further: str) -> float:
    """Run `train.py` or `stock`; return the CPU seconds of its processes."""
    program = ["-m", "benchmarks.stock"] if line[0] == STOCK else ["train.py"]
    command = [sys.executable, *program, *recipe_of(line), *further, "--noprogressbar"]
    return pairs.run(command, stdout=subprocess.DEVNULL)[pairs.CPU]


def recipe_of(line: Sequence[str]) -> list[str]:
    """Return the YAML and the options of a side."""
    return [*line[1:]] if line[0] == STOCK else [*line]


def step_cost(line: Sequence[str], folder: Path) -> float:
    """Return the CPU seconds of a training step: what more steps cost more."""
    kept = folder / "step.json"
    if not kept.is_file():
        few, many = (
            train(
                line,
                f"--output_folder={folder / f'{steps}_steps'}",
                f"--optimizer_step_limit={steps}",
                *("--valid_every=0", "--n_audio_to_save=0"),
            )
            for steps in PROBES
        )
        write_text(kept, json.dumps((many - few) / (PROBES[1] - PROBES[0])))
    return json.loads(kept.read_text(encoding="utf-8"))


def run(line: Sequence[str], folder: Path, minutes: float, seed: int) -> dict:
    """Train and test one side within its CPU minutes; return figures, kept as JSON."""
    kept = folder / str(seed) / "figures.json"
    if kept.is_file():
        return json.loads(kept.read_text(encoding="utf-8"))
    seconds = step_cost(line, folder)
    _, hparams, _ = load([*recipe_of(line), f"--output_folder={folder / 'unused'}"])
    steps = int(60 * minutes / seconds / hparams["N_epochs"])
    train(
        line,
        f"--output_folder={kept.parent}",
        f"--seed={seed}",
        f"--examples_per_epoch={steps * hparams['batch_size']}",
        "--valid_every=2",
    )
    with open(kept.parent / "test_results.csv", newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    column = next(header.index(name) for name in SCORES if name in header)
    network = hparams["separator"]
    result = {
        "steps": steps * hparams["N_epochs"],
        "seconds_a_step": seconds,
        "batch_size": hparams["batch_size"],
        "parameters": sum(weight.numel() for weight in network.parameters()),
        "multiply_adds": multiply_adds(network, hparams["sample_rate"]),
        "score": header[column],
        "scores": {row[0]: float(row[column]) for row in rows},
    }
    write_text(kept, json.dumps(result, indent=1))
    return result


@torch.no_grad()
def multiply_adds(network: nn.Module, sample_rate: int) -> float:
    """Return the multiply-adds that a second of audio costs."""
    recurrent = [0.0]

    def count(layer: nn.LSTM, inputs: tuple[Tensor, ...], _: object) -> None:
        positions = inputs[0].numel() // inputs[0].shape[-1]
        recurrent[0] += positions * sum(w.numel() for w in layer.parameters())

    for layer in network.eval().modules():
        if isinstance(layer, nn.LSTM):
            layer.register_forward_hook(count)
    music = hasattr(network, "sources")
    mix = torch.randn(1, *([2] if music else []), SECONDS * sample_rate)
    with FlopCounterMode(display=False) as counter:
        network(mix)
    return (counter.get_total_flops() / 2 + recurrent[0]) / SECONDS


def table(results: dict[str, list[dict]]) -> list[str]:
    """Return the table's lines; `results` are those of each side's seeds."""
    means = {
        name: {
            key: statistics.mean(one["scores"][key] for one in runs)
            for key in runs[0]["scores"]
        }
        for name, runs in results.items()
    }
    first = next(iter(means.values()))
    lines = [
        "| side | score, dB | by seed | gain, dB | parameters | multiply-adds a second "
        "| CPU s a step | examples |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, runs in results.items():
        one, by_seed = runs[0], [statistics.mean(r["scores"].values()) for r in runs]
        gains = [value - first[key] for key, value in means[name].items()]
        cells = [
            name,
            mean_and_error([*means[name].values()]),
            ", ".join(f"{value:.2f}" for value in by_seed),
            mean_and_error(gains) if means[name] is not first else "",
            f"{one['parameters'] / 1e6:.2f} M",
            f"{one['multiply_adds'] / 1e9:.2f} G",
            f"{one['seconds_a_step']:.3f}",
            f"{one['steps'] * one['batch_size']}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def parse(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None
) -> tuple[argparse.Namespace, list[str]]:
    """Return the options, and what follows `--`, which goes to every training."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    cut = given.index("--") if "--" in given else len(given)
    return parser.parse_args(given[:cut]), given[cut + 1 :]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.duel",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--out", type=Path, required=True)
    add("--minutes", type=float, default=12, help="CPU minutes of a training")
    add("--seeds", type=int, nargs="+", default=[1])
    add("--side", action="append", required=True, help="NAME=YAML [--key=value ...]")
    options, further = parse(parser, arguments)
    results: dict[str, list[dict]] = {}
    for seed in options.seeds:
        for side in options.side:
            name, _, line = side.partition("=")
            words = [*shlex.split(line), *further]
            result = run(words, options.out.absolute() / name, options.minutes, seed)
            results.setdefault(name, []).append(result)
            score = statistics.mean(result["scores"].values())
            print(f"{name}, seed {seed}: {result['score']} {score:.2f}", flush=True)
    print("\n".join(table(results)))


if __name__ == "__main__":
    sys.exit(as_command(main))
