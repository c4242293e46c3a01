"""Averages of weights, as a run validates, keeps and tests them; and its early end."""

import csv

import pytest
import soundfile
import torch
import yaml

import train
from modules.runtime.errors import HparamsError
from modules.weights.ema import mean_state
from tests.e2e.test_train import meta_of
from tests.toy import ToySeparator, same_weights, weights_of


def test_the_best_of_several_averages_is_kept_tested_and_resumed(
    toy_arguments, tmp_path
):
    options = {"ema_decay": "[0.99, 0.0, 0.5]", "lr": 0.1, "keep_checkpoints": 2}
    seen = []
    whole = tmp_path / "whole"
    train.main(
        toy_arguments(**options, output_folder=whole),
        lambda kind, _, values: seen.append(values) if kind == "epoch" else None,
    )
    for values in seen:
        each = [values[f"valid/si_snr_ema{decay}"] for decay in ("0.99", "0", "0.5")]
        assert values["valid/si_snr"] == max(each)
    assert len(set(each)) == 3
    newest = sorted(whole.glob("save/CKPT+*"))[-1]
    state = torch.load(newest / "ema.ckpt", weights_only=True)
    assert each[state["best"]] == max(each) == meta_of(whole)["si_snr"]
    with open(whole / "validation" / "epoch_0002.csv") as file:
        scores = [float(row["si_snr"]) for row in csv.DictReader(file)]
    assert sum(scores) / len(scores) == pytest.approx(max(each))
    for epochs in (1, 2):
        train.main(toy_arguments(**options, N_epochs=epochs))
    assert same_weights(weights_of(tmp_path / "run"), weights_of(whole))
    name = f"save/{newest.name}/ema.ckpt"
    resumed = torch.load(tmp_path / "run" / name, weights_only=True)
    torch.testing.assert_close(resumed, state, rtol=0, atol=0)
    tables = [one / "test_results.csv" for one in (whole, tmp_path / "run")]
    assert tables[0].read_bytes() == tables[1].read_bytes()


def test_training_ends_where_no_score_gets_better(toy_arguments, tmp_path):
    options = {"stop_patience": 1, "N_epochs": 6, "lr": 1e-12, "lr_scheduler": "null"}
    for _ in range(2):  # and stays at its end
        train.main(toy_arguments(**options))
        log = (tmp_path / "run" / "train_log.txt").read_text()
        assert 2 <= meta_of(tmp_path / "run")["epoch"] == log.count("epoch: ") < 6
    assert "or stop_patience" in (tmp_path / "run" / "log.txt").read_text()


def test_the_mean_of_the_best_epochs_is_tested(toy_arguments, tmp_path):
    options = {"average_best": 2, "lr": 0.1}
    for more in ({"valid_every": 2}, {"average_last": 2}):
        with pytest.raises(HparamsError, match="average_best=2: needs as many valid"):
            train.main(toy_arguments(**options, **more))
    train.main(toy_arguments(**options, N_epochs=3))
    run = tmp_path / "run"
    saved = {}
    for path in run.glob("save/CKPT+*/CKPT.yaml"):
        meta = yaml.safe_load(path.read_text())
        if "si_snr" in meta:
            saved[meta["si_snr"]] = path.with_name("separator.ckpt")
    best = [torch.load(saved[score]) for score in sorted(saved)[-2:]]
    model = ToySeparator()
    model.load_state_dict(mean_state(best))
    tested = next((run / "audio").glob("*/mixture.wav")).parent
    mixture, _ = soundfile.read(tested / "mixture.wav", dtype="float32")
    with torch.no_grad():
        expected = model(torch.from_numpy(mixture)[None])[0]
    estimate, _ = soundfile.read(tested / "estimate_1.wav", dtype="float32")
    assert torch.allclose(torch.from_numpy(estimate), expected[0], atol=1e-5)
