"""A run's log files and curves, the line of an epoch, the table of scores."""

import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import speechbrain as sb
from speechbrain.utils.distributed import MainProcessContext
from speechbrain.utils.train_logger import FileTrainLogger

from modules.metrics.measures import of_column
from modules.metrics.scores import ResultTable
from modules.monitor.logs import RunLog
from modules.runtime import distributed
from modules.runtime.files import naming, set_aside, write_text

logger = logging.getLogger(__name__)

#: Called on the main process with "batch", "epoch" or "test", its number, and values.
OnMetrics = Callable[[str, int, Mapping[str, float]], None]


class Reporter:
    """Tells a run's story: train_log.txt, curves, TensorBoard, the log, a callback.

    The curves have a point after `every` batches.
    """

    def __init__(
        self, folder: Path, train_logger: FileTrainLogger, every: int, tensorboard: bool
    ) -> None:
        self.folder = folder
        self.train_logger = train_logger
        self.every = every
        self.tensorboard = tensorboard
        self.on_metrics: OnMetrics | None = None
        self.curves: RunLog | None = None  # only the main process has one
        self._clock = time.monotonic()

    def open(self, step: int, epochs_done: int) -> None:
        """Start logging where the run stands; what comes after that is forgotten."""
        if sb.utils.distributed.if_main_process():
            self.curves = RunLog(self.folder, tensorboard=self.tensorboard)
            self.curves.rewind(step=step, epoch=epochs_done)
            rewind_epochs(Path(self.train_logger.save_file), epochs_done)

    def begin_epoch(self) -> None:
        """Measure the speed of the next batches from now on."""
        self._clock = time.monotonic()

    def batch(
        self, step: int, number: int, examples: int, values: Mapping[str, float]
    ) -> None:
        """Log a training batch, if it is the turn of this one.

        It is the batch `step` of the training and `number` of the epoch, and has as
        many `examples` on this rank.
        """
        if self.curves is None or number % self.every:
            return
        done = examples * self.every * distributed.world_size()
        if (seconds := time.monotonic() - self._clock) > 0:
            values = {**values, "examples_per_second": done / seconds}
        self.curves.scalars(step, **values)
        self._clock = time.monotonic()
        self._tell("batch", step, values)

    def epoch(
        self,
        epoch: int,
        lr: float,
        train: Mapping[str, float],
        valid: Mapping[str, float],
        hidden: Sequence[str] = (),
    ) -> None:
        """Log a finished epoch, on every rank; the short line leaves `hidden` out."""
        meta = {"epoch": epoch, "lr": lr}
        self._log_stats(meta, train_stats=train, valid_stats=valid)
        stages = {"train": train, "valid": valid}
        logger.info(short_line(f"epoch {epoch}, lr {lr:.3g}", stages, hidden))
        if self.curves is not None:
            self.curves.epoch(epoch, {"train": {**train, "lr": lr}, "valid": valid})
            self.curves.curves()
        told = {
            f"{stage}/{k}": v for stage, part in stages.items() for k, v in part.items()
        }
        self._tell("epoch", epoch, told | {"lr": lr})

    def validation(self, epoch: int, table: ResultTable) -> None:
        """Keep the scores of each example, on the main process."""
        if self.curves is not None:
            table.write_csv(self.folder / "validation" / f"epoch_{epoch:04d}.csv")
            self.curves.spread("valid", table.rows, epoch)

    def test(
        self, epoch: int, scores: Mapping[str, float], hidden: Sequence[str] = ()
    ) -> None:
        """Log the scores of a test, on every rank; the line leaves `hidden` out."""
        self._log_stats({"epoch loaded": epoch}, test_stats=scores)
        head = f"epoch {epoch} loaded"
        logger.info(short_line(head, {"test": scores}, hidden))
        self._tell("test", epoch, scores)

    def _log_stats(self, meta: Mapping, **stats: Mapping[str, float]) -> None:
        """Add a line to train_log.txt."""
        if sb.utils.distributed.if_main_process():
            with naming(self.train_logger.save_file), MainProcessContext():
                self.train_logger.log_stats(meta, verbose=False, **stats)

    def _tell(self, kind: str, number: int, values: Mapping[str, float]) -> None:
        if self.on_metrics is not None and sb.utils.distributed.if_main_process():
            self.on_metrics(kind, number, dict(values))


def short_line(
    head: str, stages: Mapping[str, Mapping[str, float]], hidden: Sequence[str] = ()
) -> str:
    """Put the statistics of an epoch on one line; train_log.txt has them all.

    Values of the `hidden` loss terms and counts of 0 are left out.

    >>> train = {"loss": 0.71, "kept_share": 0.75, "nonfinite": 0, "drums_kept": 0.5}
    >>> valid = {"nsdr": 1.234, "nsdr_drums": 2.0}
    >>> short_line("epoch 1", {"train": train, "valid": valid}, ["drums"])
    'epoch 1 | train: loss 0.71, kept_share 0.75 | valid: nsdr 1.23'
    """
    parts = [head]
    for stage, values in stages.items():
        shown = [
            f"{name} {value:.3g}"
            for name, value in values.items()
            if not any(
                name.startswith(f"{t}_") or name.endswith(f"_{t}") for t in hidden
            )
            and not (isinstance(value, int) and value == 0)
        ]
        if shown:
            parts.append(f"{stage}: {', '.join(shown)}")
    return " | ".join(parts)


def print_scores(summary: Mapping) -> None:
    """Print what `ResultTable.summary` returned."""
    shown = [of_column(name)[1] for name in summary["metrics"]]
    print(
        f"\n{'metric':<14} {'mean':>8} {'std. error':>11} {'median':>8} {'examples':>9}"
    )
    for name, entry in zip(shown, summary["metrics"].values(), strict=True):
        mean, error, median = (
            "-" if entry[key] is None else f"{entry[key]:.2f}"
            for key in ("mean", "standard_error", "median")
        )
        print(f"{name:<14} {mean:>8} {error:>11} {median:>8} {entry['count']:>9}")
    if summary["non_finite"]:
        print(f"{summary['non_finite']} examples had no finite score")
    has_improvement = any(name.endswith("_i") for name in summary["metrics"])
    note = "; an 'i' is the improvement over the mixture" if has_improvement else ""
    found = [metric for metric, _ in map(of_column, summary["metrics"])]
    others = dict.fromkeys(m.title for m in found if m and m.unit != "dB")
    but = f" but for {', '.join(others)}" if others else ""
    print(f"\nall values in dB{but}{note}\n")


def print_places(folder: Path, checkpoints: Path | None) -> None:
    """Print where the files of a run are, by what they hold; only those that exist."""
    places = {
        "scores": folder / "test_results.csv",
        "audio": folder / "audio",
        "curves": folder / "curves.png",
        "stem losses": folder / "stem_losses.csv",
        "checkpoints": checkpoints,
        "listen": folder / "listen.html",
    }
    for what, where in places.items():
        if where is not None and where.exists():
            print(f"{what:<12} {where}")


def rewind_epochs(path: Path, epochs_done: int) -> None:
    """Forget the epochs in train_log.txt that are about to be trained again.

    A kill between the line of an epoch and its checkpoint leaves such a line.
    """
    if not path.is_file():
        return
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except UnicodeDecodeError:
        return set_aside(path)

    def is_done(line: str) -> bool:
        number = re.match(r"epoch: (\d+)", line)
        return number is None or int(number[1]) <= epochs_done

    if not all(map(is_done, lines)):
        write_text(path, "".join(filter(is_done, lines)))
