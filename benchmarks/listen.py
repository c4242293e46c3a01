"""What the page to listen to costs a test.

    OMP_NUM_THREADS=1 python -m benchmarks.listen [--examples=300] [--kept=20]

The examples are 4 s of two modulated noises at 8 kHz: pictures and files of noise are
the largest. They are separated by the network of `hparams/mossformer2_tiny.yaml` with
random weights and scored as at a test; `--kept` of them get players, as with
`n_audio_to_save`. The figures are seconds of one thread's CPU time, so that other jobs
matter little.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch

from modules.metrics.scores import score_example
from modules.models.mossformer2 import MossFormer2
from recipes.evaluation import AudioKeeper
from recipes.speech import SpeechSeparation

RATE, SECONDS, SEED = 8000, 4, 1234


@torch.no_grad()
def measure(examples: int, kept: int, folder: Path) -> None:
    """Print what separating and scoring take, and what the page takes."""
    torch.manual_seed(SEED)
    size = {"channels": 64, "layers": 4, "kernel_size": 32, "memory_channels": 64}
    network = MossFormer2(**size, dropout=0.0).eval()
    names: tuple[tuple[str, ...], ...] = ((), ())
    keeper = AudioKeeper(
        folder, None, 1, RATE, kept, names, to_hear=SpeechSeparation.to_hear
    )
    t_T = torch.arange(SECONDS * RATE) / RATE
    rows, test, page = [], 0.0, 0.0
    for number in range(examples):
        swell_ST = torch.stack([(2 * t_T).sin(), (3 * t_T).cos()])
        target_ST = 0.1 * swell_ST * torch.randn(2, len(t_T))
        mix_T = target_ST.sum(0)
        begin = time.process_time()
        est_ST = network(mix_T[None])[0]
        scores = score_example(est_ST, target_ST, mix_T, RATE)
        middle = time.process_time()
        id_ = f"mixture {number}"
        if number < kept:
            keeper.page.add(id_, keeper._tracks(mix_T, est_ST, target_ST))
        test, page = test + middle - begin, page + time.process_time() - middle
        rows.append({"id": id_, **scores})
    begin = time.process_time()
    keeper.write_page(rows, "si_snr")
    page += time.process_time() - begin
    size_MB = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 1e6
    print(f"{examples} examples, {kept} with players")
    print(f"separating and scoring {test:8.2f} s")
    print(f"the page               {page:8.2f} s, {page / test:.1%}, {size_MB:.1f} MB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=300)
    parser.add_argument("--kept", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        measure(options.examples, options.kept, Path(name))
