"""The music recipe as a user runs it: phases, truncation, resume, whole songs."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import train
from modules.runtime.errors import HparamsError
from tests.e2e.test_ddp import torchrun
from tests.modules.monitor.listen.examples import data_of
from tests.toy import RATE, make_songs, same_weights, weights_of

TOY = str(Path(__file__).parents[1] / "toy_music.yaml")


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_songs(tmp_path_factory.mktemp("songs"))


@pytest.fixture
def arguments(songs: Path, tmp_path: Path) -> Callable[..., list[str]]:
    def make(**overrides: object) -> list[str]:
        settings = {
            "data_folder": songs,
            "valid_tracks": 1,
            "output_folder": tmp_path / "run",
            "num_workers": 0,
            "tensorboard": False,
            "device": "cpu",
            "n_audio_to_save": 1,
            "log_every": 1,
            **overrides,
        }
        return [TOY, *(f"--{name}={value}" for name, value in settings.items())]

    return make


def epochs_of(run: Path) -> list[str]:
    return [
        line for line in (run / "train_log.txt").read_text().splitlines()
        if line.startswith("epoch: ")
    ]  # fmt: skip


def test_a_run_goes_through_its_phases_and_leaves_what_a_user_expects(
    arguments, tmp_path, capsys
):
    train.main(arguments(truncation="ccom"))
    run = tmp_path / "run"
    one, two = epochs_of(run)
    assert "lr: 1.00e-02" in one and "lr: 1.00e-03" in two
    # Batches of four lose 1 of 4 at 0.7 and 2 of 4 at 0.5; the tail may be shorter.
    kept = [float(e.split("low_kept: ")[1].split(",")[0]) for e in (one, two)]
    assert 0.7 < kept[0] < 0.85 and 0.45 < kept[1] < 0.65
    assert "valid nsdr_truncated" in one
    with open(run / "test_results.csv") as file:
        (row,) = csv.DictReader(file)
    assert {"nsdr", "nsdr_low", "nsdr_high", "sdr_low"} <= row.keys()
    with open(run / "stem_losses.csv") as file:
        rows = list(csv.DictReader(file))
    assert {row["track"] for row in rows} == {"track1", "track2", "track3"}
    assert sum(int(row["dropped"]) for row in rows) > 0
    (song,) = data_of(run / "listen.html")["examples"]
    order = ("mixture", *("estimate low", "target low", "estimate high", "target high"))
    assert [track["name"] for track in song["tracks"]] == [*order]
    assert data_of(run / "listen.html")["sortBy"] == "nsdr"
    names = {path.name for path in (run / "audio" / "track0").iterdir()}
    assert names == {
        f"{name}.wav"
        for name in (
            *("mixture", "estimate_low", "estimate_high", "target_low", "target_high"),
        )
    }
    printed = capsys.readouterr().out
    assert "stem losses" in printed and "improvement" not in printed
    log = (run / "log.txt").read_text()
    assert "keeping the lowest 0.7 of losses" in log
    assert "train: loss " in log and "valid: nsdr " in log
    assert "low_kept" in one and "low_kept" not in log, "too long for the console"


class Killed(Exception):
    pass


@pytest.mark.parametrize("truncation", ["ccom", "running"])
@pytest.mark.parametrize("stop_after", [2, 5])
def test_a_killed_run_ends_with_the_same_bits(
    arguments, tmp_path, monkeypatch, truncation, stop_after
):
    options = {"truncation": truncation, "loss_memory": 6, "ckpt_interval_steps": 1}
    train.main(arguments(**options, output_folder=tmp_path / "whole"))

    from recipes.music import MusicSeparation

    original, calls = MusicSeparation.fit_batch, []

    def dies(self, batch):
        if len(calls) == stop_after:
            raise Killed
        calls.append(batch.ids)
        return original(self, batch)

    monkeypatch.setattr(MusicSeparation, "fit_batch", dies)
    with pytest.raises(Killed):
        train.main(arguments(**options, output_folder=tmp_path / "killed"))
    monkeypatch.setattr(MusicSeparation, "fit_batch", original)
    train.main(arguments(**options, output_folder=tmp_path / "killed"))
    whole, killed = weights_of(tmp_path / "whole"), weights_of(tmp_path / "killed")
    assert same_weights(whole, killed)
    for name in ("stem_losses.csv", "test_results.csv"):
        texts = [(tmp_path / run / name).read_text() for run in ("whole", "killed")]
        assert texts[0] == texts[1], name


@pytest.mark.ddp
def test_two_ranks_pool_their_losses_as_one_process_does(arguments, tmp_path):
    options = {"truncation": "pooled", "valid_every": 2}
    one = arguments(**options, batch_size=4, output_folder=tmp_path / "one")
    train.main(one)
    two = arguments(**options, batch_size=2, output_folder=tmp_path / "two")
    torchrun("train.py", *two)
    one, two = (weights_of(tmp_path / name) for name in ("one", "two"))
    for name, tensor in one.items():
        assert torch.allclose(tensor, two[name], atol=1e-5), name
    tables = []
    for name in ("one", "two"):
        with open(tmp_path / name / "stem_losses.csv") as file:
            tables.append(list(csv.DictReader(file)))
    for row, other in zip(*tables, strict=True):
        loss = float(row.pop("loss"))  # as different as the weights
        assert loss == pytest.approx(float(other.pop("loss")), rel=1e-3)
    assert tables[0] == tables[1]


def write_labels(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(["track,stem,wrong,sounds_like", *rows, ""]))
    return path


@pytest.mark.ddp
def test_two_ranks_choose_frames_and_weigh_labels_as_one_process(arguments, tmp_path):
    labels = write_labels(tmp_path / "labels.csv", "track1,low,0.7,", "track2,high,1,")
    options = {"truncation": "frames", "frame_seconds": 0.1, "valid_every": 2}
    options |= {"labels": labels, "label_action": "weight"}
    train.main(arguments(**options, batch_size=4, output_folder=tmp_path / "one"))
    two = arguments(**options, batch_size=2, output_folder=tmp_path / "two")
    torchrun("train.py", *two)
    one, two = (weights_of(tmp_path / name) for name in ("one", "two"))
    for name, tensor in one.items():
        assert torch.allclose(tensor, two[name], atol=1e-5), name
    logs = [epochs_of(tmp_path / name) for name in ("one", "two")]
    assert "high_kept: 7.00e-01" in logs[0][0]  # frames of what is usable
    assert float(logs[0][0].split("low_kept: ")[1].split(",")[0]) < 0.6  # one at 0.3
    assert [line.split(" - valid")[0] for line in logs[0]] == [
        line.split(" - valid")[0] for line in logs[1]
    ]


def test_wrong_stems_are_left_out_and_belong_to_the_identity_of_the_data(
    arguments, tmp_path
):
    first = write_labels(tmp_path / "audit.csv", "track1,low,0.9,", "track2,low,0.9,")
    second = write_labels(tmp_path / "labels.csv", "track2,low,0,")
    options = arguments(labels=f"[{first}, {second}]", valid_every=0)
    train.main(options)
    path = next((tmp_path / "run" / "save").glob("CKPT+*/stem_losses.ckpt"))
    sums_EQRK = torch.load(path, weights_only=True)["sums_EQRK"]
    offered = sums_EQRK[:, 1].sum(0).tolist()
    assert offered == [[0, 10], [10, 10], [10, 10]]  # epochs x segments, by track
    train.main(options)
    with pytest.raises(HparamsError, match="saved with other settings: labels: 3 "):
        train.main(arguments(labels=first, valid_every=0))
    with pytest.raises(HparamsError, match="label_action=doubt: use drop, weight, swa"):
        train.main(arguments(labels=first, label_action="doubt"))


def test_wrong_stems_are_not_drawn_where_each_comes_from_another_song(
    arguments, tmp_path, monkeypatch
):
    labels = write_labels(tmp_path / "audit.csv", "track1,low,0.9,", "track3,high,0.9,")
    options = {"independent": True, "examples_per_epoch": 8, "labels": labels}
    train.main(arguments(**options, valid_every=0))
    path = next((tmp_path / "run" / "save").glob("CKPT+*/stem_losses.ckpt"))
    offered_RK = torch.load(path, weights_only=True)["sums_EQRK"][:, 1].sum(0)
    assert offered_RK[0, 0] == offered_RK[2, 1] == 0
    assert offered_RK.sum(0).tolist() == [16, 16]


def test_losses_are_kept_of_the_whole_run_not_up_to_the_best_epoch(arguments, tmp_path):
    # The second phase ruins the weights: the best epoch is the first.
    phases = "{lr: [0.001, 0.9]}"
    options = {"truncation": "ccom", "lr_scheduler": phases}
    train.main(arguments(**options))
    log = (tmp_path / "run" / "train_log.txt").read_text()
    assert "epoch loaded: 1 " in log and len(epochs_of(tmp_path / "run")) == 2
    path = tmp_path / "run" / "stem_losses.csv"
    with open(path) as file:
        rows = list(csv.DictReader(file))
    segments = sum(int(row["offered"]) for row in rows if row["stem"] == "low")
    newest = sorted((tmp_path / "run" / "save").glob("CKPT+*/stem_losses.ckpt"))[-1]
    saved = torch.load(newest, weights_only=True)["sums_EQRK"][:, 1, :, 0].sum()
    assert segments == saved == 2 * 3 * 5  # epochs, tracks, segments of a track
    text = path.read_text()
    train.main([*arguments(**options), "--test_only"])
    assert path.read_text() == text


def test_a_resume_takes_other_tracks_by_name(arguments, songs, tmp_path):
    data = shutil.copytree(songs, tmp_path / "songs")

    def losses_after(epochs: str, **more: object) -> dict[tuple[str, str], str]:
        phases = f"{{epochs: {epochs}}}"
        train.main(arguments(data_folder=data, lr_scheduler=phases, **more))
        with open(tmp_path / "run" / "stem_losses.csv") as file:
            rows = [row for row in csv.DictReader(file) if row["stem"] == "low"]
        return {(row["track"], row["epoch"]): row["loss"] for row in rows}

    before = losses_after("[1, 1]")
    (data / "track1").rename(data / "track9")
    shutil.copytree(data / "track2", data / "track10")
    after = losses_after("[1, 2]", allow_changes=True)
    stayed = {key: loss for key, loss in before.items() if key[0] != "track1"}
    new = {key: loss for key, loss in after.items() if key[1] == "3"}
    assert {track for track, _ in new} >= {"track10", "track3", "track9"}
    assert stayed and after == stayed | new


def test_one_phase_alone(arguments, tmp_path):
    train.main(arguments(truncation="ccom", phase=2))
    (line,) = epochs_of(tmp_path / "run")
    assert "lr: 1.00e-03" in line


def test_a_stem_of_weight_0_is_not_trained(arguments, tmp_path):
    # The remembered losses have none of that stem, and is saved all the same.
    train.main(arguments(weights="[0,1]", truncation="running", loss_memory=4))
    text = epochs_of(tmp_path / "run")[0]
    assert "low_kept" not in text and "high_kept: " in text


def test_a_batch_too_small_for_truncation_is_refused_with_the_reason(arguments):
    with pytest.raises(HparamsError, match="drops none of 1 losses"):
        train.main(arguments(truncation="ccom", batch_size=1))


def test_a_mixture_that_is_not_the_sum_is_noted_once_a_set(arguments, tmp_path):
    songs = make_songs(tmp_path / "songs")
    stems = [soundfile.read(songs / "track0" / f"{s}.wav")[0] for s in ("low", "high")]
    place = songs / "track0" / "mixture.wav"
    soundfile.write(place, 0.5 * sum(stems), RATE, subtype="FLOAT")
    train.main(arguments(data_folder=songs))
    log = (tmp_path / "run" / "log.txt").read_text()
    for stage in ("valid", "test"):
        assert log.count(f"{stage}: {place}: is not the sum of its stems (off by") == 1


def test_a_rate_without_effect_is_said(arguments, tmp_path):
    train.main(arguments(valid_tracks=0, lr=0.5))
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "lr=0.5 has no effect: lr_scheduler says [0.01, 0.001]" in log


def test_without_validation_and_test_the_newest_weights_are_kept(arguments, tmp_path):
    train.main(arguments(valid_tracks=0))
    run = tmp_path / "run"
    assert all(" - train loss: " in line for line in epochs_of(run))
    log = (run / "log.txt").read_text()
    assert "valid" not in "".join(epochs_of(run)) and "not tested: the data have" in log
    assert not list(run.glob("test_results*")) and list(run.glob("save/CKPT+*"))
    with pytest.raises(HparamsError, match="--test_only: the data have no test set"):
        train.main([*arguments(valid_tracks=0), "--test_only"])


def test_a_silent_stem_is_named_once_and_has_no_part_in_any_mean(arguments, tmp_path):
    songs = make_songs(tmp_path / "songs")
    for stem, track in (("low", 0), ("low", 1), ("high", 1)):
        path = songs / f"track{track}" / f"{stem}.wav"
        soundfile.write(path, 0 * soundfile.read(path)[0], RATE, subtype="FLOAT")
    train.main(arguments(data_folder=songs, valid_tracks=2))
    log = (tmp_path / "run" / "log.txt").read_text()
    listed = "low of track0, low of track1, high of track1\n"
    assert log.count("silent targets have") == 2
    for stage in ("valid", "test"):
        assert f"{stage}: silent targets have no score: {listed}" in log
    with open(tmp_path / "run" / "test_results.csv") as file:
        one, two = csv.DictReader(file)
    assert one["nsdr_low"] == one["sdr_low"] == "" and float(one["sdr_high"]) > -50
    assert set(two.values()) == {"track1", ""}
    metrics = json.loads((tmp_path / "run" / "test_results.json").read_text())
    assert metrics["metrics"]["nsdr"]["mean"] == float(one["nsdr_high"])
    assert metrics["metrics"]["nsdr_low"]["mean"] is None
    last = epochs_of(tmp_path / "run")[-1]
    for name in ("nsdr", "nsdr_high", "nsdr_truncated"):
        assert float(last.split(f"valid {name}: ")[1].split(",")[0]) > -50


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"monitor": "sdr"}, "monitor=sdr: no score of a validation, .* nsdr_low"),
        ({"overlap": 1.0}, "overlap=1.0: must be from 0 to below 1"),
        ({"segments_per_call": 0}, "segments_per_call=0: must be 1 or more"),
        ({"shifts": -1}, "shifts=-1: must be 0 or more"),
        (
            {"lr_scheduler": "null", "N_epochs": 1},
            "lr_scheduler=null: expected keys",
        ),
    ],
)
def test_what_would_fail_later_is_refused_before_training(arguments, option, message):
    with pytest.raises(HparamsError, match=message):
        train.main(arguments(**option))


def test_wrong_weights_are_refused(arguments):
    with pytest.raises(HparamsError, match="one number, 0 or more, for each of low"):
        train.main(arguments(weights="[1]"))


def test_stems_of_other_songs_and_a_list_of_clean_ones(arguments, tmp_path):
    clean = {"low": ["track1", "track2"], "high": ["track2", "track3"]}
    (tmp_path / "clean.json").write_text(json.dumps(clean))
    train.main(
        arguments(
            train_stems=tmp_path / "clean.json",
            independent=True,
            examples_per_epoch=8,
            truncation="running",
            loss_memory=8,
        )
    )
    with open(tmp_path / "run" / "stem_losses.csv") as file:
        seen = {(row["stem"], row["track"]) for row in csv.DictReader(file)}
    assert seen <= {(stem, track) for stem, tracks in clean.items() for track in tracks}


def test_the_mean_of_the_last_epochs_is_tested(arguments, tmp_path):
    train.main(arguments(average_last=2))
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "keeping all losses" in log and "lowest" not in log
    states = [
        torch.load(path, weights_only=True)
        for path in sorted((tmp_path / "run" / "save").glob("CKPT+*/separator.ckpt"))
        if "\nepoch: " in f"\n{path.with_name('CKPT.yaml').read_text()}"
    ]
    assert len(states) == 2
    assert (tmp_path / "run" / "test_results.csv").is_file()
    refused = [
        {"average_last": 2, "ema_decay": 0.9},
        {"average_last": 3},  # of two epochs
    ]
    for number, options in enumerate(refused):
        new = tmp_path / str(number)
        with pytest.raises(HparamsError, match="average_last=.: needs as many epochs"):
            train.main(arguments(**options, output_folder=new))
        assert not list(new.glob("save/CKPT+*")), "trained in vain"
    with pytest.raises(HparamsError, match="average_last=-1: must be 0 or more"):
        train.main(arguments(average_last=-1))


def test_a_sum_of_losses_is_trained_on_with_truncation(arguments, tmp_path):
    parts = ("l1", "mrstft", "spec_rmse", "snr", "log_wmse", "l1_snr")
    losses = "{" + ", ".join(f"{name}: 0.1" for name in parts) + "}"
    options = {"losses": losses, "lr_scheduler": "{epochs: [1, 1], patience: 0}"}
    with pytest.raises(HparamsError, match="relative_to_level=True: snr, log_wmse and"):
        train.main(arguments(**options, relative_to_level=True))
    train.main(arguments(**options, truncation="pooled"))
    one, _ = epochs_of(tmp_path / "run")
    assert 0.6 < float(one.split("low_kept: ")[1].split(",")[0]) < 0.9
    # A tenth of L1 is below 1; the spectrograms and the decibels are not.
    assert 1 < float(one.split("train loss: ")[1].split(",")[0]) < 100


def test_a_trial_averages_its_few_epochs(arguments, tmp_path):
    phases = "{epochs: [3, 3]}"
    options = {"average_last": 5, "lr_scheduler": phases}
    train.main([*arguments(**options), "--debug"])
    assert (tmp_path / "run" / "debug" / "test_results.csv").is_file()


@pytest.mark.parametrize("more", ["", "told, ", "told, frames, coteaching, "])
def test_rules_of_truncation_are_trained_side_by_side(songs, tmp_path, capsys, more):
    rules, labels = tmp_path / "rules.yaml", tmp_path / "labels.csv"
    labels.write_text("track,stem,wrong,sounds_like\ntrack1,low,1,\n")
    rules.write_text(
        f"extends: {TOY}\n"
        "recipe: !name:benchmarks.truncation_rules.RuleComparison\n"
        f"rules: [none, {more}running]\n"
        f"trusted: {{told: [drop, {labels}]}}\n"
        f"audited: {songs}\n"
        "network: !new:tests.toy.ToyStems\n"
        "    sources: !ref <sources>\n"
        "    sample_rate: !ref <sample_rate>\n"
        "separator: !new:benchmarks.truncation_rules.RuleNetworks\n"
        "    separator: !ref <network>\n"
        "    rules: !ref <rules>\n"
        "loss_memory: 12\n"
        "select: !new:benchmarks.truncation_rules.RuleSelectors\n"
        "    rules: !ref <rules>\n"
        "    memory: !ref <loss_memory>\n"
        "    frame_seconds: !ref <frame_seconds>\n"
        "    trusted: !ref <trusted>\n"
        "frame_seconds: 0.1\n"
    )
    options = {
        "data_folder": songs, "valid_tracks": 1, "output_folder": tmp_path / "run",
        "num_workers": 0, "tensorboard": False, "device": "cpu",
        "relative_to_level": True,
    }  # fmt: skip
    are_all_told = more == "told, "
    if are_all_told:
        options["labels"] = labels
    train.main([str(rules), *(f"--{name}={value}" for name, value in options.items())])
    line = epochs_of(tmp_path / "run")[1]
    assert "none_low_kept: 1.00e+00" in line and "none_high_kept: 1.00e+00" in line
    assert float(line.split("running_low_kept: ")[1].split(",")[0]) < 1
    out = capsys.readouterr().out
    assert "stems are probably wrong" in out and "nsdr_running" in out
    with open(tmp_path / "run" / "audit" / "audit.csv") as file:
        assert "early_loss" in next(csv.reader(file))
    assert f"listen       {tmp_path}/run/audit/listen.html" in out
    weights = weights_of(tmp_path / "run")
    plain = weights["networks.none.mono.conv.weight"]
    assert not torch.equal(plain, weights["networks.running.mono.conv.weight"])
    if "told" in more:
        told = weights["networks.told.mono.conv.weight"]
        assert torch.equal(plain, told) == are_all_told
        kept = [
            float(line.split(f"told_{s}_kept: ")[1].split(",")[0])
            for s in ("low", "high")
        ]
        assert kept == [1, 1]  # of those that the labels leave


def test_songs_that_lack_a_stem_in_a_folder_for_each_stem(arguments, songs, tmp_path):
    stems = tmp_path / "stems"
    for path in songs.glob("*/*.wav"):
        place = stems / path.stem / f"{path.parent.name}.wav"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(path.read_bytes())
    (stems / "high" / "track0.wav").unlink()  # of the validation and the test
    (stems / "high" / "track1.wav").unlink()
    effects = "{takes: [0.5], eq: 0.5, noise: 0.5, mp3: 0.3, mixture_mp3: 0.3"
    settings = {
        "data_folder": stems,
        "missing_stems": "silent",
        "stem_balance": 0.5,
        "augmentation": f"{effects}, per_stem: {{low: {{eq: 0.0, reverse: 0.5}}}}}}",
    }
    train.main(arguments(**settings))
    run = tmp_path / "run"
    log = (run / "log.txt").read_text()
    assert "valid: silent targets have no score: high of track0" in log
    with open(run / "test_results.csv") as file:
        (row,) = csv.DictReader(file)
    assert row["nsdr_high"] in ("", "nan") and float(row["nsdr_low"]) < 100


def test_mastered_songs_are_trained_on_as_they_are(arguments, songs, tmp_path):
    mastered = tmp_path / "mastered"
    shutil.copytree(songs, mastered)
    for track in mastered.iterdir():
        low, high = (soundfile.read(track / f"{n}.wav")[0] for n in ("low", "high"))
        limited = np.tanh(3 * (low + high))
        soundfile.write(track / "mixture.wav", limited, RATE, subtype="FLOAT")
    train.main(arguments(data_folder=mastered, own_mixture=True))
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "is not the sum of its stems" in log
