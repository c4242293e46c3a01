"""What must be true of one training step."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from speechbrain import Stage
from speechbrain.utils.run_opts import RunOptions
from torch import Tensor

from modules.data.batch import Batch
from modules.data.loader import EpochSampler
from modules.runtime.errors import HparamsError, NonFiniteTraining, NonFiniteWeights
from recipes.config.load import load_hparams
from recipes.separation import Separation
from tests.toy import ToySeparator

YAML = Path(__file__).parents[1] / "toy.yaml"


@pytest.fixture
def make_brain(tmp_path: Path) -> Callable[..., Separation]:
    """A Brain ready for `fit_batch`, with plain SGD so that steps are gradients."""

    def make(steps: int = 100, run_opts: dict | None = None, **overrides: object):
        overrides = {"data_folder": "none", "output_folder": str(tmp_path), **overrides}
        hparams, _ = load_hparams(YAML, overrides)
        torch.manual_seed(0)
        separator = ToySeparator()
        brain = hparams["recipe"](
            modules={"separator": separator},
            opt_class=lambda parameters: torch.optim.SGD(parameters, lr=0.01),
            hparams=hparams,
            run_opts=RunOptions.from_dictionary({"device": "cpu"} | (run_opts or {})),
            checkpointer=hparams["checkpointer"],
        )
        brain.checkpointer.recoverables["separator"] = separator
        brain.train_sampler = EpochSampler(
            steps * hparams["batch_size"], hparams["batch_size"]
        )
        brain.init_optimizers()
        brain.epoch = 1
        brain.modules.train()
        return brain

    return make


def make_batch(size: int, seed: int = 0, frames: int = 400) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    src_BST = 0.1 * torch.randn(size, 2, frames, generator=generator)
    src_BST[:, 0, 1:] += 0.8 * src_BST[:, 0, :-1]
    return Batch(
        ids=[f"example{seed}{i}" for i in range(size)],
        mix=src_BST.sum(1),
        src=src_BST,
        length_B=torch.full((size,), frames),
        counts_B=torch.ones(size, dtype=torch.bool),
    )


def split(batch: Batch, sizes: list[int]) -> list[Batch]:
    parts, start = [], 0
    for size in sizes:
        part = slice(start, start + size)
        parts.append(
            Batch(
                batch.ids[part],
                *(
                    tensor[part].clone()
                    for tensor in (
                        batch.mix,
                        batch.src,
                        batch.length_B,
                        batch.counts_B,
                    )
                ),
            )
        )
        start += size
    return parts


def run(brain: Separation, *batches: Batch) -> Tensor:
    for batch in batches:
        brain.step += 1
        brain.fit_batch(batch)
    return weights(brain)


def weights(brain: Separation) -> Tensor:
    parts = [p.detach().flatten() for p in brain.modules.parameters()]
    return torch.cat(parts).clone()


def test_accumulated_batches_equal_one_large_batch(make_brain):
    batch = make_batch(6)
    whole = run(make_brain(batch_size=6), batch)
    brain = make_brain(batch_size=2, run_opts={"grad_accumulation_factor": 3})
    parts = run(brain, *split(batch, [2, 2, 2]))
    assert brain.optimizer_step == 1
    assert torch.allclose(parts, whole, atol=1e-7, rtol=0)


def test_unequal_and_partly_dropped_batches_still_average_over_examples(make_brain):
    batch = make_batch(5)
    batch.mix[1] = float("nan")
    kept = split(batch, [1, 1, 3])
    alone = Batch(
        kept[0].ids + kept[2].ids,
        *(
            torch.cat([getattr(kept[0], name), getattr(kept[2], name)])
            for name in ("mix", "src", "length_B", "counts_B")
        ),
    )
    expected = run(make_brain(batch_size=4), alone)
    brain = make_brain(batch_size=3, run_opts={"grad_accumulation_factor": 2})
    assert torch.allclose(run(brain, *split(batch, [2, 3])), expected, atol=1e-7)


def test_the_tail_of_an_epoch_is_not_lost(make_brain):
    brain = make_brain(steps=5, run_opts={"grad_accumulation_factor": 2})
    run(brain, *(make_batch(1, seed) for seed in range(5)))
    assert brain.optimizer_step == 3


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e38])
@pytest.mark.parametrize("where", ["mix", "src"])
def test_one_bad_sample_does_not_reach_the_weights(make_brain, bad, where):
    brain = make_brain(batch_size=4)
    before = weights(brain)
    batch = make_batch(4)
    getattr(batch, where)[1][..., 7] = bad
    after = run(brain, batch)
    assert torch.isfinite(after).all()
    if bad != 1e38:  # finite, but its loss overflows
        assert brain.stats.nonfinite == 1
        assert brain.stats.kept == 3
        assert not torch.equal(after, before)


def test_a_nan_from_inside_the_network_skips_the_step(make_brain, monkeypatch):
    brain = make_brain(batch_size=2)
    before = weights(brain)
    forward = brain.compute_forward

    def poisoned(batch, stage):
        return forward(batch, stage) * torch.tensor([1.0, float("nan")])[:, None, None]

    monkeypatch.setattr(brain, "compute_forward", poisoned)
    assert torch.equal(run(brain, make_batch(2)), before)
    assert (brain.optimizer_step, brain.stats.steps_skipped) == (0, 1)
    monkeypatch.undo()
    assert not torch.equal(run(brain, make_batch(2)), before)


@pytest.mark.parametrize("bad", [1e25, -1000.0])
def test_an_absurd_level_counts_as_not_finite(make_brain, bad):
    brain = make_brain(batch_size=2)
    batch = make_batch(2)
    batch.mix[1, 7] = bad
    expected = run(make_brain(batch_size=2), split(make_batch(2), [1, 1])[0])
    assert torch.allclose(run(brain, batch), expected, atol=1e-7)
    assert (brain.stats.nonfinite, brain.stats.kept, brain.stats.silent) == (1, 1, 0)


@pytest.mark.parametrize("level", [0.0, 0.3])
def test_silent_and_constant_targets_do_not_count_but_are_counted(make_brain, level):
    brain = make_brain(batch_size=3)
    batch = make_batch(3)
    batch.src[1] = level  # both sources: nothing to learn from
    batch.src[2, 0] = level  # one: the other is still learnt
    expected = run(make_brain(batch_size=2), split(batch, [1, 1, 1])[0])
    after = run(brain, batch)
    assert (brain.stats.silent, brain.stats.kept, brain.stats.seen) == (2, 2, 3)
    assert brain.stats.silent_ids == ["example01", "example02"]
    assert brain.stats.nonfinite == brain.watch.count == 0
    assert torch.isfinite(after).all() and not torch.equal(after, expected)

    batch = make_batch(1)
    batch.src[:] = level
    before = weights(brain)
    assert torch.equal(run(brain, batch), before), "nothing was learnt"
    assert brain.stats.steps_skipped == 1


def test_only_the_first_silent_examples_are_named(make_brain, tmp_path):
    brain = make_brain()
    batches = [make_batch(1, seed) for seed in range(8)]
    for batch in batches:
        batch.src[:, 1] = 0
    run(brain, *batches[:3])
    brain._save(tmp_path / "state")  # a kill and a resume lose no count
    resumed = make_brain()
    resumed._recover(tmp_path / "state", end_of_epoch=False)
    for one in (brain, resumed):
        run(one, *batches[3:])
        assert one.stats.silent == 8
        assert one.stats.silent_ids == [f"example{seed}0" for seed in range(5)]


@pytest.mark.parametrize("level", [0.0, 0.3])
def test_silent_targets_are_named_once_where_they_are_scored(make_brain, caplog, level):
    brain = make_brain()
    brain.modules.eval()
    for _ in range(2):
        brain.on_stage_start(Stage.VALID)
        for seed in range(3):
            batch = make_batch(1, seed)
            batch.src[:, : 3 - seed] = level  # both, both (of two), one
            brain.evaluate_batch(batch, Stage.VALID)
        brain.evaluate_batch(make_batch(1, 7), Stage.VALID)
        brain.on_stage_end(Stage.VALID, 0.0)
    said = [r.message for r in caplog.records if "silent" in r.message]
    names = "example00, example10, example20"
    assert said == [f"valid: silent targets have no score: {names}"]


def test_easy_examples_are_left_out_of_gradient_and_mean(make_brain):
    # With a high enough threshold every example is "too easy".
    brain = make_brain(batch_size=2, threshold=99)
    before = weights(brain)
    assert torch.equal(run(brain, make_batch(2)), before)
    assert brain.stats.kept == 0
    assert brain.stats.loss != brain.stats.loss, "no kept example, no mean"
    assert brain.watch.count == 0, "easy is not broken"
    assert (brain.stats.dropped, brain.stats.over_limit) == (2, 0)
    assert brain.stats.dropped_ids == ["example00", "example01"]
    assert brain.stats.steps_moving == 0


def test_a_skipped_batch_does_not_move_the_running_loss(make_brain):
    brain = make_brain()
    run(brain, make_batch(1))
    loss = brain.stats.loss
    batch = make_batch(1, seed=1)
    batch.mix[0, 3] = float("nan")
    run(brain, batch)
    assert brain.stats.loss == loss


def test_loss_upper_lim_drops_examples(make_brain):
    brain = make_brain(loss_upper_lim=-99)
    before = weights(brain)
    assert torch.equal(run(brain, make_batch(1)), before)
    assert (brain.stats.dropped, brain.stats.over_limit) == (0, 1)
    assert brain.stats.over_limit_ids == ["example00"]


def test_bad_steps_in_a_row_stop_the_run_and_name_the_examples(make_brain):
    brain = make_brain(nonfinite_patience=2)
    bad = [make_batch(1, seed) for seed in range(3)]
    for batch in bad:
        batch.src[0, 0, 0] = float("nan")
    run(brain, bad[0], make_batch(1, 9))  # a good step between starts the count anew
    run(brain, bad[1])
    with pytest.raises(NonFiniteTraining, match="example20"):
        run(brain, bad[2])


def test_all_parameter_groups_are_clipped_together(make_brain):
    brain = make_brain(run_opts={"max_grad_norm": 0.5})
    parameters = list(brain.modules.parameters())
    brain.optimizer = torch.optim.SGD(
        [{"params": [p]} for p in parameters], lr=1.0, momentum=0.0
    )
    brain.optimizers_dict = {"opt_class": brain.optimizer}
    brain.learning_rate.current = 1.0
    before = weights(brain)
    step = weights_change = run(brain, make_batch(1)) - before
    assert weights_change.norm() == pytest.approx(0.5, rel=1e-3)
    assert brain.grad_norm > 0.5

    free = make_brain(run_opts={"max_grad_norm": -1})
    change = run(free, make_batch(1)) - before
    assert change.norm() == pytest.approx(0.01 * brain.grad_norm, rel=1e-4)
    assert torch.dot(change, step) > 0, "a negative norm must not turn the gradient"


def test_yaml_clip_grad_norm_reaches_the_step_and_the_option_wins(make_brain):
    assert make_brain(clip_grad_norm=3).max_grad_norm == 3
    brain = make_brain(clip_grad_norm=3, run_opts={"max_grad_norm": 7})
    assert brain.max_grad_norm == 7


def test_gradients_are_unscaled_before_clipping(make_brain):
    plain = run(make_brain(), make_batch(1))
    brain = make_brain()
    brain.scaler = torch.GradScaler("cpu", init_scale=1024.0)
    assert torch.allclose(run(brain, make_batch(1)), plain, atol=1e-6)


def test_a_scaler_that_overflows_lowers_its_scale_and_goes_on(make_brain):
    brain = make_brain(nonfinite_patience=1)
    brain.scaler = torch.GradScaler("cpu", init_scale=2.0**127)
    before = weights(brain)
    assert torch.equal(run(brain, make_batch(1)), before)
    assert brain.scaler.get_scale() == 2.0**126
    assert brain.watch.count == 0


def test_weights_that_are_not_finite_are_never_saved(make_brain):
    brain = make_brain()
    brain.checkpointer.save_checkpoint()
    next(brain.modules.parameters()).data.fill_(float("nan"))
    with pytest.raises(NonFiniteWeights):
        brain.checkpointer.save_checkpoint()
    assert len(brain.checkpointer.list_checkpoints()) == 1


def test_every_step_reseeds_dropout(make_brain):
    outputs = []
    for _ in range(2):
        brain = make_brain()
        brain.modules.separator.dropout.p = 0.5
        torch.manual_seed(len(outputs))  # whatever the global state was
        outputs.append(run(brain, make_batch(1)))
    assert torch.equal(*outputs)


def test_fillers_do_not_count(make_brain):
    batch = make_batch(2)
    expected = run(make_brain(batch_size=2), split(batch, [1, 1])[0])
    batch.counts_B[1] = False
    brain = make_brain(batch_size=2)
    assert torch.allclose(run(brain, batch), expected, atol=1e-7)
    assert brain.stats.seen == 1


def test_ema_follows_the_steps_that_were_taken(make_brain):
    brain = make_brain(ema_decay=0.9)
    run(brain, make_batch(1))
    assert brain.ema.steps == 1
    bad = make_batch(1)
    bad.mix[:] = float("nan")
    run(brain, bad)
    assert brain.ema.steps == 1
    live = weights(brain)
    with brain.ema.applied():
        assert not torch.equal(weights(brain), live)
    assert torch.equal(weights(brain), live)


@pytest.mark.parametrize("decay", [1, -0.5])
def test_a_decay_out_of_range_is_one_line(make_brain, decay):
    with pytest.raises(HparamsError, match="ema_decay=.*: must be from 0 to below 1"):
        make_brain(ema_decay=decay)
