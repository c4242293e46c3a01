"""Compare our networks with the public reference code on a GPU.

    python -m benchmarks.gpu --seconds=200 --out=results/gpu.md
    python -m benchmarks.gpu --models mossformer2 --batches 1 4
    python -m benchmarks.gpu --device=cpu --layers=1 --samples=8000     # a rehearsal

A figure is the median of several train steps (forward and backward, after two untimed
ones) and the peak of the memory that torch allocated for them and for the weights. All
variants of a model and batch size take turns (`benchmarks.pairs`). Below the table
stands about the largest batch that fits, by a straight line through the peaks of the
last two batches, and as many steps at that size as there is time for.

`--seconds` is shared out: a model may use what those before it left over, and a cell
takes at most `CELL` seconds. Cells that are missing are named, with the reason.

Compiled, last and beside the same without, are the blocks that repeat, each kind once.
Run `--variants "ours bf16, compiled"` for all models side by side before, and the table
finds them in the cache of the compiler.

Networks, sizes and references are those of `benchmarks.models`, which also says how to
install the references; without one the table has our rows alone.
"""

import argparse
import collections
import contextlib
import functools
import gc
import itertools
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.models import MODELS, build, forward, make_mixture
from benchmarks.pairs import Figures, header, rows, take_turns

# samples of an example, where not that of `benchmarks.models`
SAMPLES = dict.fromkeys(["bs_roformer", "mel_roformer"], 8 * 44100)
SAMPLES |= {"scnet": 11 * 44100, "tf_locoformer": 4 * 8000, "sepreformer": 4 * 8000}
KINDS = RATE, PEAK = "examples a second", "peak GB"

DISTRIBUTED, COMPILED = "ours bf16, DDP with one rank", "ours bf16, compiled"
# name in the table, arguments of the network and of the step
VARIANTS: dict[str, dict] = {
    "reference fp32": {"side": "reference", "plain_attention": True},
    "reference bf16": {"side": "reference", "bf16": True},
    "ours fp32": {},
    "ours bf16": {"bf16": True},
    "ours bf16, checkpointing": {"bf16": True, "checkpointing": True},
    DISTRIBUTED: {"bf16": True, "distributed": True},
    COMPILED: {"bf16": True, "compiled": True},
}
# of which these are measured at the largest batch that fits
AT_LARGEST = "reference bf16", "ours bf16, checkpointing", "ours bf16", "reference fp32"
# Steps of one cell: the untimed and three more, fewer where they take LONG seconds
# together, and up to MOST until SHORT seconds have passed.
UNTIMED, STEPS, MOST, SHORT, LONG = 2, 5, 30, 0.8, 4.0
CELL, GRACE = 60.0, 5.0  # seconds of a cell, and after the end of the model's share
MIDDLE = 8, 80  # tensors of a block that is compiled
ROOM = 0.9  # of the memory, for the largest batch


class Cell:
    """One variant of one model: built once, timed at several batch sizes."""

    def __init__(self, job: dict) -> None:
        self.job, self.device = job, torch.device(job["device"])
        torch.manual_seed(0)
        try:
            with self.device:  # which draws the weights faster
                network = build(job)
        except (RuntimeError, TypeError):  # a network that needs numpy's arrays
            network = build(job)
        self.network = network.to(self.device).train()
        if job.get("compiled"):
            compile_blocks(self.network)
        tensors = itertools.chain(network.parameters(), network.buffers())
        self.weights = sum(tensor.nbytes for tensor in tensors)
        if job.get("distributed"):
            self.network = one_rank(self.network)
        self.peaks: dict[int, int] = {}

    def run(self, batch: int, steps: int = 1) -> Figures:
        """Run at least so many steps, forward and backward; return their figures."""
        on_gpu, seconds = self.device.type == "cuda", list[float]()
        others = self.others()
        mixture = make_mixture(self.job)
        mixture = mixture.expand(batch, *mixture.shape[1:]).to(self.device).contiguous()
        half = torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.job.get("bf16", False)
        )
        while len(seconds) < steps or (steps > 1 and sum(seconds) < SHORT):
            if len(seconds) == MOST or (len(seconds) > 1 and sum(seconds) > LONG):
                break
            if len(seconds) == 1 and on_gpu:
                torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            with half:
                estimate = forward(self.network, mixture)
            estimate.float().abs().mean().backward()
            self.network.zero_grad(set_to_none=True)
            del estimate
            if on_gpu:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        timed = seconds[UNTIMED:] or seconds[1:] or seconds
        peak = torch.cuda.max_memory_allocated() - others if on_gpu else 0
        self.peaks[batch] = peak
        return {RATE: batch / statistics.median(timed), PEAK: peak / 1e9}

    def others(self) -> int:
        """Return the bytes on the GPU that other cells hold."""
        on_gpu = self.device.type == "cuda"
        return torch.cuda.memory_allocated() - self.weights if on_gpu else 0

    def flops(self) -> float:
        """Return the floating-point operations of one example's step."""
        with FlopCounterMode(display=False) as counter:
            self.run(1)
        return counter.get_total_flops()

    def largest(self) -> int:
        """Return about the largest batch that fits; 0 where that is unknown."""
        (few, low), (many, high) = ([(0, 0)] * 2 + sorted(self.peaks.items()))[-2:]
        if not 0 < low < high:
            return 0
        room = ROOM * torch.cuda.mem_get_info()[1] - self.others() - high
        return many + int(room * (many - few) / (high - low))


def one_rank(network: nn.Module) -> nn.Module:
    """Return the network as `torchrun` trains it, in a group of this process alone."""
    if not dist.is_initialized():
        dist.init_process_group(store=dist.HashStore(), rank=0, world_size=1)
    return nn.parallel.DistributedDataParallel(network)


