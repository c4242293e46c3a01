"""Compare our networks with the public reference code on a GPU.

    python -m benchmarks.gpu --seconds=420 --out=results/gpu.md
    python -m benchmarks.gpu --models mossformer2 --batches 1 4

A figure is the median time of several train steps (forward and backward, timed by CUDA
events after two untimed ones) and the peak of the memory that torch allocated in them.
All variants of a model and batch size take turns (`benchmarks.pairs`). What does not
fit into the memory is written as such. `--seconds` bounds the whole table: cells that
it leaves no time for stay empty, and a line says how many.

Networks, sizes and references are those of `benchmarks.models`, which also says how to
install the references; without one the table has our rows alone.
"""

import argparse
import gc
import statistics
import sys
import time
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.models import MODELS, build, forward, make_mixture
from benchmarks.pairs import Figures, header, rows, take_turns

# samples of an example, where not that of `benchmarks.models`
SAMPLES = dict.fromkeys(["bs_roformer", "mel_roformer"], 8 * 44100)
SAMPLES |= {"scnet": 11 * 44100, "tf_locoformer": 4 * 8000, "sepreformer": 4 * 8000}
MS, PEAK = "ms a step", "peak GB"

# name in the table, arguments of the network and of the step
VARIANTS = {
    "reference fp32": {"side": "reference"},
    "reference bf16": {"side": "reference", "bf16": True},
    "ours fp32": {},
    "ours bf16": {"bf16": True},
    "ours bf16, checkpointing": {"bf16": True, "checkpointing": True},
    "ours bf16, compiled": {"bf16": True, "compiled": True},
}
# Steps of one cell: at least the first, then until the seconds have passed.
STEPS, SECONDS = 3, 0.8
UNTIMED = 2


def samples_of(model: str) -> int:
    """Return the length of an example."""
    return SAMPLES.get(model, MODELS[model].samples[1])


class Cell:
    """One variant of one model: built once, timed at several batch sizes."""

    def __init__(self, model: str, variant: dict) -> None:
        self.job = {"model": model, "layers": None, "samples": samples_of(model)}
        self.job |= {"side": "ours", **variant}
        torch.manual_seed(0)
        self.network = build(self.job).cuda().train()
        if variant.get("compiled"):
            self.network.compile()
        self.autocast = torch.autocast(
            "cuda", torch.bfloat16, enabled=variant.get("bf16", False)
        )

    def mixture(self, batch: int) -> Tensor:
        """Return noise [B, T], or [B, 2, T] for music."""
        mixture = make_mixture(self.job)
        return mixture.expand(batch, *mixture.shape[1:]).cuda().contiguous()

    def step(self, mixture: Tensor) -> None:
        """Run forward and backward."""
        self.network.zero_grad(set_to_none=True)
        with self.autocast:
            estimate = forward(self.network, mixture)
        estimate.float().abs().mean().backward()

    def measure(self, batch: int) -> Figures:
        """Return the median time of a step and the peak of its memory."""
        mixture = self.mixture(batch)
        for _ in range(UNTIMED):
            self.step(mixture)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        seconds: list[float] = []
        while len(seconds) < STEPS or (sum(seconds) < SECONDS and len(seconds) < 30):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            self.step(mixture)
            end.record()
            end.synchronize()
            seconds.append(start.elapsed_time(end) / 1000)
        peak = torch.cuda.max_memory_allocated() / 1e9
        return {MS: 1000 * statistics.median(seconds), PEAK: peak}

    def flops(self) -> float:
        """Return the floating-point operations of one example's step."""
        with FlopCounterMode(display=False) as counter:
            self.step(self.mixture(1))
        return counter.get_total_flops()


def measure(cell: Cell, batch: int) -> Figures | None:
    """Return a cell's figures; None where the memory does not suffice."""
    try:
        return cell.measure(batch)
    except torch.OutOfMemoryError:
        cell.network.zero_grad(set_to_none=True)
        return None
    finally:
        gc.collect()
        torch.cuda.empty_cache()


def benchmark(model: str, arguments: argparse.Namespace, until: float) -> list[str]:
    """Measure one model until its time is over and return its lines of markdown."""
    cells: dict[str, Cell] = {}
    for name in arguments.variants:
        try:
            cells[name] = Cell(model, VARIANTS[name])
        except SystemExit as missing:
            print(missing, file=sys.stderr)
    flops = next((c.flops() for n, c in cells.items() if "reference" not in n), 0.0)
    lines = [
        f"### {model}, {samples_of(model)} samples, train step of {flops / 1e9:.0f} "
        f"GFLOP an example, {torch.cuda.get_device_name()}, torch {torch.__version__}",
        "",
        *header((MS, PEAK)),
    ]
    left_out = 0
    for batch in arguments.batches:
        if time.monotonic() > until:
            left_out += len(cells)
            continue
        sides = {name: partial(measure, cell, batch) for name, cell in cells.items()}
        found = take_turns(sides, arguments.repeats, until - time.monotonic())
        lines += rows(f"batch {batch}, ", found, (MS, PEAK))
        for name in (name for name, figures in found.items() if not figures):
            lines.append(f"| batch {batch}, {name}: does not fit | | | | |")
            del cells[name]  # nor does a larger batch
    if left_out:
        lines.append(f"\n{left_out} cells were left out for want of time.")
    return [*lines, ""]


def main(argv: list[str] | None = None) -> None:
    """Print a table for each model."""
    models = list(MODELS)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--models", nargs="+", choices=models, default=models)
    add("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    add("--batches", nargs="+", type=int, default=[1, 4, 16, 64])
    add("--repeats", type=int, default=2, help="turns of all variants")
    add("--seconds", type=float, default=420.0, help="of the whole table")
    add("--out", type=Path, help="also write the tables to this file")
    arguments = parser.parse_args(argv)
    if not torch.cuda.is_available():
        raise SystemExit("benchmark: this machine has no CUDA device")
    start, lines = time.monotonic(), []
    for index, model in enumerate(arguments.models, 1):
        share = arguments.seconds * index / len(arguments.models)
        lines += benchmark(model, arguments, start + share)
        gc.collect()
        torch.cuda.empty_cache()
        if arguments.out:
            arguments.out.write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
