"""A run that learns nothing ends with an error that says why."""

import re
import subprocess
import sys

import pytest

import train
from modules.monitor.curves import read_points
from modules.runtime.errors import HparamsError, NothingLearned
from tests import ROOT
from tests.toy import ToySeparator


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"loss_upper_lim": -99},
            r"6 examples: loss at or above loss_upper_lim=-99 \(6",
        ),
        ({"threshold": 99}, r"6 examples: easier than threshold=99 \(6\)"),
    ],
)
def test_nothing_kept_names_the_setting(toy_arguments, tmp_path, options, message):
    options |= {"examples_per_epoch": 6}
    message = rf"^epoch 2: .*{message}.*learned nothing"
    with pytest.raises(NothingLearned, match=message):
        train.main(toy_arguments(**options))
    with pytest.raises(NothingLearned, match="^epoch 2: "):  # also at a resume
        train.main(toy_arguments(**options))
    run = tmp_path / "run"
    assert not (run / "test_results.csv").exists()
    log = (run / "train_log.txt").read_text()
    assert "nan" not in log and "train loss" not in log
    assert re.search(r"over_limit: 6|dropped: 6", log)
    values = {p.name: p.value for p in read_points(run / "curves.csv")}
    assert "train/loss" not in values and "loss" not in values
    assert re.search(r"epoch 1: .*left out: \w", (run / "log.txt").read_text())


def test_the_patience_counts_epochs_that_learn_nothing(toy_arguments):
    with pytest.raises(NothingLearned, match="^epoch 2: .*by nonfinite_patience=2"):
        train.main(toy_arguments(N_epochs=9, nonfinite_patience=2, threshold=99))


def test_an_output_that_ignores_its_input_is_an_error(toy_arguments, monkeypatch):
    forward = ToySeparator.forward

    def detached(self, mixture_BT):
        return forward(self, mixture_BT).detach()

    monkeypatch.setattr(ToySeparator, "forward", detached)
    with pytest.raises(HparamsError, match="does not depend on a trainable parameter"):
        train.main(toy_arguments())

    monkeypatch.setattr(ToySeparator, "forward", lambda self, x: 0 * forward(self, x))
    with pytest.raises(NothingLearned, match="every gradient was exactly zero"):
        train.main(toy_arguments())


def test_frozen_weights_are_refused(toy_arguments, monkeypatch):
    init = ToySeparator.__init__

    def frozen(self, *args, **kwargs):
        init(self, *args, **kwargs)
        self.requires_grad_(False)

    monkeypatch.setattr(ToySeparator, "__init__", frozen)
    with pytest.raises(HparamsError, match="all of its parameters are frozen"):
        train.main(toy_arguments())


def test_weights_that_have_grown_beyond_all_bounds_end_the_run(toy_arguments):
    with pytest.raises(
        NothingLearned, match=r"weights have diverged, .*lower lr=1e\+08"
    ):
        train.main(toy_arguments(lr=1e8))


def test_an_optimizer_that_refuses_its_settings_is_one_line(toy_arguments):
    both = "--optimizer={fused: True, foreach: True}"
    with pytest.raises(HparamsError, match="^optimizer: .*fused.*foreach"):
        train.main([*toy_arguments(), both])


def test_null_saves_all_audio(toy_arguments, tmp_path):
    train.main(toy_arguments(n_audio_to_save="null", N_epochs=1))
    assert len(list((tmp_path / "run" / "audio").iterdir())) == 2


@pytest.mark.slow
def test_it_is_one_line_and_a_status(toy_arguments):
    command = [sys.executable, "train.py", *toy_arguments(threshold=99)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "error: epoch 2: nothing was trained on" in done.stderr
    assert "SI-SNRi" not in done.stdout
