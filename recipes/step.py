"""The training step that every recipe shares; tasks override only what differs.

Read `fit_batch` first. Its rules keep many processes right:

1. Every rank runs one forward and one backward on every batch, whatever is in it.
2. Examples with samples that are not finite, or beyond any level, are zeroed before
   the forward and weigh nothing.
3. An example has one loss term or several (music: one per stem). The ranks exchange
   them (one small all-gather, in `modules/losses/choice.py`); from these all of them
   compute the same choice of terms, the same counts, the same decision. The choice
   stays on the device until the backward is under way: the host reads it and the
   norm of the gradient at once, so that a step waits for the device once.
4. The backward sums over the chosen terms. Before the optimizer steps, the summed
   gradient is divided by their number over all ranks and accumulated batches: R ranks
   x A accumulated batches x B examples give the gradient of one batch of R*A*B.
5. Gradients are then equal on all ranks, so that "the norm is not finite: skip" needs
   no further message.
6. What BatchNorm learns in a forward pass is taken back where the batch has an example
   that rule 2 zeroed or whose loss is not finite, on any rank, and where the step is
   not taken.

Legend: B batch, K loss terms of an example, S source, T sample.
"""

import logging
import math
from collections.abc import Sequence
from typing import Any

import speechbrain as sb
import torch
from speechbrain import Stage
from torch import Tensor

from modules.audio.faults import LARGEST_PEAK
from modules.data.batch import Batch
from modules.data.loader import EpochSampler
from modules.losses.choice import Choice, choose, masked_sum, to_device
from modules.runtime import distributed
from modules.runtime.batch_norm import RunningStatistics, share_statistics
from modules.runtime.errors import HparamsError
from modules.runtime.randomness import seed_step
from modules.runtime.signals import StopRequest
from modules.weights.ema import EMA
from recipes.checkpoints import SaveClock
from recipes.config.schema import RunSettings
from recipes.schedule import LearningRate
from recipes.train_stats import (
    Accumulation,
    NonFiniteWatch,
    TrainStats,
    idle_fault,
    name_left_out,
)

logger = logging.getLogger(__name__)

#: Weights whose norm has grown so far have diverged: in a million steps of equal sign
#: at a rate of 0.001, Adam brings a weight to 1000.
LARGEST_GROWTH = 1e6


