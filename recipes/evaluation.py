"""Scoring a whole validation or test, and the weights that are tested.

`Evaluator` knows neither the network nor the task: it is handed a function that
separates and one that scores.

Legend: B batch, S source, T sample; waves of music have a channel dimension before T.
"""

import inspect
import itertools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import speechbrain as sb
import torch
from speechbrain.utils.checkpoints import Checkpoint
from torch import Tensor

from modules.audio.io import named_waves, safe_name, write_audio
from modules.data.batch import Batch
from modules.metrics.measures import of_column
from modules.metrics.scores import ResultTable
from modules.monitor.listen.page import ListenPage, Track
from modules.monitor.logs import RunLog
from modules.runtime import distributed
from modules.runtime.errors import HparamsError, first_of
from modules.weights.checkpointer import AtomicCheckpointer

logger = logging.getLogger(__name__)

Scores = dict[str, float | None]
#: Called with id, mixture, estimates and targets of every example that was scored.
OnExample = Callable[[str, Tensor, Tensor, Tensor], None]
#: Maps estimates and targets to the estimates in their order, and a note for each.
ToHear = Callable[[Tensor, Tensor], tuple[Tensor, Sequence[str]]]


def make_manifests(
    prepare: Callable[..., dict[str, str]], test_only: bool, test_folder: str | None
) -> dict[str, str]:
    """Call a data set's `prepare`; only for the test set where that is enough.

    Raise an `HparamsError` if the data set cannot be tested on another folder.
    """
    takes = inspect.signature(prepare).parameters
    given: dict[str, Any] = {"test_folder": test_folder} if test_folder else {}
    if given and "test_folder" not in takes:
        raise HparamsError("test_folder: this data set's prepare does not take it")
    if test_only and "splits" in takes:
        given["splits"] = ["test"]
    return prepare(**given)


@dataclass
class Evaluator:
    """Scores the examples of one validation or test, each alone; merges the ranks."""

    separate: Callable[[Tensor], Tensor]  # mixtures [1, ..., T] to [1, S, ..., T]
    #: Of estimates, targets and mixture of an example, in dB; None for no score.
    score: Callable[[Tensor, Tensor, Tensor], Scores]
    metric: str  # the score that the progress bar shows
    silent_targets: Callable[[str, Tensor], list[str]]  # names those without a score
    on_example: OnExample | None
    table: ResultTable = field(default_factory=ResultTable)
    silent: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    has_nonfinite: bool = False

    @torch.no_grad()
    def add(self, batch: Batch) -> Tensor:
        """Separate and score the examples of a batch, so that no score sees padding.

        Return the mean of the negated metric; NaN if no example has one.
        """
        self.notes += batch.notes
        values = []
        for index, id_ in enumerate(batch.ids):
            if not batch.counts_B[index]:
                continue
            length = batch.length_B[index]
            mix_T = batch.mix[index, ..., :length]
            target_ST = batch.src[index, ..., :length]
            est_ST = self.separate(mix_T[None])[0].float()
            self.has_nonfinite |= not bool(torch.isfinite(est_ST).all())
            self.silent += self.silent_targets(id_, target_ST)
            scores = self.score(est_ST, target_ST, mix_T)
            self.table.add(id_, **scores)
            if (value := scores[self.metric]) is not None:
                values.append(-value)
            if self.on_example is not None:
                self.on_example(id_, mix_T, est_ST, target_ST)
        return torch.tensor(values).mean()

    def merge_ranks(self) -> tuple[dict, dict[str, float]]:
        """Give every rank the whole table; return its summary and all means.

        Call it on every rank. The mean of a score that no example has is NaN.
        """
        self.table.merge_ranks()
        mine = self.silent, self.notes, self.has_nonfinite
        silent, notes, bad = zip(*distributed.gather_objects(mine), strict=True)
        self.silent, self.notes = sum(silent, []), sum(notes, [])
        self.has_nonfinite = any(bad)
        summary = self.table.summary()
        means = {name: entry["mean"] for name, entry in summary["metrics"].items()}
        return summary, {k: math.nan if v is None else v for k, v in means.items()}

    def warn(self, name: str) -> None:
        """Log, on the main process, the targets without a score and odd files."""
        if not sb.utils.distributed.if_main_process():
            return
        if self.silent:
            names = first_of(self.silent)
            logger.warning(f"{name}: silent targets have no score: {names}")
        rows = self.table.rows
        for column in rows[0] if rows else ():
            metric, title = of_column(column)
            ids = [str(row["id"]) for row in rows if row[column] is None]
            if ids and metric and metric.lacking and title == metric.title:
                names = first_of(ids)
                logger.warning(f"{name}: no {title} of {names}: {metric.lacking}")
        if self.notes:
            notes = first_of(self.notes)
            logger.warning(f"{name}: {notes}; set check_sums=False to silence this")


