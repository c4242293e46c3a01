"""Speech separation: mixtures of 2 or 3 talkers, PIT SI-SNR, dynamic mixing.

Data sets, losses and scores of the speech recipes; the training step is in
`recipes/step.py`.

Legend: B batch, S source, T sample.
"""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from speechbrain import Stage
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from modules.audio.rooms import RoomPool
from modules.data.batch import Batch
from modules.data.dynamic_mixing import DynamicMixing
from modules.data.manifest import Row, read_manifest
from modules.data.mixtures import ManifestDataset
from modules.data.utterances import UtterancePool
from modules.inference.chunks import separate_in_chunks
from modules.losses.choice import Terms
from modules.losses.si_snr import pit_neg_si_snr, reorder
from modules.metrics.measures import SPEECH
from modules.metrics.scores import score_example
from modules.runtime import distributed
from modules.runtime.errors import DataError, HparamsError
from recipes.config.schema import SpeechSettings
from recipes.evaluation import Scores
from recipes.separation import Separation

logger = logging.getLogger(__name__)


class SpeechSeparation(Separation):
    """Permutation-invariant SI-SNR training of `modules.separator`."""

    settings_class: type[SpeechSettings] = SpeechSettings
    config: SpeechSettings
    known_metrics = SPEECH

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        has_heads = getattr(self.network, "auxiliary_heads", False)
        if has_heads != (self.config.auxiliary is not None):
            raise HparamsError(
                "auxiliary: goes together with auxiliary_heads of the separator, which "
                f"are {has_heads}; set both, or --auxiliary=null and False"
            )

    def compute_forward(self, batch: Batch, stage: Stage) -> Any:
        """Separate the mixtures: [B, T] to [B, S, T], and the auxiliary estimates."""
        if self.config.auxiliary is not None:
            return self.modules.separator(batch.mix, auxiliary=True)
        return self.modules.separator(batch.mix)

    def compute_objectives(self, predictions: Any, batch: Batch, stage: Stage) -> Terms:
        """Compute the negative SI-SNR in dB under the best permutation, by example.

        It is the mean over the sources that are not silent (constant ones are); an
        example whose sources are all silent is not scorable. Either counts as silent.
        The loss of auxiliary estimates is mixed in; selectors see that of the main one.
        """
        others: Sequence[Tensor] = ()
        if isinstance(predictions, tuple):
            predictions, others = predictions
        target_BST, length_B = batch.src, batch.length_B
        floor = self.config.loss_floor
        result = pit_neg_si_snr(predictions, target_BST, length_B, floor=floor)
        active_BS, loss_B, sort_key_BK = result.active_BS, result.loss_B, None
        if self.config.auxiliary is not None and others:
            sort_key_BK = loss_B.detach()[:, None]
            mixed = self.config.auxiliary.mixed
            loss_B = mixed(loss_B, others, target_BST, length_B, self.epoch)
        return Terms(
            loss_B[:, None],
            sort_key_BK=sort_key_BK,
            scorable_BK=active_BS.any(-1, keepdim=True),
            silent_BK=~active_BS.all(-1, keepdim=True),
        )

    def separate(self, mix_BT: Tensor) -> Tensor:
        """Separate whole mixtures [B, T], in chunks when they are long."""
        seconds = self.config.eval_chunk_seconds
        if not seconds:
            return self.network(mix_BT)
        chunk = round(seconds * self.config.sample_rate)
        return separate_in_chunks(self.network, mix_BT, chunk=chunk, overlap=chunk // 4)

    def score(
        self, est_ST: Tensor, target_ST: Tensor, mix_T: Tensor, stage: Stage
    ) -> Scores:
        """SI-SNR and its improvement; at the test the `metrics`."""
        is_test, rate = stage == Stage.TEST, self.config.sample_rate
        names = self.metrics if is_test else ("si_snr", "si_snr_i")
        scores: dict[str, Any] = score_example(est_ST, target_ST, mix_T, rate, names)
        return scores if is_test else {"loss": -scores["si_snr"], **scores}

    @staticmethod
    def to_hear(est_ST: Tensor, target_ST: Tensor, /) -> tuple[Tensor, Sequence[str]]:
        """Put each estimate in the order of the targets and at the level of its target.

        SI-SNR with PIT leaves both open.
        """
        order_BS = pit_neg_si_snr(est_ST[None], target_ST[None]).permutation_BS
        est_ST = reorder(est_ST[None], order_BS)[0]
        own_S, level_S = (
            wave_ST.std(-1, correction=0) for wave_ST in (est_ST, target_ST)
        )
        level_S = torch.where(level_S > 0, level_S, level_S.mean())
        gain_S = torch.where((own_S > 0) & (level_S > 0), level_S / own_S, 1)
        notes = [
            f"output {number + 1}, {20 * gain.log10():+.1f} dB"
            for number, gain in zip(order_BS[0].tolist(), gain_S, strict=True)
        ]
        return est_ST * gain_S[:, None], notes

    def make_loaders(
        self, manifests: dict[str, str]
    ) -> tuple[DataLoader | None, DataLoader | None, DataLoader | None]:
        """Return this rank's share of the sets whose manifests are given by name.

        A test needs no others.
        """
        rows = {
            name: read_manifest(path, self.config.num_spks, self.config.sample_rate)
            for name, path in manifests.items()
        }

        def whole(name: str) -> DataLoader | None:
            if name not in rows:
                return None
            rate, checks = self.config.sample_rate, self.config.check_sums
            files = ManifestDataset(rows[name], rate, check_sums=checks, strict=True)
            return self.loader(files, self.config.eval_batch_size)

        if self.test_only:
            return None, None, whole("test")
        training_set = self._training_set(rows["train"])
        measured = {}
        if isinstance(training_set, DynamicMixing):
            talkers = (u for us in training_set.pool.by_speaker for u in us)
            measured["talkers"] = [
                (u.name, u.speaker, u.sample_rate, u.frames, u.level_db)
                for u in talkers
            ]
        self.identify(rows, measured)
        return (
            self.loader(training_set, self.config.batch_size, training=True),
            whole("valid"),
            whole("test"),
        )

    def _training_set(self, rows: list[Row]) -> Dataset:
        """Make mixtures on the fly, or cut random crops of those on disk."""
        settings: dict[str, Any] = {
            "sample_rate": self.config.sample_rate,
            "segment_seconds": self.config.segment_seconds,
            "speed_changes": self.config.speed_changes or None,
            "seed": self.config.seed,
        }
        if not self.config.dynamic_mixing:
            checks = self.config.check_sums
            if settings["speed_changes"] and not checks:
                raise HparamsError(
                    "check_sums=False says that mixtures are no sums, but with "
                    "speed_changes sums are trained on and not the mixtures: set "
                    "--speed_changes=null too"
                )
            return ManifestDataset(rows, check_sums=checks, **settings)
        rooms = self._rooms(rows)
        return DynamicMixing(
            self._utterances(rows),
            num_spks=self.config.num_spks,
            examples_per_epoch=self.config.examples_per_epoch or len(rows),
            noises=sorted({(row.noise, row.frames) for row in rows if row.noise}),
            noise_snr_db=self.config.noise_snr_db,
            rooms=rooms,
            targets=self.config.targets,
            **settings,
        )

    def _rooms(self, rows: list[Row]) -> RoomPool | None:
        """Load rooms: dynamic mixing must be as reverberant as the data set."""
        path = self.config.room_pool
        if not path and any(row.images for row in rows):
            raise DataError(
                "the data set's mixtures are reverberant, dynamic mixing's would be "
                "dry: set --room_pool (made by python -m data_prep.whamr pool) or "
                "--dynamic_mixing=False"
            )
        if not path:
            return None
        if not self.config.base_folder_dm and self.config.targets != "anechoic":
            raise DataError(
                "dynamic mixing in rooms would put the data set's reverberant sources "
                "into rooms again: set --base_folder_dm to a folder of dry utterances"
            )
        rooms = RoomPool.load(path, self.config.sample_rate)
        logger.info(f"Dynamic mixing in {len(rooms)} rooms of {path}")
        return rooms

    def _utterances(self, rows: list[Row]) -> UtterancePool:
        """List single talkers: those of a folder, or the set's own sources."""
        index = f"{self.config.save_folder}/utterances.csv"
        pattern = self.config.speaker_pattern
        if folder := self.config.base_folder_dm:
            pool = distributed.run_on_main(UtterancePool.scan, folder, index, pattern)
        elif pattern:
            raise HparamsError("speaker_pattern needs --base_folder_dm: whose files?")
        else:
            pool = distributed.run_on_main(UtterancePool.from_manifest, rows, index)
        logger.info(f"Dynamic mixing from {pool}")
        return pool
