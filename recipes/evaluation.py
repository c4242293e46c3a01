"""What a recipe does between loading the weights and printing the table.

`recipes/separation.py` scores a batch; this file runs a whole validation or test,
merges the ranks' results and writes them.

Legend: B batch, S source, T sample.
"""

import logging
import math
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import speechbrain as sb
import torch
from speechbrain import Stage
from speechbrain.utils.checkpoints import Checkpoint
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from modules.audio.io import named_waves, safe_name, write_audio
from modules.inference.chunks import separate_in_chunks
from modules.losses.si_snr import SILENCE
from modules.metrics.scores import ResultTable
from modules.monitor.logs import RunLog
from modules.runtime import distributed
from modules.runtime.errors import HparamsError
from modules.runtime.signals import StopRequest
from modules.weights.checkpoint_files import check_fit
from modules.weights.checkpointer import recency
from modules.weights.ema import EMA, mean_state
from recipes.report import listed, print_places, print_scores, short_line

logger = logging.getLogger(__name__)
NOTHING_TO_TEST = "the data have no test set; --test_folder=FOLDER names one"


class Evaluation(sb.Brain):
    """The evaluating half of `recipes.separation.Separation`, which sets it up."""

    output_folder: Path
    is_trial: bool
    log: RunLog | None
    ema: EMA | None
    stop_request: StopRequest
    epoch: int
    summary: dict | None = None  # of the last validation or test
    _noted: set[Stage]

    #: Validation metric that ranks checkpoints and drives the plateau; higher: better.
    monitor = "si_snr"

    #: Metric of one example that the progress bar of an evaluation shows, negated.
    example_metric = "si_snr"

    #: How the report writes the metrics.
    metric_names: dict[str, str] = {}

    #: Names of the loss terms, where an example has several.
    term_names: Sequence[str] = ()

    #: Names of the targets in saved audio; numbered where there are none.
    target_names: Sequence[str] = ()

    def evaluate(
        self, test_set: DataLoader | None, max_key: str | None = None
    ) -> dict[str, float]:
        """Score the best checkpoint on `test_set` and write the results.

        Arguments
        ---------
        test_set : DataLoader | None
            Made by `modules.data.loader.make_loader`, this rank's share; None where the
            data have neither a test nor a validation set.
        max_key : str | None
            Checkpoint metric to choose by, higher is better.

        Returns
        -------
        dict[str, float]
            Means over the whole test set.

        Raises
        ------
        FileNotFoundError
            With `--test_only` when there is no checkpoint to evaluate.
        HparamsError
            With `--test_only` when there is nothing to test on.
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
        return self.table_summary

    @torch.no_grad()
    def _evaluate_all(
        self, loader: DataLoader, stage: Stage, epoch: int | None, enable: bool
    ) -> None:
        """Validation or test: SpeechBrain's loops, with a name on the bar."""
        self.on_stage_start(stage, epoch)
        self.modules.eval()
        name = stage.name.lower()
        bar = tqdm(
            loader,
            desc=name,
            dynamic_ncols=True,
            disable=not enable,
            colour=self.tqdm_barcolor[name] or None,
        )
        total, count, mean = 0.0, 0, math.nan
        with bar:
            for number, batch in enumerate(bar, start=1):
                loss = float(self.evaluate_batch(batch, stage))
                if math.isfinite(loss):
                    total, count = total + loss, count + 1
                    mean = total / count
                    bar.set_postfix({self.example_metric: f"{-mean:.2f}"})
                if self.debug and number == self.debug_batches:
                    break
        self.on_stage_end(stage, mean, epoch)

    def _load_for_evaluation(self, max_key: str | None) -> None:
        """Load the best checkpoint, or the newest where none was validated."""
        if self.hparams.average_last:
            self._load_average(self.hparams.average_last)
            return
        found = self.checkpointer.recover_if_possible(max_key=max_key)
        if found is None:
            found = self.checkpointer.recover_if_possible()
        if found is None and not self.hparams.pretrained:
            raise FileNotFoundError(
                f"{self.checkpointer.checkpoints_dir}: no checkpoint to evaluate; "
                "train first, or give the weights by --pretrained=FOLDER"
            )
        self._begin_average(found)
        shown = found.path if found is not None else self.hparams.pretrained
        logger.info(f"Evaluating {shown}")

    def _begin_average(self, found: Checkpoint | None) -> None:
        """Where a checkpoint has no averaged weights, they are its plain ones."""
        if self.ema is not None and found is not None and "ema" not in found.paramfiles:
            self.ema.attach(self.modules["separator"])

    def _load_average(self, number: int) -> None:
        """Load the mean of the newest epochs' weights, for want of a clean ranking."""
        if self.debug and not self.test_only:
            number = min(number, self.debug_epochs)  # a trial has no more
        flag = sb.core.INTRA_EPOCH_CKPT_FLAG
        found = self.checkpointer.find_checkpoints(
            importance_key=recency,
            ckpt_predicate=lambda ckpt: flag not in ckpt.meta,
            max_num_checkpoints=number,
        )
        if len(found) < number or self.ema is not None:
            raise HparamsError(
                f"average_last={number} needs as many checkpoints of whole epochs "
                f"(here: {len(found)}; set keep_checkpoints={number}) and ema_decay=0"
            )
        paths = [ckpt.paramfiles["separator"] for ckpt in found]
        state = mean_state(torch.load(p, "cpu", weights_only=True) for p in paths)
        separator = distributed.unwrap(self.modules["separator"])
        check_fit(separator, state)
        separator.load_state_dict(state)
        logger.info(f"Evaluating the mean of {', '.join(c.path.name for c in found)}")

    def on_stage_start(self, stage: Stage, epoch: int | None = None) -> None:
        """Start an empty result table for a validation or a test."""
        if stage != Stage.TRAIN:
            self.table = ResultTable()
            self.audio_saved = 0
            self.nonfinite_outputs = 0
            self.silent: list[str] = []
            self.notes: list[str] = []

    def separate(self, mix_BT: Tensor) -> Tensor:
        """Run the bare network on whole mixtures, in chunks when they are long.

        The wrappers of `self.modules` are taken off: DDP would wait for ranks whose
        share is smaller, a compiled graph would be rebuilt for every length.
        """
        separator = distributed.unwrap(self.modules["separator"])
        seconds = self.hparams.eval_chunk_seconds
        if not seconds:
            return separator(mix_BT)
        rate = self.hparams.sample_rate
        chunk = round(seconds * rate)
        return separate_in_chunks(separator, mix_BT, chunk=chunk, overlap=chunk // 4)

    def on_stage_end(
        self, stage: Stage, stage_loss: float, epoch: int | None = None
    ) -> None:
        """Merge the ranks' tables; write the test's results."""
        if stage == Stage.TRAIN:
            return
        self.table.merge_ranks()
        self.summary = self.table.summary()
        self.table_summary = {
            name: math.nan if entry["mean"] is None else entry["mean"]
            for name, entry in self.summary["metrics"].items()
        }
        self.table_summary |= self.set_scores(stage)
        self._say_once(stage)
        if any(distributed.gather_objects(self.nonfinite_outputs)):
            logger.warning("the network's output is not finite for some examples")
            self.table_summary[self.monitor] = math.nan
        if stage != Stage.TEST:
            return
        if sb.utils.distributed.if_main_process():
            self.table.write_csv(self.output_folder / "test_results.csv")
            self.table.write_json(self.output_folder / "test_results.json")
        loaded = self.hparams.epoch_counter.current
        self.hparams.train_logger.log_stats(
            {"epoch loaded": loaded}, test_stats=self.table_summary, verbose=False
        )
        stages = {"test": self.table_summary}
        logger.info(short_line(f"epoch {loaded} loaded", stages, self.term_names))

    def silent_targets(self, id_: str, target_ST: Tensor) -> list[str]:
        """Names of an example's targets that cannot be scored, for the log.

        Here the example's own, where a target is silent once its mean is removed.
        """
        is_silent = bool((target_ST.var(-1, correction=0) <= SILENCE).any())
        return [id_] if is_silent else []

    def _say_once(self, stage: Stage) -> None:
        """Name, once for each set, targets without a score and what is odd of files."""
        lists = distributed.gather_objects((self.silent, self.notes))
        silent, notes = (
            [line for part in parts for line in part]
            for parts in zip(*lists, strict=True)
        )
        is_new = stage not in self._noted
        self._noted.add(stage)
        if not (is_new and sb.utils.distributed.if_main_process()):
            return
        name = stage.name.lower()
        if silent:
            logger.warning(
                f"{name}: silent targets have no score: {listed(silent, len(silent))}"
            )
        if notes:
            logger.warning(
                f"{name}: {listed(notes, len(notes))}; check_sums=False says no more"
            )

    def set_scores(self, stage: Stage) -> dict[str, float]:
        """Scores of the whole set that are not means over its examples; here none."""
        return {}

    def report(self) -> None:
        """Print the test's table and where the run's files are, on the main process."""
        if not sb.utils.distributed.if_main_process():
            return
        folder = self.output_folder
        places = {
            "scores": folder / "test_results.csv",
            "audio": folder / "audio",
            "curves": folder / "curves.png",
            "suspicion": folder / "suspicion.csv",
        }
        if not self.is_trial:  # those of a trial are gone when it ends
            places["checkpoints"] = Path(self.checkpointer.checkpoints_dir)
        if self.summary is not None:
            print_scores(self.reported(), self.metric_names)
        print_places(places)

    def reported(self) -> dict:
        """The summary of the test that the report shows."""
        return self.summary

    def _keep_audio(
        self, id_: str, mix_T: Tensor, est_ST: Tensor, target_ST: Tensor, stage: Stage
    ) -> None:
        """Write or log the first examples; only rank 0's share, at true level."""
        if self.audio_saved >= self.hparams.n_audio_to_save:
            return
        if not sb.utils.distributed.if_main_process():
            return
        self.audio_saved += 1
        rate = self.hparams.sample_rate
        names = (self.term_names, self.target_names)
        for name, wave_T in named_waves(mix_T, est_ST, target_ST, *names):
            if stage == Stage.TEST:
                folder = self.output_folder / "audio" / safe_name(id_)
                write_audio(folder / f"{name}.wav", wave_T, rate)
            elif self.log is not None and self.audio_saved <= 2:
                tag, step = f"{safe_name(id_)}/{name}", self.epoch
                wave_T = wave_T.reshape(-1, wave_T.shape[-1]).mean(0)  # mono
                self.log.audio(tag, wave_T, rate, step)
                self.log.spectrogram(tag, wave_T, rate, step)

    def _ema_weights(self) -> Any:
        return nullcontext() if self.ema is None else self.ema.applied()