class TrainingStep(sb.Brain):
    """Takes one batch from audio to an optimizer step; see the module docstring.

    A task overrides `compute_forward` and `compute_objectives`, which returns the
    `Terms` of a batch. `modules.separator` is the network.
    """

    #: Which settings the task reads.
    settings_class: type[RunSettings] = RunSettings
    config: RunSettings

    #: Weights of the loss terms of an example.
    term_weights: Sequence[float] = (1.0,)

    #: Samples beyond it are treated as NaN.
    largest_peak = LARGEST_PEAK

    #: Whether a silent target is a matter of course: counted, but not named.
    silence_is_common = False

    train_sampler: EpochSampler

    # SpeechBrain's, which has no types.
    step: int
    ckpt_interval_minutes: float

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        try:
            super().__init__(*args, **kwargs)
        except ValueError as error:  # a run option that this machine cannot serve
            raise HparamsError(str(error)) from error
        config = self.config = self.settings_class.read(vars(self.hparams))
        self.epoch = 0
        self.stats = TrainStats()
        self.accumulated = Accumulation()
        self.watch = NonFiniteWatch(self.nonfinite_patience)
        self.learning_rate = LearningRate(
            config.lr, config.lr_scheduler, config.rate_factor
        )
        self.grad_norm = float("nan")
        self.statistics = RunningStatistics(self.modules)
        self.stop_request = StopRequest()
        if not (self.ckpt_interval_minutes or self.ckpt_interval_steps):
            self.ckpt_interval_minutes = config.checkpoint_minutes
        self.clock = SaveClock(self.ckpt_interval_minutes, self.ckpt_interval_steps)
        # What any rank asks for, all ranks obey after the next optimizer step.
        self.stop_agreed = False
        self.save_agreed = False
        self.ema: EMA | None = None
        if config.ema_decay:
            self.ema = EMA(decay=config.ema_decay)
            self.ema.attach(self.modules["separator"])
            optional = config.allow_changes  # it may have been off before
            self.checkpointer.add_recoverable("ema", self.ema, optional_load=optional)

    def init_optimizers(self) -> None:
        """Make the optimizer, whose rate the schedule begins with."""
        try:
            super().init_optimizers()
        except (RuntimeError, ValueError) as error:
            raise HparamsError(f"optimizer: {error}") from error
        self.learning_rate.current = self.optimizer.defaults["lr"]
        self.first_norm = self._weights_norm()

    def _wrap_distributed(self) -> None:
        """Wrap for many processes, whose BatchNorms share what they see."""
        if self.distributed_launch and self.device_type == "cpu":
            share_statistics(self.modules)
        super()._wrap_distributed()
        self.statistics = RunningStatistics(self.modules)

    def on_fit_start(self) -> None:
        """Refuse a separator that cannot be trained; then SpeechBrain's."""
        if not any(weight.requires_grad for weight in self.modules.parameters()):
            raise HparamsError("separator: all of its parameters are frozen")
        super().on_fit_start()

    def fit_batch(self, batch: Batch) -> Tensor:
        """Forward, choose, backward; step when enough batches are accumulated.

        `batch` is this rank's share of the global batch. Return the mean loss of the
        terms kept in the epoch so far.
        """
        batch = batch.to(self.device)
        should_step = self.completes_a_step()
        seed_step(self.config.seed, distributed.rank(), self.epoch, self.step)
        stop = self.stop_request.received is not None
        finite_B = batch.zero_nonfinite(self.largest_peak)
        self.on_fit_batch_start(batch, should_step)
        self.statistics.begin_batch()

        with self.no_sync(not should_step):
            with self.training_ctx:
                outputs = self.compute_forward(batch, Stage.TRAIN)
                terms = self.compute_objectives(outputs, batch, Stage.TRAIN)
            chosen = choose(
                terms,
                finite_B,
                batch.counts_B,
                self.config.select,
                batch_size=self.config.batch_size,
                loss_limit=self.config.loss_upper_lim,
                flags=(stop, self.clock.minutes_passed()),
            )
            weights_K = to_device(self.term_weights, terms.loss_BK)
            loss = masked_sum(terms.parts, chosen.weight, weights_K)
            if not loss.requires_grad:
                raise HparamsError(
                    "separator: its output does not depend on a trainable parameter"
                )
            self.scaler.scale(loss).backward()

        # Nothing before has waited for the device.
        norm = [self._norm_of_sum()] if should_step else []
        choice, norms = chosen.read(*norm)
        self.statistics.end_batch(is_good=not choice.nonfinite)
        self.on_choice(choice, batch)
        if should_step:
            [self.grad_norm] = norms
            self.optimizers_step()
        self.on_fit_batch_end(batch, outputs, loss, should_step)
        return torch.tensor(self.stats.loss)

    def completes_a_step(self) -> bool:
        """Whether the optimizer steps after this batch; the epoch's tail counts too."""
        return (
            self.step % self.grad_accumulation_factor == 0
            or self.step == self.train_sampler.steps_per_epoch
            or (self.debug and self.step == self.debug_batches)
        )

    def on_choice(self, choice: Choice, batch: Batch) -> None:
        """Count what was chosen, the same on all ranks."""
        self.stats.add(choice)
        over_kept = self.config.select.renormalise
        name_silent = not self.silence_is_common
        self.accumulated.add(choice, batch, self.term_weights, over_kept, name_silent)
        stop, save = choice.flags
        self.stop_agreed = self.stop_agreed or stop
        self.save_agreed = self.save_agreed or save

    def optimizers_step(self) -> None:
        """Average, check, clip and apply the accumulated gradient."""
        accumulated, self.accumulated = self.accumulated, Accumulation()
        optimizers, groups, gradients = self._to_step()
        # Rule 4; DDP has already divided by the number of ranks.
        to_mean = distributed.world_size() / (accumulated.weight or 1.0)
        norm = to_mean * self.grad_norm
        is_finite = math.isfinite(norm)
        self.grad_norm = norm
        if is_finite and accumulated.kept:
            clip = self.max_grad_norm
            factor = min(1.0, clip / (norm + 1e-6)) if clip >= 0 else 1.0
            torch._foreach_mul_(gradients, to_mean * factor)
        lr = self._learning_rate()
        for group in groups:
            group["lr"] = lr
        if accumulated.kept and (is_finite or self.scaler.is_enabled()):
            for optimizer in optimizers:  # the scaler itself skips what overflowed
                self.scaler.step(optimizer)
        self.scaler.update()
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)

        self.stats.steps_moving += accumulated.kept > 0 and norm != 0
        is_taken = is_finite and accumulated.kept > 0
        self.statistics.end_step(is_taken)
        if is_taken:
            self.optimizer_step += 1
            if self.ema is not None:
                self.ema.update()
        else:
            self.stats.steps_skipped += 1
        searching = self.scaler.is_enabled() and self.scaler.get_scale() > 1
        where = f"epoch {self.epoch}, step {self.step}"
        self.watch.look(accumulated, is_finite, searching, where)
        name_left_out(self.stats, accumulated)

    def _to_step(self) -> tuple[list[torch.optim.Optimizer], list, list[Tensor]]:
        """Return the optimizers, their groups, and the gradients of their weights."""
        optimizers = list(self.freeze_optimizers(self.optimizers_dict).values())
        groups = [group for opt in optimizers for group in opt.param_groups]
        parameters = [weight for group in groups for weight in group["params"]]
        return optimizers, groups, [p.grad for p in parameters if p.grad is not None]

    def _norm_of_sum(self) -> Tensor:
        """Undo the scale of the accumulated gradient; return its norm on the device."""
        optimizers, _, gradients = self._to_step()
        for optimizer in optimizers:
            self.scaler.unscale_(optimizer)
        norm: Tensor = torch.nn.utils.get_total_norm(gradients)
        return norm.to(self.device)  # without any gradient it is on the host

    def left_out(self) -> dict[str, str]:
        """Return what to call the examples that were left out, by reason."""
        limit = self.config.loss_upper_lim
        return {
            "silent": "silent targets",
            "over_limit": f"loss at or above loss_upper_lim={limit:g}",
            "dropped": self.config.select.dropped_are,
        }

    def judge_epoch(self, epoch: int, stats: TrainStats) -> None:
        """End a run that learns nothing, or whose weights have diverged."""
        fault, norm = idle_fault(stats, self.left_out()), self._weights_norm()
        if norm > LARGEST_GROWTH * max(1.0, self.first_norm):
            fault = (
                f"the weights have diverged, their norm from {self.first_norm:.3g} to "
                f"{norm:.3g}: lower lr={self.config.lr:g}"
            )
        is_last = (
            epoch >= self.config.epoch_counter.limit
            or self._optimizer_step_limit_exceeded
            or (self.debug and epoch >= self.debug_epochs)
        )
        self.watch.end_epoch(epoch, fault, is_last)

    @torch.no_grad()
    def _weights_norm(self) -> float:
        """Return the norm of the trainable weights."""
        weights = [w for w in self.modules.parameters() if w.requires_grad]
        return float(torch.nn.utils.get_total_norm(weights))

    def _learning_rate(self) -> float:
        """The rate of the optimizer step that is about to be taken."""
        batches = self.train_sampler.steps_per_epoch
        steps = math.ceil(batches / self.grad_accumulation_factor)
        total = self.config.epoch_counter.limit * steps
        return self.learning_rate.at(self.epoch, self.optimizer_step, total)
