"""Music separation: stems of songs, losses per stem, noisy labels, whole-song scores.

The training step is in `recipes/step.py`; here an example has one loss term per
stem, so that a selector can leave out the stems that look wrongly labelled (team
CCOM, Sound Demixing Challenge 2023).

Legend: B batch, S source, C channel, T sample, F frame.
"""

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from speechbrain import Stage
from speechbrain.utils.distributed import if_main_process
from torch import Tensor
from torch.utils.data import DataLoader

from modules.data.batch import Batch
from modules.data.label_actions import ACTIONS, Trust, act_on_labels, without_dropped
from modules.data.labels import Key, Label, read_labels
from modules.data.manifest import read_manifest
from modules.data.stems import StemDataset
from modules.data.track_levels import loud_enough, measure_levels
from modules.inference.songs import apply_model, measure_songs
from modules.losses.choice import Choice, Terms, to_device
from modules.losses.kept_losses import KeptLosses
from modules.losses.selection import KeepAll, truncated_mean
from modules.losses.si_snr import SILENCE
from modules.metrics.measures import MUSIC
from modules.metrics.scores import score_song
from modules.runtime import distributed
from modules.runtime.errors import HparamsError
from recipes.config.schema import MusicSettings
from recipes.evaluation import Scores
from recipes.schedule import Phase, total_epochs
from recipes.separation import Separation

logger = logging.getLogger(__name__)


