"""The training step that every recipe shares; tasks override only what differs.

Read `fit_batch` first. Its rules keep many processes right:

1. Every rank runs one forward and one backward on every batch, whatever is in it.
2. Examples with samples that are not finite, or beyond any level, are zeroed before
   the forward and weigh nothing.
3. An example has one loss term or several (music: one per stem). The ranks exchange
   them (one small all-gather); from these all of them compute the same choice of
   terms, the same counts, the same decision.
4. The backward sums over the chosen terms. Before the optimizer steps, the summed
   gradient is divided by their number over all ranks and accumulated batches: R ranks
   x A accumulated batches x B examples give the gradient of one batch of R*A*B.
5. Gradients are then equal on all ranks, so that "the norm is not finite: skip" needs
   no further message.

Legend: B batch, K loss terms of an example, S source, T sample, W ranks,
N = W*B examples of a global batch.
"""

import logging
import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import speechbrain as sb
import torch
import yaml
from speechbrain import Stage
from speechbrain.utils.checkpoints import mark_as_loader, mark_as_saver
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from modules.audio.faults import LARGEST_PEAK
from modules.data.batch import Batch, collate_crops, collate_whole
from modules.data.loader import EpochSampler, make_loader
from modules.losses.choice import Terms
from modules.monitor.logs import RunLog
from modules.monitor.memory import MemoryProfile
from modules.runtime import distributed
from modules.runtime.errors import HparamsError, NonFiniteTraining
from modules.runtime.randomness import seed_step
from modules.runtime.signals import StopRequest, StopRun
from modules.weights.ema import EMA
from recipes.config.settings import Settings, check_settings
from recipes.evaluation import Evaluation
from recipes.report import NAMED, listed, rewind_epochs, short_line
from recipes.schedule import update_learning_rate
from recipes.train_stats import TrainStats, Window

logger = logging.getLogger(__name__)
#: The newest that always stay: should the last one be damaged, there is one before it.
SPARE_CHECKPOINTS = 2


