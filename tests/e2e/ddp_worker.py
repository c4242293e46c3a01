"""Started by torchrun: trains a toy on 2 ranks through faults, saves what each saw.

torchrun --nproc_per_node=2 tests/e2e/ddp_worker.py OUT
"""

import sys
from pathlib import Path

import torch
from speechbrain.utils.run_opts import RunOptions

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from modules.data.batch import Batch  # noqa: E402
from modules.data.loader import EpochSampler  # noqa: E402
from modules.runtime import distributed  # noqa: E402
from recipes.config.load import load_hparams  # noqa: E402
from tests.toy import ToySeparator  # noqa: E402

BATCH, STEPS = 4, 3
#: Clipping hides a wrong factor of the gradient, as Adam does: plain SGD shows it.
UNCLIPPED = {"clip_grad_norm": -1.0}


def global_batch(step: int) -> Batch:
    """The same 8 examples on every rank and in a single process."""
    generator = torch.Generator().manual_seed(step)
    src_BST = 0.1 * torch.randn(2 * BATCH, 2, 400, generator=generator)
    src_BST[:, 0, 1:] += 0.8 * src_BST[:, 0, :-1]
    return Batch(
        ids=[f"step{step}example{i}" for i in range(2 * BATCH)],
        mix=src_BST.sum(1),
        src=src_BST,
        length_B=torch.full((2 * BATCH,), 400),
        counts_B=torch.ones(2 * BATCH, dtype=torch.bool),
    )


def share(batch: Batch, rank: int, world_size: int) -> Batch:
    """What the sampler would deal to this rank."""
    return Batch(
        batch.ids[rank::world_size],
        *(
            tensor[rank::world_size].clone()
            for tensor in (
                batch.mix,
                batch.src,
                batch.length_B,
                batch.counts_B,
            )
        ),
    )


def nothing(brain, batch: Batch, step: int) -> None:
    """No fault."""


def nan_item(brain, batch: Batch, step: int) -> None:
    """One NaN sample in one example of rank 1."""
    if distributed.rank() == 1 and step == 1:
        batch.mix[2, 5] = float("nan")


def inf_batch(brain, batch: Batch, step: int) -> None:
    """All examples of rank 1 are Inf."""
    if distributed.rank() == 1 and step == 1:
        batch.src[:] = float("inf")


def easy_on_one(brain, batch: Batch, step: int) -> None:
    """Rank 1's examples are silent: nothing there counts."""
    if distributed.rank() == 1 and step == 1:
        batch.src[:] = 0


def nan_inside(brain, batch: Batch, step: int) -> None:
    """The network of rank 1 gives NaN for finite input."""
    poison = distributed.rank() == 1 and step == 1
    brain.modules.separator.module.poison = poison


def under_threshold(brain, batch: Batch, step: int) -> None:
    """The estimates of rank 1 are perfect: all its losses lie under the threshold."""
    perfect = distributed.rank() == 1 and step == 1
    brain.modules.separator.module.perfect = batch.src if perfect else None


def over_limit(brain, batch: Batch, step: int) -> None:
    """The estimates of rank 1 are silent, which costs 100 dB."""
    brain.modules.separator.module.mute = distributed.rank() == 1 and step == 1


class FaultySeparator(ToySeparator):
    """A toy that can be told to give NaN, or the targets, on one rank."""

    poison = mute = False
    perfect = None

    def forward(self, mixture_BT):
        est_BST = super().forward(mixture_BT)
        if self.perfect is not None:
            est_BST = self.perfect + 0 * est_BST
        est_BST = 0 * est_BST if self.mute else est_BST
        return est_BST * float("nan") if self.poison else est_BST


class NormedSeparator(FaultySeparator):
    """A toy with BatchNorm, which learns in the forward pass."""

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(2)

    def forward(self, mixture_BT):
        poisoned, self.poison = self.poison, False
        est_BST = self.norm(super().forward(mixture_BT))
        return est_BST * float("nan") if poisoned else est_BST


def make_brain(
    folder: Path,
    batch_size: int,
    run_opts: RunOptions,
    network=FaultySeparator,
    **options,
):
    overrides = {"data_folder": "none", "output_folder": str(folder), **options}
    overrides["loss_upper_lim"] = 90
    hparams, _ = load_hparams(ROOT / "tests" / "toy.yaml", overrides)
    hparams["batch_size"] = batch_size
    torch.manual_seed(0)
    brain = hparams["recipe"](
        modules={"separator": network()},
        opt_class=lambda parameters: torch.optim.SGD(parameters, lr=0.01),
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=None,
    )
    brain.train_sampler = EpochSampler(1000, batch_size)
    brain._wrap_distributed()
    brain.init_optimizers()
    brain.epoch = 1
    brain.modules.train()
    return brain


def train(brain, fault, rank: int, world_size: int) -> dict:
    for step in range(STEPS):
        batch = share(global_batch(step), rank, world_size)
        fault(brain, batch, step)
        brain.step += 1
        brain.fit_batch(batch)
    parameters = [p.detach().flatten() for p in brain.modules.parameters()]
    return {
        "weights": torch.cat(parameters),
        "learnt": [b.tolist() for b in brain.modules.buffers()],
        "kept": brain.stats.kept,
        "loss": brain.stats.loss,
        "nonfinite": brain.stats.nonfinite,
        "silent": (brain.stats.silent, brain.stats.silent_ids),
        "over_limit": (brain.stats.over_limit, brain.stats.over_limit_ids),
        "dropped": (brain.stats.dropped, brain.stats.dropped_ids),
        "moving": brain.stats.steps_moving,
        "optimizer_steps": brain.optimizer_step,
        "skipped": brain.stats.steps_skipped,
    }


FAULTS = [nothing, nan_item, inf_batch, easy_on_one, nan_inside, under_threshold]
FAULTS.append(over_limit)


def main(out: Path) -> None:
    run_opts = RunOptions.from_dictionary({"device": "cpu"})
    run_opts = distributed.init_process_group(run_opts, timeout_seconds=60)
    results = {}
    for fault in FAULTS:
        brain = make_brain(out / "run", BATCH, run_opts)
        results[fault.__name__] = train(brain, fault, distributed.rank(), 2)
    brain = make_brain(out / "run", BATCH, run_opts, **UNCLIPPED)
    results["unclipped"] = train(brain, nothing, distributed.rank(), 2)
    for fault in (nothing, inf_batch, nan_inside):
        options = {"network": NormedSeparator, **UNCLIPPED}
        brain = make_brain(out / "run", BATCH, run_opts, **options)
        results[f"norm_{fault.__name__}"] = train(brain, fault, distributed.rank(), 2)
    inner = distributed.run_on_main(
        lambda: distributed.run_on_main(distributed.world_size)
    )
    results["alone"] = inner, distributed.gather_objects(distributed.rank())
    torch.save(results, out / f"rank{distributed.rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    distributed.leave_process_group()
