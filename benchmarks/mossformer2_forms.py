"""What each operation of MossFormer2 that is written for the CPU gains by itself.

The whole network runs as it is (A) and with one operation in its plain form (B), turn
by turn in one process, on 2 s at 8 kHz. The processor time of B over that of A says
what the form gains.

    OMP_NUM_THREADS=1 python -m benchmarks.mossformer2_forms
"""

import argparse
from collections.abc import Callable
from unittest import mock

import torch
from torch import Tensor

from benchmarks.pairs import CPU, call_each, ratio
from modules.models import mossformer2
from modules.models.mossformer2 import MossFormer2

SAMPLES = 16000


def plain(operation: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return the operation in the form that other devices take."""

    def call(*arguments: object, **options: object) -> Tensor:
        with mock.patch.object(mossformer2, "_fast_form", lambda x: False):
            return operation(*arguments, **options)

    return call


def autograd_depthwise(x_BLC: Tensor, weight_CK: Tensor, skip: bool = False) -> Tensor:
    """Compute `depthwise` forward as on the CPU, and leave the backward to PyTorch."""
    y_BLC = mossformer2._convolve_last(x_BLC.contiguous(), weight_CK)
    return x_BLC + y_BLC if skip else y_BLC


CHANGES = {
    "depthwise": ("depthwise", plain(mossformer2.depthwise)),
    "depthwise, its backward": ("depthwise", autograd_depthwise),
    "paired_depthwise": ("paired_depthwise", plain(mossformer2.paired_depthwise)),
    "gated_attention": ("gated_attention", plain(mossformer2.gated_attention)),
}


def ratio_of(work: Callable[[], None], change: tuple[str, Callable], turns: int) -> str:
    """Return the processor time with the change over that without."""

    def changed() -> None:
        with mock.patch.object(mossformer2, *change):
            work()

    return ratio(call_each({"": work, "changed": changed}, turns), "changed", "", CPU)


def main(arguments: list[str] | None = None) -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--memory_channels", type=int, default=64)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    model = MossFormer2(
        options.channels,
        options.channels,
        options.layers,
        memory_channels=options.memory_channels,
    )
    mixture_BT = torch.randn(1, SAMPLES)

    def infer() -> None:
        with torch.no_grad():
            model.eval()(mixture_BT)

    def train() -> None:
        model.zero_grad(set_to_none=True)
        model.train()(mixture_BT).square().mean().backward()

    print("| form | inference | train step |\n|---|---|---|")
    for name, change in CHANGES.items():
        cells = [ratio_of(work, change, options.repeats) for work in (infer, train)]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
