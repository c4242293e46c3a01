"""Train a SepFormer as SpeechBrain's recipe does, with SpeechBrain's own classes.

    python -m benchmarks.stock hparams/sepformer_tiny.yaml --data_folder=... [--KEY=...]

The recipe is not in SpeechBrain's package. This is its training rebuilt: the network of
`speechbrain.lobes.models.dual_path`, `get_si_snr_with_pitwrapper`, dynamic mixing as in
`benchmarks.mixing` (whose draws do not come from counters), threshold, clipping, a rate
that is set after every epoch. The size, the first weights, the data, the schedule and
the options are those of a command line of `train.py`, so that `benchmarks.duel` can
compare the two. Dynamic mixing from single utterances is all it knows.
"""

import copy
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from speechbrain import Brain, Stage
from speechbrain.inference.separation import SepformerSeparation
from speechbrain.nnet.losses import get_si_snr_with_pitwrapper
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.mixing import SpeechBrainMixing, copy_at_8k
from modules.data.manifest import Row, read_manifest
from modules.data.mixtures import ManifestDataset
from modules.data.utterances import UtterancePool
from modules.metrics.scores import score_example
from modules.runtime.cli import as_command
from modules.runtime.files import write_text
from modules.runtime.tables import write_table
from modules.weights.runs import read_run
from modules.weights.speechbrain_files import write_hub_files
from recipes.config.load import load
from recipes.evaluation import make_manifests


class Mixtures(Dataset):
    """As many new mixtures as an epoch has; each worker draws its own."""

    def __init__(self, mixing: SpeechBrainMixing, length: int) -> None:
        self.mixing, self.length = mixing, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.mixing(index)


class Stock(Brain):
    """The training step of SpeechBrain's separation recipes."""

    best: tuple[float, dict[str, dict[str, Tensor]]] = (-np.inf, {})

    def separate(self, mix_BT: Tensor) -> Tensor:
        """Return the estimates [B, T, S]."""
        network = self.modules
        features = network.encoder(mix_BT)
        masked_SBCF = network.masknet(features) * features
        est_SBT = torch.stack([network.decoder(one) for one in masked_SBCF])
        missing = mix_BT.shape[1] - est_SBT.shape[2]
        est_SBT = torch.nn.functional.pad(est_SBT, (0, missing))
        return est_SBT.permute(1, 2, 0)

    def fit_batch(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Step on the mixtures that are not separated well already."""
        mix_BT, src_BST = batch
        loss_B = get_si_snr_with_pitwrapper(
            src_BST.transpose(1, 2), self.separate(mix_BT)
        )
        hard = loss_B > self.hparams.threshold
        if not hard.any():
            return loss_B.new_zeros(())
        loss = loss_B[hard].mean()
        if loss < self.hparams.loss_upper_lim:
            loss.backward()
            torch.nn.utils.clip_grad_norm_(
                self.modules.parameters(), self.hparams.clip_grad_norm
            )
            self.optimizer.step()
            self.optimizer_step += 1
        self.optimizer.zero_grad()
        return loss.detach()

    def on_stage_start(self, stage: Stage, epoch: int | None = None) -> None:
        """Nothing is kept between stages."""

    def on_stage_end(self, stage: Stage, loss: float, epoch: int | None = None) -> None:
        """Set the next epoch's rate; every other epoch validate and keep the best."""
        if stage == Stage.TRAIN:
            rate = self.hparams.lr_scheduler.rate(epoch + 1)
            self.optimizer.param_groups[0]["lr"] = rate
            if self.valid and epoch % self.hparams.valid_every == 0:
                mean = np.mean([row[1] for row in self.score(self.valid)])
                if mean > self.best[0]:
                    self.best = (mean, copy.deepcopy(self.modules.state_dict()))

    @torch.no_grad()
    def score(self, rows: Sequence[Row]) -> list[tuple[str, float]]:
        """Return id and SI-SNRi of every mixture."""
        self.modules.eval()
        scores = []
        for example in ManifestDataset(rows, self.hparams.sample_rate, strict=True):
            est_ST = self.separate(example.mix[None])[0].T
            given = est_ST, example.src, example.mix, self.hparams.sample_rate
            value = score_example(*given, metrics=["si_snr_i"])["si_snr_i"]
            scores.append((example.id, value))
        self.modules.train()
        return scores


def main(arguments: Sequence[str]) -> None:
    """Train, test the best weights, and write the scores."""
    if "--help" in arguments:
        print(__doc__)
        return
    run_opts, hparams, resolved = load(arguments)
    out = Path(hparams["output_folder"])
    folder = out / "speechbrain"
    folder.mkdir(parents=True, exist_ok=True)
    settings = write_text(out / "hyperparams.yaml", resolved)
    known, network = read_run(settings).arguments, hparams["separator"]
    write_hub_files(folder, network, known, hparams["sample_rate"])
    parts = SepformerSeparation.from_hparams(folder, savedir=folder).mods
    manifests = make_manifests(hparams["prepare"], False, None)
    valid, test = (read_manifest(manifests[name], 2) for name in ("valid", "test"))
    source = Path(hparams["base_folder_dm"])
    copies = out.parent / "copies_at_8k"
    copy_at_8k(source, copies)
    mixing = SpeechBrainMixing(
        UtterancePool.scan(copies),
        "amplitude",
        hparams["speed_changes"],
        segment=int(hparams["segment_seconds"] * 8000),
    )
    names = ("encoder", "masknet", "decoder")
    brain = Stock(
        {name: parts[name].train().requires_grad_(True) for name in names},
        hparams["optimizer"],
        hparams,
        run_opts,
    )
    brain.valid = valid if hparams["valid_every"] else []
    loader = DataLoader(
        Mixtures(mixing, hparams["examples_per_epoch"]),
        hparams["batch_size"],
        num_workers=1,
        worker_init_fn=lambda worker: np.random.seed(torch.initial_seed() % 2**32),
    )
    brain.fit(hparams["epoch_counter"], loader)
    if brain.best[1]:
        brain.modules.load_state_dict(brain.best[1])
    write_table(out / "test_results.csv", ["id", "si_snr_i"], brain.score(test))


if __name__ == "__main__":
    sys.exit(as_command(lambda: main(sys.argv[1:])))