@sb.utils.checkpoints.register_checkpoint_hooks
class Separation(Evaluation):
    """Trains and evaluates a separator; see the module docstring for the rules.

    A task overrides `compute_forward`, `compute_objectives` (the `Terms` of a batch),
    `score` and `make_loaders`. `modules.separator` is the network.
    """

    #: Weights of the loss terms of an example.
    term_weights: Sequence[float] = (1.0,)

    #: Samples beyond it are treated as NaN.
    largest_peak = LARGEST_PEAK

    #: Whether a silent target is a matter of course: counted, but not named.
    silence_is_common = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        try:
            super().__init__(*args, **kwargs)
        except ValueError as error:  # a run option that this machine cannot serve
            raise HparamsError(str(error)) from error
        if not (self.ckpt_interval_minutes or self.ckpt_interval_steps):
            self.ckpt_interval_minutes = self.hparams.checkpoint_minutes
        self.stats = TrainStats()
        self.window = Window()
        self.epoch = 0
        self.steps_before = 0  # of this epoch
        self.nonfinite_count = 0
        self.grad_norm = float("nan")
        self.stop_request = StopRequest()
        self.settings: Settings = {}
        self._stop_agreed = False
        self._save_agreed = False
        self._saved_at = (time.time(), 0)  # clock and step of the last checkpoint
        self._noted: set[Stage] = set()
        self.output_folder = Path(self.hparams.output_folder)
        self.is_trial = self.debug and not self.debug_persistently
        if self.is_trial:
            self.output_folder = self.output_folder / "debug"
            if self.test_only:  # saves nothing, so it may look at the real ones
                self.checkpointer.checkpoints_dir = Path(self.hparams.save_folder)
            self.hparams.train_logger.save_file = self.output_folder / "train_log.txt"
        if self.hparams.lr_scheduler is None:  # the rate stays, nothing to save
            self.checkpointer.recoverables.pop("lr_scheduler", None)
        self.log: RunLog | None = None
        self.memory: Any = nullcontext()
        self.ema: EMA | None = None
        if self.hparams.ema_decay:
            try:
                self.ema = EMA(decay=self.hparams.ema_decay)
            except ValueError as error:
                raise HparamsError(f"ema_{error}") from error
            self.ema.attach(self.modules["separator"])
            optional = self.hparams.allow_changes  # it may have been off before
            self.checkpointer.add_recoverable("ema", self.ema, optional_load=optional)

    # ------------------------------------------------------------------ one step

    def fit_batch(self, batch: Batch) -> Tensor:
        """Forward, choose, backward; step when the accumulation window is full.

        Arguments
        ---------
        batch : Batch
            This rank's share of the step.

        Returns
        -------
        Tensor
            Mean loss over the epoch's kept examples so far, for SpeechBrain's bar.
        """
        batch = batch.to(self.device)
        closes_window = self._closes_window()
        seed_step(self.hparams.seed, distributed.rank(), self.epoch, self.step)
        finite_B = batch.zero_nonfinite(self.largest_peak)
        self.on_fit_batch_start(batch, closes_window)

        with self.no_sync(not closes_window):
            with self.training_ctx:
                outputs = self.compute_forward(batch, Stage.TRAIN)
                terms = self.compute_objectives(outputs, batch, Stage.TRAIN)
            keep_BK = self._choose(batch, terms, finite_B)
            # where() rather than a product: 0 * NaN is NaN.
            kept_K = torch.where(keep_BK, terms.loss_BK, 0.0).sum(0)
            kept_loss = (kept_K * kept_K.new_tensor(self.term_weights)).sum()
            self.scaler.scale(kept_loss).backward()

        if closes_window:
            self.optimizers_step()
        self.on_fit_batch_end(batch, outputs, kept_loss, closes_window)
        return torch.tensor(self.stats.loss)

    def _closes_window(self) -> bool:
        """Whether the optimizer steps after this batch; the epoch's tail counts too."""
        return (
            self.step % self.grad_accumulation_factor == 0
            or self.step == self.train_sampler.steps_per_epoch
            or (self.debug and self.step == self.debug_batches)
        )

    @torch.no_grad()
    def _choose(self, batch: Batch, terms: Terms, finite_B: Tensor) -> Tensor:
        """Mask [B, K] of this rank's terms to train on, decided by all ranks."""
        loss_BK = terms.loss_BK.float()
        sort_key_BK = (
            loss_BK if terms.sort_key_BK is None else terms.sort_key_BK.float()
        )
        finite_BK = finite_B[:, None] & loss_BK.isfinite() & sort_key_BK.isfinite()
        usable_BK = finite_BK & terms.scorable_BK & batch.counts_B[:, None]
        usable_BK &= loss_BK < self.hparams.loss_upper_lim
        silent_BK = torch.zeros_like(usable_BK)
        if terms.silent_BK is not None:  # an example that was zeroed is not silent
            silent_BK = terms.silent_BK & (finite_B & batch.counts_B)[:, None]
        terms_K = loss_BK.shape[1]
        columns = [
            loss_BK.nan_to_num(),
            sort_key_BK.nan_to_num(),
            usable_BK,
            self.origin_numbers(batch, terms_K),
            silent_BK,
            (finite_BK.all(1) & batch.counts_B)[:, None],
            batch.counts_B[:, None],
            torch.full_like(loss_BK[:, :1], self.stop_request.received is not None),
            torch.full_like(loss_BK[:, :1], self._minutes_have_passed()),
        ]
        local_BV = torch.cat([column.to(loss_BK) for column in columns], dim=1)
        gathered_WVB = distributed.gather_examples(local_BV.T, self.hparams.batch_size)
        gathered_NV = gathered_WVB.transpose(1, 2).flatten(0, 1)
        loss_NK, sort_key_NK, usable_NK, origin_NK, silent_NK, flags = (
            gathered_NV.split([terms_K] * 5 + [4], dim=1)
        )
        usable_NK = usable_NK == 1
        finite_N, counts_N, stop_N, save_N = (flags == 1).unbind(1)

        select = self.hparams.select
        keep_NK = select(sort_key_NK.where(usable_NK, torch.nan)) & usable_NK
        self.on_choice(origin_NK, usable_NK, keep_NK)
        sums = [
            counts_N.sum()[None],
            (counts_N & ~finite_N).sum()[None],
            (silent_NK == 1).sum()[None],
            stop_N.any()[None],
            save_N.any()[None],
            usable_NK.sum(0),
            keep_NK.sum(0),
            loss_NK.where(usable_NK, 0.0).double().sum(0),
            loss_NK.where(keep_NK, 0.0).double().sum(0),
        ]
        # The one point of the step where the host waits for the device.
        sums = torch.cat([value.double() for value in sums]).tolist()
        seen, nonfinite, silent, stop, save = sums[:5]
        per_term = [sums[5 + i * terms_K :][:terms_K] for i in range(4)]
        self.stats.add(seen, nonfinite, silent, *per_term)
        usable_K, kept_K, *_ = per_term
        averaged_K = kept_K if select.renormalise else usable_K
        self.window.weight += sum(
            weight * number
            for weight, number in zip(self.term_weights, averaged_K, strict=True)
        )
        self.window.kept += int(sum(kept_K))
        self.window.nonfinite += int(nonfinite)
        self.window.ids += batch.ids
        if nonfinite:
            self.window.suspects += batch.names(batch.counts_B & ~finite_BK.all(1))
        if silent and not self.silence_is_common:
            self.window.silent += int(silent)
            self.window.silent_ids += batch.names(silent_BK.any(1))
        self._stop_agreed = self._stop_agreed or bool(stop)
        self._save_agreed = self._save_agreed or bool(save)

        keep_WBK = keep_NK.unflatten(0, (distributed.world_size(), -1))
        return keep_WBK[distributed.rank(), : len(batch.ids)]

    def origin_numbers(self, batch: Batch, terms: int) -> Tensor:
        """Number of the track behind each term, [B, K], for `on_choice`; here 0."""
        return torch.zeros(len(batch.ids), terms, device=batch.mix.device)

    def on_choice(self, origin_NK: Tensor, usable_NK: Tensor, keep_NK: Tensor) -> None:
        """Called with the choice of every step, the same on all ranks."""

    def optimizers_step(self) -> None:
        """Average, check, clip and apply the gradient of the accumulation window."""
        optimizers = list(self.freeze_optimizers(self.optimizers_dict).values())
        for optimizer in optimizers:
            self.scaler.unscale_(optimizer)
        gradients = [
            parameter.grad
            for optimizer in optimizers
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        # Rule 4; DDP has already divided by the number of ranks.
        to_mean = distributed.world_size() / (self.window.weight or 1.0)
        norm = to_mean * float(torch.nn.utils.get_total_norm(gradients))
        is_finite = math.isfinite(norm)
        self.grad_norm = norm
        if is_finite and self.window.kept:
            clip = self.max_grad_norm
            factor = min(1.0, clip / (norm + 1e-6)) if clip >= 0 else 1.0
            torch._foreach_mul_(gradients, to_mean * factor)
        if self.window.kept and (is_finite or self.scaler.is_enabled()):
            for optimizer in optimizers:  # the scaler itself skips what overflowed
                self.scaler.step(optimizer)
        stepped = is_finite and self.window.kept > 0
        self.scaler.update()
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)

        if stepped:
            self.optimizer_step += 1
            if self.ema is not None:
                self.ema.update()
        else:
            self.stats.steps_skipped += 1
        self._watch_nonfinite(is_finite)
        self._name_silent()
        self.window = Window()

    def _watch_nonfinite(self, is_finite: bool) -> None:
        """Stop after `nonfinite_patience` bad steps in a row, naming the examples."""
        # While a GradScaler can still lower its scale, overflow is its normal work.
        searching = self.scaler.is_enabled() and self.scaler.get_scale() > 1
        lost_all = self.window.kept == 0 and self.window.nonfinite > 0
        is_bad = lost_all or not (is_finite or searching)
        if is_finite and self.window.kept:
            self.nonfinite_count = 0
        if not is_bad and self.window.nonfinite == 0:
            return
        mine = self.window.suspects
        if is_bad and self.window.nonfinite == 0:  # found in the gradient only
            mine = self.window.ids
        everyone = distributed.gather_objects(mine)
        names = sorted({name for ids in everyone for name in ids})
        where = f"epoch {self.epoch}, step {self.step}"
        if not is_bad:
            logger.warning(
                f"{where}: left out, not finite or over 40 dB above full scale: "
                f"{', '.join(names)}"
            )
            return
        self.nonfinite_count += 1
        message = (
            f"{where}: nothing to train on that is finite and under 40 dB above full "
            f"scale ({self.nonfinite_count} in a row); examples: {', '.join(names)}"
        )
        logger.warning(message)
        if self.nonfinite_count >= self.nonfinite_patience:
            raise NonFiniteTraining(
                f"{message}. Stopped by nonfinite_patience={self.nonfinite_patience}; "
                "check these files or lower lr"
            )

    def _name_silent(self) -> None:
        """Keep the names of the epoch's first examples with a silent target."""
        known = self.stats.silent_ids
        # All ranks count the same, so that all of them come here.
        if not self.window.silent or len(known) >= NAMED:
            return
        everyone = distributed.gather_objects(self.window.silent_ids)
        names = {name for ids in everyone for name in ids} - set(known)
        self.stats.silent_ids = [*known, *sorted(names)][:NAMED]

    # ------------------------------------------------------------------ one epoch

    def fit(self, epoch_counter: Any, train_set: Any, valid_set: Any = None) -> None:
        """SpeechBrain's fit, on loaders made by `modules.data.loader.make_loader`."""
        number, keep = self.hparams.average_last, self.hparams.keep_checkpoints
        short = min(keep, epoch_counter.limit) < number or self.ema is not None
        if number and not self.test_only and short:
            raise HparamsError(  # now, not after days of training
                f"average_last={number}: set keep_checkpoints={number}, N_epochs to "
                "as many or more, and ema_decay=0"
            )
        self.train_sampler = train_set.batch_sampler
        super().fit(epoch_counter, train_set, valid_set)

    def on_fit_start(self) -> None:
        """Wrap, make the optimizer, resume; then say where the run stands."""
        found = self.checkpointer.find_checkpoint()
        allowed = self.hparams.allow_changes
        changed = check_settings(found, self._all_settings(), allowed)
        super().on_fit_start()
        self._begin_average(found)
        self._take_over(changed)
        # A mid-epoch checkpoint holds step > 0 of the epoch that is about to start.
        done = self.hparams.epoch_counter.current
        if self.hparams.profile_memory and sb.utils.distributed.if_main_process():
            network = distributed.unwrap(self.modules["separator"])
            self.memory = MemoryProfile(network, self.optimizer, self.output_folder)
        self._open_log(self.global_step, done)
        if found is None:
            return
        if self._optimizer_step_limit_exceeded and not self.step:
            # Else each new start would add an epoch without a step.
            logger.info("already trained for all steps of optimizer_step_limit")
            self.hparams.epoch_counter.limit = done
        elif done >= self.hparams.epoch_counter.limit:
            logger.info(f"already trained for all {done} epochs: testing only")
        else:
            logger.info(f"Resuming after epoch {done}, step {self.step} of the next")

    def _all_settings(self) -> Settings:
        """The settings of the YAML, and those that have another origin."""
        return {
            **self.settings,
            "precision": self.precision,
            "grad_accumulation_factor": self.grad_accumulation_factor,
            "max_grad_norm": self.max_grad_norm,
            "processes (torchrun)": distributed.world_size(),
            "training examples": self.train_sampler.num_examples,
        }

    def _take_over(self, changed: dict[str, tuple[object, object]]) -> None:
        """Give settings that a resumed state has overwritten their new values."""
        reached = self.global_step
        if "training examples" in changed and self.step:
            # Another data set has another order: the epoch begins anew.
            self.step, self.stats = 0, TrainStats()
        for name in ("batch_size", "processes (torchrun)"):
            old, new = changed.get(name, (1, 1))
            # Nothing of the epoch is left out; a part of a batch may come twice.
            self.step = self.step * old // new
        self.steps_before = reached - self.step  # the curves go on where they were
        for name, value in self.optimizer.defaults.items():
            if f"optimizer.{name}" in changed:
                for group in self.optimizer.param_groups:
                    group[name] = value

    def _fit_train(self, train_set: Any, epoch: int, enable: bool) -> None:
        self.epoch = epoch
        self.on_stage_start(Stage.TRAIN, epoch)
        self.modules.train()
        self.zero_grad(set_to_none=True)
        self.train_sampler.set_position(epoch, first_step=self.step)
        self._saved_at = (time.time(), self.step)
        self._log_time = time.time()
        bar = tqdm(
            train_set,
            initial=self.step,
            total=self.train_sampler.steps_per_epoch,
            desc=f"epoch {epoch}",
            dynamic_ncols=True,
            disable=not enable,
            colour=self.tqdm_barcolor["train"] or None,
        )
        with bar, self._profiling():
            for batch in bar:
                if self._optimizer_step_limit_exceeded:
                    logger.info("optimizer_step_limit reached")
                    break
                self.step += 1
                closes_window = self._closes_window()
                with self.memory:
                    self.fit_batch(batch)
                bar.set_postfix(
                    loss=f"{self.stats.loss:.2f}", kept=f"{self.stats.kept_share:.2f}"
                )
                self._log_step(len(batch.ids))
                if self.profiler is not None:
                    self.profiler.step()
                if self.debug and self.step == self.debug_batches:
                    break
                if closes_window:
                    if self._save_is_due():
                        self._save_intra_epoch_ckpt()
                    self._stop_if_agreed()
        self.zero_grad(set_to_none=True)
        # Before the end-of-epoch save: what it stores is the start of the next epoch.
        self.avg_train_loss = self.stats.loss
        self.steps_before, self.step = self.global_step, 0
        self.on_stage_end(Stage.TRAIN, self.avg_train_loss, epoch)

    def _fit_valid(self, valid_set: Any, epoch: int, enable: bool) -> None:
        metrics: dict[str, float] = {}
        if valid_set is not None and self._validates(epoch):
            with self._ema_weights():
                self._evaluate_all(valid_set, Stage.VALID, epoch, enable)
            metrics = self.table_summary
        self.on_epoch_end(epoch, metrics)
        any_stop = distributed.gather_objects(self.stop_request.received is not None)
        if any(any_stop):
            raise StopRun(f"stopped after epoch {epoch}; its checkpoint is saved")

    def _validates(self, epoch: int) -> bool:
        every = self.hparams.valid_every
        last = epoch >= self.hparams.epoch_counter.limit
        return every > 0 and (last or epoch % every == 0)

    def on_epoch_end(self, epoch: int, metrics: dict[str, float]) -> None:
        """Schedule, log and publish the end-of-epoch checkpoint on every rank.

        Arguments
        ---------
        epoch : int
            The epoch that ended.
        metrics : dict[str, float]
            Validation means, empty when this epoch was not validated.
        """
        value = metrics.get(self.monitor)
        is_ranked = value is not None and math.isfinite(value)
        if value is not None and not is_ranked:
            logger.warning(f"validation {self.monitor} is {value}: epoch not ranked")
        lr = self.optimizer.param_groups[0]["lr"]
        update_learning_rate(
            self.hparams.lr_scheduler,
            self.optimizer,
            epoch,
            loss=-value if is_ranked else None,
        )
        train = {
            "loss": self.stats.loss,
            "kept_share": self.stats.kept_share,
            "nonfinite": self.stats.nonfinite,
            "silent": self.stats.silent,
            "steps_skipped": self.stats.steps_skipped,
            **self.stats.per_term(self.term_names),
        }
        if self.stats.silent_ids and sb.utils.distributed.if_main_process():
            names = listed(self.stats.silent_ids, self.stats.silent)
            logger.warning(f"epoch {epoch}: silent targets, left out: {names}")
        self.stats = TrainStats()
        # On all ranks: SpeechBrain's logger broadcasts, and writes on the main one.
        self.hparams.train_logger.log_stats(
            {"epoch": epoch, "lr": lr},
            train_stats=train,
            valid_stats=metrics,
            verbose=False,
        )
        stages = {"train": train, "valid": metrics}
        logger.info(short_line(f"epoch {epoch}, lr {lr:.3g}", stages, self.term_names))
        if self.log is not None:
            self.log.epoch(epoch, {"train": train | {"lr": lr}, "valid": metrics})
            self.log.curves()
        flag = sb.core.INTRA_EPOCH_CKPT_FLAG
        self.checkpointer.save_and_keep_only(
            meta={
                "epoch": epoch,
                "global_step": self.global_step,
                "settings": self._all_settings(),
            }
            | ({self.monitor: value} if is_ranked else {}),
            num_to_keep=self.hparams.keep_checkpoints,
            max_keys=[self.monitor],
            importance_keys=[],
            # One from within the epoch must not take the place of an epoch's.
            ckpt_predicate=lambda ckpt: flag not in ckpt.meta,
            spare=SPARE_CHECKPOINTS,
        )
        self.checkpointer.delete_checkpoints(
            num_to_keep=0,
            ckpt_predicate=lambda ckpt: flag in ckpt.meta,
            verbosity=logging.DEBUG,
            spare=SPARE_CHECKPOINTS,
        )

    def _minutes_have_passed(self) -> bool:
        """Whether this rank's clock asks for a checkpoint; `_choose` asks all ranks."""
        minutes = (time.time() - self._saved_at[0]) / 60
        return 0 < self.ckpt_interval_minutes <= minutes

    def _save_is_due(self) -> bool:
        steps = self.step - self._saved_at[1]
        return self._save_agreed or 0 < self.ckpt_interval_steps <= steps

    def _save_intra_epoch_ckpt(self) -> None:
        self._saved_at, self._save_agreed = (time.time(), self.step), False
        flag = sb.core.INTRA_EPOCH_CKPT_FLAG
        self.checkpointer.save_and_keep_only(
            meta={
                flag: True,
                "global_step": self.global_step,
                "settings": self._all_settings(),
            },
            end_of_epoch=False,
            num_to_keep=1,
            importance_keys=[],
            ckpt_predicate=lambda ckpt: flag in ckpt.meta,
            verbosity=logging.DEBUG,
            spare=SPARE_CHECKPOINTS,
        )

    @property
    def global_step(self) -> int:
        """Training steps done in all epochs: the x axis of the curves."""
        return self.steps_before + self.step

    def _stop_if_agreed(self) -> None:
        if self._stop_agreed:
            self._save_intra_epoch_ckpt()
            raise StopRun(
                f"stopped in epoch {self.epoch} after step {self.step}; the same "
                "command continues"
            )

    def _profiling(self) -> Any:
        return nullcontext() if self.profiler is None else self.profiler

    # ------------------------------------------------------------------ evaluation

    @torch.no_grad()
    def evaluate_batch(self, batch: Batch, stage: Stage) -> Tensor:
        """Separate and score each example alone, so that a score never sees padding.

        Arguments
        ---------
        batch : Batch
            Examples of any lengths, zero-padded.
        stage : Stage
            VALID or TEST.

        Returns
        -------
        Tensor
            Mean of the negated example metric over the batch; NaN if it has none.
        """
        if stage == Stage.TEST and self.stop_request.received is not None:
            raise StopRun("stopped during the test; --test_only runs it again")
        batch = batch.to(self.device)
        self.notes += batch.notes
        values = []
        for index in range(len(batch.ids)):
            if not batch.counts_B[index]:
                continue
            length = batch.length_B[index]
            mix_T = batch.mix[index, ..., :length]
            target_ST = batch.src[index, ..., :length]
            with self.evaluation_ctx:
                est_ST = self.separate(mix_T[None])[0].float()
            self.nonfinite_outputs += int(not torch.isfinite(est_ST).all())
            self.silent += self.silent_targets(batch.ids[index], target_ST)
            scores = self.score(est_ST, target_ST, mix_T, stage)
            self.table.add(batch.ids[index], **scores)
            if (value := scores[self.example_metric]) is not None:
                values.append(-value)
            self._keep_audio(batch.ids[index], mix_T, est_ST, target_ST, stage)
        return torch.tensor(values).mean()

    # ------------------------------------------------------------------ data

    def loader(
        self, dataset: Dataset, batch_size: int, training: bool = False
    ) -> DataLoader:
        """This rank's share of a data set.

        Arguments
        ---------
        dataset : Dataset
            Gives an `Example` for an `ExampleKey`.
        batch_size : int
            Per rank.
        training : bool
            Shuffled crops of one length; else whole files in order.

        Raises
        ------
        HparamsError
            `batch_size` or `num_workers` is out of range.
        """
        try:
            sampler = EpochSampler(
                len(dataset),
                batch_size,
                rank=distributed.rank(),
                world_size=distributed.world_size(),
                shuffle=training,
                seed=self.hparams.seed,
            )
            return make_loader(
                dataset,
                sampler,
                collate=collate_crops if training else collate_whole,
                num_workers=self.hparams.num_workers,
                pin_memory=self.device_type == "cuda",
            )
        except ValueError as error:
            raise HparamsError(str(error)) from error

    # ------------------------------------------------------------------ logs, state

    def _open_log(self, step: int, epochs_done: int) -> None:
        if sb.utils.distributed.if_main_process():
            self.output_folder.mkdir(parents=True, exist_ok=True)
            self.log = RunLog(self.output_folder, tensorboard=self.hparams.tensorboard)
            self.log.rewind(step=step, epoch=epochs_done)
            rewind_epochs(Path(self.hparams.train_logger.save_file), epochs_done)

    def _log_step(self, batch_size: int) -> None:
        every = self.hparams.log_every
        if self.log is None or self.step % every:
            return
        examples = batch_size * every * distributed.world_size()
        self.log.scalars(
            self.global_step,
            loss=self.stats.loss,
            lr=self.optimizer.param_groups[0]["lr"],
            grad_norm=self.grad_norm,
            kept_share=self.stats.kept_share,
            skipped=self.stats.steps_skipped,
            **self.stats.per_term(self.term_names),
            examples_per_second=examples / (time.time() - self._log_time),
        )
        self._log_time = time.time()

    @mark_as_saver
    def _save(self, path: Path) -> None:
        state = {
            "step": self.step,
            "steps_before": self.steps_before,
            "optimizer_step": self.optimizer_step,
            "nonfinite_count": self.nonfinite_count,
            "grad_norm": self.grad_norm,
            "stats": asdict(self.stats),
        }
        Path(path).write_text(yaml.safe_dump(state), encoding="utf-8")

    @mark_as_loader
    def _recover(self, path: Path, end_of_epoch: bool) -> None:
        state = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        self.step = state["step"]
        self.steps_before = state["steps_before"]
        self.optimizer_step = state["optimizer_step"]
        self.nonfinite_count = state["nonfinite_count"]
        self.grad_norm = state["grad_norm"]
        self.stats = TrainStats(**state["stats"])
