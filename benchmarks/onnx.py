"""Compare a network as ONNX with torch: difference, and CPU seconds in one thread.

    python -m benchmarks.onnx sepformer mossformer2 htdemucs [--layers=2]

The networks have their published sizes and random weights, with `--layers` fewer layers
of a kind. Both sides separate the same noise in turn; the medians of three are printed.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import onnxruntime
import torch
from torch import nn

from benchmarks.pairs import CPU, call_each, median, ratio
from modules.models.htdemucs import HTDemucs
from modules.models.mossformer2 import MossFormer2
from modules.models.sepformer import SepFormer
from modules.weights.onnx_file import ONNX_FILE, write_onnx

STEMS = ["drums", "bass", "other", "vocals"]
NETWORKS: dict[str, Callable[[int | None], nn.Module]] = {
    "sepformer": lambda n: SepFormer(intra_layers=n or 8, inter_layers=n or 8),
    "mossformer2": lambda n: MossFormer2(layers=n or 24),
    "htdemucs": lambda n: HTDemucs(STEMS, t_layers=n or 5),
}


@torch.no_grad()
def main(arguments: Sequence[str]) -> None:
    """Print a row of RESULTS.md for each network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="+", choices=NETWORKS)
    parser.add_argument("--layers", type=int)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    for name in given.networks:
        torch.manual_seed(1234)
        model = NETWORKS[name](given.layers).eval()
        is_music = hasattr(model, "segment")
        audio = float(getattr(model, "segment", 4))
        rate = getattr(model, "sample_rate", 8000)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, ONNX_FILE)
            difference = write_onnx(path, model, {"sample_rate": rate})
            size = path.stat().st_size / 1e6
            session = onnxruntime.InferenceSession(path, options)
        mixture = torch.randn(1, *([2] if is_music else []), round(audio * rate))
        feed = {"mixture": mixture.numpy()}
        works = {
            "torch": partial(model, mixture),
            "ONNX": partial(session.run, None, feed),
        }
        results = call_each(works, 3)
        ours, theirs = (f"{median(results, side, CPU):.2f}" for side in works)
        print(
            f"| {name} | {audio:g} s | {size:.0f} | {difference:.1e} | {ours} | "
            f"{theirs} | {ratio(results, 'ONNX', 'torch', CPU)} |",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