def compile_blocks(network: nn.Module) -> None:
    """Compile the blocks of middle size that the network has several of."""
    torch._dynamo.config.recompile_limit = 64  # one for each size of a block
    kinds = collections.Counter(map(kind_of, network.modules()))
    inside: set[nn.Module] = set()
    for module in network.modules():
        kind = kind_of(module)
        container = isinstance(module, nn.ModuleList | nn.ModuleDict)
        if module in inside or container or kinds[kind] < 2:
            continue
        if MIDDLE[0] < len(kind) < MIDDLE[1]:
            module.compile()
            inside.update(module.modules())


def kind_of(block: nn.Module) -> tuple:
    """Return what two blocks have in common that share a compiled graph."""
    return type(block), *(weight.shape for weight in block.parameters())


def attempt(
    cell: Callable[[], Cell], batch: int, until: float, missing: list[str], what: str
) -> Figures | None:
    """Return a cell's figures; None, and why in `missing`, where there are none."""
    left = until - time.monotonic()
    if left < 0:
        missing.append(f"{what}: no time left")
        return None
    why, limit = "", min(CELL, left + GRACE)
    signal.setitimer(signal.ITIMER_REAL, limit, 5.0)  # an exception can get lost
    try:
        return cell().run(batch, STEPS)
    except torch.OutOfMemoryError:
        why = "does not fit"
    except TimeoutError:
        why = f"takes over {limit:.0f} s"
    except SystemExit as absent:  # a reference that is not installed
        why = str(absent)
    except Exception as fault:  # must not end the whole table
        first, *_ = str(fault).strip().split("\n")
        why = f"{type(fault).__name__}: {first[:120]}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        gc.collect()
        torch.cuda.empty_cache()
    missing.append(f"{what}: {why}")
    return None


def benchmark(model: str, arguments: argparse.Namespace, until: float) -> list[str]:
    """Measure one model until its time is over and return its lines of markdown."""
    samples = arguments.samples or SAMPLES.get(model, MODELS[model].samples[1])
    job = {"model": model, "samples": samples, "layers": arguments.layers}
    job |= {"side": "ours", "device": arguments.device}
    cell = functools.cache(lambda name: Cell(job | VARIANTS[name]))
    lines, missing, failed = list[str](), list[str](), set[str]()

    def table(cells: list[tuple[str, int]], turns: int) -> None:
        """Add the rows of variants with their batches; note which ones fail."""
        sides = {}
        for name, batch in cells:
            title = f"{name}, batch {batch}"
            given = partial(cell, name), batch, until, missing, title
            sides[title] = partial(attempt, *given)
        found = take_turns(sides, turns, (until - time.monotonic()) / 3)
        lines.extend(["", *header(KINDS), *rows("", found, KINDS)])
        failed.update(name for name, n in cells if not found[f"{name}, batch {n}"])

    def alive(names: Sequence[str]) -> list[str]:
        """Return which of the variants are wanted and have not failed."""
        return [n for n in names if n in arguments.variants and n not in failed]

    eager = [name for name in VARIANTS if name != COMPILED]
    for batch in arguments.batches:
        table([(name, batch) for name in alive(eager)], arguments.repeats)
    sizes = {name: cell(name).largest() for name in alive(AT_LARGEST)}
    flops = cell("ours bf16").flops() if "ours bf16" in sizes else 0
    last = arguments.batches[-1]
    lines += ["", f"About the largest batch that fits: {sizes}."]
    table([(name, size) for name, size in sizes.items() if size > last], 1)
    table([(name, last) for name in alive(["ours bf16", COMPILED])], 1)
    each = f"train step of {flops / 1e9:.0f} GFLOP an example"
    title = f"### {model}, {samples} samples, {each}"
    return [title, *lines, "", *(f"\n{line}" for line in missing), ""]


def machine(device: str) -> str:
    """Return a line about the device, and how both sides multiply float32."""
    name = torch.cuda.get_device_name() if device == "cuda" else device
    products = torch.get_float32_matmul_precision()
    convolutions = "TF32" if torch.backends.cudnn.allow_tf32 else "float32"
    return (
        f"{name}, torch {torch.__version__}; fp32 on both sides: matrix products at "
        f"{products!r} precision, cuDNN's convolutions in {convolutions}."
    )


@contextlib.contextmanager
def alarm() -> Iterator[None]:
    """End a cell that takes too long by a TimeoutError."""

    def stop(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    yield
    signal.signal(signal.SIGALRM, before)


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
    add("--batches", nargs="+", type=int, default=[1, 4])
    add("--repeats", type=int, default=2, help="turns, where there is time")
    add("--seconds", type=float, default=420.0, help="of the whole table")
    add("--device", choices=("cuda", "cpu"), default="cuda")
    add("--layers", type=int, help="of every network (default: as published)")
    add("--samples", type=int, help="length of an example (default: the model's)")
    add("--out", type=Path, help="also write the tables to this file")
    arguments = parser.parse_args(argv)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("benchmark: this machine has no CUDA device")
    start, lines = time.monotonic(), [machine(arguments.device), ""]
    for index, model in enumerate(arguments.models, 1):
        share = arguments.seconds * index / len(arguments.models)
        with alarm():
            lines += benchmark(model, arguments, start + share)
        print(f"{model} {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
        gc.collect()
        torch._dynamo.reset()
        if arguments.out:
            arguments.out.write_text("\n".join(lines))
    if dist.is_initialized():
        dist.destroy_process_group()
    print("\n".join(lines))


if __name__ == "__main__":
    main()
