"""What the page to listen to costs a test.

    OMP_NUM_THREADS=1 python -m benchmarks.listen [--examples=300] [--kept=20]

The examples are 4 s of two modulated noises at 8 kHz: pictures and files of noise are
the largest. They are separated by the network of `hparams/mossformer2_tiny.yaml` with
random weights and scored as at a test; `--kept` of them get players, as with
`n_audio_to_save`. The page is made in turn with that, from what was separated first.
"""

import argparse
import tempfile
from pathlib import Path

import torch

from benchmarks.pairs import CPU, call_each, header, rows
from modules.metrics.scores import score_example
from modules.models.mossformer2 import MossFormer2
from recipes.evaluation import AudioKeeper
from recipes.speech import SpeechSeparation

RATE, SECONDS, SEED = 8000, 4, 1234


def measure(examples: int, kept: int, turns: int, folder: Path) -> list[str]:
    """Return a table of what separating and scoring take, and what the page takes."""
    torch.manual_seed(SEED)
    size = {"channels": 64, "layers": 4, "kernel_size": 32, "memory_channels": 64}
    network = MossFormer2(**size, dropout=0.0).eval()
    t_T = torch.arange(SECONDS * RATE) / RATE
    swell_ST = torch.stack([(2 * t_T).sin(), (3 * t_T).cos()])
    targets = [0.1 * swell_ST * torch.randn(2, len(t_T)) for _ in range(examples)]
    estimates, scores = [torch.empty(0)] * examples, [{}] * examples

    @torch.no_grad()
    def test() -> None:
        for number, target_ST in enumerate(targets):
            mix_T = target_ST.sum(0)
            estimates[number] = est_ST = network(mix_T[None])[0]
            scored = score_example(est_ST, target_ST, mix_T, RATE)
            scores[number] = {"id": f"mixture {number}", **scored}

    def page() -> None:
        hear = SpeechSeparation.to_hear
        keeper = AudioKeeper(folder, None, 1, RATE, kept, ((), ()), to_hear=hear)
        for number, target_ST in enumerate(targets[:kept]):
            tracks = keeper._tracks(target_ST.sum(0), estimates[number], target_ST)
            keeper.page.add(f"mixture {number}", tracks)
        keeper.write_page(scores, "si_snr")

    results = call_each({"separating and scoring": test, "the page": page}, turns)
    size_MB = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 1e6
    title = f"{examples} examples, {kept} with players ({size_MB:.1f} MB): "
    return [*header([CPU]), *rows(title, results, [CPU])]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=300)
    parser.add_argument("--kept", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=2, help="turns")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        lines = measure(options.examples, options.kept, options.repeats, Path(name))
    print("\n".join(lines))
