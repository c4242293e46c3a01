"""The audit: wrong stems are found among right ones, without any true label."""

import csv
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from data_prep.music import audit, content
from data_prep.music.evidence import (
    less_median,
    loss_signals,
    standard,
)
from data_prep.music.manifests import find_tracks
from modules.data.label_actions import act_on_labels
from modules.data.labels import read_labels
from modules.losses.kept_losses import KeptLosses
from tests.modules.monitor.listen.examples import data_of

RATE = 22050
SOURCES = ("low", "mid", "hiss")


def wave(kind: str, rng: np.random.Generator) -> np.ndarray:
    """Two channels of 4 s: a tone of its own frequency, or noise."""
    time_T = np.arange(4 * RATE) / RATE
    if kind == "hiss":
        wave_T = 0.1 * rng.standard_normal(len(time_T))
    else:
        hertz = rng.uniform(90, 200) if kind == "low" else rng.uniform(900, 2000)
        wave_T = 0.3 * np.sin(2 * np.pi * hertz * time_T)
    return np.stack([wave_T, wave_T], axis=1)


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven tracks: t2 has two stems exchanged, t5 a tone in `hiss`, t6 silence."""
    folder = tmp_path_factory.mktemp("songs")
    rng = np.random.default_rng(1)
    for number in range(7):
        waves = {name: wave(name, rng) for name in SOURCES}
        if number == 2:
            waves["low"], waves["hiss"] = waves["hiss"], waves["low"]
        if number == 5:
            waves["hiss"] = waves["hiss"] + waves["mid"]
            waves["mid"] = wave("mid", rng) * 0.05
        if number == 6:
            waves["mid"] *= 0
        for name, wave_TC in waves.items():
            (folder / f"t{number}").mkdir(exist_ok=True)
            soundfile.write(folder / f"t{number}" / f"{name}.wav", wave_TC, RATE)
    return folder


@pytest.fixture(scope="module")
def arguments(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command line of an audit that ran once."""
    out = tmp_path_factory.mktemp("audit")
    found = [f"--data_folder={data_folder}", f"--out={out}"]
    found += ["--sources=low,mid,hiss", "--listen=3"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(content, "EXAMPLES", 2048)
        assert audit.main(found) == 0
    return found


def test_wrong_stems_come_first_and_say_what_they_are(arguments):
    out = Path(arguments[1].removeprefix("--out="))
    labels = read_labels(out / "audit.csv")
    assert len(labels) == 20, "the silent stem is not judged"
    wrong = {key for key, label in labels.items() if label.is_wrong}
    assert wrong == {("t2", "low"), ("t2", "hiss"), ("t5", "hiss"), ("t5", "mid")}
    assert set(list(labels)[:4]) == wrong
    assert labels["t2", "low"].sounds_like == "hiss"
    assert labels["t5", "hiss"].sounds_like == "mid"
    keep = json.loads((out / "keep.json").read_text())
    assert keep["low"] == [f"t{k}" for k in (0, 1, 3, 4, 5, 6)]
    page = data_of(out / "listen.html")
    heard = [example for example in page["examples"] if example["tracks"]]
    assert len(heard) == 3 and len(page["examples"]) == 20
    assert page["labels"]["t2 low"][:2] == ["t2", "low"]


def test_what_training_drops_is_what_the_audit_does_not_keep(
    arguments, data_folder, tmp_path, monkeypatch
):
    """A probability of exactly one half included."""
    out = tmp_path / "out"
    shutil.copytree(arguments[1].removeprefix("--out="), out)

    def half(heard: dict, sources: Sequence[str]) -> tuple[dict, dict]:
        content, sounds_like = suspects(heard, sources)
        return content | {("t0", "low"): 0.0}, sounds_like

    suspects = audit.suspects
    monkeypatch.setattr(audit, "suspects", half)
    assert audit.main([*arguments, f"--out={out}"]) == 0
    labels = read_labels(out / "audit.csv")
    assert labels["t0", "low"].wrong == 0.5
    rows = find_tracks(data_folder, SOURCES, 0)["train"]
    _, trust = act_on_labels(rows, labels, SOURCES, "drop")
    keep = json.loads((out / "keep.json").read_text())
    for number, name in enumerate(SOURCES):
        sounds = [t for t in sorted(trust) if (t, name) in labels]
        assert keep[name] == [t for t in sounds if trust[t][number]]


def test_the_same_command_continues_and_another_is_refused(
    arguments, data_folder, monkeypatch, capsys
):
    table = Path(arguments[1].removeprefix("--out=")) / "audit.csv"
    first = table.read_bytes()
    table.unlink()
    monkeypatch.setattr(audit, "hear", None)  # it need not be called again
    assert audit.main(arguments) == 0
    assert table.read_bytes() == first
    assert "1 silent stems were not judged" in capsys.readouterr().out
    assert audit.main([*arguments, "--seed=1"]) == 1
    assert "was begun with seed=0, now it is 1" in capsys.readouterr().err
    stem = data_folder / "t0" / "low.wav"
    status = stem.stat()
    os.utime(stem, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))
    assert audit.main(arguments) == 1, "another file may sound otherwise"
    os.utime(stem, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert "was begun with files=" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "fault"),
    [
        ("--data_folder=none", "none does not exist"),
        ("--run=none", "none does not exist"),
        ("--sources=low,banjo", "banjo.wav"),
    ],
)
def test_bad_input_is_one_line(data_folder, tmp_path, capsys, option, fault):
    arguments = [f"--data_folder={data_folder}", "--sources=low,mid,hiss"]
    assert audit.main([*arguments, f"--out={tmp_path}/out", option]) == 1
    error = capsys.readouterr().err
    assert fault in error and error.count("\n") == 1


