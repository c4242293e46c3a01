"""A run around the training step: epochs, checkpoints, validation, the test.

The step itself is in `recipes/step.py`; what a task adds is in `recipes/speech.py` and
`recipes/music.py`.

Legend: B batch, S source, T sample.
"""

import itertools
import logging
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import speechbrain as sb
import torch
import yaml
from speechbrain import Stage
from speechbrain.utils.checkpoints import Checkpoint, mark_as_loader, mark_as_saver
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from modules.data.batch import Batch, collate_crops, collate_whole
from modules.data.index import identity
from modules.data.loader import EpochSampler, make_loader
from modules.data.manifest import Row
from modules.losses.si_snr import SILENCE
from modules.metrics.measures import Metric, check_metrics
from modules.monitor.memory import MemoryProfile
from modules.runtime import distributed
from modules.runtime.errors import HparamsError, first_of
from modules.runtime.signals import StopRun
from modules.weights.checkpoint_files import check_fit
from modules.weights.checkpointer import mean_of_epochs
from modules.weights.ema import EMA
from recipes.checkpoints import save_epoch, save_mid_epoch
from recipes.config.settings import Settings, check_settings
from recipes.evaluation import AudioKeeper, Evaluator, Scores, load_best
from recipes.report import Reporter, print_places, print_scores
from recipes.schedule import Waiting
from recipes.step import TrainingStep
from recipes.train_stats import TrainStats, known

logger = logging.getLogger(__name__)
NOTHING_TO_TEST = "the data have no test set; --test_folder=FOLDER names one"


