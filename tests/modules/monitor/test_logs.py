"""Truths about run logs: what is logged is there, once, after any kill and resume.

Shapes: T sample, F frequency, L frame.
"""

import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from torch import Tensor

from modules.monitor.curves import Point, read_points
from modules.monitor.logs import RunLog, spectrogram_image
from tests import ROOT

RATE = 8000


def tone(frequency: float, seconds: float = 1.0) -> Tensor:
    t_T = torch.arange(int(seconds * RATE)) / RATE
    return 0.5 * torch.sin(2 * math.pi * frequency * t_T)


def points(folder: Path) -> list[tuple]:
    return [tuple(point) for point in read_points(folder / "curves.csv")]


def tensorboard(folder: Path, run: str):
    """What TensorBoard would show of one run, all event files together."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(
        str(folder / "tensorboard" / run), size_guidance={"audio": 0, "images": 0}
    )
    return events.Reload()


@pytest.fixture(autouse=True)
def ordered_event_files(monkeypatch):
    """TensorBoard reads files in the order of their names: second, host, process and a
    counter. Runs that follow within a second, in one process, as only tests have them,
    need counters of equal width.
    """
    from tensorboard.summary.writer import event_file_writer

    counter = event_file_writer.AtomicCounter(1000)
    monkeypatch.setattr(event_file_writer, "_global_uid", counter)


def train(log: RunLog, first: int, last: int, run: float) -> None:
    """Log steps first..last, three to an epoch."""
    for step in range(first, last + 1):
        log.scalars(step, loss=step + run, lr=1e-3)
        if step % 3 == 0:
            log.epoch(step // 3, {"valid": {"loss": step + run, "si_snr_i": 1.0}})


def test_values_come_back_exactly_and_in_order(tmp_path):
    log = RunLog(tmp_path / "new", tensorboard=False)
    log.scalars(10, loss=torch.tensor(0.1, dtype=torch.float64), kept_share=1 / 3)
    log.scalars(20, loss=math.nan, skipped=2)
    log.epoch(1, {"train": {"loss": 1, "lr": 1e-4}, "valid": {"si_snr_i": -math.inf}})
    rows = points(tmp_path / "new")
    assert math.isnan(rows[2][3])
    assert rows[:2] + rows[3:] == [
        ("step", 10, "loss", 0.1),
        ("step", 10, "kept_share", 1 / 3),
        ("step", 20, "skipped", 2.0),
        ("epoch", 1, "train/loss", 1.0),
        ("epoch", 1, "train/lr", 1e-4),
        ("epoch", 1, "valid/si_snr_i", -math.inf),
    ]


@pytest.mark.parametrize("done", [0, 3, 4, 7, 9])
def test_a_resumed_run_logs_what_a_straight_one_does(tmp_path, done):
    """Interrupted after 7 steps, gone on with from `done`; on both of the logs."""
    straight = RunLog(tmp_path / "straight")
    train(straight, 1, 9, run=0.0)
    straight.close()

    first = RunLog(tmp_path / "resumed")
    train(first, 1, done, run=0.0)
    train(first, done + 1, 7, run=0.5)  # to be forgotten
    first.close()
    second = RunLog(tmp_path / "resumed")
    second.rewind(step=done, epoch=done // 3)
    train(second, done + 1, 9, run=0.0)
    second.close()

    assert points(tmp_path / "resumed") == points(tmp_path / "straight")
    for run, tag in (("steps", "loss"), ("steps", "lr"), ("epochs", "valid/loss")):
        shown = [
            [(event.step, event.value) for event in board.Scalars(tag)]
            for board in (
                tensorboard(tmp_path / "straight", run),
                tensorboard(tmp_path / "resumed", run),
            )
        ]
        assert shown[0] == shown[1]
        assert len(shown[0]) == (9 if run == "steps" else 3)


def test_rewinding_within_a_run_works_too(tmp_path):
    log = RunLog(tmp_path)
    train(log, 1, 6, run=0.5)
    log.rewind(step=2, epoch=0)
    train(log, 3, 6, run=0.0)
    log.close()
    steps = [(p[1], p[3]) for p in points(tmp_path) if p[:3:2] == ("step", "loss")]
    assert steps == [(1, 1.5), (2, 2.5), (3, 3.0), (4, 4.0), (5, 5.0), (6, 6.0)]
    events = tensorboard(tmp_path, "steps").Scalars("loss")
    assert [(event.step, event.value) for event in events] == steps


def test_a_killed_process_leaves_everything_it_logged(tmp_path):
    script = (
        "import os, signal, sys; from modules.monitor.logs import RunLog\n"
        "log = RunLog(sys.argv[1])\n"
        "for step in range(1, 6): log.scalars(step, loss=step / 7)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert run.returncode == -signal.SIGKILL
    expected = [("step", step, "loss", step / 7) for step in range(1, 6)]
    assert points(tmp_path) == expected
    events = tensorboard(tmp_path, "steps").Scalars("loss")
    assert [event.step for event in events] == [1, 2, 3, 4, 5]


def test_a_log_cut_off_anywhere_is_gone_on_with(tmp_path):
    log = RunLog(tmp_path, tensorboard=False)
    train(log, 1, 3, run=0.0)
    path = tmp_path / "curves.csv"
    whole = path.read_bytes()
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        again = RunLog(tmp_path, tensorboard=False)
        again.scalars(4, loss=0.25)
        rows = [",".join(map(str, row)) for row in points(tmp_path)]
        lines = whole[:size].decode().split("\n")[1:-1]
        assert rows == [*lines, "step,4,loss,0.25"]


def test_damaged_lines_are_left_out_and_reported(tmp_path, caplog):
    log = RunLog(tmp_path, tensorboard=False)
    log.scalars(1, loss=1.0)
    with open(tmp_path / "curves.csv", "ab") as file:
        file.write(b'\0\0\0\nstep,x,loss,1\n"half\nother,2,loss,1\n\xff\n')
    log.scalars(2, loss=2.0)
    rows = [("step", 1, "loss", 1.0), ("step", 2, "loss", 2.0)]
    assert points(tmp_path) == rows
    assert "ignored 5 damaged lines" in caplog.text
    log.rewind(step=2, epoch=0)
    caplog.clear()
    assert points(tmp_path) == rows
    assert not caplog.records


def test_a_foreign_file_is_set_aside(tmp_path, caplog):
    path = tmp_path / "curves.csv"
    path.write_text("epoch;loss\n1;2\n")
    RunLog(tmp_path, tensorboard=False).scalars(1, loss=2.0)
    assert (tmp_path / "curves.csv.aside").read_text() == "epoch;loss\n1;2\n"
    assert path.read_text() == "kind,step,name,value\nstep,1,loss,2.0\n"
    path.write_text("another")
    RunLog(tmp_path, tensorboard=False)
    assert (tmp_path / "curves.csv.aside1").read_text() == "another"
    assert len(caplog.messages) == 2


def test_curves_are_drawn_for_every_state_of_a_run(tmp_path):
    log = RunLog(tmp_path, tensorboard=False)
    empty = matplotlib.image.imread(log.curves())
    assert (empty == 1).all()  # a white page
    log.scalars(1, loss=math.nan, lr=math.inf)
    log.curves()
    train(log, 2, 2500, run=0.0)
    picture = matplotlib.image.imread(log.curves())
    assert picture.shape[0] > empty.shape[0]  # five panels need a second row
    assert (picture < 0.5).any()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["curves.csv", "curves.png"]


def test_every_panel_has_a_title_in_words(tmp_path, monkeypatch):
    titles = []

    def look(figure, *args, **kwargs):
        titles.extend(a.get_title() for a in figure.axes if a.axison)
        Path(args[0]).touch()

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", look)
    log = RunLog(tmp_path, tensorboard=False)
    log.scalars(1, loss=1, lr=1, kept_share=1, drums_kept=1, drums_loss_kept=1)
    log.epoch(1, {"train": {"loss": 1, "steps_skipped": 0}, "valid": {"nsdr": 1}})
    log.curves()
    assert titles == [
        *("loss, by step", "learning rate, by step", "share kept, by step"),
        *("loss, by epoch", "steps skipped, by epoch", "SI-SNR, SDR (dB), by epoch"),
    ]


def test_long_curves_are_thinned_to_their_means():
    from modules.monitor.curves import MAX_POINTS, _thinned

    values = {step: float(step) for step in range(10 * MAX_POINTS, 0, -1)}
    values[20] = math.nan
    steps, means = _thinned(values)
    assert len(steps) == len(means) == MAX_POINTS
    assert steps[:3] == [5.5, 15.5, 25.5]
    assert means[0] == 5.5 and means[2] == 25.5
    assert means[1] == 15  # 11 ... 19, without the NaN
    assert _thinned({2: 1.0, 1: math.nan})[0] == [1.0, 2.0]


@pytest.mark.parametrize("frequency", [250, 1000, 3000])
def test_the_spectrogram_of_a_tone_is_a_line_at_its_frequency(frequency):
    image_FL = spectrogram_image(tone(frequency), RATE)[0]
    rows = image_FL.shape[0]
    assert rows == 129  # 32 ms at 8 kHz
    loudest = rows - 1 - image_FL.mean(dim=1).argmax().item()
    assert loudest * RATE / 256 == pytest.approx(frequency, abs=RATE / 256)
    assert image_FL.max() == 1 and image_FL.min() == 0


def test_spectrograms_of_odd_signals_are_pictures():
    silent = spectrogram_image(torch.zeros(4000), RATE)
    assert (silent == 0).all()
    broken_T = tone(1000)
    broken_T[100] = math.nan
    assert spectrogram_image(broken_T, RATE).isfinite().all()
    assert spectrogram_image(torch.ones(1), RATE).shape[1:] == (129, 1)
    assert spectrogram_image(torch.zeros(60 * RATE), RATE).shape[2] <= 1025


def test_audio_and_pictures_reach_tensorboard(tmp_path):
    log = RunLog(tmp_path)
    log.audio("a/quiet", tone(500), RATE, 1)
    log.audio("a/loud", tone(500) * 100, RATE, 1)
    log.audio("a/broken", torch.full((100,), math.nan), RATE, 1)
    log.spectrogram("a/quiet", tone(500), RATE, 1)
    log.audio("a/quiet", tone(500), RATE, 2)
    log.rewind(step=100, epoch=1)
    log.audio("a/quiet", tone(500), RATE, 2)
    log.close()
    board = tensorboard(tmp_path, "epochs")
    assert [event.step for event in board.Audio("a/quiet")] == [1, 2]
    peaks = {}
    for name in ("quiet", "loud", "broken"):
        event = board.Audio(f"a/{name}")[0]
        assert event.sample_rate == RATE
        wav = np.frombuffer(event.encoded_audio_string[44:], dtype="<i2")
        peaks[name] = abs(wav.astype(int)).max() / 32767
    assert peaks == pytest.approx({"quiet": 0.5, "loud": 1.0, "broken": 0.0}, abs=1e-3)
    image = board.Images("a/quiet")[0]
    assert (image.height, image.width) == (129, 126)


def test_without_tensorboard_the_error_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(
        ImportError, match="pip install tensorboard.*tensorboard: False"
    ):
        RunLog(tmp_path)
    log = RunLog(tmp_path, tensorboard=False)
    log.audio("x", tone(500), RATE, 1)
    log.spectrogram("x", tone(500), RATE, 1)
    log.scalars(1, loss=1.0)
    assert points(tmp_path) == [Point("step", 1, "loss", 1.0)]
    assert not (tmp_path / "tensorboard").exists()
