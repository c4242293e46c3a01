"""One place for what a run logs: `curves.csv`, `curves.png` and TensorBoard.

There are two axes: finished steps for the values of training, epochs for statistics of
stages and for audio; both count from 1. TensorBoard shows them as the runs
`tensorboard/steps` and `tensorboard/epochs`, because on resume each is rewound to a
number of its own.

Shapes: T sample, F frequency, L frame.
"""

import csv
import gc
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modules.monitor import curves
from modules.runtime.files import naming
from modules.runtime.tables import write_table

# Spectrograms: window and smallest hop in seconds, range in dB, most frames.
WINDOW, HOP, RANGE_DB, MAX_FRAMES = 0.032, 0.008, 80.0, 1024


class RunLog:
    """Logs of one run in its folder, after what it logged before; see `rewind`.

    Only the main process may have one. Everything is on disk when a call returns, so a
    killed run loses nothing. Raise an `ImportError` if TensorBoard is wanted and not
    installed. A `curves.csv` of another program is set aside.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> log = RunLog(folder, tensorboard=False)
    >>> log.scalars(1, loss=2.5)
    >>> log.epoch(1, {"train": {"loss": 2.0}, "valid": {"loss": 3.0}})
    >>> print((folder / "curves.csv").read_text())
    kind,step,name,value
    step,1,loss,2.5
    epoch,1,train/loss,2.0
    epoch,1,valid/loss,3.0
    """

    def __init__(self, output_folder: str | Path, tensorboard: bool = True) -> None:
        self.folder = Path(output_folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.csv_path = self.folder / "curves.csv"
        self._writer_class: Any = _summary_writer_class() if tensorboard else None
        self._writers: dict[str, Any] = {}
        self._purge: dict[str, int | None] = {"step": None, "epoch": None}
        curves.repair(self.csv_path)

    def scalars(self, step: int, **values: float) -> None:
        """Log values of a training step, which may be NaN.

        `step` counts the finished steps, this one included. Every call is kept, so call
        it every so many steps.
        """
        self._add("step", step, values)

    def epoch(self, epoch: int, stats: Mapping[str, Mapping[str, float]]) -> None:
        """Log statistics of an epoch, `{"train": {"loss": 1.0}}` as `train/loss`."""
        values = {
            f"{stage}/{name}": value
            for stage, part in stats.items()
            for name, value in part.items()
        }
        self._add("epoch", epoch, values)

    def audio(self, tag: str, wave_T: Tensor, sample_rate: int, epoch: int) -> None:
        """Put a signal into TensorBoard, if that is on, as `tag`.

        It keeps its level unless its peak is above 1, which would clip; samples that
        are not finite are played as 0.
        """
        if writer := self._writer("epoch"):
            wave_T = _finite(wave_T)
            wave_T = wave_T / wave_T.abs().max().clamp(min=1)
            writer.add_audio(tag, wave_T, epoch, sample_rate=sample_rate)
            writer.flush()

    def spectrogram(
        self, tag: str, wave_T: Tensor, sample_rate: int, epoch: int
    ) -> None:
        """Put the spectrogram of a signal into TensorBoard, if that is on."""
        if writer := self._writer("epoch"):
            writer.add_image(tag, spectrogram_image(wave_T, sample_rate), epoch)
            writer.flush()

    def spread(self, tag: str, rows: Sequence[Mapping[str, Any]], epoch: int) -> None:
        """Put how scores spread over the examples into TensorBoard, if that is on."""
        if rows and (writer := self._writer("epoch")):
            for name in rows[0].keys() - {"id"}:
                known = [v for row in rows if (v := row[name]) is not None]
                if values := [value for value in known if math.isfinite(value)]:
                    writer.add_histogram(f"{tag}/{name}", torch.tensor(values), epoch)
            writer.flush()

    def rewind(self, step: int, epoch: int) -> None:
        """Forget what was logged after these finished steps and epochs.

        Call it before logging, with the checkpoint's numbers or, in a new run, zeros.
        """
        last = {"step": step, "epoch": epoch}
        kept = [p for p in curves.read_points(self.csv_path) if p.step <= last[p.kind]]
        write_table(self.csv_path, curves.COLUMNS, kept)
        self.close()
        # TensorBoard drops what earlier event files hold from this number on.
        self._purge = {kind: number + 1 for kind, number in last.items()}

    def curves(self) -> Path:
        """Draw `curves.csv` into `curves.png`, a panel for each quantity and axis."""
        points = curves.read_points(self.csv_path)
        path = curves.draw_curves(points, self.folder / "curves.png")
        # A figure is 15 MB of reference cycles, which would pile up.
        gc.collect()
        return path

    def close(self) -> None:
        """Close the TensorBoard files. Logging may go on afterwards."""
        while self._writers:
            self._writers.popitem()[1].close()

    def _add(self, kind: str, number: int, values: Mapping[str, float]) -> None:
        points = [curves.Point(kind, number, k, float(v)) for k, v in values.items()]
        with (
            naming(self.csv_path),
            open(self.csv_path, "a", encoding="utf-8", newline="") as file,
        ):
            csv.writer(file, lineterminator="\n").writerows(points)
        if writer := self._writer(kind):
            for point in points:
                writer.add_scalar(point.name, point.value, number)
            writer.flush()

    def _writer(self, kind: str) -> Any:
        """Return the TensorBoard writer of an axis, None without TensorBoard."""
        if self._writer_class is None:
            return None
        if kind not in self._writers:
            folder = str(self.folder / "tensorboard" / f"{kind}s")
            writer = self._writer_class(folder, purge_step=self._purge[kind])
            self._writers[kind] = writer
        return self._writers[kind]


def spectrogram_image(wave_T: Tensor, sample_rate: int) -> Tensor:
    """Return a magnitude spectrogram as a grey picture [1, F, L], 0 Hz in the last row.

    Its range [0, 1] is the 80 dB up to the loudest point; L is at most 1025.
    """
    window = round(WINDOW * sample_rate)
    hop = max(round(HOP * sample_rate), math.ceil(len(wave_T) / MAX_FRAMES))
    spectrum_FL = torch.stft(
        _finite(wave_T),
        n_fft=window,
        hop_length=hop,
        window=torch.hann_window(window),
        pad_mode="constant",
        return_complex=True,
    )
    power_FL = spectrum_FL.abs().square()
    # The floor only keeps digital silence out of the logarithm.
    level_FL = 10 * torch.log10(power_FL / power_FL.max().clamp(min=1e-20) + 1e-20)
    return (1 + level_FL / RANGE_DB).clamp(0, 1).flip(0).unsqueeze(0)


def _finite(wave_T: Tensor) -> Tensor:
    wave_T = wave_T.detach().float().cpu()
    return torch.nan_to_num(wave_T, nan=0.0, posinf=0.0, neginf=0.0)


def _summary_writer_class() -> type:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            f"TensorBoard cannot be imported ({error}): run `pip install tensorboard`, "
            "or set `tensorboard: False`"
        ) from None
    return SummaryWriter
