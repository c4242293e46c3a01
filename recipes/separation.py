"""The training step that every recipe shares; tasks override only what differs.

Read `fit_batch` first. Its rules keep many processes right:

1. Every rank runs one forward and one backward on every batch, whatever is in it.
2. Examples with samples that are not finite, or beyond any level, are zeroed before
   the forward and weigh nothing.
3. An example has one loss term or several (music: one per stem). The ranks exchange
   them (one small all-gather, in `modules/losses/choice.py`); from these all of them
   compute the same choice of terms, the same counts, the same decision.
4. The backward sums over the chosen terms. Before the optimizer steps, the summed
   gradient is divided by their number over all ranks and accumulated batches: R ranks
   x A accumulated batches x B examples give the gradient of one batch of R*A*B.
5. Gradients are then equal on all ranks, so that "the norm is not finite: skip" needs
   no further message.

Legend: B batch, K loss terms of an example, S source, T sample.
"""

import itertools
import logging
import math
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import speechbrain as sb
import torch
import yaml
from speechbrain import Stage
from speechbrain.utils.checkpoints import (
    Checkpoint,
    mark_as_loader,
    mark_as_saver,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from modules.audio.faults import LARGEST_PEAK
from modules.data.batch import Batch, collate_crops, collate_whole
from modules.data.loader import EpochSampler, make_loader
from modules.losses.choice import Choice, choose, masked_sum
from modules.monitor.memory import MemoryProfile
from modules.runtime import distributed
from modules.runtime.errors import HparamsError
from modules.runtime.randomness import seed_step
from modules.runtime.signals import StopRequest, StopRun
from modules.weights.ema import EMA
from recipes.checkpoints import SaveClock, save_epoch, save_mid_epoch
from recipes.config.schema import RunSettings
from recipes.config.settings import Settings, check_settings
from recipes.evaluation import (
    AudioKeeper,
    Evaluator,
    Scores,
    load_best,
    load_mean,
    silent_talkers,
)
from recipes.report import Reporter, listed, print_places, print_scores
from recipes.schedule import LearningRate
from recipes.train_stats import Accumulation, NonFiniteWatch, TrainStats, name_silent

logger = logging.getLogger(__name__)
NOTHING_TO_TEST = "the data have no test set; --test_folder=FOLDER names one"


@sb.utils.checkpoints.register_checkpoint_hooks
class Separation(sb.Brain):
    """Trains and evaluates a separator; see the module docstring for the rules.

    A task overrides `compute_forward`, `compute_objectives` (the `Terms` of a batch),
    `score` and `make_loaders`. `modules.separator` is the network.
    """

    #: Which settings the task reads.
    settings_class: type[RunSettings] = RunSettings

    #: Weights of the loss terms of an example, and their names where there are several.
    term_weights: Sequence[float] = (1.0,)
    term_names: Sequence[str] = ()

    #: Names of the targets in saved audio; numbered where there are none.
    target_names: Sequence[str] = ()

    #: Samples beyond it are treated as NaN.
    largest_peak = LARGEST_PEAK

    #: Whether a silent target is a matter of course: counted, but not named.
    silence_is_common = False

    #: Validation metric that ranks checkpoints and drives the plateau; higher: better.
    monitor = "si_snr"

    #: Score of one example that the progress bar of an evaluation shows.
    example_metric = "si_snr"

    #: How the report writes the metrics.
    metric_names: dict[str, str] = {}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        try:
            super().__init__(*args, **kwargs)
        except ValueError as error:  # a run option that this machine cannot serve
            raise HparamsError(str(error)) from error
        config = self.config = self.settings_class.read(vars(self.hparams))
        if not (self.ckpt_interval_minutes or self.ckpt_interval_steps):
            self.ckpt_interval_minutes = config.checkpoint_minutes
        self.stats = TrainStats()
        self.accumulated = Accumulation()
        self.watch = NonFiniteWatch(self.nonfinite_patience)
        self.learning_rate = LearningRate(
            config.lr, config.lr_scheduler, config.rate_factor
        )
        self.epoch = 0
        self.steps_before = 0  # of this epoch
        self.grad_norm = float("nan")
        self.stop_request = StopRequest()
        self.settings: Settings = {}
        self.summary: dict | None = None  # of the last validation or test
        self._stop_agreed = False
        self._save_agreed = False
        self._warned: set[Stage] = set()
        self.output_folder = Path(config.output_folder)
        self.is_trial = self.debug and not self.debug_persistently
        if self.is_trial:
            self.output_folder = self.output_folder / "debug"
            if self.test_only:  # saves nothing, so it may look at the real ones
                self.checkpointer.checkpoints_dir = Path(config.save_folder)
            config.train_logger.save_file = self.output_folder / "train_log.txt"
        if config.lr_scheduler is None:  # the rate stays, nothing to save
            self.checkpointer.recoverables.pop("lr_scheduler", None)
        self.clock = SaveClock(self.ckpt_interval_minutes, self.ckpt_interval_steps)
        self.reporter = Reporter(
            self.output_folder,
            config.train_logger,
            config.log_every,
            config.tensorboard,
        )
        self.memory: Any = nullcontext()
        self.ema: EMA | None = None
        if config.ema_decay:
            self.ema = EMA(decay=config.ema_decay)
            self.ema.attach(self.modules["separator"])
            optional = config.allow_changes  # it may have been off before
            self.checkpointer.add_recoverable("ema", self.ema, optional_load=optional)

    # ------------------------------------------------------------------ one step

    def fit_batch(self, batch: Batch) -> Tensor:
        """Forward, choose, backward; step when enough batches are accumulated.

        Arguments
        ---------
        batch : Batch
            This rank's share of the global batch.

        Returns
        -------
        Tensor
            Mean loss over the epoch's kept examples so far, for SpeechBrain's bar.
        """
        batch = batch.to(self.device)
        should_step = self._completes_a_step()
        seed_step(self.config.seed, distributed.rank(), self.epoch, self.step)
        finite_B = batch.zero_nonfinite(self.largest_peak)
        self.on_fit_batch_start(batch, should_step)

        with self.no_sync(not should_step):
            with self.training_ctx:
                outputs = self.compute_forward(batch, Stage.TRAIN)
                terms = self.compute_objectives(outputs, batch, Stage.TRAIN)
            choice = choose(
                terms,
                finite_B,
                batch.counts_B,
                self.config.select,
                batch_size=self.config.batch_size,
                loss_limit=self.config.loss_upper_lim,
                flags=(
                    self.stop_request.received is not None,
                    self.clock.minutes_passed(),
                ),
            )
            weights_K = terms.loss_BK.new_tensor(self.term_weights)
            loss = masked_sum(terms.loss_BK, choice.keep_BK, weights_K)
            self.scaler.scale(loss).backward()

        self.on_choice(choice, batch)
        if should_step:
            self.optimizers_step()
        self.on_fit_batch_end(batch, outputs, loss, should_step)
        return torch.tensor(self.stats.loss)

    def _wants_to_stop(self) -> bool:
        return self.stop_request.received is not None

    def _completes_a_step(self) -> bool:
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
        self._stop_agreed = self._stop_agreed or stop
        self._save_agreed = self._save_agreed or save

    def optimizers_step(self) -> None:
        """Average, check, clip and apply the accumulated gradient."""
        accumulated, self.accumulated = self.accumulated, Accumulation()
        optimizers = list(self.freeze_optimizers(self.optimizers_dict).values())
        for optimizer in optimizers:
            self.scaler.unscale_(optimizer)
        groups = [group for opt in optimizers for group in opt.param_groups]
        parameters = [weight for group in groups for weight in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        # Rule 4; DDP has already divided by the number of ranks.
        to_mean = distributed.world_size() / (accumulated.weight or 1.0)
        norm = to_mean * float(torch.nn.utils.get_total_norm(gradients))
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

        if is_finite and accumulated.kept:
            self.optimizer_step += 1
            if self.ema is not None:
                self.ema.update()
        else:
            self.stats.steps_skipped += 1
        searching = self.scaler.is_enabled() and self.scaler.get_scale() > 1
        where = f"epoch {self.epoch}, step {self.step}"
        self.watch.look(accumulated, is_finite, searching, where)
        name_silent(self.stats, accumulated)

    def _learning_rate(self) -> float:
        """The rate of the optimizer step that is about to be taken."""
        batches = self.train_sampler.steps_per_epoch
        steps = math.ceil(batches / self.grad_accumulation_factor)
        total = self.config.epoch_counter.limit * steps
        return self.learning_rate.at(self.epoch, self.optimizer_step, total)

    # ------------------------------------------------------------------ one epoch

    def fit(self, epoch_counter: Any, train_set: Any, valid_set: Any = None) -> None:
        """SpeechBrain's fit, on loaders made by `modules.data.loader.make_loader`."""
        number, keep = self.config.average_last, self.config.keep_checkpoints
        short = min(keep, epoch_counter.limit) < number or self.ema is not None
        if number and not self.test_only and short:
            raise HparamsError(  # now, not after days of training
                f"average_last={number}: set keep_checkpoints={number}, N_epochs to "
                "as many or more, and ema_decay=0"
            )
        self.train_sampler = train_set.batch_sampler
        super().fit(epoch_counter, train_set, valid_set)

    def init_optimizers(self) -> None:
        """Make the optimizer, whose rate the schedule begins with."""
        super().init_optimizers()
        self.learning_rate.current = self.optimizer.defaults["lr"]

    def on_fit_start(self) -> None:
        """Wrap, make the optimizer, resume; then say where the run stands."""
        found = self.checkpointer.find_checkpoint()
        allowed = self.config.allow_changes
        changed = check_settings(found, self._all_settings(), allowed)
        super().on_fit_start()
        self._begin_average(found)
        self._take_over(changed)
        # A mid-epoch checkpoint holds step > 0 of the epoch that is about to start.
        done = self.config.epoch_counter.current
        if self.config.profile_memory and sb.utils.distributed.if_main_process():
            self.memory = MemoryProfile(
                self.network, self.optimizer, self.output_folder
            )
        self.reporter.open(self.global_step, done)
        if found is None:
            return
        if self._optimizer_step_limit_exceeded and not self.step:
            # Else each new start would add an epoch without a step.
            logger.info("already trained for all steps of optimizer_step_limit")
            self.config.epoch_counter.limit = done
        elif done >= self.config.epoch_counter.limit:
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
        if "optimizer.lr" in changed:
            self.learning_rate.current = self.optimizer.defaults["lr"]

    def _fit_train(self, train_set: Any, epoch: int, enable: bool) -> None:
        self.epoch = epoch
        self.on_stage_start(Stage.TRAIN, epoch)
        self.modules.train()
        self.zero_grad(set_to_none=True)
        self.train_sampler.set_position(epoch, first_step=self.step)
        self.clock.restart(self.step)
        self.reporter.begin_epoch()
        bar = self._bar(
            train_set, Stage.TRAIN, self.train_sampler.steps_per_epoch, enable
        )
        with bar, self.profiler or nullcontext():
            for batch in bar:
                if self._optimizer_step_limit_exceeded:
                    logger.info("optimizer_step_limit reached")
                    break
                self.step += 1
                should_step = self._completes_a_step()
                with self.memory:
                    self.fit_batch(batch)
                bar.set_postfix(
                    loss=f"{self.stats.loss:.2f}", kept=f"{self.stats.kept_share:.2f}"
                )
                self._log_batch(len(batch.ids))
                if self.profiler is not None:
                    self.profiler.step()
                if self.debug and self.step == self.debug_batches:
                    break
                if should_step:
                    if self._save_agreed or self.clock.steps_passed(self.step):
                        self._save_intra_epoch_ckpt()
                    if self._stop_agreed:
                        self._save_intra_epoch_ckpt()
                        raise StopRun(
                            f"stopped in epoch {epoch} after step {self.step}; the "
                            "same command continues"
                        )
        self.zero_grad(set_to_none=True)
        # Before the end-of-epoch save: what it stores is the start of the next epoch.
        self.avg_train_loss = self.stats.loss
        self.steps_before, self.step = self.global_step, 0
        self.on_stage_end(Stage.TRAIN, self.avg_train_loss, epoch)

    def _log_batch(self, examples: int) -> None:
        values = {
            "loss": self.stats.loss,
            "lr": self.optimizer.param_groups[0]["lr"],
            "grad_norm": self.grad_norm,
            "kept_share": self.stats.kept_share,
            "skipped": self.stats.steps_skipped,
            **self.stats.per_term(self.term_names),
        }
        self.reporter.batch(self.global_step, self.step, examples, values)

    def _fit_valid(self, valid_set: Any, epoch: int, enable: bool) -> None:
        metrics: dict[str, float] = {}
        if valid_set is not None and self._validates(epoch):
            with self._ema_weights():
                self._evaluate_all(valid_set, Stage.VALID, epoch, enable)
            metrics = self.scores
        self.on_epoch_end(epoch, metrics)
        if any(distributed.gather_objects(self._wants_to_stop())):
            raise StopRun(f"stopped after epoch {epoch}; its checkpoint is saved")

    def _validates(self, epoch: int) -> bool:
        every = self.config.valid_every
        last = epoch >= self.config.epoch_counter.limit
        return every > 0 and (last or epoch % every == 0)

    def on_epoch_end(self, epoch: int, metrics: dict[str, float]) -> None:
        """Schedule, log and save a finished epoch, on every rank.

        `metrics` are the validation's means, empty when there was none.
        """
        value = metrics.get(self.monitor)
        is_ranked = value is not None and math.isfinite(value)
        if value is not None and not is_ranked:
            logger.warning(f"validation {self.monitor} is {value}: epoch not ranked")
        lr = self.optimizer.param_groups[0]["lr"]
        loss = -value if is_ranked else None
        self.learning_rate.end_epoch(self.optimizer, epoch, loss)
        stats, self.stats = self.stats, TrainStats()
        if stats.silent_ids and sb.utils.distributed.if_main_process():
            names = listed(stats.silent_ids, stats.silent)
            logger.warning(f"epoch {epoch}: silent targets, left out: {names}")
        train = stats.totals(self.term_names)
        self.reporter.epoch(epoch, lr, train, metrics, self.term_names)
        meta = {"epoch": epoch, **self._meta()}
        if is_ranked:
            meta[self.monitor] = value
        keep = self.config.keep_checkpoints
        save_epoch(self.checkpointer, meta, self.monitor, keep)

    def _meta(self) -> dict[str, object]:
        """What every checkpoint says of itself."""
        return {"global_step": self.global_step, "settings": self._all_settings()}

    def _save_intra_epoch_ckpt(self) -> None:
        self.clock.restart(self.step)
        self._save_agreed = False
        save_mid_epoch(self.checkpointer, self._meta())

    @property
    def global_step(self) -> int:
        """Training steps done in all epochs: the x axis of the curves."""
        return self.steps_before + self.step

    def _bar(
        self, batches: Iterable[Batch], stage: Stage, total: int, enable: bool
    ) -> tqdm:
        """A progress bar over the batches of an epoch, a validation or a test."""
        name, is_training = stage.name.lower(), stage == Stage.TRAIN
        return tqdm(
            batches,
            initial=self.step if is_training else 0,
            total=total,
            desc=f"epoch {self.epoch}" if is_training else name,
            dynamic_ncols=True,
            disable=not enable,
            colour=self.tqdm_barcolor[name] or None,
        )

    # ------------------------------------------------------------------ evaluation

    def evaluate_batch(self, batch: Batch, stage: Stage) -> Tensor:
        """Score each example of a zero-padded batch; return the mean negated metric."""
        if stage == Stage.TEST and self._wants_to_stop():
            raise StopRun("stopped during the test; --test_only runs it again")
        return self.evaluator.add(batch.to(self.device))

    def score(
        self, est_ST: Tensor, target_ST: Tensor, mix_T: Tensor, stage: Stage, /
    ) -> Scores:
        """Score one example, in dB by name of the score; a task's own."""
        raise NotImplementedError

    def silent_targets(self, id_: str, target_ST: Tensor, /) -> list[str]:
        """Name an example's targets that have no score."""
        return silent_talkers(id_, target_ST)

    def separate(self, mix_BT: Tensor, /) -> Tensor:
        """Separate whole mixtures; a task's own. Use `self.network`, see there."""
        raise NotImplementedError

    @property
    def network(self) -> nn.Module:
        """The bare separator, which evaluation runs.

        Without the wrappers of `self.modules`: DDP would wait for ranks whose share is
        smaller, and a compiled graph would be rebuilt for every length.
        """
        return distributed.unwrap(self.modules["separator"])

    def evaluate(
        self, test_set: DataLoader | None, max_key: str | None = None
    ) -> dict[str, float]:
        """Test the checkpoint that is best by `max_key`; write and return the means.

        `test_set` is None where the data have neither a test nor a validation set:
        an `HparamsError` with `--test_only`, else a warning.
        """
        if test_set is None:
            if self.test_only:
                raise HparamsError(f"--test_only: {NOTHING_TO_TEST}")
            logger.warning(f"not tested: {NOTHING_TO_TEST}")
            self.summary = None
            return {}
        self._load_for_evaluation(max_key)
        enable = not self.noprogressbar and sb.utils.distributed.if_main_process()
        with self._ema_weights():
            self._evaluate_all(test_set, Stage.TEST, None, enable)
        return self.scores

    def _load_for_evaluation(self, max_key: str | None) -> None:
        """Load the weights that are tested."""
        number = self.config.average_last
        if not number:
            pretrained = self.config.pretrained
            self._begin_average(load_best(self.checkpointer, max_key, pretrained))
            return
        if self.debug and not self.test_only:
            number = min(number, self.debug_epochs)  # a trial has no more
        if self.ema is not None:
            raise HparamsError(f"average_last={number}: set ema_decay=0")
        load_mean(self.checkpointer, self.network, number)

    def _begin_average(self, found: Checkpoint | None) -> None:
        """Start from the plain weights where a checkpoint has no averaged ones."""
        if self.ema is not None and found is not None and "ema" not in found.paramfiles:
            self.ema.attach(self.modules["separator"])

    def _ema_weights(self) -> Any:
        return nullcontext() if self.ema is None else self.ema.applied()

    def _evaluate_all(
        self, loader: DataLoader, stage: Stage, epoch: int | None, enable: bool
    ) -> None:
        self.on_stage_start(stage, epoch)
        self.modules.eval()
        total = min(self.debug_batches, len(loader)) if self.debug else len(loader)
        losses: list[float] = []
        mean = math.nan
        with (
            torch.no_grad(),
            self._bar(itertools.islice(loader, total), stage, total, enable) as bar,
        ):
            for batch in bar:
                loss = float(self.evaluate_batch(batch, stage))
                if math.isfinite(loss):
                    losses.append(loss)
                    mean = math.fsum(losses) / len(losses)
                    bar.set_postfix({self.example_metric: f"{-mean:.2f}"})
        self.on_stage_end(stage, mean, epoch)

    def on_stage_start(self, stage: Stage, epoch: int | None = None) -> None:
        """Begin a validation or a test with an empty table of results."""
        if stage == Stage.TRAIN:
            return
        keeper = AudioKeeper(
            self.output_folder / "audio" if stage == Stage.TEST else None,
            self.reporter.curves,
            self.epoch,
            self.config.sample_rate,
            self.config.n_audio_to_save,
            (self.term_names, self.target_names),
        )
        self.evaluator = Evaluator(
            self._separate_in_precision,
            lambda est, target, mix: self.score(est, target, mix, stage),
            self.example_metric,
            self.silent_targets,
            keeper.keep if sb.utils.distributed.if_main_process() else None,
        )

    def _separate_in_precision(self, mix_BT: Tensor) -> Tensor:
        with self.evaluation_ctx:
            return self.separate(mix_BT)

    def on_stage_end(
        self, stage: Stage, stage_loss: float, epoch: int | None = None
    ) -> None:
        """Merge the ranks' tables; write the test's results."""
        if stage == Stage.TRAIN:
            return
        self.summary, self.scores = self.evaluator.merge_ranks()
        self.scores |= self.set_scores(stage)
        if stage not in self._warned:  # once for each set
            self.evaluator.warn(stage.name.lower())
        self._warned.add(stage)
        if self.evaluator.has_nonfinite:
            logger.warning("the network's output is not finite for some examples")
            self.scores[self.monitor] = math.nan
        if stage != Stage.TEST:
            return
        if sb.utils.distributed.if_main_process():
            table = self.evaluator.table
            table.write_csv(self.output_folder / "test_results.csv")
            table.write_json(self.output_folder / "test_results.json")
        loaded = self.config.epoch_counter.current
        self.reporter.test(loaded, self.scores, self.term_names)

    def set_scores(self, stage: Stage) -> dict[str, float]:
        """Return scores of the whole set that are no means over its examples."""
        return {}

    def report(self) -> None:
        """Print the test's table and where the run's files are, on the main process."""
        if not sb.utils.distributed.if_main_process():
            return
        if self.summary is not None:
            print_scores(self.reported(self.summary), self.metric_names)
        # The checkpoints of a trial are gone when it ends.
        saved = None if self.is_trial else Path(self.checkpointer.checkpoints_dir)
        print_places(self.output_folder, saved)

    def reported(self, summary: dict) -> dict:
        """Return the part of the test's summary that the report shows."""
        return summary

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
                seed=self.config.seed,
            )
            return make_loader(
                dataset,
                sampler,
                collate=collate_crops if training else collate_whole,
                num_workers=self.config.num_workers,
                pin_memory=self.device_type == "cuda",
            )
        except ValueError as error:
            raise HparamsError(str(error)) from error

    # ------------------------------------------------------------------ state

    @mark_as_saver
    def _save(self, path: Path) -> None:
        state = {
            "step": self.step,
            "steps_before": self.steps_before,
            "optimizer_step": self.optimizer_step,
            "nonfinite_count": self.watch.count,
            "learning_rate": self.learning_rate.current,
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
        self.watch.count = state["nonfinite_count"]
        self.learning_rate.current = state["learning_rate"]
        self.grad_norm = state["grad_norm"]
        self.stats = TrainStats(**state["stats"])