@sb.utils.checkpoints.register_checkpoint_hooks
class Separation(TrainingStep):
    """Trains and evaluates a separator.

    A task overrides `compute_forward`, `compute_objectives`, `separate`, `score` and
    `make_loaders`.
    """

    #: Names of the loss terms, where an example has several.
    term_names: Sequence[str] = ()

    #: Names of the targets in saved audio; numbered where there are none.
    target_names: Sequence[str] = ()

    #: Validation metric that ranks checkpoints and drives the plateau; higher: better.
    monitor = "si_snr"

    #: Score of one example that the progress bar of an evaluation shows.
    example_metric = "si_snr"

    #: What `metrics` may name.
    known_metrics: Mapping[str, Metric] = {}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        config = self.config
        #: Those of the test; the first is the one that examples are sorted by.
        self.metrics = list(dict.fromkeys([self.example_metric, *config.metrics]))
        check_metrics(self.metrics, self.known_metrics, config.sample_rate)
        self.steps_before = 0  # of this epoch
        self.waiting = Waiting()
        self.settings: Settings = {}
        self.data: Settings = {}  # what a resume compares of them, from `make_loaders`
        self.summary: dict | None = None  # of the last validation or test
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
        options = config.train_logger, config.log_every, config.tensorboard
        self.reporter = Reporter(self.output_folder, *options)
        self.memory: Any = nullcontext()

    # ------------------------------------------------------------------ one epoch

    def fit(self, epoch_counter: Any, train_set: Any, valid_set: Any = None) -> None:
        """Train on what `make_loaders` returned; with `--test_only` do nothing."""
        if self.test_only:
            return
        self.train_sampler = train_set.batch_sampler
        self.has_valid_set = valid_set is not None
        last, best = self.config.average_last, self.config.average_best
        epochs = range(1, epoch_counter.limit + 1)
        enough = sum(map(self._validates, epochs)) if best else len(epochs)
        number = max(last, best)
        if number and (self.ema is not None or (last and best) or number > enough):
            name, what = ("best", "validations") if best else ("last", "epochs")
            raise HparamsError(  # now, not after days of training
                f"average_{name}={number}: needs as many {what} (here: {enough}), "
                f"ema_decay=0 and no other average; average_{name}=0 is without"
            )
        with self.stop_request.later():
            super().fit(epoch_counter, train_set, valid_set)

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
        is_over = self._optimizer_step_limit_exceeded and not self.step
        if is_over or self._waited_enough():
            # Else each new start would add an epoch, without a step at a limit.
            logger.info("already trained up to optimizer_step_limit or stop_patience")
            self.config.epoch_counter.limit = done
        elif done >= self.config.epoch_counter.limit:
            logger.info(f"already trained for all {done} epochs: testing only")
        else:
            logger.info(f"Resuming after epoch {done}, step {self.step} of the next")

    def _all_settings(self) -> Settings:
        """Return what a resume compares: the YAML's settings and some run options."""
        return {
            **self.settings,
            **self.data,
            "precision": self.precision,
            "grad_accumulation_factor": self.grad_accumulation_factor,
            "max_grad_norm": self.max_grad_norm,
            "processes (torchrun)": distributed.world_size(),
            "training examples": self.train_sampler.num_examples,
        }

    def _take_over(self, changed: dict[str, tuple[Any, Any]]) -> None:
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
        self.set_training()
        self.zero_grad(set_to_none=True)
        self.train_sampler.set_position(epoch, first_step=self.step)
        self.clock.restart(self.step)
        self.reporter.begin_epoch()
        bar = self._bar(
            train_set, Stage.TRAIN, self.train_sampler.steps_per_epoch, enable
        )
        with bar, self.profiler or nullcontext():
            for batch in distributed.agreed(bar):
                if self._optimizer_step_limit_exceeded:
                    logger.info("optimizer_step_limit reached")
                    break
                self.step += 1
                should_step = self.completes_a_step()
                with self.memory:
                    self.fit_batch(batch)
                shown = known(loss=self.stats.loss, kept=self.stats.kept_share)
                bar.set_postfix({name: f"{value:.2f}" for name, value in shown.items()})
                self._log_batch(len(batch.ids))
                if self.profiler is not None:
                    self.profiler.step()
                if self.debug and self.step == self.debug_batches:
                    break
                if should_step:
                    if self.save_agreed or self.clock.steps_passed(self.step):
                        self._save_intra_epoch_ckpt()
                    if self.stop_agreed:
                        self._save_intra_epoch_ckpt()
                        raise StopRun(
                            f"stopped in epoch {epoch} after step {self.step}; the "
                            "same command continues"
                        )
        self.zero_grad(set_to_none=True)
        if self._validates(epoch) and self.clock.saved_step != self.step:
            self._save_intra_epoch_ckpt()  # a validation can take hours
        # Before the end-of-epoch save: what it stores is the start of the next epoch.
        self.steps_before, self.step = self.global_step, 0
        self.on_stage_end(Stage.TRAIN, self.stats.loss, epoch)

    def set_training(self) -> None:
        """Put the modules into training mode."""
        self.modules.train()

    def _log_batch(self, examples: int) -> None:
        values = {
            **known(loss=self.stats.loss),
            "lr": self.optimizer.param_groups[0]["lr"],
            "grad_norm": self.grad_norm,
            "kept_share": self.stats.kept_share,
            "skipped": self.stats.steps_skipped,
            **self.stats.per_term(self.term_names),
        }
        self.reporter.batch(self.global_step, self.step, examples, values)

    def _fit_valid(self, valid_set: Any, epoch: int, enable: bool) -> None:
        metrics: dict[str, float] = {}
        if self._validates(epoch):
            with self.stop_request.at_once():
                metrics = self._validate(valid_set, epoch, enable)
        self.on_epoch_end(epoch, metrics)
        if any(distributed.gather_objects(self.stop_request.received)):
            raise StopRun(f"stopped after epoch {epoch}; its checkpoint is saved")

    def _validate(self, valid_set: Any, epoch: int, enable: bool) -> dict[str, float]:
        """Return the scores of the weights, or of the best of their averages."""
        ema, found = self.ema or EMA(0.0), []
        for number in range(len(ema.decays)):
            ema.best = number
            with self._ema_weights():
                self._evaluate_all(valid_set, Stage.VALID, epoch, enable)
            value = self.scores.get(self.monitor, math.nan)
            key = value if math.isfinite(value) else -math.inf
            found.append((key, -number, self.scores, self.evaluator.table))
        _, place, scores, table = max(found)  # the first of equals
        ema.best = -place
        if len(found) > 1:
            names = [f"{self.monitor}_ema{decay:g}" for decay in ema.decays]
            scores |= {n: one[0] for n, one in zip(names, found, strict=True)}
        self.reporter.validation(epoch, table)
        return scores

    def _validates(self, epoch: int) -> bool:
        every = self.config.valid_every
        last = epoch >= self.config.epoch_counter.limit
        return self.has_valid_set and every > 0 and (last or epoch % every == 0)

    def on_epoch_end(self, epoch: int, metrics: dict[str, float]) -> None:
        """Schedule, log and save a finished epoch, on every rank.

        `metrics` are the validation's means, empty when there was none.
        """
        value = metrics.get(self.monitor)
        is_ranked = value is not None and math.isfinite(value)
        if value is not None and not is_ranked:
            logger.warning(f"validation {self.monitor} is {value}: epoch not ranked")
        lr = self.optimizer.param_groups[0]["lr"]
        loss = -value if value is not None and is_ranked else None
        self.learning_rate.end_epoch(self.optimizer, epoch, loss)
        if loss is not None:
            self.waiting.add(loss)
        if self._waited_enough():
            self.config.epoch_counter.limit = epoch
        stats, self.stats = self.stats, TrainStats()
        for reason, text in self.left_out().items():
            ids, number = getattr(stats, f"{reason}_ids"), getattr(stats, reason)
            if ids and sb.utils.distributed.if_main_process():
                # What the selector drops is dropped on purpose.
                level = logging.INFO if reason == "dropped" else logging.WARNING
                names = first_of(ids, total=number)
                logger.log(level, f"epoch {epoch}: {text}, left out: {names}")
        train = stats.totals(self.term_names)
        self.reporter.epoch(epoch, lr, train, metrics, self.term_names)
        self.judge_epoch(epoch, stats)  # unsaved, so that a resume judges it again
        meta = {"epoch": epoch, **self._meta()}
        if is_ranked:
            meta[self.monitor] = value
        config = self.config
        keep = config.keep_checkpoints, config.average_last, config.average_best
        save_epoch(self.checkpointer, meta, self.monitor, max(keep))

    def _waited_enough(self) -> bool:
        return 0 < self.config.stop_patience <= self.waiting.waited

    def _meta(self) -> dict[str, object]:
        """Return what every checkpoint says of itself."""
        return {"global_step": self.global_step, "settings": self._all_settings()}

    def _save_intra_epoch_ckpt(self) -> None:
        self.clock.restart(self.step)
        self.save_agreed = False
        save_mid_epoch(self.checkpointer, self._meta())

    @property
    def global_step(self) -> int:
        """Training steps done in all epochs: the x axis of the curves."""
        return self.steps_before + self.step

    def _bar(
        self, batches: Iterable[Batch], stage: Stage, total: int, enable: bool
    ) -> tqdm:
        """Show progress over the batches of an epoch, a validation or a test."""
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
        return self.evaluator.add(batch.to(self.device))

    def score(
        self, est_ST: Tensor, target_ST: Tensor, mix_T: Tensor, stage: Stage, /
    ) -> Scores:
        """Score one example, in dB by name of the score; a task's own."""
        raise NotImplementedError

    def silent_targets(self, id_: str, target_ST: Tensor, /) -> list[str]:
        """Name an example if a target, without its mean, is too quiet for a score."""
        is_silent = bool((target_ST.var(-1, correction=0) <= SILENCE).any())
        return [id_] if is_silent else []

    @staticmethod
    def to_hear(est_ST: Tensor, target_ST: Tensor, /) -> tuple[Tensor, Sequence[str]]:
        """Return an example's estimates as they are played, and a note for each."""
        return est_ST, ()

    def separate(self, mix_BT: Tensor, /) -> Tensor:
        """Separate whole mixtures; a task's own. Use `self.network`, see there."""
        raise NotImplementedError

    @property
    def network(self) -> nn.Module:
        """Return the bare separator, which evaluation runs.

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
        if self.test_only and self.settings:  # else `on_fit_start` has compared all
            found = self.checkpointer.find_checkpoint()
            check_settings(found, self.settings, self.config.allow_changes, True)
        metric = self.monitor if self.config.average_best else None
        number = self.config.average_best or self.config.average_last
        if not number:
            pretrained = self.config.pretrained
            self._begin_average(load_best(self.checkpointer, max_key, pretrained))
            return
        if self.debug and not self.test_only:
            number = min(number, self.debug_epochs)  # a trial has no more
        if self.ema is not None:
            raise HparamsError(f"an average of {number} epochs: set ema_decay=0")
        state = mean_of_epochs(self.checkpointer.checkpoints_dir, number, metric)
        check_fit(self.network, state)
        self.network.load_state_dict(state)

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
                distributed.look_around()
                self.stop_request.check()  # an exception can get lost in a destructor
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
        number = self.config.n_audio_to_save
        self.keeper = AudioKeeper(
            self.output_folder if stage == Stage.TEST else None,
            self.reporter.curves if self.ema is None or not self.ema.best else None,
            self.epoch,
            self.config.sample_rate,
            sys.maxsize if number is None else number,
            (self.term_names, self.target_names),
            self.to_hear,
        )
        self.evaluator = Evaluator(
            self._separate_in_precision,
            lambda est, target, mix: self.score(est, target, mix, stage),
            self.example_metric,
            self.silent_targets,
            self.keeper.keep if sb.utils.distributed.if_main_process() else None,
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
            self.keeper.write_page(table.rows, self.example_metric)
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
            print_scores(self.reported(self.summary))
        # The checkpoints of a trial are gone when it ends.
        saved = None if self.is_trial else Path(self.checkpointer.checkpoints_dir)
        print_places(self.output_folder, saved)

    def reported(self, summary: dict) -> dict:
        """Return the part of the test's summary that the report shows."""
        return summary

    # ------------------------------------------------------------------ data

    def identify(
        self, rows: Mapping[str, Sequence[Row]], measured: Mapping[str, Iterable]
    ) -> None:
        """Note what a resume compares: ids, files, and what was measured of them."""

        def of_all() -> Settings:
            found: Settings = {name: identity(them) for name, them in measured.items()}
            for name in rows.keys() & {"train", "valid"}:
                ids = [(row.id, row.duration, row.unused) for row in rows[name]]
                files = (path for row in rows[name] for path in row.files)
                found[f"{name} files"] = identity(ids, files)
            return found

        self.data = distributed.run_on_main(of_all)

    def loader(
        self, dataset: Dataset, batch_size: int, training: bool = False
    ) -> DataLoader:
        """Return this rank's share of a data set.

        Training takes shuffled crops of one length, evaluation whole files in order;
        `batch_size` is that of a rank.
        """
        sampler = EpochSampler(
            len(dataset),  # type: ignore[arg-type]  # torch's Dataset has no length
            batch_size,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            shuffle=training,
            seed=self.config.seed,
        )
        collate = collate_crops if training else collate_whole
        config, pinned = self.config, self.config.pin_memory
        return make_loader(
            dataset,
            sampler,
            collate,
            config.num_workers,
            pin_memory=self.device_type == "cuda" if pinned is None else pinned,
            prefetch_factor=config.prefetch_factor,
            persistent_workers=config.persistent_workers,
        )

    # ------------------------------------------------------------------ state

    @mark_as_saver
    def _save(self, path: Path) -> None:
        state = {
            "step": self.step,
            "steps_before": self.steps_before,
            "optimizer_step": self.optimizer_step,
            "nonfinite_count": self.watch.count,
            "bad_epochs": self.watch.bad_epochs,
            "learning_rate": self.learning_rate.current,
            "grad_norm": self.grad_norm,
            "stats": asdict(self.stats),
            "waiting": asdict(self.waiting),
        }
        Path(path).write_text(yaml.safe_dump(state), encoding="utf-8")

    @mark_as_loader
    def _recover(self, path: Path, end_of_epoch: bool) -> None:
        state = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        for name in ("step", "steps_before", "optimizer_step", "grad_norm"):
            setattr(self, name, state[name])
        self.watch.count = state["nonfinite_count"]
        self.watch.bad_epochs = state.get("bad_epochs", 0)
        self.learning_rate.current = state["learning_rate"]
        self.stats = TrainStats(**state["stats"])
        self.waiting = Waiting(**state.get("waiting", {}))