def test_a_track_without_others_is_not_judged(tmp_path, capsys):
    """One sounds, one is silent; and what is shorter than a window is no fault."""
    for track, level in (("a", 0.1), ("b", 0.0)):
        for name in SOURCES:
            (tmp_path / "songs" / track).mkdir(parents=True, exist_ok=True)
            place = tmp_path / "songs" / track / f"{name}.wav"
            soundfile.write(place, np.full((RATE + 9, 2), level), RATE)
    arguments = [f"--data_folder={tmp_path}/songs", "--sources=low,mid,hiss"]
    assert audit.main([*arguments, f"--out={tmp_path}/out"]) == 1
    assert "two must sound" in capsys.readouterr().err
    assert not len(content.cut_windows(torch.ones(2, 9)))
    assert content.bleed_db(torch.ones(3, 2, 9)) == [-90, -90, -90]


def test_only_runs_that_did_not_train_on_a_track_judge_it(
    data_folder, tmp_path, monkeypatch, capsys
):
    """Of two networks that each trained on some tracks; t6 was trained on by both."""
    seen = {"one": {"t0", "t1", "t6"}, "two": {"t2", "t3", "t6"}}
    asked: dict[str, list[str]] = {"one": [], "two": []}

    class Fake(audit.Judge):
        def __init__(self, name: str) -> None:
            self.folder, self.trained_on = Path(name), seen[name]
            self.model = SimpleNamespace(sources=SOURCES, sample_rate=RATE)

        def separate(self, mix_CT: Tensor) -> Tensor:
            return torch.stack([mix_CT, mix_CT, mix_CT])

    tracks = find_tracks(data_folder, SOURCES, 0)["train"]
    loud = {(track.id, name) for track in tracks for name in SOURCES}
    monkeypatch.setattr(audit, "judge", lambda model, stem_CT, name: (1.0, {}))
    judges = [Fake("one"), Fake("two")]
    found = audit.separate_all(judges, tracks, loud, tmp_path)
    assert set(found["margin"]) == set(found["cross"]) == loud
    assert "1 tracks are judged by networks that were trained on them" in (
        capsys.readouterr().out
    )
    with open(tmp_path / "separated.csv") as file:
        for row in csv.DictReader(file):
            asked[row["run"]].append(row["track"])
    assert set(asked["one"]) == {"t2", "t3", "t4", "t5", "t6"}
    assert set(asked["two"]) == {"t0", "t1", "t4", "t5", "t6"}
    for one in judges:
        one.separate = None  # type: ignore[method-assign]  # need not be asked again
    assert audit.separate_all(judges, tracks, loud, tmp_path) == found


def test_what_was_moved_has_more_in_common_with_another_estimate():
    low_CT, mid_CT, hiss_CT = torch.eye(3)[:, None].repeat(1, 2, 100)
    right = torch.stack([low_CT, mid_CT, hiss_CT])
    assert audit.cross_energy(right, right) == pytest.approx([-1, -1, -1])
    moved = torch.stack([low_CT + mid_CT, 0 * mid_CT, hiss_CT])
    low, mid, hiss = audit.cross_energy(right, moved)
    assert hiss == pytest.approx(-1) and low == pytest.approx(0, abs=1e-6) and mid > 0.4


def test_losses_are_compared_with_the_median_of_their_stem(tmp_path):
    losses = KeptLosses(["a", "b", "c"], ["drums", "bass"])
    one_NK = torch.ones(1, 2, dtype=torch.bool)
    for epoch, drums in enumerate([(1, 2, 8), (1, 2, 8), (1, 2, 0.5)], start=1):
        for track, loss in enumerate(drums):
            origin_NK, loss_NK = torch.full((1, 2), track), torch.tensor([[loss, 1.0]])
            losses.add(epoch, origin_NK.float(), loss_NK, one_NK, one_NK)
    found = loss_signals(losses.write_csv(tmp_path / "stem_losses.csv"))
    assert found["early_loss"]["c", "drums"] == pytest.approx(6)
    assert found["loss"]["c", "drums"] == pytest.approx((6 + 6 - 0.5) / 3)
    assert found["forgetting"]["b", "drums"] == pytest.approx(1 / 2)
    assert "dropped" not in found, "nothing was dropped: no signal"


def test_strays_do_not_decide():
    keys = [(str(k), "bass") for k in range(5)]
    signal = dict(zip(keys, [4.0, 3.0, 2.0, 1.0, 1e9], strict=True))
    assert standard(signal)[keys[4]] == 3.0
    assert less_median(signal)[keys[0]] == 1.0


def test_what_bleeds_is_found_in_the_stem_that_it_bleeds_into():
    generator = torch.Generator().manual_seed(0)
    stem_SCT = torch.randn(3, 2, 4 * RATE, generator=generator)
    stem_SCT[0, :, 2 * RATE :] *= 1e-3  # it rests
    before = content.bleed_db(stem_SCT)
    stem_SCT[0] += 0.1 * stem_SCT[1]
    after = content.bleed_db(stem_SCT)
    assert after[0] == pytest.approx(-17, abs=2)  # of half as much power
    assert max(*before, *after[1:]) < -30


def test_what_is_in_unison_now_and_then_does_not_bleed():
    generator = torch.Generator().manual_seed(0)
    stem_SCT = torch.randn(2, 2, 4 * RATE, generator=generator)
    stem_SCT[0] *= 0.1
    stem_SCT[0, :, :RATE] += 0.2 * stem_SCT[1, :, :RATE]
    assert content.bleed_db(stem_SCT)[0] < -30
