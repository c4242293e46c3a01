"""The audit: wrong stems are found among right ones, without any true label."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data_prep.music import audit, content
from data_prep.music.evidence import combine, less_median, probabilities, ranked
from modules.data.labels import read_labels
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
        patch.setattr(content, "STEPS", 60)
        patch.setattr(content, "BATCH", 64)
        assert audit.main(found) == 0
    return found


def test_wrong_stems_come_first_and_say_what_they_are(arguments):
    out = Path(arguments[1].removeprefix("--out="))
    labels = read_labels(out / "audit.csv")
    assert len(labels) == 20, "the silent stem is not judged"
    wrong = {key for key, label in labels.items() if label.wrong >= 0.5}
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


def test_the_same_command_continues_and_another_is_refused(
    arguments, monkeypatch, capsys
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


@pytest.mark.parametrize(
    ("option", "fault"),
    [
        ("--data_folder=none", "none does not exist"),
        ("--run=none", "none/hyperparams.yaml: "),
        ("--sources=low,banjo", "banjo.wav"),
    ],
)
def test_bad_input_is_one_line(data_folder, tmp_path, capsys, option, fault):
    arguments = [f"--data_folder={data_folder}", "--sources=low,mid,hiss"]
    assert audit.main([*arguments, f"--out={tmp_path}/out", option]) == 1
    error = capsys.readouterr().err
    assert fault in error and error.count("\n") == 1


def test_probabilities_rise_with_the_score_and_find_the_share():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(0, 1, 80), rng.normal(5, 1, 20)])
    score = {(str(k), "bass"): float(x) for k, x in enumerate(values)}
    found = probabilities(score)
    order = sorted(score, key=lambda key: score[key])
    wrong = [found[key] for key in order]
    assert wrong == sorted(wrong)
    assert sum(wrong) == pytest.approx(20, abs=2)
    assert wrong[0] < 0.01 and wrong[-1] > 0.99
    assert set(probabilities(dict.fromkeys(score, 1.0)).values()) == {0.02}


def test_signals_of_one_origin_count_once_and_strays_do_not_decide():
    keys = [(str(k), "bass") for k in range(5)]
    one = dict(zip(keys, [0.0, 1.0, 2.0, 3.0, 4.0], strict=True))
    other = dict(zip(keys, [4.0, 3.0, 2.0, 1.0, 1e9], strict=True))
    alike = combine([[one, one], [other, other, other]])
    assert combine([[one], [other]]) == pytest.approx(alike)
    assert combine([[one], [other]])[keys[4]] == pytest.approx(
        (1.349 + 3) / 2, abs=0.01
    )
    assert ranked(other)[keys[4]] == 1.0
    assert less_median(one)[keys[0]] == -2.0
