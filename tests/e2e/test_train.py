"""train.py as a user calls it: a run, a resume, every run option."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest
import soundfile
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from modules.data import utterances
from modules.monitor.curves import read_points
from modules.monitor.logs import RunLog
from modules.runtime.errors import (
    CheckpointMismatch,
    DataError,
    FolderInUse,
    HparamsError,
)
from modules.runtime.run_lock import RunLock
from modules.runtime.signals import StopRun
from recipes.separation import Separation
from recipes.speech import SpeechSeparation
from tests import ROOT
from tests.modules.monitor.listen.examples import data_of
from tests.toy import make_corpus, same_weights, weights_of


def meta_of(folder: Path) -> dict:
    newest = sorted((folder / "save").glob("CKPT+*"))[-1]
    return yaml.safe_load((newest / "CKPT.yaml").read_text())


def brain_state(folder: Path) -> dict:
    newest = sorted((folder / "save").glob("CKPT+*"))[-1]
    return yaml.safe_load((newest / "brain.ckpt").read_text())


def test_a_run_leaves_what_a_user_expects(toy_arguments, tmp_path, capsys):
    train.main(toy_arguments())
    run = tmp_path / "run"
    for name in ("hyperparams.yaml", "env.log", "log.txt", "train.py", "curves.png"):
        assert (run / name).is_file(), name
    log = (run / "train_log.txt").read_text()
    assert "epoch: 1" in log and "valid si_snr_i" in log and "test sdr_i" in log

    rows = (run / "test_results.csv").read_text().splitlines()
    assert rows[0] == "id,si_snr,si_snr_i,sdr,sdr_i" and len(rows) == 3
    summary = json.loads((run / "test_results.json").read_text())
    assert summary["count"] == 2 and summary["non_finite"] == 0

    (folder,) = (run / "audio").iterdir()
    waves = {path.stem: soundfile.read(path)[0] for path in folder.iterdir()}
    assert set(waves) == {
        *("mixture", "estimate_1", "estimate_2"),
        *("target_1", "target_2"),
    }
    difference = waves["mixture"] - waves["target_1"] - waves["target_2"]
    assert abs(difference).max() < 1e-6, "written at their true level"

    heard, scored = data_of(run / "listen.html")["examples"]
    order = ("mixture", "estimate 1", "target 1", "estimate 2", "target 2")
    assert [track["name"] for track in heard["tracks"]] == [*order]
    assert heard["scores"].keys() == {"si_snr", "si_snr_i", "sdr", "sdr_i"}
    assert scored["scores"] and not scored["tracks"], "n_audio_to_save=1"
    assert data_of(run / "listen.html")["sortBy"] == "si_snr_i"

    printed, bars = capsys.readouterr()
    assert printed.splitlines()[-1] == f"listen       {run / 'listen.html'}"
    assert "improvement over the mixture" in printed
    for name in ("epoch 1:", "valid:", "test:"):
        assert f"{name} 100%" in bars
    assert "SI-SNRi" in printed and "SDRi" in printed
    assert str(run / "audio") in printed and str(run / "curves.png") in printed


class Killed(BaseException):
    """Stands for SIGKILL: nothing gets the chance to clean up."""


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_killed_run_ends_with_the_same_bits(
    toy_arguments, tmp_path, monkeypatch, num_workers, accumulation
):
    """Dynamic mixing, speed perturbation, dropout, EMA and mid-epoch checkpoints."""
    settings = {
        "dropout": 0.2,
        "ema_decay": 0.9,
        "examples_per_epoch": 7,
        "num_workers": num_workers,
        "ckpt_interval_steps": 2,
        "grad_accumulation_factor": accumulation,
    }
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    train.main(toy_arguments(output_folder=straight, **settings))

    fit_batch = Separation.fit_batch
    for epoch, step in ((1, 5), (2, 2), (2, 7)):

        def die(self, batch, epoch=epoch, step=step):
            if (self.epoch, self.step) == (epoch, step):
                raise Killed
            return fit_batch(self, batch)

        monkeypatch.setattr(Separation, "fit_batch", die)
        with pytest.raises(Killed):
            train.main(toy_arguments(output_folder=killed, **settings))
    monkeypatch.undo()
    train.main(toy_arguments(output_folder=killed, **settings))

    assert same_weights(weights_of(straight), weights_of(killed))
    assert brain_state(straight) == brain_state(killed)

    def logged(folder: Path) -> list[str]:
        lines = (folder / "curves.csv").read_text().splitlines()
        return [line for line in lines if "examples_per_second" not in line]

    assert logged(straight) == logged(killed), "curves hold no replayed step"


def test_the_worker_count_does_not_change_the_run(toy_arguments, tmp_path):
    for workers in (0, 2):
        folder = tmp_path / str(workers)
        train.main(toy_arguments(output_folder=folder, num_workers=workers))
    assert same_weights(weights_of(tmp_path / "0"), weights_of(tmp_path / "2"))


def test_static_mixtures_resume_too(toy_arguments, tmp_path, monkeypatch):
    settings = {"dynamic_mixing": False, "ckpt_interval_steps": 1, "batch_size": 2}
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    train.main(toy_arguments(output_folder=straight, **settings))
    fit_batch = Separation.fit_batch

    def die(self, batch):
        if (self.epoch, self.step) == (2, 2):
            raise Killed
        return fit_batch(self, batch)

    monkeypatch.setattr(Separation, "fit_batch", die)
    with pytest.raises(Killed):
        train.main(toy_arguments(output_folder=killed, **settings))
    monkeypatch.undo()
    train.main(toy_arguments(output_folder=killed, **settings))
    assert same_weights(weights_of(straight), weights_of(killed))


def start(arguments: list[str]) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "train.py", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(condition, seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.01)


@pytest.mark.slow
def test_signals_save_and_the_same_command_ends_with_the_same_bits(
    toy_arguments, tmp_path
):
    """SIGTERM, Ctrl-C and SIGKILL on the real process, in the middle of epochs."""
    settings = {"examples_per_epoch": 150, "num_workers": 2, "ckpt_interval_steps": 20}
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    train.main(toy_arguments(output_folder=straight, **settings))
    command = toy_arguments(output_folder=stopped, **settings)
    curves = stopped / "curves.csv"

    def steps() -> int:
        return curves.read_text().count("loss") if curves.exists() else 0

    outcomes = {signal.SIGTERM: 75, signal.SIGINT: 75, signal.SIGKILL: -9}
    for number, code in outcomes.items():
        before = steps()
        process = start(command)
        wait_for(lambda before=before: steps() >= before + 25)
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == code, output
        if code == 75:
            assert "the same command continues" in output
            assert meta_of(stopped)["end-of-epoch"] is False
    train.main(command)
    assert same_weights(weights_of(straight), weights_of(stopped))


def test_a_second_job_in_the_folder_is_refused(toy_arguments, tmp_path):
    with (
        RunLock(tmp_path / "run"),
        pytest.raises(FolderInUse, match=str(tmp_path / "run")),
    ):
        train.main(toy_arguments())


# ---------------------------------------------------------------- run options


def test_test_only_needs_a_checkpoint_and_then_changes_none(toy_arguments, tmp_path):
    with pytest.raises(HparamsError, match="no checkpoint to evaluate"):
        train.main(toy_arguments(test_only=None))
    train.main(toy_arguments())
    before = sorted((tmp_path / "run" / "save").glob("CKPT+*/*"))
    (tmp_path / "run" / "test_results.csv").unlink()
    train.main(toy_arguments(test_only=None))
    assert (tmp_path / "run" / "test_results.csv").is_file()
    assert sorted((tmp_path / "run" / "save").glob("CKPT+*/*")) == before


def test_test_only_without_checkpoint_is_one_line_on_the_command_line(
    toy_arguments, tmp_path
):
    process = start(toy_arguments(test_only=None))
    output, _ = process.communicate(timeout=90)
    assert process.returncode == 1
    assert output.strip().splitlines()[-1].startswith("error: ")
    assert "Traceback" not in output


def test_debug_is_short_and_leaves_the_real_results_alone(
    toy_arguments, tmp_path, capsys
):
    train.main(toy_arguments(debug=None))
    shown = capsys.readouterr().out.split("all values in dB")[1]
    assert "scores" in shown and "checkpoints" not in shown, "they are gone"
    run = tmp_path / "run"
    assert not list((run / "save").glob("CKPT+*"))
    assert not (run / "test_results.csv").exists()
    rows = (run / "debug" / "test_results.csv").read_text().splitlines()
    assert len(rows) == 3


def test_neither_debug_nor_a_refused_command_touches_an_earlier_run(
    toy_arguments, tmp_path
):
    train.main(toy_arguments(N_epochs=1))
    run = tmp_path / "run"
    names = ("hyperparams.yaml", "train_log.txt", "test_results.csv")
    before = {name: (run / name).read_bytes() for name in names}
    train.main(toy_arguments(debug=None, lr=0.5))
    assert {name: (run / name).read_bytes() for name in names} == before
    assert "lr: 5.00e-01" in (run / "debug" / "train_log.txt").read_text()
    with pytest.raises(DataError):
        train.main(toy_arguments(data_folder="/none"))
    assert (run / "hyperparams.yaml").read_bytes() == before["hyperparams.yaml"]


@pytest.mark.parametrize("option", ["precision", "eval_precision"])
def test_bf16(toy_arguments, tmp_path, monkeypatch, option):
    seen = {"train": set(), "eval": set()}
    separator_forward = "tests.toy.ToySeparator.forward"
    from tests.toy import ToySeparator

    forward = ToySeparator.forward

    def spy(self, mixture_BT):
        out = forward(self, mixture_BT)
        seen["train" if self.training else "eval"].add(out.dtype)
        return out

    monkeypatch.setattr(separator_forward, spy)
    train.main(toy_arguments(**{option: "bf16"}))
    low, full = {torch.bfloat16}, {torch.float32}
    expected = (low, full) if option == "precision" else (full, low)
    assert (seen["train"], seen["eval"]) == expected


def test_fp16_on_the_cpu_is_refused(toy_arguments):
    with pytest.raises(ValueError, match="bf16"):
        train.main(toy_arguments(precision="fp16"))


def test_grad_accumulation_and_optimizer_step_limit(toy_arguments, tmp_path):
    train.main(toy_arguments(grad_accumulation_factor=4))
    assert brain_state(tmp_path / "run")["optimizer_step"] == 2 * 2  # 6 batches: 4 + 2
    limited = tmp_path / "limited"
    train.main(toy_arguments(output_folder=limited, optimizer_step_limit=8))
    assert brain_state(limited)["optimizer_step"] == 8


def test_max_grad_norm(toy_arguments, tmp_path, monkeypatch):
    norms = []
    step = Separation.optimizers_step

    def spy(self):
        norms.append(self.max_grad_norm)
        step(self)

    monkeypatch.setattr(Separation, "optimizers_step", spy)
    train.main(toy_arguments(max_grad_norm=0.125, N_epochs=1))
    assert set(norms) == {0.125}


def test_ckpt_interval_minutes(toy_arguments, monkeypatch):
    saves = []
    save = Separation._save_intra_epoch_ckpt
    monkeypatch.setattr(
        Separation,
        "_save_intra_epoch_ckpt",
        lambda self: (saves.append(self.step), save(self)),
    )
    clock = time.monotonic
    ticks = iter(range(10**6))
    monkeypatch.setattr("time.monotonic", lambda: clock() + 30 * next(ticks))
    monkeypatch.setattr("time.time", lambda: 0.0)  # set back, and stopped
    train.main(toy_arguments(ckpt_interval_minutes=1, N_epochs=1))
    assert len(saves) > 1, "a minute of the clock passed at every second look at it"


def test_both_ckpt_intervals_are_refused(toy_arguments):
    with pytest.raises(SystemExit, match="mutually exclusive"):
        train.main(toy_arguments(ckpt_interval_minutes=1, ckpt_interval_steps=1))


def test_noprogressbar(toy_arguments, capsys):
    train.main(toy_arguments(N_epochs=1))
    assert "epoch 1" in capsys.readouterr().err
    train.main(toy_arguments(N_epochs=2, noprogressbar=None))
    assert "epoch 2:" not in capsys.readouterr().err


@pytest.mark.slow
def test_compile_trains_and_saves_plain_keys(toy_arguments, tmp_path):
    train.main(toy_arguments(N_epochs=1, compile=None))
    plain = tmp_path / "plain"
    train.main(toy_arguments(N_epochs=1, output_folder=plain))
    compiled = weights_of(tmp_path / "run")
    for name, weight in weights_of(plain).items():
        assert torch.allclose(compiled[name], weight, atol=1e-5)


def test_device_is_where_the_weights_live(toy_arguments, monkeypatch):
    devices = []
    fit_batch = Separation.fit_batch

    def spy(self, batch):
        devices.append((self.device, next(self.modules.parameters()).device.type))
        return fit_batch(self, batch)

    monkeypatch.setattr(Separation, "fit_batch", spy)
    train.main(toy_arguments(N_epochs=1))
    assert set(devices) == {("cpu", "cpu")}


def test_a_wrong_key_stops_before_anything_is_written(toy_arguments, tmp_path):
    with pytest.raises(HparamsError, match="did you mean batch_size"):
        train.main([*toy_arguments(), "--batchsize=3"])
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------- variants


def test_three_speakers_at_16_khz(toy_arguments, tmp_path):
    data = make_corpus(tmp_path / "data", num_spks=3, rate=16000)
    train.main(
        toy_arguments(data_folder=data, num_spks=3, sample_rate=16000, N_epochs=1)
    )
    assert weights_of(tmp_path / "run")["conv.weight"].shape[0] == 3
    (folder,) = (tmp_path / "run" / "audio").iterdir()
    assert soundfile.info(folder / "estimate_3.wav").samplerate == 16000


def test_validation_every_other_epoch(toy_arguments, tmp_path):
    train.main(toy_arguments(N_epochs=5, valid_every=2))
    lines = (tmp_path / "run" / "train_log.txt").read_text().splitlines()
    validated = ["valid" in line for line in lines if line.startswith("epoch:")]
    assert validated == [False, True, False, True, True], "and at the end"


def test_long_files_are_separated_in_chunks(toy_arguments, tmp_path, monkeypatch):
    from tests.toy import ToySeparator

    lengths = []
    forward = ToySeparator.forward

    def spy(self, mixture_BT):
        if not self.training:
            lengths.append(mixture_BT.shape[-1])
        return forward(self, mixture_BT)

    monkeypatch.setattr(ToySeparator, "forward", spy)
    train.main(toy_arguments(N_epochs=1, eval_chunk_seconds=0.25))
    assert max(lengths) <= 2000


def test_the_evaluation_batch_does_not_change_a_score(toy_arguments, tmp_path):
    train.main(toy_arguments())
    results = tmp_path / "run" / "test_results.csv"
    one_by_one = results.read_text()
    train.main(toy_arguments(test_only=None, eval_batch_size=2))
    assert results.read_text() == one_by_one


def test_a_finished_run_is_only_tested_again(toy_arguments, tmp_path):
    train.main(toy_arguments())
    before = weights_of(tmp_path / "run")
    train.main(toy_arguments())
    assert same_weights(before, weights_of(tmp_path / "run"))
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "already trained for all 2 epochs: testing only" in log
    assert "Resuming" not in log
    train.main(toy_arguments(N_epochs=3))
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "Resuming after epoch 2, step 0 of the next" in log


def test_going_on_with_another_network_is_explained(toy_arguments, tmp_path):
    train.main(toy_arguments(N_epochs=1))
    before = sorted((tmp_path / "run" / "save").glob("CKPT+*/*"))
    _, *options = toy_arguments()
    larger = tmp_path / "larger.yaml"
    larger.write_text(
        f"extends: {ROOT / 'tests' / 'toy.yaml'}\n"
        "separator: !new:tests.toy.ToySeparator\n    num_sources: 5\n"
    )
    with pytest.raises(HparamsError, match="separator.num_sources: 2 -> 5"):
        train.main([str(larger), *options])
    with pytest.raises(CheckpointMismatch) as error:
        train.main([str(larger), *options, "--allow_changes=True"])
    assert "conv.weight: [2, 1, 9] in the file, [5, 1, 9] in" in str(error.value)
    assert "another output_folder" in str(error.value)
    assert sorted((tmp_path / "run" / "save").glob("CKPT+*/*")) == before


def test_a_resume_with_other_settings_is_refused_unless_accepted(
    toy_arguments, tmp_path
):
    train.main(toy_arguments(N_epochs=1))
    before = weights_of(tmp_path / "run")
    changed = {"lr": 0.5, "batch_size": 2, "precision": "bf16"}
    with pytest.raises(HparamsError) as caught:
        train.main(toy_arguments(**changed))
    message = str(caught.value)
    for part in ("lr: 0.00015 -> 0.5", "batch_size: 1 -> 2", "precision: fp32 -> bf16"):
        assert part in message
    assert "--allow_changes=True" in message and "\n" not in message
    assert same_weights(before, weights_of(tmp_path / "run"))

    train.main(toy_arguments(**changed, allow_changes=True))
    log = (tmp_path / "run" / "train_log.txt").read_text().splitlines()
    assert "epoch: 2, lr: 5.00e-01" in log[2]
    # The run is now one with these settings.
    train.main(toy_arguments(**changed, N_epochs=3, num_workers=2, log_every=2))


def test_an_accepted_batch_size_leaves_out_nothing_of_the_epoch(
    toy_arguments, tmp_path, monkeypatch
):
    """Stopped after 5 of 7 single examples; goes on with batches of 2 at the fifth."""
    fit_batch, seen = Separation.fit_batch, []

    def stop(self, batch):
        seen.append(batch.ids)
        if len(seen) == 5:
            self.stop_request.received = "SIGTERM"
        return fit_batch(self, batch)

    monkeypatch.setattr(Separation, "fit_batch", stop)
    settings = {"examples_per_epoch": 7, "N_epochs": 1, "log_every": 1}
    with pytest.raises(StopRun):
        train.main(toy_arguments(**settings))
    train.main(toy_arguments(**settings, batch_size=2, allow_changes=True))
    assert [len(ids) for ids in seen] == [1] * 5 + [2, 1]
    points = read_points(tmp_path / "run" / "curves.csv")
    steps = [p.step for p in points if (p.kind, p.name) == ("step", "loss")]
    assert steps == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("dynamic_mixing", [True, False])
def test_speeds_that_are_none_are_one_line(toy_arguments, dynamic_mixing):
    settings = {"speed_changes": "[0,100]", "dynamic_mixing": dynamic_mixing}
    with pytest.raises(HparamsError, match="speed_changes=.*: must be from 1 to 1000"):
        train.main(toy_arguments(**settings))


def test_a_damaged_checkpoint_has_one_before_it_from_the_first_epoch_on(
    toy_arguments, tmp_path, monkeypatch
):
    settings = {"examples_per_epoch": 7, "ckpt_interval_steps": 2}
    fit_batch = Separation.fit_batch
    for number, where in enumerate([(1, 6), (2, 2), (2, 7)]):

        def die(self, batch, where=where):
            if (self.epoch, self.step) == where:
                raise Killed
            return fit_batch(self, batch)

        monkeypatch.setattr(Separation, "fit_batch", die)
        with pytest.raises(Killed):
            train.main(toy_arguments(**settings))
        saves = sorted((tmp_path / "run" / "save").glob("CKPT+*"))
        assert len(saves) >= 2, f"death {number}"
        (saves[-1] / "separator.ckpt").write_bytes(b"")
    monkeypatch.undo()
    train.main(toy_arguments(**settings))


def test_checkpoints_are_saved_by_the_clock_too(toy_arguments, tmp_path, monkeypatch):
    saved = []
    save = Separation._save_intra_epoch_ckpt

    def spy(self):
        saved.append((self.epoch, self.step))
        save(self)

    monkeypatch.setattr(Separation, "_save_intra_epoch_ckpt", spy)
    settings = {"examples_per_epoch": 6, "N_epochs": 1, "grad_accumulation_factor": 2}
    train.main(toy_arguments(**settings))
    assert saved == [(1, 6)], "before the validation alone: the default is minutes"
    saved.clear()
    train.main(toy_arguments(**settings, output_folder=tmp_path / "x",
                             checkpoint_minutes=1e-9))  # fmt: skip
    assert saved == [(1, 2), (1, 4), (1, 6)]


def test_never_validated_the_newest_is_tested(toy_arguments, tmp_path):
    train.main(toy_arguments(valid_every=0))
    log = (tmp_path / "run" / "train_log.txt").read_text()
    assert "valid" not in log and "epoch loaded: 2 - test si_snr" in log


def test_a_stop_is_heard_inside_of_any_example(toy_arguments, tmp_path, monkeypatch):
    """In a validation, in the test, while levels are measured: the same bits after."""
    monkeypatch.setattr(RunLog, "curves", lambda self: None)  # which takes longest
    settings = {"ema_decay": 0.9, "grad_accumulation_factor": 4}
    straight = tmp_path / "straight"
    train.main(toy_arguments(output_folder=straight, **settings))

    def ask(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.5)

    def stops_in(owner: object, name: str) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, ask)
            with pytest.raises(StopRun, match="SIGTERM; the same command continues"):
                train.main(toy_arguments(**settings))

    stops_in(utterances, "_measure_file")
    for _ in range(2):
        stops_in(SpeechSeparation, "separate")
        assert "epoch" not in meta_of(tmp_path / "run")
        assert brain_state(tmp_path / "run")["step"] == 6, "all of it is saved"
    stops_in(Separation, "_load_for_evaluation")
    stops_in(SpeechSeparation, "separate")
    assert meta_of(tmp_path / "run")["epoch"] == 2
    train.main(toy_arguments(**settings))

    assert same_weights(weights_of(straight), weights_of(tmp_path / "run"))
    names = ("train_log.txt", "test_results.csv", "validation/epoch_0002.csv")
    for name in names:
        assert (straight / name).read_bytes() == (tmp_path / "run" / name).read_bytes()


def test_what_lies_in_the_place_of_a_record_is_set_aside(
    toy_arguments, tmp_path, monkeypatch
):
    """None of these files is worth more than the run."""
    monkeypatch.setattr(RunLog, "curves", lambda self: None)  # which takes longest
    run = tmp_path / "run"
    train.main(toy_arguments(N_epochs=1))
    for name in ("log.txt", "env.log", "test_results.csv"):
        (run / name).unlink()
        (run / name).mkdir()
    (run / "curves.csv").write_bytes(b"mine\n")
    (run / "train_log.txt").write_bytes(b"\xff\xfe\n")
    (run / "validation" / "epoch_0001.csv").unlink()
    (run / "validation").rmdir()
    (run / "validation").write_text("")
    shutil.rmtree(run / "audio")
    (run / "audio").write_text("")
    (run / "save" / "utterances.csv").write_bytes(b"\0")
    train.main(toy_arguments(N_epochs=2))
    assert (run / "curves.csv.aside").read_bytes() == b"mine\n"
    assert (run / "train_log.txt.aside").read_bytes() == b"\xff\xfe\n"
    aside = {path.name for path in run.glob("*.aside")}
    assert aside >= {"log.txt.aside", "env.log.aside", "validation.aside"}
    assert (run / "validation" / "epoch_0002.csv").is_file()
    said = (run / "log.txt").read_text()
    assert said.count("curves.csv is damaged or in the way") == 1


def test_records_are_of_this_environment_and_of_this_run(toy_arguments, tmp_path):
    train.main(toy_arguments(N_epochs=1, tensorboard=True))
    run = tmp_path / "run"
    said = (run / "env.log").read_text()
    assert sys.executable in said and f"torch=={version('torch')}\n" in said
    lines = (run / "log.txt").read_text().splitlines()
    details = [line for line in lines if " - DEBUG - " in line]
    assert details and all(" - modules." in line for line in details)
    rows = (run / "validation" / "epoch_0001.csv").read_text().splitlines()
    assert rows[0] == "id,loss,si_snr,si_snr_i" and len(rows) == 4
    logged = {point.name: point.value for point in read_points(run / "curves.csv")}
    assert logged["valid/loss"] == -logged["valid/si_snr"]
    events = EventAccumulator(str(run / "tensorboard" / "epochs")).Reload()
    assert events.Scalars("valid/loss")[0].value == pytest.approx(logged["valid/loss"])
    assert "valid/si_snr" in events.Tags()["histograms"]


def test_a_resume_with_other_data_is_refused(toy_arguments, tmp_path, monkeypatch):
    """As many files, of the same names and lengths."""
    monkeypatch.setattr(RunLog, "curves", lambda self: None)  # which takes longest
    corpus = make_corpus(tmp_path / "data")
    kinds = ((True, "talkers: 12 (", 1), (False, "train files: 6 (", 2))
    for mixing, text, changed_at in kinds:  # whole seconds tell two changes apart
        given = {"data_folder": corpus, "dynamic_mixing": mixing, "valid_every": 0}
        given["output_folder"] = tmp_path / text[:5]
        train.main(toy_arguments(N_epochs=1, **given))
        moved = corpus.rename(corpus.with_name(f"moved{mixing}"))
        given["data_folder"] = corpus = moved
        train.main(toy_arguments(N_epochs=2, **given))
        path = sorted(moved.glob("wav8k/min/tr/s1/*.wav"))[0]
        wave, rate = soundfile.read(path)
        mixture = path.parent.parent / "mix" / path.name
        whole, _ = soundfile.read(mixture)
        soundfile.write(mixture, whole + wave, rate, subtype="FLOAT")
        soundfile.write(path, 2 * wave, rate, subtype="FLOAT")
        os.utime(path, (changed_at, changed_at))
        with pytest.raises(HparamsError, match=re.escape(text)) as refusal:
            train.main(toy_arguments(N_epochs=3, **given))
        assert "\n" not in str(refusal.value)
        train.main(toy_arguments(N_epochs=3, allow_changes=True, **given))


def test_a_folder_of_checkpoints_is_locked_too(toy_arguments, tmp_path):
    shared = {"save_folder": tmp_path / "<experiment_name>"}
    with (
        RunLock(tmp_path / "toy"),
        pytest.raises(FolderInUse, match=str(tmp_path / "toy")),
    ):
        train.main(toy_arguments(**shared))


def test_averaged_weights_can_be_switched_on_at_a_resume(toy_arguments, tmp_path):
    train.main(toy_arguments(N_epochs=1, lr=0.1))
    scores = (tmp_path / "run" / "test_results.csv").read_bytes()
    more = {"lr": 0.1, "ema_decay": 0.9, "allow_changes": True}
    # Nothing is left to train: the average is that of the checkpoint's weights.
    train.main(toy_arguments(N_epochs=1, **more))
    assert (tmp_path / "run" / "test_results.csv").read_bytes() == scores
    train.main(toy_arguments(N_epochs=2, **more))
    assert len(list((tmp_path / "run" / "save").glob("CKPT+*/ema.ckpt"))) >= 1


def test_a_run_at_its_step_limit_is_only_tested_again(toy_arguments, tmp_path):
    options = {"N_epochs": 3, "optimizer_step_limit": 8}
    train.main(toy_arguments(**options))
    saved = sorted((tmp_path / "run" / "save").glob("CKPT+*"))
    train.main(toy_arguments(**options))
    assert sorted((tmp_path / "run" / "save").glob("CKPT+*")) == saved
    log = (tmp_path / "run" / "train_log.txt").read_text()
    assert log.count("epoch: ") == 2 and "nan" not in log


def test_debug_tests_the_real_checkpoint(toy_arguments, tmp_path):
    train.main(toy_arguments(N_epochs=1))
    train.main(toy_arguments(debug=None, test_only=None))
    run = tmp_path / "run"
    rows = (run / "test_results.csv").read_text()
    assert (run / "debug" / "test_results.csv").read_text() == rows


def test_the_rate_may_stay_as_it_is(toy_arguments, tmp_path):
    for epochs in (1, 2):
        train.main(toy_arguments(lr_scheduler="null", N_epochs=epochs))
    assert meta_of(tmp_path / "run")["epoch"] == 2


def test_an_output_folder_that_cannot_be_is_one_line(toy_arguments, tmp_path):
    (tmp_path / "file").write_text("")
    command = [sys.executable, "train.py"]
    command += toy_arguments(output_folder=tmp_path / "file" / "run")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "error: " in done.stderr and "file/run" in done.stderr


def test_an_epoch_is_logged_once_although_its_checkpoint_was_lost(
    toy_arguments, tmp_path, monkeypatch
):
    def die(*_: object, **__: object) -> None:
        raise Killed

    monkeypatch.setattr("recipes.separation.save_epoch", die)
    with pytest.raises(Killed):
        train.main(toy_arguments(N_epochs=1))
    log = tmp_path / "run" / "train_log.txt"
    assert log.read_text().count("epoch: 1,") == 1
    monkeypatch.undo()
    train.main(toy_arguments(N_epochs=1))
    assert log.read_text().count("epoch: 1,") == 1


def test_checkpoints_within_epochs_take_no_place_of_whole_ones(toy_arguments, tmp_path):
    options = {"average_last": 2, "keep_checkpoints": 2, "valid_every": 0}
    train.main(toy_arguments(ckpt_interval_steps=2, **options))
    paths = sorted((tmp_path / "run" / "save").glob("CKPT+*/CKPT.yaml"))
    kept = [yaml.safe_load(path.read_text()).get("epoch") for path in paths]
    assert kept == [1, None, 2], "of those within epochs only one of the newest two"
