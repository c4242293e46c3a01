"""Compare our networks with the public reference code on a GPU.

    python -m benchmarks.gpu --seconds=420 --out=results/gpu.md
    python -m benchmarks.gpu --models mossformer2 --batches 1 4

A figure is the median time of several train steps (forward and backward, timed by CUDA
events after two untimed ones) and the peak of the memory that torch allocated in them.
All variants of a model and batch size take turns, twice. What does not fit into the
memory is written as such. `--seconds` bounds the whole table: cells that it leaves no
time for stay empty, and a line says how many.

Networks, sizes and references are those of `benchmarks.models`, which also says how to
install the references; without one the table has our rows alone, as for the networks of
`OURS`.
"""

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.models import SAMPLES, STEREO, build_ours, build_reference, forward
from modules.models.roformer import BSRoFormer, MelRoFormer
from modules.models.scnet import STEMS, SCNet
from modules.models.sepreformer import SepReformer
from modules.models.tf_locoformer import TFLocoformer

# Networks that have no reference here, at their published size, and the samples of an
# example.
OURS: dict[str, tuple[Callable[..., nn.Module], int]] = {
    "bs_roformer": (partial(BSRoFormer, STEMS, layers=8, mask_expansion=2), 8 * 44100),
    "mel_roformer": (partial(MelRoFormer, ["a"], mask_hidden_layers=2), 8 * 44100),
    "scnet": (SCNet, 11 * 44100),
    "tf_locoformer": (TFLocoformer, 4 * 8000),
    "sepreformer": (SepReformer, 4 * 8000),
}

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
    return OURS[model][1] if model in OURS else SAMPLES[model][True][-1]


def build(job: dict) -> nn.Module:
    """Build the network of a job."""
    is_reference = job["side"] == "reference"
    if job["model"] not in OURS:
        return build_reference(job) if is_reference else build_ours(job)
    if is_reference:
        raise SystemExit(f"benchmark: {job['model']} has no reference here")
    checkpointing = job.get("checkpointing", False)
    return OURS[job["model"]][0](activation_checkpointing=checkpointing)


class Cell:
    """One variant of one model: built once, timed at several batch sizes."""

    def __init__(self, model: str, variant: dict) -> None:
        self.job = {"model": model, "layers": None, "samples": samples_of(model)}
        self.job |= {"side": "ours", "precision": "fp32", **variant}
        torch.manual_seed(0)
        self.network = build(self.job).cuda().train()
        if variant.get("compiled"):
            self.network.compile()
        self.autocast = torch.autocast(
            "cuda", torch.bfloat16, enabled=variant.get("bf16", False)
        )

    def mixture(self, batch: int) -> Tensor:
        """Return noise [B, T], or [B, 2, T] for music."""
        stereo = self.job["model"] in STEREO or hasattr(self.network, "audio_channels")
        channels = (2,) if stereo else ()
        shape = (batch, *channels, self.job["samples"])
        return 0.1 * torch.randn(shape, device="cuda")

    def step(self, mixture: Tensor) -> None:
        """Run forward and backward."""
        self.network.zero_grad(set_to_none=True)
        with self.autocast:
            estimate = forward(self.network, mixture)
        estimate.float().abs().mean().backward()

    def measure(self, batch: int) -> tuple[float, float]:
        """Return the median seconds of a step and the peak of its memory in GB."""
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
        return statistics.median(seconds), torch.cuda.max_memory_allocated() / 1e9

    def flops(self) -> float:
        """Return the floating-point operations of one example's step."""
        with FlopCounterMode(display=False) as counter:
            self.step(self.mixture(1))
        return counter.get_total_flops()


def measure(cell: Cell, batch: int) -> tuple[float, float] | None:
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
    lines = [
        f"### {model}, {samples_of(model)} samples, train step, "
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}",
        "",
        "| variant | batch | ms a step | examples a second | over the reference "
        "in fp32 | peak GB | of the reference's |",
        "|---|---|---|---|---|---|---|",
    ]
    cells: dict[str, Cell] = {}
    for name in arguments.variants:
        try:
            cells[name] = Cell(model, VARIANTS[name])
        except SystemExit as missing:
            print(missing, file=sys.stderr)
    left_out = 0
    flops = next((c.flops() for n, c in cells.items() if "reference" not in n), 0.0)
    too_large: set[str] = set()
    for batch in arguments.batches:
        found: dict[str, list[tuple[float, float]]] = {}
        for turn in range(arguments.repeats):
            for name, cell in cells.items():
                if name in too_large:
                    continue
                if time.monotonic() > until:
                    left_out += turn == 0
                    continue
                figures = measure(cell, batch)
                if figures is None:
                    too_large.add(name)
                    lines.append(f"| {name} | {batch} | does not fit | | | | |")
                    continue
                found.setdefault(name, []).append(figures)
        best = {name: min(figures) for name, figures in found.items()}
        base = best.get("reference fp32")
        for name, (seconds, peak) in best.items():
            ratios = ["", ""]
            if base is not None:
                ratios = [f"{base[0] / seconds:.2f}", f"{peak / base[1]:.2f}"]
            rate = batch / seconds
            lines.append(
                f"| {name} | {batch} | {1000 * seconds:.1f} | {rate:.1f} "
                f"({rate * flops / 1e12:.0f} TFLOP/s) | {ratios[0]} "
                f"| {peak:.2f} | {ratios[1]} |"
            )
            print(lines[-1], file=sys.stderr, flush=True)
    if left_out:
        lines.append(f"\n{left_out} cells were left out for want of time.")
    return [*lines, ""]


def main(argv: list[str] | None = None) -> None:
    """Print a table for each model."""
    models = sorted({*SAMPLES, *OURS})
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