@dataclass
class AudioKeeper:
    """Keeps the first examples that the main process scores, at their true level.

    A test writes files and the page `listen.html`; else TensorBoard gets the first two.
    """

    folder: Path | None  # where a test writes; None for a validation
    log: RunLog | None
    epoch: int
    sample_rate: int
    left: int  # how many examples to keep
    names: tuple[Sequence[str], Sequence[str]]  # of estimates and targets, if any
    to_hear: ToHear  # arranges the estimates for the page

    def __post_init__(self) -> None:
        self.page = None if self.folder is None else ListenPage(self.folder)
        self.left = self.left if self.page else min(self.left, 2)

    def keep(self, id_: str, mix_T: Tensor, est_ST: Tensor, target_ST: Tensor) -> None:
        """Keep one example, unless there are enough."""
        if self.left <= 0:
            return
        self.left -= 1
        title = safe_name(id_)
        for name, wave_T in named_waves(mix_T, est_ST, target_ST, *self.names):
            if self.folder is not None:
                path = self.folder / "audio" / title / f"{name}.wav"
                write_audio(path, wave_T, self.sample_rate)
            elif self.log is not None:
                mono_T = wave_T.reshape(-1, wave_T.shape[-1]).mean(0)
                tag = f"{title}/{name}"
                self.log.audio(tag, mono_T, self.sample_rate, self.epoch)
                self.log.spectrogram(tag, mono_T, self.sample_rate, self.epoch)
        if self.page is not None:
            waves = (wave.cpu() for wave in (mix_T, est_ST, target_ST))
            self.page.add(id_, self._tracks(*waves))

    def _tracks(self, mix_T: Tensor, est_ST: Tensor, target_ST: Tensor) -> list[Track]:
        """The mixture, then each estimate beside its target."""
        est_ST, notes = self.to_hear(est_ST, target_ST)
        shown = itertools.chain([""], notes, itertools.repeat(""))
        tracks = []
        for name, wave in named_waves(mix_T, est_ST, target_ST, *self.names):
            title, own = name.replace("_", " ", 1), (self.sample_rate, next(shown))
            tracks.append(Track.of_wave(title, wave.numpy(), *own))
        first_target = 1 + len(est_ST)
        pairs = itertools.zip_longest(tracks[1:first_target], tracks[first_target:])
        return [tracks[0], *(track for pair in pairs for track in pair if track)]

    def write_page(self, rows: Sequence[Mapping], metric: str) -> None:
        """Write the page of a test with the scores of all its examples.

        It is sorted by the improvement of `metric`, or by `metric` if it has none.
        """
        if self.page is None or self.folder is None:
            return
        title = "/".join(self.folder.absolute().parts[-2:])
        improvement = f"{metric}_i"
        sort_by = improvement if any(improvement in row for row in rows) else metric
        known = {column: of_column(column) for row in rows for column in row}
        names = {column: name for column, (_, name) in known.items()}
        units = {column: m.unit for column, (m, _) in known.items() if m}
        self.page.write(title, rows, sort_by, names, units)


def load_best(
    checkpointer: AtomicCheckpointer, metric: str | None, pretrained: str | None
) -> Checkpoint | None:
    """Load the checkpoint that is best by the metric, or the newest if none has it.

    Without any, the present weights are tested, which are from `pretrained`; raise an
    `HparamsError` if they are from nowhere.
    """
    found = checkpointer.recover_if_possible(max_key=metric)
    found = found or checkpointer.recover_if_possible()
    if found is None and not pretrained:
        raise HparamsError(
            f"{checkpointer.checkpoints_dir}: no checkpoint to evaluate; "
            "train first, or give the weights by --pretrained=FOLDER"
        )
    logger.info(f"Evaluating {pretrained if found is None else found.path}")
    return found