class MusicSeparation(Separation):
    """Trains `modules.separator` on the `losses` of every stem."""

    settings_class: type[MusicSettings] = MusicSettings
    config: MusicSettings
    example_metric = "nsdr"
    known_metrics = MUSIC
    silence_is_common = True  # an instrument may rest
    # Training segments are relative to their track's level: of stems that cancel in the
    # mixture, as of silence with one loud hit, little is left to be relative to.
    largest_peak = 1000.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.monitor = self.config.monitor
        self.stems = list(self.config.sources)
        self.stem_losses = KeptLosses([], self.stems)  # a test has no training tracks
        self.trust: Trust = {}  # weights of stems, by their labels
        seconds = self.config.select.frame_seconds
        self.frames = seconds and max(1, round(self.config.segment_seconds / seconds))
        given = self.config.weights
        equal = [1.0] * len(self.stems)
        self.stem_weights = equal if given is None else list(map(float, given))
        if self.config.label_action not in ACTIONS:
            raise HparamsError(
                f"label_action={self.config.label_action}: use {', '.join(ACTIONS)}"
            )
        if len(self.stem_weights) != len(self.stems) or not (
            all(weight >= 0 for weight in self.stem_weights) and any(self.stem_weights)
        ):
            raise HparamsError(
                f"weights={self.stem_weights}: give one number, 0 or more, for each of "
                f"{', '.join(self.stems)}, not all of them 0"
            )
        is_relative = getattr(self.config.losses, "is_relative", False)
        if self.config.relative_to_level and is_relative:
            raise HparamsError(
                "relative_to_level=True: snr, log_wmse and l1_snr are so already: set "
                "their weights in losses to 0"
            )
        self.term_names, self.term_weights = self.stems, self.stem_weights
        self.target_names = self.stems
        try:
            total_epochs(self.config.lr_scheduler)  # refuses all but Phases
            for phase in self.config.lr_scheduler.phases:
                self._enter(phase)
                size = self.config.batch_size * (self.frames or 1)
                self.config.select.check(size, distributed.world_size())
        except ValueError as error:
            raise HparamsError(str(error)) from error

    # ------------------------------------------------------------------ training

    def compute_forward(self, batch: Batch, stage: Stage) -> Tensor:
        """Separate the mixtures: [B, C, T] to [B, S, C, T]."""
        return self.modules.separator(batch.mix)

    def compute_objectives(
        self, predictions: Tensor, batch: Batch, stage: Stage
    ) -> Terms:
        """Compute the weighted `losses` of every stem; weight 0 leaves a stem out.

        A silent stem is as good a target as any: it teaches silence. It is counted.

        With `relative_to_level` a stem is judged by its loss relative to the level of
        its target (at least 1 % of the mixture's), so that loud stems are not the
        first to be dropped; what is trained on stays the plain loss. Frames are equal
        parts of an example, from which fewer samples than there are frames may remain.
        """
        target_BSCT, waves = batch.src, (predictions, batch.src, batch.mix)
        frame_BSF = None
        if self.frames:  # each a short example
            lost_BS = self.config.losses(*(_split(w, self.frames) for w in waves))
            frame_BSF = lost_BS.unflatten(0, (-1, self.frames)).transpose(1, 2)
            loss_BS = frame_BSF.mean(2)
        else:
            loss_BS = self.config.losses(*waves)
        weighs_S = to_device(self.stem_weights, loss_BS) > 0
        floor_B1 = 0.01 * batch.mix.abs().mean((1, 2))[:, None]
        level_BS = target_BSCT.abs().mean((2, 3)).maximum(floor_B1)
        # A silent mixture has only silent stems: any error is as good as another.
        relative_BS = loss_BS.detach()
        if not getattr(self.config.losses, "is_relative", False):
            relative_BS = relative_BS / level_BS.clamp(min=1e-8)
        # Quicker than the power: samples this close together have no more than that.
        swing_BSC = target_BSCT.amax(3) - target_BSCT.amin(3)
        silent_BS = swing_BSC.amax(2) <= 2 * math.sqrt(SILENCE)
        numbers = self.stem_losses.numbers
        numbered = [numbers[track] for origins in batch.origins for track in origins]
        origin_BS = to_device(numbered, loss_BS).view(len(loss_BS), -1)
        scorable_BS, trust_BS = weighs_S.expand_as(loss_BS), None
        if self.trust:
            trust = [self.trust[t][s] for o in batch.origins for s, t in enumerate(o)]
            trust_BS = to_device(trust, loss_BS).view_as(loss_BS)
            scorable_BS = scorable_BS & (trust_BS > 0)
        return Terms(
            loss_BS,
            scorable_BS,
            relative_BS if self.config.relative_to_level else None,
            silent_BS,
            origin_BS,
            relative_BS,
            weight_BK=trust_BS,
            frame_BKF=frame_BSF,
        )

    def on_stage_start(self, stage: Stage, epoch: int | None = None) -> None:
        """Enter the phase of the recipe that the epoch belongs to."""
        super().on_stage_start(stage, epoch)
        if stage != Stage.TRAIN:
            return
        phase = self.config.lr_scheduler.at(self.epoch)
        self._enter(phase)
        if self.epoch == phase.first_epoch and self.step == 0:
            # Each phase of CCOM's recipe is a run of its own: weights go on, Adam's
            # moments begin anew.
            self.optimizer.state.clear()
            keeps_all = phase.quantile == 1 or isinstance(self.config.select, KeepAll)
            kept = "all" if keeps_all else f"the lowest {phase.quantile:g} of"
            logger.info(
                f"Phase {phase.number}: epochs {phase.epochs}, lr {phase.lr:g}, "
                f"keeping {kept} losses"
            )

    def _enter(self, phase: Phase) -> None:
        accumulated = self.grad_accumulation_factor
        self.config.select.enter_phase(phase.quantile, accumulated)

    def on_choice(self, choice: Choice, batch: Batch) -> None:
        """Keep the losses of each stem, for `data_prep.music.audit`."""
        super().on_choice(choice, batch)
        self.keep_losses(choice, slice(None))

    def keep_losses(self, choice: Choice, terms: slice) -> None:
        """Keep those of the loss terms that are a network's stems."""
        of_stems = (
            choice.origin_NK,
            choice.relative_NK,
            choice.usable_NK,
            choice.keep_NK,
        )
        self.stem_losses.add(self.epoch, *(x_NK[:, terms] for x_NK in of_stems))

    # ------------------------------------------------------------------ evaluation

    def _load_for_evaluation(self, max_key: str | None) -> None:
        """Load the best weights; the stems' losses stay those of the whole run."""
        self.checkpointer.recoverables.pop("stem_losses", None)
        super()._load_for_evaluation(max_key)

    def separate(self, mix_BCT: Tensor) -> Tensor:
        """Separate whole songs [B, C, T] in overlapping segments."""
        return apply_model(
            self.network,
            mix_BCT,
            shifts=self.config.shifts,
            overlap=self.config.overlap,
            batch_size=self.config.segments_per_call,
            normalize=getattr(self.network, "song_level", True),
            seed=self.config.seed,
        )

    def score(
        self, est_SCT: Tensor, target_SCT: Tensor, mix_CT: Tensor, stage: Stage
    ) -> Scores:
        """Score a song per stem by the challenge's nSDR, at the test by the `metrics`.

        In a validation also by L1 relative to the mixture's level, whatever the losses.
        """
        is_test, rate = stage == Stage.TEST, self.config.sample_rate
        names = self.metrics if is_test else ("nsdr",)
        scores = score_song(est_SCT, target_SCT, mix_CT, rate, self.stems, names)
        if is_test:
            return scores
        level = float(measure_songs([mix_CT[None]])[1])
        error_S = (est_SCT - target_SCT).abs().mean((1, 2)) / level
        weighs_S = torch.tensor(self.stem_weights) > 0
        return {**scores, "loss": float(error_S[weighs_S].mean())}

    def silent_targets(self, id_: str, target_SCT: Tensor) -> list[str]:
        """Name the silent stems of a song; a constant one can be scored."""
        silent_S = target_SCT.square().mean((1, 2)) <= SILENCE
        pairs = zip(self.stems, silent_S.tolist(), strict=True)
        return [f"{stem} of {id_}" for stem, is_silent in pairs if is_silent]

    def set_scores(self, stage: Stage) -> dict[str, float]:
        """`nsdr_truncated`: the mean over the best part of each stem's scores.

        Where no clean validation set exists some of the targets are wrong and score
        badly however good the model is. The same share is left out that training
        leaves out, per stem, and at least the worst one.
        """
        if stage != Stage.VALID:
            return {}
        quantile = self.config.lr_scheduler.at(self.epoch or 1).quantile
        means = []
        for name, weight in zip(self.term_names, self.term_weights, strict=True):
            values = [row[f"nsdr_{name}"] for row in self.evaluator.table.rows]
            known = (value for value in values if isinstance(value, float))
            finite = [*filter(math.isfinite, known)]
            if weight and finite:
                means.append(truncated_mean(finite, quantile))
        mean = math.fsum(means) / len(means) if means else math.nan
        return {"nsdr_truncated": mean}

    def report(self) -> None:
        """Print the table of scores, and write the losses of the stems."""
        if if_main_process() and len(self.stem_losses.sums_EQRK):
            self.stem_losses.write_csv(self.output_folder / "stem_losses.csv")
        super().report()

    #: Names of validation scores besides those of the loss terms.
    totals: Sequence[str] = ("nsdr", "nsdr_truncated")

    def _check_evaluation(self) -> None:
        """Check now what the first validation needs."""
        known = [*self.totals, *(f"nsdr_{name}" for name in self.term_names)]
        if self.monitor not in known:
            raise HparamsError(
                f"monitor={self.monitor}: no score of a validation, which has "
                f"{', '.join(known)}"
            )

    # ------------------------------------------------------------------ data

    def make_loaders(
        self, manifests: dict[str, str]
    ) -> tuple[DataLoader | None, DataLoader | None, DataLoader | None]:
        """Return this rank's share of the training segments and of the whole songs.

        `manifests` are paths by "train", which a test does not need, and, where there
        are such songs, "valid" and "test".
        """
        config = self.config
        self._check_evaluation()
        rates = config.lr_scheduler.rates
        if config.lr not in rates:
            logger.warning(f"lr={config.lr} has no effect: lr_scheduler says {rates}")
        rows = {
            name: read_manifest(path, len(self.stems), stems=True)
            for name, path in manifests.items()
        }

        def whole(name: str) -> DataLoader | None:
            if name not in rows:
                return None
            songs = StemDataset(
                rows[name], config.sample_rate, check_sums=config.check_sums
            )
            return self.loader(songs, config.eval_batch_size)

        if self.test_only:
            return None, None, whole("test")
        index = f"{config.save_folder}/levels.csv"
        levels = distributed.run_on_main(measure_levels, rows["train"], index)
        rows["train"] = loud_enough(rows["train"], levels)
        measured: dict[str, Sequence] = {"levels": sorted(levels.items())}
        if labels := self._read_labels():
            measured["labels"] = [config.label_action, *sorted(labels.items())]
            given = rows["train"], labels, self.stems, config.label_action
            rows["train"], self.trust = act_on_labels(*given)
            if config.independent:
                rows["train"] = without_dropped(rows["train"], self.trust)
        self.identify(rows, measured)
        train_set = StemDataset(
            rows["train"],
            sample_rate=config.sample_rate,
            segment_seconds=config.segment_seconds,
            stride_seconds=config.stride_seconds,
            augmentation=config.augmentation,
            levels=levels,
            independent=config.independent,
            sources=self.stems,
            stem_balance=config.stem_balance,
            own_mixture=config.own_mixture,
            examples_per_epoch=config.examples_per_epoch,
            seed=config.seed,
        )
        self.stem_losses = KeptLosses([row.id for row in rows["train"]], self.stems)
        self.checkpointer.add_recoverable("stem_losses", self.stem_losses)
        return (
            self.loader(train_set, config.batch_size, training=True),
            whole("valid"),
            whole("test"),
        )

    def _read_labels(self) -> dict[Key, Label]:
        """Return the labels of all files; those of a later one win."""
        given = self.config.labels or []
        labels: dict[Key, Label] = {}
        for path in [given] if isinstance(given, str) else given:
            labels |= read_labels(path)
        return labels


def _split(wave: Tensor, frames: int) -> Tensor:
    """Cut [B, ..., T] into frames, [B F, ..., T / F]; less than F samples remain."""
    length = wave.shape[-1] // frames
    parts = wave[..., : frames * length].unflatten(-1, (frames, length))
    return parts.movedim(-2, 1).flatten(0, 1)
